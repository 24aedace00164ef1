// Who is served: members, and whoever a type of request is open to besides (wire/message_types.h).
//
// This node's own copy of the membership may be old: it was off while others joined, or it is behind by an entry or
// two. So a node that it does not know is no stranger before other members, whom it does know, were asked.
#include <algorithm>

#include "base/strings.h"
#include "node/control_impl.h"

namespace holo::node {
namespace {

using control::NodeState;
using wire::Asker;
using wire::PeerMessage;

constexpr Duration kAskOne = milliseconds(300);
constexpr Duration kAskAll = milliseconds(1000);
constexpr std::size_t kAskAtMost = 5;
constexpr std::size_t kMaxInquiries = 16;                // About different nodes at once; above: refused, to try again.
constexpr std::size_t kMaxWaiting = 64;                  // Requests of one of them; above: the same.
constexpr Duration kForgetStranger = milliseconds(300);  // Until it is asked about again.
constexpr std::size_t kMaxStrangers = 1024;              // Remembered; above: all are forgotten.
constexpr Duration kBegunLately = seconds(30);  // Longer than any agent takes from there until all know where it is.
constexpr std::size_t kBegunKept = 256, kBegunTold = 8;
constexpr int kMaxHere = 16;
constexpr std::size_t kMaxAddress = 300;

Error not_a_member(NodeId node) {
  return Error{.code = Errc::permission_denied,
               .message = str("node ", node, " is not a member of this cluster"),
               .hint = "holo join"};
}
Error not_known_yet(NodeId node) {
  return Error{.code = Errc::unavailable,
               .message = str("whether node ", node, " is a member of this cluster is not known here yet"),
               .hint = {},
               .retryable = true};
}

}  // namespace

void ControlService::Impl::guard_peers() {
  struct Gate final : env::MemberGate {
    explicit Gate(std::weak_ptr<Impl> i) : impl(std::move(i)) {}
    [[nodiscard]] bool is_member(NodeId node) const override {
      const Self me = impl.lock();
      return me && me->counts_as_member(node);
    }
    [[nodiscard]] bool admits(NodeId from, std::uint16_t type) const override {
      const Self me = impl.lock();
      return me && me->admits(from, static_cast<PeerMessage>(type));
    }
    Task<Status> inquire(NodeId from, std::uint16_t type) override {
      return Impl::inquire(impl.lock(), from, static_cast<PeerMessage>(type));
    }
    std::weak_ptr<Impl> impl;
  };
  ports.transport->set_gate(std::make_shared<Gate>(weak_from_this()));
}

/// What others said of the members, when this node joined or before it was stopped.
void ControlService::Impl::introduce(const wire::JoinReply& record) {
  introduced.clear();
  for (const wire::NodeInfo& n : record.nodes()) introduced.insert(NodeId{n.id()});
  introduced_until = LogIndex{record.log_index()};
}

bool ControlService::Impl::is_member(NodeId node) const {
  if (!state.cluster() || state.applied() < introduced_until) return introduced.contains(node);
  const control::NodeRecord* n = state.node(node);
  return n != nullptr && n->state != NodeState::left;
}

bool ControlService::Impl::counts_as_member(NodeId node) const {
  if (is_member(node)) return true;
  const auto v = vouched.find(node);
  return v != vouched.end() && state.applied() < v->second;
}

bool ControlService::Impl::admits(NodeId from, PeerMessage type) const {
  const Asker may = wire::may_ask(type);
  if (may == Asker::anyone || counts_as_member(from)) return true;
  if (may != Asker::log_member || !log) return false;
  return std::ranges::any_of(log->members(), [from](const env::LogMember& m) { return m.node == from; });
}

bool ControlService::Impl::can_find_out(NodeId about, PeerMessage type) const {
  if (stopped || !log || type == PeerMessage::member_query) return false;  // Nobody asks in a circle.
  if (state.revoked().contains(about)) return false;
  if (leads()) return false;  // No one knows better.
  const auto last = strangers.find(about);
  return last == strangers.end() || now() >= last->second;
}

Task<Status> ControlService::Impl::inquire(Self me, NodeId from, PeerMessage type) {
  if (!me) co_return fail(Errc::unavailable, "the agent is stopping");
  if (me->can_find_out(from, type)) {
    const auto [inquiry, fresh] = me->inquiries.try_emplace(from, 0);
    if (fresh && me->inquiries.size() > kMaxInquiries) {
      me->inquiries.erase(inquiry);
      co_return std::unexpected(not_known_yet(from));
    }
    if (++inquiry->second > kMaxWaiting) co_return std::unexpected(not_known_yet(from));
    if (fresh) me->ports.loop->spawn(ask_around(me, from));
    const Impl* i = me.get();
    std::function<std::optional<Status>()> done = [i, from, type]() -> std::optional<Status> {
      if (!i->inquiries.contains(from) || i->admits(from, type)) return Status{};
      return std::nullopt;
    };
    const Instant deadline = me->now() + kAskAll + kAskOne;
    auto waiting = wait(me, std::move(done), deadline, std::string("what others know of a node"));
    HOLO_CO_TRY(co_await waiting);
  }
  if (me->admits(from, type)) co_return Status{};
  if (!me->log) co_return std::unexpected(not_known_yet(from));  // It is only about to begin.
  co_return std::unexpected(not_a_member(from));
}

/// The leader, who knows best, then some of the others, other ones each time.
std::vector<NodeId> ControlService::Impl::whom_to_ask(NodeId about) {
  std::vector<NodeId> others;
  const auto add = [&](NodeId node) {
    if (node != identity.id && node != about && is_member(node)) others.push_back(node);
  };
  for (const NodeId node : introduced) add(node);
  for (const auto& [node, record] : state.nodes()) {
    if (!introduced.contains(node)) add(node);
  }
  if (!others.empty()) {
    const auto first = static_cast<std::ptrdiff_t>(next_to_ask++ % others.size());
    std::rotate(others.begin(), others.begin() + first, others.end());
  }
  if (const auto leader = std::ranges::find(others, log->status().leader); leader != others.end()) {
    std::rotate(others.begin(), leader, leader + 1);
  }
  if (others.size() > kAskAtMost) others.resize(kAskAtMost);
  return others;
}

Task<void> ControlService::Impl::ask_around(Self me, NodeId about) {
  const Instant deadline = me->now() + kAskAll;
  const std::vector<NodeId> whom = me->whom_to_ask(about);
  const NodeId leader = me->log->status().leader;
  wire::MemberQuery query;
  query.set_node(about.value);
  bool known = false;
  for (const NodeId node : whom) {
    if (me->stopped || known || me->now() >= deadline) break;
    env::Request request;
    request.type = static_cast<std::uint16_t>(PeerMessage::member_query);
    request.header = query.SerializeAsString();
    env::CallOptions options;
    options.deadline = std::min(deadline, me->now() + kAskOne);
    auto answer = co_await me->ports.transport->call(node, std::move(request), options);
    wire::MemberQueryReply reply;
    if (!answer || !reply.ParseFromString(answer->header)) continue;
    if (reply.member()) {
      // From that entry on this node's own copy says whether it still is one.
      std::erase_if(me->vouched, [&](const auto& v) { return v.second <= me->state.applied(); });
      me->vouched[about] = LogIndex{reply.log_index()};
      known = true;
    } else if (node == leader) {
      break;
    }
  }
  if (!known) {
    if (me->strangers.size() >= kMaxStrangers) me->strangers.clear();
    me->strangers[about] = me->now() + kForgetStranger;
  }
  me->inquiries.erase(about);
  me->wake();
}

/// Where others than the one who asks have begun as that node of late. Two copies of a state directory that start at
/// once find each other so: neither is where the node was.
std::vector<std::string> ControlService::Impl::begun_elsewhere(NodeId node, const wire::MemberQuery& query) {
  const Instant since = now() - kBegunLately;
  std::erase_if(begun, [since](const Begun& b) { return b.when < since; });
  std::vector<std::string> out;
  std::vector<std::string> mine(query.here().begin(), query.here().end());
  for (const Begun& b : begun) {
    if (b.node == node && b.addresses != mine) out.insert(out.end(), b.addresses.begin(), b.addresses.end());
  }
  if (out.size() > kBegunTold) out.erase(out.begin(), out.end() - kBegunTold);
  const bool sound = query.here_size() <= kMaxHere &&
                     std::ranges::all_of(mine, [](const std::string& a) { return a.size() <= kMaxAddress; });
  if (sound) begun.push_back({.node = node, .addresses = std::move(mine), .when = now()});
  while (begun.size() > kBegunKept) begun.pop_front();
  return out;
}

Task<Result<env::Reply>> ControlService::Impl::on_member_query(Self me, NodeId from, env::Request request) {
  wire::MemberQuery query;
  if (!query.ParseFromString(request.header)) co_return fail(Errc::malformed, "a request that does not decode");
  wire::MemberQueryReply reply;
  if (!me->counts_as_member(from)) {
    // Only one that was a member is told anything, and only of itself: that it is none any more, as of an entry.
    const control::NodeRecord* former = me->state.node(from);
    if (from.value != query.node() || former == nullptr || former->state != NodeState::left)
      co_return std::unexpected(not_a_member(from));
    reply.set_log_index(me->state.applied().value);
    env::Reply none;
    none.header = reply.SerializeAsString();
    co_return none;
  }
  // One that is joining knows the node that it asked, and nothing of the cluster.
  reply.set_member(me->introduced_until != kJoining && me->is_member(NodeId{query.node()}));
  reply.set_log_index(std::max(me->state.applied(), me->introduced_until).value);
  if (const control::NodeRecord* n = me->state.node(NodeId{query.node()}); n != nullptr && n->alive()) {
    for (const std::string& a : n->addresses) reply.add_addresses(a);
  }
  if (from.value == query.node() && query.here_size() > 0 && reply.member()) {
    for (std::string& a : me->begun_elsewhere(from, query)) reply.add_addresses(std::move(a));
  }
  env::Reply out;
  out.header = reply.SerializeAsString();
  co_return out;
}

}  // namespace holo::node
