// Two hyperbus sessions over a byte stream that delays, cuts and alters.
#pragma once

#include "sim/scenario.h"

namespace holo::sim {

Status run_session(std::uint64_t seed, Tally& tally);

}  // namespace holo::sim
