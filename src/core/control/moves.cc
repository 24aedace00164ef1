#include "core/control/moves.h"

#include <algorithm>
#include <optional>

namespace holo::control {
namespace {

using Wide = unsigned __int128;
constexpr std::size_t npos = ShardTable::npos;

/// A node this far below its share is given shards that others hold well enough: a 16th. Less is chance, and not worth
/// a copy.
bool is_short(std::int64_t load, std::int64_t share, std::int64_t block) {
  return load < share - share / 16 && share - load >= block;
}

/// Nor does a node that gives some away come to be short itself.
bool can_spare(std::int64_t load, std::int64_t share, std::int64_t pages) { return load - pages >= share - share / 32; }

}  // namespace

bool Planner::Readable::operator()(NodeId id) const { return std::binary_search(alive.begin(), alive.end(), id); }

bool Planner::can_take(std::size_t node, const Placement::Shard& s, std::uint64_t bytes) const {
  const NodeId id = table_.nodes()[node].id;
  if (s.in_sync.contains(id)) return true;
  return free_[node] >= bytes && (s.in_sync.empty() || !cut_.contains({s.in_sync[0], id}));
}

void Planner::begin(const Placement& p) {
  const std::size_t n = table_.size();
  copies_ = std::min<std::size_t>(p.shape().replication, n);
  load_ = {};
  load_.home.assign(n, 0);
  load_.copy.assign(n, 0);
  load_.block = static_cast<std::int64_t>(p.shape().block_pages);
  const std::uint64_t weights = std::max<std::uint64_t>(table_.total_weight(), 1);
  for (const RingNode& node : table_.nodes()) {
    const Wide share = static_cast<Wide>(p.shape().pages) * node.weight;
    load_.home_share.push_back(static_cast<std::int64_t>(share / weights));
    // No node holds a page twice, however heavy it is.
    const auto copies = static_cast<std::uint64_t>(share * copies_ / weights);
    load_.copy_share.push_back(static_cast<std::int64_t>(std::min(copies, p.shape().pages)));
  }
}

/// What a node may have at most, while others have room: its share and a 64th, in whole blocks.
std::int64_t Planner::bound(std::int64_t share) const {
  const std::int64_t most = share + share / 64;
  return (most + load_.block) / load_.block * load_.block;
}

void Planner::count(const NodeList& list, std::int64_t pages, std::int64_t sign) {
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::size_t node = table_.find(list[i]);
    if (node == npos) continue;
    load_.copy[node] += sign * pages;
    if (i == 0) load_.home[node] += sign * pages;
  }
}

unsigned Planner::nearness(std::size_t node, const NodeList& list, NodeId except) const {
  unsigned near = 0;
  for (const NodeId id : list) {
    const std::size_t other = id == except ? npos : table_.find(id);
    if (other != npos && other != node) near = std::max(near, closeness(table_.nodes()[node], table_.nodes()[other]));
  }
  return near;
}

/// The next node for `list`: as far from the others as can be, then within its bounds, then the nearest in the table.
/// When all are over their bounds: who is least so. npos: nobody has room.
std::size_t Planner::choose(ShardNo shard, const Placement::Shard& s, const NodeList& list, std::uint64_t bytes) const {
  const auto pages = static_cast<std::int64_t>(s.pages);
  const bool home = list.empty();
  std::size_t best = npos;
  unsigned best_near = 3;
  std::optional<std::int64_t> best_over;  // Of its bound; absent: within.
  for (const std::size_t i : table_.order(shard)) {
    if (list.contains(table_.nodes()[i].id) || !can_take(i, s, bytes)) continue;
    const unsigned near = nearness(i, list, NodeId{});
    std::int64_t over = load_.copy[i] + pages - bound(load_.copy_share[i]);
    if (home) over = std::max(over, load_.home[i] + pages - bound(load_.home_share[i]));
    const bool within = over <= 0;
    bool better = best == npos || near < best_near;
    if (!better && near == best_near) better = best_over && (within || over < *best_over);
    if (!better) continue;
    best = i;
    best_near = near;
    best_over = within ? std::nullopt : std::optional(over);
  }
  return best;
}

void Planner::take(std::size_t node, const Placement::Shard& s, std::uint64_t bytes) {
  if (!s.in_sync.contains(table_.nodes()[node].id)) free_[node] -= bytes;
}

void Planner::give_back(NodeId id, const Placement::Shard& s, std::uint64_t bytes) {
  const std::size_t node = table_.find(id);
  if (node != npos && !s.in_sync.contains(id)) free_[node] += bytes;
}

void Planner::fill_up(const Placement& p, ShardNo shard, Placement::Shard& s) {
  const std::uint64_t bytes = p.bytes_of(s);
  const auto pages = static_cast<std::int64_t>(s.pages);
  while (s.target.size() < copies_) {
    const std::size_t next = choose(shard, s, s.target, bytes);
    if (next == npos) return;
    take(next, s, bytes);
    if (s.target.empty()) load_.home[next] += pages;
    load_.copy[next] += pages;
    (void)s.target.push(table_.nodes()[next].id);
  }
}

/// Moves backups that share a host or a zone with another copy, where there is a node that does not.
void Planner::spread(const Placement& p, ShardNo shard, Placement::Shard& s) {
  const std::uint64_t bytes = p.bytes_of(s);
  for (std::size_t k = 1; k < s.target.size(); ++k) {
    const NodeId now = s.target[k];
    const unsigned near = nearness(table_.find(now), s.target, now);
    if (near == 0) continue;
    NodeList others = s.target;
    others.erase(now);
    const std::size_t next = choose(shard, s, others, bytes);
    if (next == npos || nearness(next, others, NodeId{}) >= near) continue;
    const auto pages = static_cast<std::int64_t>(s.pages);
    count(s.target, pages, -1);
    give_back(now, s, bytes);
    take(next, s, bytes);
    s.target.replace(k, table_.nodes()[next].id);
    count(s.target, pages, 1);
  }
}

bool Planner::create(Placement& p) {
  begin(p);
  const std::vector<std::uint64_t> before = free_;
  for (std::size_t i = 0; i < p.shards().size(); ++i) {
    Placement::Shard& s = p.shards()[i];
    s.target = {};
    fill_up(p, ShardNo{p.used()[i]}, s);
    if (s.target.size() == copies_) continue;
    free_ = before;
    return create_by_room(p);
  }
  even(p);
  return true;
}

/// When memory is too tight for order: the largest shards first, each to the members with most room.
bool Planner::create_by_room(Placement& p) {
  std::vector<std::size_t> by_size(p.shards().size());
  for (std::size_t i = 0; i < by_size.size(); ++i) by_size[i] = i;
  std::stable_sort(by_size.begin(), by_size.end(),
                   [&](std::size_t a, std::size_t b) { return p.shards()[a].pages > p.shards()[b].pages; });
  for (const std::size_t n : by_size) {
    Placement::Shard& s = p.shards()[n];
    const std::uint64_t bytes = p.bytes_of(s);
    std::vector<std::size_t> order = table_.order(ShardNo{p.used()[n]});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return free_[a] > free_[b]; });
    s.target = {};
    for (std::size_t copy = 0; copy < copies_; ++copy) {
      if (free_[order[copy]] < bytes) return false;
      free_[order[copy]] -= bytes;
      (void)s.target.push(table_.nodes()[order[copy]].id);
    }
  }
  return true;
}

void Planner::replan(Placement& p, const Readable& readable) {
  begin(p);
  for (Placement::Shard& s : p.shards()) {
    const std::uint64_t bytes = p.bytes_of(s);
    for (const NodeId id : s.target) give_back(id, s, bytes);
    NodeList kept;
    const bool stuck = !s.in_sync.empty() && !readable(s.in_sync[0]);
    if (!stuck) {
      // Where it was meant to be, then where it is: a copy that is there costs nothing.
      for (const NodeList& list : {s.target, s.in_sync}) {
        for (const NodeId id : list) {
          const std::size_t node = table_.find(id);
          if (node == npos || kept.contains(id) || kept.size() == copies_ || !can_take(node, s, bytes)) continue;
          (void)kept.push(id);
          take(node, s, bytes);
        }
      }
    }
    s.target = kept;
    count(s.target, static_cast<std::int64_t>(s.pages), 1);
  }
  for (std::size_t i = 0; i < p.shards().size(); ++i) {
    Placement::Shard& s = p.shards()[i];
    if (!s.in_sync.empty() && !readable(s.in_sync[0])) continue;
    fill_up(p, ShardNo{p.used()[i]}, s);
    spread(p, ShardNo{p.used()[i]}, s);
  }
  even(p);
}

void Planner::even(Placement& p) {
  // Who is short because of what is decided from here on is not: that would move things to and fro.
  const std::vector<std::size_t> homes = short_of(load_.home, load_.home_share);
  const std::vector<std::size_t> copies = short_of(load_.copy, load_.copy_share);
  for (const Only which : {Only::outranked, Only::overloaded}) {
    if (!homes.empty()) even_homes(p, homes, which);
  }
  for (const Only which : {Only::outranked, Only::overloaded}) {
    if (!copies.empty() && copies_ > 1) even_copies(p, copies, which);
  }
}

std::vector<std::size_t> Planner::short_of(const std::vector<std::int64_t>& load,
                                           const std::vector<std::int64_t>& share) const {
  std::vector<std::size_t> out;
  for (std::size_t i = 0; i < load.size(); ++i) {
    if (is_short(load[i], share[i], load_.block)) out.push_back(i);
  }
  return out;
}

unsigned Planner::nearness(const NodeList& list) const {
  unsigned sum = 0;
  for (std::size_t i = 0; i < list.size(); ++i) {
    for (std::size_t k = 0; k < i; ++k) {
      const std::size_t a = table_.find(list[i]), b = table_.find(list[k]);
      if (a != npos && b != npos) sum += closeness(table_.nodes()[a], table_.nodes()[b]);
    }
  }
  return sum;
}

/// `list` with another home. When it has enough then, the backup that is worst to keep goes: which is too near to the
/// others, else the last of the table.
NodeList Planner::with_home(ShardNo shard, const NodeList& list, NodeId home) const {
  NodeList after = list;
  after.erase(home);
  after.push_front(home);
  if (after.size() <= copies_) return after;
  NodeId out;
  std::pair<unsigned, bool> worst{};
  for (const NodeId n : list) {
    const std::size_t node = table_.find(n);
    const std::pair its{nearness(node, after, n), can_spare(load_.copy[node], load_.copy_share[node], load_.block)};
    const bool worse = !out || its > worst ||
                       (its == worst && table_.score(shard, table_.find(out)).before(table_.score(shard, node)));
    if (!worse) continue;
    out = n;
    worst = its;
  }
  after.erase(out);
  return after;
}

/// Gives homes to nodes that are short of them: first those that they stand nearer to, then those of nodes that have
/// too many. Each move brings both nodes nearer to their shares, so there is none too many.
void Planner::even_homes(Placement& p, const std::vector<std::size_t>& takers, Only which) {
  for (std::size_t i = 0; i < p.shards().size(); ++i) {
    Placement::Shard& s = p.shards()[i];
    if (s.target.empty()) continue;
    const ShardNo shard{p.used()[i]};
    const std::uint64_t bytes = p.bytes_of(s);
    const auto pages = static_cast<std::int64_t>(s.pages);
    const std::size_t home = table_.find(s.target[0]);
    const std::int64_t share = load_.home_share[home];
    const bool spare = which == Only::outranked ? can_spare(load_.home[home], share, pages)
                                                : 2 * load_.home[home] - pages >= 2 * share;
    if (!spare) continue;
    std::size_t best = npos;
    for (const std::size_t t : takers) {
      if (t == home || 2 * load_.home[t] + pages > 2 * load_.home_share[t]) continue;
      if (which == Only::outranked && !table_.score(shard, t).before(table_.score(shard, home))) continue;
      const NodeId id = table_.nodes()[t].id;
      if (!s.target.contains(id) && !can_take(t, s, bytes)) continue;
      if (nearness(with_home(shard, s.target, id)) > nearness(s.target)) continue;
      if (best == npos || table_.score(shard, t).before(table_.score(shard, best))) best = t;
    }
    if (best == npos) continue;
    const NodeList after = with_home(shard, s.target, table_.nodes()[best].id);
    count(s.target, pages, -1);
    for (const NodeId id : s.target) {
      if (!after.contains(id)) give_back(id, s, bytes);
    }
    if (!s.target.contains(after[0])) take(best, s, bytes);
    s.target = after;
    count(s.target, pages, 1);
  }
}

/// The same for backups.
void Planner::even_copies(Placement& p, const std::vector<std::size_t>& takers, Only which) {
  for (std::size_t i = 0; i < p.shards().size(); ++i) {
    Placement::Shard& s = p.shards()[i];
    const ShardNo shard{p.used()[i]};
    const std::uint64_t bytes = p.bytes_of(s);
    const auto pages = static_cast<std::int64_t>(s.pages);
    for (std::size_t k = s.target.size(); k-- > 1;) {
      const NodeId now = s.target[k];
      const std::size_t holder = table_.find(now);
      const std::int64_t share = load_.copy_share[holder];
      const bool spare = which == Only::outranked ? can_spare(load_.copy[holder], share, pages)
                                                  : 2 * load_.copy[holder] - pages >= 2 * share;
      if (!spare) continue;
      const unsigned near = nearness(holder, s.target, now);
      std::size_t best = npos;
      for (const std::size_t t : takers) {
        if (s.target.contains(table_.nodes()[t].id) || 2 * load_.copy[t] + pages > 2 * load_.copy_share[t]) continue;
        if (which == Only::outranked && !table_.score(shard, t).before(table_.score(shard, holder))) continue;
        if (!can_take(t, s, bytes) || nearness(t, s.target, now) > near) continue;
        if (best == npos || table_.score(shard, t).before(table_.score(shard, best))) best = t;
      }
      if (best == npos) continue;
      count(s.target, pages, -1);
      give_back(now, s, bytes);
      take(best, s, bytes);
      s.target.replace(k, table_.nodes()[best].id);
      count(s.target, pages, 1);
      break;
    }
  }
}

}  // namespace holo::control
