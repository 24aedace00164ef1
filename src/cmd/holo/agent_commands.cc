// holo agent, holo version
#include <iostream>
#include <nlohmann/json.hpp>

#include "cmd/holo/agent.h"
#include "cmd/holo/agent_options.h"
#include "cmd/holo/build_info.h"
#include "cmd/holo/command_line.h"

namespace holo::cmd {
namespace {

struct AgentCommand {
  AgentOptions agent;
  int ready_fd = -1;
  bool forget_if_removed = false;
};

Outcome<int> run(const AgentCommand& o) {
  ReadyPipe ready(o.ready_fd);
  auto loaded = load_config(o.agent.sources);
  if (!loaded) {
    ready.failed(loaded.error());
    return std::unexpected(loaded.error());
  }
  return run_agent(*loaded, {.ready = std::move(ready), .forget_if_removed = o.forget_if_removed, .on_alive = {}});
}

Outcome<int> version(bool json) {
  if (json) {
    std::cout << nlohmann::json({{"version", HOLO_VERSION},
                                 {"commit", build_commit()},
                                 {"build", build_kind()},
                                 {"compiler", __VERSION__}})
                     .dump()
              << "\n";
  } else {
    std::cout << "holo " << HOLO_VERSION << " (" << build_kind() << ", " << build_commit() << ")\n";
  }
  return kDone;
}

}  // namespace

void add_agent_commands(CommandLine& line) {
  auto o = std::make_shared<AgentCommand>();
  auto& app = line.add(line.root(), "agent", "This machine's node, in the foreground, after holo init or holo join",
                       "holo agent --memory 8GiB", [o] { return run(*o); });
  add_agent_options(app, o->agent);
  app.add_option("--ready-fd", o->ready_fd, "Tell readiness on this descriptor")->group("");
  app.add_flag("--forget-if-removed", o->forget_if_removed, "Only that, and end")->group("");

  auto json = std::make_shared<bool>(false);
  auto& v = line.add(line.root(), "version", "The version of this program", "holo version --json",
                     [json] { return version(*json); });
  v.add_flag("--json", *json, "One JSON object");
}

}  // namespace holo::cmd
