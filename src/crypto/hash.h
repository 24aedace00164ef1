// SHA-256, HMAC, HKDF (RFC 5869 and as Noise uses it) over AWS-LC; BLAKE3 over its official C code.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"
#include "crypto/secret.h"

namespace holo::crypto {

inline constexpr std::size_t kSha256Bytes = 32;
using Sha256Digest = std::array<std::byte, kSha256Bytes>;

/// SHA-256 of a, then b (b may be empty), without joining them.
Sha256Digest sha256(ByteSpan a, ByteSpan b = {});

/// HMAC-SHA-256 of `data` under `key` of any size.
Secret<kSha256Bytes> hmac_sha256(ByteSpan key, ByteSpan data);

/// RFC 5869. `out` is at most 255 * 32 bytes. Errors: `invalid_argument` (longer).
Status hkdf_sha256(ByteSpan secret, ByteSpan salt, ByteSpan info, MutableByteSpan out);

/// The first half of RFC 5869 (section 2.2): a uniform secret out of `secret`.
Secret<kSha256Bytes> hkdf_extract(ByteSpan salt, ByteSpan secret);
/// HKDF-Expand-Label of RFC 8446, section 7.1, with an empty context and the prefix "tls13 " that QUIC keeps too (RFC
/// 9001, section 5.1). `label`: at most 32 characters. `out`: at most 255 bytes.
void hkdf_expand_label(ByteSpan secret, std::string_view label, MutableByteSpan out);

/// Noise section 4.3: two or three chained outputs of 32 bytes.
struct NoiseHkdf {
  Secret<kSha256Bytes> first, second, third;
};
NoiseHkdf noise_hkdf(const Secret<kSha256Bytes>& chaining_key, ByteSpan input);

inline constexpr std::size_t kBlake3Bytes = 32;
using Blake3Digest = std::array<std::byte, kBlake3Bytes>;

/// BLAKE3 of `data`. Cost: about 0.2 us per KiB.
Blake3Digest blake3(ByteSpan data);
/// The first 8 bytes of it, as a little-endian number: a checksum against accidents, not against forgers.
std::uint64_t blake3_64(ByteSpan data);
/// BLAKE3's key derivation mode: 32 bytes from `material`, separated by `context` (a fixed, unique sentence).
Secret<kBlake3Bytes> blake3_derive(std::string_view context, ByteSpan material);

/// BLAKE3 of bytes that arrive in parts. A resource; about 2 KiB.
class Blake3 {
 public:
  Blake3();
  Blake3(Blake3&&) noexcept;
  Blake3& operator=(Blake3&&) noexcept;
  ~Blake3();
  void update(ByteSpan data);
  /// The digest of everything so far; more may follow.
  [[nodiscard]] Blake3Digest digest() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holo::crypto
