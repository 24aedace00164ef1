// Places for pages from other nodes: their slots, into which they go straight from the wire, or buffers.
#include "base/log.h"
#include "node/memory_impl.h"

namespace holo::node {

PageLanding::PageLanding(RegionPtr region, std::vector<Part> parts)
    : region_(std::move(region)), parts_(std::move(parts)) {
  for (const Part& part : parts_) size_ += part.bytes;
}

void PageLanding::take_slot() {
  const Part& part = parts_[slots_.size()];
  const bool may = region_ && part.version && !slots_fail_ && !region_->freed && !region_->frozen;
  slots_.push_back(may ? region_->pages->begin_landing(part.page, *part.version) : 0);
}

void PageLanding::take_slots() {
  while (slots_.size() < parts_.size()) take_slot();
}

/// Places for the next part, and for what follows it in the region.
void PageLanding::make_places() {
  const std::size_t first = places_.size();
  std::size_t end = first;
  std::uint64_t bytes = 0;
  const auto follows = [&](std::size_t i) { return parts_[i].page.value == parts_[first].page.value + (i - first); };
  for (; end < parts_.size() && (end == first || (follows(end) && bytes < kPrepareBytes)); ++end) {
    if (end == slots_.size()) take_slot();
    if (slots_[end] == 0) break;
    bytes += parts_[end].bytes;
  }
  if (end > first) {
    const auto place = region_->pages->landing_place(parts_[first].page, end - first);
    if (place) {
      for (std::uint64_t at = 0; at < bytes; at += region_->page_bytes()) {
        places_.push_back({.bytes = place->subspan(at, region_->page_bytes()), .owner = nullptr});
      }
      return;
    }
    for (std::size_t i = first; i < end; ++i) {
      region_->pages->end_landing(parts_[i].page, std::exchange(slots_[i], 0));
    }
    if (!std::exchange(slots_fail_, true) && place.error().code != Errc::unsupported) {
      log_info("memory", "pages of region \"", region_->shape.name, "\" take a buffer first: ", place.error().message);
    }
  }
  const std::uint64_t size = parts_[first].bytes;
  auto own = std::make_shared_for_overwrite<std::byte[]>(size);
  const MutableByteSpan place(own.get(), size);
  places_.push_back({.bytes = place, .owner = std::move(own)});
}

void PageLanding::prepare() {
  while (!over() && places_.size() < parts_.size()) make_places();
}

void PageLanding::leave_out(const std::vector<bool>& absent) {
  absent_ = absent;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (!absent_[i]) continue;
    size_ -= parts_[i].bytes;
    if (i < slots_.size() && slots_[i] != 0) region_->pages->end_landing(parts_[i].page, std::exchange(slots_[i], 0));
  }
}

bool FetchLanding::takes(const std::string& header, std::uint64_t payload_bytes) {
  if (size() == payload_bytes) return true;
  wire::PageFetchReply given;
  if (!given.ParseFromString(header) || static_cast<std::size_t>(given.pages_size()) != parts()) return false;
  std::vector<bool> absent;
  for (const auto& page : given.pages()) absent.push_back(page.state() != wire::PageGiven::BYTES);
  leave_out(absent);
  return size() == payload_bytes;
}

env::Landing::Place PageLanding::next() {
  for (; !absent_.empty() && absent_[given_]; ++given_) {
    if (given_ == places_.size()) make_places();
  }
  if (given_ == places_.size()) make_places();  // Asked only while this is not over.
  Place place = std::move(places_[given_++]);
  if (!place.owner) place.owner = shared_from_this();
  return place;
}

void PageLanding::give_back() {
  end();
  if (!region_ || region_->frozen) return;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i] != 0) region_->pages->end_landing(parts_[i].page, slots_[i]);
  }
  slots_.clear();
}

Buffer PagesIn::next(std::uint64_t bytes) {
  if (at_ == payload_.size() || payload_[at_].size() - offset_ < bytes) return {};
  const Buffer out = payload_[at_].slice(offset_, bytes);
  offset_ += bytes;
  if (offset_ == payload_[at_].size()) {
    offset_ = 0;
    ++at_;
  }
  return out;
}

}  // namespace holo::node
