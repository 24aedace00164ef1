#include "env/fd.h"

#include <unistd.h>

namespace holo::env {

void Fd::reset() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

}  // namespace holo::env
