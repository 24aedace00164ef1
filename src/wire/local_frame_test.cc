#include "wire/local_frame.h"

#include <gtest/gtest.h>

#include <array>

#include "base/random.h"

namespace holo::wire {
namespace {

using Raw = std::array<std::byte, kLocalFrameBytes>;

TEST(LocalFrame, GoldenBytes) {
  Raw raw;
  encode_local_frame({.type = 0x1234,
                      .kind = LocalKind::request,
                      .fds = 3,
                      .id = 0x89ABCDEF,
                      .header_bytes = 0x01020,
                      .payload_bytes = 0x00ABCDEF},
                     raw);
  const std::array<unsigned, kLocalFrameBytes> golden{0x34, 0x12, 0x30, 0x00, 0xEF, 0xCD, 0xAB, 0x89,
                                                      0x20, 0x10, 0x00, 0x00, 0xEF, 0xCD, 0xAB, 0x00};
  for (std::size_t i = 0; i < raw.size(); ++i) EXPECT_EQ(std::to_integer<unsigned>(raw[i]), golden[i]) << i;
}

TEST(LocalFrame, RoundTripOfAllKinds) {
  for (const LocalFrame& f :
       {LocalFrame{.type = 5, .kind = LocalKind::request, .fds = 8, .id = 1, .header_bytes = 1 << 20},
        LocalFrame{.kind = LocalKind::reply, .id = 0xFFFFFFFF, .payload_bytes = 16 << 20},
        LocalFrame{.kind = LocalKind::error, .id = 7, .header_bytes = 3}, LocalFrame{.kind = LocalKind::error, .id = 0},
        LocalFrame{.type = 0xFFFF, .kind = LocalKind::one_way, .fds = 1}}) {
    Raw raw;
    encode_local_frame(f, raw);
    EXPECT_EQ(decode_local_frame(raw).value(), f);
  }
}

TEST(LocalFrame, RefusesWhatBreaksARule) {
  for (const LocalFrame& f :
       {LocalFrame{.kind = LocalKind::request, .id = 0}, LocalFrame{.kind = LocalKind::reply, .id = 0},
        LocalFrame{.type = 1, .kind = LocalKind::reply, .id = 1}, LocalFrame{.kind = LocalKind::one_way, .id = 1},
        LocalFrame{.kind = LocalKind::error, .fds = 1, .id = 1},
        LocalFrame{.kind = LocalKind::error, .id = 1, .payload_bytes = 1},
        LocalFrame{.id = 1, .header_bytes = (1 << 20) + 1}, LocalFrame{.id = 1, .payload_bytes = (16 << 20) + 1}}) {
    Raw raw;
    encode_local_frame(f, raw);
    EXPECT_EQ(decode_local_frame(raw).error().code, Errc::malformed);
  }
  Raw raw;
  encode_local_frame({.id = 1}, raw);
  EXPECT_FALSE(decode_local_frame(ByteSpan(raw).first(15)));
  EXPECT_FALSE(decode_local_frame({}));
  for (const unsigned flag : {0x04U, 0x08U}) {
    Raw bad = raw;
    bad[2] |= static_cast<std::byte>(flag);
    EXPECT_FALSE(decode_local_frame(bad));
  }
  Raw many = raw;
  many[2] = std::byte{0x90};  // nine descriptors
  EXPECT_FALSE(decode_local_frame(many));
  Raw high = raw;
  high[3] = std::byte{1};
  EXPECT_FALSE(decode_local_frame(high));
}

TEST(LocalFrame, WhateverDecodesEncodesToTheSameBytes) {
  Random random(1);
  int decoded = 0;
  for (int i = 0; i < 200'000; ++i) {
    Raw raw;
    for (auto& b : raw) b = static_cast<std::byte>(random.below(4) == 0 ? random.next() : 0);
    const auto frame = decode_local_frame(raw);
    if (!frame) continue;
    ++decoded;
    Raw again;
    encode_local_frame(*frame, again);
    EXPECT_EQ(again, raw);
  }
  EXPECT_GT(decoded, 100);
}

TEST(LocalError, RoundTrip) {
  const Error e{
      .code = Errc::write_conflict, .message = "page 9", .hint = "retry", .node = 1ULL << 63, .retryable = true};
  EXPECT_EQ(decode_local_error(encode_local_error(e)), e);
  Error later = e;
  later.retry_after = std::chrono::milliseconds(50);
  EXPECT_EQ(decode_local_error(encode_local_error(later)), later);
  later.retry_after = std::chrono::milliseconds(0);
  EXPECT_EQ(decode_local_error(encode_local_error(later)), later) << "none and at once are different";
  EXPECT_EQ(decode_local_error("\xff\xff").code, Errc::internal);
  EXPECT_EQ(decode_local_error("").code, Errc::internal) << "code 0 is none";
}

TEST(LocalError, TextThatIsNoUtf8StillArrives) {
  const auto through = [](std::string_view text) {
    return decode_local_error(encode_local_error({.code = Errc::io_error, .message = std::string(text)})).message;
  };
  EXPECT_EQ(through("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80"),
            "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80");
  EXPECT_EQ(through("a\x80z\xff"), "a?z?");
  EXPECT_EQ(through("\xc0\xaf"), "??") << "overlong";
  EXPECT_EQ(through("\xed\xa0\x80"), "???") << "surrogate";
  EXPECT_EQ(through("cut \xe2\x82"), "cut ??");
  EXPECT_EQ(through(std::string(1 << 20, 'x')).size(), 64U << 10);
}

}  // namespace
}  // namespace holo::wire
