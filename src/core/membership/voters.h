// Which nodes vote: 1 of 1-2 live nodes, 3 of 3-4, 5 of 5 and more; one change at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "base/ids.h"

namespace holo::membership {

struct Candidate {
  NodeId node;
  bool alive = false;
  bool voter = false;
  bool leaving = false;  ///< Its user asked it to leave: it hands its vote over first.
  bool leader = false;
};

struct VoterChange {
  enum class Kind : std::uint8_t { promote, demote, hand_over } kind{};
  NodeId node;  ///< Who gets or loses the vote; hand_over: the leader that is to step down.
  friend bool operator==(const VoterChange&, const VoterChange&) = default;
};

/// Voters for so many nodes.
constexpr std::size_t voters_wanted(std::size_t nodes) { return nodes >= 5 ? 5 : nodes >= 3 ? 3 : 1; }

/// The next step towards the right voters, or none. The number of voters never falls because a node died: a dead voter
/// is replaced by a live learner, promoted first; it falls only when nodes leave. `members` without those that have
/// left.
std::optional<VoterChange> next_voter_change(std::span<const Candidate> members);

}  // namespace holo::membership
