// Locks, as programs hold them: a lease that a thread of the library keeps, and a place in line.
#include <unistd.h>
#include <holo/lock.hpp>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/strings.h"
#include "base/utf8.h"
#include "client/session.h"
#include "core/control/leases.h"
#include "wire/kv.pb.h"

namespace holo {
namespace client {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::int64_t kWaitMs = 20'000;  // Of one request for the lock; then it is asked again.
constexpr Duration kCall = holo::seconds(30);

std::string default_owner() {
  char host[256] = "";
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '\0';
  return to_utf8(str("process ", ::getpid(), " on ", host));
}

/// Counted from before each request was sent, so that this side gives up before the cluster does.
class Held final : public detail::HeldLock {
 public:
  Held(std::shared_ptr<SessionImpl> session, std::string name, std::uint64_t lease, milliseconds ttl,
       Clock::time_point granted, std::function<void()> on_lost)
      : session_(std::move(session)),
        name_(std::move(name)),
        lease_(lease),
        ttl_(ttl),
        kept_(granted),
        on_lost_(std::move(on_lost)),
        keeper_([this] { keep(); }) {}

  ~Held() override { (void)release(); }

  const std::string& name() const override { return name_; }
  std::uint64_t token() const override { return token_; }
  std::uint64_t lease() const override { return lease_; }
  /// Also when the keeper has not noticed yet (this process was paused).
  bool lost() const override { return ended_ || Clock::now() >= deadline(); }

  Status release() override {
    if (released_.exchange(true)) return {};
    stop_keeping();
    const bool was_lost = lost();
    ended_ = true;
    wire::LeaseEnd ask;
    ask.set_lease(lease_);
    const auto answer = session_->agent().call<wire::Empty>(wire::LEASE_END, ask, {.timeout = kCall});
    if (was_lost || (!answer && answer.error().code == Errc::not_found)) {
      return fail(Errc::unavailable, str("lock ", name_, " was lost before it was given back"),
                  "somebody else may have had it meanwhile");
    }
    if (!answer) return std::unexpected(answer.error());
    return {};
  }

  /// The token, once the lock is held.
  Status acquire(const LockOptions& options) {
    const bool forever = !options.wait;
    const auto until = Clock::now() + options.wait.value_or(milliseconds(0));
    wire::LockAcquire ask;
    ask.set_name(name_);
    ask.set_lease(lease_);
    ask.set_queue(forever || options.wait->count() > 0);
    for (;;) {
      const std::int64_t left = std::chrono::ceil<milliseconds>(until - Clock::now()).count();
      ask.set_wait_ms(static_cast<std::uint32_t>(forever ? kWaitMs : std::clamp<std::int64_t>(left, 0, kWaitMs)));
      const auto place = session_->agent().call<wire::LockPlace>(wire::LOCK_ACQUIRE, ask,
                                                                 {.timeout = holo::milliseconds(kWaitMs) + kCall});
      if (place && place->token() != 0) {
        token_ = place->token();
        return {};
      }
      // While there is no leader nobody gets it; that passes.
      if (!place && (forever || left > 0) && place.error().code == Errc::no_quorum) continue;
      if (!place) return std::unexpected(place.error());
      if (!forever && left <= 0) {
        return fail(Errc::deadline_exceeded, str("lock ", name_, " was not to be had in ", options.wait->count(),
                                                 " ms: ", place->ahead(), " ahead in the line"));
      }
    }
  }

 private:
  [[nodiscard]] Clock::time_point deadline() const { return kept_.load() + ttl_; }

  void stop_keeping() {
    {
      const std::scoped_lock lock(mutex_);
      done_ = true;
    }
    wake_.notify_all();
    if (keeper_.joinable()) keeper_.join();
  }

  void keep() {
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, ttl_ / 3, [this] { return done_; })) {
      lock.unlock();
      const auto asked = Clock::now();
      wire::LeaseKeep ask;
      ask.set_lease(lease_);
      const std::int64_t left = std::chrono::duration_cast<milliseconds>(deadline() - asked).count();
      bool ended = left <= 0;
      if (!ended) {
        const auto answer =
            session_->agent().call<wire::LeaseInfo>(wire::LEASE_KEEP, ask, {.timeout = holo::milliseconds(left)});
        if (answer) kept_ = asked;
        ended = !answer && (answer.error().code == Errc::not_found || Clock::now() >= deadline());
      }
      lock.lock();
      if (done_) return;
      if (!ended) continue;
      ended_ = true;
      lock.unlock();
      if (on_lost_ && token_ != 0) on_lost_();
      return;
    }
  }

  const std::shared_ptr<SessionImpl> session_;
  const std::string name_;
  const std::uint64_t lease_;
  const milliseconds ttl_;
  std::atomic<Clock::time_point> kept_;  ///< When the last request was sent that the cluster has heard.
  std::function<void()> on_lost_;
  std::atomic<std::uint64_t> token_ = 0;
  std::atomic<bool> ended_ = false;
  std::atomic<bool> released_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool done_ = false;
  std::thread keeper_;  // Last: it uses the others.
};

}  // namespace

Result<std::shared_ptr<detail::HeldLock>> SessionImpl::lock(std::string_view name, LockOptions options) {
  wire::LeaseGrant ask;
  ask.set_ttl_ms(static_cast<std::uint64_t>(std::max<std::int64_t>(options.ttl.count(), 0)));
  ask.set_owner(options.owner.empty() ? default_owner() : options.owner);
  ask.set_session(true);
  const auto asked = Clock::now();
  HOLO_ASSIGN(lease, agent_->call<wire::LeaseInfo>(wire::LEASE_GRANT, ask));
  auto held = std::make_shared<Held>(shared_from_this(), std::string(name), lease.lease(), options.ttl, asked,
                                     std::move(options.on_lost));
  HOLO_TRY(held->acquire(options));
  return std::shared_ptr<detail::HeldLock>(std::move(held));
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
