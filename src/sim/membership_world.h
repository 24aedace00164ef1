// Up to thousands of membership cores on a simulated datagram network: loss, slow and paused members, partitions,
// crashes and restarts. The log that declares deaths is modelled (a leader that counts the voters' verdicts); the cores
// are the shipped ones. Faster than sim::World: events are plain values.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "base/random.h"
#include "core/membership/swim.h"

namespace holo::sim {

struct MembershipOptions {
  unsigned nodes = 5;
  std::uint64_t seed = 1;
  membership::SwimConfig swim;
  std::uint32_t loss_per_thousand = 0;  ///< Of membership messages. Those of the log are retransmitted, so never lost.
  Duration min_delay = microseconds(50);
  Duration max_delay = microseconds(500);
  bool measure_bytes = false;  ///< Encodes every message to know its size.
};

class MembershipWorld {
 public:
  explicit MembershipWorld(MembershipOptions options);

  [[nodiscard]] Instant now() const { return now_; }
  void run_for(Duration d);
  /// Runs until `done`, asked after each change of somebody's members; false when `limit` has passed before.
  bool run_until(const std::function<bool()>& done, Duration limit);

  // ---- Faults. Nodes are numbered from 0; node i has id i + 1.
  void crash(unsigned node);
  /// Comes back under a higher incarnation.
  void restart(unsigned node);
  /// Does nothing until then; what is sent to it waits.
  void pause(unsigned node, Duration d);
  /// Runs for 10 ms of every 100 ms, and each thing that it does takes 10 times as long.
  void set_slow(unsigned node, bool slow);
  /// Nodes hear only others of their group. All are in group 0 at first.
  void set_group(unsigned node, unsigned group);
  void set_loss(std::uint32_t per_thousand) { options_.loss_per_thousand = per_thousand; }

  // ---- What happened
  struct Death {
    Instant when;
    unsigned node = 0;
    std::uint64_t start = 0;
    unsigned votes = 0, voters = 0;
    bool deserved = false;  ///< It had crashed, stood still or been cut off within the last 5 s.
  };
  [[nodiscard]] const std::vector<Death>& deaths() const { return deaths_; }
  /// Every running node of `node`'s former group holds it for dead, by the log.
  [[nodiscard]] bool known_dead(unsigned node) const;
  /// Every running node sees every other running node as alive, and the log does so too.
  [[nodiscard]] bool all_well() const;
  [[nodiscard]] std::uint64_t false_suspicions() const;
  [[nodiscard]] std::uint64_t stalls() const;
  /// The first broken promise, empty: none. (Rounds that fall, messages too long, a death without majority.)
  [[nodiscard]] const std::string& broken() const { return broken_; }
  [[nodiscard]] std::uint64_t messages() const { return messages_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] std::size_t largest() const { return largest_; }
  [[nodiscard]] std::uint64_t events() const { return events_; }
  /// Of all messages sent, in order: equal for equal runs.
  [[nodiscard]] std::uint64_t trace() const { return trace_; }
  [[nodiscard]] unsigned nodes() const { return static_cast<unsigned>(nodes_.size()); }
  [[nodiscard]] unsigned voters() const { return voters_; }
  [[nodiscard]] bool running(unsigned node) const { return nodes_[node].running; }

 private:
  enum class What : std::uint8_t { tick, message, report, verdicts, commit, apply };
  struct Event {
    std::int64_t at = 0;
    std::uint64_t order = 0;
    What what = What::tick;
    std::uint32_t node = 0;  ///< Where it happens.
    std::uint32_t from = 0;
    std::uint64_t value = 0;  ///< message: slot; verdicts: slot; commit: node number; apply: version; tick: its number.
    std::uint64_t life = 0;   ///< Of `node`: what was meant for an earlier process is dropped.
    bool operator>(const Event& o) const { return at != o.at ? at > o.at : order > o.order; }
  };
  struct Host {
    std::unique_ptr<membership::Swim> swim;
    std::uint64_t start = 1;
    std::uint64_t life = 0;  ///< Grows with each crash and restart.
    bool running = true;
    bool slow = false;
    unsigned group = 0;
    Instant paused_until;
    Instant busy_until;
    Instant tick_at{kNever};
    std::uint64_t tick_number = 0;  ///< Of the one that counts.
    Instant last_fault{-60'000'000'000};
    std::size_t applied = 0;
    std::uint64_t last_round_start = 0;
    std::uint32_t last_round = 0;
  };
  struct Report {
    std::vector<membership::Verdict> verdicts;
    Instant when;
  };

  static constexpr unsigned kNoLeader = ~0U;
  static NodeId id(unsigned node) { return NodeId{node + 1ULL}; }
  void push(Instant at, What what, unsigned node, unsigned from, std::uint64_t value);
  void step();
  [[nodiscard]] Instant ready(Host& h, Instant t) const;
  void handle(const Event& e);
  void perform(unsigned node, membership::Effects& out);
  void send(unsigned from, unsigned to, membership::Message m);
  void schedule(unsigned node);
  [[nodiscard]] bool reaches(unsigned a, unsigned b) const;
  Duration delay();
  void elect();
  void tell_leader(unsigned node);
  void judge();
  void commit(membership::Fact changed);
  void apply(unsigned node, std::size_t version);
  void check_round(unsigned node);

  MembershipOptions options_;
  Random random_;
  Instant now_{1'000'000'000};
  std::uint64_t order_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> queue_;
  std::vector<Host> nodes_;
  unsigned voters_ = 1;
  std::vector<membership::Message> messages_pool_;
  std::vector<std::uint64_t> free_messages_;
  std::vector<std::vector<membership::Fact>> versions_;  ///< What the log said, entry by entry.
  unsigned leader_ = kNoLeader;
  Instant leader_lost_;
  std::vector<Report> reports_;          ///< At the leader, of each voter.
  std::vector<std::uint64_t> deciding_;  ///< start of the node whose death is being committed, 0: none.
  std::vector<Death> deaths_;
  std::string broken_;
  membership::Effects effects_;
  std::uint64_t messages_ = 0, bytes_ = 0, events_ = 0, trace_ = 0;
  std::size_t largest_ = 0;
  bool changed_ = false;
};

}  // namespace holo::sim
