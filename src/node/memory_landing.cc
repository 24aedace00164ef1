// Slots that the bytes of an answer go to straight from the wire.
#include <algorithm>

#include "base/log.h"
#include "node/memory_impl.h"

namespace holo::node {

std::shared_ptr<PageLanding> PageLanding::begin(const RegionPtr& region, const std::vector<PageAt>& wants) {
  for (std::size_t i = 0; i < wants.size(); ++i) {
    if (wants[i].page.value != wants.front().page.value + i) return nullptr;
  }
  auto landing = std::make_shared<PageLanding>(region);
  for (const PageAt& at : wants) {
    if (!region->pages->begin_landing(at.page, at.version)) return nullptr;
    landing->left_.push_back(at.page);
  }
  return landing;
}

void PageLanding::prepare() {
  if (over_) return;
  auto place = region_->pages->landing_place(left_.front(), left_.size());
  if (place) {
    where_.place = *place;
  } else if (place.error().code != Errc::unsupported) {
    log_info("memory", "pages of region \"", region_->shape.name, "\" take a buffer first: ", place.error().message);
  }
}

bool PageLanding::keep(PageNo page) {
  std::erase(left_, page);
  return region_->pages->end_landing(page, !region_->freed);
}

void PageLanding::end() {
  over_ = true;
  where_.place = {};
  for (const PageNo page : std::exchange(left_, {})) (void)region_->pages->end_landing(page, false);
}

}  // namespace holo::node
