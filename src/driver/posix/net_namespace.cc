#include "driver/posix/net_namespace.h"

#include <fcntl.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>

#include "base/strings.h"
#include "driver/posix/errno_text.h"

namespace holo::driver {
namespace {

constexpr const char* kFolder = "/run/netns";
constexpr auto kLockLimit = std::chrono::seconds(10);
constexpr auto kLockRetry = std::chrono::milliseconds(5);

std::string path_of(const std::string& name) { return str(kFolder, '/', name); }

std::unexpected<Error> failed(int error, const std::string& what) {
  if (error == EPERM || error == EACCES) {
    return fail(Errc::permission_denied, what + ": network namespaces need root's rights", "run it with sudo");
  }
  if (error == EINVAL || error == ENOSYS) {
    return fail(Errc::unsupported, what + ": this kernel has no network namespaces", "build it with CONFIG_NET_NS");
  }
  return fail_errno(error, what);
}

/// The folder as `ip netns` makes it: a mount of its own, so that names made here are seen in every mount namespace.
Status prepare_folder() {
  if (::mkdir(kFolder, 0755) != 0 && errno != EEXIST) return failed(errno, str("cannot make ", kFolder));
  if (::mount("", kFolder, "none", MS_SHARED | MS_REC, nullptr) == 0) return {};
  if (errno != EINVAL) return failed(errno, str("cannot share ", kFolder));
  if (::mount(kFolder, kFolder, "none", MS_BIND | MS_REC, nullptr) != 0 ||
      ::mount("", kFolder, "none", MS_SHARED | MS_REC, nullptr) != 0) {
    return failed(errno, str("cannot share ", kFolder));
  }
  return {};
}

/// On a thread of its own: namespaces belong to threads, and this one's ends with it.
Status on_a_thread(const std::function<Status()>& f) {
  Status done;
  std::thread([&] { done = f(); }).join();
  return done;
}

}  // namespace

Result<NetNamespace> NetNamespace::create(const std::string& name) {
  HOLO_TRY(prepare_folder());
  const auto path = path_of(name);
  {
    const env::Fd file(::open(path.c_str(), O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0));
    if (!file) return failed(errno, str("cannot make the network namespace ", name));
  }
  const auto made = on_a_thread([&]() -> Status {
    if (::unshare(CLONE_NEWNET) != 0) return failed(errno, "cannot make a network namespace");
    if (::mount("/proc/thread-self/ns/net", path.c_str(), "none", MS_BIND, nullptr) != 0) {
      return failed(errno, str("cannot name the network namespace ", name));
    }
    return {};
  });
  if (!made) {
    ::unlink(path.c_str());
    return std::unexpected(made.error());
  }
  return open(name);
}

Result<NetNamespace> NetNamespace::open(const std::string& name) {
  env::Fd fd(::open(path_of(name).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, str("cannot open the network namespace ", name));
  // Whoever made it may have been killed between the name and the namespace.
  if (::ioctl(fd.get(), NS_GET_NSTYPE) != CLONE_NEWNET) {
    return fail(Errc::not_found, str("the name ", name, " stands for no network namespace"));
  }
  return NetNamespace(std::move(fd));
}

Status NetNamespace::remove(const std::string& name) {
  const auto path = path_of(name);
  if (::umount2(path.c_str(), MNT_DETACH) != 0 && errno != EINVAL && errno != ENOENT) {
    return failed(errno, str("cannot remove the network namespace ", name));
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return failed(errno, str("cannot remove the network namespace ", name));
  }
  return {};
}

std::vector<std::string> NetNamespace::names(const std::string& prefix) {
  std::vector<std::string> out;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder, error)) {
    if (auto name = entry.path().filename().string(); name.starts_with(prefix)) out.push_back(std::move(name));
  }
  std::ranges::sort(out);
  return out;
}

Status NetNamespace::run_inside(const std::function<Status()>& f) const {
  return on_a_thread([&]() -> Status {
    if (::setns(fd_.get(), CLONE_NEWNET) != 0) return failed(errno, "cannot enter a network namespace");
    return f();
  });
}

Result<env::Fd> lock_net_namespaces() {
  if (::mkdir(kFolder, 0755) != 0 && errno != EEXIST) return failed(errno, str("cannot make ", kFolder));
  env::Fd folder(::open(kFolder, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder) return fail_errno(errno, str("cannot open ", kFolder));
  const auto deadline = std::chrono::steady_clock::now() + kLockLimit;
  while (::flock(folder.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EINTR && errno != EWOULDBLOCK) return fail_errno(errno, str("cannot lock ", kFolder));
    if (std::chrono::steady_clock::now() > deadline) {
      return fail(Errc::deadline_exceeded, str("another process holds ", kFolder));
    }
    std::this_thread::sleep_for(kLockRetry);
  }
  return folder;
}

}  // namespace holo::driver
