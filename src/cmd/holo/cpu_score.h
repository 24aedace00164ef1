// How fast a core of this machine is, measured once and kept: a node that starts on a busy machine is not slower for
// ever.
#pragma once

#include <functional>
#include <string>

#include "cmd/holo/machine.h"
#include "wire/inventory.pb.h"

namespace holo::cmd {

/// What was kept in `state_dir`, if it was measured on a machine like this one; otherwise measures (30 ms) and keeps
/// it. A file that cannot be read, or is nonsense, is replaced; one that cannot be written is done without.
wire::CpuScore cpu_score(const std::string& state_dir);
/// The same for any machine and any measurement, for tests.
wire::CpuScore cpu_score(const std::string& state_dir, const std::string& machine,
                         const std::function<SpeedMeasurement()>& measure);

}  // namespace holo::cmd
