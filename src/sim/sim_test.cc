#include <gtest/gtest.h>

#include "sim/cluster_scenario.h"
#include "sim/hyperbus_scenario.h"
#include "sim/loop.h"
#include "sim/network.h"
#include "sim/scenario.h"

namespace holo::sim {
namespace {

Task<Result<env::Reply>> echo(NodeId, env::Request request) {
  env::Reply reply;
  reply.header = request.header;
  reply.payload = std::move(request.payload);
  co_return reply;
}

Task<void> ask(SimTransport* t, NodeId to, Instant deadline, std::vector<Result<env::Reply>>* out) {
  env::Request request;
  request.type = 1;
  request.header = "hi";
  env::CallOptions options{.klass = env::StreamClass::control, .deadline = deadline};
  out->push_back(co_await t->call(to, std::move(request), options));
}

struct Pair {
  World world;
  Network network{world, 1};
  SimLoop loop_a{world}, loop_b{world};
  std::unique_ptr<SimTransport> a = network.attach(NodeId{1}, loop_a);
  std::unique_ptr<SimTransport> b = network.attach(NodeId{2}, loop_b);
  std::vector<Result<env::Reply>> out;
  Pair() { b->serve(1, echo); }
  void call() {
    loop_a.spawn(ask(a.get(), NodeId{2}, loop_a.now() + seconds(1), &out));
    world.run_until(world.now() + seconds(2));
  }
};

TEST(SimNetwork, AnswersAfterADelay) {
  Pair p;
  p.call();
  ASSERT_EQ(p.out.size(), 1U);
  EXPECT_EQ(p.out[0]->header, "hi");
}

TEST(SimNetwork, EveryCallEndsOnceUnderLoss) {
  Pair p;
  p.network.faults().loss_per_thousand = 300;
  for (int i = 0; i < 500; ++i) p.call();
  EXPECT_EQ(p.out.size(), 500U);
  const auto failed = std::count_if(p.out.begin(), p.out.end(), [](const auto& r) { return !r; });
  EXPECT_GT(failed, 100);
  EXPECT_LT(failed, 400);
  EXPECT_EQ(p.loop_a.running(), 0U);
}

TEST(SimNetwork, APartitionCutsAndHeals) {
  Pair p;
  p.network.partition({NodeId{2}});
  p.call();
  EXPECT_EQ(p.out.back().error().code, Errc::unavailable);
  p.network.heal();
  p.call();
  EXPECT_TRUE(p.out.back());
}

TEST(SimLoop, AKilledLoopRunsNothing) {
  World world;
  SimLoop loop(world);
  bool ran = false;
  loop.call_at(loop.now() + seconds(1), [&] { ran = true; });
  loop.kill();
  world.run_until(world.now() + seconds(5));
  EXPECT_FALSE(ran);
}

TEST(SimLoop, StoppingFiresEveryTimer) {
  World world;
  SimLoop loop(world);
  int fired = 0;
  loop.call_at(loop.now() + seconds(100), [&] { ++fired; });
  loop.call_at(loop.now() + seconds(200), [&] { ++fired; });
  loop.begin_stop();
  world.run_until(world.now() + seconds(1));
  EXPECT_EQ(fired, 2);
}

// Each scenario over its first seeds; `./dev sim --seeds N` goes further.
TEST(Scenarios, KeepTheirPromises) {
  for (const Scenario& scenario : scenarios()) {
    if (scenario.run_with != nullptr) continue;  // Whole clusters: below, and by ./dev test.
    Tally tally;
    for (std::uint64_t seed = 1; seed <= 150; ++seed) {
      const Status verdict = scenario.run(seed, tally);
      ASSERT_TRUE(verdict) << scenario.name << ", seed " << seed << ": " << verdict.error().to_string();
    }
    EXPECT_FALSE(tally.empty()) << scenario.name << " did nothing";
    for (const auto& [what, count] : tally) EXPECT_NE(count, 0U) << scenario.name << ": never any " << what;
  }
}

// Seeds that once broke a promise.
TEST(Scenarios, HyperbusSeedsThatFoundBugs) {
  // A full socket made timers spin (20, 73); a request came before the end of a cancelled one was acknowledged, and
  // counted as more than was granted (104, 409, 527).
  for (const std::uint64_t seed : {20, 73, 104, 409, 527}) {
    Tally tally;
    const Status verdict = run_hyperbus(seed, tally);
    EXPECT_TRUE(verdict) << "seed " << seed << ": " << (verdict ? "" : verdict.error().to_string());
  }
}

// Also the digest of everything that happened, in order: of `cluster`, the lines that --trace prints.
TEST(Scenarios, ASeedReplaysExactly) {
  for (const Scenario& scenario : scenarios()) {
    Tally first, second;
    (void)scenario.run(7, first);
    (void)scenario.run(7, second);
    EXPECT_EQ(first, second) << scenario.name;
  }
}

TEST(Scenarios, ClustersKeepTheirPromises) {
  Tally tally;
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    const Status verdict = run_cluster(seed, tally);
    EXPECT_TRUE(verdict) << "seed " << seed << ": " << (verdict ? "" : verdict.error().to_string());
  }
  for (const char* what : {"deaths", "crashes", "fenced_writes", "lock_grants", "watched", "states_compared"}) {
    EXPECT_GT(tally[what], 0U) << what;
  }
}

// Seeds that once broke a promise of the shipped code. 2: libraft appended from within the callback of a write, and
// writes were told twice. 3: an answer that could not be sent at once freed its entries twice. 15: a leadership was
// handed to a node with a full disk. 29: a command that had acted was reported as refused. 38: libraft crashed when a
// change of members was overwritten that came after a snapshot. 114, 174: a node that was not alive in its own
// state. 327: the same, because it and the leader had both moved while it was off, and did not find each other. 316:
// three of five left while the power failed, and took the majority with them. 649, 857: a leave that its agent's end
// interrupted left the node draining. 401, 741: histories that were too hard to judge. 609: a node that took itself for
// cut off counted as healed.
// 102: a beginning of leadership that was refused extended leases in the referee's model. 454: a follower that dropped
// entries took them for stored, and applied what came in their place before it was.
TEST(Scenarios, ClusterSeedsThatFoundBugs) {
  for (const std::uint64_t seed : {2, 3, 15, 29, 38, 102, 114, 174, 316, 327, 401, 454, 609, 649, 741, 857}) {
    Tally tally;
    const Status verdict = run_cluster(seed, tally);
    EXPECT_TRUE(verdict) << "seed " << seed << ": " << (verdict ? "" : verdict.error().to_string());
  }
}

// With five nodes at first. 3: a follower whose snapshot was newer than its leader's refused what the leader sent, and
// the leader went back and forth for ever. 48: a command that had acted ended as permission_denied, because its node
// had left before the second attempt.
TEST(Scenarios, ClusterSeedsOfFiveThatFoundBugs) {
  RunOptions five;
  five.nodes = 5;
  for (const std::uint64_t seed : {3, 48}) {
    Tally tally;
    const Status verdict = run_cluster_with(seed, tally, five);
    EXPECT_TRUE(verdict) << "seed " << seed << ": " << (verdict ? "" : verdict.error().to_string());
  }
}

}  // namespace
}  // namespace holo::sim
