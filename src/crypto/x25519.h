// X25519 (RFC 7748) over AWS-LC.
#pragma once

#include <array>

#include "base/bytes.h"
#include "base/result.h"
#include "crypto/secret.h"

namespace holo::crypto {

inline constexpr std::size_t kX25519Bytes = 32;
using X25519PublicKey = std::array<std::byte, kX25519Bytes>;
using X25519Secret = Secret<kX25519Bytes>;

struct X25519KeyPair {
  X25519Secret secret;
  X25519PublicKey public_key{};
};

/// The pair that belongs to 32 secret bytes; any 32 bytes are a valid secret. Cost: about 30 us.
X25519KeyPair x25519_key_pair(X25519Secret secret);

/// The shared secret. Errors: `malformed` when it is all zero (the peer sent a point of low order). Cost: about 40 us.
Result<X25519Secret> x25519(const X25519Secret& ours, const X25519PublicKey& theirs);

}  // namespace holo::crypto
