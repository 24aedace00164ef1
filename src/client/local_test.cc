// Whole programs on clusters of real nodes inside this process.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <holo/holo.hpp>

namespace holo {
namespace {

/// One cluster of three nodes for all tests of this file: forming it takes longer than the tests.
Cluster& shared_cluster() {
  static auto cluster = local(3);
  EXPECT_TRUE(cluster) << cluster.error().to_string();
  return *cluster;
}

class LocalTest : public ::testing::Test {
 protected:
  static void TearDownTestSuite() { end_ = true; }
  Cluster& cluster_ = shared_cluster();
  static inline bool end_ = false;
};

TEST_F(LocalTest, FillsAndSums) {
  constexpr std::uint64_t kCount = 3'000'000;
  auto xs = cluster_.array<std::uint64_t>("fill", kCount).value();
  const auto filled = cluster_
                          .parallel_for(xs,
                                        [](Chunk<std::uint64_t> c) {
                                          for (std::uint64_t i = c.first(); i < c.last(); ++i) c[i] = i * i + 3 * i + 1;
                                        })
                          .wait();
  ASSERT_TRUE(filled) << filled.error().to_string();
  xs.sync().value();
  std::uint64_t want = 0;
  for (std::uint64_t i = 0; i < kCount; ++i) want += i * i + 3 * i + 1;
  const auto total = cluster_.reduce(xs, std::uint64_t{0}, std::plus<>{}).get();
  ASSERT_TRUE(total) << total.error().to_string();
  EXPECT_EQ(*total, want);

  const auto view = xs.map_read();
  ASSERT_TRUE(view) << view.error().to_string();
  EXPECT_EQ(std::accumulate(view->begin(), view->end(), std::uint64_t{0}), want);
  const auto facts = xs.facts().value();
  EXPECT_GE(facts.pages_by_node.size(), 2U) << "pages live on several nodes";
  cluster_.free("fill").value();
}

TEST_F(LocalTest, AnotherRoundOverWrittenPagesSeesTheFirst) {
  auto xs = cluster_.array<std::uint64_t>("rounds", 500'000).value();
  for (std::uint64_t round = 1; round <= 3; ++round) {
    cluster_
        .parallel_for(xs,
                      [](Chunk<std::uint64_t> c) {
                        for (auto& x : c) ++x;
                      })
        .wait()
        .value();
    EXPECT_EQ(cluster_.reduce(xs, std::uint64_t{0}, std::plus<>{}).get().value(), round * 500'000);
  }
  cluster_.free("rounds").value();
}

TEST_F(LocalTest, ElementsThatStraddlePagesMerge) {
  struct Odd {
    std::uint64_t a, b, c;
  };
  auto xs = cluster_.array<Odd>("odd", 100'000, {.page_bytes = 4096}).value();
  cluster_
      .parallel_for(xs,
                    [](Chunk<Odd> c) {
                      for (std::uint64_t i = c.first(); i < c.last(); ++i) c[i] = {i, 2 * i, 3 * i};
                    })
      .wait()
      .value();
  xs.refresh().value();
  const auto view = xs.map_read().value();
  for (std::uint64_t i = 0; i < 100'000; ++i) {
    ASSERT_EQ(view[i].a, i);
    ASSERT_EQ(view[i].b, 2 * i);
    ASSERT_EQ(view[i].c, 3 * i);
  }
  cluster_.free("odd").value();
}

TEST_F(LocalTest, ChunksReadBeyondTheirEndsAtTheSnapshot) {
  auto xs = cluster_.array<std::int64_t>("stencil", 1'000'000).value();
  cluster_
      .parallel_for(xs,
                    [](Chunk<std::int64_t> c) {
                      for (std::uint64_t i = c.first(); i < c.last(); ++i) c[i] = static_cast<std::int64_t>(i);
                    })
      .wait()
      .value();
  // x[i] becomes the old x[i - 1] + x[i + 1]: right only when nobody sees a neighbour's new values.
  cluster_
      .parallel_for(xs,
                    [](Chunk<std::int64_t> c) {
                      const auto all = c.array();
                      const auto at = [&](std::uint64_t i) { return i < all.size() ? all[i] : 0; };
                      std::int64_t before = at(c.first() - 1);
                      const std::int64_t after = at(c.last());
                      for (std::uint64_t i = c.first(); i < c.last(); ++i) {
                        const std::int64_t old = c[i];
                        c[i] = before + (i + 1 < c.last() ? c[i + 1] : after);
                        before = old;
                      }
                    })
      .wait()
      .value();
  xs.sync().value();
  const auto view = xs.map_read().value();
  for (std::uint64_t i = 1; i + 1 < view.size(); ++i) ASSERT_EQ(view[i], static_cast<std::int64_t>(2 * i)) << i;
  cluster_.free("stencil").value();
}

TEST_F(LocalTest, MapCollectsInChunkOrder) {
  auto xs = cluster_.array<std::uint32_t>("map", 2'000'000).value();
  const auto firsts = cluster_.map(xs, [](auto c) { return c.first(); }).get().value();
  EXPECT_GT(firsts.size(), 1U);
  EXPECT_TRUE(std::is_sorted(firsts.begin(), firsts.end()));
  EXPECT_EQ(firsts.front(), 0U);
  const auto texts =
      cluster_
          .map(xs,
               [](Chunk<const std::uint32_t> c) {
                 return std::vector<std::string>{std::to_string(c.index()), std::string(c.size() % 7, 'x')};
               })
          .get()
          .value();
  ASSERT_EQ(texts.size(), firsts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(texts[i][0], std::to_string(i));
  cluster_.free("map").value();
}

TEST_F(LocalTest, SubmitRunsAFunctionWithItsArguments) {
  EXPECT_EQ(
      cluster_.submit([](int a, std::string b) { return b + std::to_string(a); }, 3, std::string("x")).get().value(),
      "x3");
  EXPECT_TRUE(cluster_.submit([k = 5](int) { return k; }, 1).wait());
}

TEST_F(LocalTest, AnExceptionIsAnErrorWithTaskAndMessageAndNothingOfItCommits) {
  auto xs = cluster_.array<std::uint64_t>("throws", 400'000).value();
  const auto result = cluster_
                          .parallel_for(xs,
                                        [](Chunk<std::uint64_t> c) {
                                          for (auto& x : c) x = 7;
                                          if (c.index() == 1) throw std::runtime_error("no such luck");
                                        })
                          .wait();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::task_failed);
  EXPECT_NE(result.error().message.find("no such luck"), std::string::npos) << result.error().message;
  EXPECT_NE(result.error().message.find("task 1"), std::string::npos) << result.error().message;
  EXPECT_NE(result.error().node, 0U);
  xs.refresh().value();
  const auto chunks = cluster_
                          .map(xs,
                               [](Chunk<const std::uint64_t> c) {
                                 return std::pair<std::uint64_t, std::uint64_t>(c[c.first()], c[c.last() - 1]);
                               })
                          .get()
                          .value();
  ASSERT_GT(chunks.size(), 1U);
  for (const auto& [first, last] : chunks) EXPECT_EQ(first, last) << "a chunk is there whole or not at all";
  EXPECT_EQ(chunks[1].first, 0U);
  cluster_.free("throws").value();
}

TEST_F(LocalTest, ACapturedReferenceIsRefused) {
  auto xs = cluster_.array<std::uint64_t>("captures", 1000).value();
  std::uint64_t local_value = 3;
  const auto result = cluster_
                          .parallel_for(xs,
                                        [&local_value](Chunk<std::uint64_t> c) {
                                          for (auto& x : c) x = local_value;
                                        })
                          .wait();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::invalid_argument);
  cluster_
      .parallel_for(xs,
                    [local_value](Chunk<std::uint64_t> c) {
                      for (auto& x : c) x = local_value;
                    })
      .wait()
      .value();
  EXPECT_EQ(cluster_.reduce(xs, std::uint64_t{0}, std::plus<>{}).get().value(), 3000U);
  cluster_.free("captures").value();
}

TEST_F(LocalTest, WritesOfAProgramAreItsOwnUntilSync) {
  auto xs = cluster_.array<std::uint32_t>("own", 300'000).value();
  auto span = xs.map_write().value();
  for (std::size_t i = 0; i < span.size(); i += 1000) span[i] = 1;
  EXPECT_EQ(cluster_.reduce(xs, std::uint64_t{0}, std::plus<>{}).get().value(), 0U) << "not committed yet";
  std::vector<std::uint32_t> some(3);
  xs.read(0, some).value();
  EXPECT_EQ(some, (std::vector<std::uint32_t>{1, 0, 0})) << "but visible to the writer";
  const auto refused = xs.refresh();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::refused);
  const auto before = xs.version();
  xs.sync().value();
  EXPECT_GT(xs.version(), before);
  EXPECT_EQ(cluster_.reduce(xs, std::uint64_t{0}, std::plus<>{}).get().value(), 300U);
  EXPECT_EQ(span[1000], 1U);
  cluster_.free("own").value();
}

TEST_F(LocalTest, BulkWritesCommitWithSyncAndShowInALaterMapping) {
  auto buffer = cluster_.buffer("bulk", 9'000'001).value();
  std::string text(9'000'001, 'a');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i % 26);
  buffer.write(0, text).value();
  std::string back(1000, ' ');
  buffer.read(4'000'000, std::as_writable_bytes(std::span(back.data(), back.size()))).value();
  EXPECT_EQ(back, text.substr(4'000'000, 1000)) << "the writer reads its own bytes";
  const auto view = buffer.map_read().value();
  EXPECT_EQ(static_cast<char>(view[9'000'000]), text[9'000'000]) << "staged before the mapping, seen in it";
  buffer.sync().value();
  const auto letters = cluster_
                           .map(buffer,
                                [](Chunk<const std::byte> c) {
                                  std::uint64_t n = 0;
                                  for (const std::byte b : c) n += b == std::byte{'a'};
                                  return n;
                                })
                           .get()
                           .value();
  EXPECT_EQ(std::accumulate(letters.begin(), letters.end(), std::uint64_t{0}),
            static_cast<std::uint64_t>(std::ranges::count(text, 'a')));
  cluster_.free("bulk").value();
}

TEST_F(LocalTest, ReadsAndWritesBeyondTheEndAreErrors) {
  auto xs = cluster_.array<std::uint32_t>("ends", 100).value();
  std::vector<std::uint32_t> some(10);
  EXPECT_EQ(xs.read(91, some).error().code, Errc::invalid_argument);
  EXPECT_EQ(xs.write(~0ULL, some).error().code, Errc::invalid_argument);
  EXPECT_TRUE(xs.write(90, some));
  cluster_.free("ends").value();
}

TEST_F(LocalTest, OpenChecksTheType) {
  (void)cluster_.array<std::uint32_t>("typed", 100).value();
  EXPECT_TRUE(cluster_.open<std::uint32_t>("typed"));
  EXPECT_EQ(cluster_.open<float>("typed").error().code, Errc::invalid_argument);
  EXPECT_EQ(cluster_.open<float>("nothing").error().code, Errc::not_found);
  EXPECT_EQ(cluster_.array<std::uint32_t>("typed", 101).error().code, Errc::already_exists);
  cluster_.free("typed").value();
  EXPECT_EQ(cluster_.free("typed").error().code, Errc::not_found);
}

TEST_F(LocalTest, WhatCannotBeHadIsAnErrorValue) {
  EXPECT_EQ(cluster_.array<std::uint64_t>("huge", 1ULL << 36).error().code, Errc::out_of_memory);
  EXPECT_FALSE(cluster_.array<std::uint64_t>("empty", 0));
  EXPECT_FALSE(cluster_.array<std::uint64_t>("page", 10, {.page_bytes = 5000}));
  EXPECT_FALSE(cluster_.array<std::uint64_t>("strict", 10, {.mode = Mode::strict}));
  EXPECT_FALSE(cluster_.array<std::uint64_t>("copies", 10, {.replication = 4}));
  EXPECT_FALSE(cluster_.array<std::uint64_t>("odd name!", 10));
}

TEST_F(LocalTest, ReplicatedWritesCommitOnTwoNodes) {
  auto xs = cluster_.array<std::uint64_t>("twice", 200'000, {.replication = 2}).value();
  cluster_
      .parallel_for(xs,
                    [](Chunk<std::uint64_t> c) {
                      for (auto& x : c) x = 2;
                    })
      .wait()
      .value();
  EXPECT_EQ(cluster_.reduce(xs, std::uint64_t{0}, std::plus<>{}).get().value(), 400'000U);
  cluster_.free("twice").value();
}

TEST_F(LocalTest, CancelEndsAJob) {
  auto xs = cluster_.array<std::uint64_t>("cancel", 2'000'000).value();
  static std::atomic<bool> go_on;  // Tasks run on threads of this process.
  static std::atomic<int> begun;
  go_on = true;
  begun = 0;
  auto future = cluster_.parallel_for(xs, [](Chunk<std::uint64_t> c) {
    ++begun;
    for (auto& x : c) x = 1;
    while (go_on) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  while (begun == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(future.wait_for(std::chrono::milliseconds(1)).error().code, Errc::deadline_exceeded);
  future.cancel();
  EXPECT_EQ(future.wait().error().code, Errc::cancelled);
  go_on = false;
  xs.refresh().value();
  EXPECT_EQ(cluster_.reduce(xs, std::uint64_t{0}, std::plus<>{}).get().value(), 0U) << "nothing of it was committed";
  cluster_.free("cancel").value();
}

TEST_F(LocalTest, WorksWithoutUserfaultfd) {
  ::setenv("HOLO_NO_UFFD", "1", 1);
  {
    auto xs = cluster_.array<std::uint64_t>("no-uffd", 100'000).value();
    auto span = xs.map_write().value();
    span[5] = 5;
    span[99'999] = 9;
    xs.sync().value();
    EXPECT_EQ(cluster_.reduce(xs, std::uint64_t{0}, std::plus<>{}).get().value(), 14U);
    cluster_
        .parallel_for(xs,
                      [](Chunk<std::uint64_t> c) {
                        for (auto& x : c) ++x;
                      })
        .wait()
        .value();
    xs.refresh().value();
    EXPECT_EQ(span[5], 6U);
    EXPECT_EQ(span[0], 1U);
  }
  ::unsetenv("HOLO_NO_UFFD");
  cluster_.free("no-uffd").value();
}

}  // namespace
}  // namespace holo
