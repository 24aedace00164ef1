// Connections back to back: what env/quic.h promises, under a network that does its worst.
#include <gtest/gtest.h>

#include "crypto/hash.h"
#include "driver/quic/quic_testing.h"

namespace holo::driver::quic {
namespace {

using testing::App;
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
  EXPECT_EQ(world.client.connection->stats().datagram_bytes, 1444U);
  EXPECT_EQ(world.client.connection->stats().path.remote, world.server.address);
  EXPECT_LT(world.client.connection->stats().smoothed_rtt.ns, milliseconds(20).ns);
  EXPECT_LT(world.client.bursts * 5, world.client.datagrams) << "packets go out in batches";
  EXPECT_EQ(world.client.last_ecn, env::Ecn::ect0) << "the path was found to carry ECN";
}

}  // namespace
}  // namespace holo::driver::quic
