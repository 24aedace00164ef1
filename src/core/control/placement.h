// Which nodes hold which pages of a region. Pages form blocks, blocks hash to shards, and a shard's nodes come from
// weighted rendezvous hashing (Thaler & Ravishankar 1998; weights after Schindelhauer & Schomaker 2005) with bounded
// loads (Mirrokni, Thorup & Zadimoghaddam 2018). All integers: every node computes the same.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/limits.h"
#include "core/control/directory.h"

namespace holo::control {

/// A few nodes, without allocation. While a node drains, a shard has up to twice its replication.
class NodeList {
 public:
  static constexpr std::size_t kMax = 2 * limits::kMaxReplication;
  [[nodiscard]] const NodeId* begin() const { return nodes_.data(); }
  [[nodiscard]] const NodeId* end() const { return nodes_.data() + size_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] bool empty() const { return size_ == 0; }
  [[nodiscard]] NodeId operator[](std::size_t i) const { return nodes_[i]; }
  [[nodiscard]] bool contains(NodeId id) const;
  [[nodiscard]] bool push(NodeId id);  ///< False when full.
  void erase(NodeId id);               ///< Keeps the order of the others.
  friend bool operator==(const NodeList& a, const NodeList& b);

 private:
  std::array<NodeId, kMax> nodes_{};
  std::uint8_t size_ = 0;
};

struct NodeCapacity {
  NodeId node;
  std::uint64_t weight = 0;      ///< Its memory.
  std::uint64_t free_bytes = 0;  ///< Not reserved by any region.
};

/// Higher is nearer. Deterministic integer arithmetic. `weight` in bytes; 0 counts as 1 MiB.
class RendezvousScore {
 public:
  RendezvousScore(ShardNo shard, NodeId node, std::uint64_t weight);
  [[nodiscard]] bool before(const RendezvousScore& other) const;
  [[nodiscard]] NodeId node() const { return node_; }

 private:
  NodeId node_;
  std::uint64_t weight_;
  std::uint64_t cost_;  ///< -log2 of the hash, in 1/2^32.
};

/// The placement of one region.
class Placement {
 public:
  struct Shape {
    RegionId region;
    std::uint64_t pages = 0;
    std::uint64_t page_bytes = 0;
    std::uint64_t block_pages = 1;
    std::uint32_t replication = 1;
  };
  struct Shard {
    NodeList in_sync;
    NodeId filling;
    std::uint64_t pages = 0;
    bool written = false;  ///< Some page of it has a version above 0: only then is there anything to lose or to copy.
  };

  /// Pages per block for a region of `pages` pages over `members` nodes: many blocks per member, at most 4 MiB each.
  static std::uint64_t choose_block_pages(std::uint64_t pages, std::uint64_t page_bytes, std::size_t members);

  /// Places every shard on `members`, within their free bytes and as near to their shares as whole shards allow;
  /// nullopt when they do not suffice. Members: non-empty, ascending, no fewer than the replication.
  static std::optional<Placement> create(Shape shape, std::vector<NodeCapacity> members);
  /// The same lists as `create` would give without bounds; deviations are then put in by `set`.
  static Placement plain(Shape shape, std::vector<NodeCapacity> members);

  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] ShardNo shard_of(PageNo page) const { return shard_of_block(page.value / shape_.block_pages); }
  [[nodiscard]] ShardNo shard_of_block(std::uint64_t block) const;
  /// Null when no block of the region falls into `shard`.
  [[nodiscard]] const Shard* shard(ShardNo shard) const;
  Shard* shard(ShardNo shard);
  /// Shards that have pages, ascending.
  [[nodiscard]] std::span<const std::uint16_t> used() const { return used_; }
  /// The nodes (with weights) it was created on.
  [[nodiscard]] std::span<const NodeCapacity> members() const { return members_; }
  /// The list that plain rendezvous order of the members gives.
  [[nodiscard]] NodeList plain_list(ShardNo shard) const;
  [[nodiscard]] std::uint64_t bytes_of(const Shard& s) const { return s.pages * shape_.page_bytes; }
  /// Sets Shard::written for the shards of these pages. Cost: nothing once every shard is written.
  void mark_written(PageRange pages);

 private:
  Placement(Shape shape, std::vector<NodeCapacity> members);
  bool place_by_rank();
  bool place_by_room();
  /// Indexes into members_, nearest first.
  [[nodiscard]] std::vector<std::size_t> rank(ShardNo shard) const;

  Shape shape_;
  std::vector<NodeCapacity> members_;
  std::vector<std::uint16_t> used_;  ///< Ascending; as long as shards_.
  std::vector<Shard> shards_;
  std::size_t unwritten_ = 0;
};

}  // namespace holo::control
