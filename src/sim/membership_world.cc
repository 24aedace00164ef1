#include "sim/membership_world.h"

#include <algorithm>

#include "base/strings.h"
#include "core/membership/swim_wire.h"
#include "core/membership/voters.h"

namespace holo::sim {
namespace {

using membership::Effects;
using membership::Fact;
using membership::Message;
using membership::Standing;
using membership::Swim;
using membership::Verdict;

constexpr Duration kReportEvery = milliseconds(500);  // As the node does it.
constexpr Duration kElection = milliseconds(1500);
constexpr Duration kCommit = milliseconds(5);
constexpr Duration kVoteHolds = seconds(3);
constexpr Duration kFaultsExcuse = seconds(5);
constexpr std::int64_t kSlice = 100'000'000;  // A slow member runs for a tenth of each.
constexpr Duration kStep = microseconds(20);  // What one event takes of a processor.

}  // namespace

MembershipWorld::MembershipWorld(MembershipOptions options) : options_(options), random_(options.seed) {
  voters_ = static_cast<unsigned>(membership::wanted_voters(options_.nodes));
  nodes_.resize(options_.nodes);
  reports_.resize(voters_);
  deciding_.resize(options_.nodes);
  std::vector<Fact> facts;
  for (unsigned i = 0; i < options_.nodes; ++i) {
    facts.push_back({.node = id(i), .start = 1, .alive = true, .draining = false, .voter = i < voters_});
  }
  versions_.push_back(std::move(facts));
  for (unsigned i = 0; i < options_.nodes; ++i) {
    nodes_[i].swim = std::make_unique<Swim>(options_.swim, id(i), nodes_[i].start);
    apply(i, 0);
    const auto first = static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(kReportEvery.ns)));
    push(now_ + nanoseconds(first), What::report, i, i, 0);
  }
}

// ---- Time

void MembershipWorld::push(Instant at, What what, unsigned node, unsigned from, std::uint64_t value) {
  queue_.push({.at = at.ns,
               .order = ++order_,
               .what = what,
               .node = node,
               .from = from,
               .value = value,
               .life = nodes_[node].life});
}

/// When the node gets to what waits for it since `t`.
Instant MembershipWorld::ready(Host& h, Instant t) const {
  Instant at = std::max({t, h.paused_until, h.busy_until});
  if (h.slow) {
    const std::int64_t in = at.ns % kSlice;
    if (in >= kSlice / 10) at = at + nanoseconds(kSlice - in);
  }
  return at;
}

void MembershipWorld::step() {
  Event e = queue_.top();
  queue_.pop();
  now_ = std::max(now_, Instant{e.at});
  Host& h = nodes_[e.node];
  if (e.what != What::commit && (e.life != h.life || !h.running)) {
    if (e.what == What::message) free_messages_.push_back(e.value);
    return;
  }
  if (e.what != What::commit) {
    if (const Instant at = ready(h, now_); at > now_) {
      e.at = at.ns;
      queue_.push(e);
      return;
    }
    if (h.slow) h.busy_until = now_ + kStep * 10;
  }
  ++events_;
  handle(e);
}

void MembershipWorld::run_for(Duration d) {
  const Instant end = now_ + d;
  while (!queue_.empty() && queue_.top().at <= end.ns) step();
  now_ = end;
}

bool MembershipWorld::run_until(const std::function<bool()>& done, Duration limit) {
  const Instant end = now_ + limit;
  if (done()) return true;
  while (!queue_.empty() && queue_.top().at <= end.ns) {
    changed_ = false;
    step();
    if (changed_ && done()) return true;
  }
  now_ = end;
  return done();
}

void MembershipWorld::handle(const Event& e) {
  Host& h = nodes_[e.node];
  effects_.clear();
  switch (e.what) {
    case What::tick:
      if (e.value != h.tick_number) return;  // Another time has been set since.
      h.tick_at = kNever;
      h.swim->tick(now_, random_, effects_);
      perform(e.node, effects_);
      return;
    case What::message: {
      const Message m = std::move(messages_pool_[e.value]);
      free_messages_.push_back(e.value);
      h.swim->on_message(now_, id(e.from), m, effects_);
      perform(e.node, effects_);
      return;
    }
    case What::report:
      tell_leader(e.node);
      push(now_ + kReportEvery, What::report, e.node, e.node, 0);
      return;
    case What::verdicts: tell_leader(e.node); return;
    case What::commit: {
      const auto node = static_cast<unsigned>(e.value);
      deciding_[node] = 0;
      if (leader_ == kNoLeader || leader_ != e.from) return;  // It lost the lead before it was done.
      const Fact& known = versions_.back()[node];
      if (!known.alive) return;
      Fact dead = known;
      dead.alive = false;
      commit(dead);
      return;
    }
    case What::apply: apply(e.node, e.value); return;
  }
}

void MembershipWorld::schedule(unsigned node) {
  Host& h = nodes_[node];
  const Instant due = h.swim->next_wake();
  if (due == h.tick_at) return;
  if (due == kNever) {
    h.tick_at = kNever;
    ++h.tick_number;
    return;
  }
  h.tick_at = due;
  push(std::max(due, now_), What::tick, node, node, ++h.tick_number);
}

void MembershipWorld::perform(unsigned node, Effects& out) {
  for (Effects::Send& s : out.send) send(node, static_cast<unsigned>(s.to.value - 1), std::move(s.message));
  const bool verdicts = out.verdicts_changed;
  if (!out.changed.empty()) changed_ = true;
  check_round(node);
  schedule(node);
  if (verdicts || out.said_dead) push(now_, What::verdicts, node, node, 0);
}

void MembershipWorld::check_round(unsigned node) {
  Host& h = nodes_[node];
  const auto self = h.swim->self();
  if (self.start == h.last_round_start && self.round < h.last_round && broken_.empty()) {
    broken_ = str("the round of node ", node, " fell");
  }
  h.last_round_start = self.start;
  h.last_round = self.round;
}

// ---- The network

bool MembershipWorld::reaches(unsigned a, unsigned b) const { return nodes_[a].group == nodes_[b].group; }

Duration MembershipWorld::delay() {
  const auto span = static_cast<std::uint64_t>((options_.max_delay - options_.min_delay).ns) + 1;
  return options_.min_delay + nanoseconds(static_cast<std::int64_t>(random_.below(span)));
}

void MembershipWorld::send(unsigned from, unsigned to, Message m) {
  ++messages_;
  trace_ = mix64(trace_ ^ mix64(static_cast<std::uint64_t>(now_.ns)) ^
                 (std::uint64_t{from} << 40 | std::uint64_t{to} << 16) ^ (std::uint64_t{m.seq} << 8) ^
                 static_cast<std::uint64_t>(m.kind) ^ m.updates.size() << 4);
  if (options_.measure_bytes) {
    const std::size_t size = membership::encode(m).size();
    bytes_ += size;
    largest_ = std::max(largest_, size);
    if (size > membership::kMaxMessageBytes && broken_.empty()) broken_ = str("a message of ", size, " bytes");
  }
  if (!reaches(from, to) || !nodes_[to].running || random_.chance(options_.loss_per_thousand, 1000)) return;
  std::uint64_t slot = 0;
  if (free_messages_.empty()) {
    slot = messages_pool_.size();
    messages_pool_.push_back(std::move(m));
  } else {
    slot = free_messages_.back();
    free_messages_.pop_back();
    messages_pool_[slot] = std::move(m);
  }
  push(now_ + delay(), What::message, to, from, slot);
}

// ---- Faults

void MembershipWorld::crash(unsigned node) {
  Host& h = nodes_[node];
  h.running = false;
  ++h.life;
  h.last_fault = now_;
}

void MembershipWorld::restart(unsigned node) {
  Host& h = nodes_[node];
  if (h.running) return;
  h.running = true;
  ++h.life;
  h.last_fault = now_;
  h.start += 1;
  h.paused_until = h.busy_until = now_;
  h.tick_at = kNever;
  h.swim = std::make_unique<Swim>(options_.swim, id(node), h.start);
  h.last_round_start = 0;
  apply(node, h.applied);  // What it had on its disk.
  push(now_, What::report, node, node, 0);
}

void MembershipWorld::pause(unsigned node, Duration d) {
  Host& h = nodes_[node];
  h.paused_until = std::max(h.paused_until, now_ + d);
  h.last_fault = std::max(h.last_fault, h.paused_until);
}

void MembershipWorld::set_slow(unsigned node, bool slow) { nodes_[node].slow = slow; }

void MembershipWorld::set_group(unsigned node, unsigned group) {
  Host& h = nodes_[node];
  if (h.group == group) return;
  h.group = group;
  for (Host& any : nodes_) any.last_fault = std::max(any.last_fault, now_);
}

// ---- The log, as far as membership needs one

void MembershipWorld::elect() {
  const auto leads = [this](unsigned v) {
    if (!nodes_[v].running || nodes_[v].paused_until > now_) return false;
    unsigned with = 0;
    for (unsigned w = 0; w < voters_; ++w) {
      with += nodes_[w].running && nodes_[w].paused_until <= now_ && reaches(v, w) ? 1 : 0;
    }
    return with * 2 > voters_;
  };
  if (leader_ != kNoLeader && leads(leader_)) return;
  if (leader_ != kNoLeader) {
    leader_ = kNoLeader;
    leader_lost_ = now_;
  }
  if (now_ - leader_lost_ < kElection && leader_lost_ != Instant{}) return;
  for (unsigned v = 0; v < voters_ && leader_ == kNoLeader; ++v) {
    if (leads(v)) leader_ = v;
  }
  if (leader_ != kNoLeader) std::ranges::fill(reports_, Report{});
}

/// A node's report: it is brought up to date, told that it is dead, and its verdicts are heard.
void MembershipWorld::tell_leader(unsigned node) {
  elect();
  if (leader_ == kNoLeader || !reaches(node, leader_)) return;
  Host& h = nodes_[node];
  const Fact known = versions_.back()[node];
  if (h.applied + 1 < versions_.size()) push(now_ + delay() * 2, What::apply, node, leader_, versions_.size() - 1);
  if (h.start < known.start || (h.start == known.start && !known.alive)) {
    h.start = known.start + 1;
    h.swim->set_self(now_, h.start);
    check_round(node);
  }
  if (h.start > known.start) {
    Fact back = known;
    back.start = h.start;
    back.alive = true;
    commit(back);
  }
  if (node >= voters_) return;
  reports_[node] = {.verdicts = h.swim->verdicts(), .when = now_};
  judge();
}

void MembershipWorld::judge() {
  const auto& facts = versions_.back();
  for (unsigned v = 0; v < voters_; ++v) {
    for (const Verdict& candidate : reports_[v].verdicts) {
      const auto target = static_cast<unsigned>(candidate.node.value - 1);
      if (!facts[target].alive || facts[target].start != candidate.start || deciding_[target] != 0) continue;
      unsigned votes = 0;
      for (const Report& r : reports_) {
        votes += now_ - r.when <= kVoteHolds && std::ranges::find(r.verdicts, candidate) != r.verdicts.end() ? 1 : 0;
      }
      if (votes * 2 <= voters_) continue;
      const Host& h = nodes_[target];
      const bool deserved = !h.running || now_ - h.last_fault < kFaultsExcuse || !reaches(target, leader_);
      deaths_.push_back({.when = now_,
                         .node = target,
                         .start = candidate.start,
                         .votes = votes,
                         .voters = voters_,
                         .deserved = deserved});
      deciding_[target] = candidate.start;
      push(now_ + kCommit, What::commit, leader_, leader_, target);
    }
  }
}

void MembershipWorld::commit(Fact changed) {
  std::vector<Fact> facts = versions_.back();
  facts[changed.node.value - 1] = changed;
  versions_.push_back(std::move(facts));
  changed_ = true;
  for (unsigned i = 0; i < nodes(); ++i) {
    if (nodes_[i].running && reaches(i, leader_)) push(now_ + delay(), What::apply, i, leader_, versions_.size() - 1);
  }
}

void MembershipWorld::apply(unsigned node, std::size_t version) {
  Host& h = nodes_[node];
  if (version < h.applied) return;
  h.applied = version;
  changed_ = true;
  Effects out;
  h.swim->set_members(now_, versions_[version], random_, out);
  perform(node, out);
}

// ---- What happened

bool MembershipWorld::known_dead(unsigned node) const {
  if (versions_.back()[node].alive) return false;
  return std::ranges::all_of(nodes_, [&](const Host& h) { return !h.running || !versions_[h.applied][node].alive; });
}

bool MembershipWorld::all_well() const {
  const auto& facts = versions_.back();
  for (unsigned i = 0; i < nodes(); ++i) {
    if (!nodes_[i].running) continue;
    if (!facts[i].alive || facts[i].start != nodes_[i].start || nodes_[i].applied + 1 != versions_.size()) return false;
    for (const membership::View& v : nodes_[i].swim->views(now_)) {
      const Host& other = nodes_[v.node.value - 1];
      if (other.running && v.standing != Standing::alive) return false;
    }
  }
  return true;
}

std::uint64_t MembershipWorld::false_suspicions() const {
  std::uint64_t n = 0;
  for (const Host& h : nodes_) n += h.swim->counters().false_suspicions;
  return n;
}
std::uint64_t MembershipWorld::stalls() const {
  std::uint64_t n = 0;
  for (const Host& h : nodes_) n += h.swim->counters().stalls;
  return n;
}

}  // namespace holo::sim
