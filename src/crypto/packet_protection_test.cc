// QUIC's packet protection against the examples of RFC 9001, appendix A.
#include "crypto/packet_protection.h"

#include <gtest/gtest.h>

#include "crypto/hash.h"
#include "crypto/vectors_testing.h"

namespace holo::crypto {
namespace {

using nlohmann::json;
using testing::unhex;

Bytes to_bytes(ByteSpan b) { return {b.begin(), b.end()}; }

const json& vectors() {
  static const json file = testing::vectors("rfc9001.json");
  return file;
}

TrafficSecret secret_of(const json& j) {
  const Bytes bytes = unhex(j);
  EXPECT_EQ(bytes.size(), 32U);
  return TrafficSecret(std::span<const std::byte, 32>(bytes.data(), 32));
}

/// The 16 bytes that begin 4 bytes after the packet number does.
std::span<const std::byte, HeaderKey::kSampleBytes> sample_of(ByteSpan packet, std::size_t number_at) {
  return packet.subspan(number_at + 4).first<HeaderKey::kSampleBytes>();
}

void apply(const HeaderKey::Mask& mask, MutableByteSpan packet, std::size_t number_at, std::size_t number_bytes) {
  packet[0] ^= mask[0] & ((packet[0] & std::byte{0x80}) != std::byte{} ? std::byte{0x0f} : std::byte{0x1f});
  for (std::size_t i = 0; i < number_bytes; ++i) packet[number_at + i] ^= mask[1 + i];
}

/// Protects the packet that `v` describes, compares it with the RFC's, and takes the protection off again.
void check_packet(const json& v, AeadAlgorithm algorithm) {
  const TrafficSecret secret = secret_of(v["secret"]);
  for (const auto& [label, want] :
       {std::pair{"quic key", unhex(v["key"])}, {"quic iv", unhex(v["iv"])}, {"quic hp", unhex(v["hp"])}}) {
    Bytes derived(want.size());
    hkdf_expand_label(secret.span(), label, derived);
    EXPECT_EQ(derived, want) << label;
  }

  const PacketKey key(algorithm, secret);
  const HeaderKey header_key(algorithm, secret);
  const Bytes header = unhex(v["header"]);
  const auto number = v["packet_number"].get<std::uint64_t>();
  const auto number_bytes = v["packet_number_bytes"].get<std::size_t>();
  const std::size_t number_at = header.size() - number_bytes;
  Bytes plain = unhex(v["payload"]);
  plain.resize(v["payload_bytes"].get<std::size_t>());  // PADDING frames are zeros.

  Bytes packet = header;
  packet.resize(header.size() + plain.size() + kAeadTagBytes);
  const MutableByteSpan sealed = MutableByteSpan(packet).subspan(header.size());
  key.seal(number, header, plain, sealed);
  const HeaderKey::Mask mask = header_key.mask(sample_of(packet, number_at));
  EXPECT_EQ(to_bytes(mask), unhex(v["mask"]));
  apply(mask, packet, number_at, number_bytes);
  EXPECT_EQ(packet, unhex(v["packet"]));

  apply(header_key.mask(sample_of(packet, number_at)), packet, number_at, number_bytes);
  EXPECT_EQ(to_bytes(ByteSpan(packet).first(header.size())), header);
  Bytes opened(plain.size());
  EXPECT_TRUE(key.open(number, header, sealed, opened));
  EXPECT_EQ(opened, plain);
  EXPECT_FALSE(key.open(number + 1, header, sealed, opened));
  // In place, as it happens in a receive buffer.
  EXPECT_TRUE(key.open(number, header, sealed, sealed.first(plain.size())));
  EXPECT_EQ(to_bytes(sealed.first(plain.size())), plain);
}

TEST(PacketProtection, InitialSecretsOfAppendixA1) {
  const json& v = vectors();
  const Bytes salt = unhex(v["initial_salt"]), id = unhex(v["destination_connection_id"]);
  EXPECT_EQ(to_bytes(hkdf_extract(salt, id).span()), unhex(v["initial_secret"]));
  const InitialSecrets secrets = initial_secrets(salt, id);
  EXPECT_EQ(to_bytes(secrets.client.span()), unhex(v["client"]["secret"]));
  EXPECT_EQ(to_bytes(secrets.server.span()), unhex(v["server"]["secret"]));
}

TEST(PacketProtection, ClientInitialOfAppendixA2) { check_packet(vectors()["client"], AeadAlgorithm::aes_128_gcm); }
TEST(PacketProtection, ServerInitialOfAppendixA3) { check_packet(vectors()["server"], AeadAlgorithm::aes_128_gcm); }
TEST(PacketProtection, ShortHeaderOfAppendixA5) { check_packet(vectors()["chacha"], AeadAlgorithm::chacha20_poly1305); }

TEST(PacketProtection, RetryTagOfAppendixA4) {
  const json& v = vectors();
  const Bytes packet = unhex(v["retry"]["packet"]), id = unhex(v["destination_connection_id"]);
  Bytes pseudo{static_cast<std::byte>(id.size())};
  pseudo.insert(pseudo.end(), id.begin(), id.end());
  pseudo.insert(pseudo.end(), packet.begin(), packet.end() - kAeadTagBytes);
  AeadKey key;
  std::ranges::copy(unhex(v["retry"]["key"]), key.writable().begin());
  Bytes tag(kAeadTagBytes);
  Aead(AeadAlgorithm::aes_128_gcm, key).seal(unhex(v["retry"]["nonce"]), pseudo, {}, tag);
  EXPECT_EQ(tag, Bytes(packet.end() - kAeadTagBytes, packet.end()));
}

TEST(PacketProtection, KeyUpdateOfAppendixA5) {
  const json& v = vectors()["chacha"];
  EXPECT_EQ(to_bytes(next_traffic_secret(secret_of(v["secret"])).span()), unhex(v["next_secret"]));
}

/// No vectors exist for the two that 1-RTT packets use here; their parts have them (Wycheproof, and above).
TEST(PacketProtection, LongKeysAndLongNonces) {
  const TrafficSecret secret = secret_of(vectors()["chacha"]["secret"]);
  const Bytes header(20, std::byte{7}), plain(1200, std::byte{9});
  for (const AeadAlgorithm algorithm : {AeadAlgorithm::aes_256_gcm, AeadAlgorithm::xchacha20_poly1305}) {
    SCOPED_TRACE(aead_name(algorithm));
    const PacketKey key(algorithm, secret), next(algorithm, next_traffic_secret(secret));
    Bytes sealed(plain.size() + kAeadTagBytes), opened(plain.size());
    key.seal(0x0102030405060708, header, plain, sealed);
    EXPECT_TRUE(key.open(0x0102030405060708, header, sealed, opened));
    EXPECT_EQ(opened, plain);
    EXPECT_FALSE(key.open(0x0102030405060709, header, sealed, opened));
    EXPECT_FALSE(key.open(0x0202030405060708, header, sealed, opened));
    EXPECT_FALSE(next.open(0x0102030405060708, header, sealed, opened));

    // The construction itself, out of its parts.
    AeadKey raw_key;
    hkdf_expand_label(secret.span(), "quic key", raw_key.writable());
    Bytes nonce(aead_nonce_bytes(algorithm));
    hkdf_expand_label(secret.span(), "quic iv", nonce);
    for (std::size_t i = 0; i < 8; ++i) nonce[nonce.size() - 8 + i] ^= static_cast<std::byte>(i + 1);
    Bytes again(sealed.size());
    Aead(algorithm, raw_key).seal(nonce, header, plain, again);
    EXPECT_EQ(again, sealed);
  }
}

}  // namespace
}  // namespace holo::crypto
