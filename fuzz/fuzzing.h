// Shared by the fuzz targets: how they read their input, entropy that repeats, and a check that ends the program.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "base/bytes.h"
#include "base/random.h"
#include "env/entropy.h"

namespace holo::fuzz {

/// What must hold whatever the input is. On in every build.
inline void expect(bool condition) {
  if (!condition) std::abort();
}

class SeededEntropy final : public env::Entropy {
 public:
  explicit SeededEntropy(std::uint64_t seed) : random_(seed) {}
  void fill(MutableByteSpan out) override {
    for (std::byte& b : out) b = static_cast<std::byte>(random_.next());
  }

 private:
  Random random_;
};

/// Takes small numbers and byte strings off the front of the fuzzer's input; zeros once there is nothing left.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(std::as_bytes(std::span(data, size))) {}
  explicit Input(ByteSpan data) : data_(data) {}

  [[nodiscard]] bool empty() const { return data_.empty(); }
  [[nodiscard]] ByteSpan rest() const { return data_; }
  std::size_t number() {
    if (data_.empty()) return 0;
    const auto v = std::to_integer<std::size_t>(data_[0]);
    data_ = data_.subspan(1);
    return v;
  }
  /// Two bytes.
  std::size_t large() {
    const std::size_t high = number();
    return high << 8 | number();
  }
  ByteSpan bytes(std::size_t n) {
    n = std::min(n, data_.size());
    const ByteSpan taken = data_.first(n);
    data_ = data_.subspan(n);
    return taken;
  }

 private:
  ByteSpan data_;
};

}  // namespace holo::fuzz
