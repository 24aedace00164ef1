#include "cmd/holo/state_dir.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace holo::cmd {
namespace {

class StateDirTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/holo-state-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::string root_;
};

TEST_F(StateDirTest, OneAgentAtATime) {
  auto first = StateDir::open(root_ + "/a/b");
  ASSERT_TRUE(first);
  const auto second = StateDir::open(root_ + "/a/b");
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::refused);
  EXPECT_NE(second.error().message.find(std::to_string(::getpid())), std::string::npos) << "it names the holder";
}

TEST_F(StateDirTest, TheIdentityIsMadeOnceAndKeptSecret) {
  NodeId node;
  {
    auto dir = StateDir::open(root_);
    ASSERT_TRUE(dir);
    node = dir->identity()->node();
    EXPECT_TRUE(node);
    EXPECT_EQ(dir->identity()->node(), node);
  }
  EXPECT_EQ(StateDir::open(root_)->identity()->node(), node);
  struct stat info{};
  ASSERT_EQ(::stat((root_ + "/identity.json").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(StateDirTest, ADamagedIdentityIsRefusedNotReplaced) {
  auto dir = StateDir::open(root_);
  ASSERT_TRUE(dir->identity());
  const auto path = root_ + "/identity.json";
  std::ifstream in(path);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  for (const std::size_t keep : {std::size_t{0}, whole.size() / 2, whole.size() - 3}) {
    std::ofstream(path) << whole.substr(0, keep);
    const auto identity = dir->identity();
    ASSERT_FALSE(identity) << keep;
    EXPECT_EQ(identity.error().code, Errc::corrupt);
  }
  std::string other = whole;
  other[other.find("\"node\": \"") + 9] ^= 1;
  std::ofstream(path) << other;
  EXPECT_EQ(dir->identity().error().code, Errc::corrupt) << "the id is not that of the key";
}

TEST_F(StateDirTest, MembershipIsRememberedAndForgotten) {
  auto dir = StateDir::open(root_);
  EXPECT_FALSE(dir->membership()->has_value());
  ClusterMembership m;
  m.id = ClusterId(0x1234);
  m.name = "lab";
  m.keys.resize(2);
  m.keys[0].writable()[0] = std::byte{7};
  m.keys[1].writable()[0] = std::byte{8};
  m.pending = "join a:1";
  ASSERT_TRUE(dir->set_membership(m));
  const auto read = *read_membership(root_);
  ASSERT_TRUE(read);
  EXPECT_EQ(read->id, m.id);
  EXPECT_EQ(read->name, "lab");
  EXPECT_EQ(read->keys, m.keys);
  EXPECT_EQ(read->pending, "join a:1");
  std::filesystem::create_directories(dir->log_directory());
  const auto node = dir->identity()->node();
  ASSERT_TRUE(dir->forget_cluster());
  EXPECT_FALSE(dir->membership()->has_value());
  EXPECT_FALSE(std::filesystem::exists(dir->log_directory()));
  EXPECT_EQ(dir->identity()->node(), node);
}

TEST_F(StateDirTest, ARotatedIdentityIsKeptAndTheOldSeedIsNot) {
  auto dir = StateDir::open(root_);
  const auto first = dir->identity();
  const auto path = root_ + "/identity.json";
  const auto read = [&] {
    std::ifstream in(path);
    return std::string((std::istreambuf_iterator<char>(in)), {});
  };
  const auto old_text = read();
  const int old = ::open(path.c_str(), O_RDONLY);
  crypto::Ed25519Seed seed;
  seed.writable()[3] = std::byte{5};
  const auto next = first->rotated(seed);
  ASSERT_TRUE(write_identity(root_, seed, next->chain()));
  const auto again = dir->identity();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->node(), first->node());
  EXPECT_EQ(again->public_key(), next->public_key());
  // Who still has the old file open finds nothing in it.
  std::string left(old_text.size(), 'x');
  EXPECT_EQ(::pread(old, left.data(), left.size(), 0), static_cast<ssize_t>(left.size()));
  EXPECT_EQ(left, std::string(left.size(), '\0'));
  ::close(old);
  // A chain that does not lead to the seed is damage.
  std::string text = read();
  const auto at = text.find("\"chain\": \"") + 40;
  text[at] = text[at] == 'A' ? 'B' : 'A';
  std::ofstream(path) << text;
  EXPECT_EQ(dir->identity().error().code, Errc::corrupt);
}

TEST_F(StateDirTest, EachTrustModeNeedsItsOwnAndNothingElse) {
  auto dir = StateDir::open(root_);
  const auto root = dir->root_key();
  ASSERT_TRUE(root);
  EXPECT_EQ(read_root_key(dir->root_key_file())->public_key(), root->public_key());
  EXPECT_EQ(dir->root_key()->public_key(), root->public_key());  // Not made twice.
  ClusterMembership m;
  m.trust = hyperbus::TrustMode::tofu;
  ASSERT_TRUE(dir->set_membership(m));
  EXPECT_EQ((*read_membership(root_))->trust, hyperbus::TrustMode::tofu);
  m.trust = hyperbus::TrustMode::psk;  // without a key
  ASSERT_TRUE(dir->set_membership(m));
  EXPECT_EQ(read_membership(root_).error().code, Errc::corrupt);
  m.trust = hyperbus::TrustMode::roots;  // without a certificate
  ASSERT_TRUE(dir->set_membership(m));
  EXPECT_EQ(read_membership(root_).error().code, Errc::corrupt);
  m.certificate = sign_identity(*root, dir->identity()->chain(), {});
  ASSERT_TRUE(dir->set_membership(m));
  EXPECT_EQ((*read_membership(root_))->certificate, m.certificate);
}

TEST_F(StateDirTest, PinsComeBackAndDamageIsNamed) {
  hyperbus::TrustBook book(hyperbus::TrustMode::tofu);
  EXPECT_TRUE(read_pins(root_, book)) << "none yet";
  std::ofstream(root_ + "/trust.pins") << "# pins\nnonsense\n";
  const auto damaged = read_pins(root_, book);
  ASSERT_FALSE(damaged);
  EXPECT_EQ(damaged.error().code, Errc::corrupt);
  EXPECT_NE(damaged.error().message.find("line 2"), std::string::npos);
}

TEST(ClusterKeyText, OnlyAWholeKeyParses) {
  ClusterKey key;
  key.writable()[31] = std::byte{9};
  const auto text = key_text(key);
  EXPECT_EQ(text.size(), 44u);
  EXPECT_EQ(*parse_key(text), key);
  EXPECT_EQ(*parse_key(text + "\n"), key);
  for (std::size_t n = 0; n < text.size(); ++n) EXPECT_FALSE(parse_key(text.substr(0, n))) << n;
  EXPECT_FALSE(parse_key(text + "AAAA"));
  EXPECT_FALSE(parse_key("!" + text.substr(1)));
}

}  // namespace
}  // namespace holo::cmd
