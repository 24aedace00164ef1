// holo qlog: what an agent's connections do, written into files while it runs.
#include <filesystem>
#include <iostream>

#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/command_line.h"

namespace holo::cmd {
namespace {

struct QlogOptions {
  TargetOptions target;
  std::string folder;
  bool json = false;
};

Outcome<int> ask(const QlogOptions& o, wire::QlogRequest::Action action) {
  wire::QlogRequest request;
  request.set_action(action);
  if (action == wire::QlogRequest::START) {
    std::error_code ignored;
    request.set_folder(std::filesystem::absolute(o.folder, ignored).lexically_normal().string());
  }
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(answer, link.json(wire::QLOG, request, seconds(10)));
  if (o.json) {
    std::cout << answer.dump(2) << "\n";
  } else if (const auto folder = answer.value("folder", std::string()); !folder.empty()) {
    std::cout << folder << "\n";
  } else if (action == wire::QlogRequest::SHOW) {
    std::cout << "none\n";
  }
  return kDone;
}

}  // namespace

void add_qlog_commands(CommandLine& line) {
  auto& group = line.add(line.root(), "qlog", "What this node's QUIC connections do, packet by packet, into files",
                         "holo qlog start /tmp/qlogs", {});
  const auto add = [&](const char* name, const char* help, const char* example, wire::QlogRequest::Action action) {
    auto o = std::make_shared<QlogOptions>();
    auto& app = line.add(group, name, help, example, [o, action] { return ask(*o, action); });
    add_target_options(app, o->target);
    app.add_flag("--json", o->json, "One JSON object");
    if (action == wire::QlogRequest::START) {
      app.add_option("DIR", o->folder, "Where to: a directory of this machine, made if need be")->required();
    }
  };
  add("start", "From now on, until stop or the end of the agent; every peer is connected anew for it",
      "holo qlog start /tmp/qlogs --node node2", wire::QlogRequest::START);
  add("stop", "No longer; the files are whole a moment later", "holo qlog stop", wire::QlogRequest::STOP);
  add("show", "Where to, or none", "holo qlog show", wire::QlogRequest::SHOW);
}

}  // namespace holo::cmd
