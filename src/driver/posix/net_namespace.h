// Named network namespaces, as `ip netns` knows them (/run/netns/NAME).
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "env/fd.h"

namespace holo::driver {

/// An open namespace. The kernel keeps it while the object lives, or its name exists, or a process is in it.
class NetNamespace {
 public:
  /// Makes an empty one (its loopback is down) under `name`.
  /// Errors: `permission_denied` (needs CAP_SYS_ADMIN), `already_exists`, `unsupported` (not in this kernel),
  /// `io_error`.
  static Result<NetNamespace> create(const std::string& name);
  /// Errors: `not_found`, `permission_denied`, `io_error`.
  static Result<NetNamespace> open(const std::string& name);
  /// Takes the name away; fine when there is none. Errors: `permission_denied`, `io_error`.
  static Status remove(const std::string& name);
  /// Names that begin with `prefix`.
  static std::vector<std::string> names(const std::string& prefix);

  /// Runs `f` on a thread inside the namespace and waits for it. What `f` opens stays there.
  Status run_inside(const std::function<Status()>& f) const;
  /// For setns(2).
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] env::Fd take_fd() && { return std::move(fd_); }

 private:
  explicit NetNamespace(env::Fd fd) : fd_(std::move(fd)) {}
  env::Fd fd_;
};

/// Only one process at a time holds it: for choosing what must be unique on this machine (names, address ranges).
/// Released by the kernel when the process ends. Errors: `permission_denied`, `deadline_exceeded` (10 s), `io_error`.
Result<env::Fd> lock_net_namespaces();

}  // namespace holo::driver
