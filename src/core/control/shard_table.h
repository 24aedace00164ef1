// The one table of shards: for each of limits::kShards, the nodes in the order of weighted rendezvous hashing (Thaler &
// Ravishankar 1998; weights after Schindelhauer & Schomaker 2005). All integers: every node computes the same. It is a
// pure function of who takes part, so nothing of it is stored, and a node that comes or goes changes only what is its
// own.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/limits.h"
#include "core/control/node_list.h"

namespace holo::control {

/// What a ring gives out: pages, tasks for processors, for accelerators, files.
enum class ResourceClass : std::uint8_t { memory, cpu, gpu, disk };
/// "memory", "cpu", "gpu", "disk".
std::string_view resource_class_name(ResourceClass c);

/// A node in a ring.
struct RingNode {
  NodeId id;
  std::uint64_t weight = 1;  ///< Its share is this over the sum; at most 2^40. 0 counts as 1.
  std::string zone;          ///< Empty: unknown, and then it is nobody else's zone.
  std::string host;          ///< The same.
};

/// How badly two copies of a page would lie on `a` and `b`: 0 apart, 1 in one zone, 2 on one host.
unsigned closeness(const RingNode& a, const RingNode& b);

/// Where a node stands for one shard. Nearer: the higher weight / cost.
struct Score {
  NodeId node;
  std::uint64_t weight = 1;
  std::uint64_t cost = 1;  ///< -log2(hash / 2^64) in 1/2^32.
  /// Ties go to the lower id.
  [[nodiscard]] bool before(const Score& other) const;
};
/// Cost: about 100 ns.
std::uint64_t rendezvous_cost(ShardNo shard, NodeId node);

class ShardTable {
 public:
  ShardTable() = default;
  /// `nodes`: ascending by id, none twice. Cost: that of the costs of nodes that are in no other table of this thread.
  explicit ShardTable(std::vector<RingNode> nodes);

  [[nodiscard]] const std::vector<RingNode>& nodes() const { return nodes_; }
  [[nodiscard]] std::size_t size() const { return nodes_.size(); }
  [[nodiscard]] std::uint64_t total_weight() const { return total_weight_; }
  /// Index of `id` in nodes(); npos when it takes no part.
  [[nodiscard]] std::size_t find(NodeId id) const;
  static constexpr std::size_t npos = ~std::size_t{0};

  [[nodiscard]] Score score(ShardNo shard, std::size_t node) const {
    return {nodes_[node].id, nodes_[node].weight, (*costs_[node])[shard.value]};
  }
  /// All nodes, nearest first, as indices. Cost: n log n.
  [[nodiscard]] std::vector<std::size_t> order(ShardNo shard) const;
  /// The home and the backups: the nearest node, then the nearest that share neither host nor zone with one before, as
  /// long as there are such. At most `copies`, and as many as there are nodes. A shorter list is a prefix of a longer.
  [[nodiscard]] NodeList list(ShardNo shard, std::size_t copies) const;

 private:
  using Costs = std::array<std::uint64_t, limits::kShards>;
  static std::shared_ptr<const Costs> costs_of(NodeId node);
  std::vector<RingNode> nodes_;
  std::vector<std::shared_ptr<const Costs>> costs_;
  std::uint64_t total_weight_ = 0;
};

}  // namespace holo::control
