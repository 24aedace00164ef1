#include "core/membership/detector.h"

#include <algorithm>

namespace holo::membership {

void FailureDetector::lead(Instant) {
  heard_.clear();
  ticking_ = false;
}

void FailureDetector::on_heartbeat(Instant now, Member member) {
  heard_[member.node] = {.incarnation = member.incarnation, .deadline = now + config_.silence};
}

std::vector<Member> FailureDetector::tick(Instant now, std::span<const Member> alive) {
  // What arrived while this node slept has not been read yet: give back the time it was away.
  const Duration late = ticking_ ? now - last_tick_ - config_.tick : Duration{};
  if (late > config_.tick * 2) {
    for (auto& [node, heard] : heard_) heard.deadline = heard.deadline + late;
  }
  ticking_ = true;
  last_tick_ = now;

  std::vector<Member> dead;
  for (const Member& m : alive) {
    auto [it, fresh] = heard_.try_emplace(m.node, Heard{.incarnation = m.incarnation, .deadline = now + config_.grace});
    if (!fresh && it->second.incarnation < m.incarnation) {
      it->second = {.incarnation = m.incarnation, .deadline = now + config_.grace};
    }
    // A heartbeat of a later incarnation: the one that the state calls alive has ended.
    const bool replaced = it->second.incarnation > m.incarnation;
    if (!replaced && now >= it->second.deadline) dead.push_back(m);
  }
  std::erase_if(heard_, [&](const auto& entry) {
    return std::ranges::none_of(alive, [&](const Member& m) { return m.node == entry.first; });
  });
  return dead;
}

}  // namespace holo::membership
