// A scenario is a story with random faults: one seed, one run, one verdict. The same seed always gives the same run.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace holo::sim {

/// What happened in a run, added up over all seeds, so that a scenario whose faults never strike is seen.
using Tally = std::map<std::string, std::uint64_t, std::less<>>;

struct Scenario {
  std::string_view name;
  std::string_view what;  ///< One line for --list.
  /// An error is a broken promise, and its message says which.
  Status (*run)(std::uint64_t seed, Tally& tally);
};

/// All of them, in the order of the layers.
std::span<const Scenario> scenarios();

}  // namespace holo::sim
