#include "driver/uffd/memfd_frames.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "base/strings.h"
#include "driver/posix/errno_text.h"
#include "env/fd.h"

namespace holo::driver {
namespace {

constexpr std::uint64_t kUnit = 4096;

Error frame_error(const char* what, int err) {
  const bool full = err == ENOMEM || err == ENOSPC;
  Error e{.code = full ? Errc::out_of_memory : Errc::io_error,
          .message = str(what, ": ", errno_text(err)),
          .hint = full ? "the machine has no memory left for page frames; lower --memory, or end other programs" : ""};
  return e;
}

class MemfdFrames final : public env::RegionFrames {
 public:
  MemfdFrames(env::Fd fd, std::byte* base, std::uint64_t bytes) : fd_(std::move(fd)), base_(base), bytes_(bytes) {}
  ~MemfdFrames() override { ::munmap(base_, bytes_); }
  MemfdFrames(const MemfdFrames&) = delete;
  MemfdFrames& operator=(const MemfdFrames&) = delete;

  int fd() const override { return fd_.get(); }

  Status write(std::uint64_t offset, ByteSpan bytes) override {
    while (!bytes.empty()) {
      const ssize_t n = ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return std::unexpected(frame_error("cannot fill a page frame", n == 0 ? ENOSPC : errno));
      bytes = bytes.subspan(static_cast<std::size_t>(n));
      offset += static_cast<std::uint64_t>(n);
    }
    return {};
  }

  Result<MutableByteSpan> prepare(std::uint64_t offset, std::size_t length) override {
    while (::madvise(base_ + offset, length, MADV_POPULATE_WRITE) != 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      if (errno == EINVAL) return fail(Errc::unsupported, "this kernel fills no frames ahead (Linux 5.14)");
      return std::unexpected(frame_error("cannot fill a page frame", errno == EFAULT ? ENOSPC : errno));
    }
    return MutableByteSpan(base_ + offset, length);
  }

  Status read(std::uint64_t offset, MutableByteSpan out) const override {
    while (!out.empty()) {
      const ssize_t n = ::pread(fd_.get(), out.data(), out.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return std::unexpected(frame_error("cannot read a page frame", n == 0 ? EIO : errno));
      out = out.subspan(static_cast<std::size_t>(n));
      offset += static_cast<std::uint64_t>(n);
    }
    return {};
  }

  ByteSpan mapped(std::uint64_t offset, std::size_t length) const override { return {base_ + offset, length}; }

  Status punch(std::uint64_t offset, std::uint64_t length) override {
    if (::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                    static_cast<off_t>(length)) != 0) {
      return std::unexpected(frame_error("cannot free a page frame", errno));
    }
    return {};
  }

 private:
  env::Fd fd_;
  std::byte* base_;
  std::uint64_t bytes_;
};

}  // namespace

Result<std::unique_ptr<env::RegionFrames>> MemfdFrameStore::create(RegionId region, std::string name,
                                                                   std::uint64_t bytes) {
  bytes = (bytes + kUnit - 1) / kUnit * kUnit;
  const std::string label = str("holo-", region, "-", name);
  env::Fd fd(::memfd_create(label.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return std::unexpected(frame_error("cannot make a file for page frames", errno));
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    return std::unexpected(frame_error("cannot size a region's frames", errno));
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return std::unexpected(frame_error("cannot seal a region's frames", errno));
  }
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  if (base == MAP_FAILED) return std::unexpected(frame_error("cannot map a region's frames", errno));
  ::madvise(base, bytes, MADV_DONTFORK);
  ::madvise(base, bytes, MADV_DONTDUMP);
  return std::make_unique<MemfdFrames>(std::move(fd), static_cast<std::byte*>(base), bytes);
}

}  // namespace holo::driver
