#include "node/inventory.h"

#include <gtest/gtest.h>

#include "core/control/state_testing.h"
#include "crypto/ed25519.h"

namespace holo::node {
namespace {

hyperbus::Identity identity(unsigned n) {
  crypto::Ed25519Seed seed;
  seed.writable()[0] = static_cast<std::byte>(n);
  return hyperbus::Identity::from_seed(seed);
}

wire::Inventory inventory(NodeId node, std::int64_t taken_ms) {
  wire::Inventory out;
  out.set_node(node.value);
  out.set_taken_ms(taken_ms);
  out.set_cores(8);
  out.mutable_score()->set_speed(1.25);
  return out;
}

TEST(Inventory, IsWhatItsNodeHasSignedAlsoAfterARotation) {
  const auto mine = identity(1);
  const auto said = inventory(mine.node(), 5);
  const std::string text = sign_inventory(mine, said);
  const auto opened = open_inventory(mine.node(), as_bytes(text));
  ASSERT_TRUE(opened) << opened.error().message;
  EXPECT_EQ(opened->SerializeAsString(), said.SerializeAsString());
  crypto::Ed25519Seed next;
  next.writable()[0] = std::byte{77};
  const auto rotated = mine.rotated(next);
  ASSERT_TRUE(rotated);
  EXPECT_TRUE(open_inventory(mine.node(), as_bytes(sign_inventory(*rotated, said))));
}

TEST(Inventory, ForgedOnesAreRefused) {
  const auto mine = identity(1), other = identity(2);
  const auto said = inventory(mine.node(), 5);
  // In another's name; signed by another; with another's chain.
  EXPECT_FALSE(open_inventory(other.node(), as_bytes(sign_inventory(mine, said))));
  EXPECT_FALSE(open_inventory(mine.node(), as_bytes(sign_inventory(other, said))));
  EXPECT_FALSE(open_inventory(other.node(), as_bytes(sign_inventory(other, said))));
  wire::SignedInventory mixed;
  ASSERT_TRUE(mixed.ParseFromString(sign_inventory(mine, said)));
  mixed.set_inventory(inventory(mine.node(), 6).SerializeAsString());
  EXPECT_FALSE(open_inventory(mine.node(), as_bytes(mixed.SerializeAsString())));
  // Every altered byte.
  const std::string text = sign_inventory(mine, said);
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string altered = text;
    altered[i] = static_cast<char>(altered[i] ^ 4);
    const auto opened = open_inventory(mine.node(), as_bytes(altered));
    EXPECT_FALSE(opened) << "byte " << i;
  }
  EXPECT_FALSE(open_inventory(mine.node(), {}));
}

/// In the replicated state: whoever proposes a forged or old one is refused by every node, and it is counted.
TEST(Inventory, TheStateTakesOnlyWhatIsSignedAndNewer) {
  control::testing::Rig rig;
  rig.state.set_inventory_check(&check_inventory);
  const auto mine = identity(1), other = identity(2);
  wire::CommandBody init;
  init.mutable_cluster_init()->set_cluster(7);
  *init.mutable_cluster_init()->mutable_node() = control::testing::info(mine.node().value);
  ASSERT_EQ(rig.send(init, mine.node().value).error().code(), 0u);
  wire::CommandBody join;
  *join.mutable_node_join()->mutable_node() = control::testing::info(other.node().value);
  join.mutable_node_join()->mutable_node()->set_name("other");
  ASSERT_EQ(rig.send(join, mine.node().value).error().code(), 0u);

  const auto tell = [&](NodeId about, const std::string& text) {
    wire::CommandBody b;
    b.mutable_node_inventory()->set_node(about.value);
    b.mutable_node_inventory()->set_inventory(text);
    return static_cast<Errc>(rig.send(b, other.node().value).error().code());
  };
  const std::string first = sign_inventory(mine, inventory(mine.node(), 5));
  EXPECT_EQ(tell(mine.node(), first), Errc{});
  EXPECT_EQ(tell(mine.node(), first), Errc{}) << "said twice";
  EXPECT_EQ(tell(mine.node(), sign_inventory(mine, inventory(mine.node(), 4))), Errc::refused) << "an older one";
  EXPECT_EQ(rig.state.inventories_refused(), 0u);
  EXPECT_EQ(tell(mine.node(), sign_inventory(other, inventory(mine.node(), 9))), Errc::permission_denied);
  EXPECT_EQ(tell(mine.node(), sign_inventory(other, inventory(other.node(), 9))), Errc::permission_denied);
  EXPECT_EQ(tell(mine.node(), "nonsense"), Errc::malformed);
  EXPECT_EQ(rig.state.inventories_refused(), 3u);
  EXPECT_EQ(tell(mine.node(), std::string(limits::kMaxInventoryBytes + 1, 'x')), Errc::over_limit);
  EXPECT_EQ(tell(NodeId{12345}, first), Errc::not_found);
  EXPECT_EQ(rig.state.node(mine.node())->inventory, first);

  // A snapshot with a forged one in it is refused as a whole.
  const Bytes good = rig.state.snapshot();
  control::State copy;
  copy.set_inventory_check(&check_inventory);
  ASSERT_TRUE(copy.restore(LogIndex{9}, good));
  EXPECT_EQ(copy.snapshot(), good);
  wire::ControlSnapshot forged;
  ASSERT_TRUE(forged.ParseFromArray(good.data(), static_cast<int>(good.size())));
  for (auto& n : *forged.mutable_nodes()) n.set_inventory(sign_inventory(other, inventory(NodeId{n.info().id()}, 9)));
  const std::string text = forged.SerializeAsString();
  EXPECT_FALSE(copy.restore(LogIndex{10}, as_bytes(text)));
  EXPECT_EQ(copy.snapshot(), good);
}

}  // namespace
}  // namespace holo::node
