#include "core/membership/voters.h"

#include <algorithm>
#include <tuple>

namespace holo::membership {

std::size_t wanted_voters(std::size_t nodes) { return nodes >= 5 ? 5 : nodes >= 3 ? 3 : nodes >= 2 ? 2 : 1; }

std::vector<NodeId> choose_voters(const std::vector<Member>& members, NodeId leader, std::size_t wanted) {
  std::vector<const Member*> left;
  for (const Member& m : members) {
    if (m.alive) left.push_back(&m);
  }
  std::vector<const Member*> chosen;
  const auto sharing = [&](const Member& m, std::string Member::* place) {
    return std::ranges::count_if(chosen, [&](const Member* c) { return !(m.*place).empty() && c->*place == m.*place; });
  };
  while (chosen.size() < wanted && !left.empty()) {
    const auto rank = [&](const Member* m) {
      return std::tuple(!(m->node == leader && m->voter), !m->witness, sharing(*m, &Member::zone),
                        sharing(*m, &Member::host), !m->voter, m->node);
    };
    const auto best = std::ranges::min_element(left, {}, rank);
    chosen.push_back(*best);
    left.erase(best);
  }
  std::vector<NodeId> out;
  for (const Member* m : chosen) out.push_back(m->node);
  return out;
}

std::optional<VoterChange> next_voter_change(std::vector<Member> members, NodeId leader) {
  std::ranges::sort(members, {}, &Member::node);
  const std::size_t wanted = wanted_voters(members.size());
  const std::vector<NodeId> chosen = choose_voters(members, leader, wanted);
  const auto is_chosen = [&](const Member& m) { return std::ranges::find(chosen, m.node) != chosen.end(); };
  const auto voters = static_cast<std::size_t>(std::ranges::count_if(members, &Member::voter));
  if (voters <= wanted) {
    // With one vote too many until the other is taken away; never with one too few.
    const auto next = std::ranges::find_if(members, [&](const Member& m) { return is_chosen(m) && !m.voter; });
    if (next != members.end()) return VoterChange{next->node, true};
    return std::nullopt;
  }
  const auto dead = std::ranges::find_if(members, [](const Member& m) { return m.voter && !m.alive; });
  if (dead != members.end() && dead->node != leader) return VoterChange{dead->node, false};
  const auto last = std::find_if(members.rbegin(), members.rend(),
                                 [&](const Member& m) { return m.voter && !is_chosen(m) && m.node != leader; });
  if (last == members.rend()) return std::nullopt;
  return VoterChange{last->node, false};
}

}  // namespace holo::membership
