// Authenticated encryption over AWS-LC: one context per key, reused for every packet.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/bytes.h"
#include "base/result.h"
#include "crypto/secret.h"

namespace holo::crypto {

/// The numbers travel in handshakes: append only.
enum class AeadAlgorithm : std::uint8_t {
  aes_256_gcm = 1,         ///< 12-byte nonce
  chacha20_poly1305 = 2,   ///< 12-byte nonce
  xchacha20_poly1305 = 3,  ///< 24-byte nonce
  aes_128_gcm = 4,         ///< 12-byte nonce, 16-byte key; only where a public key is no secret (QUIC Initial, Retry)
};

inline constexpr std::size_t kAeadKeyBytes = 32;
inline constexpr std::size_t kAeadTagBytes = 16;
inline constexpr std::size_t kMaxAeadNonceBytes = 24;
using AeadKey = Secret<kAeadKeyBytes>;

/// Of an AeadKey, the first so many bytes are used: 32, of AES-128 16.
[[nodiscard]] std::size_t aead_key_bytes(AeadAlgorithm algorithm);
[[nodiscard]] std::size_t aead_nonce_bytes(AeadAlgorithm algorithm);
[[nodiscard]] const char* aead_name(AeadAlgorithm algorithm);

/// True when this CPU has AES and carry-less multiplication, so that AES-GCM is both fast and constant-time.
[[nodiscard]] bool cpu_has_aes();

/// A key, ready for use. Movable. Thread: any number of calls at once, it does not change.
class Aead {
 public:
  Aead(AeadAlgorithm algorithm, const AeadKey& key);
  Aead(Aead&&) noexcept;
  Aead& operator=(Aead&&) noexcept;
  ~Aead();

  [[nodiscard]] AeadAlgorithm algorithm() const { return algorithm_; }

  /// Encrypts `plain` into `out` (exactly plain.size() + kAeadTagBytes; may begin at plain.data(), else must not
  /// overlap). `nonce` has aead_nonce_bytes() and is never used twice with one key.
  void seal(ByteSpan nonce, ByteSpan associated, ByteSpan plain, MutableByteSpan out) const;

  /// Decrypts `sealed` into `out` (exactly sealed.size() - kAeadTagBytes; may begin at sealed.data(), else must not
  /// overlap). False when it is not authentic or shorter than a tag; `out` then holds nothing of use.
  [[nodiscard]] bool open(ByteSpan nonce, ByteSpan associated, ByteSpan sealed, MutableByteSpan out) const;

 private:
  struct Impl;
  AeadAlgorithm algorithm_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holo::crypto
