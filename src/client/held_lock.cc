#include "client/held_lock.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/strings.h"
#include "base/utf8.h"
#include "client/agent.h"
#include "wire/kv.pb.h"
#include "wire/local.pb.h"

namespace holo::client {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::int64_t kWaitMs = 20'000;  // Of one request for the lock; then it is asked again.
constexpr Duration kAcquire = holo::milliseconds(kWaitMs) + holo::seconds(30);

/// Counted from before each request was sent, so that this side gives up before the cluster does.
class Held final : public detail::HeldLock {
 public:
  Held(Agent agent, std::string name, std::uint64_t lease, milliseconds ttl, Clock::time_point granted,
       std::function<void()> on_lost)
      : agent_(std::move(agent)),
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
  bool lost() const override { return ended_ || (!over_ && Clock::now() >= deadline()); }

  Status release() override {
    if (released_.exchange(true)) return {};
    stop_keeping();
    wire::LeaseEnd end;
    end.set_lease(lease_);
    bool was_lost = lost();
    const auto ended = agent_.call<wire::Empty>(wire::LEASE_END, end);
    was_lost = was_lost || (!ended && ended.error().code == Errc::not_found);
    ended_ = was_lost;
    over_ = true;
    if (was_lost) {
      return fail(Errc::unavailable, str("lock ", name_, " was lost before it was given back"),
                  "somebody else may have had it meanwhile");
    }
    if (!ended) return std::unexpected(ended.error());
    return {};
  }

  /// The token, once the lock is held.
  Status acquire(const LockOptions& options) {
    const bool forever = !options.wait;
    const auto until = Clock::now() + options.wait.value_or(milliseconds(0));
    wire::LockAcquire wanted;
    wanted.set_name(name_);
    wanted.set_lease(lease_);
    wanted.set_queue(forever || options.wait->count() > 0);
    for (;;) {
      const std::int64_t left = std::chrono::ceil<milliseconds>(until - Clock::now()).count();
      wanted.set_wait_ms(static_cast<std::uint32_t>(forever ? kWaitMs : std::clamp<std::int64_t>(left, 0, kWaitMs)));
      const auto place = agent_.call<wire::LockPlace>(wire::LOCK_ACQUIRE, wanted, {.timeout = kAcquire});
      if (place && place->token() != 0) {
        token_ = place->token();
        return {};
      }
      // While there is no leader nobody gets it; that passes.
      if (!place && (forever || left > 0) && place.error().code == Errc::no_quorum) continue;
      if (!place) return std::unexpected(place.error());
      if (!forever && left <= 0) {
        return fail(Errc::deadline_exceeded,
                    str("lock ", name_, " was not to be had in ", options.wait->count(), " ms: ", place->ahead(),
                        " ahead in the line"),
                    "holo locks shows who has it");
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
      wire::LeaseKeep keep;
      keep.set_lease(lease_);
      const std::int64_t left = std::chrono::duration_cast<milliseconds>(deadline() - asked).count();
      bool ended = left <= 0;
      if (!ended) {
        const auto kept = agent_.call<wire::LeaseInfo>(wire::LEASE_KEEP, keep, {.timeout = holo::milliseconds(left)});
        if (kept) kept_ = asked;
        ended = !kept && (kept.error().code == Errc::not_found || Clock::now() >= deadline());
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

  Agent agent_;
  const std::string name_;
  const std::uint64_t lease_;
  const milliseconds ttl_;
  std::atomic<Clock::time_point> kept_;  ///< When the last request was sent that the cluster has heard.
  std::function<void()> on_lost_;
  std::atomic<std::uint64_t> token_ = 0;
  std::atomic<bool> ended_ = false;
  std::atomic<bool> released_ = false;
  std::atomic<bool> over_ = false;  ///< Given back: whether it was lost is settled.
  std::mutex mutex_;
  std::condition_variable wake_;
  bool done_ = false;
  std::thread keeper_;  // Last: it uses the others.
};

}  // namespace

std::string default_owner() {
  char host[256] = "";
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '\0';
  return to_utf8(str("process ", ::getpid(), " on ", host));
}

Result<std::shared_ptr<detail::HeldLock>> hold_lock(std::shared_ptr<driver::LocalClient> socket, std::string_view name,
                                                    LockOptions options) {
  Agent agent(std::move(socket));
  wire::LeaseGrant grant;
  grant.set_ttl_ms(static_cast<std::uint64_t>(std::max<std::int64_t>(options.ttl.count(), 0)));
  grant.set_owner(options.owner.empty() ? default_owner() : options.owner);
  grant.set_session(true);
  const auto asked = Clock::now();
  HOLO_ASSIGN(lease, agent.call<wire::LeaseInfo>(wire::LEASE_GRANT, grant));
  auto held = std::make_shared<Held>(std::move(agent), std::string(name), lease.lease(), milliseconds(lease.ttl_ms()),
                                     asked, std::move(options.on_lost));
  HOLO_TRY(held->acquire(options));
  return std::shared_ptr<detail::HeldLock>(std::move(held));
}

}  // namespace holo::client
