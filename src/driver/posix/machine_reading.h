// The kernel's word on memory and heat: /proc/pressure, /proc/meminfo, /sys/class/thermal.
#pragma once

#include <string>

#include "env/machine.h"

namespace holo::driver {

/// `root`: before /proc and /sys, for tests. Blocks, mostly for less than a millisecond (sensors may take more). Never
/// fails: what cannot be read is left out.
env::MachineReading read_machine(const std::string& root = "");

}  // namespace holo::driver
