// Keys as ngtcp2 holds them: behind opaque handles. It is told no secret and no IV: of an IV of eight zero bytes the
// nonce that it computes is the packet number, and crypto::PacketKey does the rest.
#pragma once

#include <ngtcp2/ngtcp2.h>

#include <cstdint>

#include "base/bytes.h"
#include "crypto/packet_protection.h"

namespace holo::driver::quic {

inline constexpr std::size_t kBareIvBytes = 8;
inline constexpr std::uint8_t kBareIv[kBareIvBytes] = {};

/// How much the newest 1-RTT key of one direction has been used. Kept by the packets as they are sealed or opened.
struct KeyUse {
  std::uint64_t generation = 0;  ///< grows by one with each key update
  std::uint64_t packets = 0;
  void count(std::uint64_t of_generation) {
    if (of_generation > generation) *this = {.generation = of_generation, .packets = 0};
    packets += of_generation == generation ? 1 : 0;
  }
};

/// A handle for one direction; `use`: where to count what is sealed or opened with it, or null. Goes to ngtcp2, which
/// gives it back to delete_packet_key(). `use` outlives it.
ngtcp2_crypto_aead_ctx make_packet_key(crypto::AeadAlgorithm algorithm, const crypto::TrafficSecret& secret,
                                       KeyUse* use = nullptr, std::uint64_t generation = 0);
ngtcp2_crypto_cipher_ctx make_header_key(crypto::AeadAlgorithm algorithm, const crypto::TrafficSecret& secret);
void delete_packet_key(ngtcp2_crypto_aead_ctx& handle);
void delete_header_key(ngtcp2_crypto_cipher_ctx& handle);

/// What ngtcp2 wants to know of a cipher: that a tag has 16 bytes.
ngtcp2_crypto_aead packet_aead();
/// For Retry packets, with our key and nonce (whatever nonce ngtcp2 asks for). Its handle is shared, never deleted.
ngtcp2_crypto_aead retry_aead();
ngtcp2_crypto_aead_ctx retry_key();

crypto::InitialSecrets our_initial_secrets(ByteSpan connection_id);

// The callbacks ngtcp2_encrypt, ngtcp2_decrypt and ngtcp2_hp_mask.
int seal_packet(std::uint8_t* out, const ngtcp2_crypto_aead* aead, const ngtcp2_crypto_aead_ctx* key,
                const std::uint8_t* plain, std::size_t plain_bytes, const std::uint8_t* nonce, std::size_t nonce_bytes,
                const std::uint8_t* header, std::size_t header_bytes);
int open_packet(std::uint8_t* out, const ngtcp2_crypto_aead* aead, const ngtcp2_crypto_aead_ctx* key,
                const std::uint8_t* sealed, std::size_t sealed_bytes, const std::uint8_t* nonce,
                std::size_t nonce_bytes, const std::uint8_t* header, std::size_t header_bytes);
int header_mask(std::uint8_t* out, const ngtcp2_crypto_cipher* cipher, const ngtcp2_crypto_cipher_ctx* key,
                const std::uint8_t* sample);

}  // namespace holo::driver::quic
