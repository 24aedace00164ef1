#include "driver/posix/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/strings.h"
#include "driver/posix/errno_text.h"

namespace holo::driver {
namespace {

constexpr int kFirstGiven = 3;
constexpr int kLastGiven = 63;
constexpr int kReadsPerEvent = 4;
constexpr std::size_t kReadBytes = 16 << 10;
constexpr Duration kDrain = milliseconds(500);  // For pipes that a grandchild keeps open after the child has ended.

struct Pipe {
  env::Fd read;
  env::Fd write;
};
Result<Pipe> make_pipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return fail_errno(errno, "cannot make a pipe");
  return Pipe{.read = env::Fd(fds[0]), .write = env::Fd(fds[1])};
}

/// Everything the child needs, prepared before fork: after it, only async-signal-safe calls are allowed.
struct ChildPlan {
  const char* program = nullptr;
  const char* directory = nullptr;
  std::vector<char*> argv;
  std::vector<char*> envp;
  struct Move {
    int from;
    int to;
  };
  std::vector<Move> moves;  // sources are above kLastGiven
  pid_t parent = 0;
  int report = -1;  // errno goes here when exec fails; above kLastGiven
};

[[noreturn]] void child_fails(int report) {
  const int error = errno;
  (void)!::write(report, &error, sizeof error);
  ::_exit(127);
}

/// Runs in the forked child.
[[noreturn]] void become_program(const ChildPlan& plan) {
  for (int s = 1; s < NSIG; ++s) ::signal(s, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (::setpgid(0, 0) != 0) child_fails(plan.report);
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) child_fails(plan.report);
  if (::getppid() != plan.parent) ::_exit(127);  // The parent died before prctl: nobody would ever end this child.
  for (const auto& m : plan.moves) {
    if (::dup2(m.from, m.to) < 0) child_fails(plan.report);  // dup2 clears close-on-exec.
  }
  // Everything else of ours is close-on-exec; this also covers what a library opened without it.
  int next = kFirstGiven;
  for (int fd = kFirstGiven; fd <= kLastGiven; ++fd) {
    const bool given = std::any_of(plan.moves.begin(), plan.moves.end(), [fd](const auto& m) { return m.to == fd; });
    if (!given) continue;
    if (fd > next) ::syscall(SYS_close_range, next, fd - 1, 0);
    next = fd + 1;
  }
  ::syscall(SYS_close_range, next, plan.report - 1, 0);
  ::syscall(SYS_close_range, plan.report + 1, ~0U, 0);
  if (plan.directory && ::chdir(plan.directory) != 0) child_fails(plan.report);
  ::execve(plan.program, plan.argv.data(), plan.envp.data());
  child_fails(plan.report);
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (auto& s : strings) out.push_back(s.data());
  out.push_back(nullptr);
  return out;
}

Status check(const env::ProcessSpec& spec) {
  if (spec.program.empty() || spec.args.empty())
    return fail(Errc::invalid_argument, "a process needs a program and its name");
  std::vector<int> numbers;
  for (const auto& given : spec.fds) {
    if (given.number < kFirstGiven || given.number > kLastGiven || !given.fd) {
      return fail(Errc::invalid_argument, str("a process cannot be given descriptor ", given.number));
    }
    if (std::find(numbers.begin(), numbers.end(), given.number) != numbers.end()) {
      return fail(Errc::invalid_argument, str("descriptor ", given.number, " is given twice"));
    }
    numbers.push_back(given.number);
  }
  return {};
}

/// A duplicate that no given number can overwrite.
Result<env::Fd> duplicate_high(int fd) {
  env::Fd out(::fcntl(fd, F_DUPFD_CLOEXEC, kLastGiven + 1));
  if (!out) return fail_errno(errno, "cannot duplicate a descriptor");
  return out;
}

/// Cuts what a pipe delivers into lines.
class LineReader {
 public:
  LineReader(AsioLoop& loop, env::Fd pipe, std::function<void(std::string_view)> on_line, std::function<void()> on_end)
      : on_line_(std::move(on_line)),
        on_end_(std::move(on_end)),
        watch_(std::make_unique<FdWatch>(
            loop, std::move(pipe), FdWatch::Callbacks{.on_readable = [this] { read_some(); }, .on_writable = {}})) {
    watch_->want_read(true);
  }
  bool ended() const { return !watch_; }
  /// No callback from here on, also when one is running now.
  void detach() {
    detached_ = true;
    watch_.reset();
  }
  /// Reads what is there now, at most what a pipe holds: a writer may be as fast as we are.
  void read_now() {
    const int capacity = watch_ ? ::fcntl(watch_->fd(), F_GETPIPE_SZ) : 0;
    for (std::size_t left = capacity > 0 ? static_cast<std::size_t>(capacity) / kReadBytes + 1 : 0; left > 0; --left) {
      if (!watch_ || !read_once()) break;
    }
  }
  /// Reads what is there now; then no more, as a descendant that left the group may write for ever.
  void finish() {
    read_now();
    end();
  }

 private:
  void read_some() {
    for (int i = 0; i < kReadsPerEvent && watch_; ++i) {
      if (!read_once()) return;
    }
  }
  bool read_once() {
    std::array<char, kReadBytes> bytes;
    const ssize_t n = ::read(watch_->fd(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) return true;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
    if (n <= 0) {
      end();
      if (!detached_) on_end_();
      return false;
    }
    take({bytes.data(), static_cast<std::size_t>(n)});
    return true;
  }
  void take(std::string_view text) {
    while (!text.empty() && !detached_) {
      const std::size_t newline = text.find('\n');
      const std::size_t length = std::min(newline, text.size());
      const std::size_t part = std::min(length, env::kMaxLineBytes - line_.size());
      line_.append(text.substr(0, part));
      text.remove_prefix(part);
      const bool complete = part == length && newline != std::string_view::npos;
      if (complete) text.remove_prefix(1);
      if (complete || line_.size() == env::kMaxLineBytes) tell();
    }
  }
  void tell() {
    const std::string line = std::exchange(line_, {});
    if (!detached_) on_line_(line);
  }
  void end() {
    watch_.reset();
    if (!line_.empty()) tell();
  }

  std::function<void(std::string_view)> on_line_;
  std::function<void()> on_end_;
  std::unique_ptr<FdWatch> watch_;
  std::string line_;
  bool detached_ = false;
};

class PosixProcess final : public env::Process {
 public:
  PosixProcess(AsioLoop& loop, pid_t pid, env::Fd pidfd, env::Fd out, env::Fd err, env::ProcessEvents events)
      : state_(std::make_shared<State>(loop, pid)) {
    state_->events = std::make_shared<const env::ProcessEvents>(std::move(events));
    State* s = state_.get();
    const auto line = [s](env::OutputStream which) {
      return [s, which](std::string_view text) {
        const auto keep = s->events;  // The callback may destroy the process.
        if (keep && keep->on_line) keep->on_line(which, text);
      };
    };
    const auto ended = [s] { s->maybe_report(); };
    s->out = std::make_unique<LineReader>(loop, std::move(out), line(env::OutputStream::out), ended);
    s->err = std::make_unique<LineReader>(loop, std::move(err), line(env::OutputStream::err), ended);
    s->exit = std::make_unique<FdWatch>(loop, std::move(pidfd),
                                        FdWatch::Callbacks{.on_readable = [s] { s->reap(); }, .on_writable = {}});
    s->exit->want_read(true);
  }

  ~PosixProcess() override {
    state_->events.reset();
    state_->kill_group(SIGKILL);
    if (!state_->reaped) {
      // SIGKILL acts soon, whatever the child does; waiting here keeps it from becoming a zombie nobody reaps.
      while (::waitpid(state_->pid, nullptr, 0) < 0 && errno == EINTR) {
      }
      state_->reaped = true;
    }
    state_->loop.cancel(state_->kill_timer);
    state_->loop.cancel(state_->drain_timer);
    state_->out->detach();
    state_->err->detach();
    state_->exit.reset();
    state_->loop.post([keep = state_] {});  // One of its callbacks may be what destroys this.
  }

  pid_t pid() const override { return state_->pid; }
  bool running() const override { return !state_->reaped; }
  void read_output() override {
    const auto keep = state_;  // A callback may destroy this.
    keep->out->read_now();
    keep->err->read_now();
  }
  void stop(Duration grace) override {
    if (state_->reaped) return;
    state_->kill_group(SIGTERM);
    state_->loop.cancel(state_->kill_timer);
    state_->kill_timer = state_->loop.call_at(state_->loop.now() + grace, [weak = std::weak_ptr<State>(state_)] {
      if (auto s = weak.lock()) s->kill_group(SIGKILL);
    });
  }

 private:
  struct State : std::enable_shared_from_this<State> {
    State(AsioLoop& l, pid_t p) : loop(l), pid(p) {}
    AsioLoop& loop;
    const pid_t pid;
    std::shared_ptr<const env::ProcessEvents> events;  // null: nobody listens any more
    std::unique_ptr<LineReader> out;
    std::unique_ptr<LineReader> err;
    std::unique_ptr<FdWatch> exit;
    env::Loop::TimerId kill_timer = 0;
    env::Loop::TimerId drain_timer = 0;
    env::ExitStatus status;
    bool reaped = false;
    bool reported = false;

    void kill_group(int signal) {
      // The group outlives its leader while a grandchild is in it. A reaped leader's number can be a new process's only
      // once the group is empty, and a group of that number would have to be made by it: ours are signalled at its
      // reaping, not later.
      if (!reaped) ::kill(-pid, signal);
    }

    void reap() {
      const auto self = shared_from_this();
      siginfo_t info{};
      if (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) return;
      kill_group(
          SIGKILL);  // Grandchildren do not outlive it. The zombie still holds the number, so it is the right group.
      int raw = 0;
      while (::waitpid(pid, &raw, 0) < 0 && errno == EINTR) {
      }
      reaped = true;
      if (WIFSIGNALED(raw)) {
        status.signal = WTERMSIG(raw);
      } else {
        status.code = WEXITSTATUS(raw);
      }
      exit.reset();
      loop.cancel(kill_timer);
      drain_timer = loop.call_at(loop.now() + kDrain, [weak = weak_from_this()] {
        auto s = weak.lock();
        if (!s) return;
        if (s->out) s->out->finish();
        if (s->err) s->err->finish();
        s->maybe_report();
      });
      maybe_report();
    }

    void maybe_report() {
      if (!reaped || reported || !out || !err || !out->ended() || !err->ended()) return;
      reported = true;
      const auto self = shared_from_this();
      loop.cancel(drain_timer);
      if (const auto keep = events; keep && keep->on_exit) keep->on_exit(status);
    }
  };
  std::shared_ptr<State> state_;
};

}  // namespace

Result<std::unique_ptr<env::Process>> PosixProcesses::spawn(env::ProcessSpec spec, env::ProcessEvents events) {
  HOLO_TRY(check(spec));
  HOLO_ASSIGN(out, make_pipe());
  HOLO_ASSIGN(err, make_pipe());
  HOLO_ASSIGN(report, make_pipe());
  const env::Fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null) return fail_errno(errno, "cannot open /dev/null");

  ChildPlan plan;
  std::vector<env::Fd> sources;  // duplicates that the moves cannot overwrite
  const auto plan_move = [&](int from, int to) -> Status {
    HOLO_ASSIGN(high, duplicate_high(from));
    plan.moves.push_back({high.get(), to});
    sources.push_back(std::move(high));
    return {};
  };
  HOLO_TRY(plan_move(null.get(), 0));
  HOLO_TRY(plan_move(out.write.get(), 1));
  HOLO_TRY(plan_move(err.write.get(), 2));
  for (const auto& given : spec.fds) HOLO_TRY(plan_move(given.fd.get(), given.number));
  HOLO_ASSIGN(report_high, duplicate_high(report.write.get()));
  plan.report = report_high.get();
  plan.program = spec.program.c_str();
  plan.directory = spec.directory.empty() ? nullptr : spec.directory.c_str();
  plan.argv = pointers(spec.args);
  plan.envp = pointers(spec.env);
  plan.parent = ::getpid();

  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(errno, str("cannot start ", spec.program));
  if (pid == 0) become_program(plan);
  sources.clear();
  out.write.reset();
  err.write.reset();
  report.write.reset();
  report_high.reset();

  int error = 0;
  ssize_t n = 0;
  while ((n = ::read(report.read.get(), &error, sizeof error)) < 0 && errno == EINTR) {
  }
  if (n == sizeof error) {
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return fail_errno(error, str("cannot start ", spec.program));
  }
  env::Fd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) {
    const int why = errno;
    ::kill(-pid, SIGKILL);
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return fail_errno(why, str("cannot watch ", spec.program));
  }
  for (const env::Fd* fd : {&out.read, &err.read}) ::fcntl(fd->get(), F_SETFL, O_NONBLOCK);
  return std::make_unique<PosixProcess>(loop_, pid, std::move(pidfd), std::move(out.read), std::move(err.read),
                                        std::move(events));
}

}  // namespace holo::driver
