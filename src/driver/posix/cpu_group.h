// A share of the processor for a group of processes: control groups (cgroups), version 1 or 2.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "base/time.h"
#include "env/fd.h"

namespace holo::driver {

/// Short, because a group that has used up its share stands still until the period's end.
inline constexpr Duration kCpuPeriod = milliseconds(10);

enum class CpuGroupVersion : unsigned char { v1 = 1, v2 = 2 };

/// Where groups with a share can be made: a folder of the cgroup file system.
struct CpuGroupParent {
  std::string folder;
  CpuGroupVersion version = CpuGroupVersion::v2;
  friend bool operator==(const CpuGroupParent&, const CpuGroupParent&) = default;
};

/// Where the caller's own group lies, and up to which folder it may climb.
struct CpuHierarchy {
  std::string top;  ///< Mount point.
  std::string own;  ///< Folder of the caller's group, under `top`.
  CpuGroupVersion version = CpuGroupVersion::v2;
  friend bool operator==(const CpuHierarchy&, const CpuHierarchy&) = default;
};
/// From the texts of /proc/self/mountinfo and /proc/self/cgroup. A machine with both versions has the controller in 1.
/// Errors: `unsupported` (no cpu controller is mounted).
Result<CpuHierarchy> cpu_hierarchy(std::string_view mountinfo, std::string_view own_groups);

/// Whether a group made there would have a share that processes can enter; tried, because nothing else tells. In
/// version 2 the cpu controller is switched on there. Errors: `unsupported`, `permission_denied`, `io_error`.
Status try_cpu_group_parent(const CpuGroupParent& parent);
/// The nearest such place, from the caller's own group upwards, so that the limits which hold for the caller hold for
/// its groups too. Errors: `unsupported`, `permission_denied` (none of them can be written).
Result<CpuGroupParent> find_cpu_group_parent();

/// Whether the caller's group, or one above it that can be seen, may use only part of the processor time that there is.
bool has_cpu_quota();

/// A group of at most `cpus` cores (0.001 or more; 1.5: one and a half). Fine when it exists.
/// Errors: `permission_denied`, `invalid_argument` (the parent has less), `io_error`.
Result<std::string> make_cpu_group(const CpuGroupParent& parent, const std::string& name, double cpus);

/// For a process that is about to start: writing "0" to it puts the writer into the group of `folder`.
Result<env::Fd> open_cpu_group(const std::string& folder);

/// Kills what is left in it and removes it; fine when there is none. Errors: `deadline_exceeded`, `io_error`.
Status remove_cpu_group(const std::string& folder, Duration limit);

}  // namespace holo::driver
