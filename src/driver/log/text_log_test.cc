#include "driver/log/text_log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace holo::driver {
namespace {

TEST(TextLog, OneRecordIsOneLineAtOrAboveTheLevel) {
  char name[] = "/tmp/holo-log-XXXXXX";
  ASSERT_NE(::mkdtemp(name), nullptr);
  const std::string file = std::string(name) + "/log";
  ASSERT_TRUE(install_text_log({.file = file, .level = LogLevel::info}));
  log_debug("area", "not shown");
  log_info("area", "first\nline ", 7, " {}");
  log_error("other", "\x1b[31mred");
  std::ifstream in(file);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
  EXPECT_NE(text.find("area: first line 7 {}"), std::string::npos);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_EQ(text.find("not shown"), std::string::npos);
  EXPECT_FALSE(install_text_log({.file = std::string(name), .level = LogLevel::info}));
  set_log_sink({}, LogLevel::warn);
  std::filesystem::remove_all(name);
}

}  // namespace
}  // namespace holo::driver
