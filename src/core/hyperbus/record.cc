#include "core/hyperbus/record.h"

#include "base/assert.h"
#include "crypto/hash.h"

namespace holo::hyperbus {
namespace {

void expand(const TrafficSecret& secret, std::string_view label, MutableByteSpan out) {
  const Status done = crypto::hkdf_sha256(secret.span(), {}, as_bytes(label), out);
  HOLO_ASSERT(done.has_value());
}

}  // namespace

void write_record_header(std::byte* out, RecordKind kind, std::size_t length) {
  out[0] = static_cast<std::byte>(kind);
  for (std::size_t i = 0; i < 3; ++i) out[1 + i] = static_cast<std::byte>(length >> (8 * i));
}

RecordHeader read_record_header(ByteSpan bytes) {
  RecordHeader header{.kind = static_cast<RecordKind>(bytes[0])};
  for (std::size_t i = 0; i < 3; ++i) header.length |= std::to_integer<std::size_t>(bytes[1 + i]) << (8 * i);
  return header;
}

RecordKey::RecordKey(crypto::AeadAlgorithm algorithm, TrafficSecret secret, std::uint64_t records_per_key)
    : algorithm_(algorithm), secret_(std::move(secret)), records_per_key_(records_per_key) {
  HOLO_ASSERT(records_per_key > 0);
  derive();
}

void RecordKey::derive() {
  crypto::AeadKey key;
  expand(secret_, "holo hyperbus v1: record key", key.writable());
  expand(secret_, "holo hyperbus v1: record iv", iv_.writable().first(crypto::aead_nonce_bytes(algorithm_)));
  aead_.emplace(algorithm_, key);
  number_ = 0;
}

/// The nonce of the next record.
ByteSpan RecordKey::advance() {
  if (number_ == records_per_key_) {
    TrafficSecret next;
    expand(secret_, "holo hyperbus v1: next traffic secret", next.writable());
    secret_ = std::move(next);
    derive();
  }
  const std::size_t bytes = crypto::aead_nonce_bytes(algorithm_);
  std::copy_n(iv_.span().begin(), bytes, nonce_.begin());
  for (std::size_t i = 0; i < 8; ++i) nonce_[bytes - 1 - i] ^= static_cast<std::byte>(number_ >> (8 * i));
  ++number_;
  return ByteSpan(nonce_).first(bytes);
}

void RecordKey::seal(RecordKind kind, ByteSpan plain, MutableByteSpan out) {
  HOLO_ASSERT(out.size() == plain.size() + kRecordOverhead);
  write_record_header(out.data(), kind, plain.size() + crypto::kAeadTagBytes);
  aead_->seal(advance(), out.first(kRecordHeaderBytes), plain, out.subspan(kRecordHeaderBytes));
}

bool RecordKey::open(ByteSpan bytes, MutableByteSpan out) {
  return aead_->open(advance(), bytes.first(kRecordHeaderBytes), bytes.subspan(kRecordHeaderBytes), out);
}

}  // namespace holo::hyperbus
