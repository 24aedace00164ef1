// Who gets in over QUIC, in both roles, and what somebody between can do before there are keys.
#include <gtest/gtest.h>

#include "sim/attack_testing.h"

namespace holo::sim {
namespace {

using namespace attack;
using hyperbus::HandshakeConfig;
using hyperbus::Identity;
using hyperbus::SessionConfig;
using hyperbus::Suite;
using hyperbus::TrustBook;
using hyperbus::TrustMode;

constexpr WallTime kNow{1'800'000'000'000};

crypto::Secret<32> secret_of(std::uint8_t byte) {
  std::array<std::byte, 32> bytes{};
  bytes.fill(std::byte{byte});
  return crypto::Secret<32>(bytes);
}
crypto::Ed25519KeyPair root_of(std::uint8_t byte) { return crypto::Ed25519KeyPair::from_seed(secret_of(byte)); }

struct Policy final : hyperbus::TrustPolicy {
  explicit Policy(TrustBook b) : book(std::move(b)) {}
  hyperbus::TrustDecision decide(const hyperbus::PresentedIdentity& who) override { return book.judge(who, kNow); }
  TrustBook book;
};

/// A node as its owner sets it up.
struct Node {
  HandshakeConfig config;
  std::shared_ptr<Policy> policy;

  explicit Node(std::uint8_t who, TrustMode mode, std::uint8_t key = 77)
      : config{.identity = Identity::from_seed(secret_of(who)), .keys = {}},
        policy(std::make_shared<Policy>(TrustBook(mode, root_of(50).public_key()))) {
    config.suite = hyperbus::suite_of(mode, hyperbus::KeyExchange::hybrid);
    config.trust = policy;
    if (mode == TrustMode::psk) config.keys = {hyperbus::ClusterKey(secret_of(key))};
    if (mode == TrustMode::roots) certify(50);
  }
  void certify(std::uint8_t root, WallTime expires = {}) {
    config.certificate = hyperbus::issue_certificate(root_of(root), config.identity.node(),
                                                     config.identity.chain().first, kNow, expires);
  }
  [[nodiscard]] std::shared_ptr<const SessionConfig> session() const {
    auto out = std::make_shared<SessionConfig>();
    out->handshake = std::make_shared<const HandshakeConfig>(config);
    return out;
  }
};

struct Outcome {
  bool done = false;
  RefusalKind at_dialler = RefusalKind::none, at_listener = RefusalKind::none;
  Errc code{};
  std::uint64_t served = 0;
};

/// One connection, from a dial to an answer or to the end of both sides.
Outcome meet(Scene& scene) {
  Outcome out;
  const auto answer = scene.listener.host.on_event;
  scene.listener.host.on_event = [&](const PacketHost::LinkPtr& link, hyperbus::Event event) {
    if (const auto* closed = std::get_if<hyperbus::Closed>(&event)) out.at_listener = closed->kind;
    answer(link, std::move(event));
  };
  const auto link = scene.dial();
  scene.ask(link);
  EXPECT_TRUE(scene.run_until([&] { return scene.dialler.answered + scene.dialler.failed == 1; }, seconds(7)));
  scene.run(milliseconds(100));
  scene.listener.host.on_event = answer;
  out.done = scene.dialler.answered == 1;
  out.served = scene.listener.served;
  if (link->closed) {
    out.at_dialler = link->closed->kind;
    out.code = link->closed->error.code;
  }
  return out;
}
Outcome meet(const Node& dialler, const Node& listener) {
  Scene scene(dialler.session(), listener.session());
  return meet(scene);
}

/// Refused with that kind, which both sides are told, whoever dials.
void expect_refused(const Node& home, const Node& stranger, RefusalKind kind, const char* what) {
  for (const bool dials : {true, false}) {
    const Outcome out = dials ? meet(stranger, home) : meet(home, stranger);
    EXPECT_FALSE(out.done) << what;
    EXPECT_EQ(out.served, 0U) << what;
    EXPECT_EQ(out.at_dialler, kind) << what << (dials ? ", as dialler" : ", as listener");
    EXPECT_EQ(out.at_listener, kind) << what << (dials ? ", as dialler" : ", as listener");
  }
}

// Promise 2.17.
TEST(TrustAttack, StrangersAreRefusedInBothRoles) {
  for (const TrustMode mode : {TrustMode::psk, TrustMode::tofu, TrustMode::roots}) {
    EXPECT_TRUE(meet(Node(1, mode), Node(2, mode)).done) << hyperbus::trust_mode_name(mode);
  }
  expect_refused(Node(1, TrustMode::psk, 77), Node(2, TrustMode::psk, 78), RefusalKind::wrong_key, "another key");

  const Node roots(1, TrustMode::roots);
  Node stranger(2, TrustMode::roots);
  stranger.config.certificate.reset();
  expect_refused(roots, stranger, RefusalKind::unknown_identity, "no certificate");
  stranger.certify(51);
  expect_refused(roots, stranger, RefusalKind::unknown_identity, "another root's");
  stranger.certify(50, WallTime{kNow.ms - 1});
  expect_refused(roots, stranger, RefusalKind::unknown_identity, "expired");
  stranger.config.certificate = Node(3, TrustMode::roots).config.certificate;
  expect_refused(roots, stranger, RefusalKind::unknown_identity, "another node's");
}

// Promise 2.17. A node id that was seen with another key; one whose owner has a newer key; one that was revoked.
TEST(TrustAttack, ChangedAndRevokedKeysAreRefusedInBothRoles) {
  for (const TrustMode mode : {TrustMode::psk, TrustMode::tofu, TrustMode::roots}) {
    const char* name = hyperbus::trust_mode_name(mode).data();
    Node home(1, mode), peer(2, mode);
    const Identity first = peer.config.identity;
    peer.config.identity = first.rotated(secret_of(102)).value();
    EXPECT_TRUE(meet(home, peer).done) << name;  // It is pinned from here on.
    peer.config.identity = first;
    expect_refused(home, peer, RefusalKind::changed_key, name);
    peer.config.identity = first.rotated(secret_of(103)).value();
    expect_refused(home, peer, RefusalKind::changed_key, name);
    peer.config.identity = first.rotated(secret_of(102)).value();
    EXPECT_TRUE(meet(peer, home).done) << name;
    home.policy->book.set_revoked({first.node()});
    expect_refused(home, peer, RefusalKind::revoked, name);
  }
}

// Promise 2.17. Who knows all that a node says aloud, and the cluster's key, and lacks its seed.
TEST(TrustAttack, AStaticKeySignedBySomeoneElseIsRefusedInBothRoles) {
  const Identity victim = Identity::from_seed(secret_of(3)), thief = Identity::from_seed(secret_of(4));
  const auto shows = [](const Identity& who, const Identity& signs) {
    return hyperbus::Payload{.node = who.node(), .key = who.public_key(), .signature = signs.static_signature()};
  };
  auto other_id = shows(thief, thief);
  other_id.node = victim.node();
  auto chained = shows(thief, thief);
  chained.node = victim.node();
  chained.chain = hyperbus::IdentityChain{
      .first = victim.public_key(), .links = {{.key = thief.public_key(), .signature = thief.static_signature()}}};
  const std::tuple<const char*, crypto::X25519KeyPair, hyperbus::Payload> forgeries[] = {
      {"its signature, over its own static key", thief.noise_static(), shows(victim, victim)},
      {"the thief's signature", thief.noise_static(), shows(victim, thief)},
      {"the thief's key under its id", thief.noise_static(), other_id},
      {"a chain that it never signed", thief.noise_static(), chained},
      {"no identity", thief.noise_static(), hyperbus::Payload{}},
  };
  for (const TrustMode mode : {TrustMode::psk, TrustMode::tofu}) {
    const Node home(1, mode);
    for (const auto& [what, speaks, payload] : forgeries) {
      for (const bool dials : {true, false}) {
        Scene scene(dials ? session_of(9) : home.session(), dials ? home.session() : session_of(9));
        env::testing::SeededEntropy entropy(3);
        ForgedHandshake forged(
            dials ? hyperbus::Role::initiator : hyperbus::Role::responder,
            {.suite = home.config.suite, .speaks = speaks, .shows = payload, .keys = home.config.keys}, entropy);
        (dials ? scene.stack.dialler : scene.stack.listener) = &forged;
        const Outcome out = meet(scene);
        EXPECT_FALSE(out.done) << what;
        EXPECT_EQ(out.served, 0U) << what;
        const RefusalKind kind = dials ? out.at_listener : out.at_dialler;
        EXPECT_EQ(kind, payload.node ? RefusalKind::wrong_key : RefusalKind::garbage) << what << ", dials: " << dials;
      }
    }
    // The same machinery with an honest identity gets in: it is not the forger who fails.
    Scene scene(session_of(9), home.session());
    env::testing::SeededEntropy entropy(3);
    ForgedHandshake honest(hyperbus::Role::initiator,
                           {.suite = home.config.suite,
                            .speaks = thief.noise_static(),
                            .shows = shows(thief, thief),
                            .keys = home.config.keys},
                           entropy);
    scene.stack.dialler = &honest;
    bool let_in = false;
    scene.listener.host.on_event = [&](const PacketHost::LinkPtr&, hyperbus::Event event) {
      if (const auto* e = std::get_if<hyperbus::Established>(&event)) let_in = e->peer == thief.node();
    };
    const auto link = scene.dial();
    EXPECT_TRUE(scene.run_until([&] { return let_in; }, seconds(2)));
  }
}

// Promise 2.17. In suite 2 both stand in message 1 in clear, so whoever is between can put them there.
TEST(TrustAttack, WeakPublicKeysAreRefused) {
  const Node home(1, TrustMode::tofu), peer(2, TrustMode::tofu);
  constexpr std::size_t kE1 = hyperbus::kPreambleBytes + 32, kE1Bytes = 1'184;
  const auto altered = [&](const std::function<void(int, Bytes&)>& alter) {
    Scene scene(peer.session(), home.session());
    scene.stack.alter = alter;
    return meet(scene);
  };
  for (const int low : {0, 1}) {  // The points 0 and 1 are of low order.
    for (const int message : {1, 2}) {
      const Outcome out = altered([&](int number, Bytes& bytes) {
        if (number != message) return;
        const auto e = MutableByteSpan(bytes).subspan(number == 1 ? hyperbus::kPreambleBytes : 0, 32);
        std::ranges::fill(e, std::byte{0});
        e[0] = static_cast<std::byte>(low);
      });
      EXPECT_FALSE(out.done);
      EXPECT_EQ(message == 1 ? out.at_listener : out.at_dialler, RefusalKind::garbage) << low << " " << message;
    }
  }
  const Outcome unreduced = altered([&](int number, Bytes& bytes) {
    if (number == 1) std::ranges::fill(MutableByteSpan(bytes).subspan(kE1, kE1Bytes - 32), std::byte{0xff});
  });
  EXPECT_FALSE(unreduced.done);
  EXPECT_EQ(unreduced.at_listener, RefusalKind::garbage) << "refused as soon as it was seen";
  // The ciphertext is sealed: another one does not even open.
  const Outcome ciphertext = altered([&](int number, Bytes& bytes) {
    if (number == 2) std::ranges::fill(MutableByteSpan(bytes).subspan(32, 1'088), std::byte{0x55});
  });
  EXPECT_FALSE(ciphertext.done);
  EXPECT_EQ(ciphertext.at_dialler, RefusalKind::wrong_key);
}

// Promise 2.18.
TEST(TrustAttack, ClassicalOnlyIsRefusedByAHybridSideInBothRoles) {
  for (const TrustMode mode : {TrustMode::psk, TrustMode::tofu}) {
    const Node hybrid(1, mode);
    Node classical(2, mode), other(3, mode);
    classical.config.suite = other.config.suite = hyperbus::suite_of(mode, hyperbus::KeyExchange::classical_only);
    EXPECT_TRUE(meet(classical, other).done);
    expect_refused(hybrid, classical, RefusalKind::wrong_version, "classical only");
  }
}

// Promise 2.18. The preamble is in clear everywhere, and in suite 2 the offers are: altered, they are another
// handshake.
TEST(TrustAttack, NobodyBetweenCanTalkThemDownOverQuic) {
  constexpr std::size_t kPayload = hyperbus::kPreambleBytes + 32 + 1'184;
  const auto with_aes = [](std::uint8_t who) {
    Node node(who, TrustMode::tofu);
    node.config.has_aes = true;
    node.config.newest_version = 2;
    node.config.features = 3;
    return node;
  };
  using Change = std::function<void(hyperbus::Payload&)>;
  const auto changed = [&](const Change& change) {
    Scene scene(with_aes(2).session(), with_aes(1).session());
    std::size_t altered = 0;
    scene.stack.alter = [&](int number, Bytes& message) {
      if (number != 1) return;
      auto payload = hyperbus::decode_payload(ByteSpan(message).subspan(kPayload)).value();
      const auto before = payload;
      change(payload);
      altered += payload == before ? 0 : 1;
      message.resize(kPayload);
      hyperbus::encode_payload(payload, message);
    };
    const Outcome out = meet(scene);
    EXPECT_EQ(out.served, 0U);
    EXPECT_EQ(altered, 1U);
    return out.done;
  };
  EXPECT_FALSE(changed([](auto& p) { std::erase(p.aeads, crypto::AeadAlgorithm::aes_256_gcm); })) << "ciphers";
  EXPECT_FALSE(changed([](auto& p) { std::swap(p.aeads.front(), p.aeads.back()); })) << "their order";
  EXPECT_FALSE(changed([](auto& p) { std::erase(p.versions, 2); })) << "versions";
  EXPECT_FALSE(changed([](auto& p) { p.features = 0; })) << "features";
  EXPECT_FALSE(changed([](auto& p) { p.features |= 8; })) << "more features";
  // The same without a change.
  Scene scene(with_aes(2).session(), with_aes(1).session());
  EXPECT_TRUE(meet(scene).done);
  for (const std::uint8_t suite : {0, 1, 3, 4, 9}) {
    Scene tampered(with_aes(2).session(), with_aes(1).session());
    tampered.stack.alter = [&](int number, Bytes& message) {
      if (number == 1) message[6] = std::byte{suite};
    };
    const Outcome out = meet(tampered);
    EXPECT_FALSE(out.done);
    EXPECT_EQ(out.at_dialler, RefusalKind::wrong_version);
  }
}

/// Sees the first flight of a connection and says something false before the true answer comes.
struct Injector {
  Scene scene;
  env::QuicPacketHeader first;
  Bytes copy;

  explicit Injector(std::function<void(Injector&)> act) {
    scene.dialler.host.on_send = [this, act = std::move(act)](const env::DatagramPath&, Bytes& datagram) {
      if (!copy.empty()) return true;
      copy = datagram;
      first = scene.stack.classify(copy);
      scene.world.at(scene.world.now() + microseconds(1), [this, act] { act(*this); });
      return true;
    };
  }
  void to_dialler(Bytes packet) {
    auto& host = scene.dialler.host;
    host.receive({.path = {.local = host.local(), .remote = at(2)}, .bytes = std::move(packet)});
  }
  void to_listener(Bytes packet) {
    auto& host = scene.listener.host;
    host.receive({.path = {.local = host.local(), .remote = at(1)}, .bytes = std::move(packet)});
  }
  Bytes from_listener(Bytes frames, std::uint32_t number = 0) {
    return forge_initial(first.destination, true, first.source, Bytes(8, std::byte{0x77}), std::move(frames), number);
  }
  Bytes from_dialler(Bytes frames) {
    return forge_initial(first.destination, false, first.destination, first.source, std::move(frames), 100);
  }
};

Bytes close_frame(RefusalKind kind) {
  Bytes reason;
  hyperbus::encode_refusal({.kind = kind, .newest_version = 1, .oldest_version = 1, .suite = Suite::hybrid_psk},
                           reason);
  return numbers({0x1c, 0x100 + static_cast<std::uint64_t>(kind), 0, reason.size()}) + reason;
}
Bytes crypto_frame(ByteSpan message) { return numbers({0x06, 0, message.size()}) + message; }
/// As if another version alone were spoken there.
Bytes version_negotiation(const env::QuicPacketHeader& first) {
  Bytes out{std::byte{0xca}, {}, {}, {}, {}};
  for (const ByteSpan id : {first.source, first.destination}) {
    out.push_back(static_cast<std::byte>(id.size()));
    out.insert(out.end(), id.begin(), id.end());
  }
  out.insert(out.end(), {std::byte{0}, std::byte{0}, std::byte{0}, std::byte{0x2a}});
  return out;
}
Bytes retry(Injector& i) {
  Bytes out(512);
  out.resize(i.scene.stack.write_retry(i.first, Bytes(8, std::byte{0x66}), Bytes(40, std::byte{0x55}), out));
  EXPECT_FALSE(out.empty());
  return out;
}

// Promise 2.19. Before there are keys, whoever sees the ids can end a handshake, as in every QUIC. That is all: nobody
// is let in, nothing is remembered, and the next attempt succeeds.
TEST(TrustAttack, LiesBeforeThereAreKeysEndAHandshakeAndNothingElse) {
  const Bytes junk(600, std::byte{0x33});
  const Bytes message_2 = Bytes{static_cast<std::byte>(600 & 0xff), static_cast<std::byte>(600 >> 8)} + junk;
  struct Case {
    const char* what;
    std::function<void(Injector&)> act;
    std::optional<RefusalKind> believed;  ///< what the dialler takes for the cause
  };
  const Case cases[] = {
      {"a refusal", [](Injector& i) { i.to_dialler(i.from_listener(close_frame(RefusalKind::revoked))); },
       RefusalKind::revoked},
      {"a refusal of another kind",
       [](Injector& i) { i.to_dialler(i.from_listener(close_frame(RefusalKind::wrong_key))); }, RefusalKind::wrong_key},
      {"the end", [](Injector& i) { i.to_dialler(i.from_listener(numbers({0x1c, 0x0a, 0, 0}))); }, std::nullopt},
      {"a false message 2", [&](Injector& i) { i.to_dialler(i.from_listener(crypto_frame(message_2))); },
       RefusalKind::garbage},
      {"another version alone", [](Injector& i) { i.to_dialler(version_negotiation(i.first)); },
       RefusalKind::wrong_version},
      {"a Retry", [](Injector& i) { i.to_dialler(retry(i)); }, std::nullopt},
      {"the end, to the listener",
       [](Injector& i) {
         i.scene.world.at(i.scene.world.now() + microseconds(700),
                          [&i] { i.to_listener(i.from_dialler(numbers({0x1c, 0x0a, 0, 0}))); });
       },
       std::nullopt},
  };
  for (const Case& c : cases) {
    Injector injector(c.act);
    Scene& scene = injector.scene;
    const auto link = scene.dial();
    scene.ask(link);
    ASSERT_TRUE(scene.run_until([&] { return scene.dialler.answered + scene.dialler.failed == 1; }, seconds(7)))
        << c.what;
    EXPECT_FALSE(scene.dialler.wrong || scene.listener.wrong) << c.what;
    if (c.believed) {
      ASSERT_TRUE(link->closed) << c.what;
      EXPECT_EQ(link->closed->kind, *c.believed) << c.what;
      EXPECT_EQ(scene.listener.served, 0U) << c.what;
    }
    const std::uint64_t before = scene.dialler.answered;
    const auto again = scene.dial();
    scene.ask(again);
    EXPECT_TRUE(scene.run_until([&] { return scene.dialler.answered == before + 1; }, seconds(1))) << c.what;
    scene.run(seconds(10));
    EXPECT_LE(scene.listener.host.links().size(), 2U) << c.what;
  }
}

// Promise 2.19. Afterwards the same lies, and resets, are nothing.
TEST(TrustAttack, TheSameLiesChangeNothingOnceThereAreKeys) {
  Injector injector([](Injector&) {});
  Scene& scene = injector.scene;
  const auto link = scene.dial();
  scene.ask(link);
  ASSERT_TRUE(scene.run_until([&] { return scene.dialler.answered == 1; }, seconds(1)));
  for (std::uint32_t number = 0; number < 20; ++number) {
    injector.to_dialler(injector.from_listener(close_frame(RefusalKind::revoked), number));
  }
  injector.to_dialler(version_negotiation(injector.first));
  injector.to_dialler(retry(injector));
  injector.to_listener(injector.from_dialler(numbers({0x1c, 0x0a, 0, 0})));
  for (const std::size_t size : {21, 40, 41, 100, 1'200}) {
    Bytes reset(size, std::byte{0x5a});  // Its last 16 bytes are not the HMAC that they should be.
    injector.to_dialler(reset);
    injector.to_listener(reset);
  }
  scene.ask(link);
  EXPECT_TRUE(scene.run_until([&] { return scene.dialler.answered == 2; }, seconds(1)));
  EXPECT_FALSE(link->closed);
}

/// The datagrams of a handshake, numbered as they are sent, both directions together.
std::vector<Bytes> handshake_datagrams() {
  std::vector<Bytes> all;
  Scene scene;
  scene.dialler.host.on_send = scene.listener.host.on_send = [&](const env::DatagramPath&, Bytes& datagram) {
    all.push_back(datagram);
    return true;
  };
  const auto link = scene.dial();
  EXPECT_TRUE(scene.run_until([&] { return link->established.has_value(); }, seconds(1)));
  return all;
}

/// Ends in time, with the right answer or none. True: answered.
bool survives(Scene& scene, const std::function<bool(std::size_t, Bytes&)>& network) {
  std::size_t sent = 0;
  scene.dialler.host.on_send = scene.listener.host.on_send = [&](const env::DatagramPath&, Bytes& datagram) {
    return network(sent++, datagram);
  };
  const auto link = scene.dial();
  scene.ask(link);
  EXPECT_TRUE(scene.run_until([&] { return scene.dialler.answered + scene.dialler.failed == 1; }, seconds(8)));
  EXPECT_FALSE(scene.dialler.wrong || scene.listener.wrong);
  EXPECT_LE(scene.listener.served, 1U);
  return scene.dialler.answered == 1;
}

// Promise 2.12.
TEST(TrustAttack, EachByteOfEachDatagramOfAHandshakeMayBeAltered) {
  const auto all = handshake_datagrams();
  ASSERT_GE(all.size(), 5U);
  for (std::size_t target = 0; target < all.size(); ++target) {
    for (std::size_t byte = 0; byte < all[target].size(); ++byte) {
      Scene scene;
      (void)survives(scene, [&](std::size_t number, Bytes& datagram) {
        if (number == target && byte < datagram.size()) datagram[byte] ^= static_cast<std::byte>(1U << (byte % 8));
        return true;
      });
      ASSERT_FALSE(testing::Test::HasFailure()) << target << " " << byte;
    }
  }
}

// Promise 2.12. What only the order changed, or came twice, is as good as ever.
TEST(TrustAttack, DatagramsOfAHandshakeCutSwappedRepeatedOrForeign) {
  const auto all = handshake_datagrams();
  for (std::size_t target = 0; target < all.size(); ++target) {
    for (const std::size_t size : {std::size_t{1}, std::size_t{21}, all[target].size() / 2, all[target].size() - 1}) {
      Scene scene;
      (void)survives(scene, [&](std::size_t number, Bytes& datagram) {
        if (number == target) datagram.resize(std::min(size, datagram.size()));
        return true;
      });
    }
    for (const bool to_listener : {true, false}) {
      Scene late;
      EXPECT_TRUE(survives(late, [&](std::size_t number, Bytes& datagram) {
        if (number != target) return true;
        for (const Duration delay : {milliseconds(1), milliseconds(30)}) {  // Later, and again.
          late.world.at(late.world.now() + delay, [&late, to_listener, copy = datagram] {
            auto& host = to_listener ? late.listener.host : late.dialler.host;
            host.receive({.path = {.local = host.local(), .remote = at(to_listener ? 1 : 2)}, .bytes = copy});
          });
        }
        return false;
      })) << target;
      Scene twice;
      EXPECT_TRUE(survives(twice, [&](std::size_t number, Bytes& datagram) {
        if (number != target) return true;
        for (int i = 0; i < 3; ++i) {
          twice.world.at(twice.world.now() + microseconds(100 * i), [&twice, to_listener, copy = datagram] {
            auto& host = to_listener ? twice.listener.host : twice.dialler.host;
            host.receive({.path = {.local = host.local(), .remote = at(to_listener ? 1 : 2)}, .bytes = copy});
          });
        }
        return true;
      })) << target;
    }
    Scene foreign;
    foreign.dialler.entropy = env::testing::SeededEntropy(999);
    foreign.listener.entropy = env::testing::SeededEntropy(998);
    (void)survives(foreign, [&](std::size_t number, Bytes& datagram) {
      if (number == target) datagram = all[target];
      return true;
    });
    ASSERT_FALSE(testing::Test::HasFailure()) << target;
  }
}

}  // namespace
}  // namespace holo::sim
