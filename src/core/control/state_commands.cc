// What each command does to the state. Each either refuses and changes nothing, or does all it says.
#include <algorithm>

#include "base/seeded_bugs.h"
#include "base/strings.h"
#include "core/control/results.h"
#include "core/control/shape.h"
#include "core/control/state.h"

namespace holo::control {
namespace {

constexpr std::size_t kMaxClusterName = 128;
constexpr std::size_t kMaxRevoked = 4096;

wire::CommandResult revoked_refusal(NodeId id) {
  return refusal(Errc::permission_denied, str("node ", id, " was revoked"), "join as a new node, if you may");
}

TxnId txn_id(const wire::Txn& t) { return {NodeId{t.node()}, t.incarnation(), t.sequence()}; }

wire::TxnResult txn_refusal(Errc code, std::string message, bool retryable = false) {
  wire::TxnResult r;
  set_error(r.mutable_error(), Error{.code = code, .message = std::move(message), .retryable = retryable});
  return r;
}

}  // namespace

wire::CommandResult State::dispatch(const wire::Command& command) {
  const wire::CommandBody& body = command.body();
  if (!cluster_ && !body.has_cluster_init()) return refusal(Errc::refused, "there is no cluster yet");
  switch (body.kind_case()) {
    case wire::CommandBody::kClusterInit: return cluster_init(body.cluster_init());
    case wire::CommandBody::kNodeJoin: return node_join(body.node_join());
    case wire::CommandBody::kNodeAlive: return node_alive(body.node_alive());
    case wire::CommandBody::kNodeDead: return node_dead(body.node_dead());
    case wire::CommandBody::kNodeLeave: return node_leave(body.node_leave());
    case wire::CommandBody::kNodeUpdate: return node_update(body.node_update());
    case wire::CommandBody::kCreateRegion: return create_region(body.create_region());
    case wire::CommandBody::kFreeRegion: return free_region(body.free_region());
    case wire::CommandBody::kCommit: return commit(body.commit());
    case wire::CommandBody::kNodeRevoke: return node_revoke(body.node_revoke());
    case wire::CommandBody::kKv: return kv_txn(body.kv());
    case wire::CommandBody::kKvCompact: return done(keys_.compact(body.kv_compact().revision()));
    case wire::CommandBody::kLeaseGrant: return lease_grant(body.lease_grant());
    case wire::CommandBody::kLeaseKeep: return done(leases_.keep(body.lease_keep().lease(), now_));
    case wire::CommandBody::kLeaseEnd: return done(leases_.end(body.lease_end().lease(), keys_));
    case wire::CommandBody::kLeasesExpire: leases_.expire(now_, keys_); return {};
    case wire::CommandBody::kLeadershipBegun: leases_.extend(now_); return {};
    case wire::CommandBody::kLockAcquire: return lock_acquire(body.lock_acquire());
    case wire::CommandBody::kLockRelease: return done(leases_.release(body.lock_release(), keys_));
    case wire::CommandBody::kRestorePart: return restore_part(body.restore_part());
    case wire::CommandBody::kNodeInventory: return node_inventory(body.node_inventory());
    case wire::CommandBody::kShardsCopied: return shards_copied(body.shards_copied());
    case wire::CommandBody::kShardsWhole: return shards_whole(body.shards_whole());
    case wire::CommandBody::kPathChanged: return path_changed(body.path_changed());
    case wire::CommandBody::kNodeDrain: return node_drain(body.node_drain());
    case wire::CommandBody::kNodeRemove: return node_remove(body.node_remove());
    case wire::CommandBody::kWeighNodes: return weigh_nodes(body.weigh_nodes());
    case wire::CommandBody::kShardsFilled:  // Of earlier versions.
    case wire::CommandBody::KIND_NOT_SET: break;
  }
  return refusal(Errc::unsupported, "this version does not know the command");
}

// ---- Nodes

wire::CommandResult State::cluster_init(const wire::ClusterInit& c) {
  if (cluster_) return refusal(Errc::already_exists, str("the cluster ", name_, " exists already"));
  if (c.cluster() == 0 || c.name().size() > kMaxClusterName) {
    return refusal(Errc::invalid_argument, "a cluster needs an id, and a name of at most 128 bytes");
  }
  if (const Status ok = check_info(c.node()); !ok) return refusal(ok.error());
  cluster_ = ClusterId{c.cluster()};
  name_ = c.name();
  NodeRecord n;
  set_info(n, c.node());
  n.incarnation = c.node().incarnation();
  n.witness = c.node().witness();
  n.voter = true;
  n.since = now_;
  const NodeId id = n.id;
  nodes_[id] = std::move(n);
  nodes_changed(id);
  return {};
}

wire::CommandResult State::node_join(const wire::NodeJoin& c) {
  if (const Status ok = check_info(c.node()); !ok) return refusal(ok.error());
  const NodeId id{c.node().id()};
  if (revoked_.contains(id)) return revoked_refusal(id);
  if (!restoring_.empty()) return refusal(Errc::unavailable, "the cluster is being restored");
  const NodeRecord* known = node(id);
  if (known != nullptr && known->state != NodeState::left) {
    // A newcomer that lost its answer asks again; anything newer is a restart.
    return node_alive([&] {
      wire::NodeAlive a;
      *a.mutable_node() = c.node();
      return a;
    }());
  }
  for (const auto& [other, n] : nodes_) {
    if (other != id && n.state != NodeState::left && n.name == c.node().name()) {
      return refusal(Errc::already_exists,
                     str("a node named ", n.name, " is in the cluster already: node ", other,
                         n.addresses.empty() ? std::string() : " at " + n.addresses[0]),
                     "choose another --name");
    }
  }
  if (known == nullptr && nodes_.size() >= limits::kMaxNodes) {
    const auto gone =
        std::find_if(nodes_.begin(), nodes_.end(), [](const auto& n) { return n.second.state == NodeState::left; });
    if (gone == nodes_.end())
      return refusal(Errc::over_limit, str("a cluster has at most ", limits::kMaxNodes, " nodes"));
    sessions_.erase(gone->first);
    nodes_.erase(gone);
  }
  if (known != nullptr && c.node().incarnation() <= known->incarnation) {
    return refusal(Errc::refused, str("node ", id, " left under a later incarnation"));
  }
  NodeRecord n;
  set_info(n, c.node());
  n.incarnation = c.node().incarnation();
  n.witness = c.node().witness();
  n.since = now_;
  nodes_[id] = std::move(n);
  nodes_changed(id);
  return {};
}

bool State::name_taken(const std::string& name, NodeId id) const {
  return std::any_of(nodes_.begin(), nodes_.end(), [&](const auto& other) {
    return other.first != id && other.second.state != NodeState::left && other.second.name == name;
  });
}

void State::take_info(NodeRecord& n, const wire::NodeInfo& info) {
  const std::string before = n.name;
  set_info(n, info);
  if (name_taken(n.name, n.id)) n.name = before;
}

wire::CommandResult State::node_alive(const wire::NodeAlive& c) {
  if (const Status ok = check_info(c.node()); !ok) return refusal(ok.error());
  const NodeId id{c.node().id()};
  if (revoked_.contains(id)) return revoked_refusal(id);
  const auto it = nodes_.find(id);
  if (it == nodes_.end()) return refusal(Errc::not_found, str("node ", id, " is not a member"), "holo join");
  NodeRecord& n = it->second;
  if (n.state == NodeState::left) return refusal(Errc::refused, str("node ", id, " has left the cluster"), "holo join");
  const std::uint64_t incarnation = c.node().incarnation();
  if (incarnation == n.incarnation && n.alive()) return {};
  if (incarnation <= n.incarnation && !HOLO_SEEDED_BUG(dead_come_back)) {
    // Its transactions are fenced and its copies given to others: it may come back only as someone new.
    return refusal(Errc::refused, str("incarnation ", incarnation, " of node ", id, " is dead"));
  }
  if (n.alive()) end_incarnation(id);
  take_info(n, c.node());
  n.incarnation = incarnation;
  n.state = NodeState::alive;
  n.since = now_;
  nodes_changed(id);
  return {};
}

wire::CommandResult State::node_dead(const wire::NodeDead& c) {
  const NodeId id{c.node()};
  const auto it = nodes_.find(id);
  if (it == nodes_.end()) return refusal(Errc::not_found, str("node ", id, " is not a member"));
  NodeRecord& n = it->second;
  if (HOLO_SEEDED_BUG(death_twice) && !n.alive()) ++epoch_.value;
  if (!n.alive() || n.incarnation != c.incarnation()) return {};  // It has died, or come back, before.
  if (c.votes_size() != 0) {                                      // Entries of earlier releases have none.
    std::set<NodeId> votes;
    std::size_t voters = 0;
    for (const std::uint64_t v : c.votes()) votes.insert(NodeId{v});
    std::size_t counted = 0;
    for (const auto& [other, record] : nodes_) {
      if (!record.voter || record.state == NodeState::left) continue;
      ++voters;
      counted += votes.contains(other) ? 1 : 0;
    }
    if (counted * 2 <= voters) {
      return refusal(Errc::refused, str("only ", counted, " of ", voters, " voters hold node ", id, " for dead"));
    }
  }
  n.state = NodeState::dead;
  n.since = now_;
  end_incarnation(id);
  nodes_changed(id);
  return {};
}

wire::CommandResult State::node_leave(const wire::NodeLeave& c) {
  const NodeId id{c.node()};
  const auto it = nodes_.find(id);
  if (it == nodes_.end()) return refusal(Errc::not_found, str("node ", id, " is not a member"));
  NodeRecord& n = it->second;
  if (n.state == NodeState::left) return {};
  if (!c.force()) {
    if (const Status ok = may_leave(id); !ok) return refusal(ok.error());
  }
  wire::CommandResult result;
  add_lost(id, result);
  remove_member(n);
  return result;
}

void State::remove_member(NodeRecord& n) {
  const NodeId id = n.id;
  n.state = NodeState::left;
  n.draining = false;
  n.voter = false;
  n.since = now_;
  end_incarnation(id);
  // What it alone had, empty or given up, finds a new home when the regions settle.
  for (const RegionId region : region_ids()) {
    Placement& p = regions_[region]->placement;
    for (Placement::Shard& s : p.shards()) {
      release(p, s);
      s.in_sync.erase(id);
      s.target.erase(id);
      if (s.unproven == id) s.unproven = {};
      reserve(p, s);
    }
  }
  nodes_changed(id);
}

wire::CommandResult State::node_revoke(const wire::NodeRevoke& c) {
  const NodeId id{c.node()};
  if (!id) return refusal(Errc::invalid_argument, "a node without an id");
  if (revoked_.contains(id)) return {};
  if (revoked_.size() >= kMaxRevoked) {
    return refusal(Errc::over_limit, str("a cluster revokes at most ", kMaxRevoked, " nodes"),
                   "change the cluster's root or key instead");
  }
  const auto it = nodes_.find(id);
  const bool member = it != nodes_.end() && it->second.state != NodeState::left;
  if (member) {
    if (const Status ok = may_lose_vote(it->second); !ok) {
      Error e = ok.error();
      e.hint = "stop that agent with holo leave, or let a third node join first; then revoke it";
      return refusal(e);
    }
  }
  revoked_[id] = now_;
  if (member) {
    remove_member(it->second);
  } else {
    for (StateObserver* o : observers_) o->on_nodes_changed(epoch_, id);
  }
  return {};
}

wire::CommandResult State::node_update(const wire::NodeUpdate& c) {
  const NodeId id{c.node()};
  const auto it = nodes_.find(id);
  if (it == nodes_.end()) return refusal(Errc::not_found, str("node ", id, " is not a member"));
  NodeRecord& n = it->second;
  if (n.state == NodeState::left) return refusal(Errc::refused, str("node ", id, " has left the cluster"));
  if (c.has_info()) {
    if (const Status ok = check_info(c.info()); !ok) return refusal(ok.error());
    if (c.info().id() != c.node())
      return refusal(Errc::invalid_argument, "an update of one node with facts of another");
    take_info(n, c.info());
  }
  if (c.has_voter()) n.voter = c.voter();
  if (c.has_draining() && c.draining() != n.draining) {
    n.draining = c.draining();
    nodes_changed(id);  // Homes may move: what is staged is void.
    return {};
  }
  for (StateObserver* o : observers_) o->on_nodes_changed(epoch_, id);
  return {};
}

wire::CommandResult State::node_inventory(const wire::NodeInventory& c) {
  const NodeId id{c.node()};
  const auto it = nodes_.find(id);
  if (it == nodes_.end()) return refusal(Errc::not_found, str("node ", id, " is not a member"));
  NodeRecord& n = it->second;
  if (n.state == NodeState::left) return refusal(Errc::refused, str("node ", id, " has left the cluster"));
  if (c.inventory().size() > limits::kMaxInventoryBytes) {
    return refusal(Errc::over_limit, str("an inventory of more than ", limits::kMaxInventoryBytes, " bytes"));
  }
  if (inventory_check_ == nullptr) return refusal(Errc::unsupported, "no inventories are kept here");
  if (n.inventory == c.inventory()) return {};
  const Result<std::int64_t> taken = inventory_check_(id, as_bytes(c.inventory()));
  if (!taken) {
    ++inventories_refused_;
    return refusal(taken.error());
  }
  // An old one that somebody has kept is as good as forged.
  if (!n.inventory.empty() && *taken <= n.inventory_ms) {
    return refusal(Errc::refused, str("node ", id, " has told something newer of itself"));
  }
  n.inventory = c.inventory();
  n.inventory_ms = *taken;
  return {};
}

// ---- Regions

wire::CommandResult State::create_region(const wire::CreateRegion& c) {
  Result<RegionRecord> shape = shape_of(c.region(), c.owner_uid());
  if (!shape) return refusal(shape.error());
  RegionRecord& record = *shape;
  if (const RegionRecord* there = region_by_name(record.name)) {
    const bool same = there->type == record.type && there->count == record.count && there->mode == record.mode &&
                      (c.region().page_bytes() == 0 || there->page_bytes == record.page_bytes) &&
                      (c.region().replication() == 0 || there->replication == record.replication);
    if (!c.region().open_existing()) {
      return refusal(Errc::already_exists, str("a region named ", record.name, " exists already"));
    }
    if (!same) {
      return refusal(Errc::already_exists,
                     str("region ", record.name, " exists with another shape: ", there->count, " x ", there->type,
                         ", pages of ", there->page_bytes, ", replication ", there->replication));
    }
    wire::CommandResult r;
    r.set_region(there->id.value);
    r.set_existed(true);
    return r;
  }
  if (regions_.size() >= limits::kMaxRegions) {
    return refusal(Errc::over_limit, str("a cluster has at most ", limits::kMaxRegions, " regions"));
  }
  std::vector<std::uint64_t> free_of = free_bytes();
  const std::size_t members = free_of.size();
  if (members < record.replication) {
    return refusal(Errc::under_replicated,
                   str("region ", record.name, " wants ", record.replication, " copies of each page, and only ",
                       members, members == 1 ? " node is" : " nodes are", " there to hold them"),
                   "let more nodes join, or ask for less replication");
  }
  const std::uint64_t one_copy = record.pages * record.page_bytes;
  std::uint64_t free = 0;
  std::uint64_t usable = 0;  // No node holds a page twice.
  for (const std::uint64_t f : free_of) {
    free += f;
    usable += std::min(f, one_copy);
  }
  const auto out_of_memory = [&] {
    return refusal(Errc::out_of_memory,
                   str("region ", record.name, " needs ", human_bytes(one_copy * record.replication), " in all (",
                       record.replication, record.replication == 1 ? " copy" : " copies", "), and ", human_bytes(free),
                       " is free on ", members, members == 1 ? " node" : " nodes"),
                   "free a region, let a node join, or give the agents more --memory");
  };
  if (usable < one_copy * record.replication) return out_of_memory();
  record.id = RegionId{next_region_};
  record.block_pages = Placement::choose_block_pages(record.pages, record.page_bytes, members);
  record.blocks = (record.pages + record.block_pages - 1) / record.block_pages;
  record.created = now_;
  Placement placement({.region = record.id,
                       .pages = record.pages,
                       .page_bytes = record.page_bytes,
                       .block_pages = record.block_pages,
                       .replication = record.replication});
  if (!Planner(table_, cut_paths_, free_of).create(placement)) return out_of_memory();

  ++next_region_;
  const RegionId id = record.id;
  names_[record.name] = id;
  auto region = std::make_unique<Region>(Region{std::move(record), std::move(placement), {}});
  for (Placement::Shard& s : region->placement.shards()) {
    s.in_sync = s.target;
    reserve(region->placement, s);
  }
  regions_[id] = std::move(region);
  for (StateObserver* o : observers_) o->on_region_created(id);
  wire::CommandResult r;
  r.set_region(id.value);
  return r;
}

wire::CommandResult State::free_region(const wire::FreeRegion& c) {
  const RegionRecord* record = region_by_name(c.name());
  if (record == nullptr) {
    return refusal(Errc::not_found,
                   valid_name(c.name()) ? str("there is no region named ", c.name()) : "there is no such region",
                   "holo regions lists them");
  }
  if (c.uid() != 0 && c.uid() != record->owner_uid) {
    return refusal(Errc::permission_denied, str("region ", record->name, " belongs to user ", record->owner_uid));
  }
  const RegionId id = record->id;
  const Region& region = *regions_[id];
  for (const Placement::Shard& s : region.placement.shards()) release(region.placement, s);
  moves_.erase(moves_.lower_bound({id, 0}), moves_.upper_bound({id, UINT16_MAX}));
  names_.erase(record->name);
  regions_.erase(id);
  for (StateObserver* o : observers_) o->on_region_freed(id);

  // The room may let other regions have the copies that they are short of, and others move on.
  std::set<RegionId> changed;
  std::optional<std::vector<std::uint64_t>> free;
  std::optional<Planner> planner;
  for (const RegionId other : region_ids()) {
    if (!short_of_copies(*regions_[other])) continue;
    if (!planner) {
      free = free_bytes();
      planner.emplace(table_, cut_paths_, *free);
      ++epoch_.value;  // Homes may change.
    }
    settle(*regions_[other], *planner, live_nodes());
    changed.insert(other);
  }
  start_moves(changed);
  placement_changed(changed);
  return {};
}

// ---- Commits

wire::CommandResult State::commit(const wire::CommitTxns& c) {
  if (c.epoch() != epoch_.value) {
    Error e{.code = Errc::stale_epoch,
            .message = str("staged in epoch ", c.epoch(), ", and the cluster is in ", epoch_)};
    e.retryable = true;
    return refusal(e);
  }
  wire::CommandResult r;
  for (const wire::TxnCommit& t : c.txns()) *r.add_txns() = commit_one(t);
  return r;
}

wire::TxnResult State::commit_one(const wire::TxnCommit& t) {
  const TxnId txn = txn_id(t.txn());
  if (!alive(txn.node, txn.incarnation)) {
    return txn_refusal(Errc::refused, str("the coordinator ", txn.node, " of the transaction is dead"));
  }
  if (txn.sequence == 0 || txn.sequence == UINT64_MAX)
    return txn_refusal(Errc::invalid_argument, "a transaction without a number");
  Session& session = sessions_[txn.node];
  if (session.incarnation > txn.incarnation) {
    return txn_refusal(Errc::refused, str("the coordinator ", txn.node, " has been started again since"));
  }
  if (session.incarnation < txn.incarnation) session.start(txn.incarnation);
  if (session.is_decided(txn.sequence)) {
    const auto first = session.txns.find(txn.sequence);
    if (first != session.txns.end()) return first->second;
    return txn_refusal(Errc::refused, str("transaction ", txn.sequence, " of node ", txn.node, " was decided before"));
  }

  std::set<RegionId> seen;
  for (const wire::RegionPages& rp : t.regions()) {
    const RegionRecord* r = region(RegionId{rp.region()});
    if (r == nullptr) return txn_refusal(Errc::not_found, str("there is no region ", rp.region(), " any more"));
    if (!seen.insert(r->id).second)
      return txn_refusal(Errc::invalid_argument, "a transaction that names a region twice");
    std::uint64_t next = 0;
    for (const wire::PageRange& p : rp.pages()) {
      if (p.count() == 0 || p.first() < next || p.first() >= r->pages || p.count() > r->pages - p.first()) {
        return txn_refusal(Errc::invalid_argument, str("pages outside region ", r->name, ", or not in order"));
      }
      next = p.first() + p.count();
    }
  }
  for (const std::uint64_t id : t.bump_only()) {
    if (region(RegionId{id}) == nullptr)
      return txn_refusal(Errc::not_found, str("there is no region ", id, " any more"));
    if (!seen.insert(RegionId{id}).second)
      return txn_refusal(Errc::invalid_argument, "a transaction that names a region twice");
  }

  wire::TxnResult result;
  struct Done {
    RegionId region;
    Version version;
    std::vector<PageRange> pages;
  };
  std::vector<Done> done;
  const auto bump = [&](RegionId id) -> Done& {
    RegionRecord& r = regions_[id]->record;
    ++r.version.value;
    wire::RegionVersion* v = result.add_versions();
    v->set_region(id.value);
    v->set_version(r.version.value);
    return done.emplace_back(Done{id, r.version, {}});
  };
  for (const wire::RegionPages& rp : t.regions()) {
    Done& d = bump(RegionId{rp.region()});
    Region& r = *regions_[d.region];
    for (const wire::PageRange& p : rp.pages()) {
      const PageRange range{p.first(), p.count()};
      r.directory.write(range, d.version);
      r.placement.mark_written(range);
      d.pages.push_back(range);
    }
  }
  for (const std::uint64_t id : t.bump_only()) bump(RegionId{id});
  session.decide(txn.sequence, result);
  for (const Done& d : done) {
    for (StateObserver* o : observers_) o->on_commit(d.region, d.version, txn, d.pages);
  }
  return result;
}

wire::CommandResult State::kv_txn(const wire::KvTxn& c) {
  for (const auto* ops : {&c.then(), &c.otherwise()}) {
    for (const wire::KvOp& op : *ops) {
      const std::uint64_t lease = op.put().lease();
      if (lease != 0 && !leases_.exists(lease)) return refusal(Errc::not_found, str("there is no lease ", lease));
    }
  }
  auto done = keys_.apply(c);
  if (!done) return refusal(done.error());
  for (const wire::KvOp& op : done->succeeded() ? c.then() : c.otherwise()) {
    if (op.put().lease() != 0) leases_.attach(op.put().lease(), op.put().key());
  }
  wire::CommandResult result;
  *result.mutable_kv() = std::move(*done);
  return result;
}

wire::CommandResult State::lease_grant(const wire::LeaseGrant& c) {
  const auto lease = leases_.grant(c, now_);
  if (!lease) return refusal(lease.error());
  wire::CommandResult result;
  result.set_lease(*lease);
  return result;
}

wire::CommandResult State::lock_acquire(const wire::LockAcquire& c) {
  auto place = leases_.acquire(c, keys_);
  if (!place) return refusal(place.error());
  wire::CommandResult result;
  *result.mutable_lock() = std::move(*place);
  return result;
}

}  // namespace holo::control
