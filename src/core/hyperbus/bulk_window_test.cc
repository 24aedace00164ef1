#include "core/hyperbus/bulk_window.h"

#include <gtest/gtest.h>

namespace holo::hyperbus {
namespace {

TEST(BulkWindow, GrowsWhereTheRoundTripStaysShort) {
  BulkWindow window;
  Instant now{};
  for (int i = 0; i < 100; ++i, now = now + milliseconds(50)) {
    window.on_full();
    ASSERT_TRUE(window.due(now));
    window.adapt(now, milliseconds(50), milliseconds(50));
  }
  EXPECT_EQ(window.bytes(), BulkWindow::kMost);
}

TEST(BulkWindow, ShrinksWhereItMakesAQueueAndNotBelowItsLeast) {
  BulkWindow window;
  Instant now{};
  const auto see = [&](Duration smoothed) {
    now = now + seconds(1);
    window.on_full();
    window.adapt(now, smoothed, microseconds(100));
    return window.bytes();
  };
  std::uint64_t grown = 0;
  for (int i = 0; i < 10; ++i) grown = see(microseconds(150));
  EXPECT_GT(grown, BulkWindow::kLeast);
  EXPECT_EQ(see(microseconds(300)), grown);  // As long a queue as may be.
  EXPECT_LT(see(microseconds(400)), grown);
  for (int i = 0; i < 50; ++i) see(milliseconds(5));
  EXPECT_EQ(window.bytes(), BulkWindow::kLeast);
}

TEST(BulkWindow, ASlowPathNeedsNoMoreThanItCarries) {
  BulkWindow window;
  Instant now{};
  const Duration least = microseconds(200);
  // 1 Gbit/s: the round trip is what is under way.
  Duration passed = BulkWindow::kLookEvery;
  const auto look = [&] {
    const Duration round_trip = std::max(least, nanoseconds(static_cast<std::int64_t>(window.bytes() * 8)));
    now = now + passed;
    window.on_arrived(static_cast<std::uint64_t>(passed.ns / 8));
    window.on_full();
    ASSERT_TRUE(window.due(now));
    window.adapt(now, round_trip, least);
    passed = std::max(BulkWindow::kLookEvery, round_trip);
  };
  for (int i = 0; i < 40; ++i) look();
  EXPECT_GE(window.bytes(), 25'000U);  // A round trip's worth.
  EXPECT_LE(window.bytes() * 8, 450'000U + 8) << "ns of queue";
}

TEST(BulkWindow, AFastPathKeepsItsLeastThoughItsProcessorsAreSlow) {
  BulkWindow window;
  Instant now{};
  for (int i = 0; i < 50; ++i) {
    now = now + milliseconds(1);
    window.on_arrived(i < 20 ? 1'000'000 : 100'000);
    window.on_full();
    window.adapt(now, milliseconds(1), microseconds(50));
  }
  EXPECT_EQ(window.bytes(), BulkWindow::kLeast);
}

TEST(BulkWindow, LearnsOnlyWhenItWasTheBound) {
  BulkWindow window;
  EXPECT_FALSE(window.due(Instant{} + seconds(100)));
  window.on_full();
  const Instant now = Instant{} + seconds(100);
  ASSERT_TRUE(window.due(now));
  window.adapt(now, microseconds(50), microseconds(50));
  window.on_full();
  EXPECT_FALSE(window.due(now));
  EXPECT_TRUE(window.due(now + BulkWindow::kLookEvery));
}

}  // namespace
}  // namespace holo::hyperbus
