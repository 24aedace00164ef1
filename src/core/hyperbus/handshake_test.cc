// The handshake as whole messages: what it agrees on, whom it refuses, and that no byte of it can be changed.
#include "core/hyperbus/handshake.h"

#include <gtest/gtest.h>

#include "core/hyperbus/test_support.h"

namespace holo::hyperbus {
namespace {

using testing::config_of;
using testing::identity_of;
using testing::secret_of;
using testing::SeededEntropy;

/// One handshake; `alter` sees message 0, 1 and 2 on their way.
struct Attempt {
  std::optional<HandshakeFailure> initiator_failure, responder_failure;
  std::optional<HandshakeResult> initiator, responder;
  std::array<Bytes, 3> messages;

  template <class Alter>
  Attempt(const HandshakeConfig& a, const HandshakeConfig& b, Alter alter, NodeId expected = {}) {
    SeededEntropy entropy_a(1), entropy_b(2);
    Handshake dialler(Role::initiator, std::make_shared<const HandshakeConfig>(a), entropy_a, expected);
    Handshake listener(Role::responder, std::make_shared<const HandshakeConfig>(b), entropy_b);
    const auto step = [&](Handshake& to, Bytes message, std::size_t index, auto& failure) -> std::optional<Bytes> {
      alter(index, message);
      messages[index] = message;
      auto answer = to.on_message(message);
      if (!answer) {
        failure = std::move(answer).error();
        return std::nullopt;
      }
      return *answer;
    };
    const auto first = dialler.start();
    if (!first) return;
    const auto second = step(listener, *first, 0, responder_failure);
    if (!second) return;
    const auto third = step(dialler, *second, 1, initiator_failure);
    if (!third) return;
    if (dialler.done()) initiator = dialler.take_result();
    if (!step(listener, *third, 2, responder_failure)) return;
    if (listener.done()) responder = listener.take_result();
  }
  Attempt(const HandshakeConfig& a, const HandshakeConfig& b, NodeId expected = {})
      : Attempt(a, b, [](std::size_t, Bytes&) {}, expected) {}
  [[nodiscard]] bool succeeded() const { return initiator && responder; }
};

TEST(Handshake, AgreesOnEverything) {
  HandshakeConfig a = config_of(1), b = config_of(2);
  a.features = 0b1110;
  b.features = 0b0111;
  const Attempt run(a, b);
  ASSERT_TRUE(run.succeeded());
  EXPECT_EQ(run.initiator->peer, b.identity.node());
  EXPECT_EQ(run.responder->peer, a.identity.node());
  EXPECT_EQ(run.initiator->peer_key, b.identity.public_key());
  EXPECT_EQ(run.initiator->features, 0b0110U);
  EXPECT_EQ(run.responder->features, 0b0110U);
  EXPECT_EQ(run.initiator->handshake_hash, run.responder->handshake_hash);
  EXPECT_EQ(run.initiator->send_secret, run.responder->receive_secret);
  EXPECT_EQ(run.initiator->receive_secret, run.responder->send_secret);
  EXPECT_FALSE(run.initiator->send_secret == run.initiator->receive_secret);
}

/// As QUIC drives it: parameters both ways, and secrets of its own for the third message.
TEST(Handshake, CarriesParametersOfTheCarrierAndGivesSecretsOnTheWay) {
  SeededEntropy entropy(1);
  Handshake dialler(Role::initiator, std::make_shared<const HandshakeConfig>(config_of(1)), entropy);
  Handshake listener(Role::responder, std::make_shared<const HandshakeConfig>(config_of(2)), entropy);
  const Bytes of_dialler = testing::pattern(100, 1), of_listener = testing::pattern(kMaxTransportParameters, 2);
  Bytes heard_by_dialler, heard_by_listener;
  const auto first = dialler.start(of_dialler);
  EXPECT_FALSE(dialler.take_level_secrets());
  const auto second = listener.on_message(*first, [&](ByteSpan peer) -> Result<Bytes> {
    heard_by_listener.assign(peer.begin(), peer.end());
    return of_listener;
  });
  ASSERT_TRUE(second);
  const auto third = dialler.on_message(*second, [&](ByteSpan peer) -> Result<Bytes> {
    heard_by_dialler.assign(peer.begin(), peer.end());
    return Bytes();
  });
  ASSERT_TRUE(third && dialler.done());
  EXPECT_EQ(heard_by_dialler, of_listener);
  EXPECT_EQ(heard_by_listener, of_dialler);
  const auto a = dialler.take_level_secrets(), b = listener.take_level_secrets();
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a->send, b->receive);
  EXPECT_EQ(a->receive, b->send);
  EXPECT_FALSE(a->send == a->receive);
  ASSERT_TRUE(listener.on_message(*third));
  ASSERT_TRUE(listener.done());
  EXPECT_EQ(dialler.take_result().send_secret, listener.take_result().receive_secret);
}

TEST(Handshake, WhatWasMadeForOneCarrierIsRefusedOnAnother) {
  SeededEntropy entropy(1);
  Handshake dialler(Role::initiator, std::make_shared<const HandshakeConfig>(config_of(1)), entropy);
  Handshake listener(Role::responder, std::make_shared<const HandshakeConfig>(config_of(2)), entropy);
  const auto first = dialler.start(testing::pattern(10));
  const auto refused = listener.on_message(*first);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, RefusalKind::garbage);
  // And a carrier that does not like what the other's said.
  Handshake picky(Role::responder, std::make_shared<const HandshakeConfig>(config_of(2)), entropy);
  EXPECT_FALSE(picky.on_message(*first, [](ByteSpan) -> Result<Bytes> { return fail(Errc::malformed, "no"); }));
}

TEST(Handshake, EverySuiteWorksOnlyWithItself) {
  constexpr std::array kSuites{Suite::hybrid_psk, Suite::hybrid, Suite::classical_psk, Suite::classical};
  for (const Suite ours : kSuites) {
    for (const Suite theirs : kSuites) {
      HandshakeConfig a = config_of(1), b = config_of(2);
      a.suite = ours;
      b.suite = theirs;
      const Attempt run(a, b);
      EXPECT_EQ(run.succeeded(), ours == theirs);
      if (ours != theirs) {
        EXPECT_EQ(run.responder_failure->kind, RefusalKind::wrong_version);
      }
    }
  }
}

TEST(Handshake, CipherIsAesOnlyWhereBothHaveIt) {
  for (const bool at_a : {false, true}) {
    for (const bool at_b : {false, true}) {
      HandshakeConfig a = config_of(1), b = config_of(2);
      a.has_aes = at_a;
      b.has_aes = at_b;
      const Attempt run(a, b);
      ASSERT_TRUE(run.succeeded());
      const auto expected =
          at_a && at_b ? crypto::AeadAlgorithm::aes_256_gcm : crypto::AeadAlgorithm::xchacha20_poly1305;
      EXPECT_EQ(run.initiator->aead, expected);
      EXPECT_EQ(run.responder->aead, expected);
    }
  }
}

TEST(Handshake, NeighbouringVersionsMeetAtTheNewestCommonOne) {
  const auto attempt = [](std::uint16_t a_old, std::uint16_t a_new, std::uint16_t b_old, std::uint16_t b_new) {
    HandshakeConfig a = config_of(1), b = config_of(2);
    a.oldest_version = a_old, a.newest_version = a_new;
    b.oldest_version = b_old, b.newest_version = b_new;
    return Attempt(a, b);
  };
  EXPECT_EQ(attempt(1, 2, 2, 3).initiator->version, 2);
  EXPECT_EQ(attempt(2, 3, 1, 2).responder->version, 2);
  EXPECT_EQ(attempt(1, 2, 1, 2).responder->version, 2);
  EXPECT_EQ(attempt(0, 1, 0, 0).responder->version, 0);
  const Attempt none = attempt(1, 2, 3, 4);
  ASSERT_FALSE(none.succeeded());
  EXPECT_EQ(none.responder_failure->kind, RefusalKind::wrong_version);
  EXPECT_EQ(none.responder_failure->error.code, Errc::wrong_version);
  const auto told = decode_refusal(none.responder_failure->refusal);
  ASSERT_TRUE(told);
  EXPECT_EQ(
      *told,
      (Refusal{
          .kind = RefusalKind::wrong_version, .newest_version = 4, .oldest_version = 3, .suite = Suite::hybrid_psk}));
}

TEST(Handshake, AnotherClusterKeyIsRefusedByName) {
  const Attempt run(config_of(1, 77), config_of(2, 78));
  ASSERT_TRUE(run.responder_failure);
  EXPECT_EQ(run.responder_failure->kind, RefusalKind::wrong_key);
  EXPECT_EQ(run.responder_failure->error.code, Errc::wrong_key);
  EXPECT_EQ(decode_refusal(run.responder_failure->refusal)->kind, RefusalKind::wrong_key);
}

TEST(Handshake, TwoClusterKeysMayBeValidAtOnce) {
  HandshakeConfig both = config_of(2, 77);
  both.keys.emplace_back(secret_of(78));
  EXPECT_TRUE(Attempt(config_of(1, 77), both).succeeded());
  EXPECT_TRUE(Attempt(config_of(1, 78), both).succeeded());
  EXPECT_FALSE(Attempt(config_of(1, 79), both).succeeded());
}

TEST(Handshake, ANamedKeyThatIsNotHeldDoesNotHelp) {
  // The attacker knows the public id of the key, not the key.
  const Attempt run(config_of(1, 78), config_of(2, 77), [](std::size_t index, Bytes& message) {
    if (index != 0) return;
    Bytes preamble;
    encode_preamble({.key_id = ClusterKey(secret_of(77)).id()}, preamble);
    std::ranges::copy(preamble, message.begin());
  });
  ASSERT_TRUE(run.responder_failure);
  EXPECT_EQ(run.responder_failure->kind, RefusalKind::wrong_key);
}

class Recorder final : public TrustPolicy {
 public:
  explicit Recorder(bool allow) : allow_(allow) {}
  TrustDecision decide(const PresentedIdentity& who) override {
    seen.emplace_back(who.node, who.chain.current());
    if (allow_) return {};
    return std::unexpected(TrustRefusal{.kind = RefusalKind::unknown_identity,
                                        .error = {.code = Errc::permission_denied, .message = "not on the list"}});
  }
  std::vector<std::pair<NodeId, crypto::Ed25519PublicKey>> seen;

 private:
  bool allow_;
};

TEST(Handshake, TrustPolicyHasTheLastWordOnEitherSide) {
  for (const bool at_dialler : {true, false}) {
    HandshakeConfig a = config_of(1), b = config_of(2);
    const auto policy = std::make_shared<Recorder>(false);
    (at_dialler ? a : b).trust = policy;
    const Attempt run(a, b);
    EXPECT_FALSE(run.succeeded());
    const auto& failure = at_dialler ? run.initiator_failure : run.responder_failure;
    ASSERT_TRUE(failure);
    EXPECT_EQ(failure->error.message, "not on the list");
    ASSERT_EQ(policy->seen.size(), 1U);
    const Identity& shown = at_dialler ? b.identity : a.identity;
    EXPECT_EQ(policy->seen[0], std::make_pair(shown.node(), shown.public_key()));
  }
  HandshakeConfig a = config_of(1), b = config_of(2);
  a.trust = std::make_shared<Recorder>(true);
  EXPECT_TRUE(Attempt(a, b).succeeded());
}

TEST(Handshake, OnlyTheExpectedNodeMayAnswer) {
  EXPECT_TRUE(Attempt(config_of(1), config_of(2), identity_of(2).node()).succeeded());
  const Attempt run(config_of(1), config_of(2), identity_of(3).node());
  ASSERT_TRUE(run.initiator_failure);
  EXPECT_EQ(run.initiator_failure->kind, RefusalKind::none);
  EXPECT_TRUE(run.messages[2].empty());  // The stranger did not learn who asked.
}

TEST(Handshake, ANodeDoesNotTalkToItself) {
  const Attempt run(config_of(1), config_of(1));
  ASSERT_TRUE(run.initiator_failure);
  EXPECT_EQ(run.initiator_failure->error.code, Errc::refused);
}

TEST(Handshake, EveryAlteredByteOfEveryMessageIsRefused) {
  const HandshakeConfig a = config_of(1), b = config_of(2);
  const Attempt clean(a, b);
  ASSERT_TRUE(clean.succeeded());
  for (std::size_t message = 0; message < 3; ++message) {
    for (std::size_t at = 0; at < clean.messages[message].size(); ++at) {
      const Attempt run(a, b, [&](std::size_t index, Bytes& m) {
        if (index == message) m[at] ^= std::byte{0x01};
      });
      EXPECT_FALSE(run.responder) << "message " << message << " byte " << at;
      EXPECT_TRUE(run.initiator_failure || run.responder_failure);
    }
  }
}

TEST(Handshake, TruncatedAndPaddedMessagesAreRefused) {
  const HandshakeConfig a = config_of(1), b = config_of(2);
  const Attempt clean(a, b);
  for (std::size_t message = 0; message < 3; ++message) {
    const std::size_t size = clean.messages[message].size();
    for (std::size_t keep = 0; keep < size; keep += 13) {
      EXPECT_FALSE(Attempt(a, b, [&](std::size_t i, Bytes& m) {
                     if (i == message) m.resize(keep);
                   }).responder);
    }
    EXPECT_FALSE(Attempt(a, b, [&](std::size_t i, Bytes& m) {
                   if (i == message) m.resize(size + 1);
                 }).responder);
    EXPECT_FALSE(Attempt(a, b, [&](std::size_t i, Bytes& m) {
                   if (i == message) m.resize(kMaxHandshakeMessageBytes + 1);
                 }).responder);
  }
}

TEST(Handshake, ARecordedHandshakeCannotBeReplayed) {
  const HandshakeConfig a = config_of(1), b = config_of(2);
  const Attempt recorded(a, b);
  SeededEntropy fresh(99);  // The responder draws new keys; the recording does not know them.
  Handshake listener(Role::responder, std::make_shared<const HandshakeConfig>(b), fresh);
  ASSERT_TRUE(listener.on_message(recorded.messages[0]));
  const auto last = listener.on_message(recorded.messages[2]);
  ASSERT_FALSE(last);
  EXPECT_EQ(last.error().kind, RefusalKind::wrong_key);
  EXPECT_FALSE(listener.done());
}

TEST(Handshake, GarbageGetsNoAnswer) {
  SeededEntropy entropy(5);
  Random random(6);
  for (int i = 0; i < 200; ++i) {
    Handshake listener(Role::responder, std::make_shared<const HandshakeConfig>(config_of(2)), entropy);
    const auto answer = listener.on_message(testing::pattern(random.below(2000), random.next()));
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().kind, RefusalKind::garbage);
    EXPECT_TRUE(answer.error().refusal.empty());
  }
}

TEST(Handshake, AnotherProtocolNumberIsToldOurs) {
  const Attempt run(config_of(1), config_of(2), [](std::size_t index, Bytes& m) {
    if (index == 0) m[4] = std::byte{9};
  });
  ASSERT_TRUE(run.responder_failure);
  EXPECT_EQ(run.responder_failure->kind, RefusalKind::wrong_version);
  EXPECT_EQ(decode_refusal(run.responder_failure->refusal)->protocol, kHandshakeProtocol);
}

TEST(Identity, IsBoundToItsKeys) {
  const Identity one = identity_of(1), other = identity_of(2);
  const auto check = [](NodeId node, const Identity& key, const Identity& speaks, const Identity& signs) {
    return verify_identity(node, key.chain(), speaks.noise_static().public_key, signs.static_signature()).has_value();
  };
  EXPECT_TRUE(check(one.node(), one, one, one));
  EXPECT_FALSE(check(other.node(), one, one, one));
  EXPECT_FALSE(check(one.node(), other, one, one));
  EXPECT_FALSE(check(one.node(), one, other, one));  // a static key signed by someone else
  EXPECT_FALSE(check(one.node(), one, one, other));
  EXPECT_NE(ClusterKey(secret_of(1)).id(), ClusterKey(secret_of(2)).id());
}

TEST(HandshakeCodec, PayloadRoundTripsAndSkipsWhatItDoesNotKnow) {
  Payload payload{.versions = {3, 2},
                  .features = 5,
                  .aeads = {crypto::AeadAlgorithm::xchacha20_poly1305},
                  .transport_parameters = testing::pattern(9),
                  .node = NodeId(4),
                  .key = {},
                  .signature = {}};
  payload.key.emplace().fill(std::byte{1});
  payload.signature.emplace().fill(std::byte{2});
  Bytes bytes;
  encode_payload(payload, bytes);
  EXPECT_EQ(decode_payload(bytes), payload);
  Bytes later = bytes;
  later.insert(later.end(), {std::byte{200}, std::byte{1}, std::byte{0}, std::byte{7}});
  EXPECT_EQ(decode_payload(later), payload);
  later.insert(later.end(), {std::byte{200}, std::byte{0}, std::byte{0}});
  EXPECT_FALSE(decode_payload(later));  // the same field twice
  for (std::size_t n = 1; n < bytes.size(); ++n) {
    const auto cut = decode_payload(ByteSpan(bytes).first(n));
    if (cut) {
      EXPECT_NE(*cut, payload);  // Cut between two fields it is a shorter payload, never the same one.
    }
  }
}

/// Golden bytes: these never change while kHandshakeProtocol is 1.
TEST(HandshakeCodec, GoldenBytes) {
  Bytes preamble;
  encode_preamble({.protocol = 1, .suite = Suite::hybrid_psk, .key_id = 0x1122334455667788}, preamble);
  EXPECT_EQ(preamble, (Bytes{std::byte{'H'}, std::byte{'O'}, std::byte{'L'}, std::byte{'O'}, std::byte{1}, std::byte{0},
                             std::byte{1}, std::byte{0}, std::byte{0x88}, std::byte{0x77}, std::byte{0x66},
                             std::byte{0x55}, std::byte{0x44}, std::byte{0x33}, std::byte{0x22}, std::byte{0x11}}));
  EXPECT_EQ(decode_preamble(preamble)->key_id, 0x1122334455667788U);
  Bytes payload;
  encode_payload({.versions = {1}, .features = 2, .aeads = {crypto::AeadAlgorithm::aes_256_gcm}, .node = NodeId(3)},
                 payload);
  const auto b = [](int v) { return static_cast<std::byte>(v); };
  EXPECT_EQ(payload,
            (Bytes{b(1), b(2), b(0), b(1), b(0), b(2), b(8), b(0), b(2), b(0), b(0), b(0), b(0), b(0), b(0), b(0),
                   b(3), b(1), b(0), b(1), b(5), b(8), b(0), b(3), b(0), b(0), b(0), b(0), b(0), b(0), b(0)}));
  Bytes refusal;
  encode_refusal({.kind = RefusalKind::wrong_version, .protocol = 1, .newest_version = 2, .oldest_version = 1},
                 refusal);
  EXPECT_EQ(refusal, (Bytes{b(2), b(0), b(1), b(0), b(2), b(0), b(1), b(0)}));
  // Identities and keys derive the same for ever, or no node would know another after an upgrade.
  EXPECT_EQ(to_hex(identity_of(1).node().value), "83561adb398fd87f");
  EXPECT_EQ(to_hex(ClusterKey(secret_of(77)).id()), "16f06c5dbcd040fe");
}

}  // namespace
}  // namespace holo::hyperbus
