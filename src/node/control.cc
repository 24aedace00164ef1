#include "node/control.h"

#include <algorithm>

#include "base/log.h"
#include "base/seeded_bugs.h"
#include "base/strings.h"
#include "core/control/backup.h"
#include "core/control/results.h"
#include "node/control_impl.h"
#include "node/inventory.h"

namespace holo::node {
namespace {

constexpr const char* kIncarnationKey = "incarnation";
constexpr const char* kClusterKey = "cluster";
constexpr Duration kAttempt =
    seconds(3);  // One try to append; then the command is sent again, perhaps to another leader.
constexpr Duration kRetry = milliseconds(30);
constexpr Duration kHandOver = milliseconds(300);
constexpr Duration kLongestRetry = milliseconds(500);
constexpr std::size_t kRestorePart = 512 << 10;  // Of a state that is restored, in one command.

/// After such an error the same command may still succeed, or may have done so.
bool worth_retrying(Errc code) {
  switch (code) {
    case Errc::not_leader:
    case Errc::unavailable:
    case Errc::no_quorum:
    case Errc::deadline_exceeded:
    case Errc::overloaded:
    case Errc::internal: return true;
    default: return false;
  }
}

}  // namespace

ControlService::Impl::Impl(Ports p, NodeIdentity id)
    : ports(std::move(p)), identity(std::move(id)), plan(membership::HeartbeatConfig{}, identity.id) {
  state.add_observer(this);
  state.set_inventory_check(&check_inventory);
}

void ControlService::Impl::make_membership() {
  const std::weak_ptr<Impl> weak = weak_from_this();
  const auto if_running = [weak](const auto& f) {
    if (const Self me = weak.lock(); me && !me->stopped) f(me);
  };
  Membership::Events events;
  events.verdicts = [if_running] { if_running([](const Self& me) { beat_now(me); }); };
  events.said_dead = [if_running] { if_running([](const Self& me) { beat_now(me); }); };
  events.changed = [if_running](NodeId node) { if_running([node](const Self& me) { me->standing_changed(node); }); };
  swim = std::make_shared<Membership>(
      Membership::Ports{.loop = ports.loop, .transport = ports.transport, .entropy = ports.entropy}, identity.id,
      std::move(events));
  swim->serve();
}

ControlService::ControlService(Ports ports, NodeIdentity self)
    : impl_(std::make_shared<Impl>(std::move(ports), std::move(self))) {
  impl_->guard_peers();
  impl_->make_membership();
  impl_->serve_peers();
}

ControlService::~ControlService() {
  impl_->stopped = true;
  impl_->swim->stop();
  impl_->report_source = nullptr;
  impl_->floors_observers.clear();
  impl_->leave_check = nullptr;
  impl_->on_fatal = nullptr;
  impl_->log.reset();
}

// ---- Plain answers

const control::State& ControlService::state() const { return impl_->state; }
void ControlService::add_observer(control::StateObserver* observer) { impl_->state.add_observer(observer); }
NodeId ControlService::self() const { return impl_->identity.id; }
std::uint64_t ControlService::incarnation() const { return impl_->incarnation; }
NodeId ControlService::leader() const { return log_status().leader; }
bool ControlService::removed() const { return impl_->removed; }
bool ControlService::removed_for_good() const { return impl_->removed_for_good; }
std::optional<Error> ControlService::removal() const { return impl_->removal(); }
bool ControlService::is_leader() const { return impl_->leads(); }
bool ControlService::ready() const { return impl_->state.alive(self(), incarnation()); }
env::LogStatus ControlService::log_status() const { return impl_->log ? impl_->log->status() : env::LogStatus{}; }
WallTime ControlService::log_now() const { return impl_->log ? impl_->log->now() : WallTime{}; }
void ControlService::peer_lost(NodeId peer) { impl_->swim->peer_lost(peer); }
std::optional<Error> ControlService::apart() const { return impl_->apart(); }
const Membership& ControlService::membership() const { return *impl_->swim; }
std::vector<env::LogMember> ControlService::log_members() const {
  return impl_->log ? impl_->log->members() : std::vector<env::LogMember>{};
}
void ControlService::set_addresses(std::vector<std::string> addresses) {
  impl_->identity.addresses = std::move(addresses);
}
void ControlService::set_report_source(std::function<wire::NodeReport()> source) {
  impl_->report_source = std::move(source);
}
void ControlService::on_floors(std::function<void()> f) { impl_->floors_observers.push_back(std::move(f)); }
void ControlService::set_leave_check(std::function<Task<Status>(Instant)> f) { impl_->leave_check = std::move(f); }

Version ControlService::floor(RegionId region) const {
  const auto it = impl_->floors.find(region);
  return it == impl_->floors.end() ? Version{} : it->second;
}

std::uint64_t ControlService::frames_used(NodeId node) const {
  const auto it = impl_->usage.find(node);
  return it == impl_->usage.end() ? 0 : it->second;
}

const membership::Health* ControlService::health(NodeId node) const {
  const auto it = impl_->health.find(node);
  return it == impl_->health.end() ? nullptr : &it->second;
}

// ---- Life

Result<bool> ControlService::has_cluster() {
  HOLO_ASSIGN(stored, impl_->ports.store->get(kClusterKey));
  return stored && !stored->empty();
}

Status ControlService::Impl::next_incarnation(std::uint64_t known) {
  HOLO_ASSIGN(stored, ports.store->get(kIncarnationKey));
  std::uint64_t last = 0;
  if (stored) {
    if (stored->size() != sizeof last)
      return fail(Errc::corrupt, "this node's incarnation in its store does not decode");
    std::memcpy(&last, stored->data(), sizeof last);
  }
  // Not only one more: a store that was lost, or began anew, must not bring back numbers that others have seen dead.
  const auto wall = static_cast<std::uint64_t>(std::max<std::int64_t>(ports.loop->wall_now().ms, 0));
  const std::uint64_t next = std::max({last + 1, wall, incarnation + 1, known + 1});
  HOLO_TRY(ports.store->put(kIncarnationKey, std::as_bytes(std::span(&next, 1))));
  incarnation = next;
  swim->start(incarnation);
  return {};
}

Status ControlService::Impl::save_cluster(const std::vector<wire::NodeInfo>& nodes) {
  wire::JoinReply record;
  record.set_cluster(state.cluster().value);
  record.set_name(state.cluster_name());
  record.set_log_index(state.applied().value);
  for (const wire::NodeInfo& n : nodes) *record.add_nodes() = n;
  std::string bytes = record.SerializeAsString();
  if (bytes == saved_cluster) return {};
  HOLO_TRY(ports.store->put(kClusterKey, as_bytes(bytes)));
  saved_cluster = std::move(bytes);
  introduce(record);
  return {};
}

wire::NodeInfo ControlService::Impl::info() const { return control::info_from(identity, incarnation); }

Status ControlService::Impl::begin(LogOptions options) {
  HOLO_ASSERT(!log, "one of init, join, resume, once");
  options.self = identity.id;
  auto opened = ports.open_log(*this, options);
  if (!opened) return std::unexpected(opened.error());
  log = std::move(*opened);
  log->on_change([weak = weak_from_this()] {
    if (const Self me = weak.lock(); me && !me->stopped) me->log_changed();
  });
  log_changed();
  return {};
}

/// Through the log, so that it does not matter what keeps it, and every later member learns of it as of anything else.
Task<Status> ControlService::Impl::restore_from(Self me, std::shared_ptr<const Bytes> file, Instant deadline) {
  HOLO_CO_ASSIGN(backup, control::decode_backup(*file));
  std::size_t at = 0;
  for (;;) {
    const std::size_t size = std::min(kRestorePart, backup.state.size() - at);
    wire::CommandBody body;
    body.mutable_restore_part()->set_offset(at);
    body.mutable_restore_part()->set_bytes(backup.state.data() + at, size);
    at += size;
    const bool last = at == backup.state.size();
    if (last) body.mutable_restore_part()->set_digest(backup.header.digest());
    HOLO_CO_TRY(co_await propose(me, std::move(body), deadline));
    if (last) break;
  }
  log_info("control", "this cluster goes on from entry ", backup.header.log_index(), " of cluster ",
           backup.header.name());
  co_return Status{};
}

Task<Status> ControlService::Impl::init(Self me, std::string name, Instant deadline,
                                        std::shared_ptr<const Bytes> from) {
  HOLO_CO_ASSIGN(stored, me->ports.store->get(kClusterKey));
  if (stored && !stored->empty()) {
    co_return fail(Errc::refused, "this node is in a cluster already", "holo leave, or another --state-dir");
  }
  HOLO_CO_TRY(me->next_incarnation());
  HOLO_CO_TRY(me->begin({.bootstrap = true}));
  wire::CommandBody body;
  std::uint64_t id = 0;
  while (id == 0) id = me->ports.entropy->u64();
  body.mutable_cluster_init()->set_cluster(id);
  body.mutable_cluster_init()->set_name(name);
  *body.mutable_cluster_init()->mutable_node() = me->info();
  HOLO_CO_TRY(co_await propose(me, body, deadline));
  if (from) HOLO_CO_TRY(co_await restore_from(me, std::move(from), deadline));
  std::vector<wire::NodeInfo> nodes;
  nodes.push_back(me->info());
  HOLO_CO_TRY(me->save_cluster(nodes));
  me->ports.loop->spawn(beat_loop(me));
  me->ports.loop->spawn(lead_loop(me));
  co_return Status{};
}

Task<Status> ControlService::init(std::string cluster_name, Instant deadline, std::shared_ptr<const Bytes> from) {
  return Impl::init(impl_, std::move(cluster_name), deadline, std::move(from));
}
Task<Status> ControlService::join(std::string seed, Instant deadline) {
  return Impl::join(impl_, std::move(seed), deadline);
}
Task<Status> ControlService::leave(Instant deadline) { return Impl::leave(impl_, deadline); }

Task<Result<bool>> ControlService::forget_if_removed() { return Impl::forget_if_removed(impl_); }
Task<Status> ControlService::look_for_twin() { return Impl::look_for_twin(impl_); }
void ControlService::set_on_fatal(std::function<void(Error)> f) { impl_->on_fatal = std::move(f); }

Status ControlService::resume() {
  HOLO_ASSIGN(stored, impl_->ports.store->get(kClusterKey));
  wire::JoinReply record;
  if (!stored || stored->empty()) return fail(Errc::refused, "this node is in no cluster", "holo init, or holo join");
  if (!record.ParseFromString(std::string(as_text(*stored)))) {
    return fail(Errc::corrupt, "what this node's store says of its cluster does not decode");
  }
  impl_->saved_cluster = as_text(*stored);
  impl_->introduce(record);
  HOLO_ASSIGN(kept, impl_->removal_kept());
  if (kept || impl_->removed_for_good) {
    impl_->removed = impl_->removed_for_good = true;
    log_error("membership", impl_->removal()->to_string());
    return {};
  }
  for (const wire::NodeInfo& n : record.nodes()) {
    if (NodeId{n.id()} == self()) continue;
    impl_->ports.transport->set_addresses(NodeId{n.id()}, {n.addresses().begin(), n.addresses().end()});
  }
  HOLO_TRY(impl_->next_incarnation());
  HOLO_TRY(impl_->begin({}));
  impl_->ports.loop->spawn(Impl::beat_loop(impl_));
  impl_->ports.loop->spawn(Impl::lead_loop(impl_));
  impl_->ports.loop->spawn(Impl::stay(impl_));
  return {};
}

Task<Status> ControlService::Impl::stop(Self me) {
  if (std::exchange(me->stopped, true)) co_return Status{};
  me->swim->stop();
  for (Waiter& w : std::exchange(me->waiters, {})) w.shot->set(fail(Errc::cancelled, "the agent is stopping"));
  if (me->log) {
    // So that the others need not wait for an election.
    const Instant deadline = me->now() + kHandOver;
    const Status handed = co_await me->log->hand_over({}, deadline);
    if (!handed) log_debug("control", "leadership was not handed over: ", handed.error().to_string());
    co_await me->log->close();
  }
  co_return Status{};
}

Task<void> ControlService::stop() {
  const auto impl = impl_;
  co_await Impl::stop(impl);
}

// ---- Applying

void ControlService::Impl::apply(LogIndex index, WallTime when, ByteSpan command) {
  state.apply(index, when, command);
  wake();
}

void ControlService::Impl::on_restored() {
  std::erase_if(floors, [this](const auto& f) { return state.region(f.first) == nullptr; });
  nodes_changed_soon();
  wake();
}

/// Later, once for all: whoever waits must not run in the middle of an apply.
void ControlService::Impl::wake() {
  if (waiters.empty() || std::exchange(wake_posted, true)) return;
  ports.loop->post([me = shared_from_this()] {
    me->wake_posted = false;
    std::vector<Waiter> still;
    std::vector<std::pair<Waiter, Status>> ready;
    for (Waiter& w : std::exchange(me->waiters, {})) {
      if (w.shot->is_set()) continue;
      if (auto status = w.done()) {
        ready.emplace_back(std::move(w), std::move(*status));
      } else {
        still.push_back(std::move(w));
      }
    }
    me->waiters.insert(me->waiters.end(), std::make_move_iterator(still.begin()), std::make_move_iterator(still.end()));
    for (auto& [w, status] : ready) w.shot->set(status ? Result<bool>(true) : std::unexpected(status.error()));
  });
}

Task<Status> ControlService::Impl::wait(Self me, std::function<std::optional<Status>()> done, Instant deadline,
                                        std::string what) {
  if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
  if (auto status = done()) co_return *status;
  auto shot = std::make_shared<OneShot<Result<bool>>>();
  me->waiters.push_back({std::move(done), shot});
  auto r = co_await await_until(*me->ports.loop, shot, deadline, std::move(what));
  if (!r) co_return std::unexpected(r.error());
  co_return Status{};
}

Task<Status> ControlService::wait_applied(LogIndex index, Instant deadline) {
  const Impl* i = impl_.get();
  return Impl::wait(
      impl_,
      [i, index]() -> std::optional<Status> {
        if (i->state.applied() >= index) return Status{};
        return std::nullopt;
      },
      deadline, str("entry ", index, " of the log"));
}

Task<Status> ControlService::wait_version(RegionId region, Version version, Instant deadline) {
  const Impl* i = impl_.get();
  return Impl::wait(
      impl_,
      [i, region, version]() -> std::optional<Status> {
        const control::RegionRecord* r = i->state.region(region);
        if (r == nullptr) return Status(fail(Errc::not_found, str("there is no region ", region, " any more")));
        if (r->version >= version) return Status{};
        return std::nullopt;
      },
      deadline, str("version ", version, " of region ", region));
}

namespace {
Task<Status> barrier_of(std::shared_ptr<ControlService::Impl> me, Instant deadline) {
  if (auto refusal = me->removal()) co_return std::unexpected(std::move(*refusal));
  if (!me->log) co_return fail(Errc::unavailable, "this node is in no cluster");
  if (auto refusal = me->not_primary()) co_return std::unexpected(std::move(*refusal));
  co_return co_await me->log->barrier(deadline);
}
}  // namespace

Task<Status> ControlService::wait_until(std::function<std::optional<Status>()> done, Instant deadline,
                                        std::string what) {
  return Impl::wait(impl_, std::move(done), deadline, std::move(what));
}

Task<Status> ControlService::barrier(Instant deadline) { return barrier_of(impl_, deadline); }

// ---- Proposing

Task<Result<wire::CommandResult>> ControlService::propose(wire::CommandBody body, Instant deadline) {
  return Impl::propose(impl_, std::move(body), deadline);
}

namespace {

/// `error` ends a command of which an earlier attempt may have reached the log.
Error perhaps_done(Error error) {
  error.message = str("whether the command took effect is not known: ", error.message);
  const bool says_that_it_did_not = !worth_retrying(error.code) && error.code != Errc::cancelled;
  if (says_that_it_did_not) error.code = Errc::unavailable;
  return error;
}

/// See env::CommandLog::append().
bool may_be_in_the_log(Errc code) {
  return code != Errc::not_leader && code != Errc::over_limit && code != Errc::overloaded;
}

}  // namespace

Task<Result<wire::CommandResult>> ControlService::Impl::propose(Self me, wire::CommandBody body, Instant deadline) {
  if (auto refusal = me->removal(); refusal && !me->log) co_return std::unexpected(std::move(*refusal));
  if (!me->log) co_return fail(Errc::unavailable, "this node is in no cluster");
  if (me->outstanding.size() >= limits::kMaxPendingCommands) {
    co_return std::unexpected(Error{.code = Errc::overloaded,
                                    .message = str(me->outstanding.size(), " commands wait for the cluster already"),
                                    .retryable = true});
  }
  wire::Command command;
  command.set_client(me->identity.id.value);
  command.set_incarnation(me->incarnation);
  command.set_sequence(me->next_sequence++);
  *command.mutable_body() = std::move(body);
  const std::uint64_t sequence = command.sequence();
  struct Outstanding {
    Self me;
    std::uint64_t sequence;
    ~Outstanding() { me->outstanding.erase(sequence); }
  } guard{me, sequence};
  me->outstanding.insert(sequence);

  Duration pause = kRetry;
  bool sent = false;  // It may be in the log, whatever comes of further attempts.
  const auto ended = [&sent](Error error) { return std::unexpected(sent ? perhaps_done(std::move(error)) : error); };
  for (;;) {
    if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    if (auto refusal = me->removal()) co_return ended(std::move(*refusal));
    if (auto refusal = me->not_primary()) {
      if (sent) refusal->message = me->without_leader();
      co_return ended(std::move(*refusal));
    }
    command.set_outstanding(*me->outstanding.begin());
    const std::string bytes = command.SerializeAsString();
    Buffer entry = Buffer::copy(as_bytes(bytes));
    const Instant until = std::min(deadline, me->now() + kAttempt);
    auto appended = co_await me->log->append(std::move(entry), until);
    if (auto result = me->state.result_of(me->identity.id, command.incarnation(), sequence)) {
      HOLO_CO_TRY(control::status_of(result->error()));
      co_return std::move(*result);
    }
    if (appended && HOLO_SEEDED_BUG(done_reported_as_refused)) co_return fail(Errc::refused, "declared dead since");
    if (appended) {
      // Results go with the incarnation that asked. It may have acted before that, now or with an earlier attempt.
      co_return fail(Errc::unavailable,
                     "this node was declared dead meanwhile; whether the command took effect is not known");
    }
    Error error = std::move(appended).error();
    sent = sent || may_be_in_the_log(error.code);
    if (!worth_retrying(error.code) || me->now() + pause >= deadline) {
      if (error.code == Errc::not_leader) error.code = Errc::no_quorum;  // There was none to be asked.
      co_return ended(std::move(error));
    }
    co_await env::sleep_for(*me->ports.loop, pause);
    pause = std::min(pause * 2, kLongestRetry);
  }
}

}  // namespace holo::node
