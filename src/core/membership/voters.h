// Which nodes vote: 1 of 1, 3 of 3 or 4, 5 of 5 or more. Of 2 both do: then neither decides anything without the other.
#pragma once

#include <optional>
#include <vector>

#include "base/ids.h"

namespace holo::membership {

struct Member {
  NodeId node;
  bool alive = false;
  bool voter = false;
};

struct VoterChange {
  NodeId node;
  bool voter = false;  ///< true: make it one.
  friend bool operator==(const VoterChange&, const VoterChange&) = default;
};

/// How many of `nodes` should vote.
std::size_t wanted_voters(std::size_t nodes);

/// The next change, one at a time; nullopt when all is well. `members`: all that have not left, dead ones too, as the
/// number of voters does not fall by itself. A dead voter is replaced by a live learner before it loses its vote.
/// `leader` keeps its own.
std::optional<VoterChange> next_voter_change(std::vector<Member> members, NodeId leader);

}  // namespace holo::membership
