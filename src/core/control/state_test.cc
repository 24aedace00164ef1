#include "core/control/state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/random.h"
#include "core/control/state_testing.h"

namespace holo::control::testing {

void expect_invariants(const State& s) {
  std::map<NodeId, std::uint64_t> reserved;
  for (const RegionId id : s.regions()) {
    const RegionRecord& r = *s.region(id);
    std::uint64_t pages = 0;
    s.for_each_shard(id, [&](const State::ShardView& v) {
      pages += v.pages;
      for (const NodeId n : v.in_sync) {
        ASSERT_NE(s.node(n), nullptr);
        ASSERT_NE(s.node(n)->state, NodeState::left);
        ASSERT_TRUE(s.node(n)->alive() || v.in_sync.size() == 1) << "a dead node among living ones";
        reserved[n] += v.pages * r.page_bytes;
      }
      for (const NodeId n : v.target) {
        ASSERT_TRUE(s.node(n)->takes_shards());
        if (!v.in_sync.contains(n)) reserved[n] += v.pages * r.page_bytes;
      }
      if (v.filling) {
        ASSERT_TRUE(s.node(v.filling)->alive());
        ASSERT_TRUE(v.target.contains(v.filling));
        ASSERT_FALSE(v.in_sync.contains(v.filling));
        ASSERT_FALSE(v.unproven);
      }
      ASSERT_TRUE(!v.unproven || v.in_sync.contains(v.unproven));
      ASSERT_EQ(v.serial != 0, v.filling || v.unproven);
    });
    ASSERT_EQ(pages, r.pages);
  }
  for (const auto& [id, n] : s.nodes()) {
    ASSERT_EQ(n.reserved_bytes, reserved[id]);
    ASSERT_LE(n.reserved_bytes, n.memory_bytes) << "more assigned than there is";
  }
}

namespace {

struct Recorder : StateObserver {
  std::vector<std::string> seen;
  void on_commit(RegionId r, Version v, TxnId t, std::span<const PageRange> pages) override {
    std::string s =
        "commit " + std::to_string(r.value) + "@" + std::to_string(v.value) + " txn " + std::to_string(t.sequence);
    for (const PageRange& p : pages) s += " " + std::to_string(p.first) + "+" + std::to_string(p.count);
    seen.push_back(s);
  }
  void on_region_created(RegionId r) override { seen.push_back("created " + std::to_string(r.value)); }
  void on_region_freed(RegionId r) override { seen.push_back("freed " + std::to_string(r.value)); }
  void on_nodes_changed(Epoch e, NodeId n) override {
    seen.push_back("nodes " + std::to_string(e.value) + " " + std::to_string(n.value));
  }
  void on_placement_changed(RegionId r) override { seen.push_back("placed " + std::to_string(r.value)); }
  void on_restored() override { seen.push_back("restored"); }
};

TEST(ControlState, ClusterInitOnceAndNodesJoin) {
  Rig rig;
  EXPECT_EQ(code(rig.create("x", 10)), Errc::refused);
  EXPECT_EQ(code(rig.init()), kOk);
  EXPECT_EQ(code(rig.init()), Errc::already_exists);
  EXPECT_EQ(rig.state.cluster(), ClusterId{77});
  EXPECT_EQ(rig.state.epoch(), Epoch{1});
  EXPECT_EQ(code(rig.join(2)), kOk);
  EXPECT_EQ(rig.state.epoch(), Epoch{2});
  EXPECT_EQ(code(rig.join(2)), kOk) << "the answer was lost; asking again changes nothing";
  EXPECT_EQ(rig.state.epoch(), Epoch{2});
  EXPECT_EQ(rig.state.live_count(), 2U);
  EXPECT_TRUE(rig.state.alive(NodeId{2}, 1));
  EXPECT_FALSE(rig.state.alive(NodeId{2}, 2));
  wire::CommandBody b;
  *b.mutable_node_join()->mutable_node() = info(3);
  b.mutable_node_join()->mutable_node()->set_name("n2");
  EXPECT_EQ(code(rig.send(b)), Errc::already_exists);
}

TEST(ControlState, RegionShapesThatAreRefused) {
  Rig rig;
  rig.cluster(2);
  EXPECT_EQ(code(rig.create("", 10)), Errc::invalid_argument);
  EXPECT_EQ(code(rig.create("a b", 10)), Errc::invalid_argument);
  EXPECT_EQ(code(rig.create("a\x1b[2J", 10)), Errc::invalid_argument);
  EXPECT_EQ(code(rig.create(std::string(129, 'a'), 10)), Errc::invalid_argument);
  EXPECT_EQ(code(rig.create("zero", 0)), Errc::invalid_argument);
  EXPECT_EQ(code(rig.create("page", 10, 1, 5000)), Errc::invalid_argument);
  EXPECT_EQ(code(rig.create("page", 10, 1, 2048)), Errc::invalid_argument);
  EXPECT_EQ(code(rig.create("page", 10, 1, 4 << 20)), Errc::invalid_argument);
  EXPECT_EQ(code(rig.create("copies", 10, 4)), Errc::invalid_argument);
  EXPECT_EQ(code(rig.create("copies", 10, 3)), Errc::under_replicated);
  EXPECT_EQ(code(rig.create("huge", 1ULL << 47)), Errc::over_limit);
  const auto too_big = rig.create("big", 513 * kMiB);
  EXPECT_EQ(code(too_big), Errc::out_of_memory);
  EXPECT_NE(too_big.error().message().find("512.0 MiB"), std::string::npos) << too_big.error().message();
  wire::CommandBody strict;
  strict.mutable_create_region()->mutable_region()->set_name("s");
  strict.mutable_create_region()->mutable_region()->set_count(1);
  strict.mutable_create_region()->mutable_region()->set_mode("strict");
  EXPECT_EQ(code(rig.send(strict)), Errc::unsupported);
  EXPECT_TRUE(rig.state.regions().empty());
}

TEST(ControlState, NamesAreTakenOpenedAndFreed) {
  Rig rig;
  rig.cluster(2);
  const auto made = rig.create("xs", kMiB, 2);
  ASSERT_EQ(code(made), kOk);
  EXPECT_EQ(code(rig.create("xs", kMiB)), Errc::already_exists);
  wire::CommandBody open;
  auto* c = open.mutable_create_region()->mutable_region();
  c->set_name("xs");
  c->set_type("bytes");
  c->set_count(kMiB);
  c->set_open_existing(true);
  const auto opened = rig.send(open);
  EXPECT_EQ(code(opened), kOk);
  EXPECT_TRUE(opened.existed());
  EXPECT_EQ(opened.region(), made.region());
  c->set_count(kMiB + 1);
  EXPECT_EQ(code(rig.send(open)), Errc::already_exists);
  EXPECT_EQ(code(rig.free("xs", 1001)), Errc::permission_denied);
  EXPECT_EQ(code(rig.free("ys")), Errc::not_found);
  EXPECT_EQ(code(rig.free("xs")), kOk);
  EXPECT_EQ(rig.state.node(NodeId{1})->reserved_bytes, 0U);
  EXPECT_GT(rig.create("xs", kMiB).region(), made.region()) << "ids are never used again";
}

TEST(ControlState, CommitsGiveVersionsOnceAndNameThePages) {
  Rig rig;
  rig.cluster(2);
  Recorder rec;
  rig.state.add_observer(&rec);
  const RegionId xs{rig.create("xs", 100 * 4096).region()};
  const auto first = rig.commit({Rig::txn(1, 1, xs.value, {{0, 10}}), Rig::txn(2, 1, xs.value, {{5, 1}, {99, 1}})});
  ASSERT_EQ(code(first), kOk);
  ASSERT_EQ(first.txns_size(), 2);
  EXPECT_EQ(first.txns(0).versions(0).version(), 1U);
  EXPECT_EQ(first.txns(1).versions(0).version(), 2U);
  EXPECT_EQ(rig.state.version_of(xs, PageNo{4}), Version{1});
  EXPECT_EQ(rig.state.version_of(xs, PageNo{5}), Version{2});
  EXPECT_EQ(rig.state.version_of(xs, PageNo{50}), Version{0});
  const auto again = rig.commit({Rig::txn(1, 1, xs.value, {{0, 10}})});
  EXPECT_EQ(code(again.txns(0)), kOk);
  EXPECT_EQ(again.txns(0).versions(0).version(), 1U) << "decided before: the first answer";
  EXPECT_EQ(rig.state.region(xs)->version, Version{2});
  EXPECT_EQ(code(rig.commit({Rig::txn(1, 2, xs.value, {{100, 1}})}).txns(0)), Errc::invalid_argument);
  EXPECT_EQ(code(rig.commit({Rig::txn(1, 2, xs.value, {{5, 1}, {4, 1}})}).txns(0)), Errc::invalid_argument);
  EXPECT_EQ(code(rig.commit({Rig::txn(1, 2, 99, {{5, 1}})}).txns(0)), Errc::not_found);
  EXPECT_EQ(code(rig.commit({Rig::txn(1, 2, xs.value, {{5, 1}})}, 1)), Errc::stale_epoch);
  EXPECT_EQ(rig.state.region(xs)->version, Version{2});
  wire::TxnCommit bump;
  bump.mutable_txn()->set_node(1);
  bump.mutable_txn()->set_incarnation(1);
  bump.mutable_txn()->set_sequence(3);
  bump.add_bump_only(xs.value);
  EXPECT_EQ(rig.commit({bump}).txns(0).versions(0).version(), 3U);
  const std::vector<std::string> want{"created 1", "commit 1@1 txn 1 0+10", "commit 1@2 txn 1 5+1 99+1",
                                      "commit 1@3 txn 3"};
  EXPECT_EQ(rec.seen, want);
}

TEST(ControlState, DeadCoordinatorsAreFenced) {
  Rig rig;
  rig.cluster(3);
  const RegionId xs{rig.create("xs", 100 * 4096, 2).region()};
  rig.dead(3);
  EXPECT_EQ(code(rig.commit({Rig::txn(3, 1, xs.value, {{0, 1}})}).txns(0)), Errc::refused);
  EXPECT_EQ(code(rig.back(3, 1)), Errc::refused) << "it can come back only as someone new";
  EXPECT_EQ(code(rig.back(3, 2)), kOk);
  EXPECT_EQ(code(rig.commit({Rig::txn(3, 1, xs.value, {{0, 1}})}).txns(0)), Errc::refused);
  EXPECT_EQ(code(rig.commit({Rig::txn(3, 1, xs.value, {{0, 1}}, 2)}).txns(0)), kOk);
}

TEST(ControlState, ADeathNeedsTheVotesOfAMajority) {
  Rig rig;
  rig.cluster(5);
  for (std::uint64_t id = 1; id <= 3; ++id) {
    wire::CommandBody b;
    b.mutable_node_update()->set_node(id);
    b.mutable_node_update()->set_voter(true);
    ASSERT_EQ(rig.send(b).error().code(), 0u);
  }
  const auto dead = [&](std::vector<std::uint64_t> votes) {
    wire::CommandBody b;
    b.mutable_node_dead()->set_node(5);
    b.mutable_node_dead()->set_incarnation(1);
    for (const std::uint64_t v : votes) b.mutable_node_dead()->add_votes(v);
    return static_cast<Errc>(rig.send(b).error().code());
  };
  const std::uint64_t epoch = rig.state.epoch().value;
  EXPECT_EQ(dead({1}), Errc::refused);
  EXPECT_EQ(dead({1, 1, 1}), Errc::refused) << "one vote each";
  EXPECT_EQ(dead({1, 4, 99}), Errc::refused) << "who does not vote does not count";
  EXPECT_TRUE(rig.state.node(NodeId{5})->alive());
  EXPECT_EQ(rig.state.epoch().value, epoch);
  EXPECT_EQ(static_cast<int>(dead({1, 3})), 0);
  EXPECT_FALSE(rig.state.node(NodeId{5})->alive());
  EXPECT_EQ(rig.state.epoch().value, epoch + 1);
  EXPECT_EQ(static_cast<int>(dead({1, 2, 3})), 0) << "again is fine, and changes nothing";
  EXPECT_EQ(rig.state.epoch().value, epoch + 1);
}

TEST(ControlState, RepeatedCommandsActOnceAndGivenUpOnesNotAtAll) {
  Rig rig;
  rig.cluster(1);
  wire::Command c;
  c.set_client(1);
  c.set_incarnation(2);
  c.set_sequence(10);
  c.set_outstanding(10);
  c.mutable_body()->mutable_create_region()->mutable_region()->set_name("once");
  c.mutable_body()->mutable_create_region()->mutable_region()->set_count(5);
  const auto first = rig.feed(encode(c));
  ASSERT_EQ(code(first), kOk);
  EXPECT_EQ(rig.feed(encode(c)).SerializeAsString(), first.SerializeAsString());
  EXPECT_EQ(rig.state.result_of(NodeId{1}, 2, 10)->region(), first.region());
  EXPECT_FALSE(rig.state.result_of(NodeId{1}, 2, 11));
  wire::Command later = c;
  later.set_sequence(12);
  later.set_outstanding(12);
  later.mutable_body()->mutable_create_region()->mutable_region()->set_name("later");
  EXPECT_EQ(code(rig.feed(encode(later))), kOk);
  later.set_sequence(11);
  EXPECT_EQ(code(rig.feed(encode(later))), Errc::refused);
  later.set_incarnation(1);
  later.set_sequence(99);
  EXPECT_EQ(code(rig.feed(encode(later))), Errc::refused) << "an earlier incarnation";
}

TEST(ControlState, DeathPromotesFillsAndKeepsSoleHolders) {
  Rig rig;
  rig.cluster(3);
  const RegionId one{rig.create("one", 512 * 4096, 1).region()};
  const RegionId two{rig.create("two", 512 * 4096, 2).region()};
  rig.commit({Rig::txn(1, 1, one.value, {{0, 512}}), Rig::txn(1, 2, two.value, {{0, 512}})});
  std::map<std::uint64_t, NodeId> home_before;
  for (std::uint64_t p = 0; p < 512; ++p) home_before[p] = rig.state.home(two, PageNo{p});
  rig.dead(2);
  expect_invariants(rig.state);
  bool sole = false;
  for (std::uint64_t p = 0; p < 512; ++p) {
    sole = sole || rig.state.sole_holder(one, PageNo{p}) == NodeId{2};
    EXPECT_NE(rig.state.home(two, PageNo{p}), NodeId{2});
    if (home_before[p] != NodeId{2}) {
      EXPECT_EQ(rig.state.home(two, PageNo{p}), home_before[p]) << "nothing else moves";
    }
    const NodeList in_sync = rig.state.replicas(two, PageNo{p});
    EXPECT_TRUE(in_sync.size() == 2 || rig.state.shard_view(two, rig.state.shard_of(two, PageNo{p}))->moving());
  }
  EXPECT_TRUE(sole);
  EXPECT_EQ(rig.state.wanted_copies(two), 2U);
  EXPECT_TRUE(rig.move_some());
  rig.move_all();
  EXPECT_EQ(rig.state.moves_left(), 0U);
  for (std::uint64_t p = 0; p < 512; ++p) EXPECT_EQ(rig.state.replicas(two, PageNo{p}).size(), 2U);
  rig.back(2, 2);
  for (std::uint64_t p = 0; p < 512; ++p) EXPECT_FALSE(rig.state.sole_holder(one, PageNo{p}));
  expect_invariants(rig.state);
}

TEST(ControlState, ShardsNeverWrittenMoveAtOnce) {
  Rig rig;
  rig.cluster(3);
  const RegionId xs{rig.create("xs", 512 * 4096, 1).region()};
  rig.dead(3);
  for (std::uint64_t p = 0; p < 512; ++p) EXPECT_FALSE(rig.state.sole_holder(xs, PageNo{p}));
  expect_invariants(rig.state);
}

TEST(ControlState, LeaveIsRefusedWhileItHoldsALastCopy) {
  Rig rig;
  rig.cluster(2);
  const RegionId xs{rig.create("xs", 64 * 4096, 1).region()};
  EXPECT_EQ(code(rig.leave(2)), kOk) << "nothing was written";
  EXPECT_EQ(rig.state.node(NodeId{2})->state, NodeState::left);
  EXPECT_EQ(code(rig.back(2, 2)), Errc::refused);
  EXPECT_EQ(code(rig.join(2, 256 * kMiB, 2)), kOk);
  rig.commit({Rig::txn(1, 1, xs.value, {{0, 64}})});
  EXPECT_EQ(code(rig.leave(1)), Errc::refused);
  rig.drain(1);
  std::size_t filling = 0;
  for (std::uint64_t p = 0; p < 64; ++p) {
    if (rig.state.home(xs, PageNo{p}) == NodeId{2}) continue;
    EXPECT_EQ(rig.state.home(xs, PageNo{p}), NodeId{1}) << "it stays home until another has the pages";
    filling += rig.state.filling(xs, PageNo{p}) == NodeId{2} ? 1 : 0;
  }
  EXPECT_GT(filling, 0U);
  rig.move_all();
  EXPECT_EQ(code(rig.leave(1)), kOk);
  for (std::uint64_t p = 0; p < 64; ++p) EXPECT_EQ(rig.state.home(xs, PageNo{p}), NodeId{2});
  expect_invariants(rig.state);
}

TEST(ControlState, ForcedLeaveGivesUpWhatOnlyItHad) {
  Rig rig;
  rig.cluster(2);
  const RegionId xs{rig.create("xs", 64 * 4096, 1).region()};
  rig.commit({Rig::txn(1, 1, xs.value, {{0, 64}})});
  rig.dead(2);
  EXPECT_EQ(code(rig.leave(2)), Errc::refused);
  EXPECT_EQ(code(rig.leave(2, true)), kOk);
  for (std::uint64_t p = 0; p < 64; ++p) {
    EXPECT_EQ(rig.state.home(xs, PageNo{p}), NodeId{1});
    EXPECT_EQ(rig.state.version_of(xs, PageNo{p}), Version{1}) << "lost, and known to be lost";
  }
  expect_invariants(rig.state);
}

TEST(ControlState, TheRevokedNeverComeBack) {
  Rig rig;
  rig.cluster(3);
  rig.vote(2);
  rig.vote(3);
  const RegionId xs{rig.create("xs", 64 * 4096, 2).region()};
  const Epoch before = rig.state.epoch();
  EXPECT_EQ(code(rig.revoke(3)), kOk);
  EXPECT_EQ(code(rig.revoke(3)), kOk) << "once or twice is the same";
  EXPECT_EQ(rig.state.node(NodeId{3})->state, NodeState::left);
  EXPECT_GT(rig.state.epoch(), before) << "what it had under way is fenced";
  EXPECT_EQ(code(rig.join(3, 256 * kMiB, 5)), Errc::permission_denied);
  EXPECT_EQ(code(rig.back(3, 6)), Errc::permission_denied);
  EXPECT_EQ(code(rig.send(rig.region_body("ys"), 3)), Errc::permission_denied) << "its own commands";
  EXPECT_EQ(rig.commit({Rig::txn(3, 1, xs.value, {{0, 1}})}).txns(0).error().code(),
            static_cast<unsigned>(Errc::refused));
  expect_invariants(rig.state);
  // Who was never here can be revoked before it comes.
  EXPECT_EQ(code(rig.revoke(9)), kOk);
  EXPECT_EQ(code(rig.join(9)), Errc::permission_denied);
  EXPECT_EQ(code(rig.revoke(0)), Errc::invalid_argument);
  State again;
  ASSERT_TRUE(again.restore(LogIndex{rig.log.size()}, rig.state.snapshot()));
  EXPECT_EQ(again.revoked(), rig.state.revoked());
  EXPECT_EQ(again.revoked().size(), 2U);
  EXPECT_EQ(again.snapshot(), rig.state.snapshot());
}

TEST(ControlState, RevokingIsRefusedWhereNobodyCouldDecideAfterwards) {
  Rig rig;
  rig.cluster(3);
  EXPECT_EQ(code(rig.revoke(1)), Errc::refused) << "the only voter";
  EXPECT_EQ(code(rig.revoke(2)), kOk) << "a learner";
  rig.join(4);
  rig.vote(3);
  rig.vote(4);
  rig.dead(4);
  EXPECT_EQ(code(rig.revoke(3)), Errc::refused) << "one of three voters would be left";
  EXPECT_EQ(code(rig.revoke(4)), kOk) << "it was dead before";
}

TEST(ControlState, AMoveThatWasPlannedAnewSinceIsAnother) {
  Rig rig;
  rig.cluster(3);
  const RegionId xs{rig.create("xs", 64 * 4096, 2).region()};
  rig.commit({Rig::txn(1, 1, xs.value, {{0, 64}})});
  rig.dead(3);
  rig.back(3, 2);
  wire::CommandBody b;
  std::size_t moves = 0;
  rig.state.for_each_fill([&](const State::ShardView& v) {
    auto* m = b.mutable_shards_copied()->add_moves();
    m->set_region(v.region.value);
    m->set_shard(v.shard.value);
    m->set_node(v.filling.value);
    m->set_serial(v.serial + 1000);
    ++moves;
  });
  ASSERT_GT(moves, 0U);
  const Epoch before = rig.state.epoch();
  EXPECT_EQ(code(rig.send(b)), kOk);
  EXPECT_EQ(rig.state.epoch(), before);
  EXPECT_TRUE(rig.move_some());
  EXPECT_GT(rig.state.epoch(), before) << "what was staged without the new holders is void";
}

TEST(ControlState, WhatItsHomeCannotReachIsNoCopyAndGetsNone) {
  Rig rig;
  rig.cluster(4);
  const RegionId xs{rig.create("xs", 64 * 4096, 2).region()};
  rig.commit({Rig::txn(1, 1, xs.value, {{0, 64}})});
  const auto both = [&](std::uint64_t home, std::uint64_t other) {
    std::size_t held = 0, planned = 0;
    rig.state.for_each_shard(xs, [&](const State::ShardView& v) {
      if (v.in_sync[0] != NodeId{home}) return;
      held += v.in_sync.contains(NodeId{other}) ? 1 : 0;
      planned += v.target.contains(NodeId{other}) ? 1 : 0;
    });
    return std::pair(held, planned);
  };
  EXPECT_GT(both(1, 2).first, 0U);
  const Epoch before = rig.state.epoch();
  EXPECT_EQ(code(rig.path(1, 2, true)), kOk);
  EXPECT_GT(rig.state.epoch(), before) << "what was staged with the other copy is void";
  EXPECT_EQ(both(1, 2), std::pair(std::size_t{0}, std::size_t{0}));
  EXPECT_GT(both(2, 1).first, 0U) << "the other way nobody complained";
  rig.move_all();
  rig.state.for_each_shard(xs, [](const State::ShardView& v) { EXPECT_EQ(v.in_sync.size(), 2U) << v.shard.value; });
  expect_invariants(rig.state);
  State again;
  ASSERT_TRUE(again.restore(LogIndex{rig.log.size()}, rig.state.snapshot()));
  EXPECT_EQ(again.snapshot(), rig.state.snapshot());
  EXPECT_EQ(again.cut_paths(), rig.state.cut_paths());

  // Who drains gives its shards to those that it reaches; if there is none, they stay, and it may not leave.
  const Epoch told = rig.state.epoch();
  EXPECT_EQ(code(rig.path(1, 2, true)), kOk);
  EXPECT_EQ(rig.state.epoch(), told) << "said before";
  rig.path(1, 3, true);
  rig.path(1, 4, true);
  rig.drain(1);
  rig.move_all();
  EXPECT_EQ(code(rig.leave(1)), Errc::refused);
  rig.path(1, 3, false);
  rig.move_all();
  EXPECT_EQ(code(rig.leave(1)), kOk);
  EXPECT_TRUE(rig.state.cut_paths().empty());
  expect_invariants(rig.state);
}

TEST(ControlState, ACutPathIsBetweenTwoLiveMembersAndEndsWithThem) {
  Rig rig;
  rig.cluster(3);
  for (const auto& [from, to] : {std::pair(1, 1), {1, 9}, {9, 1}, {0, 1}, {1, 0}}) {
    EXPECT_EQ(code(rig.path(static_cast<std::uint64_t>(from), static_cast<std::uint64_t>(to), true)),
              Errc::invalid_argument);
  }
  rig.path(1, 2, true);
  rig.path(2, 3, true);
  rig.path(3, 1, true);
  EXPECT_EQ(rig.state.cut_paths().size(), 3U);
  rig.dead(2);
  EXPECT_EQ(rig.state.cut_paths(), (CutPaths{{NodeId{3}, NodeId{1}}}));
  EXPECT_EQ(code(rig.path(1, 2, true)), Errc::invalid_argument);
  for (std::uint64_t id = 10; id < 10 + limits::kCutPathsPerNode; ++id) {
    rig.join(id);
    EXPECT_EQ(code(rig.path(1, id, true)), kOk);
  }
  rig.join(5);
  EXPECT_EQ(code(rig.path(1, 5, true)), Errc::over_limit);
  EXPECT_EQ(code(rig.path(3, 5, true)), kOk);
}

TEST(ControlState, ANewcomerTakesItsShareAndAReturnedNodeToo) {
  Rig rig;
  rig.cluster(3);
  const RegionId xs{rig.create("xs", 4096 * 4096, 2).region()};
  rig.commit({Rig::txn(1, 1, xs.value, {{0, 4096}})});
  EXPECT_EQ(rig.state.moves_left(), 0U);
  const auto share_of = [&](std::uint64_t id) {
    for (const auto& [node, pages] : rig.state.pages_by_node(xs)) {
      if (node == NodeId{id}) return static_cast<double>(pages) / 4096;
    }
    return 0.0;
  };
  rig.join(4);
  EXPECT_GT(rig.state.moves_left(), 0U);
  EXPECT_EQ(share_of(4), 0.0) << "nothing is home where it has not been copied";
  rig.move_all();
  EXPECT_NEAR(share_of(4), 0.25, 0.03);
  rig.dead(4);
  rig.move_all();
  EXPECT_EQ(share_of(4), 0.0);
  rig.back(4, 2);
  rig.move_all();
  EXPECT_NEAR(share_of(4), 0.25, 0.03);
  rig.weigh(4, 3000);
  rig.move_all();
  EXPECT_NEAR(share_of(4), 0.5, 0.05);
  rig.drain_safely(4);
  rig.move_all();
  EXPECT_TRUE(rig.state.is_empty(NodeId{4}));
  expect_invariants(rig.state);
}

TEST(ControlState, OnlySoManyShardsMoveAtATime) {
  Rig rig;
  rig.cluster(3, 4096 * kMiB);
  const RegionId xs{rig.create("xs", 2048 * kMiB, 1, 2 * kMiB).region()};
  rig.commit({Rig::txn(1, 1, xs.value, {{0, 1024}})});
  rig.join(4, 4096 * kMiB);
  std::map<NodeId, std::size_t> from, to;
  rig.state.for_each_fill([&](const State::ShardView& v) {
    ++from[v.in_sync[0]];
    ++to[v.filling];
  });
  EXPECT_GT(rig.state.moves_left(), limits::kMovesPerNode);
  EXPECT_EQ(to[NodeId{4}], limits::kMovesPerNode);
  for (const auto& [node, n] : from) EXPECT_LE(n, limits::kMovesPerNode);
}

TEST(ControlState, DrainIsRefusedWhereNothingCanGo) {
  Rig rig;
  rig.cluster(2, 64 * kMiB);
  const RegionId xs{rig.create("xs", 100 * kMiB).region()};
  rig.commit({Rig::txn(1, 1, xs.value, {{0, 100}})});
  EXPECT_EQ(code(rig.drain_safely(2)), Errc::out_of_memory);
  EXPECT_EQ(code(rig.drain_safely(2, true, true)), Errc::out_of_memory) << "no force makes room";
  EXPECT_FALSE(rig.state.node(NodeId{2})->draining);
  rig.free("xs");
  rig.create("ys", 4096, 2);
  EXPECT_EQ(code(rig.drain_safely(2)), Errc::under_replicated);
  EXPECT_EQ(code(rig.drain_safely(2, true, true)), kOk);
  EXPECT_EQ(code(rig.drain_safely(1, true, true)), Errc::refused) << "the last one";
  EXPECT_EQ(code(rig.drain_safely(2, false)), kOk);
  rig.dead(2);
  EXPECT_EQ(code(rig.drain_safely(2)), Errc::refused);
  EXPECT_EQ(code(rig.drain_safely(9)), Errc::not_found);
}

TEST(ControlState, RemoveNamesWhatOnlyThatNodeHas) {
  Rig rig;
  rig.cluster(3);
  const RegionId xs{rig.create("xs", 600 * 4096).region()};
  rig.create("ys", 600 * 4096, 2);
  rig.commit({Rig::txn(1, 1, xs.value, {{0, 300}})});
  EXPECT_EQ(code(rig.remove(1)), Errc::refused) << "the only voter";
  const auto refused = rig.remove(3);
  EXPECT_EQ(code(refused), Errc::refused);
  EXPECT_NE(refused.error().message().find("xs"), std::string::npos);
  std::uint64_t only = 0;
  for (std::uint64_t p = 0; p < 300; ++p) only += rig.state.home(xs, PageNo{p}) == NodeId{3} ? 1 : 0;
  const auto removed = rig.remove(3, true);
  ASSERT_EQ(code(removed), kOk);
  ASSERT_EQ(removed.lost_size(), 1);
  EXPECT_EQ(removed.lost(0).region(), "xs");
  EXPECT_EQ(removed.lost(0).pages(), only);
  EXPECT_EQ(rig.state.node(NodeId{3})->state, NodeState::left);
  EXPECT_EQ(code(rig.back(3, 2)), Errc::refused) << "it must join anew";
  EXPECT_EQ(code(rig.join(3, 256 * kMiB, 2)), kOk);
  expect_invariants(rig.state);
}

TEST(ControlState, WhatWasLostBeforeIsNotLostAgain) {
  Rig rig;
  rig.cluster(4);
  const RegionId xs{rig.create("xs", 600 * 4096).region()};
  rig.commit({Rig::txn(1, 1, xs.value, {{0, 300}})});
  const auto pages_of = [&](std::uint64_t node) {
    std::set<std::uint64_t> out;
    for (std::uint64_t p = 0; p < 300; ++p) {
      if (rig.state.home(xs, PageNo{p}) == NodeId{node}) out.insert(p);
    }
    return out;
  };
  const auto lost = pages_of(4), kept = pages_of(3);
  ASSERT_EQ(rig.remove(4, true).lost(0).pages(), lost.size());
  // Written anew on its new home, a page can be lost again.
  const auto now = pages_of(3);
  const auto again = std::ranges::find_if(now, [&](std::uint64_t p) { return lost.contains(p); });
  ASSERT_NE(again, now.end()) << "what has no holder any more is shared out";
  rig.commit({Rig::txn(1, 2, xs.value, {{*again, 1}})});
  State restored;
  ASSERT_TRUE(restored.restore(LogIndex{1}, rig.state.snapshot()));
  EXPECT_EQ(restored.snapshot(), rig.state.snapshot());
  const auto removed = rig.remove(3, true);
  ASSERT_EQ(removed.lost_size(), 1);
  EXPECT_EQ(removed.lost(0).pages(), kept.size() + 1);
  expect_invariants(rig.state);
}

TEST(ControlState, ANodeWithNothingButLostPagesIsRemovedWithoutForce) {
  Rig rig;
  rig.cluster(3);
  const RegionId xs{rig.create("xs", 600 * 4096).region()};
  std::vector<PageRange> third;
  for (std::uint64_t p = 0; p < 300; ++p) {
    if (rig.state.home(xs, PageNo{p}) != NodeId{3}) continue;
    third.push_back({p, 1});
    rig.commit({Rig::txn(1, p + 1, xs.value, {{p, 1}})});
  }
  ASSERT_EQ(rig.remove(3, true).lost(0).pages(), third.size());
  ASSERT_TRUE(
      std::ranges::any_of(third, [&](PageRange p) { return rig.state.home(xs, PageNo{p.first}) == NodeId{2}; }));
  EXPECT_EQ(code(rig.remove(2)), kOk);
}

TEST(ControlState, GarbageChangesNothing) {
  Rig rig;
  rig.cluster(2);
  const Bytes before = rig.state.snapshot();
  for (const char* text : {"", "x", "\xff\xff\xff\xff", "holo"}) {
    const ByteSpan b = as_bytes(text);
    rig.feed(Bytes(b.begin(), b.end()));
  }
  State fresh;
  ASSERT_TRUE(fresh.restore(LogIndex{1}, before));
  EXPECT_EQ(rig.state.nodes().size(), fresh.nodes().size());
  EXPECT_EQ(rig.state.epoch(), fresh.epoch());
}

/// FNV-1a: enough to see that bytes have changed.
std::uint64_t digest(ByteSpan bytes) {
  std::uint64_t h = 14695981039346656037ULL;
  for (const std::byte b : bytes) h = (h ^ static_cast<std::uint64_t>(b)) * 1099511628211ULL;
  return h;
}

TEST(ControlState, TheSameLogGivesTheSameBytesForEver) {
  // Other versions of holo replay this log and read this snapshot. If this number has to change, so has the snapshot's
  // format.
  Rig rig;
  rig.cluster(4, 64 * kMiB);
  const std::uint64_t xs = rig.create("xs", 20 * kMiB, 2).region();
  const std::uint64_t ys = rig.create("a/b-c.d_e", 12'345'678, 1, 65536).region();
  rig.commit({Rig::txn(1, 1, xs, {{0, 1000}}), Rig::txn(2, 1, ys, {{3, 4}, {100, 1}})});
  rig.dead(3);
  rig.commit({Rig::txn(1, 2, xs, {{7, 1}, {9, 90}})});
  rig.move_all();
  rig.back(3, 2, 64 * kMiB);
  rig.drain(4);
  EXPECT_EQ(digest(rig.state.snapshot()), 11345725636267332490ULL);
}

// ---- Any sequence of commands

wire::CommandBody random_body(Random& rnd, const State& s) {
  wire::CommandBody b;
  const std::uint64_t node = 1 + rnd.below(6);
  const std::uint64_t memory = (node <= 2 ? 64 : node) * kMiB;  // A node that returned with less could hold too much.
  const NodeRecord* known = s.node(NodeId{node});
  const std::uint64_t incarnation = known == nullptr ? 1 : known->incarnation + rnd.below(2);
  const auto any_region = [&]() -> std::uint64_t {
    const auto ids = s.regions();
    return ids.empty() || rnd.chance(1, 10) ? rnd.below(8) : ids[rnd.below(ids.size())].value;
  };
  switch (rnd.chance(1, 60) ? 100 : rnd.below(17)) {
    case 100: b.mutable_node_revoke()->set_node(node); break;
    case 12: b.mutable_kv_compact()->set_revision(rnd.below(s.keys().revision() + 2)); break;
    case 13: {
      auto* compare = b.mutable_kv()->add_compares();
      compare->set_key(std::string(1, static_cast<char>('a' + rnd.below(5))));
      compare->set_relation(wire::KvCompare::LESS);
      compare->set_number(rnd.below(4));
      auto* put = b.mutable_kv()->add_then()->mutable_put();
      put->set_key(compare->key());
      put->set_value(std::to_string(rnd.below(100)));
      b.mutable_kv()->add_otherwise()->mutable_delete_()->mutable_range()->set_key(compare->key());
      break;
    }
    case 0: *b.mutable_node_join()->mutable_node() = info(node, memory, incarnation); break;
    case 1: *b.mutable_node_alive()->mutable_node() = info(node, memory, incarnation); break;
    case 2:
      b.mutable_node_dead()->set_node(node);
      b.mutable_node_dead()->set_incarnation(known == nullptr ? 1 : known->incarnation);
      break;
    case 3:
      b.mutable_node_leave()->set_node(node);
      b.mutable_node_leave()->set_force(rnd.chance(1, 4));
      break;
    case 4:
      b.mutable_node_update()->set_node(node);
      if (rnd.chance(1, 2)) b.mutable_node_update()->set_draining(rnd.chance(1, 2));
      if (rnd.chance(1, 2)) b.mutable_node_update()->set_voter(rnd.chance(1, 2));
      break;
    case 5:
    case 6: {
      auto* c = b.mutable_create_region()->mutable_region();
      c->set_name("r" + std::to_string(rnd.below(6)));
      c->set_count(1 + rnd.below(6 * kMiB));
      c->set_page_bytes(4096ULL << rnd.below(4));
      c->set_replication(static_cast<std::uint32_t>(rnd.below(4)));
      c->set_open_existing(rnd.chance(1, 2));
      break;
    }
    case 7: b.mutable_free_region()->set_name("r" + std::to_string(rnd.below(6))); break;
    case 8: {
      const bool whole = rnd.chance(1, 2);
      auto* moves = whole ? b.mutable_shards_whole()->mutable_moves() : b.mutable_shards_copied()->mutable_moves();
      s.for_each_move([&](const State::ShardView& v) {
        if (rnd.chance(1, 4)) return;
        auto* m = moves->Add();
        m->set_region(v.region.value);
        m->set_shard(v.shard.value);
        m->set_node((whole ? v.unproven : v.filling).value);
        m->set_serial(rnd.chance(1, 20) ? v.serial + 1 : v.serial);
      });
      break;
    }
    case 14:
      b.mutable_node_drain()->set_node(node);
      b.mutable_node_drain()->set_on(rnd.chance(1, 2));
      b.mutable_node_drain()->set_force(rnd.chance(1, 3));
      break;
    case 15:
      b.mutable_node_remove()->set_node(node);
      b.mutable_node_remove()->set_force(rnd.chance(1, 4));
      break;
    case 16:
      b.mutable_weigh_nodes()->set_by(static_cast<wire::WeighNodes::By>(rnd.below(3)));
      b.mutable_weigh_nodes()->set_node(rnd.chance(1, 2) ? node : 0);
      b.mutable_weigh_nodes()->set_permille(static_cast<std::uint32_t>(rnd.below(3000)));
      break;
    default: {
      b.mutable_commit()->set_epoch(rnd.chance(1, 10) ? 1 : s.epoch().value);
      for (std::uint64_t n = 0; n < 1 + rnd.below(3); ++n) {
        const std::uint64_t region = any_region();
        const RegionRecord* r = s.region(RegionId{region});
        const std::uint64_t pages = r == nullptr ? 10 : r->pages;
        const std::uint64_t first = rnd.below(pages);
        *b.mutable_commit()->add_txns() =
            Rig::txn(node, 1 + rnd.below(200), region, {{first, 1 + rnd.below(pages - first)}}, incarnation);
      }
    }
  }
  return b;
}

class RandomCommands : public ::testing::TestWithParam<std::uint64_t> {};

TEST_P(RandomCommands, SameLogSameBytesAlsoAcrossASnapshot) {
  Random rnd(GetParam());
  Rig rig;
  rig.init(64 * kMiB);
  rig.join(2, 64 * kMiB);
  const std::size_t steps = 150;
  const std::size_t cut = rnd.below(steps);
  Bytes middle;
  std::size_t middle_index = 0;
  for (std::size_t i = 0; i < steps; ++i) {
    if (i == cut) {
      middle = rig.state.snapshot();
      middle_index = rig.log.size();
    }
    const wire::CommandBody body = random_body(rnd, rig.state);
    rig.send(body);
    if (rnd.chance(1, 8)) rig.feed(rig.log.back());  // Sent twice.
    expect_invariants(rig.state);
    if (::testing::Test::HasFatalFailure()) FAIL() << "after command " << i << " of kind " << body.kind_case();
  }
  const Bytes want = rig.state.snapshot();

  const auto replay = [&](State& s, std::size_t from) {
    for (std::size_t i = from; i < rig.log.size(); ++i) {
      s.apply(LogIndex{i + 1}, WallTime{static_cast<std::int64_t>(1001 + i)}, rig.log[i]);
    }
  };
  State again;
  replay(again, 0);
  EXPECT_EQ(again.snapshot(), want);

  State resumed;
  ASSERT_TRUE(resumed.restore(LogIndex{middle_index}, middle));
  EXPECT_EQ(resumed.snapshot(), middle);
  expect_invariants(resumed);
  replay(resumed, middle_index);
  EXPECT_EQ(resumed.snapshot(), want);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomCommands, ::testing::Range<std::uint64_t>(1, 61));

TEST(ControlState, EveryCutOrFlippedSnapshotIsRefusedOrHarmless) {
  Rig rig;
  rig.cluster(3, 64 * kMiB);
  rig.create("xs", kMiB, 2);
  rig.commit({Rig::txn(1, 1, 1, {{0, 100}})});
  rig.dead(2);
  const Bytes good = rig.state.snapshot();
  Random rnd(7);
  for (int i = 0; i < 2000; ++i) {
    Bytes bad = good;
    if (rnd.chance(1, 3))
      bad.resize(rnd.below(bad.size()));
    else
      bad[rnd.below(bad.size())] ^= static_cast<std::byte>(1U << rnd.below(8));
    State s;
    if (!s.restore(LogIndex{1}, bad)) continue;
    s.for_each_fill([](const State::ShardView&) {});
    s.snapshot();
  }
}

}  // namespace
}  // namespace holo::control::testing
