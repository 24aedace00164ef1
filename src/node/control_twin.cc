// Two agents with one identity: a state directory that was copied. The one that comes later must not take part, not
// even in the log, where it would vote a second time with the same vote.
#include <algorithm>

#include "base/log.h"
#include "base/strings.h"
#include "node/control_calls.h"
#include "node/control_impl.h"
#include "node/gather.h"

namespace holo::node {
namespace {

constexpr Duration kDial = milliseconds(1500);
constexpr std::size_t kAskAtMost = 8;
constexpr Duration kReplacedWindow = seconds(60);
constexpr std::size_t kReplacedTooOften = 5;

}  // namespace

/// Before a restart: is somebody at the address that this node had, who proves to be this node? And does another member
/// have its name?
Task<Status> ControlService::Impl::look_for_twin(Self me) {
  HOLO_CO_ASSIGN(removed, me->removal_kept());
  if (removed) co_return Status{};  // It takes part in nothing.
  HOLO_CO_ASSIGN(stored, me->ports.store->get("cluster"));
  wire::JoinReply record;
  if (!stored || !record.ParseFromString(std::string(as_text(*stored)))) co_return Status{};  // resume() says so.
  std::vector<std::string> former;
  for (const wire::NodeInfo& n : record.nodes()) {
    if (NodeId{n.id()} == me->identity.id) {
      former.assign(n.addresses().begin(), n.addresses().end());
    } else if (n.name() == me->identity.name) {
      co_return fail(Errc::already_exists,
                     str("a node named ", n.name(), " is in the cluster already: node ", NodeId{n.id()},
                         n.addresses().empty() ? std::string() : " at " + n.addresses(0)),
                     "choose another --name");
    }
  }
  // It may have moved since: what do the others say?
  std::vector<Task<std::vector<std::string>>> questions;
  for (const wire::NodeInfo& n : record.nodes()) {
    if (NodeId{n.id()} == me->identity.id || n.addresses().empty() || questions.size() == kAskAtMost) continue;
    questions.push_back(ask_where(me, n.addresses(0), LogIndex{record.log_index()}));
  }
  const auto answers = co_await gather(*me->ports.loop, std::move(questions));
  for (const auto& addresses : answers) {
    for (const std::string& a : addresses) {
      if (std::ranges::find(former, a) == former.end()) former.push_back(a);
    }
  }
  if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
  std::vector<Task<bool>> calls;  // All at once: a node that has moved waits for the silence of one place only.
  for (const std::string& address : former) {
    const auto& here = me->identity.addresses;
    calls.push_back(is_own(me, std::ranges::find(here, address) == here.end() ? address : std::string()));
  }
  const std::vector<bool> own = co_await gather(*me->ports.loop, std::move(calls));
  const auto twin = std::ranges::find(own, true);
  if (twin == own.end()) co_return Status{};
  co_return fail(Errc::already_exists,
                 str("an agent with the identity of this node (", me->identity.id, ") runs already, at ",
                     former[static_cast<std::size_t>(twin - own.begin())]),
                 "its state directory was copied: remove this copy, and holo join with a fresh one");
}

/// Whoever proves to have this node's own identity is refused by the transport, on both sides.
Task<bool> ControlService::Impl::is_own(Self me, std::string address) {
  if (address.empty()) co_return false;
  const Instant deadline = me->now() + kDial;
  auto dialling = me->ports.transport->connect(std::move(address), deadline);
  const auto answer = co_await dialling;
  if (!answer) co_return answer.error().code == Errc::refused;
  if (answer->node == me->identity.id) co_return true;
  me->ports.transport->disconnect(answer->node);
  co_return false;
}

/// Where another member believes this node to be; nothing when it does not answer. It must not take this connection for
/// the way to the node, as long as nothing is answered here: it ends with the question.
Task<std::vector<std::string>> ControlService::Impl::ask_where(Self me, std::string address, LogIndex known) {
  std::vector<std::string> out;
  const Instant deadline = me->now() + kDial;
  auto dialling = me->ports.transport->connect(std::move(address), deadline);
  const auto other = co_await dialling;
  if (!other || other->node == me->identity.id || me->stopped) co_return out;
  wire::MemberQuery query;
  query.set_node(me->identity.id.value);
  for (const std::string& a : me->identity.addresses) query.add_here(a);
  env::Request request = request_of(wire::PeerMessage::member_query, query.SerializeAsString());
  const env::CallOptions options = control_call(deadline);
  auto asking = me->ports.transport->call(other->node, std::move(request), options);
  const auto answer = co_await asking;
  me->ports.transport->disconnect(other->node);
  wire::MemberQueryReply reply;
  if (!answer || !reply.ParseFromString(answer->header)) co_return out;
  me->take_standing(reply, known);
  out.assign(reply.addresses().begin(), reply.addresses().end());
  co_return out;
}

/// The others know this node under an incarnation that it never had: somebody else speaks in its name. Once can be a
/// store that was lost, or an old copy of it put back; again and again it is a fight for one identity. One of the two
/// has to end, and each ends itself. To be declared dead is no replacement: whoever was silent returns, however often.
void ControlService::Impl::count_replacement() {
  const Instant since = now() - kReplacedWindow;
  std::erase_if(replaced_at, [since](Instant at) { return at < since; });
  replaced_at.push_back(now());
  if (replaced_at.size() < kReplacedTooOften || !on_fatal) return;
  on_fatal(Error{.code = Errc::already_exists,
                 .message = str("another agent speaks in the name of this node (", identity.id, "): it was replaced ",
                                replaced_at.size(), " times in a minute"),
                 .hint = "a state directory was copied: keep one of the two, and holo join with a fresh one"});
}

}  // namespace holo::node
