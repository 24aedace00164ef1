// Peers that hold the keys and keep to nothing: whatever one does, it ends with its connection, costs bounded memory,
// and keeps nobody else from being served.
#include <gtest/gtest.h>

#include "core/hyperbus/message.h"
#include "sim/attack_testing.h"

namespace holo::sim {
namespace {

using namespace attack;

/// A listener, and somebody to see whether it still serves.
struct Siege : Scene {
  explicit Siege(std::shared_ptr<const hyperbus::SessionConfig> target = session_of(2))
      : Scene(session_of(1), std::move(target)) {}

  /// The session of the hostile peer, once there is one.
  PacketHost::LinkPtr theirs() {
    for (const auto& one : listener.host.links()) {
      if (one->remote == at(9)) return one;
    }
    return nullptr;
  }
  void wait_for(const HostilePeer& peer) {
    ASSERT_TRUE(run_until([&] { return peer.established && theirs() && theirs()->established; }, seconds(2)));
    link = theirs();
  }
  /// How it ended; its connection is gone with all that it had.
  std::optional<hyperbus::Closed> ended(Duration within) {
    if (!run_until([&] { return link->closed.has_value(); }, within)) return std::nullopt;
    run(seconds(3));  // The farewell is repeated for a while.
    EXPECT_FALSE(theirs());
    return link->closed;
  }
  void expect_served() {
    const std::uint64_t before = dialler.answered;
    const auto honest = dial();
    ask(honest);
    EXPECT_TRUE(run_until([&] { return dialler.answered == before + 1; }, seconds(2)));
    EXPECT_EQ(listener.host.counters().spinning, 0U);
  }
  PacketHost::LinkPtr link;
};

std::shared_ptr<const hyperbus::SessionConfig> small_windows() {
  auto out = std::make_shared<hyperbus::SessionConfig>(*session_of(2));
  for (auto& window : out->windows) window.requests = 4;
  return out;
}

// Promise 2.15.
TEST(HostilePeer, FramesThatBreakQuicEndTheConnection) {
  const Bytes ten(10, std::byte{7});
  const Bytes id(8, std::byte{9});
  const Bytes token(16, std::byte{8});
  Bytes many_ids;
  for (std::uint64_t i = 1; i < 10; ++i) {
    many_ids = many_ids + numbers({0x18, i, 0}) + ByteSpan(Bytes{std::byte{8}}) + Bytes(8, static_cast<std::byte>(i)) +
               Bytes(16, static_cast<std::byte>(i));
  }
  const std::pair<const char*, Bytes> cases[] = {
      {"a stream beyond those granted", stream_frame(4 * 9000, 0, ten)},
      {"a unidirectional stream beyond those granted", stream_frame(2 + 4 * 8, 0, ten)},
      {"the 1,000th unidirectional stream", stream_frame(2 + 4 * 1000, 0, ten)},
      {"a stream of ours that was never opened", stream_frame(1, 0, ten)},
      {"on a stream that only we write on", stream_frame(3, 0, ten)},
      {"beyond a stream's window", stream_frame(0, 1ULL << 26, ten)},
      {"beyond all windows", stream_frame(0, 1ULL << 40, ten)},
      {"beyond the largest offset", stream_frame(0, (1ULL << 62) - 5, ten)},
      {"after a stream's end", stream_frame(0, 0, ten, true) + stream_frame(0, 20, ten)},
      {"another end", stream_frame(0, 0, ten, true) + stream_frame(0, 0, Bytes(5), true)},
      {"a reset before what was said", stream_frame(0, 0, ten) + numbers({0x04, 0, 0, 3})},
      {"stop sending on a stream that we do not have", numbers({0x05, 1, 0})},
      {"a window for a stream that we do not have", numbers({0x11, 1, 1 << 20})},
      {"too many streams allowed", numbers({0x12, (1ULL << 60) + 1})},
      {"an acknowledgement of what was never sent", numbers({0x02, 1 << 20, 0, 0, 0})},
      {"an acknowledgement of less than nothing", numbers({0x02, 1, 0, 0, 5})},
      {"the handshake is done, says a client", numbers({0x1e})},
      {"a token, says a client", numbers({0x07, 4}) + Bytes(4)},
      {"a handshake message far off", numbers({0x06, 1 << 20, 10}) + ten},
      {"connection ids beyond those granted", many_ids},
      {"a connection id that retires what is to come", numbers({0x18, 1, 5}) + Bytes{std::byte{8}} + id + token},
      {"a connection id of no size", numbers({0x18, 1, 0}) + Bytes{std::byte{0}} + token},
      {"retires an id that was never given", numbers({0x19, 77})},
      {"a frame of no known type", numbers({0x21}) + ten},
      {"a frame of a large unknown type", numbers({1ULL << 40}) + ten},
      {"a frame cut short", numbers({0x0e, 0, 0, 100}) + ten},
      {"a path answer nobody asked for, then rubbish", numbers({0x1b}) + id + Bytes(3, std::byte{0x3f})},
  };
  for (const auto& [what, frames] : cases) {
    Siege siege;
    HostilePeer peer(siege.world, siege.listener.host, session_of(9));
    siege.wait_for(peer);
    peer.forge(frames);
    const auto end = siege.ended(seconds(1));
    ASSERT_TRUE(end) << what;
    EXPECT_EQ(end->error.code, Errc::malformed) << what << ": " << end->error.message;
    siege.expect_served();
  }
}

// The same frame again and again once ended the process, in the QUIC library of that time.
TEST(HostilePeer, ConnectionIdsThatRetireThemselvesHurtNobodyElse) {
  const Bytes id(8, std::byte{9});
  const Bytes token(16, std::byte{8});
  Bytes frames;
  for (int i = 0; i < 4; ++i) {
    frames = frames + numbers({0x18, (1ULL << 62) - 1, (1ULL << 62) - 1}) + ByteSpan(Bytes{std::byte{8}}) + id + token;
  }
  Siege siege;
  HostilePeer peer(siege.world, siege.listener.host, session_of(9));
  siege.wait_for(peer);
  peer.forge(frames);
  (void)siege.ended(seconds(1));  // It may, or may not.
  siege.expect_served();
}

// Promise 2.15.
TEST(HostilePeer, MessagesThatBreakTheProtocolEndTheConnection) {
  const auto control = [](std::initializer_list<int> bytes) {
    Bytes out;
    for (const int b : bytes) out.push_back(static_cast<std::byte>(b));
    return out;
  };
  const auto request = [](std::size_t header, std::uint64_t payload, std::uint8_t klass = 1) {
    return HostilePeer::request(header, payload, klass);
  };
  struct Case {
    const char* what;
    std::function<void(HostilePeer&)> act;
  };
  const Case cases[] = {
      {"a class that there is not", [&](HostilePeer& p) { p.say(p.open(), request(0, 0, 3)); }},
      {"a header over the limit", [&](HostilePeer& p) { p.say(p.open(), request((1 << 20) + 1, 0)); }},
      {"a payload over the limit", [&](HostilePeer& p) { p.say(p.open(), request(0, (16 << 20) + 1)); }},
      {"a payload beyond all numbers", [&](HostilePeer& p) { p.say(p.open(), request(0, ~std::uint64_t{0})); }},
      {"more content than announced", [&](HostilePeer& p) { p.say(p.open(), request(0, 0) + Bytes(1)); }},
      {"less content than announced", [&](HostilePeer& p) { p.say(p.open(), request(0, 9) + Bytes(8), true); }},
      {"an end within the head", [&](HostilePeer& p) { p.say(p.open(), Bytes(5), true); }},
      {"a second control stream",
       [&](HostilePeer& p) {
         p.say(p.open(false), control({1}));
         p.say(p.open(false), control({1}));
       }},
      {"a grant cut short", [&](HostilePeer& p) { p.say(p.open(false), control({1, 1, 0, 2, 0, 9, 9})); }},
      {"more requests than granted",
       [&](HostilePeer& p) {
         for (int i = 0; i < 9; ++i) p.say(p.open(), request(0, 1));  // The last byte of each never comes.
       }},
      {"more bytes than granted",
       [&](HostilePeer& p) {
         for (std::uint8_t klass = 0; klass < 3; ++klass) {
           for (int i = 0; i < 8; ++i) p.say(p.open(), request(0, 16 << 20, klass));
         }
       }},
  };
  for (const Case& c : cases) {
    Siege siege(small_windows());
    HostilePeer peer(siege.world, siege.listener.host, session_of(9));
    siege.wait_for(peer);
    c.act(peer);
    const auto end = siege.ended(seconds(1));
    ASSERT_TRUE(end) << c.what;
    EXPECT_EQ(end->error.code, Errc::malformed) << c.what;
    EXPECT_TRUE(peer.end && peer.end->application && peer.end->code == env::kQuicProtocolViolation) << c.what;
    EXPECT_EQ(siege.listener.served, 0U) << c.what;
    siege.expect_served();
  }
}

// Promise 2.15. Streams without end, which later releases may use: they are heard and kept nothing of.
TEST(HostilePeer, AnEndlessControlStreamIsSkipped) {
  Siege siege;
  HostilePeer peer(siege.world, siege.listener.host, session_of(9));
  siege.wait_for(peer);
  const env::QuicStreamId control = peer.open(false), other = peer.open(false);
  peer.say(control, Bytes{std::byte{1}});
  peer.say(other, Bytes{std::byte{77}});
  Bytes unknown(4 + 60'000);
  unknown[0] = std::byte{9};
  unknown[2] = static_cast<std::byte>(60'000 & 0xff);
  unknown[3] = static_cast<std::byte>(60'000 >> 8);
  std::size_t most = 0;
  for (int i = 0; i < 400; ++i) {  // 24 MB on each, more than a stream's window
    peer.say(control, unknown);
    peer.say(other, unknown);
    siege.run(milliseconds(20));
    most = std::max(most, siege.link->session->figures().memory_bytes);
  }
  EXPECT_TRUE(siege.run_until([&] { return siege.link->session->figures().bytes_in > 45'000'000; }, seconds(10)));
  EXPECT_FALSE(siege.link->closed);
  EXPECT_LT(most, 1U << 20);
  siege.expect_served();
}

TEST(HostilePeer, AThousandUnidirectionalStreamsAreEight) {
  Siege siege;
  HostilePeer peer(siege.world, siege.listener.host, session_of(9));
  siege.wait_for(peer);
  int opened = 0;
  for (int i = 0; i < 1000; ++i) {
    const env::QuicStreamId stream = peer.open(false);
    if (stream < 0) continue;
    ++opened;
    peer.say(stream, Bytes(100, std::byte{9}));
  }
  EXPECT_EQ(opened, 8);
  siege.run(seconds(1));
  EXPECT_FALSE(siege.link->closed);
  siege.expect_served();
}

// Promise 2.15. Reassembly is what costs: a gap after each byte.
TEST(HostilePeer, AMillionGapsCostBoundedMemory) {
  Siege siege;
  HostilePeer peer(siege.world, siege.listener.host, session_of(9));
  siege.wait_for(peer);
  std::size_t most = 0;
  std::uint64_t offset = 1;
  while (offset < 16'000'000 && !siege.link->closed) {
    Bytes frames;
    while (frames.size() < 1'300) {
      frames = std::move(frames) + stream_frame(0, offset, Bytes(1, std::byte{1}));
      offset += 8;
    }
    peer.forge(frames);
    if (siege.link->session) most = std::max(most, siege.link->session->figures().memory_bytes);
    if (offset % 1024 == 1) siege.run(microseconds(10));
  }
  EXPECT_LT(most, 65U << 20);
  siege.expect_served();
}

// Promise 2.15. All of its windows full of what cannot be delivered.
TEST(HostilePeer, WindowsFilledOutOfOrderCostBoundedMemory) {
  Siege siege;
  HostilePeer peer(siege.world, siege.listener.host, session_of(9));
  siege.wait_for(peer);
  std::size_t most = 0;
  const Bytes bytes(1'200, std::byte{1});
  for (std::uint64_t stream = 0; stream < 24 && !siege.link->closed; ++stream) {
    for (std::uint64_t offset = 1; offset < 17'000'000 && !siege.link->closed; offset += bytes.size()) {
      peer.forge(stream_frame(4 * stream, offset, bytes));
      if (siege.link->session) most = std::max(most, siege.link->session->figures().memory_bytes);
    }
    siege.run(microseconds(10));
  }
  EXPECT_LT(most, 65U << 20);
  siege.expect_served();
}

TEST(HostilePeer, OverlappingFramesAreDeliveredOnce) {
  Siege siege;
  HostilePeer peer(siege.world, siege.listener.host, session_of(9));
  siege.wait_for(peer);
  const Bytes hello = HostilePeer::request(5, 0) + as_bytes("hello");
  const Bytes other(hello.size(), std::byte{0xee});
  peer.forge(stream_frame(0, 0, ByteSpan(hello).first(10)));
  for (int i = 0; i < 1000; ++i) peer.forge(stream_frame(0, 0, ByteSpan(other).first(10)));  // The first counts.
  for (std::size_t at_byte = hello.size(); at_byte-- > 5;) {
    peer.forge(stream_frame(0, at_byte - 5, ByteSpan(hello).subspan(at_byte - 5), at_byte % 2 == 0));
  }
  siege.run(seconds(1));
  EXPECT_EQ(siege.listener.served, 1U);
  EXPECT_FALSE(siege.listener.wrong);
  EXPECT_FALSE(siege.link->closed);
  siege.expect_served();
}

/// What is answered is no more than what was asked with, and nothing piles up.
TEST(HostilePeer, FloodsOfSmallFramesArePaidForByWhoSendsThem) {
  Bytes pings, paths, resets;
  for (int i = 0; i < 1'000; ++i) pings.push_back(std::byte{0x01});
  for (std::uint64_t i = 0; i < 100; ++i) paths = paths + numbers({0x1a}) + Bytes(8, static_cast<std::byte>(i));
  for (std::uint64_t i = 0; i < 100; ++i) resets = resets + numbers({0x04, 4 * i, 0, 0}) + numbers({0x05, 4 * i, 0});
  for (const Bytes& flood : {pings, paths, resets}) {
    Siege siege;
    HostilePeer peer(siege.world, siege.listener.host, session_of(9));
    siege.wait_for(peer);
    const std::uint64_t said = peer.said_bytes, heard = peer.heard_bytes;
    std::size_t most = 0;
    for (int i = 0; i < 2'000; ++i) {
      peer.forge(flood);
      if (i % 10 == 0) siege.run(milliseconds(1));
      if (siege.link->session) most = std::max(most, siege.link->session->figures().memory_bytes);
    }
    siege.run(milliseconds(500));
    EXPECT_LT(most, 4U << 20);
    EXPECT_LE(peer.heard_bytes - heard, 3 * (peer.said_bytes - said));
    siege.expect_served();
  }
}

// Promise 2.16.
TEST(HostilePeer, OneThatFallsSilentIsGoneWithinTheIdleTimeout) {
  Siege siege;
  HostilePeer peer(siege.world, siege.listener.host, session_of(9));
  siege.wait_for(peer);
  peer.deaf = peer.mute = true;
  const auto end = siege.ended(seconds(9));
  ASSERT_TRUE(end);
  EXPECT_EQ(end->error.code, Errc::unavailable);
}

// Promise 2.16. It asks for much, lets nothing be known to have arrived, and keeps the connection alive.
TEST(HostilePeer, OneThatNeverAcknowledgesIsCutOff) {
  Siege siege;
  siege.listener.host.on_event = [&](const PacketHost::LinkPtr& link, hyperbus::Event event) {
    if (auto* arrived = std::get_if<hyperbus::RequestArrived>(&event)) {
      std::vector<Buffer> payload;
      payload.emplace_back(Bytes(1 << 20));
      link->session->reply(arrived->stream, env::Reply{.header = {}, .payload = std::move(payload)});
    }
  };
  HostilePeer peer(siege.world, siege.listener.host, session_of(9));
  siege.wait_for(peer);
  peer.grant(1'000, 1ULL << 40, 1ULL << 40);
  for (int i = 0; i < 40; ++i) peer.say(peer.open(), HostilePeer::request(0, 0), true);
  siege.run(microseconds(300));  // The requests have left.
  const std::uint64_t heard = peer.heard_bytes;
  const Instant begin = siege.world.now();
  for (int i = 0; i < 60 && !siege.link->closed; ++i) {
    peer.forge(numbers({0x01}));
    siege.run(seconds(1));
  }
  ASSERT_TRUE(siege.link->closed) << "it holds what it was given for ever";
  EXPECT_LE((siege.world.now() - begin).ns, seconds(20).ns);
  EXPECT_EQ(siege.link->closed->error.code, Errc::unavailable) << siege.link->closed->error.message;
  siege.run(seconds(3));
  EXPECT_FALSE(siege.theirs());
  EXPECT_LT(peer.heard_bytes - heard, 1U << 20) << "what is not acknowledged is not followed by more and more";
}

// Promise 2.16. It grants nothing: what would be sent to it waits, bounded, until somebody's patience ends.
TEST(HostilePeer, OneThatTakesNothingHoldsABoundedQueue) {
  Siege siege;
  HostilePeer peer(siege.world, siege.listener.host, session_of(9));
  siege.wait_for(peer);
  std::uint64_t overloaded = 0, late = 0;
  siege.listener.host.on_event = [&](const PacketHost::LinkPtr&, hyperbus::Event event) {
    if (auto* reply = std::get_if<hyperbus::ReplyArrived>(&event)) {
      late += !reply->result && reply->result.error().code == Errc::deadline_exceeded ? 1 : 0;
    }
  };
  const Instant deadline = siege.world.now() + seconds(2);
  std::uint64_t waiting = 0;
  for (int i = 0; i < 10'000; ++i) {
    std::vector<Buffer> payload;
    payload.emplace_back(Bytes(1'000));
    const auto asked = siege.listener.host.request(siege.link, env::StreamClass::data,
                                                   {.type = 1, .payload = std::move(payload)}, deadline);
    if (asked) {
      ++waiting;
    } else {
      overloaded += asked.error().code == Errc::overloaded ? 1 : 0;
    }
  }
  EXPECT_EQ(waiting, limits::kMaxCallsPerPeer);
  EXPECT_EQ(overloaded, 10'000 - limits::kMaxCallsPerPeer);
  siege.run(seconds(3));
  EXPECT_EQ(late, waiting) << "each ended, once, by its deadline";
  EXPECT_EQ(siege.link->session->class_status(env::StreamClass::data).in_flight, 0U);
}

/// It asks and does not let the answers begin.
TEST(HostilePeer, OneThatLetsNoAnswerBeginIsServedNoMoreThanItWasGranted) {
  Siege siege(small_windows());
  HostilePeer peer(siege.world, siege.listener.host, session_of(9));
  siege.wait_for(peer);
  for (int i = 0; i < 20; ++i) {
    peer.say(peer.open(), HostilePeer::request(5, 0) + as_bytes("hello"), true);
    siege.run(milliseconds(10));
  }
  const auto end = siege.ended(seconds(1));
  ASSERT_TRUE(end);
  EXPECT_EQ(end->error.code, Errc::malformed);
  EXPECT_LE(siege.listener.served, 2U * 4U);
  siege.expect_served();
}

// Promise 2.16. Before the handshake is done, the deadline ends it, however diligent the drip.
TEST(HostilePeer, AHandshakeThatDripsIsOverAtItsDeadline) {
  std::vector<Bytes> flight;
  {
    Scene scene;
    scene.dialler.host.on_send = [&](const env::DatagramPath&, Bytes& datagram) {
      if (flight.size() < 2) flight.push_back(datagram);
      return true;
    };
    scene.dial();
    scene.run(milliseconds(10));
    ASSERT_EQ(flight.size(), 2U);
  }
  for (const std::size_t first : {std::size_t{0}, std::size_t{1}}) {
    Siege siege;
    PacketHost& host = siege.listener.host;
    host.on_send = [](const env::DatagramPath& path, Bytes&) { return path.remote != at(9); };
    const auto drip = [&](std::size_t which) {
      host.receive({.path = {.local = host.local(), .remote = at(9)}, .bytes = flight[which]});
    };
    drip(first);
    ASSERT_TRUE(siege.theirs() || first == 1) << "half of message 1 makes a session";
    for (int second = 0; second < 5; ++second) {
      siege.run(seconds(1));
      if (siege.theirs()) drip(first);
    }
    siege.run(milliseconds(100));
    EXPECT_FALSE(siege.theirs()) << first;
    siege.expect_served();
  }
}

// Promise 2.16. Afterwards it holds no more than what it was granted, and nobody waits for it.
TEST(HostilePeer, ARequestThatDripsHoldsItsOwnCreditOnly) {
  Siege siege;
  HostilePeer peer(siege.world, siege.listener.host, session_of(9));
  siege.wait_for(peer);
  const env::QuicStreamId stream = peer.open();
  const Bytes all = HostilePeer::request(5, 0) + as_bytes("hello");
  std::size_t most = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    peer.say(stream, ByteSpan(all).subspan(i, 1), i + 1 == all.size());
    siege.run(seconds(1));
    EXPECT_EQ(siege.listener.served, i + 1 == all.size() ? 1U : 0U);
    most = std::max(most, siege.link->session->figures().memory_bytes);
    if (i % 8 == 0) siege.expect_served();
    siege.listener.served = 0;
  }
  EXPECT_FALSE(siege.link->closed);
  EXPECT_LT(most, 1U << 20);
}

// Promise 2.16.
TEST(HostilePeer, AClockThatRunsOffHurtsItsOwnerOnly) {
  for (const std::int64_t drift_per_mille : {-900, -200, 200, 900}) {
    Scene scene;
    const auto link = scene.dial();
    Duration skew{};
    for (int i = 0; i < 3'000; ++i) {
      scene.run(milliseconds(10));
      skew = skew + microseconds(10 * drift_per_mille);
      scene.dialler.loop.set_skew(skew);
      if (i % 100 == 0) scene.ask(link);
    }
    scene.run(seconds(100));
    EXPECT_EQ(scene.dialler.answered + scene.dialler.failed, 30U) << drift_per_mille << ": each ends";
    EXPECT_EQ(scene.listener.host.counters().spinning, 0U);
    EXPECT_EQ(scene.dialler.host.counters().spinning, 0U);
    EXPECT_FALSE(scene.dialler.wrong || scene.listener.wrong);
    const std::uint64_t before = scene.dialler.answered;
    const auto again = scene.dial();
    scene.ask(again);
    EXPECT_TRUE(scene.run_until([&] { return scene.dialler.answered == before + 1; }, seconds(3)));
  }
  // It jumps an hour ahead, as when a machine wakes up, in the midst of everything.
  Scene scene;
  const auto link = scene.dial();
  ASSERT_TRUE(scene.run_until([&] { return link->established.has_value(); }, seconds(1)));
  for (int i = 0; i < 10; ++i) scene.ask(link, seconds(8'000));
  scene.dialler.loop.set_skew(seconds(3'600));
  scene.dialler.host.wake();
  scene.run(seconds(10));
  EXPECT_EQ(scene.dialler.answered + scene.dialler.failed, 10U);
  const auto again = scene.dial();
  scene.ask(again);
  scene.run(seconds(5));
  EXPECT_EQ(scene.dialler.answered + scene.dialler.failed, 11U);
  EXPECT_GE(scene.dialler.answered, 1U);
  EXPECT_LE(scene.listener.host.links().size(), 2U);
}

}  // namespace
}  // namespace holo::sim
