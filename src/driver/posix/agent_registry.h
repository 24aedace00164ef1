// Which agents run on this machine for this user: one small record each, so that programs and commands find their
// cluster. Records lie in the runtime directory (without one, in the state directory) under agents/; a record whose
// socket nobody answers is stale and is passed over.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/result.h"

namespace holo::driver {

struct AgentRecord {
  std::string socket;      ///< Path of its Unix socket.
  std::string state_dir;   ///< Absolute.
  std::string cluster_id;  ///< 16 hexadecimal digits; empty before it belongs to a cluster.
  std::string cluster_name;
  std::string node_id;  ///< 16 hexadecimal digits.
  std::string node_name;
  pid_t pid = 0;
  friend bool operator==(const AgentRecord&, const AgentRecord&) = default;
};

/// Writes the record of a running agent. Errors: those of make_private_directory and write_file_atomically;
/// `invalid_argument` (a line break in a field).
Status publish_agent(const AgentRecord& record);
/// Removes it again; fine when there is none.
Status withdraw_agent(const AgentRecord& record);

/// Every record, stale ones too, ordered by cluster name, then node name. Unreadable files are passed over.
std::vector<AgentRecord> published_agents();

/// True when a process accepts connections at `socket` now.
[[nodiscard]] bool agent_answers(const std::string& socket);

/// How the caller names the agent that it wants. All empty: the only cluster on this machine.
struct AgentChoice {
  std::string socket;     ///< This socket, and no other.
  std::string state_dir;  ///< The agent of this state directory.
  std::string cluster;    ///< Name or id of the cluster; any live agent of it.
  std::string node;       ///< Name or id of the node, within the cluster.
  /// HOLO_SOCKET, HOLO_STATE_DIR, HOLO_CLUSTER, HOLO_NODE.
  static AgentChoice from_environment();
};

/// The agent to talk to: the first live one, by node name, of the cluster that was chosen.
/// Errors: `not_found` (no agent runs here, or none of that cluster or state directory), `invalid_argument` (agents of
/// several clusters run here and none was chosen).
Result<AgentRecord> choose_agent(const AgentChoice& choice);

/// Where an agent with this state directory puts its socket: agent-ID.sock in the runtime directory, or agent.sock in
/// the state directory when there is no runtime directory.
std::string agent_socket_path(const std::string& state_dir, const std::string& node_id);

}  // namespace holo::driver
