#include "core/control/state.h"

#include <algorithm>

#include "base/seeded_bugs.h"
#include "base/strings.h"
#include "core/control/results.h"

namespace holo::control {

std::string_view node_state_name(NodeState s) {
  switch (s) {
    case NodeState::alive: return "alive";
    case NodeState::dead: return "dead";
    case NodeState::left: return "left";
  }
  return "unknown";
}

State::State() = default;
State::~State() = default;

// ---- Applying

wire::CommandResult State::apply(LogIndex index, WallTime when, ByteSpan command) {
  applied_ = index;
  now_ = std::max(now_, when);
  wire::Command c;
  if (command.size() > limits::kMaxCommandBytes ||
      !c.ParseFromArray(command.data(), static_cast<int>(command.size()))) {
    return refusal(Errc::malformed, str("log entry ", index, " is not a command"));
  }
  const NodeId client{c.client()};
  if (!c.body().has_cluster_init() && !nodes_.contains(client)) {
    return refusal(Errc::refused, str("node ", client, " is not a member of this cluster"));
  }
  if (revoked_.contains(client)) return refusal(Errc::permission_denied, str("node ", client, " was revoked"));
  // A cluster that is being made has no members yet; its maker's session begins with this command.
  Session& session = sessions_[client];
  if (c.incarnation() < session.incarnation) {
    return refusal(Errc::refused, str("node ", client, " has been started again since"));
  }
  if (c.incarnation() > session.incarnation) session.start(c.incarnation());
  if (const auto it = session.results.find(c.sequence());
      it != session.results.end() && !HOLO_SEEDED_BUG(forgotten_dedup)) {
    return it->second;
  }
  if (c.sequence() < session.floor) return refusal(Errc::refused, "the command was given up before it arrived");

  const std::uint64_t keys_before = keys_.revision();
  wire::CommandResult result = dispatch(c);
  if (keys_.revision() != keys_before) {
    for (StateObserver* o : observers_) o->on_keys_changed();
  }
  result.set_epoch(epoch_.value);
  if (!nodes_.contains(client)) {
    sessions_.erase(client);
    return result;
  }
  sessions_[client].remember(c.sequence(), c.outstanding(), result);
  return result;
}

std::optional<wire::CommandResult> State::result_of(NodeId client, std::uint64_t incarnation,
                                                    std::uint64_t sequence) const {
  const auto session = sessions_.find(client);
  if (session == sessions_.end() || session->second.incarnation != incarnation) return std::nullopt;
  const auto it = session->second.results.find(sequence);
  if (it == session->second.results.end()) return std::nullopt;
  return it->second;
}

// ---- Nodes

const NodeRecord* State::node(NodeId id) const {
  const auto it = nodes_.find(id);
  return it == nodes_.end() ? nullptr : &it->second;
}

bool State::alive(NodeId id, std::uint64_t incarnation) const {
  const NodeRecord* n = node(id);
  return n != nullptr && n->alive() && n->incarnation == incarnation;
}

std::vector<NodeId> State::live_nodes() const {
  std::vector<NodeId> out;
  for (const auto& [id, n] : nodes_) {
    if (n.alive()) out.push_back(id);
  }
  return out;
}

std::vector<NodeId> State::live_holders() const {
  std::vector<NodeId> out;
  for (const auto& [id, n] : nodes_) {
    if (n.alive() && !n.witness) out.push_back(id);
  }
  return out;
}

// ---- Regions

const State::Region* State::find(RegionId id) const {
  const auto it = regions_.find(id);
  return it == regions_.end() ? nullptr : it->second.get();
}

const RegionRecord* State::region(RegionId id) const {
  const Region* r = find(id);
  return r == nullptr ? nullptr : &r->record;
}

const RegionRecord* State::region_by_name(std::string_view name) const {
  const auto it = names_.find(name);
  return it == names_.end() ? nullptr : region(it->second);
}

std::vector<RegionId> State::regions() const { return region_ids(); }

std::vector<RegionId> State::region_ids() const {
  std::vector<RegionId> ids;
  ids.reserve(regions_.size());
  for (const auto& [id, r] : regions_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());  // The table has no order of its own, and every node must go through it alike.
  return ids;
}

std::vector<std::pair<NodeId, std::uint64_t>> State::pages_by_node(RegionId id) const {
  std::map<NodeId, std::uint64_t> pages;
  for_each_shard(id, [&](const ShardView& s) {
    if (!s.in_sync.empty()) pages[s.in_sync[0]] += s.pages;
  });
  return {pages.begin(), pages.end()};
}

// ---- Placement

ShardNo State::shard_of(RegionId region, PageNo page) const {
  const Region* r = find(region);
  return r == nullptr ? ShardNo{} : r->placement.shard_of(page);
}

NodeList State::replicas(RegionId region, PageNo page) const {
  const Region* r = find(region);
  if (r == nullptr || page.value >= r->record.pages) return {};
  const Placement::Shard* s = r->placement.shard(r->placement.shard_of(page));
  return s == nullptr ? NodeList{} : s->in_sync;
}

NodeId State::home(RegionId region, PageNo page) const {
  const NodeList list = replicas(region, page);
  return list.empty() ? NodeId{} : list[0];
}

NodeId State::sole_holder(RegionId region, PageNo page) const {
  const NodeId id = home(region, page);
  const NodeRecord* n = node(id);
  return n == nullptr || n->alive() ? NodeId{} : id;
}

NodeId State::filling(RegionId region, PageNo page) const {
  const Region* r = find(region);
  if (r == nullptr || page.value >= r->record.pages) return {};
  const Placement::Shard* s = r->placement.shard(r->placement.shard_of(page));
  return s == nullptr ? NodeId{} : s->filling;
}

std::uint32_t State::wanted_copies(RegionId region) const {
  const Region* r = find(region);
  if (r == nullptr) return 1;
  return static_cast<std::uint32_t>(std::clamp<std::size_t>(holder_count_, 1, r->record.replication));
}

void State::for_each_block(RegionId region, const std::function<void(PageRange pages, NodeId home)>& f) const {
  const Region* r = find(region);
  if (r == nullptr) return;
  for (std::uint64_t b = 0; b < r->record.blocks; ++b) {
    const std::uint64_t first = b * r->record.block_pages;
    f({first, std::min(r->record.block_pages, r->record.pages - first)}, home(region, PageNo{first}));
  }
}

std::vector<PageRange> State::pages_of_shard(RegionId region, ShardNo shard) const {
  std::vector<PageRange> out;
  const Region* r = find(region);
  if (r == nullptr) return out;
  for (std::uint64_t b = 0; b < r->record.blocks; ++b) {
    if (r->placement.shard_of_block(b) != shard) continue;
    const std::uint64_t first = b * r->record.block_pages;
    const std::uint64_t count = std::min(r->record.block_pages, r->record.pages - first);
    if (!out.empty() && out.back().end() == first) {
      out.back().count += count;
    } else {
      out.push_back({first, count});
    }
  }
  return out;
}

// ---- Directory

Version State::version_of(RegionId region, PageNo page) const {
  const Region* r = find(region);
  return r == nullptr ? Version{} : r->directory.at(page);
}

void State::for_each_written(RegionId region, const std::function<void(PageRange, Version)>& f) const {
  for_each_written_since(region, Version{}, {0, UINT64_MAX}, f);
}

void State::for_each_written_since(RegionId region, Version since, PageRange within,
                                   const std::function<void(PageRange, Version)>& f) const {
  const Region* r = find(region);
  if (r == nullptr || within.first >= r->record.pages) return;
  within.count = std::min(within.count, r->record.pages - within.first);
  r->directory.visit(within, since, f);
}

}  // namespace holo::control
