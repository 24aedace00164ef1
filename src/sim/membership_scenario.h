// Membership cores under random faults, and the table of how fast and how wrongly they detect.
#pragma once

#include <cstdint>
#include <cstdio>

#include "base/result.h"
#include "sim/scenario.h"

namespace holo::sim {

/// 3 to 48 members: a crash in calm weather is known by all in time; then crashes, pauses, partitions, loss and slow
/// members; then all is well again. No death without votes of a majority, none of a healthy member; rounds never fall;
/// messages stay within their bounds.
Status run_membership(std::uint64_t seed, Tally& tally);

/// Prints the table of docs/membership.md. `trials`: crashes per row. Cost: minutes for the largest.
void print_membership_table(unsigned trials, std::uint64_t seed);

/// Five members for `days` simulated days with 1 % loss, one of them at 10 % of a processor. Prints what happened;
/// false when a member was declared dead.
bool run_membership_days(unsigned days, std::uint64_t seed);

}  // namespace holo::sim
