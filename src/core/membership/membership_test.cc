#include <gtest/gtest.h>

#include "core/membership/heartbeat.h"
#include "core/membership/voters.h"

namespace holo::membership {
namespace {

constexpr Instant at(std::int64_t ms) { return Instant{ms * 1'000'000}; }
const NodeId kA{1};
const NodeId kB{2};

TEST(HeartbeatPlan, SpeaksToTheLeaderAndAsksAroundWithoutOne) {
  HeartbeatPlan plan({}, kA);
  const std::vector<NodeId> others{kA, kB, NodeId{3}};
  EXPECT_EQ(plan.next(at(0), kB, others), kB);
  EXPECT_EQ(plan.next(at(200), {}, others), NodeId{}) << "an election may be under way";
  EXPECT_EQ(plan.next(at(1'300), {}, others), kB);
  EXPECT_EQ(plan.next(at(1'500), {}, others), NodeId{3});
  EXPECT_EQ(plan.next(at(1'700), {}, others), kB) << "never itself";
  plan.on_hint(NodeId{3});
  EXPECT_EQ(plan.next(at(1'900), {}, others), NodeId{3});
  EXPECT_EQ(plan.next(at(2'100), {}, others), NodeId{3});
  plan.on_failure(NodeId{3});
  EXPECT_NE(plan.next(at(2'300), {}, others), NodeId{});
  EXPECT_EQ(plan.next(at(2'500), kA, others), kA) << "it may lead itself";
  EXPECT_EQ(plan.next(at(2'700), {}, {}), NodeId{});
}

// ---- Voters. One row: members as text (upper case: alive; v: voter, l: learner; lower case a/d for the state), then
// the change.

struct VoterRow {
  const char* members;  // "Av Al Dv": node 1 alive voter, node 2 alive learner, node 3 dead voter
  std::uint64_t leader;
  std::optional<VoterChange> want;
};

class Voters : public ::testing::TestWithParam<VoterRow> {};

TEST_P(Voters, NextChange) {
  const VoterRow& row = GetParam();
  std::vector<Member> members;
  for (const char* p = row.members; *p != 0;) {
    members.push_back({.node = NodeId{members.size() + 1}, .alive = p[0] == 'A', .voter = p[1] == 'v'});
    p += 2;
    while (*p == ' ') ++p;
  }
  EXPECT_EQ(next_voter_change(members, NodeId{row.leader}), row.want) << row.members;
}

INSTANTIATE_TEST_SUITE_P(
    Table, Voters,
    ::testing::Values(
        VoterRow{"Av", 1, std::nullopt}, VoterRow{"Av Al", 1, VoterChange{NodeId{2}, true}},
        VoterRow{"Al Av", 2, VoterChange{NodeId{1}, true}}, VoterRow{"Av Al Al", 1, VoterChange{NodeId{2}, true}},
        VoterRow{"Av Av Al", 1, VoterChange{NodeId{3}, true}}, VoterRow{"Av Av Av", 1, std::nullopt},
        VoterRow{"Av Av Av Al", 1, std::nullopt}, VoterRow{"Av Av Dv Al", 1, VoterChange{NodeId{4}, true}},
        VoterRow{"Av Av Dv Av", 1, VoterChange{NodeId{3}, false}}, VoterRow{"Av Av Dv", 1, std::nullopt},
        VoterRow{"Av Av Dv Dl", 1, std::nullopt}, VoterRow{"Av Av Av Al Al", 1, VoterChange{NodeId{4}, true}},
        VoterRow{"Av Av Av Av Al", 1, VoterChange{NodeId{5}, true}}, VoterRow{"Av Av", 2, std::nullopt},
        VoterRow{"Av Dv", 1, std::nullopt}, VoterRow{"Av Av Av Av", 4, VoterChange{NodeId{3}, false}},
        VoterRow{"", 1, std::nullopt}));

TEST(Voters, AlwaysComesToRest) {
  // From any state of up to seven nodes, changes end, and end with the wanted number of live voters where there are
  // enough.
  for (std::uint32_t code = 0; code < (1U << 14); ++code) {
    std::vector<Member> members;
    for (int i = 0; i < 7; ++i) {
      const std::uint32_t two = code >> (2 * i) & 3;
      members.push_back(
          {.node = NodeId{static_cast<std::uint64_t>(i + 1)}, .alive = (two & 1) != 0, .voter = (two & 2) != 0});
    }
    members[0] = {.node = NodeId{1}, .alive = true, .voter = true};
    int steps = 0;
    while (const auto change = next_voter_change(members, NodeId{1})) {
      ASSERT_LT(++steps, 20);
      ASSERT_NE(*change, (VoterChange{NodeId{1}, false})) << "the leader keeps its vote";
      members[change->node.value - 1].voter = change->voter;
    }
    std::size_t live = 0;
    std::size_t live_voters = 0;
    for (const Member& m : members) {
      live += m.alive ? 1 : 0;
      live_voters += m.alive && m.voter ? 1 : 0;
    }
    EXPECT_GE(live_voters, std::min<std::size_t>(live, 5));
  }
}

}  // namespace
}  // namespace holo::membership
