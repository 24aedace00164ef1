// The multiplexer against peers that hold the keys and break the rules, and the golden bytes of every frame.
#include "core/hyperbus/mux.h"

#include <gtest/gtest.h>

#include "core/hyperbus/test_support.h"
#include "core/hyperbus/wire_bytes.h"

namespace holo::hyperbus {
namespace {

constexpr Instant kNow{1'000'000'000};

/// One multiplexer, and the frames a peer would send it, written by hand.
struct Hand {
  std::deque<Event> events;
  Mux mux;

  explicit Hand(const std::array<ClassWindow, kStreamClasses>& windows = SessionConfig{}.windows)
      : mux(windows, events) {
    (void)written();  // the first credits
  }
  /// Everything the mux wants to say now; raw payloads are thrown away.
  Bytes written() {
    Bytes out(Mux::kMinRecordRoom);
    ByteSpan raw;
    out.resize(mux.write(kNow, out, 80'000, raw));
    return out;
  }
  std::vector<Frame> frames(const Bytes& bytes) {
    std::vector<Frame> out;
    for (ByteSpan rest = bytes; !rest.empty();) out.push_back(*take_frame(rest));
    return out;
  }
  Status say(const Bytes& bytes) { return mux.on_frames(kNow, bytes); }
  template <class T>
  std::size_t count() const {
    return static_cast<std::size_t>(
        std::ranges::count_if(events, [](const Event& e) { return std::holds_alternative<T>(e); }));
  }
};

Bytes frame(FrameType type, std::uint64_t stream, const Bytes& body, std::uint8_t flags = 0, std::uint8_t klass = 1) {
  Bytes out(kFrameHeaderBytes);
  write_frame_header(out.data(), type, flags, klass, body.size(), stream);
  put(out, ByteSpan(body));
  return out;
}
Bytes request_frame(std::uint64_t stream, std::uint32_t header, std::uint64_t payload, const Bytes& content = {},
                    std::uint8_t klass = 1) {
  Bytes body(RequestHead::kBytes);
  write_head(body.data(), RequestHead{.type = 7, .header_bytes = header, .payload_bytes = payload, .time_left_us = 5});
  put(body, ByteSpan(content));
  return frame(FrameType::request, stream, body, 0, klass);
}
Bytes reply_frame(std::uint64_t stream, std::uint32_t header, std::uint64_t payload, const Bytes& content = {},
                  std::uint8_t klass = 1) {
  Bytes body(ReplyHead::kBytes);
  write_head(body.data(), ReplyHead{.header_bytes = header, .payload_bytes = payload});
  put(body, ByteSpan(content));
  return frame(FrameType::reply, stream, body, 0, klass);
}
Bytes raw_frame(std::uint64_t stream, std::uint32_t n, std::uint8_t flags = 0) {
  Bytes body;
  put(body, n);
  return frame(FrameType::raw, stream, body, flags);
}
Bytes credit_frame(std::uint64_t requests, std::uint64_t request_bytes, std::uint64_t reply_bytes,
                   std::uint8_t klass = 1) {
  Bytes body(Credit::kBytes);
  write_head(body.data(), Credit{requests, request_bytes, reply_bytes});
  return frame(FrameType::credit, 0, body, 0, klass);
}
Bytes operator+(Bytes a, const Bytes& b) {
  put(a, ByteSpan(b));
  return a;
}

TEST(Mux, DeliversARequestInAnyPieces) {
  Hand hand;
  ASSERT_TRUE(hand.say(request_frame(5, 3, 4)));
  ASSERT_TRUE(hand.say(frame(FrameType::data, 5, Bytes(5, std::byte{'x'}))));
  EXPECT_EQ(hand.count<RequestArrived>(), 0U);
  ASSERT_TRUE(hand.say(frame(FrameType::data, 5, {}) + raw_frame(5, 2)));
  EXPECT_EQ(hand.mux.raw_expected(), 2U);
  const MutableByteSpan target = hand.mux.raw_target();
  ASSERT_EQ(target.size(), 2U);
  std::ranges::fill(target, std::byte{'y'});
  hand.mux.on_raw();
  ASSERT_EQ(hand.count<RequestArrived>(), 1U);
  const auto& request = std::get<RequestArrived>(hand.events.front());
  EXPECT_EQ(request.request.header, "xxx");
  EXPECT_EQ(as_text(request.request.payload.front().span()), "xxyy");
  EXPECT_EQ(request.time_left, microseconds(5));
}

TEST(Mux, SkipsWhatALaterReleaseMaySay) {
  Hand hand;
  EXPECT_TRUE(hand.say(frame(static_cast<FrameType>(99), 5, Bytes(100)) + frame(static_cast<FrameType>(0), 0, {}) +
                       credit_frame(1, 1, 1, 77) + request_frame(5, 0, 0)));
  EXPECT_EQ(hand.count<RequestArrived>(), 1U);
}

TEST(Mux, RefusesWhatBreaksTheProtocol) {
  const Bytes open = request_frame(5, 0, 10);
  const std::vector<std::pair<const char*, Bytes>> cases = {
      {"cut frame header", Bytes(7)},
      {"frame longer than its record",
       [] {
         Bytes b = frame(FrameType::data, 1, Bytes(4));
         b.resize(b.size() - 1);
         return b;
       }()},
      {"cut request head", frame(FrameType::request, 1, Bytes(23))},
      {"header over the limit", request_frame(1, (1 << 20) + 1, 0)},
      {"payload over the limit", request_frame(1, 0, (16 << 20) + 1)},
      {"payload that overflows a sum", request_frame(1, 0, UINT64_MAX)},
      {"no such class", request_frame(1, 0, 0, {}, 3)},
      {"stream open already", open + open},
      {"more content than announced, at once", request_frame(1, 2, 2, Bytes(5))},
      {"more content than announced, later", open + frame(FrameType::data, 5, Bytes(11))},
      {"raw of nothing", open + raw_frame(5, 0)},
      {"raw over a record", open + raw_frame(5, kMaxRecordPlain + 1)},
      {"raw over the announced payload", open + raw_frame(5, 11)},
      {"raw before the header is whole", request_frame(1, 4, 10) + raw_frame(1, 10)},
      {"raw that is not last", open + raw_frame(5, 10) + frame(FrameType::ping, 0, Bytes(8))},
      {"raw without a size", open + frame(FrameType::raw, 5, Bytes(3))},
      {"cut ping", frame(FrameType::ping, 0, Bytes(7))},
      {"cut credit", frame(FrameType::credit, 0, Bytes(23))},
      {"cut close", frame(FrameType::close, 0, Bytes(1))},
      {"reply to what was never asked", reply_frame(1, 0, 0)},
      {"error to what was never asked", frame(FrameType::reply, 1, Bytes(16), kFlagError)},
  };
  for (const auto& [what, bytes] : cases) {
    Hand hand;
    const Status status = hand.say(bytes);
    ASSERT_FALSE(status) << what;
    EXPECT_EQ(status.error().code, Errc::malformed) << what;
    hand.mux.close(status.error(), Mux::TellPeer::yes);
    const Bytes last = hand.written();
    EXPECT_EQ(hand.frames(last).front().type, FrameType::close) << what;
    EXPECT_FALSE(hand.mux.wants_output());
  }
}

TEST(Mux, RefusesRepliesOutOfTurn) {
  const auto asked = [](Hand& hand) {
    EXPECT_TRUE(hand.mux.request(kNow, StreamClass::data, {.type = 1}, kNow + seconds(1)));
    EXPECT_TRUE(hand.mux.request(kNow, StreamClass::data, {.type = 1}, kNow + seconds(1)));
    EXPECT_TRUE(hand.say(credit_frame(1, 1000, 1000)));
    (void)hand.written();  // the first goes, the second lacks credit
  };
  {
    Hand hand;
    asked(hand);
    EXPECT_FALSE(hand.say(reply_frame(2, 0, 0)));  // never sent
  }
  {
    Hand hand;
    asked(hand);
    EXPECT_FALSE(hand.say(reply_frame(1, 0, 5) + reply_frame(1, 0, 5)));
  }
  {
    Hand hand;
    asked(hand);
    EXPECT_FALSE(hand.say(reply_frame(1, 0, 0, {}, 2)));  // of another class
  }
  {
    Hand hand;
    asked(hand);
    EXPECT_TRUE(hand.say(reply_frame(1, 0, 0)));
    EXPECT_EQ(hand.count<ReplyArrived>(), 1U);
    EXPECT_TRUE(hand.say(reply_frame(1, 0, 0)));  // like one that crossed a cancel
    EXPECT_EQ(hand.count<ReplyArrived>(), 1U);
  }
}

TEST(Mux, CutsOffAPeerThatTakesMoreThanItWasGranted) {
  std::array<ClassWindow, kStreamClasses> windows = SessionConfig{}.windows;
  windows[1].requests = 2;
  {
    Hand hand(windows);
    EXPECT_TRUE(hand.say(request_frame(1, 0, 0) + request_frame(2, 0, 0)));
    EXPECT_FALSE(hand.say(request_frame(3, 0, 0)));
  }
  {
    Hand hand(windows);  // Answered requests make room, but only once the peer was told.
    EXPECT_TRUE(hand.say(request_frame(1, 0, 0) + request_frame(2, 0, 0)));
    EXPECT_TRUE(hand.say(credit_frame(9, 1000, 1000)));
    hand.mux.reply(StreamId(1), env::Reply{});
    (void)hand.written();  // the reply
    EXPECT_EQ(hand.frames(hand.written()).front().type, FrameType::credit);
    EXPECT_TRUE(hand.say(request_frame(3, 0, 0)));
    EXPECT_FALSE(hand.say(request_frame(4, 0, 0)));
  }
  {
    Hand hand;  // 64 MiB of request bytes
    for (std::uint64_t i = 1; i <= 4; ++i) EXPECT_TRUE(hand.say(request_frame(i, 0, 16 << 20)));
    EXPECT_FALSE(hand.say(request_frame(5, 0, 1)));
  }
  {
    Hand hand;  // 64 MiB of reply bytes
    for (int i = 0; i < 5; ++i) {
      EXPECT_TRUE(hand.mux.request(kNow, StreamClass::data, {.type = 1}, kNow + seconds(1)));
    }
    EXPECT_TRUE(hand.say(credit_frame(9, 1000, 1000)));
    (void)hand.written();
    for (std::uint64_t i = 1; i <= 4; ++i) EXPECT_TRUE(hand.say(reply_frame(i, 0, 16 << 20)));
    EXPECT_FALSE(hand.say(reply_frame(5, 0, 1)));
  }
}

TEST(Mux, CreditNeverShrinksAndNeverOverflows) {
  Hand hand;
  EXPECT_TRUE(hand.say(credit_frame(UINT64_MAX, UINT64_MAX, UINT64_MAX)));
  EXPECT_TRUE(hand.say(credit_frame(0, 0, 0)));
  EXPECT_TRUE(hand.mux.request(kNow, StreamClass::data, {.type = 1}, kNow + seconds(1)));
  EXPECT_TRUE(hand.mux.wants_output());
  EXPECT_EQ(hand.frames(hand.written()).front().type, FrameType::request);
}

TEST(Mux, AFloodOfPingsIsAnsweredOnce) {
  Hand hand;
  Bytes flood;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    Bytes token;
    put(token, i);
    flood = std::move(flood) + frame(FrameType::ping, 0, token);
  }
  ASSERT_TRUE(hand.say(flood));
  const Bytes answer = hand.written();
  const auto frames = hand.frames(answer);
  ASSERT_EQ(frames.size(), 1U);
  EXPECT_EQ(frames[0].type, FrameType::pong);
  EXPECT_EQ(load<std::uint64_t>(frames[0].body.data()), 999U);
}

TEST(Mux, ContentForNobodyIsDropped) {
  Hand hand;
  EXPECT_TRUE(hand.say(frame(FrameType::data, 77, Bytes(100)) + frame(FrameType::cancel, 78, {}) + raw_frame(79, 500)));
  EXPECT_EQ(hand.mux.raw_expected(), 500U);
  EXPECT_TRUE(hand.mux.raw_target().empty());
  hand.mux.on_raw();
  EXPECT_EQ(hand.mux.raw_expected(), 0U);
  EXPECT_TRUE(hand.events.empty());
}

TEST(Mux, ACancelBetweenAnnouncementAndPayloadIsHarmless) {
  Hand hand;
  ASSERT_TRUE(hand.mux.request(kNow, StreamClass::data, {.type = 1}, kNow + seconds(1)));
  ASSERT_TRUE(hand.say(credit_frame(9, 1000, 1000)));
  (void)hand.written();
  ASSERT_TRUE(hand.say(reply_frame(1, 0, 500) + raw_frame(1, 500, kFlagReply)));
  EXPECT_EQ(hand.mux.raw_target().size(), 500U);
  hand.mux.cancel(StreamId(1), {.code = Errc::cancelled});
  EXPECT_TRUE(hand.mux.raw_target().empty());
  hand.mux.on_raw();
  EXPECT_EQ(hand.count<ReplyArrived>(), 1U);
}

TEST(Mux, UnknownErrorCodesStillCarryTheirText) {
  Bytes body;
  encode_error({.code = static_cast<Errc>(999), .message = "from the future", .node = 3}, body);
  const auto error = decode_error(body);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, Errc::internal);
  EXPECT_EQ(error->message, "from the future");
  for (std::size_t n = 0; n < body.size(); ++n) EXPECT_FALSE(decode_error(ByteSpan(body).first(n))) << n;
}

/// Golden bytes: these never change within a version.
TEST(Mux, GoldenBytes) {
  const auto bytes = [](std::initializer_list<int> values) {
    Bytes out;
    for (const int v : values) out.push_back(static_cast<std::byte>(v));
    return out;
  };
  Hand hand;
  ASSERT_TRUE(hand.say(credit_frame(9, 1000, 1000, 0)));
  env::Request request{.type = 0x0102, .header = "hd"};
  request.payload.emplace_back(bytes({0xAA, 0xBB, 0xCC}));
  ASSERT_TRUE(hand.mux.request(kNow, StreamClass::control, std::move(request), kNow + microseconds(0x0304)));
  EXPECT_EQ(hand.written(),
            bytes({1, 0, 0, 0, 29, 0, 0, 0, 1,   0,   0,    0,    0,   0, 0, 0,  // request, 29 bytes, stream 1
                   2, 1, 0, 0, 2,  0, 0, 0, 3,   0,   0,    0,    0,   0, 0, 0,  // type, header, payload bytes
                   4, 3, 0, 0, 0,  0, 0, 0, 'h', 'd', 0xAA, 0xBB, 0xCC}));
  ASSERT_TRUE(hand.say(request_frame(6, 0, 0, {}, 0) + request_frame(7, 0, 0, {}, 0)));
  hand.mux.reply(StreamId(6), env::Reply{.header = "ok"});
  EXPECT_EQ(hand.written(), bytes({2, 0, 0, 0, 18, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,  // reply, 18 bytes, stream 6
                                   2, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'o', 'k'}));
  hand.mux.reply(StreamId(7), std::unexpected(Error{
                                  .code = Errc::not_found, .message = "m", .hint = "h", .node = 5, .retryable = true}));
  EXPECT_EQ(hand.written(), bytes({2, 2, 0, 0, 18, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,  // reply with an error
                                   2, 0, 1, 0, 1,  0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 'm', 'h'}));
  hand.mux.cancel(StreamId(1), {.code = Errc::cancelled});
  hand.mux.ping(kNow);
  EXPECT_EQ(hand.written(), bytes({7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,  // ping 1
                                   5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}));                       // cancel 1
  hand.mux.close({.code = Errc::cancelled, .message = "bye"}, Mux::TellPeer::yes);
  EXPECT_EQ(hand.written(), bytes({9, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 'b', 'y', 'e'}));
}

}  // namespace
}  // namespace holo::hyperbus
