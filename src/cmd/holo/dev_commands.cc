// holo dev up | status | logs | kill | restart | down | partition | heal | block-udp | allow-udp
#include <sys/stat.h>

#include <charconv>
#include <chrono>
#include <fstream>
#include <functional>
#include <future>
#include <iostream>
#include <thread>

#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/dev_cluster.h"
#include "cmd/holo/machine.h"
#include "cmd/holo/table.h"
#include "cmd/holo/units.h"

namespace holo::cmd {
namespace {

struct DevFlags {
  std::string cluster = "dev", memory, rate, trust = "psk";
  unsigned nodes = 4, workers = 0, number = 0;
  double cpus = 0;
  bool json = false, follow = false, keep_state = false, net = false, block_udp = false;
  std::vector<std::string> groups;
  std::vector<unsigned> numbers;
};

constexpr std::uint64_t kDefaultRate = 1'000'000'000;

constexpr Duration kAnswerLimit = seconds(2);  // An agent that runs well takes milliseconds.

/// What an agent that answers says of each node's state, by name; of who runs and does not answer, that. Empty when
/// none runs.
std::map<std::string, std::string> states_by_name(const DevCluster& cluster) {
  const auto ask = [](const DevNode& n) -> Result<nlohmann::json> {
    HOLO_ASSIGN(link,
                AgentLink::connect(TargetOptions{.cluster = {}, .state_dir = n.state_dir, .node = {}}, kAnswerLimit));
    return link.json(wire::STATUS, wire::Empty(), kAnswerLimit);
  };
  std::vector<std::future<Result<nlohmann::json>>> answers;
  for (const auto& n : cluster.nodes()) answers.push_back(std::async(std::launch::async, ask, std::cref(n)));
  std::map<std::string, std::string> out;
  std::vector<std::string> silent;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto& n = cluster.nodes()[i];
    const auto status = answers[i].get();
    if (!status) {
      if (n.running()) silent.push_back(str("node", n.number));
    } else if (out.empty()) {
      for (const auto& node : (*status)["nodes"]) out[node["name"]] = node["state"];
    }
  }
  for (const auto& name : silent) out[name] = "not answering";
  return out;
}

nlohmann::json describe(const DevCluster& cluster) {
  const auto states = states_by_name(cluster);
  const auto* net = cluster.net();
  nlohmann::json nodes = nlohmann::json::array();
  for (const auto& n : cluster.nodes()) {
    const auto state = states.find(str("node", n.number));
    nodes.push_back({{"number", n.number},
                     {"name", str("node", n.number)},
                     {"pid", n.process.pid},
                     {"running", n.running()},
                     {"state", state == states.end() ? "unknown" : state->second},
                     {"address", n.address},
                     {"state_dir", n.state_dir},
                     {"log", n.log_file()},
                     {"cpus", cluster.cpus() != 0 ? nlohmann::json(cluster.cpus()) : nlohmann::json()},
                     {"cgroup", cluster.cpus() != 0 ? nlohmann::json(cluster.cpu_group(n)) : nlohmann::json()},
                     {"namespace", net ? nlohmann::json(net->namespace_of(n.number)) : nlohmann::json()},
                     {"rate", net ? nlohmann::json(format_rate(net->rate_bits)) : nlohmann::json()}});
    if (net) nodes.back().update({{"part", n.part}, {"udp", n.udp_blocked ? "blocked" : "allowed"}});
  }
  return {{"cluster", cluster.name()},
          {"net", net ? nlohmann::json(driver::ipv4_text(net->range)) : nlohmann::json()},
          {"nodes", nodes}};
}

/// "0.5 core, 1gbit, UDP blocked, part 1": what of a node is not as on the bare machine.
std::string limits_of(const nlohmann::json& n) {
  std::string out;
  const auto add = [&](const std::string& text) { out += (out.empty() ? "" : ", ") + text; };
  if (!n["cpus"].is_null()) add(n["cpus"].dump() + (n["cpus"] > 1 ? " cores" : " core"));
  if (n["rate"].is_null()) return out.empty() ? "-" : out;
  add(n["rate"]);
  if (n["udp"] == "blocked") add("UDP blocked");
  if (n["part"] != 0) add(str("part ", n["part"].get<unsigned>()));
  return out;
}

void print(const DevCluster& cluster, bool json) {
  const auto description = describe(cluster);
  if (json) {
    std::cout << description.dump(2) << "\n";
    return;
  }
  Table table({"N", "NODE", "PROCESS", "STATE", "ADDRESS", "LIMITS", "STATE DIRECTORY"});
  for (const auto& n : description["nodes"]) {
    table.row({std::to_string(n["number"].get<unsigned>()), n["name"],
               n["running"] ? str("pid ", n["pid"].get<int>()) : std::string("stopped"), n["state"], n["address"],
               limits_of(n), n["state_dir"]});
  }
  std::cout << table.text();
  if (const auto* net = cluster.net())
    std::cout << "a shell beside node 1: ip netns exec " << net->namespace_of(1) << " bash\n";
}

Outcome<int> up(const DevFlags& f) {
  DevOptions options{.nodes = f.nodes, .memory_bytes = 0, .workers = f.workers};
  const auto trust = hyperbus::parse_trust_mode(f.trust);
  if (!trust) return usage(trust.error());
  options.trust = *trust;
  if (!f.memory.empty()) {
    const auto bytes = parse_size(f.memory);
    if (!bytes) return usage(bytes.error());
    options.memory_bytes = *bytes;
  }
  if (!f.net && (!f.rate.empty() || f.block_udp)) return usage("--rate and --block-udp need --net");
  if (f.cpus > core_count()) return usage(str("--cpus: this machine has ", core_count(), " cores"));
  options.cpus = f.cpus;
  options.block_udp = f.block_udp;
  if (f.net) {
    const auto rate = f.rate.empty() ? Result<std::uint64_t>(kDefaultRate) : parse_rate(f.rate);
    if (!rate) return usage(rate.error());
    options.net_rate = *rate;
  }
  HOLO_ASSIGN(cluster, DevCluster::up(f.cluster, options));
  print(cluster, f.json);
  return kDone;
}

Outcome<int> status(const DevFlags& f) {
  HOLO_ASSIGN(cluster, DevCluster::open(f.cluster));
  print(cluster, f.json);
  return kDone;
}

Outcome<int> logs(const DevFlags& f) {
  std::string path;
  {
    HOLO_ASSIGN(cluster, DevCluster::open(f.cluster));
    HOLO_ASSIGN(node, cluster.node(f.number));
    path = node->log_file();
  }  // Unlocked: following a log goes on for long.
  std::ifstream file(path);
  if (!file) return fail(Errc::not_found, "there is no log " + path);
  for (;;) {
    std::string line;
    while (std::getline(file, line)) std::cout << line << "\n";
    std::cout.flush();
    if (!f.follow || !std::cout) return kDone;
    file.clear();
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
}

Outcome<int> kill(const DevFlags& f) {
  HOLO_ASSIGN(cluster, DevCluster::open(f.cluster));
  HOLO_TRY(cluster.kill(f.number));
  return kDone;
}

Outcome<int> restart(const DevFlags& f) {
  HOLO_ASSIGN(cluster, DevCluster::open(f.cluster));
  HOLO_TRY(cluster.restart(f.number));
  return kDone;
}

Outcome<int> down(const DevFlags& f) {
  HOLO_ASSIGN(cluster, DevCluster::open(f.cluster));
  HOLO_TRY(cluster.down({.keep_state = f.keep_state}));
  return kDone;
}

/// "1,2" to {1, 2}.
Outcome<std::vector<unsigned>> parse_group(const std::string& text) {
  std::vector<unsigned> out;
  for (const char *at = text.data(), *end = at + text.size();;) {
    unsigned number = 0;
    const auto [next, error] = std::from_chars(at, end, number);
    if (error != std::errc{} || (next != end && *next != ',')) {
      return usage(str("\"", text, "\" is not a group of nodes"), "for example 1,2");
    }
    out.push_back(number);
    if (next == end) return out;
    at = next + 1;
  }
}

Outcome<int> partition(const DevFlags& f) {
  std::vector<std::vector<unsigned>> groups;
  for (const auto& text : f.groups) {
    HOLO_ASSIGN(group, parse_group(text));
    groups.push_back(std::move(group));
  }
  HOLO_ASSIGN(cluster, DevCluster::open(f.cluster));
  HOLO_TRY(cluster.partition(groups));
  return kDone;
}

Outcome<int> heal(const DevFlags& f) {
  HOLO_ASSIGN(cluster, DevCluster::open(f.cluster));
  HOLO_TRY(cluster.partition({}));
  return kDone;
}

Outcome<int> block_udp(const DevFlags& f) {
  HOLO_ASSIGN(cluster, DevCluster::open(f.cluster));
  HOLO_TRY(cluster.set_udp(f.numbers, Udp::blocked));
  return kDone;
}

Outcome<int> allow_udp(const DevFlags& f) {
  HOLO_ASSIGN(cluster, DevCluster::open(f.cluster));
  HOLO_TRY(cluster.set_udp(f.numbers, Udp::allowed));
  return kDone;
}

}  // namespace

void add_dev_commands(CommandLine& line) {
  auto& dev =
      line.add(line.root(), "dev", "A cluster of agents on this machine", "holo dev up -n 4 && holo status", {});
  auto f = std::make_shared<DevFlags>();
  const auto add = [&](const char* name, const char* help, const char* example,
                       Outcome<int> (*run)(const DevFlags&)) -> CLI::App& {
    auto& app = line.add(dev, name, help, example, [f, run] { return run(*f); });
    app.add_option("--cluster", f->cluster, "The cluster's name")->capture_default_str();
    return app;
  };
  const auto number = [&](CLI::App& app) { app.add_option("N", f->number, "The node's number, from 1")->required(); };

  auto& up_app = add("up", "Start it; returns when every node is a live member",
                     "holo dev up -n 4 --memory 1GiB; as root: holo dev up -n 4 --net --cpus 0.5 --rate 1gbit", up);
  up_app.add_option("-n,--nodes", f->nodes, "Agents")->check(CLI::Range(1u, kMaxDevNodes))->capture_default_str();
  up_app.add_option("--memory", f->memory, "Memory for pages on each node (default: half of what is free, shared out)");
  up_app
      .add_option("--workers", f->workers, "Worker processes per program on each node (default: the cores, shared out)")
      ->check(CLI::Range(1u, 1024u));
  up_app.add_flag("--net", f->net, "Each node in its own network namespace behind a switch (root)");
  up_app.add_option("--rate", f->rate, "Of each node's link, with --net (default: 1gbit)");
  up_app.add_option("--cpus", f->cpus, "Cores of each node with its workers, for example 0.5 (default: all)")
      ->check(CLI::Range(0.01, 1024.0));
  up_app.add_flag("--block-udp", f->block_udp, "With --net: UDP to every node disappears, as behind a firewall");
  up_app.add_option("--trust", f->trust, "Trust mode of the cluster: psk, tofu or roots")->capture_default_str();
  up_app.add_flag("--json", f->json, "One JSON object");
  auto& status_app =
      add("status", "Its processes, what the cluster says of them, and which do not answer", "holo dev status", status);
  status_app.add_flag("--json", f->json, "One JSON object");
  auto& logs_app = add("logs", "The log of one node", "holo dev logs 2 --follow", logs);
  number(logs_app);
  logs_app.add_flag("-f,--follow", f->follow, "Go on with what is appended");
  number(add("kill", "Kill one agent (SIGKILL), as a crash would", "holo dev kill 2", kill));
  number(
      add("restart", "Stop and start one agent, on its port; returns when it answers", "holo dev restart 2", restart));
  auto& down_app = add("down", "Stop all agents and remove their state directories", "holo dev down", down);
  down_app.add_flag("--keep-state", f->keep_state,
                    "Keep the state directories: the next holo dev up goes on from there");
  auto& partition_app =
      add("partition", "Cut groups of nodes off, silently (with --net): each, and the rest, hears only itself",
          "holo dev partition 1,2", partition);
  partition_app.add_option("GROUP", f->groups, "Numbers of nodes, as 1,2; several groups are cut off each other too")
      ->required();
  add("heal", "All nodes hear each other again", "holo dev heal", heal);
  const auto nodes = [&](CLI::App& app) { app.add_option("N", f->numbers, "Nodes' numbers (default: all)"); };
  nodes(add("block-udp", "UDP to these nodes disappears (with --net), as behind a firewall", "holo dev block-udp 2",
            block_udp));
  nodes(add("allow-udp", "UDP to these nodes is let through again", "holo dev allow-udp 2", allow_udp));
}

}  // namespace holo::cmd
