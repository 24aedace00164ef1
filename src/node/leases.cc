#include "node/leases.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "base/strings.h"
#include "node/local_calls.h"

namespace holo::node {
namespace {

constexpr Duration kChange = seconds(10);
constexpr Duration kLook = seconds(10);
constexpr Duration kGiveUp = seconds(30);         // To end what a process left; its time to live ends it in any case.
constexpr std::uint32_t kLongestWaitMs = 60'000;  // Of one request for a lock; the process asks again.

}  // namespace

struct LeaseService::Impl final : std::enable_shared_from_this<Impl> {
  using Self = std::shared_ptr<Impl>;
  using Session = std::shared_ptr<LocalSession>;

  Impl(env::Loop& l, ControlService& c) : loop(l), control(c) {}

  env::Loop& loop;
  ControlService& control;
  bool stopped = false;
  std::map<SessionId, std::set<std::uint64_t>> of_session;  ///< Leases that end with a process.

  [[nodiscard]] const control::Leases& leases() const { return control.state().leases(); }
  [[nodiscard]] wire::LeaseInfo info(std::uint64_t lease) const { return leases().info(lease, control.log_now()); }

  Task<Result<wire::CommandResult>> propose(wire::CommandBody body, Duration limit = kChange) {
    return control.propose(std::move(body), loop.now() + limit);
  }

  static LocalAnswer grant(Self me, Session session, wire::LeaseGrant ask) {
    const bool of_process = ask.session();
    if (of_process) me->of_session[session->id()];
    wire::CommandBody body;
    *body.mutable_lease_grant() = std::move(ask);
    HOLO_CO_ASSIGN(result, co_await me->propose(std::move(body)));
    if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    if (const auto mine = me->of_session.find(session->id()); mine != me->of_session.end()) {
      if (of_process) mine->second.insert(result.lease());
    } else if (of_process) {  // Gone meanwhile.
      me->loop.spawn(give_up(me, result.lease()));
    }
    wire::LeaseInfo out = me->info(result.lease());
    out.set_lease(result.lease());
    co_return local_reply(out);
  }

  static LocalAnswer keep(Self me, Session, wire::LeaseKeep ask) {
    const std::uint64_t lease = ask.lease();
    wire::CommandBody body;
    *body.mutable_lease_keep() = ask;
    HOLO_CO_TRY(co_await me->propose(std::move(body)));
    if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    co_return local_reply(me->info(lease));
  }

  static LocalAnswer end(Self me, Session session, wire::LeaseEnd ask) {
    if (const auto mine = me->of_session.find(session->id()); mine != me->of_session.end()) {
      mine->second.erase(ask.lease());
    }
    wire::CommandBody body;
    *body.mutable_lease_end() = ask;
    HOLO_CO_TRY(co_await me->propose(std::move(body)));
    co_return LocalReply{};
  }

  static LocalAnswer list(Self me, Session, wire::Empty) {
    const Instant deadline = me->loop.now() + kLook;
    HOLO_CO_TRY(co_await me->control.barrier(deadline));
    if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    co_return local_reply(me->leases().list(me->control.log_now()));
  }

  static LocalAnswer acquire(Self me, Session, wire::LockAcquire ask) {
    const std::string name = ask.name();
    const std::uint64_t lease = ask.lease();
    const Instant until =
        me->loop.now() + milliseconds(static_cast<std::int64_t>(std::min(ask.wait_ms(), kLongestWaitMs)));
    wire::CommandBody body;
    *body.mutable_lock_acquire() = std::move(ask);
    HOLO_CO_ASSIGN(result, co_await me->propose(std::move(body)));
    if (result.lock().token() != 0 || me->loop.now() >= until) co_return local_reply(result.lock());

    const Impl* i = me.get();
    std::function<std::optional<Status>()> changed = [i, name, lease]() -> std::optional<Status> {
      const auto place = i->place(name, lease);
      if (place && place->token() == 0) return std::nullopt;
      return Status{};
    };
    auto waiting = me->control.wait_until(std::move(changed), until, str("lock ", name));
    const Status waited = co_await waiting;
    if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    if (!waited && waited.error().code != Errc::deadline_exceeded) co_return std::unexpected(waited.error());
    const auto place = me->place(name, lease);
    if (!place) {
      co_return fail(Errc::not_found, str("lease ", lease, " ended while it waited for lock ", name),
                     "it was not kept in time");
    }
    co_return local_reply(*place);
  }

  static LocalAnswer release(Self me, Session, wire::LockRelease ask) {
    wire::CommandBody body;
    *body.mutable_lock_release() = std::move(ask);
    HOLO_CO_TRY(co_await me->propose(std::move(body)));
    co_return LocalReply{};
  }

  static LocalAnswer locks(Self me, Session, wire::Empty) {
    const Instant deadline = me->loop.now() + kLook;
    HOLO_CO_TRY(co_await me->control.barrier(deadline));
    if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    co_return local_reply(me->leases().locks(me->control.state().keys()));
  }

  [[nodiscard]] std::optional<wire::LockPlace> place(const std::string& lock, std::uint64_t lease) const {
    return leases().place(lock, lease, control.state().keys());
  }

  /// Nobody waits for a process that has gone until its leases end by themselves.
  void session_closed(SessionId session) {
    const auto mine = of_session.extract(session);
    if (mine.empty() || stopped) return;
    for (const std::uint64_t lease : mine.mapped()) loop.spawn(give_up(shared_from_this(), lease));
  }
  static Task<void> give_up(Self me, std::uint64_t lease) {
    wire::CommandBody body;
    body.mutable_lease_end()->set_lease(lease);
    auto proposal = me->propose(std::move(body), kGiveUp);
    co_await proposal;
  }
};

LeaseService::LeaseService(env::Loop& loop, ControlService& control, LocalApi& api)
    : impl_(std::make_shared<Impl>(loop, control)) {
  serve_local(api, wire::LEASE_GRANT, impl_, &Impl::grant);
  serve_local(api, wire::LEASE_KEEP, impl_, &Impl::keep);
  serve_local(api, wire::LEASE_END, impl_, &Impl::end);
  serve_local(api, wire::LEASE_LIST, impl_, &Impl::list);
  serve_local(api, wire::LOCK_ACQUIRE, impl_, &Impl::acquire);
  serve_local(api, wire::LOCK_RELEASE, impl_, &Impl::release);
  serve_local(api, wire::LOCK_LIST, impl_, &Impl::locks);
  api.on_closed([me = impl_](LocalSession& session) { me->session_closed(session.id()); });
}

LeaseService::~LeaseService() { impl_->stopped = true; }

}  // namespace holo::node
