#include "crypto/packet_protection.h"

#include <openssl/aes.h>
#include <openssl/chacha.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/assert.h"
#include "crypto/awslc.h"
#include "crypto/hash.h"

namespace holo::crypto {
namespace {

template <std::size_t N>
Secret<N> expand(const TrafficSecret& secret, std::string_view label, std::size_t bytes = N) {
  Secret<N> out;
  hkdf_expand_label(secret.span(), label, MutableByteSpan(out.writable()).first(bytes));
  return out;
}

}  // namespace

InitialSecrets initial_secrets(ByteSpan salt, ByteSpan connection_id) {
  const TrafficSecret common = hkdf_extract(salt, connection_id);
  return {.client = expand<32>(common, "client in"), .server = expand<32>(common, "server in")};
}

TrafficSecret next_traffic_secret(const TrafficSecret& secret) { return expand<32>(secret, "quic ku"); }

PacketKey::PacketKey(AeadAlgorithm algorithm, const TrafficSecret& secret)
    : aead_(algorithm, expand<kAeadKeyBytes>(secret, "quic key", aead_key_bytes(algorithm))),
      iv_(expand<kMaxAeadNonceBytes>(secret, "quic iv", aead_nonce_bytes(algorithm))),
      iv_bytes_(aead_nonce_bytes(algorithm)) {}

std::span<const std::byte> PacketKey::nonce(std::uint64_t packet_number,
                                            std::array<std::byte, kMaxAeadNonceBytes>& out) const {
  std::memcpy(out.data(), iv_.span().data(), out.size());
  std::uint64_t end;
  std::memcpy(&end, &out[iv_bytes_ - sizeof end], sizeof end);
  end ^= std::endian::native == std::endian::little ? std::byteswap(packet_number) : packet_number;
  std::memcpy(&out[iv_bytes_ - sizeof end], &end, sizeof end);
  return std::span(out).first(iv_bytes_);
}

void PacketKey::seal(std::uint64_t packet_number, ByteSpan header, ByteSpan plain, MutableByteSpan out) const {
  std::array<std::byte, kMaxAeadNonceBytes> buffer;
  aead_.seal(nonce(packet_number, buffer), header, plain, out);
}

bool PacketKey::open(std::uint64_t packet_number, ByteSpan header, ByteSpan sealed, MutableByteSpan out) const {
  std::array<std::byte, kMaxAeadNonceBytes> buffer;
  return aead_.open(nonce(packet_number, buffer), header, sealed, out);
}

struct HeaderKey::Impl {
  bool aes;
  AES_KEY schedule;
  Secret<32> chacha;

  Impl(AeadAlgorithm algorithm, const TrafficSecret& secret)
      : aes(algorithm == AeadAlgorithm::aes_128_gcm || algorithm == AeadAlgorithm::aes_256_gcm) {
    const auto key = expand<32>(secret, "quic hp", aead_key_bytes(algorithm));
    if (!aes) {
      chacha = key;
      return;
    }
    const int failed =
        AES_set_encrypt_key(raw(key.span()), static_cast<unsigned>(8 * aead_key_bytes(algorithm)), &schedule);
    HOLO_ASSERT(failed == 0);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() { wipe(std::as_writable_bytes(std::span(&schedule, 1))); }
};

HeaderKey::HeaderKey(AeadAlgorithm algorithm, const TrafficSecret& secret)
    : impl_(std::make_unique<Impl>(algorithm, secret)) {}
HeaderKey::HeaderKey(HeaderKey&&) noexcept = default;
HeaderKey& HeaderKey::operator=(HeaderKey&&) noexcept = default;
HeaderKey::~HeaderKey() = default;

HeaderKey::Mask HeaderKey::mask(std::span<const std::byte, kSampleBytes> sample) const {
  Mask out{};
  if (impl_->aes) {
    std::array<std::byte, kSampleBytes> block;
    AES_encrypt(raw(sample), raw(MutableByteSpan(block)), &impl_->schedule);
    std::copy_n(block.begin(), kMaskBytes, out.begin());
    return out;
  }
  // The sample is a block counter, little-endian, and a nonce (section 5.4.4).
  std::uint32_t counter = 0;
  for (std::size_t i = 0; i < 4; ++i) counter |= std::to_integer<std::uint32_t>(sample[i]) << (8 * i);
  CRYPTO_chacha_20(raw(MutableByteSpan(out)), raw(ByteSpan(out)), out.size(), raw(impl_->chacha.span()),
                   raw(sample.subspan(4)), counter);
  return out;
}

}  // namespace holo::crypto
