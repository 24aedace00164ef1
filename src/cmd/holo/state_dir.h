// What a node keeps between runs: who it is, which cluster it belongs to. The files are the agent's own (0600); the log
// and the pages beside them belong to other modules.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/time.h"
#include "core/hyperbus/identity.h"
#include "core/hyperbus/trust.h"
#include "crypto/secret.h"
#include "driver/posix/files.h"

namespace holo::cmd {

using ClusterKey = crypto::Secret<32>;

struct ClusterMembership {
  ClusterId id;  ///< 0 while pending.
  std::string name;
  hyperbus::TrustMode trust = hyperbus::TrustMode::psk;
  /// Accepted all; the first is dialled with. At least one in mode psk, none in the others.
  std::vector<ClusterKey> keys;
  std::string certificate;  ///< Mode roots: this node's, as carried; names the root that it believes.
  /// What the agent still has to do when its store knows no cluster: "init", "restore", or "join HOST:PORT".
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
  /// The root key of a cluster that was made here; makes one when there is none. Errors: as identity().
  Result<crypto::Ed25519KeyPair> root_key();
  /// Forgets the cluster, its log and its pages, but not the identity and the facts of this node.
  Status forget_cluster();

  [[nodiscard]] std::string root_key_file() const { return path_ + "/root.key"; }
  [[nodiscard]] std::string facts_directory() const { return path_ + "/facts"; }
  [[nodiscard]] std::string log_directory() const { return path_ + "/log"; }
  [[nodiscard]] std::string pages_directory() const { return path_ + "/pages"; }
  /// While `pending` is "restore": the control state to begin from.
  [[nodiscard]] std::string restore_file() const { return path_ + "/restore.snapshot"; }

 private:
  StateDir(std::string path, driver::LockFile lock) : path_(std::move(path)), lock_(std::move(lock)) {}
  std::string path_;
  driver::LockFile lock_;
};

/// Reads a membership without taking the lock (for commands, while the agent runs).
Result<std::optional<ClusterMembership>> read_membership(const std::string& state_dir);

/// What a running agent changes; the caller is the one that holds the directory.
Status write_membership(const std::string& state_dir, const ClusterMembership& membership);
Status write_identity(const std::string& state_dir, const crypto::Ed25519Seed& seed,
                      const hyperbus::IdentityChain& chain);
Status write_pins(const std::string& state_dir, const std::string& text);
/// Fills `book` with the pins of the directory; fine when there are none. Errors: `corrupt`, and those of files.
Status read_pins(const std::string& state_dir, hyperbus::TrustBook& book);

/// Errors: `corrupt`, and those of files.
Result<crypto::Ed25519KeyPair> read_root_key(const std::string& file);
/// The certificate for `chain` by `root`, from now on, as carried. `lifetime` 0: for ever.
std::string sign_identity(const crypto::Ed25519KeyPair& root, const hyperbus::IdentityChain& chain, Duration lifetime);

/// base64 of 32 bytes, and back. Errors: `malformed`.
std::string key_text(const ClusterKey& key);
Result<ClusterKey> parse_key(std::string_view text);
/// The 16 hexadecimal digits by which a cluster key is named. Error: `malformed`.
Result<std::uint64_t> parse_key_id(std::string_view text);

}  // namespace holo::cmd
