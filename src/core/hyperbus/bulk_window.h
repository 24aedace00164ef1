// How much bulk may be under way on a link, so that what is urgent never waits long behind it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/time.h"

namespace holo::hyperbus {

/// Strict priority ends where bytes leave this process: what is in the network, and in the peer's socket, is passed by
/// nothing. So bulk keeps no more under way than the path needs: as much as delays the round trip by about kQueue.
/// Values only.
class BulkWindow {
 public:
  /// Less would not keep both ends of a fast local link busy.
  static constexpr std::uint64_t kLeast = 256 << 10;
  static constexpr std::uint64_t kMost = 64 << 20;
  static constexpr Duration kQueue = microseconds(250);
  static constexpr Duration kLookEvery = milliseconds(1);

  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  /// Bulk was held back: the window, and not the lack of work, bounds what is under way.
  void on_full() { full_ = true; }
  /// True when adapt() wants to know of the round trips since it was called last.
  [[nodiscard]] bool due(Instant now) const { return full_ && now >= next_; }
  void adapt(Instant now, Duration smoothed, Duration least) {
    full_ = false;
    next_ = now + std::max(kLookEvery, smoothed);
    if (smoothed < least + kQueue / 2) {
      bytes_ = std::min(bytes_ + bytes_ / 4, kMost);
    } else if (smoothed > least + kQueue) {
      bytes_ = std::max(bytes_ - bytes_ / 4, kLeast);
    }
  }

 private:
  std::uint64_t bytes_ = kLeast;
  Instant next_;
  bool full_ = false;
};

}  // namespace holo::hyperbus
