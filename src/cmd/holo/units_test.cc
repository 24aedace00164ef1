#include "cmd/holo/units.h"

#include <gtest/gtest.h>

namespace holo::cmd {
namespace {

TEST(Units, SizesAsPeopleTypeThem) {
  EXPECT_EQ(*parse_size("65536"), 65536u);
  EXPECT_EQ(*parse_size("64k"), 65536u);
  EXPECT_EQ(*parse_size("64 KiB"), 65536u);
  EXPECT_EQ(*parse_size("1.5GiB"), 1610612736u);
  EXPECT_EQ(*parse_size("0"), 0u);
  for (const char* wrong : {"", "x", "-1", "1.3", "5 apples", "64KiBs", "nan", "inf", "1e30", "9999999P", "0x10"}) {
    EXPECT_FALSE(parse_size(wrong)) << wrong;
  }
}

TEST(Units, CountsAsPeopleTypeThem) {
  EXPECT_EQ(*parse_count("1e8"), 100000000u);
  EXPECT_EQ(*parse_count("100_000_000"), 100000000u);
  EXPECT_EQ(*parse_count("9007199254740993"), 9007199254740993u) << "beyond what a double holds";
  for (const char* wrong : {"", "1.5", "-3", "1e-3", "ten", "99999999999999999999999", "3x"}) {
    EXPECT_FALSE(parse_count(wrong)) << wrong;
  }
}

TEST(Units, SizesAsPeopleReadThem) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(1023), "1023 B");
  EXPECT_EQ(format_size(65536), "64 KiB");
  EXPECT_EQ(format_size(1610612736), "1.5 GiB");
}

TEST(Units, Addresses) {
  EXPECT_EQ(*with_port("node1", 8443), "node1:8443");
  EXPECT_EQ(*with_port("node1:9", 8443), "node1:9");
  EXPECT_EQ(*with_port("[::1]", 8443), "[::1]:8443");
  EXPECT_EQ(split_address("[fe80::1]:77")->host, "fe80::1");
  for (const char* wrong : {"", ":1", "a:b", "a:70000", "::1", "a b:1", "x:0"})
    EXPECT_FALSE(with_port(wrong, 1)) << wrong;
}

TEST(Units, SuggestsOnlyWhatIsNear) {
  const std::vector<std::string> commands = {"status", "alloc", "regions", "run"};
  EXPECT_EQ(nearest("stauts", commands), "status");
  EXPECT_EQ(nearest("aloc", commands), "alloc");
  EXPECT_EQ(nearest("rn", commands), "run");
  EXPECT_EQ(nearest("frobnicate", commands), "");
  const std::vector<std::string> flags = {"--json", "--watch", "--links"};
  EXPECT_EQ(nearest("--frob", flags), "");
  EXPECT_EQ(nearest("--jsno", flags), "--json");
  EXPECT_EQ(nearest("--wach", flags), "--watch");
}

TEST(Units, Rates) {
  EXPECT_EQ(*parse_rate("1gbit"), 1'000'000'000U);
  EXPECT_EQ(*parse_rate("100Mbit"), 100'000'000U);
  EXPECT_EQ(*parse_rate("2.5gbit"), 2'500'000'000U);
  EXPECT_EQ(*parse_rate("12mbps"), 96'000'000U);
  EXPECT_EQ(*parse_rate("1mibit"), 1'048'576U);
  EXPECT_EQ(*parse_rate("1000000"), 1'000'000U);
  EXPECT_EQ(*parse_rate("1000000bit"), 1'000'000U);
  for (const auto* wrong :
       {"", "gbit", "fast", "1g", "1xbit", "1ibit", "-1gbit", "1gbits", "1", "1tbit", "0gbit", "1kmbit"})
    EXPECT_FALSE(parse_rate(wrong)) << wrong;
  for (const auto* text : {"1gbit", "100mbit", "64kbit", "1500mbit", "100001bit"})
    EXPECT_EQ(format_rate(*parse_rate(text)), text);
}

}  // namespace
}  // namespace holo::cmd
