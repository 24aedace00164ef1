#include "core/control/placement.h"

#include <algorithm>
#include <bit>

#include "base/assert.h"
#include "base/random.h"

namespace holo::control {
namespace {

using Wide = unsigned __int128;

constexpr std::uint64_t kMaxBlockBytes = 4 << 20;
constexpr std::uint64_t kBlocksPerMember = 32;  // Enough to even out, few enough that a chunk stays worth sending.

/// -log2(hash / 2^64) in 1/2^32, by squaring bit for bit: the C library's log may differ from machine to machine.
std::uint64_t minus_log2(std::uint64_t hash) {
  hash |= 1;
  const int top = 63 - std::countl_zero(hash);
  std::uint64_t mantissa = hash << (63 - top);  // [1, 2) as 1.63
  std::uint64_t fraction = 0;
  for (int bit = 0; bit < 32; ++bit) {
    const Wide square = static_cast<Wide>(mantissa) * mantissa >> 63;
    fraction <<= 1;
    if ((square >> 64) != 0) {
      fraction |= 1;
      mantissa = static_cast<std::uint64_t>(square >> 1);
    } else {
      mantissa = static_cast<std::uint64_t>(square);
    }
  }
  const std::uint64_t log = (static_cast<std::uint64_t>(top) << 32) | fraction;
  return std::max<std::uint64_t>((std::uint64_t{64} << 32) - log, 1);
}

std::uint64_t weight_of(std::uint64_t bytes) { return std::max<std::uint64_t>(bytes >> 20, 1); }

}  // namespace

bool NodeList::contains(NodeId id) const { return std::find(begin(), end(), id) != end(); }

bool NodeList::push(NodeId id) {
  if (size_ == kMax) return false;
  nodes_[size_++] = id;
  return true;
}

void NodeList::erase(NodeId id) {
  const auto stop = std::remove(nodes_.begin(), nodes_.begin() + size_, id);
  std::fill(stop, nodes_.begin() + size_, NodeId{});
  size_ = static_cast<std::uint8_t>(stop - nodes_.begin());
}

bool operator==(const NodeList& a, const NodeList& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

RendezvousScore::RendezvousScore(ShardNo shard, NodeId node, std::uint64_t weight)
    : node_(node),
      weight_(weight_of(weight)),
      cost_(minus_log2(mix64(mix64(node.value) ^ mix64(shard.value + 0x9E3779B97F4A7C15ULL)))) {}

bool RendezvousScore::before(const RendezvousScore& other) const {
  const Wide mine = static_cast<Wide>(weight_) * other.cost_;
  const Wide theirs = static_cast<Wide>(other.weight_) * cost_;
  return mine != theirs ? mine > theirs : node_ < other.node_;
}

std::uint64_t Placement::choose_block_pages(std::uint64_t pages, std::uint64_t page_bytes, std::size_t members) {
  std::uint64_t block = std::max<std::uint64_t>(kMaxBlockBytes / page_bytes, 1);
  while (block > 1 && pages / block < kBlocksPerMember * members) block /= 2;
  return block;
}

Placement::Placement(Shape shape, std::vector<NodeCapacity> members) : shape_(shape), members_(std::move(members)) {
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

std::vector<std::size_t> Placement::rank(ShardNo shard) const {
  std::vector<RendezvousScore> scores;
  scores.reserve(members_.size());
  for (const NodeCapacity& m : members_) scores.emplace_back(shard, m.node, m.weight);
  std::vector<std::size_t> order(members_.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a].before(scores[b]); });
  return order;
}

NodeList Placement::plain_list(ShardNo shard) const {
  NodeList list;
  for (const std::size_t i : rank(shard)) {
    if (list.size() == shape_.replication || !list.push(members_[i].node)) break;
  }
  return list;
}

bool Placement::place_by_rank() {
  // How many pages each may be home to, and hold at all, when every member takes its share and no more.
  std::uint64_t weights = 0;
  for (const NodeCapacity& m : members_) weights += weight_of(m.weight);
  std::vector<std::int64_t> home_room;
  std::vector<std::int64_t> copy_room;
  std::vector<std::uint64_t> room;
  const std::uint64_t block = shape_.block_pages;
  for (const NodeCapacity& m : members_) {
    const Wide share = static_cast<Wide>(shape_.pages) * weight_of(m.weight);
    const auto blocks_up = [&](Wide pages) {
      return static_cast<std::int64_t>((pages + weights * block - 1) / (static_cast<Wide>(weights) * block) * block);
    };
    home_room.push_back(blocks_up(share));
    copy_room.push_back(blocks_up(share * shape_.replication));
    room.push_back(m.free_bytes / shape_.page_bytes);
  }

  for (std::size_t n = 0; n < used_.size(); ++n) {
    Shard& shard = shards_[n];
    const auto need = static_cast<std::int64_t>(shard.pages);
    const std::vector<std::size_t> order = rank(ShardNo{used_[n]});
    shard.in_sync = {};
    while (shard.in_sync.size() < shape_.replication) {
      const bool home = shard.in_sync.empty();
      std::optional<std::size_t> chosen;
      std::optional<std::size_t> roomiest;  // When nobody is within its share: who is least over it.
      for (const std::size_t i : order) {
        if (room[i] < shard.pages || shard.in_sync.contains(members_[i].node)) continue;
        if (copy_room[i] >= need && (!home || home_room[i] >= need)) {
          chosen = i;
          break;
        }
        const auto& shares = home ? home_room : copy_room;
        if (!roomiest || shares[i] > shares[*roomiest]) roomiest = i;
      }
      if (!chosen) chosen = roomiest;
      if (!chosen) return false;
      room[*chosen] -= shard.pages;
      copy_room[*chosen] -= need;
      if (home) home_room[*chosen] -= need;
      if (!shard.in_sync.push(members_[*chosen].node)) return false;
    }
  }
  return true;
}

/// When memory is too tight for order: the largest shards first, each to the members with most room.
bool Placement::place_by_room() {
  std::vector<std::size_t> by_size(shards_.size());
  for (std::size_t i = 0; i < by_size.size(); ++i) by_size[i] = i;
  std::stable_sort(by_size.begin(), by_size.end(),
                   [&](std::size_t a, std::size_t b) { return shards_[a].pages > shards_[b].pages; });
  std::vector<std::uint64_t> room;
  for (const NodeCapacity& m : members_) room.push_back(m.free_bytes / shape_.page_bytes);
  for (const std::size_t n : by_size) {
    Shard& shard = shards_[n];
    std::vector<std::size_t> order = rank(ShardNo{used_[n]});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return room[a] > room[b]; });
    shard.in_sync = {};
    for (std::uint32_t copy = 0; copy < shape_.replication; ++copy) {
      if (room[order[copy]] < shard.pages) return false;
      room[order[copy]] -= shard.pages;
      if (!shard.in_sync.push(members_[order[copy]].node)) return false;
    }
  }
  return true;
}

std::optional<Placement> Placement::create(Shape shape, std::vector<NodeCapacity> members) {
  HOLO_ASSERT(!members.empty() && members.size() >= shape.replication && shape.pages > 0);
  Placement p(shape, std::move(members));
  if (!p.place_by_rank() && !p.place_by_room()) return std::nullopt;
  return p;
}

Placement Placement::plain(Shape shape, std::vector<NodeCapacity> members) {
  Placement p(shape, std::move(members));
  for (std::size_t n = 0; n < p.used_.size(); ++n) p.shards_[n].in_sync = p.plain_list(ShardNo{p.used_[n]});
  return p;
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
