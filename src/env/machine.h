// What a machine tells about how it is, at one moment.
#pragma once

#include <optional>

namespace holo::env {

/// What the machine does not tell is left out.
struct MachineReading {
  std::optional<double> memory_pressure;   ///< Share of the last ten seconds in which something waited for memory.
  std::optional<double> memory_available;  ///< Of what is installed, 0 to 1.
  std::optional<double> heat;              ///< The hottest sensor against its own critical point.
  bool disk_failing = false;               ///< The last write to the node's store has failed.
};

}  // namespace holo::env
