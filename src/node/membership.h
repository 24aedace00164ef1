// Drives core/membership/swim.h over the loop and the transport: probes are requests of the control class, what answers
// them is a reply, and one timer wakes the core when it says so.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/random.h"
#include "base/task.h"
#include "core/membership/swim.h"
#include "env/entropy.h"
#include "env/loop.h"
#include "env/transport.h"

namespace holo::node {

/// Thread: loop. Held by shared_ptr: what waits for the network keeps it, and then looks whether it has stopped.
class Membership : public std::enable_shared_from_this<Membership> {
 public:
  struct Ports {
    env::Loop* loop = nullptr;
    env::Transport* transport = nullptr;
    env::Entropy* entropy = nullptr;
  };
  /// Called on the loop, not from within a call of the owner's.
  struct Events {
    std::function<void()> verdicts;            ///< Swim::verdicts() are others than before.
    std::function<void()> said_dead;           ///< Others hold this incarnation for dead.
    std::function<void(NodeId node)> changed;  ///< Its standing here is another than before.
  };

  Membership(Ports ports, NodeId self, Events events);

  /// Registers the handler. Once, before anything listens.
  void serve();
  /// From here on it probes, as `start`. Called again: this node has a new incarnation.
  void start(std::uint64_t start);
  void stop();
  void set_members(const std::vector<membership::Fact>& facts);
  /// The connection to `node` has closed: it is probed at once.
  void peer_lost(NodeId node);

  /// Empty before start().
  [[nodiscard]] std::vector<membership::View> views() const;
  [[nodiscard]] membership::View view(NodeId node) const;
  [[nodiscard]] std::vector<membership::Verdict> verdicts() const;
  [[nodiscard]] membership::Swim::Voters voters(Duration within) const;
  [[nodiscard]] membership::SwimCounters counters() const;
  /// Messages of members that did not decode.
  [[nodiscard]] std::uint64_t malformed() const { return malformed_; }

 private:
  using Answer = std::shared_ptr<OneShot<Result<env::Reply>>>;
  static Task<Result<env::Reply>> serve_one(std::shared_ptr<Membership> me, NodeId from, env::Request request);
  static Task<void> ask(std::shared_ptr<Membership> me, NodeId to, membership::Message message);
  void perform(membership::Effects& out);
  void wake_at(Instant when);
  [[nodiscard]] Instant now() const { return ports_.loop->now(); }

  Ports ports_;
  NodeId self_;
  Events events_;
  Random random_;
  std::unique_ptr<membership::Swim> swim_;
  std::vector<membership::Fact> facts_;
  std::map<std::pair<NodeId, std::uint32_t>, Answer> asked_;  ///< Requests of others that wait for their answer.
  std::size_t asking_ = 0;
  env::Loop::TimerId timer_ = 0;
  Instant timer_at_{kNever};
  std::uint64_t malformed_ = 0;
  bool stopped_ = false;
};

}  // namespace holo::node
