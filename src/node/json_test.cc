#include "node/json.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

namespace holo::node {
namespace {

TEST(JsonWriter, NestsAndSeparates) {
  JsonWriter w;
  w.object([&] {
    w.field("n", 3);
    w.key("list");
    w.array([&] {
      w.value("a");
      w.value(true);
      w.array([] {});
      w.object([&] { w.field("x", 0.5); });
    });
    w.key("empty");
    w.object([] {});
    w.field("big", std::numeric_limits<std::uint64_t>::max());
    w.field("none", std::numeric_limits<double>::quiet_NaN());
  });
  EXPECT_EQ(w.text(), R"({"n":3,"list":["a",true,[],{"x":0.5}],"empty":{},"big":18446744073709551615,"none":null})");
}

TEST(JsonWriter, AnyBytesGiveTextThatParses) {
  for (int a = 0; a < 256; ++a) {
    for (int b = 0; b < 256; b += 5) {
      const std::string bytes = {static_cast<char>(a), static_cast<char>(b), 'x', static_cast<char>(a)};
      JsonWriter w;
      w.value(bytes);
      const auto parsed = nlohmann::json::parse(w.text(), nullptr, false);
      ASSERT_TRUE(parsed.is_string()) << a << " " << b;
    }
  }
  JsonWriter w;
  w.value("tab\t \"q\" \\ \xc3\xa9");
  EXPECT_EQ(nlohmann::json::parse(w.text()).get<std::string>(), "tab\t \"q\" \\ \xc3\xa9");
}

}  // namespace
}  // namespace holo::node
