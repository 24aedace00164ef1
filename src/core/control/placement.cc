#include "core/control/placement.h"

#include <algorithm>

#include "base/random.h"

namespace holo::control {
namespace {

constexpr std::uint64_t kMaxBlockBytes = 4 << 20;
constexpr std::uint64_t kBlocksPerMember = 32;  // Enough to even out, few enough that a chunk stays worth sending.
constexpr std::uint64_t kBlocksAtLeast = 256;   // Of a region: nodes that join later want their part too.

}  // namespace

std::uint64_t Placement::choose_block_pages(std::uint64_t pages, std::uint64_t page_bytes, std::size_t members) {
  std::uint64_t block = std::max<std::uint64_t>(kMaxBlockBytes / page_bytes, 1);
  const std::uint64_t blocks = std::max<std::uint64_t>(kBlocksPerMember * members, kBlocksAtLeast);
  while (block > 1 && pages / block < blocks) block /= 2;
  return block;
}

Placement::Placement(Shape shape) : shape_(shape) {
  std::vector<std::uint64_t> pages(limits::kShards);
  const std::uint64_t blocks = (shape_.pages + shape_.block_pages - 1) / shape_.block_pages;
  for (std::uint64_t b = 0; b < blocks; ++b) {
    const std::uint64_t first = b * shape_.block_pages;
    pages[shard_of_block(b).value] += std::min(shape_.block_pages, shape_.pages - first);
  }
  for (std::uint16_t s = 0; s < limits::kShards; ++s) {
    if (pages[s] == 0) continue;
    used_.push_back(s);
    shards_.emplace_back();
    shards_.back().pages = pages[s];
  }
  unwritten_ = shards_.size();
}

ShardNo Placement::shard_of_block(std::uint64_t block) const {
  return ShardNo{static_cast<std::uint16_t>(mix64(mix64(shape_.region.value) + block) % limits::kShards)};
}

const Placement::Shard* Placement::shard(ShardNo shard) const {
  if (used_.size() == limits::kShards) return &shards_[shard.value % limits::kShards];
  const auto it = std::lower_bound(used_.begin(), used_.end(), shard.value);
  if (it == used_.end() || *it != shard.value) return nullptr;
  return &shards_[static_cast<std::size_t>(it - used_.begin())];
}

Placement::Shard* Placement::shard(ShardNo shard) {
  return const_cast<Shard*>(static_cast<const Placement*>(this)->shard(shard));
}

void Placement::mark_written(PageRange pages) {
  if (pages.count == 0) return;
  const std::uint64_t last = (pages.end() - 1) / shape_.block_pages;
  for (std::uint64_t b = pages.first / shape_.block_pages; b <= last && unwritten_ > 0; ++b) {
    Shard* s = shard(shard_of_block(b));
    if (s == nullptr || s->written) continue;
    s->written = true;
    --unwritten_;
  }
}

}  // namespace holo::control
