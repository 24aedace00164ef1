#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/random.h"
#include "core/membership/detector.h"
#include "core/membership/voters.h"

namespace holo::membership {
namespace {

constexpr Instant at(std::int64_t ms) { return Instant{milliseconds(ms).ns}; }
const std::vector<Member> kTwo = {{NodeId{1}, 1}, {NodeId{2}, 1}};

/// Ticks each 100 ms over [from, to); node 1 always beats.
std::vector<Member> run(FailureDetector& d, std::int64_t from, std::int64_t to, bool two_beats) {
  std::vector<Member> dead;
  for (std::int64_t t = from; t < to; t += 100) {
    d.on_heartbeat(at(t), kTwo[0]);
    if (two_beats) d.on_heartbeat(at(t), kTwo[1]);
    for (const Member& m : d.tick(at(t), kTwo)) dead.push_back(m);
    if (!dead.empty()) break;
  }
  return dead;
}

TEST(FailureDetector, FindsTheSilentNodeAndNobodyElse) {
  FailureDetector d({});
  d.lead(at(0));
  EXPECT_TRUE(run(d, 0, 5'000, true).empty());
  EXPECT_TRUE(run(d, 5'000, 6'800, false).empty());
  EXPECT_EQ(run(d, 6'800, 9'000, false), std::vector{kTwo[1]});
}

TEST(FailureDetector, ANewLeaderGivesGrace) {
  FailureDetector d({});
  d.lead(at(0));
  EXPECT_TRUE(run(d, 0, 3'000, false).empty());
  EXPECT_EQ(run(d, 3'000, 4'000, false), std::vector{kTwo[1]});
}

TEST(FailureDetector, ItsOwnStallCountsAgainstNobody) {
  FailureDetector d({});
  d.lead(at(0));
  EXPECT_TRUE(run(d, 0, 1'000, true).empty());
  EXPECT_TRUE(d.tick(at(31'000), kTwo).empty());
  EXPECT_TRUE(run(d, 31'100, 40'000, true).empty());
}

TEST(FailureDetector, ALaterIncarnationIsNotTheDeathOfTheNode) {
  FailureDetector d({});
  d.lead(at(0));
  EXPECT_TRUE(run(d, 0, 1'000, true).empty());
  d.on_heartbeat(at(1'000), {NodeId{2}, 2});
  EXPECT_TRUE(d.tick(at(1'000), kTwo).empty());
}

Candidate live(std::uint64_t n, bool voter, bool leader = false) {
  return {.node = NodeId{n}, .alive = true, .voter = voter, .leaving = false, .leader = leader};
}

/// Applies changes until none is wanted; returns how many there were. A hand-over makes the next live voter lead.
int settle(std::vector<Candidate>& members) {
  int steps = 0;
  while (auto change = next_voter_change(members)) {
    auto it = std::ranges::find(members, change->node, &Candidate::node);
    if (change->kind == VoterChange::Kind::hand_over) {
      it->leader = false;
      auto next =
          std::ranges::find_if(members, [&](const Candidate& c) { return c.voter && c.alive && c.node != it->node; });
      if (next == members.end()) return -1;
      next->leader = true;
    } else {
      it->voter = change->kind == VoterChange::Kind::promote;
    }
    if (++steps > 20) return -1;
  }
  return steps;
}
std::size_t voters(const std::vector<Candidate>& members) {
  return static_cast<std::size_t>(std::ranges::count(members, true, &Candidate::voter));
}

TEST(Voters, GrowWithTheCluster) {
  std::vector<Candidate> m = {live(1, true, true)};
  EXPECT_EQ(settle(m), 0);
  m.push_back(live(2, false));
  EXPECT_EQ(settle(m), 0);
  m.push_back(live(3, false));
  EXPECT_EQ(settle(m), 2);
  m.push_back(live(4, false));
  EXPECT_EQ(settle(m), 0);
  EXPECT_EQ(voters(m), 3U);
  m.push_back(live(5, false));
  EXPECT_EQ(settle(m), 2);
  EXPECT_EQ(voters(m), 5U);
}

TEST(Voters, ADeadOneIsReplacedAndTheNumberDoesNotFall) {
  std::vector<Candidate> m = {live(1, true, true), live(2, true), live(3, true), live(4, false)};
  m[2].alive = false;
  EXPECT_EQ(settle(m), 2);
  EXPECT_EQ(voters(m), 3U);
  EXPECT_FALSE(m[2].voter);
  EXPECT_TRUE(m[3].voter);
  m[3].alive = false;  // Nobody left to replace it: it keeps its seat.
  EXPECT_EQ(settle(m), 0);
  EXPECT_EQ(voters(m), 3U);
}

TEST(Voters, ALeavingLeaderHandsOverFirst) {
  std::vector<Candidate> m = {live(1, true, true), live(2, false)};
  m[0].leaving = true;
  EXPECT_EQ(settle(m), 3);
  EXPECT_FALSE(m[0].voter);
  EXPECT_TRUE(m[1].voter);
}

TEST(Voters, OneOfThreeLeavesAndOneVoterRemains) {
  std::vector<Candidate> m = {live(1, true, true), live(2, true), live(3, true)};
  m[2].leaving = true;
  ASSERT_GE(settle(m), 1);
  EXPECT_FALSE(m[2].voter);
  m.pop_back();
  ASSERT_GE(settle(m), 0);
  EXPECT_EQ(voters(m), 1U);
}

TEST(Voters, AlwaysSettleWithALiveLeaderAmongThem) {
  Random random(1);
  for (int round = 0; round < 5'000; ++round) {
    std::vector<Candidate> m = {live(1, true, true)};
    const std::uint64_t n = random.below(8);
    for (std::uint64_t i = 0; i < n; ++i) {
      Candidate c = live(i + 2, random.chance(1, 2));
      c.alive = random.chance(3, 4);
      c.leaving = random.chance(1, 6);
      m.push_back(c);
    }
    ASSERT_GE(settle(m), 0) << "round " << round;
    ASSERT_GE(voters(m), 1U);
    ASSERT_LE(voters(m), 8U);
  }
}

}  // namespace
}  // namespace holo::membership
