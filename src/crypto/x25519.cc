#include "crypto/x25519.h"

#include <openssl/curve25519.h>

#include "crypto/awslc.h"

namespace holo::crypto {

X25519KeyPair x25519_key_pair(X25519Secret secret) {
  X25519KeyPair pair{.secret = std::move(secret), .public_key = {}};
  X25519_public_from_private(raw(MutableByteSpan(pair.public_key)), raw(pair.secret.span()));
  return pair;
}

Result<X25519Secret> x25519(const X25519Secret& ours, const X25519PublicKey& theirs) {
  X25519Secret shared;
  if (X25519(raw(shared.writable()), raw(ours.span()), raw(ByteSpan(theirs))) != 1) {
    return fail(Errc::malformed, "an X25519 key of low order");
  }
  return shared;
}

}  // namespace holo::crypto
