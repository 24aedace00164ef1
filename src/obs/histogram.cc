#include "obs/histogram.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace holo::obs {
namespace {

constexpr unsigned kLeastBits = 10;  // Below 2^10 ns everything is one bucket.
constexpr unsigned kSubBits = 2;     // 2^2 buckets for each power of two.

void count_up(std::uint32_t& counter, std::uint32_t by) {
  counter += std::min(by, std::numeric_limits<std::uint32_t>::max() - counter);
}

}  // namespace

std::size_t Histogram::bucket_of(std::uint64_t ns) {
  if (ns < (1ULL << kLeastBits)) return 0;
  const auto octave = static_cast<unsigned>(std::bit_width(ns)) - 1 - kLeastBits;
  if (octave >= kOctaves) return kBuckets - 1;
  const std::uint64_t within = (ns >> (octave + kLeastBits - kSubBits)) & ((1U << kSubBits) - 1);
  return 1 + (octave << kSubBits) + within;
}

std::uint64_t Histogram::middle_of(std::size_t bucket) {
  if (bucket == 0) return 1ULL << (kLeastBits - 1);
  const std::size_t octave = (bucket - 1) >> kSubBits;
  const std::uint64_t width = 1ULL << (octave + kLeastBits - kSubBits);
  const std::uint64_t within = (bucket - 1) & ((1U << kSubBits) - 1);
  return (width << kSubBits) + within * width + width / 2;
}

void Histogram::record(Duration d) {
  const std::int64_t ns = std::max<std::int64_t>(d.ns, 0);
  count_up(buckets_[bucket_of(static_cast<std::uint64_t>(ns))], 1);
  min_ns_ = count_ == 0 ? ns : std::min(min_ns_, ns);
  max_ns_ = std::max(max_ns_, ns);
  sum_ns_ += static_cast<std::uint64_t>(ns);
  ++count_;
}

Duration Histogram::quantile(double q) const {
  std::uint64_t total = 0;
  for (const std::uint32_t n : buckets_) total += n;
  if (total == 0) return {};
  const auto wanted = static_cast<std::uint64_t>(std::clamp(q, 0.0, 1.0) * static_cast<double>(total - 1));
  std::uint64_t seen = 0;
  for (std::size_t i = 0; i < kBuckets; ++i) {
    seen += buckets_[i];
    if (seen <= wanted) continue;
    if (i == kBuckets - 1) return Duration{max_ns_};
    return Duration{std::clamp(static_cast<std::int64_t>(middle_of(i)), min_ns_, max_ns_)};
  }
  return Duration{max_ns_};
}

Summary Histogram::summary() const {
  if (count_ == 0) return {};
  return {.count = count_,
          .min = Duration{min_ns_},
          .mean = Duration{static_cast<std::int64_t>(sum_ns_ / count_)},
          .p50 = quantile(0.5),
          .p99 = quantile(0.99),
          .max = Duration{max_ns_}};
}

void Histogram::add(const Histogram& other) {
  if (other.count_ == 0) return;
  for (std::size_t i = 0; i < kBuckets; ++i) count_up(buckets_[i], other.buckets_[i]);
  min_ns_ = count_ == 0 ? other.min_ns_ : std::min(min_ns_, other.min_ns_);
  max_ns_ = std::max(max_ns_, other.max_ns_);
  sum_ns_ += other.sum_ns_;
  count_ += other.count_;
}

}  // namespace holo::obs
