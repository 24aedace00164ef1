#include "client/userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string_view>

#include "driver/posix/errno_text.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

namespace holo::client {
namespace {

constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;

env::Fd from_device() {
  env::Fd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device) return {};
  return env::Fd(::ioctl(device.get(), USERFAULTFD_IOC_NEW, kFlags));
}

bool handshake(int fd) {
  uffdio_api api = {};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
  return ::ioctl(fd, UFFDIO_API, &api) == 0;
}

}  // namespace

std::optional<Userfault> make_userfault() {
  if (const char* off = std::getenv("HOLO_NO_UFFD"); off && std::string_view(off) == "1") return std::nullopt;
  Userfault out;
  out.fd = env::Fd(static_cast<int>(::syscall(SYS_userfaultfd, kFlags)));
  out.mode = env::FaultMode::full;
  if (!out.fd) out.fd = from_device();
  if (!out.fd) {
    out.fd = env::Fd(static_cast<int>(::syscall(SYS_userfaultfd, kFlags | UFFD_USER_MODE_ONLY)));
    out.mode = env::FaultMode::user_mode_only;
  }
  if (!out.fd || !handshake(out.fd.get())) return std::nullopt;
  return out;
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
