#include "client/executable.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>

#include "base/limits.h"
#include "base/strings.h"
#include "crypto/hash.h"
#include "driver/posix/errno_text.h"
#include "env/fd.h"

namespace holo::client {
namespace {

static_assert(detail::kMaxCaptureBytes == limits::kMaxCaptureBytes);

/// The main program as the dynamic linker placed it.
struct Image {
  std::uint64_t base = 0;
  std::uint64_t low = UINT64_MAX, high = 0;
  bool fixed = false;  ///< Linked to run at one address.
  struct Code {
    std::uint64_t begin = 0, end = 0;
  };
  std::vector<Code> code;
};

const Image& image() {
  static const Image found = [] {
    Image out;
    ::dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* data) {
          auto& image = *static_cast<Image*>(data);
          image.base = info->dlpi_addr;
          image.fixed = info->dlpi_addr == 0;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& p = info->dlpi_phdr[i];
            if (p.p_type != PT_LOAD) continue;
            image.low = std::min<std::uint64_t>(image.low, image.base + p.p_vaddr);
            image.high = std::max<std::uint64_t>(image.high, image.base + p.p_vaddr + p.p_memsz);
            if (p.p_flags & PF_X) image.code.push_back({p.p_vaddr, p.p_vaddr + p.p_memsz});
          }
          return 1;  // The first object is the main program.
        },
        &out);
    return out;
  }();
  return found;
}

Status in_code(std::uint64_t offset) {
  for (const auto& c : image().code) {
    if (offset >= c.begin && offset < c.end) return {};
  }
  return fail(Errc::invalid_argument, "the function is not code of the program's executable",
              "functions that run on the cluster cannot live in shared libraries");
}

Result<std::string> hash_file(const char* path) {
  env::Fd fd(::open(path, O_RDONLY | O_CLOEXEC));
  if (!fd) return driver::fail_errno(errno, str("cannot read ", path));
  crypto::Blake3 hash;
  std::vector<std::byte> block(1 << 20);
  std::uint64_t total = 0;
  for (;;) {
    const ssize_t n = ::read(fd.get(), block.data(), block.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return driver::fail_errno(errno, str("cannot read ", path));
    if (n == 0) break;
    total += static_cast<std::uint64_t>(n);
    if (total > limits::kMaxBinaryBytes) return fail(Errc::over_limit, "the executable is larger than 512 MiB");
    hash.update(ByteSpan(block.data(), static_cast<std::size_t>(n)));
  }
  const auto digest = hash.digest();
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

}  // namespace

std::string executable_path() {
  std::array<char, PATH_MAX> path{};
  const ssize_t n = ::readlink("/proc/self/exe", path.data(), path.size());
  return n > 0 ? std::string(path.data(), static_cast<std::size_t>(n)) : std::string();
}

Result<std::string> executable_hash() {
  static std::mutex mutex;
  static std::string known;
  const std::lock_guard lock(mutex);
  if (known.empty()) {
    HOLO_ASSIGN(hash, hash_file("/proc/self/exe"));
    known = std::move(hash);
  }
  return known;
}

Result<std::uint64_t> function_offset(detail::TaskFunction function) {
  const std::uint64_t offset = reinterpret_cast<std::uintptr_t>(function) - image().base;
  HOLO_TRY(in_code(offset));
  return offset;
}

Result<detail::TaskFunction> function_at(std::uint64_t offset) {
  HOLO_TRY(in_code(offset));
  return reinterpret_cast<detail::TaskFunction>(image().base + offset);
}

std::vector<AddressRange> mapped_ranges() {
  std::vector<AddressRange> out;
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (std::getline(maps, line)) {
    char* rest = nullptr;
    const std::uint64_t begin = std::strtoull(line.c_str(), &rest, 16);
    if (!rest || *rest != '-') continue;
    const std::uint64_t end = std::strtoull(rest + 1, nullptr, 16);
    if (image().fixed && begin >= image().low && begin < image().high) continue;
    out.push_back({begin, end});
  }
  return out;
}

Status check_captures(ByteSpan captures, std::span<const AddressRange> ranges) {
  for (std::size_t at = 0; at + 8 <= captures.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, captures.data() + at, 8);
    const auto next = std::ranges::upper_bound(ranges, word, {}, &AddressRange::begin);
    if (next == ranges.begin() || word >= std::prev(next)->end) continue;
    return fail(Errc::invalid_argument, str("the function captures a pointer or reference at byte ", at),
                "capture by value");
  }
  return {};
}

}  // namespace holo::client
