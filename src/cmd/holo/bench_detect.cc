// holo bench detect: from the end of a node, or of its traffic, to the last other member that knows of it.
#include <algorithm>
#include <chrono>
#include <thread>

#include "base/strings.h"
#include "cmd/holo/bench.h"
#include "cmd/holo/bench_serf.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::uint64_t kMemory = 64 << 20;
constexpr std::uint64_t kRate = 1'000'000'000;
constexpr auto kPoll = std::chrono::milliseconds(10);
constexpr double kKnown = 30;  // Seconds; later: something is wrong.
constexpr auto kSettle = std::chrono::milliseconds(1500);

double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

/// Asks every node of a dev cluster over one connection each.
class Watchers {
 public:
  explicit Watchers(const DevCluster& cluster) : cluster_(cluster), links_(cluster.nodes().size()) {}

  /// What `node` says of `about`; empty when it does not answer.
  std::string state(unsigned node, unsigned about) {
    auto& link = links_[node - 1];
    if (!link) {
      TargetOptions target;
      target.state_dir = cluster_.nodes()[node - 1].state_dir;
      auto made = AgentLink::connect(target);
      if (!made) return {};
      link.emplace(std::move(*made));
    }
    auto status = link->json(wire::STATUS);
    if (!status) {
      link.reset();
      return {};
    }
    const std::string name = str("node", about);
    for (const auto& n : (*status)["nodes"]) {
      if (n["name"] == name) return n["state"];
    }
    return {};
  }
  /// The number of the node that leads, by what `node` says; 0: none.
  unsigned leader(unsigned node) {
    if (state(node, node).empty()) return 0;
    const auto status = links_[node - 1]->json(wire::STATUS);
    const std::string name = status ? (*status)["cluster"].value("leader_name", "") : "";
    return name.starts_with("node") ? static_cast<unsigned>(std::stoul(name.substr(4))) : 0;
  }
  void forget(unsigned node) { links_[node - 1].reset(); }

  /// Seconds from `from` until all but `about` say so of it.
  Outcome<double> until_all_say(unsigned about, const std::string& wanted, bool with_itself, Clock::time_point from) {
    const auto nodes = static_cast<unsigned>(links_.size());
    for (unsigned n = 1; n <= nodes;) {
      if ((n == about && !with_itself) || state(n, about) == wanted) {
        ++n;
        continue;
      }
      if (since(from) > kKnown) {
        return fail(Errc::deadline_exceeded,
                    str("node", n, " does not say within ", kKnown, " s that node", about, " is ", wanted),
                    "its log: " + cluster_.nodes()[n - 1].log_file());
      }
      std::this_thread::sleep_for(kPoll);
    }
    return since(from);
  }

 private:
  const DevCluster& cluster_;
  std::vector<std::optional<AgentLink>> links_;
};

Outcome<void> all_well(Watchers& watchers, unsigned nodes) {
  for (unsigned n = 1; n <= nodes; ++n) HOLO_TRY(watchers.until_all_say(n, "alive", true, Clock::now()));
  std::this_thread::sleep_for(kSettle);  // Voters and probes of a node that is back.
  return {};
}

/// One of n is the leader, as with a crash by chance; the others in turn.
unsigned next_victim(Watchers& watchers, unsigned nodes, unsigned turn) {
  const unsigned leader = watchers.leader(1);
  if (leader == 0 || turn % nodes == nodes - 1) return leader == 0 ? 1 : leader;
  const unsigned victim = 1 + turn % nodes;
  return victim == leader ? 1 + victim % nodes : victim;
}

Outcome<double> crash(DevCluster& cluster, Watchers& watchers, unsigned victim) {
  const auto from = Clock::now();
  HOLO_TRY(cluster.kill(victim));
  watchers.forget(victim);
  HOLO_ASSIGN(took, watchers.until_all_say(victim, "dead", false, from));
  HOLO_TRY(cluster.restart(victim));
  HOLO_TRY(all_well(watchers, static_cast<unsigned>(cluster.nodes().size())));
  return took;
}

Outcome<double> silence(DevCluster& cluster, Watchers& watchers, unsigned victim) {
  const auto from = Clock::now();
  HOLO_TRY(cluster.partition({{victim}}));
  HOLO_ASSIGN(took, watchers.until_all_say(victim, "dead", false, from));
  HOLO_TRY(cluster.partition({}));
  HOLO_TRY(all_well(watchers, static_cast<unsigned>(cluster.nodes().size())));
  return took;
}

void add(BenchReport& report, const std::string& name, const std::vector<double>& ours,
         const std::vector<double>& theirs, const std::string& reference) {
  const auto most = [](const std::vector<double>& v) { return v.empty() ? 0 : *std::ranges::max_element(v); };
  report.results.push_back({.name = name + "_p50",
                            .unit = "s",
                            .ours = median(ours),
                            .reference = median(theirs),
                            .reference_is = reference});
  report.results.push_back(
      {.name = name + "_max", .unit = "s", .ours = most(ours), .reference = most(theirs), .reference_is = reference});
}

}  // namespace

Outcome<BenchReport> bench_detect(const BenchOptions& o) {
  BenchReport report{.bench = "detect",
                     .layout = "loopback; silent_*: namespaces",
                     .nodes = o.nodes,
                     .seconds = 0,
                     .results = {},
                     .notes = {}};
  const auto begun = Clock::now();
  const std::string serf_is = "serf on loopback";
  const std::string no_serf = "serf is not installed";
  {
    HOLO_ASSIGN(own, OwnCluster::start(DevOptions{.nodes = o.nodes, .memory_bytes = kMemory}));
    HOLO_ASSIGN(serf, SerfCluster::start(o.nodes));
    Watchers watchers(own->dev());
    HOLO_TRY(all_well(watchers, o.nodes));
    std::vector<double> ours, theirs;
    for (unsigned i = 0; i < o.repetitions; ++i) {
      HOLO_ASSIGN(took, crash(own->dev(), watchers, next_victim(watchers, o.nodes, i)));
      ours.push_back(took);
      if (!serf) continue;
      HOLO_ASSIGN(reference, serf->crash(i % o.nodes));
      theirs.push_back(reference);
    }
    add(report, "crash_known", ours, theirs, serf ? serf_is : no_serf);
  }
  HOLO_ASSIGN(own, OwnCluster::start(DevOptions{.nodes = o.nodes, .memory_bytes = kMemory, .net_rate = kRate}));
  Watchers watchers(own->dev());
  HOLO_TRY(all_well(watchers, o.nodes));
  std::vector<double> ours;
  for (unsigned i = 0; i < o.repetitions; ++i) {
    HOLO_ASSIGN(took, silence(own->dev(), watchers, next_victim(watchers, o.nodes, i)));
    ours.push_back(took);
  }
  add(report, "silent_known", ours, {}, "none: serf is not measured in namespaces");
  report.notes.push_back(
      str("one crash and one silence in ", o.nodes, " is the leader's: it takes an election besides"));
  report.seconds = since(begun);
  return report;
}

}  // namespace holo::cmd
