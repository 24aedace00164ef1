// One core against others played by hand. Many cores on a bad network are in sim/membership_scenario.cc.
#include "core/membership/swim.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>

#include "core/membership/swim_wire.h"

namespace holo::membership {
namespace {

constexpr NodeId kMe{1};
constexpr std::uint64_t kStart = 7;  // Of everybody.

/// Node 1, with others 2..n, all voters; what it sends is kept until answer() or forget().
struct Rig {
  explicit Rig(std::uint64_t n, SwimConfig config = {}) : swim(config, kMe, kStart) {
    for (std::uint64_t i = 1; i <= n; ++i) facts.push_back({NodeId{i}, kStart, true, false, true});
    Effects out;
    swim.set_members(now, facts, random, out);
    for (std::uint64_t i = 2; i <= n; ++i) hear(i);  // Or they would be joining.
    perform(out);
  }
  void perform(Effects& out) {
    for (auto& s : out.send) sent.push_back(std::move(s));
    verdict_events += out.verdicts_changed ? 1 : 0;
    said_dead = said_dead || out.said_dead;
  }
  void hear(std::uint64_t from, std::vector<Update> updates = {}, std::uint32_t round = 0) {
    Effects out;
    swim.on_message(
        now, NodeId{from},
        {.kind = Kind::ack, .seq = 0, .sender = {kStart, round}, .target = {}, .updates = std::move(updates)}, out);
    perform(out);
  }
  /// Everybody but `silent` answers at once what they are sent.
  void answer(const std::vector<std::uint64_t>& silent) {
    const auto is_silent = [&](NodeId n) { return std::ranges::find(silent, n.value) != silent.end(); };
    for (const auto& s : std::exchange(sent, {})) {
      if (is_silent(s.to) || !is_request(s.message.kind)) continue;
      Message m{
          .kind = Kind::ack, .seq = s.message.seq, .sender = {kStart, rounds[s.to.value]}, .target = {}, .updates = {}};
      for (const Update& u : s.message.updates) {
        if (u.node == s.to && u.claim == Claim::suspect) m.sender.round = ++rounds[s.to.value];
      }
      if (s.message.kind == Kind::ask) {
        m.target = s.message.target;
        m.updates.push_back({m.target, {kStart, rounds[m.target.value]}, Claim::alive, {}});
        if (is_silent(m.target)) m.kind = Kind::nack;
      }
      if (s.message.kind == Kind::sync) m.kind = Kind::sync_reply;
      Effects out;
      swim.on_message(now, s.to, m, out);
      perform(out);
    }
  }
  void run(Duration d, const std::vector<std::uint64_t>& silent) {
    const Instant end = now + d;
    while (swim.next_wake() <= end) {
      now = std::max(now, swim.next_wake());
      Effects out;
      swim.tick(now, random, out);
      perform(out);
      answer(silent);
    }
    now = end;
  }
  [[nodiscard]] bool condemns(std::uint64_t node) const {
    const auto v = swim.verdicts();
    return std::ranges::find(v, Verdict{NodeId{node}, kStart}) != v.end();
  }
  [[nodiscard]] Standing standing(std::uint64_t node) const { return swim.view(now, NodeId{node}).standing; }
  static Update suspect(std::uint64_t node, std::uint64_t by, std::uint32_t round = 0) {
    return {NodeId{node}, {kStart, round}, Claim::suspect, NodeId{by}};
  }

  Instant now{1'000'000'000};
  Random random{42};
  Swim swim;
  std::vector<Fact> facts;
  std::vector<Effects::Send> sent;
  std::map<std::uint64_t, std::uint32_t> rounds;
  int verdict_events = 0;
  bool said_dead = false;
};

TEST(Swim, EverybodyIsProbedInEachRound) {
  Rig r(8);
  r.sent.clear();
  std::map<NodeId, int> pings;
  for (int i = 0; i < 70; ++i) {
    r.now = r.swim.next_wake();
    Effects out;
    r.swim.tick(r.now, r.random, out);
    for (const auto& s : out.send) pings[s.to] += s.message.kind == Kind::ping ? 1 : 0;
    r.perform(out);
    r.answer({});
  }
  ASSERT_EQ(pings.size(), 7U);
  int least = 1000, most = 0;
  for (const auto& [node, n] : pings) {
    least = std::min(least, n);
    most = std::max(most, n);
  }
  EXPECT_LE(most - least, 1) << "round robin";
}

TEST(Swim, SilenceIsAVerdictAndOnlyAfterHelpersFailedAndTheSuspicionRanOut) {
  Rig r(5);
  r.run(milliseconds(900), {});
  EXPECT_EQ(r.swim.counters().probes_failed, 0U);
  bool was_suspect = false;
  const Instant from = r.now;
  while (!r.condemns(3) && r.now < from + seconds(10)) {
    r.run(milliseconds(10), {3});
    was_suspect = was_suspect || r.standing(3) == Standing::suspect;
    EXPECT_TRUE(r.standing(3) != Standing::suspect || r.swim.counters().asked >= 3U);
  }
  EXPECT_TRUE(was_suspect);
  EXPECT_TRUE(r.condemns(3));
  EXPECT_GE(r.now - from, milliseconds(750)) << "a failed probe, then the least suspicion";
  EXPECT_EQ(r.swim.verdicts().size(), 1U);
}

TEST(Swim, AVerdictIsTakenBackByAnySignOfLife) {
  Rig r(5);
  r.run(seconds(6), {3});
  ASSERT_TRUE(r.condemns(3));
  const int events = r.verdict_events;
  r.hear(3);
  EXPECT_FALSE(r.condemns(3));
  EXPECT_GT(r.verdict_events, events);
  EXPECT_EQ(r.swim.counters().retractions, 1U);
  r.run(milliseconds(300), {3});
  EXPECT_FALSE(r.condemns(3)) << "its whole time again, not what was left of the old suspicion";
  r.run(seconds(2), {});
  EXPECT_EQ(r.standing(3), Standing::alive) << "told that it is suspected, it has denied it";
}

TEST(Swim, GossipAloneNeverCondemns) {
  Rig r(5);
  for (int i = 0; i < 50; ++i) {
    r.hear(2, {Rig::suspect(3, 2), Rig::suspect(3, 4), Rig::suspect(3, 5)});
    r.run(milliseconds(100), {});
    EXPECT_FALSE(r.condemns(3));
    r.rounds[3] = 0;  // It never denies; but it answers.
  }
  EXPECT_EQ(r.swim.counters().verdicts, 0U);
}

TEST(Swim, AVoterProbesWhomOthersSuspectAtOnce) {
  Rig r(5);
  r.sent.clear();
  r.hear(2, {Rig::suspect(3, 2)});
  EXPECT_EQ(r.standing(3), Standing::suspect);
  ASSERT_EQ(r.sent.size(), 1U);
  EXPECT_EQ(r.sent[0].to, NodeId{3});
  ASSERT_FALSE(r.sent[0].message.updates.empty());
  EXPECT_EQ(r.sent[0].message.updates[0].claim, Claim::suspect) << "the suspect is told";
}

TEST(Swim, MoreAccusersShortenTheSuspicion) {
  const auto takes = [](const std::vector<Update>& accusations) {
    SwimConfig c;
    c.suspicion_spread = 20;
    Rig r(6, c);
    r.hear(2, accusations);
    const Instant from = r.now;
    while (!r.condemns(3) && r.now < from + seconds(60)) r.run(milliseconds(10), {3});
    return (r.now - from).millis();
  };
  const auto one = takes({Rig::suspect(3, 2)});
  const auto two = takes({Rig::suspect(3, 2), Rig::suspect(3, 4)});
  const auto three = takes({Rig::suspect(3, 2), Rig::suspect(3, 4), Rig::suspect(3, 5)});
  EXPECT_GT(one, two);  // This node's own accusation comes on top of each.
  EXPECT_GT(two, three);
  EXPECT_EQ(takes({Rig::suspect(3, 2), Rig::suspect(3, 2)}), one) << "independent ones count";
}

TEST(Swim, ItDeniesItsOwnDeath) {
  Rig r(5);
  r.hear(2, {Rig::suspect(1, 2)});
  EXPECT_EQ(r.swim.self(), (Incarnation{kStart, 1}));
  EXPECT_EQ(r.swim.counters().refutations, 1U);
  EXPECT_EQ(r.swim.counters().health, 1U) << "who is suspected may be slow itself";
  r.sent.clear();
  r.run(milliseconds(400), {});
  r.hear(2, {Rig::suspect(1, 3)});
  EXPECT_EQ(r.swim.self().round, 1U) << "denied before";
  EXPECT_FALSE(r.said_dead);
  r.hear(2, {{kMe, {kStart, 0}, Claim::dead, {}}});
  EXPECT_TRUE(r.said_dead);
  EXPECT_EQ(r.swim.counters().death_claims, 1U);
}

TEST(Swim, ADenialClearsASuspicionAndAnOldOneDoesNot) {
  Rig r(5);
  r.hear(2, {Rig::suspect(3, 2, 4)});
  EXPECT_EQ(r.standing(3), Standing::suspect);
  r.hear(4, {{NodeId{3}, {kStart, 4}, Claim::alive, {}}});
  EXPECT_EQ(r.standing(3), Standing::suspect);
  r.hear(4, {{NodeId{3}, {kStart, 5}, Claim::alive, {}}});
  EXPECT_EQ(r.standing(3), Standing::alive);
  EXPECT_EQ(r.swim.counters().false_suspicions, 1U);
  r.hear(2, {Rig::suspect(3, 2, 4)});
  EXPECT_EQ(r.standing(3), Standing::alive);
}

TEST(Swim, NonsenseOfAMemberIsRefusedAndCounted) {
  Rig r(5);
  const auto before = r.swim.self();
  r.hear(2, {Rig::suspect(1, 2, 4'000'000'000)});                  // absurd round of this node
  r.hear(2, {{kMe, {kStart + 1, 0}, Claim::suspect, NodeId{2}}});  // a start that was not yet
  r.hear(2, {Rig::suspect(3, 2, 4'000'000'000)});                  // absurd round of another
  r.hear(2, {Rig::suspect(3, 99)});                                // nobody accuses
  r.hear(2, {Rig::suspect(3, 3)});                                 // itself
  r.hear(2, {{NodeId{3}, {kStart, 0}, Claim::dead, {}}});          // not for gossip to say
  r.hear(2, {}, 4'000'000'000);                                    // of itself
  EXPECT_EQ(r.swim.counters().refused, 7U);
  r.hear(2, {Rig::suspect(77, 2)});                             // not a member
  r.hear(2, {{NodeId{3}, {kStart + 1, 0}, Claim::alive, {}}});  // not by the log
  EXPECT_EQ(r.swim.counters().unknown, 2U);
  EXPECT_EQ(r.swim.self(), before);
  EXPECT_EQ(r.standing(3), Standing::alive);
  EXPECT_FALSE(r.swim.suspects_any());
}

TEST(Swim, OwnStallIsNobodysDeath) {
  Rig r(5);
  r.run(seconds(1), {});
  Effects out;
  r.swim.tick(r.swim.next_wake(), r.random, out);  // A probe is under way ...
  r.now = r.swim.next_wake() + seconds(60);        // ... when the process is stopped for a minute.
  r.perform(out);
  Effects after;
  r.swim.tick(r.now, r.random, after);
  r.perform(after);
  EXPECT_EQ(r.swim.counters().stalls, 1U);
  EXPECT_EQ(r.swim.counters().health, 1U);
  r.answer({});
  r.run(seconds(5), {});
  EXPECT_EQ(r.swim.counters().probes_failed, 0U);
  EXPECT_FALSE(r.swim.suspects_any());
}

TEST(Swim, BadHealthSlowsItDownAndAnswersHealIt) {
  Rig r(5);
  r.run(seconds(4), {2, 3, 4, 5});  // Nobody answers, not even that somebody else does not: the fault is here.
  EXPECT_EQ(r.swim.counters().health, r.swim.config().max_health);
  const auto probes = r.swim.counters().probes;
  r.run(seconds(4), {2, 3, 4, 5});
  EXPECT_LE(r.swim.counters().probes - probes, 5U) << "at most one each 1.8 s, and a half-finished one";
  r.run(seconds(60), {});
  EXPECT_EQ(r.swim.counters().health, 0U);
}

TEST(Swim, ANewcomerHasGraceAndThenHasNot) {
  Rig r(4);
  r.facts.push_back({NodeId{9}, kStart, true, false, false});
  Effects out;
  r.swim.set_members(r.now, r.facts, r.random, out);
  EXPECT_EQ(r.standing(9), Standing::joining);
  r.run(milliseconds(2900), {9});
  EXPECT_EQ(r.standing(9), Standing::joining);
  r.run(seconds(8), {9});
  EXPECT_TRUE(r.condemns(9));
}

TEST(Swim, ALaterStartDoesNotSpeakForTheOneThatWasProbed) {
  Rig r(3);
  const Instant end = r.now + seconds(6);
  while (r.swim.next_wake() <= end) {
    r.now = r.swim.next_wake();
    Effects out;
    r.swim.tick(r.now, r.random, out);
    for (const auto& s : out.send) {
      if (!is_request(s.message.kind)) continue;
      Message m{
          .kind = Kind::ack, .seq = s.message.seq, .sender = {kStart, 0}, .target = s.message.target, .updates = {}};
      if (s.to == NodeId{3}) m.sender.start = kStart + 1;
      if (s.message.kind == Kind::ask) m.updates.push_back({NodeId{3}, {kStart + 1, 0}, Claim::alive, {}});
      Effects answered;
      r.swim.on_message(r.now, s.to, m, answered);
    }
  }
  EXPECT_TRUE(r.condemns(3)) << "it has been started again and cannot get in";
  EXPECT_FALSE(r.condemns(2));
}

TEST(Swim, TheLogEndsAVerdictAndBeginsANewLife) {
  Rig r(5);
  r.run(seconds(6), {3});
  ASSERT_TRUE(r.condemns(3));
  r.facts[2].alive = false;
  Effects out;
  r.swim.set_members(r.now, r.facts, r.random, out);
  EXPECT_TRUE(out.verdicts_changed);
  EXPECT_EQ(r.standing(3), Standing::dead);
  EXPECT_TRUE(r.swim.verdicts().empty());
  r.sent.clear();
  // What the dead one asks is answered with the news.
  Effects news;
  r.swim.on_message(r.now, NodeId{3},
                    {.kind = Kind::ping, .seq = 5, .sender = {kStart, 0}, .target = {}, .updates = {}}, news);
  ASSERT_EQ(news.send.size(), 1U);
  ASSERT_FALSE(news.send[0].message.updates.empty());
  EXPECT_EQ(news.send[0].message.updates[0].claim, Claim::dead);
  r.facts[2] = {NodeId{3}, kStart + 1, true, false, true};
  Effects back;
  r.swim.set_members(r.now, r.facts, r.random, back);
  EXPECT_EQ(r.standing(3), Standing::joining);
  r.facts.erase(r.facts.begin() + 2);
  Effects gone;
  r.swim.set_members(r.now, r.facts, r.random, gone);
  EXPECT_EQ(r.standing(3), Standing::left);
}

TEST(Swim, WhoWasDeclaredDeadWasOutOfTouchAndIsNotBelieved) {
  Rig r(5);
  r.facts[1].alive = false;
  Effects out;
  r.swim.set_members(r.now, r.facts, r.random, out);
  r.hear(2, {Rig::suspect(3, 2), Rig::suspect(1, 2)});
  EXPECT_EQ(r.standing(3), Standing::alive);
  EXPECT_EQ(r.swim.self().round, 0U);
  EXPECT_EQ(r.swim.counters().health, 0U);
  // And the other way round: under its new incarnation this node has nothing against anybody.
  r.run(seconds(8), {3, 4, 5});
  ASSERT_TRUE(r.condemns(4));
  r.swim.set_self(r.now, kStart + 1);
  EXPECT_TRUE(r.swim.verdicts().empty());
  EXPECT_FALSE(r.swim.suspects_any());
}

TEST(Swim, AnAskIsAnsweredForTheTargetOrWithANack) {
  Rig r(5);
  r.sent.clear();
  Effects out;
  const Message ask{.kind = Kind::ask, .seq = 11, .sender = {kStart, 0}, .target = NodeId{3}, .updates = {}};
  r.swim.on_message(r.now, NodeId{2}, ask, out);
  ASSERT_EQ(out.send.size(), 1U);
  EXPECT_EQ(out.send[0].to, NodeId{3});
  const std::uint32_t own = out.send[0].message.seq;
  Effects answered;
  r.swim.on_message(r.now, NodeId{3},
                    {.kind = Kind::ack, .seq = own, .sender = {kStart, 2}, .target = {}, .updates = {}}, answered);
  ASSERT_EQ(answered.send.size(), 1U);
  EXPECT_EQ(answered.send[0].to, NodeId{2});
  EXPECT_EQ(answered.send[0].message.kind, Kind::ack);
  EXPECT_EQ(answered.send[0].message.seq, 11U);
  EXPECT_EQ(answered.send[0].message.target, NodeId{3});
  Effects silent;
  r.swim.on_message(r.now, NodeId{2}, ask, silent);
  bool nack = false;
  for (const Instant end = r.now + milliseconds(125); r.swim.next_wake() <= end && !nack;) {
    r.now = r.swim.next_wake();
    Effects late;
    r.swim.tick(r.now, r.random, late);
    for (const auto& s : late.send) nack = nack || (s.message.kind == Kind::nack && s.to == NodeId{2});
  }
  EXPECT_TRUE(nack);
}

TEST(Swim, GossipIsToldALimitedNumberOfTimes) {
  Rig r(5);
  r.hear(2, {{NodeId{3}, {kStart, 1}, Claim::alive, {}}});
  int told = 0;
  for (int i = 0; i < 200; ++i) {
    r.now = r.swim.next_wake();
    Effects out;
    r.swim.tick(r.now, r.random, out);
    for (const auto& s : out.send) {
      if (s.message.kind == Kind::ping)
        told += static_cast<int>(std::ranges::count(s.message.updates, NodeId{3}, &Update::node));
    }
    r.perform(out);
    r.rounds[3] = 1;
    r.answer({});
  }
  EXPECT_GT(told, 4);
  EXPECT_LE(told, 9) << "3 log2(n + 1)";
}

TEST(SwimWire, RoundTrip) {
  Message m{.kind = Kind::ask, .seq = 77, .sender = {5, 6}, .target = NodeId{8}, .updates = {}};
  m.updates.push_back({NodeId{1}, {2, 3}, Claim::suspect, NodeId{4}});
  m.updates.push_back({NodeId{9}, {2, 3}, Claim::alive, {}});
  const std::string bytes = encode(m);
  const auto back = decode_swim_message(as_bytes(bytes));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->kind, m.kind);
  EXPECT_EQ(back->seq, m.seq);
  EXPECT_EQ(back->sender, m.sender);
  EXPECT_EQ(back->target, m.target);
  EXPECT_EQ(back->updates, m.updates);
  m.kind = Kind::sync;
  m.updates.assign(kMaxSyncUpdates, {NodeId{~0ULL}, {~0ULL, ~0U}, Claim::suspect, NodeId{~0ULL}});
  EXPECT_LE(encode(m).size(), kMaxMessageBytes);
}

TEST(SwimWire, WhatMakesNoSenseIsMalformed) {
  const auto refused = [](Message m) { return !decode_swim_message(as_bytes(encode(m))); };
  const Update accused{NodeId{3}, {1, 0}, Claim::suspect, NodeId{4}};
  EXPECT_FALSE(refused({.kind = Kind::ping, .seq = 1, .sender = {1, 0}, .target = {}, .updates = {accused}}));
  EXPECT_TRUE(refused({.kind = static_cast<Kind>(9), .seq = 1, .sender = {1, 0}, .target = {}, .updates = {}}));
  EXPECT_TRUE(refused({.kind = Kind::ask, .seq = 1, .sender = {1, 0}, .target = {}, .updates = {}}));
  EXPECT_TRUE(
      refused({.kind = Kind::ping, .seq = 1, .sender = {1, 0}, .target = {}, .updates = std::vector(9, accused)}));
  EXPECT_TRUE(refused({.kind = Kind::ping,
                       .seq = 1,
                       .sender = {1, 0},
                       .target = {},
                       .updates = {{NodeId{3}, {1, 0}, Claim::suspect, {}}}}));
  EXPECT_TRUE(refused(
      {.kind = Kind::ping, .seq = 1, .sender = {1, 0}, .target = {}, .updates = {{{}, {1, 0}, Claim::alive, {}}}}));
  EXPECT_FALSE(decode_swim_message(as_bytes(std::string(kMaxMessageBytes + 1, '\0'))));
}

/// Whatever a member says, the core stays within its bounds and condemns nobody that it does not fail to reach itself.
RC_GTEST_PROP(Swim, WhateverMembersSayNobodyWhoAnswersIsCondemned, ()) {
  Rig r(6);
  const auto words = *rc::gen::container<std::vector<std::uint32_t>>(rc::gen::arbitrary<std::uint32_t>());
  for (const std::uint32_t w : words) {
    Update u{NodeId{w % 9},
             {kStart + (w >> 4) % 2, (w >> 6) % 5},
             static_cast<Claim>(1 + (w >> 9) % 3),
             NodeId{(w >> 12) % 9}};
    r.hear(2 + (w >> 16) % 5, {u}, r.rounds[2 + (w >> 16) % 5]);
    r.run(milliseconds((w >> 20) % 300), {});
    RC_ASSERT(r.swim.verdicts().empty());
  }
}

}  // namespace
}  // namespace holo::membership
