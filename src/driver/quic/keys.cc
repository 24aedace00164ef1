#include "driver/quic/keys.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "driver/quic/quic.h"

namespace holo::driver::quic {
namespace {

struct Handle {
  crypto::PacketKey key;
  KeyUse* use;
  std::uint64_t generation;
};

const crypto::Aead& retry_cipher() {
  static const crypto::Aead cipher(crypto::AeadAlgorithm::aes_128_gcm, [] {
    crypto::AeadKey key;
    std::ranges::copy(std::as_bytes(std::span(kRetryKey)), key.writable().begin());
    return key;
  }());
  return cipher;
}

ByteSpan bytes_of(const std::uint8_t* data, std::size_t size) { return std::as_bytes(std::span(data, size)); }
MutableByteSpan bytes_of(std::uint8_t* data, std::size_t size) { return std::as_writable_bytes(std::span(data, size)); }

/// Out of a nonce that was made with kBareIv.
std::uint64_t packet_number_of(const std::uint8_t* nonce, std::size_t bytes) {
  HOLO_ASSERT(bytes == kBareIvBytes);
  std::uint64_t number = 0;
  for (std::size_t i = 0; i < kBareIvBytes; ++i) number = number << 8 | nonce[i];
  return number;
}

}  // namespace

ngtcp2_crypto_aead_ctx make_packet_key(crypto::AeadAlgorithm algorithm, const crypto::TrafficSecret& secret,
                                       KeyUse* use, std::uint64_t generation) {
  return {new Handle{crypto::PacketKey(algorithm, secret), use, generation}};
}

ngtcp2_crypto_cipher_ctx make_header_key(crypto::AeadAlgorithm algorithm, const crypto::TrafficSecret& secret) {
  return {new crypto::HeaderKey(algorithm, secret)};
}

void delete_packet_key(ngtcp2_crypto_aead_ctx& handle) {
  if (handle.native_handle == &retry_cipher()) return;
  delete static_cast<Handle*>(handle.native_handle);
  handle.native_handle = nullptr;
}

void delete_header_key(ngtcp2_crypto_cipher_ctx& handle) {
  delete static_cast<crypto::HeaderKey*>(handle.native_handle);
  handle.native_handle = nullptr;
}

ngtcp2_crypto_aead packet_aead() { return {.native_handle = nullptr, .max_overhead = crypto::kAeadTagBytes}; }

ngtcp2_crypto_aead retry_aead() {
  // seal_packet() tells by it what kind of handle it is given.
  return {.native_handle = const_cast<crypto::Aead*>(&retry_cipher()), .max_overhead = crypto::kAeadTagBytes};
}

ngtcp2_crypto_aead_ctx retry_key() { return {const_cast<crypto::Aead*>(&retry_cipher())}; }

crypto::InitialSecrets our_initial_secrets(ByteSpan connection_id) {
  return crypto::initial_secrets(std::as_bytes(std::span(kInitialSalt)), connection_id);
}

int seal_packet(std::uint8_t* out, const ngtcp2_crypto_aead* aead, const ngtcp2_crypto_aead_ctx* key,
                const std::uint8_t* plain, std::size_t plain_bytes, const std::uint8_t* nonce, std::size_t nonce_bytes,
                const std::uint8_t* header, std::size_t header_bytes) {
  const MutableByteSpan sealed = bytes_of(out, plain_bytes + crypto::kAeadTagBytes);
  if (aead->native_handle != nullptr) [[unlikely]] {
    retry_cipher().seal(std::as_bytes(std::span(kRetryNonce)), bytes_of(header, header_bytes),
                        bytes_of(plain, plain_bytes), sealed);
    return 0;
  }
  const auto& handle = *static_cast<const Handle*>(key->native_handle);
  if (handle.use != nullptr) handle.use->count(handle.generation);
  handle.key.seal(packet_number_of(nonce, nonce_bytes), bytes_of(header, header_bytes), bytes_of(plain, plain_bytes),
                  sealed);
  return 0;
}

int open_packet(std::uint8_t* out, const ngtcp2_crypto_aead*, const ngtcp2_crypto_aead_ctx* key,
                const std::uint8_t* sealed, std::size_t sealed_bytes, const std::uint8_t* nonce,
                std::size_t nonce_bytes, const std::uint8_t* header, std::size_t header_bytes) {
  if (sealed_bytes < crypto::kAeadTagBytes) return NGTCP2_ERR_DECRYPT;
  const auto& handle = *static_cast<const Handle*>(key->native_handle);
  const MutableByteSpan plain = bytes_of(out, sealed_bytes - crypto::kAeadTagBytes);
  const bool authentic = handle.key.open(packet_number_of(nonce, nonce_bytes), bytes_of(header, header_bytes),
                                         bytes_of(sealed, sealed_bytes), plain);
  if (!authentic) return NGTCP2_ERR_DECRYPT;
  if (handle.use != nullptr) handle.use->count(handle.generation);
  return 0;
}

int header_mask(std::uint8_t* out, const ngtcp2_crypto_cipher*, const ngtcp2_crypto_cipher_ctx* key,
                const std::uint8_t* sample) {
  const auto& header_key = *static_cast<const crypto::HeaderKey*>(key->native_handle);
  const auto mask =
      header_key.mask(std::as_bytes(std::span<const std::uint8_t, crypto::HeaderKey::kSampleBytes>(sample, 16)));
  std::memcpy(out, mask.data(), mask.size());
  return 0;
}

}  // namespace holo::driver::quic
