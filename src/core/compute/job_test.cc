#include "core/compute/job.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/random.h"

namespace holo::compute {
namespace {

const NodeId kA{1}, kB{2}, kC{3};

Executor at(NodeId node, std::uint64_t incarnation = 1, std::uint32_t slots = 1) { return {node, incarnation, slots}; }
Error error(Errc code, bool retryable = false) {
  return {.code = code, .message = "why", .hint = {}, .node = 0, .retryable = retryable};
}

TEST(Split, CoversEveryElementOnceAlongBlocks) {
  const std::vector<BlockHome> blocks = {{4096, kA}, {4096, kB}, {1808, kA}};
  const auto chunks = split(blocks, 1250, 8, 100);
  const std::vector<ChunkRange> want = {{0, 512, kA}, {512, 1024, kB}, {1024, 1250, kA}};
  EXPECT_EQ(chunks, want);
}

TEST(Split, AnElementThatCrossesABlockBelongsWhereItBegins) {
  // 24-byte elements: the 171st begins at 4080 and ends in the second block.
  const auto chunks = split({{4096, kA}, {4096, kB}}, 341, 24, 100);
  const std::vector<ChunkRange> want = {{0, 171, kA}, {171, 341, kB}};
  EXPECT_EQ(chunks, want);
}

TEST(Split, ElementsLargerThanBlocksLeaveNoEmptyChunks) {
  const auto chunks = split({{4096, kA}, {4096, kB}, {4096, kC}, {4096, kA}}, 2, 8192, 100);
  const std::vector<ChunkRange> want = {{0, 1, kA}, {1, 2, kC}};
  EXPECT_EQ(chunks, want);
}

TEST(Split, JoinsBlocksAboveTheLimit) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    const std::uint64_t element = 1 + random.below(5000);
    std::vector<BlockHome> blocks(1 + random.below(300));
    for (auto& b : blocks) b = {4096, NodeId{1 + random.below(4)}};
    const std::uint64_t bytes = 4096 * blocks.size();
    const std::uint64_t elements = bytes / element;
    const std::size_t limit = 1 + random.below(100);
    const auto chunks = split(blocks, elements, element, limit);
    EXPECT_LE(chunks.size(), limit) << seed;
    std::uint64_t next = 0;
    for (const auto& c : chunks) {
      ASSERT_EQ(c.first, next) << seed;
      ASSERT_LT(c.first, c.last) << seed;
      next = c.last;
    }
    EXPECT_EQ(next, elements) << seed;
  }
}

TEST(Job, RunsChunksAtTheirHomesAndCommitsBeforeItCounts) {
  Job job({kA, kB}, {.writes = true});
  Effects fx;
  job.start({}, {at(kA), at(kB)}, fx);
  ASSERT_EQ(fx.send.size(), 2U);
  EXPECT_EQ(fx.send[0].node, kA);
  EXPECT_EQ(fx.send[0].attempts, (std::vector<Attempt>{{0, 1}}));
  EXPECT_EQ(fx.send[1].attempts, (std::vector<Attempt>{{1, 1}}));

  fx = {};
  job.on_finished({}, {0, 1}, true, fx);
  EXPECT_EQ(fx.commit, (std::vector<Attempt>{{0, 1}}));
  EXPECT_EQ(job.done(), 0U);
  fx = {};
  job.on_finished({}, {1, 1}, true, fx);
  EXPECT_TRUE(fx.commit.empty()) << "one commit at a time";
  fx = {};
  job.on_committed({}, {0, 1}, {}, fx);
  EXPECT_EQ(fx.done, (std::vector<ChunkNo>{0}));
  EXPECT_EQ(fx.commit, (std::vector<Attempt>{{1, 1}}));
  fx = {};
  job.on_committed({}, {1, 1}, {}, fx);
  ASSERT_TRUE(fx.ended.has_value());
  EXPECT_TRUE(fx.ended->has_value());
}

TEST(Job, ADeadNodesTasksRunElsewhereUnderANewAttempt) {
  Job job({kA, kB}, {.writes = true});
  Effects fx;
  job.start({}, {at(kA), at(kB)}, fx);
  fx = {};
  job.on_executors({}, {at(kA)}, fx);
  EXPECT_EQ(fx.abort, (std::vector<Attempt>{{1, 1}}));
  ASSERT_EQ(fx.send.size(), 1U);
  EXPECT_EQ(fx.send[0].node, kA);
  EXPECT_EQ(fx.send[0].attempts, (std::vector<Attempt>{{1, 2}}));
  fx = {};
  job.on_finished({}, {1, 1}, true, fx);  // The lost node was not dead after all.
  EXPECT_EQ(fx.abort, (std::vector<Attempt>{{1, 1}}));
  EXPECT_TRUE(fx.commit.empty());
}

TEST(Job, ARestartedNodeHasForgottenItsTasks) {
  Job job({kA}, {.writes = true});
  Effects fx;
  job.start({}, {at(kA, 1)}, fx);
  fx = {};
  job.on_executors({}, {at(kA, 2)}, fx);
  ASSERT_EQ(fx.send.size(), 1U);
  EXPECT_EQ(fx.send[0].attempts, (std::vector<Attempt>{{0, 2}}));
}

TEST(Job, AUsersErrorEndsTheJobAndAbortsTheRest) {
  Job job({kA, kB, kB}, {.writes = true});
  Effects fx;
  job.start({}, {at(kA), at(kB, 1, 4)}, fx);
  fx = {};
  job.on_failed({}, {0, 1}, error(Errc::task_failed), fx);
  ASSERT_TRUE(fx.ended.has_value());
  EXPECT_EQ(fx.ended->error().code, Errc::task_failed);
  EXPECT_EQ(fx.cancel, (std::vector<NodeId>{kB}));
  EXPECT_EQ(fx.abort.size(), 3U);
}

TEST(Job, PassingErrorsAreRetriedOnlyForAWhile) {
  Job job({kA}, {.writes = false, .max_failures = 3});
  Effects fx;
  job.start({}, {at(kA)}, fx);
  Instant now{};
  for (std::uint32_t attempt = 1; attempt <= 2; ++attempt) {
    fx = {};
    job.on_failed(now, {0, attempt}, error(Errc::unavailable, true), fx);
    ASSERT_FALSE(fx.ended.has_value());
    now = job.next_wake();
    ASSERT_LT(now, kNever);
    fx = {};
    job.on_time(now, fx);
    ASSERT_EQ(fx.send.size(), 1U);
  }
  fx = {};
  job.on_failed(now, {0, 3}, error(Errc::unavailable, true), fx);
  ASSERT_TRUE(fx.ended.has_value());
  EXPECT_EQ(fx.ended->error().code, Errc::unavailable);
}

TEST(Job, ACancelWaitsForTheCommitUnderWay) {
  Job job({kA, kA}, {.writes = true});
  Effects fx;
  job.start({}, {at(kA, 1, 2)}, fx);
  job.on_finished({}, {0, 1}, true, fx);
  fx = {};
  job.cancel({}, fx);
  EXPECT_FALSE(fx.ended.has_value());
  EXPECT_EQ(fx.abort, (std::vector<Attempt>{{1, 1}}));
  fx = {};
  job.on_committed({}, {0, 1}, {}, fx);
  EXPECT_EQ(fx.done, (std::vector<ChunkNo>{0}));
  ASSERT_TRUE(fx.ended.has_value());
  EXPECT_EQ(fx.ended->error().code, Errc::cancelled);
}

TEST(Job, AnUnansweredCommitIsCommittedAgainAndAtLastGivenUp) {
  Job job({kA}, {.writes = true});
  Effects fx;
  job.start({}, {at(kA)}, fx);
  job.on_finished({}, {0, 1}, true, fx);
  Instant now{};
  int again = 0;
  for (fx = {}; !fx.ended; ++again) {
    fx = {};
    job.on_commit_unknown(now, error(Errc::no_quorum), fx);
    if (fx.ended) break;
    now = job.next_wake();
    ASSERT_LT(now, kNever);
    fx = {};
    job.on_time(now, fx);
    EXPECT_EQ(fx.commit, (std::vector<Attempt>{{0, 1}}));
  }
  EXPECT_GT(again, 5);
  EXPECT_EQ(fx.ended->error().code, Errc::no_quorum);
  EXPECT_LE(now - Instant{}, seconds(5));
}

/// A cluster that does to a job whatever can happen, by seed.
class World {
 public:
  explicit World(std::uint64_t seed) : random_(seed) {}

  void run() {
    const std::size_t chunks = 1 + random_.below(60);
    std::vector<NodeId> homes(chunks);
    for (auto& h : homes) h = NodeId{random_.below(6)};
    writes_ = random_.chance(3, 4);
    Job job(homes, {.writes = writes_,
                    .max_failures = 1000,
                    .retry_budget = seconds(100000),
                    .max_commit = 1 + random_.below(20)});
    job_ = &job;
    for (std::uint64_t n = 1; n <= 5; ++n) {
      if (n == 1 || random_.chance(3, 4))
        nodes_[NodeId{n}] = at(NodeId{n}, 1, 1 + static_cast<std::uint32_t>(random_.below(3)));
    }
    feed([&](Effects& fx) { job.start(now_, executors(), fx); });
    for (int step = 0; step < 20000 && !ended_; ++step) act();
    ASSERT_TRUE(ended_);
    if (cancelled_) {
      EXPECT_FALSE(outcome_->has_value());
    } else {
      EXPECT_TRUE(outcome_->has_value());
      EXPECT_EQ(done_.size(), chunks);
      if (writes_) {
        EXPECT_EQ(committed_.size(), done_.size());
      }
    }
    EXPECT_EQ(job.done(), done_.size());
  }

 private:
  std::vector<Executor> executors() const {
    std::vector<Executor> out;
    for (const auto& [id, e] : nodes_) out.push_back(e);
    return out;
  }

  template <class F>
  void feed(F f) {
    Effects fx;
    f(fx);
    for (auto& s : fx.send) {
      for (Attempt a : s.attempts) {
        ASSERT_FALSE(ended_);
        if (random_.chance(1, 20)) {
          lost_.push_back({s.node, a});  // The batch did not arrive, or its answer did not.
          if (random_.chance(1, 2)) running_.insert({s.node, a});
        } else {
          running_.insert({s.node, a});
        }
      }
    }
    for (Attempt a : fx.abort) {
      ASSERT_FALSE(committed_.contains(a.chunk) && committed_[a.chunk] == a.number) << "aborted after its commit";
      aborted_.insert(a);
    }
    if (!fx.commit.empty()) {
      committing_ = fx.commit;
      for (Attempt a : fx.commit) ASSERT_FALSE(aborted_.contains(a)) << "committed after its abort";
    }
    for (ChunkNo c : fx.done) ASSERT_TRUE(done_.insert(c).second) << "done twice";
    if (fx.ended) {
      ASSERT_FALSE(ended_);
      ended_ = true;
      outcome_ = *fx.ended;
    }
  }

  void act() {
    now_ = now_ + milliseconds(static_cast<std::int64_t>(random_.below(60)));
    if (job_->next_wake() <= now_) feed([&](Effects& fx) { job_->on_time(now_, fx); });
    if (ended_) return;
    switch (random_.below(10)) {
      case 0:
        if (random_.chance(1, 4)) return change_nodes();
        break;
      case 1:
        if (!lost_.empty()) {
          auto [node, a] = lost_.back();
          lost_.pop_back();
          feed([&](Effects& fx) { job_->on_unsent(now_, node, {a}, fx); });
        }
        break;
      case 2:
      case 3:
      case 4:
        if (!committing_.empty()) return decide();
        break;
      case 5:
        if (random_.chance(1, 1500)) {
          cancelled_ = true;
          feed([&](Effects& fx) { job_->cancel(now_, fx); });
        }
        break;
      default: finish();
    }
  }

  void change_nodes() {
    const NodeId id{1 + random_.below(5)};
    if (auto it = nodes_.find(id); it == nodes_.end()) {
      nodes_[id] = at(id, ++incarnation_);
    } else if (random_.chance(1, 2)) {
      it->second.incarnation = ++incarnation_;
    } else if (nodes_.size() > 1) {
      nodes_.erase(it);
    }
    feed([&](Effects& fx) { job_->on_executors(now_, executors(), fx); });
  }

  void finish() {
    if (running_.empty()) return;
    auto it = running_.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(random_.below(running_.size())));
    const auto [node, a] = *it;
    if (!nodes_.contains(node) && random_.chance(9, 10)) {
      running_.erase(it);
      return;
    }
    if (!random_.chance(1, 30)) running_.erase(it);  // Sometimes a report comes twice.
    if (random_.chance(1, 10)) {
      feed([&](Effects& fx) { job_->on_failed(now_, a, error(Errc::overloaded), fx); });
    } else {
      feed([&](Effects& fx) { job_->on_finished(now_, a, writes_, fx); });
    }
  }

  void decide() {
    if (random_.chance(1, 5)) {
      // No answer; what the log has decided it has decided.
      for (Attempt a : committing_) {
        if (random_.chance(1, 2)) log_commit(a);
      }
      committing_.clear();
      feed([&](Effects& fx) { job_->on_commit_unknown(now_, error(Errc::deadline_exceeded), fx); });
      return;
    }
    const auto batch = std::exchange(committing_, {});
    for (Attempt a : batch) {
      if (random_.chance(1, 8) && !committed_.contains(a.chunk)) {
        feed([&](Effects& fx) { job_->on_committed(now_, a, std::unexpected(error(Errc::stale_epoch)), fx); });
      } else {
        log_commit(a);
        feed([&](Effects& fx) { job_->on_committed(now_, a, {}, fx); });
      }
    }
  }

  void log_commit(Attempt a) {
    auto [it, fresh] = committed_.emplace(a.chunk, a.number);
    ASSERT_TRUE(fresh || it->second == a.number) << "two attempts of one chunk committed";
  }

  Random random_;
  Job* job_ = nullptr;
  Instant now_;
  bool writes_ = true;
  std::uint64_t incarnation_ = 1;
  std::map<NodeId, Executor> nodes_;
  std::set<std::pair<NodeId, Attempt>> running_;
  std::vector<std::pair<NodeId, Attempt>> lost_;
  std::vector<Attempt> committing_;
  std::map<ChunkNo, std::uint32_t> committed_;
  std::set<Attempt> aborted_;
  std::set<ChunkNo> done_;
  bool ended_ = false;
  bool cancelled_ = false;
  std::optional<Status> outcome_;
};

TEST(Job, EveryChunkCommitsOnceWhateverHappens) {
  for (std::uint64_t seed = 0; seed < 3000 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    World(seed).run();
  }
}

}  // namespace
}  // namespace holo::compute
