// The mark of programs that link holo: an ELF note "holo" of type 1. An agent starts no program without it, because
// that program's main() would run where a worker is meant to be.
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/result.h"

namespace holo::wire {

struct HoloNote {
  std::uint32_t local_protocol = 0;
  std::string version;  ///< Of the libholo it was linked with.
};

/// Finds the note in an executable's bytes (a 64-bit little-endian ELF file; only its headers and notes are looked at).
/// Errors: `wrong_build` (not such a file, or it does not link holo), `malformed` (headers that point outside the
/// file).
Result<HoloNote> find_holo_note(ByteSpan file);

}  // namespace holo::wire
