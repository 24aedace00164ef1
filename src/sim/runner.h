// Runs a scenario over many seeds, in several processes: a seed that crashes or never ends costs that seed only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/scenario.h"

namespace holo::sim {

struct SeedFailure {
  std::uint64_t seed = 0;
  std::string what;
};

struct Report {
  Tally tally;
  std::vector<SeedFailure> failures;  ///< By seed.
  std::uint64_t ran = 0;
};

struct Batch {
  std::uint64_t first = 1;
  std::uint64_t seeds = 1;
  std::uint64_t jobs = 1;
  std::uint64_t most_failures = 3;  ///< Then it stops.
  unsigned limit_s = 120;           ///< Of real time, for one seed.
  RunOptions run;
};

/// With one job, or to print a trace, everything runs in this process.
Report run_batch(const Scenario& scenario, const Batch& batch);

/// Adds what one run counted: names that begin with "slowest" keep the largest, "digest" is mixed, the rest is summed.
void add_tally(Tally& to, const Tally& from);

}  // namespace holo::sim
