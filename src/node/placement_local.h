// Placement for local processes: who holds what and why, draining, removing and weighing nodes.
#pragma once

#include "env/loop.h"
#include "node/control.h"
#include "node/local_api.h"

namespace holo::node {

/// Registers SHARDS, EXPLAIN_SHARD, NODE_DRAIN, NODE_REMOVE and NODE_WEIGHT. All three outlive the API.
void serve_placement(env::Loop& loop, ControlService& control, LocalApi& api);

}  // namespace holo::node
