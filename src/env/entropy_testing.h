// Randomness from a seed, in place of the operating system's: for tests, measurements and the simulator.
#pragma once

#include "base/random.h"
#include "env/entropy.h"

namespace holo::env::testing {

/// The same seed gives the same bytes. Thread: one at a time.
class SeededEntropy final : public Entropy {
 public:
  explicit SeededEntropy(std::uint64_t seed) : random_(seed) {}
  void fill(MutableByteSpan out) override {
    for (std::byte& b : out) b = static_cast<std::byte>(random_.next());
  }

 private:
  Random random_;
};

}  // namespace holo::env::testing
