#include "core/membership/voters.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <set>

namespace holo::membership {
namespace {

Member at(std::uint64_t node, std::string zone, std::string host, bool voter = false) {
  return {.node = NodeId{node}, .alive = true, .voter = voter, .zone = std::move(zone), .host = std::move(host)};
}

/// Makes changes until there are none; the most that were needed.
std::vector<Member> settle(std::vector<Member> members, NodeId leader) {
  for (int i = 0; i < 50; ++i) {
    const auto change = next_voter_change(members, leader);
    if (!change) return members;
    std::ranges::find(members, change->node, &Member::node)->voter = change->voter;
  }
  ADD_FAILURE() << "it never ends";
  return members;
}

std::set<std::uint64_t> voters(const std::vector<Member>& members) {
  std::set<std::uint64_t> out;
  for (const Member& m : members) {
    if (m.voter) out.insert(m.node.value);
  }
  return out;
}

TEST(Voters, SpreadOverZonesThenHosts) {
  std::vector<Member> m{at(1, "a", "h1", true), at(2, "a", "h1"), at(3, "a", "h2"), at(4, "b", "h3"), at(5, "b", "h3")};
  m.pop_back();
  EXPECT_EQ(voters(settle(m, NodeId{1})), (std::set<std::uint64_t>{1, 3, 4})) << "not two on h1";
  for (Member& n : m) n.zone.clear();
  EXPECT_EQ(voters(settle(m, NodeId{1})), (std::set<std::uint64_t>{1, 3, 4}));
  for (Member& n : m) n.host.clear();
  EXPECT_EQ(voters(settle(m, NodeId{1})), (std::set<std::uint64_t>{1, 2, 3})) << "nothing known: the lowest";
}

TEST(Voters, MoveWhenABetterPlaceAppears) {
  std::vector<Member> m{at(1, "a", "h", true), at(2, "a", "h", true), at(3, "a", "h", true), at(4, "b", "k")};
  const auto first = next_voter_change(m, NodeId{1});
  ASSERT_TRUE(first);
  EXPECT_EQ(*first, (VoterChange{NodeId{4}, true})) << "before another loses its vote";
  EXPECT_EQ(voters(settle(m, NodeId{1})), (std::set<std::uint64_t>{1, 2, 4}));
}

TEST(Voters, AWitnessVotesBeforeAllOthers) {
  std::vector<Member> m{at(1, "", "", true), at(2, "", "", true), at(3, "", "", true), at(9, "", "")};
  m.back().witness = true;
  EXPECT_EQ(voters(settle(m, NodeId{1})), (std::set<std::uint64_t>{1, 2, 9}));
}

TEST(Voters, ADeadOneIsReplacedBeforeItLosesItsVote) {
  std::vector<Member> m{at(1, "", "", true), at(2, "", "", true), at(3, "", "", true), at(4, "", "")};
  m[1].alive = false;
  EXPECT_EQ(*next_voter_change(m, NodeId{1}), (VoterChange{NodeId{4}, true}));
  m[3].voter = true;
  EXPECT_EQ(*next_voter_change(m, NodeId{1}), (VoterChange{NodeId{2}, false}));
  m[1].voter = false;
  EXPECT_FALSE(next_voter_change(m, NodeId{1}));
  m[2].alive = false;  // Nobody is left to replace it.
  EXPECT_FALSE(next_voter_change(m, NodeId{1}));
}

RC_GTEST_PROP(Voters, NeverFallBelowWhatIsWantedAndSettle, (const std::vector<std::uint8_t>& nodes)) {
  RC_PRE(!nodes.empty() && nodes.size() <= 12);
  std::vector<Member> m;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const std::uint8_t b = nodes[i];
    m.push_back({.node = NodeId{i + 1},
                 .alive = (b & 3) != 0,
                 .voter = (b & 4) != 0,
                 .witness = (b & 0xf8) == 0,
                 .zone = b & 8 ? std::string() : std::string(1, static_cast<char>('a' + (b >> 4 & 1))),
                 .host = std::string(1, static_cast<char>('a' + (b >> 5 & 3)))});
  }
  m[0].alive = m[0].voter = true;
  const std::size_t before = voters(m).size();
  const std::size_t wanted = wanted_voters(m.size());
  for (int i = 0; i < 50; ++i) {
    const auto change = next_voter_change(m, NodeId{1});
    if (!change) break;
    RC_ASSERT(i < 49);
    auto& changed = *std::ranges::find(m, change->node, &Member::node);
    RC_ASSERT(changed.voter != change->voter);
    RC_ASSERT(changed.alive || !change->voter);
    changed.voter = change->voter;
    RC_ASSERT(voters(m).size() >= std::min(before, wanted));
    RC_ASSERT(voters(m).size() <= std::max(before, wanted + 1));
    RC_ASSERT(m[0].voter);
  }
  RC_ASSERT(voters(m).size() <= std::max(wanted, std::size_t{1}));
}

}  // namespace
}  // namespace holo::membership
