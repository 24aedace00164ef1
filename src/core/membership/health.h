// How well a node is, as a number that falls before the node fails: from what it notices of itself.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/time.h"

namespace holo::membership {

/// What was seen in one interval. What a machine does not tell is left out, and counts for nothing.
struct HealthSample {
  std::optional<double> memory_pressure;   ///< Share of the time in which something waited for memory, 0 to 1.
  std::optional<double> memory_available;  ///< Of what is installed, 0 to 1.
  std::optional<double> heat;              ///< The hottest sensor against its own critical point: 1 is there.
  bool disk_failing = false;               ///< The last write to this node's store has failed.
  std::uint32_t disk_errors = 0;           ///< Further failures in the interval.
  Duration late;                           ///< The longest that a timer of the event loop was late.
  std::uint32_t unanswered = 0;            ///< Control requests to others that were not answered in time.
};

struct Health {
  std::uint32_t score = 100;         ///< 100: nothing is wrong. 0: it may fail at any moment.
  std::vector<std::string> reasons;  ///< What takes points away, the worst first.
};

inline constexpr std::size_t kHealthSamples = 12;  ///< That count: a minute, at one every five seconds.

/// `samples`: oldest first; of more than kHealthSamples the newest count. What was seen once weighs less than what
/// lasts, but for a disk that fails now. A pure function.
Health assess(std::span<const HealthSample> samples);

}  // namespace holo::membership
