#include "core/membership/swim.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <span>
#include <utility>

namespace holo::membership {

std::string_view standing_name(Standing s) {
  switch (s) {
    case Standing::joining: return "joining";
    case Standing::alive: return "alive";
    case Standing::suspect: return "suspect";
    case Standing::dead: return "dead";
    case Standing::draining: return "draining";
    case Standing::left: return "left";
  }
  return "?";
}

void Effects::clear() {
  send.clear();
  changed.clear();
  verdicts_changed = false;
  said_dead = false;
}

Swim::Swim(SwimConfig config, NodeId self, std::uint64_t start)
    : config_(config), me_(self), self_{.start = start, .round = 0}, least_(config.suspicion) {}

// ---- Members

Swim::Member* Swim::find(NodeId node) {
  const auto it = std::lower_bound(members_.begin(), members_.end(), node,
                                   [](const Member& m, NodeId n) { return m.fact.node < n; });
  return it != members_.end() && it->fact.node == node ? &*it : nullptr;
}
const Swim::Member* Swim::find(NodeId node) const { return const_cast<Swim*>(this)->find(node); }

Standing Swim::standing(Instant now, const Member& m) const {
  if (!m.fact.alive) return Standing::dead;
  if (m.suspected) return Standing::suspect;
  if (!m.heard && now < m.grace) return Standing::joining;
  return m.fact.draining ? Standing::draining : Standing::alive;
}

void Swim::set_self(Instant now, std::uint64_t start) {
  stood_still(now);
  if (start == self_.start) return;
  self_ = {.start = start, .round = 0};
  // Others had declared it dead, so it was out of touch: what it held against them in that time is void.
  rumours_.clear();
  probes_.clear();
  for (const NodeId n : std::exchange(suspects_, {})) {
    if (Member* m = find(n); m != nullptr) m->suspected = m->own_failed = m->condemned = false;
  }
  reschedule();
}

void Swim::set_members(Instant now, std::vector<Fact> facts, Random& random, Effects& out) {
  stood_still(now);
  std::sort(facts.begin(), facts.end(), [](const Fact& a, const Fact& b) { return a.node < b.node; });
  std::vector<Member> next;
  next.reserve(facts.size());
  bool verdict_gone = false;
  for (const Fact& f : facts) {
    if (f.node == me_) {
      voter_ = f.voter;
      continue;
    }
    Member m;
    if (Member* old = find(f.node); old != nullptr && old->fact.start == f.start) m = *old;
    const bool fresh = m.fact.start != f.start;
    const bool died = !fresh && m.fact.alive && !f.alive;
    if (fresh) m.grace = now + config_.grace;
    if (fresh || m.fact.alive != f.alive || m.fact.draining != f.draining) out.changed.push_back(f.node);
    if (died) {
      verdict_gone = verdict_gone || m.condemned;
      m.suspected = m.own_failed = m.condemned = false;
    }
    m.fact = f;
    next.push_back(m);
  }
  for (const Member& m : members_) {
    const bool kept = std::binary_search(facts.begin(), facts.end(), m.fact,
                                         [](const Fact& a, const Fact& b) { return a.node < b.node; });
    verdict_gone = verdict_gone || (m.condemned && !kept);
    if (!kept) out.changed.push_back(m.fact.node);
  }
  members_ = std::move(next);
  alive_ = static_cast<std::size_t>(std::ranges::count_if(members_, [](const Member& m) { return m.fact.alive; }));

  const auto known = [this](NodeId n) {
    const Member* m = find(n);
    return m != nullptr && m->fact.alive;
  };
  // A newcomer takes a random place in the round, as SWIM has it, so that it is probed within one.
  std::vector<NodeId> order;
  std::size_t at = 0;
  for (std::size_t i = 0; i < order_.size(); ++i) {
    if (!known(order_[i])) continue;
    order.push_back(order_[i]);
    if (i < at_) ++at;
  }
  std::vector<NodeId> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (const Member& m : members_) {
    if (!m.fact.alive || std::binary_search(sorted.begin(), sorted.end(), m.fact.node)) continue;
    const std::size_t place = at + random.below(order.size() - at + 1);
    order.insert(order.begin() + static_cast<std::ptrdiff_t>(place), m.fact.node);
  }
  order_ = std::move(order);
  at_ = at;

  std::erase_if(suspects_, [this](NodeId n) {
    const Member* m = find(n);
    return m == nullptr || !m->suspected;
  });
  std::erase_if(rumours_, [&](const Rumour& r) { return r.update.node != me_ && !known(r.update.node); });
  std::erase_if(probes_, [&](const Probe& p) { return !known(p.target); });
  if (verdict_gone) out.verdicts_changed = true;
  resize();
  if (alive_ == 0) {
    next_probe_ = next_sync_ = kNever;
  } else {
    const auto in = [&](Duration d) {
      return now + nanoseconds(static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(d.ns))));
    };
    if (next_probe_ == kNever) next_probe_ = in(config_.period);
    if (next_sync_ == kNever) next_sync_ = in(seconds(1));
  }
  reschedule();
}

/// What depends on how many there are.
void Swim::resize() {
  const std::size_t n = alive_ + 1;
  retransmit_ = 3 * static_cast<unsigned>(std::bit_width(n));
  const double scale = std::max(1.0, std::log10(static_cast<double>(n)));
  least_ = nanoseconds(static_cast<std::int64_t>(static_cast<double>(config_.suspicion.ns) * scale));
}

std::vector<View> Swim::views(Instant now) const {
  std::vector<View> out;
  out.reserve(members_.size());
  for (const Member& m : members_) out.push_back(view(now, m.fact.node));
  return out;
}

View Swim::view(Instant now, NodeId node) const {
  View v;
  v.node = node;
  const Member* m = find(node);
  if (m == nullptr) return v;
  v.incarnation = {.start = m->fact.start, .round = m->round};
  v.standing = standing(now, *m);
  if (m->heard) v.last_heard = m->last_heard;
  v.condemned = m->condemned;
  return v;
}

std::vector<Verdict> Swim::verdicts() const {
  std::vector<Verdict> out;
  for (const NodeId n : suspects_) {
    const Member* m = find(n);
    if (m != nullptr && m->condemned) out.push_back({.node = n, .start = m->fact.start});
  }
  std::sort(out.begin(), out.end());
  return out;
}

Swim::Voters Swim::voters(Instant now, Duration within) const {
  Voters v;
  if (voter_) v = {.all = 1, .heard = 1};
  for (const Member& m : members_) {
    if (!m.fact.voter) continue;
    ++v.all;
    if (m.heard && now - m.last_heard <= within) ++v.heard;
  }
  return v;
}

// ---- Time

/// A node that stood still (paused, starved, swapped out) has heard nobody meanwhile: no one else is to blame for that.
void Swim::stood_still(Instant now) {
  if (due_ == kNever || now <= due_ + config_.late) return;
  const Duration stood = now - due_;
  for (Probe& p : probes_) {
    p.direct = p.direct + stood;
    p.final = p.final + stood;
  }
  for (Relay& r : relays_) r.until = r.until + stood;
  for (const NodeId n : suspects_) {
    if (Member* m = find(n); m != nullptr && !m->condemned) m->expires = m->expires + stood;
  }
  for (Member& m : members_) m.grace = m.grace + stood;
  if (next_probe_ != kNever) next_probe_ = std::max(next_probe_, now);
  if (next_sync_ != kNever) next_sync_ = std::max(next_sync_, now);
  ++counters_.stalls;
  worse(1);
  reschedule();
}

void Swim::reschedule() {
  due_ = std::min(next_probe_, next_sync_);
  for (const Probe& p : probes_) due_ = std::min(due_, p.asked ? p.final : p.direct);
  for (const Relay& r : relays_) due_ = std::min(due_, r.until);
  for (const NodeId n : suspects_) {
    const Member* m = find(n);
    if (m != nullptr && m->own_failed && !m->condemned) due_ = std::min(due_, m->expires);
  }
}

void Swim::tick(Instant now, Random& random, Effects& out) {
  stood_still(now);
  run_probes(now, random, out);
  run_relays(now, out);
  run_suspicions(now, out);
  if (now >= next_probe_) next_probe(now, random, out);
  if (now >= next_sync_) {
    next_sync_ = now + config_.sync;
    if (!order_.empty()) {
      Message m{.kind = Kind::sync, .seq = next_seq_++, .sender = {}, .target = {}, .updates = {}};
      fill_sync(m);
      send(order_[random.below(order_.size())], std::move(m), out);
    }
  }
  reschedule();
}

void Swim::worse(unsigned by) { counters_.health = std::min(counters_.health + by, config_.max_health); }

// ---- Sending

void Swim::send(NodeId to, Message m, Effects& out) {
  m.sender = self_;
  out.send.push_back({.to = to, .message = std::move(m)});
}

void Swim::add_gossip(Message& m, NodeId to, std::size_t most) {
  // A suspect is told first (Lifeguard's buddy system), and one that has been declared dead is told that.
  if (const Member* r = find(to); r != nullptr) {
    const Incarnation known{.start = r->fact.start, .round = r->round};
    if (!r->fact.alive) {
      m.updates.push_back({.node = to, .incarnation = known, .claim = Claim::dead, .by = {}});
    } else if (r->suspected && r->accusers > 0) {
      m.updates.push_back({.node = to, .incarnation = known, .claim = Claim::suspect, .by = r->accuser[0]});
    }
  }
  while (m.updates.size() < most) {
    Rumour* best = nullptr;
    for (Rumour& r : rumours_) {
      const bool there = std::ranges::find(m.updates, r.update) != m.updates.end();
      if (!there && r.sent < retransmit_ && (best == nullptr || r.sent < best->sent)) best = &r;
    }
    if (best == nullptr) break;
    ++best->sent;
    m.updates.push_back(best->update);
  }
  std::erase_if(rumours_, [this](const Rumour& r) { return r.sent >= retransmit_; });
}

void Swim::spread(Update u) {
  const auto replaced = [&u](const Rumour& r) {
    if (r.update.node != u.node) return false;
    if (r.update.incarnation < u.incarnation) return true;
    return r.update.claim == u.claim && r.update.by == u.by;
  };
  std::erase_if(rumours_, replaced);
  if (rumours_.size() >= kMaxRumours) {
    rumours_.erase(std::ranges::max_element(rumours_, {}, &Rumour::sent));
  }
  rumours_.push_back({.update = u, .sent = 0});
}

void Swim::forget_rumours(NodeId node) {
  std::erase_if(rumours_, [node](const Rumour& r) { return r.update.node == node; });
}

void Swim::fill_sync(Message& m) {
  if (self_.round > 0) m.updates.push_back({.node = me_, .incarnation = self_, .claim = Claim::alive, .by = {}});
  for (std::size_t i = 0; i < members_.size() && m.updates.size() + 1 < kMaxSyncUpdates; ++i) {
    const Member& x = members_[sync_at_++ % members_.size()];
    if (!x.fact.alive) continue;
    const Incarnation known{.start = x.fact.start, .round = x.round};
    if (x.suspected) {
      m.updates.push_back({.node = x.fact.node, .incarnation = known, .claim = Claim::suspect, .by = x.accuser[0]});
    } else if (x.round > 0) {
      m.updates.push_back({.node = x.fact.node, .incarnation = known, .claim = Claim::alive, .by = {}});
    }
  }
}

// ---- Probing

void Swim::next_probe(Instant now, Random& random, Effects& out) {
  next_probe_ = now + config_.period * static_cast<std::int64_t>(counters_.health + 1);
  for (std::size_t tries = 0; tries < order_.size(); ++tries) {
    if (at_ >= order_.size()) {
      for (std::size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random.below(i)]);
      at_ = 0;
    }
    Member* m = find(order_[at_++]);
    if (m != nullptr && probeable(*m) && begin_probe(now, *m, true, out)) return;
  }
}

bool Swim::begin_probe(Instant now, Member& m, bool in_turn, Effects& out) {
  const NodeId target = m.fact.node;
  if (probes_.size() >= kMaxProbes || std::ranges::find(probes_, target, &Probe::target) != probes_.end()) return false;
  const auto scale = static_cast<std::int64_t>(counters_.health + 1);
  Probe p;
  p.seq = next_seq_++;
  p.target = target;
  p.direct = now + config_.direct * scale;
  p.final = p.direct + config_.indirect * scale;
  p.in_turn = in_turn;
  ++counters_.probes;
  Message ping{.kind = Kind::ping, .seq = p.seq, .sender = {}, .target = {}, .updates = {}};
  add_gossip(ping, target, kMaxUpdates);
  probes_.push_back(p);
  send(target, std::move(ping), out);
  return true;
}

void Swim::ask_others(Instant now, Probe& p, Random& random, Effects& out) {
  p.asked = true;
  p.final = now + config_.indirect * static_cast<std::int64_t>(counters_.health + 1);
  std::vector<NodeId> candidates;
  for (const Member& m : members_) {
    if (m.fact.alive && m.fact.node != p.target && !m.own_failed) candidates.push_back(m.fact.node);
  }
  const std::size_t wanted = std::min<std::size_t>(config_.helpers, candidates.size());
  for (std::size_t i = 0; i < wanted; ++i) {
    std::swap(candidates[i], candidates[i + random.below(candidates.size() - i)]);
    Message ask{.kind = Kind::ask, .seq = p.seq, .sender = {}, .target = p.target, .updates = {}};
    add_gossip(ask, candidates[i], kMaxUpdates);
    send(candidates[i], std::move(ask), out);
    ++counters_.asked;
    ++p.nacks_expected;
  }
}

void Swim::probe_answered(std::uint32_t seq, NodeId about) {
  const auto it = std::ranges::find(probes_, seq, &Probe::seq);
  if (it == probes_.end() || it->target != about) return;
  if (it->in_turn && counters_.health > 0) --counters_.health;
  probes_.erase(it);
}

void Swim::run_probes(Instant now, Random& random, Effects& out) {
  std::vector<Probe> failed;
  for (Probe& p : probes_) {
    if (!p.asked && now >= p.direct) ask_others(now, p, random, out);
  }
  std::erase_if(probes_, [&](const Probe& p) {
    if (!p.asked || now < p.final) return false;
    failed.push_back(p);
    return true;
  });
  for (const Probe& p : failed) probe_failed(now, p, random, out);
}

void Swim::probe_failed(Instant now, const Probe& p, Random& random, Effects& out) {
  Member* m = find(p.target);
  if (m == nullptr || !m->fact.alive) return;
  ++counters_.probes_failed;
  // Helpers that say nothing at all make it likely that the fault is here.
  if (!m->own_failed) worse(p.nacks_expected == 0 ? 1 : p.nacks_expected - std::min(p.nacks, p.nacks_expected));
  if (!m->heard && now < m->grace) return;
  const bool news = !m->own_failed;
  m->own_failed = true;
  if (m->suspected) m->expires = m->since + time_out(m->accusers == 0 ? 0U : m->accusers - 1U);
  const bool first = !m->suspected;
  accuse(now, *m, me_, out);
  if (first || (voter_ && news)) tell_at_once(*m, first ? config_.helpers : 0, random, out);
}

void Swim::run_relays(Instant now, Effects& out) {
  std::erase_if(relays_, [&](const Relay& r) {
    if (now < r.until) return false;
    Message nack{.kind = Kind::nack, .seq = r.asker_seq, .sender = {}, .target = r.target, .updates = {}};
    add_gossip(nack, r.asker, kMaxUpdates);
    send(r.asker, std::move(nack), out);
    return true;
  });
}

void Swim::run_suspicions(Instant now, Effects& out) {
  for (const NodeId n : suspects_) {
    Member* m = find(n);
    if (m == nullptr || m->condemned || !m->own_failed || now < m->expires) continue;
    m->condemned = true;
    ++counters_.verdicts;
    out.verdicts_changed = true;
  }
}

void Swim::on_undelivered(Instant now, NodeId to, std::uint32_t seq, Random& random, Effects& out) {
  stood_still(now);
  for (Probe& p : probes_) {
    if (p.seq != seq) continue;
    // Others may still reach it. A helper that cannot be reached has not said that the target is silent.
    if (p.target == to && !p.asked) ask_others(now, p, random, out);
    break;
  }
  reschedule();
}

void Swim::on_lost(Instant now, NodeId node, Effects& out) {
  stood_still(now);
  if (Member* m = find(node); m != nullptr && m->fact.alive && m->heard) begin_probe(now, *m, false, out);
  reschedule();
}

// ---- Hearing

void Swim::on_message(Instant now, NodeId from, const Message& message, Effects& out) {
  stood_still(now);
  Member* sender = find(from);
  if (sender != nullptr) heard(now, *sender, message.sender, out);
  // Who is dead by the log was out of touch, and accuses everybody.
  const bool believed = sender != nullptr && sender->fact.alive && message.sender.start == sender->fact.start;
  for (const Update& u : message.updates) {
    if (believed || (u.node == me_ && u.claim == Claim::dead)) take(now, u, out);
  }
  switch (message.kind) {
    case Kind::ping: {
      Message ack{.kind = Kind::ack, .seq = message.seq, .sender = {}, .target = {}, .updates = {}};
      add_gossip(ack, from, kMaxUpdates);
      send(from, std::move(ack), out);
      break;
    }
    case Kind::ask: {
      Member* target = find(message.target);
      if (target == nullptr || !target->fact.alive || relays_.size() >= kMaxRelays) {
        Message nack{.kind = Kind::nack, .seq = message.seq, .sender = {}, .target = message.target, .updates = {}};
        send(from, std::move(nack), out);
        break;
      }
      Relay r{.seq = next_seq_++, .target = message.target, .asker = from, .asker_seq = message.seq, .until = {}};
      r.until = now + config_.indirect * 2 / 3;  // The asker waits a little longer than that.
      relays_.push_back(r);
      ++counters_.helped;
      Message ping{.kind = Kind::ping, .seq = r.seq, .sender = {}, .target = {}, .updates = {}};
      add_gossip(ping, message.target, kMaxUpdates);
      send(message.target, std::move(ping), out);
      break;
    }
    case Kind::ack: on_ack(now, from, message, out); break;
    case Kind::nack:
      for (Probe& p : probes_) {
        if (p.seq == message.seq && p.target == message.target) ++p.nacks;
      }
      break;
    case Kind::sync: {
      Message reply{.kind = Kind::sync_reply, .seq = message.seq, .sender = {}, .target = {}, .updates = {}};
      fill_sync(reply);
      send(from, std::move(reply), out);
      break;
    }
    case Kind::sync_reply: break;
  }
  reschedule();
}

/// Only the start that was probed can answer: a later one that the log has not admitted does not speak for it.
void Swim::on_ack(Instant now, NodeId from, const Message& message, Effects& out) {
  const NodeId about = message.target ? message.target : from;
  Member* m = find(about);
  if (m == nullptr || !m->fact.alive) return;
  if (about != from) {
    const bool vouched = std::ranges::any_of(message.updates, [&](const Update& u) {
      return u.node == about && u.claim == Claim::alive && u.incarnation.start == m->fact.start;
    });
    if (!vouched) return;
    ++counters_.indirect_answers;
    probe_answered(message.seq, about);
    retract(now, *m, out);  // The own path may be gone; the node is not.
    return;
  }
  if (message.sender.start != m->fact.start) return;
  probe_answered(message.seq, about);
  std::erase_if(relays_, [&](const Relay& r) {
    if (r.seq != message.seq || r.target != from) return false;
    Message ack{.kind = Kind::ack, .seq = r.asker_seq, .sender = {}, .target = from, .updates = {}};
    ack.updates.push_back({.node = from, .incarnation = message.sender, .claim = Claim::alive, .by = {}});
    add_gossip(ack, r.asker, kMaxUpdates);
    send(r.asker, std::move(ack), out);
    return true;
  });
}

/// Directly from the node itself: whatever this node had against it is void.
void Swim::heard(Instant now, Member& m, const Incarnation& sender, Effects& out) {
  if (!m.fact.alive || sender.start != m.fact.start) return;
  if (sender.round > m.round && sender.round - m.round > kMaxRoundJump) {
    ++counters_.refused;
    return;
  }
  if (!m.heard) out.changed.push_back(m.fact.node);
  m.heard = true;
  m.last_heard = now;
  retract(now, m, out);
  if (sender.round > m.round) {
    m.round = sender.round;
    absolve(now, m, out);
    spread({.node = m.fact.node, .incarnation = sender, .claim = Claim::alive, .by = {}});
  }
}

void Swim::take_about_self(const Update& u, Effects& out) {
  if (u.incarnation.start < self_.start) return;  // Of an earlier start.
  const bool absurd = u.incarnation.start > self_.start ||
                      (u.incarnation.round > self_.round && u.incarnation.round - self_.round > kMaxRoundJump);
  if (absurd) {
    ++counters_.refused;
    return;
  }
  if (u.claim == Claim::dead) {  // One word is not enough to believe it, nor to deny it; who leads knows.
    ++counters_.death_claims;
    out.said_dead = true;
    return;
  }
  if (u.claim == Claim::alive || u.incarnation.round < self_.round) return;
  self_.round = u.incarnation.round + 1;
  ++counters_.refutations;
  worse(1);
  forget_rumours(me_);
  spread({.node = me_, .incarnation = self_, .claim = Claim::alive, .by = {}});
}

void Swim::take(Instant now, const Update& u, Effects& out) {
  if (u.node == me_) return take_about_self(u, out);
  Member* m = find(u.node);
  if (m == nullptr || u.incarnation.start != m->fact.start || !m->fact.alive) {
    ++counters_.unknown;
    return;
  }
  if (u.incarnation.round > m->round && u.incarnation.round - m->round > kMaxRoundJump) {
    ++counters_.refused;
    return;
  }
  switch (u.claim) {
    case Claim::alive:
      if (u.incarnation.round <= m->round) return;
      m->round = u.incarnation.round;
      absolve(now, *m, out);
      spread(u);
      return;
    case Claim::suspect: {
      if (u.incarnation.round < m->round) return;
      const bool accuser_known = u.by == me_ || find(u.by) != nullptr;
      if (!accuser_known || u.by == u.node) {
        ++counters_.refused;
        return;
      }
      // A later denial is implied: nobody suspects a round that was never claimed.
      m->round = u.incarnation.round;
      if (u.by != me_) accuse(now, *m, u.by, out);
      return;
    }
    case Claim::dead: ++counters_.refused; return;  // Only the log declares anybody dead.
  }
}

// ---- Suspicion

unsigned Swim::confirmations_wanted() const {
  const std::size_t others = alive_ > 1 ? alive_ - 1 : 0;
  return static_cast<unsigned>(std::min<std::size_t>(config_.confirmations, others));
}

Duration Swim::time_out(unsigned confirmations) const {
  const unsigned wanted = confirmations_wanted();
  if (wanted == 0 || confirmations >= wanted) return least_;
  const double share = std::log(confirmations + 1.0) / std::log(wanted + 1.0);
  const auto spread_ns = static_cast<double>(least_.ns) * (config_.suspicion_spread - 1.0);
  return least_ + nanoseconds(static_cast<std::int64_t>(spread_ns * (1.0 - share)));
}

void Swim::accuse(Instant now, Member& m, NodeId by, Effects& out) {
  if (m.suspected && m.suspected_round < m.round) absolve(now, m, out);
  const auto accusers = std::span(m.accuser).first(m.accusers);
  if (m.suspected && std::ranges::find(accusers, by) != accusers.end()) return;
  const unsigned most = std::min<unsigned>(confirmations_wanted() + 1, kMaxAccusers);
  if (!m.suspected) {
    m.suspected = true;
    m.suspected_round = m.round;
    m.since = now;
    m.accusers = 0;
    suspects_.push_back(m.fact.node);
    ++counters_.suspicions;
    out.changed.push_back(m.fact.node);
  } else if (m.accusers >= most) {
    return;
  }
  m.accuser[m.accusers++] = by;
  m.expires = m.since + time_out(m.accusers - 1U);
  const Incarnation known{.start = m.fact.start, .round = m.round};
  spread({.node = m.fact.node, .incarnation = known, .claim = Claim::suspect, .by = by});
  // A voter finds out for itself, at once: the cluster needs its own evidence, for or against.
  if (voter_ && by != me_ && !m.own_failed) begin_probe(now, m, false, out);
}

/// The suspect is told before anybody, then the voters: they decide, and each confirmation shortens their wait. Then
/// `others` at random.
void Swim::tell_at_once(const Member& m, unsigned others, Random& random, Effects& out) {
  std::vector<NodeId> whom{m.fact.node};
  for (const Member& x : members_) {
    if (x.fact.voter && x.fact.alive && x.fact.node != m.fact.node && !x.own_failed && whom.size() < 8)
      whom.push_back(x.fact.node);
  }
  for (unsigned i = 0; i < others && !order_.empty(); ++i) {
    const NodeId n = order_[random.below(order_.size())];
    if (std::ranges::find(whom, n) == whom.end()) whom.push_back(n);
  }
  for (const NodeId to : whom) {
    Message ping{.kind = Kind::ping, .seq = next_seq_++, .sender = {}, .target = {}, .updates = {}};
    add_gossip(ping, to, kMaxUpdates);
    send(to, std::move(ping), out);
  }
}

void Swim::retract(Instant now, Member& m, Effects& out) {
  if (std::exchange(m.own_failed, false)) m.since = now;  // Should it fall silent again, it has its whole time again.
  if (!m.condemned) return;
  m.condemned = false;
  ++counters_.retractions;
  out.verdicts_changed = true;
}

void Swim::absolve(Instant now, Member& m, Effects& out) {
  retract(now, m, out);
  if (!m.suspected) return;
  m.suspected = false;
  m.accusers = 0;
  ++counters_.false_suspicions;
  std::erase(suspects_, m.fact.node);
  std::erase_if(rumours_,
                [&m](const Rumour& r) { return r.update.node == m.fact.node && r.update.claim == Claim::suspect; });
  out.changed.push_back(m.fact.node);
}

}  // namespace holo::membership
