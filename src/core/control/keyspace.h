// The key-value service's data: every key with its newest value, and what it was before, back to the compacted
// revision. A deterministic part of the replicated State; the model is that of etcd v3 (one revision counter for the
// whole store, one revision for each transaction that changes something).
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "wire/kv.pb.h"

namespace holo::control {

/// Keys that begin so are the cluster's own: nobody else writes them, and a deletion of a range leaves them alone.
inline constexpr std::string_view kReservedKeys = "holo/";

/// True when `key` lies in `range` (see wire::KvRange).
bool in_range(const wire::KvRange& range, std::string_view key);

/// Thread: one at a time. Bounded by limits::kMaxKvBytes, kMaxKvHistoryBytes and kMaxKvChanges.
class KeySpace {
 public:
  KeySpace() = default;
  KeySpace(const KeySpace&) = delete;
  KeySpace& operator=(const KeySpace&) = delete;
  KeySpace(KeySpace&&) = default;  // A deque's move leaves iterators of the map valid.
  KeySpace& operator=(KeySpace&&) = default;

  /// Of the last change; 0 when there was none.
  [[nodiscard]] std::uint64_t revision() const { return revision_; }
  /// What was overwritten at or before it is forgotten, and no watch begins at or before it.
  [[nodiscard]] std::uint64_t compacted() const { return compacted_; }
  [[nodiscard]] std::uint64_t keys() const { return live_; }
  /// Of keys and values, with what each costs besides.
  [[nodiscard]] std::uint64_t bytes() const { return live_bytes_ + history_bytes_; }

  /// What no store takes. Errors: `invalid_argument` (an empty or over-long key, one key changed twice, a get at an
  /// older revision), `over_limit` (sizes and numbers of limits.h).
  static Status check(const wire::KvTxn& txn);
  /// All of it or nothing. Errors, with nothing changed: those of check(); `over_limit` (the store is full, or so much
  /// is not deleted at once).
  Result<wire::KvTxnResult> apply(const wire::KvTxn& txn);
  /// Writes, or deletes, one of the reserved keys, at a revision of its own.
  void put_reserved(const std::string& key, const std::string& value, std::uint64_t lease);
  void erase_reserved(const std::string& key);
  /// Deletes those of `keys` that the lease wrote last, at one revision.
  void end_lease(std::uint64_t lease, const std::set<std::string>& keys);
  /// Errors: `invalid_argument` (a revision that has not been), `snapshot_too_old` (compacted before).
  Status compact(std::uint64_t revision);

  /// This store goes on from a copy of another one, which may have gone on as well: no revision from now on is one that
  /// the other has used, and whoever watched or read it at a revision is told that it is compacted.
  void go_on_apart();

  /// A page of at most limits::kMaxKvTxnBytes and kPageKeys; `next` tells where to go on. Cost: O(keys visited), of
  /// which there are at most kScanKeys. Errors: `invalid_argument` (a revision that has not been), `snapshot_too_old`.
  [[nodiscard]] Result<wire::KvPage> range(const wire::KvGet& get) const;
  /// What has changed in the watched range, in order, as far as an answer carries; none: where to go on from. Cost:
  /// O(changes since). Errors: `snapshot_too_old` with the first revision that can still be had.
  [[nodiscard]] Result<wire::KvEvents> events(const wire::KvWatch& watch) const;

  /// The revision that wrote the key last; 0: there is no such key.
  [[nodiscard]] std::uint64_t modified(std::string_view key) const;
  /// Calls f(key) for each change after `revision`, the newest first.
  template <class F>
  void for_each_since(std::uint64_t revision, F f) const {
    for (auto c = changes_.rbegin(); c != changes_.rend() && c->revision > revision; ++c) f(c->key->first);
  }
  /// Calls f(key, lease) for each key that goes with a lease.
  template <class F>
  void for_each_leased(F f) const {
    for (const auto& [key, chain] : keys_) {
      if (chain.newest.version != 0 && chain.newest.lease != 0) f(key, chain.newest.lease);
    }
  }

  void save(wire::SnapshotKv* out) const;
  /// Into an empty one. Error: `corrupt`.
  Status load(const wire::SnapshotKv& in);

  /// The same piece by piece, for millions of keys. First begin_load() with the revisions (its keys are not looked at),
  /// then keys in order, then end_load(). Error: `corrupt`.
  Status begin_load(const wire::SnapshotKv& in);
  Status load_keys(const wire::SnapshotKv& in);
  void end_load();

  /// The keys as they are now, read piece by piece while they go on changing: what changes before it was read is kept
  /// as it was. A later cut, or a new state in this one's place, ends an earlier one.
  class Cut;
  std::unique_ptr<Cut> cut();

  static constexpr std::size_t kPageKeys = 4096;
  static constexpr std::size_t kScanKeys = 65536;
  /// More changes than the other one will have made.
  static constexpr std::uint64_t kApart = 1'000'000'000;

 private:
  struct Record {
    std::uint64_t revision = 0;
    std::uint64_t created = 0;
    std::uint64_t version = 0;  ///< 0: the key was deleted.
    std::uint32_t order = 0;    ///< Among the changes of its revision.
    std::uint64_t lease = 0;
    std::string value;
  };
  struct Chain {
    Record newest;
    std::unique_ptr<std::deque<Record>> older;  ///< Oldest first; null: none.
  };
  using Keys = std::map<std::string, Chain, std::less<>>;
  struct Change {
    std::uint64_t revision;
    Keys::iterator key;
  };

  /// What a cut still has to read as it was: see Cut.
  struct Frozen;
  struct Ordered {
    std::uint64_t revision;
    std::uint32_t order;
    Keys::iterator key;
  };

  /// Before anything of that key changes.
  void preserve(const std::string& key, const Chain& chain);
  static void put_chain(const Chain& chain, wire::SnapshotKey* out);
  [[nodiscard]] bool holds(const wire::KvCompare& compare) const;
  [[nodiscard]] const Record* live(std::string_view key) const;
  /// Null when the key was not there at that revision.
  [[nodiscard]] static const Record* at(const Chain& chain, std::uint64_t revision);
  /// The record that `change` made.
  [[nodiscard]] static const Record& made_by(const Change& change);
  /// [first, last) of the map.
  [[nodiscard]] std::pair<Keys::iterator, Keys::iterator> span(const wire::KvRange& range);
  [[nodiscard]] std::pair<Keys::const_iterator, Keys::const_iterator> span(const wire::KvRange& range) const;
  void write(Keys::iterator key, Record record);
  void forget_until(std::uint64_t revision);
  void trim();
  static std::uint64_t size_of(std::string_view key, const Record& record);

  std::uint64_t revision_ = 0;
  std::uint64_t compacted_ = 0;
  std::uint64_t live_ = 0;
  std::uint64_t live_bytes_ = 0;
  std::uint64_t history_bytes_ = 0;  ///< Of records that are not the newest, and of deletions.
  Keys keys_;
  std::deque<Change> changes_;  ///< Every change after compacted_, in order.
  std::vector<Ordered> loading_;
  std::shared_ptr<Frozen> frozen_;  ///< Null: nobody reads a cut.
};

/// Thread: that of its KeySpace, which it may outlive.
class KeySpace::Cut {
 public:
  Cut(const KeySpace& keys, std::shared_ptr<Frozen> frozen) : keys_(keys), frozen_(std::move(frozen)) {}
  ~Cut();
  Cut(const Cut&) = delete;
  Cut& operator=(const Cut&) = delete;
  /// Adds further keys to `out`, about `bytes` of them and at least one; false: there were none left. Error:
  /// `cancelled` (it was ended).
  Result<bool> next(std::size_t bytes, wire::SnapshotKv* out);

 private:
  const KeySpace& keys_;
  std::shared_ptr<Frozen> frozen_;
};

}  // namespace holo::control
