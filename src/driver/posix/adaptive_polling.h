// Whether an event loop should look for more before it sleeps.
#pragma once

#include <algorithm>

#include "base/time.h"

namespace holo::driver {

/// Learns from how soon the next thing happened, whether the loop slept meanwhile or not, and lets it look only where
/// that has mostly been soon: at most `window` per event, nothing when idle. Where somebody else turns out to want the
/// core it keeps off for a while, longer each time. Values only; reads no clock.
class AdaptivePolling {
 public:
  /// `window`: about what one wake-up costs; 0: never.
  explicit AdaptivePolling(Duration window) : window_(window) {}

  /// Something came from outside and has been dealt with.
  void on_event(Instant now) {
    if (looking_) {
      learn(true);
      keep_off_ = std::max(keep_off_ / 2, kShortestKeepOff);
    } else if (slept_) {
      // Who looks learns of it a wake-up earlier, and so does the other side if it looks too.
      learn(now - since_ <= window_ * 3);
    }
    on_own_event(now);
  }
  /// A timer, or work of this process: says nothing about others, but may be answered soon.
  void on_own_event(Instant now) {
    looking_ = slept_ = false;
    since_ = now;
  }
  /// Nothing is there. True: look again, after letting others run; false: sleep.
  bool look_again(Instant now) {
    if (!looking_) {
      if (window_.ns == 0 || score_ < kConfident || now < keep_off_until_ || slept_) return false;
      looking_ = true;
    } else if (now - last_look_ > kStolen) {
      keep_off_until_ = now + keep_off_;
      keep_off_ = std::min(keep_off_ * 2, kLongestKeepOff);
      looking_ = false;
      return false;
    }
    last_look_ = now;
    if (now - since_ < window_) return true;
    learn(false);
    looking_ = false;
    return false;
  }
  void on_sleep() { slept_ = true; }

 private:
  static constexpr int kBest = 8, kConfident = 4;
  static constexpr Duration kStolen = microseconds(20);  // Two looks are about one apart.
  static constexpr Duration kShortestKeepOff = milliseconds(1), kLongestKeepOff = milliseconds(256);

  void learn(bool soon) { score_ = std::clamp(score_ + (soon ? 1 : -2), 0, kBest); }

  Duration window_;
  int score_ = 0;
  bool looking_ = false, slept_ = false;
  Instant since_, last_look_, keep_off_until_;
  Duration keep_off_ = kShortestKeepOff;
};

}  // namespace holo::driver
