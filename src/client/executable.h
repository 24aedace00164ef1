// What this process is made of: its executable, and the addresses that must not travel to another process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <holo/detail/runtime.hpp>

#include "base/bytes.h"
#include "base/result.h"

namespace holo::client {

/// The path of the executable, for messages. Empty when it cannot be told.
std::string executable_path();

/// BLAKE3 of the executable that runs (even when its file has been replaced since). Cost: it is read once per process.
/// Errors: `io_error`, `over_limit`.
Result<std::string> executable_hash();

/// A task function as an offset from the executable's load address. Error: `invalid_argument` when it is not code of
/// the executable itself (a shared library).
Result<std::uint64_t> function_offset(detail::TaskFunction function);
/// The function at that offset of this process's executable. Error: `invalid_argument` (not inside its code).
Result<detail::TaskFunction> function_at(std::uint64_t offset);

/// Address ranges, ascending, without overlap.
struct AddressRange {
  std::uint64_t begin = 0, end = 0;
};
/// What is mapped in this process now, from /proc/self/maps. A program that is not position independent may capture
/// addresses of its own image: they are the same everywhere, and look like small numbers.
std::vector<AddressRange> mapped_ranges();

/// Refuses bytes whose aligned 8-byte words lie in `ranges`: `invalid_argument`, "captures a pointer or reference at
/// byte 8; capture by value".
Status check_captures(ByteSpan captures, std::span<const AddressRange> ranges);

}  // namespace holo::client
