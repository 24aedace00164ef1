// Files as the node uses them: written whole or not at all, private by default, locked by one agent.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"
#include "env/fd.h"

namespace holo::driver {

enum class FileMode : std::uint16_t {
  secret = 0600,  ///< Keys, identities, state.
  regular = 0644,
  program = 0700,
};

/// Replaces `path` by `content`, so that after a crash there is either the old file or the new one (temporary file,
/// fsync, rename, fsync of the directory). Errors: `not_found` (no such directory), `permission_denied`, `io_error`
/// (disk full...).
Status write_file_atomically(const std::string& path, ByteSpan content, FileMode mode = FileMode::secret);

/// The same for a file of secrets: what was there before is overwritten once it is replaced, as far as the file system
/// overwrites in place. Errors: the same; none for the overwriting.
Status replace_secret_file(const std::string& path, ByteSpan content);

/// The whole file. Errors: `not_found`, `permission_denied`, `over_limit` (longer than `max_bytes`), `invalid_argument`
/// (a directory), `io_error`.
Result<Bytes> read_file(const std::string& path, std::size_t max_bytes);
Result<std::string> read_text_file(const std::string& path, std::size_t max_bytes);

/// Creates `path` and its parents with mode 0700; fine when it exists. Errors: `permission_denied`, `already_exists` (a
/// file of that name), `io_error`.
Status make_private_directory(const std::string& path);

[[nodiscard]] bool file_exists(const std::string& path);
/// Fine when there is none.
Status remove_file(const std::string& path);

/// Held while the object lives; the kernel releases it when the process dies.
class LockFile {
 public:
  /// Takes `path` (created if missing) for this process and writes its pid into it.
  /// Errors: `refused` ("another agent (pid N) holds ..."), `permission_denied`, `not_found`, `io_error`.
  static Result<LockFile> acquire(const std::string& path);

 private:
  explicit LockFile(env::Fd fd) : fd_(std::move(fd)) {}
  env::Fd fd_;
};

/// The process that holds the lock `path` (LockFile); 0: nobody does, or it cannot be told.
pid_t lock_holder(const std::string& path);

struct DiskSpace {
  std::uint64_t free_bytes = 0;  ///< What an ordinary user may still write.
  std::uint64_t total_bytes = 0;
};
Result<DiskSpace> disk_space(const std::string& path);

/// $XDG_STATE_HOME/holo, ~/.local/state/holo, or /var/lib/holo for a root without a home. Error: `not_found`.
Result<std::string> default_state_directory();
/// $XDG_RUNTIME_DIR/holo; empty when the variable is not set (then sockets live in the state directory).
std::string default_runtime_directory();

/// Longest path a Unix socket can have (sun_path without its 0).
inline constexpr std::size_t kMaxSocketPath = 107;
/// `invalid_argument` with the length and the limit in it.
Status check_socket_path(const std::string& path);

}  // namespace holo::driver
