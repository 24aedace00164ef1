// Many clients of a key-value store on one thread: for measurements of ours, by the agent's local socket, and of etcd
// beside it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace holo::cmd {

enum class KvPeer : std::uint8_t {
  holo,  ///< address: the path of an agent's socket
  etcd,  ///< address: "host:port" of its client port; gRPC without TLS
};

struct KvFigures {
  std::uint64_t done = 0, failed = 0;
  double seconds = 0;
  std::vector<double> latencies_ms;  ///< In open loop from the moment at which the write was due.
  std::string first_failure;
};

/// Thread: one.
class KvLoad {
 public:
  /// Connects `clients` of them, to each address in turn. Errors: `unavailable`.
  static Result<std::unique_ptr<KvLoad>> connect(KvPeer peer, const std::vector<std::string>& addresses,
                                                 unsigned clients);
  KvLoad();
  ~KvLoad();
  KvLoad(const KvLoad&) = delete;
  KvLoad& operator=(const KvLoad&) = delete;

  /// Each client writes a key of kKeys and waits for the answer, again and again.
  Result<KvFigures> closed_loop(double seconds);
  /// `rate` writes a second, due at even distances, whatever the answers do. Errors: `overloaded` when they fall behind
  /// by more than kMaxBacklog writes.
  Result<KvFigures> open_loop(double rate, double seconds);
  /// Writes keys "k<n>" for n below `keys`, many to a transaction.
  Result<KvFigures> fill(std::uint64_t keys);
  /// One linearizable read of a key. Errors: what the store says.
  Status read_once(double timeout_s);
  /// One write. Errors: what the store says; `deadline_exceeded`.
  Status write_once(double timeout_s);

  static constexpr std::uint64_t kKeys = 100'000;
  static constexpr std::size_t kValueBytes = 128;
  static constexpr std::uint64_t kMaxBacklog = 200'000;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holo::cmd
