#include "core/memory/merge.h"

#include <cstdint>
#include <cstring>

#include "base/assert.h"
#include "base/limits.h"

namespace holo::memory {
namespace {

constexpr std::size_t kStride = 256;  // compared with memcmp, which is vectorised, before looking closer

std::uint64_t word(ByteSpan s, std::size_t i) {
  std::uint64_t w = 0;
  std::memcpy(&w, s.data() + i, sizeof w);
  return w;
}

std::optional<std::size_t> conflict_in(ByteSpan a_base, ByteSpan a, ByteSpan b_base, ByteSpan b, std::size_t from,
                                       std::size_t to) {
  std::size_t i = from;
  for (; i + 8 <= to; i += 8) {
    if ((word(a_base, i) ^ word(a, i)) == 0 || (word(b_base, i) ^ word(b, i)) == 0) continue;
    for (std::size_t k = i; k < i + 8; ++k) {
      if (a_base[k] != a[k] && b_base[k] != b[k]) return k;
    }
  }
  for (; i < to; ++i) {
    if (a_base[i] != a[i] && b_base[i] != b[i]) return i;
  }
  return std::nullopt;
}

}  // namespace

ByteSpan zero_bytes(std::size_t length) {
  alignas(4096) static const std::byte kZeros[limits::kMaxPageBytes] = {};
  HOLO_ASSERT(length <= sizeof kZeros);
  return {kZeros, length};
}

bool same_bytes(ByteSpan a, ByteSpan b) {
  return a.size() == b.size() && (a.data() == b.data() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

std::optional<std::size_t> first_conflict(ByteSpan a_base, ByteSpan a, ByteSpan b_base, ByteSpan b) {
  HOLO_ASSERT(a_base.size() == a.size() && b_base.size() == b.size() && a.size() == b.size());
  for (std::size_t at = 0; at < a.size(); at += kStride) {
    const std::size_t n = std::min(kStride, a.size() - at);
    if (std::memcmp(a_base.data() + at, a.data() + at, n) == 0) continue;
    if (std::memcmp(b_base.data() + at, b.data() + at, n) == 0) continue;
    if (auto found = conflict_in(a_base, a, b_base, b, at, at + n)) return found;
  }
  return std::nullopt;
}

void merge_changes(MutableByteSpan target, ByteSpan base, ByteSpan changed) {
  HOLO_ASSERT(target.size() == base.size() && base.size() == changed.size());
  for (std::size_t at = 0; at < target.size(); at += kStride) {
    const std::size_t n = std::min(kStride, target.size() - at);
    if (std::memcmp(base.data() + at, changed.data() + at, n) == 0) continue;
    for (std::size_t i = at; i < at + n; ++i) {
      if (base[i] != changed[i]) target[i] = changed[i];
    }
  }
}

}  // namespace holo::memory
