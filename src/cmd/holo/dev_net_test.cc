#include "cmd/holo/dev_net.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace holo::cmd {
namespace {

using driver::Ipv4Range;

constexpr Ipv4Range kTen{.address = 10U << 24, .bits = 8};
constexpr Ipv4Range kShared{.address = 100U << 24 | 64 << 16, .bits = 10};

TEST(DevNet, NamesComeFromTheFolder) {
  const auto key = dev_key("dev", "/home/me/.local/state/holo/dev/dev");
  EXPECT_EQ(key, dev_key("dev", "/home/me/.local/state/holo/dev/dev"));
  EXPECT_NE(key, dev_key("dev", "/home/you/.local/state/holo/dev/dev"));
  DevNet net{.key = key, .range = {.address = 10U << 24 | 3 << 8, .bits = 24}, .nodes = 4, .rate_bits = 1};
  EXPECT_TRUE(net.namespace_of(2).starts_with("holo-dev-"));
  EXPECT_TRUE(net.namespace_of(2).ends_with("-2"));
  EXPECT_EQ(net.address_of(2), "10.0.3.2");
  net.key = dev_key(std::string(63, 'x'), "/y");
  EXPECT_LE(net.machine_link().size(), 15U);  // What the kernel takes as a link's name.
}

TEST(DevNet, ARangeIsChosenThatNobodyUses) {
  std::vector<Ipv4Range> used;
  for (int i = 0; i < 100; ++i) {
    const auto range = choose_range("holo-dev-00000000", used);
    ASSERT_TRUE(range);
    EXPECT_EQ(range->bits, 24U);
    EXPECT_TRUE(kTen.overlaps(*range));
    EXPECT_TRUE(std::ranges::none_of(used, [&](const Ipv4Range& u) { return u.overlaps(*range); }));
    used.push_back(*range);
  }
  EXPECT_EQ(choose_range("k", {}), choose_range("k", {{.address = 192U << 24 | 168 << 16, .bits = 16}}));
  EXPECT_TRUE(kShared.overlaps(*choose_range("holo-dev-00000000", {kTen})));
  EXPECT_EQ(choose_range("k", {kTen, kShared}).error().code, Errc::over_limit);
}

}  // namespace
}  // namespace holo::cmd
