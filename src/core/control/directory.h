// The page directory of one region: page -> version that last wrote it, in leaves that stay one number while uniform.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "base/ids.h"

namespace holo::control {

/// Pages [first, first + count).
struct PageRange {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  [[nodiscard]] std::uint64_t end() const { return first + count; }
  friend constexpr auto operator<=>(const PageRange&, const PageRange&) = default;
};

/// Memory: nothing for leaves never written, a map node for uniform leaves, 32 KiB for mixed ones.
class Directory {
 public:
  static constexpr std::uint64_t kLeafPages = 4096;

  /// Cost: one ordered lookup.
  [[nodiscard]] Version at(PageNo page) const;
  /// Records that `version` wrote `range`.
  void write(PageRange range, Version version);
  /// Ranges inside `within` written by a version > `since`, ascending, joined where versions are equal.
  void visit(PageRange within, Version since, const std::function<void(PageRange, Version)>& f) const;

 private:
  struct Leaf {
    std::uint64_t uniform = 0;         ///< Every page's version while `mixed` is empty.
    std::vector<std::uint64_t> mixed;  ///< kLeafPages versions, or empty.
  };
  std::map<std::uint64_t, Leaf> leaves_;
};

}  // namespace holo::control
