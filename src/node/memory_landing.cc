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
  const bool may = part.version && !slots_fail_ && !region_->freed && !region_->frozen;
  slots_.push_back(may ? region_->pages->begin_landing(part.page, *part.version) : 0);
}

void PageLanding::take_slots() {
  while (slots_.size() < parts_.size()) take_slot();
}

void PageLanding::make_place() {
  const std::size_t i = places_.size();
  const Part& part = parts_[i];
  if (i == slots_.size()) take_slot();
  if (slots_[i] != 0) {
    auto place = region_->pages->landing_place(part.page);
    if (place) {
      places_.push_back({.bytes = *place, .owner = nullptr});
      return;
    }
    region_->pages->end_landing(part.page, slots_[i]);
    if (!std::exchange(slots_fail_, true) && place.error().code != Errc::unsupported) {
      log_info("memory", "pages of region \"", region_->shape.name, "\" take a buffer first: ", place.error().message);
    }
  }
  auto own = std::make_shared_for_overwrite<std::byte[]>(part.bytes);
  const MutableByteSpan bytes(own.get(), part.bytes);
  places_.push_back({.bytes = bytes, .owner = std::move(own)});
}

void PageLanding::prepare() {
  while (!over() && places_.size() < parts_.size()) make_place();
}

env::Landing::Place PageLanding::next() {
  if (given_ == places_.size()) make_place();  // Asked only while this is not over.
  Place place = std::move(places_[given_++]);
  if (!place.owner) place.owner = shared_from_this();
  return place;
}

void PageLanding::give_back() {
  end();
  if (region_->frozen) return;
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
