// One machine's disk in the simulated world: the stores of the shipped log and of a node's facts, with a write cache
// that a crash loses, slow syncs, full disks and reads that fail.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/random.h"
#include "env/kv_store.h"
#include "env/log_store.h"
#include "sim/loop.h"

namespace holo::sim {

struct DiskFaults {
  Duration min_sync = microseconds(200);
  Duration max_sync = milliseconds(2);
  bool full = false;        ///< Writes fail with `io_error`; nothing is written.
  bool unreadable = false;  ///< Reads fail with `io_error`.
  bool corrupt = false;     ///< Reads find a record that fails its checksum: `corrupt`.
  bool forgetful = false;   ///< It says that bytes are safe before they are, as disks without a flush do. Never by
                            ///< chance: no software survives it. Tests of the simulator use it.
};

/// What LogStore promises, no more: an append is all or nothing, writes reach the disk in order, and whatever has been
/// answered is safe. Appends, truncations and snapshots are answered when offloaded work ends (synced()); votes and
/// facts are written before the call returns. Thread: the world's.
class SimDisk final : public env::LogStore, public env::KvStore {
 public:
  SimDisk(World& world, std::uint64_t seed) : world_(world), random_(seed) {}

  Result<env::StoredLog> load() override;
  Status set_vote(std::uint64_t term, NodeId vote) override;
  Status append(const std::vector<env::LogEntry>& entries) override;
  Status note_committed(std::uint64_t index) override;
  Status truncate(std::uint64_t index) override;
  Status put_snapshot(const env::LogSnapshot& snapshot, std::uint64_t keep_after) override;
  Result<std::optional<env::LogSnapshot>> snapshot() override;
  Result<std::optional<Bytes>> get(const std::string& key) override;
  Status put(const std::string& key, ByteSpan value) override;

  DiskFaults& faults() { return faults_; }
  /// When everything that was written so far is safe.
  [[nodiscard]] Instant synced() const { return synced_; }
  /// The disk as a machine finds it that lost its power now: of what was not safe yet the first writes survive, as many
  /// as chance will have. This object goes on for whoever still uses it, and is of no consequence. `lost`: writes gone.
  std::shared_ptr<SimDisk> after_crash(std::uint64_t& lost);
  /// As a new one from the shop.
  void wipe() { durable_ = current_ = {}, unsynced_.clear(); }

  /// Called with each entry that is appended, and with each index from which on entries are dropped.
  std::function<void(const env::LogEntry&)> on_append;
  std::function<void(std::uint64_t)> on_truncate;

 private:
  struct Image {
    std::uint64_t term = 0;
    NodeId vote;
    std::uint64_t committed = 0;
    std::shared_ptr<const env::LogSnapshot> snapshot;
    std::map<std::uint64_t, std::shared_ptr<const env::OwnedLogEntry>> entries;
    std::map<std::string, Bytes> facts;
  };
  using Change = std::function<void(Image&)>;
  Status write(Change change, bool at_once);
  [[nodiscard]] Status readable(const char* what) const;
  void settle();

  World& world_;
  Random random_;
  DiskFaults faults_;
  Instant synced_;
  Image durable_, current_;
  std::deque<std::pair<Instant, Change>> unsynced_;
};

}  // namespace holo::sim
