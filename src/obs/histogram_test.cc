#include "obs/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/random.h"

namespace holo::obs {
namespace {

TEST(Histogram, IsEmptyAtFirst) {
  const Histogram h;
  EXPECT_EQ(h.summary().count, 0u);
  EXPECT_EQ(h.quantile(0.99).ns, 0);
}

TEST(Histogram, KeepsEndsAndMeanExactly) {
  Histogram h;
  for (const std::int64_t us : {300, 100, 200}) h.record(microseconds(us));
  const Summary s = h.summary();
  EXPECT_EQ(s.count, 3u);
  EXPECT_EQ(s.min, microseconds(100));
  EXPECT_EQ(s.mean, microseconds(200));
  EXPECT_EQ(s.max, microseconds(300));
}

TEST(Histogram, QuantilesAreAtMostAnEighthOff) {
  Histogram h;
  std::vector<std::int64_t> all;
  Random random(1);
  for (int i = 0; i < 20'000; ++i) {
    const std::int64_t ns = std::int64_t{1} << (11 + random.below(25));
    all.push_back(ns + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(ns))));
    h.record(Duration{all.back()});
  }
  std::ranges::sort(all);
  for (const double q : {0.0, 0.1, 0.5, 0.9, 0.99, 1.0}) {
    const auto exact = static_cast<double>(all[static_cast<std::size_t>(q * static_cast<double>(all.size() - 1))]);
    EXPECT_LE(std::abs(static_cast<double>(h.quantile(q).ns) - exact), exact / 8 + 1) << q;
  }
}

TEST(Histogram, TakesWhatNoBucketFits) {
  Histogram h;
  h.record(Duration{-5});
  h.record(Duration{0});
  h.record(Duration{1023});
  h.record(seconds(100'000));
  EXPECT_EQ(h.summary().min.ns, 0);
  EXPECT_EQ(h.quantile(1), seconds(100'000));
  EXPECT_LE(h.quantile(0.5).ns, 1023);
}

TEST(Histogram, AddsUp) {
  Histogram one, two, both;
  for (int i = 1; i <= 100; ++i) {
    (i % 3 == 0 ? one : two).record(microseconds(i * i));
    both.record(microseconds(i * i));
  }
  one.add(two);
  one.add(Histogram());
  EXPECT_EQ(one.summary().count, both.summary().count);
  EXPECT_EQ(one.summary().mean, both.summary().mean);
  EXPECT_EQ(one.summary().min, both.summary().min);
  EXPECT_EQ(one.summary().p99, both.summary().p99);
}

}  // namespace
}  // namespace holo::obs
