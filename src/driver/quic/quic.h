// env::QuicStack over ngtcp2. No socket, no clock, no randomness but the Entropy it is handed.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "env/quic.h"

namespace holo::driver::quic {

inline constexpr std::uint32_t kVersion = 1;

/// What keeps other QUIC stacks apart from ours, as neither opens the other's Initial and Retry packets. Each is the
/// beginning of SHA-256 of the text beside it. No secrets (RFC 9001, sections 5.2 and 5.8).
/// "holo hyperbus initial salt v1"
inline constexpr std::array<std::uint8_t, 20> kInitialSalt{0xcc, 0x49, 0xd8, 0xec, 0xb2, 0x64, 0x0f, 0xd3, 0x7b, 0x41,
                                                           0xe2, 0x01, 0x49, 0x17, 0x07, 0x54, 0xe6, 0x5f, 0x5c, 0x4b};
/// "holo hyperbus retry key v1", for AES-128-GCM.
inline constexpr std::array<std::uint8_t, 16> kRetryKey{0x87, 0x5f, 0xfb, 0xe0, 0x69, 0x8b, 0x07, 0x5f,
                                                        0x0a, 0x83, 0x42, 0x44, 0xa8, 0x01, 0x00, 0x0b};
/// "holo hyperbus retry nonce v1"
inline constexpr std::array<std::uint8_t, 12> kRetryNonce{0x24, 0x51, 0x46, 0x44, 0x80, 0x75,
                                                          0x2e, 0x9a, 0xcd, 0xeb, 0xc5, 0x47};

/// Alerts that a connection raises by itself, numbered as TLS's (RFC 8446, section 6).
inline constexpr std::uint8_t kUnexpectedMessage = 10;
inline constexpr std::uint8_t kDecodeError = 50;
inline constexpr std::uint8_t kInternalError = 80;

/// A stack has no state of its own; one serves any number of endpoints.
std::unique_ptr<env::QuicStack> make_stack();

}  // namespace holo::driver::quic
