// The port to UDP: datagrams in batches. driver/posix implements it; the simulator has its own, with faults.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "base/task.h"
#include "base/time.h"

namespace holo::env {

/// An IP address and a port. IPv4 addresses are kept in their v4-mapped form (::ffff:a.b.c.d), so that one socket and
/// one comparison serve both.
struct IpEndpoint {
  std::array<std::uint8_t, 16> ip{};
  std::uint16_t port = 0;
  std::uint32_t scope = 0;                                            ///< of link-local IPv6 addresses; else 0
  friend bool operator==(const IpEndpoint& a, const IpEndpoint& b) {  // For each packet: no call.
    return std::bit_cast<Words>(a.ip) == std::bit_cast<Words>(b.ip) && a.port == b.port && a.scope == b.scope;
  }
  friend auto operator<=>(const IpEndpoint&, const IpEndpoint&) = default;
  /// `address` in host byte order: 10.0.0.1 is 0x0a000001.
  static IpEndpoint v4(std::uint32_t address, std::uint16_t port);
  [[nodiscard]] bool is_v4() const;
  /// 0.0.0.0 or ::, whatever the port.
  [[nodiscard]] bool is_unspecified() const;
  /// 127.0.0.0/8 or ::1: this machine, by way of no other.
  [[nodiscard]] bool is_loopback() const;

 private:
  struct Words {
    std::uint64_t high, low;
    bool operator==(const Words&) const = default;
  };
};
/// "1.2.3.4:80" or "[2001:db8::1]:80".
std::string to_string(const IpEndpoint& endpoint);

/// The two ends of what is sent and received. `local` may be all zero where the system chooses.
struct DatagramPath {
  IpEndpoint local, remote;
  friend bool operator==(const DatagramPath&, const DatagramPath&) = default;
};

/// Explicit congestion notification (RFC 3168): the two low bits of the traffic class.
enum class Ecn : std::uint8_t { not_ect = 0, ect1 = 1, ect0 = 2, ce = 3 };

/// A datagram that arrived. `bytes` are valid during the call only.
struct Datagram {
  DatagramPath path;
  Ecn ecn = Ecn::not_ect;
  ByteSpan bytes;
};

/// A bound UDP socket. Destroying it closes it, also from inside its own callbacks. Thread: loop.
class DatagramSocket {
 public:
  struct Handlers {
    /// What arrived together, in order. At most kMaxBatch.
    std::function<void(std::span<const Datagram>)> on_datagrams;
    /// After send() returned false: there may be room now.
    std::function<void()> on_writable;
  };
  static constexpr std::size_t kMaxBatch = 256;
  /// Most bytes of one send().
  static constexpr std::size_t kMaxBurst = 64 << 10;

  virtual ~DatagramSocket() = default;
  /// Begins delivery. Once.
  virtual void start(Handlers handlers) = 0;
  /// Sends `bytes` as datagrams of `segment` bytes each (the last may be shorter), in one system call where the kernel
  /// has GSO. Returns false when the socket has no room: nothing was sent, and on_writable will follow. Errors of the
  /// network (no route, refused, too big) look like loss: UDP promises nothing, and QUIC finds out.
  [[nodiscard]] virtual bool send(const DatagramPath& path, Ecn ecn, std::size_t segment, ByteSpan bytes) = 0;
  /// Most bytes for one send() to `remote` now: more would wait here, where nothing can overtake it any more. 0: there
  /// is no room, and on_writable will follow.
  [[nodiscard]] virtual std::size_t room(const IpEndpoint& /*remote*/) { return kMaxBurst; }
  /// The bound endpoint, with the real port.
  [[nodiscard]] virtual IpEndpoint local() const = 0;
  /// Datagrams the kernel dropped because this process was too slow, as far as it says.
  [[nodiscard]] virtual std::uint64_t dropped() const = 0;
};

class Datagrams {
 public:
  virtual ~Datagrams() = default;
  /// Binds "address:port" (port 0: any free one; "[::]" serves IPv4 too). Errors: `invalid_argument`, `already_exists`
  /// (the port is in use), `permission_denied`, `io_error`. Thread: loop.
  virtual Result<std::unique_ptr<DatagramSocket>> bind(const std::string& address) = 0;
  /// All addresses of "host:port", in the order of preference of RFC 6724. Errors: `invalid_argument`, `unavailable`
  /// (unknown name), `deadline_exceeded`, `cancelled`. Thread: loop.
  virtual Task<Result<std::vector<IpEndpoint>>> resolve(std::string address, Instant deadline) = 0;
  /// Bytes of UDP payload that are known to pass to `remote` in one datagram, because the way there is this machine's
  /// own; 0 where it must be found out.
  [[nodiscard]] virtual std::size_t known_payload(const IpEndpoint& /*remote*/) const { return 0; }
};

}  // namespace holo::env
