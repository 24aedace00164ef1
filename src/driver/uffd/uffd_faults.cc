#include "driver/uffd/uffd_faults.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/strings.h"
#include "driver/posix/errno_text.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

namespace holo::driver {
namespace {

constexpr std::uint64_t kUnit = 4096;
constexpr std::uint64_t kFeatures = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
constexpr int kMaxRetries = 1000;  // of a call that the kernel refuses while the process changes its mappings

struct Opened {
  env::Fd fd;
  env::FaultMode mode = env::FaultMode::none;
};

Opened open_best() {
  const int flags = O_CLOEXEC | O_NONBLOCK;
  env::Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, flags)));
  if (!fd) {
    if (env::Fd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)); device) {
      fd = env::Fd(::ioctl(device.get(), USERFAULTFD_IOC_NEW, flags));
    }
  }
  env::FaultMode mode = env::FaultMode::full;
  if (!fd) {
    fd = env::Fd(static_cast<int>(::syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY)));
    mode = env::FaultMode::user_mode_only;
  }
  if (!fd) return {};
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kFeatures;
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) return {};
  return {std::move(fd), mode};
}

bool is_userfaultfd(int fd) {
  std::array<char, 64> target{};
  const ssize_t n = ::readlink(str("/proc/self/fd/", fd).c_str(), target.data(), target.size() - 1);
  return n > 0 && std::string_view(target.data(), static_cast<std::size_t>(n)) == "anon_inode:[userfaultfd]";
}

class UffdView final : public env::FaultedView {
 public:
  UffdView(AsioLoop& loop, env::Fd fd, std::uint64_t address, std::uint64_t length, env::PageFaults::OnFaults on_faults)
      : address_(address),
        length_(length),
        on_faults_(std::move(on_faults)),
        watch_(loop, std::move(fd), {.on_readable = [this] { read_events(); }, .on_writable = {}}) {
    watch_.want_read(true);
  }

  Status install(std::uint64_t offset, std::uint64_t length) override {
    return resolve(offset, length, [this](std::uint64_t at, std::uint64_t n) -> std::int64_t {
      uffdio_continue c{};
      c.range = {.start = address_ + at, .len = n};
      return ::ioctl(watch_.fd(), UFFDIO_CONTINUE, &c) == 0 || c.mapped > 0 ? c.mapped : -errno;
    });
  }
  Status copy(std::uint64_t offset, ByteSpan bytes) override {
    return resolve(offset, bytes.size(), [&, this](std::uint64_t at, std::uint64_t n) -> std::int64_t {
      uffdio_copy c{};
      c.dst = address_ + at;
      c.src = reinterpret_cast<std::uint64_t>(bytes.data() + (at - offset));
      c.len = n;
      return ::ioctl(watch_.fd(), UFFDIO_COPY, &c) == 0 || c.copy > 0 ? c.copy : -errno;
    });
  }
  Status zero(std::uint64_t offset, std::uint64_t length) override {
    return resolve(offset, length, [this](std::uint64_t at, std::uint64_t n) -> std::int64_t {
      uffdio_zeropage z{};
      z.range = {.start = address_ + at, .len = n};
      return ::ioctl(watch_.fd(), UFFDIO_ZEROPAGE, &z) == 0 || z.zeropage > 0 ? z.zeropage : -errno;
    });
  }
  void wake(std::uint64_t offset, std::uint64_t length) override {
    uffdio_range range{.start = address_ + offset, .len = length};
    ::ioctl(watch_.fd(), UFFDIO_WAKE, &range);
  }

 private:
  /// Runs `call` over the range piece by piece: it returns the bytes it did, or -errno for the first page of the piece.
  template <class Call>
  Status resolve(std::uint64_t offset, std::uint64_t length, Call call) {
    const std::uint64_t end = std::min(offset + length, length_);
    std::uint64_t at = offset;
    std::uint64_t piece = end - at;
    bool skipped = false;
    int retries = 0;
    while (at < end) {
      piece = std::min(piece, end - at);
      const std::int64_t done = call(at, piece);
      if (done > 0) {
        at += static_cast<std::uint64_t>(done);
        piece = end - at;
        continue;
      }
      switch (static_cast<int>(-done)) {
        case EEXIST:  // There already.
        case EFAULT:  // No frame to map: it faults again when it is touched.
          skipped = true;
          at += kUnit;
          piece = end - at;
          break;
        case ENOENT:  // Not one registered mapping: a window lies in the range, or the process has unmapped it.
        case EINVAL:
          if (piece > kUnit) {
            piece = std::max(kUnit, piece / 2 / kUnit * kUnit);
          } else {
            at += kUnit;
            piece = end - at;
          }
          break;
        case EAGAIN:  // The process is changing its mappings right now.
          if (++retries > kMaxRetries) return fail(Errc::io_error, "a program's mappings do not come to rest");
          break;
        case ESRCH:  // The process is gone.
          return {};
        case ENOMEM:
          return fail(Errc::out_of_memory, "the machine has no memory left for a page",
                      "lower --memory, or end other programs");
        default: return fail(Errc::io_error, str("cannot resolve a page fault: ", errno_text(static_cast<int>(-done))));
      }
    }
    if (skipped) wake(offset, end - offset);
    return {};
  }

  void read_events() {
    std::array<uffd_msg, 64> events;
    std::vector<env::PageFault> faults;
    const ssize_t n = ::read(watch_.fd(), events.data(), sizeof events);
    if (n <= 0) {
      // Nothing there: a sleeper was woken by an earlier answer. Any other failure: the process is gone.
      if (n < 0 && errno != EAGAIN && errno != EINTR) watch_.want_read(false);
      return;
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(n) / sizeof(uffd_msg); ++i) {
      const uffd_msg& e = events[i];
      if (e.event != UFFD_EVENT_PAGEFAULT) continue;
      const std::uint64_t at = e.arg.pagefault.address / kUnit * kUnit;
      if (at < address_ || at - address_ >= length_) continue;
      faults.push_back({.offset = at - address_, .write = (e.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0});
    }
    if (!faults.empty()) on_faults_(std::move(faults));
  }

  std::uint64_t address_;
  std::uint64_t length_;
  env::PageFaults::OnFaults on_faults_;
  FdWatch watch_;
};

}  // namespace

env::FaultMode probe_fault_mode() { return open_best().mode; }

Result<env::Fd> open_userfaultfd() {
  Opened opened = open_best();
  if (!opened.fd) {
    return fail(
        Errc::unsupported, "this machine has no userfaultfd for shared memory",
        "views are read whole when they are mapped; sysctl vm.unprivileged_userfaultfd=1 or a newer kernel brings it");
  }
  return std::move(opened.fd);
}

UffdFaults::UffdFaults(AsioLoop& loop) : loop_(loop), mode_(probe_fault_mode()) {}

Result<std::unique_ptr<env::FaultedView>> UffdFaults::attach(env::Fd userfaultfd, std::uint64_t address,
                                                             std::uint64_t length, OnFaults on_faults) {
  if (!is_userfaultfd(userfaultfd.get())) return fail(Errc::invalid_argument, "the descriptor is not a userfaultfd");
  if (address % kUnit != 0 || length == 0 || address + length < address) {
    return fail(Errc::invalid_argument, "the mapped range is empty or not aligned to 4 KiB");
  }
  // A blocking one cannot be polled.
  if (::fcntl(userfaultfd.get(), F_SETFL, O_NONBLOCK) != 0) {
    return fail(Errc::io_error, str("cannot use the userfaultfd: ", errno_text(errno)));
  }
  length = (length + kUnit - 1) / kUnit * kUnit;
  return std::make_unique<UffdView>(loop_, std::move(userfaultfd), address, length, std::move(on_faults));
}

}  // namespace holo::driver
