// holo bench main | link | fetch | fault | control | detect | idle
#include "cmd/holo/bench.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "cmd/holo/build_info.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/link_peer.h"
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
                         {"reference", x.reference > 0 ? nlohmann::json(x.reference) : nlohmann::json()},
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
    table.row({x.name, x.unit, number(x.ours), x.reference > 0 ? number(x.reference) : "none",
               x.reference > 0 ? number(x.ours / x.reference) : "-"});
  }
  std::cout << str(r.bench, ": ", r.nodes, " nodes, ", r.layout, ", ", build_kind(), " build ", build_commit(), "\n")
            << table.text();
  std::vector<std::string> said;
  for (const auto& x : r.results) {
    if (std::ranges::find(said, x.reference_is) != said.end()) continue;
    said.push_back(x.reference_is);
    std::string of;
    for (const auto& y : r.results) {
      if (y.reference_is == x.reference_is) of += (of.empty() ? "" : ", ") + y.name;
    }
    std::cout << "reference of " << of << ": " << x.reference_is << "\n";
  }
  for (const auto& note : r.notes) std::cout << note << "\n";
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
  auto& link_app = add("link", "One connection between two processes; reference: a bare ngtcp2 loop",
                       "holo bench link --json", bench_link);
  layout(link_app);
  link_app.remove_option(link_app.get_option("--nodes"));  // It has two ends.
  // Without a name: the one that runs here.
  const auto joined = [o](const std::vector<std::string>& names) {
    o->joined = true;
    o->target.cluster = names.empty() ? "" : names.front();
    return true;
  };
  auto* cluster_option = link_app
                             .add_option("--cluster", joined,
                                         "Between agents of this cluster (default: the one here), over their own link")
                             ->expected(0, 1)
                             ->excludes("--layout");
  link_app.add_option("--node", o->target.node, "With --cluster: the agent that asks")->needs(cluster_option);
  link_app.add_option("--to", o->to, "With --cluster: the node that it asks (default: the first other by name)")
      ->needs(cluster_option);
  link_app.add_flag("--poll", o->poll, "Event loops look for more for 70 us before they sleep");
  link_app.add_option("--mtu", o->mtu, "Bytes of an IP packet (throughput_jumbo: always 9000)")
      ->check(CLI::Range(std::uint64_t{1280}, std::uint64_t{65'535}));
  link_app.add_option("--repetitions", o->repetitions, "Runs of each, at least 5")
      ->check(CLI::Range(5U, 1000U))
      ->capture_default_str();
  link_app.add_flag("--quick", o->quick, "One run and a hundredth of the samples: to see that it works");
  const auto two_nodes = [&](CLI::App& app) {
    layout(app);
    app.remove_option(app.get_option("--nodes"));
    app.add_option("--page", o->page, "Bytes per page")->capture_default_str();
    app.add_option("--repetitions", o->repetitions, "Runs of each, at least 5")
        ->check(CLI::Range(5U, 1000U))
        ->capture_default_str();
    app.add_flag("--quick", o->quick, "One run with few samples: to see that it works");
  };
  two_nodes(add("fetch", "Pages that live on another node, read by calls; reference: a bare ngtcp2 loop",
                "holo bench fetch --json", bench_fetch));
  two_nodes(add("fault", "The same in mapped memory; reference: a bare ngtcp2 loop behind userfaultfd",
                "holo bench fault --page 4096", bench_fault));
  auto& control_app = add("control", "The replicated log: writes, failover, healing, restart; reference: etcd",
                          "holo bench control --json", bench_control);
  layout(control_app);
  control_app.remove_option(control_app.get_option("--nodes"));  // Three voters; four nodes to heal.
  control_app.add_option("--repetitions", o->repetitions, "Runs of each, at least 5")
      ->check(CLI::Range(5U, 1000U))
      ->capture_default_str();
  control_app.add_flag("--quick", o->quick, "One run of each, and a hundredth of the keys: to see that it works");
  auto& detect_app = add("detect", "From a node's end, or silence, to the last member that knows; reference: serf",
                         "holo bench detect --json", bench_detect);
  detect_app.get_option("--nodes")->default_str("5")->check(CLI::Range(3u, 64u));
  detect_app.preparse_callback([o](std::size_t) { o->nodes = 5; });
  detect_app.add_option("--repetitions", o->repetitions, "Crashes, and silences")
      ->check(CLI::Range(1U, 1000U))
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
  auto peer = std::make_shared<LinkPeerOptions>();
  auto& peer_app = line.add(bench, "link-peer", "One end of link's connection",
                            "holo bench link-peer --listen 127.0.0.1:0", [peer] { return run_link_peer(*peer); });
  peer_app.add_option("--engine", peer->engine, "holo, tcp or bare");
  peer_app.add_option("--listen", peer->listen, "As a server");
  peer_app.add_option("--server", peer->server, "As a client");
  peer_app.add_option("--mtu", peer->mtu, "Bytes of an IP packet");
  peer_app.add_option("--core", peer->core, "To run on");
  peer_app.add_option("--page", peer->page, "Bytes of an answer");
  peer_app.add_flag("--poll", peer->poll, "Look for more before sleeping");
  peer_app.group("");
  line.add(bench, "reference-idle", "idle's reference, until standard input ends",
           "holo bench reference-idle < /dev/null", [] { return reference_idle(); })
      .group("");
}

}  // namespace holo::cmd
