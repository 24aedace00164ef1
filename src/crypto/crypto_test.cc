// The wrappers against Wycheproof's vectors (test/vectors/README.md), and what those do not cover.
#include <gtest/gtest.h>

#include "crypto/aead.h"
#include "crypto/base64.h"
#include "crypto/ed25519.h"
#include "crypto/hash.h"
#include "crypto/mlkem.h"
#include "crypto/secret.h"
#include "crypto/vectors_testing.h"
#include "crypto/x25519.h"

namespace holo::crypto {
namespace {

using nlohmann::json;
using testing::hex;
using testing::unhex;
using testing::vectors;

template <std::size_t N>
std::array<std::byte, N> fixed(const Bytes& bytes) {
  std::array<std::byte, N> out{};
  EXPECT_EQ(bytes.size(), N);
  std::copy_n(bytes.begin(), std::min(N, bytes.size()), out.begin());
  return out;
}

template <std::size_t N>
Secret<N> secret(const Bytes& bytes) {
  return Secret<N>(std::span<const std::byte, N>(fixed<N>(bytes)));
}

/// Calls f(group, test) for each test of a Wycheproof file; returns how many there were.
template <class F>
std::size_t each(const std::string& name, F f) {
  std::size_t count = 0;
  const json file = vectors(name);
  for (const auto& group : file["testGroups"]) {
    for (const auto& test : group["tests"]) {
      SCOPED_TRACE(name + " tcId " + std::to_string(test["tcId"].get<int>()));
      f(group, test);
      ++count;
    }
  }
  return count;
}

void check_aead(AeadAlgorithm algorithm, const std::string& file, std::size_t at_least) {
  std::size_t checked = 0;
  each(file, [&](const json& group, const json& test) {
    // Other key, nonce and tag sizes cannot even be written down with these wrappers.
    if (group["keySize"] != 256 || group["ivSize"] != aead_nonce_bytes(algorithm) * 8 || group["tagSize"] != 128)
      return;
    ++checked;
    const Aead aead(algorithm, secret<kAeadKeyBytes>(unhex(test["key"])));
    const Bytes nonce = unhex(test["iv"]), associated = unhex(test["aad"]), plain = unhex(test["msg"]);
    Bytes sealed = unhex(test["ct"]);
    const Bytes tag = unhex(test["tag"]);
    sealed.insert(sealed.end(), tag.begin(), tag.end());
    const bool valid = test["result"] == "valid";

    Bytes opened(sealed.size() - kAeadTagBytes);
    EXPECT_EQ(aead.open(nonce, associated, sealed, opened), valid);
    if (!valid) return;
    EXPECT_EQ(opened, plain);
    Bytes again(sealed.size());
    aead.seal(nonce, associated, plain, again);
    EXPECT_EQ(hex(again), hex(sealed));
    // In place, both ways.
    Bytes place = plain;
    place.resize(sealed.size());
    aead.seal(nonce, associated, ByteSpan(place).first(plain.size()), place);
    EXPECT_EQ(place, sealed);
    EXPECT_TRUE(aead.open(nonce, associated, place, MutableByteSpan(place).first(plain.size())));
    EXPECT_TRUE(std::equal(plain.begin(), plain.end(), place.begin()));
  });
  EXPECT_GE(checked, at_least);
}

TEST(Aead, AesGcmVectors) { check_aead(AeadAlgorithm::aes_256_gcm, "wycheproof_aes_gcm.json", 50); }
TEST(Aead, ChaChaVectors) { check_aead(AeadAlgorithm::chacha20_poly1305, "wycheproof_chacha20_poly1305.json", 250); }
TEST(Aead, XChaChaVectors) { check_aead(AeadAlgorithm::xchacha20_poly1305, "wycheproof_xchacha20_poly1305.json", 250); }

TEST(Aead, RefusesEveryFlippedBitAndTruncation) {
  for (const auto algorithm :
       {AeadAlgorithm::aes_256_gcm, AeadAlgorithm::chacha20_poly1305, AeadAlgorithm::xchacha20_poly1305}) {
    const Aead aead(algorithm, secret<kAeadKeyBytes>(Bytes(32, std::byte{7})));
    const Bytes nonce(aead_nonce_bytes(algorithm), std::byte{1});
    const Bytes plain(40, std::byte{9});
    Bytes sealed(plain.size() + kAeadTagBytes);
    aead.seal(nonce, as_bytes("header"), plain, sealed);
    for (std::size_t i = 0; i < sealed.size(); ++i) {
      Bytes altered = sealed, out(plain.size());
      altered[i] ^= std::byte{0x10};
      EXPECT_FALSE(aead.open(nonce, as_bytes("header"), altered, out)) << i;
    }
    for (std::size_t n = 0; n < sealed.size(); ++n) {
      Bytes out(n >= kAeadTagBytes ? n - kAeadTagBytes : 0);
      EXPECT_FALSE(aead.open(nonce, as_bytes("header"), ByteSpan(sealed).first(n), out)) << n;
    }
  }
}

TEST(X25519, Vectors) {
  const std::size_t count = each("wycheproof_x25519.json", [](const json&, const json& test) {
    const Bytes their_key = unhex(test["public"]);
    if (their_key.size() != kX25519Bytes) return;
    const auto shared = x25519(secret<32>(unhex(test["private"])), fixed<32>(their_key));
    const Bytes expected = unhex(test["shared"]);
    if (expected == Bytes(32)) {
      EXPECT_FALSE(shared);  // low order: Wycheproof calls it acceptable, we do not
    } else {
      ASSERT_TRUE(shared);
      EXPECT_EQ(hex(shared->span()), hex(expected));
    }
  });
  EXPECT_GE(count, 500U);
}

TEST(Ed25519, Vectors) {
  const std::size_t count = each("wycheproof_ed25519.json", [](const json& group, const json& test) {
    EXPECT_EQ(ed25519_verify(unhex(group["publicKey"]["pk"]), unhex(test["msg"]), unhex(test["sig"])),
              test["result"] == "valid");
  });
  EXPECT_GE(count, 150U);
}

TEST(Ed25519, SignsAsRfc8032) {
  const auto pair = Ed25519KeyPair::from_seed(
      secret<32>(unhex(std::string("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"))));
  EXPECT_EQ(hex(pair.public_key()), "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025");
  EXPECT_EQ(hex(pair.sign(unhex(std::string("af82")))),
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a");
}

TEST(MlKem, DecapsulationVectors) {
  const std::size_t count = each("wycheproof_mlkem_768.json", [](const json&, const json& test) {
    const Bytes seed = unhex(test["seed"]);
    if (seed.size() != kMlKemKeySeedBytes) {
      EXPECT_EQ(test["result"], "invalid");
      return;
    }
    const auto pair = MlKemKeyPair::from_seed(secret<kMlKemKeySeedBytes>(seed));
    if (test.contains("ek")) {
      EXPECT_EQ(hex(pair.public_key()), test["ek"].get<std::string>());
    }
    const auto shared = pair.decapsulate(unhex(test["c"]));
    ASSERT_EQ(shared.has_value(), test["result"] == "valid");
    if (shared) {
      EXPECT_EQ(hex(shared->span()), test["K"].get<std::string>());
    }
  });
  EXPECT_GE(count, 190U);
}

TEST(MlKem, EncapsulationVectors) {
  const std::size_t count = each("wycheproof_mlkem_768_encaps.json", [](const json&, const json& test) {
    const auto made = mlkem_encapsulate(unhex(test["ek"]), secret<kMlKemEncapsSeedBytes>(unhex(test["m"])));
    ASSERT_EQ(made.has_value(), test["result"] == "valid");
    if (!made) return;
    EXPECT_EQ(hex(made->ciphertext), test["c"].get<std::string>());
    EXPECT_EQ(hex(made->shared.span()), test["K"].get<std::string>());
  });
  EXPECT_GE(count, 260U);
}

TEST(MlKem, RoundTripAndImplicitRejection) {
  const auto pair = MlKemKeyPair::from_seed(secret<64>(Bytes(64, std::byte{3})));
  auto made = mlkem_encapsulate(pair.public_key(), secret<32>(Bytes(32, std::byte{4})));
  ASSERT_TRUE(made);
  EXPECT_EQ(*pair.decapsulate(made->ciphertext), made->shared);
  made->ciphertext[100] ^= std::byte{1};
  EXPECT_FALSE(*pair.decapsulate(made->ciphertext) == made->shared);
}

TEST(Hkdf, Vectors) {
  const std::size_t count = each("wycheproof_hkdf_sha256.json", [](const json&, const json& test) {
    Bytes out(test["size"].get<std::size_t>());
    const auto status = hkdf_sha256(unhex(test["ikm"]), unhex(test["salt"]), unhex(test["info"]), out);
    ASSERT_EQ(status.has_value(), test["result"] == "valid");
    if (status) {
      EXPECT_EQ(hex(out), test["okm"].get<std::string>());
    }
  });
  EXPECT_GE(count, 80U);
}

TEST(Hkdf, NoiseFormIsRfc5869WithoutInfo) {
  const auto ck = secret<32>(Bytes(32, std::byte{5}));
  const auto made = noise_hkdf(ck, as_bytes("input"));
  Bytes plain(96);
  ASSERT_TRUE(hkdf_sha256(as_bytes("input"), ck.span(), {}, plain));
  EXPECT_EQ(hex(made.first.span()) + hex(made.second.span()) + hex(made.third.span()), hex(plain));
}

TEST(Hash, KnownAnswers) {
  EXPECT_EQ(hex(sha256(as_bytes("abc"))), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256(as_bytes("a"), as_bytes("bc")), sha256(as_bytes("abc")));
  // RFC 4231, case 2.
  EXPECT_EQ(hex(hmac_sha256(as_bytes("Jefe"), as_bytes("what do ya want for nothing?")).span()),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  // BLAKE3's own test vectors: input 0, 1, 2, ...; lengths 0 and 1025.
  EXPECT_EQ(hex(blake3({})), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
  Bytes input(1025);
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<std::byte>(i % 251);
  EXPECT_EQ(hex(blake3(input)), "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444");
  EXPECT_EQ(blake3_64({}), 0xa6a1f9f5b94913afULL);
}

TEST(Hash, StreamingEqualsOneShot) {
  Bytes input(100'000);
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<std::byte>(i * 31);
  Blake3 hasher;
  for (std::size_t at = 0; at < input.size();) {
    const std::size_t n = std::min<std::size_t>(1 + at % 4099, input.size() - at);
    hasher.update(ByteSpan(input).subspan(at, n));
    at += n;
  }
  EXPECT_EQ(hasher.digest(), blake3(input));
}

TEST(Hash, DerivationIsSeparatedByContext) {
  EXPECT_FALSE(blake3_derive("a", as_bytes("key")) == blake3_derive("b", as_bytes("key")));
  EXPECT_EQ(blake3_derive("a", as_bytes("key")), blake3_derive("a", as_bytes("key")));
}

TEST(Secrets, AreWipedAndComparedWhole) {
  alignas(Secret<32>) std::byte place[sizeof(Secret<32>)];
  auto* held = new (place) Secret<32>(secret<32>(Bytes(32, std::byte{0xAB})));
  EXPECT_EQ(std::count(std::begin(place), std::end(place), std::byte{0xAB}), 32);
  Secret<32> moved = std::move(*held);
  EXPECT_EQ(std::count(std::begin(place), std::end(place), std::byte{0xAB}), 0);
  EXPECT_EQ(moved, secret<32>(Bytes(32, std::byte{0xAB})));
  held->~Secret();

  EXPECT_TRUE(constant_time_equal(as_bytes("abc"), as_bytes("abc")));
  EXPECT_FALSE(constant_time_equal(as_bytes("abc"), as_bytes("abd")));
  EXPECT_FALSE(constant_time_equal(as_bytes("abc"), as_bytes("ab")));
}

TEST(Base64, RoundTripsAndRefusesEverySecondSpelling) {
  // RFC 4648 section 10.
  for (const auto& [plain, text] : std::vector<std::pair<std::string, std::string>>{
           {"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"}, {"foob", "Zm9vYg=="}, {"foobar", "Zm9vYmFy"}}) {
    EXPECT_EQ(base64_encode(as_bytes(plain)), text);
    const auto decoded = base64_decode(text);
    ASSERT_TRUE(decoded);
    EXPECT_EQ(as_text(*decoded), plain);
  }
  for (const char* bad :
       {"Z", "Zg", "Zg=", "Zh==", "Zm9=", "Zg==Zg==", "Z===", "====", "Zm 9", "Zm9v\n", "Zm9-", "=m9v"}) {
    EXPECT_FALSE(base64_decode(bad)) << bad;
  }
}

}  // namespace
}  // namespace holo::crypto
