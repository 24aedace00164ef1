// Drives a State with commands, for its tests.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "core/control/results.h"
#include "core/control/state.h"

namespace holo::control::testing {

constexpr std::uint64_t kMiB = 1 << 20;

inline wire::NodeInfo info(std::uint64_t id, std::uint64_t memory = 256 * kMiB, std::uint64_t incarnation = 1) {
  wire::NodeInfo n;
  n.set_id(id);
  n.set_name("n" + std::to_string(id));
  n.add_addresses("127.0.0.1:" + std::to_string(8000 + id));
  n.set_cores(2);
  n.set_memory_bytes(memory);
  n.set_speed(1.0);
  n.set_version("0.1.0");
  n.set_incarnation(incarnation);
  return n;
}

inline Bytes encode(const wire::Command& c) {
  const std::string s = c.SerializeAsString();
  const ByteSpan b = as_bytes(s);
  return Bytes(b.begin(), b.end());
}

/// A state, the log that led to it, and a client that numbers its commands.
class Rig {
 public:
  State state;
  std::vector<Bytes> log;

  wire::CommandResult send(const wire::CommandBody& body, std::uint64_t client = 1, std::uint64_t incarnation = 1) {
    wire::Command c;
    c.set_client(client);
    c.set_incarnation(incarnation);
    c.set_sequence(++sequence_);
    c.set_outstanding(sequence_);
    *c.mutable_body() = body;
    return feed(encode(c));
  }
  wire::CommandResult feed(Bytes entry) {
    log.push_back(entry);
    return state.apply(LogIndex{log.size()}, WallTime{static_cast<std::int64_t>(1000 + log.size())}, log.back());
  }

  wire::CommandResult init(std::uint64_t memory = 256 * kMiB) {
    wire::CommandBody b;
    b.mutable_cluster_init()->set_cluster(77);
    b.mutable_cluster_init()->set_name("test");
    *b.mutable_cluster_init()->mutable_node() = info(1, memory);
    return send(b);
  }
  wire::CommandResult join(std::uint64_t id, std::uint64_t memory = 256 * kMiB, std::uint64_t incarnation = 1) {
    wire::CommandBody b;
    *b.mutable_node_join()->mutable_node() = info(id, memory, incarnation);
    return send(b);
  }
  /// A cluster of nodes 1 to n.
  void cluster(std::uint64_t n, std::uint64_t memory = 256 * kMiB) {
    init(memory);
    for (std::uint64_t id = 2; id <= n; ++id) join(id, memory);
  }
  wire::CommandResult dead(std::uint64_t id, std::uint64_t incarnation = 1) {
    wire::CommandBody b;
    b.mutable_node_dead()->set_node(id);
    b.mutable_node_dead()->set_incarnation(incarnation);
    return send(b);
  }
  wire::CommandResult back(std::uint64_t id, std::uint64_t incarnation, std::uint64_t memory = 256 * kMiB) {
    wire::CommandBody b;
    *b.mutable_node_alive()->mutable_node() = info(id, memory, incarnation);
    return send(b);
  }
  wire::CommandResult leave(std::uint64_t id, bool force = false) {
    wire::CommandBody b;
    b.mutable_node_leave()->set_node(id);
    b.mutable_node_leave()->set_force(force);
    return send(b);
  }
  wire::CommandResult revoke(std::uint64_t id) {
    wire::CommandBody b;
    b.mutable_node_revoke()->set_node(id);
    return send(b);
  }
  wire::CommandResult vote(std::uint64_t id) {
    wire::CommandBody b;
    b.mutable_node_update()->set_node(id);
    b.mutable_node_update()->set_voter(true);
    return send(b);
  }
  wire::CommandResult drain(std::uint64_t id, bool on = true) {
    wire::CommandBody b;
    b.mutable_node_update()->set_node(id);
    b.mutable_node_update()->set_draining(on);
    return send(b);
  }
  wire::CommandResult drain_safely(std::uint64_t id, bool on = true, bool force = false) {
    wire::CommandBody b;
    b.mutable_node_drain()->set_node(id);
    b.mutable_node_drain()->set_on(on);
    b.mutable_node_drain()->set_force(force);
    return send(b);
  }
  wire::CommandResult remove(std::uint64_t id, bool force = false) {
    wire::CommandBody b;
    b.mutable_node_remove()->set_node(id);
    b.mutable_node_remove()->set_force(force);
    return send(b);
  }
  wire::CommandResult weigh(std::uint64_t id, std::uint32_t permille) {
    wire::CommandBody b;
    b.mutable_weigh_nodes()->set_node(id);
    b.mutable_weigh_nodes()->set_permille(permille);
    return send(b);
  }
  wire::CommandResult path(std::uint64_t from, std::uint64_t to, bool cut) {
    wire::CommandBody b;
    b.mutable_path_changed()->set_from(from);
    b.mutable_path_changed()->set_to(to);
    b.mutable_path_changed()->set_cut(cut);
    return send(b);
  }
  static wire::CommandBody region_body(const std::string& name) {
    wire::CommandBody b;
    b.mutable_create_region()->mutable_region()->set_name(name);
    b.mutable_create_region()->mutable_region()->set_type("bytes");
    b.mutable_create_region()->mutable_region()->set_count(4096);
    return b;
  }
  wire::CommandResult create(const std::string& name, std::uint64_t bytes, std::uint32_t replication = 1,
                             std::uint64_t page_bytes = 4096) {
    wire::CommandBody b;
    auto* c = b.mutable_create_region()->mutable_region();
    c->set_name(name);
    c->set_type("bytes");
    c->set_count(bytes);
    c->set_page_bytes(page_bytes);
    c->set_replication(replication);
    b.mutable_create_region()->set_owner_uid(1000);
    return send(b);
  }
  wire::CommandResult free(const std::string& name, std::uint32_t uid = 1000) {
    wire::CommandBody b;
    b.mutable_free_region()->set_name(name);
    b.mutable_free_region()->set_uid(uid);
    return send(b);
  }
  static wire::TxnCommit txn(std::uint64_t node, std::uint64_t sequence, std::uint64_t region,
                             std::initializer_list<PageRange> pages, std::uint64_t incarnation = 1) {
    wire::TxnCommit t;
    t.mutable_txn()->set_node(node);
    t.mutable_txn()->set_incarnation(incarnation);
    t.mutable_txn()->set_sequence(sequence);
    auto* rp = t.add_regions();
    rp->set_region(region);
    for (const PageRange& p : pages) {
      auto* out = rp->add_pages();
      out->set_first(p.first);
      out->set_count(p.count);
    }
    return t;
  }
  wire::CommandResult commit(std::initializer_list<wire::TxnCommit> txns, std::uint64_t epoch = 0) {
    wire::CommandBody b;
    b.mutable_commit()->set_epoch(epoch == 0 ? state.epoch().value : epoch);
    for (const auto& t : txns) *b.mutable_commit()->add_txns() = t;
    return send(b);
  }
  /// Says that every fill under way is done, and that who was filled lacks nothing; false when nothing moved.
  bool move_some() {
    wire::CommandBody copied, whole;
    state.for_each_move([&](const State::ShardView& s) {
      const auto name = [&](wire::ShardMove* m, NodeId node) {
        m->set_region(s.region.value);
        m->set_shard(s.shard.value);
        m->set_node(node.value);
        m->set_serial(s.serial);
      };
      if (s.filling) name(copied.mutable_shards_copied()->add_moves(), s.filling);
      if (s.unproven) name(whole.mutable_shards_whole()->add_moves(), s.unproven);
    });
    if (copied.shards_copied().moves_size() != 0) send(copied);
    if (whole.shards_whole().moves_size() != 0) send(whole);
    return copied.shards_copied().moves_size() + whole.shards_whole().moves_size() != 0;
  }
  /// Until everything is where the plan wants it.
  void move_all() {
    while (move_some()) {
    }
  }

 private:
  std::uint64_t sequence_ = 0;
};

inline Errc code(const wire::CommandResult& r) { return static_cast<Errc>(r.error().code()); }
inline Errc code(const wire::TxnResult& r) { return static_cast<Errc>(r.error().code()); }
constexpr Errc kOk = static_cast<Errc>(0);

/// What must hold after every command.
void expect_invariants(const State& s);

}  // namespace holo::control::testing
