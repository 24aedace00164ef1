// How QUIC protects packets (RFC 9001, section 5): keys out of a traffic secret, nonces out of packet numbers, and
// masks over the header. No protocol: who has which secret when is the caller's business.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "base/bytes.h"
#include "crypto/aead.h"
#include "crypto/secret.h"

namespace holo::crypto {

using TrafficSecret = Secret<32>;

/// Secrets of Initial packets (RFC 9001, section 5.2): anyone who sees the connection id and knows the salt has them.
struct InitialSecrets {
  TrafficSecret client, server;
};
InitialSecrets initial_secrets(ByteSpan salt, ByteSpan connection_id);

/// The secret after a key update (RFC 9001, section 6.1).
TrafficSecret next_traffic_secret(const TrafficSecret& secret);

/// Seals or opens the packets of one direction under one secret. Movable. Thread: any number of calls at once. A call
/// allocates nothing.
class PacketKey {
 public:
  PacketKey(AeadAlgorithm algorithm, const TrafficSecret& secret);

  /// `header`: the packet's header in clear, authenticated. `out`: plain.size() + kAeadTagBytes, may begin at
  /// plain.data(). `packet_number` is never used twice.
  void seal(std::uint64_t packet_number, ByteSpan header, ByteSpan plain, MutableByteSpan out) const;
  /// `out`: sealed.size() - kAeadTagBytes, may begin at sealed.data(). False when it is not authentic.
  [[nodiscard]] bool open(std::uint64_t packet_number, ByteSpan header, ByteSpan sealed, MutableByteSpan out) const;

 private:
  using Iv = Secret<kMaxAeadNonceBytes>;
  /// The IV, with the packet number xored into its last 8 bytes; XChaCha20-Poly1305's 24 bytes like the usual 12.
  std::span<const std::byte> nonce(std::uint64_t packet_number, std::array<std::byte, kMaxAeadNonceBytes>& out) const;

  Aead aead_;
  Iv iv_;
  std::size_t iv_bytes_;
};

/// Masks the first byte and the packet number (RFC 9001, section 5.4). It does not change with key updates. Movable.
/// Thread: any number of calls at once.
class HeaderKey {
 public:
  static constexpr std::size_t kSampleBytes = 16;
  static constexpr std::size_t kMaskBytes = 5;
  using Mask = std::array<std::byte, kMaskBytes>;

  HeaderKey(AeadAlgorithm algorithm, const TrafficSecret& secret);
  HeaderKey(HeaderKey&&) noexcept;
  HeaderKey& operator=(HeaderKey&&) noexcept;
  ~HeaderKey();

  [[nodiscard]] Mask mask(std::span<const std::byte, kSampleBytes> sample) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holo::crypto
