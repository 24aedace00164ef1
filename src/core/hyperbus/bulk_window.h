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
  /// Where the round trip of a fast local link is made by the processors, less than this would not keep both ends busy.
  static constexpr std::uint64_t kLeast = 256 << 10;
  /// A path that never carried kLeast in its shortest round trip and kQueue needs as much as it did carry, and no less
  /// than this.
  static constexpr std::uint64_t kLeastOfAll = 32 << 10;
  static constexpr std::uint64_t kMost = 64 << 20;
  static constexpr Duration kQueue = microseconds(250);
  static constexpr Duration kLookEvery = milliseconds(1);
  /// What a path carries is measured over so long: bytes arrive in bursts.
  static constexpr Duration kMeasure = milliseconds(8);

  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  /// Bulk was held back: the window, and not the lack of work, bounds what is under way.
  void on_full() { full_ = true; }
  /// So many bytes of it have arrived.
  void on_arrived(std::uint64_t bytes) { arrived_ += bytes; }
  /// True when adapt() wants to know of the round trips since it was called last.
  [[nodiscard]] bool due(Instant now) const { return full_ && now >= next_; }
  void adapt(Instant now, Duration smoothed, Duration least) {
    full_ = false;
    if (now >= began_ + kMeasure) {
      if (began_ != Instant{}) {
        rate_ = std::max(rate_, static_cast<double>(arrived_) / static_cast<double>((now - began_).ns));
      }
      began_ = now;
      arrived_ = 0;
    }
    next_ = now + std::max(kLookEvery, smoothed);
    if (smoothed < least + kQueue / 2) {
      bytes_ = std::min(bytes_ + bytes_ / 4, kMost);
    } else if (smoothed > least + kQueue) {
      bytes_ = std::max(bytes_ - bytes_ / 4, floor(least));
    }
  }

 private:
  [[nodiscard]] std::uint64_t floor(Duration least) const {
    const double carried = rate_ * static_cast<double>((least + kQueue).ns);
    if (carried == 0 || carried >= static_cast<double>(kLeast)) return kLeast;
    return std::max(static_cast<std::uint64_t>(carried), kLeastOfAll);
  }

  std::uint64_t bytes_ = kLeast, arrived_ = 0;
  double rate_ = 0;  // The best so far, bytes in a nanosecond: a window that is too small would lower any other.
  Instant next_, began_;
  bool full_ = false;
};

}  // namespace holo::hyperbus
