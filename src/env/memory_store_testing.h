// env::LogStore and env::KvStore in memory, for tests: what is on this disk survives the objects that use it, and it
// can fail.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>

#include "env/kv_store.h"
#include "env/log_store.h"

namespace holo::env::testing {

class MemoryStore final : public LogStore, public KvStore {
 public:
  Result<StoredLog> load() override {
    const std::scoped_lock lock(mutex_);
    StoredLog out{
        .term = term_, .vote = vote_, .snapshot = snapshot_, .entries = {}, .committed = committed_, .lost = lost_};
    for (const auto& [index, e] : entries_) out.entries.push_back(e);
    return out;
  }
  Status set_vote(std::uint64_t term, NodeId vote) override {
    const std::scoped_lock lock(mutex_);
    if (full_) return full();
    term_ = term;
    vote_ = vote;
    return {};
  }
  Status append(const std::vector<LogEntry>& entries) override {
    std::unique_lock lock(mutex_);
    ++waiting_;
    released_.wait(lock, [this] { return !held_; });
    --waiting_;
    if (full_) return full();
    ++appends_;
    for (const LogEntry& e : entries) {
      entries_[e.index] = {
          .index = e.index, .term = e.term, .type = e.type, .data = Bytes(e.data.begin(), e.data.end())};
    }
    return {};
  }
  Status note_committed(std::uint64_t index) override {
    const std::scoped_lock lock(mutex_);
    if (full_) return full();
    committed_ = index;
    return {};
  }
  Status truncate(std::uint64_t index) override {
    const std::scoped_lock lock(mutex_);
    if (full_) return full();
    entries_.erase(entries_.lower_bound(index), entries_.end());
    return {};
  }
  Status put_snapshot(const LogSnapshot& snapshot, std::uint64_t keep_after) override {
    const std::scoped_lock lock(mutex_);
    if (full_) return full();
    snapshot_ = snapshot;
    entries_.erase(entries_.begin(), entries_.upper_bound(keep_after));
    return {};
  }
  Result<std::optional<LogSnapshot>> snapshot() override {
    const std::scoped_lock lock(mutex_);
    return snapshot_;
  }
  Result<std::optional<Bytes>> get(const std::string& key) override {
    const std::scoped_lock lock(mutex_);
    const auto it = facts_.find(key);
    if (it == facts_.end()) return std::nullopt;
    return it->second;
  }
  Status put(const std::string& key, ByteSpan value) override {
    const std::scoped_lock lock(mutex_);
    if (full_) return full();
    facts_[key] = Bytes(value.begin(), value.end());
    return {};
  }

  Status found() override {
    const std::scoped_lock lock(mutex_);
    lost_ = false;
    return {};
  }

  /// As RocksStore::discard_log does it.
  void lose_log() {
    const std::scoped_lock lock(mutex_);
    snapshot_.reset();
    entries_.clear();
    committed_ = 0;
    lost_ = true;
  }
  bool lost() {
    const std::scoped_lock lock(mutex_);
    return lost_;
  }
  void set_full(bool full) {
    const std::scoped_lock lock(mutex_);
    full_ = full;
  }
  /// Appends wait from now on, until release().
  void hold() {
    const std::scoped_lock lock(mutex_);
    held_ = true;
  }
  void release() {
    const std::scoped_lock lock(mutex_);
    held_ = false;
    released_.notify_all();
  }
  /// Appends that are waiting.
  unsigned waiting() {
    const std::scoped_lock lock(mutex_);
    return waiting_;
  }
  std::uint64_t appends() {
    const std::scoped_lock lock(mutex_);
    return appends_;
  }
  std::size_t entries() {
    const std::scoped_lock lock(mutex_);
    return entries_.size();
  }

 private:
  static Status full() { return fail(Errc::io_error, "no space left on the device"); }

  std::mutex mutex_;
  std::condition_variable released_;
  bool held_ = false;
  unsigned waiting_ = 0;
  bool full_ = false;
  bool lost_ = false;
  std::uint64_t appends_ = 0;
  std::uint64_t term_ = 0;
  NodeId vote_;
  std::uint64_t committed_ = 0;
  std::optional<LogSnapshot> snapshot_;
  std::map<std::uint64_t, OwnedLogEntry> entries_;
  std::map<std::string, Bytes> facts_;
};

}  // namespace holo::env::testing
