// The replicated state of a cluster: nodes, epochs, regions, placement, and the page directory. Every agent applies the
// same log to its own copy, so all copies are equal, byte for byte (snapshot()). No clock, no randomness, no floating
// point in decisions.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"
#include "base/time.h"
#include "core/control/directory.h"
#include "core/control/keyspace.h"
#include "core/control/leases.h"
#include "core/control/moves.h"
#include "core/control/node_info.h"
#include "core/control/placement.h"
#include "core/control/session.h"
#include "core/control/shard_table.h"
#include "env/command_log.h"
#include "wire/control.pb.h"

namespace holo::control {

enum class NodeState : std::uint8_t { alive = 1, dead = 2, left = 3 };
/// "alive", "dead", "left".
std::string_view node_state_name(NodeState s);

struct NodeRecord {
  NodeId id;
  std::string name;
  std::vector<std::string> addresses;  ///< "host:port", to be tried in this order.
  std::uint32_t cores = 0;
  std::uint64_t memory_bytes = 0;  ///< Offered for page frames; also its weight in placement.
  double speed = 0;
  std::string version;
  NodePlace place;                ///< Zone, host, rack, labels.
  bool witness = false;           ///< Votes, holds no pages, runs no tasks.
  std::uint64_t incarnation = 0;  ///< Grows with every start of that agent.
  NodeState state = NodeState::alive;
  bool voter = false;
  bool draining = false;                         ///< Takes no new shards; its last copies get a second node.
  WallTime since;                                ///< When it entered `state`.
  std::string inventory;                         ///< A wire::SignedInventory, checked; empty: not known yet.
  std::int64_t inventory_ms = 0;                 ///< When it was taken, as the node says.
  std::uint64_t reserved_bytes = 0;              ///< Pages of regions assigned here, whether written or not.
  std::uint32_t weight_permille = kWholeWeight;  ///< Of what its memory (or score) would give it. 1 to kMaxWeight.

  static constexpr std::uint32_t kWholeWeight = 1000, kMaxWeight = 100'000;

  [[nodiscard]] bool alive() const { return state == NodeState::alive; }
  /// Gets new shards.
  [[nodiscard]] bool takes_shards() const { return alive() && !draining && !witness; }
};

struct RegionRecord {
  RegionId id;
  std::string name;
  std::string type;  ///< "u64", "f64", "bytes", "struct:SIZE", ...
  std::uint32_t element_bytes = 0;
  std::uint64_t count = 0;
  std::uint64_t bytes = 0;  ///< count * element_bytes
  std::uint64_t page_bytes = 0;
  std::uint64_t pages = 0;  ///< The last one may be cut by `bytes`; it still takes a whole page.
  std::string mode;         ///< "phased"
  std::uint32_t replication = 1;
  std::uint32_t owner_uid = 0;
  std::uint64_t block_pages = 1;  ///< A power of two. Block b is pages [b * block_pages, (b + 1) * block_pages).
  std::uint64_t blocks = 0;
  Version version;  ///< Commits so far.
  WallTime created;
};

/// Called while an entry is applied, in the order registered, with the state already changed. On every node alike.
/// Must not propose synchronously and must not block. Thread: loop.
class StateObserver {
 public:
  virtual ~StateObserver() = default;
  /// `version` of `region` was made by `txn`; it wrote `pages` (ascending, disjoint; empty for a bump).
  virtual void on_commit(RegionId region, Version version, TxnId txn, std::span<const PageRange> pages) = 0;
  virtual void on_region_created(RegionId region) = 0;
  /// The region is no longer in the state.
  virtual void on_region_freed(RegionId region) = 0;
  /// A node joined, died, returned, left or changed; lists of shards may have changed too. `epoch` is the one from now
  /// on.
  virtual void on_nodes_changed(Epoch epoch, NodeId node) = 0;
  /// Shards got or lost in-sync nodes or targets to fill without a change of the epoch.
  virtual void on_placement_changed(RegionId region) = 0;
  /// Keys of the key-value service were written or deleted, those of locks included (KeySpace::for_each_since).
  virtual void on_keys_changed() {}
  /// The whole state was replaced (a snapshot): forget what was derived from it and look again.
  virtual void on_restored() = 0;
};

/// Checks a signed inventory, and gives when it was taken, in ms. The same on every node: a function of its arguments.
using InventoryCheck = Result<std::int64_t> (*)(NodeId node, ByteSpan signed_inventory);

/// See the file comment. Not copyable; moving is not needed. Thread: one at a time.
class State {
 public:
  State();
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  // ---- Changing it: only by the log.

  /// Applies one entry. Bytes that do not decode change nothing and give `malformed`; any command gives a result, never
  /// a crash.
  wire::CommandResult apply(LogIndex index, WallTime when, ByteSpan command);
  /// The result of an earlier command of that client; nullopt when it was not applied, or is below its `outstanding`.
  std::optional<wire::CommandResult> result_of(NodeId client, std::uint64_t incarnation, std::uint64_t sequence) const;
  /// The whole state; equal states give equal bytes. Cost: O(regions + written ranges).
  Bytes snapshot() const;
  /// Replaces everything; no bytes: the state before the first entry. Error: `corrupt`; the state is then as before.
  Status restore(LogIndex index, ByteSpan snapshot);
  /// The same as streams (state_stream.cc): what the keys are is read and put together piece by piece. Both end with
  /// the state.
  std::unique_ptr<env::StateCut> cut();
  std::unique_ptr<env::StateLoad> load();

  /// Before the first entry. Without it no inventory is taken.
  void set_inventory_check(InventoryCheck check) { inventory_check_ = check; }
  void add_observer(StateObserver* observer) { observers_.push_back(observer); }

  // ---- Cluster and nodes.

  [[nodiscard]] ClusterId cluster() const { return cluster_; }  ///< 0 before ClusterInit.
  [[nodiscard]] const std::string& cluster_name() const { return name_; }
  [[nodiscard]] Epoch epoch() const { return epoch_; }
  [[nodiscard]] LogIndex applied() const { return applied_; }
  [[nodiscard]] WallTime now() const { return now_; }  ///< The time of the last entry; never goes back.
  [[nodiscard]] const std::map<NodeId, NodeRecord>& nodes() const { return nodes_; }
  /// Null when unknown. A node that left stays known (state `left`) until it joins anew.
  [[nodiscard]] const NodeRecord* node(NodeId id) const;
  /// True when `id` is alive under exactly this incarnation.
  [[nodiscard]] bool alive(NodeId id, std::uint64_t incarnation) const;
  [[nodiscard]] std::vector<NodeId> live_nodes() const;
  /// Another member than `id` has that name.
  [[nodiscard]] bool name_taken(const std::string& name, NodeId id) const;
  [[nodiscard]] std::size_t live_count() const { return live_count_; }
  /// Live nodes that may hold pages and run tasks: all but witnesses, ascending.
  [[nodiscard]] std::vector<NodeId> live_holders() const;
  [[nodiscard]] std::size_t holder_count() const { return holder_count_; }
  /// Nodes that may never take part again, and since when.
  [[nodiscard]] const std::map<NodeId, WallTime>& revoked() const { return revoked_; }

  /// Forged, or otherwise not what its node signed; counted by this copy of the state only.
  [[nodiscard]] std::uint64_t inventories_refused() const { return inventories_refused_; }

  // ---- Regions. Unknown regions: null, nullopt, 0 or nothing visited.

  [[nodiscard]] const RegionRecord* region(RegionId id) const;
  [[nodiscard]] const RegionRecord* region_by_name(std::string_view name) const;
  [[nodiscard]] std::vector<RegionId> regions() const;  ///< By id.
  /// Pages by home node, ascending by node; nodes without pages are left out.
  [[nodiscard]] std::vector<std::pair<NodeId, std::uint64_t>> pages_by_node(RegionId id) const;

  // ---- Placement. Cost of each: a hash and a lookup.

  [[nodiscard]] ShardNo shard_of(RegionId region, PageNo page) const;
  /// Where writers stage and readers ask first. May be dead: then it is the sole holder. 0: no such region or page, or
  /// its last holder was made to leave and no node has room.
  [[nodiscard]] NodeId home(RegionId region, PageNo page) const;
  /// The in-sync nodes, home first. All alive, or exactly one that is dead (the sole holder).
  [[nodiscard]] NodeList replicas(RegionId region, PageNo page) const;
  /// The node that alone holds the page, when it is dead: the page cannot be had until it returns. 0 otherwise.
  [[nodiscard]] NodeId sole_holder(RegionId region, PageNo page) const;
  /// The node that is being filled for this page's shard, 0 when none. Stages must go there too.
  [[nodiscard]] NodeId filling(RegionId region, PageNo page) const;
  /// Copies that a commit of this region needs now: min(replication, live nodes), at least 1.
  [[nodiscard]] std::uint32_t wanted_copies(RegionId region) const;

  struct ShardView {
    RegionId region;
    ShardNo shard;
    NodeList in_sync;
    NodeId filling;
    std::uint64_t pages = 0;
    NodeList target;  ///< Where the plan wants it, home first; empty: as it is.
    NodeId unproven;  ///< In sync, and still to say that it lacks nothing (ShardsWhole).
    std::uint64_t serial = 0;
    bool written = false;
    [[nodiscard]] bool moving() const { return filling || unproven || (!target.empty() && !(target == in_sync)); }
  };
  /// Every shard of the region that has pages, ascending.
  void for_each_shard(RegionId region, const std::function<void(const ShardView&)>& f) const;
  /// Every shard of every region that has a node to fill.
  void for_each_fill(const std::function<void(const ShardView&)>& f) const;
  /// Every shard of every region that is not where the plan wants it, by region and shard.
  void for_each_move(const std::function<void(const ShardView&)>& f) const;
  /// Those of one region.
  void for_each_move(RegionId region, const std::function<void(const ShardView&)>& f) const;
  [[nodiscard]] std::size_t moves_left() const { return moves_.size(); }
  /// One shard; nullopt when the region has no page in it.
  [[nodiscard]] std::optional<ShardView> shard_view(RegionId region, ShardNo shard) const;

  /// The cluster's table: live nodes that take shards.
  [[nodiscard]] const ShardTable& table() const { return table_; }
  /// The ring of a class; `memory` is table(). Nodes without any of it are left out. Cost: n * 4096 scores.
  [[nodiscard]] ShardTable ring(ResourceClass c) const;
  /// What `n` weighs in the ring of a class. 0: it has nothing of it.
  [[nodiscard]] std::uint64_t ring_weight(const NodeRecord& n, ResourceClass c) const;
  [[nodiscard]] bool weighs_by_score() const { return by_score_; }
  /// Written pages that only `node` has, by region.
  struct LastCopies {
    RegionId region;
    std::uint64_t pages = 0;  ///< Of the shards of which some page was written.
    bool nowhere = false;     ///< The plan has no other node for some of them.
  };
  [[nodiscard]] std::vector<LastCopies> last_copies(NodeId node) const;
  /// Nothing lies on `node` or is on its way there.
  [[nodiscard]] bool is_empty(NodeId node) const;
  /// Pairs of a home and a node that it cannot reach, as the homes say.
  [[nodiscard]] const CutPaths& cut_paths() const { return cut_paths_; }
  /// Every block, ascending, with its pages and its home: how a job is split.
  void for_each_block(RegionId region, const std::function<void(PageRange pages, NodeId home)>& f) const;
  /// The blocks of one shard as page ranges, ascending. Cost: O(blocks of the region).
  [[nodiscard]] std::vector<PageRange> pages_of_shard(RegionId region, ShardNo shard) const;

  // ---- Page directory.

  /// The version that last wrote the page; 0: never written, all zero.
  [[nodiscard]] Version version_of(RegionId region, PageNo page) const;
  /// Written pages, ascending, joined where neighbours have one version.
  void for_each_written(RegionId region, const std::function<void(PageRange, Version)>& f) const;
  /// Pages of `within` that a version > `since` wrote, ascending.
  void for_each_written_since(RegionId region, Version since, PageRange within,
                              const std::function<void(PageRange, Version)>& f) const;

  // ---- The key-value service.

  [[nodiscard]] const KeySpace& keys() const { return keys_; }
  [[nodiscard]] const Leases& leases() const { return leases_; }

 private:
  struct Region {
    RegionRecord record;
    Placement placement;
    Directory directory;
  };

  wire::CommandResult dispatch(const wire::Command& command);
  wire::CommandResult cluster_init(const wire::ClusterInit& c);
  wire::CommandResult node_join(const wire::NodeJoin& c);
  wire::CommandResult node_alive(const wire::NodeAlive& c);
  wire::CommandResult node_dead(const wire::NodeDead& c);
  wire::CommandResult node_leave(const wire::NodeLeave& c);
  wire::CommandResult node_revoke(const wire::NodeRevoke& c);
  wire::CommandResult node_update(const wire::NodeUpdate& c);
  wire::CommandResult node_inventory(const wire::NodeInventory& c);
  wire::CommandResult create_region(const wire::CreateRegion& c);
  wire::CommandResult free_region(const wire::FreeRegion& c);
  wire::CommandResult commit(const wire::CommitTxns& c);
  wire::CommandResult shards_copied(const wire::ShardsCopied& c);
  wire::CommandResult shards_whole(const wire::ShardsWhole& c);
  wire::CommandResult path_changed(const wire::PathChanged& c);
  wire::CommandResult node_drain(const wire::NodeDrain& c);
  wire::CommandResult node_remove(const wire::NodeRemove& c);
  wire::CommandResult weigh_nodes(const wire::WeighNodes& c);
  wire::CommandResult kv_txn(const wire::KvTxn& c);
  wire::CommandResult restore_part(const wire::RestorePart& c);
  /// Begins from what another cluster has kept, as this one, with this one's only node.
  Status begin_from(ByteSpan snapshot);
  wire::CommandResult lease_grant(const wire::LeaseGrant& c);
  wire::CommandResult lock_acquire(const wire::LockAcquire& c);
  wire::TxnResult commit_one(const wire::TxnCommit& t);

  /// Not reserved by any region, of each node of table().
  [[nodiscard]] std::vector<std::uint64_t> free_bytes() const;
  void reserve(NodeId node, std::uint64_t bytes);
  void release(NodeId node, std::uint64_t bytes);
  void reserve(const Placement& p, const Placement::Shard& s);
  void release(const Placement& p, const Placement::Shard& s);
  /// Takes the node out of every in-sync list that has another node, and out of every fill.
  void end_incarnation(NodeId node);
  void drop_cut_off(Placement::Shard& s) const;
  /// Plans the region anew. Only with a new epoch: homes change, and what was staged under the old epoch is then void.
  void settle(Region& region, Planner& planner, const std::vector<NodeId>& alive);
  void settle_all();
  /// Whether some shard has fewer holders, or will have, than the region asks for and the nodes could give.
  [[nodiscard]] bool short_of_copies(const Region& region) const;
  /// Puts what is in sync in the plan's order, lets go of what is not in the plan once all of it is in sync.
  void arrange(const Placement& p, Placement::Shard& s);
  /// Names nodes to fill, up to limits::kMovesPerNode for each; shards that are short of copies first.
  void start_moves(std::set<RegionId>& changed);
  Placement::Shard* find_move(const wire::ShardMove& m, Region*& region);
  void track(RegionId region, ShardNo shard, Placement::Shard& s);
  void placement_changed(const std::set<RegionId>& regions);
  void count_nodes();
  /// Moves the epoch, settles every region, and tells the observers.
  void nodes_changed(NodeId node);
  /// What a node says of itself; a name that another member has it does not get.
  void take_info(NodeRecord& n, const wire::NodeInfo& info);
  /// What keeps the node from leaving.
  [[nodiscard]] Status may_leave(NodeId node) const;
  /// What keeps the voters from doing without it.
  [[nodiscard]] Status may_lose_vote(const NodeRecord& n) const;
  [[nodiscard]] Status may_drain(const NodeRecord& n, bool force) const;
  void add_lost(NodeId node, wire::CommandResult& result) const;
  static ShardTable ring_of(const std::map<NodeId, NodeRecord>& nodes, ResourceClass c, bool by_score);
  /// It is no longer a member; what it alone had is given up, or has been handed over.
  void remove_member(NodeRecord& n);
  [[nodiscard]] const Region* find(RegionId id) const;
  [[nodiscard]] std::vector<RegionId> region_ids() const;

  enum class Keys : std::uint8_t { all, none };
  [[nodiscard]] wire::ControlSnapshot describe(Keys with) const;
  /// restore(), but nobody is told.
  Status replace(LogIndex index, ByteSpan snapshot);
  Status replace(LogIndex index, const wire::ControlSnapshot& in, KeySpace keys);
  void tell_restored();

  friend struct SnapshotReader;
  friend class StreamCut;
  friend class StreamLoad;

  ClusterId cluster_;
  std::string name_;
  Epoch epoch_;
  LogIndex applied_;
  WallTime now_;
  std::uint64_t next_region_ = 1;
  std::map<NodeId, NodeRecord> nodes_;
  std::map<NodeId, WallTime> revoked_;
  std::size_t live_count_ = 0;
  std::size_t holder_count_ = 0;  ///< Live nodes that are no witnesses.
  std::size_t taker_count_ = 0;   ///< Those of them that do not drain.
  std::unordered_map<RegionId, std::unique_ptr<Region>> regions_;
  std::map<std::string, RegionId, std::less<>> names_;
  ShardTable table_;                                    ///< A function of nodes_.
  std::set<std::pair<RegionId, std::uint16_t>> moves_;  ///< Shards that are moving().
  CutPaths cut_paths_;
  std::uint64_t move_serial_ = 0;
  bool by_score_ = false;
  KeySpace keys_;
  Leases leases_;
  InventoryCheck inventory_check_ = nullptr;
  std::uint64_t inventories_refused_ = 0;
  std::string restoring_;  ///< Parts of a state to begin from.
  std::map<NodeId, Session> sessions_;
  std::vector<StateObserver*> observers_;
};

}  // namespace holo::control
