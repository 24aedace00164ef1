#include "crypto/aead.h"

#include <openssl/aead.h>
#include <openssl/err.h>

#include "base/assert.h"
#include "crypto/awslc.h"

namespace holo::crypto {
namespace {

const EVP_AEAD* library_aead(AeadAlgorithm algorithm) {
  switch (algorithm) {
    case AeadAlgorithm::aes_256_gcm: return EVP_aead_aes_256_gcm();
    case AeadAlgorithm::chacha20_poly1305: return EVP_aead_chacha20_poly1305();
    case AeadAlgorithm::xchacha20_poly1305: return EVP_aead_xchacha20_poly1305();
    case AeadAlgorithm::aes_128_gcm: return EVP_aead_aes_128_gcm();
  }
  HOLO_ASSERT(false, "no such AEAD");
}

}  // namespace

std::size_t aead_key_bytes(AeadAlgorithm algorithm) { return algorithm == AeadAlgorithm::aes_128_gcm ? 16 : 32; }

std::size_t aead_nonce_bytes(AeadAlgorithm algorithm) {
  return algorithm == AeadAlgorithm::xchacha20_poly1305 ? 24 : 12;
}

const char* aead_name(AeadAlgorithm algorithm) {
  switch (algorithm) {
    case AeadAlgorithm::aes_256_gcm: return "AES-256-GCM";
    case AeadAlgorithm::chacha20_poly1305: return "ChaCha20-Poly1305";
    case AeadAlgorithm::xchacha20_poly1305: return "XChaCha20-Poly1305";
    case AeadAlgorithm::aes_128_gcm: return "AES-128-GCM";
  }
  return "unknown";
}

bool cpu_has_aes() { return EVP_has_aes_hardware() == 1; }

struct Aead::Impl {
  EVP_AEAD_CTX context;

  Impl(AeadAlgorithm algorithm, const AeadKey& key) {
    const int ok = EVP_AEAD_CTX_init(&context, library_aead(algorithm), raw(key.span()), aead_key_bytes(algorithm),
                                     kAeadTagBytes, nullptr);
    HOLO_ASSERT(ok == 1, "an AEAD refused a key of its own size");
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    EVP_AEAD_CTX_cleanup(&context);
    wipe(std::as_writable_bytes(std::span(&context, 1)));
  }
};

Aead::Aead(AeadAlgorithm algorithm, const AeadKey& key)
    : algorithm_(algorithm), impl_(std::make_unique<Impl>(algorithm, key)) {}
Aead::Aead(Aead&&) noexcept = default;
Aead& Aead::operator=(Aead&&) noexcept = default;
Aead::~Aead() = default;

void Aead::seal(ByteSpan nonce, ByteSpan associated, ByteSpan plain, MutableByteSpan out) const {
  HOLO_ASSERT(nonce.size() == aead_nonce_bytes(algorithm_) && out.size() == plain.size() + kAeadTagBytes);
  std::size_t written = 0;
  const int ok = EVP_AEAD_CTX_seal(&impl_->context, raw(out), &written, out.size(), raw(nonce), nonce.size(),
                                   raw(plain), plain.size(), raw(associated), associated.size());
  HOLO_ASSERT(ok == 1 && written == out.size());
}

bool Aead::open(ByteSpan nonce, ByteSpan associated, ByteSpan sealed, MutableByteSpan out) const {
  if (sealed.size() < kAeadTagBytes) return false;
  const std::size_t bytes = sealed.size() - kAeadTagBytes;
  HOLO_ASSERT(nonce.size() == aead_nonce_bytes(algorithm_) && out.size() == bytes);
  // An empty message still needs somewhere to point at.
  std::uint8_t nothing = 0;
  if (EVP_AEAD_CTX_open_gather(&impl_->context, bytes == 0 ? &nothing : raw(out), raw(nonce), nonce.size(), raw(sealed),
                               bytes, raw(sealed.subspan(bytes)), kAeadTagBytes, raw(associated),
                               associated.size()) == 1) {
    return true;
  }
  ERR_clear_error();
  return false;
}

}  // namespace holo::crypto
