#include "crypto/hash.h"

#include <blake3.h>
#include <openssl/digest.h>
#include <openssl/hkdf.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>

#include <algorithm>

#include "base/assert.h"
#include "crypto/awslc.h"

namespace holo::crypto {

Sha256Digest sha256(ByteSpan a, ByteSpan b) {
  Sha256Digest out{};
  SHA256_CTX context;
  SHA256_Init(&context);
  SHA256_Update(&context, a.data(), a.size());
  SHA256_Update(&context, b.data(), b.size());
  SHA256_Final(raw(MutableByteSpan(out)), &context);
  wipe(std::as_writable_bytes(std::span(&context, 1)));
  return out;
}

Secret<kSha256Bytes> hmac_sha256(ByteSpan key, ByteSpan data) {
  Secret<kSha256Bytes> out;
  unsigned bytes = 0;
  const auto* ok = HMAC(EVP_sha256(), key.data(), key.size(), raw(data), data.size(), raw(out.writable()), &bytes);
  HOLO_ASSERT(ok != nullptr && bytes == kSha256Bytes);
  return out;
}

Status hkdf_sha256(ByteSpan secret, ByteSpan salt, ByteSpan info, MutableByteSpan out) {
  if (out.size() > 255 * kSha256Bytes) return fail(Errc::invalid_argument, "HKDF-SHA-256 gives at most 8160 bytes");
  const int ok = HKDF(raw(out), out.size(), EVP_sha256(), raw(secret), secret.size(), raw(salt), salt.size(), raw(info),
                      info.size());
  HOLO_ASSERT(ok == 1);
  return {};
}

Secret<kSha256Bytes> hkdf_extract(ByteSpan salt, ByteSpan secret) { return hmac_sha256(salt, secret); }

void hkdf_expand_label(ByteSpan secret, std::string_view label, MutableByteSpan out) {
  constexpr std::string_view kPrefix = "tls13 ";
  constexpr std::size_t kMaxLabel = 32;
  HOLO_ASSERT(label.size() <= kMaxLabel && out.size() <= 255);
  std::array<std::uint8_t, 2 + 1 + kPrefix.size() + kMaxLabel + 1> info{};
  std::size_t n = 0;
  info[n++] = 0;
  info[n++] = static_cast<std::uint8_t>(out.size());
  info[n++] = static_cast<std::uint8_t>(kPrefix.size() + label.size());
  for (const std::string_view part : {kPrefix, label}) {
    std::ranges::copy(part, info.begin() + static_cast<std::ptrdiff_t>(n));
    n += part.size();
  }
  info[n++] = 0;  // The length of the empty context.
  const int ok = HKDF_expand(raw(out), out.size(), EVP_sha256(), raw(secret), secret.size(), info.data(), n);
  HOLO_ASSERT(ok == 1);
}

NoiseHkdf noise_hkdf(const Secret<kSha256Bytes>& chaining_key, ByteSpan input) {
  const auto temp = hmac_sha256(chaining_key.span(), input);
  const auto expand = [&temp](const Secret<kSha256Bytes>* previous, std::uint8_t counter) {
    Secret<kSha256Bytes + 1> block;
    const auto bytes = block.writable();
    const std::size_t used = previous != nullptr ? kSha256Bytes : 0;
    if (previous != nullptr) std::ranges::copy(previous->span(), bytes.begin());
    bytes[used] = std::byte{counter};
    return hmac_sha256(temp.span(), ByteSpan(bytes).first(used + 1));
  };
  NoiseHkdf out;
  out.first = expand(nullptr, 1);
  out.second = expand(&out.first, 2);
  out.third = expand(&out.second, 3);
  return out;
}

Blake3Digest blake3(ByteSpan data) {
  blake3_hasher hasher;
  blake3_hasher_init(&hasher);
  blake3_hasher_update(&hasher, data.data(), data.size());
  Blake3Digest out{};
  blake3_hasher_finalize(&hasher, raw(MutableByteSpan(out)), out.size());
  return out;
}

std::uint64_t blake3_64(ByteSpan data) {
  const Blake3Digest digest = blake3(data);
  std::uint64_t v = 0;
  for (std::size_t i = 0; i < 8; ++i) v |= std::to_integer<std::uint64_t>(digest[i]) << (8 * i);
  return v;
}

Secret<kBlake3Bytes> blake3_derive(std::string_view context, ByteSpan material) {
  blake3_hasher hasher;
  blake3_hasher_init_derive_key_raw(&hasher, context.data(), context.size());
  blake3_hasher_update(&hasher, material.data(), material.size());
  Secret<kBlake3Bytes> out;
  blake3_hasher_finalize(&hasher, raw(out.writable()), kBlake3Bytes);
  wipe(std::as_writable_bytes(std::span(&hasher, 1)));
  return out;
}

struct Blake3::Impl {
  blake3_hasher hasher;
};

Blake3::Blake3() : impl_(std::make_unique<Impl>()) { blake3_hasher_init(&impl_->hasher); }
Blake3::Blake3(Blake3&&) noexcept = default;
Blake3& Blake3::operator=(Blake3&&) noexcept = default;
Blake3::~Blake3() = default;

void Blake3::update(ByteSpan data) { blake3_hasher_update(&impl_->hasher, data.data(), data.size()); }

Blake3Digest Blake3::digest() const {
  Blake3Digest out{};
  blake3_hasher_finalize(&impl_->hasher, raw(MutableByteSpan(out)), out.size());
  return out;
}

}  // namespace holo::crypto
