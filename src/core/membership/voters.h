// Which nodes vote: 1 of 1, 3 of 3 or 4, 5 of 5 or more, spread over zones and hosts. Of 2 both do: then neither
// decides anything without the other.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"

namespace holo::membership {

struct Member {
  NodeId node;
  bool alive = false;  ///< And not about to go (draining).
  bool voter = false;
  bool witness = false;  ///< Made to vote: before all but the leader.
  std::string zone;      ///< Empty: unknown, and then another one than every other node's.
  std::string host;
};

struct VoterChange {
  NodeId node;
  bool voter = false;  ///< true: make it one.
  friend bool operator==(const VoterChange&, const VoterChange&) = default;
};

/// How many of `nodes` should vote.
std::size_t wanted_voters(std::size_t nodes);

/// Those that should vote, of the live ones: the leader, then witnesses, then as many different zones and hosts as
/// there are, then who votes already, then the lowest ids. Fewer than `wanted` when fewer live. Deterministic.
std::vector<NodeId> choose_voters(const std::vector<Member>& members, NodeId leader, std::size_t wanted);

/// The next change, one at a time; nullopt when all is well. `members`: all that have not left, dead ones too, as the
/// number of voters does not fall by itself. Whoever is to lose its vote (dead, draining, or one of two on a host)
/// keeps it until another has one. `leader` keeps its own while it lives: one that drains hands over first.
std::optional<VoterChange> next_voter_change(std::vector<Member> members, NodeId leader);

}  // namespace holo::membership
