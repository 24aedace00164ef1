#include "core/control/shape.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "base/limits.h"
#include "base/strings.h"

namespace holo::control {
namespace {

constexpr std::uint64_t kMaxElementBytes = 1 << 20;

constexpr std::array<std::pair<std::string_view, std::uint64_t>, 11> kTypes{{{"bytes", 1},
                                                                             {"u8", 1},
                                                                             {"i8", 1},
                                                                             {"u16", 2},
                                                                             {"i16", 2},
                                                                             {"u32", 4},
                                                                             {"i32", 4},
                                                                             {"u64", 8},
                                                                             {"i64", 8},
                                                                             {"f32", 4},
                                                                             {"f64", 8}}};

/// A name from outside, safe to put on a terminal.
std::string quoted(std::string_view s) {
  std::string out = "\"";
  for (const char c : s.substr(0, limits::kMaxRegionName)) out += c >= ' ' && c <= '~' ? c : '?';
  if (s.size() > limits::kMaxRegionName) out += "...";
  return out + "\"";
}

}  // namespace

bool valid_name(std::string_view name) {
  if (name.empty() || name.size() > limits::kMaxRegionName) return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '/' || c == '-';
  });
}

std::uint64_t bytes_of_type(std::string_view type) {
  for (const auto& [name, bytes] : kTypes) {
    if (type == name) return bytes;
  }
  constexpr std::string_view kStruct = "struct:";
  if (!type.starts_with(kStruct)) return 0;
  type.remove_prefix(kStruct.size());
  if (type.empty() || type.size() > 7 || type[0] == '0') return 0;
  std::uint64_t bytes = 0;
  for (const char c : type) {
    if (c < '0' || c > '9') return 0;
    bytes = bytes * 10 + static_cast<std::uint64_t>(c - '0');
  }
  return bytes <= kMaxElementBytes ? bytes : 0;
}

std::string human_bytes(std::uint64_t bytes) {
  constexpr std::array<std::string_view, 6> kUnits{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return str(bytes, " bytes");
  std::size_t unit = 0;
  std::uint64_t scale = 1024;
  while (unit + 1 < kUnits.size() && bytes / scale >= 1024) {
    scale *= 1024;
    ++unit;
  }
  const std::uint64_t whole = bytes / scale;
  const std::uint64_t tenth = (bytes % scale) / (scale / 10);
  return str(whole, ".", std::min<std::uint64_t>(tenth, 9), " ", kUnits[unit]);
}

Result<RegionRecord> shape_of(const wire::RegionCreate& c, std::uint32_t owner_uid) {
  if (!valid_name(c.name())) {
    return fail(Errc::invalid_argument, str(quoted(c.name()), " is not a region name: 1 to ", limits::kMaxRegionName,
                                            " of A-Z a-z 0-9 . _ / -"));
  }
  RegionRecord r;
  r.name = c.name();
  r.type = c.type().empty() ? "bytes" : c.type();
  const std::uint64_t element = bytes_of_type(r.type);
  if (element == 0) {
    return fail(Errc::invalid_argument, str(quoted(r.type), " is not an element type"),
                "u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 bytes struct:SIZE");
  }
  if (c.element_bytes() != 0 && c.element_bytes() != element) {
    return fail(Errc::invalid_argument,
                str("elements of ", r.type, " have ", element, " bytes, not ", c.element_bytes()));
  }
  r.element_bytes = static_cast<std::uint32_t>(element);
  if (c.count() == 0) return fail(Errc::invalid_argument, str("region ", quoted(r.name), " would have no elements"));
  if (c.count() > limits::kMaxRegionBytes / element) {
    return fail(Errc::over_limit,
                str("region ", quoted(r.name), " would be larger than ", human_bytes(limits::kMaxRegionBytes)));
  }
  r.count = c.count();
  r.bytes = c.count() * element;
  r.page_bytes = c.page_bytes() == 0 ? limits::kDefaultPageBytes : c.page_bytes();
  if (!std::has_single_bit(r.page_bytes) || r.page_bytes < limits::kMinPageBytes ||
      r.page_bytes > limits::kMaxPageBytes) {
    return fail(Errc::invalid_argument, str("a page of ", r.page_bytes, " bytes: it must be a power of two from ",
                                            limits::kMinPageBytes, " to ", limits::kMaxPageBytes));
  }
  r.pages = (r.bytes + r.page_bytes - 1) / r.page_bytes;
  r.mode = c.mode().empty() ? "phased" : c.mode();
  if (r.mode == "strict") {
    return fail(Errc::unsupported, "strict mode is not built yet", "use phased mode, the default");
  }
  if (r.mode != "phased") return fail(Errc::invalid_argument, str(quoted(r.mode), " is not a mode"), "phased");
  r.replication = c.replication() == 0 ? 1 : c.replication();
  if (r.replication > limits::kMaxReplication) {
    return fail(Errc::invalid_argument,
                str("replication ", r.replication, ": it must be 1 to ", limits::kMaxReplication));
  }
  r.owner_uid = owner_uid;
  return r;
}

}  // namespace holo::control
