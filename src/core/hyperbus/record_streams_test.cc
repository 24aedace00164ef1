// Streams over records, against peers that hold the keys and break the rules; and the golden bytes of every frame.
#include "core/hyperbus/record_streams.h"

#include <gtest/gtest.h>

#include "core/hyperbus/session.h"
#include "core/hyperbus/test_support.h"
#include "core/hyperbus/wire_bytes.h"

namespace holo::hyperbus {
namespace {

constexpr Instant kNow{1'000'000'000};

/// The listener's end, and frames that a dialler would send it, written by hand.
struct Hand final : private Streams {
  std::deque<Event> events;
  Exchange exchange;
  RecordStreams streams;

  Hand() : exchange(SessionConfig{}.windows, *this, events), streams(Role::responder, 2, exchange) {
    exchange.on_established();
    (void)written();  // the first grants
  }
  Bytes written() {
    Bytes all;
    while (streams.wants_output()) {
      Bytes out(RecordStreams::kMinRecordRoom);
      ByteSpan raw;
      out.resize(streams.write(kNow, out, 80'000, raw));
      streams.raw_sealed();
      if (out.empty()) break;
      put(all, ByteSpan(out));
    }
    return all;
  }
  Status say(const Bytes& bytes) { return streams.on_frames(kNow, bytes); }
  std::size_t arrived() const {
    return static_cast<std::size_t>(
        std::ranges::count_if(events, [](const Event& e) { return std::holds_alternative<RequestArrived>(e); }));
  }

 private:
  Result<StreamNumber> open_stream(bool two_way) override { return streams.open(two_way); }
  void abandon_stream(StreamNumber stream) override { streams.abandon(stream); }
};

Bytes frame(FrameType type, std::uint64_t stream, const Bytes& body = {}, std::uint8_t flags = 0) {
  Bytes out(kFrameHeaderBytes);
  write_frame_header(out.data(), type, flags, body.size(), stream);
  put(out, ByteSpan(body));
  return out;
}
Bytes request(std::uint64_t payload) {
  Bytes out(RequestHead::kBytes);
  write_head(out.data(), RequestHead{.type = 7, .klass = 1, .payload_bytes = payload, .time_left_us = 5});
  return out;
}
Bytes raw_frame(std::uint64_t stream, std::uint32_t n, std::uint8_t flags = 0) {
  Bytes body;
  put(body, n);
  return frame(FrameType::raw, stream, body, flags);
}
Bytes operator+(Bytes a, const Bytes& b) {
  put(a, ByteSpan(b));
  return a;
}

TEST(RecordStreams, DeliversARequestInFramesAndRawRecords) {
  Hand hand;
  ASSERT_TRUE(hand.say(frame(FrameType::stream, 0, request(6)) + frame(FrameType::stream, 0, Bytes(2)) +
                       raw_frame(0, 4, kFlagFin)));
  EXPECT_EQ(hand.arrived(), 0U);
  EXPECT_EQ(hand.streams.raw_target().size(), 4U);
  ASSERT_TRUE(hand.streams.on_raw({}));
  EXPECT_EQ(hand.arrived(), 1U);
  EXPECT_EQ(hand.streams.raw_expected(), 0U);
}

TEST(RecordStreams, RefusesWhatBreaksTheProtocol) {
  const Bytes open = frame(FrameType::stream, 0, request(10));
  const std::vector<std::pair<const char*, Bytes>> cases = {
      {"a cut frame header", Bytes(7)},
      {"a frame longer than its record",
       [] {
         Bytes b = frame(FrameType::stream, 0, Bytes(4));
         b.resize(b.size() - 1);
         return b;
       }()},
      {"an impossible number", frame(FrameType::stream, 1ULL << 62, request(1))},
      {"a stream that only this side opens", frame(FrameType::stream, 5, request(1))},
      {"a reset of what was never opened here", frame(FrameType::reset, 9)},
      {"more streams than granted", open + frame(FrameType::stream, 4, {}) + frame(FrameType::stream, 8, {})},
      {"too many unidirectional streams", frame(FrameType::stream, 2 + 4 * 16, {})},
      {"bytes after the end",
       frame(FrameType::stream, 0, request(0), kFlagFin) + frame(FrameType::stream, 0, Bytes(1))},
      {"raw after the end", frame(FrameType::stream, 0, request(0), kFlagFin) + raw_frame(0, 1)},
      {"raw of nothing", open + raw_frame(0, 0)},
      {"raw over a record", open + raw_frame(0, kMaxRecordPlain + 1)},
      {"raw that is not last", open + raw_frame(0, 10) + frame(FrameType::ping, 0, Bytes(8))},
      {"raw without a size", open + frame(FrameType::raw, 0, Bytes(3))},
      {"a cut ping", frame(FrameType::ping, 0, Bytes(7))},
      {"a cut close", frame(FrameType::close, 0, Bytes(1))},
  };
  for (const auto& [what, bytes] : cases) {
    Hand hand;
    const Status status = hand.say(bytes);
    ASSERT_FALSE(status) << what;
    EXPECT_EQ(status.error().code, Errc::malformed) << what;
    hand.streams.close(&status.error());
    const Bytes last = hand.written();
    ByteSpan rest = last;
    EXPECT_EQ(take_frame(rest)->type, FrameType::close) << what;
    EXPECT_FALSE(hand.streams.wants_output());
  }
}

TEST(RecordStreams, SkipsWhatALaterReleaseMaySay) {
  Hand hand;
  EXPECT_TRUE(hand.say(frame(static_cast<FrameType>(99), 5, Bytes(100)) + frame(static_cast<FrameType>(0), 0) +
                       frame(FrameType::stream, 0, request(0), 0xff)));
  EXPECT_EQ(hand.arrived(), 1U);
}

TEST(RecordStreams, StreamsThatEndedAreForgottenAndMakeRoom) {
  Hand hand;
  Bytes control;
  put(control, kControlStream);
  encode_grant(1, {9, 9, 9999}, control);
  ASSERT_TRUE(hand.say(frame(FrameType::stream, 2, control)));
  for (std::uint64_t i = 0; i < 400; i += 4) {
    ASSERT_TRUE(hand.say(frame(FrameType::stream, i, request(0), kFlagFin))) << i;
    hand.events.clear();
    hand.exchange.reply(StreamId(i), fail(Errc::refused, "no"));
    (void)hand.written();
    // Whatever crosses the end is dropped.
    ASSERT_TRUE(hand.say(frame(FrameType::reset, i) + frame(FrameType::stream, i, Bytes(9))));
  }
}

TEST(RecordStreams, ANumberOpensAllBelowIt) {
  Hand hand;
  ASSERT_TRUE(hand.say(frame(FrameType::stream, 4, request(0), kFlagFin)));
  ASSERT_TRUE(hand.say(frame(FrameType::stream, 0, request(0), kFlagFin)));
  EXPECT_EQ(hand.arrived(), 2U);
}

TEST(RecordStreams, AResetEndsBothDirectionsOnce) {
  Hand hand;
  ASSERT_TRUE(hand.say(frame(FrameType::stream, 0, request(50))));
  ASSERT_TRUE(hand.say(frame(FrameType::reset, 0)));
  EXPECT_EQ(hand.written(), frame(FrameType::reset, 0));
  ASSERT_TRUE(hand.say(frame(FrameType::reset, 0)));
  EXPECT_TRUE(hand.written().empty());
}

TEST(RecordStreams, AResetBetweenAnnouncementAndPayloadIsHarmless) {
  Hand hand;
  ASSERT_TRUE(hand.say(frame(FrameType::stream, 0, request(500)) + raw_frame(0, 500)));
  EXPECT_EQ(hand.streams.raw_target().size(), 500U);
  hand.exchange.on_stream_abandoned(0);
  EXPECT_TRUE(hand.streams.raw_target().empty());
  EXPECT_TRUE(hand.streams.on_raw(Bytes(500)));
  EXPECT_EQ(hand.arrived(), 0U);
}

TEST(RecordStreams, AFloodOfPingsIsAnsweredOnce) {
  Hand hand;
  Bytes flood, last;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    last.clear();
    put(last, i);
    flood = std::move(flood) + frame(FrameType::ping, 0, last);
  }
  ASSERT_TRUE(hand.say(flood));
  EXPECT_EQ(hand.written(), frame(FrameType::pong, 0, last));
}

/// Golden bytes: these never change within a version.
TEST(RecordStreams, GoldenBytes) {
  const auto bytes = [](std::initializer_list<int> values) {
    Bytes out;
    for (const int v : values) out.push_back(static_cast<std::byte>(v));
    return out;
  };
  Hand hand;
  ASSERT_TRUE(hand.say(frame(FrameType::stream, 0, request(0), kFlagFin)));
  hand.exchange.reply(StreamId(0), env::Reply{.header = "ok", .payload = {Buffer(Bytes(5000))}});
  Bytes control;
  put(control, kControlStream);
  encode_grant(1, {9, 9, 9999}, control);
  ASSERT_TRUE(hand.say(frame(FrameType::stream, 2, control)));
  EXPECT_EQ(hand.written(),
            bytes({1,   0,  0, 0, 18, 0, 0, 0, 0,   0,  0, 0, 0, 0, 0, 0,            // stream 0, 18 bytes
                   0,   0,  0, 0, 2,  0, 0, 0, 136, 19, 0, 0, 0, 0, 0, 0, 'o', 'k',  // the reply's start
                   2,   1,  0, 0, 4,  0, 0, 0, 0,   0,  0, 0, 0, 0, 0, 0,            // raw, with its end:
                   136, 19, 0, 0}));                                                 // 5000 bytes
  hand.streams.ping(kNow);
  EXPECT_EQ(hand.written(), bytes({4, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}));
  const Error bye{.code = Errc::cancelled, .message = "bye"};
  hand.streams.close(&bye);
  EXPECT_EQ(hand.written(), bytes({6, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 'b', 'y', 'e'}));
}

}  // namespace
}  // namespace holo::hyperbus
