#include "core/control/leases.h"

#include <algorithm>
#include <vector>

#include "base/limits.h"
#include "base/seeded_bugs.h"
#include "base/strings.h"
#include "base/utf8.h"
#include "core/control/shape.h"

namespace holo::control {
namespace {

Error no_lease(std::uint64_t lease) {
  return {.code = Errc::not_found, .message = str("there is no lease ", lease), .hint = "it has ended, or never was"};
}

}  // namespace

std::string lock_key(std::string_view lock) { return std::string(kReservedKeys) + "lock/" + std::string(lock); }

// ---- Leases

void Leases::set_deadline(std::uint64_t id, Lease& lease, std::int64_t deadline_ms) {
  deadlines_.erase({lease.deadline_ms, id});
  lease.deadline_ms = deadline_ms;
  deadlines_.insert({deadline_ms, id});
}

Result<std::uint64_t> Leases::grant(const wire::LeaseGrant& c, WallTime now) {
  const auto least = static_cast<std::uint64_t>(limits::kMinLeaseMs);
  const auto most = static_cast<std::uint64_t>(limits::kMaxLeaseMs);
  if (c.ttl_ms() < least || c.ttl_ms() > most) {
    return fail(Errc::invalid_argument, str("a lease of ", c.ttl_ms(), " ms"), str(least, " ms to ", most, " ms"));
  }
  if (c.owner().size() > limits::kMaxLeaseOwner || to_utf8(c.owner()) != c.owner()) {
    return fail(Errc::invalid_argument, "the owner of a lease is not a short text",
                str("at most ", limits::kMaxLeaseOwner, " bytes of UTF-8"));
  }
  if (leases_.size() >= limits::kMaxLeases) {
    return fail(Errc::over_limit, str("there are ", leases_.size(), " leases already"));
  }
  const std::uint64_t id = next_++;
  Lease& lease = leases_[id];
  lease.ttl_ms = c.ttl_ms();
  lease.owner = c.owner();
  set_deadline(id, lease, now.ms + static_cast<std::int64_t>(lease.ttl_ms));
  return id;
}

Status Leases::keep(std::uint64_t id, WallTime now) {
  const auto it = leases_.find(id);
  if (it == leases_.end()) return std::unexpected(no_lease(id));
  if (HOLO_SEEDED_BUG(keep_without_effect)) return {};
  set_deadline(id, it->second, now.ms + static_cast<std::int64_t>(it->second.ttl_ms));
  return {};
}

void Leases::extend(WallTime now) {
  for (auto& [id, lease] : leases_) set_deadline(id, lease, now.ms + static_cast<std::int64_t>(lease.ttl_ms));
}

Status Leases::end(std::uint64_t id, KeySpace& keys) {
  const auto it = leases_.find(id);
  if (it == leases_.end()) return std::unexpected(no_lease(id));
  const Lease lease = std::move(it->second);
  deadlines_.erase({lease.deadline_ms, id});
  leases_.erase(it);
  keys.end_lease(id, lease.keys);
  for (const std::string& lock : lease.locks) take_out(locks_.find(lock), id, keys);
  return {};
}

void Leases::expire(WallTime now, KeySpace& keys) {
  if (HOLO_SEEDED_BUG(lease_ends_early)) now.ms += 300;
  for (std::size_t n = 0; n < kExpireAtOnce && next_deadline() <= now; ++n) {
    HOLO_ASSERT(end(deadlines_.begin()->second, keys), "a deadline of a lease that is not there");
  }
}

void Leases::attach(std::uint64_t id, const std::string& key) { leases_.at(id).keys.insert(key); }

WallTime Leases::next_deadline() const { return deadlines_.empty() ? kNoTime : WallTime{deadlines_.begin()->first}; }

wire::LeaseInfo Leases::info(std::uint64_t id, WallTime now) const {
  wire::LeaseInfo out;
  const auto it = leases_.find(id);
  if (it == leases_.end()) return out;
  const Lease& lease = it->second;
  out.set_lease(id);
  out.set_ttl_ms(lease.ttl_ms);
  out.set_left_ms(static_cast<std::uint64_t>(std::max<std::int64_t>(lease.deadline_ms - now.ms, 0)));
  out.set_owner(lease.owner);
  out.set_keys(lease.keys.size());
  out.set_locks(lease.locks.size());
  return out;
}

wire::LeaseList Leases::list(WallTime now) const {
  wire::LeaseList out;
  for (const auto& [id, lease] : leases_) *out.add_leases() = info(id, now);
  return out;
}

// ---- Locks

void Leases::give(const std::string& lock, const Queue& queue, KeySpace& keys) {
  if (HOLO_SEEDED_BUG(token_used_again) && keys.modified(lock_key(lock)) != 0) return;
  keys.put_reserved(lock_key(lock), leases_.at(queue.front()).owner, queue.front());
}

std::optional<wire::LockPlace> Leases::place(std::string_view lock, std::uint64_t lease, const KeySpace& keys) const {
  const auto it = locks_.find(lock);
  if (it == locks_.end()) return std::nullopt;
  const auto at = std::ranges::find(it->second, lease);
  if (at == it->second.end()) return std::nullopt;
  wire::LockPlace out;
  out.set_ahead(static_cast<std::uint32_t>(at - it->second.begin()));
  if (out.ahead() == 0) out.set_token(keys.modified(lock_key(lock)));
  return out;
}

Result<wire::LockPlace> Leases::acquire(const wire::LockAcquire& c, KeySpace& keys) {
  if (!valid_name(c.name())) {
    return fail(Errc::invalid_argument, "not a name of a lock",
                str("1 to ", limits::kMaxRegionName, " of A-Z a-z 0-9 . _ / -"));
  }
  const auto lease = leases_.find(c.lease());
  if (lease == leases_.end()) return std::unexpected(no_lease(c.lease()));
  if (const auto has = place(c.name(), c.lease(), keys)) return *has;
  auto it = locks_.find(c.name());
  if (it == locks_.end()) {
    if (locks_.size() >= limits::kMaxLocks) {
      return fail(Errc::over_limit, str("there are ", locks_.size(), " locks already"));
    }
    it = locks_.try_emplace(c.name()).first;
  } else if (!c.queue()) {
    return fail(Errc::refused, str("lock ", c.name(), " is held by ", leases_.at(it->second.front()).owner));
  } else if (it->second.size() >= limits::kMaxLockQueue) {
    return std::unexpected(Error{.code = Errc::overloaded,
                                 .message = str(it->second.size(), " wait for lock ", c.name(), " already"),
                                 .retryable = true});
  }
  if (HOLO_SEEDED_BUG(lock_given_while_held) && it->second.size() > 1) {
    it->second.push_front(c.lease());
    give(it->first, it->second, keys);
  } else {
    it->second.push_back(c.lease());
  }
  lease->second.locks.insert(c.name());
  if (it->second.size() == 1) give(it->first, it->second, keys);
  return *place(c.name(), c.lease(), keys);
}

void Leases::take_out(Locks::iterator lock, std::uint64_t lease, KeySpace& keys) {
  Queue& queue = lock->second;
  const auto at = std::ranges::find(queue, lease);
  const bool held = at == queue.begin();
  queue.erase(at);
  if (!queue.empty()) {
    if (held) give(lock->first, queue, keys);
    return;
  }
  keys.erase_reserved(lock_key(lock->first));
  locks_.erase(lock);
}

Status Leases::release(const wire::LockRelease& c, KeySpace& keys) {
  const auto lock = locks_.find(c.name());
  const auto lease = leases_.find(c.lease());
  if (lock == locks_.end() || lease == leases_.end() || lease->second.locks.erase(c.name()) == 0) {
    return fail(Errc::not_found, str("lease ", c.lease(), " has no place at such a lock"));
  }
  take_out(lock, c.lease(), keys);
  return {};
}

wire::LockList Leases::locks(const KeySpace& keys) const {
  wire::LockList out;
  for (const auto& [name, queue] : locks_) {
    auto* lock = out.add_locks();
    lock->set_name(name);
    lock->set_token(keys.modified(lock_key(name)));
    for (const std::uint64_t lease : queue) {
      auto* at = lock->add_places();
      at->set_lease(lease);
      at->set_owner(leases_.at(lease).owner);
    }
  }
  return out;
}

// ---- Snapshot

void Leases::save(wire::SnapshotLeases* out) const {
  out->set_next(next_);
  for (const auto& [id, lease] : leases_) {
    auto* l = out->add_leases();
    l->set_lease(id);
    l->set_ttl_ms(lease.ttl_ms);
    l->set_deadline_ms(HOLO_SEEDED_BUG(snapshot_without_deadlines) ? 0 : lease.deadline_ms);
    l->set_owner(lease.owner);
  }
  for (const auto& [name, queue] : locks_) {
    auto* l = out->add_locks();
    l->set_name(name);
    for (const std::uint64_t lease : queue) l->add_leases(lease);
  }
}

Status Leases::load(const wire::SnapshotLeases& in, const KeySpace& keys) {
  const auto bad = [](const char* what) {
    return fail(Errc::corrupt, str("the snapshot of the control state is corrupt: ", what));
  };
  next_ = std::max<std::uint64_t>(in.next(), 1);
  for (const wire::SnapshotLease& l : in.leases()) {
    if (l.lease() == 0 || l.lease() >= next_ || l.ttl_ms() > static_cast<std::uint64_t>(limits::kMaxLeaseMs)) {
      return bad("a lease that cannot be");
    }
    const auto [it, fresh] = leases_.try_emplace(l.lease());
    if (!fresh) return bad("a lease twice");
    it->second.ttl_ms = l.ttl_ms();
    it->second.owner = l.owner();
    set_deadline(l.lease(), it->second, l.deadline_ms());
  }
  for (const wire::SnapshotLock& l : in.locks()) {
    const auto [it, fresh] = locks_.try_emplace(l.name());
    if (!fresh || !valid_name(l.name()) || l.leases().empty() || keys.modified(lock_key(l.name())) == 0) {
      return bad("a lock that cannot be");
    }
    for (const std::uint64_t lease : l.leases()) {
      const auto holder = leases_.find(lease);
      if (holder == leases_.end() || !holder->second.locks.insert(l.name()).second)
        return bad("a lock without a lease");
      it->second.push_back(lease);
    }
  }
  bool found = true;
  keys.for_each_leased([&](const std::string& key, std::uint64_t lease) {
    if (key.starts_with(kReservedKeys)) return;
    const auto it = leases_.find(lease);
    found &= it != leases_.end();
    if (it != leases_.end()) it->second.keys.insert(key);
  });
  return found ? Status{} : bad("a key without its lease");
}

}  // namespace holo::control
