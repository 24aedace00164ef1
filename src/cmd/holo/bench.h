// One bench: our figure and its reference in the same run, interleaved; medians; one table or one JSON object.
#pragma once

#include <string>
#include <vector>

#include "cmd/holo/agent_link.h"
#include "cmd/holo/outcome.h"

namespace holo::cmd {

struct BenchOptions {
  TargetOptions target;  ///< --cluster: that cluster; without, one of its own that is stopped again.
  unsigned nodes = 4;
  unsigned repetitions = 5;
  std::string count = "1e8";
  std::string page = "65536";
  double seconds = 60;
  bool json = false;
};

struct BenchResult {
  std::string name, unit;
  double ours = 0, reference = 0;
  std::string reference_is;
};

struct BenchReport {
  std::string bench, layout;
  unsigned nodes = 0;
  double seconds = 0;
  std::vector<BenchResult> results;
};

void print_report(const BenchReport& report, bool json);
double median(std::vector<double> values);

Outcome<BenchReport> bench_main(const BenchOptions& options);
Outcome<BenchReport> bench_idle(const BenchOptions& options);

/// The references, run in a process of their own: fill and sum in plain memory, one thread per core (prints seconds);
/// an event loop with an agent's timers and nothing else (runs until its standard input ends).
Outcome<int> reference_main(const BenchOptions& options);
Outcome<int> reference_idle();

}  // namespace holo::cmd
