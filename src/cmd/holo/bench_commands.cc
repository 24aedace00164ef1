// holo bench main | idle
#include "cmd/holo/bench.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "cmd/holo/build_info.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/table.h"

namespace holo::cmd {
namespace {

std::string number(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", v);
  return text;
}

}  // namespace

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const auto n = values.size();
  return n == 0 ? 0 : n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

void print_report(const BenchReport& r, bool json) {
  if (json) {
    nlohmann::json results = nlohmann::json::array();
    for (const auto& x : r.results) {
      results.push_back({{"name", x.name},
                         {"unit", x.unit},
                         {"ours", x.ours},
                         {"reference", x.reference},
                         {"reference_is", x.reference_is},
                         {"ratio", x.reference > 0 ? nlohmann::json(x.ours / x.reference) : nlohmann::json()}});
    }
    const nlohmann::json object = {{"bench", r.bench},  {"commit", build_commit()}, {"build", build_kind()},
                                   {"nodes", r.nodes},  {"layout", r.layout},       {"seconds", r.seconds},
                                   {"results", results}};
    std::cout << object.dump() << "\n";
    return;
  }
  Table table({"RESULT", "UNIT", "OURS", "REFERENCE", "RATIO"});
  for (const auto& x : r.results) {
    table.row(
        {x.name, x.unit, number(x.ours), number(x.reference), x.reference > 0 ? number(x.ours / x.reference) : "-"});
  }
  std::cout << str(r.bench, ": ", r.nodes, " nodes, ", r.layout, ", ", build_kind(), " build ", build_commit(), "\n")
            << table.text();
  if (!r.results.empty()) std::cout << "reference: " << r.results.front().reference_is << "\n";
}

void add_bench_commands(CommandLine& line) {
  auto& bench = line.add(line.root(), "bench", "Figures on a cluster, each beside its reference in the same run",
                         "holo bench main --json", {});
  auto o = std::make_shared<BenchOptions>();
  const auto add = [&](const char* name, const char* help, const char* example,
                       Outcome<BenchReport> (*run)(const BenchOptions&)) -> CLI::App& {
    auto& app = line.add(bench, name, help, example, [o, run]() -> Outcome<int> {
      HOLO_ASSIGN(report, run(*o));
      print_report(report, o->json);
      return kDone;
    });
    app.add_option("-n,--nodes", o->nodes, "Nodes of the cluster that it starts itself")
        ->check(CLI::Range(1u, 64u))
        ->capture_default_str();
    app.add_flag("--json", o->json, "One JSON object");
    return app;
  };
  const auto layout = [&](CLI::App& app) {
    return app.add_option("--layout", o->layout, "Of its own cluster; net: namespaces, 0.5 core, 1 Gbit/s each (root)")
        ->check(CLI::IsMember({"loopback", "net"}))
        ->capture_default_str();
  };
  auto& main_app = add("main", "Fill and sum 100 million numbers; reference: the same loops in one plain process",
                       "holo bench main --json", bench_main);
  main_app.add_option("--cluster", o->target.cluster, "On this cluster instead of one of its own");
  layout(main_app)->excludes("--cluster");
  main_app.add_option("--count", o->count, "Numbers")->capture_default_str();
  main_app.add_option("--page", o->page, "Bytes per page")->capture_default_str();
  main_app.add_option("--repetitions", o->repetitions, "Runs of each, after one to warm up")
      ->check(CLI::Range(1u, 1000u))
      ->capture_default_str();
  auto& idle_app = add("idle", "What a node costs that has nothing to do; reference: an empty event loop",
                       "holo bench idle --seconds 60", bench_idle);
  layout(idle_app);
  idle_app.add_option("--seconds", o->seconds, "How long to look")
      ->check(CLI::Range(1.0, 3600.0))
      ->capture_default_str();

  auto& reference = line.add(bench, "reference-main", "One run of main's reference", "holo bench reference-main",
                             [o] { return reference_main(*o); });
  reference.add_option("--count", o->count, "Numbers");
  reference.group("");
  line.add(bench, "reference-idle", "idle's reference, until standard input ends",
           "holo bench reference-idle < /dev/null", [] { return reference_idle(); })
      .group("");
}

}  // namespace holo::cmd
