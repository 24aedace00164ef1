// When a node reports to the leader, and to whom. A core: no clock, no network.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "base/time.h"

namespace holo::membership {

struct HeartbeatConfig {
  Duration interval = milliseconds(500);
  Duration leaderless = milliseconds(1000);  ///< After so long without a leader, anybody is asked who leads.
};

/// Every node's side: when to speak, and to whom.
class HeartbeatPlan {
 public:
  HeartbeatPlan(HeartbeatConfig config, NodeId self) : config_(config), self_(self) {}

  /// `leader`: as the log knows it, 0 when unknown; `others`: nodes that may be asked. Returns to whom to send now: the
  /// leader (perhaps this node itself), else after a while the next of `others` in turn; 0: nobody now.
  NodeId next(Instant now, NodeId leader, const std::vector<NodeId>& others);
  /// Somebody named a leader that the log does not know yet.
  void on_hint(NodeId leader) { hint_ = leader; }
  void on_failure(NodeId asked) {
    if (hint_ == asked) hint_ = {};
  }
  [[nodiscard]] Duration interval() const { return config_.interval; }

 private:
  HeartbeatConfig config_;
  NodeId self_;
  NodeId hint_;
  Instant leader_seen_{INT64_MIN / 2};
  bool started_ = false;
  std::size_t turn_ = 0;
};

}  // namespace holo::membership
