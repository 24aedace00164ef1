#include "env/datagrams.h"

#include <gtest/gtest.h>

namespace holo::env {
namespace {

IpEndpoint v6(std::array<unsigned, 8> groups, std::uint16_t port = 80, std::uint32_t scope = 0) {
  IpEndpoint e{.ip = {}, .port = port, .scope = scope};
  for (std::size_t i = 0; i < groups.size(); ++i) {
    e.ip[2 * i] = static_cast<std::uint8_t>(groups[i] >> 8U);
    e.ip[2 * i + 1] = static_cast<std::uint8_t>(groups[i]);
  }
  return e;
}

TEST(IpEndpoint, V4IsWrittenWithDots) {
  const auto e = v6({0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201}, 65535);
  EXPECT_TRUE(e.is_v4());
  EXPECT_EQ(to_string(e), "192.0.2.1:65535");
  EXPECT_EQ(to_string(v6({0, 0, 0, 0, 0, 0xffff, 0, 0}, 0)), "0.0.0.0:0");
}

TEST(IpEndpoint, V4FromItsNumber) {
  EXPECT_EQ(IpEndpoint::v4(0xc0000201, 80), v6({0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201}));
}

TEST(IpEndpoint, UnspecifiedAreThoseOfAllZeros) {
  EXPECT_TRUE(IpEndpoint::v4(0, 80).is_unspecified());
  EXPECT_TRUE(v6({}).is_unspecified());
  EXPECT_FALSE(IpEndpoint::v4(1, 0).is_unspecified());
  EXPECT_FALSE(IpEndpoint::v4(10 << 24, 0).is_unspecified());
  EXPECT_FALSE(v6({0, 0, 0, 0, 0, 0, 0, 1}).is_unspecified());
  EXPECT_FALSE(v6({0, 0, 0, 0, 0, 0xfffe, 0, 0}).is_unspecified());
}

// The rules of RFC 5952, section 4.
TEST(IpEndpoint, V6IsWrittenInOneWayOnly) {
  const auto text = [](std::array<unsigned, 8> groups) { return to_string(v6(groups)); };
  EXPECT_FALSE(v6({0x2001, 0xdb8, 0, 0, 0, 0, 0, 1}).is_v4());
  EXPECT_EQ(text({0x2001, 0x0db8, 0, 0, 0, 0, 0, 0x0001}), "[2001:db8::1]:80") << "no leading zeros";
  EXPECT_EQ(text({0x2001, 0xdb8, 0, 0, 0, 0, 2, 1}), "[2001:db8::2:1]:80") << "as short as possible";
  EXPECT_EQ(text({0x2001, 0xdb8, 0, 1, 1, 1, 1, 1}), "[2001:db8:0:1:1:1:1:1]:80") << "not for a single zero";
  EXPECT_EQ(text({0x2001, 0, 0, 1, 0, 0, 0, 1}), "[2001:0:0:1::1]:80") << "the longest run";
  EXPECT_EQ(text({0x2001, 0xdb8, 0, 0, 1, 0, 0, 1}), "[2001:db8::1:0:0:1]:80") << "the first of equals";
  EXPECT_EQ(text({0xABCD, 0xEF01, 0xa, 0xb0, 0xc00, 0xd000, 0, 0xfade}), "[abcd:ef01:a:b0:c00:d000:0:fade]:80");
  EXPECT_EQ(text({0, 0, 0, 0, 0, 0, 0, 0}), "[::]:80");
  EXPECT_EQ(text({0, 0, 0, 0, 0, 0, 0, 1}), "[::1]:80");
  EXPECT_EQ(text({1, 0, 0, 0, 0, 0, 0, 0}), "[1::]:80");
  EXPECT_EQ(text({0, 0, 3, 4, 5, 6, 7, 8}), "[::3:4:5:6:7:8]:80");
  EXPECT_EQ(text({0, 0, 0, 0, 0, 0xfffe, 1, 1}), "[::fffe:1:1]:80");
}

TEST(IpEndpoint, LinkLocalAddressesCarryTheirScope) {
  EXPECT_EQ(to_string(v6({0xfe80, 0, 0, 0, 0, 0, 0, 1}, 443, 2)), "[fe80::1%2]:443");
}

}  // namespace
}  // namespace holo::env
