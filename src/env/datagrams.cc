#include "env/datagrams.h"

#include <algorithm>
#include <array>

#include "base/strings.h"

namespace holo::env {
namespace {

constexpr std::array<std::uint8_t, 12> kMapped = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

/// RFC 5952: the longest run of zero groups (the first of equals, of two at least) becomes "::".
std::string v6_text(const std::array<std::uint8_t, 16>& ip) {
  std::array<unsigned, 8> groups{};
  for (std::size_t i = 0; i < groups.size(); ++i) groups[i] = ip[2 * i] * 256U + ip[2 * i + 1];
  std::size_t best = groups.size();
  std::size_t length = 1;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    std::size_t n = 0;
    while (i + n < groups.size() && groups[i + n] == 0) ++n;
    if (n > length) {
      best = i;
      length = n;
    }
  }
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (i == best) {
      out += "::";
      i += length - 1;
      continue;
    }
    if (!out.empty() && out.back() != ':') out += ':';
    bool begun = false;
    for (int shift = 12; shift >= 0; shift -= 4) {
      const unsigned digit = (groups[i] >> shift) & 15U;
      begun = begun || digit != 0 || shift == 0;
      if (begun) out += kDigits[digit];
    }
  }
  return out;
}

}  // namespace

IpEndpoint IpEndpoint::v4(std::uint32_t address, std::uint16_t port) {
  IpEndpoint out;
  std::ranges::copy(kMapped, out.ip.begin());
  for (std::size_t i = 0; i < 4; ++i) out.ip[12 + i] = static_cast<std::uint8_t>(address >> (24 - 8 * i));
  out.port = port;
  return out;
}

bool IpEndpoint::is_v4() const { return std::equal(kMapped.begin(), kMapped.end(), ip.begin()); }

bool IpEndpoint::is_unspecified() const {
  return std::all_of(ip.begin() + (is_v4() ? kMapped.size() : 0), ip.end(), [](std::uint8_t b) { return b == 0; });
}

bool IpEndpoint::is_loopback() const {
  if (is_v4()) return ip[12] == 127;
  return ip[15] == 1 && std::all_of(ip.begin(), ip.end() - 1, [](std::uint8_t b) { return b == 0; });
}

std::string to_string(const IpEndpoint& e) {
  if (e.is_v4()) {
    return str(unsigned{e.ip[12]}, ".", unsigned{e.ip[13]}, ".", unsigned{e.ip[14]}, ".", unsigned{e.ip[15]}, ":",
               e.port);
  }
  const std::string scope = e.scope == 0 ? std::string() : str("%", e.scope);
  return str("[", v6_text(e.ip), scope, "]:", e.port);
}

}  // namespace holo::env
