// The port under the replicated log: where one node keeps its entries, its vote and its last snapshot. RocksDB
// implements it.
#pragma once

#include <cstdint>
#include <memory>
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
  std::uint64_t committed = 0;         ///< Entries up to here were known to be committed; there may be more.
  /// What was here has been given up (RocksStore::discard_log): this node may have acknowledged entries that it no
  /// longer has, so it does not vote until the others have given it all of them again.
  bool lost = false;
};

/// A snapshot's data while it is being written. Counts for nothing before LogStore::keep_snapshot(); gone with the
/// object unless that has succeeded. Thread: any, one at a time.
class SnapshotWriter {
 public:
  virtual ~SnapshotWriter() = default;
  /// Errors: `io_error` (disk full).
  virtual Status add(ByteSpan bytes) = 0;
  [[nodiscard]] virtual std::uint64_t bytes() const = 0;
};

/// The data of a snapshot, from its beginning. Stays readable when a newer snapshot has come. Thread: any, one at a
/// time.
class SnapshotReader {
 public:
  virtual ~SnapshotReader() = default;
  /// The snapshot without its data.
  [[nodiscard]] virtual const LogSnapshot& what() const = 0;
  /// In all.
  [[nodiscard]] virtual std::uint64_t bytes() const = 0;
  /// What comes next, checked; none: that was all. Errors: `corrupt` (names the file), `io_error`.
  virtual Result<Bytes> next() = 0;
};

/// Everything that returns success is on the disk. Every call blocks (about a millisecond); calls may come from any
/// thread, one of append, note_committed, truncate and put_snapshot at a time.
class LogStore {
 public:
  virtual ~LogStore() = default;
  /// Errors: `corrupt` (names the entry and the file), `io_error`.
  virtual Result<StoredLog> load() = 0;
  /// Errors: `io_error`.
  virtual Status set_vote(std::uint64_t term, NodeId vote) = 0;
  /// Replaces entries of the same index. All or nothing. Errors: `io_error` (also: disk full; nothing was appended).
  virtual Status append(const std::vector<LogEntry>& entries) = 0;
  /// Notes that what was appended up to `index` is committed. Not synced: a machine that loses its power may find an
  /// earlier one, a process that is killed does not. Errors: `io_error`.
  virtual Status note_committed(std::uint64_t index) = 0;
  /// Drops every entry from `index` on. Errors: `io_error`.
  virtual Status truncate(std::uint64_t index) = 0;
  /// Keeps the snapshot, and of the log only entries above `keep_after`. Errors: `io_error`.
  virtual Status put_snapshot(const LogSnapshot& snapshot, std::uint64_t keep_after) = 0;
  /// Errors: `corrupt`, `io_error`.
  virtual Result<std::optional<LogSnapshot>> snapshot() = 0;

  /// `lost` holds no longer. Errors: `io_error`.
  virtual Status found() { return {}; }

  // The same as streams, which is how the log uses it; load() may then leave StoredLog::snapshot's data out. Unless
  // they are overridden, they hold the whole snapshot in memory and use the two above.

  /// Begins the data of a new snapshot. Errors: `io_error`.
  virtual Result<std::unique_ptr<SnapshotWriter>> new_snapshot();
  /// Keeps `snapshot` with what was written to `data`, in place of the one before; as put_snapshot above. A crash
  /// leaves the old one or the new one. May be tried again after an error. Errors: `io_error`.
  virtual Status keep_snapshot(const LogSnapshot& snapshot, SnapshotWriter& data, std::uint64_t keep_after);
  /// Null: there is none. Errors: `corrupt`, `io_error`.
  virtual Result<std::unique_ptr<SnapshotReader>> open_snapshot();
};

}  // namespace holo::env
