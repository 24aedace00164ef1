// Heartbeats, joining, leaving, and who votes. All decisions are cores' (core/membership) or the log's; this file
// carries them.
#include <algorithm>

#include "base/limits.h"
#include "base/log.h"
#include "base/strings.h"
#include "core/control/results.h"
#include "node/control_impl.h"
#include "wire/message_types.h"

namespace holo::node {
namespace {

constexpr Duration kBeatDeadline = milliseconds(800);
constexpr Duration kWatch = milliseconds(100);
constexpr Duration kCommandDeadline = seconds(5);
constexpr Duration kJoinDeadline = seconds(10);  // what a member spends on one newcomer
constexpr Duration kJoinRetry = milliseconds(200);
constexpr Duration kConnectDeadline = seconds(5);
constexpr Duration kLeavePoll = milliseconds(100);

std::uint16_t type_of(wire::PeerMessage m) { return static_cast<std::uint16_t>(m); }

template <class Message>
env::Request request_of(wire::PeerMessage type, const Message& message) {
  env::Request out;
  out.type = type_of(type);
  out.header = message.SerializeAsString();
  return out;
}

}  // namespace

void ControlService::Impl::serve_peers() {
  ports.transport->serve(type_of(wire::PeerMessage::join),
                         [this](NodeId from, env::Request request) { return on_join(from, std::move(request)); });
  ports.transport->serve(type_of(wire::PeerMessage::heartbeat),
                         [this](NodeId from, env::Request request) -> Task<Result<env::Reply>> {
                           wire::Heartbeat beat_message;
                           if (!beat_message.ParseFromString(request.header)) {
                             co_return fail(Errc::malformed, "a heartbeat does not decode");
                           }
                           HOLO_CO_ASSIGN(answer, on_heartbeat(from, std::move(beat_message)));
                           env::Reply reply;
                           reply.header = answer.SerializeAsString();
                           co_return reply;
                         });
}

void ControlService::Impl::start_loops() {
  if (std::exchange(loops_started, true)) return;
  ports.loop->spawn(beat());
  ports.loop->spawn(watch());
}

// ----------------------------------------------------------------------------------------------- what the state
// teaches

void ControlService::Impl::learn_addresses(NodeId node) {
  const auto* record = self.state_.node(node);
  if (record == nullptr || node == self.self()) return;
  if (record->state == control::NodeState::left) {
    ports.transport->disconnect(node);
    return;
  }
  ports.transport->set_addresses(node, record->addresses);
  // Calls that wait for a dead node end now, not at their deadlines.
  if (record->state == control::NodeState::dead) ports.transport->disconnect(node);
}

void ControlService::Impl::on_nodes_changed(Epoch epoch, NodeId node) {
  learn_addresses(node);
  if (const auto* record = self.state_.node(node)) {
    log_info("membership", "epoch ", epoch, ": node ", record->name, " (", node, ") is ",
             control::node_state_name(record->state));
  }
}

void ControlService::Impl::on_restored() {
  for (const auto& [id, record] : self.state_.nodes()) learn_addresses(id);
}

// ---------------------------------------------------------------------------------------------------------- heartbeats

Task<void> ControlService::Impl::beat() {
  while (!stopping) {
    co_await beat_once();
    const bool awake = co_await env::sleep_for(*ports.loop, plan.interval());
    if (!awake) break;
  }
}

Task<void> ControlService::Impl::beat_once() {
  if (self.state_.cluster().value == 0) co_return;
  const NodeId to = plan.next(ports.loop->now(), self.leader(), self.state_.live_nodes());
  if (!to) co_return;
  wire::Heartbeat message;
  message.set_cluster(self.state_.cluster().value);
  *message.mutable_node() = info();
  if (self.report_source_) *message.mutable_report() = self.report_source_();
  message.set_applied(self.state_.applied().value);
  if (to == self.self()) {
    if (auto reply = on_heartbeat(to, std::move(message))) take_reply(*reply);
    co_return;
  }
  env::CallOptions options{.klass = env::StreamClass::control, .deadline = ports.loop->now() + kBeatDeadline};
  env::Request request = request_of(wire::PeerMessage::heartbeat, message);
  auto answer = co_await ports.transport->call(to, std::move(request), options);
  if (!answer) {
    plan.on_failure(to);
    if (answer.error().code == Errc::refused) log_warn("membership", answer.error().to_string());
    co_return;
  }
  wire::HeartbeatReply reply;
  if (!reply.ParseFromString(answer->header)) co_return;
  if (NodeId(reply.leader()) != to && reply.leader() != 0) plan.on_hint(NodeId(reply.leader()));
  take_reply(reply);
  if (reply.fenced()) {
    // Declared dead while it lived: what it had staged is void. It comes back as a new incarnation, as after a restart.
    log_warn("membership", "the cluster had declared this node dead; it returns under a new incarnation");
    if (const Status bumped = bump_incarnation(); !bumped) log_error("membership", bumped.error().to_string());
  }
}

void ControlService::Impl::take_reply(const wire::HeartbeatReply& reply) {
  bool risen = false;
  for (const auto& f : reply.floors()) {
    if (self.state_.region(RegionId(f.region())) == nullptr) continue;
    Version& floor = floors[RegionId(f.region())];
    if (f.version() > floor.value) {
      floor = Version(f.version());
      risen = true;
    }
  }
  for (const auto& u : reply.usage()) usage[NodeId(u.node())] = u.frames_used_bytes();
  if (!risen) return;
  for (const auto& f : self.floors_observers_) f();
}

Result<wire::HeartbeatReply> ControlService::Impl::on_heartbeat(NodeId from, wire::Heartbeat message) {
  wire::HeartbeatReply reply;
  reply.set_leader(self.leader().value);
  if (!self.is_leader()) return reply;
  const NodeId node(message.node().id());
  if (node != from || message.cluster() != self.state_.cluster().value) {
    return fail(Errc::refused, "a heartbeat of another cluster, or in another's name");
  }
  const auto* record = self.state_.node(node);
  if (record == nullptr || record->state == control::NodeState::left) {
    return fail(Errc::refused, str("node ", node, " is no member of this cluster any more"),
                "holo join enters it anew");
  }
  if (message.node().incarnation() < record->incarnation) {
    return fail(Errc::refused, str("a later start of node ", record->name, " is a member already"));
  }
  if (record->state == control::NodeState::dead && message.node().incarnation() == record->incarnation) {
    reply.set_fenced(true);
    return reply;
  }
  detector.on_heartbeat(ports.loop->now(), node, message.node().incarnation());
  reports[node] = std::move(*message.mutable_report());
  if (!self.state_.alive(node, message.node().incarnation())) admit(std::move(*message.mutable_node()));
  raise_floors();
  reply.set_epoch(self.state_.epoch().value);
  for (const auto& [region, version] : floors) {
    auto* f = reply.add_floors();
    f->set_region(region.value);
    f->set_version(version.value);
  }
  for (const auto& [id, report] : reports) {
    auto* u = reply.add_usage();
    u->set_node(id.value);
    u->set_frames_used_bytes(report.frames_used_bytes());
  }
  return reply;
}

/// A member that is dead in the state, or alive under an earlier incarnation, has spoken.
void ControlService::Impl::admit(wire::NodeInfo node) {
  const NodeId id(node.id());
  if (!proposing.insert(id).second) return;
  wire::CommandBody body;
  *body.mutable_node_alive()->mutable_node() = std::move(node);
  auto run = [](Impl* i, NodeId about, wire::CommandBody command) -> Task<void> {
    std::string what = "the return of a node";
    co_await i->propose_quietly(std::move(command), std::move(what));
    i->proposing.erase(about);
  };
  ports.loop->spawn(run(this, id, std::move(body)));
}

Task<void> ControlService::Impl::propose_quietly(wire::CommandBody body, std::string what) {
  const Instant deadline = ports.loop->now() + kCommandDeadline;
  auto result = co_await self.propose(std::move(body), deadline);
  if (!result && result.error().code != Errc::cancelled) {
    log_warn("membership", what, " was not recorded: ", result.error().to_string());
  }
}

/// A region's floor is the lowest snapshot that any live node may still read; unknown while one of them has not said.
void ControlService::Impl::raise_floors() {
  std::map<RegionId, std::pair<std::uint64_t, std::size_t>> lowest;  // and by how many nodes it was named
  std::size_t live = 0;
  for (const auto& [id, record] : self.state_.nodes()) {
    if (!record.alive()) continue;
    ++live;
    auto it = reports.find(id);
    if (it == reports.end()) return;
    for (const auto& r : it->second.lowest()) {
      auto [entry, fresh] = lowest.try_emplace(RegionId(r.region()), r.version(), 0);
      if (!fresh) entry->second.first = std::min(entry->second.first, r.version());
      ++entry->second.second;
    }
  }
  wire::HeartbeatReply risen;
  for (const auto& [region, value] : lowest) {
    if (value.second != live) continue;
    auto* f = risen.add_floors();
    f->set_region(region.value);
    f->set_version(value.first);
  }
  take_reply(risen);
}

// -------------------------------------------------------------------------------------------------- the leader's watch

Task<void> ControlService::Impl::watch() {
  while (!stopping) {
    const bool leads = self.is_leader();
    if (leads && !detector.leading()) {
      detector.lead(ports.loop->now());
      reports.clear();
    }
    if (!leads && detector.leading()) detector.resign();
    if (leads) {
      declare_dead();
      if (!mending) {
        mending = true;
        ports.loop->spawn(mend_voters());
      }
    }
    const bool awake = co_await env::sleep_for(*ports.loop, kWatch);
    if (!awake) break;
  }
}

void ControlService::Impl::declare_dead() {
  std::vector<membership::Watched> alive;
  for (const auto& [id, record] : self.state_.nodes()) {
    if (record.alive() && id != self.self()) alive.push_back({.node = id, .incarnation = record.incarnation});
  }
  detector.watch(ports.loop->now(), alive);
  for (const auto& member : detector.tick(ports.loop->now())) {
    if (!proposing.insert(member.node).second) continue;
    reports.erase(member.node);
    wire::CommandBody body;
    body.mutable_node_dead()->set_node(member.node.value);
    body.mutable_node_dead()->set_incarnation(member.incarnation);
    auto run = [](Impl* i, NodeId about, wire::CommandBody command) -> Task<void> {
      std::string what = "the death of a node";
      co_await i->propose_quietly(std::move(command), std::move(what));
      i->proposing.erase(about);
    };
    ports.loop->spawn(run(this, member.node, std::move(body)));
  }
}

/// Who stays is settled first; only then does a node that leaves lose its vote, and a leaving leader steps down before
/// it.
std::optional<membership::VoterChange> ControlService::Impl::next_change(bool& hand_over) const {
  std::vector<membership::Member> staying;
  NodeId leaving;
  for (const auto& member : log->members()) {
    const auto* record = self.state_.node(member.node);
    if (record == nullptr || record->state == control::NodeState::left) continue;
    if (!record->draining) {
      staying.push_back({.node = member.node, .alive = record->alive(), .voter = member.voter});
    } else if (member.voter) {
      leaving = member.node;
    }
  }
  const auto change = membership::next_voter_change(staying, self.self());
  if (change || !leaving) return change;
  const bool another = std::ranges::any_of(staying, [](const membership::Member& m) { return m.voter && m.alive; });
  if (!another) return std::nullopt;
  hand_over = leaving == self.self();
  return membership::VoterChange{.node = leaving, .voter = false};
}

/// One step: the log's members follow the state's nodes, their votes the policy, and the state says who votes.
Task<void> ControlService::Impl::mend_voters() {
  const Instant deadline = ports.loop->now() + kCommandDeadline;
  Status done;
  NodeId gone;
  wire::CommandBody told;
  for (const auto& member : log->members()) {
    const auto* record = self.state_.node(member.node);
    if (record == nullptr) continue;  // A newcomer whose entry is on its way.
    if (record->state == control::NodeState::left) {
      gone = member.node;
    } else if (record->voter != member.voter) {
      told.mutable_node_update()->set_node(member.node.value);
      told.mutable_node_update()->set_voter(member.voter);
    }
  }
  if (told.has_node_update()) {
    std::string what = "who votes";
    co_await propose_quietly(std::move(told), std::move(what));
  } else if (gone) {
    done = co_await log->remove(gone, deadline);
  } else {
    bool hand_over = false;
    const auto change = next_change(hand_over);
    if (hand_over) {
      done = co_await log->hand_over(deadline);
    } else if (change) {
      done = co_await log->set_voter(change->node, change->voter, deadline);
    }
  }
  if (!done && done.error().code != Errc::overloaded && done.error().code != Errc::cancelled) {
    log_debug("membership", "a change of voters waits: ", done.error().to_string());
    co_await sleep_for(*ports.loop, kLeavePoll);
  }
  mending = false;
}

// ------------------------------------------------------------------------------------------------------------- joining

Task<Result<wire::JoinReply>> ControlService::Impl::ask_to_join(std::string seed, Instant deadline) {
  const Instant connect_by = std::min(deadline, ports.loop->now() + kConnectDeadline);
  HOLO_CO_ASSIGN(peer, co_await ports.transport->connect(seed, connect_by));
  if (peer.node == self.self()) {
    co_return fail(Errc::invalid_argument, str(seed, " is this node itself"), "name another member of the cluster");
  }
  ports.transport->set_addresses(peer.node, {seed});
  wire::JoinRequest request;
  *request.mutable_node() = info();
  for (;;) {
    env::CallOptions options{.klass = env::StreamClass::control,
                             .deadline = std::min(deadline, ports.loop->now() + kJoinDeadline)};
    env::Request message = request_of(wire::PeerMessage::join, request);
    auto answer = co_await ports.transport->call(peer.node, std::move(message), options);
    if (answer) {
      wire::JoinReply reply;
      if (!reply.ParseFromString(answer->header)) co_return fail(Errc::malformed, "the answer to join does not decode");
      co_return reply;
    }
    const Errc code = answer.error().code;
    const bool again = code == Errc::no_quorum || code == Errc::not_leader || code == Errc::overloaded ||
                       code == Errc::deadline_exceeded || code == Errc::unavailable;
    const Instant next = ports.loop->now() + kJoinRetry;
    if (!again || next >= deadline) co_return std::unexpected(answer.error());
    const bool awake = co_await env::sleep_until(*ports.loop, next);
    if (!awake) co_return fail(Errc::cancelled, "the agent is stopping");
  }
}

Task<Result<env::Reply>> ControlService::Impl::on_join(NodeId from, env::Request request) {
  wire::JoinRequest asked;
  if (!asked.ParseFromString(request.header)) co_return fail(Errc::malformed, "a join request does not decode");
  const NodeId leader = self.leader();
  if (!log || !leader) co_return fail(Errc::no_quorum, "this cluster has no leader at the moment", "retry in a moment");
  const Instant deadline = ports.loop->now() + kJoinDeadline;
  env::Reply reply;
  if (leader != self.self()) {
    if (asked.forwarded()) co_return fail(Errc::not_leader, "the leader has just changed", "retry in a moment");
    asked.set_forwarded(true);
    env::CallOptions options{.klass = env::StreamClass::control, .deadline = deadline};
    env::Request forward = request_of(wire::PeerMessage::join, asked);
    co_return co_await ports.transport->call(leader, std::move(forward), options);
  }
  if (!asked.forwarded() && NodeId(asked.node().id()) != from) {
    co_return fail(Errc::permission_denied, "a node may only ask to join for itself");
  }
  HOLO_CO_ASSIGN(answer, co_await admit_newcomer(std::move(asked), deadline));
  reply.header = answer.SerializeAsString();
  co_return reply;
}

Task<Result<wire::JoinReply>> ControlService::Impl::admit_newcomer(wire::JoinRequest request, Instant deadline) {
  const NodeId node(request.node().id());
  while (admitting) {
    const Instant next = ports.loop->now() + kLeavePoll;
    if (next >= deadline) co_return fail(Errc::overloaded, "other nodes are joining", "retry in a moment");
    const bool awake = co_await env::sleep_until(*ports.loop, next);
    if (!awake) co_return fail(Errc::cancelled, "the agent is stopping");
  }
  admitting = true;
  ports.transport->set_addresses(node, {request.node().addresses().begin(), request.node().addresses().end()});
  const auto members = log->members();
  Status added;
  if (std::ranges::none_of(members, [&](const env::LogMember& m) { return m.node == node; })) {
    for (;;) {
      added = co_await log->add_learner(node, deadline);
      const Instant next = ports.loop->now() + kLeavePoll;
      if (added || added.error().code != Errc::overloaded || next >= deadline) break;
      const bool awake = co_await env::sleep_until(*ports.loop, next);
      if (!awake) break;
    }
  }
  Result<wire::CommandResult> joined = fail(Errc::unavailable, "not tried");
  if (added) {
    wire::CommandBody body;
    *body.mutable_node_join()->mutable_node() = request.node();
    joined = co_await self.propose(std::move(body), deadline);
  } else {
    joined = std::unexpected(added.error());
  }
  admitting = false;
  if (!joined) co_return std::unexpected(joined.error());
  wire::JoinReply reply;
  reply.set_cluster(self.state_.cluster().value);
  reply.set_name(self.state_.cluster_name());
  reply.set_log_index(self.state_.applied().value);
  for (const auto& [id, record] : self.state_.nodes()) {
    if (record.state == control::NodeState::left) continue;
    auto* n = reply.add_nodes();
    n->set_id(id.value);
    n->set_name(record.name);
    for (const auto& a : record.addresses) n->add_addresses(a);
  }
  log_info("membership", "node ", request.node().name(), " (", node, ") joined");
  co_return reply;
}

// ------------------------------------------------------------------------------------------------------------- leaving

Task<Status> ControlService::leave(Instant deadline) {
  Impl& i = *impl_;
  const bool alone = state_.live_count() == 1;
  if (alone && !state_.regions().empty()) {
    co_return fail(Errc::refused, "this is the last live node, and regions are left in it",
                   "holo free them first, or holo remove the cluster's state directory");
  }
  const auto drain = [](NodeId node, bool on) {
    wire::CommandBody body;
    body.mutable_node_update()->set_node(node.value);
    body.mutable_node_update()->set_draining(on);
    return body;
  };
  if (!alone) {
    wire::CommandBody begin = drain(self(), true);
    HOLO_CO_TRY(co_await propose(std::move(begin), deadline));
    Status ready_to_go;
    if (leave_check_) ready_to_go = co_await leave_check_(deadline);
    // The vote goes first: a log must not lose a voter that it counts on.
    while (ready_to_go) {
      const auto members = i.log->members();
      const bool votes =
          std::ranges::any_of(members, [&](const env::LogMember& m) { return m.node == self() && m.voter; });
      if (!votes) break;
      const Instant next = i.ports.loop->now() + kLeavePoll;
      if (next >= deadline) {
        ready_to_go = fail(Errc::deadline_exceeded, "this node's vote could not be handed over in time");
        break;
      }
      const bool awake = co_await env::sleep_until(*i.ports.loop, next);
      if (!awake) co_return fail(Errc::cancelled, "the agent is stopping");
    }
    if (ready_to_go) {
      wire::CommandBody go;
      go.mutable_node_leave()->set_node(self().value);
      auto left = co_await propose(std::move(go), deadline);
      if (!left) ready_to_go = std::unexpected(left.error());
    }
    if (!ready_to_go) {
      wire::CommandBody back = drain(self(), false);
      const Instant soon = i.ports.loop->now() + kCommandDeadline;
      (void)co_await propose(std::move(back), soon);
      co_return ready_to_go;
    }
  }
  co_return i.remember_cluster(false);
}

}  // namespace holo::node
