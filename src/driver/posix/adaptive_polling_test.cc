#include "driver/posix/adaptive_polling.h"

#include <gtest/gtest.h>

namespace holo::driver {
namespace {

constexpr Duration kWindow = microseconds(50);

/// A loop whose next event comes `after` the last. Returns how long it looked.
class Driven {
 public:
  explicit Driven(Duration window) : polling_(window) {}
  Duration event_after(Duration after, Duration look = microseconds(1)) {
    const Instant start = now_, event = now_ + after;
    Duration looked{};
    while (polling_.look_again(now_)) {
      now_ = now_ + look;
      looked = now_ - start;
      if (now_ >= event) {
        polling_.on_event(now_);
        return looked;
      }
    }
    polling_.on_sleep();
    now_ = event;
    polling_.on_event(now_);
    return looked;
  }

 private:
  AdaptivePolling polling_;
  Instant now_{};
};

TEST(AdaptivePolling, LooksWhereMoreComesSoon) {
  Driven loop(kWindow);
  for (int i = 0; i < 10; ++i) (void)loop.event_after(microseconds(20));
  EXPECT_EQ(loop.event_after(microseconds(20)), microseconds(20));
  EXPECT_EQ(loop.event_after(microseconds(40)), microseconds(40));
}

TEST(AdaptivePolling, DoesNotLookWhenIdle) {
  Driven loop(kWindow);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(loop.event_after(milliseconds(10)), Duration{});
}

TEST(AdaptivePolling, StopsSoonAfterThingsHaveBecomeRare) {
  Driven loop(kWindow);
  for (int i = 0; i < 100; ++i) (void)loop.event_after(microseconds(10));
  Duration wasted{};
  for (int i = 0; i < 100; ++i) wasted = wasted + loop.event_after(milliseconds(1));
  EXPECT_LE(wasted, kWindow * 5);
}

TEST(AdaptivePolling, NeverLooksLongerThanItsWindow) {
  Driven loop(kWindow);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_LE(loop.event_after(i % 7 == 0 ? milliseconds(1) : microseconds(10)), kWindow + microseconds(1));
  }
}

TEST(AdaptivePolling, KeepsOffWhereOthersWantTheCore) {
  Driven loop(kWindow);
  for (int i = 0; i < 10; ++i) (void)loop.event_after(microseconds(10));
  // Letting others run, between two looks, took longer than a look takes.
  EXPECT_GT(loop.event_after(milliseconds(1), microseconds(200)), Duration{});
  EXPECT_EQ(loop.event_after(microseconds(10)), Duration{});
}

TEST(AdaptivePolling, AWindowOfZeroNeverLooks) {
  Driven loop(Duration{});
  for (int i = 0; i < 100; ++i) EXPECT_EQ(loop.event_after(microseconds(1)), Duration{});
}

}  // namespace
}  // namespace holo::driver
