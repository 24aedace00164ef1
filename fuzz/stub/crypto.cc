#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "base/random.h"
#include "crypto/aead.h"
#include "crypto/ed25519.h"
#include "crypto/hash.h"
#include "crypto/mlkem.h"
#include "crypto/packet_protection.h"
#include "crypto/x25519.h"
#include "stub/stub.h"

namespace holo::crypto {

namespace stub {
bool keys_matter = false;
extern const volatile char* const marker;
const volatile char* const marker = kMarker;
}  // namespace stub

namespace {

/// Eight bytes at a time; quick, and different for different inputs, which is all that is asked of it.
class Mixer {
 public:
  explicit Mixer(std::uint64_t seed) : state_(seed) {}
  void add(ByteSpan bytes) {
    state_ = mix64(state_ + bytes.size());
    for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes.data(), 8);
      state_ = (state_ ^ word) * 0x9E3779B97F4A7C15ULL;
      state_ ^= state_ >> 29;
    }
    std::uint64_t word = 0;
    if (!bytes.empty()) std::memcpy(&word, bytes.data(), bytes.size());
    state_ = mix64(state_ ^ word);
  }
  [[nodiscard]] std::uint64_t state() const { return state_; }
  void give(MutableByteSpan out) {
    for (std::uint64_t n = 0; !out.empty(); ++n) {
      const std::uint64_t word = mix64(state_ + n);
      const std::size_t bytes = std::min<std::size_t>(out.size(), 8);
      std::memcpy(out.data(), &word, bytes);
      out = out.subspan(bytes);
    }
  }

 private:
  std::uint64_t state_;
};

std::uint64_t name_of(ByteSpan key) {
  Mixer mixer(1);
  mixer.add(key);
  return mixer.state();
}

template <std::size_t N>
Secret<N> expand(const TrafficSecret& secret, std::string_view label) {
  Secret<N> out;
  hkdf_expand_label(secret.span(), label, out.writable());
  return out;
}

bool is_broken(std::byte last) { return (last & std::byte{stub::kBroken}) != std::byte{}; }

}  // namespace

// --- aead.h

std::size_t aead_key_bytes(AeadAlgorithm algorithm) { return algorithm == AeadAlgorithm::aes_128_gcm ? 16 : 32; }
std::size_t aead_nonce_bytes(AeadAlgorithm algorithm) {
  return algorithm == AeadAlgorithm::xchacha20_poly1305 ? 24 : 12;
}
const char* aead_name(AeadAlgorithm) { return "none"; }
bool cpu_has_aes() { return true; }

struct Aead::Impl {
  std::uint64_t name;
};

Aead::Aead(AeadAlgorithm algorithm, const AeadKey& key)
    : algorithm_(algorithm), impl_(std::make_unique<Impl>(name_of(key.span().first(aead_key_bytes(algorithm))))) {}
Aead::Aead(Aead&&) noexcept = default;
Aead& Aead::operator=(Aead&&) noexcept = default;
Aead::~Aead() = default;

void Aead::seal(ByteSpan nonce, ByteSpan, ByteSpan plain, MutableByteSpan out) const {
  HOLO_ASSERT(nonce.size() == aead_nonce_bytes(algorithm_) && out.size() == plain.size() + kAeadTagBytes);
  if (!plain.empty()) std::memmove(out.data(), plain.data(), plain.size());
  const MutableByteSpan tag = out.subspan(plain.size());
  std::memset(tag.data(), 0, tag.size());
  std::memcpy(tag.data(), &impl_->name, sizeof impl_->name);
}

bool Aead::open(ByteSpan nonce, ByteSpan, ByteSpan sealed, MutableByteSpan out) const {
  if (sealed.size() < kAeadTagBytes) return false;
  const std::size_t bytes = sealed.size() - kAeadTagBytes;
  HOLO_ASSERT(nonce.size() == aead_nonce_bytes(algorithm_) && out.size() == bytes);
  if (is_broken(sealed.back())) return false;
  if (stub::keys_matter && std::memcmp(sealed.data() + bytes, &impl_->name, sizeof impl_->name) != 0) return false;
  if (bytes != 0) std::memmove(out.data(), sealed.data(), bytes);
  return true;
}

// --- hash.h

Sha256Digest sha256(ByteSpan a, ByteSpan b) {
  Mixer mixer(2);
  mixer.add(a);
  mixer.add(b);
  Sha256Digest out{};
  mixer.give(out);
  return out;
}

Secret<kSha256Bytes> hmac_sha256(ByteSpan key, ByteSpan data) {
  Mixer mixer(3);
  mixer.add(key);
  mixer.add(data);
  Secret<kSha256Bytes> out;
  mixer.give(out.writable());
  return out;
}

Status hkdf_sha256(ByteSpan secret, ByteSpan salt, ByteSpan info, MutableByteSpan out) {
  if (out.size() > 255 * kSha256Bytes) return fail(Errc::invalid_argument, "HKDF-SHA-256 gives at most 8160 bytes");
  Mixer mixer(4);
  mixer.add(secret);
  mixer.add(salt);
  mixer.add(info);
  mixer.give(out);
  return {};
}

Secret<kSha256Bytes> hkdf_extract(ByteSpan salt, ByteSpan secret) { return hmac_sha256(salt, secret); }

void hkdf_expand_label(ByteSpan secret, std::string_view label, MutableByteSpan out) {
  Mixer mixer(5);
  mixer.add(secret);
  mixer.add(as_bytes(label));
  mixer.give(out);
}

NoiseHkdf noise_hkdf(const Secret<kSha256Bytes>& chaining_key, ByteSpan input) {
  Mixer mixer(6);
  mixer.add(chaining_key.span());
  mixer.add(input);
  Secret<3 * kSha256Bytes> all;
  mixer.give(all.writable());
  NoiseHkdf out;
  std::ranges::copy(all.span().subspan<0, 32>(), out.first.writable().begin());
  std::ranges::copy(all.span().subspan<32, 32>(), out.second.writable().begin());
  std::ranges::copy(all.span().subspan<64, 32>(), out.third.writable().begin());
  return out;
}

Blake3Digest blake3(ByteSpan data) {
  Mixer mixer(7);
  mixer.add(data);
  Blake3Digest out{};
  mixer.give(out);
  return out;
}

std::uint64_t blake3_64(ByteSpan data) {
  Mixer mixer(8);
  mixer.add(data);
  return mixer.state();
}

Secret<kBlake3Bytes> blake3_derive(std::string_view context, ByteSpan material) {
  Mixer mixer(9);
  mixer.add(as_bytes(context));
  mixer.add(material);
  Secret<kBlake3Bytes> out;
  mixer.give(out.writable());
  return out;
}

struct Blake3::Impl {
  Mixer mixer{10};
};
Blake3::Blake3() : impl_(std::make_unique<Impl>()) {}
Blake3::Blake3(Blake3&&) noexcept = default;
Blake3& Blake3::operator=(Blake3&&) noexcept = default;
Blake3::~Blake3() = default;
void Blake3::update(ByteSpan data) { impl_->mixer.add(data); }
Blake3Digest Blake3::digest() const {
  Mixer mixer = impl_->mixer;
  Blake3Digest out{};
  mixer.give(out);
  return out;
}

// --- x25519.h, ed25519.h, mlkem.h

X25519KeyPair x25519_key_pair(X25519Secret secret) {
  X25519KeyPair pair{.secret = std::move(secret), .public_key = {}};
  std::ranges::copy(pair.secret.span(), pair.public_key.begin());
  return pair;
}

Result<X25519Secret> x25519(const X25519Secret& ours, const X25519PublicKey& theirs) {
  if (std::ranges::all_of(theirs, [](std::byte b) { return b == std::byte{}; })) {
    return fail(Errc::malformed, "an X25519 key of low order");
  }
  X25519Secret shared;
  for (std::size_t i = 0; i < kX25519Bytes; ++i) shared.writable()[i] = ours.span()[i] ^ theirs[i];
  return shared;
}

Ed25519KeyPair Ed25519KeyPair::from_seed(const Ed25519Seed& seed) {
  Ed25519KeyPair pair;
  std::ranges::copy(seed.span(), pair.public_key_.begin());
  return pair;
}

Ed25519Signature Ed25519KeyPair::sign(ByteSpan message) const {
  Mixer mixer(11);
  mixer.add(public_key_);
  mixer.add(message);
  Ed25519Signature signature{};
  mixer.give(MutableByteSpan(signature).first(8));
  return signature;
}

bool ed25519_verify(ByteSpan key, ByteSpan message, ByteSpan signature) {
  if (key.size() != kEd25519PublicBytes || signature.size() != kEd25519SignatureBytes) return false;
  if (is_broken(signature.back())) return false;
  if (!stub::keys_matter) return true;
  Mixer mixer(11);
  mixer.add(key);
  mixer.add(message);
  std::array<std::byte, 8> expected;
  mixer.give(expected);
  return std::ranges::equal(expected, signature.first(8));
}

struct MlKemKeyPair::Impl {
  std::array<std::byte, kMlKemPublicBytes> public_key{};
};
MlKemKeyPair::MlKemKeyPair(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MlKemKeyPair::MlKemKeyPair(MlKemKeyPair&&) noexcept = default;
MlKemKeyPair& MlKemKeyPair::operator=(MlKemKeyPair&&) noexcept = default;
MlKemKeyPair::~MlKemKeyPair() = default;

MlKemKeyPair MlKemKeyPair::from_seed(const Secret<kMlKemKeySeedBytes>& seed) {
  auto impl = std::make_unique<Impl>();
  std::ranges::copy(seed.span(), impl->public_key.begin());
  return MlKemKeyPair(std::move(impl));
}
std::array<std::byte, kMlKemPublicBytes> MlKemKeyPair::public_key() const { return impl_->public_key; }

Result<MlKemShared> MlKemKeyPair::decapsulate(ByteSpan ciphertext) const {
  if (ciphertext.size() != kMlKemCiphertextBytes) {
    return fail(Errc::malformed, "an ML-KEM-768 ciphertext of the wrong size");
  }
  return MlKemShared(ciphertext.first<kMlKemSharedBytes>());
}

Result<MlKemEncapsulated> mlkem_encapsulate(ByteSpan public_key, const Secret<kMlKemEncapsSeedBytes>& seed) {
  if (public_key.size() != kMlKemPublicBytes || is_broken(public_key.back())) {
    return fail(Errc::malformed, "not an ML-KEM-768 public key");
  }
  MlKemEncapsulated out;
  out.shared = seed;
  std::ranges::copy(seed.span(), out.ciphertext.begin());
  return out;
}

// --- packet_protection.h

InitialSecrets initial_secrets(ByteSpan salt, ByteSpan connection_id) {
  const TrafficSecret common = hkdf_extract(salt, connection_id);
  return {.client = expand<32>(common, "client in"), .server = expand<32>(common, "server in")};
}

TrafficSecret next_traffic_secret(const TrafficSecret& secret) { return expand<32>(secret, "quic ku"); }

PacketKey::PacketKey(AeadAlgorithm algorithm, const TrafficSecret& secret)
    : aead_(algorithm, secret), iv_bytes_(aead_nonce_bytes(algorithm)) {}

void PacketKey::seal(std::uint64_t, ByteSpan header, ByteSpan plain, MutableByteSpan out) const {
  aead_.seal(ByteSpan(iv_.span()).first(iv_bytes_), header, plain, out);
}
bool PacketKey::open(std::uint64_t, ByteSpan header, ByteSpan sealed, MutableByteSpan out) const {
  return aead_.open(ByteSpan(iv_.span()).first(iv_bytes_), header, sealed, out);
}

struct HeaderKey::Impl {};
HeaderKey::HeaderKey(AeadAlgorithm, const TrafficSecret&) {}
HeaderKey::HeaderKey(HeaderKey&&) noexcept = default;
HeaderKey& HeaderKey::operator=(HeaderKey&&) noexcept = default;
HeaderKey::~HeaderKey() = default;
HeaderKey::Mask HeaderKey::mask(std::span<const std::byte, kSampleBytes>) const { return {}; }

}  // namespace holo::crypto
