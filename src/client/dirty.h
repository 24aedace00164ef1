// Which pages of a private mapping this process has made its own by writing: those that are anonymous.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/result.h"

namespace holo::client {

struct DirtyPage {
  std::uint64_t index = 0;  ///< In units of `unit` from the start of the range.
  bool certain = true;      ///< False: the kernel cannot tell it from a page of zeros that was only read.
};

/// Pages of `unit` bytes (a multiple of 4 KiB) in [address, address + length) that hold at least one private 4 KiB
/// page, ascending. Pages that the agent gave by copy count too: they are equal to their base. Errors: `io_error`.
/// Thread: any. Source: Documentation/admin-guide/mm/pagemap.rst; PAGEMAP_SCAN where the kernel has it (6.7), else
/// /proc/self/pagemap.
Result<std::vector<DirtyPage>> dirty_pages(const std::byte* address, std::size_t length, std::size_t unit);

/// The two ways, for tests. `scan_pagemap` fails with `unsupported` where the kernel has no PAGEMAP_SCAN.
Result<std::vector<DirtyPage>> scan_pagemap(const std::byte* address, std::size_t length, std::size_t unit);
Result<std::vector<DirtyPage>> read_pagemap(const std::byte* address, std::size_t length, std::size_t unit);

}  // namespace holo::client
