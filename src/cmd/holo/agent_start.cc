#include "cmd/holo/agent_start.h"

#include <algorithm>

#include "base/strings.h"
#include "cmd/holo/agent_link.h"

namespace holo::cmd {

namespace {

constexpr Duration kForgetLimit = seconds(15);

/// Whether the directory belongs to the cluster that is to be joined, as far as that can be told.
bool same_cluster(const ClusterMembership& present, const ClusterMembership& wanted) {
  if (!wanted.pending.starts_with("join") || present.trust != wanted.trust) return false;
  if (wanted.trust == hyperbus::TrustMode::psk) return std::ranges::count(present.keys, wanted.keys.front()) > 0;
  const auto ours = hyperbus::parse_certificate(present.certificate);
  const auto theirs = hyperbus::parse_certificate(wanted.certificate);
  return ours && theirs && ours->root == theirs->root;
}

Status check_certificate(const std::string& text, const hyperbus::Identity& identity) {
  HOLO_ASSIGN(carried, hyperbus::parse_certificate(text));
  if (carried.first == identity.chain().first) return {};
  return fail(Errc::permission_denied,
              str("the certificate is for node ", carried.node, ", this is node ", identity.node()),
              "holo identity request --state-dir D prints what has to be signed for it");
}

}  // namespace

Outcome<void> prepare_start(const std::string& state_dir, ClusterMembership wanted) {
  HOLO_ASSIGN(state, StateDir::open(state_dir));
  HOLO_ASSIGN(present, state.membership());
  if (present && present->pending.empty()) {
    const bool same = same_cluster(*present, wanted);
    return fail(Errc::refused,
                str("the state directory ", state.path(), " belongs to ", same ? "this" : "another",
                    " cluster already: ", present->name, " (", to_hex(present->id.value), ")"),
                str(same ? "start its node: holo agent --state-dir "
                         : "choose another with --state-dir, or start its node: holo agent --state-dir ",
                    state.path()));
  }
  HOLO_ASSIGN(identity, state.identity());
  if (wanted.trust == hyperbus::TrustMode::roots && !wanted.pending.starts_with("join")) {
    HOLO_ASSIGN(root, state.root_key());
    wanted.certificate = sign_identity(root, identity.chain(), {});
  }
  if (wanted.trust == hyperbus::TrustMode::roots) HOLO_TRY(check_certificate(wanted.certificate, identity));
  HOLO_TRY(state.forget_cluster());  // Remains of a start that was interrupted.
  HOLO_TRY(state.set_membership(wanted));
  return {};
}

Outcome<bool> forget_if_removed(const AgentConfig& config, const std::string& config_file) {
  HOLO_ASSIGN(present, read_membership(config.state_dir));
  if (!present || !present->pending.empty()) return false;
  std::vector<std::string> args = {"--forget-if-removed"};
  if (!config_file.empty()) args.insert(args.end(), {"--config", config_file});
  HOLO_ASSIGN(agent, start_agent(config, args));
  const auto removed = agent.wait(AgentStage::answering, kForgetLimit);
  if (!removed && removed.error().error.code == Errc::deadline_exceeded) agent.abandon();
  wait_for_end(agent.name(), kForgetLimit);
  return removed.has_value();
}

Outcome<bool> forget_if_removed(const AgentConfig& config, const std::string& config_file,
                                const ClusterMembership& wanted) {
  const auto present = read_membership(config.state_dir);
  if (!present || !*present || !same_cluster(**present, wanted)) return false;
  return forget_if_removed(config, config_file);
}

bool forget_failed_start(const std::string& state_dir) {
  auto state = StateDir::open(state_dir);
  if (!state) return false;
  const auto present = state->membership();
  if (!present) return false;
  if (!*present) return true;
  return !(*present)->pending.empty() && state->forget_cluster();
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
