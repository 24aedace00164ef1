// Whole clusters of the shipped control plane under every fault that the simulated world knows.
#pragma once

#include "sim/scenario.h"

namespace holo::sim {

/// Cost: about 1/150 of the simulated time at five nodes.
Status run_cluster(std::uint64_t seed, Tally& tally);
Status run_cluster_with(std::uint64_t seed, Tally& tally, const RunOptions& options);

}  // namespace holo::sim
