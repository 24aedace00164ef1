#include "sim/referee.h"

#include <algorithm>

#include "base/random.h"
#include "base/strings.h"
#include "core/control/results.h"

namespace holo::sim {
namespace {

constexpr std::uint64_t kCompareEvery = 32;  // Entries between comparisons of whole states.

/// Of an entry that a snapshot brought: all of its commands.
constexpr std::uint64_t kWhole = UINT64_MAX;

using control::NodeState;

}  // namespace

std::uint64_t hash_of(ByteSpan bytes) {
  std::uint64_t h = mix64(bytes.size());
  std::size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, 8);
    h = (h ^ word) * 0x9E3779B97F4A7C15ULL;
    h ^= h >> 29;
  }
  for (; at < bytes.size(); ++at) h = (h ^ static_cast<std::uint64_t>(bytes[at])) * 0x100000001B3ULL;
  return mix64(h);
}

Referee::Referee() { shadow_.add_observer(this); }

void Referee::broken(std::string what) {
  if (violation_) return;
  violation_ = std::move(what);
  if (trace) trace("VIOLATION " + *violation_);
}

// ---- The log

void Referee::on_append(NodeId node, const env::LogEntry& entry) {
  const std::uint64_t hash = mix64(hash_of(entry.data) ^ entry.type);
  const auto [it, fresh] = stored_.try_emplace({entry.index, entry.term}, hash);
  if (!fresh && it->second != hash) {
    broken(str("log matching: node ", node, " stored another entry ", entry.index, " of term ", entry.term));
  }
}

void Referee::on_truncate(NodeId node, std::uint64_t index) {
  const auto it = applied_.find(node);
  if (it != applied_.end() && index <= it->second.first) {
    broken(str("a committed entry lost: node ", node, " drops its log from ", index, ", and had applied ",
               it->second.first));
  }
}

void Referee::on_status(NodeId node, const env::LogStatus& status) {
  if (status.role == env::LogRole::leader) {
    const auto [it, fresh] = leaders_.try_emplace(status.term, node);
    if (!fresh && it->second != node) {
      broken(str("two leaders of term ", status.term, ": ", it->second, " and ", node));
    }
    if (fresh && trace) trace(str("leader of term ", status.term, ": node ", node));
  }
  LogIndex& committed = committed_[node];
  if (status.committed < committed && status.committed.value != 0) {
    broken(str("node ", node, "'s commit index falls from ", committed, " to ", status.committed));
  }
  committed = std::max(committed, status.committed);
}

void Referee::on_members(NodeId node, const env::LogStatus& status, const std::vector<env::LogMember>& members) {
  if (status.role != env::LogRole::leader) return;
  std::set<NodeId> now;
  for (const env::LogMember& m : members) {
    if (m.voter) now.insert(m.node);
  }
  const auto& [term, before] = voters_;
  if (term == status.term) {
    std::vector<NodeId> changed;
    std::ranges::set_symmetric_difference(before, now, std::back_inserter(changed));
    if (changed.size() > 1) {
      broken(str("node ", node, " changed ", changed.size(), " voters at once in term ", term));
    }
  }
  if (term > status.term) return;
  voters_ = {status.term, std::move(now)};
}

void Referee::on_start(NodeId node) {
  applied_.erase(node);
  committed_.erase(node);
}

void Referee::on_restored(NodeId node, LogIndex index) {
  applied_[node] = {index.value, kWhole};
  committed_.erase(node);  // The log may have been opened again.
}

std::uint64_t Referee::fingerprint(const control::State& state, ByteSpan command) {
  std::uint64_t h = mix64(state.epoch().value);
  for (const std::uint64_t v : {static_cast<std::uint64_t>(state.now().ms), state.live_count(),
                                static_cast<std::size_t>(state.keys().revision()), state.keys().compacted(),
                                state.keys().bytes(), state.applied().value}) {
    h = mix64(h ^ v);
  }
  wire::Command decoded;
  if (!decoded.ParseFromArray(command.data(), static_cast<int>(command.size()))) return h;
  const auto result = state.result_of(NodeId{decoded.client()}, decoded.incarnation(), decoded.sequence());
  if (!result) return h + 1;
  return mix64(h ^ hash_of(as_bytes(result->SerializeAsString())));
}

void Referee::on_applied(NodeId node, LogIndex index, WallTime when, ByteSpan command, const control::State& state) {
  const std::uint64_t hash = mix64(hash_of(command) ^ static_cast<std::uint64_t>(when.ms));
  Position& applied = applied_[node];
  if (index.value < applied.first || (index.value == applied.first && applied.second == kWhole)) {
    return broken(str("node ", node, " applies entry ", index, " after entry ", applied.first));
  }
  applied = {index.value, index.value == applied.first ? applied.second + 1 : 0};
  if (applied > last_) apply_to_shadow(applied, when, command, hash);
  const auto it = log_.find(applied);
  if (it == log_.end()) return broken(str("node ", node, " applies entry ", index, ", which others left out"));
  if (it->second.hash != hash) return broken(str("node ", node, " applies another entry ", index));
  if (it->second.after != fingerprint(state, command)) {
    return broken(str("node ", node, " has come to another state with entry ", index));
  }
  if (it->second.snapshot == 0) return;
  ++compared_;
  if (it->second.snapshot != hash_of(state.snapshot())) {
    broken(str("node ", node, "'s whole state differs from the others' after entry ", index));
  }
}

void Referee::compare(NodeId node, const control::State& state) {
  if (state.applied() != shadow_.applied()) {
    return broken(str("node ", node, " has applied ", state.applied(), " of ", shadow_.applied(), " entries"));
  }
  ++compared_;
  if (state.snapshot() != shadow_.snapshot()) broken(str("node ", node, " has come to another state in the end"));
}

// ---- The shadow

void Referee::apply_to_shadow(Position at, WallTime when, ByteSpan command, std::uint64_t hash) {
  last_ = at;
  const LogIndex index{at.first};
  const Epoch epoch = shadow_.epoch();
  const WallTime now = shadow_.now();
  const std::uint64_t revision = shadow_.keys().revision();
  const wire::CommandResult result = shadow_.apply(index, when, command);
  Applied& entry = log_[at];
  entry.hash = hash;
  entry.after = fingerprint(shadow_, command);
  if (log_.size() % kCompareEvery == 0) entry.snapshot = hash_of(shadow_.snapshot()) | 1;
  if (entry.snapshot != 0) entry.snapshot = hash_of(shadow_.snapshot());
  // Also what the log says of itself: the state does not let its own time fall, whatever it is told.
  if (when < last_when_) broken(str("entry ", index, " carries an earlier time than one before it"));
  last_when_ = std::max(last_when_, when);
  if (shadow_.now() < now) broken(str("the time of entry ", index, " goes back"));
  if (shadow_.epoch() < epoch) broken(str("the epoch falls with entry ", index));
  if (shadow_.epoch() != epoch && !nodes_changed_) {
    broken(str("the epoch moves with entry ", index, ", though nothing has happened to any node"));
  }
  if (shadow_.keys().revision() < revision) broken(str("the revision falls with entry ", index));
  if (std::exchange(nodes_changed_, false)) check_nodes(epoch);
  if (std::exchange(placement_changed_, false)) check_homes();
  wire::Command decoded;
  if (!decoded.ParseFromArray(command.data(), static_cast<int>(command.size()))) return;
  // Sent again it acts no more, and only gives its result.
  const bool fresh = acted_.insert({decoded.client(), decoded.incarnation(), decoded.sequence()}).second;
  if (fresh) check_leases(decoded, result);
  check_locks(decoded);
  if (shadow_.keys().revision() != revision) take_changes();
  if (trace)
    trace(str("entry ", index, " kind ", static_cast<int>(decoded.body().kind_case()), " of node ",
              NodeId{decoded.client()}, ", epoch ", shadow_.epoch(), ", revision ", shadow_.keys().revision()));
}

void Referee::check_nodes(Epoch before) {
  for (const auto& [id, n] : shadow_.nodes()) {
    NodeSeen& seen = nodes_[id];
    if (n.incarnation < seen.incarnation) broken(str("the incarnation of node ", id, " falls"));
    const bool newly_dead =
        n.state == NodeState::dead && (seen.state != NodeState::dead || seen.incarnation != n.incarnation);
    if (newly_dead) {
      if (!died_.insert({id, n.incarnation}).second) broken(str("node ", id, " dies twice under one incarnation"));
      if (shadow_.epoch() != Epoch{before.value + 1})
        broken(str("node ", id, " dies and the epoch goes from ", before, " to ", shadow_.epoch()));
    }
    if (n.state == NodeState::left && left_.insert(id).second && shadow_.epoch() != Epoch{before.value + 1}) {
      broken(str("node ", id, " is removed and the epoch goes from ", before, " to ", shadow_.epoch()));
    }
    if (n.state != NodeState::left && left_.contains(id))
      broken(str("node ", id, " is a member again, after it had left"));
    if (n.alive() && died_.contains({id, n.incarnation})) {
      broken(str("node ", id, " is alive again under incarnation ", n.incarnation, ", which was declared dead"));
    }
    if (trace && (newly_dead || n.state != seen.state || n.incarnation != seen.incarnation)) {
      trace(str("epoch ", shadow_.epoch(), ": node ", id, " is ", control::node_state_name(n.state)));
    }
    seen = {.state = n.state, .incarnation = n.incarnation};
  }
}

void Referee::on_region_freed(RegionId region) {
  std::erase_if(homes_, [region](const auto& h) { return h.first.first == region; });
}

void Referee::check_homes() {
  if (homes_epoch_ != shadow_.epoch()) homes_.clear();
  homes_epoch_ = shadow_.epoch();
  for (const RegionId region : shadow_.regions()) {
    shadow_.for_each_shard(region, [&](const control::State::ShardView& v) {
      if (v.in_sync.empty()) return;
      const auto [it, fresh] = homes_.try_emplace({region, v.shard.value}, *v.in_sync.begin());
      if (!fresh && it->second != *v.in_sync.begin()) {
        broken(str("shard ", v.shard, " of region ", region, " has two homes in epoch ", homes_epoch_));
      }
    });
  }
  check_hosts();
}

/// Copies that lie where they are meant to lie are on two hosts, where there are two.
void Referee::check_hosts() {
  const auto host_of = [&](NodeId id) {
    const control::NodeRecord* n = shadow_.node(id);
    return n == nullptr ? std::string() : n->place.host;
  };
  for (const RegionId region : shadow_.regions()) {
    shadow_.for_each_shard(region, [&](const control::State::ShardView& v) {
      if (v.moving() || v.in_sync.size() < 2) return;
      const std::string first = host_of(*v.in_sync.begin());
      if (first.empty()) return;
      ++spread_;
      if (!std::ranges::all_of(v.in_sync, [&](NodeId id) { return host_of(id) == first; })) return;
      for (const control::RingNode& n : shadow_.table().nodes()) {
        if (n.host == first) continue;
        return broken(str("all copies of shard ", v.shard, " of region ", region, " are on host ", first, ", and node ",
                          n.id, " is on another"));
      }
    });
  }
}

// ---- Leases and locks, by a model of their own

void Referee::check_leases(const wire::Command& command, const wire::CommandResult& result) {
  const std::int64_t now = shadow_.now().ms;
  const wire::CommandBody& body = command.body();
  const bool done = !control::is_error(result.error());
  std::uint64_t ended = 0;
  if (body.has_lease_grant() && done && !leases_.contains(result.lease()) && shadow_.leases().exists(result.lease())) {
    const std::uint64_t ttl = body.lease_grant().ttl_ms();
    leases_[result.lease()] = {.ttl = ttl, .deadline = now + static_cast<std::int64_t>(ttl)};
  } else if (body.has_lease_keep() && done) {
    if (const auto it = leases_.find(body.lease_keep().lease()); it != leases_.end()) {
      it->second.deadline = now + static_cast<std::int64_t>(it->second.ttl);
    }
  } else if (body.has_leadership_begun() && done) {  // Not one that a leader proposed before it died.
    for (auto& [id, lease] : leases_) lease.deadline = now + static_cast<std::int64_t>(lease.ttl);
  } else if (body.has_lease_end()) {
    ended = body.lease_end().lease();
  }
  for (auto it = leases_.begin(); it != leases_.end();) {
    if (shadow_.leases().exists(it->first)) {
      ++it;
      continue;
    }
    if (it->first != ended && now < it->second.deadline) {
      broken(str("lease ", it->first, " ended ", it->second.deadline - now, " ms early"));
    }
    it = leases_.erase(it);
  }
}

void Referee::check_locks(const wire::Command& command) {
  const wire::LockList list = shadow_.leases().locks(shadow_.keys());
  std::set<std::string> held;
  for (const wire::LockInfo& lock : list.locks()) {
    held.insert(lock.name());
    const std::uint64_t lease = lock.places_size() > 0 ? lock.places(0).lease() : 0;
    LockModel& model = locks_[lock.name()];
    if (model.lease == lease && model.token == lock.token()) continue;
    const bool given_back = command.body().has_lock_release() && command.body().lock_release().name() == lock.name() &&
                            command.body().lock_release().lease() == model.lease;
    if (model.lease != 0 && model.lease != lease && leases_.contains(model.lease) && !given_back) {
      broken(str("lock ", lock.name(), " was handed from lease ", model.lease, " to ", lease, " while it was held"));
    }
    std::uint64_t& highest = tokens_[lock.name()];
    if (lock.token() <= highest) {
      broken(str("lock ", lock.name(), ": token ", lock.token(), " after ", highest));
    }
    highest = std::max(highest, lock.token());
    ++grants_;
    model = {.lease = lease, .token = lock.token()};
  }
  std::erase_if(locks_, [&](const auto& l) { return !held.contains(l.first); });
}

// ---- What clients see

void Referee::take_changes() {
  wire::KvWatch watch;
  watch.mutable_range()->set_key(std::string(1, '\x01'));
  watch.mutable_range()->set_end(std::string(1, '\0'));
  watch.set_from(changes_until_ + 1);
  for (;;) {
    const auto events = shadow_.keys().events(watch);
    if (!events) break;  // Compacted at once; watchers are told so too.
    for (const wire::KvEvent& e : events->events()) {
      changes_.push_back(
          {.revision = e.pair().modified(), .key = e.pair().key(), .value = e.pair().value(), .deleted = e.deleted()});
    }
    if (events->events().empty()) break;
    watch.set_from(events->from());
    watch.set_skip(events->skip());
  }
  changes_until_ = shadow_.keys().revision();
}

std::uint64_t Referee::changes_before(std::uint64_t revision) const {
  const auto it = std::ranges::lower_bound(changes_, revision, {}, &KvChange::revision);
  return static_cast<std::uint64_t>(it - changes_.begin());
}

void Referee::on_watched(NodeId node, std::uint64_t& cursor, const std::vector<KvChange>& seen) {
  for (const KvChange& c : seen) {
    if (cursor >= changes_.size() || !(changes_[cursor] == c)) {
      return broken(str("a watcher at node ", node, " was told of revision ", c.revision, " (", c.key, ") where ",
                        cursor < changes_.size()
                            ? str("revision ", changes_[cursor].revision, " (", changes_[cursor].key, ")")
                            : std::string("nothing"),
                        " was due"));
    }
    ++cursor;
  }
}

/// What was answered before another request was made cannot be newer than what that one found.
void Referee::finish() {
  std::vector<const Revisioned*> by_begin, by_end;
  for (const Revisioned& a : answers_) {
    by_begin.push_back(&a);
    by_end.push_back(&a);
  }
  std::ranges::stable_sort(by_begin, {}, &Revisioned::begin);
  std::ranges::stable_sort(by_end, {}, &Revisioned::end);
  std::size_t ended = 0;
  std::uint64_t newest = 0, newest_write = 0;
  for (const Revisioned* a : by_begin) {
    for (; ended < by_end.size() && by_end[ended]->end < a->begin; ++ended) {
      newest = std::max(newest, by_end[ended]->revision);
      if (by_end[ended]->write) newest_write = std::max(newest_write, by_end[ended]->revision);
    }
    if (a->revision < newest || (a->write && a->revision <= newest_write)) {
      broken(str("an answer at revision ", a->revision, " to a request made after revision ", newest, " was known"));
    }
  }
}

}  // namespace holo::sim
