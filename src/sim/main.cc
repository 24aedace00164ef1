// holo-sim: runs scenarios over many seeds. `./dev sim` is the way people call it.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <thread>

#include "base/seeded_bugs.h"
#include "sim/linearizability.h"
#include "sim/membership_scenario.h"
#include "sim/runner.h"
#include "sim/scenario.h"

namespace {

using holo::sim::Scenario;

constexpr const char* kUsage =
    "usage: holo-sim [--scenario NAME] [--seeds N] [--first-seed S] [--seed S]\n"
    "                [--seconds T] [--nodes K] [--trace] [--jobs J] [--list]\n"
    "       holo-sim --check-history FILE\n"
    "       holo-sim --table membership [--trials N] | --days N\n"
    "  Runs each scenario (or the one named) over N seeds (default 100), from S (default 1).\n"
    "  --seconds T, --nodes K: simulated time with faults, and size, where the scenario has them. --trace prints what\n"
    "  happens. --jobs J: processes that share the seeds (default: one for each core).\n"
    "  --seed S runs that one seed. Exit 0: every run kept its promises. 1: one did not; its seed is printed.\n"
    "  --check-history FILE: whether the operations in it are linearizable (sim/linearizability.h has the form).\n"
    "  --bug N: with that mistake in the code (only in a build with HOLO_SEEDED_BUGS; docs/simulation.md).\n"
    "  --table membership prints detection time and false alarms at 4 to 1,000 members, over N crashes each (default "
    "20).\n"
    "  --days N runs five members for N simulated days with 1 % loss, one of them at 10 % of a processor.\n"
    "  example: holo-sim --scenario session --seeds 1000\n";

struct Options {
  holo::sim::RunOptions run;
  std::uint64_t jobs = 0;
  const char* history = nullptr;
  std::uint64_t bug = 0;
  std::string_view scenario;
  std::uint64_t seeds = 100;
  std::uint64_t first = 1;
  bool list = false;
  std::string_view table;
  std::uint64_t trials = 20;
  std::uint64_t days = 0;
};

bool number(const char* text, std::uint64_t& out) {
  const char* end = text + std::strlen(text);
  const auto r = std::from_chars(text, end, out);
  return r.ec == std::errc{} && r.ptr == end;
}

bool parse(int argc, char** argv, Options& o) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view a = argv[i];
    if (a == "--list") {
      o.list = true;
      continue;
    }
    if (a == "--check-history") {
      if (i + 1 == argc) return false;
      o.history = argv[++i];
      continue;
    }
    if (a == "--bug") {
      if (i + 1 == argc || !number(argv[++i], o.bug)) return false;
      continue;
    }
    if (a == "--trace") {
      o.run.trace = true;
      continue;
    }
    if (i + 1 == argc) return false;
    const char* v = argv[++i];
    if (a == "--scenario") {
      o.scenario = v;
    } else if (a == "--seeds") {
      if (!number(v, o.seeds) || o.seeds == 0) return false;
    } else if (a == "--first-seed") {
      if (!number(v, o.first)) return false;
    } else if (a == "--seconds") {
      if (!number(v, o.run.seconds)) return false;
    } else if (a == "--nodes") {
      if (!number(v, o.run.nodes) || o.run.nodes > 64) return false;
    } else if (a == "--jobs") {
      if (!number(v, o.jobs)) return false;
    } else if (a == "--seed") {
      if (!number(v, o.first)) return false;
      o.seeds = 1;
    } else if (a == "--table") {
      o.table = v;
      if (o.table != "membership") return false;
    } else if (a == "--trials") {
      if (!number(v, o.trials) || o.trials == 0) return false;
    } else if (a == "--days") {
      if (!number(v, o.days) || o.days == 0) return false;
    } else {
      return false;
    }
  }
  return true;
}

/// 0: linearizable. 1: not, or too hard to tell, or not a history.
int check_history(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) {
    std::fprintf(stderr, "holo-sim: %s cannot be read\n", path);
    return 1;
  }
  const auto history = holo::sim::parse_history(text);
  if (!history) {
    std::fprintf(stderr, "holo-sim: %s: %s\n", path, history.error().to_string().c_str());
    return 1;
  }
  const holo::sim::Verdict v = holo::sim::check_linearizable(*history);
  const auto operations = static_cast<unsigned long long>(v.operations);
  switch (v.kind) {
    case holo::sim::Verdict::Kind::linearizable: std::printf("linearizable: %llu operations\n", operations); return 0;
    case holo::sim::Verdict::Kind::violated:
      std::printf("NOT linearizable: of %s, nothing explains: %s\n", v.key.c_str(), v.what.c_str());
      return 1;
    case holo::sim::Verdict::Kind::undecided:
      std::printf("too hard to tell: the operations of %s, at: %s\n", v.key.c_str(), v.what.c_str());
      return 1;
  }
  return 1;
}

/// Number of seeds that broke a promise; stops at the third, each is printed.
std::size_t run(const Scenario& s, const Options& o) {
  holo::sim::Batch batch;
  batch.first = o.first;
  batch.seeds = o.seeds;
  batch.jobs = o.jobs != 0 ? o.jobs : std::max(1U, std::thread::hardware_concurrency());
  batch.run = o.run;
  const auto began = std::chrono::steady_clock::now();
  const holo::sim::Report report = holo::sim::run_batch(s, batch);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  for (const holo::sim::SeedFailure& f : report.failures) {
    std::printf("FAILED  %.*s: %s\n        replay: ./dev sim --scenario %.*s --seed %llu\n",
                static_cast<int>(s.name.size()), s.name.data(), f.what.c_str(), static_cast<int>(s.name.size()),
                s.name.data(), static_cast<unsigned long long>(f.seed));
  }
  std::printf("%-7s %.*s: %llu seeds from %llu on in %.1f s;", report.failures.empty() ? "ok" : "FAILED",
              static_cast<int>(s.name.size()), s.name.data(), static_cast<unsigned long long>(report.ran),
              static_cast<unsigned long long>(o.first), took.count());
  for (const auto& [what, count] : report.tally) {
    std::printf(" %s %llu", what.c_str(), static_cast<unsigned long long>(count));
  }
  std::printf("\n");
  std::fflush(stdout);
  return report.failures.size();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  if (!options.table.empty()) {
    holo::sim::print_membership_table(static_cast<unsigned>(options.trials), options.first);
    return 0;
  }
  if (options.days != 0) {
    return holo::sim::run_membership_days(static_cast<unsigned>(options.days), options.first) ? 0 : 1;
  }
  if (options.history != nullptr) return check_history(options.history);
  if (options.bug != 0) {
#ifdef HOLO_SEEDED_BUGS
    if (options.bug >= static_cast<std::uint64_t>(holo::SeededBug::count)) return 2;
    holo::seeded_bug = static_cast<holo::SeededBug>(options.bug);
#else
    std::fputs("holo-sim: this build has no seeded bugs; ./dev seeded-bugs makes one\n", stderr);
    return 2;
#endif
  }
  if (options.run.trace) std::setvbuf(stdout, nullptr, _IOLBF, 1 << 16);  // All of it is there when a run crashes.
  std::size_t failures = 0;
  bool found = false;
  for (const Scenario& s : holo::sim::scenarios()) {
    if (options.list) {
      std::printf("%-10.*s %.*s\n", static_cast<int>(s.name.size()), s.name.data(), static_cast<int>(s.what.size()),
                  s.what.data());
      continue;
    }
    if (!options.scenario.empty() && options.scenario != s.name) continue;
    found = true;
    failures += run(s, options);
  }
  if (!options.list && !found) {
    std::fprintf(stderr, "holo-sim: no scenario \"%.*s\" (--list shows them)\n",
                 static_cast<int>(options.scenario.size()), options.scenario.data());
    return 2;
  }
  return failures == 0 ? 0 : 1;
}
