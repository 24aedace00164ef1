#include "driver/quic/qlog_files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "base/strings.h"

namespace holo::driver::quic {
namespace {

namespace fs = std::filesystem;
constexpr std::array kId = {std::byte{0x0a}, std::byte{0xff}};

class QlogFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/holo-qlog-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }
  [[nodiscard]] std::vector<fs::path> files() const {
    std::vector<fs::path> out;
    for (const auto& entry : fs::directory_iterator(folder_)) out.push_back(entry.path());
    return out;
  }
  static std::string text(const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  fs::path folder_;
};

TEST_F(QlogFilesTest, HoldWhatWasWrittenAndAreTheirOwnersAlone) {
  const auto make = make_qlog_files(folder_);
  auto sink = make(kId, true);
  ASSERT_TRUE(sink);
  sink(as_bytes(std::string_view("one\n")));
  sink(as_bytes(std::string_view("two\n")));
  sink = {};
  ASSERT_EQ(files().size(), 1U);
  EXPECT_TRUE(files()[0].filename().string().ends_with("-0aff-server.sqlog"));
  EXPECT_EQ(text(files()[0]), "one\ntwo\n");
  struct stat info{};
  ASSERT_EQ(::stat(files()[0].c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
}

TEST_F(QlogFilesTest, AFileThatIsFullSaysSoAndGrowsNoMore) {
  const auto make = make_qlog_files(folder_, {.files = 1, .bytes = 1000});
  auto sink = make(kId, false);
  for (int i = 0; i < 1000; ++i) sink(as_bytes(std::string_view(str("\x1e{\"time\":", i, ",\"name\":\"x\"}\n"))));
  const std::string all = text(files()[0]);
  EXPECT_LE(all.size(), 1000U);
  EXPECT_GT(all.size(), 600U);
  const std::string last = all.substr(all.rfind('\x1e') + 1);
  const auto records = std::ranges::count(all, '\x1e');
  EXPECT_EQ(last, str("{\"time\":", records - 1,
                      ",\"name\":\"loglevel:warning\",\"data\":{\"message\":\"this file is full: 1000 bytes\"}}\n"));
}

TEST_F(QlogFilesTest, AreBoundedInNumberWhoeverMadeThem) {
  std::ofstream(folder_ / "of-another.sqlog") << "x";
  std::ofstream(folder_ / "of-nobody.txt") << "x";
  const auto make = make_qlog_files(folder_, {.files = 2, .bytes = 1000});
  EXPECT_TRUE(make(kId, false));
  EXPECT_FALSE(make(kId, true));
  EXPECT_EQ(files().size(), 3U);
  fs::remove(folder_ / "of-another.sqlog");
  EXPECT_TRUE(make(kId, true)) << "there is room again";
}

TEST_F(QlogFilesTest, WithoutTheFolderThereIsNoFileAndNothingElseHappens) {
  const auto make = make_qlog_files(folder_ / "gone");
  EXPECT_FALSE(make(kId, false));
}

}  // namespace
}  // namespace holo::driver::quic
