// The Noise state machine against published vectors, and against alteration of every byte.
#include "core/hyperbus/noise.h"

#include <gtest/gtest.h>

#include "core/hyperbus/test_support.h"
#include "crypto/vectors_testing.h"

namespace holo::hyperbus::noise {
namespace {

using crypto::testing::unhex;
using nlohmann::json;
using testing::FixedEntropy;
using testing::SeededEntropy;

crypto::Secret<32> secret(const Bytes& bytes) {
  EXPECT_EQ(bytes.size(), 32U);
  return crypto::Secret<32>(std::span<const std::byte, 32>(bytes));
}

/// The pattern a vector's protocol name stands for: XX or XX1, with psk modifiers at any place (section 9).
struct Parsed {
  std::string name;
  std::vector<std::vector<Token>> tokens;
  std::vector<std::span<const Token>> messages;
  Protocol protocol;

  explicit Parsed(std::string full) : name(std::move(full)) {
    using enum Token;
    std::string pattern = name.substr(6, name.find('_', 6) - 6);
    if (pattern.starts_with("XX1")) {
      tokens = {{e}, {e, ee, s}, {es, s, se}};
    } else {
      tokens = {{e}, {e, ee, s, es}, {s, se}};
    }
    for (std::size_t at = pattern.find("psk"); at != std::string::npos; at = pattern.find("psk", at + 1)) {
      const auto place = static_cast<std::size_t>(pattern[at + 3] - '0');
      if (place == 0) {
        tokens[0].insert(tokens[0].begin(), psk);
      } else {
        tokens[place - 1].push_back(psk);
      }
    }
    messages.assign(tokens.begin(), tokens.end());
    protocol = {.name = name,
                .messages = messages,
                .cipher = name.find("AESGCM") != std::string::npos ? crypto::AeadAlgorithm::aes_256_gcm
                                                                   : crypto::AeadAlgorithm::chacha20_poly1305};
  }
};

std::vector<Psk> psks_of(const json& vector, const char* key) {
  std::vector<Psk> out;
  if (vector.contains(key)) {
    for (const auto& one : vector[key]) out.push_back(secret(unhex(one)));
  }
  return out;
}

TEST(Noise, PublishedVectors) {
  const json file = crypto::testing::vectors("noise_XX_25519_SHA256.json");
  std::size_t count = 0;
  for (const auto& vector : file["vectors"]) {
    SCOPED_TRACE(vector["protocol_name"].get<std::string>());
    const Parsed parsed(vector["protocol_name"].get<std::string>());
    HandshakeState initiator(parsed.protocol, Role::initiator, unhex(vector["init_prologue"]),
                             crypto::x25519_key_pair(secret(unhex(vector["init_static"]))),
                             psks_of(vector, "init_psks"));
    HandshakeState responder(parsed.protocol, Role::responder, unhex(vector["resp_prologue"]),
                             crypto::x25519_key_pair(secret(unhex(vector["resp_static"]))),
                             psks_of(vector, "resp_psks"));
    FixedEntropy initiator_entropy(unhex(vector["init_ephemeral"]));
    FixedEntropy responder_entropy(unhex(vector["resp_ephemeral"]));

    std::optional<crypto::NoiseHkdf> split;
    std::array<std::uint64_t, 2> sent{};
    std::size_t index = 0;
    for (const auto& message : vector["messages"]) {
      const Bytes payload = unhex(message["payload"]);
      const Bytes expected = unhex(message["ciphertext"]);
      const bool from_initiator = index % 2 == 0;
      if (!initiator.done()) {
        auto& writer = from_initiator ? initiator : responder;
        auto& reader = from_initiator ? responder : initiator;
        Bytes out;
        EXPECT_TRUE(writer.my_turn());
        EXPECT_FALSE(reader.my_turn());
        ASSERT_TRUE(writer.write_message(from_initiator ? initiator_entropy : responder_entropy, payload, out));
        EXPECT_EQ(out, expected) << "message " << index;
        const auto read = reader.read_message(out);
        ASSERT_TRUE(read);
        EXPECT_EQ(*read, payload);
        if (initiator.done()) {
          ASSERT_TRUE(responder.done());
          EXPECT_EQ(initiator.hash(), responder.hash());
          EXPECT_EQ(initiator.chaining_key(), responder.chaining_key());
          if (vector.contains("handshake_hash")) {
            const Bytes hash = unhex(vector["handshake_hash"]);
            EXPECT_TRUE(std::equal(hash.begin(), hash.end(), initiator.hash().begin()));
          }
          split = crypto::noise_hkdf(initiator.chaining_key(), {});
        }
      } else {
        // Transport messages: Noise's own Split(), which proves the chaining key.
        const std::size_t direction = from_initiator ? 0 : 1;
        const crypto::Aead aead(parsed.protocol.cipher, from_initiator ? split->first : split->second);
        std::array<std::byte, 12> nonce{};
        const bool little = parsed.protocol.cipher == crypto::AeadAlgorithm::chacha20_poly1305;
        nonce[little ? 4 : 11] = static_cast<std::byte>(sent[direction]++);
        Bytes out(payload.size() + crypto::kAeadTagBytes);
        aead.seal(nonce, {}, payload, out);
        EXPECT_EQ(out, expected) << "message " << index;
      }
      ++index;
    }
    EXPECT_TRUE(initiator.done());
    ++count;
  }
  EXPECT_GE(count, 18U);
}

struct Pair {
  SeededEntropy initiator_entropy{1}, responder_entropy{2};
  HandshakeState initiator, responder;
  std::array<HandshakeState*, 2> sides{&initiator, &responder};

  static std::vector<Psk> psks(const Protocol& protocol) {
    const bool needs = protocol.name.find("psk0") != std::string_view::npos;
    return needs ? std::vector<Psk>{secret(Bytes(32, std::byte{9}))} : std::vector<Psk>{};
  }
  explicit Pair(const Protocol& protocol)
      : initiator(protocol, Role::initiator, as_bytes("prologue"),
                  crypto::x25519_key_pair(secret(Bytes(32, std::byte{1}))), psks(protocol)),
        responder(protocol, Role::responder, as_bytes("prologue"),
                  crypto::x25519_key_pair(secret(Bytes(32, std::byte{2}))), psks(protocol)) {}
  env::Entropy& entropy(std::size_t side) { return side == 0 ? initiator_entropy : responder_entropy; }
};

class NoiseProtocols : public ::testing::TestWithParam<const Protocol*> {};

TEST_P(NoiseProtocols, BothSidesAgree) {
  Pair pair(*GetParam());
  for (std::size_t i = 0; i < 3; ++i) {
    Bytes out;
    ASSERT_TRUE(pair.sides[i % 2]->write_message(pair.entropy(i % 2), as_bytes("payload"), out));
    const auto read = pair.sides[(i + 1) % 2]->read_message(out);
    ASSERT_TRUE(read);
    EXPECT_EQ(as_text(*read), "payload");
  }
  EXPECT_TRUE(pair.initiator.done() && pair.responder.done());
  EXPECT_EQ(pair.initiator.hash(), pair.responder.hash());
  EXPECT_EQ(pair.initiator.chaining_key(), pair.responder.chaining_key());
  EXPECT_EQ(*pair.initiator.remote_static(), crypto::x25519_key_pair(secret(Bytes(32, std::byte{2}))).public_key);
  EXPECT_EQ(*pair.responder.remote_static(), crypto::x25519_key_pair(secret(Bytes(32, std::byte{1}))).public_key);
}

/// Runs a handshake in which message `target` passes through `alter`; true when either side noticed before the end.
template <class F>
bool noticed(const Protocol& protocol, std::size_t target, F alter) {
  Pair pair(protocol);
  for (std::size_t i = 0; i < 3; ++i) {
    Bytes out;
    if (!pair.sides[i % 2]->write_message(pair.entropy(i % 2), as_bytes("payload"), out)) return true;
    if (i == target) alter(out);
    if (!pair.sides[(i + 1) % 2]->read_message(out)) return true;
  }
  return false;
}

TEST_P(NoiseProtocols, EveryAlteredByteIsNoticed) {
  for (std::size_t message = 0; message < 3; ++message) {
    std::size_t size = 0;
    EXPECT_FALSE(noticed(*GetParam(), message, [&](Bytes& m) { size = m.size(); }));

    for (std::size_t at = 0; at < size; ++at) {
      EXPECT_TRUE(noticed(*GetParam(), message, [&](Bytes& m) { m[at] ^= std::byte{0x40}; })) << message << " " << at;
    }
    for (std::size_t keep = 0; keep < size; keep += size > 500 ? 97 : 5) {
      EXPECT_TRUE(noticed(*GetParam(), message, [&](Bytes& m) { m.resize(keep); })) << message << " " << keep;
    }
    EXPECT_TRUE(noticed(*GetParam(), message, [](Bytes& m) { m.push_back(std::byte{0}); }));
  }
}

TEST_P(NoiseProtocols, LowOrderPointsAreRefused) {
  // Zero as the ephemeral key of either side: the first Diffie-Hellman is all zero.
  EXPECT_TRUE(noticed(*GetParam(), 0, [](Bytes& m) { std::fill_n(m.begin(), 32, std::byte{0}); }));
  EXPECT_TRUE(noticed(*GetParam(), 1, [](Bytes& m) { std::fill_n(m.begin(), 32, std::byte{0}); }));
}

INSTANTIATE_TEST_SUITE_P(All, NoiseProtocols, ::testing::Values(&kXX, &kXXpsk0, &kXXhfs, &kXXhfsPsk0));

TEST(Noise, AnotherPrologueOrPskDoesNotConnect) {
  SeededEntropy entropy(3);
  const auto keys = crypto::x25519_key_pair(secret(Bytes(32, std::byte{1})));
  const auto attempt = [&](ByteSpan prologue, std::byte psk_byte) {
    HandshakeState a(kXXhfsPsk0, Role::initiator, as_bytes("p"), keys, {secret(Bytes(32, std::byte{9}))});
    HandshakeState b(kXXhfsPsk0, Role::responder, prologue, keys, {secret(Bytes(32, psk_byte))});
    Bytes out;
    EXPECT_TRUE(a.write_message(entropy, {}, out));
    return b.read_message(out).has_value();
  };
  EXPECT_TRUE(attempt(as_bytes("p"), std::byte{9}));
  EXPECT_FALSE(attempt(as_bytes("q"), std::byte{9}));
  EXPECT_FALSE(attempt(as_bytes("p"), std::byte{8}));
}

TEST(Noise, MalformedKemKeyIsRefusedByTheResponder) {
  // Without a psk e1 travels in clear, so an attacker can replace it: coefficients of 0xFFF are not reduced modulo q.
  const bool seen = noticed(kXXhfs, 0, [](Bytes& m) { std::fill_n(m.begin() + 32, 1152, std::byte{0xFF}); });
  EXPECT_TRUE(seen);
}

}  // namespace
}  // namespace holo::hyperbus::noise
