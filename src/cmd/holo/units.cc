#include "cmd/holo/units.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <vector>

#include "base/strings.h"

namespace holo::cmd {
namespace {

constexpr std::array<const char*, 6> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
constexpr double kLargest = 9.2e18;
constexpr double kLeastRate = 64e3, kMostRate = 100e9;  // Bits per second.

/// The exponent of 1024 that `suffix` names; -1 when it is no unit.
int power_of(std::string suffix) {
  std::ranges::transform(suffix, suffix.begin(), [](unsigned char c) { return std::tolower(c); });
  if (suffix.empty() || suffix == "b") return 0;
  const auto letter = std::string_view("kmgtp").find(suffix[0]);
  if (letter == std::string_view::npos) return -1;
  const auto rest = suffix.substr(1);
  return rest.empty() || rest == "b" || rest == "ib" ? static_cast<int>(letter) + 1 : -1;
}

Result<double> parse_number(std::string_view text, std::string_view& rest) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || !std::isfinite(value) || value < 0) {
    return fail(Errc::invalid_argument, str("\"", text, "\" is not a number"));
  }
  rest = text.substr(static_cast<std::size_t>(end - text.data()));
  return value;
}

}  // namespace

Result<std::uint64_t> parse_size(std::string_view text) {
  std::string_view rest;
  const auto wrong = [&] {
    return fail(Errc::invalid_argument, str("\"", text, "\" is not a size"), "for example 512MiB, 64K or 2GiB");
  };
  const auto number = parse_number(text, rest);
  if (!number) return wrong();
  while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  const int power = power_of(std::string(rest));
  if (power < 0) return wrong();
  const double bytes = *number * std::pow(1024.0, power);
  if (bytes > kLargest) return fail(Errc::invalid_argument, str("\"", text, "\" is more than any machine has"));
  if (bytes != std::floor(bytes)) return wrong();
  return static_cast<std::uint64_t>(bytes);
}

Result<std::uint64_t> parse_count(std::string_view text) {
  std::string digits(text);
  std::erase(digits, '_');
  const auto wrong = [&] {
    return fail(Errc::invalid_argument, str("\"", text, "\" is not a whole number"), "for example 1000000 or 1e6");
  };
  std::uint64_t exact = 0;
  const auto* end = digits.data() + digits.size();
  if (auto [p, e] = std::from_chars(digits.data(), end, exact); e == std::errc{} && p == end && exact < (1ULL << 63)) {
    return exact;
  }
  std::string_view rest;
  const auto number = parse_number(digits, rest);
  if (!number || !rest.empty() || *number != std::floor(*number) || *number > kLargest) return wrong();
  return static_cast<std::uint64_t>(*number);
}

Result<std::uint64_t> parse_rate(std::string_view text) {
  std::string_view rest;
  const auto number = parse_number(text, rest);
  std::string unit(rest);
  std::ranges::transform(unit, unit.begin(), [](unsigned char c) { return std::tolower(c); });
  double factor = 1;
  if (unit.ends_with("bps")) {
    factor = 8;
    unit.resize(unit.size() - 3);
  } else if (unit.ends_with("bit")) {
    unit.resize(unit.size() - 3);
  } else if (!unit.empty()) {
    factor = 0;
  }
  const bool binary = unit.ends_with("i");
  if (binary) unit.pop_back();
  const auto power = unit.empty() ? 0 : unit.size() == 1 ? std::string_view("kmgt").find(unit[0]) + 1 : 0;
  if (!number || factor == 0 || unit.size() > 1 || (power == 0 && (binary || !unit.empty()))) {
    return fail(Errc::invalid_argument, str("\"", text, "\" is not a rate"), "for example 1gbit or 100mbit");
  }
  const double bits = *number * factor * std::pow(binary ? 1024.0 : 1000.0, static_cast<double>(power));
  if (bits < kLeastRate || bits > kMostRate) {
    return fail(Errc::invalid_argument, str("\"", text, "\" is no rate of a link here"), "64kbit to 100gbit");
  }
  return static_cast<std::uint64_t>(bits);
}

std::string format_rate(std::uint64_t bits) {
  constexpr std::array kNames = {"bit", "kbit", "mbit", "gbit"};
  std::size_t unit = 0;
  for (; unit + 1 < kNames.size() && bits != 0 && bits % 1000 == 0; ++unit) bits /= 1000;
  return str(bits, kNames[unit]);
}

std::string format_size(std::uint64_t bytes) {
  std::size_t unit = 0;
  double value = static_cast<double>(bytes);
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  const bool whole = unit == 0 || value == std::floor(value) || value >= 100;
  std::snprintf(text, sizeof text, whole ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

Result<HostPort> split_address(std::string_view address) {
  const auto wrong = [&] {
    return fail(Errc::invalid_argument, str("\"", address, "\" is not HOST:PORT"),
                "for example 10.0.0.5:8443 or [::1]:8443");
  };
  const auto colon = address.rfind(':');
  if (colon == std::string_view::npos) return wrong();
  auto host = address.substr(0, colon);
  const auto port_text = address.substr(colon + 1);
  unsigned port = 0;
  const auto* end = port_text.data() + port_text.size();
  if (auto [p, e] = std::from_chars(port_text.data(), end, port); e != std::errc{} || p != end || port > 65535)
    return wrong();
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return wrong();
  }
  if (host.empty() || host.find_first_of(" \t/@") != std::string_view::npos) return wrong();
  return HostPort{std::string(host), static_cast<std::uint16_t>(port)};
}

Result<std::string> with_port(std::string_view address, std::uint16_t default_port) {
  const auto bracket = address.rfind(']');
  const auto colon = address.rfind(':');
  const bool has_port = colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket);
  std::string full = has_port ? std::string(address) : str(address, ":", default_port);
  const auto parts = split_address(full);
  if (!parts) return std::unexpected(parts.error());
  if (parts->port == 0) return fail(Errc::invalid_argument, str("\"", address, "\": port 0 cannot be dialled"));
  return full;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  // Damerau-Levenshtein with adjacent swaps: typing errors are mostly of these four kinds.
  std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (std::size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    for (std::size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace holo::cmd
