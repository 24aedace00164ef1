// Leases, and the locks that stand on them; a deterministic part of the replicated State. A lease ends when it was not
// kept for its time to live, by the time that log entries carry; with it go its keys and its places at locks.
//
// Who has lock N is written under the key "holo/lock/N" when it is granted, and deleted when nobody has it: watches see
// it, and the revision of that write is the fencing token (a comparison of `modified` in a transaction checks it).
// Design: etcd's leases and its concurrency package, with the queue inside the state machine.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/time.h"
#include "core/control/keyspace.h"
#include "wire/kv.pb.h"

namespace holo::control {

/// The key that says who has the lock.
std::string lock_key(std::string_view lock);

/// Thread: one at a time. Bounded by limits::kMaxLeases, kMaxLocks, kMaxLockQueue.
class Leases {
 public:
  // ---- Changes. Those that end something write to `keys`.

  /// The new lease. Errors: `invalid_argument` (time to live, owner), `over_limit`.
  Result<std::uint64_t> grant(const wire::LeaseGrant& c, WallTime now);
  /// Its time begins anew. Errors: `not_found`.
  Status keep(std::uint64_t lease, WallTime now);
  /// Errors: `not_found`.
  Status end(std::uint64_t lease, KeySpace& keys);
  /// Ends the leases whose time has come, at most kExpireAtOnce, the first due first.
  void expire(WallTime now, KeySpace& keys);
  /// Gives each lease its whole time again.
  void extend(WallTime now);
  /// `key` goes with the lease, which exists. (Unless it is written anew without it.)
  void attach(std::uint64_t lease, const std::string& key);
  /// The lease's place at the lock: held, or in line, or (without `queue`) not. Asked again: as it is. Errors:
  /// `invalid_argument`, `not_found` (lease), `refused` (held, and no queue), `overloaded` (queue), `over_limit`.
  Result<wire::LockPlace> acquire(const wire::LockAcquire& c, KeySpace& keys);
  /// Gives the lock back, or the place in line up. Errors: `not_found`.
  Status release(const wire::LockRelease& c, KeySpace& keys);

  // ---- Questions.

  /// Whether there ever was one.
  [[nodiscard]] bool used() const { return next_ != 1; }
  [[nodiscard]] bool exists(std::uint64_t lease) const { return leases_.contains(lease); }
  /// When the first lease ends unless it is kept; kNoTime: there is none.
  [[nodiscard]] WallTime next_deadline() const;
  [[nodiscard]] wire::LeaseInfo info(std::uint64_t lease, WallTime now) const;
  [[nodiscard]] wire::LeaseList list(WallTime now) const;
  [[nodiscard]] wire::LockList locks(const KeySpace& keys) const;
  /// nullopt: it is neither held nor awaited by this lease.
  [[nodiscard]] std::optional<wire::LockPlace> place(std::string_view lock, std::uint64_t lease,
                                                     const KeySpace& keys) const;

  void save(wire::SnapshotLeases* out) const;
  /// Into an empty one; `keys` is what was loaded beside it. Error: `corrupt`.
  Status load(const wire::SnapshotLeases& in, const KeySpace& keys);

  static constexpr std::size_t kExpireAtOnce = 256;
  static constexpr WallTime kNoTime{INT64_MAX};

 private:
  struct Lease {
    std::uint64_t ttl_ms = 0;
    std::int64_t deadline_ms = 0;
    std::string owner;
    std::set<std::string> keys;   ///< Perhaps also some that were written anew without it.
    std::set<std::string> locks;  ///< Held, or in line.
  };
  /// The holder first. Never empty.
  using Queue = std::deque<std::uint64_t>;
  using Locks = std::map<std::string, Queue, std::less<>>;

  void set_deadline(std::uint64_t id, Lease& lease, std::int64_t deadline_ms);
  /// The first in line has it from now on.
  void give(const std::string& lock, const Queue& queue, KeySpace& keys);
  void take_out(Locks::iterator lock, std::uint64_t lease, KeySpace& keys);

  std::uint64_t next_ = 1;
  std::map<std::uint64_t, Lease> leases_;
  std::set<std::pair<std::int64_t, std::uint64_t>> deadlines_;  ///< Of every lease.
  Locks locks_;
};

}  // namespace holo::control
