// Randomness from a seed, in place of the operating system's.
#pragma once

#include "base/random.h"
#include "env/entropy.h"

namespace holo::sim {

class SimEntropy final : public env::Entropy {
 public:
  explicit SimEntropy(std::uint64_t seed) : random_(seed) {}
  void fill(MutableByteSpan out) override {
    for (std::byte& b : out) b = static_cast<std::byte>(random_.next() >> 56);
  }

 private:
  Random random_;
};

}  // namespace holo::sim
