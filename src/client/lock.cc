// Locks, as programs hold them.
#include <holo/lock.hpp>

#include "client/held_lock.h"
#include "client/session.h"
#include "core/control/leases.h"

namespace holo {
namespace client {

Result<std::shared_ptr<detail::HeldLock>> SessionImpl::lock(std::string_view name, LockOptions options) {
  const auto me = shared_from_this();
  return hold_lock({me, &me->agent().socket()}, name, std::move(options));
}

}  // namespace client

const std::string& Lock::name() const { return held_->name(); }
std::uint64_t Lock::token() const { return held_->token(); }
std::uint64_t Lock::lease() const { return held_->lease(); }
bool Lock::lost() const { return !held_ || held_->lost(); }
KvCondition Lock::held() const { return KvCondition::unchanged(control::lock_key(held_->name()), held_->token()); }
Status Lock::release() {
  if (!held_) return fail(Errc::unavailable, "the lock was given back before");
  const auto held = std::exchange(held_, nullptr);
  return held->release();
}

}  // namespace holo
