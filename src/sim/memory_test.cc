// Several memory services against each other: commits, merges, conflicts, deaths, flipped bits, limits, restarts.
#include <gtest/gtest.h>

#include <filesystem>

#include "sim/memory_testing.h"

// The suspended calls of a killed node are never resumed, as after kill -9: what they hold is no leak of the program's.
extern "C" const char* __lsan_default_suppressions();  // NOLINT: the sanitizer's name for it
extern "C" const char* __lsan_default_suppressions() { return "leak:holo::start_detached\n"; }

namespace holo::sim {
namespace {

constexpr std::uint64_t kPage = 4096;

Bytes filled(std::uint64_t n, char c) { return Bytes(n, static_cast<std::byte>(c)); }

/// A program on node `n` that writes and reads by STAGE, COMMIT and READ.
struct Program {
  MemoryCluster& cluster;
  std::uint64_t n;
  std::shared_ptr<TestSession> session = cluster.session();
  std::optional<wire::Txn> txn = {};

  Status write(RegionId region, std::uint64_t base, std::uint64_t offset, Bytes bytes) {
    wire::Stage m;
    if (txn) *m.mutable_txn() = *txn;
    m.set_region(region.value);
    m.set_base(base);
    m.set_offset(offset);
    auto r = cluster.call(n, session, wire::STAGE, m, std::move(bytes));
    if (!r) return std::unexpected(r.error());
    wire::StageReply reply;
    EXPECT_TRUE(reply.ParseFromString(r->header));
    txn = reply.txn();
    return {};
  }
  Result<std::uint64_t> commit(RegionId region) {
    wire::Commit m;
    if (txn) *m.mutable_txn() = *txn;
    m.add_regions(region.value);
    auto r = cluster.call(n, session, wire::COMMIT, m);
    if (!r) return std::unexpected(r.error());
    txn.reset();
    wire::CommitReply reply;
    EXPECT_TRUE(reply.ParseFromString(r->header));
    for (const auto& v : reply.versions()) {
      if (v.region() == region.value) return v.version();
    }
    return fail(Errc::internal, "no version");
  }
  Result<std::string> read(RegionId region, std::uint64_t snapshot, std::uint64_t offset, std::uint64_t length) {
    wire::Read m;
    m.set_region(region.value);
    if (snapshot != 0) m.set_snapshot(snapshot);  // 0: the newest
    m.set_offset(offset);
    m.set_length(length);
    if (txn) *m.mutable_txn() = *txn;
    auto r = cluster.call(n, session, wire::READ, m);
    if (!r) return std::unexpected(r.error());
    std::string out;
    for (const auto& b : r->payload) out += as_text(b.span());
    return out;
  }
};

TEST(MemoryService, OneNodeWritesAllRead) {
  MemoryCluster c(4);
  const RegionId r = c.create(32, 1);
  Program a{c, 1};
  Bytes data(32 * kPage);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 7 / 13);
  ASSERT_TRUE(a.write(r, 0, 0, data));
  EXPECT_EQ(a.read(r, 0, 5 * kPage, 10).value(), std::string(as_text(ByteSpan(data).subspan(5 * kPage, 10))))
      << "own writes";
  Program other{c, 3};
  EXPECT_EQ(other.read(r, 0, 5 * kPage, 10).value(), std::string(10, '\0')) << "not before the commit";
  ASSERT_EQ(a.commit(r).value(), 1u);
  for (std::uint64_t n = 1; n <= 4; ++n) {
    Program p{c, n};
    EXPECT_EQ(p.read(r, 1, 0, data.size()).value(), std::string(as_text(data))) << n;
    EXPECT_EQ(p.read(r, 1, 3 * kPage + 17, 2 * kPage).value(),
              std::string(as_text(ByteSpan(data).subspan(3 * kPage + 17, 2 * kPage))));
  }
}

TEST(MemoryService, SnapshotsAreRepeatableAndATransactionIsAllOrNothing) {
  MemoryCluster c(4);
  const RegionId r = c.create(16, 1);
  Program a{c, 1}, b{c, 2};
  ASSERT_TRUE(a.write(r, 0, 0, filled(16 * kPage, 'a')));
  ASSERT_EQ(a.commit(r).value(), 1u);
  const auto pin = c.memory(2).pin(r, Version{1});
  ASSERT_TRUE(a.write(r, 1, 0, filled(16 * kPage, 'b')));
  EXPECT_EQ(b.read(r, 0, 0, 16 * kPage).value(), std::string(16 * kPage, 'a'));
  ASSERT_EQ(a.commit(r).value(), 2u);
  EXPECT_EQ(b.read(r, 1, 0, 16 * kPage).value(), std::string(16 * kPage, 'a'));
  EXPECT_EQ(b.read(r, 2, 0, 16 * kPage).value(), std::string(16 * kPage, 'b'));
  EXPECT_EQ(b.read(r, 0, 0, 16 * kPage).value(), std::string(16 * kPage, 'b'));
}

TEST(MemoryService, OldVersionsAreFreedOnceNobodyReadsThem) {
  MemoryCluster c(3);
  const RegionId r = c.create(16, 1);
  Program a{c, 1};
  for (std::uint64_t v = 0; v < 5; ++v) {
    ASSERT_TRUE(a.write(r, v, 0, filled(16 * kPage, static_cast<char>('a' + v))));
    ASSERT_EQ(a.commit(r).value(), v + 1);
  }
  c.settle(seconds(2));
  std::uint64_t used = 0;
  for (std::uint64_t n = 1; n <= 3; ++n) used += c.memory(n).status().frames_used_bytes;
  EXPECT_EQ(used, 16 * kPage);
  EXPECT_EQ(a.read(r, 2, 0, 10).error().code, Errc::snapshot_too_old);
  EXPECT_EQ(a.read(r, 0, 0, 10).value(), std::string(10, 'e'));
}

TEST(MemoryService, WritersOfOnePageMergeAndTheSameByteConflicts) {
  MemoryCluster c(3);
  const RegionId r = c.create(4, 2);
  Program a{c, 1}, b{c, 2}, d{c, 3};
  ASSERT_TRUE(a.write(r, 0, 10, filled(10, 'a')));
  ASSERT_TRUE(b.write(r, 0, 20, filled(10, 'b')));
  const auto refused = d.write(r, 0, 19, filled(1, 'd'));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::write_conflict);
  EXPECT_NE(refused.error().message.find("page 0"), std::string::npos);
  ASSERT_EQ(b.commit(r).value(), 1u);
  ASSERT_EQ(a.commit(r).value(), 2u);
  for (std::uint64_t n = 1; n <= 3; ++n) {
    Program p{c, n};
    EXPECT_EQ(p.read(r, 2, 10, 20).value(), "aaaaaaaaaabbbbbbbbbb");
  }
}

TEST(MemoryService, ShardsMoveUnderWritersAndReaders) {
  // Everything goes from one node to the next, round and round, while others write and read; transactions that were
  // staged before a move are committed after it.
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    MemoryCluster c(4, seed);
    const RegionId r = c.create(32, seed % 2 == 0 ? 1 : 2);
    Program a{c, 4}, b{c, 2};
    Random rnd(seed);
    std::string model(32 * kPage, '\0');
    std::uint64_t version = 0;
    std::uint64_t from = 1;
    for (int round = 0; round < 12; ++round) {
      const std::uint64_t to = from % 3 + 1;
      const auto write = [&] {
        const std::uint64_t at = rnd.below(31 * kPage), n = 1 + rnd.below(kPage);
        const char with = static_cast<char>('a' + rnd.below(26));
        ASSERT_TRUE(a.write(r, version, at, filled(n, with))) << "seed " << seed << " round " << round;
        model.replace(at, n, std::string(n, with));
      };
      write();
      c.log.append([from, to](TestControl& control) { control.move(NodeId{from}, NodeId{to}); });
      c.settle(milliseconds(static_cast<std::int64_t>(rnd.below(8))));
      write();
      if (rnd.chance(1, 2)) c.settle(milliseconds(500));
      const auto done = a.commit(r);
      ASSERT_TRUE(done) << "seed " << seed << " round " << round << ": " << done.error().message;
      version = *done;
      const auto read = b.read(r, version, 0, model.size());
      ASSERT_TRUE(read) << read.error().message;
      ASSERT_EQ(*read, model) << "seed " << seed << " round " << round;
      c.settle(seconds(2));
      EXPECT_FALSE(seed % 2 == 0 && c.members[3]->control->holds_anything(NodeId{from}))
          << "seed " << seed << " round " << round;
      from = to;
    }
  }
}

TEST(MemoryService, AProgramThatEndsLeavesNothing) {
  MemoryCluster c(3);
  const RegionId r = c.create(8, 2);
  Program a{c, 1}, b{c, 2};
  ASSERT_TRUE(a.write(r, 0, 0, filled(8 * kPage, 'a')));
  c.close(1, *a.session);
  c.settle();
  for (std::uint64_t n = 1; n <= 3; ++n) EXPECT_EQ(c.memory(n).status().frames_used_bytes, 0u) << n;
  ASSERT_TRUE(b.write(r, 0, 0, filled(8 * kPage, 'b')));
  EXPECT_EQ(b.commit(r).value(), 1u);
}

TEST(MemoryService, ADeadCoordinatorsPagesGo) {
  MemoryCluster c(3);
  const RegionId r = c.create(8, 1);
  Program a{c, 3};
  ASSERT_TRUE(a.write(r, 0, 0, filled(8 * kPage, 'a')));
  c.kill(3);
  c.settle(seconds(1));
  EXPECT_EQ(c.memory(1).status().frames_used_bytes + c.memory(2).status().frames_used_bytes, 0u);
}

TEST(MemoryService, WithTwoCopiesAKilledNodeLosesNothingAndCopiesAreMadeAgain) {
  MemoryCluster c(4);
  const RegionId r = c.create(32, 2);
  Program a{c, 1};
  ASSERT_TRUE(a.write(r, 0, 0, filled(32 * kPage, 'a')));
  ASSERT_EQ(a.commit(r).value(), 1u);
  c.kill(2);
  Program b{c, 3};
  EXPECT_EQ(b.read(r, 1, 0, 32 * kPage).value(), std::string(32 * kPage, 'a'))
      << "also while nobody knows of the death";
  c.settle(seconds(3));
  c.kill(4);
  c.settle(seconds(3));
  EXPECT_EQ(b.read(r, 1, 0, 32 * kPage).value(), std::string(32 * kPage, 'a')) << "after the second death in a row";
  ASSERT_TRUE(b.write(r, 1, 0, filled(32 * kPage, 'b')));
  ASSERT_EQ(b.commit(r).value(), 2u);
  for (std::uint64_t n : {1, 3}) {
    Program p{c, n};
    EXPECT_EQ(p.read(r, 2, 0, 32 * kPage).value(), std::string(32 * kPage, 'b'));
  }
}

TEST(MemoryService, PagesThatAreSentGoFromTheWireIntoTheirSlots) {
  constexpr std::uint64_t kPages = 32;
  MemoryCluster c(4);
  const RegionId r = c.create(kPages, 2);
  const auto sum = [&](auto counter) {
    std::uint64_t all = 0;
    for (const auto& m : c.members) all += m->memory->status().counters.*counter;
    return all;
  };
  using Counters = node::MemoryCounters;
  std::uint64_t landed = 0, copied = 0;
  const auto expect = [&](std::uint64_t more_landed, std::uint64_t more_copied, const char* what) {
    EXPECT_EQ(sum(&Counters::pages_landed), landed += more_landed) << what;
    EXPECT_EQ(sum(&Counters::slots_copied), copied += more_copied) << what;
  };
  Program a{c, 1};
  ASSERT_TRUE(a.write(r, 0, 0, filled(kPages * kPage, 'a')));
  ASSERT_EQ(a.commit(r).value(), 1u);
  c.settle();
  // Every fourth page is at home with its writer, who sent it in one piece with others.
  expect(kPages * 3 / 4 + kPages, kPages / 4, "staged at their homes, and kept by their backups");

  c.kill(2);
  c.settle(seconds(3));
  const std::uint64_t moved = sum(&Counters::pages_moved);
  EXPECT_EQ(moved, kPages / 2) << "of half of them one copy is gone";
  expect(moved, 0, "copied again");

  // The slots hold what can still be read: what comes stays in the buffers that it came in.
  ASSERT_TRUE(a.write(r, 1, 0, filled(kPages * kPage, 'b')));
  ASSERT_EQ(a.commit(r).value(), 2u);
  c.settle(seconds(2));
  expect(0, 0, "written over");
  ASSERT_TRUE(a.write(r, 2, 0, filled(kPages * kPage, 'c')));
  ASSERT_EQ(a.commit(r).value(), 3u);
  c.settle(seconds(2));
  const std::uint64_t at_home = sum(&Counters::slots_copied) - copied;
  expect(2 * kPages - at_home, at_home, "and once more, when nobody reads the first any longer");
  EXPECT_LT(at_home, kPages);
  for (const std::uint64_t n : {1, 3, 4}) {
    Program p{c, n};
    EXPECT_EQ(p.read(r, 3, 0, kPages * kPage).value(), std::string(kPages * kPage, 'c')) << n;
  }
}

TEST(MemoryService, PagesOfARegionThatIsNotKnownHereYetAreNotCopiedTwice) {
  constexpr std::uint64_t kPages = 32;
  std::uint64_t landed = 0;
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    MemoryCluster c(4, seed);
    c.log.random = Random(seed);
    c.log.max_lag = milliseconds(150);  // Of which create() waits out a third.
    const RegionId r = c.create(kPages, 2);
    const bool known =
        c.world.run_while_not([&] { return c.members[0]->control->region(r).has_value(); }, c.world.now() + seconds(1));
    ASSERT_TRUE(known);
    Program a{c, 1};
    ASSERT_TRUE(a.write(r, 0, 0, filled(kPages * kPage, 'a'))) << seed;
    ASSERT_EQ(a.commit(r).value(), 1u);
    c.settle(seconds(1));
    std::uint64_t copied = 0;
    for (const auto& m : c.members) {
      landed += m->memory->status().counters.pages_landed;
      copied += m->memory->status().counters.slots_copied;
    }
    EXPECT_EQ(copied, kPages / 4) << "the writer's own, of seed " << seed;
    for (std::uint64_t n = 1; n <= 4; ++n) {
      Program p{c, n};
      EXPECT_EQ(p.read(r, 1, 0, kPages * kPage).value(), std::string(kPages * kPage, 'a'));
    }
  }
  EXPECT_LT(landed, 8 * (kPages * 3 / 4 + kPages)) << "somebody did not know it";
  EXPECT_GT(landed, 0U);
}

TEST(MemoryService, AHomeThatDiesBetweenStageAndCommitIsNotForgotten) {
  MemoryCluster c(4);
  const RegionId r = c.create(32, 2);
  Program a{c, 1};
  ASSERT_TRUE(a.write(r, 0, 0, filled(32 * kPage, 'a')));
  c.kill(2, milliseconds(1));
  c.settle();
  auto first = a.commit(r);
  if (!first) {
    // What had only one holder left has to be staged again, under the same transaction.
    ASSERT_EQ(first.error().code, Errc::stale_epoch) << first.error().message;
    EXPECT_TRUE(first.error().retryable);
    ASSERT_TRUE(a.write(r, 0, 0, filled(32 * kPage, 'a')));
    first = a.commit(r);
  }
  ASSERT_TRUE(first) << first.error().message;
  c.settle(seconds(3));
  for (std::uint64_t n : {1, 3, 4}) {
    Program p{c, n};
    EXPECT_EQ(p.read(r, 1, 0, 32 * kPage).value(), std::string(32 * kPage, 'a'));
  }
}

TEST(MemoryService, WithTooFewNodesACommitIsRefusedNotHalfDone) {
  node::MemoryConfig config;
  config.stage_deadline = seconds(2);
  MemoryCluster c(2, 1, config);
  const RegionId r = c.create(8, 2);
  Program a{c, 1};
  c.kill(2, milliseconds(100));
  c.settle(seconds(1));
  const auto refused = a.write(r, 0, 0, filled(8 * kPage, 'a'));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::under_replicated);
}

TEST(MemoryService, WithOneCopyADeadNodesPagesAreNamedNeverZero) {
  MemoryCluster c(3);
  const RegionId r = c.create(12, 1);
  Program a{c, 1};
  ASSERT_TRUE(a.write(r, 0, 0, filled(12 * kPage, 'a')));
  ASSERT_EQ(a.commit(r).value(), 1u);
  c.kill(2);
  Program b{c, 3};
  const auto lost = b.read(r, 1, 0, 12 * kPage);
  ASSERT_FALSE(lost);
  EXPECT_TRUE(lost.error().code == Errc::page_lost || lost.error().code == Errc::unavailable) << lost.error().message;
  EXPECT_NE(lost.error().message.find("page"), std::string::npos);
  EXPECT_EQ(lost.error().node, 2u);
  c.settle(seconds(1));
  const auto later = b.read(r, 1, 0, 12 * kPage);
  ASSERT_FALSE(later);
  EXPECT_EQ(later.error().code, Errc::page_lost);
  EXPECT_NE(later.error().message.find("n2"), std::string::npos);
  c.restart(2);
  const auto empty = b.read(r, 1, 0, 12 * kPage);
  ASSERT_FALSE(empty) << "it came back without its pages";
  EXPECT_EQ(empty.error().code, Errc::page_lost);
}

TEST(MemoryService, FlippedBitsAreFoundAndFetchedAgain) {
  MemoryCluster c(4);
  const RegionId r = c.create(64, 2);
  Program a{c, 1}, b{c, 3};
  c.network.faults().flip_per_thousand = 200;
  ASSERT_TRUE(a.write(r, 0, 0, filled(64 * kPage, 'a')));
  ASSERT_EQ(a.commit(r).value(), 1u);
  for (int i = 0; i < 10; ++i) {
    ASSERT_EQ(b.read(r, 1, 0, 64 * kPage).value(), std::string(64 * kPage, 'a'));
  }
  std::uint64_t refused = 0;
  for (std::uint64_t n = 1; n <= 4; ++n) refused += c.memory(n).status().counters.corrupt_refused;
  EXPECT_GT(refused, 0u);
}

TEST(MemoryService, LostMessagesAreSurvived) {
  MemoryCluster c(4, 77);
  const RegionId r = c.create(32, 2);
  c.network.faults().loss_per_thousand = 50;
  Program a{c, 1};
  for (std::uint64_t v = 0; v < 5; ++v) {
    const char letter = static_cast<char>('a' + v);
    ASSERT_TRUE(a.write(r, v, 0, filled(32 * kPage, letter)));
    ASSERT_EQ(a.commit(r).value(), v + 1);
    Program b{c, 2 + v % 3};
    ASSERT_EQ(b.read(r, v + 1, 0, 32 * kPage).value(), std::string(32 * kPage, letter));
  }
  c.network.faults().loss_per_thousand = 0;
  c.settle(seconds(30));
  std::uint64_t used = 0;
  for (std::uint64_t n = 1; n <= 4; ++n) used += c.memory(n).status().frames_used_bytes;
  EXPECT_EQ(used, 2 * 32 * kPage) << "no staged page is left behind";
}

TEST(MemoryService, TheLimitIsAnErrorAndLeavesWhatWasThere) {
  node::MemoryConfig config;
  config.limit_bytes = 1 << 20;  // The working minimum of 4 MiB is what counts.
  MemoryCluster c(2, 1, config);
  const RegionId r = c.create(2048, 1);
  Program a{c, 1};
  std::uint64_t done = 0;
  Status last{};
  // Old versions pile up, because a reader holds the first snapshot.
  const auto pin = c.memory(1).pin(r, Version{0});
  for (std::uint64_t v = 0; v < 8 && last; ++v) {
    last = a.write(r, v, 0, filled(512 * kPage, static_cast<char>('a' + v)));
    if (last) {
      ASSERT_EQ(a.commit(r).value(), v + 1);
      done = v + 1;
    }
  }
  ASSERT_FALSE(last);
  EXPECT_EQ(last.error().code, Errc::out_of_memory);
  EXPECT_GT(done, 1u);
  c.close(1, *a.session);
  Program b{c, 2};
  EXPECT_EQ(b.read(r, 0, 0, 512 * kPage).value(), std::string(512 * kPage, static_cast<char>('a' + done - 1)));
}

TEST(MemoryService, AFreedRegionIsGoneForEveryone) {
  MemoryCluster c(3);
  const RegionId r = c.create(8, 2);
  Program a{c, 1};
  ASSERT_TRUE(a.write(r, 0, 0, filled(8 * kPage, 'a')));
  ASSERT_TRUE(a.commit(r));
  wire::ViewOpen open;
  open.set_region(r.value);
  ASSERT_TRUE(c.call(1, a.session, wire::VIEW_OPEN, open));
  c.log.append([r](TestControl& control) { control.free_region(r); });
  c.settle();
  EXPECT_EQ(a.read(r, 0, 0, 1).error().code, Errc::not_found);
  ASSERT_EQ(a.session->notices.size(), 1u);
  EXPECT_EQ(a.session->notices[0].type, wire::VIEW_FAILED);
  for (std::uint64_t n = 1; n <= 3; ++n) EXPECT_EQ(c.memory(n).status().frames_used_bytes, 0u);
}

TEST(MemoryService, ADrainedNodeGivesBackTheMemoryOfWhatItHad) {
  MemoryCluster c(3);
  const RegionId r = c.create(24, 1);
  Program a{c, 1};
  ASSERT_TRUE(a.write(r, 0, 0, filled(24 * kPage, 'a')));
  ASSERT_TRUE(a.commit(r));
  c.log.append([](TestControl& control) {
    control.drained.insert(NodeId{2});
    control.move(NodeId{2}, NodeId{3});
  });
  c.settle(seconds(2));
  ASSERT_FALSE(c.members[0]->control->holds_anything(NodeId{2}));
  EXPECT_EQ(c.memory(2).status().frames_used_bytes, 0u);
  Program b{c, 2};
  EXPECT_EQ(b.read(r, 1, 0, 24 * kPage).value(), std::string(24 * kPage, 'a')) << "its programs read on";
}

TEST(MemoryService, ANodeHandsItsLastCopiesOverBeforeItLeaves) {
  MemoryCluster c(3);
  const RegionId r = c.create(24, 1);
  Program a{c, 1};
  ASSERT_TRUE(a.write(r, 0, 0, filled(24 * kPage, 'a')));
  ASSERT_TRUE(a.commit(r));
  EXPECT_EQ(c.memory(2).may_leave().error().code, Errc::refused);
  c.log.append([](TestControl& control) { control.drain(NodeId{2}); });
  c.settle(milliseconds(5));
  ASSERT_TRUE(c.run(2, c.memory(2).hand_over(c.world.now() + seconds(10))));
  c.settle();
  c.kill(2);
  c.settle(seconds(1));
  Program b{c, 3};
  EXPECT_EQ(b.read(r, 1, 0, 24 * kPage).value(), std::string(24 * kPage, 'a'));
}

class Kept : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = std::filesystem::temp_directory_path() / ("holo-memory-test-" + std::to_string(::getpid()));
    for (int n = 1; n <= 3; ++n) std::filesystem::create_directories(dir_ / std::to_string(n));
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  std::filesystem::path dir_;
};

Task<Status> stop(node::MemoryService& memory) {
  co_await memory.stop();
  co_return co_await memory.keep_pages();
}

TEST_F(Kept, ACleanStopBringsEverythingBack) {
  node::MemoryConfig config;
  config.state_dir = dir_.string();
  MemoryCluster c(3, 1, config);
  const RegionId r = c.create(24, 1);
  Program a{c, 1};
  for (std::uint64_t i = 0; i < 24; ++i)
    ASSERT_TRUE(a.write(r, 0, i * kPage, filled(kPage, static_cast<char>('a' + i))));
  ASSERT_TRUE(a.commit(r));
  for (int round = 0; round < 2; ++round) {  // The second stop keeps pages that were never loaded since the first.
    for (std::uint64_t n = 1; n <= 3; ++n) ASSERT_TRUE(c.run(n, stop(c.memory(n))));
    for (std::uint64_t n = 1; n <= 3; ++n) c.kill(n, seconds(0));
    for (std::uint64_t n = 1; n <= 3; ++n) c.restart(n);
  }
  Program b{c, 2};
  for (std::uint64_t i = 0; i < 24; ++i)
    EXPECT_EQ(b.read(r, 1, i * kPage, kPage).value(), std::string(kPage, static_cast<char>('a' + i)));
  Program d{c, 3};
  ASSERT_TRUE(d.write(r, 1, 5, filled(3, 'X')));
  ASSERT_TRUE(d.commit(r));
  EXPECT_EQ(b.read(r, 2, 0, 10).value(), "aaaaaXXXaa");
}

TEST_F(Kept, ADamagedFileLosesPagesByNameAndGivesNoWrongByte) {
  node::MemoryConfig config;
  config.state_dir = dir_.string();
  MemoryCluster c(3, 1, config);
  const RegionId r = c.create(24, 1);
  Program a{c, 1};
  ASSERT_TRUE(a.write(r, 0, 0, filled(24 * kPage, 'a')));
  ASSERT_TRUE(a.commit(r));
  for (std::uint64_t n = 1; n <= 3; ++n) ASSERT_TRUE(c.run(n, stop(c.memory(n))));
  for (std::uint64_t n = 1; n <= 3; ++n) c.kill(n, seconds(0));
  int damaged = 0;
  for (const auto& file : std::filesystem::directory_iterator(dir_ / "2" / "pages")) {
    std::FILE* f = std::fopen(file.path().c_str(), "r+b");
    ASSERT_NE(f, nullptr);
    std::fseek(f, 100, SEEK_SET);  // in the first page
    const int byte = std::fgetc(f);
    std::fseek(f, 100, SEEK_SET);
    std::fputc(byte ^ 1, f);
    std::fclose(f);
    ++damaged;
  }
  ASSERT_GT(damaged, 0);
  for (std::uint64_t n = 1; n <= 3; ++n) c.restart(n);
  Program b{c, 1};
  int lost = 0;
  for (std::uint64_t i = 0; i < 24; ++i) {
    auto got = b.read(r, 1, i * kPage, kPage);
    if (got) {
      EXPECT_EQ(*got, std::string(kPage, 'a'));
      continue;
    }
    EXPECT_EQ(got.error().code, Errc::page_lost) << got.error().message;
    ++lost;
  }
  EXPECT_EQ(lost, damaged);
}

TEST(MemoryService, WindowsAreWrittenInPlaceSealedCommittedOrRolledBack) {
  MemoryCluster c(3);
  const RegionId r = c.create(16, 2);
  auto worker = c.session();
  wire::ViewOpen open;
  open.set_region(r.value);
  auto opened = c.call(1, worker, wire::VIEW_OPEN, open);
  ASSERT_TRUE(opened);
  wire::ViewOpenReply view;
  ASSERT_TRUE(view.ParseFromString(opened->header));

  auto window = [&](TxnId txn) {
    wire::WindowOpen m;
    m.set_view(view.view());
    m.mutable_txn()->set_node(txn.node.value);
    m.mutable_txn()->set_incarnation(txn.incarnation);
    m.mutable_txn()->set_sequence(txn.sequence);
    m.mutable_pages()->set_first(0);
    m.mutable_pages()->set_count(16);
    wire::WindowOpenReply reply;
    EXPECT_TRUE(reply.ParseFromString(c.call(1, worker, wire::WINDOW_OPEN, m).value().header));
    return reply;
  };
  auto close = [&] {
    wire::WindowClose m;
    m.set_view(view.view());
    m.mutable_pages()->set_first(0);
    m.mutable_pages()->set_count(16);
    ASSERT_TRUE(c.call(1, worker, wire::WINDOW_CLOSE, m));
  };
  const TxnId txn = c.memory(2).new_txn();
  const auto in_place = window(txn);
  ASSERT_GT(in_place.in_place_size(), 0);
  ASSERT_EQ(in_place.in_place(0).first(), 0u) << "shard 0 is homed on node 1";
  EXPECT_EQ(c.run(1, c.memory(1).seal(txn, c.world.now() + seconds(5))).error().code, Errc::refused) << "still open";
  close();
  auto sealed = c.run(1, c.memory(1).seal(txn, c.world.now() + seconds(5)));
  ASSERT_TRUE(sealed) << sealed.error().message;
  ASSERT_EQ(sealed->size(), 1u);
  EXPECT_EQ((*sealed)[0].pages[0].holders, (std::vector<NodeId>{NodeId{1}, NodeId{2}}));
  std::vector<node::TxnWrites> writes;
  writes.push_back({.txn = txn, .regions = *sealed, .bump_only = {}});
  auto committed = c.run(2, c.memory(2).commit(writes, c.world.now() + seconds(5)));
  ASSERT_TRUE(committed);
  ASSERT_TRUE((*committed)[0]);
  EXPECT_EQ((*(*committed)[0])[0].version, Version{1});
  // The second commit of the same task acts once.
  auto again = c.run(2, c.memory(2).commit(writes, c.world.now() + seconds(5)));
  ASSERT_TRUE(again && (*again)[0]);
  EXPECT_EQ((*(*again)[0])[0].version, Version{1});

  // A worker that dies in the middle leaves the last version.
  wire::ViewRefresh refresh;
  refresh.set_view(view.view());
  ASSERT_TRUE(c.call(1, worker, wire::VIEW_REFRESH, refresh));
  const TxnId second = c.memory(2).new_txn();
  ASSERT_GT(window(second).in_place_size(), 0);
  c.close(1, *worker);
  EXPECT_FALSE(c.run(1, c.memory(1).seal(second, c.world.now() + seconds(5))));
  c.memory(2).abort({second});
  c.settle(seconds(2));
  Program p{c, 3};
  EXPECT_TRUE(p.read(r, 0, 0, 16 * kPage));
  EXPECT_EQ(c.memory(1).status().overflow_bytes, 0u);
}

/// Several transactions open at once, on all nodes, against a sequential model: the same conflicts, the same bytes at
/// every snapshot that is pinned, on every node.
class Interleaved : public ::testing::TestWithParam<int> {};
TEST_P(Interleaved, AgreesWithASequentialModel) {
  const auto seed = static_cast<std::uint64_t>(GetParam());
  SCOPED_TRACE(seed);
  Random rnd(seed);
  MemoryCluster c(4, seed);
  constexpr std::uint64_t kPages = 6;
  const RegionId r = c.create(kPages, static_cast<std::uint32_t>(1 + rnd.below(3)));
  struct Open {
    Program program;
    std::uint64_t base;
    node::SnapshotPin pin;
    std::map<std::size_t, char> changes;
  };
  std::vector<std::string> versions{std::string(kPages * kPage, '\0')};
  std::map<int, std::unique_ptr<Open>> open;
  int next = 0;
  auto conflicts = [&](int own, std::uint64_t base, std::size_t at, const std::string& bytes) {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      if (versions[base][at + i] == bytes[i]) continue;
      for (std::size_t v = base + 1; v < versions.size(); ++v) {
        if (versions[v][at + i] != versions[v - 1][at + i]) return true;
      }
      for (const auto& [other, o] : open) {
        if (other != own && o->changes.contains(at + i)) return true;
      }
    }
    return false;
  };
  for (int step = 0; step < 60; ++step) {
    const std::uint64_t newest = versions.size() - 1;
    const std::uint64_t n = 1 + rnd.below(4);
    const auto pick = [&] { return std::next(open.begin(), static_cast<std::ptrdiff_t>(rnd.below(open.size()))); };
    switch (rnd.below(7)) {
      case 0:
      case 1:
        if (open.size() < 4) {
          c.settle(milliseconds(5));  // It begins at the newest version, once its node has applied that.
          open[next++] = std::make_unique<Open>(Open{Program{c, n}, newest, c.memory(n).pin(r, Version{newest}), {}});
        }
        break;
      case 2:
      case 3:
      case 4: {
        if (open.empty()) break;
        auto& [id, o] = *pick();
        const std::size_t at = rnd.below(kPages) * kPage + rnd.below(8) * 3;
        const std::string bytes(1 + rnd.below(20), static_cast<char>('a' + rnd.below(26)));
        const bool refused = conflicts(id, o->base, at, bytes);
        const std::span<const std::byte> raw = as_bytes(bytes);
        const auto wrote = o->program.write(r, o->base, at, Bytes(raw.begin(), raw.end()));
        ASSERT_EQ(!wrote, refused) << (wrote ? "" : wrote.error().message);
        if (refused) {
          ASSERT_EQ(wrote.error().code, Errc::write_conflict);
          break;
        }
        for (std::size_t i = 0; i < bytes.size(); ++i) {
          if (versions[o->base][at + i] != bytes[i]) {
            o->changes[at + i] = bytes[i];
          } else {
            o->changes.erase(at + i);
          }
        }
        break;
      }
      case 5: {
        if (open.empty()) break;
        const auto it = pick();
        Open& o = *it->second;
        ASSERT_EQ(o.program.commit(r).value(), newest + 1);
        std::string image = versions.back();
        for (auto [at, v] : o.changes) image[at] = v;
        versions.push_back(image);
        open.erase(it);
        break;
      }
      default: {
        if (open.empty()) break;
        const auto it = pick();
        if (it->second->program.txn) {
          wire::Abort m;
          *m.mutable_txn() = *it->second->program.txn;
          ASSERT_TRUE(c.call(it->second->program.n, it->second->program.session, wire::ABORT, m));
        }
        open.erase(it);
        break;
      }
    }
    Program reader{c, n};
    ASSERT_TRUE(reader.read(r, versions.size() - 1, 0, kPages * kPage) == versions.back()) << "step " << step;
    for (auto& [id, o] : open) {
      Program at_base{c, 1 + rnd.below(4)};
      if (o->base == 0) continue;  // As a request that means the newest.
      ASSERT_TRUE(at_base.read(r, o->base, 0, kPages * kPage) == versions[o->base])
          << "step " << step << " base " << o->base;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Seeds, Interleaved, ::testing::Range(1, 101));

/// Programs on all nodes write, commit, abort, while nodes die and return; what is committed is always read whole.
class Histories : public ::testing::TestWithParam<int> {};
TEST_P(Histories, CommittedBytesSurviveDeathsAndLosses) {
  const auto seed = static_cast<std::uint64_t>(GetParam());
  Random rnd(seed);
  MemoryCluster c(4, seed);
  const RegionId r = c.create(16, 2);
  c.network.faults().loss_per_thousand = static_cast<std::uint32_t>(rnd.below(30));
  c.network.faults().flip_per_thousand = static_cast<std::uint32_t>(rnd.below(30));
  std::string model(16 * kPage, '\0');
  std::uint64_t version = 0;
  std::uint64_t dead = 0;
  for (int step = 0; step < 25; ++step) {
    std::uint64_t n = 1 + rnd.below(4);
    if (n == dead) n = n % 4 + 1;
    Program p{c, n};
    const std::uint64_t at = rnd.below(model.size() - 9000), length = 1 + rnd.below(9000);
    const char letter = static_cast<char>('A' + rnd.below(26));
    auto wrote = p.write(r, version, at, filled(length, letter));
    if (!wrote && wrote.error().code == Errc::write_conflict) {
      // A program that ended a moment ago: its pages go as soon as everybody has heard of it.
      c.settle(seconds(25));
      wrote = p.write(r, version, at, filled(length, letter));
    }
    if (wrote && rnd.chance(1, 5)) {
      c.close(n, *p.session);
      continue;
    }
    auto done = wrote ? p.commit(r) : Result<std::uint64_t>(std::unexpected(wrote.error()));
    if (done) {
      ASSERT_EQ(*done, version + 1) << "seed " << seed;
      version = *done;
      model.replace(at, length, std::string(length, letter));
    } else {
      ASSERT_TRUE(done.error().retryable || done.error().code == Errc::deadline_exceeded)
          << "seed " << seed << ": " << done.error().message;
      c.close(n, *p.session);
    }
    if (dead == 0 && rnd.chance(1, 6)) {
      dead = 1 + rnd.below(4);
      c.kill(dead, milliseconds(static_cast<std::int64_t>(rnd.below(1500))));
      if (rnd.chance(1, 2)) c.settle(seconds(2));
    } else if (dead != 0 && rnd.chance(1, 4)) {
      c.settle(seconds(4));
      c.restart(dead);
      dead = 0;
      c.settle(seconds(4));
    }
    std::uint64_t m = 1 + rnd.below(4);
    if (m == dead) m = m % 4 + 1;
    Program q{c, m};
    auto got = q.read(r, version, 0, model.size());
    ASSERT_TRUE(got) << "seed " << seed << " step " << step << ": " << got.error().message;
    ASSERT_EQ(*got == model, true) << "seed " << seed << " step " << step;
  }
}
INSTANTIATE_TEST_SUITE_P(Seeds, Histories, ::testing::Range(1, 81));
// 1442: a commit whose epoch moved was taken for given up, and its pages dropped while it was proposed again.
INSTANTIATE_TEST_SUITE_P(FoundOnce, Histories, ::testing::Values(1442));

}  // namespace
}  // namespace holo::sim
