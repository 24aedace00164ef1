// Values that the memory core and its users share.
#pragma once

#include <cstdint>

#include "base/ids.h"

namespace holo::memory {

/// Pages [first, first + count) of a region.
struct PageSpan {
  PageNo first;
  std::uint64_t count = 0;
  friend constexpr bool operator==(const PageSpan&, const PageSpan&) = default;
};

/// What a region's copies on this node take, in bytes.
struct Usage {
  std::uint64_t owned = 0;   ///< The first copy of each page that is to be here (home or backup).
  std::uint64_t extra = 0;   ///< Further copies of those: older versions, twins, staged pages.
  std::uint64_t cached = 0;  ///< Copies of pages that live elsewhere.
  [[nodiscard]] std::uint64_t total() const { return owned + extra + cached; }
  Usage& operator+=(const Usage& o) {
    owned += o.owned;
    extra += o.extra;
    cached += o.cached;
    return *this;
  }
  Usage& operator-=(const Usage& o) {
    owned -= o.owned;
    extra -= o.extra;
    cached -= o.cached;
    return *this;
  }
  friend bool operator==(const Usage&, const Usage&) = default;
};

}  // namespace holo::memory
