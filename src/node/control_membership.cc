// Joining, heartbeats, and what the leader does about them.
#include <algorithm>

#include "base/log.h"
#include "base/strings.h"
#include "core/control/results.h"
#include "node/control_calls.h"
#include "node/control_impl.h"
#include "wire/message_types.h"

namespace holo::node {
namespace {

using control::info_of;
using control::NodeRecord;
using control::NodeState;
using control::same_facts;
using wire::PeerMessage;

constexpr Duration kBeatDeadline = milliseconds(1000);
constexpr unsigned kMaxBeats = 4;  // Unanswered heartbeats; further ones wait.
constexpr int kMaxAddressesTold = 16;
constexpr std::size_t kMaxAddressTold = 300;
constexpr Duration kBeatSlack = milliseconds(50);
constexpr Duration kBeatPause = milliseconds(20);  // Between two out of turn.
constexpr Duration kVoteHolds = seconds(3);        // Unless it is cast again, with the next heartbeat.
constexpr Duration kLeaderless = seconds(4);       // Longer than an election takes.
constexpr Duration kVoterHeard = seconds(3);
constexpr Duration kLeadTick = milliseconds(100);
constexpr Duration kFollowTick = milliseconds(500);  // It may have come to lead; an idle node need not wake more often.
constexpr Duration kPropose = seconds(5);            // What the leader proposes of itself.
constexpr Duration kChangeMember = seconds(10);      // Also lets a new voter catch up.
constexpr Duration kHandOver = seconds(2);
constexpr Duration kReconcilePause = milliseconds(200);
constexpr Duration kServeJoin = seconds(10);
constexpr Duration kRetryJoin = milliseconds(200);

}  // namespace

void ControlService::Impl::serve_peers() {
  const std::weak_ptr<Impl> weak = weak_from_this();
  ports.transport->serve(static_cast<std::uint16_t>(PeerMessage::heartbeat),
                         [weak](NodeId from, env::Request request) -> Task<Result<env::Reply>> {
                           const Self me = weak.lock();
                           if (!me || me->stopped) return refuse_stopped();
                           return on_heartbeat(me, from, std::move(request));
                         });
  ports.transport->serve(static_cast<std::uint16_t>(PeerMessage::join),
                         [weak](NodeId from, env::Request request) -> Task<Result<env::Reply>> {
                           const Self me = weak.lock();
                           if (!me || me->stopped) return refuse_stopped();
                           return on_join(me, from, std::move(request));
                         });
  ports.transport->serve(static_cast<std::uint16_t>(PeerMessage::leave),
                         [weak](NodeId from, env::Request request) -> Task<Result<env::Reply>> {
                           const Self me = weak.lock();
                           if (!me || me->stopped) return refuse_stopped();
                           return on_leave(me, from, std::move(request));
                         });
  ports.transport->serve(static_cast<std::uint16_t>(PeerMessage::member_query),
                         [weak](NodeId from, env::Request request) -> Task<Result<env::Reply>> {
                           const Self me = weak.lock();
                           if (!me || me->stopped) return refuse_stopped();
                           return on_member_query(me, from, std::move(request));
                         });
}

Task<Result<env::Reply>> ControlService::Impl::refuse_stopped() {
  co_return fail(Errc::unavailable, "the agent is stopping");
}

// ---- What changes around this node

void ControlService::Impl::log_changed() {
  const bool led = std::exchange(led_in, leads() ? log->status().term : 0) != 0;
  if (led_in != 0 && !led) {
    reports.clear();
    report_incarnations.clear();
    votes.clear();
    nodes_changed_soon();
  }
  note_primary();
  const NodeId leader = log_status().leader;
  // Whoever comes to lead has heard no vote yet.
  if (std::exchange(leader_before, leader) != leader && leader) beat_now(shared_from_this());
  wake();
}

void ControlService::Impl::on_nodes_changed(Epoch epoch, NodeId node) {
  if (const NodeRecord* n = state.node(node)) {
    log_info("membership", "epoch ", epoch, ": node ", n->name, " (", node, ") is ", control::node_state_name(n->state),
             n->draining ? ", draining" : "", n->voter ? ", votes" : "");
  }
  nodes_changed_soon();
}

void ControlService::Impl::nodes_changed_soon() {
  if (std::exchange(nodes_change_posted, true)) return;
  ports.loop->post([weak = weak_from_this()] {
    const Self me = weak.lock();
    if (!me) return;
    me->nodes_change_posted = false;
    if (!me->stopped && !me->removed_for_good) me->nodes_changed();
  });
}

void ControlService::Impl::nodes_changed() {
  std::vector<wire::NodeInfo> known;
  std::vector<membership::Fact> facts;
  for (const auto& [id, n] : state.nodes()) {
    if (n.state == NodeState::left) {
      usage.erase(id);
      health.erase(id);
      if (id != identity.id) ports.transport->disconnect(id);
      continue;
    }
    known.push_back(info_of(n));
    known.back().set_incarnation(0);  // Only where they can be reached matters for the next start.
    facts.push_back({.node = id, .start = n.incarnation, .alive = n.alive(), .draining = n.draining, .voter = n.voter});
    if (id == identity.id) continue;
    ports.transport->set_addresses(id, n.addresses);
    const bool was_alive = std::exchange(alive_before[id], n.alive());
    if (was_alive && !n.alive()) ports.transport->disconnect(id);  // Calls that wait for it end now.
  }
  swim->set_members(facts);
  count_votes();
  const NodeRecord* mine = state.node(identity.id);
  if (mine != nullptr && mine->state != NodeState::left) {
    if (const Status s = save_cluster(known); !s) log_warn("control", s.error().to_string());
  }
  if (mine != nullptr && mine->state == NodeState::dead && mine->incarnation == incarnation) return_anew(incarnation);
  reconcile_again = true;
  if (leads() && !std::exchange(reconciling, true)) ports.loop->spawn(reconcile(shared_from_this()));
}

// ---- Heartbeats, every node

wire::Heartbeat ControlService::Impl::make_beat() const {
  wire::Heartbeat beat;
  beat.set_cluster(state.cluster().value);
  *beat.mutable_node() = info();
  if (report_source) *beat.mutable_report() = report_source();
  beat.set_applied(state.applied().value);
  for (const membership::Verdict& v : swim->verdicts()) {
    beat.add_condemned()->set_node(v.node.value);
    beat.mutable_condemned()->rbegin()->set_incarnation(v.start);
  }
  return beat;
}

Task<void> ControlService::Impl::beat_loop(Self me) {
  while (!me->stopped && !me->removed_for_good && !me->ports.loop->stopping()) {
    me->note_primary();
    std::vector<NodeId> others;
    for (const auto& [id, n] : me->state.nodes()) {
      if (n.state != NodeState::left && id != me->identity.id) others.push_back(id);
    }
    if (!me->state.cluster() && me->beats_in_flight < kMaxBeats) me->ask_somebody();
    const NodeId to = me->plan.next(me->now(), me->log->status().leader, others);
    if (to == me->identity.id) {
      const wire::Heartbeat own = me->make_beat();
      if (auto reply = me->hear(me->identity.id, own)) me->take_reply(own.node().incarnation(), *reply);
    } else if (to && me->beats_in_flight < kMaxBeats) {
      me->ports.loop->spawn(beat(me, to));
    }
    co_await env::sleep_for(*me->ports.loop, me->plan.interval(), kBeatSlack);
  }
}

/// Something that the leader should hear before the next beat is due.
void ControlService::Impl::beat_now(const Self& me) {
  if (me->stopped || !me->log || me->removed_for_good) return;
  const NodeId leader = me->log->status().leader;
  if (!leader || !me->state.cluster()) return;
  if (leader == me->identity.id) {
    me->count_votes();
    return;
  }
  if (me->now() - me->last_beat < kBeatPause || me->beats_in_flight >= kMaxBeats) return;  // The next one is soon.
  me->last_beat = me->now();
  me->ports.loop->spawn(beat(me, leader));
}

Task<void> ControlService::Impl::beat(Self me, NodeId to) {
  ++me->beats_in_flight;
  const std::uint64_t said = me->incarnation;
  const std::string header = me->make_beat().SerializeAsString();
  env::Request request = request_of(PeerMessage::heartbeat, header);
  const env::CallOptions options = control_call(me->now() + kBeatDeadline);
  auto answer = co_await me->ports.transport->call(to, std::move(request), options);
  --me->beats_in_flight;
  if (me->stopped) co_return;
  if (me->removed_for_good) co_return;
  me->note_standing(answer ? Status{} : Status(std::unexpected(answer.error())));
  if (!answer && answer.error().code == Errc::permission_denied && !me->leaving)
    me->ports.loop->spawn(ask_standing(me, to));
  wire::HeartbeatReply reply;
  if (!answer || !reply.ParseFromString(answer->header)) {
    me->plan.on_failure(to);
    co_return;
  }
  if (NodeId{reply.leader()} != to) {
    me->plan.on_hint(NodeId{reply.leader()});
    me->look_for(NodeId{reply.leader()}, reply.leader_addresses());
    co_return;
  }
  me->take_reply(said, reply);
}

/// The leader may have moved while this node was away, and cannot come to it if this one has moved, too: what each
/// knows of the other is where it was.
void ControlService::Impl::look_for(NodeId leader, const google::protobuf::RepeatedPtrField<std::string>& told) {
  if (!leader || leader == identity.id || log->status().leader == leader) return;
  const NodeRecord* known = state.node(leader);
  if (told.empty() || told.size() > kMaxAddressesTold || (known != nullptr && known->state == NodeState::left)) return;
  if (std::ranges::any_of(told, [](const std::string& a) { return a.size() > kMaxAddressTold; })) return;
  std::vector<std::string> all(told.begin(), told.end());
  if (known != nullptr) {
    for (const std::string& a : known->addresses) {
      if (std::ranges::find(all, a) == all.end()) all.push_back(a);
    }
  }
  ports.transport->set_addresses(leader, std::move(all));
}

void ControlService::Impl::take_usage(NodeId node, std::uint64_t frames_used, const wire::NodeHealth& said) {
  constexpr int kMaxReasons = 5;
  constexpr std::size_t kMaxReason = 200;
  usage[node] = frames_used;
  membership::Health& known = health[node];
  known.score = std::min(said.score(), 100U);
  known.reasons.clear();
  for (int i = 0; i < std::min(said.reasons_size(), kMaxReasons); ++i) {
    known.reasons.push_back(said.reasons(i).substr(0, kMaxReason));
  }
}

void ControlService::Impl::take_reply(std::uint64_t said, const wire::HeartbeatReply& reply) {
  for (const wire::NodeUsage& u : reply.usage()) take_usage(NodeId{u.node()}, u.frames_used_bytes(), u.health());
  raise_floors(reply.floors());
  // Of several beats under one incarnation each is told that it is fenced; this node has returned since the first.
  if (reply.fenced() && said == incarnation) return_anew(reply.incarnation());
}

/// The others have gone on without this node: what it had under way is fenced. It comes back as someone new, under a
/// higher incarnation than the one under which they know it (`known`; 0: a release that does not say).
void ControlService::Impl::return_anew(std::uint64_t known) {
  // Either this node was silent, and declared dead, or somebody else has spoken in its name: what it ever said itself
  // is at most its present incarnation.
  const bool replaced = known > incarnation;
  log_warn("membership",
           replaced ? "another agent speaks in the name of this node" : "the cluster had declared this node dead",
           "; it returns under a new incarnation");
  if (const Status s = next_incarnation(known); !s) {
    log_error("membership", s.error().to_string());
    return;
  }
  if (replaced) count_replacement();
}

void ControlService::Impl::raise_floors(const google::protobuf::RepeatedPtrField<wire::RegionVersion>& raised) {
  bool any = false;
  for (const wire::RegionVersion& f : raised) {
    const RegionId region{f.region()};
    if (state.region(region) == nullptr) continue;
    Version& mine = floors[region];
    if (f.version() <= mine.value) continue;
    mine = Version{f.version()};
    any = true;
  }
  if (!any) return;
  for (const auto& f : floors_observers) f();
}

// ---- Heartbeats, the leader

Task<Result<env::Reply>> ControlService::Impl::on_heartbeat(Self me, NodeId from, env::Request request) {
  wire::Heartbeat beat;
  if (!beat.ParseFromString(request.header) || beat.node().id() != from.value) co_return malformed();
  auto reply = me->hear(from, beat);
  if (!reply) co_return std::unexpected(reply.error());
  env::Reply out;
  out.header = reply->SerializeAsString();
  co_return out;
}

Result<wire::HeartbeatReply> ControlService::Impl::hear(NodeId from, const wire::Heartbeat& beat) {
  wire::HeartbeatReply reply;
  if (beat.cluster() != 0 && state.cluster() && beat.cluster() != state.cluster().value) {
    return fail(Errc::refused, str("node ", from, " belongs to another cluster"), "give it another --state-dir");
  }
  if (!leads()) {
    const NodeId leader = log ? log->status().leader : NodeId{};
    reply.set_leader(leader.value);
    if (const NodeRecord* n = state.node(leader)) {
      for (const std::string& a : n->addresses) reply.add_leader_addresses(a);
    }
    return reply;
  }
  reply.set_leader(identity.id.value);
  reply.set_epoch(state.epoch().value);
  const NodeRecord* known = state.node(from);
  if (known == nullptr || known->state == NodeState::left) {
    return fail(Errc::refused, str("node ", from, " is not a member of this cluster"), "holo join");
  }
  const std::uint64_t said = beat.node().incarnation();
  if (said < known->incarnation || (said == known->incarnation && !known->alive())) {
    reply.set_fenced(true);
    reply.set_incarnation(known->incarnation);
    return reply;
  }
  if (said > known->incarnation) {
    if (admitting.insert(from).second) ports.loop->spawn(admit(shared_from_this(), beat.node(), true));
    return reply;
  }
  Votes said_dead{.verdicts = {}, .when = now()};
  for (const wire::Condemned& c : beat.condemned()) {
    if (said_dead.verdicts.size() >= limits::kMaxNodes) break;
    said_dead.verdicts.push_back({.node = NodeId{c.node()}, .start = c.incarnation()});
  }
  votes[from] = std::move(said_dead);
  if (beat.condemned_size() != 0) count_votes();
  reports[from] = beat.report();
  report_incarnations[from] = said;
  wire::NodeInfo facts = beat.node();
  if (state.name_taken(facts.name(), from)) facts.set_name(known->name);  // It keeps the one it has.
  if (!same_facts(*known, facts) && admitting.insert(from).second) {
    ports.loop->spawn(admit(shared_from_this(), facts, false));
  }
  compute_floors();
  for (const auto& [region, version] : floors) {
    auto* f = reply.add_floors();
    f->set_region(region.value);
    f->set_version(version.value);
  }
  for (const auto& [id, report] : reports) {
    auto* u = reply.add_usage();
    u->set_node(id.value);
    u->set_frames_used_bytes(report.frames_used_bytes());
    if (report.has_health()) *u->mutable_health() = report.health();
  }
  return reply;
}

/// The lowest of what every live node needs. A node that has said nothing yet holds every floor where it is.
void ControlService::Impl::compute_floors() {
  std::map<RegionId, std::pair<Version, std::size_t>> lowest;
  for (const auto& [id, n] : state.nodes()) {
    if (!n.alive()) continue;
    const auto it = report_incarnations.find(id);
    if (it == report_incarnations.end() || it->second != n.incarnation) return;
    for (const wire::RegionVersion& v : reports[id].lowest()) {
      auto [at, fresh] = lowest.try_emplace(RegionId{v.region()}, Version{v.version()}, 0);
      at->second.first = std::min(at->second.first, Version{v.version()});
      ++at->second.second;
    }
  }
  google::protobuf::RepeatedPtrField<wire::RegionVersion> raised;
  for (const auto& [region, entry] : lowest) {
    if (entry.second != state.live_count()) continue;
    auto* f = raised.Add();
    f->set_region(region.value);
    f->set_version(entry.first.value);
  }
  raise_floors(raised);
}

Task<void> ControlService::Impl::admit(Self me, wire::NodeInfo node, bool alive) {
  wire::CommandBody body;
  if (alive) {
    *body.mutable_node_alive()->mutable_node() = node;
  } else {
    body.mutable_node_update()->set_node(node.id());
    *body.mutable_node_update()->mutable_info() = node;
  }
  const Instant deadline = me->now() + kPropose;
  auto done = co_await propose(me, std::move(body), deadline);
  me->admitting.erase(NodeId{node.id()});
  if (!done && !me->stopped)
    log_warn("membership", "node ", node.name(), " is not admitted: ", done.error().to_string());
}

// ---- The leader's duties

Task<void> ControlService::Impl::lead_loop(Self me) {
  while (!me->stopped && !me->ports.loop->stopping()) {
    tend_leases(me);
    const Duration pause = me->leads() ? kLeadTick : kFollowTick;
    co_await env::sleep_for(*me->ports.loop, pause, pause / 4);
  }
}

/// Leases end by the leader's clock. It may be ahead of the last leader's, and nobody could keep a lease while there
/// was none: so each lease has its whole time again before this leader ends the first.
void ControlService::Impl::tend_leases(const Self& me) {
  const env::LogStatus log = me->log_status();
  if (log.role != env::LogRole::leader || me->tending_leases) return;
  const WallTime first = me->state.leases().next_deadline();
  const bool begun = me->leases_begun == log.term;
  if (first == control::Leases::kNoTime) {
    me->leases_begun = log.term;
    return;
  }
  if (begun && me->log->now() < first) return;
  me->tending_leases = true;
  me->ports.loop->spawn(propose_leases(me, log.term, begun));
}

Task<void> ControlService::Impl::propose_leases(Self me, std::uint64_t term, bool begun) {
  wire::CommandBody body;
  if (begun) {
    body.mutable_leases_expire();
  } else {
    body.mutable_leadership_begun();
  }
  const Instant deadline = me->now() + kPropose;
  auto proposal = propose(me, std::move(body), deadline);
  const auto done = co_await proposal;
  me->tending_leases = false;
  // Under a later leader it may have been applied too late to count for this term; then it is said again.
  if (done && !begun && me->log_status().term == term) me->leases_begun = term;
}

/// The leader: whoever a majority of the voters holds for dead, each by a failed probe of its own, is declared so. A
/// vote that is taken back before that, or not repeated, is gone.
void ControlService::Impl::count_votes() {
  if (!leads() || stopped) return;
  votes[identity.id] = {.verdicts = swim->verdicts(), .when = now()};
  std::size_t voters = 0;
  std::map<membership::Verdict, std::vector<NodeId>> for_whom;
  for (const auto& [id, n] : state.nodes()) {
    if (!n.voter || n.state == NodeState::left) continue;
    ++voters;
    const auto cast = votes.find(id);
    if (cast == votes.end() || now() - cast->second.when > kVoteHolds) continue;
    for (const membership::Verdict& v : cast->second.verdicts) for_whom[v].push_back(id);
  }
  for (auto& [verdict, who] : for_whom) {
    if (who.size() * 2 <= voters || !state.alive(verdict.node, verdict.start) || verdict.node == identity.id) continue;
    if (admitting.insert(verdict.node).second)
      ports.loop->spawn(declare_dead(shared_from_this(), verdict, std::move(who)));
  }
}

Task<void> ControlService::Impl::declare_dead(Self me, membership::Verdict death, std::vector<NodeId> votes) {
  const NodeRecord* n = me->state.node(death.node);
  log_warn("membership", "node ", n == nullptr ? str(death.node) : n->name, " answers ", votes.size(),
           " voters no more: it is declared dead");
  wire::CommandBody body;
  body.mutable_node_dead()->set_node(death.node.value);
  body.mutable_node_dead()->set_incarnation(death.start);
  for (const NodeId v : votes) body.mutable_node_dead()->add_votes(v.value);
  const Instant deadline = me->now() + kPropose;
  auto done = co_await propose(me, std::move(body), deadline);
  me->admitting.erase(death.node);
  if (!done && !me->stopped) log_warn("membership", "its death is not recorded: ", done.error().to_string());
}

void ControlService::Impl::standing_changed(NodeId node) {
  const NodeRecord* n = state.node(node);
  const membership::View v = swim->view(node);
  if (v.standing == membership::Standing::suspect)
    log_info("membership", "node ", n == nullptr ? str(node) : n->name, " is suspected: it does not answer");
  note_primary();
}

// ---- Which side of a split this is

/// Keeps `leaderless` up to date. A learner's log goes on naming a leader that it no longer hears.
void ControlService::Impl::note_primary() {
  const NodeId leader = log_status().leader;
  const bool led = leader && (leader == identity.id || swim->view(leader).standing != membership::Standing::suspect);
  if (led) {
    leaderless.reset();
  } else if (!leaderless) {
    leaderless = now();
  }
}

/// What to answer to who wants a change while too few voters can be reached to make one; nullopt: try.
std::optional<Error> ControlService::Impl::not_primary() const {
  if (!leaderless || now() - *leaderless < kLeaderless) return std::nullopt;
  return apart();
}

std::string ControlService::Impl::without_leader() const {
  const std::string since =
      str("this node has known no leader for ", (now() - leaderless.value_or(now())).millis() / 1000, " s");
  if (const std::string trouble = log_status().trouble; !trouble.empty()) return str(since, ": ", trouble);
  const membership::Swim::Voters v = swim->voters(kVoterHeard);
  return str(since, " and hears ", v.heard, " of ", v.all, v.all == 1 ? " voter" : " voters");
}

std::optional<Error> ControlService::Impl::apart() const {
  if (removed) return removal();
  if (!leaderless) return std::nullopt;
  return Error{.code = Errc::no_quorum,
               .message = str(without_leader(), ": nothing is changed here"),
               .hint = log_status().trouble.empty()
                           ? "start the other agents, or ask a node on the side with most voters"
                           : "control_endpoints names the etcd that has to be there",
               .retryable = true};
}

/// Brings the log's members and voters in line with the state, one change at a time, until nothing is left to do.
Task<void> ControlService::Impl::reconcile(Self me) {
  while (!me->stopped && me->leads()) {
    auto done = co_await reconcile_once(me);
    if (me->stopped) break;
    if (done && !*done) {
      if (!std::exchange(me->reconcile_again, false)) break;
      continue;
    }
    if (!done) {
      log_debug("membership", "members of the log: ", done.error().to_string());
      const bool going_on = co_await env::sleep_for(*me->ports.loop, kReconcilePause);
      if (!going_on) break;
    }
  }
  me->reconciling = false;
}

/// True when something was changed.
Task<Result<bool>> ControlService::Impl::reconcile_once(Self me) {
  // A leader that was revoked is cut off in this moment: a change that it begins now would be left half-way, and the
  // others might need its vote to get over it.
  const NodeRecord* mine = me->state.node(me->identity.id);
  if (mine != nullptr && mine->state == NodeState::left) {
    const Instant soon = me->now() + kHandOver;
    Status handed = co_await me->log->hand_over({}, soon);  // Another goes on with what this one may not do.
    if (!handed) log_debug("membership", "leadership stays with a node that has left: ", handed.error().to_string());
    co_return false;
  }
  const Instant deadline = me->now() + kChangeMember;
  std::map<NodeId, bool> voters;
  for (const env::LogMember& m : me->log->members()) voters[m.node] = m.voter;
  std::vector<membership::Member> members;
  for (const auto& [id, n] : me->state.nodes()) {
    const auto in_log = voters.find(id);
    if (n.state == NodeState::left) {
      if (in_log == voters.end() || id == me->identity.id) continue;
      HOLO_CO_TRY(co_await me->log->remove(id, deadline));
      co_return true;
    }
    if (in_log == voters.end()) {
      HOLO_CO_TRY(co_await me->log->add_learner(id, deadline));
      co_return true;
    }
    members.push_back({.node = id,
                       .alive = n.alive() && !n.draining,
                       .voter = in_log->second,
                       .witness = n.witness,
                       .zone = n.place.zone,
                       .host = n.place.host});
    if (n.voter != in_log->second) {
      wire::CommandBody body;
      body.mutable_node_update()->set_node(id.value);
      body.mutable_node_update()->set_voter(in_log->second);
      HOLO_CO_TRY(co_await propose(me, std::move(body), deadline));
      co_return true;
    }
  }
  const auto change = membership::next_voter_change(members, me->identity.id);
  // One that drains leads no longer, once somebody else can: not one that drains as well, which would hand it back.
  const auto heir = std::ranges::find_if(
      members, [&](const membership::Member& m) { return m.alive && m.voter && m.node != me->identity.id; });
  if (!change && mine != nullptr && mine->draining && heir != members.end()) {
    HOLO_CO_TRY(co_await me->log->hand_over(heir->node, deadline));
    co_return false;
  }
  if (!change || (change->node == me->identity.id && !change->voter))
    co_return false;  // A leader that leaves hands over first.
  HOLO_CO_TRY(co_await me->log->set_voter(change->node, change->voter, deadline));
  co_return true;
}

// ---- Joining

Task<Status> ControlService::Impl::join(Self me, std::string seed, Instant deadline) {
  HOLO_CO_ASSIGN(stored, me->ports.store->get("cluster"));
  if (stored && !stored->empty()) {
    co_return fail(Errc::refused, "this node is in a cluster already", "holo leave, or another --state-dir");
  }
  auto peer = co_await me->ports.transport->connect(seed, deadline);
  if (!peer) co_return std::unexpected(peer.error());
  if (peer->node == me->identity.id) co_return fail(Errc::invalid_argument, str(seed, " is this node itself"));
  std::vector<std::string> addresses;
  addresses.push_back(seed);
  me->ports.transport->set_addresses(peer->node, addresses);
  // Whoever joins believes the node that it was told to ask, until that one says who the others are.
  me->introduced = {peer->node};
  me->introduced_until = kJoining;
  HOLO_CO_TRY(me->next_incarnation());
  HOLO_CO_TRY(me->begin({.joining = true}));

  wire::JoinReply reply;
  for (;;) {
    wire::JoinRequest ask;
    *ask.mutable_node() = me->info();
    ask.set_control_store(me->identity.control_store);
    env::Request request = request_of(PeerMessage::join, ask.SerializeAsString());
    const env::CallOptions options = control_call(std::min(deadline, me->now() + kServeJoin));
    auto answer = co_await me->ports.transport->call(peer->node, std::move(request), options);
    if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    if (answer) {
      if (!reply.ParseFromString(answer->header)) co_return malformed();
      break;
    }
    const Errc code = answer.error().code;
    const bool again = code == Errc::no_quorum || code == Errc::not_leader || code == Errc::unavailable ||
                       code == Errc::overloaded || code == Errc::deadline_exceeded;
    if (!again || me->now() + kRetryJoin >= deadline) co_return std::unexpected(answer.error());
    co_await env::sleep_for(*me->ports.loop, kRetryJoin);
  }
  me->introduce(reply);
  for (const wire::NodeInfo& n : reply.nodes()) {
    if (NodeId{n.id()} == me->identity.id) continue;
    std::vector<std::string> known(n.addresses().begin(), n.addresses().end());
    me->ports.transport->set_addresses(NodeId{n.id()}, std::move(known));
  }
  // From here on this node is a member, whatever happens to it: the next start resumes.
  std::string record = reply.SerializeAsString();
  HOLO_CO_TRY(me->ports.store->put("cluster", as_bytes(record)));
  me->saved_cluster = std::move(record);
  me->ports.loop->spawn(beat_loop(me));
  me->ports.loop->spawn(lead_loop(me));
  const Impl* i = me.get();
  std::function<std::optional<Status>()> alive = [i]() -> std::optional<Status> {
    if (i->state.alive(i->identity.id, i->incarnation)) return Status{};
    return std::nullopt;
  };
  co_return co_await wait(me, std::move(alive), deadline, std::string("the cluster's log to reach this node"));
}

Task<Result<env::Reply>> ControlService::Impl::on_join(Self me, NodeId from, env::Request request) {
  wire::JoinRequest ask;
  if (!ask.ParseFromString(request.header)) co_return malformed();
  const NodeId node{ask.node().id()};
  const NodeRecord* sender = me->state.node(from);
  const bool member = sender != nullptr && sender->state != NodeState::left;
  if (ask.forwarded() ? !member : node != from) co_return malformed();
  if (!me->log || !me->state.cluster())
    co_return fail(Errc::refused, "this node is in no cluster itself", "holo init there first");
  if (ask.control_store() != me->identity.control_store) {
    const auto shown = [](const std::string& store) { return store.empty() ? std::string("raft") : store; };
    co_return fail(Errc::refused,
                   str("this cluster keeps its control state in ", shown(me->identity.control_store), ", and node ",
                       ask.node().name(), " is set to ", shown(ask.control_store())),
                   "--control-store, --control-endpoints and --control-prefix have to be those of the other nodes");
  }
  const Instant deadline = me->now() + kServeJoin;
  if (!me->leads()) {
    const NodeId leader = me->log->status().leader;
    if (ask.forwarded() || !leader || leader == me->identity.id) {
      co_return std::unexpected(
          Error{.code = Errc::no_quorum, .message = "the cluster has no leader now", .retryable = true});
    }
    ask.set_forwarded(true);
    env::Request onward = request_of(PeerMessage::join, ask.SerializeAsString());
    const env::CallOptions options = control_call(deadline);
    co_return co_await me->ports.transport->call(leader, std::move(onward), options);
  }
  std::vector<std::string> addresses(ask.node().addresses().begin(), ask.node().addresses().end());
  me->ports.transport->set_addresses(node, std::move(addresses));
  wire::CommandBody body;
  *body.mutable_node_join()->mutable_node() = ask.node();
  HOLO_CO_TRY(co_await propose(me, std::move(body), deadline));
  if (me->stopped) co_return fail(Errc::unavailable, "the agent is stopping");
  wire::JoinReply reply;
  reply.set_cluster(me->state.cluster().value);
  reply.set_name(me->state.cluster_name());
  reply.set_log_index(me->state.applied().value);
  for (const auto& [id, n] : me->state.nodes()) {
    if (n.state != NodeState::left) *reply.add_nodes() = info_of(n);
  }
  env::Reply out;
  out.header = reply.SerializeAsString();
  co_return out;  // The state's change has woken reconcile(), which makes the newcomer a member of the log.
}

}  // namespace holo::node
