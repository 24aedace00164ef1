#include "core/memory/history.h"

#include <algorithm>

#include "base/strings.h"

namespace holo::memory {

void PageHistory::restart(Version newest) {
  pages_.clear();
  commits_.clear();
  newest_ = floor_ = newest;
}

void PageHistory::restore(PageSpan pages, Version version) {
  for (std::uint64_t i = 0; i < pages.count; ++i) pages_[pages.first.value + i] = {version.value};
}

void PageHistory::record(Version version, const std::vector<PageSpan>& pages) {
  HOLO_ASSERT(version > newest_, "commits come in order");
  newest_ = version;
  for (const PageSpan& span : pages) {
    for (std::uint64_t i = 0; i < span.count; ++i) {
      Versions& v = pages_[span.first.value + i];
      if (v.empty() || v.back() != version.value) v.push_back(version.value);
    }
  }
  commits_.push_back({version, pages});
}

Version PageHistory::newest(PageNo page) const {
  auto it = pages_.find(page.value);
  return it == pages_.end() ? Version{0} : Version{it->second.back()};
}

Result<Version> PageHistory::version_at(PageNo page, Version snapshot) const {
  auto it = pages_.find(page.value);
  if (it == pages_.end()) return Version{0};
  const Versions& v = it->second;
  auto above = std::upper_bound(v.begin(), v.end(), snapshot.value);
  if (above != v.begin()) return Version{*(above - 1)};
  // Nothing at or below the snapshot is listed: either the page was unwritten then, or what was there has been
  // forgotten.
  if (snapshot < floor_) {
    return fail(Errc::snapshot_too_old,
                str("version ", snapshot, " of page ", page, " is no longer kept; the oldest is ", floor_),
                "refresh() or map the region again");
  }
  return Version{0};
}

std::vector<Version> PageHistory::versions_between(PageNo page, Version after, Version up_to) const {
  std::vector<Version> out;
  auto it = pages_.find(page.value);
  if (it == pages_.end()) return out;
  for (std::uint64_t v : it->second) {
    if (v > after.value && v <= up_to.value) out.push_back(Version{v});
  }
  return out;
}

std::vector<PageSpan> PageHistory::changed(Version a, Version b) const {
  if (b < a) std::swap(a, b);
  std::vector<PageSpan> spans;
  for (const Commit& c : commits_) {
    if (c.version > a && c.version <= b) spans.insert(spans.end(), c.pages.begin(), c.pages.end());
  }
  return normalise(std::move(spans));
}

bool PageHistory::dead(PageNo page, Version version) const {
  auto it = pages_.find(page.value);
  if (it == pages_.end()) return true;
  const Versions& v = it->second;
  auto at = std::lower_bound(v.begin(), v.end(), version.value);
  if (at == v.end() || *at != version.value) return true;
  return at + 1 != v.end() && *(at + 1) <= floor_.value;
}

std::vector<PageSpan> PageHistory::raise_floor(Version floor) {
  floor = std::min(floor, newest_);
  std::vector<PageSpan> touched;
  if (floor <= floor_) return touched;
  floor_ = floor;
  while (!commits_.empty() && commits_.front().version <= floor) {
    auto& spans = commits_.front().pages;
    touched.insert(touched.end(), spans.begin(), spans.end());
    commits_.pop_front();
  }
  touched = normalise(std::move(touched));
  for (const PageSpan& span : touched) {
    for (std::uint64_t i = 0; i < span.count; ++i) {
      Versions& v = pages_[span.first.value + i];
      auto above = std::upper_bound(v.begin(), v.end(), floor.value);
      if (above - v.begin() > 1) v.erase(v.begin(), above - 1);
    }
  }
  return touched;
}

std::vector<PageSpan> normalise(std::vector<PageSpan> spans) {
  std::erase_if(spans, [](const PageSpan& s) { return s.count == 0; });
  std::sort(spans.begin(), spans.end(), [](const PageSpan& a, const PageSpan& b) { return a.first < b.first; });
  std::vector<PageSpan> out;
  for (const PageSpan& s : spans) {
    if (!out.empty() && s.first.value <= out.back().first.value + out.back().count) {
      const std::uint64_t end = std::max(out.back().first.value + out.back().count, s.first.value + s.count);
      out.back().count = end - out.back().first.value;
    } else {
      out.push_back(s);
    }
  }
  return out;
}

std::vector<PageSpan> to_spans(std::vector<PageNo> pages) {
  std::vector<PageSpan> spans;
  spans.reserve(pages.size());
  for (PageNo p : pages) spans.push_back({p, 1});
  return normalise(std::move(spans));
}

}  // namespace holo::memory
