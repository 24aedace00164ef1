// The agent: this machine's node, with Linux's drivers wired in.
#pragma once

#include <functional>
#include <string>

#include "cmd/holo/background.h"
#include "cmd/holo/config.h"
#include "cmd/holo/outcome.h"
#include "cmd/holo/state_dir.h"

namespace holo::cmd {

struct AgentHooks {
  ReadyPipe ready;  ///< Hears when the agent answers, is alive, or could not start.
  /// Only to find out whether this node was removed from its cluster: then its state directory belongs to none any
  /// more, and the agent ends after it has answered; else it fails.
  bool forget_if_removed = false;
  /// Called once this node is a live member, with what others dial.
  std::function<void(const std::string& advertised)> on_alive = {};
};

/// Runs the agent in the foreground until SIGTERM, SIGINT, or a process asks for its end; stops within 2 s. The state
/// directory says what to do: go on, make the cluster, or join one. Failures: what kept it from starting (the state
/// directory is then as if it had never been part of the cluster it failed to make or to join).
Outcome<int> run_agent(const LoadedConfig& loaded, AgentHooks hooks);

}  // namespace holo::cmd
