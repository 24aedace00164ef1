// A simulated network of whole agents: calls between nodes that find each other by address, over links that are slow,
// lose, cut, stand still and break; all from one seed. What env::Transport promises and no more: a request is served at
// most once, requests overtake each other, and a failed call may have been served.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "env/transport.h"
#include "sim/loop.h"

namespace holo::sim {

class MeshPort;

struct MeshFaults {
  Duration min_delay = microseconds(50);
  Duration max_delay = microseconds(800);
  std::uint32_t loss_per_thousand = 0;   ///< of messages: they come later, as they are sent again
  std::uint32_t reset_per_million = 0;   ///< of messages: the link breaks with everything on it
  Duration resend = milliseconds(120);   ///< at most, for each time a message is lost
  Duration notice = milliseconds(2500);  ///< A link whose other side is silent is given up after that.
};

class Mesh {
 public:
  Mesh(World& world, std::uint64_t seed) : world_(world), random_(seed) {}

  std::unique_ptr<MeshPort> attach(NodeId node, std::string address, SimLoop& loop);
  MeshFaults& faults() { return faults_; }
  /// Messages from `from` to `to` no longer arrive; those of the other direction do.
  void cut(NodeId from, NodeId to) { cut_.insert({from, to}); }
  void cut_both(NodeId a, NodeId b) { cut(a, b), cut(b, a); }
  void heal() { cut_.clear(), slow_.clear(); }
  /// Messages to and from the node take that much longer.
  void slow(NodeId node, Duration extra) { slow_[node] = extra; }
  /// Every call between the two fails now, on both sides.
  void reset(NodeId a, NodeId b);
  [[nodiscard]] bool cut_between(NodeId a, NodeId b) const { return cut_.contains({a, b}) || cut_.contains({b, a}); }
  [[nodiscard]] std::uint64_t messages() const { return messages_; }

 private:
  friend class MeshPort;
  /// Takes `arrive` to `to`; false when it never arrives.
  bool transmit(NodeId from, NodeId to, std::function<void()> arrive);
  [[nodiscard]] MeshPort* at(const std::string& address) const;
  [[nodiscard]] MeshPort* find(NodeId node) const;

  World& world_;
  Random random_;
  MeshFaults faults_;
  std::set<std::pair<NodeId, NodeId>> cut_;
  std::map<NodeId, Duration> slow_;
  std::map<NodeId, MeshPort*> ports_;
  std::map<std::string, MeshPort*> addresses_;
  std::uint64_t messages_ = 0;
};

/// One node's end, for one life of its agent.
class MeshPort final : public env::Transport {
 public:
  MeshPort(Mesh& mesh, NodeId self, std::string address, SimLoop& loop);
  ~MeshPort() override { retire(); }

  Task<Result<env::Reply>> call(NodeId peer, env::Request request, env::CallOptions options) override;
  void serve(std::uint16_t type, Handler handler) override { handlers_[type] = std::move(handler); }
  void set_gate(std::shared_ptr<env::MemberGate> gate) override { gate_ = std::move(gate); }
  void set_addresses(NodeId peer, std::vector<std::string> addresses) override;
  Task<Result<env::PeerIdentity>> connect(std::string address, Instant deadline) override;
  void disconnect(NodeId peer) override;
  env::RefusedCounters refused() const override { return {}; }

  /// The process is gone: nobody hears it or is heard by it, and its calls end at once.
  void retire();

 private:
  friend class Mesh;
  using Shot = std::shared_ptr<OneShot<Result<env::Reply>>>;
  static Task<void> deliver(MeshPort* me, NodeId from, env::Request request,
                            std::function<void(Result<env::Reply>)> answer);
  void end_call(std::uint64_t id, Result<env::Reply> result);
  void fail_calls(NodeId peer, const char* why);
  void give_up_later(std::uint64_t id);
  [[nodiscard]] bool knows(NodeId peer) const;

  Mesh& mesh_;
  NodeId self_;
  std::string address_;
  SimLoop& loop_;
  std::map<std::uint16_t, Handler> handlers_;
  std::shared_ptr<env::MemberGate> gate_;
  std::map<NodeId, std::vector<std::string>> known_;
  struct Call {
    NodeId peer;
    Shot shot;
  };
  std::map<std::uint64_t, Call> calls_;
  std::uint64_t next_call_ = 1;
  bool retired_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace holo::sim
