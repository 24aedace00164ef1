// Secrets do not outlive their use: the memory of the whole process is searched for them.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "crypto/hash.h"
#include "sim/attack_testing.h"

namespace holo::sim {
namespace {

using namespace attack;

constexpr std::uint64_t kMask = 0xa5c3'96f1'5ae7'3d2bULL;

/// 32 bytes to look for, never held as they are: else the search would find its own.
struct Needle {
  std::array<std::uint64_t, 4> masked{};
  std::string what;

  static Needle of(std::span<const std::byte, 32> bytes, std::string what) {
    Needle out{.what = std::move(what)};
    for (std::size_t i = 0; i < 32; ++i) {
      out.masked[i / 8] |= static_cast<std::uint64_t>(bytes[i]) << (8 * (i % 8));
    }
    for (auto& word : out.masked) word ^= kMask;
    return out;
  }
};

/// In everything that this process may write: heap, stacks, globals.
class Memory {
 public:
  Memory() : fd_(open("/proc/self/mem", O_RDONLY)) {}
  ~Memory() { close(fd_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  /// How often each needle is there.
  std::vector<std::size_t> count(const std::vector<Needle>& needles) {
    std::vector<std::size_t> out(needles.size());
    FILE* maps = std::fopen("/proc/self/maps", "r");
    char line[512];
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    while (std::fgets(line, sizeof line, maps) != nullptr) {
      std::uint64_t first = 0, last = 0;
      char rights[8] = {};
      if (std::sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &first, &last, rights) == 3 && rights[1] == 'w') {
        ranges.emplace_back(first, last);
      }
    }
    std::fclose(maps);
    for (const auto& [first, last] : ranges) {
      for (std::uint64_t at_byte = first; at_byte < last; at_byte += kStep) search(at_byte, last, needles, out);
    }
    wipe(buffer_);
    return out;
  }

 private:
  static constexpr std::size_t kStep = 1 << 20;
  void search(std::uint64_t from, std::uint64_t last, const std::vector<Needle>& needles,
              std::vector<std::size_t>& out) {
    const std::size_t wanted = std::min<std::uint64_t>(last - from, buffer_.size());
    const ssize_t got = pread(fd_, buffer_.data(), wanted, static_cast<off_t>(from));
    if (got < 32) return;
    const auto own = reinterpret_cast<std::uint64_t>(buffer_.data());
    for (std::size_t i = 0; i + 32 <= static_cast<std::size_t>(got); ++i) {
      if (from + i >= own && from + i < own + buffer_.size()) continue;
      std::uint64_t word = 0;
      std::memcpy(&word, buffer_.data() + i, 8);
      for (std::size_t n = 0; n < needles.size(); ++n) {
        if ((word ^ kMask) != needles[n].masked[0]) continue;
        bool same = true;
        for (std::size_t k = 1; k < 4; ++k) {
          std::memcpy(&word, buffer_.data() + i + 8 * k, 8);
          same &= (word ^ kMask) == needles[n].masked[k];
        }
        std::memcpy(&word, buffer_.data() + i, 8);
        out[n] += same && i < kStep ? 1 : 0;
      }
    }
  }
  int fd_;
  Bytes buffer_ = Bytes(kStep + 31);
};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSearchable = false;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kSearchable = false;
#else
constexpr bool kSearchable = true;
#endif
#else
constexpr bool kSearchable = true;
#endif

struct Watched {
  std::vector<Needle> handshake, session, node;

  void watch(const env::QuicSecrets& secrets, std::vector<Needle>& into, const char* level) {
    const auto aead = static_cast<crypto::AeadAlgorithm>(secrets.cipher);
    for (const auto* secret : {&secrets.send, &secrets.receive}) {
      into.push_back(Needle::of(secret->span(), str(level, " secret")));
      // As the cipher has it (RFC 9001, section 5.1).
      const std::uint8_t label[] = {0, 32, 14, 't', 'l', 's', '1', '3', ' ', 'q', 'u', 'i', 'c', ' ', 'k', 'e', 'y', 0};
      Bytes info;
      for (const std::uint8_t b : label) info.push_back(std::byte{b});
      info.push_back(std::byte{1});
      const auto key = crypto::hmac_sha256(secret->span(), info);
      into.push_back(Needle::of(key.span(), str(level, " key of ", crypto::aead_name(aead))));
    }
  }
};

std::shared_ptr<const hyperbus::SessionConfig> node_of(std::uint64_t seed, const crypto::Secret<32>& key, bool aes,
                                                       std::vector<Needle>& needles) {
  env::testing::SeededEntropy entropy(seed);
  const auto secret = crypto::random_secret<32>(entropy);
  needles.push_back(Needle::of(secret.span(), "the node's seed"));
  hyperbus::ClusterKey cluster(key);
  needles.push_back(Needle::of(cluster.psk().span(), "the psk"));
  auto out = std::make_shared<hyperbus::SessionConfig>();
  auto identity = hyperbus::Identity::from_seed(secret);
  needles.push_back(Needle::of(identity.noise_static().secret.span(), "the static key"));
  out->handshake = std::make_shared<const hyperbus::HandshakeConfig>(
      hyperbus::HandshakeConfig{.identity = std::move(identity), .keys = {std::move(cluster)}, .has_aes = aes});
  return out;
}

/// What functions that have returned left on the stack goes with the next that are called: here with this one.
[[gnu::noinline]] void use_the_stack() {
  std::array<volatile std::byte, 512 << 10> below;
  for (auto& b : below) b = std::byte{};
}

[[gnu::noinline]] void live(Watched& watched, Memory& memory, bool aes) {
  env::testing::SeededEntropy entropy(aes ? 5 : 6);
  const auto key = crypto::random_secret<32>(entropy);
  watched.node.push_back(Needle::of(key.span(), "the cluster key"));
  Scene scene(node_of(aes ? 1 : 3, key, aes, watched.node), node_of(aes ? 2 : 4, key, aes, watched.node));
  scene.stack.on_step = [&](const QuicHandshake::Step& step) {
    if (step.handshake) watched.watch(*step.handshake, watched.handshake, "handshake");
    if (step.application) watched.watch(*step.application, watched.session, "session");
  };
  const auto link = scene.dial();
  scene.ask(link);
  ASSERT_TRUE(scene.run_until([&] { return scene.dialler.answered == 1; }, seconds(1)));
  scene.run(seconds(1));
  // The search finds what is there: without this it would prove nothing.
  // Of the secrets only the next ones are kept, those that keys will be updated with.
  const auto times = memory.count(watched.session);
  for (std::size_t i = 0; i < times.size(); ++i) {
    const bool in_use = watched.session[i].what.find("key") != std::string::npos;
    EXPECT_TRUE(times[i] > 0 || !in_use) << watched.session[i].what;
  }
  link->session->close({.code = Errc::cancelled, .message = "enough"});
  scene.dialler.host.pump(link);
  scene.run(seconds(10));
  EXPECT_TRUE(scene.dialler.host.links().empty() && scene.listener.host.links().empty());
}

// Promise 2.37.
TEST(Secrets, AreNowhereInMemoryOnceTheyAreOutOfUse) {
  if (!kSearchable) GTEST_SKIP() << "a sanitizer's own mappings are too large to be searched";
  Memory memory;
  for (const bool aes : {true, false}) {
    Watched watched;
    live(watched, memory, aes);
    use_the_stack();
    for (const auto* needles : {&watched.handshake, &watched.session, &watched.node}) {
      ASSERT_GE(needles->size(), 7U);
      const auto found = memory.count(*needles);
      for (std::size_t i = 0; i < found.size(); ++i) EXPECT_EQ(found[i], 0U) << (*needles)[i].what << ", aes: " << aes;
    }
  }
}

}  // namespace
}  // namespace holo::sim
