// The key-value store and locks, as programs use them, on nodes inside this process.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <holo/holo.hpp>
#include <thread>
#include <vector>

#include "client/session.h"
#include "wire/kv.pb.h"

namespace holo {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class KvTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto made = detail::local(2, 0);
    ASSERT_TRUE(made) << made.error().to_string();
    session_ = std::dynamic_pointer_cast<client::SessionImpl>(*made);
    cluster_ = std::make_unique<Cluster>(std::move(*made));
  }
  static void TearDownTestSuite() {
    cluster_.reset();
    session_.reset();
  }
  static inline std::unique_ptr<Cluster> cluster_;
  static inline std::shared_ptr<client::SessionImpl> session_;
};

TEST_F(KvTest, WhatIsPutIsReadAndDeleted) {
  KeyValue kv = cluster_->kv();
  const std::string bytes("a\0b\xff", 4);
  const auto at = kv.put("k1", bytes);
  ASSERT_TRUE(at) << at.error().to_string();
  ASSERT_TRUE(kv.put("k1", "later"));
  const auto now = kv.get("k1");
  ASSERT_TRUE(now && *now);
  EXPECT_EQ((*now)->value, "later");
  EXPECT_EQ((*now)->version, 2u);
  EXPECT_EQ((*now)->created, *at);
  const auto then = kv.get("k1", {.revision = *at});
  ASSERT_TRUE(then && *then);
  EXPECT_EQ((*then)->value, bytes);
  EXPECT_TRUE(kv.get("k1", {.stale = true}));
  EXPECT_EQ(*kv.erase(KeyRange::one("k1")), 1u);
  EXPECT_EQ(*kv.erase(KeyRange::one("k1")), 0u);
  EXPECT_FALSE(*kv.get("k1"));
  EXPECT_EQ(kv.put("", "x").error().code, Errc::invalid_argument);
  EXPECT_EQ(kv.put("holo/x", "x").error().code, Errc::permission_denied);
  EXPECT_EQ(kv.put("big", std::string((512 << 10) + 1, 'x')).error().code, Errc::over_limit);
  const auto huge = kv.put("big", std::string(2 << 20, 'x'));
  ASSERT_FALSE(huge);
  EXPECT_EQ(huge.error().code, Errc::over_limit);
  EXPECT_NE(huge.error().to_string().find("a transaction of"), std::string::npos) << huge.error().to_string();
}

TEST_F(KvTest, ARangeIsWholeHoweverLargeAndAsOfOneRevision) {
  KeyValue kv = cluster_->kv();
  const std::string value(40'000, 'v');  // 60 of them do not fit an answer.
  for (int i = 10; i < 70; ++i) ASSERT_TRUE(kv.put("r/" + std::to_string(i), value));
  const auto all = kv.range(KeyRange::prefix("r/"));
  ASSERT_TRUE(all) << all.error().to_string();
  ASSERT_EQ(all->size(), 60u);
  for (int i = 10; i < 70; ++i) EXPECT_EQ((*all)[static_cast<std::size_t>(i) - 10].key, "r/" + std::to_string(i));
  EXPECT_EQ(kv.range(KeyRange::prefix("r/"), {.limit = 55})->size(), 55u);
  EXPECT_EQ(kv.range(KeyRange::between("r/20", "r/30"))->size(), 10u);
  const auto names = kv.range(KeyRange::prefix("r/"), {.keys_only = true});
  ASSERT_TRUE(names);
  EXPECT_EQ(names->front().value, "");
  EXPECT_EQ(*kv.erase(KeyRange::prefix("r/")), 60u);
}

TEST_F(KvTest, PrefixesEndWhereTheyShould) {
  EXPECT_EQ(KeyRange::prefix("a").end, "b");
  EXPECT_EQ(KeyRange::prefix("a\xff").end, "b");
  EXPECT_EQ(KeyRange::prefix("\xff").end, std::string(1, '\0'));
  EXPECT_EQ(KeyRange::all().end, std::string(1, '\0'));
}

TEST_F(KvTest, ATransactionTakesOneBranchAndCountingLosesNothing) {
  KeyValue kv = cluster_->kv();
  const auto made = kv.txn({.when = {KvCondition::absent("n")},
                            .then = {KvOperation::put("n", "0")},
                            .otherwise = {KvOperation::get(KeyRange::one("n"))}});
  ASSERT_TRUE(made && made->succeeded);
  const auto again = kv.txn({.when = {KvCondition::absent("n")},
                             .then = {KvOperation::put("n", "x")},
                             .otherwise = {KvOperation::get(KeyRange::one("n"))}});
  ASSERT_TRUE(again);
  EXPECT_FALSE(again->succeeded);
  EXPECT_EQ(again->results[0].pairs[0].value, "0");

  std::atomic<int> failures = 0;
  const auto count = [&] {
    KeyValue mine = cluster_->kv();
    for (int i = 0; i < 25;) {
      const auto was = mine.get("n");
      if (!was || !*was) {
        ++failures;
        return;
      }
      const auto done = mine.txn({.when = {KvCondition::unchanged("n", (*was)->modified)},
                                  .then = {KvOperation::put("n", std::to_string(std::stoi((*was)->value) + 1))},
                                  .otherwise = {}});
      if (!done) {
        ++failures;
        return;
      }
      i += done->succeeded ? 1 : 0;
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back(count);
  for (auto& t : threads) t.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ((*kv.get("n"))->value, "100");
}

TEST_F(KvTest, AWatchSeesEachChangeOnceAndInOrder) {
  KeyValue kv = cluster_->kv();
  const auto start = kv.put("w/0", "first");
  ASSERT_TRUE(start);
  KvWatch watch = kv.watch(KeyRange::prefix("w/"), *start);
  std::thread writer([] {
    KeyValue mine = cluster_->kv();
    for (int i = 1; i < 20; ++i) (void)mine.put("w/" + std::to_string(i), "x");
    (void)mine.erase(KeyRange::one("w/0"));
  });
  std::vector<KvEvent> seen;
  while (seen.size() < 21) {
    auto events = watch.next(seconds(20));
    ASSERT_TRUE(events) << events.error().to_string();
    ASSERT_FALSE(events->empty()) << "only " << seen.size();
    seen.insert(seen.end(), events->begin(), events->end());
  }
  writer.join();
  EXPECT_EQ(seen.size(), 21u);
  EXPECT_TRUE(seen.back().deleted);
  for (std::size_t i = 1; i < seen.size(); ++i) EXPECT_GT(seen[i].pair.modified, seen[i - 1].pair.modified);
  EXPECT_TRUE(watch.next(milliseconds(1))->empty());
}

TEST_F(KvTest, ALockIsForOneAtATimeAndTokensGrow) {
  std::uint64_t first = 0;
  {
    auto held = cluster_->lock("l");
    ASSERT_TRUE(held) << held.error().to_string();
    first = held->token();
    EXPECT_FALSE(held->lost());
    EXPECT_EQ(held->name(), "l");
    EXPECT_EQ(cluster_->lock("l", {.wait = milliseconds(0)}).error().code, Errc::refused);
    EXPECT_EQ(cluster_->lock("l", {.wait = milliseconds(50)}).error().code, Errc::deadline_exceeded);
    EXPECT_TRUE(
        cluster_->kv().txn({.when = {held->held()}, .then = {KvOperation::put("f", "1")}, .otherwise = {}})->succeeded);
  }
  auto next = cluster_->lock("l");
  ASSERT_TRUE(next);
  EXPECT_GT(next->token(), first);
  const KvCondition held = next->held();
  EXPECT_TRUE(next->release());
  EXPECT_TRUE(next->lost());
  EXPECT_FALSE(next->release());
  EXPECT_FALSE(cluster_->kv().txn({.when = {held}, .then = {KvOperation::put("f", "2")}, .otherwise = {}})->succeeded);
  EXPECT_EQ(cluster_->lock("a name with spaces").error().code, Errc::invalid_argument);
  EXPECT_EQ(cluster_->lock("l", {.ttl = milliseconds(1)}).error().code, Errc::invalid_argument);
}

TEST_F(KvTest, WhoWaitsGetsItWhenTheHolderGivesItBack) {
  auto held = cluster_->lock("line");
  ASSERT_TRUE(held);
  std::atomic<bool> inside = false, wrong = false;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      auto mine = cluster_->lock("line");
      if (!mine || inside.exchange(true)) {
        wrong = true;
        return;
      }
      std::this_thread::yield();
      inside = false;
    });
  }
  ASSERT_TRUE(held->release());
  for (auto& t : threads) t.join();
  EXPECT_FALSE(wrong);
}

TEST_F(KvTest, ALostLockIsTold) {
  std::atomic<int> told = 0;
  auto held = cluster_->lock("lost", {.ttl = seconds(1), .on_lost = [&] { ++told; }});
  ASSERT_TRUE(held);
  ASSERT_TRUE(cluster_->kv().put("with-the-lock", "1", held->lease()));
  // Somebody ends its lease: what a cluster does whose holder cannot be heard, without the waiting.
  auto other = cluster_->lock("other");
  ASSERT_TRUE(other);
  wire::LeaseEnd end;
  end.set_lease(held->lease());
  ASSERT_TRUE(session_->agent().call<wire::Empty>(wire::LEASE_END, end));
  const auto until = std::chrono::steady_clock::now() + seconds(20);
  while (told == 0 && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_EQ(told, 1);
  EXPECT_TRUE(held->lost());
  EXPECT_FALSE(other->lost());
  EXPECT_FALSE(*cluster_->kv().get("with-the-lock"));
  EXPECT_EQ(held->release().error().code, Errc::unavailable);
}

}  // namespace
}  // namespace holo
