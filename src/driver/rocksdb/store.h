// The agent's durable store over RocksDB: the replicated log, and small facts about this node.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/result.h"
#include "env/kv_store.h"
#include "env/log_store.h"

namespace holo::driver {

/// One directory, one process: RocksDB locks it. Every record carries a BLAKE3 checksum of its own over key and value,
/// as RocksDB's recovery may not notice everything. Every write but note_committed() is synced before it returns.
class RocksStore final : public env::KvStore, public env::LogStore {
 public:
  /// Opens or creates the store in `directory`. A write cut short at the end of the write-ahead log is dropped (it was
  /// never acknowledged); anything else that is damaged is refused. Errors: `corrupt` (names the file), `refused`
  /// (another process has it open), `io_error`. Where one is `required`, none is created: `corrupt`.
  enum class Existing : bool { allowed, required };
  static Result<std::unique_ptr<RocksStore>> open(std::string directory, Existing existing = Existing::allowed);
  ~RocksStore() override;
  RocksStore(const RocksStore&) = delete;
  RocksStore& operator=(const RocksStore&) = delete;

  Result<std::optional<Bytes>> get(const std::string& key) override;
  Status put(const std::string& key, ByteSpan value) override;

  Result<env::StoredLog> load() override;
  Status set_vote(std::uint64_t term, NodeId vote) override;
  Status append(const std::vector<env::LogEntry>& entries) override;
  Status note_committed(std::uint64_t index) override;
  Status truncate(std::uint64_t index) override;
  Status put_snapshot(const env::LogSnapshot& snapshot, std::uint64_t keep_after) override;
  Result<std::optional<env::LogSnapshot>> snapshot() override;
  /// A snapshot's data lies in a file of its own beside the database, in records with checksums; the database says
  /// which file counts.
  Result<std::unique_ptr<env::SnapshotWriter>> new_snapshot() override;
  Status keep_snapshot(const env::LogSnapshot& snapshot, env::SnapshotWriter& data, std::uint64_t keep_after) override;
  Result<std::unique_ptr<env::SnapshotReader>> open_snapshot() override;

  Status found() override;

  /// For a log that open() or load() refuses: puts an empty one in the place of `directory`, which keeps only the term
  /// and the vote and says that the rest is lost. All or nothing. No process may have it open. Errors: `corrupt` (term
  /// and vote cannot be read either: this node must not vote as itself any more), `refused`, `io_error`.
  static Status discard_log(const std::string& directory);

  /// True since a write has failed (disk full), until one succeeds again. Thread: any.
  [[nodiscard]] bool failing() const;

  struct Impl;

 private:
  explicit RocksStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holo::driver
