#include "driver/posix/files.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

namespace holo::driver {
namespace {

class Files : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "holo-files-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  static mode_t mode_of(const std::string& p) {
    struct stat st{};
    return ::stat(p.c_str(), &st) == 0 ? st.st_mode & 07777 : 0;
  }
  std::string directory_;
};

TEST_F(Files, WritesWholeAndPrivate) {
  ASSERT_TRUE(write_file_atomically(path("key"), as_bytes("first")));
  ASSERT_TRUE(write_file_atomically(path("key"), as_bytes("second")));
  EXPECT_EQ(read_text_file(path("key"), 100).value(), "second");
  EXPECT_EQ(mode_of(path("key")), 0600U);
  ASSERT_TRUE(write_file_atomically(path("open"), as_bytes("x"), FileMode::regular));
  EXPECT_EQ(mode_of(path("open")), 0644U);
  std::size_t files = 0;
  for ([[maybe_unused]] const auto& e : std::filesystem::directory_iterator(directory_)) ++files;
  EXPECT_EQ(files, 2U) << "a temporary file was left behind";
}

TEST_F(Files, FailuresAreToldApart) {
  EXPECT_EQ(write_file_atomically(path("no/such/directory"), as_bytes("x")).error().code, Errc::not_found);
  EXPECT_EQ(read_file(path("missing"), 10).error().code, Errc::not_found);
  EXPECT_EQ(read_file(directory_, 10).error().code, Errc::invalid_argument);
  ASSERT_TRUE(write_file_atomically(path("long"), as_bytes("12345678901")));
  EXPECT_EQ(read_file(path("long"), 10).error().code, Errc::over_limit);
  EXPECT_EQ(read_file(path("long"), 11).value().size(), 11U);
  ASSERT_TRUE(write_file_atomically(path("empty"), {}));
  EXPECT_TRUE(read_file(path("empty"), 0).value().empty());
}

TEST_F(Files, FullDiskIsAnErrorAndLeavesTheOldFile) {
  // A file-size limit stands in for the full disk: the write fails half-way, as it would there.
  ASSERT_TRUE(write_file_atomically(path("state"), as_bytes("old")));
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{.rlim_cur = 4096, .rlim_max = 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto status = write_file_atomically(path("state"), Bytes(100'000));
    ::_exit(!status && status.error().code == Errc::io_error ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(read_text_file(path("state"), 10).value(), "old");
}

TEST_F(Files, DirectoriesArePrivate) {
  ASSERT_TRUE(make_private_directory(path("a/b/c")));
  ASSERT_TRUE(make_private_directory(path("a/b/c")));
  EXPECT_EQ(mode_of(path("a/b/c")), 0700U);
  EXPECT_EQ(mode_of(path("a")), 0700U);
  ASSERT_TRUE(write_file_atomically(path("file"), as_bytes("x")));
  EXPECT_EQ(make_private_directory(path("file")).error().code, Errc::already_exists);
}

TEST_F(Files, OneHolderOfALock) {
  auto first = LockFile::acquire(path("lock"));
  ASSERT_TRUE(first);
  auto second = LockFile::acquire(path("lock"));  // Another open of the file conflicts even within one process.
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::refused);
  EXPECT_NE(second.error().message.find(std::to_string(::getpid())), std::string::npos);
  {
    const LockFile released = std::move(*first);
  }
  EXPECT_TRUE(LockFile::acquire(path("lock")));
}

TEST_F(Files, DiskSpace) {
  const auto space = disk_space(directory_);
  ASSERT_TRUE(space);
  EXPECT_GT(space->total_bytes, 0U);
  EXPECT_LE(space->free_bytes, space->total_bytes);
  EXPECT_EQ(disk_space(path("missing")).error().code, Errc::not_found);
}

TEST_F(Files, SocketPaths) {
  EXPECT_TRUE(check_socket_path(std::string(kMaxSocketPath, 'x')));
  EXPECT_EQ(check_socket_path(std::string(kMaxSocketPath + 1, 'x')).error().code, Errc::invalid_argument);
  EXPECT_FALSE(check_socket_path(""));
}

}  // namespace
}  // namespace holo::driver
