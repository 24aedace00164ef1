// Who holds what, as it changes: the table, the plan of moves, draining and removing nodes.
#include <algorithm>

#include "base/seeded_bugs.h"
#include "base/strings.h"
#include "core/control/results.h"
#include "core/control/shape.h"
#include "core/control/state.h"

namespace holo::control {
namespace {

constexpr int kLostNamed = 64;           // Regions in one answer.
constexpr std::size_t kRegionsTold = 4;  // In one message.

std::uint64_t label_number(const NodeRecord& n, std::string_view key) {
  for (const NodeLabel& l : n.place.labels) {
    if (l.key != key || l.value.empty() || l.value.size() > 9) continue;
    std::uint64_t value = 0;
    for (const char c : l.value) {
      if (c < '0' || c > '9') return 0;
      value = value * 10 + static_cast<std::uint64_t>(c - '0');
    }
    return value;
  }
  return 0;
}

/// Its processors' worth, in thousandths of a core of the reference machine.
std::uint64_t score_of(const NodeRecord& n) {
  const double speed = n.speed > 0.001 ? std::min(n.speed, 1000.0) : 1.0;  // Also for what is not a number.
  return std::max<std::uint64_t>(n.cores, 1) * static_cast<std::uint64_t>(speed * 1000.0);
}

}  // namespace

// ---- The table

namespace {

std::uint64_t weight_of(const NodeRecord& n, ResourceClass c, bool by_score) {
  switch (c) {
    case ResourceClass::cpu: return score_of(n);
    case ResourceClass::gpu: return label_number(n, "gpus");
    case ResourceClass::disk: return label_number(n, "disk-gib");
    case ResourceClass::memory: break;
  }
  const std::uint64_t whole = by_score ? score_of(n) : std::max<std::uint64_t>(n.memory_bytes >> 16, 1);
  return std::max<std::uint64_t>(whole * n.weight_permille / NodeRecord::kWholeWeight, 1);
}

}  // namespace

ShardTable State::ring_of(const std::map<NodeId, NodeRecord>& nodes, ResourceClass c, bool by_score) {
  std::vector<RingNode> in;
  for (const auto& [id, n] : nodes) {
    const std::uint64_t weight = n.takes_shards() ? weight_of(n, c, by_score) : 0;
    if (weight != 0) in.push_back({.id = id, .weight = weight, .zone = n.place.zone, .host = n.place.host});
  }
  return ShardTable(std::move(in));
}

std::uint64_t State::ring_weight(const NodeRecord& n, ResourceClass c) const { return weight_of(n, c, by_score_); }

ShardTable State::ring(ResourceClass c) const { return ring_of(nodes_, c, by_score_); }

void State::count_nodes() {
  live_count_ = 0;
  holder_count_ = 0;
  taker_count_ = 0;
  for (const auto& [id, n] : nodes_) {
    live_count_ += n.alive() ? 1 : 0;
    holder_count_ += n.alive() && !n.witness ? 1 : 0;
    taker_count_ += n.takes_shards() ? 1 : 0;
  }
  table_ = ring(ResourceClass::memory);
}

// ---- Room

std::vector<std::uint64_t> State::free_bytes() const {
  std::vector<std::uint64_t> out;
  for (const RingNode& node : table_.nodes()) {
    const NodeRecord& n = nodes_.at(node.id);
    out.push_back(n.memory_bytes - std::min(n.memory_bytes, n.reserved_bytes));
  }
  return out;
}

void State::reserve(NodeId node, std::uint64_t bytes) {
  if (const auto it = nodes_.find(node); it != nodes_.end()) it->second.reserved_bytes += bytes;
}

void State::release(NodeId node, std::uint64_t bytes) {
  const auto it = nodes_.find(node);
  if (it == nodes_.end()) return;
  HOLO_ASSERT(it->second.reserved_bytes >= bytes, "released more than was reserved");
  it->second.reserved_bytes -= bytes;
}

void State::reserve(const Placement& p, const Placement::Shard& s) {
  for (const NodeId n : s.in_sync) reserve(n, p.bytes_of(s));
  for (const NodeId n : s.target) {
    if (!s.in_sync.contains(n)) reserve(n, p.bytes_of(s));
  }
}

void State::release(const Placement& p, const Placement::Shard& s) {
  for (const NodeId n : s.in_sync) release(n, p.bytes_of(s));
  for (const NodeId n : s.target) {
    if (!s.in_sync.contains(n)) release(n, p.bytes_of(s));
  }
}

// ---- The plan

void State::track(RegionId region, ShardNo shard, Placement::Shard& s) {
  if (!s.filling && !s.unproven) s.serial = 0;
  if (s.moving()) {
    moves_.emplace(region, shard.value);
  } else {
    moves_.erase({region, shard.value});
  }
}

void State::end_incarnation(NodeId node) {
  std::erase_if(cut_paths_, [node](const auto& path) { return path.first == node || path.second == node; });
  for (const RegionId id : region_ids()) {
    Placement& p = regions_[id]->placement;
    for (Placement::Shard& s : p.shards()) {
      if (s.filling == node) s.filling = {};
      if (s.unproven == node && s.in_sync.size() > 1) s.unproven = {};
      if (s.in_sync.size() < 2 || !s.in_sync.contains(node)) continue;
      release(p, s);
      s.in_sync.erase(node);
      reserve(p, s);
    }
  }
}

void State::arrange(const Placement& p, Placement::Shard& s) {
  if (s.target.empty()) return;
  release(p, s);
  NodeList order;
  for (const NodeId n : s.target) {
    if (s.in_sync.contains(n)) (void)order.push(n);
  }
  if (order.size() != s.target.size() || s.unproven) {
    for (const NodeId n : s.in_sync) {
      if (!order.contains(n)) (void)order.push(n);
    }
  }
  s.in_sync = order;
  reserve(p, s);
}

/// What its home cannot bring up to date is no copy.
void State::drop_cut_off(Placement::Shard& s) const {
  for (std::size_t i = s.in_sync.size(); i-- > 1;) {
    const NodeId holder = s.in_sync[i];
    if (cut_paths_.contains({s.in_sync[0], holder})) s.in_sync.erase(holder);
  }
}

void State::settle(Region& region, Planner& planner, const std::vector<NodeId>& alive) {
  const Planner::Readable readable{alive};
  Placement& p = region.placement;
  for (Placement::Shard& s : p.shards()) {
    release(p, s);
    const bool source = !s.in_sync.empty() && readable(s.in_sync[0]);
    if (!source && !s.written) s.in_sync = {};
    if (source) drop_cut_off(s);
  }
  planner.replan(p, readable);
  for (std::size_t i = 0; i < p.shards().size(); ++i) {
    Placement::Shard& s = p.shards()[i];
    if (s.filling && !s.target.contains(s.filling)) s.filling = {};
    // Nothing was ever written there, or nobody has it any more: other nodes can be its holders at once.
    if (!s.target.empty() && (s.in_sync.empty() || !s.written)) {
      if (s.written) s.lost = region.record.version;
      s.in_sync = s.target;
      s.filling = {};
      s.unproven = {};
    }
    // Who is not wanted here any more has nothing to prove; nor has who is alone.
    if (!s.in_sync.contains(s.unproven) || !s.target.contains(s.unproven) || s.in_sync.size() == 1) s.unproven = {};
    reserve(p, s);
    arrange(p, s);
    track(region.record.id, ShardNo{p.used()[i]}, s);
  }
}

void State::settle_all() {
  const std::vector<NodeId> alive = live_nodes();
  std::vector<std::uint64_t> free = free_bytes();
  Planner planner(table_, cut_paths_, free);
  for (const RegionId id : region_ids()) settle(*regions_[id], planner, alive);
  std::set<RegionId> changed;
  start_moves(changed);
}

bool State::short_of_copies(const Region& region) const {
  const std::size_t wanted = std::min<std::size_t>(region.record.replication, taker_count_);
  const auto shards = region.placement.shards();
  return std::any_of(shards.begin(), shards.end(), [&](const Placement::Shard& s) {
    const NodeRecord* home = s.in_sync.empty() ? nullptr : node(s.in_sync[0]);
    return home != nullptr && home->alive() && s.target.size() < wanted;
  });
}

void State::start_moves(std::set<RegionId>& changed) {
  std::map<NodeId, std::size_t> from, to;
  const auto shard_at = [this](const std::pair<RegionId, std::uint16_t>& m) -> Placement::Shard& {
    return *regions_.at(m.first)->placement.shard(ShardNo{m.second});
  };
  for (const auto& m : moves_) {
    const Placement::Shard& s = shard_at(m);
    const NodeId under_way = s.filling ? s.filling : s.unproven;
    if (!under_way || s.in_sync.empty()) continue;
    ++from[s.in_sync[0]];
    ++to[under_way];
  }
  for (const bool repair : {true, false}) {
    for (const auto& m : moves_) {
      Placement::Shard& s = shard_at(m);
      if (s.filling || s.unproven || s.in_sync.empty() || s.in_sync.size() == NodeList::kMax) continue;
      const NodeRecord* home = node(s.in_sync[0]);
      if (home == nullptr || !home->alive()) continue;
      const bool lacks = s.in_sync.size() < s.target.size();
      if (lacks != repair) continue;
      const auto next =
          std::find_if(s.target.begin(), s.target.end(), [&](NodeId n) { return !s.in_sync.contains(n); });
      if (next == s.target.end()) continue;
      if (from[home->id] >= limits::kMovesPerNode || to[*next] >= limits::kMovesPerNode) continue;
      ++from[home->id];
      ++to[*next];
      s.filling = *next;
      s.serial = ++move_serial_;
      changed.insert(m.first);
    }
  }
}

void State::placement_changed(const std::set<RegionId>& regions) {
  for (const RegionId id : regions) {
    for (StateObserver* o : observers_) o->on_placement_changed(id);
  }
}

void State::nodes_changed(NodeId node) {
  const NodeRecord* changed = this->node(node);
  if (!HOLO_SEEDED_BUG(epoch_stays) || changed == nullptr || changed->alive()) ++epoch_.value;
  count_nodes();
  settle_all();
  for (StateObserver* o : observers_) o->on_nodes_changed(epoch_, node);
}

Placement::Shard* State::find_move(const wire::ShardMove& m, Region*& region) {
  const auto it = regions_.find(RegionId{m.region()});
  if (it == regions_.end() || m.shard() >= limits::kShards || m.serial() == 0) return nullptr;
  region = it->second.get();
  Placement::Shard* s = region->placement.shard(ShardNo{static_cast<std::uint16_t>(m.shard())});
  return s != nullptr && s->serial == m.serial() ? s : nullptr;
}

wire::CommandResult State::shards_copied(const wire::ShardsCopied& c) {
  std::set<RegionId> changed;
  for (const wire::ShardMove& m : c.moves()) {
    Region* region = nullptr;
    Placement::Shard* s = find_move(m, region);
    if (s == nullptr || !s->filling || s->filling != NodeId{m.node()}) continue;  // Said before, or overtaken.
    HOLO_ASSERT(s->in_sync.push(s->filling), "start_moves leaves room");
    s->unproven = s->filling;
    s->filling = {};
    arrange(region->placement, *s);
    track(region->record.id, ShardNo{static_cast<std::uint16_t>(m.shard())}, *s);
    changed.insert(region->record.id);
  }
  if (changed.empty()) return {};
  ++epoch_.value;  // What was staged without the new holder is void, and homes may have moved.
  start_moves(changed);
  placement_changed(changed);
  return {};
}

wire::CommandResult State::shards_whole(const wire::ShardsWhole& c) {
  std::set<RegionId> changed;
  for (const wire::ShardMove& m : c.moves()) {
    Region* region = nullptr;
    Placement::Shard* s = find_move(m, region);
    if (s == nullptr || !s->unproven || s->unproven != NodeId{m.node()}) continue;
    s->unproven = {};
    arrange(region->placement, *s);
    track(region->record.id, ShardNo{static_cast<std::uint16_t>(m.shard())}, *s);
    changed.insert(region->record.id);
  }
  if (changed.empty()) return {};
  start_moves(changed);
  placement_changed(changed);
  return {};
}

wire::CommandResult State::path_changed(const wire::PathChanged& c) {
  const NodeId from{c.from()}, to{c.to()};
  const NodeRecord* a = node(from);
  const NodeRecord* b = node(to);
  if (a == nullptr || b == nullptr || from == to || !a->alive() || !b->alive()) {
    return refusal(Errc::invalid_argument, "a path that is not between two live members");
  }
  if (cut_paths_.contains({from, to}) == c.cut()) return {};
  if (c.cut()) {
    const auto first = cut_paths_.lower_bound({from, NodeId{}});
    const auto known = std::distance(first, cut_paths_.upper_bound({from, NodeId{UINT64_MAX}}));
    if (static_cast<std::size_t>(known) >= limits::kCutPathsPerNode) {
      return refusal(Errc::over_limit,
                     str("node ", a->name, " has said of ", known, " nodes that it cannot reach them"));
    }
    cut_paths_.emplace(from, to);
  } else {
    cut_paths_.erase({from, to});
  }
  nodes_changed(NodeId{});
  return {};
}

// ---- Queries

std::optional<State::ShardView> State::shard_view(RegionId region, ShardNo shard) const {
  const Region* r = find(region);
  const Placement::Shard* s = r == nullptr ? nullptr : r->placement.shard(shard);
  if (s == nullptr) return std::nullopt;
  return ShardView{.region = region,
                   .shard = shard,
                   .in_sync = s->in_sync,
                   .filling = s->filling,
                   .pages = s->pages,
                   .target = s->target,
                   .unproven = s->unproven,
                   .serial = s->serial,
                   .written = s->written};
}

void State::for_each_shard(RegionId region, const std::function<void(const ShardView&)>& f) const {
  const Region* r = find(region);
  if (r == nullptr) return;
  for (const std::uint16_t n : r->placement.used()) f(*shard_view(region, ShardNo{n}));
}

void State::for_each_move(const std::function<void(const ShardView&)>& f) const {
  for (const auto& [region, shard] : moves_) f(*shard_view(region, ShardNo{shard}));
}

void State::for_each_move(RegionId region, const std::function<void(const ShardView&)>& f) const {
  for (auto it = moves_.lower_bound({region, 0}); it != moves_.end() && it->first == region; ++it) {
    f(*shard_view(region, ShardNo{it->second}));
  }
}

void State::for_each_fill(const std::function<void(const ShardView&)>& f) const {
  for_each_move([&](const ShardView& s) {
    if (s.filling) f(s);
  });
}

std::vector<State::LastCopies> State::last_copies(NodeId holder) const {
  std::vector<LastCopies> out;
  for (const RegionId id : region_ids()) {
    const Region& r = *regions_.at(id);
    LastCopies lost{.region = id};
    std::map<std::uint16_t, Version> alone;  // With what was lost of it before.
    for (std::size_t i = 0; i < r.placement.shards().size(); ++i) {
      const Placement::Shard& s = r.placement.shards()[i];
      if (!s.written || s.in_sync.size() != 1 || s.in_sync[0] != holder) continue;
      alone.emplace(r.placement.used()[i], s.lost);
      const bool goes = std::any_of(s.target.begin(), s.target.end(), [&](NodeId n) { return n != holder; });
      lost.nowhere = lost.nowhere || !goes;
    }
    if (alone.empty()) continue;
    for_each_written(id, [&](PageRange pages, Version version) {
      for (std::uint64_t p = pages.first; p < pages.end();) {
        const std::uint64_t block_end = (p / r.record.block_pages + 1) * r.record.block_pages;
        const std::uint64_t end = std::min(pages.end(), block_end);
        const auto shard = alone.find(r.placement.shard_of(PageNo{p}).value);
        if (shard != alone.end() && version > shard->second) lost.pages += end - p;
        p = end;
      }
    });
    if (lost.pages > 0) out.push_back(lost);
  }
  return out;
}

bool State::is_empty(NodeId id) const {
  const NodeRecord* n = node(id);
  return n == nullptr || n->reserved_bytes == 0;
}

namespace {

/// "region xs (12 pages), region ys (3 pages), and 2 more".
std::string named(const State& state, const std::vector<State::LastCopies>& lost) {
  std::string out;
  for (std::size_t i = 0; i < std::min(lost.size(), kRegionsTold); ++i) {
    out += str(i == 0 ? "" : ", ", "region ", state.region(lost[i].region)->name, " (", lost[i].pages,
               lost[i].pages == 1 ? " page)" : " pages)");
  }
  return lost.size() > kRegionsTold ? str(out, ", and ", lost.size() - kRegionsTold, " more") : out;
}

}  // namespace

void State::add_lost(NodeId node, wire::CommandResult& result) const {
  for (const LastCopies& l : last_copies(node)) {
    if (result.lost_size() == kLostNamed) break;
    wire::LostPages* out = result.add_lost();
    const RegionRecord& r = *region(l.region);
    out->set_region(r.name);
    out->set_pages(l.pages);
    out->set_bytes(l.pages * r.page_bytes);
  }
}

// ---- Leaving, draining, removing

Status State::may_leave(NodeId leaver) const {
  const std::vector<LastCopies> lost = last_copies(leaver);
  if (!lost.empty()) {
    return fail(Errc::refused,
                str("node ", nodes_.at(leaver).name, " holds the only copy of pages of ", named(*this, lost)),
                "holo drain moves them to other nodes; free the regions, or give them up with --force");
  }
  std::uint64_t unwritten = 0;
  for (const RegionId id : region_ids()) {
    const Placement& p = regions_.at(id)->placement;
    for (const Placement::Shard& s : p.shards()) {
      if (!s.written && s.in_sync.size() == 1 && s.in_sync[0] == leaver) unwritten += p.bytes_of(s);
    }
  }
  std::uint64_t free = 0;
  const std::vector<std::uint64_t> free_of = free_bytes();
  for (std::size_t i = 0; i < free_of.size(); ++i) free += table_.nodes()[i].id == leaver ? 0 : free_of[i];
  if (unwritten > free) {
    return fail(Errc::out_of_memory, str("the other nodes have ", human_bytes(free), " free, and ",
                                         human_bytes(unwritten), " are assigned to node ", nodes_.at(leaver).name));
  }
  return {};
}

Status State::may_lose_vote(const NodeRecord& n) const {
  if (!n.voter) return {};
  // It is cut off at once, so the others must be able to decide without it, if only to replace it.
  std::size_t voters = 0, others_alive = 0;
  for (const auto& [other, record] : nodes_) {
    voters += record.voter ? 1 : 0;
    others_alive += record.voter && record.alive() && other != n.id ? 1 : 0;
  }
  if (others_alive * 2 > voters) return {};
  return fail(Errc::refused, str("without node ", n.name, " the cluster could decide nothing: only ", others_alive,
                                 " of its ", voters, voters == 1 ? " voter" : " voters", " would be left"));
}

Status State::may_drain(const NodeRecord& n, bool force) const {
  if (!n.alive()) {
    return fail(Errc::refused, str("node ", n.name, " is ", node_state_name(n.state), ": nothing can be moved off it"),
                "holo remove gives up what only it holds");
  }
  const std::size_t others = taker_count_ - (n.takes_shards() ? 1 : 0);
  if (others == 0 && !n.witness) {
    return fail(Errc::refused, str("node ", n.name, " is the last node that takes pages and could lead the cluster"),
                "let another node join, or holo undrain one, first");
  }
  std::vector<std::uint64_t> free = free_bytes();
  std::vector<std::string> thinner;
  for (const RegionId id : region_ids()) {
    const Region& r = *regions_.at(id);
    bool thin = false;
    for (std::size_t i = 0; i < r.placement.shards().size(); ++i) {
      const Placement::Shard& s = r.placement.shards()[i];
      if (!s.in_sync.contains(n.id)) continue;
      const std::uint64_t bytes = r.placement.bytes_of(s);
      std::size_t stay = 0;
      for (const NodeId holder : s.in_sync) stay += holder != n.id && table_.find(holder) != ShardTable::npos ? 1 : 0;
      if (stay >= std::min<std::size_t>(r.record.replication, others) && r.record.replication <= others) continue;
      std::size_t found = ShardTable::npos;
      for (const std::size_t t : table_.order(ShardNo{r.placement.used()[i]})) {
        const NodeId id_of = table_.nodes()[t].id;
        if (id_of == n.id || s.in_sync.contains(id_of) || free[t] < bytes) continue;
        found = t;
        break;
      }
      if (found != ShardTable::npos) {
        free[found] -= bytes;
        ++stay;
      }
      if (stay == 0) {
        return fail(Errc::out_of_memory,
                    str("node ", n.name, " holds the only copy of pages of region ", r.record.name,
                        ", and no other node has room for them"),
                    "free a region, let a node join, or give the agents more --memory");
      }
      thin = thin || stay < r.record.replication;
    }
    if (thin) thinner.push_back(r.record.name);
  }
  if (thinner.empty() || force) return {};
  std::string names = thinner.front();
  for (std::size_t i = 1; i < std::min(thinner.size(), kRegionsTold); ++i) names += ", " + thinner[i];
  if (thinner.size() > kRegionsTold) names += str(", and ", thinner.size() - kRegionsTold, " more");
  return fail(Errc::under_replicated,
              str("without node ", n.name, " fewer copies than asked for would be left of pages of ",
                  thinner.size() == 1 ? "region " : "regions ", names),
              "let another node join first, or accept it with --force");
}

wire::CommandResult State::node_drain(const wire::NodeDrain& c) {
  const auto it = nodes_.find(NodeId{c.node()});
  if (it == nodes_.end() || it->second.state == NodeState::left) {
    return refusal(Errc::not_found, str("node ", NodeId{c.node()}, " is not a member"));
  }
  NodeRecord& n = it->second;
  if (n.draining == c.on()) return {};
  if (c.on()) {
    if (const Status ok = may_drain(n, c.force()); !ok) return refusal(ok.error());
  }
  n.draining = c.on();
  nodes_changed(n.id);
  return {};
}

wire::CommandResult State::node_remove(const wire::NodeRemove& c) {
  const auto it = nodes_.find(NodeId{c.node()});
  if (it == nodes_.end() || it->second.state == NodeState::left) {
    return refusal(Errc::not_found, str("node ", NodeId{c.node()}, " is not a member"));
  }
  NodeRecord& n = it->second;
  if (const Status ok = may_lose_vote(n); !ok) {
    Error e = ok.error();
    e.hint = "let other nodes join first, or run holo leave on that node";
    return refusal(e);
  }
  if (!c.force()) {
    if (const Status ok = may_leave(n.id); !ok) return refusal(ok.error());
  }
  wire::CommandResult result;
  add_lost(n.id, result);
  remove_member(n);
  return result;
}

wire::CommandResult State::weigh_nodes(const wire::WeighNodes& c) {
  if (c.by() != wire::WeighNodes::UNCHANGED && c.by() != wire::WeighNodes::MEMORY &&
      c.by() != wire::WeighNodes::SCORE) {
    return refusal(Errc::invalid_argument, "weights are made of memory or of the score");
  }
  const auto it = nodes_.find(NodeId{c.node()});
  if (c.node() != 0) {
    if (it == nodes_.end() || it->second.state == NodeState::left) {
      return refusal(Errc::not_found, str("node ", NodeId{c.node()}, " is not a member"));
    }
    if (c.permille() < 1 || c.permille() > NodeRecord::kMaxWeight) {
      return refusal(Errc::invalid_argument, "a weight is between 0.001 and 100", "holo drain takes everything off");
    }
  }
  const bool by_score = c.by() == wire::WeighNodes::UNCHANGED ? by_score_ : c.by() == wire::WeighNodes::SCORE;
  const bool same = by_score == by_score_ && (c.node() == 0 || it->second.weight_permille == c.permille());
  if (same) return {};
  by_score_ = by_score;
  if (c.node() != 0) it->second.weight_permille = c.permille();
  nodes_changed(NodeId{c.node()});
  return {};
}

}  // namespace holo::control
