#include "core/control/shard_table.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <unordered_map>

#include "base/assert.h"
#include "base/random.h"

namespace holo::control {
namespace {

using Wide = unsigned __int128;

/// -log2(hash / 2^64) in 1/2^32, by squaring bit for bit: the C library's log may differ from machine to machine.
std::uint64_t minus_log2(std::uint64_t hash) {
  hash |= 1;
  const int top = 63 - std::countl_zero(hash);
  std::uint64_t mantissa = hash << (63 - top);  // [1, 2) as 1.63
  std::uint64_t fraction = 0;
  for (int bit = 0; bit < 32; ++bit) {
    const Wide square = static_cast<Wide>(mantissa) * mantissa;  // 2.126; without a branch, which nobody can predict.
    const auto one = static_cast<unsigned>(square >> 127);
    fraction = fraction << 1 | one;
    mantissa = static_cast<std::uint64_t>(square >> (63 + one));
  }
  const std::uint64_t log = (static_cast<std::uint64_t>(top) << 32) | fraction;
  return std::max<std::uint64_t>((std::uint64_t{64} << 32) - log, 1);
}

}  // namespace

// ---- NodeList

bool NodeList::contains(NodeId id) const { return std::find(begin(), end(), id) != end(); }

bool NodeList::push(NodeId id) {
  if (size_ == kMax) return false;
  nodes_[size_++] = id;
  return true;
}

void NodeList::push_front(NodeId id) {
  if (size_ < kMax) ++size_;
  std::copy_backward(nodes_.begin(), nodes_.begin() + size_ - 1, nodes_.begin() + size_);
  nodes_[0] = id;
}

void NodeList::erase(NodeId id) {
  const auto stop = std::remove(nodes_.begin(), nodes_.begin() + size_, id);
  std::fill(stop, nodes_.begin() + size_, NodeId{});
  size_ = static_cast<std::uint8_t>(stop - nodes_.begin());
}

bool operator==(const NodeList& a, const NodeList& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

// ---- The table

std::string_view resource_class_name(ResourceClass c) {
  switch (c) {
    case ResourceClass::memory: return "memory";
    case ResourceClass::cpu: return "cpu";
    case ResourceClass::gpu: return "gpu";
    case ResourceClass::disk: return "disk";
  }
  return "unknown";
}

unsigned closeness(const RingNode& a, const RingNode& b) {
  if (!a.host.empty() && a.host == b.host) return 2;
  return !a.zone.empty() && a.zone == b.zone ? 1 : 0;
}

bool Score::before(const Score& other) const {
  const Wide mine = static_cast<Wide>(weight) * other.cost;
  const Wide theirs = static_cast<Wide>(other.weight) * cost;
  return mine != theirs ? mine > theirs : node < other.node;
}

std::uint64_t rendezvous_cost(ShardNo shard, NodeId node) {
  return minus_log2(mix64(mix64(node.value) ^ mix64(shard.value + 0x9E3779B97F4A7C15ULL)));
}

/// A function of the node alone, so all tables share them: those before and after a change, and those of all the nodes
/// that a process simulates.
std::shared_ptr<const ShardTable::Costs> ShardTable::costs_of(NodeId node) {
  thread_local std::unordered_map<NodeId, std::weak_ptr<const Costs>> in_use;
  std::weak_ptr<const Costs>& known = in_use[node];
  if (auto costs = known.lock()) return costs;
  std::shared_ptr<Costs> costs = std::make_unique<Costs>();  // Not make_shared: what is expired would keep its bytes.
  for (std::uint16_t s = 0; s < limits::kShards; ++s) (*costs)[s] = rendezvous_cost(ShardNo{s}, node);
  known = costs;
  if (in_use.size() > 2 * limits::kMaxNodes) std::erase_if(in_use, [](const auto& of) { return of.second.expired(); });
  return costs;
}

ShardTable::ShardTable(std::vector<RingNode> nodes) : nodes_(std::move(nodes)) {
  costs_.reserve(nodes_.size());
  for (RingNode& n : nodes_) {
    n.weight = std::clamp<std::uint64_t>(n.weight, 1, std::uint64_t{1} << 40);
    total_weight_ += n.weight;
    costs_.push_back(costs_of(n.id));
  }
}

std::size_t ShardTable::find(NodeId id) const {
  const auto it = std::lower_bound(nodes_.begin(), nodes_.end(), id,
                                   [](const RingNode& n, NodeId wanted) { return n.id < wanted; });
  return it == nodes_.end() || it->id != id ? npos : static_cast<std::size_t>(it - nodes_.begin());
}

std::vector<std::size_t> ShardTable::order(ShardNo shard) const {
  std::vector<std::size_t> out(nodes_.size());
  std::iota(out.begin(), out.end(), std::size_t{0});
  std::sort(out.begin(), out.end(),
            [&](std::size_t a, std::size_t b) { return score(shard, a).before(score(shard, b)); });
  return out;
}

NodeList ShardTable::list(ShardNo shard, std::size_t copies) const {
  NodeList out;
  std::array<std::size_t, NodeList::kMax> chosen{};
  while (out.size() < std::min({copies, nodes_.size(), NodeList::kMax})) {
    std::size_t best = npos;
    unsigned best_near = 3;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      if (out.contains(nodes_[i].id)) continue;
      unsigned near = 0;
      for (std::size_t k = 0; k < out.size(); ++k) near = std::max(near, closeness(nodes_[i], nodes_[chosen[k]]));
      const bool better = near < best_near || (near == best_near && score(shard, i).before(score(shard, best)));
      if (!better) continue;
      best = i;
      best_near = near;
    }
    chosen[out.size()] = best;
    HOLO_ASSERT(out.push(nodes_[best].id));
  }
  return out;
}

}  // namespace holo::control
