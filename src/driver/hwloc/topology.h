// The machine as hwloc sees it, and what the kernel says about disks and links.
#pragma once

#include <string>

#include "base/result.h"
#include "wire/inventory.pb.h"

namespace holo::driver {

/// Everything but node, time and score. Each list is cut at kMaxListed, in the order of names. Blocks for tens of
/// milliseconds. Errors: `unsupported` (hwloc cannot read this machine).
Result<wire::Inventory> read_inventory();

inline constexpr int kMaxListed = 32;

}  // namespace holo::driver
