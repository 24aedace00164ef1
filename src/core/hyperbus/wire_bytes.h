// Fixed-width little-endian integers: what frames and handshake payloads are made of.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace holo::hyperbus {

template <std::unsigned_integral T>
void store(std::byte* out, T v) {
  for (std::size_t i = 0; i < sizeof(T); ++i) out[i] = static_cast<std::byte>(v >> (8 * i));
}

template <std::unsigned_integral T>
T load(const std::byte* in) {
  T v = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    v = static_cast<T>(v | static_cast<T>(std::to_integer<T>(in[i]) << (8 * i)));
  return v;
}

template <std::unsigned_integral T>
void put(Bytes& out, T v) {
  out.resize(out.size() + sizeof(T));
  store(out.data() + out.size() - sizeof(T), v);
}

inline void put(Bytes& out, ByteSpan bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); }

/// Reads from the front of bytes that may be too short; after the first lack every read gives zero and ok() is false.
class Reader {
 public:
  explicit Reader(ByteSpan bytes) : rest_(bytes) {}

  template <std::unsigned_integral T>
  T number() {
    const ByteSpan taken = bytes(sizeof(T));
    return taken.size() == sizeof(T) ? load<T>(taken.data()) : T{};
  }
  ByteSpan bytes(std::size_t n) {
    if (n > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const ByteSpan taken = rest_.first(n);
    rest_ = rest_.subspan(n);
    return taken;
  }
  [[nodiscard]] ByteSpan rest() const { return rest_; }
  [[nodiscard]] bool ok() const { return ok_; }
  /// Everything was there and everything was read.
  [[nodiscard]] bool done() const { return ok_ && rest_.empty(); }

 private:
  ByteSpan rest_;
  bool ok_ = true;
};

}  // namespace holo::hyperbus
