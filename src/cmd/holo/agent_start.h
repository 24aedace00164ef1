// What init, join and dev have in common: a state directory made ready, an agent started on it in the background.
#pragma once

#include <string>
#include <vector>

#include "cmd/holo/background.h"
#include "cmd/holo/config.h"
#include "cmd/holo/outcome.h"
#include "cmd/holo/state_dir.h"

namespace holo::cmd {

/// Makes `state_dir` and notes in it what the agent has to do (`wanted.pending`); for a new cluster of mode roots also
/// the root key and the first certificate. Failures: `refused` (an agent runs there, or the directory belongs to a
/// cluster already), `permission_denied` (another node's certificate), and those of files.
Outcome<void> prepare_start(const std::string& state_dir, ClusterMembership wanted);
/// While no agent runs on `state_dir`: true when its node was removed from its cluster, as the directory says or
/// another member (asked for 3 s at most); the directory then belongs to no cluster any more. `config_file`: the
/// agent's, or empty. False where that cannot be told, or no cluster is known there.
Outcome<bool> forget_if_removed(const AgentConfig& config, const std::string& config_file);
/// The same before a join: only where the cluster to be joined is the one that the directory belongs to.
Outcome<bool> forget_if_removed(const AgentConfig& config, const std::string& config_file,
                                const ClusterMembership& wanted);
/// After a start that failed: the directory no longer looks like a member's. False when it is one.
bool forget_failed_start(const std::string& state_dir);

/// Starts the agent of `config`.state_dir in the background; its log goes to log_file, or agent.log in the state
/// directory. `place`, `note`: as BackgroundAgent::start() has them.
Result<BackgroundAgent> start_agent(const AgentConfig& config, const std::vector<std::string>& more_args = {},
                                    const AgentPlace& place = {}, const BackgroundAgent::Note& note = {});

/// The address that the running agent of `state_dir` tells others to dial.
Outcome<std::string> advertised_address(const std::string& state_dir);

}  // namespace holo::cmd
