#include "core/control/session.h"

#include <gtest/gtest.h>

#include <set>

#include "base/random.h"

namespace holo::control {
namespace {

TEST(Session, DecidedSequencesAgreeWithASet) {
  Random rnd(3);
  Session s;
  std::set<std::uint64_t> want;
  for (int i = 0; i < 3000; ++i) {
    const std::uint64_t seq = 1 + rnd.below(4000);
    if (s.is_decided(seq)) {
      EXPECT_TRUE(want.contains(seq));
      continue;
    }
    EXPECT_TRUE(want.insert(seq).second);
    s.decide(seq, {});
  }
  for (std::uint64_t seq = 0; seq < 4100; ++seq) EXPECT_EQ(s.is_decided(seq), want.contains(seq)) << seq;
}

TEST(Session, StaysBoundedAndNeverForgetsThatItDecided) {
  Session s;
  const std::uint64_t n = 3 * Session::kMaxDecidedRanges;
  for (std::uint64_t i = 1; i <= n; ++i) s.decide(2 * i, {});
  EXPECT_LE(s.decided.size(), Session::kMaxDecidedRanges);
  EXPECT_LE(s.txns.size(), Session::kMaxTxnResults);
  for (std::uint64_t i = 1; i <= n; ++i) EXPECT_TRUE(s.is_decided(2 * i));
  EXPECT_FALSE(s.is_decided(2 * n + 1));
}

TEST(Session, ResultsAreBounded) {
  Session s;
  for (std::uint64_t i = 1; i <= 2 * Session::kMaxResults; ++i) s.remember(i, 0, {});
  EXPECT_LE(s.results.size(), Session::kMaxResults);
  EXPECT_GT(s.floor, 0U);
}

}  // namespace
}  // namespace holo::control
