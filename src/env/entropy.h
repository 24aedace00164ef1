// The port to randomness for secrets and ids. Production asks the operating system; the simulator a seed.
#pragma once

#include "base/bytes.h"

namespace holo::env {

class Entropy {
 public:
  virtual ~Entropy() = default;
  /// Fills `out` completely. Never fails: without randomness the process ends. Thread: any.
  virtual void fill(MutableByteSpan out) = 0;
  std::uint64_t u64() {
    std::uint64_t v = 0;
    fill(std::as_writable_bytes(std::span(&v, 1)));
    return v;
  }
};

}  // namespace holo::env
