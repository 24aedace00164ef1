// The log on a real store: what a crash leaves, and what a damaged disk does.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "driver/posix/asio_loop.h"
#include "driver/raft/raft_log.h"
#include "driver/rocksdb/store.h"
#include "env/entropy_testing.h"
#include "env/hub_testing.h"

namespace holo::driver {
namespace {

namespace fs = std::filesystem;

class Journal final : public env::StateMachine {
 public:
  void apply(LogIndex, WallTime, ByteSpan command) override { text += std::string(as_text(command)) + "\n"; }
  Bytes snapshot() const override {
    const ByteSpan b = as_bytes(text);
    return Bytes(b.begin(), b.end());
  }
  Status restore(LogIndex, ByteSpan snapshot) override {
    text = as_text(snapshot);
    return {};
  }
  std::string text;
};

class RaftStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "holo_raft_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    base_ = pattern;
  }
  void TearDown() override {
    close();
    fs::remove_all(base_);
  }
  Status open(const fs::path& directory, bool bootstrap) {
    close();
    auto store = RocksStore::open(directory.string());
    if (!store) return std::unexpected(store.error());
    journal_ = std::make_unique<Journal>();
    RaftLogPorts ports{.loop = &loop_, .transport = &endpoint_, .entropy = &entropy_, .store = std::move(*store)};
    auto log = open_raft_log(std::move(ports), *journal_,
                             {.self = NodeId{1}, .bootstrap = bootstrap, .snapshot_threshold = 64});
    if (!log) return std::unexpected(log.error());
    log_ = std::move(*log);
    return {};
  }
  void close() {
    if (!log_) return;
    bool done = false;
    loop_.spawn(close(log_.get(), &done));
    EXPECT_TRUE(loop_.run_until([&] { return done; }, seconds(10)));
    log_.reset();
  }
  static Task<void> close(env::CommandLog* log, bool* done) {
    co_await log->close();
    *done = true;
  }
  bool append(const std::string& text) {
    std::optional<bool> done;
    loop_.spawn(append(log_.get(), text, loop_.now() + seconds(10), &done));
    EXPECT_TRUE(loop_.run_until([&] { return done.has_value(); }, seconds(10)));
    return done.value_or(false);
  }
  static Task<void> append(env::CommandLog* log, std::string text, Instant deadline, std::optional<bool>* done) {
    Buffer command = Buffer::copy(as_bytes(text));
    auto r = co_await log->append(std::move(command), deadline);
    *done = r.has_value();
  }
  bool caught_up(const std::string& text) {
    return loop_.run_until([&] { return journal_->text == text; }, seconds(10));
  }

  AsioLoop loop_;
  env::testing::Hub hub_{loop_};
  env::testing::Hub::Endpoint endpoint_{hub_, NodeId{1}, "n1"};
  env::testing::SeededEntropy entropy_{11};
  fs::path base_;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<env::CommandLog> log_;
};

TEST_F(RaftStoreTest, WhatWasToldCommittedSurvivesAnyCrash) {
  ASSERT_TRUE(open(base_ / "db", true));
  std::string text;
  for (int i = 0; i < 100; ++i) {
    const std::string line = "line " + std::to_string(i);
    ASSERT_TRUE(append(line));
    text += line + "\n";
    if (i % 20 != 7) continue;
    // The files as they are at this moment: what is left when the process dies now.
    const fs::path image = base_ / ("image" + std::to_string(i));
    fs::create_directory(image);
    for (const auto& e : fs::directory_iterator(base_ / "db")) {
      if (e.path().filename() != "LOCK") fs::copy_file(e.path(), image / e.path().filename());
    }
  }
  ASSERT_TRUE(caught_up(text));
  for (int i = 7; i < 100; i += 20) {
    const Status s = open(base_ / ("image" + std::to_string(i)), false);
    ASSERT_TRUE(s) << s.error().message;
    const std::string last = "line " + std::to_string(i) + "\n";
    EXPECT_TRUE(caught_up(text.substr(0, text.find(last) + last.size())));
    EXPECT_TRUE(append("goes on"));
  }
}

TEST_F(RaftStoreTest, ADamagedEntryStopsTheStartByName) {
  ASSERT_TRUE(open(base_ / "db", true));
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(append("line " + std::to_string(i)));
  close();
  std::size_t damaged = 0;
  for (const auto& e : fs::directory_iterator(base_ / "db")) {
    if (e.path().extension() != ".log") continue;
    std::ifstream in(e.path(), std::ios::binary);
    std::string all((std::istreambuf_iterator<char>(in)), {});
    const std::size_t at = all.find("line 2");
    if (at == std::string::npos) continue;
    all[at] = static_cast<char>(all[at] ^ 4);
    std::ofstream(e.path(), std::ios::binary | std::ios::trunc) << all;
    ++damaged;
  }
  ASSERT_EQ(damaged, 1U);
  const Status s = open(base_ / "db", false);
  ASSERT_FALSE(s);
  EXPECT_EQ(s.error().code, Errc::corrupt);
  // Entry 1 is the configuration, 2 the leader's first; "line 0" is entry 3.
  EXPECT_NE(s.error().message.find("entry 5 "), std::string::npos) << s.error().message;
  EXPECT_NE(s.error().message.find(".log"), std::string::npos) << s.error().message;
}

}  // namespace
}  // namespace holo::driver
