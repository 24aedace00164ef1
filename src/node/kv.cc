#include "node/kv.h"

#include <algorithm>
#include <list>
#include <string>
#include <vector>

#include "base/seeded_bugs.h"
#include "base/strings.h"
#include "node/local_calls.h"

namespace holo::node {
namespace {

constexpr Duration kWrite = seconds(10);
constexpr Duration kRead = seconds(10);
constexpr std::uint32_t kLongestWatchMs = 60'000;  // Of one call; the watcher asks again.

}  // namespace

struct KvService::Impl final : control::StateObserver {
  using Self = std::shared_ptr<Impl>;
  using Session = std::shared_ptr<LocalSession>;

  struct Waiter {
    SessionId session;
    wire::KvRange range;
    std::shared_ptr<OneShot<Result<bool>>> shot = std::make_shared<OneShot<Result<bool>>>();
  };

  Impl(env::Loop& l, ControlService& c) : loop(l), control(c) {}

  env::Loop& loop;
  ControlService& control;
  bool stopped = false;
  std::list<Waiter> waiting;
  std::uint64_t seen = 0;  ///< The newest revision whose changes have woken whom they had to.

  // ---- control::StateObserver
  void on_commit(RegionId, Version, TxnId, std::span<const control::PageRange>) override {}
  void on_region_created(RegionId) override {}
  void on_region_freed(RegionId) override {}
  void on_nodes_changed(Epoch, NodeId) override {}
  void on_placement_changed(RegionId) override {}
  void on_restored() override {
    seen = keys().revision();
    wake([](const Waiter&) { return true; });
  }
  void on_keys_changed() override {
    const std::uint64_t before = std::exchange(seen, keys().revision());
    if (waiting.empty()) return;
    std::vector<std::string_view> changed;
    keys().for_each_since(before, [&](const std::string& key) { changed.push_back(key); });
    wake([&](const Waiter& w) {
      return std::ranges::any_of(changed, [&](std::string_view key) { return control::in_range(w.range, key); });
    });
  }

  [[nodiscard]] const control::KeySpace& keys() const { return control.state().keys(); }

  /// Lets the chosen look again, once what runs now has ended.
  template <class Choose>
  void wake(Choose choose, Result<bool> with = true) {
    std::vector<std::shared_ptr<OneShot<Result<bool>>>> chosen;
    for (auto it = waiting.begin(); it != waiting.end();) {
      if (!choose(*it)) {
        ++it;
        continue;
      }
      chosen.push_back(it->shot);
      it = waiting.erase(it);
    }
    if (chosen.empty()) return;
    loop.post([chosen = std::move(chosen), with = std::move(with)] {
      for (const auto& shot : chosen) shot->set(with);
    });
  }

  static LocalAnswer txn(Self me, Session, wire::KvTxn ask) {
    wire::CommandBody body;
    *body.mutable_kv() = std::move(ask);
    const Instant deadline = me->loop.now() + kWrite;
    HOLO_CO_ASSIGN(result, co_await me->control.propose(std::move(body), deadline));
    co_return local_reply(result.kv());
  }

  static LocalAnswer get(Self me, Session, wire::KvGet ask) {
    if (auto refusal = me->control.removal()) co_return std::unexpected(std::move(*refusal));
    // At a revision that this node has there is nothing newer to be learnt.
    if (!HOLO_SEEDED_BUG(read_without_asking) && !ask.stale() &&
        (ask.revision() == 0 || ask.revision() > me->keys().revision())) {
      const Instant deadline = me->loop.now() + kRead;
      HOLO_CO_TRY(co_await me->control.barrier(deadline));
      if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    }
    if (!me->control.state().cluster()) {
      co_return fail(Errc::unavailable, "this node has nothing of its cluster yet",
                     "start the others: what of its log is committed it learns from a leader");
    }
    HOLO_CO_ASSIGN(page, me->keys().range(ask));
    co_return local_reply(page);
  }

  static LocalAnswer watch(Self me, Session session, wire::KvWatch ask) {
    const Duration limit = milliseconds(static_cast<std::int64_t>(std::min(ask.wait_ms(), kLongestWatchMs)));
    const Instant deadline = me->loop.now() + limit;
    for (;;) {
      if (auto refusal = me->control.removal()) co_return std::unexpected(std::move(*refusal));
      HOLO_CO_ASSIGN(events, me->keys().events(ask));
      if (!events.events().empty() || me->loop.now() >= deadline) co_return local_reply(events);
      ask.set_from(events.from() + (HOLO_SEEDED_BUG(watch_skips_a_revision) ? 1 : 0));
      ask.set_skip(events.skip());
      if (me->waiting.size() >= limits::kMaxKvWatches) {
        co_return std::unexpected(Error{.code = Errc::overloaded,
                                        .message = str(me->waiting.size(), " watches wait at this node already"),
                                        .hint = "try again later, or at another node",
                                        .retryable = true});
      }
      Waiter& w = me->waiting.emplace_back(Waiter{.session = session->id(), .range = ask.range()});
      const auto shot = w.shot;
      auto woken = co_await env::await_until(me->loop, shot, deadline, "a watch");
      std::erase_if(me->waiting, [&](const Waiter& other) { return other.shot == shot; });
      if (!woken && woken.error().code != Errc::deadline_exceeded) co_return std::unexpected(woken.error());
      // While the loop stops every wait ends at once: this one would begin again for ever.
      if (me->stopped || me->loop.stopping()) co_return fail(Errc::cancelled, "the agent is stopping");
    }
  }

  static LocalAnswer compact(Self me, Session, wire::KvCompact ask) {
    wire::CommandBody body;
    *body.mutable_kv_compact() = ask;
    const Instant deadline = me->loop.now() + kWrite;
    HOLO_CO_TRY(co_await me->control.propose(std::move(body), deadline));
    co_return LocalReply{};
  }

  static LocalAnswer state(Self me, Session, wire::Empty) {
    const Instant deadline = me->loop.now() + kRead;
    HOLO_CO_TRY(co_await me->control.barrier(deadline));
    if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    wire::KvState out;
    out.set_revision(me->keys().revision());
    out.set_compacted(me->keys().compacted());
    out.set_keys(me->keys().keys());
    out.set_bytes(me->keys().bytes());
    co_return local_reply(out);
  }
};

KvService::KvService(env::Loop& loop, ControlService& control, LocalApi& api)
    : impl_(std::make_shared<Impl>(loop, control)) {
  control.add_observer(impl_.get());
  serve_local(api, wire::KV_TXN, impl_, &Impl::txn);
  serve_local(api, wire::KV_GET, impl_, &Impl::get);
  serve_local(api, wire::KV_WATCH, impl_, &Impl::watch);
  serve_local(api, wire::KV_COMPACT, impl_, &Impl::compact);
  serve_local(api, wire::KV_STATE, impl_, &Impl::state);
  api.on_closed([me = impl_](LocalSession& session) {
    me->wake([&](const Impl::Waiter& w) { return w.session == session.id(); },
             fail(Errc::cancelled, "the process has gone"));
  });
}

KvService::~KvService() {
  impl_->stopped = true;
  impl_->wake([](const Impl::Waiter&) { return true; }, fail(Errc::cancelled, "the agent is stopping"));
}

}  // namespace holo::node
