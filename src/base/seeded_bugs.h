// Mistakes that people make in such code, which can be put into it one at a time: in a build of its own
// (cmake -DHOLO_SEEDED_BUGS=ON), the simulator shows that it finds each (docs/simulation.md). In every other build
// HOLO_SEEDED_BUG() is the constant false, and nothing of this is there.
#pragma once

#include <cstdint>

namespace holo {

enum class SeededBug : std::uint8_t {
  none,
  vote_not_kept,
  ack_before_sync,
  unconfirmed_read,
  read_without_asking,
  forgotten_dedup,
  lease_ends_early,
  keep_without_effect,
  token_used_again,
  lock_given_while_held,
  epoch_stays,
  death_twice,
  dead_come_back,
  snapshot_without_deadlines,
  watch_skips_a_revision,
  comparison_always_holds,
  done_reported_as_refused,
  time_goes_back,
  count
};

#ifdef HOLO_SEEDED_BUGS
inline SeededBug seeded_bug = SeededBug::none;  // The one that is in the code now. Set before anything runs.
#define HOLO_SEEDED_BUG(name) (::holo::seeded_bug == ::holo::SeededBug::name)
#else
#define HOLO_SEEDED_BUG(name) false
#endif

}  // namespace holo
