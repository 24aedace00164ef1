#include "driver/raft/raft_io.h"

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "base/seeded_bugs.h"
#include "base/strings.h"

namespace holo::driver {
namespace {

constexpr unsigned kMaxInFlight = 32;           // Messages to one peer; more are not sent, libraft sends again.
constexpr std::size_t kMaxWriteEntries = 1024;  // In one write to the disk.
constexpr Duration kRetryWrite = milliseconds(500);
constexpr Duration kNoteCommit = milliseconds(100);
constexpr Duration kShortestTick = milliseconds(30);  // When libraft has not done what is due.
constexpr raft_time kLongestTickMs = 1000;
constexpr raft_time kTogetherMs = 30;
constexpr Duration kLate = milliseconds(50);  // A timer that rings so late: this loop stood still.
constexpr Duration kMessageDeadline = seconds(2);

}  // namespace

RaftIo::RaftIo(RaftLogPorts ports, RaftLogOptions options, Upward upward)
    : ports_(std::move(ports)), options_(options), upward_(std::move(upward)) {
  bind();
}

void RaftIo::bind() {
  io_.version = 1;
  io_.impl = this;
  io_.init = [](raft_io*, raft_id, const char*) { return 0; };
  io_.close = [](raft_io* io, raft_io_close_cb cb) { self(io)->close(cb); };
  io_.load = [](raft_io* io, raft_term* term, raft_id* vote, raft_snapshot** snapshot, raft_index* start,
                raft_entry** entries,
                size_t* n) { return self(io)->take_stored(term, vote, snapshot, start, entries, n); };
  io_.start = [](raft_io* io, unsigned, raft_io_tick_cb on_tick, raft_io_recv_cb on_recv) {
    RaftIo* me = self(io);
    me->tick_cb_ = on_tick;
    me->recv_cb_ = on_recv;
    me->due_ = me->seen_ = me->ticked_ = me->ports_.loop->now();
    me->set_tick();
    return 0;
  };
  io_.bootstrap = [](raft_io* io, const raft_configuration* conf) { return self(io)->bootstrap(conf); };
  io_.recover = [](raft_io*, const raft_configuration*) { return RAFT_IOERR; };  // Never asked for.
  io_.set_term = [](raft_io* io, raft_term term) {
    RaftIo* me = self(io);
    if (!me->ports_.store->set_vote(term, NodeId{})) return RAFT_IOERR;
    me->term_ = term;
    me->vote_ = {};
    return 0;
  };
  io_.set_vote = [](raft_io* io, raft_id vote) {
    RaftIo* me = self(io);
    if (!HOLO_SEEDED_BUG(vote_not_kept) && !me->ports_.store->set_vote(me->term_, NodeId{vote})) return RAFT_IOERR;
    me->vote_ = NodeId{vote};
    return 0;
  };
  io_.send = [](raft_io* io, raft_io_send* request, const raft_message* message, raft_io_send_cb cb) {
    return self(io)->send(request, message, cb);
  };
  io_.append = [](raft_io* io, raft_io_append* request, const raft_entry* entries, unsigned n, raft_io_append_cb cb) {
    RaftIo* me = self(io);
    if (me->closing_) return RAFT_CANCELED;
    request->cb = cb;
    Write w;
    w.kind = Write::Kind::append;
    w.index = me->next_index_;
    w.entries = entries;
    w.n = n;
    w.append = request;
    me->appended_ = true;
    for (unsigned i = 0; i < n; ++i) {
      if (entries[i].type != RAFT_CHANGE) continue;
      auto servers = decode_raft_change({static_cast<const std::byte*>(entries[i].buf.base), entries[i].buf.len});
      HOLO_ASSERT(servers.has_value(), "a change of members that was not checked");
      me->members_.append(me->next_index_ + i, std::move(*servers));
    }
    if (n > 0 && entries[n - 1].term != me->own_term_) {
      unsigned first = n - 1;
      while (first > 0 && entries[first - 1].term == entries[n - 1].term) --first;
      me->own_term_ = entries[n - 1].term;
      me->own_term_first_ = me->next_index_ + first;
      me->followers_.clear();
      me->held_.clear();
    }
    me->next_index_ += n;
    me->enqueue(std::move(w));
    return 0;
  };
  io_.truncate = [](raft_io* io, raft_index index) {
    RaftIo* me = self(io);
    if (me->closing_) return RAFT_CANCELED;
    Write w;
    w.kind = Write::Kind::truncate;
    w.index = index;
    me->next_index_ = index;
    me->members_.truncate(index);
    me->enqueue(std::move(w));
    return 0;
  };
  io_.snapshot_put = [](raft_io* io, unsigned trailing, raft_io_snapshot_put* request, const raft_snapshot* snapshot,
                        raft_io_snapshot_put_cb cb) { return self(io)->put(trailing, request, snapshot, cb); };
  io_.snapshot_get = [](raft_io* io, raft_io_snapshot_get* request, raft_io_snapshot_get_cb cb) {
    RaftIo* me = self(io);
    if (me->closing_) return RAFT_CANCELED;
    request->cb = cb;
    me->get({.request = request});
    return 0;
  };
  io_.time = [](raft_io* io) { return self(io)->time(); };
  io_.random = [](raft_io* io, int min, int max) {
    const auto range = static_cast<std::uint64_t>(std::max(max - min, 1));
    return min + static_cast<int>(self(io)->ports_.entropy->u64() % range);
  };
}

// ---- What is on the disk at the start

Status RaftIo::load() {
  HOLO_ASSIGN(log, ports_.store->load());
  stored_ = std::move(log);
  term_ = stored_.term;
  vote_ = stored_.vote;
  lost_ = stored_.lost;
  next_index_ = stored_.snapshot ? stored_.snapshot->index + 1 : 1;
  if (!stored_.entries.empty()) next_index_ = stored_.entries.back().index + 1;
  if (stored_.snapshot && next_index_ <= stored_.snapshot->index) {
    return fail(Errc::corrupt, str("entry ", next_index_, " of the log is missing: the snapshot reaches up to ",
                                   stored_.snapshot->index));
  }
  for (const env::OwnedLogEntry& e : stored_.entries) {
    if (e.type < RAFT_COMMAND || e.type > RAFT_CHANGE) {
      return fail(Errc::corrupt, str("entry ", e.index, " of the log has no known type"));
    }
    if (e.type == RAFT_CHANGE && !decode_raft_change(e.data)) {
      return fail(Errc::corrupt, str("entry ", e.index, " of the log changes the members, and does not decode"));
    }
  }
  return {};
}

int RaftIo::take_stored(raft_term* term, raft_id* vote, raft_snapshot** snapshot, raft_index* start,
                        raft_entry** entries, size_t* n) {
  *term = stored_.term;
  *vote = stored_.vote.value;
  *snapshot = nullptr;
  *start = stored_.snapshot ? stored_.snapshot->index + 1 : 1;
  *entries = nullptr;
  *n = 0;
  if (stored_.snapshot) {
    *snapshot = raft_snapshot_of(*stored_.snapshot, 0);
    if (*snapshot == nullptr) return RAFT_MALFORMED;
    members_.restart(stored_.snapshot->configuration_index, stored_.snapshot->servers);
  }
  for (const env::OwnedLogEntry& e : stored_.entries) {
    const bool newer = !stored_.snapshot || e.index > stored_.snapshot->configuration_index;
    if (e.type == RAFT_CHANGE && newer) members_.append(e.index, *decode_raft_change(e.data));
  }
  if (!stored_.entries.empty()) {
    *start = stored_.entries.front().index;
    *n = stored_.entries.size();
    *entries = static_cast<raft_entry*>(raft_calloc(*n, sizeof(raft_entry)));
    HOLO_ASSERT(*entries != nullptr, "out of memory");
    // One batch for all: libraft frees it with the last entry in it, also when it refuses to start.
    std::size_t bytes = 0;
    for (const env::OwnedLogEntry& e : stored_.entries) bytes += e.data.size();
    auto* batch = static_cast<std::byte*>(raft_malloc(std::max<std::size_t>(bytes, 1)));
    HOLO_ASSERT(batch != nullptr, "out of memory");
    std::size_t at = 0;
    for (std::size_t i = 0; i < *n; ++i) {
      const env::OwnedLogEntry& e = stored_.entries[i];
      if (!e.data.empty()) std::memcpy(batch + at, e.data.data(), e.data.size());
      (*entries)[i] = {.term = e.term, .type = e.type, .buf = {batch + at, e.data.size()}, .batch = batch};
      if (e.index <= stored_.committed) {
        committed_.push_back({.index = e.index, .command = e.type == RAFT_COMMAND ? (*entries)[i].buf : raft_buffer{}});
      }
      at += e.data.size();
    }
  }
  noted_ = stored_.committed;
  stored_ = {};
  return 0;
}

std::vector<RaftIo::Committed> RaftIo::take_committed(std::uint64_t applied) {
  std::vector<Committed> out = std::exchange(committed_, {});
  std::erase_if(out, [applied](const Committed& c) { return c.index <= applied; });
  return out;
}

int RaftIo::bootstrap(const raft_configuration* conf) {
  raft_buffer encoded{};
  if (const int rv = raft_configuration_encode(conf, &encoded); rv != 0) return rv;
  const env::LogEntry first{
      .index = 1, .term = 1, .type = RAFT_CHANGE, .data = {static_cast<const std::byte*>(encoded.base), encoded.len}};
  Status s = ports_.store->append({first});
  if (s) s = ports_.store->set_vote(1, NodeId{});
  raft_free(encoded.base);
  return s ? 0 : RAFT_IOERR;
}

// ---- Time

raft_time RaftIo::time() {
  const Instant now = ports_.loop->now();
  std::int64_t gone = std::max<std::int64_t>((now - seen_).ns, 0);
  if (now > due_ + kLate) gone = std::min(gone, (options_.heartbeat * 2).ns);
  virtual_ns_ += gone;
  seen_ = now;
  return static_cast<raft_time>(virtual_ns_ / 1'000'000);
}

/// libraft looks at its timers when it is told that time has passed. An idle node wakes up for little else.
Instant RaftIo::next_tick() {
  const raft_time now = time();
  const raft& r = served();
  raft_time due = now + (r.state == RAFT_LEADER ? r.heartbeat_timeout : kLongestTickMs);
  bool voter = false;
  bool alone = true;
  raft_time first = now;
  raft_time last = 0;
  for (unsigned i = 0; i < r.configuration.n; ++i) {
    const raft_server& s = r.configuration.servers[i];
    if (s.id == r.id) {
      voter = s.role == RAFT_VOTER;
      continue;
    }
    alone = false;
    if (r.state != RAFT_LEADER) continue;
    first = std::min(first, followers_[NodeId{s.id}].sent);
    last = std::max(last, followers_[NodeId{s.id}].sent);
  }
  if (r.state == RAFT_LEADER) {
    // All heartbeats go out together, where they are not far apart.
    if (!alone) due = std::min(due, std::min(last, first + kTogetherMs) + r.heartbeat_timeout);
    due = std::min(due, r.election_timer_start + r.election_timeout);
  } else if (r.state == RAFT_CANDIDATE) {
    due = std::min(due, r.election_timer_start + r.candidate_state.randomized_election_timeout);
  } else if (r.state == RAFT_FOLLOWER && voter) {
    due = alone ? now : std::min(due, r.election_timer_start + r.follower_state.randomized_election_timeout);
  }
  return seen_ + milliseconds(due > now ? static_cast<std::int64_t>(due - now) : 0);
}

void RaftIo::set_tick() {
  if (closing_ || tick_cb_ == nullptr || ports_.loop->stopping()) return;
  // A busy leader asks after every message; it has many followers, and looks at each in every heartbeat.
  const bool leads = served().state == RAFT_LEADER;
  if (leads && timer_ != 0 && due_ <= ports_.loop->now() + options_.heartbeat) return;
  const Instant next = std::max(next_tick(), ticked_ + std::min(options_.heartbeat, kShortestTick));
  if (timer_ != 0 && due_ <= next) return;  // It rings early, looks, and sets itself again.
  ports_.loop->cancel(timer_);
  due_ = next;
  timer_ = ports_.loop->call_at(due_, [me = shared_from_this()] { me->tick(); });
}

void RaftIo::tick() {
  timer_ = 0;
  if (closing_) return;
  if (const Instant next = next_tick(); next > seen_) return set_tick();
  ticked_ = ports_.loop->now();
  if (!lost_) tick_cb_(&io_);  // With a tick it might stand for election.
  settle_members();
  upward_.after_event();
  set_tick();
}

// ---- Network

int RaftIo::send(raft_io_send* request, const raft_message* message, raft_io_send_cb cb) {
  if (closing_) return RAFT_CANCELED;
  const NodeId peer{message->server_id};
  const std::uint64_t id = next_send_++;
  if (message->type == RAFT_IO_INSTALL_SNAPSHOT) {
    std::uint64_t handle = 0;
    const raft_buffer& data = message->install_snapshot.data;
    if (data.len == sizeof handle) std::memcpy(&handle, data.base, sizeof handle);
    const auto reader = readers_.extract(handle);
    if (reader.empty()) return RAFT_NOTFOUND;
    if (!snapshots_to_.insert(peer).second) return RAFT_BUSY;  // One is on its way already.
    sends_[id] = {.request = request, .cb = cb};
    ++in_flight_[peer];
    ports_.loop->post([me = shared_from_this(), id, peer, header = snapshot_header(*message), r = reader.mapped()] {
      if (!me->closing_) me->ports_.loop->spawn(deliver_snapshot(me, id, peer, header, r));
    });
    return 0;
  }
  sends_[id] = {.request = request, .cb = cb};
  if (const auto it = in_flight_.find(peer); it != in_flight_.end() && it->second >= kMaxInFlight) {
    // Told later: libraft frees the entries of a message twice when it cannot send the answer at once.
    ports_.loop->post([me = shared_from_this(), id] { me->ended(id, RAFT_NOCONNECTION); });
    return 0;
  }
  note_sent(*message);
  raft_message out = *message;
  if (out.type == RAFT_IO_APPEND_ENTRIES_RESULT) {
    settle_claim(out.append_entries_result);
    if (answer_ != nullptr && answer_->to == peer && answer_->header.empty()) {
      answer_->header = encode_raft_message(out).header;
      ports_.loop->post([me = shared_from_this(), id] { me->ended(id, 0); });
      return 0;
    }
  }
  post(peer, id, out);
  return 0;
}

/// libraft says up to where something is stored here, whoever it is from, and a leader counts that as its own entries.
/// What is committed every leader has; of the rest, what was matched in this term. What a snapshot here has replaced
/// libraft refuses, and says of an older snapshot no more than that it has it: the leader would go back and forth for
/// ever.
void RaftIo::settle_claim(raft_append_entries_result& result) {
  const std::uint64_t committed = served().commit_index;
  if (result.rejected != 0 && result.rejected <= committed) result.rejected = 0;
  if (result.rejected != 0) return;
  if (matching_ != 0) note_matched(matching_);
  const std::uint64_t own = matched_term_ == served().current_term ? matched_ : 0;
  result.last_log_index = std::max(committed, std::min<std::uint64_t>(result.last_log_index, own));
}

void RaftIo::note_matched(std::uint64_t index) {
  if (matched_term_ != served().current_term) matched_ = 0;
  matched_term_ = served().current_term;
  matched_ = std::max(matched_, index);
}

void RaftIo::post(NodeId peer, std::uint64_t id, const raft_message& message) {
  ++in_flight_[peer];
  // Later, as libraft does not expect the callback before send() returns.
  auto shared = std::make_shared<env::Request>(encode_raft_message(message));
  ports_.loop->post([me = shared_from_this(), id, peer, shared] {
    if (!me->closing_) me->ports_.loop->spawn(deliver(me, id, peer, std::move(*shared)));
  });
}

void RaftIo::note_sent(const raft_message& message) {
  if (message.type != RAFT_IO_APPEND_ENTRIES) return;
  Follower& f = followers_[NodeId{message.server_id}];
  f.sent = time();
  f.told = std::max<std::uint64_t>(f.told, message.append_entries.leader_commit);
}

void RaftIo::note_received(NodeId from, const raft_message& message) {
  if (message.type != RAFT_IO_APPEND_ENTRIES_RESULT) return;
  const auto& result = message.append_entries_result;
  if (result.rejected == 0 && result.term == own_term_) followers_[from].has = result.last_log_index;
}

void RaftIo::announce_commit(std::uint64_t term, std::uint64_t commit) {
  // The message names the term of entry `commit`, which is known only from this term's first entry on.
  if (closing_ || term != own_term_ || commit < own_term_first_) return;
  for (auto& [node, f] : followers_) {
    if (f.has < commit || f.told >= commit || in_flight_[node] >= kMaxInFlight) continue;
    f.told = commit;
    const std::string address = raft_address(node);
    raft_message message{};
    message.type = RAFT_IO_APPEND_ENTRIES;
    message.server_id = node.value;
    message.server_address = address.c_str();
    message.append_entries = {.term = term,
                              .prev_log_index = commit,
                              .prev_log_term = term,
                              .leader_commit = commit,
                              .entries = nullptr,
                              .n_entries = 0};
    post(node, next_send_++, message);
  }
}

Task<void> RaftIo::deliver(std::shared_ptr<RaftIo> io, std::uint64_t id, NodeId peer, env::Request request) {
  env::CallOptions options;
  options.klass = env::StreamClass::control;
  options.deadline = io->ports_.loop->now() + kMessageDeadline;
  auto reply = co_await io->ports_.transport->call(peer, std::move(request), options);
  if (reply && !reply->header.empty() && !io->closing_) {
    if (const Status s = io->take_answer(peer, std::move(reply->header)); !s) {
      log_debug("control", "node ", peer,
                " answered a message of the log with one that does not count: ", s.error().message);
    }
  }
  io->sent(id, peer, reply ? 0 : RAFT_NOCONNECTION);
}

void RaftIo::sent(std::uint64_t id, NodeId peer, int status) {
  if (auto it = in_flight_.find(peer); it != in_flight_.end() && --it->second == 0) in_flight_.erase(it);
  ended(id, status);
}

void RaftIo::ended(std::uint64_t id, int status) {
  const auto it = sends_.find(id);
  if (it == sends_.end()) return;
  const Send send = it->second;
  sends_.erase(it);
  if (send.cb != nullptr) send.cb(send.request, status);
  if (!closing_) upward_.after_event();
}

Task<Result<env::Reply>> RaftIo::receive(std::shared_ptr<RaftIo> io, NodeId from, env::Request request) {
  if (io->closing_ || io->recv_cb_ == nullptr) co_return fail(Errc::unavailable, "the log is closing");
  HOLO_CO_ASSIGN(header, decode_raft_header(request));
  if (header.type() == RAFT_IO_INSTALL_SNAPSHOT) {
    HOLO_CO_TRY(co_await receive_part(io, from, std::move(header), std::move(request)));
    co_return env::Reply{};
  }
  if (io->lost_ && (header.type() == RAFT_IO_REQUEST_VOTE || header.type() == RAFT_IO_TIMEOUT_NOW)) {
    co_return fail(Errc::unavailable, "this node has lost its log and does not vote");
  }
  Answer answer{.to = from, .header = {}};
  if (header.answer_in_reply()) io->answer_ = &answer;
  const Status taken = io->take(from, header, request);
  io->answer_ = nullptr;
  HOLO_CO_TRY(taken);
  env::Reply reply;
  reply.header = std::move(answer.header);
  co_return reply;
}

Status RaftIo::take(NodeId from, const wire::RaftMessage& header, const env::Request& request) {
  HOLO_ASSIGN(decoded, decode_raft_message(from, header, request));
  const std::string address = raft_address(from);
  decoded.message.server_address = address.c_str();
  HOLO_TRY(admissible(decoded.message));
  HOLO_TRY(upward_.check(from, decoded.message));
  note_received(from, decoded.message);
  if (decoded.message.type == RAFT_IO_TIMEOUT_NOW) {
    // libraft becomes a candidate at once, and dies of it when the new term cannot be written.
    HOLO_TRY(ports_.store->set_vote(term_, vote_));
  }
  hand_up(*decoded.release());
  upward_.after_event();
  return {};
}

Status RaftIo::take_answer(NodeId from, std::string header) {
  env::Request request;
  request.header = std::move(header);
  HOLO_ASSIGN(decoded, decode_raft_header(request));
  if (decoded.type() != RAFT_IO_APPEND_ENTRIES_RESULT) return fail(Errc::malformed, "it is not a result");
  return take(from, decoded, request);
}

// ---- What libraft would stumble over

/// In its place libraft has assertions, which Debian's build leaves out.
Status RaftIo::admissible(const raft_message& message) {
  const raft& r = served();
  const auto malformed = [](const char* what) { return fail(Errc::malformed, str("a message of the log: ", what)); };
  if (message.type == RAFT_IO_APPEND_ENTRIES) {
    const auto& a = message.append_entries;
    if (r.state == RAFT_LEADER && a.term == r.current_term) return malformed("another leader of this term");
    std::uint64_t term = a.prev_log_index == 0 ? 1 : std::max<std::uint64_t>(a.prev_log_term, 1);
    for (unsigned i = 0; i < a.n_entries; ++i) {
      if (a.entries[i].term < term || a.entries[i].term > a.term) return malformed("the term of an entry");
      term = a.entries[i].term;
    }
    // It would take entries that it has given up since for new ones, and append them where they do not belong.
    if (a.prev_log_index == 0 && r.log.offset > 0 && a.n_entries > 0)
      return malformed("entries that are in a snapshot");
  }
  if (message.type == RAFT_IO_INSTALL_SNAPSHOT) {
    const auto& s = message.install_snapshot;
    if (r.state == RAFT_LEADER && s.term == r.current_term) return malformed("another leader of this term");
    if (s.last_index == 0 || s.last_term == 0 || s.last_term > s.term || s.conf_index == 0 ||
        s.conf_index > s.last_index) {
      return malformed("a snapshot of nothing");
    }
  }
  return {};
}

bool RaftIo::own_entry_stored() {
  return own_term_ == served().current_term && served().last_stored >= own_term_first_;
}

/// The newest entry that a majority of the voters has stored.
raft_index RaftIo::on_majority() {
  const raft& r = served();
  std::vector<raft_index> has;
  for (unsigned i = 0; i < r.configuration.n; ++i) {
    const raft_server& s = r.configuration.servers[i];
    if (s.role != RAFT_VOTER) continue;
    const auto follower = followers_.find(NodeId{s.id});
    has.push_back(s.id == r.id ? r.last_stored : follower == followers_.end() ? 0 : follower->second.has);
  }
  if (has.empty()) return 0;
  std::ranges::sort(has, std::greater<>());
  return has[has.size() / 2];
}

void RaftIo::hand_up(raft_message message) {
  raft& r = served();
  if (message.type == RAFT_IO_APPEND_ENTRIES_RESULT && r.state == RAFT_LEADER && !own_entry_stored()) {
    // libraft commits whatever a majority has, also entries of earlier terms, which a later leader may still overwrite
    // (Ongaro's dissertation, 3.6.2). Until an entry of its own term is stored here no majority is found.
    auto& result = message.append_entries_result;
    if (result.rejected == 0 && result.term == r.current_term && result.last_log_index >= r.last_stored) {
      held_[NodeId{message.server_id}] = result;
      result.last_log_index = r.last_stored == 0 ? 0 : r.last_stored - 1;
    }
  }
  if (message.type == RAFT_IO_APPEND_ENTRIES) {
    auto& a = message.append_entries;
    matching_ = a.prev_log_index + a.n_entries;
    // Of what lies behind that here it may hold something else for committed.
    a.leader_commit = std::min<std::uint64_t>(a.leader_commit, matching_);
    // Where it drops a change of members it would look for the one before in its log, which a snapshot may have taken
    // away, and crash. It is told that there is none to drop; settle_members() does the rest.
    r.configuration_uncommitted_index = 0;
  } else if (message.type == RAFT_IO_INSTALL_SNAPSHOT) {
    matching_ = message.install_snapshot.last_index;
  } else if (message.type == RAFT_IO_REQUEST_VOTE && r.state == RAFT_FOLLOWER &&
             time() - r.election_timer_start >= r.election_timeout) {
    // libraft believes in a leader until its own timeout, so that whoever asks first is refused and the last to give up
    // is elected. The least timeout is enough (Ongaro's dissertation, 4.2.3).
    r.follower_state.current_leader.id = 0;
  }
  appended_ = false;
  const std::uint64_t matching = matching_;
  const bool entries = message.type == RAFT_IO_APPEND_ENTRIES;
  const raft_index stored = r.last_stored;
  bool shown = false;
  if (message.type == RAFT_IO_APPEND_ENTRIES_RESULT && r.state == RAFT_LEADER && own_entry_stored()) {
    // libraft asks whether a majority has the newest entry that is stored here, and no other. Where entries come faster
    // than a message goes there and back that is never so: nothing would be committed until no more of them came.
    const raft_index common = on_majority();
    shown = common > r.commit_index && common < stored;
    if (shown) r.last_stored = common;
  }
  recv_cb_(&io_, &message);
  if (shown) r.last_stored = stored;  // An answer neither stores nor drops anything.
  matching_ = 0;
  if (appended_ && entries) note_matched(matching);
  settle_members();
}

/// What followers said meanwhile counts now.
void RaftIo::hand_up_held() {
  if (held_.empty() || closing_) return;
  if (served().state != RAFT_LEADER) return held_.clear();
  if (!own_entry_stored()) return;
  for (const auto& [node, result] : std::exchange(held_, {})) {
    if (result.term != served().current_term) continue;
    const std::string address = raft_address(node);
    raft_message message{};
    message.type = RAFT_IO_APPEND_ENTRIES_RESULT;
    message.server_id = node.value;
    message.server_address = address.c_str();
    message.append_entries_result = result;
    hand_up(message);
  }
}

/// libraft takes a configuration over once it is on the disk, and not at all when it has become a candidate meanwhile;
/// after a restart it holds the last one for committed; an overwritten one it goes on with, unless the one before is
/// still in its log. The log itself says what is right: the last change in it counts, from the moment it is there.
void RaftIo::settle_members() {
  if (closing_ || members_.empty()) return;
  raft& r = served();
  if (r.state == RAFT_UNAVAILABLE) return;
  members_.committed(r.last_applied);
  const std::uint64_t newest = members_.newest_index();
  r.configuration_index = members_.index_at(r.last_applied);
  r.configuration_uncommitted_index = newest > r.last_applied ? newest : 0;
  if (r.state == RAFT_LEADER) return;  // It made the newest itself, and what it knows of followers goes by their order.
  const RaftServers& servers = members_.newest();
  bool same = r.configuration.n == servers.size();
  for (unsigned i = 0; same && i < r.configuration.n; ++i) {
    const raft_server& s = r.configuration.servers[i];
    same = s.id == servers[i].node.value && s.role == static_cast<int>(servers[i].role);
  }
  if (same) return;
  raft_configuration next;
  raft_configuration_init(&next);
  for (const env::LogSnapshotServer& s : servers) {
    const int rv = raft_configuration_add(&next, s.node.value, raft_address(s.node).c_str(), static_cast<int>(s.role));
    HOLO_ASSERT(rv == 0, "a configuration that was checked");
  }
  raft_configuration_close(&r.configuration);
  r.configuration = next;
}

// ---- Disk

void RaftIo::note_commit() {
  if (closing_ || note_ != 0 || served().commit_index <= noted_) return;
  note_ = ports_.loop->call_at(ports_.loop->now() + kNoteCommit, [me = shared_from_this()] {
    me->note_ = 0;
    if (me->closing_) return;
    me->noted_ = me->served().commit_index;
    Write w;
    w.kind = Write::Kind::committed;
    w.index = me->noted_;
    me->enqueue(std::move(w));
  });
}

void RaftIo::enqueue(Write w) {
  writes_.push_back(std::move(w));
  pump();
}

void RaftIo::pump() {
  if (writing_ || retry_ != 0 || writes_.empty()) return;
  writing_ = true;
  std::size_t count = 1;
  std::function<Status()> work;
  const Write& front = writes_.front();
  const std::shared_ptr<env::LogStore> store = ports_.store;
  switch (front.kind) {
    case Write::Kind::append: {
      std::vector<env::LogEntry> entries;
      count = 0;
      for (const Write& w : writes_) {
        if (w.kind != Write::Kind::append || (count > 0 && entries.size() + w.n > kMaxWriteEntries)) break;
        ++count;
        for (unsigned i = 0; i < w.n; ++i) {
          const raft_entry& e = w.entries[i];
          entries.push_back({.index = w.index + i,
                             .term = e.term,
                             .type = e.type,
                             .data = {static_cast<const std::byte*>(e.buf.base), e.buf.len}});
        }
      }
      work = [store, entries = std::move(entries)] { return store->append(entries); };
      break;
    }
    case Write::Kind::committed: work = [store, index = front.index] { return store->note_committed(index); }; break;
    case Write::Kind::truncate: work = [store, index = front.index] { return store->truncate(index); }; break;
    case Write::Kind::snapshot:
      work = [store, s = front.snapshot, data = front.data, keep = front.keep_after] {
        return store->keep_snapshot(*s, *data, keep);
      };
      break;
  }
  auto status = std::make_shared<Status>();
  if (HOLO_SEEDED_BUG(ack_before_sync)) {
    *status = work();
    ports_.loop->post([me = shared_from_this(), count, status] { me->written(count, *status); });
    return;
  }
  ports_.loop->offload([work = std::move(work), status] { *status = work(); },
                       [me = shared_from_this(), count, status] { me->written(count, *status); });
}

void RaftIo::written(std::size_t count, Status status) {
  if (!status && !closing_) {
    writing_ = false;
    if (!disk_error_) log_error("control", "the log waits for the disk: ", status.error().to_string());
    disk_error_ = status.error();
    disk_error_->node = options_.self.value;
    retry_ = ports_.loop->call_at(ports_.loop->now() + kRetryWrite, [me = shared_from_this()] {
      me->retry_ = 0;
      if (me->closing_) return me->finish_close();
      me->pump();
    });
    upward_.after_event();
    return;
  }
  if (status) disk_error_.reset();
  for (std::size_t i = 0; i < count; ++i) {
    const Write w = std::move(writes_.front());
    writes_.pop_front();
    const int code = status ? 0 : RAFT_IOERR;
    if (w.append != nullptr) w.append->cb(w.append, closing_ ? 0 : code);  // See finish_close().
    if (w.put != nullptr) {
      if (status) {
        snapshot_bytes_ = w.data->bytes();
        written_index_ = w.snapshot->index;
      }
      w.put->cb(w.put, code);
    }
  }
  writing_ =
      false;  // Not before: libraft appends from within its callbacks, and what is left of these is written already.
  if (closing_) return finish_close();
  settle_members();
  hand_up_held();
  upward_.after_event();
  pump();
}

// ---- The end

void RaftIo::close(raft_io_close_cb cb) {
  closing_ = true;
  close_cb_ = cb;
  if (timer_ != 0) ports_.loop->cancel(timer_);
  if (retry_ != 0) ports_.loop->cancel(retry_);
  if (note_ != 0) ports_.loop->cancel(note_);
  timer_ = retry_ = note_ = 0;
  ports_.loop->post([me = shared_from_this()] { me->finish_close(); });
}

void RaftIo::finish_close() {
  if (close_cb_ == nullptr || writing_ || reading_ > 0) return;
  for (auto& [id, send] : std::exchange(sends_, {})) {
    if (send.cb != nullptr) send.cb(send.request, RAFT_CANCELED);
  }
  while (!writes_.empty()) {
    const Write w = std::move(writes_.front());
    writes_.pop_front();
    // It no longer does anything with the answer. Told of an error it would drop these entries and all after them, and
    // stumble over those when their turn comes.
    if (w.append != nullptr) w.append->cb(w.append, 0);
    if (w.put != nullptr) w.put->cb(w.put, RAFT_CANCELED);
  }
  // Of no consequence when it fails: the next leader says it again.
  const std::uint64_t committed = std::min(served().commit_index, served().last_stored);
  if (committed > noted_) (void)ports_.store->note_committed(committed);
  std::exchange(close_cb_, nullptr)(&io_);
}

}  // namespace holo::driver
