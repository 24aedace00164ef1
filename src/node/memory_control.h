// What the memory service needs of the replicated state. node/control gives it (memory_control.cc adapts it); tests
// have a log of their own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/task.h"
#include "base/time.h"
#include "core/memory/types.h"

namespace holo::node {

using memory::PageSpan;

/// A region as created; nothing in it changes.
struct RegionShape {
  RegionId id;
  std::string name;
  std::uint64_t bytes = 0;
  std::uint64_t page_bytes = 0;
  std::uint64_t block_pages = 1;  ///< Pages of one block share a shard.
  std::uint32_t replication = 1;
  std::uint32_t owner_uid = 0;
  [[nodiscard]] std::uint64_t pages() const { return (bytes + page_bytes - 1) / page_bytes; }
};

/// Where a shard's pages live now. `in_sync[0]` is the home. `filling`: a node that is being given copies; 0: none.
/// `unproven`: one that is in sync since it was given them, and looks whether it lacks what was staged without it.
struct ShardCopies {
  std::vector<NodeId> in_sync;
  NodeId filling;
  NodeId unproven;
  std::uint64_t serial = 0;  ///< Of the move of `filling` or `unproven`.
  bool planned = true;       ///< False: it stays where it is, because nobody else can have it.
};

/// A step of a move: `node` has been given the shard, or lacks nothing of it.
struct ShardMove {
  RegionId region;
  ShardNo shard;
  NodeId node;
  std::uint64_t serial = 0;
};

/// One transaction in a commit command: what it wrote, and regions that move on without a write.
struct TxnCommit {
  struct Region {
    RegionId region;
    std::vector<PageSpan> pages;
  };
  TxnId txn;
  std::vector<Region> regions;
  std::vector<RegionId> bump_only;
};
struct RegionVersion {
  RegionId region;
  Version version;
  friend bool operator==(const RegionVersion&, const RegionVersion&) = default;
};

/// One committed (txn, region) as every node applies it, in log order.
struct CommitEvent {
  LogIndex index;
  TxnId txn;
  RegionId region;
  Version version;
  std::vector<PageSpan> pages;  ///< Empty: the version moved alone.
};

/// Called on the loop thread while the log is applied; observers do not block and do not propose from inside.
struct MemoryObserver {
  std::function<void(const RegionShape&)> on_region_created;
  std::function<void(RegionId)> on_region_freed;
  std::function<void(const CommitEvent&)> on_commit;
  /// A node died, left, came (back): placement and epoch may differ.
  std::function<void()> on_nodes_changed;
  /// Who holds shards of this region, or is to, has changed, and perhaps the epoch.
  std::function<void(RegionId)> on_placement_changed;
  /// The whole state was replaced by a snapshot of the log: everything known about regions is to be read anew.
  std::function<void()> on_restored;
};

/// Thread: loop. All queries answer from this node's applied state, without waiting.
class MemoryControl {
 public:
  virtual ~MemoryControl() = default;
  virtual void observe(MemoryObserver observer) = 0;

  [[nodiscard]] virtual NodeId self() const = 0;
  [[nodiscard]] virtual ClusterId cluster() const = 0;
  [[nodiscard]] virtual std::uint64_t incarnation() const = 0;
  [[nodiscard]] virtual LogIndex applied() const = 0;
  [[nodiscard]] virtual Epoch epoch() const = 0;
  [[nodiscard]] virtual bool alive(NodeId node) const = 0;
  /// The incarnation under which `node` is alive; 0 when it is not.
  [[nodiscard]] virtual std::uint64_t incarnation_of(NodeId node) const = 0;
  /// Those that may hold pages: no witnesses.
  [[nodiscard]] virtual std::vector<NodeId> live_nodes() const = 0;
  /// For messages; the hexadecimal id when unknown.
  [[nodiscard]] virtual std::string node_name(NodeId node) const = 0;

  [[nodiscard]] virtual std::vector<RegionId> regions() const = 0;
  [[nodiscard]] virtual std::optional<RegionShape> region(RegionId region) const = 0;
  [[nodiscard]] virtual Version newest(RegionId region) const = 0;
  /// The version that last wrote `page`; 0: never written.
  [[nodiscard]] virtual Version page_version(RegionId region, PageNo page) const = 0;
  /// Calls `f` for every run of written pages, ascending.
  virtual void for_each_written(RegionId region, const std::function<void(PageSpan, Version)>& f) const = 0;
  [[nodiscard]] virtual ShardNo shard_of(RegionId region, PageNo page) const = 0;
  [[nodiscard]] virtual ShardCopies copies(RegionId region, ShardNo shard) const = 0;
  /// The lowest snapshot of the region that anyone in the cluster may still read.
  [[nodiscard]] virtual Version floor(RegionId region) const = 0;

  /// Everything is to go from this node.
  [[nodiscard]] virtual bool draining() const = 0;

  /// Bytes of pages that regions have assigned to this node, written or not.
  [[nodiscard]] virtual std::uint64_t reserved_bytes() const = 0;

  /// Appends one Commit command; returns once it is applied here, with one result per txn. The whole call fails with
  /// `stale_epoch` when `epoch` is no longer current, or with what the log says (`no_quorum`, `deadline_exceeded`,
  /// ...).
  virtual Task<Result<std::vector<Result<std::vector<RegionVersion>>>>> commit(Epoch epoch, std::vector<TxnCommit> txns,
                                                                               Instant deadline) = 0;
  /// Shards of the region that have a node to fill, or one that has something to prove, ascending.
  [[nodiscard]] virtual std::vector<std::pair<ShardNo, ShardCopies>> moves(RegionId region) const = 0;
  /// By the home: these nodes have been given every committed page. They are in sync then, under another epoch.
  virtual Task<Status> shards_copied(std::vector<ShardMove> moves, Instant deadline) = 0;
  /// By the node: it lacks nothing of these shards, so whom it replaces may go.
  virtual Task<Status> shards_whole(std::vector<ShardMove> moves, Instant deadline) = 0;
  /// Live nodes that this one has said it cannot reach.
  [[nodiscard]] virtual std::vector<NodeId> cut_off() const = 0;
  /// Says that this node cannot reach `to`, or can again. Under another epoch copies then take other ways.
  virtual Task<Status> path_changed(NodeId to, bool cut, Instant deadline) = 0;
};

class ControlService;
/// MemoryControl over the node's control state. `control` outlives it; made before the service's init, join or resume.
/// `remembered`: the cluster of the last run, which is what cluster() says until the log tells (that takes a quorum).
std::unique_ptr<MemoryControl> make_memory_control(ControlService& control, ClusterId remembered = {});

}  // namespace holo::node
