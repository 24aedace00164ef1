#include "core/membership/voters.h"

#include <algorithm>

namespace holo::membership {
namespace {

const Candidate* first(std::span<const Candidate> members, auto&& want) {
  auto it = std::ranges::find_if(members, want);
  return it == members.end() ? nullptr : &*it;
}

}  // namespace

std::optional<VoterChange> next_voter_change(std::span<const Candidate> members) {
  using Kind = VoterChange::Kind;
  const auto count = [&](auto&& want) { return static_cast<std::size_t>(std::ranges::count_if(members, want)); };
  const std::size_t staying = count([](const Candidate& c) { return !c.leaving; });
  const std::size_t staying_live = count([](const Candidate& c) { return c.alive && !c.leaving; });
  const std::size_t voters = count([](const Candidate& c) { return c.voter; });
  const Candidate* learner = first(members, [](const Candidate& c) { return c.alive && !c.voter && !c.leaving; });
  const Candidate* leaving = first(members, [](const Candidate& c) { return c.voter && c.leaving; });
  const Candidate* dead = first(members, [](const Candidate& c) { return c.voter && !c.alive; });

  // Growth goes by who is live; what was reached is kept while nodes are merely dead.
  const std::size_t kept = std::min(voters_wanted(staying), voters % 2 == 1 ? voters : voters - (voters > 0 ? 1 : 0));
  const std::size_t wanted = std::max(voters_wanted(staying_live), kept);

  if (leaving != nullptr) {
    if (learner != nullptr && voters <= wanted) return VoterChange{Kind::promote, learner->node};
    if (!leaving->leader) return VoterChange{Kind::demote, leaving->node};
    if (voters > 1) return VoterChange{Kind::hand_over, leaving->node};
    return std::nullopt;  // The last voter has nobody to hand over to.
  }
  if (voters < wanted && learner != nullptr) return VoterChange{Kind::promote, learner->node};
  if (voters > wanted) {
    if (dead != nullptr) return VoterChange{Kind::demote, dead->node};
    const Candidate* spare = first(members, [](const Candidate& c) { return c.voter && !c.leader; });
    if (spare != nullptr) return VoterChange{Kind::demote, spare->node};
    return std::nullopt;
  }
  if (dead != nullptr && learner != nullptr) return VoterChange{Kind::promote, learner->node};
  return std::nullopt;
}

}  // namespace holo::membership
