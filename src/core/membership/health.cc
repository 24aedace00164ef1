#include "core/membership/health.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/strings.h"

namespace holo::membership {
namespace {

/// 0 up to `from`, `most` points at `to` and beyond, a straight line between; also where `to` is below `from`.
double points(double value, double from, double to, double most) {
  return most * std::clamp((value - from) / (to - from), 0.0, 1.0);
}

struct Penalty {
  double points = 0;
  std::string reason;
};

/// Of all samples that say something; nullopt: none does.
std::optional<double> mean(std::span<const HealthSample> samples,
                           const std::function<std::optional<double>(const HealthSample&)>& of) {
  double sum = 0;
  std::size_t n = 0;
  for (const HealthSample& s : samples) {
    if (const auto v = of(s)) {
      sum += *v;
      ++n;
    }
  }
  if (n == 0) return std::nullopt;
  return sum / static_cast<double>(n);
}

std::string percent(double share) { return str(std::lround(share * 100), " %"); }

Penalty memory(std::span<const HealthSample> samples) {
  constexpr double kMost = 45;
  Penalty out;
  if (const auto pressure = mean(samples, [](const HealthSample& s) { return s.memory_pressure; })) {
    out = {.points = points(*pressure, 0.05, 0.5, kMost),
           .reason = str("something waits for memory in ", percent(*pressure), " of the time")};
  }
  // What is free now says more than what was.
  if (const auto& available = samples.back().memory_available) {
    const double lost = points(*available, 0.10, 0.02, kMost);
    if (lost > out.points) out = {.points = lost, .reason = str(percent(*available), " of the memory is left")};
  }
  return out;
}

Penalty disk(std::span<const HealthSample> samples) {
  if (samples.back().disk_failing) return {.points = 60, .reason = "the store cannot be written"};
  std::uint64_t errors = 0;
  for (const HealthSample& s : samples) errors += s.disk_errors + (s.disk_failing ? 1 : 0);
  return {.points = points(static_cast<double>(errors), 0, 4, 40),
          .reason = str(errors, errors == 1 ? " write to the store failed" : " writes to the store failed")};
}

Penalty heat(std::span<const HealthSample> samples) {
  const auto hot = mean(samples, [](const HealthSample& s) { return s.heat; });
  if (!hot) return {};
  return {.points = points(*hot, 0.88, 1.0, 40), .reason = str("it is at ", percent(*hot), " of the critical heat")};
}

/// One stall happens to anybody; two in a minute are a pattern.
Penalty stalls(std::span<const HealthSample> samples) {
  std::vector<std::int64_t> late;
  for (const HealthSample& s : samples) late.push_back(s.late.millis());
  std::ranges::sort(late, std::greater{});
  const std::int64_t second = late.size() < 2 ? 0 : late[1];
  return {.points = points(static_cast<double>(second), 100, 1500, 40),
          .reason = str("its event loop stood still for ", second, " ms, twice")};
}

Penalty silence(std::span<const HealthSample> samples) {
  std::uint64_t unanswered = 0;
  for (const HealthSample& s : samples) unanswered += s.unanswered;
  return {.points = points(static_cast<double>(unanswered), 2, 30, 40),
          .reason = str(unanswered, " of its control requests were not answered in time")};
}

}  // namespace

Health assess(std::span<const HealthSample> samples) {
  Health out;
  if (samples.size() > kHealthSamples) samples = samples.last(kHealthSamples);
  if (samples.empty()) return out;
  std::vector<Penalty> all = {memory(samples), disk(samples), heat(samples), stalls(samples), silence(samples)};
  std::ranges::stable_sort(all, std::greater{}, &Penalty::points);
  double lost = 0;
  for (const Penalty& p : all) {
    if (p.points < 1) continue;
    lost += p.points;
    out.reasons.push_back(p.reason);
  }
  out.score = static_cast<std::uint32_t>(100 - std::min(100L, std::lround(lost)));
  return out;
}

}  // namespace holo::membership
