#include "driver/raft/raft_core.h"

#include <algorithm>
#include <cstring>

#include "base/limits.h"
#include "base/log.h"
#include "base/seeded_bugs.h"
#include "base/strings.h"

namespace holo::driver {
namespace {

constexpr unsigned kSendSnapshotAgainMs = 8000;

// Of every entry: who proposed it (origin, number), and the leader's time. An entry of several commands has kBatch for
// its number, and before each command its own number and length.
constexpr std::size_t kEnvelopeBytes = 24;
constexpr std::size_t kPartBytes = 12;
constexpr std::uint64_t kBatch = ~std::uint64_t{0};
constexpr std::uint64_t kLeastLogBytes = 16 << 20;  // Applied between two snapshots,
constexpr std::uint64_t kMostLogBytes = 256 << 20;  // and at most this much,
constexpr std::uint64_t kLogShare = 4;              // or a quarter of the last snapshot, so that both stay cheap.
constexpr std::uint64_t kTrailingBytes = 4 << 20;   // Of entries kept below a snapshot, for those a little behind.
constexpr std::size_t kMaxBatchCommands = 1024;
constexpr std::size_t kMaxBatchBytes = 1 << 20;
/// Commands gather for as long as an entry takes to be committed, and no longer than this.
constexpr Duration kMaxGathering = milliseconds(1);
/// The median of what rounds take is followed by so many parts of itself: one that waited long for the disk says
/// little.
constexpr int kRoundStep = 16;

void put_u32(std::byte* p, std::uint32_t v) { std::memcpy(p, &v, 4); }
void put_u64(std::byte* p, std::uint64_t v) { std::memcpy(p, &v, 8); }  // Little-endian, as every machine this runs on.
std::uint32_t get_u32(const std::byte* p) {
  std::uint32_t v = 0;
  std::memcpy(&v, p, 4);
  return v;
}
std::uint64_t get_u64(const std::byte* p) {
  std::uint64_t v = 0;
  std::memcpy(&v, p, 8);
  return v;
}

Error error_of(int rv, const char* what) {
  switch (rv) {
    case RAFT_NOTLEADER: return not_leader();
    case RAFT_LEADERSHIPLOST:
      return {.code = Errc::unavailable,
              .message = str(what, ": leadership was lost, the outcome is unknown"),
              .retryable = true};
    case RAFT_SHUTDOWN:
    case RAFT_CANCELED: return log_closing();
    case RAFT_CANTCHANGE:
    case RAFT_BUSY:
      return {.code = Errc::overloaded, .message = str(what, ": another change is under way"), .retryable = true};
    default: return {.code = Errc::internal, .message = str(what, ": ", raft_strerror(rv)), .retryable = true};
  }
}

}  // namespace

Error not_leader() { return {.code = Errc::not_leader, .message = "this node does not lead", .retryable = true}; }
Error log_closing() { return {.code = Errc::cancelled, .message = "the log is closing"}; }

RaftCore::RaftCore(RaftLogPorts ports, env::StateMachine& machine, RaftLogOptions options)
    : ports_(std::move(ports)), machine_(machine), options_(options), origin_(ports_.entropy->u64() | 1) {}

// ---- Life

Status RaftCore::start() {
  io_ = std::make_shared<RaftIo>(
      ports_, options_,
      RaftIo::Upward{.after_event = [this] { after_event(); },
                     .check = [this](NodeId from, const raft_message& m) { return check(from, m); },
                     .new_load = [this] { return machine_.load(); }});
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
  // A snapshot that gets no answer (its receiver was busy with one of its own) is sent again after that; by default
  // only after 30 s.
  raft_set_install_snapshot_timeout(&raft_, kSendSnapshotAgainMs);
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
  apply_committed();
  io_->settle_members();
  after_event();
  return {};
}

/// libraft waits for a leader to say what is committed. A node whose peers are gone for good has to know what it has.
void RaftCore::apply_committed() {
  for (const RaftIo::Committed& entry : io_->take_committed(raft_.last_applied)) {
    if (entry.command.base != nullptr) apply(&entry.command);
    raft_.last_applied = entry.index;
    raft_.commit_index = std::max<raft_index>(raft_.commit_index, entry.index);
  }
}

void RaftCore::close(std::function<void()> done) {
  HOLO_ASSERT(!closing_);
  closing_ = true;
  pending_.clear();
  pending_bytes_ = 0;
  fail_waiting(log_closing());
  for (auto& [index, shot] : std::exchange(applied_waiters_, {})) resolve(shot, std::unexpected(log_closing()));
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
  s.last = LogIndex{raft_last_index(&raft_)};
  s.snapshot = LogIndex{std::max(restored_index_, io_->written_index())};
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

/// A term has one leader: what another sends in its name would put entries here that the leader never wrote.
Status RaftCore::check(NodeId from, const raft_message& m) {
  // libraft goes on naming the leader of the term before when this node votes for one that was handed the lead.
  const NodeId known = leading() || spoke_term_ == raft_.current_term ? leader() : NodeId{};
  const bool appends = m.type == RAFT_IO_APPEND_ENTRIES;
  const bool usurps = appends && m.append_entries.term == raft_.current_term && known && known != from;
  const bool incites = m.type == RAFT_IO_TIMEOUT_NOW && leader() != from;
  if (!usurps && !incites) {
    if (appends && m.append_entries.term >= raft_.current_term) spoke_term_ = m.append_entries.term;
    return {};
  }
  return fail(Errc::malformed, str("node ", from, " speaks as the leader of term ", raft_.current_term,
                                   known ? str(", which is node ", known) : std::string()));
}

// ---- Time

WallTime RaftCore::now() {
  const Instant now = ports_.loop->now();
  if (leading() && clock_term_ != raft_.current_term) {
    clock_term_ = raft_.current_term;
    clock_wall_ = ports_.loop->wall_now().ms;
    if (!HOLO_SEEDED_BUG(time_goes_back)) clock_wall_ = std::max(clock_wall_, last_wall_);
    clock_began_ = now;
  }
  std::int64_t wall = clock_wall_ + (now - clock_began_).millis();
  if (wall < last_wall_ &&
      !HOLO_SEEDED_BUG(time_goes_back)) {  // What an earlier leader stamped and this one has not known before.
    clock_wall_ = wall = last_wall_;
    clock_began_ = now;
  }
  return WallTime{wall};
}

// ---- The state machine

int RaftCore::apply(const raft_buffer* buf) {
  const LogIndex index{raft_.last_applied + 1};
  const ByteSpan entry(static_cast<const std::byte*>(buf->base), buf->len);
  note_applied(entry.size());
  if (entry.size() < kEnvelopeBytes) {
    machine_.apply(index, WallTime{last_wall_}, {});  // Not ours; the state machine refuses it like any garbage.
    return 0;
  }
  const std::uint64_t origin = get_u64(entry.data());
  const std::uint64_t token = get_u64(entry.data() + 8);
  const auto stamped = static_cast<std::int64_t>(get_u64(entry.data() + 16));
  last_wall_ = HOLO_SEEDED_BUG(time_goes_back) ? stamped : std::max(last_wall_, stamped);
  ByteSpan rest = entry.subspan(kEnvelopeBytes);
  if (token != kBatch) {
    apply_one(index, origin, token, rest);
    return 0;
  }
  while (!rest.empty()) {
    const std::size_t bytes = rest.size() < kPartBytes ? 0 : get_u32(rest.data() + 8);
    if (rest.size() < kPartBytes || bytes > rest.size() - kPartBytes) {
      machine_.apply(index, WallTime{last_wall_}, {});
      break;
    }
    apply_one(index, origin, get_u64(rest.data()), rest.subspan(kPartBytes, bytes));
    rest = rest.subspan(kPartBytes + bytes);
  }
  return 0;
}

void RaftCore::apply_one(LogIndex index, std::uint64_t origin, std::uint64_t token, ByteSpan command) {
  machine_.apply(index, WallTime{last_wall_}, command);
  if (origin != origin_) return;
  const auto it = waiting_.find(token);
  if (it == waiting_.end()) return;
  resolve(std::move(it->second), index);
  waiting_.erase(it);
}

/// A snapshot is due by entries, which libraft counts, or by bytes, which it does not.
void RaftCore::note_applied(std::size_t bytes) {
  applied_bytes_ += bytes;
  recent_.push_back(bytes);
  if (recent_.size() > options_.snapshot_trailing) recent_.pop_front();
  const std::uint64_t limit = std::clamp(io_->snapshot_bytes() / kLogShare, kLeastLogBytes, kMostLogBytes);
  if (applied_bytes_ < limit) return;
  raft_set_snapshot_threshold(&raft_, 1);
}

int RaftCore::snapshot(raft_buffer** bufs, unsigned* n) {
  applied_bytes_ = 0;
  raft_set_snapshot_threshold(&raft_, options_.snapshot_threshold);
  // Entries kept are kept in memory, too: as many as are small.
  unsigned trailing = 0;
  std::uint64_t bytes = 0;
  for (auto size = recent_.rbegin(); size != recent_.rend() && bytes < kTrailingBytes; ++size, ++trailing)
    bytes += *size;
  raft_set_snapshot_trailing(&raft_, std::max(trailing, 1U));  // None means to libraft that it is a leader's.
  io_->offer(SnapshotSink::header(raft_.last_applied, last_wall_), machine_.cut());
  *bufs = static_cast<raft_buffer*>(raft_malloc(sizeof(raft_buffer)));
  void* handle = raft_calloc(1, 8);
  HOLO_ASSERT(handle != nullptr && *bufs != nullptr, "out of memory");
  (*bufs)[0] = {handle, 8};
  *n = 1;
  return 0;
}

int RaftCore::restore(raft_buffer* buf) {
  const std::uint64_t handle = buf->len == 8 ? get_u64(static_cast<const std::byte*>(buf->base)) : 0;
  std::unique_ptr<SnapshotSink> sink = io_->take_received(handle);
  Status done;
  if (!sink) {
    auto stored = io_->read_stored();
    if (stored) {
      sink = std::move(*stored);
    } else {
      done = std::unexpected(stored.error());
    }
  }
  if (done) done = sink->finish();
  if (!done) {
    restore_error_ = done.error();
    return RAFT_MALFORMED;
  }
  last_wall_ = std::max(last_wall_, sink->wall());
  applied_bytes_ = 0;
  recent_.clear();
  restored_index_ = sink->index().value;
  raft_free(buf->base);
  return 0;
}

/// Later: whoever waits may call back into libraft, which is not ready for that inside its own callbacks.
void RaftCore::resolve(IndexShot shot, Result<LogIndex> r) {
  resolved_indexes_.emplace_back(std::move(shot), std::move(r));
  resolve_soon();
}
void RaftCore::resolve(StatusShot shot, Result<bool> r) {
  resolved_.emplace_back(std::move(shot), std::move(r));
  resolve_soon();
}
void RaftCore::resolve_soon() {
  if (std::exchange(resolve_posted_, true)) return;
  ports_.loop->post([me = shared_from_this()] {
    me->resolve_posted_ = false;
    const auto indexes = std::exchange(me->resolved_indexes_, {});
    const auto others = std::exchange(me->resolved_, {});
    for (const auto& [shot, r] : indexes) shot->set(r);
    for (const auto& [shot, r] : others) shot->set(r);
  });
}

void RaftCore::fail_waiting(const Error& e) {
  for (auto& [token, shot] : std::exchange(waiting_, {})) resolve(shot, std::unexpected(e));
}

void RaftCore::after_event() {
  if (!started_ || closing_) return;
  io_->set_tick();
  io_->note_commit();
  while (!applied_waiters_.empty() && applied_waiters_.begin()->first <= applied()) {
    resolve(applied_waiters_.begin()->second, true);
    applied_waiters_.erase(applied_waiters_.begin());
  }
  flush_when_due();
  const int state = raft_state(&raft_);
  if (state == RAFT_LEADER) begin_term();
  // While more is on its way the followers learn of this commit with that, or at the latest when that is committed.
  if (state == RAFT_LEADER && pending_.empty() && raft_.commit_index == raft_last_index(&raft_)) {
    io_->announce_commit(raft_.current_term, raft_.commit_index);
  }
  const NodeId now_leader = leader();
  if (seen_state_ == RAFT_LEADER && state != RAFT_LEADER) {
    log_info("control", "this node does not lead any more, in term ", raft_.current_term,
             state == RAFT_FOLLOWER && !leader() ? ": it does not hear a majority of the voters" : "");
    fail_waiting(error_of(RAFT_LEADERSHIPLOST, "append"));
  }
  if (state == seen_state_ && now_leader == seen_leader_ && configuration() == seen_configuration_) return;
  seen_state_ = state;
  seen_leader_ = now_leader;
  seen_configuration_ = configuration();
  ports_.loop->post([me = shared_from_this()] {
    if (!me->closing_ && me->on_change) me->on_change();
  });
}

/// With an entry of its own: only that one's commitment tells what else is committed.
void RaftCore::begin_term() {
  if (io_->own_term() == raft_.current_term || std::exchange(begun_term_, raft_.current_term) == raft_.current_term)
    return;
  ports_.loop->post([me = shared_from_this()] {
    if (me->closing_ || !me->leading() || me->io_->own_term() == me->raft_.current_term) return;
    auto request = std::make_unique<struct raft_barrier>();
    const int rv = ::raft_barrier(&me->raft_, request.get(), [](struct raft_barrier* r, int) { delete r; });
    if (rv == 0) (void)request.release();
    me->after_event();
  });
}

// ---- Appending

IndexShot RaftCore::propose(Buffer command, std::uint64_t& token) {
  auto shot = std::make_shared<OneShot<Result<LogIndex>>>();
  token = next_token_++;
  pending_bytes_ += kPartBytes + command.size();
  pending_.push_back({.token = token, .command = std::move(command)});
  waiting_[token] = shot;
  flush_when_due();
  return shot;
}

/// While the disk is busy with what came before, commands gather: they could not be committed sooner, and each entry
/// costs a message to every member and one back, and an fdatasync of each. Once they come so fast that the last entry
/// had several, they gather for a while beyond that; a short one, so that a long way to the followers is filled.
void RaftCore::flush_when_due() {
  const bool full = pending_.size() >= kMaxBatchCommands || pending_bytes_ >= kMaxBatchBytes;
  if (pending_.empty() || (io_->writing() && !full) || flush_posted_) return;
  const Instant now = ports_.loop->now();
  if (full || now >= next_flush_) {
    flush_posted_ = true;
    ports_.loop->post([me = shared_from_this()] { me->flush(); });
  } else if (!std::exchange(flush_awaited_, true)) {
    ports_.loop->call_at(next_flush_, [weak = weak_from_this()] {
      const auto me = weak.lock();
      if (!me) return;
      me->flush_awaited_ = false;
      me->flush_when_due();
    });
  }
}

void RaftCore::flush() {
  flush_posted_ = false;
  const Instant now = ports_.loop->now();
  next_flush_ = pending_.size() > 1 ? now + std::min(round_, kMaxGathering) : now;
  if (closing_) return;
  const std::vector<Pending> all = std::exchange(pending_, {});
  pending_bytes_ = 0;
  const auto wall = static_cast<std::uint64_t>(this->now().ms);
  for (std::size_t at = 0; at < all.size();) {
    const std::size_t first = at;
    std::size_t bytes = 0;
    do {
      bytes += kPartBytes + all[at++].command.size();
    } while (at < all.size() && at - first < kMaxBatchCommands &&
             bytes + kPartBytes + all[at].command.size() <= kMaxBatchBytes);
    auto* entry = static_cast<std::byte*>(raft_malloc(kEnvelopeBytes + bytes));
    HOLO_ASSERT(entry != nullptr, "out of memory");
    put_u64(entry, origin_);
    put_u64(entry + 8, kBatch);
    put_u64(entry + 16, wall);
    std::byte* out = entry + kEnvelopeBytes;
    for (std::size_t i = first; i < at; ++i) {
      const ByteSpan command = all[i].command.span();
      put_u64(out, all[i].token);
      put_u32(out + 8, static_cast<std::uint32_t>(command.size()));
      if (!command.empty()) std::memcpy(out + kPartBytes, command.data(), command.size());
      out += kPartBytes + command.size();
    }
    struct Batch {
      struct raft_apply request{};
      std::shared_ptr<RaftCore> core;
      std::vector<std::uint64_t> tokens;
      Instant began;
      void fail(int rv) const {
        for (const std::uint64_t token : tokens) {
          const auto it = core->waiting_.find(token);
          if (it == core->waiting_.end()) continue;
          core->resolve(it->second, std::unexpected(error_of(rv, "append")));
          core->waiting_.erase(it);
        }
      }
    };
    auto batch = std::make_unique<Batch>();
    batch->core = shared_from_this();
    batch->began = now;
    for (std::size_t i = first; i < at; ++i) batch->tokens.push_back(all[i].token);
    batch->request.data = batch.get();
    const raft_buffer buf{entry, kEnvelopeBytes + bytes};
    // Success is told from apply(), command by command.
    const int rv = raft_apply(&raft_, &batch->request, &buf, 1, [](struct raft_apply* request, int status, void*) {
      const std::unique_ptr<Batch> done(static_cast<Batch*>(request->data));
      if (status != 0) return done->fail(status);
      done->core->note_round(done->core->ports_.loop->now() - done->began);
    });
    if (rv == 0) {
      (void)batch.release();  // The callback frees it.
    } else {
      raft_free(entry);
      batch->fail(rv);
    }
  }
  after_event();
}

void RaftCore::note_round(Duration took) {
  if (round_.ns == 0) round_ = took;
  const Duration step = round_ / kRoundStep;
  round_ = took > round_ ? round_ + step : round_ - step;
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

Result<RaftCore::ReadPoint> RaftCore::read_point() {
  // A leader begins its term with an entry of its own; only once that is committed it knows what else is.
  if (!leading() || closing_ || io_->own_term() != raft_.current_term) return std::unexpected(not_leader());
  return ReadPoint{.term = raft_.current_term,
                   .index = LogIndex{std::max<std::uint64_t>(raft_.commit_index, io_->own_term_first())},
                   .configuration = configuration()};
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
    // Before an entry of its term is committed it may not know of a change that is, and begin one that overlaps it
    // (Ongaro, raft-dev, 10 July 2015).
    const bool begun =
        me->io_->own_term() == me->raft_.current_term && me->raft_.commit_index >= me->io_->own_term_first();
    const int rv = me->leading() && !begun
                       ? RAFT_CANTCHANGE
                       : begin(&me->raft_, &r->request, [](raft_change* request, int status) {
                           const std::unique_ptr<Request> done(static_cast<Request*>(request->data));
                           done->core->resolve(done->shot, status == 0 ? Result<bool>(true)
                                                                       : std::unexpected(error_of(status, done->what)));
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

StatusShot RaftCore::transfer(NodeId to) {
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
  const int rv = raft_transfer(&raft_, &r->request, to.value, [](struct raft_transfer* request) {
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

}  // namespace holo::driver
