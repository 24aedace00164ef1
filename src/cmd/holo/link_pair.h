// Two processes of one engine, one at each end of a link, and where they live.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cmd/holo/bench.h"
#include "cmd/holo/link_peer.h"

namespace holo::cmd {

inline constexpr const char* kBareLoop = "bare ngtcp2 loop, same AEAD, MTU, cores, GSO/GRO and handshake";

double percentile(std::vector<double> values, double p);

/// Where the two ends live. Values only.
class Ends {
 public:
  /// On this machine's loopback, wherever the system puts them.
  static Ends anywhere() { return {}; }
  /// ... each on a core of its own, where there are two.
  static Ends on_two_cores();
  /// With the first two nodes of this cluster: in their namespaces and shares when it has such. It outlives this.
  static Ends beside(const DevCluster& cluster);

  [[nodiscard]] bool pinned() const { return !cores_.empty(); }
  [[nodiscard]] bool shaped() const { return dev_ != nullptr; }
  [[nodiscard]] std::string listen() const;
  [[nodiscard]] int core(unsigned end) const { return cores_.empty() ? -1 : cores_[end]; }
  [[nodiscard]] Result<AgentPlace> place(unsigned end) const;

 private:
  const DevCluster* dev_ = nullptr;
  std::vector<int> cores_;
};

struct Pair {
  std::unique_ptr<LinkPeer> server, client;
  static Outcome<Pair> start(const Ends& ends, LinkPeerOptions options);
};

}  // namespace holo::cmd
