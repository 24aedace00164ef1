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
/// as RocksDB's recovery may not notice everything. Every write is synced before it returns.
class RocksStore final : public env::KvStore, public env::LogStore {
 public:
  /// Opens or creates the store in `directory`. A write cut short at the end of the write-ahead log is dropped (it was
  /// never acknowledged); anything else that is damaged is refused. Errors: `corrupt` (names the file), `refused`
  /// (another process has it open), `io_error`.
  static Result<std::unique_ptr<RocksStore>> open(std::string directory);
  ~RocksStore() override;
  RocksStore(const RocksStore&) = delete;
  RocksStore& operator=(const RocksStore&) = delete;

  Result<std::optional<Bytes>> get(const std::string& key) override;
  Status put(const std::string& key, ByteSpan value) override;

  Result<env::StoredLog> load() override;
  Status set_vote(std::uint64_t term, NodeId vote) override;
  Status append(const std::vector<env::LogEntry>& entries) override;
  Status truncate(std::uint64_t index) override;
  Status put_snapshot(const env::LogSnapshot& snapshot, std::uint64_t keep_after) override;
  Result<std::optional<env::LogSnapshot>> snapshot() override;

  /// True since a write has failed (disk full), until one succeeds again. Thread: any.
  [[nodiscard]] bool failing() const;

  struct Impl;

 private:
  explicit RocksStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holo::driver
