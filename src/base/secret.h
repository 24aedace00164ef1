// Memory that holds secrets: wiped when it goes, compared in constant time, never printed.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <utility>

#include "base/assert.h"
#include "base/bytes.h"

namespace holo {

/// Overwrites `bytes` in a way the compiler does not remove. Thread: any.
void wipe(MutableByteSpan bytes) noexcept;

/// True when both have the same size and bytes. Time depends on the sizes only. Thread: any.
[[nodiscard]] bool constant_time_equal(ByteSpan a, ByteSpan b) noexcept;

/// N secret bytes. Every copy is wiped on its own destruction; a moved-from one is wiped at once.
template <std::size_t N>
class Secret {
 public:
  static constexpr std::size_t kBytes = N;

  Secret() = default;
  explicit Secret(std::span<const std::byte, N> bytes) { std::copy(bytes.begin(), bytes.end(), bytes_.begin()); }
  Secret(const Secret&) = default;
  Secret& operator=(const Secret&) = default;
  Secret(Secret&& other) noexcept : bytes_(other.bytes_) { other.clear(); }
  Secret& operator=(Secret&& other) noexcept {
    if (this != &other) {
      bytes_ = other.bytes_;
      other.clear();
    }
    return *this;
  }
  ~Secret() { clear(); }

  [[nodiscard]] std::span<const std::byte, N> span() const { return bytes_; }
  [[nodiscard]] std::span<std::byte, N> writable() { return bytes_; }
  void clear() noexcept { wipe(bytes_); }

  friend bool operator==(const Secret& a, const Secret& b) { return constant_time_equal(a.bytes_, b.bytes_); }

 private:
  std::array<std::byte, N> bytes_{};
};

/// N secret bytes drawn from `entropy` (anything with fill(MutableByteSpan), such as env::Entropy).
template <std::size_t N, class Entropy>
Secret<N> random_secret(Entropy& entropy) {
  Secret<N> out;
  entropy.fill(out.writable());
  return out;
}

}  // namespace holo
