#include "base/secret.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <limits>

namespace holo {
namespace {

TEST(ConstantTime, SaysWhatIsEqual) {
  const Bytes a(100, std::byte{1});
  EXPECT_TRUE(constant_time_equal({}, {}));
  EXPECT_TRUE(constant_time_equal(a, Bytes(a)));
  EXPECT_FALSE(constant_time_equal(a, ByteSpan(a).first(99)));
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      Bytes b = a;
      b[i] ^= static_cast<std::byte>(1 << bit);
      EXPECT_FALSE(constant_time_equal(a, b)) << i;
    }
  }
}

/// Long enough that leaving at the first difference would be thousands of times as fast.
TEST(ConstantTime, TakesAsLongWhereverTheDifferenceIs) {
  const Bytes a(1 << 20, std::byte{7});
  Bytes first = a, last = a;
  const Bytes same = a;
  first.front() = last.back() = std::byte{8};
  const auto fastest = [&](ByteSpan b) {
    auto least = std::numeric_limits<std::int64_t>::max();
    for (int i = 0; i < 15; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      const bool equal = constant_time_equal(a, b);
      const auto took = std::chrono::steady_clock::now() - begin;
      EXPECT_EQ(equal, b.data() == same.data());
      least = std::min<std::int64_t>(least, took.count());
    }
    return least;
  };
  const std::int64_t of_first = fastest(first), of_last = fastest(last), of_same = fastest(same);
  EXPECT_LT(of_same, 4 * of_first);
  EXPECT_LT(of_last, 4 * of_first);
  EXPECT_LT(of_first, 4 * of_same);
}

}  // namespace
}  // namespace holo
