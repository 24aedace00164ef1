#include "node/status.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "base/strings.h"
#include "node/json.h"
#include "node/membership.h"
#include "node/ping.h"

namespace holo::node {
namespace {

/// A node's name for people; its id while the name is unknown.
std::string name_of(const control::State& state, NodeId id) {
  const auto* record = state.node(id);
  return record && !record->name.empty() ? record->name : to_hex(id.value);
}

void write_cluster(JsonWriter& w, const StatusSources& s) {
  const auto& state = s.control.state();
  const auto leader = s.control.leader();
  w.key("cluster");
  w.object([&] {
    const bool known = static_cast<bool>(state.cluster());
    w.field("id", to_hex(known ? state.cluster().value : s.cluster.value));
    w.field("name", known ? state.cluster_name() : s.cluster_name);
    w.field("epoch", state.epoch().value);
    w.field("leader", leader ? to_hex(leader.value) : std::string());
    w.field("leader_name", leader ? name_of(state, leader) : std::string());
    w.field("applied", state.applied().value);
    const auto apart = s.control.apart();
    w.field("primary", !apart.has_value());
    w.field("primary_reason", apart ? apart->message : std::string());
    w.field("inventories_refused", state.inventories_refused());
    w.key("refused");
    w.object([&] {
      w.field("wrong_key", s.refused.wrong_key);
      w.field("wrong_version", s.refused.wrong_version);
      w.field("garbage", s.refused.garbage);
      w.field("unknown_identity", s.refused.unknown_identity);
      w.field("changed_key", s.refused.changed_key);
      w.field("revoked", s.refused.revoked);
    });
  });
}

/// What this node itself sees of another, whatever the log says.
void write_seen(JsonWriter& w, const StatusSources& s, const control::NodeRecord& node) {
  if (node.id == s.control.self()) {
    w.field("seen", std::string(node.draining ? "draining" : "alive"));
    w.field("last_heard_ms", 0);
    return;
  }
  const membership::View view = s.control.membership().view(node.id);
  w.field("seen", std::string(membership::standing_name(view.standing)));
  w.field("last_heard_ms", view.last_heard ? (s.now - *view.last_heard).millis() : -1);
}

void write_membership(JsonWriter& w, const StatusSources& s) {
  const membership::SwimCounters c = s.control.membership().counters();
  w.key("membership");
  w.object([&] {
    w.field("probes", c.probes);
    w.field("probes_failed", c.probes_failed);
    w.field("indirect_asked", c.asked);
    w.field("indirect_answered", c.indirect_answers);
    w.field("indirect_served", c.helped);
    w.field("suspicions", c.suspicions);
    w.field("false_suspicions", c.false_suspicions);
    w.field("refutations", c.refutations);
    w.field("verdicts", c.verdicts);
    w.field("retractions", c.retractions);
    w.field("stalls", c.stalls);
    w.field("death_claims", c.death_claims);
    w.field("refused", c.refused + s.control.membership().malformed());
    w.field("unknown", c.unknown);
    w.field("local_health", c.health);
  });
}

void write_nodes(JsonWriter& w, const StatusSources& s) {
  w.key("nodes");
  w.array([&] {
    std::vector<const control::NodeRecord*> nodes;
    for (const auto& [id, node] : s.control.state().nodes()) nodes.push_back(&node);
    std::ranges::sort(nodes,
                      [](const auto* a, const auto* b) { return std::tie(a->name, a->id) < std::tie(b->name, b->id); });
    for (const auto* record : nodes) {
      const control::NodeRecord& node = *record;
      const NodeId id = node.id;
      const bool here = id == s.control.self();
      w.object([&] {
        w.field("id", to_hex(id.value));
        w.field("name", node.name);
        w.field("address", node.addresses.empty() ? std::string() : node.addresses.front());
        w.key("addresses");
        w.array([&] {
          for (const std::string& a : node.addresses) w.value(a);
        });
        w.field("state", std::string(control::node_state_name(node.state)));
        w.field("voter", node.voter);
        w.field("draining", node.draining);
        w.field("witness", node.witness);
        w.field("zone", node.place.zone);
        w.field("host", node.place.host);
        w.field("rack", node.place.rack);
        w.key("labels");
        w.object([&] {
          for (const control::NodeLabel& l : node.place.labels) w.field(l.key, l.value);
        });
        w.field("cores", node.cores);
        w.field("memory_bytes", node.memory_bytes);
        w.field("frames_used_bytes", here ? s.memory.frames_used_bytes : s.control.frames_used(id));
        w.field("reserved_bytes", node.reserved_bytes);
        w.field("speed", node.speed);
        const membership::Health* health = here ? &s.health : s.control.health(id);
        if (health != nullptr) {
          w.field("health", health->score);
          w.key("health_reasons");
          w.array([&] {
            for (const std::string& reason : health->reasons) w.value(reason);
          });
        }
        w.field("inventory_ms", node.inventory_ms);
        w.field("version", node.version);
        w.field("incarnation", node.incarnation);
        write_seen(w, s, node);
      });
    }
  });
}

void write_regions(JsonWriter& w, const StatusSources& s) {
  const auto& state = s.control.state();
  w.key("regions");
  w.array([&] {
    for (const auto id : state.regions()) {
      const auto* region = state.region(id);
      if (!region) continue;
      w.object([&] {
        w.field("id", id.value);
        w.field("name", region->name);
        w.field("type", region->type);
        w.field("count", region->count);
        w.field("bytes", region->bytes);
        w.field("page_bytes", region->page_bytes);
        w.field("pages", region->pages);
        w.field("mode", region->mode);
        w.field("replication", region->replication);
        w.field("version", region->version.value);
        w.field("owner_uid", region->owner_uid);
        w.key("pages_by_node");
        w.object([&] {
          for (const auto& [node, pages] : state.pages_by_node(id)) w.field(to_hex(node.value), pages);
        });
      });
    }
  });
}

double microseconds_of(Duration d) { return static_cast<double>(d.ns) / 1000.0; }

void write_summary(JsonWriter& w, const char* name, const obs::Summary& s) {
  w.key(name);
  w.object([&] {
    w.field("count", s.count);
    w.field("min_us", microseconds_of(s.min));
    w.field("mean_us", microseconds_of(s.mean));
    w.field("p50_us", microseconds_of(s.p50));
    w.field("p99_us", microseconds_of(s.p99));
    w.field("max_us", microseconds_of(s.max));
  });
}

constexpr std::array kClasses = {"control", "data", "bulk"};
static_assert(kClasses.size() == hyperbus::kStreamClasses);

void write_peer(JsonWriter& w, const StatusSources& s, const PeerStatus& peer) {
  w.field("peer", name_of(s.control.state(), peer.peer));
  w.field("peer_id", to_hex(peer.peer.value));
  w.field("connected", peer.connected);
  w.field("connections", peer.connections);
  w.field("bytes_in", peer.figures.bytes_in);
  w.field("bytes_out", peer.figures.bytes_out);
  w.field("packets_in", peer.figures.packets_received);
  w.field("packets_out", peer.figures.packets_sent);
  w.field("packets_lost", peer.figures.packets_lost);
  w.field("congestion_marks", peer.figures.congestion_marks);
  w.field("key_updates", peer.figures.key_updates);
  w.key("classes");
  w.object([&] {
    for (std::size_t i = 0; i < kClasses.size(); ++i) {
      const PeerStatus::Class& c = peer.classes[i];
      w.key(kClasses[i]);
      w.object([&] {
        w.field("credit_waits", c.credit_waits);
        w.field("overloaded", c.overloaded);
        w.field("turned_away", c.turned_away);
        w.field("packets_lost", c.packets_lost);
        w.key("failed");
        w.object([&] {
          for (const auto& [code, n] : c.failed) w.field(errc_name(code), n);
        });
        write_summary(w, "credit_wait", c.credit_wait);
        write_summary(w, "round_trip", c.round_trip);
      });
    }
  });
}

void write_link(JsonWriter& w, const StatusSources& s, const LinkStatus& link) {
  w.field("peer", name_of(s.control.state(), link.peer));
  w.field("peer_id", to_hex(link.peer.value));
  w.field("address", link.address);
  w.field("dialled", link.dialled);
  w.field("closing", link.closing);
  w.field("carrier", link.carrier);
  w.field("cipher", link.cipher);
  w.field("version", link.version);
  w.field("path_mtu", path_mtu(link));
  w.field("ecn", link.figures.ecn);
  w.field("bytes_in", link.figures.bytes_in);
  w.field("bytes_out", link.figures.bytes_out);
  w.field("packets_in", link.figures.packets_received);
  w.field("packets_out", link.figures.packets_sent);
  w.field("packets_lost", link.figures.packets_lost);
  w.field("congestion_marks", link.figures.congestion_marks);
  w.field("key_updates", link.figures.key_updates);
  w.field("round_trip_us", microseconds_of(link.figures.round_trip));
  w.field("min_round_trip_us", microseconds_of(link.figures.min_round_trip));
  w.key("classes");
  w.object([&] {
    for (std::size_t i = 0; i < kClasses.size(); ++i) {
      const hyperbus::ClassStatus& c = link.classes[i];
      w.key(kClasses[i]);
      w.object([&] {
        w.field("in_flight", c.in_flight);
        w.field("queued", c.queued);
        w.field("serving", c.serving);
        w.field("request_credit", c.request_credit);
        w.field("byte_credit", c.byte_credit);
        w.field("credit_waits", c.credit_waits);
        w.field("overloaded", c.overloaded);
        w.field("turned_away", c.turned_away);
        w.field("packets_lost", c.packets_lost);
        write_summary(w, "credit_wait", c.credit_wait);
        write_summary(w, "round_trip", link.round_trips[i]);
      });
    }
  });
}

void write_handshakes(JsonWriter& w, const HandshakeFigures& h) {
  static constexpr std::array kCauses = {"given_up",         "wrong_key",   "wrong_version", "garbage",
                                         "unknown_identity", "changed_key", "revoked"};
  static_assert(kCauses.size() == HandshakeFigures::kKinds);
  const auto role = [&](const char* name, const HandshakeFigures::Role& r) {
    w.key(name);
    w.object([&] {
      w.field("done", r.done);
      w.key("failed");
      w.object([&] {
        for (std::size_t i = 0; i < kCauses.size(); ++i) w.field(kCauses[i], r.failed[i]);
      });
    });
  };
  w.key("handshakes");
  w.object([&] {
    role("dialled", h.dialled);
    role("accepted", h.accepted);
    write_summary(w, "duration", h.duration);
  });
}

void write_this_node(JsonWriter& w, const StatusSources& s) {
  w.key("this_node");
  w.object([&] {
    w.field("id", to_hex(s.control.self().value));
    w.field("ready", s.control.ready());
    w.field("removed", s.control.removed());
    w.field("processes", s.sessions);
    w.key("memory");
    w.object([&] {
      const auto& m = s.memory;
      w.field("limit_bytes", m.limit_bytes);
      w.field("owned_bytes", m.owned_bytes);
      w.field("cached_bytes", m.cached_bytes);
      w.field("overflow_bytes", m.overflow_bytes);
      w.field("views", m.views);
      w.field("faults", m.counters.faults);
      w.field("pages_fetched", m.counters.pages_fetched);
      w.field("pages_landed", m.counters.pages_landed);
      w.field("slots_copied", m.counters.slots_copied);
      w.field("pages_served", m.counters.pages_served);
      w.field("pages_staged", m.counters.pages_staged);
      w.field("conflicts", m.counters.conflicts);
      w.field("corrupt_refused", m.counters.corrupt_refused);
      w.field("evicted", m.counters.evicted);
      w.field("out_of_memory", m.counters.out_of_memory);
      w.field("fetch_failures", m.counters.fetch_failures);
      w.field("pages_moved", m.counters.pages_moved);
      w.field("shards_moved", m.counters.shards_moved);
    });
    w.key("compute");
    w.object([&] {
      const auto& c = s.compute;
      w.field("programs", c.programs);
      w.field("workers", c.workers);
      w.field("jobs", c.jobs);
      w.field("tasks_queued", c.tasks_queued);
      w.field("tasks_running", c.tasks_running);
      w.field("tasks_done", c.tasks_done);
      w.field("tasks_failed", c.tasks_failed);
    });
    w.key("links");
    w.array([&] {
      for (const auto& link : s.links) {
        w.object([&] { write_link(w, s, link); });
      }
    });
    w.key("peers");
    w.array([&] {
      for (const auto& peer : s.peers) {
        w.object([&] { write_peer(w, s, peer); });
      }
    });
    write_handshakes(w, s.handshakes);
    write_membership(w, s);
  });
}

}  // namespace

std::string status_json(const StatusSources& sources) {
  JsonWriter w;
  w.object([&] {
    write_cluster(w, sources);
    write_nodes(w, sources);
    write_regions(w, sources);
    write_this_node(w, sources);
  });
  return w.text();
}

}  // namespace holo::node
