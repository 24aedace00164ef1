// env::Datagrams over UDP sockets, with segmentation and coalescing by the kernel (GSO, GRO) where it has them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "driver/posix/asio_loop.h"
#include "env/datagrams.h"

namespace holo::driver {

/// For tests and measurements: without these the same bytes travel by more system calls.
struct UdpOptions {
  bool gso = true;  ///< Bursts leave in one piece, which the kernel or the card cuts.
  bool gro = true;  ///< What arrives together is read in one piece.
};

struct UdpCounters {
  std::uint64_t send_errors = 0;   ///< Messages (datagrams or bursts) that the kernel would not send.
  std::uint64_t gso_refusals = 0;  ///< Sockets that went on without GSO because the kernel refused it.
};

/// Bytes of payload, at most, that a burst to `remote` should have to pass the first link in one piece, cut at its far
/// side: a larger one is cut before it is queued, and each datagram then costs what the whole burst would. Cost: two
/// questions to the kernel, none for loopback.
std::size_t burst_limit(const env::IpEndpoint& remote);

struct UdpShared;

/// Thread: loop. The loop outlives it and its sockets; the sockets may outlive it.
class UdpDatagrams final : public env::Datagrams {
 public:
  explicit UdpDatagrams(AsioLoop& loop);
  UdpDatagrams(AsioLoop& loop, UdpOptions options);
  ~UdpDatagrams() override;

  Result<std::unique_ptr<env::DatagramSocket>> bind(const std::string& address) override;
  Task<Result<std::vector<env::IpEndpoint>>> resolve(std::string address, Instant deadline) override;

  /// Loopback's own MTU, for loopback; 0 else.
  [[nodiscard]] std::size_t known_payload(const env::IpEndpoint& remote) const override;

  /// Of all its sockets so far.
  [[nodiscard]] UdpCounters counters() const;

 private:
  AsioLoop& loop_;
  std::shared_ptr<UdpShared> shared_;
  std::size_t loopback_payload_ = 0;
};

}  // namespace holo::driver
