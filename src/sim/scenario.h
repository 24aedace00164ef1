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

/// What the command line may ask for beyond a seed; 0: as the scenario likes.
struct RunOptions {
  std::uint64_t seconds = 0;  ///< Simulated, with faults.
  std::uint64_t nodes = 0;
  bool trace = false;  ///< Print what happens.
};

struct Scenario {
  std::string_view name;
  std::string_view what;  ///< One line for --list.
  /// An error is a broken promise, and its message says which.
  Status (*run)(std::uint64_t seed, Tally& tally);
  /// Null: it knows no options.
  Status (*run_with)(std::uint64_t seed, Tally& tally, const RunOptions& options) = nullptr;
};

/// All of them, in the order of the layers.
std::span<const Scenario> scenarios();

}  // namespace holo::sim
