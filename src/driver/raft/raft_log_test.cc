#include "driver/raft/raft_log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "base/random.h"
#include "base/strings.h"
#include "driver/posix/asio_loop.h"
#include "driver/raft/raft_io.h"
#include "driver/raft/raft_message.h"
#include "env/entropy_testing.h"
#include "env/hub_testing.h"
#include "env/memory_store_testing.h"
#include "wire/message_types.h"

namespace holo::driver {
namespace {

using env::testing::Hub;
using env::testing::MemoryStore;
using env::testing::SeededEntropy;

/// Keeps every command it was given.
class Journal final : public env::StateMachine {
 public:
  void apply(LogIndex index, WallTime when, ByteSpan command) override {
    EXPECT_GE(index, last);  // An entry may carry several commands.
    EXPECT_GE(when, time);
    last = index;
    time = when;
    text += std::string(as_text(command)) + "@" + std::to_string(index.value) + "\n";
    commands.emplace_back(as_text(command));
  }
  Bytes snapshot() const override {
    const ByteSpan b = as_bytes(text);
    return Bytes(b.begin(), b.end());
  }
  Status restore(LogIndex index, ByteSpan snapshot) override {
    if (refuse) return fail(Errc::corrupt, "the test refuses it");
    text = std::string(as_text(snapshot));
    last = index;
    ++restores;
    return {};
  }
  LogIndex last;
  WallTime time;
  std::string text;
  std::vector<std::string> commands;
  int restores = 0;
  bool refuse = false;
};

/// A loop whose wall clock can be set.
class TestLoop final : public AsioLoop {
 public:
  WallTime wall_now() const override { return {AsioLoop::wall_now().ms + step.millis()}; }
  Duration step;
};

struct Server {
  NodeId id;
  std::shared_ptr<MemoryStore> store = std::make_shared<MemoryStore>();
  std::unique_ptr<SeededEntropy> entropy;
  std::unique_ptr<Hub::Endpoint> endpoint;
  std::unique_ptr<Journal> journal;
  std::unique_ptr<env::CommandLog> log;
};

class RaftLogTest : public ::testing::Test {
 protected:
  void TearDown() override {
    for (auto& [id, s] : servers_) stop(id);
    loop_.begin_stop();
    EXPECT_TRUE(loop_.run_until([&] { return loop_.running() == 0; }, seconds(10)))
        << loop_.running() << " tasks never end";
    // What was posted so far, and what that posts: an open that failed lets go of its store a few turns later.
    int turns = 0;
    std::function<void()> turn = [&] {
      if (++turns < 5) loop_.post(turn);
    };
    loop_.post(turn);
    EXPECT_TRUE(loop_.run_until([&] { return turns == 5; }, seconds(10)));
  }
  Server& server(std::uint64_t id) { return *servers_.at(id); }

  Status start(std::uint64_t id, bool bootstrap = false) {
    auto& slot = servers_[id];
    if (!slot) slot = std::make_unique<Server>();
    Server& s = *slot;
    s.id = NodeId{id};
    s.entropy = std::make_unique<SeededEntropy>(id * 1000 + ++starts_);
    s.endpoint = std::make_unique<Hub::Endpoint>(hub_, s.id, "n" + std::to_string(id));
    s.journal = std::make_unique<Journal>();
    RaftLogOptions options = options_;
    options.self = s.id;
    options.bootstrap = bootstrap;
    RaftLogPorts ports{.loop = &loop_, .transport = s.endpoint.get(), .entropy = s.entropy.get(), .store = s.store};
    auto log = open_raft_log(std::move(ports), *s.journal, options);
    if (!log) return std::unexpected(log.error());
    s.log = std::move(*log);
    return {};
  }
  void stop(std::uint64_t id) {
    Server& s = server(id);
    if (!s.log) return;
    s.endpoint->retire();
    run(close(s.log.get()));
    s.log.reset();
    retired_.push_back(std::move(s.endpoint));
  }
  static Task<Status> close(env::CommandLog* log) {
    co_await log->close();
    co_return Status{};
  }

  template <class T>
  T run(Task<T> task) {
    auto out = std::make_shared<std::optional<T>>();
    loop_.spawn(keep(std::move(task), out));
    EXPECT_TRUE(loop_.run_until([&] { return out->has_value(); }, seconds(30)));
    if (!*out) abort();
    return std::move(**out);
  }
  template <class T>
  static Task<void> keep(Task<T> task, std::shared_ptr<std::optional<T>> out) {
    out->emplace(co_await task);
  }
  bool until(const std::function<bool()>& f, Duration limit = seconds(20)) { return loop_.run_until(f, limit); }

  Result<LogIndex> append(std::uint64_t id, const std::string& text, Duration limit = seconds(10)) {
    return run(server(id).log->append(Buffer::copy(as_bytes(text)), loop_.now() + limit));
  }
  std::uint64_t leader() {
    for (auto& [id, s] : servers_) {
      if (s->log && s->log->status().role == env::LogRole::leader) return id;
    }
    return 0;
  }
  /// The leader that has a majority behind it.
  std::uint64_t wait_leader(std::uint64_t not_this = 0) {
    EXPECT_TRUE(until([&] {
      const std::uint64_t l = leader();
      return l != 0 && l != not_this;
    }));
    return leader();
  }
  void cluster(std::uint64_t n) {
    ASSERT_TRUE(start(1, true));
    for (std::uint64_t id = 2; id <= n; ++id) {
      ASSERT_TRUE(start(id));
      const Status added = run(server(1).log->add_learner(NodeId{id}, loop_.now() + seconds(10)));
      ASSERT_TRUE(added) << added.error().message;
      const Status voter = run(server(1).log->set_voter(NodeId{id}, true, loop_.now() + seconds(10)));
      ASSERT_TRUE(voter) << voter.error().message;
    }
  }

  TestLoop loop_;
  Hub hub_{loop_};
  RaftLogOptions options_{.self = {}, .election_timeout = milliseconds(300), .heartbeat = milliseconds(50)};
  std::vector<std::unique_ptr<Hub::Endpoint>> retired_;
  std::map<std::uint64_t, std::unique_ptr<Server>> servers_;
  std::uint64_t starts_ = 0;
};

TEST_F(RaftLogTest, OneNodeLeadsAtOnceAndRemembers) {
  ASSERT_TRUE(start(1, true));
  EXPECT_EQ(server(1).log->status().role, env::LogRole::leader);
  const auto a = append(1, "a");
  const auto b = append(1, "b");
  ASSERT_TRUE(a) << a.error().message;
  ASSERT_TRUE(b);
  EXPECT_LT(*a, *b);
  EXPECT_EQ(server(1).journal->commands, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(server(1).journal->last, *b);
  EXPECT_TRUE(run(server(1).log->barrier(loop_.now() + seconds(5))));
  const std::string text = server(1).journal->text;
  stop(1);
  ASSERT_TRUE(start(1));
  EXPECT_TRUE(until([&] { return server(1).journal->text == text; }));
  EXPECT_FALSE(start(1, true)) << "a second bootstrap";
}

TEST_F(RaftLogTest, OneOfThreeThatComesBackAloneKnowsWhatWasCommitted) {
  cluster(3);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(append(1, str(i)));
  ASSERT_TRUE(until([&] { return server(3).journal->commands.size() == 5; }));
  const std::string text = server(3).journal->text;
  const std::uint64_t noted = server(3).log->status().committed.value;
  ASSERT_TRUE(until([&] { return server(3).store->load()->committed >= noted; })) << "not only when it stops";
  for (const std::uint64_t id : {1, 2, 3}) stop(id);
  ASSERT_TRUE(start(3));
  EXPECT_EQ(server(3).journal->text, text);
  EXPECT_EQ(server(3).log->members().size(), 3U);
  ASSERT_TRUE(start(1));
  ASSERT_TRUE(append(3, "together")) << "it goes on from there";
  EXPECT_TRUE(until([&] { return server(1).journal->text == server(3).journal->text; }));
}

TEST_F(RaftLogTest, WhatWasNotCommittedIsNotAppliedByOneThatComesBackAlone) {
  cluster(3);
  ASSERT_TRUE(append(1, "committed"));
  ASSERT_TRUE(until([&] { return server(1).journal->commands.size() == 1; }));
  stop(2);
  stop(3);
  EXPECT_FALSE(append(1, "by nobody else", milliseconds(200)));
  stop(1);
  ASSERT_TRUE(start(1));
  EXPECT_EQ(server(1).journal->commands, (std::vector<std::string>{"committed"}));
}

TEST_F(RaftLogTest, ManyAppendsShareWrites) {
  ASSERT_TRUE(start(1, true));
  std::vector<std::shared_ptr<std::optional<Result<LogIndex>>>> results;
  const std::uint64_t before = server(1).store->appends();
  for (int i = 0; i < 1000; ++i) {
    results.push_back(std::make_shared<std::optional<Result<LogIndex>>>());
    loop_.spawn(keep(server(1).log->append(Buffer::copy(as_bytes(std::to_string(i))), loop_.now() + seconds(10)),
                     results.back()));
  }
  ASSERT_TRUE(until([&] { return server(1).journal->commands.size() == 1000 && results.back()->has_value(); }));
  for (std::size_t i = 0; i < results.size(); ++i) {
    ASSERT_TRUE(**results[i]);
    EXPECT_EQ(server(1).journal->commands[i], std::to_string(i));
    EXPECT_NE(server(1).journal->text.find(str(i, "@", ***results[i], "\n")), std::string::npos)
        << "each got its own index";
  }
  EXPECT_LT(server(1).store->appends() - before, 100U);
}

TEST_F(RaftLogTest, WhatComesWhileTheDiskIsBusyGoesTogether) {
  ASSERT_TRUE(start(1, true));
  ASSERT_TRUE(append(1, "before"));
  MemoryStore& disk = *server(1).store;
  disk.hold();
  std::vector<std::shared_ptr<std::optional<Result<LogIndex>>>> results;
  const auto propose = [&] {
    results.push_back(std::make_shared<std::optional<Result<LogIndex>>>());
    loop_.spawn(keep(server(1).log->append(Buffer::copy(as_bytes(str(results.size()))), loop_.now() + seconds(10)),
                     results.back()));
  };
  propose();
  ASSERT_TRUE(until([&] { return disk.waiting() == 1; }));
  for (int i = 0; i < 50; ++i) {
    propose();
    bool turned = false;
    loop_.post([&] { turned = true; });
    ASSERT_TRUE(until([&] { return turned; }));
  }
  EXPECT_EQ(server(1).journal->commands.size(), 1U) << "nothing is committed before it is on the disk";
  disk.release();
  ASSERT_TRUE(until([&] { return results.back()->has_value() && server(1).journal->commands.size() == 52; }));
  for (std::size_t i = 1; i < results.size(); ++i) {
    ASSERT_TRUE(**results[i]);
    EXPECT_EQ((***results[i]).value, (***results[0]).value + 1) << "one entry for all that waited";
  }
}

TEST_F(RaftLogTest, WhatIsForwardedInOneTurnGoesTogether) {
  cluster(3);
  const auto many = static_cast<std::uint16_t>(wire::PeerMessage::propose_many);
  const std::uint64_t before = hub_.delivered[many];
  std::vector<std::shared_ptr<std::optional<Result<LogIndex>>>> results;
  for (int i = 0; i < 1000; ++i) {
    results.push_back(std::make_shared<std::optional<Result<LogIndex>>>());
    loop_.spawn(keep(server(2).log->append(Buffer::copy(as_bytes(std::to_string(i))), loop_.now() + seconds(10)),
                     results.back()));
  }
  ASSERT_TRUE(until([&] { return std::ranges::all_of(results, [](const auto& r) { return r->has_value(); }); }));
  for (const auto& r : results) ASSERT_TRUE(**r) << (**r).error().message;
  EXPECT_EQ(server(2).journal->commands.size(), 1000U);
  EXPECT_EQ(server(2).journal->commands[999], "999");
  EXPECT_LT(hub_.delivered[many] - before, 20U);
}

TEST_F(RaftLogTest, ThreeNodesAgreeAndForward) {
  cluster(3);
  ASSERT_TRUE(append(2, "from two"));
  ASSERT_TRUE(append(3, "from three"));
  ASSERT_TRUE(append(1, "from one"));
  EXPECT_TRUE(until([&] {
    return server(1).journal->text == server(2).journal->text && server(1).journal->text == server(3).journal->text &&
           server(1).journal->commands.size() == 3;
  }));
  EXPECT_EQ(server(2).log->members().size(), 3U);
  EXPECT_TRUE(run(server(3).log->barrier(loop_.now() + seconds(5))));
}

TEST_F(RaftLogTest, FollowersLearnOfACommitWithoutWaitingForAHeartbeat) {
  options_ = {.self = {}, .election_timeout = seconds(8), .heartbeat = seconds(2)};
  cluster(3);
  ASSERT_TRUE(start(4));  // Learners learn like voters.
  ASSERT_TRUE(run(server(1).log->add_learner(NodeId{4}, loop_.now() + seconds(10))));
  const auto known = [&](std::size_t n) {
    return std::ranges::all_of(servers_, [&](auto& s) { return s.second->journal->commands.size() == n; });
  };
  ASSERT_TRUE(append(1, "caught up"));
  ASSERT_TRUE(until([&] { return known(1); }));
  // Ten in a row take less than one heartbeat, wherever they are proposed.
  const Instant began = loop_.now();
  for (std::size_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(append(1 + i % 4, "news"));
    ASSERT_TRUE(until([&] { return known(i + 2); }));
  }
  EXPECT_LT(loop_.now() - began, seconds(2)) << "they came with heartbeats";
}

TEST_F(RaftLogTest, AnotherLeadsWhenTheLeaderDies) {
  cluster(3);
  ASSERT_TRUE(append(2, "before"));
  stop(1);
  const std::uint64_t next = wait_leader(1);
  ASSERT_NE(next, 0U);
  const std::uint64_t other = next == 2 ? 3 : 2;
  const auto after = append(other, "after");
  ASSERT_TRUE(after) << after.error().message;
  ASSERT_TRUE(start(1));
  EXPECT_TRUE(until([&] { return server(1).journal->text == server(next).journal->text; }));
}

TEST_F(RaftLogTest, SettingTheWallClockDoesNotMoveTheTimeOfALeader) {
  ASSERT_TRUE(start(1, true));
  ASSERT_TRUE(append(1, "a"));
  const WallTime before = server(1).journal->time;
  EXPECT_LT(std::abs(before.ms - loop_.wall_now().ms), 5000);
  loop_.step = seconds(3600);
  ASSERT_TRUE(append(1, "b"));
  EXPECT_LT(server(1).journal->time.ms - before.ms, 60'000) << "a step forward";
  EXPECT_LT(server(1).log->now().ms - before.ms, 60'000);
  loop_.step = seconds(-7200);
  const WallTime then = server(1).journal->time;
  const Instant began = loop_.now();
  ASSERT_TRUE(until([&] { return loop_.now() - began > milliseconds(30); }));
  ASSERT_TRUE(append(1, "c"));
  EXPECT_GE(server(1).journal->time.ms - then.ms, 30) << "a step back stops nothing";
  EXPECT_LT(server(1).journal->time.ms - before.ms, 60'000);
}

TEST_F(RaftLogTest, ALeaderWhoseWallClockIsBehindGoesOnFromTheLogsTime) {
  cluster(3);
  ASSERT_TRUE(append(1, "a"));
  const WallTime before = server(1).journal->time;
  ASSERT_TRUE(
      until([&] { return server(2).journal->commands.size() == 1 && server(3).journal->commands.size() == 1; }));
  loop_.step = seconds(-3600);
  stop(1);
  const std::uint64_t next = wait_leader(1);
  ASSERT_TRUE(append(next, "b"));
  const WallTime then = server(next).journal->time;
  EXPECT_GE(then, before);
  const Instant began = loop_.now();
  ASSERT_TRUE(until([&] { return loop_.now() - began > milliseconds(30); }));
  ASSERT_TRUE(append(next, "c"));
  EXPECT_GE(server(next).journal->time.ms - then.ms, 30) << "its time runs from there";
  EXPECT_LT(server(next).journal->time.ms - before.ms, 60'000);
}

TEST_F(RaftLogTest, AReadSeesEveryCommitBeforeItAndWritesNothing) {
  cluster(3);
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(append(1, std::to_string(i)));
    const std::uint64_t reader = 1 + static_cast<std::uint64_t>(i) % 3;
    const LogIndex committed = server(1).log->status().committed;
    ASSERT_TRUE(run(server(reader).log->barrier(loop_.now() + seconds(5))));
    EXPECT_EQ(server(reader).journal->commands.size(), static_cast<std::size_t>(i) + 1);
    EXPECT_EQ(server(1).log->status().committed, committed) << "no entry was written for the read";
  }
}

TEST_F(RaftLogTest, ReadersShareARound) {
  cluster(3);
  ASSERT_TRUE(append(1, "a"));
  const auto confirms = static_cast<std::uint16_t>(wire::PeerMessage::confirm_term);
  const std::uint64_t before = hub_.delivered[confirms];
  std::vector<std::shared_ptr<std::optional<Status>>> done;
  for (int i = 0; i < 200; ++i) {
    done.push_back(std::make_shared<std::optional<Status>>());
    loop_.spawn(keep(server(1).log->barrier(loop_.now() + seconds(5)), done.back()));
  }
  ASSERT_TRUE(until([&] { return std::ranges::all_of(done, [](const auto& d) { return d->has_value(); }); }));
  for (const auto& d : done) EXPECT_TRUE(**d);
  EXPECT_LE(hub_.delivered[confirms] - before, 4U);
}

TEST_F(RaftLogTest, ALeaderThatWasCutOffAnswersNoReads) {
  cluster(3);
  ASSERT_TRUE(append(1, "old"));
  hub_.isolate(NodeId{1}, true);
  // At once, while it still believes that it leads.
  const Status read = run(server(1).log->barrier(loop_.now() + milliseconds(100)));
  EXPECT_FALSE(read);
  ASSERT_TRUE(until([&] {
    return server(2).log->status().role == env::LogRole::leader || server(3).log->status().role == env::LogRole::leader;
  }));
  ASSERT_TRUE(append(2, "new"));
  EXPECT_FALSE(run(server(1).log->barrier(loop_.now() + milliseconds(300))));
  // It says itself that it has lost its majority.
  EXPECT_TRUE(until([&] { return server(1).log->status().role != env::LogRole::leader; }));
  hub_.isolate(NodeId{1}, false);
  ASSERT_TRUE(run(server(1).log->barrier(loop_.now() + seconds(5))));
  EXPECT_EQ(server(1).journal->commands.back(), "new");
}

TEST_F(RaftLogTest, TheMinorityCannotCommitAndLosesItsTail) {
  cluster(3);
  ASSERT_TRUE(append(1, "agreed"));
  hub_.isolate(NodeId{1}, true);
  const auto lost = append(1, "lost", milliseconds(200));
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().code, Errc::no_quorum) << lost.error().message;
  ASSERT_TRUE(until([&] {
    return server(2).log->status().role == env::LogRole::leader || server(3).log->status().role == env::LogRole::leader;
  }));
  ASSERT_TRUE(append(2, "won"));
  const auto none = append(1, "nobody", milliseconds(1500));
  ASSERT_FALSE(none);
  hub_.isolate(NodeId{1}, false);
  ASSERT_TRUE(append(1, "again"));
  EXPECT_TRUE(until([&] { return server(1).journal->text == server(2).journal->text; }));
  EXPECT_EQ(server(1).journal->text.find("lost"), std::string::npos);
  EXPECT_EQ(server(1).journal->text.find("nobody"), std::string::npos);
}

TEST_F(RaftLogTest, AFullStopLosesNothing) {
  cluster(3);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(append(1, "x" + std::to_string(i)));
  const std::string text = server(1).journal->text;
  for (std::uint64_t id = 1; id <= 3; ++id) stop(id);
  for (std::uint64_t id = 1; id <= 3; ++id) ASSERT_TRUE(start(id));
  ASSERT_TRUE(append(2, "more"));
  for (std::uint64_t id = 1; id <= 3; ++id) {
    EXPECT_TRUE(until([&] {
      return server(id).journal->text.starts_with(text) && server(id).journal->text.find("more") != std::string::npos;
    }));
  }
}

TEST_F(RaftLogTest, SnapshotsCutTheLogAndReachNewcomers) {
  options_.snapshot_threshold = 50;
  options_.snapshot_trailing = 10;
  ASSERT_TRUE(start(1, true));
  const std::string big(100'000, 'z');
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(append(1, big + std::to_string(i)));
  EXPECT_TRUE(until([&] { return server(1).store->entries() < 120; }));
  ASSERT_TRUE(start(2));
  // Its state comes as a snapshot of several parts: 20 MB in messages of 6.
  ASSERT_TRUE(run(server(1).log->add_learner(NodeId{2}, loop_.now() + seconds(20))));
  EXPECT_TRUE(until([&] { return server(2).journal->text == server(1).journal->text; }));
  EXPECT_GE(server(2).journal->restores, 1);
  const std::string text = server(1).journal->text;
  stop(1);
  stop(2);
  ASSERT_TRUE(start(1));
  EXPECT_TRUE(until([&] { return server(1).journal->text == text; }));
  ASSERT_TRUE(start(2));
  ASSERT_TRUE(append(2, "end"));
  EXPECT_EQ(server(2).journal->text, server(1).journal->text);
}

TEST_F(RaftLogTest, ALearnerFollowsWithoutAVote) {
  ASSERT_TRUE(start(1, true));
  ASSERT_TRUE(start(2));
  ASSERT_TRUE(run(server(1).log->add_learner(NodeId{2}, loop_.now() + seconds(10))));
  ASSERT_TRUE(append(2, "a"));
  EXPECT_EQ(server(2).log->status().role, env::LogRole::learner);
  hub_.isolate(NodeId{2}, true);
  EXPECT_TRUE(append(1, "b")) << "its vote is not needed";
  hub_.isolate(NodeId{2}, false);
  ASSERT_TRUE(run(server(1).log->remove(NodeId{2}, loop_.now() + seconds(10))));
  EXPECT_EQ(server(1).log->members().size(), 1U);
  EXPECT_TRUE(run(server(1).log->remove(NodeId{2}, loop_.now() + seconds(10)))) << "again";
}

TEST_F(RaftLogTest, LeadershipIsHandedOver) {
  cluster(3);
  const std::uint64_t first = wait_leader();
  ASSERT_TRUE(run(server(first).log->hand_over({}, loop_.now() + seconds(10))));
  EXPECT_TRUE(until([&] { return leader() != 0 && leader() != first; }));
  const std::uint64_t heir = leader(), term = server(heir).log->status().term;
  ASSERT_TRUE(append(first, "a"));
  EXPECT_EQ(server(heir).log->status().term, term) << "all follow whom the lead was handed to, at once";
  EXPECT_EQ(leader(), heir);
}

TEST_F(RaftLogTest, AFullDiskIsAnErrorAndPasses) {
  ASSERT_TRUE(start(1, true));
  ASSERT_TRUE(append(1, "a"));
  server(1).store->set_full(true);
  const auto waits = append(1, "b", milliseconds(300));
  ASSERT_FALSE(waits);
  EXPECT_EQ(waits.error().code, Errc::io_error) << waits.error().message;
  const auto refused = append(1, "c");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::io_error);
  server(1).store->set_full(false);
  EXPECT_TRUE(until([&] { return append(1, "d").has_value(); }));
  EXPECT_EQ(server(1).journal->commands.front(), "a");
  EXPECT_EQ(server(1).journal->commands.back(), "d");
}

TEST_F(RaftLogTest, AVoterWhoseDiskWasFullTakesPartAgain) {
  cluster(3);
  server(2).store->set_full(true);
  ASSERT_TRUE(append(1, "a"));
  // A new term cannot be written there: libraft gives up, and is started again.
  stop(1);
  ASSERT_TRUE(until([&] { return server(2).log->status().applied == LogIndex{}; }));
  server(2).store->set_full(false);
  EXPECT_TRUE(until([&] { return append(3, "c").has_value(); }));
  EXPECT_TRUE(until([&] { return server(2).journal->text == server(3).journal->text; }));
}

TEST_F(RaftLogTest, AVoterThatLostItsLogGetsItBackAndDoesNotVoteBefore) {
  cluster(3);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(append(1, std::to_string(i)));
  ASSERT_TRUE(until([&] { return server(2).journal->commands.size() == 10; }));
  hub_.isolate(NodeId{3}, true);
  ASSERT_TRUE(append(1, "on two of three"));  // By 1 and 2.
  stop(2);
  server(2).store->lose_log();
  stop(1);
  hub_.isolate(NodeId{3}, false);
  ASSERT_TRUE(start(2));
  // With the vote of 2, 3 would lead and what was committed would be gone.
  const Instant began = loop_.now();
  ASSERT_TRUE(until([&] { return loop_.now() - began > seconds(2); }));
  EXPECT_EQ(leader(), 0U);
  ASSERT_TRUE(start(1));
  EXPECT_TRUE(until([&] { return server(2).journal->commands.size() == 11 && !server(2).store->lost(); }));
  EXPECT_EQ(server(2).journal->commands.back(), "on two of three");
  // It counts as any other again.
  const std::uint64_t l = wait_leader();
  ASSERT_TRUE(run(server(l).log->set_voter(NodeId{2}, true, loop_.now() + seconds(10))));
  hub_.isolate(NodeId{l == 1 ? 3U : 1U}, true);
  EXPECT_TRUE(append(2, "with its vote"));
}

TEST_F(RaftLogTest, ASnapshotThatIsRefusedStopsTheStart) {
  options_.snapshot_threshold = 10;
  options_.snapshot_trailing = 2;
  ASSERT_TRUE(start(1, true));
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(append(1, "x"));
  ASSERT_TRUE(until([&] { return server(1).store->entries() < 20; }));
  stop(1);
  Server& s = server(1);
  s.endpoint = std::make_unique<Hub::Endpoint>(hub_, s.id, "n1");
  s.journal->refuse = true;
  RaftLogOptions options = options_;
  options.self = s.id;
  const auto log =
      open_raft_log({.loop = &loop_, .transport = s.endpoint.get(), .entropy = s.entropy.get(), .store = s.store},
                    *s.journal, options);
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().code, Errc::corrupt);
}

TEST_F(RaftLogTest, GarbageFromPeersIsRefused) {
  cluster(2);
  Random rnd(5);
  for (int i = 0; i < 500; ++i) {
    env::Request r;
    r.type = 10;
    const std::uint64_t n = rnd.below(60);
    for (std::uint64_t k = 0; k < n; ++k) r.header.push_back(static_cast<char>(rnd.next()));
    env::CallOptions options;
    options.deadline = loop_.now() + seconds(1);
    (void)run(server(2).endpoint->call(NodeId{1}, std::move(r), options));
  }
  EXPECT_TRUE(append(2, "still here"));
}

TEST_F(RaftLogTest, WellFormedNonsenseOfAMemberEndsNobody) {
  cluster(3);
  ASSERT_TRUE(append(1, "before"));
  Random rnd(7);
  const std::uint64_t term = server(1).log->status().term;
  const std::uint64_t last = server(1).log->status().last.value;
  const auto some = [&] {
    const std::array<std::uint64_t, 7> values{0, 1, last, last + 1, last + 1000, UINT64_MAX - 1, UINT64_MAX};
    return values[rnd.below(values.size())];
  };
  for (int i = 0; i < 2000; ++i) {
    raft_message m{};
    const std::array<unsigned short, 5> kinds{RAFT_IO_APPEND_ENTRIES, RAFT_IO_APPEND_ENTRIES_RESULT,
                                              RAFT_IO_REQUEST_VOTE, RAFT_IO_REQUEST_VOTE_RESULT, RAFT_IO_TIMEOUT_NOW};
    m.type = kinds[rnd.below(kinds.size())];
    const std::uint64_t when = rnd.below(4) == 0 ? rnd.below(term + 1) : term;
    std::array<std::byte, 40> junk{};
    raft_entry entry{.term = when,
                     .type = static_cast<unsigned short>(1 + rnd.below(3)),
                     .buf = {junk.data(), rnd.below(40)},
                     .batch = nullptr};
    switch (m.type) {
      case RAFT_IO_APPEND_ENTRIES:
        m.append_entries = {.term = when,
                            .prev_log_index = some(),
                            .prev_log_term = rnd.below(term + 2),
                            .leader_commit = some(),
                            .entries = &entry,
                            .n_entries = static_cast<unsigned>(rnd.below(2))};
        break;
      case RAFT_IO_APPEND_ENTRIES_RESULT:
        m.append_entries_result = {.term = when, .rejected = rnd.below(2) == 0 ? 0 : some(), .last_log_index = some()};
        break;
      case RAFT_IO_REQUEST_VOTE:
        m.request_vote = {.term = when,
                          .candidate_id = 3,
                          .last_log_index = some(),
                          .last_log_term = some(),
                          .disrupt_leader = rnd.below(2) == 0,
                          .pre_vote = rnd.below(2) == 0};
        break;
      case RAFT_IO_REQUEST_VOTE_RESULT:
        m.request_vote_result = {.term = when, .vote_granted = rnd.below(2) == 0, .pre_vote = raft_tribool_true};
        break;
      default: m.timeout_now = {.term = when, .last_log_index = some(), .last_log_term = some()};
    }
    const std::uint64_t to = 1 + rnd.below(2);
    m.server_id = to;
    const auto answer =
        run(server(3).endpoint->call(NodeId{to}, encode_raft_message(m), {.deadline = loop_.now() + seconds(1)}));
    const bool as_leader = (m.type == RAFT_IO_APPEND_ENTRIES && when == term) || m.type == RAFT_IO_TIMEOUT_NOW;
    if (as_leader && server(to).log->status().leader == NodeId{1}) {
      EXPECT_FALSE(answer) << "a term has one leader, and it is not this one";
    }
  }
  EXPECT_EQ(server(2).journal->commands, (std::vector<std::string>{"before"}));
  EXPECT_TRUE(append(1, "after")) << "whoever leads now";
  EXPECT_TRUE(append(2, "here, too"));
}

TEST_F(RaftLogTest, TooLargeACommandIsRefused) {
  ASSERT_TRUE(start(1, true));
  const auto r = append(1, std::string((8 << 20) + 1, 'x'));
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().code, Errc::over_limit);
  EXPECT_TRUE(append(1, std::string(8 << 20, 'x')));
}

}  // namespace
}  // namespace holo::driver
