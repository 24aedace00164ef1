// holo dev up | status | logs | kill | restart | down
#include <sys/stat.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <thread>

#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/dev_cluster.h"
#include "cmd/holo/table.h"
#include "cmd/holo/units.h"

namespace holo::cmd {
namespace {

struct DevFlags {
  std::string cluster = "dev", memory;
  unsigned nodes = 4, workers = 0, number = 0;
  bool json = false, follow = false, keep_state = false;
};

/// What an agent that answers says of each node's state, by name; empty when none answers.
std::map<std::string, std::string> states_by_name(const DevCluster& cluster) {
  for (const auto& n : cluster.nodes()) {
    auto link = AgentLink::connect(TargetOptions{.cluster = {}, .state_dir = n.state_dir, .node = {}});
    if (!link) continue;
    const auto status = link->json(wire::STATUS);
    if (!status) continue;
    std::map<std::string, std::string> out;
    for (const auto& node : (*status)["nodes"]) out[node["name"]] = node["state"];
    return out;
  }
  return {};
}

nlohmann::json describe(const DevCluster& cluster) {
  const auto states = states_by_name(cluster);
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
                     {"log", n.log_file()}});
  }
  return {{"cluster", cluster.name()}, {"nodes", nodes}};
}

void print(const DevCluster& cluster, bool json) {
  const auto description = describe(cluster);
  if (json) {
    std::cout << description.dump(2) << "\n";
    return;
  }
  Table table({"N", "NODE", "PROCESS", "STATE", "ADDRESS", "STATE DIRECTORY"});
  for (const auto& n : description["nodes"]) {
    table.row({std::to_string(n["number"].get<unsigned>()), n["name"],
               n["running"] ? str("pid ", n["pid"].get<int>()) : std::string("stopped"), n["state"], n["address"],
               n["state_dir"]});
  }
  std::cout << table.text();
}

Outcome<int> up(const DevFlags& f) {
  DevOptions options{.nodes = f.nodes, .memory_bytes = 0, .workers = f.workers};
  if (!f.memory.empty()) {
    const auto bytes = parse_size(f.memory);
    if (!bytes) return usage(bytes.error());
    options.memory_bytes = *bytes;
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

  auto& up_app = add("up", "Start it; returns when every node is a live member", "holo dev up -n 4 --memory 1GiB", up);
  up_app.add_option("-n,--nodes", f->nodes, "Agents")->check(CLI::Range(1u, kMaxDevNodes))->capture_default_str();
  up_app.add_option("--memory", f->memory, "Memory for pages on each node (default: half of what is free, shared out)");
  up_app
      .add_option("--workers", f->workers, "Worker processes per program on each node (default: the cores, shared out)")
      ->check(CLI::Range(1u, 1024u));
  up_app.add_flag("--json", f->json, "One JSON object");
  auto& status_app = add("status", "Its processes and what the cluster says of them", "holo dev status", status);
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
}

}  // namespace holo::cmd
