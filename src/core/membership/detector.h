// Who is silent for too long. The leader's heartbeat detector, until gossip replaces it behind the same questions.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/time.h"

namespace holo::membership {

struct DetectorConfig {
  Duration silence = seconds(2);      ///< A node not heard for so long is dead.
  Duration grace = seconds(3);        ///< What every node gets when somebody new begins to lead.
  Duration tick = milliseconds(100);  ///< How often tick() is called.
};

/// A node as the control state knows it: alive, under an incarnation.
struct Member {
  NodeId node;
  std::uint64_t incarnation = 0;
  friend bool operator==(const Member&, const Member&) = default;
};

/// Leader side. Time in which this node itself stood still (a late tick) counts against nobody.
/// Source: fixed time-out detection as in Raft-based stores; the stall rule after Lifeguard's local health (Dadgar et
/// al., 2018).
class FailureDetector {
 public:
  explicit FailureDetector(DetectorConfig config) : config_(config) {}

  /// This node leads from now on: everybody gets the grace.
  void lead(Instant now);
  void on_heartbeat(Instant now, Member member);
  /// The members, of `alive`, that are to be declared dead. A member never heard of gets the grace from now. Cost: O(n
  /// log n).
  std::vector<Member> tick(Instant now, std::span<const Member> alive);

 private:
  struct Heard {
    std::uint64_t incarnation = 0;
    Instant deadline;
  };
  DetectorConfig config_;
  Instant last_tick_{};
  bool ticking_ = false;
  std::map<NodeId, Heard> heard_;
};

}  // namespace holo::membership
