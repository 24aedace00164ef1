#include "driver/hwloc/topology.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

namespace holo::driver {
namespace {

TEST(Topology, AgreesWithWhatTheKernelSays) {
  const auto inventory = read_inventory();
  ASSERT_TRUE(inventory) << inventory.error().message;
  cpu_set_t set;
  CPU_ZERO(&set);
  ASSERT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  EXPECT_EQ(inventory->usable_threads(), static_cast<std::uint32_t>(CPU_COUNT(&set)));
  EXPECT_GE(inventory->threads(), inventory->cores());
  EXPECT_GE(inventory->cores(), 1u);
  const auto installed =
      static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  EXPECT_NEAR(static_cast<double>(inventory->memory_bytes()), static_cast<double>(installed),
              0.05 * static_cast<double>(installed));
  std::uint64_t numa = 0;
  for (const auto& n : inventory->numa()) numa += n.memory_bytes();
  EXPECT_GT(numa, 0u);
  EXPECT_LE(numa, inventory->memory_bytes() + (inventory->memory_bytes() >> 4));
  EXPECT_FALSE(inventory->cpu_model().empty());
  for (const auto& l : inventory->links()) EXPECT_GT(l.mtu(), 0u) << l.name();
}

TEST(Topology, TwoLooksSeeTheSame) {
  const auto first = read_inventory();
  const auto second = read_inventory();
  ASSERT_TRUE(first && second);
  EXPECT_EQ(first->SerializeAsString(), second->SerializeAsString());
}

}  // namespace
}  // namespace holo::driver
