// Records: the encrypted units of a session. One direction of one session is one RecordKey.
//
//   0  kind    1 byte
//   1  length  3 bytes, little-endian, of what follows (the tag included)
//   4  sealed bytes; the four above are authenticated with them
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "core/hyperbus/frame.h"
#include "core/hyperbus/handshake.h"
#include "crypto/aead.h"

namespace holo::hyperbus {

enum class RecordKind : std::uint8_t {
  handshake = 1,  ///< one message of the handshake; not sealed by a record key
  refusal = 2,    ///< the peer refuses, in clear; only before its first sealed record
  frames = 3,     ///< sealed frames
  raw = 4,        ///< sealed payload bytes, announced by the `raw` frame before
};

inline constexpr std::size_t kRecordHeaderBytes = 4;
inline constexpr std::size_t kRecordOverhead = kRecordHeaderBytes + crypto::kAeadTagBytes;
inline constexpr std::size_t kMaxRecordBytes = kMaxRecordPlain + kRecordOverhead;

struct RecordHeader {
  RecordKind kind{};
  std::size_t length = 0;
};
void write_record_header(std::byte* out, RecordKind kind, std::size_t length);
/// `bytes`: at least kRecordHeaderBytes. Nothing is judged.
RecordHeader read_record_header(ByteSpan bytes);

/// Keys of one direction. The nonce is an IV xor the record's number. After `records_per_key` records key, IV and
/// secret move on by themselves on both sides, and the old ones are wiped. A resource.
class RecordKey {
 public:
  RecordKey(crypto::AeadAlgorithm algorithm, TrafficSecret secret, std::uint64_t records_per_key);

  /// Writes header and sealed `plain` to `out` (plain.size() + kRecordOverhead). `plain` may lie at out +
  /// kRecordHeaderBytes.
  void seal(RecordKind kind, ByteSpan plain, MutableByteSpan out);
  /// Opens the record `bytes` (header included) into `out` (bytes.size() - kRecordOverhead). False: not authentic; the
  /// session cannot go on.
  [[nodiscard]] bool open(ByteSpan bytes, MutableByteSpan out);

 private:
  void derive();
  [[nodiscard]] ByteSpan advance();

  crypto::AeadAlgorithm algorithm_;
  TrafficSecret secret_;
  std::uint64_t records_per_key_;
  std::optional<crypto::Aead> aead_;
  crypto::Secret<crypto::kMaxAeadNonceBytes> iv_;
  std::array<std::byte, crypto::kMaxAeadNonceBytes> nonce_{};
  std::uint64_t number_ = 0;
};

}  // namespace holo::hyperbus
