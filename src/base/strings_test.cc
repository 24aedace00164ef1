#include "base/strings.h"

#include <gtest/gtest.h>

#include <limits>

namespace holo {
namespace {

TEST(Strings, NumbersHaveNoDigitsThatSayNothing) {
  EXPECT_EQ(str("wait ", 5.0, " s"), "wait 5 s");
  EXPECT_EQ(str(0.25, ' ', 600.0, ' ', -1.5, ' ', 0.0), "0.25 600 -1.5 0");
  EXPECT_EQ(str(100, ' ', 1e15), "100 1000000000000000");
  EXPECT_EQ(str(std::numeric_limits<double>::infinity()), "inf");
}

}  // namespace
}  // namespace holo
