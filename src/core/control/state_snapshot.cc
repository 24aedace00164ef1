// The state as bytes, and back. Bytes from a disk or a peer are checked here before anything is replaced.
#include <algorithm>
#include <bit>

#include "base/strings.h"
#include "core/control/shape.h"
#include "core/control/state.h"

namespace holo::control {
namespace {

constexpr std::uint32_t kFormat = 2;  // 1: regions had tables of their own.

Status bad(std::string what) { return fail(Errc::corrupt, "the snapshot of the control state is corrupt: " + what); }

void write_shape(const RegionRecord& r, wire::RegionCreate* out) {
  out->set_name(r.name);
  out->set_type(r.type);
  out->set_element_bytes(r.element_bytes);
  out->set_count(r.count);
  out->set_page_bytes(r.page_bytes);
  out->set_mode(r.mode);
  out->set_replication(r.replication);
}

void write_session(NodeId node, const Session& s, wire::SnapshotClient* out) {
  out->set_node(node.value);
  out->set_incarnation(s.incarnation);
  out->set_floor(s.floor);
  for (const auto& [sequence, result] : s.results) {
    auto* r = out->add_results();
    r->set_sequence(sequence);
    *r->mutable_result() = result;
  }
  out->set_decided_floor(s.decided_floor);
  for (const auto& [first, end] : s.decided) {
    auto* d = out->add_decided();
    d->set_first(first);
    d->set_count(end - first);
  }
  for (const std::uint64_t sequence : s.txn_order) {
    auto* t = out->add_txns();
    t->set_sequence(sequence);
    *t->mutable_result() = s.txns.at(sequence);
  }
}

}  // namespace

wire::ControlSnapshot State::describe(Keys with) const {
  wire::ControlSnapshot out;
  out.set_format(kFormat);
  out.set_cluster(cluster_.value);
  out.set_name(name_);
  out.set_epoch(epoch_.value);
  out.set_now_ms(now_.ms);
  out.set_next_region(next_region_);
  for (const auto& [id, n] : nodes_) {
    auto* sn = out.add_nodes();
    *sn->mutable_info() = info_of(n);
    sn->set_state(static_cast<std::uint32_t>(n.state));
    sn->set_voter(n.voter);
    sn->set_draining(n.draining);
    sn->set_since_ms(n.since.ms);
    if (n.weight_permille != NodeRecord::kWholeWeight) sn->set_weight_permille(n.weight_permille);
    sn->set_inventory(n.inventory);
  }
  for (const RegionId id : region_ids()) {
    const Region& r = *regions_.at(id);
    auto* sr = out.add_regions();
    sr->set_id(id.value);
    write_shape(r.record, sr->mutable_shape());
    sr->set_owner_uid(r.record.owner_uid);
    sr->set_version(r.record.version.value);
    sr->set_block_pages(r.record.block_pages);
    sr->set_created_ms(r.record.created.ms);
    for (std::size_t i = 0; i < r.placement.shards().size(); ++i) {
      const Placement::Shard& s = r.placement.shards()[i];
      const ShardNo number{r.placement.used()[i]};
      const bool moving = s.moving() || s.target.empty();
      if (!moving && s.serial == 0 && s.lost == Version{} && s.in_sync == table_.list(number, r.record.replication))
        continue;
      auto* d = sr->add_deviations();
      d->set_shard(number.value);
      for (const NodeId n : s.in_sync) d->add_in_sync(n.value);
      d->set_filling(s.filling.value);
      for (const NodeId n : s.target) d->add_target(n.value);
      d->set_unproven(s.unproven.value);
      d->set_serial(s.serial);
      d->set_lost(s.lost.value);
    }
    for_each_written(id, [&](PageRange p, Version v) {
      auto* pages = sr->add_pages();
      pages->set_first(p.first);
      pages->set_count(p.count);
      pages->set_version(v.value);
    });
  }
  for (const auto& [id, s] : sessions_) write_session(id, s, out.add_clients());
  for (const auto& [id, since] : revoked_) {
    auto* r = out.add_revoked();
    r->set_node(id.value);
    r->set_since_ms(since.ms);
  }
  if (keys_.revision() != 0 && with == Keys::all) keys_.save(out.mutable_kv());
  if (keys_.revision() != 0 && with == Keys::none) {
    out.mutable_kv()->set_revision(keys_.revision());
    out.mutable_kv()->set_compacted(keys_.compacted());
  }
  if (leases_.used()) leases_.save(out.mutable_leases());
  out.set_moves(move_serial_);
  for (const auto& [from, to] : cut_paths_) {
    auto* path = out.add_cut_paths();
    path->set_from(from.value);
    path->set_to(to.value);
    path->set_cut(true);
  }
  out.set_weigh_by(by_score_ ? 1 : 0);
  out.set_restoring(restoring_);
  return out;
}

Bytes State::snapshot() const {
  const wire::ControlSnapshot out = describe(Keys::all);
  Bytes bytes(out.ByteSizeLong());
  HOLO_ASSERT(out.SerializeToArray(bytes.data(), static_cast<int>(bytes.size())), "a snapshot of more than 2 GiB");
  return bytes;  // Without maps and unknown fields, equal messages give equal bytes.
}

/// Builds what a snapshot says, apart from the state that it will replace.
struct SnapshotReader {
  InventoryCheck check_inventory = nullptr;
  std::map<NodeId, NodeRecord> nodes;
  std::unordered_map<RegionId, std::unique_ptr<State::Region>> regions;
  std::map<std::string, RegionId, std::less<>> names;
  std::map<NodeId, Session> sessions;
  std::set<std::pair<RegionId, std::uint16_t>> moves;
  ShardTable table;  ///< Of the nodes, once they are read.

  Status read_node(const wire::SnapshotNode& sn) {
    NodeRecord n;
    set_info(n, sn.info());
    n.witness = sn.info().witness();
    n.incarnation = sn.info().incarnation();
    if (sn.state() < 1 || sn.state() > 3) return bad("a node in no state");
    n.state = static_cast<NodeState>(sn.state());
    n.voter = sn.voter();
    n.draining = sn.draining();
    n.since = WallTime{sn.since_ms()};
    if (sn.weight_permille() > NodeRecord::kMaxWeight) return bad("a node with a weight that cannot be");
    if (sn.weight_permille() != 0) n.weight_permille = sn.weight_permille();
    n.inventory = sn.inventory();
    if (!n.inventory.empty() && check_inventory != nullptr) {
      const auto taken = check_inventory(n.id, as_bytes(n.inventory));
      if (!taken) return bad(taken.error().message);
      n.inventory_ms = *taken;
    }
    if (!n.id || !nodes.emplace(n.id, n).second) return bad("a node without an id, or twice");
    return {};
  }

  Status reserve(NodeId node, std::uint64_t bytes) {
    const auto it = nodes.find(node);
    if (it == nodes.end()) return bad("a shard on an unknown node");
    it->second.reserved_bytes += bytes;
    return {};
  }

  static Status read_list(const google::protobuf::RepeatedField<std::uint64_t>& in, NodeList& out) {
    out = {};
    for (const std::uint64_t n : in) {
      if (n == 0 || out.contains(NodeId{n}) || !out.push(NodeId{n})) return bad("a shard with nodes that cannot be");
    }
    return {};
  }

  static Status read_shard(const wire::SnapshotShard& d, Placement::Shard& s) {
    HOLO_TRY(read_list(d.in_sync(), s.in_sync));
    HOLO_TRY(read_list(d.target(), s.target));
    s.filling = NodeId{d.filling()};
    s.unproven = NodeId{d.unproven()};
    s.serial = d.serial();
    s.lost = Version{d.lost()};
    if (s.filling && (s.in_sync.contains(s.filling) || s.in_sync.size() == NodeList::kMax || s.in_sync.empty() ||
                      !s.target.contains(s.filling))) {
      return bad("a shard that fills what it has");
    }
    if (s.unproven && !s.in_sync.contains(s.unproven)) return bad("a shard whose newcomer does not hold it");
    if ((s.filling || s.unproven) != (s.serial != 0)) return bad("a move without a number");
    return {};
  }

  Status read_region(const wire::SnapshotRegion& sr) {
    Result<RegionRecord> shape = shape_of(sr.shape(), sr.owner_uid());
    if (!shape) return bad(shape.error().message);
    RegionRecord& record = *shape;
    record.id = RegionId{sr.id()};
    record.version = Version{sr.version()};
    record.created = WallTime{sr.created_ms()};
    record.block_pages = sr.block_pages();
    const bool block_fits = std::has_single_bit(record.block_pages) &&
                            (record.block_pages == 1 || record.block_pages <= (4ULL << 20) / record.page_bytes);
    if (!block_fits) return bad("a region whose placement does not fit its shape");
    record.blocks = (record.pages + record.block_pages - 1) / record.block_pages;
    if (!record.id || regions.contains(record.id) || !names.emplace(record.name, record.id).second) {
      return bad("a region without an id, or twice");
    }
    Placement placement({.region = record.id,
                         .pages = record.pages,
                         .page_bytes = record.page_bytes,
                         .block_pages = record.block_pages,
                         .replication = record.replication});
    for (std::size_t i = 0; i < placement.shards().size(); ++i) {
      Placement::Shard& s = placement.shards()[i];
      s.in_sync = s.target = table.list(ShardNo{placement.used()[i]}, record.replication);
    }
    for (const wire::SnapshotShard& d : sr.deviations()) {
      if (d.shard() >= limits::kShards) return bad("a shard that cannot be");
      const ShardNo number{static_cast<std::uint16_t>(d.shard())};
      Placement::Shard* s = placement.shard(number);
      if (s == nullptr) return bad("a shard without pages");
      HOLO_TRY(read_shard(d, *s));
      if (s->moving()) moves.emplace(record.id, number.value);
    }
    for (const Placement::Shard& s : placement.shards()) {
      for (const NodeId n : s.in_sync) HOLO_TRY(reserve(n, placement.bytes_of(s)));
      for (const NodeId n : s.target) {
        if (!s.in_sync.contains(n)) HOLO_TRY(reserve(n, placement.bytes_of(s)));
      }
    }
    Directory directory;
    std::uint64_t next = 0;
    for (const wire::SnapshotPages& p : sr.pages()) {
      if (p.count() == 0 || p.first() < next || p.first() >= record.pages || p.count() > record.pages - p.first() ||
          p.version() == 0 || p.version() > record.version.value) {
        return bad("pages that cannot be");
      }
      next = p.first() + p.count();
      directory.write({p.first(), p.count()}, Version{p.version()});
      placement.mark_written({p.first(), p.count()});
    }
    const RegionId id = record.id;
    regions.emplace(id, std::make_unique<State::Region>(
                            State::Region{std::move(record), std::move(placement), std::move(directory)}));
    return {};
  }

  Status read_session(const wire::SnapshotClient& c) {
    Session s;
    s.incarnation = c.incarnation();
    s.floor = c.floor();
    for (const wire::SnapshotResult& r : c.results()) s.results.emplace(r.sequence(), r.result());
    s.decided_floor = c.decided_floor();
    std::uint64_t next = 0;
    for (const wire::PageRange& d : c.decided()) {
      if (d.count() == 0 || d.first() < next || d.count() > UINT64_MAX - d.first())
        return bad("decided transactions out of order");
      next = d.first() + d.count();
      s.decided.emplace(d.first(), next);
    }
    for (const wire::SnapshotTxn& t : c.txns()) {
      if (!s.txns.emplace(t.sequence(), t.result()).second) return bad("a transaction decided twice");
      s.txn_order.push_back(t.sequence());
    }
    if (!nodes.contains(NodeId{c.node()}) || !sessions.emplace(NodeId{c.node()}, std::move(s)).second) {
      return bad("a client that is no node, or twice");
    }
    return {};
  }
};

Status State::restore(LogIndex index, ByteSpan snapshot) {
  HOLO_TRY(replace(index, snapshot));
  tell_restored();
  return {};
}

void State::tell_restored() {
  for (StateObserver* o : observers_) o->on_restored();
}

Status State::replace(LogIndex index, ByteSpan snapshot) {
  wire::ControlSnapshot in;
  if (snapshot.size() > INT32_MAX || !in.ParseFromArray(snapshot.data(), static_cast<int>(snapshot.size()))) {
    return bad("it does not decode");
  }
  if (snapshot.empty()) {  // As before the first entry.
    in.set_format(kFormat);
    in.set_next_region(1);
  }
  KeySpace keys;
  HOLO_TRY(keys.load(in.kv()));
  return replace(index, in, std::move(keys));
}

Status State::replace(LogIndex index, const wire::ControlSnapshot& in, KeySpace keys) {
  if (in.format() != kFormat) return bad(str("format ", in.format(), " is unknown"));
  if (static_cast<std::size_t>(in.nodes_size()) > limits::kMaxNodes) return bad("too many nodes");
  if (static_cast<std::size_t>(in.regions_size()) > limits::kMaxRegions) return bad("too many regions");
  SnapshotReader reader;
  reader.check_inventory = inventory_check_;
  for (const wire::SnapshotNode& n : in.nodes()) HOLO_TRY(reader.read_node(n));
  if (in.weigh_by() > 1) return bad("weights of an unknown kind");
  reader.table = ring_of(reader.nodes, ResourceClass::memory, in.weigh_by() == 1);
  for (const wire::SnapshotRegion& r : in.regions()) {
    HOLO_TRY(reader.read_region(r));
    if (r.id() >= in.next_region()) return bad("a region from the future");
  }
  for (const wire::SnapshotClient& c : in.clients()) HOLO_TRY(reader.read_session(c));
  std::map<NodeId, WallTime> revoked;
  for (const wire::SnapshotRevoked& r : in.revoked()) {
    if (r.node() == 0 || !revoked.emplace(NodeId{r.node()}, WallTime{r.since_ms()}).second) {
      return bad("a revoked node without an id, or twice");
    }
  }
  CutPaths cut;
  for (const wire::PathChanged& path : in.cut_paths()) {
    const NodeId from{path.from()}, to{path.to()};
    if (!reader.nodes.contains(from) || !reader.nodes.contains(to) || from == to || !cut.emplace(from, to).second) {
      return bad("a cut path between no two nodes, or twice");
    }
  }
  Leases leases;
  HOLO_TRY(leases.load(in.leases(), keys));

  cluster_ = ClusterId{in.cluster()};
  name_ = in.name();
  epoch_ = Epoch{in.epoch()};
  applied_ = index;
  now_ = WallTime{in.now_ms()};
  next_region_ = in.next_region();
  nodes_ = std::move(reader.nodes);
  regions_ = std::move(reader.regions);
  moves_ = std::move(reader.moves);
  move_serial_ = in.moves();
  cut_paths_ = std::move(cut);
  by_score_ = in.weigh_by() == 1;
  names_ = std::move(reader.names);
  sessions_ = std::move(reader.sessions);
  revoked_ = std::move(revoked);
  keys_ = std::move(keys);
  leases_ = std::move(leases);
  restoring_ = in.restoring();
  count_nodes();
  return {};
}

}  // namespace holo::control
