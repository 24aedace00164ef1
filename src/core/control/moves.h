// The plan of moves: who is to hold each shard of a region, given who holds it and who takes part. A region follows the
// one table within bounds (after Mirrokni, Thorup & Zadimoghaddam 2018): each node about its share, and never more than
// it has room for. What can stay stays: a shard moves only when its holder may no longer hold it, when a backup lies
// too close to another copy, or towards a node that is short of its share.
#pragma once

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "core/control/placement.h"
#include "core/control/shard_table.h"

namespace holo::control {

/// Pairs of a home and a node that the home cannot reach, though both are alive: nothing is moved along them.
using CutPaths = std::set<std::pair<NodeId, NodeId>>;

/// Plans for one region after the other; what each takes is no longer free for the next.
class Planner {
 public:
  /// `table`: the nodes that take shards. `free_bytes`: of each, in the order of table.nodes(), not reserved by any
  /// region. All outlive this.
  Planner(const ShardTable& table, const CutPaths& cut, std::vector<std::uint64_t>& free_bytes)
      : table_(table), cut_(cut), free_(free_bytes) {}

  /// Targets for a region that nobody holds: within the free bytes and as near to the shares as whole shards allow.
  /// False when they do not suffice; the targets then mean nothing. At least as many nodes as the replication.
  bool create(Placement& p);

  /// Targets for what is held. Shards whose only holders cannot be read (`in_sync` not empty, and `readable` false for
  /// them) get none. Cost: the region's shards, n log n for each that has to move.
  struct Readable {
    const std::vector<NodeId>& alive;  ///< Ascending.
    [[nodiscard]] bool operator()(NodeId id) const;
  };
  void replan(Placement& p, const Readable& readable);

 private:
  struct Load {
    std::vector<std::int64_t> home, copy;              // pages, as planned
    std::vector<std::int64_t> home_share, copy_share;  // pages
    std::int64_t block = 1;
  };
  void begin(const Placement& p);
  [[nodiscard]] std::int64_t bound(std::int64_t share) const;
  void count(const NodeList& list, std::int64_t pages, std::int64_t sign);
  [[nodiscard]] unsigned nearness(std::size_t node, const NodeList& list, NodeId except) const;
  /// Of all pairs of copies together.
  [[nodiscard]] unsigned nearness(const NodeList& list) const;
  [[nodiscard]] NodeList with_home(ShardNo shard, const NodeList& list, NodeId home) const;
  /// It has the shard, or room for it and a way to get it.
  [[nodiscard]] bool can_take(std::size_t node, const Placement::Shard& s, std::uint64_t bytes) const;
  [[nodiscard]] std::size_t choose(ShardNo shard, const Placement::Shard& s, const NodeList& list,
                                   std::uint64_t bytes) const;
  void take(std::size_t node, const Placement::Shard& s, std::uint64_t bytes);
  void give_back(NodeId node, const Placement::Shard& s, std::uint64_t bytes);
  void fill_up(const Placement& p, ShardNo shard, Placement::Shard& s);
  void spread(const Placement& p, ShardNo shard, Placement::Shard& s);
  bool create_by_room(Placement& p);
  void even(Placement& p);
  enum class Only : std::uint8_t { outranked, overloaded };
  void even_homes(Placement& p, const std::vector<std::size_t>& takers, Only which);
  void even_copies(Placement& p, const std::vector<std::size_t>& takers, Only which);
  [[nodiscard]] std::vector<std::size_t> short_of(const std::vector<std::int64_t>& load,
                                                  const std::vector<std::int64_t>& share) const;

  const ShardTable& table_;
  const CutPaths& cut_;
  std::vector<std::uint64_t>& free_;
  std::size_t copies_ = 1;
  Load load_;
};

}  // namespace holo::control
