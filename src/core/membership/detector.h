// Who is alive: until SWIM replaces it, the leader listens to everybody's heartbeats and decides death by silence.
// A core: no clock, no network; the caller hands in time and performs what comes out.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "base/ids.h"
#include "base/time.h"

namespace holo::membership {

struct DetectorConfig {
  Duration silence = milliseconds(1500);  ///< A node not heard for so long is dead.
  Duration tick = milliseconds(100);      ///< How often the caller means to call tick().
  Duration grace = milliseconds(3000);    ///< For everybody after this node began to lead, and for who came anew.
  Duration late = milliseconds(200);      ///< A tick later than this tells that this node itself stood still.
};

struct Watched {
  NodeId node;
  std::uint64_t incarnation = 0;
};
struct Death {
  NodeId node;
  std::uint64_t incarnation = 0;
  Duration silent;
};

/// The leader's side.
class FailureDetector {
 public:
  explicit FailureDetector(DetectorConfig config) : config_(config) {}

  /// Begins to watch, with grace for all: this node has heard nobody yet.
  void lead(Instant now);
  void resign();
  [[nodiscard]] bool leading() const { return leading_; }

  /// The nodes that the state says are alive, this one left out. New ones get the grace. Cost: O(nodes).
  void watch(Instant now, const std::vector<Watched>& nodes);
  void on_heartbeat(Instant now, NodeId node, std::uint64_t incarnation);
  /// Who has become silent, each told again until watch() leaves it out. Time in which this node stood still does not
  /// count against the others: what they sent meanwhile may still wait to be read.
  std::vector<Death> tick(Instant now);

 private:
  struct Seen {
    std::uint64_t incarnation = 0;
    Instant deadline;
    Instant last;
  };
  DetectorConfig config_;
  bool leading_ = false;
  Instant last_tick_;
  std::map<NodeId, Seen> seen_;
};

struct HeartbeatConfig {
  Duration interval = milliseconds(200);
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
