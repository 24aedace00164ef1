// Sizes, counts and addresses as people type and read them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace holo::cmd {

/// "65536", "64K", "64KiB", "1.5GiB", "2T" (powers of 1024, case does not matter). Errors: `invalid_argument`.
Result<std::uint64_t> parse_size(std::string_view text);
/// "100000000", "1e8", "100_000_000". Errors: `invalid_argument` (not a whole number, or above 2^63).
Result<std::uint64_t> parse_count(std::string_view text);
/// Bits per second as tc(8) writes them: "1gbit", "100mbit", "2.5gbit", "12mbps" (bytes), "1000000" (powers of 1000,
/// "kibit" of 1024). Errors: `invalid_argument` (also below 64kbit and above 100gbit).
Result<std::uint64_t> parse_rate(std::string_view text);
/// "1gbit": exact.
std::string format_rate(std::uint64_t bits_per_second);
/// "1.5 GiB"; exact numbers of bytes below 1 KiB.
std::string format_size(std::uint64_t bytes);
/// "node1:8443" stays; "node1" gets `default_port`; "[::1]" likewise. Errors: `invalid_argument`.
Result<std::string> with_port(std::string_view address, std::uint16_t default_port);
/// Splits "host:port" or "[v6]:port". Errors: `invalid_argument`.
struct HostPort {
  std::string host;
  std::uint16_t port = 0;
};
Result<HostPort> split_address(std::string_view address);

/// The candidate that `typed` was probably meant to be; empty when none is near.
template <class Strings>
std::string nearest(std::string_view typed, const Strings& candidates);
/// Letters to insert, delete, replace or swap to get from `a` to `b`.
std::size_t edit_distance(std::string_view a, std::string_view b);

template <class Strings>
std::string nearest(std::string_view typed, const Strings& candidates) {
  std::string best;
  const std::size_t letters = typed.size() - std::min(typed.find_first_not_of('-'), typed.size());
  std::size_t least = std::max<std::size_t>(letters / 3, 1) + 1;  // Further away, it confuses more than it helps.
  for (const auto& candidate : candidates) {
    if (const auto d = edit_distance(typed, candidate); d < least) {
      least = d;
      best = candidate;
    }
  }
  return best;
}

}  // namespace holo::cmd
