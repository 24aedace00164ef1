// Which version of each page a snapshot sees: the region's commits since the floor, and the newest version of every
// page.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "core/memory/types.h"

namespace holo::memory {

/// Versions of a region's pages. Everything at and above floor() is known exactly; below it, nothing is promised.
class PageHistory {
 public:
  /// Takes over a state that began elsewhere: `newest` is the region's version, and what lies below it is not known.
  void restart(Version newest);
  /// During a restart: the version that last wrote these pages.
  void restore(PageSpan pages, Version version);

  /// A commit. Versions come in order, each above the last. Cost: one hash lookup per page.
  void record(Version version, const std::vector<PageSpan>& pages);

  [[nodiscard]] Version newest() const { return newest_; }
  [[nodiscard]] Version floor() const { return floor_; }
  /// The version that last wrote `page`; 0: none did.
  [[nodiscard]] Version newest(PageNo page) const;
  /// The version of `page` that a reader at `snapshot` sees; 0: all zero. Errors: `snapshot_too_old`. `snapshot` is at
  /// most newest().
  [[nodiscard]] Result<Version> version_at(PageNo page, Version snapshot) const;
  /// The versions of `page` in (after, up_to], ascending. Exact for after >= floor().
  [[nodiscard]] std::vector<Version> versions_between(PageNo page, Version after, Version up_to) const;
  /// Pages written by commits in (after, up_to], as sorted runs; either order of the two.
  [[nodiscard]] std::vector<PageSpan> changed(Version a, Version b) const;
  /// True when no snapshot >= floor() sees `version` of `page`.
  [[nodiscard]] bool dead(PageNo page, Version version) const;

  /// Raises the floor (never lowers it; at most newest()). Returns the pages that may have dead versions now.
  std::vector<PageSpan> raise_floor(Version floor);

  [[nodiscard]] std::uint64_t pages_written() const { return pages_.size(); }

 private:
  struct Commit {
    Version version;
    std::vector<PageSpan> pages;
  };
  // Ascending; the last is the newest. Nearly always one long.
  using Versions = std::vector<std::uint64_t>;

  Version newest_;
  Version floor_;
  std::unordered_map<std::uint64_t, Versions> pages_;
  std::deque<Commit> commits_;  // those above the floor
};

/// Sorts, joins and cleans runs of pages.
std::vector<PageSpan> normalise(std::vector<PageSpan> spans);
/// Pages as runs. `pages` need not be sorted; duplicates count once.
std::vector<PageSpan> to_spans(std::vector<PageNo> pages);

}  // namespace holo::memory
