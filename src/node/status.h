// The object of `holo status --json`: what this node knows of the cluster, and about itself.
#pragma once

#include <string>
#include <vector>

#include "env/transport.h"
#include "node/bus.h"
#include "node/compute.h"
#include "node/control.h"
#include "node/memory.h"

namespace holo::node {

struct StatusSources {
  const ControlService& control;
  ClusterId cluster;  ///< Shown while the state does not know its own.
  std::string cluster_name;
  MemoryStatus memory;
  ComputeStatus compute;
  env::RefusedCounters refused;
  std::vector<LinkStatus> links;
  std::vector<PeerStatus> peers;
  HandshakeFigures handshakes;
  membership::Health health;  ///< This node's.
  std::size_t sessions = 0;
  Instant now;
};

/// Cost: O(nodes + regions * members). Fields are only ever added: scripts read them.
std::string status_json(const StatusSources& sources);

}  // namespace holo::node
