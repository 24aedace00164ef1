#include "node/status.h"

#include "base/strings.h"
#include "node/json.h"

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

void write_nodes(JsonWriter& w, const StatusSources& s) {
  w.key("nodes");
  w.array([&] {
    for (const auto& [id, node] : s.control.state().nodes()) {
      const bool here = id == s.control.self();
      w.object([&] {
        w.field("id", to_hex(id.value));  // NOLINT(clang-analyzer-core.NullDereference): it is a key of the map.
        w.field("name", node.name);
        w.field("address", node.addresses.empty() ? std::string() : node.addresses.front());
        w.field("state", std::string(control::node_state_name(node.state)));
        w.field("voter", node.voter);
        w.field("draining", node.draining);
        w.field("cores", node.cores);
        w.field("memory_bytes", node.memory_bytes);
        w.field("frames_used_bytes", here ? s.memory.frames_used_bytes : s.control.frames_used(id));
        w.field("reserved_bytes", node.reserved_bytes);
        w.field("speed", node.speed);
        w.field("version", node.version);
        w.field("incarnation", node.incarnation);
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

void write_this_node(JsonWriter& w, const StatusSources& s) {
  w.key("this_node");
  w.object([&] {
    w.field("id", to_hex(s.control.self().value));
    w.field("ready", s.control.ready());
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
      w.field("pages_served", m.counters.pages_served);
      w.field("pages_staged", m.counters.pages_staged);
      w.field("conflicts", m.counters.conflicts);
      w.field("corrupt_refused", m.counters.corrupt_refused);
      w.field("evicted", m.counters.evicted);
      w.field("out_of_memory", m.counters.out_of_memory);
      w.field("fetch_failures", m.counters.fetch_failures);
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
        w.object([&] {
          w.field("peer", name_of(s.control.state(), link.peer));
          w.field("address", link.address);
          w.field("carrier", link.carrier);
          w.field("cipher", link.cipher);
          w.field("bytes_in", link.figures.bytes_in);
          w.field("bytes_out", link.figures.bytes_out);
          w.field("round_trip_us", static_cast<double>(link.figures.round_trip.ns) / 1000.0);
        });
      }
    });
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
