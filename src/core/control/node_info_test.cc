#include "core/control/node_info.h"

#include <gtest/gtest.h>

#include "core/control/state_testing.h"

namespace holo::control::testing {
namespace {

wire::NodeInfo labelled(std::uint64_t id) {
  wire::NodeInfo n = info(id);
  set_place({.zone = "z1",
             .host = "h1",
             .rack = "r1",
             .labels = {{.key = "disk", .value = "ssd"}, {.key = "gpu", .value = ""}}},
            &n);
  return n;
}

wire::CommandResult join(Rig& rig, const wire::NodeInfo& node) {
  wire::CommandBody b;
  *b.mutable_node_join()->mutable_node() = node;
  return rig.send(b);
}

TEST(NodeInfo, LabelsAndWitnessComeThroughTheSnapshot) {
  Rig rig;
  rig.init();
  wire::NodeInfo node = labelled(2);
  node.set_witness(true);
  ASSERT_EQ(join(rig, node).error().code(), 0u);
  State copy;
  ASSERT_TRUE(copy.restore(LogIndex{9}, rig.state.snapshot()));
  const NodeRecord* n = copy.node(NodeId{2});
  ASSERT_NE(n, nullptr);
  EXPECT_EQ(n->place, place_of(node));
  EXPECT_EQ(n->place.labels.size(), 2u);
  EXPECT_TRUE(n->witness);
  EXPECT_EQ(copy.snapshot(), rig.state.snapshot());
  EXPECT_EQ(info_of(*n).SerializeAsString(), node.SerializeAsString());
}

TEST(NodeInfo, LabelsThatCannotBeAreRefused) {
  const std::vector<NodePlace> bad = {
      {.zone = std::string(64, 'z'), .host = {}, .rack = {}, .labels = {}},
      {.zone = {}, .host = "a b", .rack = {}, .labels = {}},
      {.zone = {}, .host = {}, .rack = "-r", .labels = {}},
      {.zone = {}, .host = {}, .rack = {}, .labels = {{.key = "", .value = "v"}}},
      {.zone = {}, .host = {}, .rack = {}, .labels = {{.key = "k", .value = "\n"}}},
      {.zone = {}, .host = {}, .rack = {}, .labels = {{.key = "k", .value = "1"}, {.key = "k", .value = "2"}}},
      {.zone = {}, .host = {}, .rack = {}, .labels = std::vector<NodeLabel>(kMaxLabels + 1, {.key = "k", .value = ""})},
  };
  Rig rig;
  rig.init();
  for (const NodePlace& place : bad) {
    EXPECT_FALSE(check_place(place));
    wire::NodeInfo node = info(2);
    set_place(place, &node);
    EXPECT_EQ(join(rig, node).error().code(), static_cast<std::uint32_t>(Errc::invalid_argument));
    EXPECT_EQ(rig.state.node(NodeId{2}), nullptr);
  }
}

TEST(NodeInfo, ChangedLabelsAreNewFactsAndTheWitnessIsSettledByTheJoin) {
  Rig rig;
  rig.init();
  ASSERT_EQ(join(rig, labelled(2)).error().code(), 0u);
  wire::NodeInfo now = labelled(2);
  EXPECT_TRUE(same_facts(*rig.state.node(NodeId{2}), now));
  now.set_zone("z2");
  now.set_witness(true);
  EXPECT_FALSE(same_facts(*rig.state.node(NodeId{2}), now));
  wire::CommandBody b;
  b.mutable_node_update()->set_node(2);
  *b.mutable_node_update()->mutable_info() = now;
  ASSERT_EQ(rig.send(b).error().code(), 0u);
  EXPECT_EQ(rig.state.node(NodeId{2})->place.zone, "z2");
  EXPECT_FALSE(rig.state.node(NodeId{2})->witness);
  EXPECT_TRUE(same_facts(*rig.state.node(NodeId{2}), now));
}

TEST(NodeInfo, AWitnessHoldsNothing) {
  Rig rig;
  rig.cluster(2);
  wire::NodeInfo witness = info(3, 100 * 256 * kMiB);
  witness.set_witness(true);
  ASSERT_EQ(join(rig, witness).error().code(), 0u);
  EXPECT_EQ(rig.state.live_count(), 3u);
  EXPECT_EQ(rig.state.live_holders(), (std::vector<NodeId>{NodeId{1}, NodeId{2}}));

  wire::CommandBody b = Rig::region_body("three");
  b.mutable_create_region()->mutable_region()->set_replication(3);
  EXPECT_EQ(rig.send(b).error().code(), static_cast<std::uint32_t>(Errc::under_replicated));

  b = Rig::region_body("two");
  b.mutable_create_region()->mutable_region()->set_replication(2);
  const auto made = rig.send(b);
  ASSERT_EQ(made.error().code(), 0u);
  const RegionId region{made.region()};
  ASSERT_EQ(rig.dead(2).error().code(), 0u);  // Nobody is left to hold its copies but the first.
  rig.state.for_each_shard(region, [](const State::ShardView& s) {
    EXPECT_FALSE(s.in_sync.contains(NodeId{3}));
    EXPECT_FALSE(s.filling);
  });
  EXPECT_EQ(rig.state.wanted_copies(region), 1u);
  EXPECT_EQ(rig.state.node(NodeId{3})->reserved_bytes, 0u);
}

TEST(NodeInfo, ANameIsOneMembers) {
  Rig rig;
  rig.cluster(2);
  wire::NodeInfo third = info(3);
  third.set_name("n2");
  const auto refused = join(rig, third);
  EXPECT_EQ(refused.error().code(), static_cast<std::uint32_t>(Errc::already_exists));
  EXPECT_NE(refused.error().message().find(to_hex(2)), std::string::npos) << "it names the other one";
  ASSERT_EQ(rig.join(3).error().code(), 0u);
  // Not later either, by a restart or an update; everything else is taken.
  third.set_incarnation(2);
  third.set_zone("z");
  wire::CommandBody alive;
  *alive.mutable_node_alive()->mutable_node() = third;
  ASSERT_EQ(rig.send(alive).error().code(), 0u);
  EXPECT_EQ(rig.state.node(NodeId{3})->name, "n3");
  EXPECT_EQ(rig.state.node(NodeId{3})->place.zone, "z");
  wire::CommandBody update;
  update.mutable_node_update()->set_node(3);
  *update.mutable_node_update()->mutable_info() = third;
  ASSERT_EQ(rig.send(update).error().code(), 0u);
  EXPECT_EQ(rig.state.node(NodeId{3})->name, "n3");
  ASSERT_EQ(rig.leave(2).error().code(), 0u);
  ASSERT_EQ(rig.send(update).error().code(), 0u);
  EXPECT_EQ(rig.state.node(NodeId{3})->name, "n2") << "nobody has it any more";
}

}  // namespace
}  // namespace holo::control::testing
