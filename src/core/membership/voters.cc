#include "core/membership/voters.h"

#include <algorithm>

namespace holo::membership {

std::size_t wanted_voters(std::size_t nodes) { return nodes >= 5 ? 5 : nodes >= 3 ? 3 : nodes >= 2 ? 2 : 1; }

std::optional<VoterChange> next_voter_change(std::vector<Member> members, NodeId leader) {
  std::sort(members.begin(), members.end(), [](const Member& a, const Member& b) { return a.node < b.node; });
  const std::size_t wanted = wanted_voters(members.size());
  std::size_t voters = 0;
  std::size_t live_voters = 0;
  for (const Member& m : members) {
    voters += m.voter ? 1 : 0;
    live_voters += m.voter && m.alive ? 1 : 0;
  }
  if (live_voters < wanted) {
    const auto learner =
        std::find_if(members.begin(), members.end(), [](const Member& m) { return m.alive && !m.voter; });
    if (learner != members.end()) return VoterChange{learner->node, true};
  }
  if (voters <= wanted) return std::nullopt;
  const auto dead = std::find_if(members.begin(), members.end(), [](const Member& m) { return m.voter && !m.alive; });
  if (dead != members.end()) return VoterChange{dead->node, false};
  const auto last =
      std::find_if(members.rbegin(), members.rend(), [&](const Member& m) { return m.voter && m.node != leader; });
  if (last == members.rend()) return std::nullopt;
  return VoterChange{last->node, false};
}

}  // namespace holo::membership
