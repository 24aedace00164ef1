#include "driver/rocksdb/store.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>

namespace holo::driver {
namespace {

namespace fs = std::filesystem;

class RocksStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "holo_store_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    base_ = pattern;
    directory_ = base_ / "db";
  }
  void TearDown() override {
    store_.reset();
    fs::remove_all(base_);
  }
  Status open() {
    store_.reset();
    auto s = RocksStore::open(directory_.string());
    if (!s) return std::unexpected(s.error());
    store_ = std::move(*s);
    return {};
  }
  Status append(std::uint64_t first, std::uint64_t count, const std::string& text = "entry") {
    std::vector<std::string> data;
    std::vector<env::LogEntry> entries;
    for (std::uint64_t i = first; i < first + count; ++i) data.push_back(text + " " + std::to_string(i));
    for (std::uint64_t i = 0; i < count; ++i) {
      entries.push_back({.index = first + i, .term = 3, .type = 1, .data = as_bytes(data[i])});
    }
    return store_->append(entries);
  }
  /// The newest file with this extension.
  fs::path newest(const std::string& extension) {
    fs::path best;
    for (const auto& e : fs::directory_iterator(directory_)) {
      if (e.path().extension() == extension && (best.empty() || e.path() > best)) best = e.path();
    }
    return best;
  }
  /// The write-ahead log that holds `text`.
  fs::path wal_with(const std::string& text) {
    for (const auto& e : fs::directory_iterator(directory_)) {
      if (e.path().extension() != ".log") continue;
      std::ifstream in(e.path(), std::ios::binary);
      const std::string all((std::istreambuf_iterator<char>(in)), {});
      if (all.find(text) != std::string::npos) return e.path();
    }
    return {};
  }
  static void flip(const fs::path& file, const std::string& at) {
    std::ifstream in(file, std::ios::binary);
    std::string all((std::istreambuf_iterator<char>(in)), {});
    in.close();
    const std::size_t pos = all.find(at);
    ASSERT_NE(pos, std::string::npos);
    all[pos] = static_cast<char>(all[pos] ^ 1);
    std::ofstream(file, std::ios::binary | std::ios::trunc) << all;
  }

  fs::path base_;
  fs::path directory_;
  std::unique_ptr<RocksStore> store_;
};

TEST_F(RocksStoreTest, EverythingComesBackAfterReopening) {
  ASSERT_TRUE(open());
  EXPECT_FALSE(*store_->get("cluster"));
  ASSERT_TRUE(store_->put("cluster", as_bytes("abc")));
  ASSERT_TRUE(store_->set_vote(7, NodeId{42}));
  ASSERT_TRUE(append(1, 10));
  ASSERT_TRUE(store_->truncate(9));
  ASSERT_TRUE(append(9, 1, "again"));
  EXPECT_EQ(store_->load()->committed, 0U);
  ASSERT_TRUE(store_->note_committed(8));
  ASSERT_TRUE(open());
  EXPECT_EQ(as_text(**store_->get("cluster")), "abc");
  const auto log = store_->load();
  ASSERT_TRUE(log) << log.error().message;
  EXPECT_EQ(log->term, 7U);
  EXPECT_EQ(log->vote, NodeId{42});
  EXPECT_EQ(log->committed, 8U);
  ASSERT_EQ(log->entries.size(), 9U);
  EXPECT_EQ(log->entries[0].index, 1U);
  EXPECT_EQ(log->entries[0].term, 3U);
  EXPECT_EQ(as_text(log->entries[7].data), "entry 8");
  EXPECT_EQ(as_text(log->entries[8].data), "again 9");
}

TEST_F(RocksStoreTest, ASnapshotReplacesTheLogBelow) {
  ASSERT_TRUE(open());
  ASSERT_TRUE(append(1, 20));
  env::LogSnapshot s{
      .index = 15, .term = 3, .configuration_index = 1, .servers = {{NodeId{5}, 1}, {NodeId{6}, 0}}, .data = {}};
  const ByteSpan data = as_bytes("the whole state");
  s.data.assign(data.begin(), data.end());
  ASSERT_TRUE(store_->put_snapshot(s, 12));
  ASSERT_TRUE(open());
  const auto log = store_->load();
  ASSERT_TRUE(log) << log.error().message;
  ASSERT_TRUE(log->snapshot);
  EXPECT_EQ(log->snapshot->index, 15U);
  EXPECT_EQ(log->snapshot->servers.size(), 2U);
  EXPECT_EQ(log->snapshot->servers[1].node, NodeId{6});
  EXPECT_TRUE(log->snapshot->data.empty()) << "it comes as a stream";
  const auto whole = store_->snapshot();
  ASSERT_TRUE(whole && *whole);
  EXPECT_EQ(as_text((*whole)->data), "the whole state");
  ASSERT_EQ(log->entries.size(), 8U);
  EXPECT_EQ(log->entries[0].index, 13U);
}

TEST_F(RocksStoreTest, ASnapshotThatWasNotFinishedLeavesTheOldOne) {
  ASSERT_TRUE(open());
  const Bytes first(300'000, std::byte{1});
  ASSERT_TRUE(store_->put_snapshot({.index = 3, .term = 1, .servers = {{NodeId{7}, 1}}, .data = first}, 3));
  const auto files = [&] {
    std::size_t n = 0;
    for (const auto& e : fs::directory_iterator(directory_))
      n += e.path().filename().string().starts_with("holo-snapshot");
    return n;
  };
  fs::path image = base_ / "image";
  {
    auto writer = store_->new_snapshot();
    ASSERT_TRUE(writer);
    ASSERT_TRUE((*writer)->add(Bytes(100'000, std::byte{2})));
    EXPECT_EQ(files(), 2U);
    fs::copy(directory_, image);  // As a crash leaves it.
  }
  EXPECT_EQ(files(), 1U) << "given up";
  store_.reset();
  fs::remove_all(directory_);
  fs::rename(image, directory_);
  ASSERT_TRUE(open());
  EXPECT_EQ(files(), 1U) << "swept";
  const auto kept = store_->snapshot();
  ASSERT_TRUE(kept && *kept);
  EXPECT_EQ((*kept)->index, 3U);
  EXPECT_EQ((*kept)->data, first);
  // A reader goes on when a newer one comes.
  const auto reader = store_->open_snapshot();
  ASSERT_TRUE(reader && *reader);
  ASSERT_TRUE(store_->put_snapshot({.index = 4, .term = 1, .servers = {}, .data = {}}, 4));
  EXPECT_EQ(files(), 1U);
  const auto piece = (*reader)->next();
  ASSERT_TRUE(piece);
  EXPECT_EQ(*piece, first);
}

TEST_F(RocksStoreTest, ADamagedSnapshotIsRefusedByItsName) {
  ASSERT_TRUE(open());
  ASSERT_TRUE(store_->put_snapshot({.index = 3, .term = 1, .servers = {}, .data = Bytes(1000, std::byte{1})}, 3));
  store_.reset();
  fs::path file;
  for (const auto& e : fs::directory_iterator(directory_)) {
    if (e.path().filename().string().starts_with("holo-snapshot")) file = e.path();
  }
  ASSERT_FALSE(file.empty());
  std::ifstream in(file, std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(in)), {});
  const auto refused = [&](const std::string& content) {
    std::ofstream(file, std::ios::binary | std::ios::trunc) << content;
    if (!open()) return false;
    const auto read = store_->snapshot();
    store_.reset();
    return !read && read.error().code == Errc::corrupt &&
           read.error().message.find(file.filename().string()) != std::string::npos && !read.error().hint.empty();
  };
  for (const std::size_t at : {std::size_t{0}, std::size_t{17}, std::size_t{25}, good.size() / 2, good.size() - 1}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 16);
    EXPECT_TRUE(refused(bad)) << "byte " << at;
  }
  EXPECT_TRUE(refused(good.substr(0, good.size() - 5)));
  EXPECT_TRUE(refused(""));
  fs::remove(file);
  ASSERT_TRUE(open());
  const auto missing = store_->snapshot();
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, Errc::corrupt);
}

TEST_F(RocksStoreTest, ATornTailIsDropped) {
  ASSERT_TRUE(open());
  ASSERT_TRUE(append(1, 1, "first"));
  ASSERT_TRUE(append(2, 1, "second"));
  const fs::path wal = wal_with("second 2");
  ASSERT_FALSE(wal.empty());
  const std::string bytes = [&] {
    std::ifstream in(wal, std::ios::binary);
    return std::string((std::istreambuf_iterator<char>(in)), {});
  }();
  store_.reset();
  // As if the machine had died in the middle of the second write.
  std::ofstream(wal, std::ios::binary | std::ios::trunc) << bytes.substr(0, bytes.find("second 2") + 3);
  ASSERT_TRUE(open());
  const auto log = store_->load();
  ASSERT_TRUE(log) << log.error().message;
  ASSERT_EQ(log->entries.size(), 1U);
  EXPECT_EQ(as_text(log->entries[0].data), "first 1");
}

TEST_F(RocksStoreTest, ADamagedRecordInTheMiddleIsRefused) {
  ASSERT_TRUE(open());
  ASSERT_TRUE(append(1, 1, "first"));
  ASSERT_TRUE(append(2, 1, "second"));
  ASSERT_TRUE(append(3, 1, "third"));
  const fs::path wal = wal_with("second 2");
  store_.reset();
  flip(wal, "second 2");
  const Status s = open();
  ASSERT_FALSE(s);
  EXPECT_EQ(s.error().code, Errc::corrupt);
  EXPECT_NE(s.error().message.find(wal.string()), std::string::npos) << s.error().message;
  EXPECT_NE(s.error().message.find("entry 2 "), std::string::npos) << s.error().message;
}

TEST_F(RocksStoreTest, AMissingEntryIsNamed) {
  ASSERT_TRUE(open());
  ASSERT_TRUE(append(1, 3));
  ASSERT_TRUE(append(5, 1));
  const auto log = store_->load();
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().code, Errc::corrupt);
  EXPECT_NE(log.error().message.find("entry 4 "), std::string::npos) << log.error().message;
}

TEST_F(RocksStoreTest, TwoProcessesCannotHaveIt) {
  ASSERT_TRUE(open());
  const auto second = RocksStore::open(directory_.string());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::refused) << second.error().message;
}

TEST_F(RocksStoreTest, AFullDiskIsAnErrorThatPasses) {
  ASSERT_TRUE(open());
  ASSERT_TRUE(append(1, 1));
  // Files may not grow: what a full disk looks like from here.
  struct rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 512;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status full = append(2, 1, std::string(4096, 'x'));
  const Status still = append(2, 1, std::string(4096, 'x'));
  const auto readable = store_->load();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, Errc::io_error) << full.error().message;
  EXPECT_FALSE(still);
  EXPECT_TRUE(store_->failing() || readable);
  ASSERT_TRUE(readable) << readable.error().message;
  EXPECT_EQ(readable->entries.size(), 1U);

  const Status again = append(2, 1, "again");
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_FALSE(store_->failing());
  ASSERT_TRUE(open());
  const auto log = store_->load();
  ASSERT_TRUE(log) << log.error().message;
  ASSERT_EQ(log->entries.size(), 2U);
  EXPECT_EQ(as_text(log->entries[1].data), "again 2");
}

}  // namespace
}  // namespace holo::driver
