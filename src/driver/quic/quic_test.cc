// Connections back to back: what env/quic.h promises, under a network that does its worst.
#include <gtest/gtest.h>

#include "crypto/hash.h"
#include "driver/quic/quic_testing.h"

namespace holo::driver::quic {
namespace {

using testing::App;
using testing::endpoint;
using testing::Faults;
using testing::World;
using Cause = env::QuicEnd::Cause;

constexpr std::size_t kMiB = 1 << 20;

template <std::size_t N>
void expect_prefix(const std::array<std::uint8_t, N>& constant, const std::string& text) {
  const auto digest = crypto::sha256(as_bytes(text));
  EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(constant)), ByteSpan(digest).first(N))) << text;
}

TEST(QuicConstants, AreWhatTheHeaderSays) {
  expect_prefix(kInitialSalt, "holo hyperbus initial salt v1");
  expect_prefix(kRetryKey, "holo hyperbus retry key v1");
  expect_prefix(kRetryNonce, "holo hyperbus retry nonce v1");
}

env::QuicStreamId open(World::Side& side) { return side.connection->open(true).value(); }

/// Sends `bytes` from each side on a stream of its own and waits until all is there, acknowledged, and closed.
void exchange(World& world, std::size_t bytes) {
  std::vector<std::pair<World::Side*, env::QuicStreamId>> streams;
  for (World::Side* side : {&world.client, &world.server}) {
    const auto stream = open(*side);
    side->app.send(stream, bytes);
    streams.emplace_back(side, stream);
  }
  const bool done = world.run_until([&] {
    return std::ranges::all_of(streams, [&](const auto& s) {
      return world.client.app.closed.contains(s.second) && world.server.app.closed.contains(s.second);
    });
  });
  EXPECT_TRUE(done);
  for (const auto& [side, stream] : streams) {
    const App& other = side == &world.client ? world.server.app : world.client.app;
    const auto& in = other.in.at(stream);
    EXPECT_EQ(in.bytes, bytes);
    EXPECT_TRUE(in.fin);
    EXPECT_FALSE(in.wrong);
    EXPECT_EQ(side->app.out.at(stream).acknowledged, bytes);
  }
}

TEST(Quic, ShakesHandsAndCarriesStreamsBothWays) {
  World world;
  ASSERT_TRUE(world.establish());
  exchange(world, 16 * kMiB);
  EXPECT_FALSE(world.client.app.end);
  EXPECT_EQ(world.client.connection->stats().packets_lost, 0U);
  EXPECT_EQ(world.client.connection->stats().datagram_bytes, 1452U);
  EXPECT_EQ(world.client.connection->stats().path.remote, world.server.address);
  EXPECT_LT(world.client.connection->stats().smoothed_rtt.ns, milliseconds(20).ns);
  EXPECT_LT(world.client.bursts * 5, world.client.datagrams) << "packets go out in batches";
  EXPECT_EQ(world.client.last_ecn, env::Ecn::ect0) << "the path was found to carry ECN";
}

TEST(Quic, TheEndOfAMessageDoesNotCutABurst) {
  World world;
  ASSERT_TRUE(world.establish());
  exchange(world, 16 * kMiB);
  world.client.cut = 0;
  std::vector<env::QuicStreamId> streams;
  for (std::size_t i = 0; i < 80; ++i) {
    streams.push_back(world.client.connection->open(true).value());
    world.client.app.send(streams.back(), 20'000 + 97 * i);
  }
  EXPECT_TRUE(world.run_until(
      [&] { return std::ranges::all_of(streams, [&](auto s) { return world.client.app.closed.contains(s); }); }));
  EXPECT_EQ(world.client.cut, 0U);
}

TEST(Quic, BothCiphers) {
  for (const auto cipher : {env::QuicCipher::aes_256_gcm, env::QuicCipher::xchacha20_poly1305}) {
    World::Options options;
    options.client.cipher = options.server.cipher = cipher;
    World world(options);
    ASSERT_TRUE(world.establish());
    exchange(world, kMiB);
  }
}

TEST(Quic, CiphersThatDifferUnderstandNothing) {
  World::Options options;
  options.client.cipher = env::QuicCipher::xchacha20_poly1305;
  World world(options);
  EXPECT_FALSE(world.run_until([&] { return world.server.app.established; }, seconds(20)));
  EXPECT_EQ(world.server.app.end.value().cause, Cause::idle);
  EXPECT_EQ(world.client.app.end.value().cause, Cause::idle);
}

TEST(Quic, LargeDatagramsWhenConfigured) {
  World::Options options;
  options.config.datagram_bytes = 8952;
  World world(options);
  ASSERT_TRUE(world.establish());
  exchange(world, 4 * kMiB);
  EXPECT_EQ(world.client.largest, 8952U);
  EXPECT_EQ(world.client.connection->stats().datagram_bytes, 8952U);
}

TEST(Quic, FindsThePathMtu) {
  World world;
  world.max_datagram = 1350;
  ASSERT_TRUE(world.establish());
  exchange(world, kMiB);
  world.settle(seconds(10));
  EXPECT_EQ(world.client.connection->stats().datagram_bytes, 1342U);
  EXPECT_EQ(world.server.connection->stats().datagram_bytes, 1342U);
}

TEST(Quic, FindsThatThePathTakesJumboFrames) {
  World world;
  world.max_datagram = 9000;
  ASSERT_TRUE(world.establish());
  exchange(world, kMiB);
  world.settle(seconds(10));
  EXPECT_EQ(world.client.connection->stats().datagram_bytes, 8952U);
  EXPECT_EQ(world.server.connection->stats().datagram_bytes, 8952U);
}

TEST(Quic, ManyStreamsWithinTheLimit) {
  World world;
  ASSERT_TRUE(world.establish());
  constexpr int kStreams = 3000;
  int opened = 0;
  const auto open_more = [&] {
    while (opened < kStreams) {
      const auto stream = world.client.connection->open(true);
      if (!stream) {
        EXPECT_EQ(stream.error().code, Errc::overloaded);
        return;
      }
      world.client.app.send(*stream, 500 + static_cast<std::size_t>(opened));
      ++opened;
    }
  };
  world.client.app.when_available = open_more;
  open_more();
  EXPECT_EQ(opened, 100);
  EXPECT_TRUE(world.run_until([&] { return world.client.app.closed.size() == kStreams; }));
  EXPECT_TRUE(world.run_until([&] { return world.server.app.closed.size() == kStreams; }));
  EXPECT_GT(world.client.app.available, 0);
  for (const auto& [stream, in] : world.server.app.in) {
    EXPECT_EQ(in.bytes, 500 + static_cast<std::size_t>(stream) / 4);
    EXPECT_FALSE(in.wrong);
  }
}

TEST(Quic, UnidirectionalStreams) {
  World world;
  ASSERT_TRUE(world.establish());
  const auto stream = world.server.connection->open(false).value();
  EXPECT_FALSE(env::is_bidirectional(stream));
  EXPECT_FALSE(env::is_client_initiated(stream));
  world.server.app.send(stream, 10'000);
  EXPECT_TRUE(world.run_until([&] { return world.server.app.closed.contains(stream); }));
  EXPECT_EQ(world.client.app.in.at(stream).bytes, 10'000U);
  EXPECT_TRUE(world.client.app.in.at(stream).fin);
}

TEST(Quic, AStreamIsHeldBackByItsWindowAndGoesOn) {
  // The reader's window holds 1 MiB; as it takes everything at once the writer is blocked and released many times.
  World world;
  ASSERT_TRUE(world.establish());
  const auto stream = open(world.client);
  world.muted = &world.server;  // No acknowledgements, no credit.
  world.client.app.send(stream, 3 * kMiB);
  world.settle(milliseconds(1));
  EXPECT_LE(world.client.app.out.at(stream).written, kMiB);
  world.muted = nullptr;
  EXPECT_TRUE(world.run_until([&] { return world.client.app.closed.contains(stream); }));
  EXPECT_EQ(world.server.app.in.at(stream).bytes, 3 * kMiB);
  EXPECT_GT(world.client.app.unblocked, 0);
}

TEST(Quic, ABlockedStreamDoesNotHoldUpOthers) {
  World::Options options;
  options.config.stream_window = 64 << 10;
  World world(options);
  ASSERT_TRUE(world.establish());
  const auto big = open(world.client), small = open(world.client);
  world.client.app.send(big, 4 * kMiB);
  world.client.app.send(small, 1000);
  EXPECT_TRUE(world.run_until([&] { return world.server.app.in[small].fin; }, milliseconds(20)));
  EXPECT_FALSE(world.server.app.in[big].fin);
  EXPECT_TRUE(world.run_until([&] { return world.server.app.in[big].fin; }));
}

TEST(Quic, TheConnectionsWindowHoldsToo) {
  World::Options options;
  options.config.connection_window = 128 << 10;
  World world(options);
  ASSERT_TRUE(world.establish());
  exchange(world, 4 * kMiB);
}

TEST(Quic, TheWriterGivesUp) {
  World world;
  ASSERT_TRUE(world.establish());
  world.server.app.answer_fin = false;
  const auto stream = open(world.client);
  world.client.app.send(stream, kMiB, false);
  ASSERT_TRUE(world.run_until([&] { return world.server.app.in[stream].bytes > 100'000; }));
  world.client.connection->abandon(stream, 77);
  world.client.app.give_up(stream);
  EXPECT_TRUE(world.run_until(
      [&] { return world.client.app.closed.contains(stream) && world.server.app.closed.contains(stream); }));
  EXPECT_EQ(world.server.app.abandoned.at(stream), 77U);
  EXPECT_FALSE(world.server.app.in.at(stream).fin);
  EXPECT_FALSE(world.server.app.in.at(stream).wrong);
  world.server.app.answer_fin = true;
  exchange(world, kMiB);  // The rest goes on.
}

TEST(Quic, TheReaderGivesUp) {
  World world;
  ASSERT_TRUE(world.establish());
  world.server.app.answer_fin = false;
  const auto stream = open(world.client);
  world.client.app.send(stream, 16 * kMiB);
  bool given_up = false;
  world.server.app.on_data = [&](env::QuicStreamId s, ByteSpan, bool) -> Status {
    EXPECT_FALSE(given_up && s == stream) << "nothing more after abandon()";
    if (s == stream && world.server.app.in[s].bytes > 100'000) {
      world.server.connection->abandon(s, 78);  // From within the callback.
      given_up = true;
    }
    return {};
  };
  EXPECT_TRUE(world.run_until(
      [&] { return world.client.app.closed.contains(stream) && world.server.app.closed.contains(stream); }));
  EXPECT_EQ(world.client.app.abandoned.at(stream), 78U);
  EXPECT_LT(world.server.app.in.at(stream).bytes, 4 * kMiB);
  world.server.app.answer_fin = true;
  exchange(world, kMiB);
}

/// The peer has sent all it had, so that only STOP_SENDING tells us that it wants no more.
TEST(Quic, TheReaderGivesUpAfterItsOwnEnd) {
  World world;
  ASSERT_TRUE(world.establish());
  const auto stream = open(world.client);
  world.client.app.send(stream, 16 * kMiB);  // The server ends its direction with the first byte that it sees.
  ASSERT_TRUE(world.run_until([&] { return world.client.app.in[stream].fin; }));
  world.server.connection->abandon(stream, 79);
  EXPECT_TRUE(world.run_until(
      [&] { return world.client.app.closed.contains(stream) && world.server.app.closed.contains(stream); }));
  EXPECT_TRUE(world.client.app.abandoned.contains(stream));
  EXPECT_LT(world.server.app.in.at(stream).bytes, 16 * kMiB);
}

/// Whoever works on an answer hears at once that nobody wants it, though it writes nothing yet.
TEST(Quic, StopSendingIsToldAtOnce) {
  World world;
  ASSERT_TRUE(world.establish());
  world.server.app.answer_fin = false;
  const auto stream = open(world.client);
  world.client.app.send(stream, 5000);
  ASSERT_TRUE(world.run_until([&] { return world.server.app.in[stream].fin; }));
  world.settle();  // All of it is acknowledged: there is nothing left that RESET_STREAM could reset.
  world.client.connection->abandon(stream, 81);
  EXPECT_TRUE(world.run_until([&] { return world.server.app.abandoned.contains(stream); }, seconds(1)));
  EXPECT_EQ(world.server.app.abandoned.at(stream), 81U);
  EXPECT_TRUE(world.run_until(
      [&] { return world.client.app.closed.contains(stream) && world.server.app.closed.contains(stream); }));
}

TEST(Quic, AbandonedBeforeAnythingWasSentEndsOnBothSides) {
  World world;
  ASSERT_TRUE(world.establish());
  std::set<env::QuicStreamId> all;
  for (int i = 0; i < 300; ++i) {  // Three times as many as may be open at once.
    const auto stream = open(world.client);
    all.insert(stream);
    world.client.connection->abandon(stream, 82);
    world.client.app.give_up(stream);
    ASSERT_TRUE(world.run_until([&] { return world.client.app.closed.contains(stream); }, seconds(1))) << i;
  }
  world.settle();
  for (const auto stream : all) EXPECT_TRUE(world.server.app.closed.contains(stream)) << stream;
  EXPECT_FALSE(world.client.app.end || world.server.app.end);
  exchange(world, 1000);
}

/// What tells the peer of the stream is lost, what gives it up is not; and the other way round.
TEST(Quic, AbandonedWhileItsFirstBytesAreLostEndsOnBothSides) {
  for (int lost = 1; lost <= 4; ++lost) {
    World world;
    ASSERT_TRUE(world.establish());
    world.server.app.answer_fin = false;
    world.settle();
    int from_client = 0;
    world.on_wire = [&](const env::IpEndpoint& from, ByteSpan) {
      return from != world.client.address || ++from_client > lost;
    };
    const auto stream = open(world.client);
    world.client.app.send(stream, 500);
    world.flush(world.client);
    world.client.connection->abandon(stream, 83);
    world.client.app.give_up(stream);
    EXPECT_TRUE(world.run_until([&] {
      return world.client.app.closed.contains(stream) && world.server.app.closed.contains(stream);
    })) << lost;
  }
}

TEST(Quic, WhateverIsLostAbandonedStreamsEndOnBothSides) {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    World world({.seed = seed, .faults = {.jitter = milliseconds(2), .loss = 100, .repeat = 50}});
    ASSERT_TRUE(world.establish());
    world.server.app.answer_fin = false;
    std::set<env::QuicStreamId> all;
    for (int i = 0; i < 60; ++i) {
      const auto stream = open(world.client);
      all.insert(stream);
      world.client.app.send(stream, world.random.below(20'000), world.random.chance(1, 2));
      world.settle(microseconds(static_cast<std::int64_t>(world.random.below(3'000))));
      if (world.random.chance(1, 4) && world.server.app.in.contains(stream)) {
        world.server.connection->abandon(stream, 84);
        world.server.app.give_up(stream);
      } else {
        world.client.connection->abandon(stream, 85);
        world.client.app.give_up(stream);
      }
    }
    EXPECT_TRUE(world.run_until([&] {
      return std::ranges::all_of(all, [&](auto s) {
        return world.client.app.closed.contains(s) &&
               (world.server.app.closed.contains(s) || !world.server.app.in.contains(s));
      });
    })) << seed;
    EXPECT_FALSE(world.client.app.end || world.server.app.end) << seed;
  }
}

TEST(Quic, AbandoningWhatIsUnknownOrOverIsHarmless) {
  World world;
  ASSERT_TRUE(world.establish());
  world.client.connection->abandon(400, 1);
  world.client.connection->abandon(401, 1);
  world.client.connection->abandon(-1, 1);
  const auto stream = open(world.client);
  world.client.app.send(stream, 10);
  ASSERT_TRUE(world.run_until([&] { return world.client.app.closed.contains(stream); }));
  world.client.connection->abandon(stream, 1);
  exchange(world, 1000);
}

TEST(Quic, ClosesWithAReason) {
  World world;
  ASSERT_TRUE(world.establish());
  world.client.connection->close(world.now, 1234, "good night");
  EXPECT_FALSE(world.client.connection->finished());
  ASSERT_TRUE(world.run_until([&] { return world.server.app.end.has_value(); }, milliseconds(10)));
  const env::QuicEnd& there = *world.server.app.end;
  EXPECT_EQ(there.cause, Cause::closed_by_peer);
  EXPECT_TRUE(there.application);
  EXPECT_EQ(there.code, 1234U);
  EXPECT_EQ(there.reason, "good night");
  EXPECT_TRUE(world.server.connection->finished());
  const env::QuicEnd& here = *world.client.app.end;
  EXPECT_EQ(here.cause, Cause::closed_here);
  EXPECT_EQ(here.code, 1234U);
  EXPECT_EQ(here.reason, "good night");
  EXPECT_TRUE(world.run_until([&] { return world.client.connection->finished(); }, seconds(2)));
  EXPECT_EQ(world.client.app.ends, 1);
  EXPECT_EQ(world.server.app.ends, 1);

  // Everything is harmless now.
  for (World::Side* side : {&world.client, &world.server}) {
    EXPECT_EQ(side->connection->open(true).error().code, Errc::unavailable);
    side->connection->abandon(0, 1);
    side->connection->ping();
    side->connection->close(world.now, 1, "again");
    side->connection->receive(world.now, {.local = side->address, .remote = endpoint(3, 3)}, env::Ecn::ce,
                              Bytes(1200, std::byte{0x41}));
    side->connection->on_timer(world.now + seconds(100));
    Bytes out(64 << 10);
    EXPECT_FALSE(side->connection->send(world.now + seconds(100), out));
    EXPECT_TRUE(side->connection->finished());
    EXPECT_EQ(side->connection->next_timer(), kNever);
    EXPECT_EQ(side->app.ends, 1);
  }
}

TEST(Quic, ALostFarewellIsRepeated) {
  World world;
  ASSERT_TRUE(world.establish());
  const auto stream = open(world.server);
  world.server.app.send(stream, 64 * kMiB);
  world.settle(milliseconds(1));
  bool lost = false;
  world.on_wire = [&](const env::IpEndpoint& from, ByteSpan) {
    return from != world.client.address || std::exchange(lost, true);
  };
  world.client.connection->close(world.now, 5, "bye");
  EXPECT_TRUE(world.run_until([&] { return world.server.app.end.has_value(); }, seconds(1)));
  EXPECT_EQ(world.server.app.end->code, 5U);
}

TEST(Quic, CloseBeforeAnythingWasSentIsSilent) {
  World world;
  world.client.connection->close(world.now, 1, "never mind");
  world.settle();
  EXPECT_EQ(world.client.app.end.value().cause, Cause::closed_here);
  EXPECT_TRUE(world.client.connection->finished());
  EXPECT_FALSE(world.server.connection);
}

TEST(Quic, AnApplicationThatRefusesDataEndsTheConnection) {
  World world;
  ASSERT_TRUE(world.establish());
  world.server.app.on_data = [](env::QuicStreamId, ByteSpan, bool) -> Status {
    return fail(Errc::malformed, "what is that");
  };
  const auto stream = open(world.client);
  world.client.app.send(stream, kMiB);
  ASSERT_TRUE(world.run_until([&] { return world.client.app.end && world.server.app.end; }));
  EXPECT_EQ(world.client.app.end->cause, Cause::closed_by_peer);
  EXPECT_TRUE(world.client.app.end->application);
  EXPECT_EQ(world.client.app.end->code, env::kQuicProtocolViolation);
  EXPECT_EQ(world.client.app.end->reason, "what is that");
  EXPECT_EQ(world.server.app.end->cause, Cause::protocol);
  EXPECT_EQ(world.server.app.end->reason, "what is that");
}

TEST(Quic, HandshakeFailuresReachThePeer) {
  for (const int at : {1, 2, 3}) {
    SCOPED_TRACE(at);
    World::Options options;
    (at == 2 ? options.client : options.server).fail_at = at;
    World world(options);
    World::Side& failing = at == 2 ? world.client : world.server;
    World::Side& other = at == 2 ? world.server : world.client;
    ASSERT_TRUE(world.run_until([&] { return failing.app.end && other.app.end; }, milliseconds(100)));
    EXPECT_EQ(failing.app.end->cause, Cause::handshake_failed);
    EXPECT_EQ(failing.app.end->code, 0x100U + 42);
    EXPECT_EQ(failing.app.end->reason, "not today");
    EXPECT_EQ(other.app.end->cause, Cause::closed_by_peer);
    EXPECT_FALSE(other.app.end->application);
    EXPECT_EQ(other.app.end->code, 0x100U + 42);
    EXPECT_EQ(other.app.end->reason, "not today");
    EXPECT_TRUE(failing.connection->finished());
    EXPECT_TRUE(other.connection->finished());
  }
}

// Both have to be able to open one stream of their own; a session without it once ended the process.
TEST(Quic, APeerThatAllowsNoStreamIsRefused) {
  for (const bool server : {false, true}) {
    SCOPED_TRACE(server);
    World::Options options;
    (server ? options.server : options.client).allows_no_stream = true;
    World world(options);
    World::Side& refusing = server ? world.client : world.server;
    ASSERT_TRUE(world.run_until([&] { return refusing.app.end.has_value(); }, milliseconds(100)));
    EXPECT_EQ(refusing.app.end->cause, Cause::handshake_failed);
  }
}

TEST(Quic, NobodyAnswers) {
  World world;
  world.muted = &world.server;
  const Instant start = world.now;
  EXPECT_TRUE(world.run_until([&] { return world.client.app.end.has_value(); }));
  EXPECT_EQ(world.client.app.end->cause, Cause::idle);
  EXPECT_NEAR((world.now - start).seconds(), 5, 0.1);
  EXPECT_TRUE(world.client.connection->finished());
}

TEST(Quic, APeerThatVanishesIsNoticed) {
  World world;
  ASSERT_TRUE(world.establish());
  world.settle(seconds(30));
  EXPECT_FALSE(world.client.app.end) << "keep-alive holds an idle connection";
  EXPECT_FALSE(world.server.app.end);
  world.on_wire = [&](const env::IpEndpoint&, ByteSpan) { return false; };
  const Instant start = world.now;
  EXPECT_TRUE(world.run_until([&] { return world.client.app.end && world.server.app.end; }));
  EXPECT_LT((world.now - start).seconds(), 11);
  EXPECT_EQ(world.client.app.end->cause, Cause::idle);
  EXPECT_EQ(world.server.app.end->cause, Cause::idle);
}

TEST(Quic, AnIdleConnectionIsQuiet) {
  World world;
  ASSERT_TRUE(world.establish());
  world.settle(seconds(5));
  const auto before = world.client.datagrams + world.server.datagrams;
  world.settle(seconds(60));
  EXPECT_LE(world.client.datagrams + world.server.datagrams - before, 130U);
}

TEST(Quic, ASmallRequestTakesThreePackets) {
  World world;
  ASSERT_TRUE(world.establish());
  exchange(world, 100);
  world.settle(milliseconds(500));
  const auto client = world.client.datagrams, server = world.server.datagrams;
  constexpr std::uint64_t kRequests = 5;
  for (std::uint64_t i = 0; i < kRequests; ++i) {
    const auto stream = open(world.client);
    world.client.app.send(stream, 100);
    world.settle(milliseconds(100));
    EXPECT_TRUE(world.client.app.closed.contains(stream));
  }
  EXPECT_EQ(world.client.datagrams - client, 2 * kRequests);  // The request, and the acknowledgement of its reply.
  EXPECT_EQ(world.server.datagrams - server, kRequests);      // The reply has that of the request with it.
}

TEST(Quic, PingIsAnswered) {
  World world;
  ASSERT_TRUE(world.establish());
  world.settle(seconds(1));
  const auto client = world.client.datagrams, server = world.server.datagrams;
  world.client.connection->ping();
  world.settle(milliseconds(100));
  EXPECT_GT(world.client.datagrams, client);
  EXPECT_GT(world.server.datagrams, server);
}

class QuicFaults : public ::testing::TestWithParam<std::uint64_t> {};

TEST_P(QuicFaults, EverythingArrives) {
  Random random(GetParam());
  World::Options options;
  options.seed = GetParam();
  options.retry = random.chance(1, 4);
  options.faults = {.delay = microseconds(static_cast<std::int64_t>(20 + random.below(2000))),
                    .jitter = microseconds(static_cast<std::int64_t>(random.below(1000))),
                    .loss = static_cast<std::uint32_t>(random.below(100)),
                    .repeat = static_cast<std::uint32_t>(random.below(100)),
                    .flip = static_cast<std::uint32_t>(random.below(50)),
                    .truncate = static_cast<std::uint32_t>(random.below(20))};
  if (random.chance(1, 3)) options.config.packets_per_key = 50 + random.below(200);
  if (random.chance(1, 4)) options.config.datagram_bytes = 2000 + random.below(7000);
  World world(options);
  // A handshake may fail where Initial packets are altered (they prove nothing); then there is nothing more to see.
  if (!world.run_until([&] {
        return (world.client.app.established && world.server.app.established) || world.client.app.end ||
               world.server.app.end;
      }) ||
      world.client.app.end || world.server.app.end) {
    EXPECT_TRUE(world.client.app.end || world.server.app.end);
    return;
  }
  std::set<env::QuicStreamId> kept, all;
  for (int i = 0; i < 60; ++i) {
    World::Side& side = i % 2 == 0 ? world.client : world.server;
    const auto stream = open(side);
    side.app.send(stream, 1 + random.below(i % 10 == 0 ? 500'000 : 20'000));
    all.insert(stream);
    if (random.chance(1, 5)) {
      world.settle(microseconds(static_cast<std::int64_t>(random.below(3000))));
      World::Side& gives_up = random.chance(1, 2) ? world.client : world.server;
      gives_up.connection->abandon(stream, 3);
      gives_up.app.give_up(stream);
    } else {
      kept.insert(stream);
    }
  }
  EXPECT_TRUE(world.run_until(
      [&] {
        if (world.client.app.end && world.server.app.end) return true;
        return std::ranges::all_of(
            kept, [&](auto s) { return world.client.app.closed.contains(s) && world.server.app.closed.contains(s); });
      },
      seconds(300)));
  for (const World::Side* side : {&world.client, &world.server}) {
    // See end_when_stalled(): ngtcp2's window may stay full for ever; then the connection says so.
    if (side->app.end && side->app.end->cause == Cause::internal && side->app.end->reason == "stalled") return;
  }
  for (const auto stream : kept) {
    const bool from_client = env::is_client_initiated(stream);
    const App& from = from_client ? world.client.app : world.server.app;
    const App& to = from_client ? world.server.app : world.client.app;
    EXPECT_EQ(to.in.at(stream).bytes, from.out.at(stream).size);
    EXPECT_TRUE(to.in.at(stream).fin);
    EXPECT_FALSE(to.in.at(stream).wrong);
  }
  EXPECT_FALSE(world.client.app.end);
  EXPECT_FALSE(world.server.app.end);
}
INSTANTIATE_TEST_SUITE_P(Seeds, QuicFaults, ::testing::Range<std::uint64_t>(1, 41));

TEST(Quic, LossIsCounted) {
  World world;
  ASSERT_TRUE(world.establish());
  world.faults.loss = 30;
  exchange(world, 4 * kMiB);
  const auto stats = world.client.connection->stats();
  EXPECT_GT(stats.packets_lost, 20U);
  EXPECT_LT(stats.packets_lost, stats.packets_sent / 5);
}

TEST(Quic, KeysMoveOnAfterSoManyPackets) {
  World::Options options;
  options.config.packets_per_key = 500;
  World world(options);
  ASSERT_TRUE(world.establish());
  for (int i = 0; i < 4; ++i) {
    exchange(world, 2 * kMiB);
    world.settle(milliseconds(200));
  }
  for (const World::Side* side : {&world.client, &world.server}) {
    const auto stats = side->connection->stats();
    // An update waits for the one before it to settle, three probe time-outs.
    EXPECT_GE(stats.key_updates, 3U);
    EXPECT_FALSE(side->app.end);
  }
  EXPECT_NEAR(static_cast<double>(world.client.connection->stats().key_updates),
              static_cast<double>(world.server.connection->stats().key_updates), 1.1);
}

TEST(Quic, KeysMoveOnThoughOnlyTheServerSpeaks) {
  World::Options options;
  options.config.packets_per_key = 1000;
  World world(options);
  ASSERT_TRUE(world.establish());
  const auto stream = open(world.server);
  world.server.app.send(stream, 8 * kMiB);
  EXPECT_TRUE(world.run_until([&] { return world.server.app.closed.contains(stream); }));
  EXPECT_GE(world.server.connection->stats().key_updates, 1U);
}

TEST(Quic, RetryThenHandshake) {
  World::Options options;
  options.retry = true;
  World world(options);
  ASSERT_TRUE(world.establish());
  EXPECT_GE(world.server.retries, 1U);
  exchange(world, 100'000);
}

TEST(Quic, AForgedRetryIsIgnored) {
  World::Options options;
  options.retry = true;
  World world(options);
  // RFC 9001's own Retry, for another client and under the public key of all the world's QUIC.
  bool sent = false;
  world.on_wire = [&](const env::IpEndpoint& from, ByteSpan datagram) {
    if (from == world.server.address && (std::to_integer<int>(datagram[0]) & 0xb0) == 0xb0 && !sent) {
      sent = true;
      Bytes forged(datagram.begin(), datagram.end());
      forged[forged.size() - 20] ^= std::byte{1};
      world.put(world.server.address, world.client.address, env::Ecn::not_ect, forged);
      return false;
    }
    return true;
  };
  ASSERT_TRUE(world.establish());
  EXPECT_TRUE(sent);
  EXPECT_GE(world.server.retries, 2U) << "the client asked again instead of believing it";
}

TEST(Quic, TheFirstPacketsMaySwapPlaces) {
  World world;
  Bytes held;
  int seen = 0;
  world.on_wire = [&](const env::IpEndpoint& from, ByteSpan datagram) {
    if (from != world.client.address) return true;
    if (++seen == 1) {
      held.assign(datagram.begin(), datagram.end());
      return false;
    }
    if (seen == 2) {
      world.put(from, world.server.address, env::Ecn::not_ect, datagram);  // This comes here again, as the third ...
      world.put(from, world.server.address, env::Ecn::not_ect, held);      // ... and fourth.
      return false;
    }
    return true;
  };
  const Instant start = world.now;
  ASSERT_TRUE(world.establish());
  EXPECT_LT((world.now - start).seconds(), 0.05) << "no time-out was needed";
}

TEST(Quic, OtherVersionsAreTurnedAway) {
  World world;
  world.on_wire = [&](const env::IpEndpoint& from, ByteSpan datagram) {
    if (from != world.client.address || datagram[4] == std::byte{9}) return true;
    Bytes altered(datagram.begin(), datagram.end());
    altered[4] = std::byte{9};
    world.put(from, world.server.address, env::Ecn::not_ect, altered);
    return false;
  };
  world.settle(milliseconds(10));
  EXPECT_GE(world.server.negotiations, 1U);
  EXPECT_FALSE(world.server.connection);
  // The answer offers version 1, which the client spoke: a lie, so it is ignored (RFC 9000, section 6.2).
  EXPECT_FALSE(world.client.app.end);
}

TEST(Quic, AClientBelievesAVersionNegotiationWithoutItsVersion) {
  World world;
  Bytes first;
  world.on_wire = [&](const env::IpEndpoint& from, ByteSpan datagram) {
    if (from == world.client.address && first.empty()) first.assign(datagram.begin(), datagram.end());
    return false;
  };
  world.flush(world.client);
  const auto header = world.stack->classify(first);
  ASSERT_EQ(header.kind, env::QuicPacketHeader::Kind::initial);
  Bytes answer{std::byte{0x80}, std::byte{}, std::byte{}, std::byte{}, std::byte{}};
  for (const ByteSpan id : {header.source, header.destination}) {
    answer.push_back(static_cast<std::byte>(id.size()));
    answer.insert(answer.end(), id.begin(), id.end());
  }
  for (const int b : {0x6b, 0x33, 0x43, 0xcf}) answer.push_back(static_cast<std::byte>(b));
  world.client.connection->receive(world.now, {.local = {}, .remote = world.server.address}, env::Ecn::not_ect, answer);
  EXPECT_EQ(world.client.app.end.value().cause, Cause::refused_version);
  EXPECT_TRUE(world.client.connection->finished());
}

TEST(Quic, AServerThatForgotSaysSo) {
  World world;
  ASSERT_TRUE(world.establish());
  world.settle();
  world.server.forgotten = true;
  world.client.connection->ping();
  ASSERT_TRUE(world.run_until([&] { return world.client.app.end.has_value(); }, seconds(1)));
  EXPECT_EQ(world.client.app.end->cause, Cause::reset);
  EXPECT_TRUE(world.client.connection->finished());
}

TEST(Quic, AForgedResetIsIgnored) {
  World world;
  ASSERT_TRUE(world.establish());
  Bytes forged(60, std::byte{0x55});
  const auto& id = *world.client.app.ids.begin();
  std::ranges::copy(id, forged.begin() + 1);
  world.put(world.server.address, world.client.address, env::Ecn::not_ect, forged);
  exchange(world, 1000);
  EXPECT_FALSE(world.client.app.end);
}

TEST(Quic, ResetsAreSmallerThanWhatTheyAnswer) {
  World world;
  Bytes packet(1200, std::byte{0x41}), out(1500);
  for (std::size_t n = 0; n < packet.size(); ++n) {
    const auto header = world.stack->classify(ByteSpan(packet).first(n));
    const auto size = world.stack->write_stateless_reset(*world.config, header, n, world.entropy, out);
    EXPECT_LT(size, std::max<std::size_t>(n, 1));
    if (n > 21) {
      EXPECT_GE(size, 21U);
      EXPECT_EQ(out[0] & std::byte{0xc0}, std::byte{0x40});
    }
  }
}

TEST(Quic, APeerThatMovesIsFollowed) {
  World world;
  ASSERT_TRUE(world.establish());
  const auto stream = open(world.server);
  world.server.app.send(stream, 8 * kMiB);
  ASSERT_TRUE(world.run_until([&] { return world.client.app.received > kMiB; }));
  world.client.address = endpoint(7, 4711);
  EXPECT_TRUE(world.run_until([&] { return world.client.app.in[stream].fin; }));
  world.settle();
  EXPECT_FALSE(world.client.app.in[stream].wrong);
  EXPECT_EQ(world.server.connection->stats().path.remote, world.client.address);
  exchange(world, kMiB);
}

TEST(Quic, APeerThatMovesIsFollowedWhereTheMtuIsGiven) {
  World::Options options;
  options.config.datagram_bytes = 9000;
  World world(options);
  ASSERT_TRUE(world.establish());
  for (const std::uint8_t host : {7, 8}) {
    world.client.address = endpoint(host, 4711);
    exchange(world, kMiB);
    world.settle();
    EXPECT_EQ(world.server.connection->stats().path.remote, world.client.address);
    EXPECT_EQ(world.server.connection->stats().datagram_bytes, 9000U);
  }
  EXPECT_EQ(world.server.largest, 9000U);
}

TEST(Quic, AnAddressThatDoesNotAnswerIsNotFollowed) {
  World world;
  ASSERT_TRUE(world.establish());
  world.settle();
  // Someone sends the client's own packet on from another address (RFC 9000, section 9.3.3).
  const env::IpEndpoint home = world.client.address;
  bool stolen = false;
  world.on_wire = [&](const env::IpEndpoint& from, ByteSpan datagram) {
    if (from != home || stolen) return true;
    stolen = true;
    world.put(endpoint(66, 6666), world.server.address, env::Ecn::not_ect, datagram);
    return false;
  };
  const auto stream = open(world.client);
  world.client.app.send(stream, kMiB);
  EXPECT_TRUE(world.run_until([&] { return world.client.app.closed.contains(stream); }));
  world.settle(seconds(5));
  EXPECT_TRUE(stolen);
  EXPECT_EQ(world.server.connection->stats().path.remote, home);
  exchange(world, kMiB);
}

TEST(Quic, ReplayedPacketsChangeNothing) {
  World world;
  std::vector<std::pair<env::IpEndpoint, Bytes>> recorded;
  world.on_wire = [&](const env::IpEndpoint& from, ByteSpan datagram) {
    recorded.emplace_back(from, Bytes(datagram.begin(), datagram.end()));
    return true;
  };
  ASSERT_TRUE(world.establish());
  exchange(world, 200'000);
  world.on_wire = nullptr;
  const auto received = world.server.app.received + world.client.app.received;
  for (const auto& [from, datagram] : recorded) {
    world.put(from, from == world.client.address ? world.server.address : world.client.address, env::Ecn::not_ect,
              datagram);
  }
  world.settle();
  EXPECT_EQ(world.server.app.received + world.client.app.received, received);
  EXPECT_FALSE(world.client.app.end);
  EXPECT_FALSE(world.server.app.end);
  exchange(world, 1000);
}

TEST(Quic, RubbishChangesNothing) {
  World world;
  std::vector<Bytes> recorded;
  world.on_wire = [&](const env::IpEndpoint&, ByteSpan datagram) {
    if (recorded.size() < 200) recorded.emplace_back(datagram.begin(), datagram.end());
    return true;
  };
  ASSERT_TRUE(world.establish());
  exchange(world, 100'000);
  world.on_wire = nullptr;
  for (int round = 0; round < 20'000; ++round) {
    World::Side& side = round % 2 == 0 ? world.client : world.server;
    World::Side& other = round % 2 == 0 ? world.server : world.client;
    Bytes bytes = recorded[world.random.below(recorded.size())];
    for (std::uint64_t i = 0; i <= world.random.below(4); ++i) {
      bytes[world.random.below(std::min<std::size_t>(bytes.size(), 60))] = static_cast<std::byte>(world.random.next());
    }
    if (world.random.chance(1, 3)) bytes.resize(1 + world.random.below(bytes.size()));
    side.connection->receive(world.now, {.local = side.address, .remote = other.address}, env::Ecn::ce, bytes);
  }
  EXPECT_FALSE(world.client.app.end);
  EXPECT_FALSE(world.server.app.end);
  exchange(world, 100'000);
}

/// A peer that has been let in and then sends frames of its own invention: refused, never an assertion of ngtcp2's.
TEST(Quic, FramesOfRubbishEndTheConnection) {
  int ended = 0;
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    World::Options options;
    options.seed = seed;
    World world(options);
    ASSERT_TRUE(world.establish());
    exchange(world, 3000);
    const auto stream = open(world.server);
    world.server.app.send(stream, 50'000, false);
    world.settle(microseconds(200));
    const Bytes id = *world.server.app.ids.begin();
    for (std::uint32_t i = 0; i < 50 && !world.server.app.end; ++i) {
      Bytes frames;
      const std::uint64_t count = 1 + world.random.below(6);
      for (std::uint64_t k = 0; k < count; ++k) {
        frames.push_back(static_cast<std::byte>(world.random.below(0x20)));
        for (std::uint64_t n = world.random.below(12); n > 0; --n) {
          // Small numbers, mostly: they name streams, ids and packets that exist.
          frames.push_back(
              static_cast<std::byte>(world.random.chance(7, 8) ? world.random.below(20) : world.random.next()));
        }
      }
      frames.resize(std::max<std::size_t>(frames.size(), 4));
      world.server.connection->receive(world.now, {.local = world.server.address, .remote = world.client.address},
                                       env::Ecn::ect0, testing::forge_from_client(id, 1000 + i, frames));
      world.muted = &world.client;
      world.settle(microseconds(static_cast<std::int64_t>(world.random.below(3000))));
    }
    world.settle(milliseconds(100));
    ended += world.server.app.end.has_value() ? 1 : 0;
  }
  EXPECT_GT(ended, 200);
}

TEST(Quic, RubbishInsteadOfAHandshakeEndsQuietly) {
  for (std::uint64_t seed = 1; seed < 200; ++seed) {
    World::Options options;
    options.seed = seed;
    options.faults = {.flip = 700, .truncate = 100};
    World world(options);
    world.run_until([&] { return world.client.app.end && world.client.connection->finished(); }, seconds(6));
    EXPECT_LE(world.client.app.ends, 1);
    EXPECT_LE(world.server.app.ends, 1);
  }
}

TEST(Quic, ClassifiesEveryPrefixOfEveryDatagram) {
  World world;
  world.on_wire = [&](const env::IpEndpoint&, ByteSpan datagram) {
    for (std::size_t n = 0; n <= datagram.size(); n = n < 100 ? n + 1 : n + 97) {
      const auto header = world.stack->classify(datagram.first(n));
      for (const ByteSpan part : {header.destination, header.source, header.token}) EXPECT_LE(part.size(), n);
    }
    return true;
  };
  ASSERT_TRUE(world.establish());
  exchange(world, 1000);
  EXPECT_EQ(world.stack->classify({}).kind, env::QuicPacketHeader::Kind::malformed);
}

TEST(Quic, AcceptRefusesWhatIsNoFirstPacket) {
  World world;
  env::QuicPacketHeader header;
  const auto accept = [&](ByteSpan retried_from = {}) {
    return world.stack->accept(world.config, world.now, {}, header, retried_from, world.server.handshake,
                               world.server.app, world.entropy);
  };
  const Bytes id(8, std::byte{1}), short_id(7, std::byte{1}), long_id(21, std::byte{1});
  header.destination = id;
  EXPECT_EQ(accept().error().code, Errc::malformed);
  header.kind = env::QuicPacketHeader::Kind::initial;
  header.destination = short_id;
  EXPECT_EQ(accept().error().code, Errc::malformed);
  header.destination = id;
  EXPECT_EQ(accept(long_id).error().code, Errc::malformed);
  EXPECT_EQ(accept(id).error().code, Errc::malformed) << "a Retry leaves a token";
  EXPECT_TRUE(accept());
}

TEST(Quic, WritesAQlogWithoutSecrets) {
  World::Options options;
  std::map<bool, std::string> logs;
  options.config.qlog = [&](ByteSpan, bool server) -> std::function<void(ByteSpan)> {
    return [&logs, server](ByteSpan piece) { logs[server] += as_text(piece); };
  };
  {
    World world(options);
    ASSERT_TRUE(world.establish());
    exchange(world, 10'000);
  }
  for (const bool server : {false, true}) {
    EXPECT_NE(logs[server].find("qlog_version"), std::string::npos);
    EXPECT_NE(logs[server].find("packet_sent"), std::string::npos);
    EXPECT_EQ(logs[server].find("secret"), std::string::npos);
    std::size_t tokens = 0;
    const std::string& log = logs[server];
    for (std::size_t at = 0; (at = log.find("\"stateless_reset_token\":", at)) != std::string::npos; ++at, ++tokens) {
      EXPECT_EQ(log.substr(at, log.find('}', at) - at).find_first_of("123456789abcdef", 32), std::string::npos)
          << log.substr(at, 100);
      EXPECT_EQ(std::ranges::count(log.substr(at, 80), '0'), 32);
    }
    EXPECT_GT(tokens, 0U);
  }
}

}  // namespace
}  // namespace holo::driver::quic
