#include "cmd/holo/agent_link.h"

#include "base/strings.h"
#include "wire/local_frame.h"

namespace holo::cmd {

void add_target_options(CLI::App& app, TargetOptions& target) {
  app.add_option("--cluster", target.cluster, "Name or id of the cluster, when several run on this machine");
  app.add_option("--state-dir", target.state_dir, "Talk to the agent of this state directory");
  app.add_option("--node", target.node,
                 "Talk to the agent of this node (name or id), when several run on this machine");
}

Result<driver::AgentRecord> find_agent(const TargetOptions& target) {
  // A flag that names an agent beats the environment, or a leftover variable would overrule what was typed. A node's
  // name does not say of which cluster: HOLO_CLUSTER does.
  const driver::AgentChoice environment = driver::AgentChoice::from_environment();
  const bool elsewhere = !target.state_dir.empty() || !target.cluster.empty();
  if (!elsewhere && target.node.empty()) return driver::choose_agent(environment);
  return driver::choose_agent({.socket = {},
                               .state_dir = target.state_dir,
                               .cluster = elsewhere ? target.cluster : environment.cluster,
                               .node = target.node});
}

Result<AgentLink> AgentLink::connect(const TargetOptions& target, Duration timeout) {
  HOLO_ASSIGN(agent, find_agent(target));
  return connect(agent, timeout);
}

Result<AgentLink> AgentLink::connect(const driver::AgentRecord& agent, Duration timeout) {
  AgentLink link;
  link.agent_ = agent;
  HOLO_ASSIGN(client, driver::LocalClient::connect(
                          agent.socket, {.name = agent.node_name.empty() ? "" : "the agent of " + agent.node_name}));
  link.client_ = std::move(client);
  wire::Hello hello;
  hello.set_role(wire::Hello::CLI);
  hello.set_protocol(wire::kLocalProtocol);
  hello.set_build(HOLO_VERSION);
  HOLO_ASSIGN(reply, link.call_for<wire::HelloReply>(wire::HELLO, hello, timeout));
  link.hello_ = std::move(reply);
  return link;
}

Result<std::string> AgentLink::call(wire::LocalMessage type, const google::protobuf::MessageLite& request,
                                    Duration timeout) {
  const auto header = request.SerializeAsString();
  HOLO_ASSIGN(reply, client_->call({.type = static_cast<std::uint16_t>(type), .header = header, .timeout = timeout}));
  return std::move(reply.header);
}

Result<Bytes> AgentLink::payload(wire::LocalMessage type, const google::protobuf::MessageLite& request,
                                 Duration timeout) {
  const auto header = request.SerializeAsString();
  HOLO_ASSIGN(reply, client_->call({.type = static_cast<std::uint16_t>(type), .header = header, .timeout = timeout}));
  return std::move(reply.payload);
}

Result<nlohmann::json> AgentLink::json(wire::LocalMessage type) { return json(type, wire::Empty(), kShortCall); }

Result<nlohmann::json> AgentLink::json(wire::LocalMessage type, const google::protobuf::MessageLite& request,
                                       Duration timeout) {
  HOLO_ASSIGN(reply, call_for<wire::AdminJson>(type, request, timeout));
  auto parsed = nlohmann::json::parse(reply.json(), nullptr, false);
  if (!parsed.is_object()) return fail(Errc::malformed, "the agent's answer is not JSON");
  return parsed;
}

}  // namespace holo::cmd
