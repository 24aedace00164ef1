#include "driver/log/text_log.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace holo::driver {
namespace {

namespace fs = std::filesystem;

class LogFile : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "holo-log-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override {
    set_log_sink({}, LogLevel::warn);
    fs::remove_all(directory_);
  }
  std::vector<std::string> lines(const std::string& name) const {
    std::ifstream in(directory_ / name);
    std::vector<std::string> out;
    for (std::string line; std::getline(in, line);) out.push_back(line);
    return out;
  }
  fs::path directory_;
};

TEST_F(LogFile, OneLinePerRecordFromTheLevelOn) {
  ASSERT_TRUE(install_text_log({.file = directory_ / "log", .level = LogLevel::warn}));
  log_info("bus", "quiet");
  log_warn("bus", "two\nlines and ", 7, " {} %v");
  log_error("memory", "bad");
  const auto written = lines("log");
  ASSERT_EQ(written.size(), 2U);
  EXPECT_TRUE(written[0].ends_with(" warn  bus: two\\nlines and 7 {} %v")) << written[0];
  EXPECT_TRUE(written[1].ends_with(" error memory: bad")) << written[1];
}

TEST_F(LogFile, IsBounded) {
  ASSERT_TRUE(install_text_log({.file = directory_ / "log", .max_file_bytes = 10'000, .old_files = 2}));
  const std::string text(100, 'x');
  for (int i = 0; i < 1000; ++i) log_info("test", text);
  std::uintmax_t bytes = 0;
  std::size_t files = 0;
  for (const auto& e : fs::directory_iterator(directory_)) {
    bytes += e.file_size();
    ++files;
  }
  EXPECT_EQ(files, 3U);
  EXPECT_LE(bytes, 30'000U);
}

TEST_F(LogFile, ManyThreads) {
  ASSERT_TRUE(install_text_log({.file = directory_ / "log"}));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 250; ++i) log_info("test", "thread ", t, " record ", i);
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(lines("log").size(), 1000U);
}

TEST_F(LogFile, CannotBeOpened) {
  EXPECT_EQ(install_text_log({.file = directory_ / "new" / "log"}).has_value(), true) << "directories are made";
  std::ofstream(directory_ / "plain") << "x";
  EXPECT_EQ(install_text_log({.file = directory_ / "plain" / "log"}).error().code, Errc::io_error);
}

TEST(LogRecord, JsonIsEscaped) {
  EXPECT_EQ(format_log_record(LogFormat::json, "T", LogLevel::error, "a\"b", "x\\y\n\x01 \xc3\xbc \x7f\xff"),
            "{\"time\":\"T\",\"level\":\"error\",\"area\":\"a\\\"b\",\"text\":\"x\\\\y\\n\\u0001 \xc3\xbc \\u007f?\"}");
}

TEST(LogRecord, TextCannotForgeARecordOrSteerATerminal) {
  EXPECT_EQ(format_log_record(LogFormat::text, "T", LogLevel::info, "bus", "a\r\n\x1b[31mred"),
            "T info  bus: a\\x0d\\n\\x1b[31mred");
}

TEST(LogLevels, ParseAndName) {
  for (const char* name : {"debug", "info", "warn", "error"})
    EXPECT_STREQ(log_level_name(*parse_log_level(name)), name);
  EXPECT_EQ(parse_log_level("loud").error().code, Errc::invalid_argument);
  EXPECT_FALSE(parse_log_level(""));
}

}  // namespace
}  // namespace holo::driver
