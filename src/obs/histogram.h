// Durations in logarithmic buckets.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/time.h"

namespace holo::obs {

/// What is shown of a histogram. All 0 when nothing was recorded.
struct Summary {
  std::uint64_t count = 0;
  Duration min, mean, p50, p99, max;
};

/// A value of some 500 bytes, whatever it is told. Four buckets for each power of two from 1,024 ns to 275 s: a
/// quantile is at most 1/8 off. Thread: one at a time.
class Histogram {
 public:
  /// Cost: constant. Negative durations count as 0.
  void record(Duration d);
  /// Of all that was recorded, the duration that a share `q` (0 to 1) does not exceed; 0 when there is none.
  [[nodiscard]] Duration quantile(double q) const;
  [[nodiscard]] Summary summary() const;
  [[nodiscard]] std::uint64_t count() const { return count_; }
  /// As if everything recorded there had been recorded here too.
  void add(const Histogram& other);

 private:
  static constexpr std::size_t kOctaves = 28;
  static constexpr std::size_t kBuckets = 2 + kOctaves * 4;
  static std::size_t bucket_of(std::uint64_t ns);
  static std::uint64_t middle_of(std::size_t bucket);

  std::array<std::uint32_t, kBuckets> buckets_{};
  std::uint64_t count_ = 0;
  std::uint64_t sum_ns_ = 0;
  std::int64_t min_ns_ = 0;
  std::int64_t max_ns_ = 0;
};

}  // namespace holo::obs
