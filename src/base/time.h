// Time as the cores see it: integers handed in by the caller. Nothing here reads a clock.
#pragma once

#include <compare>
#include <cstdint>

namespace holo {

/// A span of time, in nanoseconds.
struct Duration {
  std::int64_t ns = 0;
  friend constexpr auto operator<=>(Duration, Duration) = default;
  friend constexpr Duration operator+(Duration a, Duration b) { return {a.ns + b.ns}; }
  friend constexpr Duration operator-(Duration a, Duration b) { return {a.ns - b.ns}; }
  friend constexpr Duration operator*(Duration a, std::int64_t k) { return {a.ns * k}; }
  friend constexpr Duration operator/(Duration a, std::int64_t k) { return {a.ns / k}; }
  [[nodiscard]] constexpr double seconds() const { return static_cast<double>(ns) * 1e-9; }
  [[nodiscard]] constexpr std::int64_t millis() const { return ns / 1'000'000; }
};
constexpr Duration nanoseconds(std::int64_t v) { return {v}; }
constexpr Duration microseconds(std::int64_t v) { return {v * 1'000}; }
constexpr Duration milliseconds(std::int64_t v) { return {v * 1'000'000}; }
constexpr Duration seconds(std::int64_t v) { return {v * 1'000'000'000}; }

/// A point on the node's monotonic clock, in nanoseconds since an origin that means nothing to other nodes.
struct Instant {
  std::int64_t ns = 0;
  friend constexpr auto operator<=>(Instant, Instant) = default;
  friend constexpr Instant operator+(Instant t, Duration d) { return {t.ns + d.ns}; }
  friend constexpr Instant operator-(Instant t, Duration d) { return {t.ns - d.ns}; }
  friend constexpr Duration operator-(Instant a, Instant b) { return {a.ns - b.ns}; }
};
constexpr Instant kNever{INT64_MAX};

/// Wall-clock time, in milliseconds since 1970-01-01 UTC; only for people to read and for log entries.
struct WallTime {
  std::int64_t ms = 0;
  friend constexpr auto operator<=>(WallTime, WallTime) = default;
};

}  // namespace holo
