// Two sessions back to back in memory: what they promise, and what hostile or broken peers cannot do.
#include "core/hyperbus/stream_session.h"

#include <gtest/gtest.h>

#include <map>

#include "core/hyperbus/test_support.h"

namespace holo::hyperbus {
namespace {

using testing::config_of;
using testing::End;
using testing::joined;
using testing::Link;
using testing::pattern;
using testing::session_config;

env::Request request_of(std::uint16_t type, std::string header, Bytes payload = {}) {
  env::Request out{.type = type, .header = std::move(header)};
  if (!payload.empty()) out.payload.emplace_back(std::move(payload));
  return out;
}

/// Answers every request that arrived at `end` since the last call with its own content.
void echo(End& end) {
  end.collect();
  for (Event& event : end.events) {
    if (auto* arrived = std::get_if<RequestArrived>(&event)) {
      end.session.reply(arrived->stream, env::Reply{.header = std::move(arrived->request.header),
                                                    .payload = std::move(arrived->request.payload)});
    }
  }
  std::erase_if(end.events, [](const Event& e) { return std::holds_alternative<RequestArrived>(e); });
}

std::shared_ptr<const SessionConfig> changed(std::uint8_t who, const std::function<void(SessionConfig&)>& change) {
  SessionConfig config = *session_config(config_of(who));
  change(config);
  return std::make_shared<const SessionConfig>(std::move(config));
}

TEST(StreamSession, BothSidesLearnWhoTheOtherIs) {
  Link link;
  link.settle();
  const auto* at_dialler = link.dialler.only<Established>();
  const auto* at_listener = link.listener.only<Established>();
  ASSERT_TRUE(at_dialler && at_listener);
  EXPECT_EQ(at_dialler->peer, testing::identity_of(2).node());
  EXPECT_EQ(at_listener->peer, testing::identity_of(1).node());
  EXPECT_EQ(at_dialler->handshake_hash, at_listener->handshake_hash);
  EXPECT_EQ(at_dialler->version, kNewestVersion);
  EXPECT_TRUE(link.dialler.session.established() && link.listener.session.established());
}

TEST(StreamSession, CarriesARequestAndItsReply) {
  Link link;
  // Asked before the handshake: it waits.
  const Bytes payload = pattern(300'000);
  const auto stream = link.dialler.session.request(link.now, StreamClass::data, request_of(7, "header", payload),
                                                   link.now + seconds(3));
  ASSERT_TRUE(stream);
  link.settle();
  auto* arrived = link.listener.only<RequestArrived>();
  ASSERT_TRUE(arrived);
  EXPECT_EQ(arrived->request.type, 7);
  EXPECT_EQ(arrived->request.header, "header");
  EXPECT_EQ(arrived->klass, StreamClass::data);
  EXPECT_EQ(arrived->time_left, seconds(3));
  ASSERT_EQ(arrived->request.payload.size(), 1U);
  EXPECT_EQ(joined(arrived->request.payload), payload);

  env::Reply reply{.header = "answer",
                   .payload = {Buffer(pattern(10, 2)), Buffer(pattern(70'000, 3)), Buffer(pattern(5, 4))}};
  const Bytes expected = joined(reply.payload);
  link.listener.session.reply(arrived->stream, std::move(reply));
  link.settle();
  auto* answer = link.dialler.only<ReplyArrived>();
  ASSERT_TRUE(answer && answer->result);
  EXPECT_EQ(answer->stream, *stream);
  EXPECT_EQ(answer->result->header, "answer");
  EXPECT_EQ(joined(answer->result->payload), expected);
  EXPECT_EQ(link.dialler.session.class_status(StreamClass::data).in_flight, 0U);
  EXPECT_EQ(link.listener.session.class_status(StreamClass::data).serving, 0U);
}

TEST(StreamSession, DoesNotCareHowBytesAreCut) {
  Random random(5);
  for (int mode = 0; mode < 3; ++mode) {
    Link link;
    if (mode == 0) link.portion = [] { return std::size_t{1}; };
    if (mode == 1) link.portion = [&random] { return static_cast<std::size_t>(1 + random.below(40)); };
    if (mode == 2) link.portion = [&random] { return static_cast<std::size_t>(1 + random.below(100'000)); };
    const Bytes payload = pattern(mode == 2 ? 1'000'000 : 150'000, 9);
    for (const auto klass : {StreamClass::control, StreamClass::data, StreamClass::bulk}) {
      ASSERT_TRUE(link.dialler.session.request(link.now, klass, request_of(1, std::string(30'000, 'h'), payload),
                                               link.now + seconds(9)));
    }
    link.settle();
    echo(link.listener);
    link.settle();
    const auto replies = link.dialler.all<ReplyArrived>();
    ASSERT_EQ(replies.size(), 3U);
    for (const auto* reply : replies) {
      ASSERT_TRUE(reply->result);
      EXPECT_EQ(reply->result->header, std::string(30'000, 'h'));
      EXPECT_EQ(joined(reply->result->payload), payload);
    }
  }
}

TEST(StreamSession, CarriesEverySizeUpToTheLimits) {
  Link link;
  for (const std::size_t header : {std::size_t{0}, std::size_t{1}, std::size_t{16'000}, limits::kMaxHeaderBytes}) {
    for (const std::size_t payload : {std::size_t{0}, std::size_t{1}, std::size_t{4095}, std::size_t{4096},
                                      std::size_t{65'536}, std::size_t{65'537}, limits::kMaxPayloadBytes}) {
      const Bytes bytes = pattern(payload, payload);
      ASSERT_TRUE(link.listener.session.request(link.now, StreamClass::bulk,
                                                request_of(2, std::string(header, 'x'), bytes), link.now + seconds(9)));
      link.settle();
      echo(link.dialler);
      link.settle();
      auto* reply = link.listener.only<ReplyArrived>();
      ASSERT_TRUE(reply && reply->result) << header << " " << payload;
      EXPECT_EQ(reply->result->header.size(), header);
      EXPECT_TRUE(joined(reply->result->payload) == bytes) << header << " " << payload;
      link.listener.events.clear();
    }
  }
  auto refused = link.dialler.session.request(
      link.now, StreamClass::bulk, request_of(2, std::string(limits::kMaxHeaderBytes + 1, 'x')), link.now + seconds(9));
  EXPECT_EQ(refused.error().code, Errc::invalid_argument);
  refused = link.dialler.session.request(link.now, StreamClass::bulk,
                                         request_of(2, "", Bytes(limits::kMaxPayloadBytes + 1)), link.now + seconds(9));
  EXPECT_EQ(refused.error().code, Errc::invalid_argument);
}

TEST(StreamSession, ErrorsTravelWhole) {
  Link link;
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::control, request_of(1, ""), link.now + seconds(1)));
  link.settle();
  const Error error{
      .code = Errc::page_lost, .message = "page 7 is gone", .hint = "restore it", .node = 42, .retryable = true};
  link.listener.session.reply(link.listener.only<RequestArrived>()->stream, std::unexpected(error));
  link.settle();
  const auto* reply = link.dialler.only<ReplyArrived>();
  ASSERT_TRUE(reply && !reply->result);
  EXPECT_EQ(reply->result.error(), error);
}

TEST(StreamSession, LongErrorsAreCutNotLost) {
  Link link;
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::control, request_of(1, ""), link.now + seconds(1)));
  link.settle();
  link.listener.session.reply(link.listener.only<RequestArrived>()->stream,
                              fail(Errc::task_failed, std::string(100'000, 'm'), std::string(100'000, 'h')));
  link.settle();
  const auto* reply = link.dialler.only<ReplyArrived>();
  ASSERT_TRUE(reply && !reply->result);
  EXPECT_EQ(reply->result.error().code, Errc::task_failed);
  EXPECT_EQ(reply->result.error().message.size(), 4096U);
}

TEST(StreamSession, AReplyOverTheLimitBecomesAnError) {
  Link link;
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + seconds(1)));
  link.settle();
  link.listener.session.reply(link.listener.only<RequestArrived>()->stream,
                              env::Reply{.header = std::string(limits::kMaxHeaderBytes + 1, 'x')});
  link.settle();
  EXPECT_EQ(link.dialler.only<ReplyArrived>()->result.error().code, Errc::over_limit);
}

// --- the end of a session
// ---------------------------------------------------------------------------------------------

TEST(StreamSession, WrongKeyIsSaidOnBothSidesAtOnce) {
  Link link(session_config(config_of(1, 77)), session_config(config_of(2, 78)));
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + seconds(3)));
  link.settle();
  for (End* end : {&link.dialler, &link.listener}) {
    const auto* closed = end->only<Closed>();
    ASSERT_TRUE(closed);
    EXPECT_EQ(closed->error.code, Errc::wrong_key);
    EXPECT_EQ(closed->kind, RefusalKind::wrong_key);
    EXPECT_TRUE(end->session.finished());
  }
  EXPECT_EQ(link.dialler.only<ReplyArrived>()->result.error().code, Errc::wrong_key);
  EXPECT_FALSE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + seconds(3)));
}

TEST(StreamSession, WrongVersionIsSaidOnBothSides) {
  HandshakeConfig later = config_of(2);
  later.newest_version = 9, later.oldest_version = 8;
  Link link(session_config(config_of(1)), session_config(later));
  link.settle();
  for (End* end : {&link.dialler, &link.listener}) {
    ASSERT_TRUE(end->only<Closed>());
    EXPECT_EQ(end->only<Closed>()->error.code, Errc::wrong_version);
    EXPECT_EQ(end->only<Closed>()->kind, RefusalKind::wrong_version);
  }
}

class Nobody final : public TrustPolicy {
 public:
  TrustDecision decide(const PresentedIdentity&) override {
    return std::unexpected(TrustRefusal{.kind = RefusalKind::unknown_identity,
                                        .error = {.code = Errc::permission_denied, .message = "unknown node"}});
  }
};

TEST(StreamSession, ADialerRefusedInTheLastMessageHearsOfIt) {
  HandshakeConfig strict = config_of(2);
  strict.trust = std::make_shared<Nobody>();
  Link link(session_config(config_of(1)), session_config(strict));
  link.settle();
  EXPECT_FALSE(link.dialler.only<Established>());
  ASSERT_TRUE(link.dialler.only<Closed>() && link.listener.only<Closed>());
  EXPECT_EQ(link.dialler.only<Closed>()->error.code, Errc::permission_denied);
  EXPECT_EQ(link.dialler.only<Closed>()->kind, RefusalKind::unknown_identity);
  EXPECT_EQ(link.listener.only<Closed>()->error.message, "unknown node");
}

TEST(StreamSession, AListenerRefusedByTheDialerHearsOfIt) {
  HandshakeConfig strict = config_of(1);
  strict.trust = std::make_shared<Nobody>();
  Link link(session_config(strict), session_config(config_of(2)));
  link.settle();
  ASSERT_TRUE(link.dialler.only<Closed>() && link.listener.only<Closed>());
  EXPECT_EQ(link.dialler.only<Closed>()->error.message, "unknown node");
  EXPECT_EQ(link.listener.only<Closed>()->error.code, Errc::permission_denied);
  EXPECT_EQ(link.listener.only<Closed>()->kind, RefusalKind::unknown_identity);
}

TEST(StreamSession, GarbageEndsAtOnceAndGetsNoAnswer) {
  const Instant now{5};
  testing::SeededEntropy entropy(1);
  using std::string_literals::operator""s;
  const std::vector<std::string> texts{"GET / HTTP/1.1\r\n\r\n"s, "\x16\x03\x01\x02\x01"s, "\x01\x20\x00\x00HTTP"s,
                                       "\x03\x20\x00\x00"s,       "\x01\xff\xff\xff"s,     "\x02\x08\x00\x00"s};
  for (const std::string& bytes : texts) {
    End end(Role::responder, session_config(config_of(2)), entropy, now);
    end.session.feed(now, as_bytes(bytes));
    ASSERT_TRUE(end.only<Closed>());
    EXPECT_EQ(end.only<Closed>()->kind, RefusalKind::garbage);
    EXPECT_TRUE(end.session.finished());
    EXPECT_TRUE(end.output(now).empty());
  }
  Random random(3);
  for (int i = 0; i < 300; ++i) {
    End end(Role::responder, session_config(config_of(2)), entropy, now);
    const Bytes bytes = pattern(1 + random.below(6000), random.next());
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t n = std::min<std::size_t>(1 + random.below(9), bytes.size() - at);
      end.session.feed(now, ByteSpan(bytes).subspan(at, n));
      at += n;
    }
    if (bytes[0] == std::byte{1} && bytes.size() < 8) continue;
    ASSERT_TRUE(end.only<Closed>()) << i;
    EXPECT_EQ(end.only<Closed>()->kind, RefusalKind::garbage);
  }
}

TEST(StreamSession, ASilentConnectionIsDroppedAtTheHandshakeDeadline) {
  const Instant start{5};
  testing::SeededEntropy entropy(1);
  End end(Role::responder, session_config(config_of(2)), entropy, start);
  EXPECT_EQ(end.session.next_timer(), start + limits::kHandshakeDeadline);
  // One byte each second does not help.
  for (int i = 1; i < 5; ++i)
    end.session.feed(start + seconds(i), as_bytes(std::string_view("\x01\x20\x00\x00", 4)).subspan(i - 1, 1));
  EXPECT_FALSE(end.only<Closed>());
  end.session.on_timer(start + limits::kHandshakeDeadline);
  ASSERT_TRUE(end.only<Closed>());
  EXPECT_EQ(end.only<Closed>()->kind, RefusalKind::garbage);
  EXPECT_EQ(end.session.next_timer(), kNever);
}

TEST(StreamSession, ClosingTellsThePeerAndEndsEveryRequest) {
  Link link;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + seconds(3)));
    ASSERT_TRUE(link.listener.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + seconds(3)));
  }
  link.settle();
  const StreamId owed = link.listener.all<RequestArrived>().front()->stream;
  link.listener.session.close({.code = Errc::cancelled, .message = "shutting down"});
  link.listener.session.close({.code = Errc::internal, .message = "twice"});
  EXPECT_FALSE(link.listener.session.finished());  // The peer has not been told yet.
  link.settle();
  EXPECT_TRUE(link.listener.session.finished());
  EXPECT_EQ(link.listener.all<ReplyArrived>().size(), 3U);
  EXPECT_EQ(link.listener.only<Closed>()->error.code, Errc::cancelled);
  ASSERT_TRUE(link.dialler.only<Closed>());
  EXPECT_EQ(link.dialler.only<Closed>()->error.code, Errc::unavailable);
  EXPECT_NE(link.dialler.only<Closed>()->error.message.find("shutting down"), std::string::npos);
  for (const auto* reply : link.dialler.all<ReplyArrived>()) EXPECT_EQ(reply->result.error().code, Errc::unavailable);
  EXPECT_EQ(link.dialler.all<ReplyArrived>().size(), 3U);
  EXPECT_TRUE(std::holds_alternative<Closed>(link.dialler.events.back()));
  link.listener.session.reply(owed, env::Reply{});  // Late answers are dropped.
  EXPECT_FALSE(link.listener.session.wants_output());
}

TEST(StreamSession, ABrokenCarrierEndsEveryRequest) {
  Link link;
  link.settle();
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + seconds(3)));
  link.dialler.session.broken(link.now, {.code = Errc::unavailable, .message = "reset"});
  link.dialler.session.broken(link.now, {.code = Errc::unavailable, .message = "again"});
  EXPECT_EQ(link.dialler.only<ReplyArrived>()->result.error().code, Errc::unavailable);
  EXPECT_TRUE(link.dialler.only<Closed>());
  EXPECT_TRUE(link.dialler.session.finished());
}

TEST(StreamSession, AlteredBytesOnTheWireEndTheSession) {
  // One request and its answer, while one byte of one direction is altered; `total` counts the bytes of that direction.
  constexpr std::size_t kNone = SIZE_MAX;
  const auto config_a = session_config(config_of(1)), config_b = session_config(config_of(2));
  const auto run = [&](bool from_dialler, std::size_t target, std::size_t& total) {
    auto link = std::make_unique<Link>(config_a, config_b);
    total = 0;
    link->alter = [from_dialler, target, &total](bool from, Bytes& bytes) {
      if (from != from_dialler) return;
      if (target >= total && target < total + bytes.size()) bytes[target - total] ^= std::byte{0x20};
      total += bytes.size();
    };
    EXPECT_TRUE(link->dialler.session.request(link->now, StreamClass::data, request_of(1, "h", pattern(5000)),
                                              link->now + seconds(2)));
    link->settle();
    echo(link->listener);
    link->settle();
    return link;
  };
  for (const bool from_dialler : {true, false}) {
    std::size_t total = 0;
    EXPECT_TRUE(run(from_dialler, kNone, total)->dialler.only<ReplyArrived>()->result);
    ASSERT_GT(total, 5000U);
    const std::size_t size = total;
    // Every byte of the handshake is altered in handshake_test.cc already; here every third shows what a carrier sees.
    for (std::size_t at = 0; at < size; at += at < 100 ? 1 : 3) {
      const auto link = run(from_dialler, at, total);
      // An altered length makes the reader wait for bytes that never come; its timers end that.
      link->advance(seconds(6));
      link->advance(seconds(9));
      link->advance(seconds(9));
      const auto& ends = link->dialler.session;
      EXPECT_TRUE(ends.finished() || link->listener.session.finished()) << from_dialler << " " << at;
      const auto replies = link->dialler.all<ReplyArrived>();
      ASSERT_EQ(replies.size(), 1U) << from_dialler << " " << at;
      EXPECT_FALSE(replies.front()->result) << from_dialler << " " << at;
    }
  }
}

TEST(StreamSession, ReplayedRecordsEndTheSession) {
  Link link;
  link.settle();
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, "once"), link.now + seconds(2)));
  const Bytes record = link.dialler.output(link.now);
  link.listener.session.feed(link.now, record);
  EXPECT_EQ(link.listener.all<RequestArrived>().size(), 1U);
  link.listener.session.feed(link.now, record);
  EXPECT_EQ(link.listener.all<RequestArrived>().size(), 1U);
  ASSERT_TRUE(link.listener.only<Closed>());
  EXPECT_EQ(link.listener.only<Closed>()->error.code, Errc::corrupt);
}

TEST(StreamSession, SwappedRecordsEndTheSession) {
  Link link;
  link.settle();
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, "a"), link.now + seconds(2)));
  const Bytes first = link.dialler.output(link.now);
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, "b"), link.now + seconds(2)));
  const Bytes second = link.dialler.output(link.now);
  link.listener.session.feed(link.now, second);
  link.listener.session.feed(link.now, first);
  EXPECT_TRUE(link.listener.all<RequestArrived>().empty());
  EXPECT_TRUE(link.listener.only<Closed>());
}

TEST(StreamSession, NothingReadableCrossesTheWire) {
  Link link;
  std::string wire;
  link.alter = [&wire](bool, Bytes& bytes) { wire += as_text(bytes); };
  const std::string known = "a known plain text that must never be seen";
  Bytes payload;
  while (payload.size() < 100'000) payload.insert(payload.end(), as_bytes(known).begin(), as_bytes(known).end());
  ASSERT_TRUE(
      link.dialler.session.request(link.now, StreamClass::data, request_of(1, known, payload), link.now + seconds(2)));
  link.settle();
  echo(link.listener);
  link.settle();
  ASSERT_TRUE(link.dialler.only<ReplyArrived>()->result);
  EXPECT_GT(wire.size(), 200'000U);
  EXPECT_EQ(wire.find(known.substr(0, 8)), std::string::npos);
  const Identity who = testing::identity_of(1);
  EXPECT_EQ(wire.find(as_text(who.public_key())), std::string::npos);  // nor who speaks
}

TEST(StreamSession, KeysMoveOnAndTheSessionDoesNot) {
  const auto often = [](SessionConfig& c) { c.records_per_key = 5; };
  Link link(changed(1, often), changed(2, often));
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, "x", pattern(9000)),
                                             link.now + seconds(2)));
    link.settle();
    echo(link.listener);
    link.settle();
  }
  EXPECT_EQ(link.dialler.all<ReplyArrived>().size(), 200U);
  for (const auto* reply : link.dialler.all<ReplyArrived>()) EXPECT_TRUE(reply->result);
}

// --- time
// --------------------------------------------------------------------------------------------------------------

TEST(StreamSession, DeadlinesEndRequestsOnceAndCancelThem) {
  Link link;
  link.settle();
  const auto stream =
      link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + milliseconds(300));
  ASSERT_TRUE(stream);
  link.settle();
  EXPECT_EQ(link.dialler.session.next_timer(), link.now + milliseconds(300));
  link.advance(milliseconds(300));
  ASSERT_TRUE(link.dialler.only<ReplyArrived>());
  EXPECT_EQ(link.dialler.only<ReplyArrived>()->result.error().code, Errc::deadline_exceeded);
  ASSERT_TRUE(link.listener.only<RequestCancelled>());
  link.listener.session.reply(link.listener.only<RequestArrived>()->stream, env::Reply{.header = "late"});
  link.settle();
  EXPECT_TRUE(link.dialler.only<ReplyArrived>());
  EXPECT_FALSE(link.dialler.only<Closed>());
  EXPECT_EQ(link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now).error().code,
            Errc::deadline_exceeded);
}

TEST(StreamSession, CancelEndsTheRequestHereAndThere) {
  Link link;
  link.settle();
  const auto stream =
      link.dialler.session.request(link.now, StreamClass::bulk, request_of(1, "", pattern(100)), link.now + seconds(1));
  link.settle();
  link.dialler.session.cancel(*stream, {.code = Errc::cancelled, .message = "changed my mind"});
  link.dialler.session.cancel(*stream, {.code = Errc::cancelled, .message = "again"});
  link.settle();
  EXPECT_EQ(link.dialler.only<ReplyArrived>()->result.error().code, Errc::cancelled);
  EXPECT_TRUE(link.listener.only<RequestCancelled>());
  EXPECT_EQ(link.listener.session.class_status(StreamClass::bulk).serving, 1U);  // until answered
  link.listener.session.reply(link.listener.only<RequestArrived>()->stream, env::Reply{});
  EXPECT_EQ(link.listener.session.class_status(StreamClass::bulk).serving, 0U);
}

TEST(StreamSession, AnswersThatCrossACancelAreDroppedWithTheirCredit) {
  Link link;
  link.settle();
  // Far more than the window in sum: were the credit lost, the last ones would never come.
  for (int i = 0; i < 12; ++i) {
    const auto stream = link.dialler.session.request(link.now, StreamClass::data, request_of(1, "", pattern(10)),
                                                     link.now + seconds(1));
    link.settle();
    link.listener.collect();
    const StreamId at_listener = link.listener.all<RequestArrived>().back()->stream;
    link.listener.session.reply(at_listener, env::Reply{.payload = {Buffer(Bytes(limits::kMaxPayloadBytes))}});
    // A part of the answer is under way when the dialler gives up.
    const Bytes part = link.listener.output(link.now, i % 2 == 0 ? 1 : 300'000);
    if (i % 3 != 0) link.dialler.session.feed(link.now, part);
    link.dialler.session.cancel(*stream, {.code = Errc::cancelled});
    if (i % 3 == 0) link.dialler.session.feed(link.now, part);
    link.settle();
  }
  EXPECT_FALSE(link.dialler.only<Closed>() || link.listener.only<Closed>());
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(9, ""), link.now + seconds(1)));
  link.settle();
  link.listener.session.reply(link.listener.all<RequestArrived>().back()->stream,
                              env::Reply{.payload = {Buffer(Bytes(limits::kMaxPayloadBytes))}});
  link.settle();
  EXPECT_TRUE(link.dialler.all<ReplyArrived>().back()->result);
}

TEST(StreamSession, PingsAnIdlePeerAndGivesUpOnASilentOne) {
  Link link;
  link.settle();
  const Instant quiet_since = link.now;
  const SessionConfig plain;
  for (End* end : {&link.dialler, &link.listener}) {
    EXPECT_GT(end->session.next_timer(), quiet_since + plain.keep_alive);
    EXPECT_LE(end->session.next_timer(), quiet_since + plain.keep_alive * 5 / 4);
  }
  EXPECT_EQ(link.listener.session.next_timer(), link.dialler.session.next_timer() + plain.keep_alive / 8);
  for (int i = 0; i < 30; ++i) link.advance(seconds(2));
  EXPECT_TRUE(link.dialler.session.established() && link.listener.session.established());
  // Now the wire is cut, silently.
  link.alter = [](bool, Bytes& bytes) { bytes.clear(); };
  for (int i = 0; i < 6; ++i) link.advance(seconds(2));
  for (End* end : {&link.dialler, &link.listener}) {
    ASSERT_TRUE(end->only<Closed>());
    EXPECT_EQ(end->only<Closed>()->error.code, Errc::unavailable);
  }
}

TEST(StreamSession, MeasuresTheRoundTrip) {
  Link link;
  link.settle();
  link.dialler.session.ping(link.now);
  const Bytes ping = link.dialler.output(link.now);
  link.now = link.now + milliseconds(3);
  link.listener.session.feed(link.now, ping);
  const Bytes pong = link.listener.output(link.now);
  link.now = link.now + milliseconds(4);
  link.dialler.session.feed(link.now, pong);
  EXPECT_EQ(link.dialler.session.figures().round_trip, milliseconds(7));
}

// --- order, credit, bounds
// ---------------------------------------------------------------------------------------------

TEST(StreamSession, ControlOvertakesQueuedBulk) {
  Link link;
  link.settle();
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::bulk, request_of(1, "bulk", Bytes(8 << 20)),
                                             link.now + seconds(9)));
  }
  link.listener.session.feed(link.now, link.dialler.output(link.now, 100'000));
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(2, "data"), link.now + seconds(9)));
  ASSERT_TRUE(
      link.dialler.session.request(link.now, StreamClass::control, request_of(3, "control"), link.now + seconds(9)));
  const auto carry_one_turn = [&link] {
    const Bytes bytes = link.dialler.output(link.now, 1);
    EXPECT_LE(bytes.size(), 80'000U);  // one raw record and a little
    link.listener.session.feed(link.now, bytes);
  };
  carry_one_turn();
  auto arrived = link.listener.all<RequestArrived>();
  ASSERT_GE(arrived.size(), 1U);
  EXPECT_EQ(arrived[0]->request.header, "control");
  if (arrived.size() == 1) carry_one_turn();  // It may be the turn of bulk first, but once only.
  arrived = link.listener.all<RequestArrived>();
  ASSERT_EQ(arrived.size(), 2U);
  EXPECT_EQ(arrived[1]->request.header, "data");
}

TEST(StreamSession, SmallMessagesOfAClassPassALargeOne) {
  Link link;
  link.settle();
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, "large", Bytes(8 << 20)),
                                           link.now + seconds(9)));
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(
        link.dialler.session.request(link.now, StreamClass::data, request_of(2, "small"), link.now + seconds(9)));
  }
  link.listener.session.feed(link.now, link.dialler.output(link.now, 200'000));
  EXPECT_EQ(link.listener.all<RequestArrived>().size(), 5U);
}

TEST(StreamSession, RequestsBeyondTheGrantWaitAndThenGo) {
  Link link(session_config(config_of(1)), changed(2, [](SessionConfig& c) { c.windows[1].requests = 3; }));
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + seconds(9)));
  }
  link.settle();
  EXPECT_EQ(link.listener.all<RequestArrived>().size(), 3U);
  EXPECT_EQ(link.dialler.session.class_status(StreamClass::data).queued, 7U);
  EXPECT_EQ(link.dialler.session.class_status(StreamClass::data).request_credit, 0U);
  // Other classes are not held up.
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::bulk, request_of(1, "bulk"), link.now + seconds(9)));
  link.settle();
  EXPECT_EQ(link.listener.all<RequestArrived>().size(), 4U);
  for (int i = 0; i < 10; ++i) {
    echo(link.listener);
    link.settle();
  }
  EXPECT_EQ(link.dialler.all<ReplyArrived>().size(), 11U);
}

TEST(StreamSession, BytesBeyondTheGrantWait) {
  Link link;
  for (int i = 0; i < 4; ++i) {  // 32 MiB of request bytes are granted to control
    ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::control, request_of(1, "", Bytes(12 << 20)),
                                             link.now + seconds(9)));
  }
  link.settle();
  EXPECT_EQ(link.listener.all<RequestArrived>().size(), 2U);
  echo(link.listener);
  link.settle();
  EXPECT_EQ(link.listener.all<RequestArrived>().size(), 2U);
  echo(link.listener);
  link.settle();
  EXPECT_EQ(link.dialler.all<ReplyArrived>().size(), 4U);
}

TEST(StreamSession, TheQueueIsBoundedAndSaysSo) {
  Link link;  // never carried: no credit at all
  std::size_t taken = 0;
  while (link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + seconds(9))) ++taken;
  EXPECT_EQ(taken, limits::kMaxCallsPerPeer);
  const auto refused =
      link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + seconds(9));
  EXPECT_EQ(refused.error().code, Errc::overloaded);
  EXPECT_TRUE(refused.error().retryable);
  EXPECT_TRUE(link.dialler.session.request(link.now, StreamClass::control, request_of(1, ""), link.now + seconds(9)));

  const Buffer large(Bytes(16 << 20));
  std::uint64_t bytes = 0;
  while (
      link.dialler.session.request(link.now, StreamClass::bulk, {.type = 1, .payload = {large}}, link.now + seconds(9)))
    bytes += large.size();
  EXPECT_EQ(bytes, Exchange::kMaxQueuedBytes);
  link.advance(seconds(9));  // Their deadlines free the queue.
  EXPECT_EQ(link.dialler.session.class_status(StreamClass::bulk).in_flight, 0U);
}

TEST(StreamSession, CancellingDoesNotLetMoreInThanGranted) {
  Link link(session_config(config_of(1)), changed(2, [](SessionConfig& c) { c.windows[1].requests = 4; }));
  link.settle();
  for (int i = 0; i < 50; ++i) {  // open and cancel, over and over, while the listener's handlers are busy
    const auto stream =
        link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + seconds(9));
    link.settle();
    link.dialler.session.cancel(*stream, {.code = Errc::cancelled});
    link.settle();
  }
  EXPECT_EQ(link.listener.all<RequestArrived>().size(), 4U);
  EXPECT_EQ(link.listener.session.class_status(StreamClass::data).serving, 4U);
  echo(link.listener);
  link.settle();
  ASSERT_TRUE(link.dialler.session.request(link.now, StreamClass::data, request_of(1, ""), link.now + seconds(9)));
  link.settle();
  EXPECT_EQ(link.listener.all<RequestArrived>().size(), 1U);
}

TEST(StreamSession, ManyLargeMessagesBothWaysThroughANarrowCarrier) {
  Link link;
  link.settle();
  const Buffer page(pattern(64 << 10));
  for (int i = 0; i < 200; ++i) {
    for (End* end : {&link.dialler, &link.listener}) {
      ASSERT_TRUE(end->session.request(link.now, static_cast<StreamClass>(i % 3),
                                       {.type = 1, .header = std::to_string(i), .payload = {page}},
                                       link.now + seconds(25)));
    }
  }
  bool any = true;
  while (any) {
    any = false;
    for (const auto& [from, to] : {std::pair{&link.dialler, &link.listener}, {&link.listener, &link.dialler}}) {
      const Bytes bytes = from->output(link.now, 128 << 10);
      any |= !bytes.empty();
      to->session.feed(link.now, bytes);
      echo(*to);
    }
  }
  EXPECT_EQ(link.dialler.all<ReplyArrived>().size(), 200U);
  EXPECT_EQ(link.listener.all<ReplyArrived>().size(), 200U);
}

// --- anything, in any order
// --------------------------------------------------------------------------------------------

TEST(StreamSession, EveryRequestEndsExactlyOnceWhateverHappens) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    Random random(seed);
    const auto few = [&random](SessionConfig& c) {
      for (auto& w : c.windows) w.requests = static_cast<std::uint32_t>(1 + random.below(6));
      c.records_per_key = 50;
    };
    Link link(changed(1, few), changed(2, few));
    link.portion = [&random] { return static_cast<std::size_t>(1 + random.below(50'000)); };
    struct Side {
      std::map<std::uint64_t, std::uint64_t> open;  // stream -> seed of its content
      std::vector<StreamId> owed;
      std::vector<std::pair<StreamId, env::Request>> requests;
      std::size_t ended = 0, answered = 0, asked = 0;
    };
    std::array<Side, 2> sides;
    const auto take = [&](std::size_t who) {
      End& end = who == 0 ? link.dialler : link.listener;
      end.collect();
      for (Event& event : end.events) {
        if (auto* arrived = std::get_if<RequestArrived>(&event)) {
          sides[who].requests.emplace_back(arrived->stream, std::move(arrived->request));
        } else if (auto* reply = std::get_if<ReplyArrived>(&event)) {
          const auto found = sides[who].open.find(reply->stream.value);
          ASSERT_NE(found, sides[who].open.end()) << "ended twice, seed " << seed;
          if (reply->result) {
            const Bytes expected = pattern(joined(reply->result->payload).size(), found->second);
            EXPECT_TRUE(joined(reply->result->payload) == expected) << "another request's answer, seed " << seed;
            ++sides[who].answered;
          }
          sides[who].open.erase(found);
          ++sides[who].ended;
        }
      }
      std::erase_if(end.events, [](const Event& e) { return !std::holds_alternative<Closed>(e); });
    };
    for (int op = 0; op < 400; ++op) {
      const std::size_t who = random.below(2);
      End& end = who == 0 ? link.dialler : link.listener;
      Side& side = sides[who];
      switch (random.below(8)) {
        case 0:
        case 1:
        case 2: {
          const std::uint64_t content = random.next();
          const std::size_t bytes = random.chance(1, 4) ? random.below(400'000) : random.below(3000);
          const auto stream =
              end.session.request(link.now, static_cast<StreamClass>(random.below(3)),
                                  request_of(1, std::string(random.below(300), 'h'), pattern(bytes, content)),
                                  link.now + milliseconds(1 + static_cast<std::int64_t>(random.below(4000))));
          if (stream) {
            side.open[stream->value] = content;
            ++side.asked;
          }
          break;
        }
        case 3:
          if (!side.open.empty()) {
            end.session.cancel(
                StreamId(
                    std::next(side.open.begin(), static_cast<std::ptrdiff_t>(random.below(side.open.size())))->first),
                {.code = Errc::cancelled});
          }
          break;
        case 4:
        case 5:
          while (!side.requests.empty() && random.chance(3, 4)) {
            auto [stream, request] = std::move(side.requests.back());
            side.requests.pop_back();
            if (random.chance(1, 5)) {
              end.session.reply(stream, fail(Errc::not_found, "no"));
            } else {
              end.session.reply(stream, env::Reply{.header = request.header, .payload = std::move(request.payload)});
            }
          }
          break;
        case 6: link.carry(who == 0); break;
        case 7:
          link.now = link.now + milliseconds(static_cast<std::int64_t>(random.below(200)));
          if (end.session.next_timer() <= link.now) end.session.on_timer(link.now);
          break;
      }
      take(0);
      take(1);
    }
    if (random.chance(1, 2)) {
      (random.chance(1, 2) ? link.dialler : link.listener)
          .session.close({.code = Errc::cancelled, .message = "enough"});
    }
    link.settle();
    for (int i = 0; i < 10; ++i) {
      link.advance(seconds(1));
      take(0);
      take(1);
    }
    for (const Side& side : sides) {
      EXPECT_TRUE(side.open.empty()) << side.open.size() << " never ended, seed " << seed;
      EXPECT_EQ(side.ended, side.asked);
    }
    for (End* end : {&link.dialler, &link.listener}) {
      for (const auto* closed : end->all<Closed>()) {
        EXPECT_NE(closed->error.code, Errc::malformed) << closed->error.message << " seed " << seed;
        EXPECT_NE(closed->error.code, Errc::corrupt) << closed->error.message << " seed " << seed;
      }
    }
    EXPECT_GT(sides[0].answered + sides[1].answered, 0U);
  }
}

}  // namespace
}  // namespace holo::hyperbus
