// Starting an agent in the background, and hearing from it: it reports on a pipe when it answers, when it is a live
// member, or why it could not start.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/time.h"
#include "cmd/holo/outcome.h"
#include "env/fd.h"

namespace holo::cmd {

/// A process named in a way that a recycled pid cannot fool: its pid and when it started.
struct ProcessName {
  pid_t pid = 0;
  std::uint64_t start_time = 0;  ///< Clock ticks since boot, as /proc/PID/stat says.
  friend bool operator==(const ProcessName&, const ProcessName&) = default;
};
/// The running process `pid`; start_time 0 when there is none (or only its zombie).
ProcessName process_name(pid_t pid);
/// What it has started, what those have started, and so on, as far as they run now.
std::vector<ProcessName> descendants_of(pid_t ancestor);
[[nodiscard]] bool is_running(const ProcessName& name);
/// Sends `signal` unless the process is gone. Race-free against recycled pids (pidfd).
bool send_signal(const ProcessName& name, int signal);
/// True once it has ended; false when it still runs at the deadline.
bool wait_for_end(const ProcessName& name, Duration limit);

/// What the agent writes to the pipe, one line each.
enum class AgentStage : std::uint8_t {
  answering,  ///< Its sockets are open.
  alive,      ///< It is a live member of its cluster.
};

/// Where an agent lives, and with it all processes that it starts.
struct AgentPlace {
  env::Fd network;    ///< A network namespace (setns(2)); none: the caller's.
  env::Fd cpu_group;  ///< cgroup.procs of a control group; none: the caller's.
};

class BackgroundAgent {
 public:
  /// Starts `holo agent ARGS... --ready-fd N` from this same program, in a session of its own, in `place`, with both
  /// outputs appended to `log_file`. The process does nothing before `note` has kept its name: when the caller dies
  /// first, or `note` fails, it ends. Errors: `io_error`, `permission_denied`, those of `note`; that it cannot enter
  /// `place` is told by wait().
  using Note = std::function<Status(const ProcessName&)>;
  static Result<BackgroundAgent> start(std::vector<std::string> args, const std::string& log_file,
                                       const AgentPlace& place, const Note& note);

  /// Waits until the agent has reached `stage`. Failures: what the agent said when it could not start (with its exit
  /// code), `deadline_exceeded`, `unavailable` (it ended without a word).
  Outcome<void> wait(AgentStage stage, Duration limit);
  /// The address it listens on, known once it is `answering`.
  [[nodiscard]] const std::string& listen_address() const { return address_; }
  [[nodiscard]] ProcessName name() const { return name_; }
  /// SIGTERM, then SIGKILL after 3 s; for starts that failed half-way.
  void abandon();

 private:
  Outcome<void> take_line(std::string_view line);
  ProcessName name_;
  env::Fd pipe_;
  std::string pending_, address_, log_file_;
  bool answering_ = false, alive_ = false;
};

/// The agent's end of the pipe. Does nothing when it was not started with one.
class ReadyPipe {
 public:
  explicit ReadyPipe(int fd = -1) : fd_(fd) {}
  void answering(const std::string& address);
  void alive();
  void failed(const Failure& failure);

 private:
  void line(const std::string& text);
  env::Fd fd_;
};

}  // namespace holo::cmd
