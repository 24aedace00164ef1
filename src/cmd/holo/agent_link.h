// A command's connection to the agent of this machine.
#pragma once

#include <google/protobuf/message_lite.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <memory>
#include <string>

#include "client/agent.h"
#include "cmd/holo/outcome.h"
#include "driver/posix/agent_registry.h"
#include "driver/posix/local_client.h"
#include "wire/local.pb.h"

namespace holo::cmd {

/// Which agent a command talks to: flags over HOLO_SOCKET, HOLO_STATE_DIR, HOLO_CLUSTER, HOLO_NODE over the only
/// cluster here.
struct TargetOptions {
  std::string cluster, state_dir, node;
};
void add_target_options(CLI::App& app, TargetOptions& target);
/// Errors: those of driver::choose_agent.
Result<driver::AgentRecord> find_agent(const TargetOptions& target);

class AgentLink {
 public:
  static constexpr Duration kShortCall = seconds(10);  ///< For what an agent answers by itself.

  /// `timeout`: for the agent's first answer.
  static Result<AgentLink> connect(const TargetOptions& target, Duration timeout = kShortCall);
  static Result<AgentLink> connect(const driver::AgentRecord& agent, Duration timeout = kShortCall);

  /// Errors: what the agent answers; `unavailable` when it is gone.
  Result<std::string> call(wire::LocalMessage type, const google::protobuf::MessageLite& request, Duration timeout);
  /// The same; what follows the answer's header.
  Result<Bytes> payload(wire::LocalMessage type, const google::protobuf::MessageLite& request, Duration timeout);
  template <class Reply>
  Result<Reply> call_for(wire::LocalMessage type, const google::protobuf::MessageLite& request, Duration timeout) {
    return client::Agent(client_).call<Reply>(type, request, {.timeout = timeout});
  }
  /// The agent's answer to a request that gives AdminJson, parsed.
  Result<nlohmann::json> json(wire::LocalMessage type);
  Result<nlohmann::json> json(wire::LocalMessage type, const google::protobuf::MessageLite& request, Duration timeout);

  [[nodiscard]] std::shared_ptr<driver::LocalClient> socket() const { return client_; }
  [[nodiscard]] const driver::AgentRecord& agent() const { return agent_; }
  [[nodiscard]] const wire::HelloReply& hello() const { return hello_; }

 private:
  AgentLink() = default;
  driver::AgentRecord agent_;
  wire::HelloReply hello_;
  std::shared_ptr<driver::LocalClient> client_;
};

}  // namespace holo::cmd
