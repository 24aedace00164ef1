#include "driver/raft/raft_log.h"

#include <algorithm>

#include "base/limits.h"
#include "base/log.h"
#include "base/seeded_bugs.h"
#include "base/strings.h"
#include "driver/raft/raft_core.h"
#include "env/held_command_log.h"
#include "wire/errors.h"
#include "wire/message_types.h"
#include "wire/raft.pb.h"

namespace holo::driver {
namespace {

constexpr Duration kLookForLeader = milliseconds(20);
constexpr Duration kServeLimit = seconds(10);      // For what a peer asked for; its own deadline is shorter.
constexpr Duration kFirstEntry = milliseconds(5);  // Of a term: how often it is looked for.
constexpr Duration kReopen = seconds(1);
constexpr Duration kReturn = seconds(60);   // For one try to get a lost log back, with all its entries.
constexpr std::size_t kMaxForwarded = 512;  // Commands in one request to the leader; and their bytes, unless it is one.
constexpr std::size_t kMaxForwardedBytes = 1 << 20;
constexpr Duration kReadAttempt = seconds(1);
constexpr Duration kConfirm = milliseconds(500);  // One round of asking the voters; then another begins.

bool is_voter(const env::LogMember& m) { return m.voter; }

Error leader_changed() {
  return {.code = Errc::unavailable, .message = "another node leads now, the outcome is unknown", .retryable = true};
}

}  // namespace

class RaftLog final : public env::CommandLog, public std::enable_shared_from_this<RaftLog> {
 public:
  RaftLog(RaftLogPorts ports, env::StateMachine& machine, RaftLogOptions options)
      : ports_(std::move(ports)), machine_(machine), options_(options) {}

  Status start() {
    core_ = std::make_shared<RaftCore>(ports_, machine_, options_);
    options_.bootstrap = false;  // Only ever once.
    const std::weak_ptr<RaftLog> weak = weak_from_this();
    core_->on_change = [weak] {
      if (const auto me = weak.lock()) me->changed();
    };
    if (Status s = core_->start(); !s) {
      core_->close([keep = core_] {});
      core_.reset();
      return s;
    }
    if (core_->lost() && !std::exchange(returning_, true)) ports_.loop->spawn(return_to_log(shared_from_this()));
    return {};
  }

  void serve() {
    using wire::PeerMessage;
    const std::weak_ptr<RaftLog> weak = weak_from_this();
    ports_.transport->serve(static_cast<std::uint16_t>(PeerMessage::raft),
                            [weak](NodeId from, env::Request r) { return on_raft(weak, from, std::move(r)); });
    ports_.transport->serve(static_cast<std::uint16_t>(PeerMessage::propose),
                            [weak](NodeId from, env::Request r) { return on_propose(weak, from, std::move(r)); });
    ports_.transport->serve(static_cast<std::uint16_t>(PeerMessage::propose_many),
                            [weak](NodeId from, env::Request r) { return on_propose_many(weak, from, std::move(r)); });
    ports_.transport->serve(static_cast<std::uint16_t>(PeerMessage::read_index),
                            [weak](NodeId from, env::Request r) { return on_read_index(weak, from, std::move(r)); });
    ports_.transport->serve(static_cast<std::uint16_t>(PeerMessage::confirm_term),
                            [weak](NodeId from, env::Request r) { return on_confirm_term(weak, from, std::move(r)); });
    ports_.transport->serve(static_cast<std::uint16_t>(PeerMessage::log_lost),
                            [weak](NodeId from, env::Request r) { return on_log_lost(weak, from, std::move(r)); });
  }

  Task<Result<LogIndex>> append(Buffer command, Instant deadline) override {
    return append(shared_from_this(), std::move(command), deadline);
  }
  Task<Status> barrier(Instant deadline) override { return barrier(shared_from_this(), deadline); }
  env::LogStatus status() const override { return core_ ? core_->status() : env::LogStatus{}; }
  WallTime now() const override { return core_ ? core_->now() : WallTime{}; }
  std::vector<env::LogMember> members() const override {
    return core_ ? core_->members() : std::vector<env::LogMember>{};
  }
  Task<Status> add_learner(NodeId node, Instant deadline) override {
    return add_learner(shared_from_this(), node, deadline);
  }
  Task<Status> set_voter(NodeId node, bool voter, Instant deadline) override {
    return assign(shared_from_this(), node, voter ? RAFT_VOTER : RAFT_STANDBY, deadline);
  }
  Task<Status> remove(NodeId node, Instant deadline) override { return remove(shared_from_this(), node, deadline); }
  Task<Status> hand_over(NodeId to, Instant deadline) override { return hand_over(shared_from_this(), to, deadline); }
  void on_change(std::function<void()> f) override { observers_.push_back(std::move(f)); }
  Task<void> close() override { return close(shared_from_this()); }

  /// Without waiting.
  void abandon() {
    observers_.clear();
    stopped_ = true;
    if (core_ && !core_->closing()) core_->close([keep = core_] {});
    core_.reset();
  }

 private:
  using Self = std::shared_ptr<RaftLog>;

  // Coroutines are static and keep the log: their caller may go before they end.
  static Task<Result<LogIndex>> append(Self me, Buffer command, Instant deadline);
  static Task<Result<LogIndex>> append_here(Self me, Buffer command, Instant deadline);
  static Task<Result<LogIndex>> forward(Self me, NodeId leader, Buffer command, Instant deadline);
  void forward_all(NodeId leader);
  struct Outgoing;
  static Task<void> forward_group(Self me, NodeId leader, std::vector<Outgoing> group);
  static Task<Status> barrier(Self me, Instant deadline);
  static Task<Result<LogIndex>> read_here(Self me, Instant deadline);
  static Task<Result<LogIndex>> read_there(Self me, NodeId leader, Instant deadline);
  static Task<void> confirm_rounds(Self me);
  static Task<Result<LogIndex>> confirm(Self me);
  struct Tally;
  static Task<void> ask_term(Self me, NodeId voter, std::uint64_t term, std::shared_ptr<Tally> tally);
  static Task<Status> applied(Self me, LogIndex index, Instant deadline);
  static Task<Status> wait_for_leader(Self me, Instant deadline);
  static Task<Status> begun(Self me, Instant deadline);
  static Task<Status> add_learner(Self me, NodeId node, Instant deadline);
  static Task<Status> assign(Self me, NodeId node, int role, Instant deadline);
  static Task<Status> remove(Self me, NodeId node, Instant deadline);
  static Task<Status> hand_over(Self me, NodeId to, Instant deadline);
  static Task<Status> await(Self me, StatusShot shot, Instant deadline, std::string what);
  static Task<void> close(Self me);
  static Task<void> reopen(Self me);
  static Task<Result<env::Reply>> on_raft(std::weak_ptr<RaftLog> weak, NodeId from, env::Request r);
  static Task<Result<env::Reply>> on_propose(std::weak_ptr<RaftLog> weak, NodeId from, env::Request r);
  static Task<Result<env::Reply>> on_propose_many(std::weak_ptr<RaftLog> weak, NodeId from, env::Request r);
  struct Gathered;
  static Task<void> append_one(Self me, Buffer command, Instant deadline, std::shared_ptr<Gathered> all,
                               std::size_t at);
  static Task<Result<env::Reply>> on_read_index(std::weak_ptr<RaftLog> weak, NodeId from, env::Request r);
  static Task<void> return_to_log(Self me);
  static Task<Result<LogIndex>> take_in_anew(Self me, NodeId node, Instant deadline);
  static Task<Result<env::Reply>> on_log_lost(std::weak_ptr<RaftLog> weak, NodeId from, env::Request r);
  static Task<Result<env::Reply>> on_confirm_term(std::weak_ptr<RaftLog> weak, NodeId from, env::Request r);

  void changed() {
    if (!stopped_ && core_ && core_->broken() && !std::exchange(reopening_, true)) {
      ports_.loop->spawn(reopen(shared_from_this()));
    }
    // What was sent to a leader that is none any more is sent again: its answer may never come.
    const NodeId leader = core_ ? core_->leader() : NodeId{};
    for (auto it = forwarded_.begin(); it != forwarded_.end();) {
      if (!leader || it->first == leader) {
        ++it;
        continue;
      }
      const auto answer = it->second;
      it = forwarded_.erase(it);
      answer->set(std::unexpected(leader_changed()));
    }
    for (const auto& f : observers_) f();
  }

  RaftLogPorts ports_;
  env::StateMachine& machine_;
  RaftLogOptions options_;
  std::shared_ptr<RaftCore> core_;  ///< Null while reopening, and after close.
  std::vector<std::function<void()>> observers_;
  using Answer = std::shared_ptr<OneShot<Result<env::Reply>>>;
  static Task<void> ask(Self me, NodeId leader, env::Request request, Instant deadline, Answer answer);
  static Task<Result<env::Reply>> ask_leader(Self me, NodeId leader, env::Request request, Instant deadline);
  std::multimap<NodeId, Answer> forwarded_;  ///< What waits for that leader's answer.

  struct Outgoing {
    Buffer command;
    Instant deadline;
    IndexShot shot;
  };
  std::map<NodeId, std::vector<Outgoing>> outbox_;  ///< By leader; goes when this turn of the loop ends.
  std::vector<IndexShot> readers_;                  ///< They wait for the next round.
  bool confirming_ = false;
  std::size_t pending_ = 0;
  bool stopped_ = false;
  bool reopening_ = false;
  bool returning_ = false;
};

Task<Status> RaftLog::await(Self me, StatusShot shot, Instant deadline, std::string what) {
  auto r = co_await await_until(*me->ports_.loop, std::move(shot), deadline, std::move(what));
  if (!r) co_return std::unexpected(r.error());
  co_return Status{};
}

Task<Status> RaftLog::applied(Self me, LogIndex index, Instant deadline) {
  if (!me->core_) co_return std::unexpected(log_closing());
  auto shot = me->core_->when_applied(index);
  co_return co_await await(me, std::move(shot), deadline, str("entry ", index, " of the log"));
}

Task<Status> RaftLog::wait_for_leader(Self me, Instant deadline) {
  for (;;) {
    if (me->stopped_ || me->ports_.loop->stopping()) co_return std::unexpected(log_closing());
    if (me->core_ && me->core_->leader()) co_return Status{};
    const Instant now = me->ports_.loop->now();
    if (now >= deadline) {
      Error e{.code = Errc::no_quorum, .message = "no leader: too few of the voters can be reached"};
      e.hint = "start the agents of the other voters";
      e.retryable = true;
      co_return std::unexpected(e);
    }
    const Instant until = std::min(deadline, now + kLookForLeader);
    co_await sleep_until(*me->ports_.loop, until);
  }
}

Task<Result<LogIndex>> RaftLog::append(Self me, Buffer command, Instant deadline) {
  if (command.size() > limits::kMaxCommandBytes) {
    co_return fail(Errc::over_limit, str("a command of ", command.size(), " bytes"));
  }
  if (me->pending_ >= limits::kMaxPendingCommands) {
    Error e{.code = Errc::overloaded, .message = str(me->pending_, " commands wait for the log already")};
    e.retryable = true;
    co_return std::unexpected(e);
  }
  struct Count {
    Self log;
    ~Count() { --log->pending_; }
  } count{me};
  ++me->pending_;
  for (;;) {
    auto known = co_await wait_for_leader(me, deadline);
    if (!known) {
      Error e = std::move(known).error();
      if (e.code == Errc::no_quorum) e.code = Errc::not_leader;  // Nobody has it.
      co_return std::unexpected(std::move(e));
    }
    const NodeId leader = me->core_->leader();
    const bool here = me->core_->leading();
    Result<LogIndex> r = fail(Errc::not_leader, "");
    if (here) {
      r = co_await append_here(me, command, deadline);
    } else {
      r = co_await forward(me, leader, command, deadline);
    }
    if (r || r.error().code != Errc::not_leader) co_return r;
    if (me->ports_.loop->now() >= deadline) co_return r;
    const Instant until = me->ports_.loop->now() + kLookForLeader;
    co_await sleep_until(*me->ports_.loop, until);
  }
}

Task<Result<LogIndex>> RaftLog::append_here(Self me, Buffer command, Instant deadline) {
  if (!me->core_ || !me->core_->leading()) co_return std::unexpected(not_leader());
  const std::shared_ptr<RaftCore> core = me->core_;
  if (core->disk_error()) co_return std::unexpected(*core->disk_error());
  std::uint64_t token = 0;
  auto shot = core->propose(std::move(command), token);
  auto r = co_await await_until(*me->ports_.loop, std::move(shot), deadline, std::string("a majority of the voters"));
  core->forget(token);
  if (!r && r.error().code == Errc::deadline_exceeded) {
    if (core->disk_error()) co_return std::unexpected(*core->disk_error());
    r.error().code = Errc::no_quorum;
    r.error().retryable = true;
  }
  co_return r;
}

Task<void> RaftLog::ask(Self me, NodeId leader, env::Request request, Instant deadline, Answer answer) {
  env::CallOptions options;
  options.deadline = deadline;
  auto reply = co_await me->ports_.transport->call(leader, std::move(request), options);
  answer->set(std::move(reply));
}

/// Ends early when another node leads.
Task<Result<env::Reply>> RaftLog::ask_leader(Self me, NodeId leader, env::Request request, Instant deadline) {
  const auto answer = std::make_shared<OneShot<Result<env::Reply>>>();
  me->forwarded_.emplace(leader, answer);
  me->ports_.loop->spawn(ask(me, leader, std::move(request), deadline, answer));
  auto reply = co_await *answer;
  for (auto [it, end] = me->forwarded_.equal_range(leader); it != end; ++it) {
    if (it->second != answer) continue;
    me->forwarded_.erase(it);
    break;
  }
  co_return reply;
}

/// What is to go to the leader in one turn of the loop goes in one request.
Task<Result<LogIndex>> RaftLog::forward(Self me, NodeId leader, Buffer command, Instant deadline) {
  const auto shot = std::make_shared<OneShot<Result<LogIndex>>>();
  std::vector<Outgoing>& out = me->outbox_[leader];
  out.push_back({.command = std::move(command), .deadline = deadline, .shot = shot});
  if (out.size() == 1) {
    me->ports_.loop->post([me, leader] { me->forward_all(leader); });
  }
  auto index = co_await await_until(*me->ports_.loop, shot, deadline, std::string("the leader"));
  if (!index) co_return std::unexpected(index.error());
  HOLO_CO_TRY(co_await applied(me, *index, deadline));
  co_return *index;
}

void RaftLog::forward_all(NodeId leader) {
  std::vector<Outgoing> all = std::move(outbox_[leader]);
  outbox_.erase(leader);
  for (std::size_t first = 0; first < all.size();) {
    std::size_t end = first;
    std::size_t bytes = 0;
    std::vector<Outgoing> group;
    do {  // Large ones go alone, small ones together.
      bytes += all[end].command.size();
      group.push_back(std::move(all[end++]));
    } while (end < all.size() && group.size() < kMaxForwarded && bytes + all[end].command.size() <= kMaxForwardedBytes);
    first = end;
    ports_.loop->spawn(forward_group(shared_from_this(), leader, std::move(group)));
  }
}

Task<void> RaftLog::forward_group(Self me, NodeId leader, std::vector<Outgoing> group) {
  wire::ProposeManyRequest header;
  env::Request request;
  request.type = static_cast<std::uint16_t>(wire::PeerMessage::propose_many);
  Instant deadline = group.front().deadline;
  for (const Outgoing& o : group) {
    header.add_sizes(static_cast<std::uint32_t>(o.command.size()));
    request.payload.push_back(o.command);
    deadline = std::max(deadline, o.deadline);
  }
  request.header = header.SerializeAsString();
  auto reply = co_await ask_leader(me, leader, std::move(request), deadline);
  wire::ProposeManyReply decoded;
  Status whole;
  if (!reply) {
    whole = std::unexpected(reply.error());
  } else if (!decoded.ParseFromString(reply->header) ||
             static_cast<std::size_t>(decoded.outcomes_size()) != group.size()) {
    whole = fail(Errc::malformed, "the leader's answer does not decode");
  }
  for (std::size_t i = 0; i < group.size(); ++i) {
    if (!whole) {
      group[i].shot->set(std::unexpected(whole.error()));
      continue;
    }
    const wire::ProposeOutcome& o = decoded.outcomes(static_cast<int>(i));
    if (o.index() != 0) {
      group[i].shot->set(LogIndex{o.index()});
    } else {
      group[i].shot->set(std::unexpected(wire::error_of(o.error())));
    }
  }
}

// ---- Reading
//
// Ongaro's dissertation, 6.4: a leader that a majority of the voters still has in its term, after the read began, knew
// of everything that was committed before. No entry is written, and all who ask during one round share the next.

struct RaftLog::Tally {
  std::size_t needed = 0;  ///< Further voters that have to agree.
  std::size_t open = 0;    ///< Voters that have not answered.
  StatusShot shot = std::make_shared<OneShot<Result<bool>>>();
};

Task<void> RaftLog::ask_term(Self me, NodeId voter, std::uint64_t term, std::shared_ptr<Tally> tally) {
  wire::ConfirmTerm ask;
  ask.set_term(term);
  env::Request request;
  request.type = static_cast<std::uint16_t>(wire::PeerMessage::confirm_term);
  request.header = ask.SerializeAsString();
  env::CallOptions options;
  options.klass = env::StreamClass::control;
  options.deadline = me->ports_.loop->now() + kConfirm;
  auto answer = co_await me->ports_.transport->call(voter, std::move(request), options);
  wire::ConfirmTermReply reply;
  const bool agrees = answer && reply.ParseFromString(answer->header) && reply.term() == term;
  --tally->open;
  if (agrees && tally->needed > 0) --tally->needed;
  if (tally->needed == 0) tally->shot->set(true);
  if (tally->needed > tally->open) {
    tally->shot->set(fail(Errc::no_quorum, "too few of the voters confirm that this node leads"));
  }
}

Task<Result<LogIndex>> RaftLog::confirm(Self me) {
  const std::shared_ptr<RaftCore> core = me->core_;
  if (!core) co_return std::unexpected(log_closing());
  const auto point = core->read_point();
  if (!point) co_return std::unexpected(point.error());
  const std::vector<env::LogMember> members = core->members();
  const auto voters = static_cast<std::size_t>(std::ranges::count_if(members, is_voter));
  const auto tally = std::make_shared<Tally>();
  tally->needed = voters / 2 + 1;
  std::vector<NodeId> others;
  for (const env::LogMember& m : members) {
    if (!m.voter) continue;
    if (m.node == me->options_.self) {
      --tally->needed;
    } else {
      others.push_back(m.node);
    }
  }
  if (tally->needed > 0 && !HOLO_SEEDED_BUG(unconfirmed_read)) {
    tally->open = others.size();
    for (const NodeId node : others) me->ports_.loop->spawn(ask_term(me, node, point->term, tally));
    const Instant limit = me->ports_.loop->now() + kConfirm;
    auto agreed = co_await await_until(*me->ports_.loop, tally->shot, limit, std::string("a majority of the voters"));
    if (!agreed) co_return std::unexpected(agreed.error());
  }
  if (!core->still_leads(*point)) co_return std::unexpected(not_leader());
  co_return point->index;
}

Task<void> RaftLog::confirm_rounds(Self me) {
  while (!me->readers_.empty()) {
    const std::vector<IndexShot> readers = std::exchange(me->readers_, {});
    const auto point = co_await confirm(me);
    for (const IndexShot& reader : readers) reader->set(point);
  }
  me->confirming_ = false;
}

/// The index of a read point, not yet applied perhaps.
Task<Result<LogIndex>> RaftLog::read_here(Self me, Instant deadline) {
  if (!me->core_ || !me->core_->leading()) co_return std::unexpected(not_leader());
  const auto shot = std::make_shared<OneShot<Result<LogIndex>>>();
  me->readers_.push_back(shot);
  if (!std::exchange(me->confirming_, true)) {
    me->ports_.loop->post([me] { me->ports_.loop->spawn(confirm_rounds(me)); });
  }
  co_return co_await await_until(*me->ports_.loop, shot, deadline, std::string("a majority of the voters"));
}

Task<Result<LogIndex>> RaftLog::read_there(Self me, NodeId leader, Instant deadline) {
  env::Request request;
  request.type = static_cast<std::uint16_t>(wire::PeerMessage::read_index);
  const Instant limit = std::min(deadline, me->ports_.loop->now() + kReadAttempt);
  auto reply = co_await ask_leader(me, leader, std::move(request), limit);
  if (!reply) co_return std::unexpected(reply.error());
  wire::ReadIndexReply decoded;
  if (!decoded.ParseFromString(reply->header)) co_return fail(Errc::malformed, "the leader's answer does not decode");
  co_return LogIndex{decoded.index()};
}

Task<Status> RaftLog::barrier(Self me, Instant deadline) {
  for (;;) {
    HOLO_CO_TRY(co_await wait_for_leader(me, deadline));
    const NodeId leader = me->core_->leader();
    Result<LogIndex> index = fail(Errc::not_leader, "");
    if (me->core_->leading()) {
      index = co_await read_here(me, deadline);
    } else {
      index = co_await read_there(me, leader, deadline);
    }
    if (index) co_return co_await applied(me, *index, deadline);
    Error& e = index.error();
    if (e.code != Errc::not_leader && e.code != Errc::unavailable && e.code != Errc::no_quorum &&
        e.code != Errc::deadline_exceeded) {
      co_return std::unexpected(e);
    }
    if (me->ports_.loop->now() >= deadline) {
      e.code = Errc::no_quorum;
      e.retryable = true;
      co_return std::unexpected(e);
    }
    const Instant until = me->ports_.loop->now() + kLookForLeader;
    co_await sleep_until(*me->ports_.loop, until);
  }
}

// ---- Members

/// A leader that has committed nothing in its term may not know of a change of members that was committed before.
Task<Status> RaftLog::begun(Self me, Instant deadline) {
  for (;;) {
    if (!me->core_ || !me->core_->leading()) co_return std::unexpected(not_leader());
    if (const auto point = me->core_->read_point()) co_return co_await applied(me, point->index, deadline);
    const Instant until = me->ports_.loop->now() + kFirstEntry;
    if (until > deadline) co_return fail(Errc::no_quorum, "this node does not lead for good yet");
    co_await sleep_until(*me->ports_.loop, until);
  }
}

Task<Status> RaftLog::add_learner(Self me, NodeId node, Instant deadline) {
  HOLO_CO_TRY(co_await begun(me, deadline));
  if (!me->core_) co_return std::unexpected(log_closing());
  const int role = me->core_->role_of(node);
  if (role == RAFT_STANDBY || role == RAFT_VOTER) co_return Status{};
  if (role < 0) {
    auto added = me->core_->change(
        [node](raft* r, raft_change* request, raft_change_cb cb) {
          return raft_add(r, request, node.value, raft_address(node).c_str(), cb);
        },
        "adding a member to the log");
    HOLO_CO_TRY(co_await await(me, std::move(added), deadline, std::string("adding a member to the log")));
  }
  co_return co_await assign(me, node, RAFT_STANDBY, deadline);
}

Task<Status> RaftLog::assign(Self me, NodeId node, int role, Instant deadline) {
  HOLO_CO_TRY(co_await begun(me, deadline));
  if (!me->core_) co_return std::unexpected(log_closing());
  const int now = me->core_->role_of(node);
  if (now < 0) co_return fail(Errc::not_found, str("node ", node, " is not a member of the log"));
  if (now == role) co_return Status{};
  auto shot =
      me->core_->change([node, role](raft* r, raft_change* request,
                                     raft_change_cb cb) { return raft_assign(r, request, node.value, role, cb); },
                        "changing a voter");
  co_return co_await await(me, std::move(shot), deadline, std::string("changing a voter"));
}

Task<Status> RaftLog::remove(Self me, NodeId node, Instant deadline) {
  HOLO_CO_TRY(co_await begun(me, deadline));
  if (!me->core_) co_return std::unexpected(log_closing());
  if (me->core_->role_of(node) < 0) co_return Status{};
  auto shot = me->core_->change(
      [node](raft* r, raft_change* request, raft_change_cb cb) { return raft_remove(r, request, node.value, cb); },
      "removing a member of the log");
  co_return co_await await(me, std::move(shot), deadline, std::string("removing a member of the log"));
}

Task<Status> RaftLog::hand_over(Self me, NodeId to, Instant deadline) {
  if (!me->core_ || !me->core_->leading()) co_return Status{};
  const auto members = me->core_->members();
  const auto voters = std::count_if(members.begin(), members.end(), [](const env::LogMember& m) { return m.voter; });
  if (voters < 2) co_return Status{};
  auto shot = me->core_->transfer(to);
  co_return co_await await(me, std::move(shot), deadline, std::string("handing leadership over"));
}

// ---- The end, and new beginnings

Task<void> RaftLog::close(Self me) {
  me->stopped_ = true;
  me->observers_.clear();
  if (!me->core_ || me->core_->closing()) co_return;
  const std::shared_ptr<RaftCore> core = me->core_;
  auto done = std::make_shared<OneShot<bool>>();
  core->close([done] { done->set(true); });
  co_await *done;
  me->core_.reset();
}

Task<void> RaftLog::reopen(Self me) {
  const std::shared_ptr<RaftCore> core = std::exchange(me->core_, nullptr);
  log_warn("control", "the log has stopped, as its vote could not be written; it is opened again");
  auto done = std::make_shared<OneShot<bool>>();
  core->close([done] { done->set(true); });
  co_await *done;
  while (!me->stopped_ && !me->ports_.loop->stopping()) {
    // What is applied again starts from the beginning, or from the snapshot.
    Status s = me->machine_.restore(LogIndex{}, ByteSpan{});
    if (s) s = me->start();
    if (s) break;
    log_error("control", s.error().to_string());
    co_await sleep_for(*me->ports_.loop, kReopen);
  }
  me->reopening_ = false;
  if (!me->stopped_) me->changed();
}

// ---- A log that was given up (holo control repair)
//
// This node may have acknowledged entries that it no longer has, and they may be committed because of that. So it does
// not vote, and does not stand for election, from the moment its log was given up; term and vote are kept, so that it
// never votes twice in a term. The leader takes it out of the members, which needs a majority without it, and takes it
// in again as a newcomer; once it has applied all that the leader had committed by then, it has at least everything
// that it can have acknowledged: a leader of its term or a later one had all of that that could still be committed.

Task<void> RaftLog::return_to_log(Self me) {
  log_warn("control", "the log here was given up; this node does not vote until the others have given it all again");
  while (!me->stopped_ && !me->ports_.loop->stopping()) {
    const Instant limit = me->ports_.loop->now() + kReturn;
    Status done = co_await wait_for_leader(me, limit);
    if (done && me->core_) {
      env::Request request;
      request.type = static_cast<std::uint16_t>(wire::PeerMessage::log_lost);
      const NodeId leader = me->core_->leader();
      auto reply = co_await ask_leader(me, leader, std::move(request), limit);
      wire::LogLostReply decoded;
      if (reply && decoded.ParseFromString(reply->header)) {
        const LogIndex index{decoded.index()};
        done = co_await applied(me, index, limit);
      } else {
        done = reply ? Status(fail(Errc::malformed, "the leader's answer does not decode"))
                     : std::unexpected(reply.error());
      }
    }
    if (done && me->core_) {
      const std::function<Status()> note = [store = me->ports_.store] { return store->found(); };
      done = co_await offload<Status>(*me->ports_.loop, note);
      if (done && me->core_) {
        me->core_->found();
        log_info("control", "the log is whole again");
        break;
      }
    }
    if (!done) log_debug("control", "the log is not whole yet: ", done.error().to_string());
    co_await sleep_for(*me->ports_.loop, kReopen);
  }
  me->returning_ = false;
}

Task<Result<LogIndex>> RaftLog::take_in_anew(Self me, NodeId node, Instant deadline) {
  const int role = me->core_->role_of(node);
  if (role == RAFT_VOTER) HOLO_CO_TRY(co_await assign(me, node, RAFT_STANDBY, deadline));
  HOLO_CO_TRY(co_await remove(me, node, deadline));
  HOLO_CO_TRY(co_await add_learner(me, node, deadline));
  if (!me->core_) co_return std::unexpected(log_closing());
  co_return me->core_->applied();
}

/// Once for each request: what it did before, it did for a log that may have been given up again.
Task<Result<env::Reply>> RaftLog::on_log_lost(std::weak_ptr<RaftLog> weak, NodeId from, env::Request) {
  const Self me = weak.lock();
  if (!me || !me->core_) co_return std::unexpected(log_closing());
  if (!me->core_->leading()) co_return std::unexpected(not_leader());
  const Instant deadline = me->ports_.loop->now() + kServeLimit;
  log_info("control", "node ", from, " has lost its log: it is taken in anew");
  HOLO_CO_ASSIGN(index, co_await take_in_anew(me, from, deadline));
  wire::LogLostReply reply;
  reply.set_index(index.value);
  env::Reply out;
  out.header = reply.SerializeAsString();
  co_return out;
}

// ---- What peers ask for

Task<Result<env::Reply>> RaftLog::on_raft(std::weak_ptr<RaftLog> weak, NodeId from, env::Request r) {
  const Self me = weak.lock();
  if (!me || !me->core_) co_return std::unexpected(log_closing());
  co_return co_await me->core_->receive(from, std::move(r));
}

Task<Result<env::Reply>> RaftLog::on_propose(std::weak_ptr<RaftLog> weak, NodeId, env::Request r) {
  const Self me = weak.lock();
  if (!me || !me->core_) co_return std::unexpected(log_closing());
  if (r.payload.size() != 1 || r.payload[0].size() > limits::kMaxCommandBytes) {
    co_return fail(Errc::malformed, "a proposal needs one command");
  }
  const Instant deadline = me->ports_.loop->now() + kServeLimit;
  auto index = co_await append_here(me, r.payload[0], deadline);
  if (!index) co_return std::unexpected(index.error());
  wire::ProposeReply reply;
  reply.set_index(index->value);
  env::Reply out;
  out.header = reply.SerializeAsString();
  co_return out;
}

struct RaftLog::Gathered {
  explicit Gathered(std::size_t n) : results(n, Result<LogIndex>(std::unexpected(log_closing()))), open(n) {}
  std::vector<Result<LogIndex>> results;
  std::size_t open;
  OneShot<bool> done;
};

Task<void> RaftLog::append_one(Self me, Buffer command, Instant deadline, std::shared_ptr<Gathered> all,
                               std::size_t at) {
  auto index = co_await append_here(me, std::move(command), deadline);
  all->results[at] = std::move(index);
  if (--all->open == 0) all->done.set(true);
}

Task<Result<env::Reply>> RaftLog::on_propose_many(std::weak_ptr<RaftLog> weak, NodeId, env::Request r) {
  const Self me = weak.lock();
  if (!me || !me->core_) co_return std::unexpected(log_closing());
  wire::ProposeManyRequest header;
  const bool whole = header.ParseFromString(r.header) && r.payload.size() == 1 && header.sizes_size() > 0 &&
                     static_cast<std::size_t>(header.sizes_size()) <= kMaxForwarded;
  if (!whole) co_return fail(Errc::malformed, "proposals that do not decode");
  std::size_t total = 0;
  for (const std::uint32_t size : header.sizes()) {
    if (size > limits::kMaxCommandBytes) co_return fail(Errc::malformed, "a proposal that is too large");
    total += size;
  }
  if (total != r.payload[0].size()) co_return fail(Errc::malformed, "proposals of another length than they say");
  const Instant deadline = me->ports_.loop->now() + kServeLimit;
  const auto all = std::make_shared<Gathered>(static_cast<std::size_t>(header.sizes_size()));
  std::size_t at = 0;
  for (std::size_t i = 0; i < all->results.size(); ++i) {
    const std::size_t size = header.sizes(static_cast<int>(i));
    me->ports_.loop->spawn(append_one(me, Buffer::copy(r.payload[0].span().subspan(at, size)), deadline, all, i));
    at += size;
  }
  co_await all->done;
  wire::ProposeManyReply reply;
  for (const Result<LogIndex>& result : all->results) {
    auto* o = reply.add_outcomes();
    if (result) {
      o->set_index(result->value);
    } else {
      wire::put_error(result.error(), *o->mutable_error());
    }
  }
  env::Reply out;
  out.header = reply.SerializeAsString();
  co_return out;
}

Task<Result<env::Reply>> RaftLog::on_read_index(std::weak_ptr<RaftLog> weak, NodeId, env::Request) {
  const Self me = weak.lock();
  if (!me || !me->core_) co_return std::unexpected(log_closing());
  const Instant deadline = me->ports_.loop->now() + kServeLimit;
  HOLO_CO_ASSIGN(index, co_await read_here(me, deadline));
  // Whoever asked applies it once it is committed, which the first entry of a term may not be yet.
  HOLO_CO_TRY(co_await applied(me, index, deadline));
  wire::ReadIndexReply reply;
  reply.set_index(index.value);
  env::Reply out;
  out.header = reply.SerializeAsString();
  co_return out;
}

/// In which term this node is: as long as that is the asking leader's, it has voted for no later one.
Task<Result<env::Reply>> RaftLog::on_confirm_term(std::weak_ptr<RaftLog> weak, NodeId, env::Request r) {
  const Self me = weak.lock();
  if (!me || !me->core_ || me->core_->broken()) co_return std::unexpected(log_closing());
  wire::ConfirmTerm ask;
  if (!ask.ParseFromString(r.header)) co_return fail(Errc::malformed, "a question about the term that does not decode");
  wire::ConfirmTermReply reply;
  reply.set_term(me->core_->term());
  env::Reply out;
  out.header = reply.SerializeAsString();
  co_return out;
}

Result<std::unique_ptr<env::CommandLog>> open_raft_log(RaftLogPorts ports, env::StateMachine& machine,
                                                       RaftLogOptions options) {
  auto log = std::make_shared<RaftLog>(std::move(ports), machine, options);
  HOLO_TRY(log->start());
  log->serve();
  return std::unique_ptr<env::CommandLog>(
      std::make_unique<env::HeldCommandLog<RaftLog, &RaftLog::abandon>>(std::move(log)));
}

}  // namespace holo::driver
