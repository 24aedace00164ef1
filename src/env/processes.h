// The port to child processes: workers that the agent starts, watches and ends.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "env/fd.h"

namespace holo::env {

struct ExitStatus {
  int code = 0;    ///< Exit code when signal is 0.
  int signal = 0;  ///< The signal that ended it, or 0.
  [[nodiscard]] bool ok() const { return code == 0 && signal == 0; }
  /// "exit code 3" or "signal 11 (Segmentation fault)".
  [[nodiscard]] std::string to_string() const;
};

enum class OutputStream : std::uint8_t { out = 1, err = 2 };

struct ProcessSpec {
  std::string program;            ///< Path; not searched for in PATH.
  std::vector<std::string> args;  ///< argv, with argv[0].
  std::vector<std::string> env;   ///< The whole environment, "NAME=value".
  std::string directory;          ///< Working directory; empty: as the parent's.
  struct GivenFd {
    int number = 0;  ///< The number it gets in the child, 3 to 63.
    Fd fd;
  };
  std::vector<GivenFd> fds;  ///< All other descriptors are closed in the child; stdin is /dev/null.
};

struct ProcessEvents {
  /// One line without its newline; lines longer than kMaxLineBytes come in parts. Called on the loop thread.
  std::function<void(OutputStream, std::string_view)> on_line;
  /// Once, after the last line (or a moment later when a grandchild keeps the pipes open). Called on the loop thread.
  std::function<void(ExitStatus)> on_exit;
};

inline constexpr std::size_t kMaxLineBytes = 4096;

/// A running child in its own process group. Destroying the object kills the whole group (SIGKILL); no callback
/// follows.
class Process {
 public:
  virtual ~Process() = default;
  [[nodiscard]] virtual pid_t pid() const = 0;
  [[nodiscard]] virtual bool running() const = 0;
  /// Reads what the child has written and nobody has read: what it wrote before something that has already been heard
  /// from it on another way (an answer on a socket) has reached on_line when this returns. At most what the pipes hold;
  /// the last line waits for its newline. May report the end. Thread: loop.
  virtual void read_output() = 0;
  /// SIGTERM to the group, SIGKILL after `grace` to what is left of it. on_exit reports the end. Thread: loop.
  virtual void stop(Duration grace) = 0;
};

class Processes {
 public:
  virtual ~Processes() = default;
  /// Starts a child that dies with this process. Errors: `not_found` (no such program), `permission_denied`,
  /// `unsupported` (not an executable for this machine), `io_error`, `invalid_argument`. Thread: loop.
  virtual Result<std::unique_ptr<Process>> spawn(ProcessSpec spec, ProcessEvents events) = 0;
};

}  // namespace holo::env
