// Which nodes hold which pages of a region. Pages form blocks, blocks hash to the cluster's shards (shard_table.h);
// what stands here is who holds each shard now, and who is to hold it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/limits.h"
#include "core/control/directory.h"
#include "core/control/node_list.h"

namespace holo::control {

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
    NodeList in_sync;          ///< Hold every committed page; the first is the home.
    NodeList target;           ///< Who is to hold it, home first. Empty: nobody better can, it stays as it is.
    NodeId filling;            ///< Is being given the pages.
    NodeId unproven;           ///< In sync, and looks whether it lacks what was staged without it.
    std::uint64_t serial = 0;  ///< Of the move of `filling` or `unproven`.
    std::uint64_t pages = 0;
    bool written = false;  ///< Some page of it has a version above 0: only then is there anything to lose or to copy.
    Version lost;          ///< Pages with a version up to this one nobody has any more: their last holder was removed.
    /// Not where the plan wants it.
    [[nodiscard]] bool moving() const { return filling || unproven || (!target.empty() && !(target == in_sync)); }
    /// Has its bytes reserved on `node`.
    [[nodiscard]] bool reserved_on(NodeId node) const { return in_sync.contains(node) || target.contains(node); }
  };

  /// Pages per block for a region of `pages` pages over `members` nodes: many blocks per member, at most 4 MiB each.
  static std::uint64_t choose_block_pages(std::uint64_t pages, std::uint64_t page_bytes, std::size_t members);

  /// Nobody holds anything yet.
  explicit Placement(Shape shape);

  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] ShardNo shard_of(PageNo page) const { return shard_of_block(page.value / shape_.block_pages); }
  [[nodiscard]] ShardNo shard_of_block(std::uint64_t block) const;
  /// Null when no block of the region falls into `shard`.
  [[nodiscard]] const Shard* shard(ShardNo shard) const;
  Shard* shard(ShardNo shard);
  /// Shards that have pages, ascending.
  [[nodiscard]] std::span<const std::uint16_t> used() const { return used_; }
  /// The shards of used(), in the same order.
  [[nodiscard]] std::span<const Shard> shards() const { return shards_; }
  std::span<Shard> shards() { return shards_; }
  [[nodiscard]] std::uint64_t bytes_of(const Shard& s) const { return s.pages * shape_.page_bytes; }
  /// Sets Shard::written for the shards of these pages. Cost: nothing once every shard is written.
  void mark_written(PageRange pages);

 private:
  Shape shape_;
  std::vector<std::uint16_t> used_;  ///< Ascending; as long as shards_.
  std::vector<Shard> shards_;
  std::size_t unwritten_ = 0;
};

}  // namespace holo::control
