#include "driver/posix/asio_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "driver/posix/os_entropy.h"

namespace holo::driver {
namespace {

constexpr Duration kLimit = seconds(20);

TEST(AsioLoop, PostsInOrderFromAnyThread) {
  AsioLoop loop;
  std::vector<int> seen;
  std::thread other([&] {
    for (int i = 0; i < 1000; ++i) loop.post([&seen, i] { seen.push_back(i); });
    loop.post([&loop] { loop.stop(); });
  });
  loop.run();
  other.join();
  ASSERT_EQ(seen.size(), 1000U);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
}

TEST(AsioLoop, OneThatPollsDoesTheSame) {
  AsioLoop loop({.poll_for = microseconds(50)});
  std::vector<int> seen;
  const Instant start = loop.now();
  loop.call_at(start + milliseconds(5), [&] {
    seen.push_back(2);
    std::thread([&loop, &seen] { loop.post([&] { seen.push_back(3), loop.stop(); }); }).detach();
  });
  loop.post([&] { seen.push_back(1); });
  loop.run();
  EXPECT_EQ(seen, (std::vector<int>{1, 2, 3}));
  EXPECT_GE(loop.now(), start + milliseconds(5));
}

TEST(AsioLoop, TimersFireInOrderOfTimeAndNotBefore) {
  AsioLoop loop;
  std::vector<int> seen;
  const Instant start = loop.now();
  Instant fired{};
  loop.call_at(start + milliseconds(30), [&] {
    seen.push_back(3);
    fired = loop.now();
  });
  loop.call_at(start + milliseconds(10), [&] { seen.push_back(1); });
  const auto cancelled = loop.call_at(start + milliseconds(15), [&] { seen.push_back(99); });
  loop.call_at(start + milliseconds(20), [&] { seen.push_back(2); });
  loop.cancel(cancelled);
  loop.cancel(cancelled);
  loop.cancel(0);
  ASSERT_TRUE(loop.run_until([&] { return seen.size() == 3; }, kLimit));
  EXPECT_EQ(seen, (std::vector<int>{1, 2, 3}));
  EXPECT_GE(fired, start + milliseconds(30));
}

TEST(AsioLoop, ManyCancelledTimersAreForgotten) {
  AsioLoop loop;
  int fired = 0;
  for (int i = 0; i < 100'000; ++i) loop.cancel(loop.call_at(loop.now() + seconds(100), [&] { ++fired; }));
  bool later = false;
  loop.call_at(loop.now() + milliseconds(1), [&] { later = true; });
  EXPECT_TRUE(loop.run_until([&] { return later; }, kLimit));
  EXPECT_EQ(fired, 0);
}

TEST(AsioLoop, ATimerThatSetsItselfForNowStarvesNobody) {
  AsioLoop loop;
  bool stop = false;
  std::function<void()> again = [&] {
    if (!stop) loop.call_at(loop.now(), again);
  };
  again();
  bool posted = false;
  loop.post([&] { loop.post([&] { posted = true; }); });
  EXPECT_TRUE(loop.run_until([&] { return posted; }, kLimit));
  stop = true;
}

TEST(AsioLoop, OffloadRunsElsewhereAndReturnsHere) {
  AsioLoop loop;
  const auto here = std::this_thread::get_id();
  std::thread::id there;
  bool done = false;
  loop.offload([&] { there = std::this_thread::get_id(); },
               [&] {
                 EXPECT_EQ(std::this_thread::get_id(), here);
                 done = true;
               });
  ASSERT_TRUE(loop.run_until([&] { return done; }, kLimit));
  EXPECT_NE(there, here);
}

Task<void> count_sleeps(AsioLoop& loop, int& slept, int& stopped) {
  while (true) {
    const bool on = co_await env::sleep_for(loop, seconds(1000));
    if (!on) {
      ++stopped;
      co_return;
    }
    ++slept;
  }
}

TEST(AsioLoop, BeginStopEndsEverySleep) {
  AsioLoop loop;
  int slept = 0;
  int stopped = 0;
  for (int i = 0; i < 10; ++i) loop.spawn(count_sleeps(loop, slept, stopped));
  EXPECT_EQ(loop.running(), 10U);
  loop.post([&] { loop.begin_stop(); });
  ASSERT_TRUE(loop.run_until([&] { return loop.running() == 0; }, kLimit));
  EXPECT_EQ(stopped, 10);
  EXPECT_EQ(slept, 0);
  loop.spawn(count_sleeps(loop, slept, stopped));  // Later sleeps end at once, too.
  ASSERT_TRUE(loop.run_until([&] { return loop.running() == 0; }, kLimit));
}

TEST(AsioLoop, WhatIsPendingAtTheEndIsFreed) {
  auto held = std::make_shared<int>(1);
  {
    AsioLoop loop;
    loop.post([held] {});
    loop.call_at(loop.now() + seconds(100), [held] {});
    loop.offload([held] {}, [held] {});
  }
  EXPECT_EQ(held.use_count(), 1);
}

TEST(FdWatch, RepeatsWhileReadableAndCanDieInItsCallback) {
  AsioLoop loop;
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
  const env::Fd writer(fds[1]);
  int calls = 0;
  std::unique_ptr<FdWatch> watch;
  watch = std::make_unique<FdWatch>(loop, env::Fd(fds[0]),
                                    FdWatch::Callbacks{.on_readable =
                                                           [&] {
                                                             if (++calls == 3) watch.reset();
                                                           },
                                                       .on_writable = {}});
  watch->want_read(true);
  ASSERT_EQ(::write(writer.get(), "x", 1), 1);
  ASSERT_TRUE(loop.run_until([&] { return !watch; }, kLimit));
  EXPECT_EQ(calls, 3);
}

TEST(SignalWatch, TellsOnTheLoopUntilItGoes) {
  AsioLoop loop;
  std::vector<int> seen;
  auto watch = std::make_unique<SignalWatch>(loop, std::initializer_list<int>{SIGUSR1, SIGUSR2},
                                             [&](int s) { seen.push_back(s); });
  ASSERT_EQ(::raise(SIGUSR2), 0);
  ASSERT_TRUE(loop.run_until([&] { return seen.size() == 1; }, kLimit));
  ASSERT_EQ(::raise(SIGUSR1), 0);
  ASSERT_TRUE(loop.run_until([&] { return seen.size() == 2; }, kLimit));
  EXPECT_EQ(seen, (std::vector<int>{SIGUSR2, SIGUSR1}));
}

TEST(OsEntropy, FillsAllAndDiffers) {
  OsEntropy entropy;
  Bytes a(1000);
  Bytes b(1000);
  entropy.fill(a);
  entropy.fill(b);
  EXPECT_NE(a, b);
  EXPECT_NE(Bytes(a.end() - 16, a.end()), Bytes(16));
}

}  // namespace
}  // namespace holo::driver
