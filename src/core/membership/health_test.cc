#include "core/membership/health.h"

#include <gtest/gtest.h>

#include <vector>

namespace holo::membership {
namespace {

std::vector<HealthSample> quiet(std::size_t n) {
  return std::vector<HealthSample>(n, HealthSample{.memory_pressure = 0.0,
                                                   .memory_available = 0.6,
                                                   .heat = 0.5,
                                                   .disk_failing = false,
                                                   .disk_errors = 0,
                                                   .late = milliseconds(2),
                                                   .unanswered = 0});
}

TEST(Health, WhoSeesNothingWrongIsWell) {
  EXPECT_EQ(assess({}).score, 100u);
  EXPECT_EQ(assess(quiet(12)).score, 100u);
  EXPECT_EQ(assess(std::vector<HealthSample>(12)).score, 100u) << "what is not known is held against nobody";
  EXPECT_TRUE(assess(quiet(12)).reasons.empty());
}

/// Each cause alone, from slight to severe: the score only falls, before the worst is there, and says why.
TEST(Health, FallsWithEachCauseBeforeTheWorst) {
  using Set = void (*)(HealthSample&, double);
  const std::vector<Set> causes = {
      [](HealthSample& s, double x) { s.memory_pressure = 0.6 * x; },
      [](HealthSample& s, double x) { s.memory_available = 0.10 * (1 - x); },
      [](HealthSample& s, double x) { s.heat = 0.85 + 0.15 * x; },
      [](HealthSample& s, double x) { s.disk_errors = static_cast<std::uint32_t>(x * 3); },
      [](HealthSample& s, double x) { s.late = milliseconds(static_cast<std::int64_t>(2000 * x)); },
      [](HealthSample& s, double x) { s.unanswered = static_cast<std::uint32_t>(10 * x); },
  };
  for (std::size_t c = 0; c < causes.size(); ++c) {
    std::uint32_t last = 100;
    for (double x = 0; x <= 1.0; x += 0.1) {
      auto samples = quiet(12);
      for (HealthSample& s : samples) causes[c](s, x);
      const Health h = assess(samples);
      EXPECT_LE(h.score, last) << "cause " << c << " at " << x;
      EXPECT_EQ(h.reasons.size(), h.score < 100 ? 1u : 0u) << "cause " << c << " at " << x;
      if (x > 0.75) {
        EXPECT_LT(h.score, 90u) << "cause " << c << " at " << x;
      }
      last = h.score;
    }
    EXPECT_LE(last, 60u) << "cause " << c;
  }
}

TEST(Health, OneStallIsForgivenAndTwoAreNot) {
  auto samples = quiet(12);
  samples[3].late = seconds(2);
  EXPECT_EQ(assess(samples).score, 100u);
  samples[7].late = seconds(2);
  EXPECT_LE(assess(samples).score, 60u);
}

TEST(Health, AFailingDiskCountsAtOnceAndIsForgottenAfterAWhile) {
  auto samples = quiet(1);
  samples[0].disk_failing = true;
  EXPECT_LE(assess(samples).score, 40u);
  auto later = quiet(12);
  later.insert(later.begin(), samples[0]);
  EXPECT_EQ(assess(later).score, 100u);
  later = quiet(11);
  later.insert(later.begin(), samples[0]);
  EXPECT_LT(assess(later).score, 100u);
}

TEST(Health, TheWorstReasonIsFirstAndTheScoreEndsAtZero) {
  auto samples = quiet(12);
  for (HealthSample& s : samples) {
    s = {.memory_pressure = 1.0,
         .memory_available = 0.0,
         .heat = 1.2,
         .disk_failing = true,
         .disk_errors = 9,
         .late = seconds(9),
         .unanswered = 99};
  }
  const Health h = assess(samples);
  EXPECT_EQ(h.score, 0u);
  ASSERT_EQ(h.reasons.size(), 5u);
  EXPECT_EQ(h.reasons[0], "the store cannot be written");
}

}  // namespace
}  // namespace holo::membership
