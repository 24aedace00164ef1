// What the commands that move pages share.
#pragma once

#include <nlohmann/json.hpp>

#include <string>

#include "cmd/holo/agent_link.h"
#include "cmd/holo/outcome.h"

namespace holo::cmd {

/// Which moves are waited for: those off one node, or all of the cluster.
enum class Moves : unsigned char { away, all };
/// Until they are done: progress on standard error when that is a terminal. `node`: an id. Gives how many there were.
/// Errors: `deadline_exceeded` (they go on), `out_of_memory` (what is left has nowhere to go).
Outcome<nlohmann::json> wait_for_moves(AgentLink& link, const std::string& node, Moves which, double timeout);

/// For people, of the answer to SHARDS.
std::string shards_table(const nlohmann::json& shards);

}  // namespace holo::cmd
