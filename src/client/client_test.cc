// What libholo does without an agent: encoding, captures, its own executable, dirty pages, the signal for lost memory.
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <holo/holo.hpp>

#include "client/dirty.h"
#include "client/executable.h"
#include "client/failure.h"
#include "env/fd.h"

namespace holo::client {
namespace {

template <class T>
std::vector<std::byte> encoded(const T& value) {
  std::vector<std::byte> out;
  detail::encode(out, value);
  return out;
}

template <class T>
bool comes_back(const T& value) {
  const auto decoded = detail::decode<T>(encoded(value));
  return decoded.has_value() && *decoded == value;
}

RC_GTEST_PROP(Codec, ValuesComeBack, ()) {
  const auto words = *rc::gen::arbitrary<std::vector<std::pair<std::string, std::uint64_t>>>();
  const auto nested = *rc::gen::arbitrary<std::vector<std::vector<std::uint16_t>>>();
  const auto flags = *rc::gen::arbitrary<std::vector<bool>>();
  RC_ASSERT(comes_back(words));
  RC_ASSERT(comes_back(nested));
  RC_ASSERT(comes_back(flags));
}

RC_GTEST_PROP(Codec, CutBytesAreRefused, ()) {
  const auto words = *rc::gen::nonEmpty(rc::gen::arbitrary<std::vector<std::string>>());
  auto bytes = encoded(words);
  bytes.resize(*rc::gen::inRange<std::size_t>(0, bytes.size()));
  RC_ASSERT(!detail::decode<std::vector<std::string>>(bytes).has_value());
}

RC_GTEST_PROP(Codec, AnyBytesDecodeOrAreRefused, ()) {
  const auto raw = *rc::gen::arbitrary<std::vector<std::uint8_t>>();
  const auto bytes = std::as_bytes(std::span(raw));
  (void)detail::decode<std::vector<std::string>>(bytes);
  (void)detail::decode<std::vector<std::vector<std::uint64_t>>>(bytes);
  (void)detail::decode<std::pair<std::string, std::vector<bool>>>(bytes);
}

TEST(Codec, AHugeLengthIsRefusedBeforeItIsAllocated) {
  EXPECT_FALSE(detail::decode<std::vector<std::uint64_t>>(encoded(std::uint64_t{1} << 60)).has_value());
  EXPECT_FALSE(detail::decode<std::string>(encoded(~std::uint64_t{0})).has_value());
}

template <class F>
Status check(F f) {
  const auto bytes = detail::capture_bytes(f);
  return check_captures(bytes, mapped_ranges());
}

int g_static = 0;

TEST(Captures, ValuesPass) {
  std::uint64_t small = 42;
  const double real = 0.1;
  std::int64_t odd = -1;
  EXPECT_TRUE(check([] {}));
  EXPECT_TRUE(
      check([small, real, odd] { return small + static_cast<std::uint64_t>(real) + static_cast<std::uint64_t>(odd); }));
  EXPECT_TRUE(check(std::plus<>{}));
}

TEST(Captures, AddressesAreRefusedWithTheirPlace) {
  int local = 0;
  auto heap = std::make_unique<int>();
  int* const pointer = heap.get();
  std::uint64_t value = 7;  // A constant would not have to be captured.
  for (const Status& refused : {check([&local] { return local; }), check([pointer] { return *pointer; }),
                                check([p = &g_static] { return *p; }), check([s = "text"] { return *s; })}) {
    ASSERT_FALSE(refused.has_value());
    EXPECT_EQ(refused.error().code, Errc::invalid_argument);
    EXPECT_NE(refused.error().message.find("byte 0"), std::string::npos) << refused.error().message;
  }
  const auto second = check([value, pointer] { return value + static_cast<std::uint64_t>(*pointer); });
  ASSERT_FALSE(second.has_value());
  EXPECT_NE(second.error().message.find("byte 8"), std::string::npos) << second.error().message;
}

TEST(Captures, PaddingDoesNotCount) {
  // The padding after `c` is filled with an address first: it must not travel.
  struct Padded {
    std::uint64_t a;
    char c;
    void operator()() const {}
  };
  alignas(Padded) std::byte storage[sizeof(Padded)];
  int local = 0;
  const void* address = &local;
  std::memcpy(storage + 8, &address, 8);
  auto* padded = new (storage) Padded;
  padded->a = 1;
  padded->c = 2;
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
  const auto bytes = detail::capture_bytes(*padded);
  EXPECT_TRUE(check_captures(bytes, mapped_ranges()));
  return;
#endif
#endif
  GTEST_SKIP() << "this compiler cannot clear padding";
}

TEST(Executable, FunctionsAreNamedByTheirOffset) {
  const detail::TaskFunction function = [](detail::TaskContext& t) { t.chunk = 9; };
  const auto offset = function_offset(function);
  ASSERT_TRUE(offset);
  const auto found = function_at(*offset);
  ASSERT_TRUE(found);
  detail::TaskContext context;
  (*found)(context);
  EXPECT_EQ(context.chunk, 9U);
}

TEST(Executable, CodeOfOthersIsRefused) {
  void* const libc = reinterpret_cast<void*>(&::getpid);
  EXPECT_FALSE(function_offset(reinterpret_cast<detail::TaskFunction>(libc)));
  EXPECT_FALSE(function_at(0));
  EXPECT_FALSE(function_at(~std::uint64_t{0} / 2));
}

TEST(Executable, ItsHashIsStable) {
  const auto hash = executable_hash();
  ASSERT_TRUE(hash);
  EXPECT_EQ(hash->size(), 32U);
  EXPECT_EQ(*hash, executable_hash().value());
}

/// A private mapping of a memfd whose pages all hold ones.
class Mapping {
 public:
  explicit Mapping(std::size_t pages) : size_(pages * 4096), fd_(::memfd_create("test", MFD_CLOEXEC)) {
    const std::vector<std::byte> ones(size_, std::byte{1});
    EXPECT_EQ(::pwrite(fd_.get(), ones.data(), size_, 0), static_cast<ssize_t>(size_));
    void* p = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd_.get(), 0);
    EXPECT_NE(p, MAP_FAILED);
    data_ = static_cast<std::byte*>(p);
  }
  ~Mapping() { ::munmap(data_, size_); }
  std::byte* data() { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  env::Fd fd_;
  std::byte* data_ = nullptr;
};

std::vector<std::uint64_t> indices(const Result<std::vector<DirtyPage>>& pages) {
  std::vector<std::uint64_t> out;
  for (const DirtyPage& p : pages.value()) out.push_back(p.index);
  return out;
}

class DirtyPages : public ::testing::TestWithParam<bool> {
 protected:
  static Result<std::vector<DirtyPage>> find(Mapping& m, std::size_t unit) {
    return GetParam() ? scan_pagemap(m.data(), m.size(), unit) : read_pagemap(m.data(), m.size(), unit);
  }
  void SetUp() override {
    Mapping probe(1);
    if (auto found = find(probe, 4096); !found && found.error().code == Errc::unsupported) {
      GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN";
    }
  }
};

TEST_P(DirtyPages, AreThoseWrittenNotThoseRead) {
  Mapping m(64);
  for (std::size_t i = 0; i < m.size(); i += 4096) EXPECT_EQ(m.data()[i], std::byte{1});
  EXPECT_TRUE(indices(find(m, 4096)).empty());
  m.data()[3 * 4096 + 17] = std::byte{2};
  m.data()[63 * 4096] = std::byte{2};
  EXPECT_EQ(indices(find(m, 4096)), (std::vector<std::uint64_t>{3, 63}));
  EXPECT_EQ(indices(find(m, 16384)), (std::vector<std::uint64_t>{0, 15}));
  ASSERT_EQ(::madvise(m.data() + 3 * 4096, 4096, MADV_DONTNEED), 0);
  EXPECT_EQ(indices(find(m, 4096)), (std::vector<std::uint64_t>{63}));
  EXPECT_EQ(m.data()[3 * 4096 + 17], std::byte{1});
}

TEST_P(DirtyPages, APageOverwrittenWithZerosIsFound) {
  Mapping m(8);
  std::memset(m.data() + 4096, 0, 4096);
  EXPECT_EQ(indices(find(m, 4096)), (std::vector<std::uint64_t>{1}));
}

TEST_P(DirtyPages, ManyScatteredOnesAreAllFound) {
  Mapping m(4096);
  std::vector<std::uint64_t> want;
  for (std::uint64_t i = 0; i < 4096; i += 3) {
    m.data()[i * 4096] = std::byte{9};
    want.push_back(i);
  }
  EXPECT_EQ(indices(find(m, 4096)), want);
}

INSTANTIATE_TEST_SUITE_P(Ways, DirtyPages, ::testing::Bool(),
                         [](const auto& tested) { return tested.param ? "Scan" : "Pagemap"; });

TEST(FailureDeathTest, LostMemoryEndsTheProcessWithItsMessage) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        void* p = ::mmap(nullptr, 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mark_failed(static_cast<std::byte*>(p), 8192, "page 5 cannot be had");
        *(static_cast<volatile char*>(p) + 5000) = 1;
      },
      // Where the signal is held back (thread sanitizer does), the exit status says what it would have.
      [](int status) {
        return ::testing::KilledBySignal(SIGBUS)(status) || ::testing::ExitedWithCode(128 + SIGBUS)(status);
      },
      "holo: page 5 cannot be had");
}

TEST(FailureDeathTest, OtherFaultsEndTheProcessAsAlways) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        void* p = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mark_failed(static_cast<std::byte*>(p), 4096, "gone");
        forget_failed(static_cast<std::byte*>(p), 4096);
        *static_cast<volatile char*>(p) = 1;
      },
      ::testing::KilledBySignal(SIGSEGV), "");
}

}  // namespace
}  // namespace holo::client
