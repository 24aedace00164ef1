// An etcd cluster of its own on this machine's loopback, as the reference of measurements.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace holo::cmd {

/// Stopped, and its files removed, when the object goes or this process dies. Thread: the one that made it.
class EtcdPeer {
 public:
  /// True when there is an `etcd` in PATH.
  static bool installed();
  /// Three members with etcd's own settings; returns when they have a leader. Errors: `unavailable`, `io_error`.
  static Result<std::unique_ptr<EtcdPeer>> start();
  ~EtcdPeer();
  EtcdPeer(const EtcdPeer&) = delete;
  EtcdPeer& operator=(const EtcdPeer&) = delete;

  /// Client ports, "127.0.0.1:PORT", by member.
  [[nodiscard]] const std::vector<std::string>& addresses() const { return addresses_; }
  /// The member that leads, by its place; waits a while for one. Errors: `unavailable`.
  Result<std::size_t> leader();
  /// SIGKILL.
  void kill(std::size_t member);
  /// Starts it again on its data.
  Status restart(std::size_t member);

 private:
  EtcdPeer() = default;
  std::string folder_;
  std::vector<std::string> addresses_, peers_;
  std::vector<pid_t> pids_;
};

}  // namespace holo::cmd
