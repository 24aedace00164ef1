// Hosts that speak the hyperbus over QUIC, on a network with every fault that it has.
#pragma once

#include "sim/scenario.h"

namespace holo::sim {

Status run_hyperbus(std::uint64_t seed, Tally& tally);

}  // namespace holo::sim
