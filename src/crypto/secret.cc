#include "crypto/secret.h"

#include <openssl/mem.h>

namespace holo::crypto {

void wipe(MutableByteSpan bytes) noexcept { OPENSSL_cleanse(bytes.data(), bytes.size()); }

bool constant_time_equal(ByteSpan a, ByteSpan b) noexcept {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace holo::crypto
