#include "sim/disk.h"

#include <algorithm>

#include "base/strings.h"

namespace holo::sim {

Status SimDisk::readable(const char* what) const {
  if (faults_.unreadable) return fail(Errc::io_error, str(what, ": input/output error"));
  if (faults_.corrupt) return fail(Errc::corrupt, str(what, ": a record fails its checksum"));
  return {};
}

void SimDisk::settle() {
  while (!unsynced_.empty() && unsynced_.front().first <= world_.now()) {
    unsynced_.front().second(durable_);
    unsynced_.pop_front();
  }
}

Status SimDisk::write(Change change, bool at_once) {
  if (faults_.full) return fail(Errc::io_error, "no space left on the device");
  settle();
  change(current_);
  if (faults_.forgetful) {
    unsynced_.emplace_back(world_.now() + seconds(2), std::move(change));
    synced_ = world_.now();
    return {};
  }
  if (at_once) {  // What was written before it is synced with it.
    for (auto& [when, earlier] : unsynced_) earlier(durable_);
    unsynced_.clear();
    change(durable_);
    return {};
  }
  const auto span = static_cast<std::uint64_t>((faults_.max_sync - faults_.min_sync).ns) + 1;
  const Duration latency = faults_.min_sync + nanoseconds(static_cast<std::int64_t>(random_.below(span)));
  synced_ = std::max(synced_, world_.now()) + latency;
  unsynced_.emplace_back(synced_, std::move(change));
  return {};
}

std::shared_ptr<SimDisk> SimDisk::after_crash(std::uint64_t& lost) {
  settle();
  auto next = std::make_shared<SimDisk>(world_, random_.next());
  next->durable_ = durable_;
  const std::uint64_t survive = random_.below(unsynced_.size() + 1);
  lost = unsynced_.size() - survive;
  for (std::uint64_t i = 0; i < survive; ++i) unsynced_[i].second(next->durable_);
  next->current_ = next->durable_;
  next->faults_ = faults_;
  on_append = nullptr;
  on_truncate = nullptr;
  faults_ = {};  // Whatever still uses it must come to its end.
  return next;
}

Result<env::StoredLog> SimDisk::load() {
  HOLO_TRY(readable("the log"));
  env::StoredLog out;
  out.term = current_.term;
  out.vote = current_.vote;
  out.committed = current_.committed;
  if (current_.snapshot) out.snapshot = *current_.snapshot;
  for (const auto& [index, entry] : current_.entries) out.entries.push_back(*entry);
  return out;
}

Status SimDisk::set_vote(std::uint64_t term, NodeId vote) {
  return write(
      [term, vote](Image& i) {
        i.term = term;
        i.vote = vote;
      },
      true);
}

Status SimDisk::append(const std::vector<env::LogEntry>& entries) {
  std::vector<std::shared_ptr<const env::OwnedLogEntry>> kept;
  for (const env::LogEntry& e : entries) {
    kept.push_back(std::make_shared<env::OwnedLogEntry>(env::OwnedLogEntry{
        .index = e.index, .term = e.term, .type = e.type, .data = Bytes(e.data.begin(), e.data.end())}));
  }
  HOLO_TRY(write(
      [kept = std::move(kept), committed = current_.committed](Image& i) {
        for (const auto& e : kept) i.entries[e->index] = e;
        i.committed = committed;
      },
      false));
  if (on_append) {
    for (const env::LogEntry& e : entries) on_append(e);
  }
  return {};
}

Status SimDisk::note_committed(std::uint64_t index) {
  if (faults_.full) return fail(Errc::io_error, "no space left on the device");
  current_.committed = index;  // Safe with the next append.
  return {};
}

Status SimDisk::truncate(std::uint64_t index) {
  HOLO_TRY(write([index](Image& i) { i.entries.erase(i.entries.lower_bound(index), i.entries.end()); }, false));
  if (on_truncate) on_truncate(index);
  return {};
}

Status SimDisk::put_snapshot(const env::LogSnapshot& snapshot, std::uint64_t keep_after) {
  auto kept = std::make_shared<const env::LogSnapshot>(snapshot);
  return write(
      [kept = std::move(kept), keep_after](Image& i) {
        i.snapshot = kept;
        i.entries.erase(i.entries.begin(), i.entries.upper_bound(keep_after));
      },
      false);
}

Result<std::optional<env::LogSnapshot>> SimDisk::snapshot() {
  HOLO_TRY(readable("the snapshot"));
  if (!current_.snapshot) return std::nullopt;
  return *current_.snapshot;
}

Result<std::optional<Bytes>> SimDisk::get(const std::string& key) {
  HOLO_TRY(readable("the store"));
  const auto it = current_.facts.find(key);
  if (it == current_.facts.end()) return std::nullopt;
  return it->second;
}

Status SimDisk::put(const std::string& key, ByteSpan value) {
  return write([key, bytes = Bytes(value.begin(), value.end())](Image& i) { i.facts[key] = bytes; }, true);
}

}  // namespace holo::sim
