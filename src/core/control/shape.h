// What a region may look like: the rules of names, types and sizes, in one place.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "core/control/state.h"

namespace holo::control {

/// Names of regions and locks: 1 to limits::kMaxRegionName characters of [A-Za-z0-9._/-].
bool valid_name(std::string_view name);
/// The bytes of one element of `type`; 0 when there is no such type.
std::uint64_t bytes_of_type(std::string_view type);
/// The record that `c` asks for, defaults filled in; id, placement and times are still empty.
/// Errors: `invalid_argument`, `over_limit`, `unsupported` (strict mode).
Result<RegionRecord> shape_of(const wire::RegionCreate& c, std::uint32_t owner_uid);
/// "1.5 GiB", with one digit after the point.
std::string human_bytes(std::uint64_t bytes);

}  // namespace holo::control
