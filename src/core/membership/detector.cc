#include "core/membership/detector.h"

#include <algorithm>

namespace holo::membership {

void FailureDetector::lead(Instant now) {
  leading_ = true;
  seen_.clear();
  last_tick_ = now;
}

void FailureDetector::resign() {
  leading_ = false;
  seen_.clear();
}

void FailureDetector::watch(Instant now, const std::vector<Watched>& nodes) {
  std::map<NodeId, Seen> next;
  for (const Watched& w : nodes) {
    const auto it = seen_.find(w.node);
    if (it != seen_.end() && it->second.incarnation == w.incarnation) {
      next[w.node] = it->second;
    } else {
      next[w.node] = {.incarnation = w.incarnation, .deadline = now + config_.grace, .last = now};
    }
  }
  seen_ = std::move(next);
}

void FailureDetector::on_heartbeat(Instant now, NodeId node, std::uint64_t incarnation) {
  const auto it = seen_.find(node);
  if (it == seen_.end() || it->second.incarnation != incarnation) return;
  it->second.last = now;
  it->second.deadline = std::max(it->second.deadline, now + config_.silence);
}

std::vector<Death> FailureDetector::tick(Instant now) {
  std::vector<Death> dead;
  if (!leading_) return dead;
  const Duration since = now - last_tick_;
  last_tick_ = now;
  if (since > config_.tick + config_.late) {
    for (auto& [node, seen] : seen_)
      seen.deadline = std::max(seen.deadline + (since - config_.tick), now + config_.late);
  }
  for (const auto& [node, seen] : seen_) {
    if (now >= seen.deadline)
      dead.push_back({.node = node, .incarnation = seen.incarnation, .silent = now - seen.last});
  }
  return dead;
}

NodeId HeartbeatPlan::next(Instant now, NodeId leader, const std::vector<NodeId>& others) {
  if (!started_) leader_seen_ = now;
  started_ = true;
  if (leader) {
    leader_seen_ = now;
    hint_ = {};
    return leader;
  }
  if (now - leader_seen_ < config_.leaderless) return {};
  if (hint_ && hint_ != self_) return hint_;
  for (std::size_t i = 0; i < others.size(); ++i) {
    const NodeId candidate = others[turn_++ % others.size()];
    if (candidate != self_) return candidate;
  }
  return {};
}

}  // namespace holo::membership
