// What a node keeps between runs: who it is, which cluster it belongs to. The files are the agent's own (0600); the log
// and the pages beside them belong to other modules.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "core/hyperbus/identity.h"
#include "crypto/secret.h"
#include "driver/posix/files.h"

namespace holo::cmd {

using ClusterKey = crypto::Secret<32>;

struct ClusterMembership {
  ClusterId id;  ///< 0 while pending.
  std::string name;
  ClusterKey key;
  /// What the agent still has to do when its store knows no cluster: "init", or "join HOST:PORT".
  std::string pending;
};

/// An open state directory, locked for this process while the object lives. Thread: one.
class StateDir {
 public:
  /// Makes `path` when needed and locks it. Errors: `refused` (another agent has it; names its pid),
  /// `permission_denied`, `io_error`.
  static Result<StateDir> open(const std::string& path);

  [[nodiscard]] const std::string& path() const { return path_; }
  /// Reads the identity, or makes one on the first start. Errors: `corrupt`, and those of files.
  Result<hyperbus::Identity> identity();

  /// nullopt: this directory belongs to no cluster. Errors: `corrupt`, and those of files.
  Result<std::optional<ClusterMembership>> membership() const;
  Status set_membership(const ClusterMembership& membership);
  /// Forgets the cluster, its log and its pages, but not the identity and the facts of this node.
  Status forget_cluster();

  [[nodiscard]] std::string facts_directory() const { return path_ + "/facts"; }
  [[nodiscard]] std::string log_directory() const { return path_ + "/log"; }
  [[nodiscard]] std::string pages_directory() const { return path_ + "/pages"; }

 private:
  StateDir(std::string path, driver::LockFile lock) : path_(std::move(path)), lock_(std::move(lock)) {}
  std::string path_;
  driver::LockFile lock_;
};

/// Reads a membership without taking the lock (for commands, while the agent runs).
Result<std::optional<ClusterMembership>> read_membership(const std::string& state_dir);

/// base64 of 32 bytes, and back. Errors: `malformed`.
std::string key_text(const ClusterKey& key);
Result<ClusterKey> parse_key(std::string_view text);

}  // namespace holo::cmd
