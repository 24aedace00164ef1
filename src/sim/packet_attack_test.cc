// Attacks on sessions over datagrams: with the real handshake, the real packets, and an attacker who sees and sends
// whatever he wants.
#include <gtest/gtest.h>

#include "sim/attack_testing.h"

namespace holo::sim {
namespace {

using namespace attack;

// Promise 2.12.
TEST(PacketAttack, EachAlteredByteOfEachMessageIsRefused) {
  std::size_t sizes[4] = {};
  {
    Scene scene;
    scene.stack.alter = [&](int number, Bytes& message) { sizes[number] = message.size(); };
    const auto link = scene.dial();
    ASSERT_TRUE(scene.run_until([&] { return link->established.has_value(); }, seconds(2)));
  }
  for (int target = 1; target <= 3; ++target) {
    ASSERT_GT(sizes[target], 100U);
    for (std::size_t byte = 0; byte < sizes[target]; ++byte) {
      Scene scene;
      bool altered = false;
      scene.stack.alter = [&](int number, Bytes& message) {
        if (number != target) return;
        message[byte] ^= std::byte{0x40};
        altered = true;
      };
      const auto link = scene.dial();
      scene.ask(link);
      ASSERT_TRUE(scene.run_until([&] { return link->closed.has_value(); }, seconds(6))) << target << " " << byte;
      ASSERT_TRUE(altered);
      ASSERT_FALSE(link->established) << target << " " << byte;
      ASSERT_EQ(scene.dialler.failed, 1U);
      ASSERT_EQ(scene.listener.served, 0U) << target << " " << byte;
    }
  }
}

// Promise 2.12.
TEST(PacketAttack, TruncatedSwappedAndForeignMessagesAreRefused) {
  std::array<Bytes, 4> other;
  {
    Scene scene;
    scene.stack.alter = [&](int number, Bytes& message) { other[static_cast<std::size_t>(number)] = message; };
    const auto link = scene.dial();
    ASSERT_TRUE(scene.run_until([&] { return link->established.has_value(); }, seconds(2)));
  }
  using Change = std::function<void(int, Bytes&)>;
  const auto refused = [](const Change& change) {
    Scene scene;
    scene.network.defaults().min_delay = microseconds(61);  // Another run than the recorded one.
    scene.dialler.entropy = env::testing::SeededEntropy(999);
    scene.listener.entropy = env::testing::SeededEntropy(998);
    scene.stack.alter = change;
    const auto link = scene.dial();
    scene.ask(link);
    scene.run(seconds(7));
    return link->closed && !link->established && scene.listener.served == 0 && scene.dialler.failed == 1;
  };
  for (int target = 1; target <= 3; ++target) {
    const std::size_t size = other[static_cast<std::size_t>(target)].size();
    for (const std::size_t cut : {std::size_t{1}, size / 2, size - 1}) {
      EXPECT_TRUE(refused([&](int n, Bytes& m) {
        if (n == target) m.resize(cut);
      })) << target
          << " " << cut;
    }
    EXPECT_TRUE(refused([&](int n, Bytes& m) {
      if (n == target) m.push_back({});
    })) << target;
    for (std::size_t with = 1; with <= 3; ++with) {
      // Message 1 of another handshake is a good first message: it is the end that fails.
      EXPECT_TRUE(refused([&](int n, Bytes& m) {
        if (n == target) m = other[with];
      })) << target
          << " " << with;
    }
  }
}

// Promise 2.12. What the network alters, QUIC repairs or nobody hears.
TEST(PacketAttack, AlteredDatagramsOfAHandshakeHurtNobody) {
  for (std::size_t target = 0; target < 8; ++target) {
    for (std::size_t byte = target % 5; byte < 1200; byte += 29) {
      Scene scene;
      std::size_t sent = 0;
      const auto alter = [&](const env::DatagramPath&, Bytes& datagram) {
        if (sent++ == target && byte < datagram.size()) datagram[byte] ^= std::byte{0x10};
        return true;
      };
      scene.dialler.host.on_send = scene.listener.host.on_send = alter;
      const auto link = scene.dial();
      scene.ask(link);
      ASSERT_TRUE(scene.run_until([&] { return scene.dialler.answered + scene.dialler.failed == 1; }, seconds(8)))
          << target << " " << byte;
      ASSERT_FALSE(scene.dialler.wrong || scene.listener.wrong) << target << " " << byte;
    }
  }
}

// Promise 2.13.
TEST(PacketAttack, AReplayedConnectionIsNobody) {
  std::vector<Bytes> recorded;
  Scene scene;
  scene.dialler.host.on_send = [&](const env::DatagramPath&, Bytes& datagram) {
    recorded.push_back(datagram);
    return true;
  };
  const auto link = scene.dial();
  scene.ask(link);
  ASSERT_TRUE(scene.run_until([&] { return scene.dialler.answered == 1; }, seconds(2)));
  link->session->close({.code = Errc::cancelled, .message = "enough"});
  scene.dialler.host.pump(link);
  scene.run(seconds(10));
  ASSERT_TRUE(scene.listener.host.links().empty());
  Machine third(scene.world, scene.network, scene.stack, 3, session_of(3));
  for (Machine* target : {&scene.listener, &third}) {
    const std::uint64_t served = target->served;
    for (const Bytes& datagram : recorded) {
      target->host.receive({.path = {.local = target->host.local(), .remote = at(9)}, .bytes = datagram});
      scene.run(milliseconds(1));
    }
    for (const auto& l : target->host.links()) EXPECT_FALSE(l->established);
    scene.run(seconds(10));
    EXPECT_EQ(target->served, served);
    EXPECT_TRUE(target->host.links().empty());
    EXPECT_EQ(target->host.routes(), 0U);
  }
}

// Promise 2.13.
TEST(PacketAttack, PacketsReplayedIntoTheLiveConnectionChangeNothing) {
  std::vector<Bytes> recorded;
  Scene scene(session_of(1, 77, 40), session_of(2, 77, 40));  // Keys are updated on the way.
  scene.dialler.host.on_send = [&](const env::DatagramPath&, Bytes& datagram) {
    recorded.push_back(datagram);
    return true;
  };
  const auto link = scene.dial();
  for (std::uint64_t i = 1; i <= 200; ++i) {
    scene.ask(link);
    ASSERT_TRUE(scene.run_until([&] { return scene.dialler.answered == i; }, seconds(2)));
    for (std::size_t k = recorded.size() - std::min<std::size_t>(recorded.size(), 5); k < recorded.size(); ++k) {
      scene.listener.host.receive(
          {.path = {.local = scene.listener.host.local(), .remote = at(1)}, .bytes = Bytes(recorded[k])});
    }
  }
  for (const Bytes& datagram : std::vector(recorded)) {
    scene.listener.host.receive({.path = {.local = scene.listener.host.local(), .remote = at(1)}, .bytes = datagram});
  }
  scene.ask(link);
  EXPECT_TRUE(scene.run_until([&] { return scene.dialler.answered == 201; }, seconds(2)));
  EXPECT_EQ(scene.listener.served, 201U);
  EXPECT_FALSE(link->closed);
  EXPECT_GT(link->session->figures().key_updates, 1U);
}

TEST(PacketAttack, AWrongKeyIsToldToBothSides) {
  Scene scene(session_of(1, 77), session_of(2, 78));
  RefusalKind at_listener = RefusalKind::none;
  scene.listener.host.on_event = [&](const PacketHost::LinkPtr&, hyperbus::Event event) {
    if (const auto* closed = std::get_if<hyperbus::Closed>(&event)) at_listener = closed->kind;
  };
  const auto link = scene.dial();
  ASSERT_TRUE(scene.run_until([&] { return link->closed.has_value(); }, seconds(1)));
  EXPECT_EQ(link->closed->kind, RefusalKind::wrong_key);
  EXPECT_EQ(link->closed->error.code, Errc::wrong_key);
  EXPECT_EQ(at_listener, RefusalKind::wrong_key);
}

/// First messages that look like a node's and cost a stranger little. The rest of them, in a second datagram, never
/// comes.
struct Junk final : QuicHandshake {
  std::expected<Bytes, Failure> start(ByteSpan) override { return Bytes(2'000, std::byte{1}); }
  std::expected<Step, Failure> on_message(ByteSpan, const ExchangeParameters&) override {
    return std::unexpected(Failure{.alert = 80, .reason = {}});
  }
};
/// The first datagram of a connection that nobody means.
Bytes first_datagram(Instant now, env::Entropy& entropy, const std::shared_ptr<const env::QuicConfig>& config) {
  static const auto stack = driver::quic::make_stack();
  Junk junk;
  Nobody nobody;
  const auto connection = stack->connect(config, now, {.local = at(9), .remote = at(2)}, junk, nobody, entropy);
  Bytes out(env::DatagramSocket::kMaxBurst);
  const auto burst = connection->send(now, out);
  out.resize(burst ? burst->segment : 0);
  return out;
}

// Promise 2.14.
TEST(PacketAttack, AHundredThousandHalfOpenHandshakesKeepNobodyOut) {
  Scene scene;
  env::testing::SeededEntropy entropy(5);
  const auto config = quic_config(*session_of(9));
  PacketHost& host = scene.listener.host;
  std::uint64_t in = 0, out = 0;
  host.on_send = [&](const env::DatagramPath& path, Bytes& datagram) {
    if (path.remote != at(1)) out += datagram.size();
    return path.remote == at(1);
  };
  PacketHost::LinkPtr link;
  Instant dialled;
  for (std::uint32_t i = 0; i < 100'000; ++i) {
    env::IpEndpoint spoofed = at(9, static_cast<std::uint16_t>(1024 + i % 60'000));
    spoofed.ip[13] = static_cast<std::uint8_t>(1 + i / 60'000);
    const Bytes datagram = first_datagram(scene.world.now(), entropy, config);
    ASSERT_GE(datagram.size(), 1200U);
    in += datagram.size();
    host.receive({.path = {.local = host.local(), .remote = spoofed}, .bytes = datagram});
    if (i == 50'000) {  // In the midst of it.
      dialled = scene.world.now();
      link = scene.dial();
      scene.ask(link);
    }
    if (i % 10 == 0) scene.run(microseconds(100));
    if (link && scene.dialler.answered == 1 && dialled != Instant{}) {
      EXPECT_LT((scene.world.now() - dialled).ns, seconds(1).ns);
      dialled = {};
    }
  }
  EXPECT_EQ(scene.dialler.answered, 1U);
  EXPECT_LE(host.counters().most_half_open, limits::kMaxHalfOpen);
  EXPECT_LE(host.counters().most_links, limits::kMaxHalfOpen + 2);
  EXPECT_LE(host.counters().most_routes, 8 * (limits::kMaxHalfOpen + 2));
  EXPECT_GT(host.counters().answers, 90'000U);  // Retry packets
  EXPECT_LE(out, in);
}

// Promise 2.14. A token was made by this node, for this address, and lately: neither later than now nor long ago.
TEST(PacketAttack, ARetryTokenLivesForSomeTime) {
  const auto stack = driver::quic::make_stack();
  env::testing::SeededEntropy entropy(7);
  const auto session = session_of(1);
  hyperbus::PacketEndpoint listener(*stack, entropy,
                                    {.quic = quic_config(*session), .retry_from = 0, .token_lifetime = seconds(10)});
  hyperbus::PacketEndpoint dialler(*stack, entropy, {.quic = quic_config(*session_of(2))});
  const env::DatagramPath there{.local = at(2), .remote = at(1)}, back{.local = at(1), .remote = at(2)};
  const Instant issued{seconds(100).ns};
  std::array<std::byte, hyperbus::PacketEndpoint::kMaxAnswer> answer;
  const auto offer = [&](Instant now, ByteSpan datagram) {
    return listener.on_datagram(now, {.path = back, .bytes = datagram}, session, {.strangers = 1}, answer);
  };
  const auto client = dialler.dial(session_of(2), issued, there, {});
  Bytes out(env::DatagramSocket::kMaxBurst);
  const auto first = client->send(issued, out);
  ASSERT_TRUE(first);
  const auto asked = offer(issued, ByteSpan(out).first(first->segment));
  ASSERT_GT(asked.answer, 0U) << "a Retry packet";
  client->receive(issued, {.path = there, .bytes = ByteSpan(answer).first(asked.answer)});
  const auto second = client->send(issued, out);
  ASSERT_TRUE(second);
  const Bytes with_token(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(second->segment));
  for (const Duration off : {Duration{-1}, seconds(-90), seconds(10) + Duration{1}, seconds(1'000'000)}) {
    const auto refused = offer(issued + off, with_token);
    EXPECT_EQ(refused.fresh, nullptr) << off.ns;
    EXPECT_GT(refused.answer, 0U) << off.ns << ": another Retry packet";
  }
  EXPECT_NE(offer(issued + seconds(10), with_token).fresh, nullptr);
}

// Promise 2.14. Whatever a stranger sends first, and however long he waits.
TEST(PacketAttack, StrangersAreNotAmplified) {
  std::vector<Bytes> firsts;
  {
    Scene scene;  // The first flight of a node.
    scene.dialler.host.on_send = [&](const env::DatagramPath&, Bytes& datagram) {
      if (firsts.size() < 2) firsts.push_back(datagram);
      return true;
    };
    scene.dial();
    scene.run(milliseconds(10));
    ASSERT_EQ(firsts.size(), 2U);
  }
  env::testing::SeededEntropy entropy(6);
  firsts.push_back(first_datagram(Instant{1}, entropy, quic_config(*session_of(9))));
  for (const std::size_t size :
       {std::size_t{1}, std::size_t{20}, std::size_t{22}, std::size_t{60}, std::size_t{1200}}) {
    for (const int first : {0x00, 0x40, 0xc0, 0xff}) {  // short, long; with whatever version comes
      Bytes garbage(size);
      entropy.fill(garbage);
      garbage[0] = static_cast<std::byte>(first);
      firsts.push_back(garbage);
    }
  }
  Bytes other_version = firsts[0];
  other_version[1] ^= std::byte{0x1a};
  firsts.push_back(other_version);
  Bytes negotiation = firsts[0];
  std::ranges::fill(MutableByteSpan(negotiation).subspan(1, 4), std::byte{0});  // version 0
  firsts.push_back(negotiation);
  std::uint64_t answered = 0;
  for (std::size_t i = 0; i < firsts.size(); ++i) {
    Scene scene;
    std::uint64_t out = 0;
    scene.listener.host.on_send = [&](const env::DatagramPath&, Bytes& datagram) {
      out += datagram.size();
      return false;
    };
    scene.listener.host.receive({.path = {.local = scene.listener.host.local(), .remote = at(9)}, .bytes = firsts[i]});
    scene.run(seconds(30));
    EXPECT_LE(out, 3 * firsts[i].size()) << i;
    EXPECT_TRUE(scene.listener.host.links().empty()) << i;
    answered += out > 0 ? 1 : 0;
  }
  EXPECT_GT(answered, 3U);
}

}  // namespace
}  // namespace holo::sim
