// holo config show
#include <iostream>

#include "cmd/holo/agent_link.h"
#include "cmd/holo/agent_options.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/table.h"

namespace holo::cmd {
namespace {

struct ShowOptions {
  AgentOptions agent;
  bool json = false, running = false;
};

Outcome<int> show_config(const ShowOptions& o) {
  nlohmann::json config;
  if (o.running) {
    TargetOptions target;
    if (const auto it = o.agent.sources.flags.find("state_dir"); it != o.agent.sources.flags.end())
      target.state_dir = it->second;
    HOLO_ASSIGN(link, AgentLink::connect(target));
    HOLO_ASSIGN(answer, link.json(wire::CONFIG_SHOW));
    config = std::move(answer);
  } else {
    HOLO_ASSIGN(loaded, load_config(o.agent.sources));
    config = nlohmann::json::parse(config_json(loaded));
  }
  if (o.json) {
    std::cout << config.dump(2) << "\n";
    return kDone;
  }
  Table table({"KEY", "VALUE", "FROM"});
  for (const auto& s : config["settings"]) table.row({s["key"], s["value"], s["where"]});
  std::cout << table.text();
  return kDone;
}

}  // namespace

void add_config_commands(CommandLine& line) {
  auto& config = line.add(line.root(), "config", "Settings", "holo config show", {});
  auto o = std::make_shared<ShowOptions>();
  auto& show = line.add(config, "show", "What an agent started here would use, and where each value comes from",
                        "HOLO_MEMORY=4GiB holo config show", [o] { return show_config(*o); });
  add_agent_options(show, o->agent);
  show.add_flag("--json", o->json, "One JSON object");
  show.add_flag("--running", o->running, "Ask the running agent what it uses");
}

}  // namespace holo::cmd
