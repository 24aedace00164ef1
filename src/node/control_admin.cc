#include "node/control_admin.h"

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "base/strings.h"
#include "core/control/backup.h"
#include "node/control_calls.h"
#include "node/gather.h"
#include "node/json.h"
#include "node/local_calls.h"
#include "wire/message_types.h"

namespace holo::node {
namespace {

constexpr Duration kAsk = milliseconds(1000);  // Who has not answered by then is shown without figures.
constexpr Duration kRead = seconds(10);
constexpr std::size_t kPart = 1 << 20;
constexpr std::size_t kMaxCopies = 2;  // At one time, as each may be large; above: overloaded.

std::string_view role_name(env::LogRole role) {
  switch (role) {
    case env::LogRole::learner: return "learner";
    case env::LogRole::follower: return "follower";
    case env::LogRole::candidate: return "candidate";
    case env::LogRole::leader: return "leader";
  }
  return "unknown";
}

struct Progress {
  NodeId node;
  std::optional<wire::ControlProgress> said;
};

}  // namespace

struct ControlAdmin::Impl {
  using Self = std::shared_ptr<Impl>;
  using Session = std::shared_ptr<LocalSession>;

  Impl(env::Loop& l, env::Transport& t, ControlService& c, std::string v)
      : loop(l), transport(t), control(c), version(std::move(v)) {}

  env::Loop& loop;
  env::Transport& transport;
  ControlService& control;
  std::string version;
  bool stopped = false;

  struct Copy {
    SessionId session;
    std::shared_ptr<const Bytes> state;
  };
  std::map<std::uint64_t, Copy> copies;
  std::uint64_t next_handle = 1;

  [[nodiscard]] wire::ControlProgress progress() const {
    const env::LogStatus s = control.log_status();
    wire::ControlProgress out;
    out.set_leader(s.leader.value);
    out.set_term(s.term);
    out.set_applied(s.applied.value);
    out.set_committed(s.committed.value);
    out.set_role(static_cast<std::uint32_t>(s.role));
    return out;
  }

  static Task<Result<env::Reply>> on_progress(std::weak_ptr<Impl> weak) {
    const Self me = weak.lock();
    if (!me || me->stopped) co_return fail(Errc::unavailable, "the agent is stopping");
    env::Reply out;
    out.header = me->progress().SerializeAsString();
    co_return out;
  }

  static Task<Progress> ask(Self me, NodeId node) {
    Progress out{.node = node, .said = {}};
    if (node == me->control.self()) {
      out.said = me->progress();
      co_return out;
    }
    env::Request request = request_of(wire::PeerMessage::control_progress, {});
    const env::CallOptions options = control_call(me->loop.now() + kAsk);
    auto answer = co_await me->transport.call(node, std::move(request), options);
    wire::ControlProgress said;
    if (answer && said.ParseFromString(answer->header)) out.said = said;
    co_return out;
  }

  static LocalAnswer status(Self me, Session, wire::Empty) {
    std::vector<Task<Progress>> questions;
    for (const auto& [id, n] : me->control.state().nodes()) {
      if (n.state != control::NodeState::left) questions.push_back(ask(me, id));
    }
    const auto answers = co_await gather(me->loop, std::move(questions));
    if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    wire::AdminJson out;
    out.set_json(me->status_json(answers));
    co_return local_reply(out);
  }

  /// This side can change things: a majority of the voters follows one leader in one term.
  [[nodiscard]] bool primary(const std::vector<Progress>& answers, const std::map<NodeId, bool>& voters) const {
    const env::LogStatus mine = control.log_status();
    std::size_t following = 0;
    for (const Progress& p : answers) {
      const auto member = voters.find(p.node);
      if (member == voters.end() || !member->second || !p.said) continue;
      following += mine.leader && p.said->leader() == mine.leader.value && p.said->term() == mine.term ? 1 : 0;
    }
    const auto all =
        static_cast<std::size_t>(std::count_if(voters.begin(), voters.end(), [](const auto& v) { return v.second; }));
    return following * 2 > all;
  }

  [[nodiscard]] std::string status_json(const std::vector<Progress>& answers) const {
    const control::State& state = control.state();
    const env::LogStatus mine = control.log_status();
    std::map<NodeId, bool> voters;
    for (const env::LogMember& m : control.log_members()) voters[m.node] = m.voter;
    std::uint64_t newest = mine.committed.value;
    for (const Progress& p : answers) newest = std::max(newest, p.said ? p.said->committed() : 0);
    const auto* leader = state.node(mine.leader);
    JsonWriter w;
    w.object([&] {
      w.field("cluster", to_hex(state.cluster().value));
      w.field("name", state.cluster_name());
      w.field("epoch", state.epoch().value);
      w.field("node", to_hex(control.self().value));
      w.field("role", role_name(mine.role));
      w.field("leader", mine.leader ? to_hex(mine.leader.value) : std::string());
      w.field("leader_name", leader != nullptr ? leader->name : std::string());
      w.field("primary", primary(answers, voters));
      w.field("term", mine.term);
      w.field("committed", newest);
      w.field("applied", mine.applied.value);
      w.key("log");
      w.object([&] {
        w.field("last", mine.last.value);
        w.field("snapshot", mine.snapshot.value);
        w.field("entries_since_snapshot", mine.last.value - std::min(mine.last.value, mine.snapshot.value));
      });
      w.key("keys");
      w.object([&] {
        w.field("keys", state.keys().keys());
        w.field("bytes", state.keys().bytes());
        w.field("revision", state.keys().revision());
      });
      w.key("members");
      w.array([&] {
        for (const Progress& p : answers) {
          w.object([&] { write_member(w, p, voters, newest); });
        }
      });
    });
    return w.text();
  }

  void write_member(JsonWriter& w, const Progress& p, const std::map<NodeId, bool>& voters,
                    std::uint64_t newest) const {
    const auto* record = control.state().node(p.node);
    const auto member = voters.find(p.node);
    w.field("node", to_hex(p.node.value));
    w.field("name", record != nullptr ? record->name : std::string());
    w.field("state", record != nullptr ? std::string(control::node_state_name(record->state)) : std::string());
    w.field("in_log", member != voters.end());
    w.field("voter", member != voters.end() && member->second);
    w.field("witness", record != nullptr && record->witness);
    w.field("answers", p.said.has_value());
    const bool known = p.said && p.said->role() <= static_cast<std::uint32_t>(env::LogRole::leader);
    w.field("role", known ? role_name(static_cast<env::LogRole>(p.said->role())) : std::string_view());
    w.field("term", p.said ? p.said->term() : 0);
    w.field("applied", p.said ? p.said->applied() : 0);
    w.field("lag", p.said ? newest - std::min(newest, p.said->applied()) : newest);
  }

  static LocalAnswer snapshot(Self me, Session session, wire::ControlSnapshotRead ask) {
    if (ask.handle() != 0) co_return me->part(*session, ask);
    if (!ask.stale()) {
      const Instant deadline = me->loop.now() + kRead;
      HOLO_CO_TRY(co_await me->control.barrier(deadline));
      if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    }
    if (!me->control.state().cluster()) co_return fail(Errc::unavailable, "this node has nothing of its cluster yet");
    if (me->copies.size() >= kMaxCopies) {
      co_return std::unexpected(Error{.code = Errc::overloaded,
                                      .message = str(me->copies.size(), " snapshots are being read already"),
                                      .hint = "try again when they are done",
                                      .retryable = true});
    }
    auto state = std::make_shared<const Bytes>(me->control.state().snapshot());
    wire::ControlSnapshotPart out;
    *out.mutable_header() = control::describe_backup(me->control.state(), *state);
    out.mutable_header()->set_taken_ms(me->loop.wall_now().ms);
    out.mutable_header()->set_version(me->version);
    out.set_handle(me->next_handle++);
    me->copies.emplace(out.handle(), Copy{.session = session->id(), .state = std::move(state)});
    co_return local_reply(out);
  }

  /// The one that reaches the end gives the copy back.
  Result<LocalReply> part(const LocalSession& session, const wire::ControlSnapshotRead& ask) {
    const auto it = copies.find(ask.handle());
    if (it == copies.end() || it->second.session != session.id()) {
      return fail(Errc::not_found, "there is no such snapshot any more");
    }
    const Bytes& state = *it->second.state;
    const std::size_t at = std::min<std::uint64_t>(ask.offset(), state.size());
    const std::size_t size = std::min(kPart, state.size() - at);
    LocalReply reply;
    if (size > 0) reply.payload.push_back(Buffer::copy(ByteSpan(state).subspan(at, size)));
    if (at + size == state.size()) copies.erase(it);
    return reply;
  }
};

ControlAdmin::ControlAdmin(env::Loop& loop, env::Transport& transport, ControlService& control, std::string version,
                           LocalApi& api)
    : impl_(std::make_shared<Impl>(loop, transport, control, std::move(version))) {
  serve_local(api, wire::CONTROL_STATUS, impl_, &Impl::status);
  serve_local(api, wire::CONTROL_SNAPSHOT, impl_, &Impl::snapshot);
  api.on_closed([me = impl_](LocalSession& session) {
    std::erase_if(me->copies, [&](const auto& c) { return c.second.session == session.id(); });
  });
  transport.serve(static_cast<std::uint16_t>(wire::PeerMessage::control_progress),
                  [weak = std::weak_ptr<Impl>(impl_)](NodeId, env::Request) { return Impl::on_progress(weak); });
}

ControlAdmin::~ControlAdmin() { impl_->stopped = true; }

}  // namespace holo::node
