// holo init, holo join, holo leave
#include <cstdlib>
#include <iostream>

#include "base/strings.h"
#include "cmd/holo/agent.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/agent_options.h"
#include "cmd/holo/agent_start.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/units.h"
#include "driver/posix/files.h"
#include "driver/posix/os_entropy.h"

namespace holo::cmd {
namespace {

constexpr Duration kStartLimit = seconds(30);
constexpr Duration kLeaveLimit = seconds(70);
constexpr std::size_t kMaxKeyFile = 4096;

struct StartOptions {
  AgentOptions agent;
  std::string cluster_name = "holo", address, key, key_file;
  bool foreground = false, json = false;
};

/// What the caller gave of the key. Every way that does not end in a whole key is wrong usage.
Outcome<ClusterKey> read_key(const StartOptions& o) {
  if (!o.key.empty() && !o.key_file.empty()) return usage("--key and --key-file are both given", "give one of them");
  std::string text = o.key;
  if (o.key_file == "-") {
    if (!std::getline(std::cin, text)) return usage("no key on standard input");
  } else if (!o.key_file.empty()) {
    auto read = driver::read_text_file(o.key_file, kMaxKeyFile);
    if (!read) return usage(str("cannot read the key file ", o.key_file, ": ", read.error().message));
    text = *read;
  } else if (text.empty()) {
    const char* variable = std::getenv("HOLO_KEY");
    if (!variable || !*variable)
      return usage("a cluster key is needed", "--key K, --key-file F or HOLO_KEY; holo init printed it");
    text = variable;
  }
  auto key = parse_key(text);
  if (!key) return usage(key.error());
  return *key;
}

/// The line for the next machine.
std::string join_line(const std::string& address, const ClusterKey& key) {
  return str("holo join ", address, " --key ", key_text(key));
}

Outcome<void> start_in_background(const LoadedConfig& loaded, const AgentOptions& agent) {
  std::vector<std::string> args;
  if (!agent.sources.config_file.empty()) args = {"--config", agent.sources.config_file};
  HOLO_ASSIGN(background, start_agent(loaded.config, args));
  auto alive = background.wait(AgentStage::alive, kStartLimit);
  if (!alive) {
    background.abandon();
    forget_failed_start(loaded.config.state_dir);
  }
  return alive;
}

Outcome<int> init(StartOptions& o) {
  if (auto named = check_name("a cluster's name", o.cluster_name); !named) return usage(named.error());
  HOLO_ASSIGN(loaded, load_config(o.agent.sources));
  driver::OsEntropy entropy;
  const ClusterMembership wanted{
      .id = {}, .name = o.cluster_name, .key = crypto::random_secret<32>(entropy), .pending = "init"};
  HOLO_TRY(prepare_start(loaded.config.state_dir, wanted));
  HOLO_TRY(keep_flags(loaded, o.agent));
  const auto show = [&](const std::string& address) {
    if (o.json) {
      std::cout << nlohmann::json({{"cluster", o.cluster_name},
                                   {"address", address},
                                   {"key", key_text(wanted.key)},
                                   {"join", join_line(address, wanted.key)}})
                       .dump()
                << std::endl;
    } else {
      std::cout << join_line(address, wanted.key) << std::endl;
    }
  };
  if (o.foreground) {
    HOLO_ASSIGN(again, load_config(o.agent.sources));  // With what prepare() wrote.
    return run_agent(again, {.ready = ReadyPipe(), .on_alive = show});
  }
  HOLO_TRY(start_in_background(loaded, o.agent));
  HOLO_ASSIGN(address, advertised_address(loaded.config.state_dir));
  show(address);
  return kDone;
}

Outcome<int> join(StartOptions& o) {
  const auto address = with_port(o.address, kDefaultPort);
  if (!address) return usage(address.error());
  HOLO_ASSIGN(key, read_key(o));
  HOLO_ASSIGN(loaded, load_config(o.agent.sources));
  HOLO_TRY(prepare_start(loaded.config.state_dir, {.id = {}, .name = {}, .key = key, .pending = "join " + *address}));
  HOLO_TRY(keep_flags(loaded, o.agent));
  if (o.foreground) {
    HOLO_ASSIGN(again, load_config(o.agent.sources));
    return run_agent(again, {.ready = ReadyPipe(), .on_alive = {}});
  }
  HOLO_TRY(start_in_background(loaded, o.agent));
  if (o.json) {
    HOLO_ASSIGN(link,
                AgentLink::connect(TargetOptions{.cluster = {}, .state_dir = loaded.config.state_dir, .node = {}}));
    HOLO_ASSIGN(status, link.json(wire::STATUS));
    std::cout << nlohmann::json({{"cluster", status["cluster"]["name"]},
                                 {"cluster_id", status["cluster"]["id"]},
                                 {"node", status["this_node"]["id"]}})
                     .dump()
              << "\n";
  }
  return kDone;
}

Outcome<int> leave(const TargetOptions& target) {
  HOLO_ASSIGN(link, AgentLink::connect(target));
  const auto process = process_name(link.agent().pid);
  HOLO_TRY(link.call(wire::LEAVE, wire::Empty(), kLeaveLimit));
  wait_for_end(process, seconds(5));
  return kDone;
}

void add_start_options(CLI::App& app, StartOptions& o, const char* name_flag) {
  add_agent_options(app, o.agent, name_flag);
  app.add_flag("--foreground", o.foreground, "Stay in the foreground instead of starting the agent in the background");
  app.add_flag("--json", o.json, "One JSON object");
}

}  // namespace

void add_cluster_commands(CommandLine& line) {
  auto i = std::make_shared<StartOptions>();
  auto& init_app =
      line.add(line.root(), "init", "A new cluster on this machine; prints the line to paste on the next one",
               "holo init --name lab", [i] { return init(*i); });
  init_app.add_option("--name", i->cluster_name, "The cluster's name")->capture_default_str();
  add_start_options(init_app, *i, "--node-name");

  auto j = std::make_shared<StartOptions>();
  auto& join_app = line.add(line.root(), "join", "Enter a cluster; returns once this node is alive in it",
                            "holo join 10.0.0.5:8443 --key K", [j] { return join(*j); });
  join_app.add_option("address", j->address, "HOST or HOST:PORT of any member")->required();
  join_app.add_option("--key", j->key, "The cluster's key (also HOLO_KEY)");
  join_app.add_option("--key-file", j->key_file, "Read the key from this file, - is standard input");
  add_start_options(join_app, *j, "--name,--node-name");

  auto l = std::make_shared<TargetOptions>();
  auto& leave_app =
      line.add(line.root(), "leave", "Leave the cluster for good, after handing over what only this node holds",
               "holo leave", [l] { return leave(*l); });
  add_target_options(leave_app, *l);
}

}  // namespace holo::cmd
