#include "cmd/holo/agent_start.h"

#include "base/strings.h"
#include "cmd/holo/agent_link.h"

namespace holo::cmd {

Outcome<void> prepare_start(const std::string& state_dir, const ClusterMembership& wanted) {
  HOLO_ASSIGN(state, StateDir::open(state_dir));
  HOLO_ASSIGN(present, state.membership());
  if (present && present->pending.empty()) {
    const bool same = wanted.pending.starts_with("join") && present->key == wanted.key;
    return fail(Errc::refused,
                str("the state directory ", state.path(), " belongs to ", same ? "this" : "another",
                    " cluster already: ", present->name, " (", to_hex(present->id.value), ")"),
                str(same ? "start its node: holo agent --state-dir "
                         : "choose another with --state-dir, or start its node: holo agent --state-dir ",
                    state.path()));
  }
  HOLO_TRY(state.identity());
  HOLO_TRY(state.forget_cluster());  // Remains of a start that was interrupted.
  HOLO_TRY(state.set_membership(wanted));
  return {};
}

void forget_failed_start(const std::string& state_dir) {
  auto state = StateDir::open(state_dir);
  if (!state) return;
  const auto present = state->membership();
  if (present && *present && !(*present)->pending.empty()) (void)state->forget_cluster();
}

Result<BackgroundAgent> start_agent(const AgentConfig& config, const std::vector<std::string>& more_args,
                                    const AgentPlace& place, const BackgroundAgent::Note& note) {
  std::vector<std::string> args = {"--state-dir", config.state_dir};
  args.insert(args.end(), more_args.begin(), more_args.end());
  return BackgroundAgent::start(args, config.log_file.empty() ? config.state_dir + "/agent.log" : config.log_file,
                                place, note);
}

Outcome<std::string> advertised_address(const std::string& state_dir) {
  HOLO_ASSIGN(link, AgentLink::connect(TargetOptions{.cluster = {}, .state_dir = state_dir, .node = {}}));
  HOLO_ASSIGN(status, link.json(wire::STATUS));
  for (const auto& node : status["nodes"]) {
    if (node["id"] == status["this_node"]["id"]) return node["address"].get<std::string>();
  }
  return fail(Errc::internal, "the agent does not know its own address");
}

}  // namespace holo::cmd
