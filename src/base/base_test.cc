#include <gtest/gtest.h>

#include <set>
#include <string>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/random.h"
#include "base/result.h"
#include "base/strings.h"
#include "base/task.h"
#include "base/time.h"

namespace holo {
namespace {

Result<int> half(int v) {
  if (v % 2 != 0) return fail(Errc::invalid_argument, str(v, " is odd"), "pass an even number");
  return v / 2;
}
Result<int> quarter(int v) {
  HOLO_ASSIGN(h, half(v));
  HOLO_ASSIGN(q, half(h));
  return q;
}

TEST(Result, CarriesTheFirstErrorUp) {
  EXPECT_EQ(quarter(8), 2);
  const auto r = quarter(6);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().code, Errc::invalid_argument);
  EXPECT_EQ(r.error().to_string(), "3 is odd (pass an even number)");
}

TEST(Result, EveryCodeHasItsOwnName) {
  std::set<std::string> names;
  for (int c = 1; c <= static_cast<int>(Errc::internal); ++c) names.insert(errc_name(static_cast<Errc>(c)));
  EXPECT_EQ(names.size(), static_cast<std::size_t>(Errc::internal));
  EXPECT_FALSE(names.contains("unknown"));
}

TEST(Ids, NodesPrintAsHexAndOthersAsNumbers) {
  EXPECT_EQ(str(NodeId{0xABC}), "0000000000000abc");
  EXPECT_EQ(str("page ", PageNo{7}, ' ', true), "page 7 1");
}

TEST(Random, FirstOutputsAreThoseOfSplitMix64) {
  // Reference values of Vigna's splitmix64.c with seed 1234567.
  Random r(1234567);
  EXPECT_EQ(r.next(), 6457827717110365317ULL);
  EXPECT_EQ(r.next(), 3203168211198807973ULL);
  EXPECT_EQ(r.next(), 9817491932198370423ULL);
  for (int i = 0; i < 1000; ++i) EXPECT_LT(r.below(7), 7U);
}

TEST(Buffer, SlicesKeepTheirBytesAlive) {
  Buffer part;
  {
    Buffer whole = Buffer::copy(as_bytes("hello world"));
    part = whole.slice(6, 5);
  }
  EXPECT_EQ(as_text(part.span()), "world");
}

TEST(Time, ArithmeticKeepsItsUnits) {
  const Instant t{1'000};
  EXPECT_EQ((t + microseconds(2)).ns, 3'000);
  EXPECT_EQ(((t + seconds(3)) - t).millis(), 3'000);
  EXPECT_LT(t, kNever);
}

Task<int> answer(std::shared_ptr<OneShot<int>> shot) {
  const int v = co_await *shot;
  co_return v + 1;
}
Task<void> store(std::shared_ptr<OneShot<int>> shot, int* out) { *out = co_await answer(shot); }

TEST(Task, ResumesWhenTheValueArrivesAndOnlyTheFirstSetCounts) {
  auto shot = std::make_shared<OneShot<int>>();
  int got = 0;
  bool done = false;
  start_detached(store(shot, &got), [&] { done = true; });
  EXPECT_FALSE(done);
  EXPECT_TRUE(shot->set(41));
  EXPECT_TRUE(done);
  EXPECT_EQ(got, 42);
  EXPECT_FALSE(shot->set(0));
}

Task<int> count_down(int n) {
  int sum = 0;
  for (int i = 0; i < n; ++i) {
    auto ready = std::make_shared<OneShot<int>>();
    ready->set(1);
    sum += co_await answer(ready);
  }
  co_return sum;
}
Task<void> run_count(int n, int* out) { *out = co_await count_down(n); }

TEST(Task, ManyAwaitsDoNotGrowTheStack) {
  int sum = 0;
  start_detached(run_count(200'000, &sum));
  EXPECT_EQ(sum, 400'000);
}

TEST(Task, AnUnstartedTaskFreesItsFrame) {
  auto shot = std::make_shared<OneShot<int>>();
  {
    auto t = answer(shot);
  }
  EXPECT_EQ(shot.use_count(), 1);
}

TEST(Log, BelowTheLevelNothingIsBuilt) {
  std::string seen;
  set_log_sink([&](LogLevel, std::string_view area, std::string_view text) { seen = str(area, ": ", text); },
               LogLevel::info);
  log_debug("base", "hidden");
  EXPECT_EQ(seen, "");
  log_info("base", "node ", NodeId{1});
  EXPECT_EQ(seen, "base: node 0000000000000001");
  set_log_sink({}, LogLevel::warn);
}

}  // namespace
}  // namespace holo
