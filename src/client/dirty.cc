#include "client/dirty.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "driver/posix/errno_text.h"
#include "env/fd.h"

namespace holo::client {
namespace {

constexpr std::size_t kSmallPage = 4096;

// From linux/fs.h of 6.7; Debian 12's headers are older.
struct PageRegion {
  std::uint64_t start, end, categories;
};
struct ScanArg {
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
constexpr std::uint64_t kIsFile = 1 << 2, kIsPresent = 1 << 3, kIsSwapped = 1 << 4, kIsPfnZero = 1 << 5;
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArg);

Result<env::Fd> open_pagemap() {
  env::Fd fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!fd) return driver::fail_errno(errno, "cannot open /proc/self/pagemap");
  return fd;
}

void add(std::vector<DirtyPage>& out, std::uint64_t index, bool certain) {
  if (out.empty() || out.back().index != index) {
    out.push_back({index, certain});
  } else if (certain) {
    out.back().certain = true;
  }
}

bool all_zero(const std::byte* p) {
  static constexpr std::array<std::byte, kSmallPage> kZeros{};
  return std::equal(p, p + kSmallPage, kZeros.begin());
}

}  // namespace

Result<std::vector<DirtyPage>> scan_pagemap(const std::byte* address, std::size_t length, std::size_t unit) {
  HOLO_ASSIGN(fd, open_pagemap());
  const auto base = reinterpret_cast<std::uintptr_t>(address);
  std::vector<DirtyPage> out;
  std::array<PageRegion, 512> found;
  ScanArg arg = {};
  arg.size = sizeof(arg);
  arg.start = base;
  arg.end = base + length;
  arg.vec = reinterpret_cast<std::uintptr_t>(found.data());
  arg.vec_len = found.size();
  arg.category_inverted = kIsFile | kIsPfnZero;  // Wanted: neither a page of the memfd nor the page of zeros ...
  arg.category_mask = kIsFile | kIsPfnZero;
  arg.category_anyof_mask = kIsPresent | kIsSwapped;  // ... but some page.
  arg.return_mask = kIsPresent;
  while (arg.start < arg.end) {
    const int n = ::ioctl(fd.get(), kPagemapScan, &arg);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == ENOTTY || errno == EINVAL) return fail(Errc::unsupported, "this kernel has no PAGEMAP_SCAN");
      return driver::fail_errno(errno, "cannot scan /proc/self/pagemap");
    }
    for (int i = 0; i < n; ++i) {
      const auto& r = found[static_cast<std::size_t>(i)];
      for (std::uint64_t u = (r.start - base) / unit; u * unit < r.end - base; ++u) add(out, u, true);
    }
    if (arg.walk_end <= arg.start) break;
    arg.start = arg.walk_end;
  }
  return out;
}

Result<std::vector<DirtyPage>> read_pagemap(const std::byte* address, std::size_t length, std::size_t unit) {
  constexpr std::uint64_t kPresent = 1ULL << 63, kSwapped = 1ULL << 62, kFileOrShared = 1ULL << 61;
  HOLO_ASSIGN(fd, open_pagemap());
  const std::uint64_t first = reinterpret_cast<std::uintptr_t>(address) / kSmallPage;
  const std::uint64_t count = (length + kSmallPage - 1) / kSmallPage;
  std::vector<DirtyPage> out;
  std::vector<std::uint64_t> entries(std::min<std::uint64_t>(count, 8192));
  for (std::uint64_t at = 0; at < count;) {
    const std::uint64_t want = std::min<std::uint64_t>(count - at, entries.size());
    const ssize_t got = ::pread(fd.get(), entries.data(), want * 8, static_cast<off_t>((first + at) * 8));
    if (got < 0 && errno == EINTR) continue;
    if (got < 8) return driver::fail_errno(got < 0 ? errno : EIO, "cannot read /proc/self/pagemap");
    const auto n = static_cast<std::uint64_t>(got) / 8;
    for (std::uint64_t i = 0; i < n; ++i) {
      const std::uint64_t e = entries[i];
      if ((e & (kPresent | kSwapped)) == 0 || (e & kFileOrShared) != 0) continue;
      const std::uint64_t offset = (at + i) * kSmallPage;
      add(out, offset / unit, !all_zero(address + offset));
    }
    at += n;
  }
  return out;
}

Result<std::vector<DirtyPage>> dirty_pages(const std::byte* address, std::size_t length, std::size_t unit) {
  auto scanned = scan_pagemap(address, length, unit);
  if (scanned || scanned.error().code != Errc::unsupported) return scanned;
  return read_pagemap(address, length, unit);
}

}  // namespace holo::client
