// A simulated network of calls: delay, loss, duplication of the effect's uncertainty, partitions, kills; all from one
// seed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>

#include "base/random.h"
#include "env/transport.h"
#include "sim/loop.h"

namespace holo::sim {

class SimTransport;

/// Faults that apply to every call from now on. A lost request or answer looks to the caller like a broken connection
/// (`unavailable`), after the call's deadline or `break_after`, whichever is sooner; the effect may have happened.
struct NetworkFaults {
  Duration min_delay = microseconds(50);
  Duration max_delay = microseconds(500);
  std::uint32_t loss_per_thousand = 0;  ///< of messages, each way
  std::uint32_t flip_per_thousand = 0;  ///< of payloads: one bit flips (the layer above must find it)
  Duration break_after = milliseconds(300);
};

class Network {
 public:
  Network(World& world, std::uint64_t seed) : world_(world), random_(seed) {}

  /// Attaches a node. The transport answers until the node is killed or replaced.
  std::unique_ptr<SimTransport> attach(NodeId node, SimLoop& loop);
  void kill(NodeId node) { nodes_.erase(node); }
  /// Cuts both directions between every node of `side` and every other node.
  void partition(std::set<NodeId> side) { side_ = std::move(side); }
  void heal() { side_.clear(); }
  NetworkFaults& faults() { return faults_; }
  [[nodiscard]] bool connected(NodeId a, NodeId b) const { return side_.contains(a) == side_.contains(b); }
  Random& random() { return random_; }
  World& world() { return world_; }

 private:
  friend class SimTransport;
  SimTransport* find(NodeId node) const {
    auto it = nodes_.find(node);
    return it == nodes_.end() ? nullptr : it->second;
  }
  Duration delay() {
    const auto span = static_cast<std::uint64_t>((faults_.max_delay - faults_.min_delay).ns) + 1;
    return faults_.min_delay + nanoseconds(static_cast<std::int64_t>(random_.below(span)));
  }
  bool lost(NodeId from, NodeId to) { return !connected(from, to) || random_.chance(faults_.loss_per_thousand, 1000); }

  World& world_;
  Random random_;
  NetworkFaults faults_;
  std::set<NodeId> side_;
  std::map<NodeId, SimTransport*> nodes_;
};

class SimTransport final : public env::Transport {
 public:
  SimTransport(Network& network, NodeId self, SimLoop& loop) : network_(network), self_(self), loop_(loop) {}
  ~SimTransport() override;

  Task<Result<env::Reply>> call(NodeId peer, env::Request request, env::CallOptions options) override;
  void serve(std::uint16_t type, Handler handler) override { handlers_[type] = std::move(handler); }
  void set_placer(std::uint16_t type, Placer placer) override { placers_[type] = std::move(placer); }
  void set_gate(std::shared_ptr<env::MemberGate> gate) override { gate_ = std::move(gate); }
  void set_addresses(NodeId, std::vector<std::string>) override {}
  /// Addresses are node ids in hexadecimal.
  Task<Result<env::PeerIdentity>> connect(std::string address, Instant deadline) override;
  void disconnect(NodeId) override {}
  env::RefusedCounters refused() const override { return {}; }

 private:
  friend class Network;
  using Answer = std::function<void(Result<env::Reply>)>;
  void arrive(NodeId from, env::Request request, Answer answer);
  Task<void> deliver(NodeId from, env::Request request, Answer answer);

  Network& network_;
  NodeId self_;
  SimLoop& loop_;
  std::map<std::uint16_t, Handler> handlers_;
  std::map<std::uint16_t, Placer> placers_;
  std::shared_ptr<env::MemberGate> gate_;
};

}  // namespace holo::sim
