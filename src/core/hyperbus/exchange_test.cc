// Requests over streams, against peers that hold the keys and break the rules; and the golden bytes of every message.
#include "core/hyperbus/exchange.h"

#include <gtest/gtest.h>

#include <set>

#include "core/hyperbus/session.h"
#include "core/hyperbus/test_support.h"
#include "core/hyperbus/wire_bytes.h"
#include "env/landing_testing.h"

namespace holo::hyperbus {
namespace {

constexpr Instant kNow{1'000'000'000};

/// A carrier that opens what it is asked for, and remembers what was abandoned.
struct FakeStreams final : Streams {
  StreamNumber bidirectional = 0, unidirectional = 2;
  std::uint64_t most = 1000;
  std::vector<StreamNumber> abandoned;
  Result<StreamNumber> open_stream(bool two_way) override {
    if (two_way && most == 0) return fail(Errc::overloaded, "no more streams");
    if (two_way) --most;
    StreamNumber& next = two_way ? bidirectional : unidirectional;
    return std::exchange(next, next + 4);
  }
  void abandon_stream(StreamNumber stream) override { abandoned.push_back(stream); }
  std::uint64_t most_bulk = UINT64_MAX;
  std::uint64_t room_for_bulk(std::uint64_t under_way) override { return most_bulk - std::min(most_bulk, under_way); }
};

/// An exchange of an initiator, and what a peer would send it, written by hand. The peer's streams are 1, 5, 9, ...
struct Hand {
  std::deque<Event> events;
  FakeStreams streams;
  Exchange exchange;

  explicit Hand(const std::array<ClassWindow, kStreamClasses>& windows = SessionConfig{}.windows)
      : exchange(windows, streams, events) {
    exchange.on_established();
    (void)written();  // the first grants
  }
  /// Everything there is to say now, by stream.
  std::map<StreamNumber, Bytes> written(std::size_t most = SIZE_MAX) {
    std::map<StreamNumber, Bytes> out;
    env::QuicWrite write;
    while (most > 0 && exchange.next_write(kNow, write)) {
      std::size_t bytes = 0;
      bool all = true;
      for (std::size_t i = 0; i < write.count; ++i) {
        const ByteSpan part = write.parts[i].first(std::min(write.parts[i].size(), most));
        put(out[write.stream], part);
        most -= part.size();
        bytes += part.size();
        all = all && part.size() == write.parts[i].size();
      }
      exchange.on_written(write.stream, bytes, write.fin && all);
    }
    return out;
  }
  Bytes only_written() {
    const auto all = written();
    return all.size() == 1 ? all.begin()->second : Bytes();
  }
  Status say(StreamNumber stream, const Bytes& bytes, bool fin = false) {
    return exchange.on_stream_data(stream, bytes, fin);
  }
  Status grant(std::uint64_t requests, std::uint64_t request_bytes, std::uint64_t reply_bytes, std::uint8_t klass = 1) {
    Bytes bytes;
    if (!std::exchange(granted_, true)) put(bytes, kControlStream);
    encode_grant(klass, {requests, request_bytes, reply_bytes}, bytes);
    return say(3, bytes);
  }
  Result<StreamId> ask(Duration within = seconds(1), StreamClass klass = StreamClass::data, Bytes payload = {}) {
    env::Request request{.type = 7, .header = "q", .payload = {}};
    if (!payload.empty()) request.payload.emplace_back(std::move(payload));
    return exchange.request(kNow, klass, std::move(request), kNow + within);
  }
  template <class T>
  std::size_t count() const {
    return static_cast<std::size_t>(
        std::ranges::count_if(events, [](const Event& e) { return std::holds_alternative<T>(e); }));
  }

 private:
  bool granted_ = false;
};

Bytes request_bytes(std::uint32_t header, std::uint64_t payload, const Bytes& content = {}, std::uint8_t klass = 1) {
  Bytes out(RequestHead::kBytes);
  write_head(
      out.data(),
      RequestHead{.type = 7, .klass = klass, .header_bytes = header, .payload_bytes = payload, .time_left_us = 5});
  put(out, ByteSpan(content));
  return out;
}
Bytes reply_bytes(std::uint32_t header, std::uint64_t payload, const Bytes& content = {}, bool error = false) {
  Bytes out(ReplyHead::kBytes);
  write_head(out.data(), ReplyHead{.error = error, .header_bytes = header, .payload_bytes = payload});
  put(out, ByteSpan(content));
  return out;
}
StreamId id_of(StreamNumber number) { return StreamId(static_cast<std::uint64_t>(number)); }

TEST(Exchange, DeliversARequestInAnyPieces) {
  Hand hand;
  const Bytes all = request_bytes(3, 4, {std::byte{'x'}, std::byte{'x'}, std::byte{'x'}, std::byte{'y'}});
  for (const std::byte b : all) ASSERT_TRUE(hand.say(1, {b}));
  EXPECT_EQ(hand.count<RequestArrived>(), 0U);
  EXPECT_TRUE(hand.exchange.target(1, 4).empty());  // more than is missing
  const MutableByteSpan target = hand.exchange.target(1, 3);
  ASSERT_EQ(target.size(), 3U);
  std::ranges::fill(target, std::byte{'z'});
  ASSERT_TRUE(hand.exchange.on_target_filled(1, 3, true));
  ASSERT_EQ(hand.count<RequestArrived>(), 1U);
  const auto& request = std::get<RequestArrived>(hand.events.front());
  EXPECT_EQ(request.request.header, "xxx");
  EXPECT_EQ(as_text(request.request.payload.front().span()), "yzzz");
  EXPECT_EQ(request.time_left, microseconds(5));
}

/// A question whose answer, `bytes` of payload, is to go to `place`.
StreamNumber ask_for(Hand& hand, const std::shared_ptr<env::Landing>& landing) {
  env::Request request{.type = 7, .header = "q", .payload = {}, .landing = landing};
  EXPECT_TRUE(hand.exchange.request(kNow, StreamClass::data, std::move(request), kNow + seconds(1)));
  return hand.written().begin()->first;
}

TEST(Exchange, AnAnswersPayloadGoesStraightToItsPlace) {
  Hand hand;
  ASSERT_TRUE(hand.grant(9, 1 << 20, 1 << 20));
  Bytes memory(4);
  const StreamNumber stream = ask_for(hand, std::make_shared<env::OnePlace>(memory));
  for (const std::byte b : reply_bytes(1, 4, {std::byte{'h'}, std::byte{'a'}, std::byte{'b'}, std::byte{'c'}})) {
    ASSERT_TRUE(hand.say(stream, {b}));
  }
  EXPECT_EQ(as_text(memory).substr(0, 3), "abc");
  ASSERT_EQ(hand.exchange.target(stream, 1).data(), &memory[3]);
  memory[3] = std::byte{'d'};
  ASSERT_TRUE(hand.exchange.on_target_filled(stream, 1, true));
  const auto& reply = std::get<ReplyArrived>(hand.events.back()).result.value();
  EXPECT_EQ(reply.header, "h");
  ASSERT_EQ(reply.payload.size(), 1U);
  EXPECT_EQ(reply.payload[0].span().data(), memory.data());
  EXPECT_EQ(reply.payload[0].size(), 4U);
}

TEST(Exchange, ARequestsPayloadGoesToThePlacesThatItsHeaderIsGiven) {
  for (const std::size_t header : {std::size_t{0}, std::size_t{2}}) {
    for (const std::size_t step : {1U, 2U, 5U, 100U}) {
      Hand hand;
      std::shared_ptr<env::testing::Pieces> places;
      hand.exchange.set_placer(
          [&](const env::Request& announced, std::uint64_t bytes) -> std::shared_ptr<env::Landing> {
            EXPECT_EQ(announced.header, std::string(header, 'x'));
            EXPECT_EQ(bytes, 8U);
            EXPECT_FALSE(places) << "asked once";
            return places = std::make_shared<env::testing::Pieces>(8, 3);
          });
      Bytes content(header, std::byte{'x'});
      for (const char c : std::string_view("abcdefgh")) content.push_back(static_cast<std::byte>(c));
      const Bytes all = request_bytes(static_cast<std::uint32_t>(header), 8, content);
      for (std::size_t at = 0; at < all.size(); at += step) {
        const auto end = all.begin() + static_cast<std::ptrdiff_t>(std::min(at + step, all.size()));
        ASSERT_TRUE(hand.say(1, Bytes(all.begin() + static_cast<std::ptrdiff_t>(at), end)));
        const std::size_t got = at + step < all.size() - 8 ? 0 : std::min(at + step, all.size()) - (all.size() - 8);
        const std::size_t needed = (got + 2) / 3;
        ASSERT_EQ(places ? places->made.size() : 0, needed) << "no place before there is a byte for it";
      }
      ASSERT_EQ(hand.count<RequestArrived>(), 1U);
      const auto& request = std::get<RequestArrived>(hand.events.front()).request;
      EXPECT_EQ(request.header, std::string(header, 'x'));
      ASSERT_EQ(request.payload.size(), 3U);
      for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(request.payload[i].span().data(), places->made[i].lock().get());
      EXPECT_EQ(as_text(request.payload[0].span()), "abc");
      EXPECT_EQ(as_text(request.payload[1].span()), "def");
      EXPECT_EQ(as_text(request.payload[2].span()), "gh");
      EXPECT_EQ(places.use_count(), 1) << "what was handed over is held by its buffers only";
    }
  }
}

TEST(Exchange, ACarrierFillsOnePlaceAtATime) {
  Hand hand;
  auto places = std::make_shared<env::testing::Pieces>(8, 3);
  hand.exchange.set_placer([&](const env::Request&, std::uint64_t) { return places; });
  ASSERT_TRUE(hand.say(1, request_bytes(0, 8, {std::byte{'a'}})));
  EXPECT_TRUE(hand.exchange.target(1, 3).empty()) << "it does not fit into what is left of the first place";
  const MutableByteSpan rest = hand.exchange.target(1, 2);
  ASSERT_EQ(rest.data(), places->made[0].lock().get() + 1);
  ASSERT_TRUE(hand.exchange.on_target_filled(1, 2, false));
  const MutableByteSpan second = hand.exchange.target(1, 1);
  ASSERT_EQ(places->made.size(), 2U);
  ASSERT_EQ(second.data(), places->made[1].lock().get());
  ASSERT_TRUE(hand.exchange.on_target_filled(1, 1, false));
  ASSERT_TRUE(hand.say(1, Bytes(4, std::byte{'z'}), true));
  EXPECT_EQ(hand.count<RequestArrived>(), 1U);
}

TEST(Exchange, PlacesOfAnotherLengthAreNotUsedAndThoseOfARequestGivenUpAreLetGo) {
  Hand hand;
  auto places = std::make_shared<env::testing::Pieces>(8, 3);
  hand.exchange.set_placer([&](const env::Request&, std::uint64_t) { return places; });
  ASSERT_TRUE(hand.say(1, request_bytes(0, 7, Bytes(7, std::byte{'a'})), true));
  EXPECT_EQ(std::get<RequestArrived>(hand.events.front()).request.payload.at(0).size(), 7U);
  EXPECT_TRUE(places->made.empty());

  ASSERT_TRUE(hand.say(5, request_bytes(0, 8, Bytes(4, std::byte{'a'}))));
  EXPECT_EQ(places->made.size(), 2U);
  hand.exchange.on_stream_abandoned(5);
  EXPECT_EQ(places->living(), 0U);

  places = std::make_shared<env::testing::Pieces>(8, 3);
  ASSERT_TRUE(hand.say(9, request_bytes(0, 8, Bytes(4, std::byte{'a'}))));
  EXPECT_EQ(places->living(), 2U);
  hand.exchange.close({.code = Errc::unavailable});
  EXPECT_EQ(places->living(), 0U);
  EXPECT_EQ(hand.count<RequestArrived>(), 1U);
}

TEST(Exchange, AnAnswerOfAnotherLengthOrWithoutAPlaceTakesABuffer) {
  for (const std::size_t place : {std::size_t{0}, std::size_t{1}, std::size_t{3}}) {
    Hand hand;
    ASSERT_TRUE(hand.grant(9, 1 << 20, 1 << 20));
    Bytes memory(place);
    const StreamNumber stream = ask_for(hand, std::make_shared<env::OnePlace>(memory));
    ASSERT_TRUE(hand.say(stream, reply_bytes(0, 2, {std::byte{'a'}, std::byte{'b'}}), true));
    EXPECT_EQ(memory, Bytes(place));
    const auto& reply = std::get<ReplyArrived>(hand.events.back()).result.value();
    EXPECT_EQ(as_text(reply.payload.at(0).span()), "ab");
  }
  Hand hand;
  ASSERT_TRUE(hand.grant(9, 1 << 20, 1 << 20));
  Bytes memory(3);
  const StreamNumber stream = ask_for(hand, std::make_shared<env::OnePlace>(memory));
  (void)hand.say(stream, reply_bytes(0, 3, Bytes(3, std::byte{0xff}), true));
  EXPECT_EQ(memory, Bytes(3)) << "errors are no payload";
}

TEST(Exchange, APlaceThatWasTakenBackIsNotWrittenTo) {
  Hand hand;
  ASSERT_TRUE(hand.grant(9, 1 << 20, 1 << 20));
  Bytes memory(4), other(4);
  const auto landing = std::make_shared<env::OnePlace>(memory);
  const StreamNumber stream = ask_for(hand, landing);
  ASSERT_TRUE(hand.say(stream, reply_bytes(0, 4, {std::byte{'a'}})));
  landing->end();
  EXPECT_TRUE(hand.exchange.target(stream, 1).empty());
  ASSERT_TRUE(hand.say(stream, {std::byte{'b'}}));  // the middle of it
  ASSERT_TRUE(hand.say(stream, Bytes(2, std::byte{'c'}), true));
  EXPECT_EQ(as_text(memory), std::string_view("a\0\0\0", 4));

  const auto cancelled = std::make_shared<env::OnePlace>(other);
  env::Request request{.type = 7, .header = "q", .payload = {}, .landing = cancelled};
  const auto call = hand.exchange.request(kNow, StreamClass::data, std::move(request), kNow + seconds(1));
  const StreamNumber second = hand.written().begin()->first;
  ASSERT_TRUE(hand.say(second, reply_bytes(0, 4, {std::byte{'a'}})));
  hand.exchange.on_time(kNow + seconds(2));
  EXPECT_EQ(cancelled.use_count(), 1) << "nothing holds the place of a call that has ended";
  ASSERT_TRUE(hand.say(second, Bytes(3, std::byte{'b'}), true));
  EXPECT_EQ(as_text(other), std::string_view("a\0\0\0", 4));
  ASSERT_TRUE(call);
}

TEST(Exchange, SkipsWhatALaterReleaseMaySay) {
  Hand hand;
  Bytes control;
  put(control, kControlStream);
  put(control, std::uint8_t{99});  // an unknown message with a body
  put(control, std::uint8_t{0});
  put(control, std::uint16_t{300});
  control.resize(control.size() + 300);
  encode_grant(77, {1, 1, 1}, control);  // an unknown class
  encode_grant(1, {9, 1000, 1000}, control);
  for (const std::byte b : control) ASSERT_TRUE(hand.say(3, {b}));
  EXPECT_TRUE(hand.say(7, Bytes(100, std::byte{200})));  // a stream of an unknown kind
  EXPECT_TRUE(hand.say(7, Bytes(100, std::byte{1})));
  ASSERT_TRUE(hand.ask());
  EXPECT_FALSE(hand.written().empty());  // the grant arrived
}

TEST(Exchange, NothingComesAfterAWholeMessage) {
  // Its header has been handed over by then: what comes must not be put where it was.
  Hand hand;
  ASSERT_TRUE(hand.say(1, request_bytes(20, 3, Bytes(23))));
  ASSERT_EQ(hand.count<RequestArrived>(), 1U);
  EXPECT_TRUE(hand.say(1, {}));
  EXPECT_TRUE(hand.say(1, {}, true));  // The end alone may come later.
  ASSERT_TRUE(hand.say(5, request_bytes(20, 0, Bytes(20))));
  EXPECT_FALSE(hand.say(5, Bytes(40'000)));
  Hand asks;
  ASSERT_TRUE(asks.grant(1, 1000, 1000));
  const auto call = asks.ask();
  ASSERT_TRUE(call.has_value());
  (void)asks.written();
  Bytes reply(ReplyHead::kBytes);
  write_head(reply.data(), ReplyHead{.header_bytes = 20});
  reply.resize(reply.size() + 20);
  ASSERT_TRUE(asks.say(0, reply));
  ASSERT_EQ(asks.count<ReplyArrived>(), 1U);
  EXPECT_FALSE(asks.say(0, Bytes(40'000)));
}

TEST(Exchange, RefusesWhatBreaksTheProtocol) {
  struct Case {
    const char* what;
    Bytes bytes;
    bool fin = false;
  };
  const std::vector<Case> cases = {
      {"an end within the head", Bytes(23), true},
      {"an empty stream", {}, true},
      {"a header over the limit", request_bytes((1 << 20) + 1, 0)},
      {"a payload over the limit", request_bytes(0, (16 << 20) + 1)},
      {"a payload that overflows a sum", request_bytes(0, UINT64_MAX)},
      {"no such class", request_bytes(0, 0, {}, 3)},
      {"more content than announced", request_bytes(2, 2, Bytes(5))},
      {"less content than announced", request_bytes(2, 2, Bytes(3)), true},
      {"content where none was announced", request_bytes(0, 0, Bytes(1))},
  };
  for (const Case& c : cases) {
    Hand hand;
    const Status status = hand.say(1, c.bytes, c.fin);
    ASSERT_FALSE(status) << c.what;
    EXPECT_EQ(status.error().code, Errc::malformed) << c.what;
    hand.exchange.close(status.error());
    EXPECT_FALSE(hand.exchange.wants_to_write());
    EXPECT_TRUE(hand.say(1, Bytes(10)));  // after the end nothing is judged
  }
  Hand late;
  ASSERT_TRUE(late.say(1, request_bytes(0, 0)));
  EXPECT_FALSE(late.say(1, Bytes(1)));
  Hand filled;
  ASSERT_TRUE(filled.say(1, request_bytes(0, 10)));
  ASSERT_EQ(filled.exchange.target(1, 4).size(), 4U);
  EXPECT_FALSE(filled.exchange.on_target_filled(1, 4, true));
  Hand two_controls;
  ASSERT_TRUE(two_controls.grant(1, 1, 1));
  EXPECT_FALSE(two_controls.say(7, {std::byte{kControlStream}}));
  Hand cut_grant;
  EXPECT_FALSE(cut_grant.say(3, {std::byte{kControlStream}, std::byte{1}, std::byte{0}, std::byte{2}, std::byte{0},
                                 std::byte{0}, std::byte{0}}));
}

TEST(Exchange, RefusesRepliesThatMakeNoSense) {
  const std::vector<std::pair<const char*, Bytes>> cases = {
      {"a reply over the limit", reply_bytes((1 << 20) + 1, 0)},
      {"an unknown status",
       [] {
         Bytes b = reply_bytes(0, 0);
         b[0] = std::byte{2};
         return b;
       }()},
      {"an error with a payload", reply_bytes(16, 1, {}, true)},
      {"an error that is none", reply_bytes(3, 0, Bytes(3), true)},
      {"more than announced", reply_bytes(1, 1, Bytes(3))},
  };
  for (const auto& [what, bytes] : cases) {
    Hand hand;
    ASSERT_TRUE(hand.grant(9, 1000, 1000));
    ASSERT_TRUE(hand.ask());
    (void)hand.written();
    EXPECT_FALSE(hand.say(0, bytes, true)) << what;
  }
}

TEST(Exchange, CutsOffAPeerThatTakesMoreThanItWasGranted) {
  std::array<ClassWindow, kStreamClasses> windows = SessionConfig{}.windows;
  windows[1].requests = 2;
  {
    Hand hand(windows);
    EXPECT_TRUE(hand.say(1, request_bytes(0, 0), true));
    EXPECT_TRUE(hand.say(5, request_bytes(0, 0), true));
    EXPECT_FALSE(hand.say(9, request_bytes(0, 0), true));
  }
  {
    Hand hand(windows);  // An answer that is out makes room.
    ASSERT_TRUE(hand.grant(9, 1000, 1000));
    EXPECT_TRUE(hand.say(1, request_bytes(0, 0), true));
    EXPECT_TRUE(hand.say(5, request_bytes(0, 0), true));
    hand.exchange.reply(id_of(1), env::Reply{});
    (void)hand.written();
    EXPECT_TRUE(hand.say(9, request_bytes(0, 0), true));
    EXPECT_FALSE(hand.say(13, request_bytes(0, 0), true));
  }
  {
    Hand hand;  // 64 MiB of request bytes
    for (StreamNumber i = 1; i < 17; i += 4) EXPECT_TRUE(hand.say(i, request_bytes(0, 16 << 20)));
    EXPECT_FALSE(hand.say(17, request_bytes(0, 1)));
  }
  {
    Hand hand;  // 64 MiB of reply bytes
    ASSERT_TRUE(hand.grant(9, 1000, 1000));
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(hand.ask());
    (void)hand.written();
    for (StreamNumber i = 0; i < 16; i += 4) EXPECT_TRUE(hand.say(i, reply_bytes(0, 16 << 20)));
    EXPECT_FALSE(hand.say(16, reply_bytes(0, 1)));
  }
}

TEST(Exchange, GrantsMayBeHugeOrShrink) {
  Hand hand;
  EXPECT_TRUE(hand.grant(UINT64_MAX, UINT64_MAX, UINT64_MAX));
  ASSERT_TRUE(hand.ask());
  EXPECT_EQ(hand.written().size(), 1U);
  EXPECT_TRUE(hand.grant(0, 0, 0));
  ASSERT_TRUE(hand.ask());
  EXPECT_FALSE(hand.exchange.wants_to_write());
  EXPECT_EQ(hand.exchange.status(StreamClass::data).request_credit, 0U);
  EXPECT_TRUE(hand.grant(2, 1000, 1000));
  EXPECT_EQ(hand.written().size(), 1U);
}

TEST(Exchange, CountsWhatWaitsForCreditAndForHowLong) {
  Hand hand;
  ASSERT_TRUE(hand.ask());  // Before the first grant: says nothing about the peer's credit.
  ASSERT_TRUE(hand.grant(1, 1 << 20, 1 << 20));
  ASSERT_EQ(hand.written().size(), 1U);
  EXPECT_EQ(hand.exchange.status(StreamClass::data).credit_waits, 0U);

  ASSERT_TRUE(hand.ask());
  const auto doomed = hand.ask();
  ASSERT_TRUE(doomed);
  EXPECT_TRUE(hand.written().empty());
  hand.exchange.cancel(*doomed, {.code = Errc::cancelled});  // It has waited, for nothing.
  ClassStatus status = hand.exchange.status(StreamClass::data);
  EXPECT_EQ(status.queued, 1U);
  EXPECT_EQ(status.request_credit, 0U);
  EXPECT_EQ(status.credit_waits, 1U);
  EXPECT_EQ(status.credit_wait.count, 0U);

  ASSERT_TRUE(hand.grant(2, 1 << 20, 1 << 20));
  env::QuicWrite write;
  ASSERT_TRUE(hand.exchange.next_write(kNow + milliseconds(7), write));
  status = hand.exchange.status(StreamClass::data);
  EXPECT_EQ(status.credit_waits, 2U);
  EXPECT_EQ(status.credit_wait.count, 1U);
  EXPECT_EQ(status.credit_wait.max, milliseconds(7));
  EXPECT_EQ(hand.exchange.status(StreamClass::control).credit_waits, 0U);

  // Credit is there again: whoever comes now has not waited.
  ASSERT_TRUE(hand.grant(5, 1 << 20, 1 << 20));
  (void)hand.written();
  ASSERT_TRUE(hand.ask());
  (void)hand.written();
  EXPECT_EQ(hand.exchange.status(StreamClass::data).credit_waits, 2U);
}

TEST(Exchange, AFullQueueIsRefusedWithATimeToComeBack) {
  Hand hand;
  for (std::size_t i = 0; i < limits::kMaxCallsPerPeer; ++i) ASSERT_TRUE(hand.ask());
  const auto refused = hand.ask();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::overloaded);
  EXPECT_TRUE(refused.error().retryable);
  EXPECT_EQ(refused.error().retry_after, std::chrono::milliseconds(50));
  EXPECT_NE(refused.error().to_string().find("try again in 50 ms"), std::string::npos);
  EXPECT_EQ(hand.exchange.status(StreamClass::data).overloaded, 1U);
  EXPECT_TRUE(hand.ask(seconds(1), StreamClass::control)) << "each class has a queue of its own";
}

TEST(Exchange, AFullPeerIsAskedAgainWhenItAllowsMoreStreams) {
  Hand hand;
  ASSERT_TRUE(hand.grant(9, 1000, 1000));
  hand.streams.most = 1;
  ASSERT_TRUE(hand.ask());
  ASSERT_TRUE(hand.ask());
  EXPECT_EQ(hand.written().size(), 1U);
  EXPECT_FALSE(hand.exchange.wants_to_write());
  hand.streams.most = 1;
  hand.exchange.on_streams_available();
  EXPECT_EQ(hand.written().size(), 1U);
}

TEST(Exchange, AnAnswerBeforeTheQuestionIsOutEndsTheQuestion) {
  Hand hand;
  ASSERT_TRUE(hand.grant(9, 100'000, 1000));
  ASSERT_TRUE(hand.ask(seconds(1), StreamClass::data, Bytes(50'000)));
  (void)hand.written(10'000);
  Bytes error;
  encode_error({.code = Errc::overloaded, .message = "later", .retryable = true}, error);
  ASSERT_TRUE(hand.say(0, reply_bytes(static_cast<std::uint32_t>(error.size()), 0, error, true), true));
  ASSERT_EQ(hand.count<ReplyArrived>(), 1U);
  EXPECT_EQ(std::get<ReplyArrived>(hand.events.back()).result.error().code, Errc::overloaded);
  EXPECT_EQ(hand.streams.abandoned, std::vector<StreamNumber>{0});
  EXPECT_FALSE(hand.exchange.wants_to_write());
  hand.exchange.on_stream_closed(0);
  EXPECT_EQ(hand.exchange.status(StreamClass::data).request_credit, 9U);
  EXPECT_EQ(hand.exchange.status(StreamClass::data).byte_credit, 100'000U);
}

TEST(Exchange, CancellingReturnsTheCreditOnceTheStreamIsClosed) {
  Hand hand;
  ASSERT_TRUE(hand.grant(1, 1000, 1000));
  for (int i = 0; i < 3; ++i) {
    const auto call = hand.ask();
    EXPECT_EQ(hand.written().size(), 1U);
    ASSERT_TRUE(hand.ask());  // waits: there is one slot
    EXPECT_FALSE(hand.exchange.wants_to_write());
    hand.exchange.cancel(*call, {.code = Errc::cancelled});
    ASSERT_EQ(hand.streams.abandoned.size(), 1U);
    EXPECT_FALSE(hand.exchange.wants_to_write());
    EXPECT_TRUE(hand.say(hand.streams.abandoned[0], Bytes(100)));  // what was on its way is for nobody
    hand.exchange.on_stream_closed(hand.streams.abandoned[0]);
    hand.streams.abandoned.clear();
    EXPECT_EQ(hand.written().size(), 1U);  // the one that waited
    const StreamNumber open = hand.streams.bidirectional - 4;
    ASSERT_TRUE(hand.say(open, reply_bytes(0, 0), true));
    hand.exchange.on_stream_closed(open);
  }
  EXPECT_EQ(hand.count<ReplyArrived>(), 6U);
}

TEST(Exchange, CancelledBytesCountUntilTheStreamIsClosed) {
  Hand hand;
  ASSERT_TRUE(hand.grant(9, 50'000, 1000));
  const auto call = hand.ask(seconds(1), StreamClass::data, Bytes(30'000));
  (void)hand.written();
  hand.exchange.cancel(*call, {.code = Errc::cancelled});
  EXPECT_EQ(hand.count<ReplyArrived>(), 1U);
  EXPECT_LT(hand.exchange.status(StreamClass::data).byte_credit, 20'000U) << "the peer still holds them";
  ASSERT_TRUE(hand.ask(seconds(1), StreamClass::data, Bytes(30'000)));
  EXPECT_TRUE(hand.written().empty());
  hand.exchange.on_stream_closed(0);
  EXPECT_EQ(hand.written().size(), 1U);
  hand.exchange.on_stream_abandoned(4);  // The same when the peer gives up.
  EXPECT_EQ(hand.count<ReplyArrived>(), 2U);
  EXPECT_LT(hand.exchange.status(StreamClass::data).byte_credit, 20'000U);
  hand.exchange.on_stream_closed(4);
  EXPECT_EQ(hand.exchange.status(StreamClass::data).byte_credit, 50'000U);
}

TEST(Exchange, APeerThatGivesARequestUpEndsIt) {
  Hand hand;
  ASSERT_TRUE(hand.grant(9, 1000, 1000));
  ASSERT_TRUE(hand.ask());
  (void)hand.written();
  hand.exchange.on_stream_abandoned(0);
  ASSERT_EQ(hand.count<ReplyArrived>(), 1U);
  EXPECT_EQ(std::get<ReplyArrived>(hand.events.back()).result.error().code, Errc::unavailable);
  hand.exchange.on_stream_abandoned(1);  // never heard of: still both directions must end
  EXPECT_EQ(hand.streams.abandoned, (std::vector<StreamNumber>{0, 1}));
  ASSERT_TRUE(hand.say(5, request_bytes(0, 0), true));
  hand.exchange.on_stream_abandoned(5);
  hand.exchange.on_stream_closed(5);
  EXPECT_EQ(hand.count<RequestCancelled>(), 1U);
  EXPECT_EQ(hand.exchange.status(StreamClass::data).serving, 1U);  // its handler still runs
  hand.exchange.reply(id_of(5), env::Reply{});
  EXPECT_EQ(hand.exchange.status(StreamClass::data).serving, 0U);
  EXPECT_FALSE(hand.exchange.wants_to_write());
}

TEST(Exchange, CancelledRequestsWhoseHandlersRunCountAgainstNewOnes) {
  std::array<ClassWindow, kStreamClasses> windows = SessionConfig{}.windows;
  windows[1].requests = 2;
  Hand hand(windows);
  ASSERT_TRUE(hand.grant(9, 1000, 10'000));
  for (StreamNumber i = 1; i <= 5; i += 4) {
    ASSERT_TRUE(hand.say(i, request_bytes(0, 0), true));
    hand.exchange.on_stream_abandoned(i);
    hand.exchange.on_stream_closed(i);
  }
  ASSERT_TRUE(hand.say(9, request_bytes(0, 0), true));
  EXPECT_EQ(hand.count<RequestArrived>(), 2U);
  const Bytes answer = hand.only_written();
  const auto head = read_reply_head(ByteSpan(answer).first(ReplyHead::kBytes));
  ASSERT_TRUE(head && head->error);
  const auto refusal = decode_error(ByteSpan(answer).subspan(ReplyHead::kBytes));
  EXPECT_EQ(refusal->code, Errc::overloaded);
  EXPECT_EQ(refusal->retry_after, std::chrono::milliseconds(50)) << "it travels too";
  EXPECT_EQ(hand.exchange.status(StreamClass::data).turned_away, 1U);
}

TEST(Exchange, BytesOfCancelledRequestsWhoseHandlersRunCountToo) {
  std::array<ClassWindow, kStreamClasses> windows = SessionConfig{}.windows;
  windows[1].request_bytes = 17 << 20;
  Hand hand(windows);
  ASSERT_TRUE(hand.grant(9, 1000, 10'000));
  ASSERT_TRUE(hand.say(1, request_bytes(0, 16 << 20, Bytes(16 << 20)), true));
  hand.exchange.on_stream_abandoned(1);
  hand.exchange.on_stream_closed(1);
  ASSERT_TRUE(hand.say(5, request_bytes(0, 2 << 20, Bytes(2 << 20)), true));
  EXPECT_EQ(hand.count<RequestArrived>(), 1U);
  EXPECT_EQ(hand.exchange.status(StreamClass::data).turned_away, 1U);
  (void)hand.written();
  hand.exchange.reply(id_of(1), env::Reply{});
  ASSERT_TRUE(hand.say(9, request_bytes(0, 2 << 20, Bytes(2 << 20)), true));
  EXPECT_EQ(hand.count<RequestArrived>(), 2U);
}

TEST(Exchange, BlockedStreamsLetOthersGo) {
  Hand hand;
  ASSERT_TRUE(hand.grant(9, 1000, 1000));
  ASSERT_TRUE(hand.ask());
  ASSERT_TRUE(hand.ask());
  env::QuicWrite write;
  ASSERT_TRUE(hand.exchange.next_write(kNow, write));
  EXPECT_EQ(write.stream, 0);
  hand.exchange.on_blocked(0);
  EXPECT_EQ(hand.written().begin()->first, 4);
  EXPECT_FALSE(hand.exchange.wants_to_write());
  hand.exchange.on_unblocked(0);
  hand.exchange.on_unblocked(0);
  EXPECT_EQ(hand.written().begin()->first, 0);
}

TEST(Exchange, APageIsWholeBeforeTheTurnOfTheNext) {
  constexpr std::size_t kPage = 64 << 10, kStep = 8;
  Hand hand;
  ASSERT_TRUE(hand.grant(8, 1 << 20, 64 << 20));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(hand.ask(seconds(1), StreamClass::data, Bytes(kPage)));
  std::vector<StreamNumber> order;
  for (std::size_t steps = 0; steps < 4 * kPage / kStep; ++steps) {
    for (const auto& [stream, bytes] : hand.written(kStep)) {
      if (order.empty() || order.back() != stream) order.push_back(stream);
    }
  }
  EXPECT_EQ(order.size(), 3U) << "each is begun once and ended before the next";
}

TEST(Exchange, LongMessagesTakeTurns) {
  constexpr std::size_t kLong = 1 << 20, kStep = 1000;
  Hand hand;
  ASSERT_TRUE(hand.grant(8, 8 << 20, 64 << 20));
  ASSERT_TRUE(hand.ask(seconds(1), StreamClass::data, Bytes(kLong)));
  ASSERT_TRUE(hand.ask(seconds(1), StreamClass::data, Bytes(100)));
  std::map<StreamNumber, std::size_t> sent;
  for (std::size_t steps = 0; steps < 100 && sent.size() < 2; ++steps) {
    for (const auto& [stream, bytes] : hand.written(kStep)) sent[stream] += bytes.size();
  }
  ASSERT_EQ(sent.size(), 2U);
  EXPECT_LT(sent.begin()->second, kLong / 8) << "a short one does not wait for a long one";
}

TEST(Exchange, KeepsBytesUntilTheyHaveArrived) {
  Hand hand;
  ASSERT_TRUE(hand.grant(9, 100'000, 1000));
  auto owner = std::make_shared<Bytes>(5000);
  const std::weak_ptr<Bytes> alive = owner;
  env::Request request{.type = 1, .header = "h", .payload = {Buffer(ByteSpan(*owner), owner)}};
  owner.reset();
  ASSERT_TRUE(hand.exchange.request(kNow, StreamClass::data, std::move(request), kNow + seconds(1)));
  const std::size_t bytes = hand.only_written().size();
  EXPECT_FALSE(alive.expired());
  hand.exchange.on_stream_acknowledged(0, bytes - 1);
  EXPECT_FALSE(alive.expired());
  hand.exchange.on_stream_acknowledged(0, 1);
  EXPECT_TRUE(alive.expired());
}

TEST(Exchange, ReplyCreditComesBackWhenTheReplyHasArrived) {
  Hand hand;
  ASSERT_TRUE(hand.grant(9, 1000, 3000));
  for (StreamNumber i = 1; i <= 9; i += 4) {
    ASSERT_TRUE(hand.say(i, request_bytes(0, 0), true));
    hand.exchange.reply(id_of(i), env::Reply{.payload = {Buffer(Bytes(2000))}});
  }
  EXPECT_EQ(hand.written().begin()->first, 1);
  EXPECT_FALSE(hand.exchange.wants_to_write());
  hand.exchange.on_stream_acknowledged(1, 2000 + ReplyHead::kBytes);
  EXPECT_EQ(hand.written().begin()->first, 5);
  hand.exchange.on_stream_abandoned(5);
  EXPECT_FALSE(hand.exchange.wants_to_write());
  hand.exchange.on_stream_closed(5);
  EXPECT_EQ(hand.written().begin()->first, 9);
}

/// What is not acknowledged is kept, so a peer's grant alone does not say how much that may be.
TEST(Exchange, AGrantWithoutEndDoesNotKeepRepliesWithoutEnd) {
  std::array<ClassWindow, kStreamClasses> windows = SessionConfig{}.windows;
  windows[1].reply_bytes = 17 << 20;
  Hand hand(windows);
  ASSERT_TRUE(hand.grant(UINT64_MAX, UINT64_MAX, UINT64_MAX));
  for (StreamNumber i = 1; i <= 5; i += 4) {
    ASSERT_TRUE(hand.say(i, request_bytes(0, 0), true));
    hand.exchange.reply(id_of(i), env::Reply{.payload = {Buffer(Bytes(10 << 20))}});
  }
  const auto first = hand.written();
  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(first.begin()->first, 1);
  hand.exchange.on_stream_acknowledged(1, first.begin()->second.size());
  EXPECT_EQ(hand.written().begin()->first, 5);
}

TEST(Exchange, BulkWaitsForRoomAndNothingElseDoes) {
  Hand hand;
  constexpr std::uint8_t kControl = 0, kBulk = 2;
  for (const std::uint8_t klass : {kControl, std::uint8_t{1}, kBulk}) {
    ASSERT_TRUE(hand.grant(9, 100'000, 100'000, klass));
  }
  hand.streams.most_bulk = 5000;
  ASSERT_TRUE(hand.ask(seconds(1), StreamClass::bulk, Bytes(9000)));
  std::size_t bulk = hand.written(5000)[0].size();
  EXPECT_EQ(bulk, 5000U);
  EXPECT_TRUE(hand.written().empty());
  ASSERT_TRUE(hand.ask(seconds(1), StreamClass::control));
  ASSERT_TRUE(hand.ask(seconds(1), StreamClass::data, Bytes(9000)));
  EXPECT_EQ(hand.written().size(), 2U);
  EXPECT_TRUE(hand.written().empty());
  hand.exchange.on_stream_acknowledged(0, 1);
  bulk += hand.written()[0].size();
  EXPECT_GT(bulk, 9000U);
  ASSERT_TRUE(hand.ask(seconds(1), StreamClass::bulk));
  EXPECT_TRUE(hand.written().empty());
  hand.exchange.on_stream_closed(0);  // Whatever had not arrived is under way no more.
  EXPECT_FALSE(hand.written().empty());
}

TEST(Exchange, UnknownErrorCodesStillCarryTheirText) {
  Bytes body;
  encode_error({.code = static_cast<Errc>(999), .message = "from the future", .node = 3}, body);
  const auto error = decode_error(body);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, Errc::internal);
  EXPECT_EQ(error->message, "from the future");
  for (std::size_t n = 0; n < body.size(); ++n) EXPECT_FALSE(decode_error(ByteSpan(body).first(n))) << n;
}

TEST(Exchange, ATimeToComeBackTravelsAndIsSkippedByWhoDoesNotKnowIt) {
  Error error{.code = Errc::overloaded, .message = "m", .hint = "h", .node = 3, .retryable = true};
  Bytes without, with;
  encode_error(error, without);
  EXPECT_EQ(decode_error(without), error) << "none is none";
  error.retry_after = std::chrono::milliseconds(0x01020304);
  encode_error(error, with);
  EXPECT_EQ(decode_error(with), error);
  ASSERT_EQ(with.size(), without.size() + 4);
  EXPECT_EQ(with[2], std::byte{3});
  EXPECT_EQ(Bytes(with.end() - 4, with.end()), (Bytes{std::byte{4}, std::byte{3}, std::byte{2}, std::byte{1}}));
  // A peer that knows bit 0 only reads the texts by their lengths, and looks at nothing behind them.
  Bytes as_before = with;
  as_before[2] = std::byte{1};
  error.retry_after.reset();
  EXPECT_EQ(decode_error(as_before), error);
  for (std::size_t n = 0; n < with.size(); ++n) EXPECT_FALSE(decode_error(ByteSpan(with).first(n))) << n;
  // The longest is no longer than it was.
  Bytes longest;
  encode_error(
      {.message = std::string(9000, 'm'), .hint = std::string(9000, 'h'), .retry_after = std::chrono::hours(1)},
      longest);
  EXPECT_EQ(longest.size(), 16 + 2 * kMaxErrorText);
}

/// Golden bytes: these never change within a version.
TEST(Exchange, GoldenBytes) {
  const auto bytes = [](std::initializer_list<int> values) {
    Bytes out;
    for (const int v : values) out.push_back(static_cast<std::byte>(v));
    return out;
  };
  std::deque<Event> events;
  FakeStreams streams;
  Exchange fresh(SessionConfig{}.windows, streams, events);
  fresh.on_established();
  env::QuicWrite write;
  ASSERT_TRUE(fresh.next_write(kNow, write));
  EXPECT_EQ(write.stream, 2);
  EXPECT_FALSE(write.fin);
  EXPECT_EQ(Bytes(write.parts[0].begin(), write.parts[0].end()),
            bytes({1,                                                 // a control stream
                   1, 0, 24, 0, 0,  4, 0, 0, 0, 0, 0, 0,              // grant, class 0: 1024 requests,
                   0, 0, 0,  2, 0,  0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0,  // 32 MiB of requests, 32 MiB of replies
                   1, 1, 24, 0, 0,  4, 0, 0, 0, 0, 0, 0,              //
                   0, 0, 0,  4, 0,  0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0,  //
                   1, 2, 24, 0, 64, 0, 0, 0, 0, 0, 0, 0,              //
                   0, 0, 0,  4, 0,  0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0}));
  Hand hand;
  ASSERT_TRUE(hand.grant(9, 1000, 1000, 0));
  env::Request request{.type = 0x0102, .header = "hd"};
  request.payload.emplace_back(bytes({0xAA, 0xBB, 0xCC}));
  ASSERT_TRUE(hand.exchange.request(kNow, StreamClass::bulk, {.type = 1}, kNow + seconds(1)));  // has no credit
  ASSERT_TRUE(hand.exchange.request(kNow, StreamClass::control, std::move(request), kNow + microseconds(0x0304)));
  EXPECT_EQ(hand.only_written(),
            bytes({2, 1, 0, 0, 2, 0, 0, 0, 3,   0,   0,    0,    0,   0, 0, 0,  // type, class, sizes
                   4, 3, 0, 0, 0, 0, 0, 0, 'h', 'd', 0xAA, 0xBB, 0xCC}));
  ASSERT_TRUE(hand.say(1, request_bytes(0, 0, {}, 0), true));
  hand.exchange.reply(id_of(1), env::Reply{.header = "ok"});
  EXPECT_EQ(hand.only_written(), bytes({0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'o', 'k'}));
  ASSERT_TRUE(hand.say(5, request_bytes(0, 0, {}, 0), true));
  hand.exchange.reply(
      id_of(5),
      std::unexpected(Error{.code = Errc::not_found, .message = "m", .hint = "h", .node = 5, .retryable = true}));
  EXPECT_EQ(hand.only_written(), bytes({1, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  // an error of 18 bytes
                                        2, 0, 1, 0, 1,  0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 'm', 'h'}));
}

}  // namespace
}  // namespace holo::hyperbus
