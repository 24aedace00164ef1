// The port under the replicated log: where one node keeps its entries, its vote and its last snapshot. RocksDB
// implements it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"

namespace holo::env {

struct LogEntry {
  std::uint64_t index = 0;
  std::uint64_t term = 0;
  std::uint16_t type = 0;  ///< The log's own numbers; the store only keeps them.
  ByteSpan data;
};
struct OwnedLogEntry {
  std::uint64_t index = 0;
  std::uint64_t term = 0;
  std::uint16_t type = 0;
  Bytes data;
};

struct LogSnapshotServer {
  NodeId node;
  std::uint32_t role = 0;  ///< The log's own numbers.
};
struct LogSnapshot {
  std::uint64_t index = 0;
  std::uint64_t term = 0;
  std::uint64_t configuration_index = 0;
  std::vector<LogSnapshotServer> servers;
  Bytes data;
};

struct StoredLog {
  std::uint64_t term = 0;
  NodeId vote;  ///< For whom this node voted in `term`; 0: nobody.
  std::optional<LogSnapshot> snapshot;
  std::vector<OwnedLogEntry> entries;  ///< Without gaps. Empty, or reaching up to the end of the log.
};

/// Everything that returns success is on the disk. Every call blocks (about a millisecond); calls may come from any
/// thread, one of append, truncate and put_snapshot at a time.
class LogStore {
 public:
  virtual ~LogStore() = default;
  /// Errors: `corrupt` (names the entry and the file), `io_error`.
  virtual Result<StoredLog> load() = 0;
  /// Errors: `io_error`.
  virtual Status set_vote(std::uint64_t term, NodeId vote) = 0;
  /// Replaces entries of the same index. All or nothing. Errors: `io_error` (also: disk full; nothing was appended).
  virtual Status append(const std::vector<LogEntry>& entries) = 0;
  /// Drops every entry from `index` on. Errors: `io_error`.
  virtual Status truncate(std::uint64_t index) = 0;
  /// Keeps the snapshot, and of the log only entries above `keep_after`. Errors: `io_error`.
  virtual Status put_snapshot(const LogSnapshot& snapshot, std::uint64_t keep_after) = 0;
  /// Errors: `corrupt`, `io_error`.
  virtual Result<std::optional<LogSnapshot>> snapshot() = 0;
};

}  // namespace holo::env
