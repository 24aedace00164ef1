// Who gets in: chains of keys, certificates, pins, revocation, suites; by themselves and through whole handshakes.
#include "core/hyperbus/trust.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/hyperbus/handshake.h"
#include "core/hyperbus/test_support.h"
#include "core/hyperbus/wire_bytes.h"
#include "crypto/hash.h"

namespace holo::hyperbus {
namespace {

using testing::config_of;
using testing::identity_of;
using testing::secret_of;
using testing::SeededEntropy;

constexpr WallTime kNow{1'800'000'000'000};
constexpr WallTime kForever{};

crypto::Ed25519KeyPair root_of(std::uint8_t byte) { return crypto::Ed25519KeyPair::from_seed(secret_of(byte)); }

/// Node `who` after `times` rotations; its seeds are who, who + 100, who + 101, ...
Identity rotated(std::uint8_t who, std::size_t times) {
  Identity identity = identity_of(who);
  for (std::size_t i = 0; i < times; ++i) {
    identity = identity.rotated(secret_of(static_cast<std::uint8_t>(who + 100 + i))).value();
  }
  return identity;
}

TrustDecision judge(TrustBook& book, const Identity& who, std::optional<Certificate> certificate = {},
                    WallTime now = kNow) {
  return book.judge({.node = who.node(), .chain = who.chain(), .certificate = certificate}, now);
}

RefusalKind kind_of(const TrustDecision& decision) { return decision ? RefusalKind::none : decision.error().kind; }

Certificate certificate_for(const Identity& who, const crypto::Ed25519KeyPair& root, WallTime expires = kForever) {
  return issue_certificate(root, who.node(), who.chain().first, kNow, expires);
}

// ---- Chains

TEST(IdentityChain, ANodeThatRotatesStaysItself) {
  const Identity first = identity_of(1);
  const Identity third = rotated(1, 2);
  EXPECT_EQ(third.node(), first.node());
  EXPECT_NE(third.public_key(), first.public_key());
  EXPECT_NE(third.noise_static().public_key, first.noise_static().public_key);
  EXPECT_EQ(third.chain().position_of(first.public_key()), 0U);
  EXPECT_TRUE(verify_identity(first.node(), third.chain(), third.noise_static().public_key, third.static_signature()));
  // What is kept on disk gives the same node back, and only with the right seed.
  EXPECT_EQ(Identity::from_chain(secret_of(102), third.chain())->node(), first.node());
  EXPECT_EQ(Identity::from_chain(secret_of(101), third.chain()).error().code, Errc::corrupt);
}

TEST(IdentityChain, ItsLengthIsBounded) {
  const Identity last = rotated(1, kMaxChainLinks);
  EXPECT_EQ(last.rotated(secret_of(250)).error().code, Errc::over_limit);
  EXPECT_TRUE(verify_chain(last.node(), last.chain()));
  // Somebody who goes on regardless is not believed, and not even decoded.
  IdentityChain longer = last.chain();
  const auto next = root_of(250);
  const auto by = crypto::Ed25519KeyPair::from_seed(secret_of(1 + 100 + kMaxChainLinks - 1));
  longer.links.push_back({.key = next.public_key(),
                          .signature = by.sign(chain_statement(last.node(), kMaxChainLinks + 1, next.public_key()))});
  EXPECT_EQ(verify_chain(last.node(), longer).error().code, Errc::over_limit);
  Bytes bytes(32 + 96 * (kMaxChainLinks + 1));
  EXPECT_FALSE(decode_chain(bytes));
}

TEST(IdentityChain, ForgedChainsAreRefused) {
  const Identity good = rotated(1, 3);
  const auto refused = [&](auto change) {
    IdentityChain chain = good.chain();
    change(chain);
    return !verify_chain(good.node(), chain);
  };
  EXPECT_FALSE(refused([](IdentityChain&) {}));
  EXPECT_TRUE(refused([](IdentityChain& c) { c.links.erase(c.links.begin() + 1); }));     // a gap
  EXPECT_TRUE(refused([](IdentityChain& c) { c.links.erase(c.links.begin()); }));         // the beginning is missing
  EXPECT_TRUE(refused([](IdentityChain& c) { std::swap(c.links[0], c.links[1]); }));      // another order
  EXPECT_TRUE(refused([](IdentityChain& c) { c.links.push_back(c.links.front()); }));     // a key that comes back
  EXPECT_TRUE(refused([](IdentityChain& c) { c.first = identity_of(2).public_key(); }));  // another node's first key
  EXPECT_TRUE(refused([](IdentityChain& c) { c.links[2].key = identity_of(2).public_key(); }));
  for (std::size_t link = 0; link < 3; ++link) {
    EXPECT_TRUE(refused([&](IdentityChain& c) { c.links[link].signature[7] ^= std::byte{1}; }));
  }
  // A link that is signed, but by another key than the one before it.
  const auto thief = root_of(9);
  EXPECT_TRUE(refused([&](IdentityChain& c) {
    c.links[2] = {.key = thief.public_key(),
                  .signature = thief.sign(chain_statement(good.node(), 3, thief.public_key()))};
  }));
  // The right signer, for another position or for another node.
  const auto second = crypto::Ed25519KeyPair::from_seed(secret_of(102));
  for (const auto& statement : {chain_statement(good.node(), 2, thief.public_key()),
                                chain_statement(identity_of(2).node(), 3, thief.public_key())}) {
    EXPECT_TRUE(refused(
        [&](IdentityChain& c) { c.links[2] = {.key = thief.public_key(), .signature = second.sign(statement)}; }));
  }
}

TEST(IdentityChain, ThreeKeysBackToTheFirstOneIsRefused) {
  // Really signed by each key in turn, and yet it would make old chains look new.
  const auto a = root_of(1), b = root_of(2);
  const NodeId node = node_id_of(a.public_key());
  IdentityChain chain{.first = a.public_key(), .links = {}};
  chain.links.push_back({.key = b.public_key(), .signature = a.sign(chain_statement(node, 1, b.public_key()))});
  EXPECT_TRUE(verify_chain(node, chain));
  chain.links.push_back({.key = a.public_key(), .signature = b.sign(chain_statement(node, 2, a.public_key()))});
  EXPECT_EQ(verify_chain(node, chain).error().code, Errc::permission_denied);
}

RC_GTEST_PROP(IdentityChain, DecodesWhatItEncodes, ()) {
  const auto times = *rc::gen::inRange<std::size_t>(0, kMaxChainLinks + 1);
  IdentityChain chain;
  for (std::byte& b : chain.first) b = static_cast<std::byte>(*rc::gen::arbitrary<std::uint8_t>());
  chain.links.resize(times);
  for (std::size_t i = 0; i < times; ++i) chain.links[i].key[0] = static_cast<std::byte>(i);
  Bytes bytes;
  encode_chain(chain, bytes);
  const auto back = decode_chain(bytes);
  RC_ASSERT(back.has_value());
  RC_ASSERT(*back == chain);
  bytes.pop_back();
  RC_ASSERT(!decode_chain(bytes).has_value());
}

/// Golden: what has been signed stays valid after an upgrade.
TEST(IdentityChain, WhatIsSignedNeverChanges) {
  const Identity twice = rotated(1, 2);
  Bytes bytes;
  encode_chain(twice.chain(), bytes);
  EXPECT_EQ(to_hex(crypto::blake3_64(bytes)), "90a9f3a13bce2c22");
  EXPECT_EQ(to_hex(crypto::blake3_64(as_bytes(certificate_text({.root = root_of(50).public_key(),
                                                                .node = twice.node(),
                                                                .first = twice.chain().first,
                                                                .certificate = certificate_for(twice, root_of(50))})))),
            "e82b5eebbd064d04");
}

// ---- Certificates and requests

TEST(Certificate, IsForOneNodeByOneRootUntilItExpires) {
  const auto root = root_of(50), other_root = root_of(51);
  const Identity node = identity_of(1), other = identity_of(2);
  const Certificate c = certificate_for(node, root, WallTime{kNow.ms + 1000});
  const auto check = [&](const crypto::Ed25519KeyPair& by, const Identity& who, WallTime now) {
    return verify_certificate(c, by.public_key(), who.node(), who.chain().first, now).has_value();
  };
  EXPECT_TRUE(check(root, node, kNow));
  EXPECT_TRUE(check(root, node, WallTime{kNow.ms + 999}));
  EXPECT_FALSE(check(root, node, WallTime{kNow.ms + 1000}));
  EXPECT_FALSE(check(other_root, node, kNow));
  EXPECT_FALSE(check(root, other, kNow));
  Certificate longer = c;
  longer.expires = kForever;
  EXPECT_FALSE(verify_certificate(longer, root.public_key(), node.node(), node.chain().first, kNow));
}

TEST(Certificate, TextSurvivesACopyAndNothingElse) {
  const Identity node = identity_of(1);
  const CarriedCertificate carried{.root = root_of(50).public_key(),
                                   .node = node.node(),
                                   .first = node.chain().first,
                                   .certificate = certificate_for(node, root_of(50))};
  const std::string text = certificate_text(carried);
  EXPECT_EQ(parse_certificate(text + "\n"), carried);
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string altered = text;
    altered[i] = altered[i] == 'A' ? 'B' : 'A';
    EXPECT_FALSE(parse_certificate(altered)) << i;
    EXPECT_FALSE(parse_certificate(text.substr(0, i))) << i;
  }
}

TEST(Request, ProvesThatItsKeyAsks) {
  const Identity node = rotated(1, 2);
  const std::string text = request_text(node.chain(), node.sign(request_statement(node.chain())));
  EXPECT_EQ(parse_request(text), node.chain());
  // By the first key, after it was given up; and somebody else's request altered.
  const Identity first = identity_of(1);
  EXPECT_FALSE(parse_request(request_text(node.chain(), first.sign(request_statement(node.chain())))));
  std::string altered = text;
  altered[120] = altered[120] == 'A' ? 'B' : 'A';
  EXPECT_FALSE(parse_request(altered));
  EXPECT_FALSE(parse_request(text.substr(0, text.size() - 4)));
  EXPECT_FALSE(parse_request(""));
}

// ---- The book

TEST(TrustBook, PskTakesWhoHoldsTheKey) {
  TrustBook book(TrustMode::psk);
  EXPECT_TRUE(judge(book, identity_of(1)));
  EXPECT_TRUE(book.pins().empty());
}

TEST(TrustBook, TofuPinsTheFirstKeyItSees) {
  TrustBook book(TrustMode::tofu);
  EXPECT_TRUE(judge(book, identity_of(1)));
  ASSERT_EQ(book.pins().size(), 1U);
  EXPECT_EQ(book.pins().begin()->second.key, identity_of(1).public_key());
  EXPECT_TRUE(judge(book, identity_of(1)));
  // Another key under the same id: as if somebody had found a second key with the same first 64 bits.
  IdentityChain impostor{.first = identity_of(9).public_key(), .links = {}};
  const std::optional<Certificate> none;
  const auto decision = book.judge({.node = identity_of(1).node(), .chain = impostor, .certificate = none}, kNow);
  EXPECT_EQ(kind_of(decision), RefusalKind::changed_key);
  EXPECT_TRUE(judge(book, identity_of(1)));  // The pin is as it was.
  EXPECT_TRUE(book.forget(identity_of(1).node()));
  EXPECT_FALSE(book.forget(identity_of(1).node()));
  EXPECT_TRUE(book.judge({.node = identity_of(1).node(), .chain = impostor, .certificate = none}, kNow));
}

TEST(TrustBook, APinFollowsRotationsAndNeverGoesBack) {
  for (const TrustMode mode : {TrustMode::psk, TrustMode::tofu}) {
    TrustBook book(mode);
    EXPECT_TRUE(judge(book, rotated(1, 1)));
    EXPECT_TRUE(judge(book, rotated(1, 3)));
    EXPECT_TRUE(judge(book, rotated(1, 3)));
    EXPECT_EQ(kind_of(judge(book, rotated(1, 2))), RefusalKind::changed_key);  // given up: a rollback
    EXPECT_EQ(kind_of(judge(book, rotated(1, 0))), RefusalKind::changed_key);
    // A fork: a thief of the second key signs one of his own.
    const Identity fork = rotated(1, 2).rotated(secret_of(200)).value();
    EXPECT_EQ(kind_of(judge(book, fork)), RefusalKind::changed_key);
    EXPECT_TRUE(judge(book, rotated(1, 4)));
  }
}

TEST(TrustBook, RootsTakesWhoTheRootHasSigned) {
  const auto root = root_of(50);
  TrustBook book(TrustMode::roots, root.public_key());
  const Identity node = identity_of(1);
  EXPECT_TRUE(judge(book, node, certificate_for(node, root)));
  EXPECT_EQ(kind_of(judge(book, node)), RefusalKind::unknown_identity);
  EXPECT_EQ(kind_of(judge(book, node, certificate_for(node, root_of(51)))), RefusalKind::unknown_identity);
  EXPECT_EQ(kind_of(judge(book, node, certificate_for(identity_of(2), root))), RefusalKind::unknown_identity);
  EXPECT_EQ(kind_of(judge(book, node, certificate_for(node, root, kNow))), RefusalKind::unknown_identity);
  // The certificate outlives a rotation; the key that was given up does not.
  EXPECT_TRUE(judge(book, rotated(1, 1), certificate_for(node, root)));
  EXPECT_EQ(kind_of(judge(book, node, certificate_for(node, root))), RefusalKind::changed_key);
  TrustBook rootless(TrustMode::roots);
  EXPECT_EQ(kind_of(judge(rootless, node, certificate_for(node, root))), RefusalKind::unknown_identity);
}

TEST(TrustBook, TheRevokedAreRefusedInEveryMode) {
  const auto root = root_of(50);
  for (const TrustMode mode : {TrustMode::psk, TrustMode::tofu, TrustMode::roots}) {
    TrustBook book(mode, root.public_key());
    EXPECT_TRUE(judge(book, identity_of(1), certificate_for(identity_of(1), root)));
    book.set_revoked({identity_of(1).node()});
    EXPECT_EQ(kind_of(judge(book, identity_of(1), certificate_for(identity_of(1), root))), RefusalKind::revoked);
    EXPECT_EQ(kind_of(judge(book, rotated(1, 1), certificate_for(identity_of(1), root))), RefusalKind::revoked);
    EXPECT_TRUE(judge(book, identity_of(2), certificate_for(identity_of(2), root)));
  }
}

TEST(TrustBook, OnlyWhatWasConfirmedIsWrittenAndItComesBack) {
  TrustBook book(TrustMode::tofu);
  EXPECT_TRUE(judge(book, rotated(1, 1)));
  EXPECT_TRUE(judge(book, identity_of(2)));
  EXPECT_TRUE(judge(book, identity_of(3)));
  EXPECT_FALSE(book.take_changed());
  EXPECT_TRUE(book.confirm(identity_of(1).node(), "10.0.0.1:8443"));
  EXPECT_TRUE(book.confirm(identity_of(2).node(), ""));
  EXPECT_FALSE(book.confirm(identity_of(2).node(), "elsewhere"));
  EXPECT_FALSE(book.confirm(identity_of(7).node(), "never seen"));
  EXPECT_TRUE(book.take_changed());
  EXPECT_FALSE(book.take_changed());
  TrustBook again(TrustMode::tofu);
  ASSERT_TRUE(again.load_pins(book.pins_text()));
  ASSERT_EQ(again.pins().size(), 2U);
  EXPECT_EQ(again.pins().at(identity_of(1).node()), book.pins().at(identity_of(1).node()));
  EXPECT_EQ(again.pins_text(), book.pins_text());
  EXPECT_EQ(kind_of(judge(again, identity_of(1))), RefusalKind::changed_key);
  EXPECT_TRUE(judge(again, rotated(1, 2)));
  EXPECT_TRUE(again.take_changed());
}

TEST(TrustBook, ADamagedFileIsRefusedByLine) {
  TrustBook book(TrustMode::tofu);
  for (std::uint8_t i = 1; i <= 3; ++i) {
    EXPECT_TRUE(judge(book, identity_of(i)));
    book.confirm(identity_of(i).node(), "127.0.0.1:1");
  }
  const std::string text = book.pins_text();
  const auto refused = [&](const std::string& bad) {
    TrustBook other(TrustMode::tofu);
    const Status loaded = other.load_pins(bad);
    return !loaded && loaded.error().code == Errc::corrupt && other.pins().empty();
  };
  EXPECT_FALSE(refused(text));
  EXPECT_FALSE(refused(""));
  const std::string line = text.substr(text.find('\n') + 1, text.find('\n', text.find('\n') + 1) - text.find('\n'));
  EXPECT_TRUE(refused(text + line));                      // a node twice
  EXPECT_TRUE(refused(text.substr(0, text.size() - 1)));  // cut short
  EXPECT_TRUE(refused(text + "0000000000000000" + line.substr(16)));
  EXPECT_TRUE(refused("83561adb398fd87f\n"));
  EXPECT_TRUE(refused(line.substr(0, line.size() - 1) + " more\n"));
  EXPECT_TRUE(refused(line.substr(0, 20) + "!" + line.substr(21)));
  EXPECT_TRUE(refused(line.substr(0, 62) + "2026-13-01T00:00:00Z x\n"));
  EXPECT_TRUE(refused(std::string(1, '\0') + "\n"));
}

TEST(TrustBook, StrangersAreBoundedAndCostNoMemberItsPin) {
  TrustBook book(TrustMode::tofu);
  const Identity member = identity_of(1);
  EXPECT_TRUE(judge(book, member));
  book.confirm(member.node(), "here");
  const std::optional<Certificate> none;
  for (std::uint64_t i = 0; i < 2 * kMaxUnconfirmedPins; ++i) {
    IdentityChain chain;
    store(chain.first.data(), i + 2);
    EXPECT_TRUE(book.judge({.node = NodeId(i + 1), .chain = chain, .certificate = none},
                           WallTime{kNow.ms + static_cast<std::int64_t>(i)}));
    EXPECT_LE(book.pins().size(), kMaxUnconfirmedPins + 1);
  }
  EXPECT_TRUE(book.pins().contains(member.node()));
  EXPECT_TRUE(book.pins().contains(NodeId(2 * kMaxUnconfirmedPins)));  // the newest is there, the oldest is not
  EXPECT_FALSE(book.pins().contains(NodeId(1)));
}

TEST(TrustBook, WithEveryLineTakenTheNextIsUnknown) {
  TrustBook book(TrustMode::tofu);
  const std::optional<Certificate> none;
  const auto see = [&](std::uint64_t n) {
    IdentityChain chain;
    store(chain.first.data(), n);
    return book.judge({.node = NodeId(n), .chain = chain, .certificate = none}, kNow);
  };
  for (std::uint64_t n = 1; n <= kMaxPins; ++n) {
    ASSERT_TRUE(see(n));
    ASSERT_TRUE(book.confirm(NodeId(n), "x"));
  }
  EXPECT_EQ(kind_of(see(kMaxPins + 1)), RefusalKind::unknown_identity);
  EXPECT_TRUE(see(7));
  EXPECT_TRUE(book.forget(NodeId(7)));
  EXPECT_TRUE(see(kMaxPins + 1));
}

TEST(Utc, RoundTrips) {
  EXPECT_EQ(utc_text(WallTime{0}), "1970-01-01T00:00:00Z");
  EXPECT_EQ(utc_text(WallTime{1'772'323'199'000}), "2026-02-28T23:59:59Z");
  EXPECT_EQ(parse_utc("2026-02-28T23:59:59Z"), WallTime{1'772'323'199'000});
  for (const char* bad :
       {"", "2026-02-30T00:00:00Z", "2026-02-28 00:00:00Z", "2026-02-28T24:00:00Z", "2026-02-28T00:00:00"}) {
    EXPECT_FALSE(parse_utc(bad)) << bad;
  }
}

// ---- Through the handshake

class BookPolicy final : public TrustPolicy {
 public:
  explicit BookPolicy(TrustBook b) : book(std::move(b)) {}
  TrustDecision decide(const PresentedIdentity& who) override { return book.judge(who, kNow); }
  TrustBook book;
};

struct Ends {
  std::optional<HandshakeFailure> at_dialler, at_listener;
  bool done = false;
};

/// A whole handshake with as many parameters of the carrier as there may be.
Ends meet(const HandshakeConfig& a, const HandshakeConfig& b, const std::function<void(int, Bytes&)>& alter = {}) {
  SeededEntropy entropy_a(1), entropy_b(2);
  Handshake dialler(Role::initiator, std::make_shared<const HandshakeConfig>(a), entropy_a);
  Handshake listener(Role::responder, std::make_shared<const HandshakeConfig>(b), entropy_b);
  Ends ends;
  const Bytes parameters = testing::pattern(kMaxTransportParameters);
  Bytes message = *dialler.start(parameters);
  for (int i = 0; i < 3; ++i) {
    if (alter) alter(i, message);
    auto answer =
        (i == 1 ? dialler : listener).on_message(message, [&](ByteSpan) -> Result<Bytes> { return parameters; });
    if (!answer) {
      (i == 1 ? ends.at_dialler : ends.at_listener) = std::move(answer).error();
      return ends;
    }
    message = *answer;
  }
  ends.done = dialler.done() && listener.done();
  return ends;
}

/// The kind of refusal, at whichever side it happened; and that the other side is told the same.
RefusalKind refusal_of(const Ends& ends, const HandshakeConfig& told) {
  if (ends.done) return RefusalKind::none;
  const auto& failure = ends.at_dialler ? ends.at_dialler : ends.at_listener;
  if (!failure->refusal.empty()) {
    const auto refusal = decode_refusal(failure->refusal);
    EXPECT_EQ(refusal->kind, failure->kind);
    EXPECT_FALSE(refusal_error(*refusal, told).message.empty());
    EXPECT_NE(refusal_error(*refusal, told).code, Errc::malformed);
  }
  return failure->kind;
}

HandshakeConfig with(HandshakeConfig config, TrustMode mode, std::uint8_t root = 50) {
  config.suite = suite_of(mode, KeyExchange::hybrid);
  config.trust = std::make_shared<BookPolicy>(TrustBook(mode, root_of(root).public_key()));
  if (mode == TrustMode::roots) config.certificate = certificate_for(config.identity, root_of(root));
  return config;
}

TEST(TrustInHandshake, EveryModeWorksAlsoAfterTheMostRotations) {
  for (const TrustMode mode : {TrustMode::psk, TrustMode::tofu, TrustMode::roots}) {
    HandshakeConfig a = with(config_of(1), mode), b = with(config_of(2), mode);
    EXPECT_TRUE(meet(a, b).done);
    a.identity = rotated(1, kMaxChainLinks);
    b.identity = rotated(2, kMaxChainLinks);
    EXPECT_TRUE(meet(a, b).done) << trust_mode_name(mode);
  }
}

TEST(TrustInHandshake, RefusalsNameTheirCauseOnBothSidesInBothRoles) {
  const auto both_roles = [](const HandshakeConfig& strict, const HandshakeConfig& stranger) {
    const RefusalKind listening = refusal_of(meet(stranger, strict), stranger);
    EXPECT_EQ(refusal_of(meet(strict, stranger), stranger), listening);
    return listening;
  };
  const HandshakeConfig strict = with(config_of(2), TrustMode::roots);
  HandshakeConfig stranger = with(config_of(1), TrustMode::roots);
  EXPECT_EQ(both_roles(strict, stranger), RefusalKind::none);
  stranger.certificate.reset();
  EXPECT_EQ(both_roles(strict, stranger), RefusalKind::unknown_identity);
  stranger.certificate = certificate_for(identity_of(3), root_of(50));  // another node's
  EXPECT_EQ(both_roles(strict, stranger), RefusalKind::unknown_identity);
  stranger.certificate = certificate_for(stranger.identity, root_of(51));
  EXPECT_EQ(both_roles(strict, stranger), RefusalKind::unknown_identity);
  stranger.certificate = certificate_for(stranger.identity, root_of(50), WallTime{kNow.ms - 1});
  EXPECT_EQ(both_roles(strict, stranger), RefusalKind::unknown_identity);

  for (const TrustMode mode : {TrustMode::psk, TrustMode::tofu, TrustMode::roots}) {
    const HandshakeConfig home = with(config_of(2), mode);
    HandshakeConfig peer = with(config_of(1), mode);
    peer.identity = rotated(1, 2);
    EXPECT_EQ(both_roles(home, peer), RefusalKind::none);
    peer.identity = rotated(1, 1);  // The one with the older key may be a thief's copy.
    EXPECT_EQ(both_roles(home, peer), RefusalKind::changed_key) << trust_mode_name(mode);
    peer.identity = rotated(1, 3);
    static_cast<BookPolicy&>(*home.trust).book.set_revoked({peer.identity.node()});
    EXPECT_EQ(both_roles(home, peer), RefusalKind::revoked);
  }
}

TEST(TrustInHandshake, ClassicalOnlyNeedsBothSides) {
  for (const TrustMode mode : {TrustMode::psk, TrustMode::tofu}) {
    HandshakeConfig hybrid = config_of(1), classical = config_of(2), peer = config_of(3);
    hybrid.suite = suite_of(mode, KeyExchange::hybrid);
    classical.suite = peer.suite = suite_of(mode, KeyExchange::classical_only);
    EXPECT_TRUE(meet(classical, peer).done);
    for (const auto& [dialler, listener] : {std::pair(hybrid, classical), std::pair(classical, hybrid)}) {
      const Ends ends = meet(dialler, listener);
      ASSERT_TRUE(ends.at_listener);
      EXPECT_EQ(ends.at_listener->kind, RefusalKind::wrong_version);
      // Both say which suites did not fit.
      const Error told = refusal_error(*decode_refusal(ends.at_listener->refusal), dialler);
      for (const std::string& message : {ends.at_listener->error.message, told.message}) {
        EXPECT_NE(message.find(suite_name(dialler.suite)), std::string::npos) << message;
        EXPECT_NE(message.find(suite_name(listener.suite)), std::string::npos) << message;
      }
    }
  }
}

TEST(TrustInHandshake, NobodyBetweenCanTalkThemDown) {
  constexpr std::array kSuites{Suite::hybrid_psk, Suite::hybrid, Suite::classical_psk, Suite::classical};
  for (const Suite spoken : kSuites) {
    for (const Suite claimed : kSuites) {
      for (const Suite accepted : kSuites) {
        HandshakeConfig a = config_of(1), b = config_of(2);
        a.suite = spoken;
        b.suite = accepted;
        const Ends ends = meet(a, b, [&](int index, Bytes& message) {
          if (index == 0) message[6] = static_cast<std::byte>(claimed);
        });
        EXPECT_EQ(ends.done, spoken == claimed && claimed == accepted);
      }
    }
  }
}

TEST(TrustInHandshake, AStaticKeySignedBySomeoneElseIsRefused) {
  // Node 3 has node 1's chain and its own keys: the chain does not end in the key that it can sign with.
  HandshakeConfig thief = config_of(3), home = config_of(2);
  thief.suite = home.suite = Suite::hybrid;
  const auto alone = [](const Identity& speaks, const Identity& shows, const Identity& signs) {
    return verify_identity(shows.node(), shows.chain(), speaks.noise_static().public_key, signs.static_signature());
  };
  const Identity three = identity_of(3), rotated_one = rotated(1, 2);
  EXPECT_FALSE(alone(three, rotated_one, three));
  EXPECT_FALSE(alone(three, rotated_one, rotated_one));
  EXPECT_FALSE(alone(rotated_one, rotated_one, rotated(1, 1)));  // by the key that it has given up
  EXPECT_FALSE(alone(rotated(1, 1), rotated_one, rotated(1, 1)));
  EXPECT_TRUE(alone(rotated_one, rotated_one, rotated_one));
}

TEST(TrustInHandshake, PayloadsCarryChainAndCertificate) {
  const Identity node = rotated(1, 2);
  Payload payload{
      .versions = {}, .aeads = {}, .node = node.node(), .key = node.public_key(), .signature = node.static_signature()};
  payload.chain = node.chain();
  payload.certificate = certificate_for(node, root_of(50));
  Bytes bytes;
  encode_payload(payload, bytes);
  EXPECT_EQ(decode_payload(bytes), payload);
  for (std::size_t i = 0; i + 1 < bytes.size(); ++i) {
    const auto cut = decode_payload(ByteSpan(bytes).first(i));
    EXPECT_FALSE(cut && *cut == payload);
  }
}

}  // namespace
}  // namespace holo::hyperbus
