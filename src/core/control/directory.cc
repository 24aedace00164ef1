#include "core/control/directory.h"

#include <algorithm>

namespace holo::control {

Version Directory::at(PageNo page) const {
  const auto it = leaves_.find(page.value / kLeafPages);
  if (it == leaves_.end()) return Version{};
  const Leaf& leaf = it->second;
  return Version{leaf.mixed.empty() ? leaf.uniform : leaf.mixed[page.value % kLeafPages]};
}

void Directory::write(PageRange range, Version version) {
  for (std::uint64_t page = range.first; page < range.end();) {
    const std::uint64_t number = page / kLeafPages;
    const std::uint64_t stop = std::min(range.end(), (number + 1) * kLeafPages);
    Leaf& leaf = leaves_[number];
    if (stop - page == kLeafPages) {
      leaf.uniform = version.value;
      leaf.mixed = {};
    } else {
      if (leaf.mixed.empty()) leaf.mixed.assign(kLeafPages, leaf.uniform);
      const auto first = leaf.mixed.begin() + static_cast<std::ptrdiff_t>(page % kLeafPages);
      std::fill_n(first, stop - page, version.value);
    }
    page = stop;
  }
}

void Directory::visit(PageRange within, Version since, const std::function<void(PageRange, Version)>& f) const {
  PageRange run;
  std::uint64_t run_version = 0;
  const auto add = [&](std::uint64_t first, std::uint64_t count, std::uint64_t version) {
    if (version <= since.value || count == 0) return;
    if (run.count != 0 && run.end() == first && run_version == version) {
      run.count += count;
      return;
    }
    if (run.count != 0) f(run, Version{run_version});
    run = {first, count};
    run_version = version;
  };
  for (auto it = leaves_.lower_bound(within.first / kLeafPages); it != leaves_.end(); ++it) {
    const std::uint64_t base = it->first * kLeafPages;
    if (base >= within.end()) break;
    const std::uint64_t first = std::max(base, within.first);
    const std::uint64_t stop = std::min(base + kLeafPages, within.end());
    const Leaf& leaf = it->second;
    if (leaf.mixed.empty()) {
      add(first, stop - first, leaf.uniform);
      continue;
    }
    for (std::uint64_t page = first; page < stop; ++page) add(page, 1, leaf.mixed[page - base]);
  }
  if (run.count != 0) f(run, Version{run_version});
}

}  // namespace holo::control
