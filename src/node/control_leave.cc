// Leaving the cluster for good: what this node does, and what the leader does for one that asks.
#include <algorithm>

#include "base/log.h"
#include "base/strings.h"
#include "core/membership/voters.h"
#include "node/control_calls.h"
#include "node/control_impl.h"
#include "wire/message_types.h"

namespace holo::node {
namespace {

using control::NodeRecord;
using control::NodeState;
using wire::PeerMessage;

constexpr Duration kPropose = seconds(5);        // To take back a drain.
constexpr Duration kChangeMember = seconds(10);  // For the leader, to take a member out of the log.
constexpr Duration kRetryRemoval = milliseconds(200);
constexpr Duration kRetryVote = milliseconds(20);
constexpr Duration kRetryStay = seconds(1);
constexpr const char* kRemovedKey = "removed";  // In the store: this node was removed for good.
constexpr const char* kLeavingKey = "leaving";  // In the store: this node drains because it leaves.
constexpr Duration kRetryLeave = milliseconds(200);
constexpr Duration kAskLeader = seconds(12);  // More than the leader takes: then it cannot be reached, or is another.
constexpr Duration kBelieveRemoval = seconds(3);
constexpr Duration kAskStanding = seconds(1);

}  // namespace

void ControlService::Impl::note_standing(const Status& answer) {
  if (!answer && answer.error().code != Errc::permission_denied) return;  // It says nothing about that.
  if (answer) {
    refused_since.reset();
    removed = false;
    return;
  }
  if (!refused_since) refused_since = now();
  // Somebody whose log is behind may not know a member; it asks others before it says so, but not for this long.
  if (removed || now() - *refused_since < kBelieveRemoval) return;
  removed = true;
  log_error("membership", removal()->to_string());
}

std::optional<Error> ControlService::Impl::removal() const {
  if (!removed) return std::nullopt;
  return Error{.code = Errc::permission_denied,
               .message = "this node was removed from its cluster",
               .hint = "holo leave here, then holo join makes it a member anew"};
}

Result<bool> ControlService::Impl::removal_kept() const {
  HOLO_ASSIGN(kept, ports.store->get(kRemovedKey));
  return kept && !kept->empty();
}

/// A copy that is older than this node's membership says nothing: it may have left before, and joined again.
void ControlService::Impl::take_standing(const wire::MemberQueryReply& said, LogIndex known) {
  if (!said.member() && LogIndex{said.log_index()} != kJoining && LogIndex{said.log_index()} >= known) keep_removal();
}

void ControlService::Impl::keep_removal() {
  if (leaving || std::exchange(removed_for_good, true)) return;
  const bool news = !std::exchange(removed, true);
  if (news) log_error("membership", removal()->to_string());
  if (const Status kept = ports.store->put(kRemovedKey, as_bytes("1")); !kept)
    log_error("membership", "that is not kept over a restart: ", kept.error().to_string());
  // There is nobody to speak with any more.
  swim->stop();
  std::set<NodeId> others = introduced;
  for (const auto& [id, n] : state.nodes()) others.insert(id);
  others.erase(identity.id);
  for (const NodeId other : others) {
    ports.transport->set_addresses(other, {});
    ports.transport->disconnect(other);
  }
}

Task<void> ControlService::Impl::ask_standing(Self me, NodeId of) {
  ++me->beats_in_flight;
  const LogIndex known = me->introduced_until;
  wire::MemberQuery query;
  query.set_node(me->identity.id.value);
  env::Request request = request_of(PeerMessage::member_query, query.SerializeAsString());
  const env::CallOptions options = control_call(me->now() + kAskStanding);
  auto asking = me->ports.transport->call(of, std::move(request), options);
  const auto answer = co_await asking;
  --me->beats_in_flight;
  wire::MemberQueryReply reply;
  if (!me->stopped && answer && reply.ParseFromString(answer->header)) me->take_standing(reply, known);
}

/// Nothing of the log has reached this node since it began: perhaps it is to get nothing any more.
void ControlService::Impl::ask_somebody() {
  std::vector<NodeId> others;
  for (const NodeId node : introduced) {
    if (node != identity.id) others.push_back(node);
  }
  if (!others.empty()) ports.loop->spawn(ask_standing(shared_from_this(), others[next_to_ask++ % others.size()]));
}

Task<Result<bool>> ControlService::Impl::forget_if_removed(Self me) {
  const Status looked = co_await look_for_twin(me);
  if (!looked) log_debug("membership", looked.error().to_string());  // That matters to who goes on.
  HOLO_CO_ASSIGN(kept, me->removal_kept());
  if (!kept && !me->removed_for_good) co_return false;
  me->removed = true;
  HOLO_CO_TRY(co_await leave(me, kNever));
  co_return true;
}

Task<Status> ControlService::Impl::leave(Self me, Instant deadline) {
  if (me->removed) {  // There is nothing to leave any more.
    HOLO_CO_TRY(me->ports.store->put(kRemovedKey, ByteSpan{}));
    co_return me->ports.store->put("cluster", ByteSpan{});
  }
  if (!me->log || me->state.node(me->identity.id) == nullptr)
    co_return fail(Errc::refused, "this node is in no cluster");
  if (std::exchange(me->leaving, true)) co_return fail(Errc::refused, "this node is leaving already");
  wire::CommandBody drain;
  drain.mutable_node_update()->set_node(me->identity.id.value);
  drain.mutable_node_update()->set_draining(true);
  Status begun = me->ports.store->put(kLeavingKey, as_bytes("1"));
  if (begun) {
    auto draining = co_await propose(me, drain, deadline);
    if (!draining) begun = std::unexpected(draining.error());
  }
  if (!begun) {
    me->leaving = false;
    if (!me->stopped) me->ports.loop->spawn(stay(me));
    co_return begun;
  }
  Status left = co_await leave_draining(me, deadline);
  if (left) {
    // The store belongs to no cluster from now on.
    left = me->ports.store->put(kLeavingKey, ByteSpan{});
    if (left) left = me->ports.store->put("cluster", ByteSpan{});
    co_return left;
  }
  me->leaving = false;
  if (me->stopped) co_return left;
  Status stays = co_await stay_once(me);
  if (!stays) {
    log_warn("control", "this node goes on draining for now: ", stays.error().to_string());
    me->ports.loop->spawn(stay(me));
  }
  co_return left;
}

/// Takes back the drain of a leave that did not succeed.
Task<Status> ControlService::Impl::stay_once(Self me) {
  wire::CommandBody drain;
  drain.mutable_node_update()->set_node(me->identity.id.value);
  drain.mutable_node_update()->set_draining(false);
  const Instant soon = me->now() + kPropose;
  auto undone = co_await propose(me, std::move(drain), soon);
  if (!undone) co_return std::unexpected(undone.error());
  co_return me->ports.store->put(kLeavingKey, ByteSpan{});
}

/// Also when the agent was stopped, or died, while it left: nobody else knows whether the drain is to stay.
Task<void> ControlService::Impl::stay(Self me) {
  const auto noted = me->ports.store->get(kLeavingKey);
  if (!noted || !*noted || (*noted)->empty() || std::exchange(me->staying, true)) co_return;
  while (!me->stopped && !me->leaving && !me->removed) {
    if (me->state.alive(me->identity.id, me->incarnation)) {
      const Status done = co_await stay_once(me);
      if (done) break;
    }
    const bool going_on = co_await env::sleep_for(*me->ports.loop, kRetryStay);
    if (!going_on) break;
  }
  me->staying = false;
}

Task<Status> ControlService::Impl::leave_draining(Self me, Instant deadline) {
  if (me->leave_check) HOLO_CO_TRY(co_await me->leave_check(deadline));
  bool alone = true;
  for (const auto& [id, n] : me->state.nodes()) alone = alone && (id == me->identity.id || n.state == NodeState::left);
  if (alone) {
    if (!me->state.regions().empty()) {
      co_return fail(Errc::refused, "this is the last node of its cluster, and regions are left in it",
                     "holo free them first, or remove the state directory");
    }
    wire::CommandBody body;
    body.mutable_node_leave()->set_node(me->identity.id.value);
    HOLO_CO_TRY(co_await propose(me, std::move(body), deadline));
    co_return Status{};
  }
  for (;;) {
    Status s = co_await give_up_lead(me, deadline);  // Another change of voters may be under way: then again.
    if (s) s = co_await ask_to_leave(me, deadline);
    if (s || s.error().code == Errc::refused || s.error().code == Errc::out_of_memory) co_return s;
    if (me->stopped) co_return s;
    if (me->now() + kRetryLeave >= deadline) {
      Error e = s.error();
      e.message = str("no leader has taken this node out of the cluster in time: ", e.message);
      e.hint = "holo status tells who leads; holo remove on another machine takes this node out as well";
      co_return std::unexpected(std::move(e));
    }
    co_await env::sleep_for(*me->ports.loop, kRetryLeave);
  }
}

/// Sees to it that another node leads: it must take this one out of the log.
Task<Status> ControlService::Impl::give_up_lead(Self me, Instant deadline) {
  if (!me->leads()) co_return Status{};
  NodeId heir;
  for (const env::LogMember& m : me->log->members()) {
    const NodeRecord* n = me->state.node(m.node);
    if (m.node == me->identity.id || n == nullptr || !n->alive()) continue;
    if (m.voter) {
      heir = {};
      break;
    }
    if (!heir) heir = m.node;
  }
  if (heir) HOLO_CO_TRY(co_await me->log->set_voter(heir, true, deadline));
  co_return co_await me->log->hand_over({}, deadline);
}

Task<Status> ControlService::Impl::ask_to_leave(Self me, Instant deadline) {
  const NodeId leader = me->log->status().leader;
  if (!leader || leader == me->identity.id) {
    co_return std::unexpected(
        Error{.code = Errc::no_quorum, .message = "no other node leads the cluster", .retryable = true});
  }
  wire::LeaveRequest ask;
  ask.set_node(me->identity.id.value);
  env::Request request = request_of(PeerMessage::leave, ask.SerializeAsString());
  const env::CallOptions options = control_call(std::min(deadline, me->now() + kAskLeader));
  auto answer = co_await me->ports.transport->call(leader, std::move(request), options);
  if (!answer) co_return std::unexpected(answer.error());
  co_return Status{};
}

/// Before it has left: then nobody needs its vote, whatever becomes of this leader, and of the one that leaves. Three
/// of five that left during a power cut once took the majority with them.
Task<Status> ControlService::Impl::take_vote(Self me, NodeId node, Instant deadline) {
  for (;;) {
    if (me->stopped || !me->leads()) co_return fail(Errc::unavailable, "leadership was lost");
    std::size_t voters = 0, staying = 0;
    bool votes = false;
    NodeId heir;
    for (const env::LogMember& m : me->log->members()) {
      const NodeRecord* n = me->state.node(m.node);
      voters += m.voter ? 1 : 0;
      votes = votes || (m.voter && m.node == node);
      if (!m.voter && m.node != node && n != nullptr && n->alive() && !n->draining) heir = m.node;
    }
    if (!votes) co_return Status{};
    for (const auto& [id, n] : me->state.nodes()) staying += id != node && n.state != NodeState::left ? 1 : 0;
    Status changed;
    if (heir && voters <= membership::wanted_voters(staying)) {
      changed = co_await me->log->set_voter(heir, true, deadline);
    } else {
      changed = co_await me->log->set_voter(node, false, deadline);
    }
    if (changed) continue;
    if (me->now() + kRetryVote >= deadline) co_return changed;
    co_await env::sleep_for(*me->ports.loop, kRetryVote);  // Reconcile is at it already.
  }
}

Task<Result<env::Reply>> ControlService::Impl::on_leave(Self me, NodeId from, env::Request request) {
  wire::LeaveRequest ask;
  if (!ask.ParseFromString(request.header)) co_return malformed();
  const NodeRecord* sender = me->state.node(from);
  if (sender == nullptr) co_return fail(Errc::refused, str("node ", from, " is not a member of this cluster"));
  if (!me->leads())
    co_return std::unexpected(Error{.code = Errc::not_leader, .message = "this node does not lead", .retryable = true});
  const NodeId node{ask.node()};
  if (node != from) co_return fail(Errc::permission_denied, "a node can only ask to leave itself");
  const Instant deadline = me->now() + kChangeMember;
  HOLO_CO_TRY(co_await take_vote(me, node, deadline));
  sender = me->state.node(from);
  if (sender != nullptr &&
      sender->state != NodeState::left) {  // Else it asks again, and only the log may have to let go of it.
    wire::CommandBody body;
    body.mutable_node_leave()->set_node(node.value);
    body.mutable_node_leave()->set_force(ask.force());
    HOLO_CO_TRY(co_await propose(me, std::move(body), deadline));
  }
  // It still takes part: its vote may be needed to take it out. Reconcile may be at it already.
  for (;;) {
    if (me->stopped || !me->leads()) co_return fail(Errc::unavailable, "leadership was lost");
    const auto members = me->log->members();
    if (std::none_of(members.begin(), members.end(), [node](const env::LogMember& m) { return m.node == node; })) break;
    Status removed = co_await me->log->remove(node, deadline);
    if (removed) continue;
    if (me->now() + kRetryRemoval >= deadline) co_return std::unexpected(removed.error());
    co_await env::sleep_for(*me->ports.loop, kRetryRemoval);
  }
  co_return env::Reply{};
}

}  // namespace holo::node
