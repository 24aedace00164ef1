// holo-sim: runs scenarios over many seeds. `./dev sim` is the way people call it.
#include <charconv>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

#include "sim/membership_scenario.h"
#include "sim/scenario.h"

namespace {

using holo::sim::Scenario;

constexpr const char* kUsage =
    "usage: holo-sim [--scenario NAME] [--seeds N] [--first-seed S] [--seed S] [--list]\n"
    "       holo-sim --table membership [--trials N] | --days N\n"
    "  Runs each scenario (or the one named) over N seeds (default 100), from S (default 1).\n"
    "  --seed S runs that one seed. Exit 0: every run kept its promises. 1: one did not; its seed is printed.\n"
    "  --table membership prints detection time and false alarms at 4 to 1,000 members, over N crashes each (default "
    "20).\n"
    "  --days N runs five members for N simulated days with 1 % loss, one of them at 10 % of a processor.\n"
    "  example: holo-sim --scenario session --seeds 1000\n";

struct Options {
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
    if (i + 1 == argc) return false;
    const char* v = argv[++i];
    if (a == "--scenario") {
      o.scenario = v;
    } else if (a == "--seeds") {
      if (!number(v, o.seeds) || o.seeds == 0) return false;
    } else if (a == "--first-seed") {
      if (!number(v, o.first)) return false;
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

/// Number of seeds that broke a promise; stops at the third, each is printed.
int run(const Scenario& s, const Options& o) {
  holo::sim::Tally tally;
  int failures = 0;
  for (std::uint64_t seed = o.first; seed < o.first + o.seeds && failures < 3; ++seed) {
    if (const auto verdict = s.run(seed, tally); !verdict) {
      ++failures;
      std::printf("FAILED  %.*s: %s\n        replay: ./dev sim --scenario %.*s --seed %llu\n",
                  static_cast<int>(s.name.size()), s.name.data(), verdict.error().to_string().c_str(),
                  static_cast<int>(s.name.size()), s.name.data(), static_cast<unsigned long long>(seed));
    }
  }
  std::printf("%-7s %.*s: seeds %llu..%llu;", failures == 0 ? "ok" : "FAILED", static_cast<int>(s.name.size()),
              s.name.data(), static_cast<unsigned long long>(o.first),
              static_cast<unsigned long long>(o.first + o.seeds - 1));
  for (const auto& [what, count] : tally) std::printf(" %s %llu", what.c_str(), static_cast<unsigned long long>(count));
  std::printf("\n");
  std::fflush(stdout);
  return failures;
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
  int failures = 0;
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
