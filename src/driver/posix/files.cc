#include "driver/posix/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "base/strings.h"
#include "driver/posix/errno_text.h"

namespace holo::driver {
namespace {

std::string parent_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Status write_all(int fd, ByteSpan bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, str("cannot write ", path));
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Status sync_directory(const std::string& path) {
  const env::Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, str("cannot open directory ", path));
  if (::fsync(fd.get()) != 0) return fail_errno(errno, str("cannot sync directory ", path));
  return {};
}

Status write_and_sync(const std::string& path, ByteSpan content, FileMode mode) {
  env::Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, static_cast<mode_t>(mode)));
  if (!fd) return fail_errno(errno, str("cannot create ", path));
  if (::fchmod(fd.get(), static_cast<mode_t>(mode)) != 0)
    return fail_errno(errno, str("cannot set the mode of ", path));
  HOLO_TRY(write_all(fd.get(), content, path));
  if (::fsync(fd.get()) != 0) return fail_errno(errno, str("cannot sync ", path));
  return {};
}

}  // namespace

Status write_file_atomically(const std::string& path, ByteSpan content, FileMode mode) {
  static std::atomic<std::uint64_t> counter{0};  // Two threads may write the same file.
  const std::string temporary = str(path, ".tmp.", ::getpid(), ".", counter.fetch_add(1));
  if (auto written = write_and_sync(temporary, content, mode); !written) {
    ::unlink(temporary.c_str());
    return written;
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary.c_str());
    return fail_errno(error, str("cannot replace ", path));
  }
  return sync_directory(parent_of(path));
}

Status replace_secret_file(const std::string& path, ByteSpan content) {
  const env::Fd old(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
  HOLO_TRY(write_file_atomically(path, content, FileMode::secret));
  struct stat st{};
  if (!old || ::fstat(old.get(), &st) != 0 || !S_ISREG(st.st_mode) || st.st_nlink != 0) return {};
  const Bytes zeros(static_cast<std::size_t>(st.st_size));
  (void)write_all(old.get(), zeros, path);  // It has no name any more: nothing depends on it.
  ::fsync(old.get());
  return {};
}

Result<Bytes> read_file(const std::string& path, std::size_t max_bytes) {
  const env::Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, str("cannot read ", path));
  struct stat st{};
  if (::fstat(fd.get(), &st) != 0) return fail_errno(errno, str("cannot read ", path));
  if (S_ISDIR(st.st_mode)) return fail(Errc::invalid_argument, str("cannot read ", path, ": it is a directory"));
  Bytes out;
  if (st.st_size > 0) out.reserve(std::min<std::size_t>(static_cast<std::size_t>(st.st_size), max_bytes) + 1);
  while (true) {
    const std::size_t have = out.size();
    const std::size_t step = std::min<std::size_t>(max_bytes + 1 - have, 1 << 20);
    if (step == 0) return fail(Errc::over_limit, str(path, " is longer than ", max_bytes, " bytes"));
    out.resize(have + step);
    const ssize_t n = ::read(fd.get(), out.data() + have, step);
    out.resize(have + static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, str("cannot read ", path));
    if (n == 0) return out;
  }
}

Result<std::string> read_text_file(const std::string& path, std::size_t max_bytes) {
  HOLO_ASSIGN(bytes, read_file(path, max_bytes));
  return std::string(as_text(bytes));
}

Status make_private_directory(const std::string& path) {
  struct stat st{};
  if (::stat(path.c_str(), &st) == 0) {
    if (S_ISDIR(st.st_mode)) return {};
    return fail(Errc::already_exists, str("cannot create directory ", path, ": a file has that name"));
  }
  if (errno == ENOENT && parent_of(path) != path && parent_of(path) != ".") {
    HOLO_TRY(make_private_directory(parent_of(path)));
  }
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
    return fail_errno(errno, str("cannot create directory ", path));
  return {};
}

bool file_exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

Status remove_file(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, str("cannot remove ", path));
  return {};
}

static pid_t pid_in(int fd) {
  char text[32] = {};
  const ssize_t n = ::pread(fd, text, sizeof text - 1, 0);
  return n > 0 ? static_cast<pid_t>(std::strtol(text, nullptr, 10)) : 0;
}

pid_t lock_holder(const std::string& path) {
  const env::Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  const bool held = fd && ::flock(fd.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  return held ? pid_in(fd.get()) : 0;
}

Result<LockFile> LockFile::acquire(const std::string& path) {
  env::Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return fail_errno(errno, str("cannot open the lock ", path));
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return fail_errno(errno, str("cannot lock ", path));
    const pid_t pid = pid_in(fd.get());
    const std::string who = pid > 0 ? str("another agent (pid ", pid, ")") : std::string("another agent");
    return fail(Errc::refused, str(who, " holds ", path), "stop it first, or use another --state-dir");
  }
  const std::string text = str(::getpid(), "\n");
  if (::ftruncate(fd.get(), 0) != 0) return fail_errno(errno, str("cannot write ", path));
  HOLO_TRY(write_all(fd.get(), as_bytes(text), path));
  return LockFile(std::move(fd));
}

Result<DiskSpace> disk_space(const std::string& path) {
  struct statvfs st{};
  if (::statvfs(path.c_str(), &st) != 0) return fail_errno(errno, str("cannot ask for the free space of ", path));
  const std::uint64_t unit = st.f_frsize;
  return DiskSpace{.free_bytes = st.f_bavail * unit, .total_bytes = st.f_blocks * unit};
}

Result<std::string> default_state_directory() {
  // XDG: a relative path in the variable is to be ignored.
  if (const char* xdg = std::getenv("XDG_STATE_HOME"); xdg && xdg[0] == '/') return str(xdg, "/holo");
  if (const char* home = std::getenv("HOME"); home && home[0] == '/') return str(home, "/.local/state/holo");
  if (::geteuid() == 0) return std::string("/var/lib/holo");
  return fail(Errc::not_found, "no state directory: neither XDG_STATE_HOME nor HOME is set", "give --state-dir");
}

std::string default_runtime_directory() {
  const char* xdg = std::getenv("XDG_RUNTIME_DIR");
  return xdg && xdg[0] == '/' ? str(xdg, "/holo") : std::string();
}

Status check_socket_path(const std::string& path) {
  if (path.empty()) return fail(Errc::invalid_argument, "the path of a local socket is empty");
  if (path.size() <= kMaxSocketPath) return {};
  return fail(Errc::invalid_argument,
              str("the socket path ", path, " has ", path.size(), " bytes; the system allows ", kMaxSocketPath),
              "use a state directory with a shorter path, or set XDG_RUNTIME_DIR");
}

}  // namespace holo::driver
