#include "client/userfault.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstdlib>
#include <string_view>

#include "driver/posix/errno_text.h"
#include "driver/uffd/uffd_faults.h"

namespace holo::client {

std::optional<env::Fd> make_userfault() {
  if (const char* off = std::getenv("HOLO_NO_UFFD"); off && std::string_view(off) == "1") return std::nullopt;
  auto fd = driver::open_userfaultfd();
  if (!fd) return std::nullopt;
  return std::move(*fd);
}

Status register_range(int fd, std::byte* address, std::size_t length) {
  uffdio_register reg = {};
  reg.range.start = reinterpret_cast<std::uintptr_t>(address);
  reg.range.len = length;
  reg.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
  if (::ioctl(fd, UFFDIO_REGISTER, &reg) == 0) return {};
  return driver::fail_errno(errno, "cannot register mapped memory with userfaultfd");
}

void wake_range(int fd, std::byte* address, std::size_t length) {
  uffdio_range range = {};
  range.start = reinterpret_cast<std::uintptr_t>(address);
  range.len = length;
  (void)::ioctl(fd, UFFDIO_WAKE, &range);  // Fails only where nobody can sleep.
}

}  // namespace holo::client
