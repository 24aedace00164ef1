#include "driver/posix/os_entropy.h"

#include <sys/random.h>

#include <cerrno>

#include "base/assert.h"

namespace holo::driver {

void OsEntropy::fill(MutableByteSpan out) {
  while (!out.empty()) {
    const ssize_t n = ::getrandom(out.data(), out.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    HOLO_ASSERT(n > 0, "the kernel gives no randomness");
    out = out.subspan(static_cast<std::size_t>(n));
  }
}

}  // namespace holo::driver
