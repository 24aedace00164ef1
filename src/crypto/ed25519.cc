#include "crypto/ed25519.h"

#include <openssl/curve25519.h>

#include "base/assert.h"
#include "crypto/awslc.h"

namespace holo::crypto {

Ed25519KeyPair Ed25519KeyPair::from_seed(const Ed25519Seed& seed) {
  Ed25519KeyPair pair;
  ED25519_keypair_from_seed(raw(MutableByteSpan(pair.public_key_)), raw(pair.private_key_.writable()),
                            raw(seed.span()));
  return pair;
}

Ed25519Signature Ed25519KeyPair::sign(ByteSpan message) const {
  Ed25519Signature signature{};
  const int ok = ED25519_sign(raw(MutableByteSpan(signature)), raw(message), message.size(), raw(private_key_.span()));
  HOLO_ASSERT(ok == 1, "signing needs no memory and cannot fail");
  return signature;
}

bool ed25519_verify(ByteSpan key, ByteSpan message, ByteSpan signature) {
  return key.size() == kEd25519PublicBytes && signature.size() == kEd25519SignatureBytes &&
         ED25519_verify(raw(message), message.size(), raw(signature), raw(key)) == 1;
}

}  // namespace holo::crypto
