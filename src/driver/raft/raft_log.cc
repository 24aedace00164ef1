#include "driver/raft/raft_log.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <unordered_map>

#include "base/limits.h"
#include "base/log.h"
#include "base/strings.h"
#include "driver/raft/raft_io.h"
#include "driver/raft/raft_message.h"
#include "wire/message_types.h"
#include "wire/raft.pb.h"

namespace holo::driver {
namespace {

constexpr std::size_t kEnvelopeBytes =
    24;  // Of every entry: who proposed it (origin, number), and the leader's wall time.
constexpr std::size_t kSnapshotHeader = 16;  // Of every snapshot: its index, and the last wall time.
constexpr std::size_t kMaxBatchEntries = 256;
constexpr std::size_t kMaxBatchBytes = 4 << 20;
constexpr Duration kLookForLeader = milliseconds(50);
constexpr Duration kServeLimit = seconds(10);  // For what a peer asked for; its own deadline is shorter.
constexpr Duration kReopen = seconds(1);

using IndexShot = std::shared_ptr<OneShot<Result<LogIndex>>>;
using StatusShot = std::shared_ptr<OneShot<Result<bool>>>;

void put_u64(std::byte* p, std::uint64_t v) { std::memcpy(p, &v, 8); }  // Little-endian, as every machine this runs on.
std::uint64_t get_u64(const std::byte* p) {
  std::uint64_t v = 0;
  std::memcpy(&v, p, 8);
  return v;
}

Error not_leader() { return {.code = Errc::not_leader, .message = "this node does not lead", .retryable = true}; }
Error closing() { return {.code = Errc::cancelled, .message = "the log is closing"}; }
Error error_of(int rv, const char* what) {
  switch (rv) {
    case RAFT_NOTLEADER: return not_leader();
    case RAFT_LEADERSHIPLOST:
      return {.code = Errc::unavailable,
              .message = str(what, ": leadership was lost, the outcome is unknown"),
              .retryable = true};
    case RAFT_SHUTDOWN:
    case RAFT_CANCELED: return closing();
    case RAFT_CANTCHANGE:
    case RAFT_BUSY:
      return {.code = Errc::overloaded, .message = str(what, ": another change is under way"), .retryable = true};
    default: return {.code = Errc::internal, .message = str(what, ": ", raft_strerror(rv)), .retryable = true};
  }
}

}  // namespace

/// One struct raft from start to close. Kept by its callbacks.
class RaftCore : public std::enable_shared_from_this<RaftCore> {
 public:
  RaftCore(RaftLogPorts ports, env::StateMachine& machine, RaftLogOptions options)
      : ports_(std::move(ports)), machine_(machine), options_(options), origin_(ports_.entropy->u64() | 1) {}

  Status start();
  /// Calls `done` once libraft has let go of everything.
  void close(std::function<void()> done);
  [[nodiscard]] bool closing() const { return closing_; }
  /// libraft has given up (its term or vote could not be written): the owner closes this one and starts another.
  [[nodiscard]] bool broken() { return started_ && raft_state(&raft_) == RAFT_UNAVAILABLE; }

  [[nodiscard]] bool leading() { return started_ && raft_state(&raft_) == RAFT_LEADER; }
  [[nodiscard]] NodeId leader();
  [[nodiscard]] env::LogStatus status();
  [[nodiscard]] std::vector<env::LogMember> members() const;
  [[nodiscard]] int role_of(NodeId node) const;  ///< -1: not a member.
  [[nodiscard]] LogIndex applied() { return LogIndex{started_ ? raft_last_applied(&raft_) : 0}; }
  [[nodiscard]] const std::optional<Error>& disk_error() const { return io_->disk_error(); }

  /// Leader only. Resolves once applied here.
  IndexShot propose(ByteSpan command, std::uint64_t& token);
  void forget(std::uint64_t token) { waiting_.erase(token); }
  StatusShot barrier();
  StatusShot when_applied(LogIndex index);
  StatusShot change(std::function<int(raft*, raft_change*, raft_change_cb)> start, const char* what);
  StatusShot transfer();
  Status receive(NodeId from, const env::Request& r) { return io_->receive(from, r); }

  std::function<void()> on_change;

 private:
  static RaftCore* self(const raft_fsm* fsm) { return static_cast<RaftCore*>(fsm->data); }
  int apply(const raft_buffer* buf);
  int snapshot(raft_buffer** bufs, unsigned* n);
  int restore(raft_buffer* buf);
  void flush();
  void after_event();
  void resolve(IndexShot shot, Result<LogIndex> r);
  void resolve(StatusShot shot, Result<bool> r);
  void fail_waiting(const Error& e);

  RaftLogPorts ports_;
  env::StateMachine& machine_;
  RaftLogOptions options_;
  std::shared_ptr<RaftIo> io_;
  raft raft_{};
  raft_fsm fsm_{};
  bool initialised_ = false;
  bool started_ = false;
  bool closing_ = false;
  std::function<void()> closed_;
  std::shared_ptr<RaftCore> self_until_closed_;
  std::optional<Error> restore_error_;

  const std::uint64_t origin_;
  std::uint64_t next_token_ = 1;
  std::int64_t last_wall_ = 0;
  struct Pending {
    std::uint64_t token = 0;
    raft_buffer entry{};
  };
  std::vector<Pending> pending_;
  bool flush_posted_ = false;
  std::unordered_map<std::uint64_t, IndexShot> waiting_;
  std::multimap<LogIndex, StatusShot> applied_waiters_;
  std::vector<StatusShot> barrier_waiters_;
  bool barrier_running_ = false;

  int seen_state_ = -1;
  NodeId seen_leader_;
  std::uint64_t seen_configuration_ = 0;
};

// ---- Life

Status RaftCore::start() {
  io_ = std::make_shared<RaftIo>(ports_, options_, [this] { after_event(); });
  HOLO_TRY(io_->load());
  fsm_.version = 1;
  fsm_.data = this;
  fsm_.apply = [](raft_fsm* f, const raft_buffer* buf, void**) { return self(f)->apply(buf); };
  fsm_.snapshot = [](raft_fsm* f, raft_buffer** bufs, unsigned* n) { return self(f)->snapshot(bufs, n); };
  fsm_.restore = [](raft_fsm* f, raft_buffer* buf) { return self(f)->restore(buf); };
  const std::string address = raft_address(options_.self);
  if (const int rv = raft_init(&raft_, io_->io(), &fsm_, options_.self.value, address.c_str()); rv != 0) {
    return std::unexpected(error_of(rv, "starting the log"));
  }
  initialised_ = true;
  raft_.data = this;
  raft_set_election_timeout(&raft_, static_cast<unsigned>(options_.election_timeout.millis()));
  raft_set_heartbeat_timeout(&raft_, static_cast<unsigned>(options_.heartbeat.millis()));
  raft_set_snapshot_threshold(&raft_, options_.snapshot_threshold);
  raft_set_snapshot_trailing(&raft_, options_.snapshot_trailing);
  raft_set_pre_vote(&raft_, true);
  if (options_.bootstrap) {
    if (!io_->empty()) return fail(Errc::refused, "the log is not empty: this node is in a cluster already");
    raft_configuration conf;
    raft_configuration_init(&conf);
    int rv = raft_configuration_add(&conf, options_.self.value, address.c_str(), RAFT_VOTER);
    if (rv == 0) rv = raft_bootstrap(&raft_, &conf);
    raft_configuration_close(&conf);
    if (rv != 0) return fail(Errc::io_error, str("the first entry of the log cannot be written: ", raft_strerror(rv)));
    HOLO_TRY(io_->load());
  }
  started_ = true;  // Entries may be applied, and states asked for, from inside raft_start.
  if (const int rv = raft_start(&raft_); rv != 0) {
    started_ = false;
    if (restore_error_) return std::unexpected(*restore_error_);
    return fail(rv == RAFT_MALFORMED || rv == RAFT_CORRUPT ? Errc::corrupt : Errc::io_error,
                str("the log does not start: ", raft_strerror(rv), ": ", raft_errmsg(&raft_)));
  }
  after_event();
  return {};
}

void RaftCore::close(std::function<void()> done) {
  HOLO_ASSERT(!closing_);
  closing_ = true;
  for (Pending& p : std::exchange(pending_, {})) raft_free(p.entry.base);
  fail_waiting(::holo::driver::closing());
  for (auto& [index, shot] : std::exchange(applied_waiters_, {}))
    resolve(shot, std::unexpected(::holo::driver::closing()));
  if (!initialised_) return done();
  closed_ = std::move(done);
  self_until_closed_ = shared_from_this();
  raft_close(&raft_, [](raft* r) {
    auto* me = static_cast<RaftCore*>(r->data);
    me->started_ = false;
    const auto keep = std::move(me->self_until_closed_);
    // libraft is still on the stack, and reads its own struct on the way out.
    me->ports_.loop->post([keep] { std::exchange(keep->closed_, nullptr)(); });  // It may hold the core itself.
  });
}

// ---- Looking

NodeId RaftCore::leader() {
  if (!started_) return {};
  raft_id id = 0;
  const char* address = nullptr;
  raft_leader(&raft_, &id, &address);
  return NodeId{id};
}

env::LogStatus RaftCore::status() {
  env::LogStatus s;
  if (!started_) return s;
  s.leader = leader();
  s.term = raft_.current_term;
  s.applied = applied();
  s.committed = LogIndex{raft_.commit_index};
  switch (raft_state(&raft_)) {
    case RAFT_LEADER: s.role = env::LogRole::leader; break;
    case RAFT_CANDIDATE: s.role = env::LogRole::candidate; break;
    default: s.role = role_of(options_.self) == RAFT_VOTER ? env::LogRole::follower : env::LogRole::learner;
  }
  return s;
}

std::vector<env::LogMember> RaftCore::members() const {
  std::vector<env::LogMember> out;
  if (!started_) return out;
  for (unsigned i = 0; i < raft_.configuration.n; ++i) {
    const raft_server& s = raft_.configuration.servers[i];
    if (s.role != RAFT_SPARE) out.push_back({.node = NodeId{s.id}, .voter = s.role == RAFT_VOTER});
  }
  return out;
}

int RaftCore::role_of(NodeId node) const {
  for (unsigned i = 0; started_ && i < raft_.configuration.n; ++i) {
    if (raft_.configuration.servers[i].id == node.value) return raft_.configuration.servers[i].role;
  }
  return -1;
}

// ---- The state machine

int RaftCore::apply(const raft_buffer* buf) {
  const LogIndex index{raft_.last_applied + 1};
  const auto* base = static_cast<const std::byte*>(buf->base);
  if (buf->len < kEnvelopeBytes) {
    machine_.apply(index, WallTime{last_wall_}, {});  // Not ours; the state machine refuses it like any garbage.
    return 0;
  }
  const std::uint64_t origin = get_u64(base);
  const std::uint64_t token = get_u64(base + 8);
  last_wall_ = std::max(last_wall_, static_cast<std::int64_t>(get_u64(base + 16)));
  machine_.apply(index, WallTime{last_wall_}, {base + kEnvelopeBytes, buf->len - kEnvelopeBytes});
  if (origin == origin_) {
    if (const auto it = waiting_.find(token); it != waiting_.end()) {
      resolve(std::exchange(it->second, nullptr), index);
      waiting_.erase(it);
    }
  }
  return 0;
}

int RaftCore::snapshot(raft_buffer** bufs, unsigned* n) {
  const Bytes state = machine_.snapshot();
  auto* all = static_cast<std::byte*>(raft_malloc(kSnapshotHeader + state.size()));
  *bufs = static_cast<raft_buffer*>(raft_malloc(sizeof(raft_buffer)));
  HOLO_ASSERT(all != nullptr && *bufs != nullptr, "out of memory");
  put_u64(all, raft_.last_applied);
  put_u64(all + 8, static_cast<std::uint64_t>(last_wall_));
  if (!state.empty()) std::memcpy(all + kSnapshotHeader, state.data(), state.size());
  (*bufs)[0] = {all, kSnapshotHeader + state.size()};
  *n = 1;
  return 0;
}

int RaftCore::restore(raft_buffer* buf) {
  const auto* base = static_cast<const std::byte*>(buf->base);
  if (buf->len < kSnapshotHeader) return RAFT_MALFORMED;
  const LogIndex index{get_u64(base)};
  const Status s = machine_.restore(index, {base + kSnapshotHeader, buf->len - kSnapshotHeader});
  if (!s) {
    restore_error_ = s.error();
    return RAFT_MALFORMED;
  }
  last_wall_ = std::max(last_wall_, static_cast<std::int64_t>(get_u64(base + 8)));
  raft_free(buf->base);
  return 0;
}

/// Later: whoever waits may call back into libraft, which is not ready for that inside its own callbacks.
void RaftCore::resolve(IndexShot shot, Result<LogIndex> r) {
  ports_.loop->post([shot = std::move(shot), r = std::move(r)] { shot->set(r); });
}
void RaftCore::resolve(StatusShot shot, Result<bool> r) {
  ports_.loop->post([shot = std::move(shot), r = std::move(r)] { shot->set(r); });
}

void RaftCore::fail_waiting(const Error& e) {
  for (auto& [token, shot] : std::exchange(waiting_, {})) resolve(shot, std::unexpected(e));
  for (auto& shot : std::exchange(barrier_waiters_, {})) resolve(shot, std::unexpected(e));
}

void RaftCore::after_event() {
  if (!started_ || closing_) return;
  while (!applied_waiters_.empty() && applied_waiters_.begin()->first <= applied()) {
    resolve(applied_waiters_.begin()->second, true);
    applied_waiters_.erase(applied_waiters_.begin());
  }
  const int state = raft_state(&raft_);
  if (state == RAFT_LEADER) io_->announce_commit(raft_.current_term, raft_.commit_index);
  const NodeId now_leader = leader();
  if (seen_state_ == RAFT_LEADER && state != RAFT_LEADER) {
    fail_waiting(error_of(RAFT_LEADERSHIPLOST, "append"));
    barrier_running_ = false;
  }
  const std::uint64_t configuration = raft_.configuration_index + raft_.configuration_uncommitted_index;
  if (state == seen_state_ && now_leader == seen_leader_ && configuration == seen_configuration_) return;
  seen_state_ = state;
  seen_leader_ = now_leader;
  seen_configuration_ = configuration;
  ports_.loop->post([me = shared_from_this()] {
    if (!me->closing_ && me->on_change) me->on_change();
  });
}

// ---- Appending

IndexShot RaftCore::propose(ByteSpan command, std::uint64_t& token) {
  auto shot = std::make_shared<OneShot<Result<LogIndex>>>();
  token = next_token_++;
  auto* entry = static_cast<std::byte*>(raft_malloc(kEnvelopeBytes + command.size()));
  HOLO_ASSERT(entry != nullptr, "out of memory");
  put_u64(entry, origin_);
  put_u64(entry + 8, token);
  put_u64(entry + 16, 0);  // The time comes with the append.
  if (!command.empty()) std::memcpy(entry + kEnvelopeBytes, command.data(), command.size());
  pending_.push_back({.token = token, .entry = {entry, kEnvelopeBytes + command.size()}});
  waiting_[token] = shot;
  if (!std::exchange(flush_posted_, true)) {
    ports_.loop->post([me = shared_from_this()] { me->flush(); });
  }
  return shot;
}

void RaftCore::flush() {
  flush_posted_ = false;
  if (closing_) return;
  std::size_t at = 0;
  std::vector<Pending> all = std::exchange(pending_, {});
  const std::int64_t wall = std::max(last_wall_, ports_.loop->wall_now().ms);
  while (at < all.size()) {
    struct Batch {
      struct raft_apply request{};
      std::shared_ptr<RaftCore> core;
      std::vector<std::uint64_t> tokens;
    };
    auto batch = std::make_unique<Batch>();
    batch->core = shared_from_this();
    std::vector<raft_buffer> bufs;
    std::size_t bytes = 0;
    while (at < all.size() && bufs.size() < kMaxBatchEntries &&
           (bufs.empty() || bytes + all[at].entry.len <= kMaxBatchBytes)) {
      put_u64(static_cast<std::byte*>(all[at].entry.base) + 16, static_cast<std::uint64_t>(wall));
      bytes += all[at].entry.len;
      bufs.push_back(all[at].entry);
      batch->tokens.push_back(all[at].token);
      ++at;
    }
    batch->request.data = batch.get();
    // libraft calls back when the first entry of the batch is applied, so success is told from apply(), entry by entry.
    const int rv = raft_apply(&raft_, &batch->request, bufs.data(), static_cast<unsigned>(bufs.size()),
                              [](struct raft_apply* request, int status, void*) {
                                const std::unique_ptr<Batch> done(static_cast<Batch*>(request->data));
                                if (status == 0) return;
                                for (const std::uint64_t token : done->tokens) {
                                  const auto it = done->core->waiting_.find(token);
                                  if (it == done->core->waiting_.end()) continue;
                                  done->core->resolve(it->second, std::unexpected(error_of(status, "append")));
                                  done->core->waiting_.erase(it);
                                }
                              });
    if (rv == 0) {
      (void)batch.release();  // The callback frees it.
      continue;
    }
    for (const raft_buffer& b : bufs) raft_free(b.base);
    for (const std::uint64_t token : batch->tokens) {
      if (const auto it = waiting_.find(token); it != waiting_.end()) {
        resolve(it->second, std::unexpected(error_of(rv, "append")));
        waiting_.erase(it);
      }
    }
  }
  after_event();
}

StatusShot RaftCore::when_applied(LogIndex index) {
  auto shot = std::make_shared<OneShot<Result<bool>>>();
  if (applied() >= index) {
    shot->set(true);
  } else {
    applied_waiters_.emplace(index, shot);
  }
  return shot;
}

/// One barrier entry serves all that asked before it was appended.
StatusShot RaftCore::barrier() {
  auto shot = std::make_shared<OneShot<Result<bool>>>();
  barrier_waiters_.push_back(shot);
  if (std::exchange(barrier_running_, true)) return shot;
  ports_.loop->post([me = shared_from_this()] {
    if (me->closing_) return;
    struct Request {
      struct raft_barrier request{};
      std::shared_ptr<RaftCore> core;
      std::vector<StatusShot> waiters;
    };
    auto r = std::make_unique<Request>();
    r->core = me;
    r->waiters = std::exchange(me->barrier_waiters_, {});
    me->barrier_running_ = false;
    r->request.data = r.get();
    const int rv = raft_barrier(&me->raft_, &r->request, [](struct raft_barrier* request, int status) {
      const std::unique_ptr<Request> done(static_cast<Request*>(request->data));
      for (const StatusShot& w : done->waiters) {
        done->core->resolve(w, status == 0 ? Result<bool>(true) : std::unexpected(error_of(status, "barrier")));
      }
    });
    if (rv == 0) {
      (void)r.release();
    } else {
      for (const StatusShot& w : r->waiters) me->resolve(w, std::unexpected(error_of(rv, "barrier")));
    }
    me->after_event();
  });
  return shot;
}

StatusShot RaftCore::change(std::function<int(raft*, raft_change*, raft_change_cb)> begin, const char* what) {
  auto shot = std::make_shared<OneShot<Result<bool>>>();
  ports_.loop->post([me = shared_from_this(), shot, begin = std::move(begin), what] {
    if (me->closing_) return;
    struct Request {
      raft_change request{};
      std::shared_ptr<RaftCore> core;
      StatusShot shot;
      const char* what = nullptr;
    };
    auto r = std::make_unique<Request>();
    r->core = me;
    r->shot = shot;
    r->what = what;
    r->request.data = r.get();
    const int rv = begin(&me->raft_, &r->request, [](raft_change* request, int status) {
      const std::unique_ptr<Request> done(static_cast<Request*>(request->data));
      done->core->resolve(done->shot, status == 0 ? Result<bool>(true) : std::unexpected(error_of(status, done->what)));
    });
    if (rv == 0) {
      (void)r.release();
    } else {
      me->resolve(shot, std::unexpected(error_of(rv, what)));
    }
    me->after_event();
  });
  return shot;
}

StatusShot RaftCore::transfer() {
  auto shot = std::make_shared<OneShot<Result<bool>>>();
  struct Request {
    struct raft_transfer request{};
    std::shared_ptr<RaftCore> core;
    StatusShot shot;
  };
  auto r = std::make_unique<Request>();
  r->core = shared_from_this();
  r->shot = shot;
  r->request.data = r.get();
  const int rv = raft_transfer(&raft_, &r->request, 0, [](struct raft_transfer* request) {
    const std::unique_ptr<Request> done(static_cast<Request*>(request->data));
    done->core->resolve(done->shot, true);
  });
  if (rv == 0) {
    (void)r.release();
  } else {
    resolve(shot, std::unexpected(error_of(rv, "handing over")));
  }
  return shot;
}

// ---- The port

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
    return {};
  }

  void serve() {
    using wire::PeerMessage;
    const std::weak_ptr<RaftLog> weak = weak_from_this();
    ports_.transport->serve(static_cast<std::uint16_t>(PeerMessage::raft),
                            [weak](NodeId from, env::Request r) { return on_raft(weak, from, std::move(r)); });
    ports_.transport->serve(static_cast<std::uint16_t>(PeerMessage::propose),
                            [weak](NodeId from, env::Request r) { return on_propose(weak, from, std::move(r)); });
    ports_.transport->serve(static_cast<std::uint16_t>(PeerMessage::read_index),
                            [weak](NodeId from, env::Request r) { return on_read_index(weak, from, std::move(r)); });
  }

  Task<Result<LogIndex>> append(Buffer command, Instant deadline) override {
    return append(shared_from_this(), std::move(command), deadline);
  }
  Task<Status> barrier(Instant deadline) override { return barrier(shared_from_this(), deadline); }
  env::LogStatus status() const override { return core_ ? core_->status() : env::LogStatus{}; }
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
  Task<Status> hand_over(Instant deadline) override { return hand_over(shared_from_this(), deadline); }
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
  static Task<Status> barrier(Self me, Instant deadline);
  static Task<Status> barrier_here(Self me, Instant deadline);
  static Task<Status> applied(Self me, LogIndex index, Instant deadline);
  static Task<Status> wait_for_leader(Self me, Instant deadline);
  static Task<Status> add_learner(Self me, NodeId node, Instant deadline);
  static Task<Status> assign(Self me, NodeId node, int role, Instant deadline);
  static Task<Status> remove(Self me, NodeId node, Instant deadline);
  static Task<Status> hand_over(Self me, Instant deadline);
  static Task<Status> await(Self me, StatusShot shot, Instant deadline, std::string what);
  static Task<void> close(Self me);
  static Task<void> reopen(Self me);
  static Task<Result<env::Reply>> on_raft(std::weak_ptr<RaftLog> weak, NodeId from, env::Request r);
  static Task<Result<env::Reply>> on_propose(std::weak_ptr<RaftLog> weak, NodeId from, env::Request r);
  static Task<Result<env::Reply>> on_read_index(std::weak_ptr<RaftLog> weak, NodeId from, env::Request r);

  void changed() {
    if (!stopped_ && core_ && core_->broken() && !std::exchange(reopening_, true)) {
      ports_.loop->spawn(reopen(shared_from_this()));
    }
    for (const auto& f : observers_) f();
  }

  RaftLogPorts ports_;
  env::StateMachine& machine_;
  RaftLogOptions options_;
  std::shared_ptr<RaftCore> core_;  ///< Null while reopening, and after close.
  std::vector<std::function<void()>> observers_;
  std::size_t pending_ = 0;
  bool stopped_ = false;
  bool reopening_ = false;
};

Task<Status> RaftLog::await(Self me, StatusShot shot, Instant deadline, std::string what) {
  auto r = co_await await_until(*me->ports_.loop, std::move(shot), deadline, std::move(what));
  if (!r) co_return std::unexpected(r.error());
  co_return Status{};
}

Task<Status> RaftLog::applied(Self me, LogIndex index, Instant deadline) {
  if (!me->core_) co_return std::unexpected(closing());
  auto shot = me->core_->when_applied(index);
  co_return co_await await(me, std::move(shot), deadline, str("entry ", index, " of the log"));
}

Task<Status> RaftLog::wait_for_leader(Self me, Instant deadline) {
  for (;;) {
    if (me->stopped_ || me->ports_.loop->stopping()) co_return std::unexpected(closing());
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
    HOLO_CO_TRY(co_await wait_for_leader(me, deadline));
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
  auto shot = core->propose(command.span(), token);
  auto r = co_await await_until(*me->ports_.loop, std::move(shot), deadline, std::string("a majority of the voters"));
  core->forget(token);
  if (!r && r.error().code == Errc::deadline_exceeded) {
    if (core->disk_error()) co_return std::unexpected(*core->disk_error());
    r.error().code = Errc::no_quorum;
    r.error().retryable = true;
  }
  co_return r;
}

Task<Result<LogIndex>> RaftLog::forward(Self me, NodeId leader, Buffer command, Instant deadline) {
  env::Request request;
  request.type = static_cast<std::uint16_t>(wire::PeerMessage::propose);
  request.payload.push_back(command);
  env::CallOptions options;
  options.deadline = deadline;
  auto reply = co_await me->ports_.transport->call(leader, std::move(request), options);
  if (!reply) co_return std::unexpected(reply.error());
  wire::ProposeReply decoded;
  if (!decoded.ParseFromString(reply->header)) co_return fail(Errc::malformed, "the leader's answer does not decode");
  const LogIndex index{decoded.index()};
  HOLO_CO_TRY(co_await applied(me, index, deadline));
  co_return index;
}

Task<Status> RaftLog::barrier_here(Self me, Instant deadline) {
  if (!me->core_ || !me->core_->leading()) co_return std::unexpected(not_leader());
  const std::shared_ptr<RaftCore> core = me->core_;
  if (core->disk_error()) co_return std::unexpected(*core->disk_error());  // A barrier is an entry, too.
  auto shot = core->barrier();
  Status s = co_await await(me, std::move(shot), deadline, std::string("a majority of the voters"));
  if (!s && s.error().code == Errc::deadline_exceeded && core->disk_error()) s = std::unexpected(*core->disk_error());
  co_return s;
}

Task<Status> RaftLog::barrier(Self me, Instant deadline) {
  for (;;) {
    HOLO_CO_TRY(co_await wait_for_leader(me, deadline));
    const NodeId leader = me->core_->leader();
    if (me->core_->leading()) {
      Status s = co_await barrier_here(me, deadline);
      if (s || s.error().code != Errc::not_leader) co_return s;
    } else {
      env::Request request;
      request.type = static_cast<std::uint16_t>(wire::PeerMessage::read_index);
      env::CallOptions options;
      options.deadline = deadline;
      auto reply = co_await me->ports_.transport->call(leader, std::move(request), options);
      if (reply) {
        wire::ReadIndexReply decoded;
        if (!decoded.ParseFromString(reply->header))
          co_return fail(Errc::malformed, "the leader's answer does not decode");
        const LogIndex index{decoded.index()};
        co_return co_await applied(me, index, deadline);
      }
      const Errc code = reply.error().code;
      if (code != Errc::not_leader && code != Errc::unavailable) co_return std::unexpected(reply.error());
    }
    const Instant until = me->ports_.loop->now() + kLookForLeader;
    co_await sleep_until(*me->ports_.loop, until);
  }
}

// ---- Members

Task<Status> RaftLog::add_learner(Self me, NodeId node, Instant deadline) {
  if (!me->core_ || !me->core_->leading()) co_return std::unexpected(not_leader());
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
  if (!me->core_ || !me->core_->leading()) co_return std::unexpected(not_leader());
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
  if (!me->core_ || !me->core_->leading()) co_return std::unexpected(not_leader());
  if (me->core_->role_of(node) < 0) co_return Status{};
  auto shot = me->core_->change(
      [node](raft* r, raft_change* request, raft_change_cb cb) { return raft_remove(r, request, node.value, cb); },
      "removing a member of the log");
  co_return co_await await(me, std::move(shot), deadline, std::string("removing a member of the log"));
}

Task<Status> RaftLog::hand_over(Self me, Instant deadline) {
  if (!me->core_ || !me->core_->leading()) co_return Status{};
  const auto members = me->core_->members();
  const auto voters = std::count_if(members.begin(), members.end(), [](const env::LogMember& m) { return m.voter; });
  if (voters < 2) co_return Status{};
  auto shot = me->core_->transfer();
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

// ---- What peers ask for

Task<Result<env::Reply>> RaftLog::on_raft(std::weak_ptr<RaftLog> weak, NodeId from, env::Request r) {
  const Self me = weak.lock();
  if (!me || !me->core_) co_return std::unexpected(closing());
  HOLO_CO_TRY(me->core_->receive(from, r));
  co_return env::Reply{};
}

Task<Result<env::Reply>> RaftLog::on_propose(std::weak_ptr<RaftLog> weak, NodeId, env::Request r) {
  const Self me = weak.lock();
  if (!me || !me->core_) co_return std::unexpected(closing());
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

Task<Result<env::Reply>> RaftLog::on_read_index(std::weak_ptr<RaftLog> weak, NodeId, env::Request) {
  const Self me = weak.lock();
  if (!me || !me->core_) co_return std::unexpected(closing());
  const Instant deadline = me->ports_.loop->now() + kServeLimit;
  HOLO_CO_TRY(co_await barrier_here(me, deadline));
  if (!me->core_) co_return std::unexpected(closing());
  wire::ReadIndexReply reply;
  reply.set_index(me->core_->applied().value);
  env::Reply out;
  out.header = reply.SerializeAsString();
  co_return out;
}

namespace {

/// What the caller owns: the log itself may be kept a little longer by what still runs.
class Handle final : public env::CommandLog {
 public:
  explicit Handle(std::shared_ptr<RaftLog> log) : log_(std::move(log)) {}
  ~Handle() override { log_->abandon(); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  Task<Result<LogIndex>> append(Buffer command, Instant deadline) override {
    return log_->append(std::move(command), deadline);
  }
  Task<Status> barrier(Instant deadline) override { return log_->barrier(deadline); }
  env::LogStatus status() const override { return log_->status(); }
  std::vector<env::LogMember> members() const override { return log_->members(); }
  Task<Status> add_learner(NodeId node, Instant deadline) override { return log_->add_learner(node, deadline); }
  Task<Status> set_voter(NodeId node, bool voter, Instant deadline) override {
    return log_->set_voter(node, voter, deadline);
  }
  Task<Status> remove(NodeId node, Instant deadline) override { return log_->remove(node, deadline); }
  Task<Status> hand_over(Instant deadline) override { return log_->hand_over(deadline); }
  void on_change(std::function<void()> f) override { log_->on_change(std::move(f)); }
  Task<void> close() override { return log_->close(); }

 private:
  std::shared_ptr<RaftLog> log_;
};

}  // namespace

Result<std::unique_ptr<env::CommandLog>> open_raft_log(RaftLogPorts ports, env::StateMachine& machine,
                                                       RaftLogOptions options) {
  auto log = std::make_shared<RaftLog>(std::move(ports), machine, options);
  HOLO_TRY(log->start());
  log->serve();
  return std::unique_ptr<env::CommandLog>(std::make_unique<Handle>(std::move(log)));
}

}  // namespace holo::driver
