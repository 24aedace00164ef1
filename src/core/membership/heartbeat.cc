#include "core/membership/heartbeat.h"

namespace holo::membership {

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
