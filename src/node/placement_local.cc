#include "node/placement_local.h"

#include <algorithm>
#include <array>

#include "base/strings.h"
#include "node/json.h"
#include "node/local_calls.h"
#include "wire/placement.pb.h"

namespace holo::node {
namespace {

using control::NodeList;
using control::NodeRecord;
using control::NodeState;
using control::ResourceClass;
using control::ShardTable;
using control::State;

constexpr Duration kChange = seconds(15);
constexpr Duration kLook = seconds(10);
constexpr std::size_t kRegionsShown = 64;

/// A member, by name or id; the living first, for a name can be used again. Empty: this node.
Result<NodeId> member(const ControlService& control, const std::string& text) {
  if (text.empty()) return control.self();
  const auto id = parse_node_id(text);
  NodeId found;
  bool left = false;
  for (const auto& [node, record] : control.state().nodes()) {
    if (record.name != text && !(id && node == *id)) continue;
    if (record.state == NodeState::left) {
      left = true;
      continue;
    }
    if (!found || record.alive()) found = node;
  }
  if (found) return found;
  return fail(Errc::not_found, str(left ? "node " : "there is no node ", text, left ? " has left the cluster" : ""),
              "holo status lists the members");
}

Result<ResourceClass> resource_of(const std::string& name) {
  if (name.empty()) return ResourceClass::memory;
  for (const auto c : {ResourceClass::memory, ResourceClass::cpu, ResourceClass::gpu, ResourceClass::disk}) {
    if (name == control::resource_class_name(c)) return c;
  }
  return fail(Errc::invalid_argument, str("there is no resource class ", name), "memory, cpu, gpu, disk");
}

std::string name_of(const State& state, NodeId id) {
  const NodeRecord* n = state.node(id);
  return n != nullptr && !n->name.empty() ? n->name : to_hex(id.value);
}

/// What of a node's pages stands where, over all regions.
struct Held {
  std::uint64_t home_shards = 0, copy_shards = 0, home_pages = 0, copy_pages = 0;
  std::uint64_t leaving = 0, arriving = 0, arriving_bytes = 0, leaving_bytes = 0, nowhere = 0;
};

std::map<NodeId, Held> holdings(const State& state) {
  std::map<NodeId, Held> out;
  for (const RegionId region : state.regions()) {
    const std::uint64_t page = state.region(region)->page_bytes;
    state.for_each_shard(region, [&](const State::ShardView& s) {
      for (std::size_t i = 0; i < s.in_sync.size(); ++i) {
        Held& h = out[s.in_sync[i]];
        h.home_shards += i == 0 ? 1 : 0;
        h.copy_shards += i == 0 ? 0 : 1;
        (i == 0 ? h.home_pages : h.copy_pages) += s.pages;
        if (s.target.empty() && !state.table().nodes().empty() && s.written) {
          const NodeRecord* n = state.node(s.in_sync[i]);
          h.nowhere += n != nullptr && n->alive() && n->draining ? 1 : 0;
        } else if (!s.target.empty() && !s.target.contains(s.in_sync[i])) {
          ++h.leaving;
          h.leaving_bytes += s.pages * page;
        }
      }
      for (const NodeId n : s.target) {
        if (s.in_sync.contains(n) && s.unproven != n) continue;
        ++out[n].arriving;
        out[n].arriving_bytes += s.pages * page;
      }
    });
  }
  return out;
}

std::string shards_json(const State& state, ResourceClass klass) {
  const ShardTable ring = klass == ResourceClass::memory ? state.table() : state.ring(klass);
  std::map<NodeId, std::pair<std::uint64_t, std::uint64_t>> counts;
  for (std::uint16_t s = 0; s < limits::kShards && ring.size() > 0; ++s) {
    const control::NodeList list = ring.list(ShardNo{s}, 2);
    ++counts[list[0]].first;
    if (list.size() > 1) ++counts[list[1]].second;
  }
  const auto held = holdings(state);
  std::uint64_t under_way = 0;
  state.for_each_move([&](const State::ShardView& s) { under_way += s.filling || s.unproven ? 1 : 0; });
  JsonWriter w;
  w.object([&] {
    w.field("shards", limits::kShards);
    w.field("resource", std::string(control::resource_class_name(klass)));
    w.field("weights_by", state.weighs_by_score() ? "score" : "memory");
    w.field("epoch", state.epoch().value);
    w.key("moves");
    w.object([&] {
      w.field("left", static_cast<std::uint64_t>(state.moves_left()));
      w.field("under_way", under_way);
    });
    w.key("cut_paths");
    w.array([&] {
      for (const auto& [from, to] : state.cut_paths()) {
        w.object([&] {
          w.field("from", name_of(state, from));
          w.field("to", name_of(state, to));
        });
      }
    });
    w.key("nodes");
    w.array([&] {
      for (const auto& [id, n] : state.nodes()) {
        if (n.state == NodeState::left) continue;
        const std::size_t at = ring.find(id);
        const auto count = counts.contains(id) ? counts.at(id) : std::pair<std::uint64_t, std::uint64_t>{};
        const Held h = held.contains(id) ? held.at(id) : Held{};
        w.object([&] {
          w.field("id", to_hex(id.value));  // NOLINT(clang-analyzer-core.NullDereference): it is a key of the map.
          w.field("name", n.name);
          w.field("state", std::string(control::node_state_name(n.state)));
          w.field("draining", n.draining);
          w.field("witness", n.witness);
          w.field("zone", n.place.zone);
          w.field("host", n.place.host);
          w.field("weight", at == ShardTable::npos ? std::uint64_t{0} : ring.nodes()[at].weight);
          w.field("factor", n.weight_permille / 1000.0);
          w.field("share", at == ShardTable::npos ? 0.0
                                                  : static_cast<double>(ring.nodes()[at].weight) /
                                                        static_cast<double>(ring.total_weight()));
          w.field("home", count.first);
          w.field("backup", count.second);
          w.key("held");
          w.object([&] {
            w.field("home_shards", h.home_shards);
            w.field("copy_shards", h.copy_shards);
            w.field("home_pages", h.home_pages);
            w.field("copy_pages", h.copy_pages);
            w.field("reserved_bytes", n.reserved_bytes);
            w.field("arriving", h.arriving);
            w.field("arriving_bytes", h.arriving_bytes);
            w.field("leaving", h.leaving);
            w.field("leaving_bytes", h.leaving_bytes);
            w.field("nowhere", h.nowhere);
          });
        });
      }
    });
  });
  return w.text();
}

/// How near a node of the ring lies to one of the first `count` of `list`, at worst; and to which.
std::pair<unsigned, NodeId> nearest(const ShardTable& ring, const NodeList& list, std::size_t count, std::size_t at) {
  std::pair<unsigned, NodeId> out{0, {}};
  for (std::size_t i = 0; i < count; ++i) {
    const unsigned near = control::closeness(ring.nodes()[at], ring.nodes()[ring.find(list[i])]);
    if (near > out.first) out = {near, list[i]};
  }
  return out;
}

/// Why a node does not come sooner for a shard, or at all.
std::string why_not(const State& state, const ShardTable& ring, ShardNo shard, const NodeRecord& n, ResourceClass klass,
                    const NodeList& list) {
  if (n.state == NodeState::dead) return "it is dead";
  if (n.witness) return "it is a witness, which holds no pages";
  if (n.draining) return "it is being drained";
  const std::size_t at = ring.find(n.id);
  if (at == ShardTable::npos) return str("it has nothing of the class ", control::resource_class_name(klass));
  const auto found = std::ranges::find(list, n.id);
  const auto place = static_cast<std::size_t>(found - list.begin());
  if (place == 0) return "home: the best score";
  const auto [near, to] = nearest(ring, list, place, at);
  if (found != list.end()) {
    constexpr std::array<std::string_view, 3> kWhy{"the next score that lies apart",
                                                   "the next score, as no node of another zone is left",
                                                   "the next score, as no node of another host is left"};
    return str("backup ", place, ": ", kWhy[near]);
  }
  // Passed over for a place only if somebody has one with a lower score.
  const bool outdone = std::ranges::any_of(
      list, [&](NodeId other) { return ring.score(shard, at).before(ring.score(shard, ring.find(other))); });
  if (!outdone) return "others score higher";
  return str("it is ", near == 2 ? "on one host" : "in one zone", " with ", name_of(state, to), ", and others are not");
}

std::string explain_json(const State& state, ShardNo shard, ResourceClass klass) {
  const ShardTable ring = klass == ResourceClass::memory ? state.table() : state.ring(klass);
  const control::NodeList list = ring.list(shard, limits::kMaxReplication);
  JsonWriter w;
  const auto names = [&](const control::NodeList& nodes) {
    w.array([&] {
      for (const NodeId n : nodes) w.value(name_of(state, n));
    });
  };
  w.object([&] {
    w.field("shard", static_cast<std::uint64_t>(shard.value));
    w.field("resource", std::string(control::resource_class_name(klass)));
    w.key("order");
    names(list);
    w.key("nodes");
    w.array([&] {
      const auto one = [&](NodeId id, std::size_t at) {
        const NodeRecord& n = *state.node(id);
        w.object([&] {
          w.field("id", to_hex(id.value));
          w.field("name", n.name);
          w.field("zone", n.place.zone);
          w.field("host", n.place.host);
          if (at != ShardTable::npos) {
            const control::Score score = ring.score(shard, at);
            w.field("weight", score.weight);
            w.field("cost", score.cost);
            // weight / -log2(hash): shown only; what counts is compared in integers.
            w.field("score", static_cast<double>(score.weight) * 4294967296.0 / static_cast<double>(score.cost));
          }
          w.field("why", why_not(state, ring, shard, n, klass, list));
        });
      };
      for (const std::size_t i : ring.order(shard)) one(ring.nodes()[i].id, i);
      for (const auto& [id, n] : state.nodes()) {
        if (n.state != NodeState::left && ring.find(id) == ShardTable::npos) one(id, ShardTable::npos);
      }
    });
    if (klass != ResourceClass::memory) return;
    w.key("regions");
    w.array([&] {
      std::size_t shown = 0;
      for (const RegionId id : state.regions()) {
        const auto view = state.shard_view(id, shard);
        if (!view || ++shown > kRegionsShown) continue;
        const control::RegionRecord& r = *state.region(id);
        const control::NodeList wanted = state.table().list(shard, r.replication);
        w.object([&] {
          w.field("name", r.name);
          w.field("pages", view->pages);
          w.key("held_by");
          names(view->in_sync);
          w.key("planned");
          names(view->target);
          if (view->filling) w.field("copying_to", name_of(state, view->filling));
          if (view->unproven) w.field("checking", name_of(state, view->unproven));
          const NodeRecord* home = view->in_sync.empty() ? nullptr : state.node(view->in_sync[0]);
          std::string why = "as the table says";
          if (home == nullptr) {
            why = "nobody has room for it";
          } else if (!home->alive()) {
            why = "only there, and down: it stays until that node returns or is removed";
          } else if (view->target.empty()) {
            why = "nobody else has room for it";
          } else if (!(view->target == wanted)) {
            why = "not as the table says: by that, a node would have more than its share of this region, or no room";
          }
          if (view->moving() && home != nullptr && home->alive()) why += "; on its way";
          w.field("why", why);
        });
      }
    });
  });
  return w.text();
}

// ---- Requests

Task<Result<LocalReply>> show_shards(ControlService* control, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode_local<wire::ShardsRequest>(request));
  HOLO_CO_ASSIGN(klass, resource_of(ask.resource()));
  co_return json_reply(shards_json(control->state(), klass));
}

Task<Result<LocalReply>> explain_shard(ControlService* control, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode_local<wire::ExplainShardRequest>(request));
  HOLO_CO_ASSIGN(klass, resource_of(ask.resource()));
  if (ask.shard() >= limits::kShards) {
    co_return fail(Errc::invalid_argument, str("there is no shard ", ask.shard()),
                   str("shards are numbered from 0 to ", limits::kShards - 1));
  }
  co_return json_reply(explain_json(control->state(), ShardNo{static_cast<std::uint16_t>(ask.shard())}, klass));
}

Task<Result<LocalReply>> drain(env::Loop* loop, ControlService* control, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode_local<wire::DrainRequest>(request));
  const Instant look = loop->now() + kLook;
  HOLO_CO_TRY(co_await control->barrier(look));
  HOLO_CO_ASSIGN(node, member(*control, ask.node()));
  wire::CommandBody body;
  body.mutable_node_drain()->set_node(node.value);
  body.mutable_node_drain()->set_on(ask.on());
  body.mutable_node_drain()->set_force(ask.force());
  const Instant deadline = loop->now() + kChange;
  HOLO_CO_TRY(co_await control->propose(std::move(body), deadline));
  JsonWriter w;
  w.object([&] {
    w.field("node", to_hex(node.value));
    w.field("name", name_of(control->state(), node));
    w.field("draining", ask.on());
  });
  co_return json_reply(w.text());
}

/// Nothing forces a change on the others: those who cannot be heard may be alive, and decide the opposite.
Error no_majority_to_remove(Error e) {
  if (e.code != Errc::no_quorum) return e;
  e.message += "; no node is taken out without a majority of the voters, by force neither";
  e.hint =
      "start the others again; if they are gone for good: holo control snapshot FILE --stale here, then holo init "
      "--restore FILE with a fresh --state-dir";
  return e;
}

Task<Result<LocalReply>> remove(env::Loop* loop, ControlService* control, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode_local<wire::RemoveRequest>(request));
  const Instant look = loop->now() + kLook;
  const Status here = co_await control->barrier(look);
  if (!here) co_return std::unexpected(no_majority_to_remove(here.error()));
  HOLO_CO_ASSIGN(node, member(*control, ask.node()));
  if (node == control->self()) {
    co_return fail(Errc::refused, "a node does not remove itself", "holo leave, or holo remove on another machine");
  }
  const std::string name = name_of(control->state(), node);
  wire::CommandBody body;
  body.mutable_node_remove()->set_node(node.value);
  body.mutable_node_remove()->set_force(ask.force());
  const Instant deadline = loop->now() + kChange;
  HOLO_CO_ASSIGN(result, co_await control->propose(std::move(body), deadline));
  JsonWriter w;
  w.object([&] {
    w.field("node", to_hex(node.value));
    w.field("name", name);
    w.key("lost");
    w.array([&] {
      for (const wire::LostPages& l : result.lost()) {
        w.object([&] {
          w.field("region", l.region());
          w.field("pages", l.pages());
          w.field("bytes", l.bytes());
        });
      }
    });
  });
  co_return json_reply(w.text());
}

Task<Result<LocalReply>> weigh(env::Loop* loop, ControlService* control, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode_local<wire::WeightRequest>(request));
  wire::CommandBody body;
  auto* c = body.mutable_weigh_nodes();
  if (ask.by() == "memory") c->set_by(wire::WeighNodes::MEMORY);
  if (ask.by() == "score") c->set_by(wire::WeighNodes::SCORE);
  if (!ask.by().empty() && c->by() == wire::WeighNodes::UNCHANGED) {
    co_return fail(Errc::invalid_argument, str("weights are not made of ", ask.by()), "memory, or score");
  }
  if (!ask.node().empty()) {
    const Instant look = loop->now() + kLook;
    HOLO_CO_TRY(co_await control->barrier(look));
    HOLO_CO_ASSIGN(node, member(*control, ask.node()));
    c->set_node(node.value);
    c->set_permille(ask.permille());
  }
  const Instant deadline = loop->now() + kChange;
  HOLO_CO_TRY(co_await control->propose(std::move(body), deadline));
  co_return json_reply(shards_json(control->state(), ResourceClass::memory));
}

}  // namespace

void serve_placement(env::Loop& loop, ControlService& control, LocalApi& api) {
  env::Loop* l = &loop;
  ControlService* c = &control;
  api.serve(wire::SHARDS, [c](std::shared_ptr<LocalSession>, LocalRequest r) { return show_shards(c, std::move(r)); });
  api.serve(wire::EXPLAIN_SHARD,
            [c](std::shared_ptr<LocalSession>, LocalRequest r) { return explain_shard(c, std::move(r)); });
  api.serve(wire::NODE_DRAIN,
            [l, c](std::shared_ptr<LocalSession>, LocalRequest r) { return drain(l, c, std::move(r)); });
  api.serve(wire::NODE_REMOVE,
            [l, c](std::shared_ptr<LocalSession>, LocalRequest r) { return remove(l, c, std::move(r)); });
  api.serve(wire::NODE_WEIGHT,
            [l, c](std::shared_ptr<LocalSession>, LocalRequest r) { return weigh(l, c, std::move(r)); });
}

}  // namespace holo::node
