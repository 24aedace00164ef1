// When the shipped log writes what is proposed: alone at once, many together within a millisecond. In virtual time.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "driver/raft/raft_log.h"
#include "env/entropy_testing.h"
#include "sim/disk.h"
#include "sim/loop.h"
#include "sim/network.h"

namespace holo::sim {
namespace {

constexpr Duration kDelay = microseconds(100), kSync = microseconds(400);
/// To the followers and back, with a synced write there; the leader's own is as long and runs beside it.
constexpr Duration kRound = kDelay * 2 + kSync;

class Ignores final : public env::StateMachine {
 public:
  void apply(LogIndex, WallTime, ByteSpan) override {}
  Bytes snapshot() const override { return {}; }
  Status restore(LogIndex, ByteSpan) override { return {}; }
};

class LogPace : public ::testing::Test {
 protected:
  struct Server {
    explicit Server(World& world) : loop(world) {}
    SimLoop loop;
    std::shared_ptr<SimDisk> disk;
    std::unique_ptr<SimTransport> transport;
    std::unique_ptr<env::testing::SeededEntropy> entropy;
    Ignores machine;
    std::unique_ptr<env::CommandLog> log;
  };

  void SetUp() override {
    network_.faults() = {.min_delay = kDelay, .max_delay = kDelay};
    for (std::uint64_t id = 1; id <= 3; ++id) {
      Server& s = *(servers_[id] = std::make_unique<Server>(world_));
      s.disk = std::make_shared<SimDisk>(world_, id);
      s.disk->faults().min_sync = s.disk->faults().max_sync = kSync;
      s.loop.set_work_end([disk = s.disk] { return disk->synced(); });
      s.transport = network_.attach(NodeId{id}, s.loop);
      s.entropy = std::make_unique<env::testing::SeededEntropy>(id);
      auto log = driver::open_raft_log(
          {.loop = &s.loop, .transport = s.transport.get(), .entropy = s.entropy.get(), .store = s.disk}, s.machine,
          {.self = NodeId{id}, .bootstrap = id == 1});
      ASSERT_TRUE(log) << log.error().message;
      s.log = std::move(*log);
      if (id == 1) continue;
      ASSERT_TRUE(settled(leader().add_learner(NodeId{id}, soon())));
      ASSERT_TRUE(settled(leader().set_voter(NodeId{id}, true, soon())));
    }
  }
  void TearDown() override {
    unsigned closed = 0;
    for (auto& [id, s] : servers_) s->loop.spawn(close(*s->log, closed));
    EXPECT_TRUE(world_.run_while_not([&] { return closed == servers_.size(); }, world_.now() + seconds(10)));
    world_.run_until(world_.now() + seconds(10));
    for (auto& [id, s] : servers_) s->log.reset();
  }
  static Task<void> close(env::CommandLog& log, unsigned& closed) {
    co_await log.close();
    ++closed;
  }

  env::CommandLog& leader() { return *servers_.at(1)->log; }
  Instant soon() { return servers_.at(1)->loop.now() + seconds(5); }
  bool settled(Task<Status> task) {
    auto out = std::make_shared<std::optional<Status>>();
    servers_.at(1)->loop.spawn(keep(std::move(task), out));
    world_.run_while_not([&] { return out->has_value(); }, world_.now() + seconds(10));
    return *out && **out;
  }
  static Task<void> keep(Task<Status> task, std::shared_ptr<std::optional<Status>> out) { *out = co_await task; }

  static Task<void> append(LogPace* self) {
    const Instant began = self->world_.now();
    const auto index = co_await self->leader().append(Buffer::copy(as_bytes("command")), self->soon());
    EXPECT_TRUE(index);
    self->took_.push_back(self->world_.now() - began);
  }
  /// A command every so often; returns how many entries they took.
  std::uint64_t propose(unsigned count, Duration every) {
    const std::uint64_t before = leader().status().last.value;
    took_.clear();
    SimLoop& loop = servers_.at(1)->loop;
    for (unsigned i = 0; i < count; ++i) {
      loop.call_at(loop.now() + every * static_cast<std::int64_t>(i), [this, &loop] { loop.spawn(append(this)); });
    }
    world_.run_while_not([&] { return took_.size() == count; },
                         world_.now() + every * std::int64_t{count} + seconds(5));
    EXPECT_EQ(took_.size(), count);
    return leader().status().last.value - before;
  }

  World world_;
  Network network_{world_, 1};
  std::map<std::uint64_t, std::unique_ptr<Server>> servers_;
  std::vector<Duration> took_;
};

TEST_F(LogPace, ALoneCommandGoesAtOnce) {
  EXPECT_EQ(propose(50, milliseconds(5)), 50U);
  EXPECT_LT(*std::ranges::max_element(took_), kRound + kSync);
}

TEST_F(LogPace, CommandsThatComeFastGatherForARoundAndNoLonger) {
  constexpr unsigned kCount = 2'000;
  const Duration every = microseconds(100);
  const std::uint64_t entries = propose(kCount, every);
  // As long as an entry takes to be committed, commands gather: no more entries than rounds (and a few at the start).
  EXPECT_LT(entries, static_cast<std::uint64_t>((every * kCount).ns / kRound.ns) + 50);
  EXPECT_GT(entries, static_cast<std::uint64_t>((every * kCount).ns / milliseconds(2).ns));
  std::ranges::sort(took_);
  EXPECT_LT(took_[kCount / 2], kRound * 2);
  EXPECT_LT(took_.back(), kRound * 2 + milliseconds(1));
}

TEST_F(LogPace, OverALongWayTheyGatherForAMillisecondAtMost) {
  constexpr Duration kFar = milliseconds(10);
  network_.faults() = {.min_delay = kFar, .max_delay = kFar};
  (void)propose(200, microseconds(100));  // It learns how long a round takes.
  const std::uint64_t entries = propose(2'000, microseconds(100));
  EXPECT_GT(entries, 130U) << "200 ms: an entry each millisecond, so that the way is filled";
  std::ranges::sort(took_);
  EXPECT_LT(took_[took_.size() / 2], kFar * 2 + kSync + milliseconds(2));
}

}  // namespace
}  // namespace holo::sim
