#include "cmd/holo/cpu_score.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace holo::cmd {
namespace {

class CpuScore : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/holo-score-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    dir_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  wire::CpuScore score(const std::string& machine, double speed) {
    return cpu_score(dir_, machine, [&] {
      ++measured_;
      return SpeedMeasurement{.best = speed, .spread = 0.25};
    });
  }
  std::string dir_;
  int measured_ = 0;
};

TEST_F(CpuScore, IsMeasuredOnceForAMachine) {
  const auto first = score("a, 2 cores", 1.5);
  const auto second = score("a, 2 cores", 0.1);
  EXPECT_EQ(measured_, 1);
  EXPECT_EQ(first.SerializeAsString(), second.SerializeAsString());
  EXPECT_EQ(second.measured_on(), "a, 2 cores");
  EXPECT_DOUBLE_EQ(second.spread(), 0.25);
  EXPECT_DOUBLE_EQ(score("b, 2 cores", 3.0).speed(), 3.0);
  EXPECT_EQ(measured_, 2);
}

TEST_F(CpuScore, NonsenseIsMeasuredAgain) {
  for (const char* text : {"", "{", "[]", R"({"method":1,"measured_on":"a","speed":-1,"spread":0,"measured_ms":0})",
                           R"({"method":1,"measured_on":"a","speed":"1","spread":0,"measured_ms":0})",
                           R"({"method":1,"measured_on":"a","speed":1,"spread":7,"measured_ms":0})",
                           R"({"method":0,"measured_on":"a","speed":1,"spread":0,"measured_ms":0})"}) {
    std::ofstream(dir_ + "/cpu_score.json") << text;
    EXPECT_DOUBLE_EQ(score("a", 2.0).speed(), 2.0) << text;
  }
  EXPECT_EQ(measured_, 7);
}

TEST_F(CpuScore, TwoMeasurementsAgree) {
  const auto a = measure_speed(), b = measure_speed();
  EXPECT_GT(a.best, 0);
  EXPECT_LT(std::abs(a.best - b.best) / a.best, 0.5);  // Also on a machine that is busy with other tests.
  EXPECT_GE(a.spread, 0);
  EXPECT_LT(a.spread, 1);
}

}  // namespace
}  // namespace holo::cmd
