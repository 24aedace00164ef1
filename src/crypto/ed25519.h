// Ed25519 (RFC 8032) over AWS-LC.
#pragma once

#include <array>

#include "base/bytes.h"
#include "crypto/secret.h"

namespace holo::crypto {

inline constexpr std::size_t kEd25519SeedBytes = 32;
inline constexpr std::size_t kEd25519PublicBytes = 32;
inline constexpr std::size_t kEd25519SignatureBytes = 64;

using Ed25519Seed = Secret<kEd25519SeedBytes>;
using Ed25519PublicKey = std::array<std::byte, kEd25519PublicBytes>;
using Ed25519Signature = std::array<std::byte, kEd25519SignatureBytes>;

/// A signing key. Copyable; every copy is wiped. Thread: any, it does not change.
class Ed25519KeyPair {
 public:
  /// The pair that belongs to 32 secret bytes. Cost: about 20 us.
  static Ed25519KeyPair from_seed(const Ed25519Seed& seed);

  [[nodiscard]] const Ed25519PublicKey& public_key() const { return public_key_; }
  /// Deterministic, as RFC 8032 says. Cost: about 25 us for short messages.
  [[nodiscard]] Ed25519Signature sign(ByteSpan message) const;

 private:
  Secret<64> private_key_;  // seed, then public key
  Ed25519PublicKey public_key_{};
};

/// True when `signature` is `key`'s over `message`. Any sizes may be passed; wrong ones are simply false. Cost: about
/// 60 us.
[[nodiscard]] bool ed25519_verify(ByteSpan key, ByteSpan message, ByteSpan signature);

}  // namespace holo::crypto
