// IPv4 addresses and ranges of them as values; what namespaces, routes and `holo dev` speak of.
#pragma once

#include <cstdint>
#include <string>

#include "base/strings.h"

namespace holo::driver {

/// 10.1.2.0/24: the addresses whose first `bits` bits are those of `address` (host byte order).
struct Ipv4Range {
  std::uint32_t address = 0;
  unsigned bits = 32;

  [[nodiscard]] std::uint32_t mask() const { return bits == 0 ? 0 : ~std::uint32_t{0} << (32 - bits); }
  [[nodiscard]] bool overlaps(const Ipv4Range& other) const {
    const auto shared = mask() & other.mask();
    return (address & shared) == (other.address & shared);
  }
  friend bool operator==(const Ipv4Range&, const Ipv4Range&) = default;
};

/// "10.1.2.3".
inline std::string ipv4_text(std::uint32_t address) {
  return str(address >> 24, '.', address >> 16 & 255, '.', address >> 8 & 255, '.', address & 255);
}
/// "10.1.2.0/24".
inline std::string ipv4_text(const Ipv4Range& range) { return str(ipv4_text(range.address), '/', range.bits); }

}  // namespace holo::driver
