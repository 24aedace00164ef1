// env::Entropy from the kernel.
#pragma once

#include "env/entropy.h"

namespace holo::driver {

/// getrandom(2). Thread: any.
class OsEntropy final : public env::Entropy {
 public:
  void fill(MutableByteSpan out) override;
};

}  // namespace holo::driver
