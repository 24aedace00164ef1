#include "core/control/placement.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace holo::control {
namespace {

constexpr std::uint64_t kGiB = 1ULL << 30;

std::vector<NodeCapacity> nodes(std::size_t n, std::uint64_t memory = 64 * kGiB) {
  std::vector<NodeCapacity> out;
  for (std::size_t i = 0; i < n; ++i) {
    out.push_back({.node = NodeId{1000 + i * 7919}, .weight = memory, .free_bytes = memory});
  }
  return out;
}

Placement::Shape shape(std::uint64_t pages, std::size_t members, std::uint32_t replication = 1,
                       std::uint64_t page_bytes = 65536) {
  return {.region = RegionId{3},
          .pages = pages,
          .page_bytes = page_bytes,
          .block_pages = Placement::choose_block_pages(pages, page_bytes, members),
          .replication = replication};
}

std::map<NodeId, std::uint64_t> home_pages(const Placement& p) {
  std::map<NodeId, std::uint64_t> out;
  for (const std::uint16_t s : p.used()) out[p.shard(ShardNo{s})->in_sync[0]] += p.shard(ShardNo{s})->pages;
  return out;
}

TEST(Placement, BlocksAreManyAndAtMostFourMiB) {
  for (const std::uint64_t pages : {1ULL, 100ULL, 12208ULL, 1'000'000ULL}) {
    for (const std::uint64_t page_bytes : {4096ULL, 65536ULL, 2ULL << 20}) {
      const std::uint64_t block = Placement::choose_block_pages(pages, page_bytes, 4);
      EXPECT_LE(block * page_bytes, std::max<std::uint64_t>(4 << 20, page_bytes));
      EXPECT_TRUE(block == 1 || pages / block >= 128) << pages << " pages in blocks of " << block;
    }
  }
}

TEST(Placement, EqualNodesGetEqualShares) {
  // 100,000,000 numbers of 8 bytes over four nodes: the main job.
  const auto p = Placement::create(shape(12208, 4), nodes(4));
  ASSERT_TRUE(p);
  for (const auto& [node, pages] : home_pages(*p)) {
    EXPECT_NEAR(static_cast<double>(pages), 12208.0 / 4, 12208.0 / 4 * 0.03);
  }
}

TEST(Placement, SharesFollowWeights) {
  auto members = nodes(3);
  members[0].weight = members[0].free_bytes = 16 * kGiB;
  members[1].weight = members[1].free_bytes = 32 * kGiB;
  members[2].weight = members[2].free_bytes = 48 * kGiB;
  const auto p = Placement::create(shape(100'000, 3), members);
  ASSERT_TRUE(p);
  const auto pages = home_pages(*p);
  EXPECT_NEAR(static_cast<double>(pages.at(members[0].node)), 100'000.0 / 6, 1000);
  EXPECT_NEAR(static_cast<double>(pages.at(members[2].node)), 100'000.0 / 2, 1000);
}

TEST(Placement, PlainRendezvousIsEvenBeforeBounds) {
  // Chi-square over 4096 shards and 8 nodes, 7 degrees of freedom: 24.3 is passed by chance once in a thousand.
  const auto members = nodes(8);
  std::map<NodeId, double> count;
  const Placement p = Placement::plain(shape(4'000'000, 8), members);
  for (const std::uint16_t s : p.used()) ++count[p.plain_list(ShardNo{s})[0]];
  double chi = 0;
  const double expected = static_cast<double>(p.used().size()) / 8;
  for (const auto& m : members) chi += std::pow(count[m.node] - expected, 2) / expected;
  EXPECT_LT(chi, 24.3);
}

TEST(Placement, ANodeLessMovesOnlyItsShards) {
  const auto five = nodes(5);
  auto four = five;
  four.erase(four.begin() + 2);
  const Placement p = Placement::plain(shape(4'000'000, 5), five);
  const Placement q = Placement::plain(shape(4'000'000, 5), four);
  for (const std::uint16_t s : p.used()) {
    const NodeId before = p.plain_list(ShardNo{s})[0];
    if (before != five[2].node) {
      EXPECT_EQ(q.plain_list(ShardNo{s})[0], before);
    }
  }
}

TEST(Placement, CopiesLieOnDifferentNodes) {
  const auto p = Placement::create(shape(12208, 4, 3), nodes(4));
  ASSERT_TRUE(p);
  std::map<NodeId, std::uint64_t> copies;
  for (const std::uint16_t s : p->used()) {
    const NodeList& list = p->shard(ShardNo{s})->in_sync;
    ASSERT_EQ(list.size(), 3U);
    EXPECT_NE(list[0], list[1]);
    EXPECT_NE(list[1], list[2]);
    EXPECT_NE(list[0], list[2]);
    for (const NodeId n : list) copies[n] += p->shard(ShardNo{s})->pages;
  }
  for (const auto& [node, pages] : copies) EXPECT_NEAR(static_cast<double>(pages), 12208 * 0.75, 12208 * 0.1);
}

TEST(Placement, FitsIntoWhatIsLeftOrSaysSo) {
  // 256 pages over three nodes of which one is nearly full; then one page too many.
  auto members = nodes(3);
  members[0].free_bytes = 10 * 65536;
  members[1].free_bytes = 100 * 65536;
  members[2].free_bytes = 146 * 65536;
  const auto p = Placement::create(shape(256, 3), members);
  ASSERT_TRUE(p);
  for (const auto& [node, pages] : home_pages(*p)) {
    for (const auto& m : members) {
      if (m.node == node) {
        EXPECT_LE(pages * 65536, m.free_bytes);
      }
    }
  }
  EXPECT_FALSE(Placement::create(shape(257, 3), members));
}

TEST(NodeList, EraseKeepsOrderAndPushStopsAtTheLimit) {
  NodeList list;
  for (std::uint64_t i = 1; i <= NodeList::kMax; ++i) EXPECT_TRUE(list.push(NodeId{i}));
  EXPECT_FALSE(list.push(NodeId{99}));
  list.erase(NodeId{2});
  EXPECT_EQ(list.size(), NodeList::kMax - 1);
  EXPECT_EQ(list[0], NodeId{1});
  EXPECT_EQ(list[1], NodeId{3});
}

}  // namespace
}  // namespace holo::control
