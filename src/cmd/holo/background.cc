#include "cmd/holo/background.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/strings.h"
#include "driver/posix/errno_text.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kReadyFd = 3;

struct ProcessStat {
  ProcessName name;
  pid_t parent = 0;
};

ProcessStat read_stat(pid_t pid) {
  ProcessStat out{.name = {pid, 0}};
  std::ifstream file(str("/proc/", pid, "/stat"));
  std::string text;
  std::getline(file, text, '\0');  // A process may end while it is read: this fails then, an iterator throws.
  // The second field is the program's name in brackets and may hold anything; fields are counted from its end.
  auto at = text.rfind(')');
  if (at == std::string::npos || at + 2 >= text.size()) return out;
  const char state = text[at + 2];
  int threads = 0;
  for (int field = 2; field < 22 && at != std::string::npos; ++field) {
    if (field == 4) std::from_chars(text.data() + at + 1, text.data() + text.size(), out.parent);
    if (field == 20) std::from_chars(text.data() + at + 1, text.data() + text.size(), threads);
    at = text.find(' ', at + 1);
  }
  // One whose first thread has ended looks like a zombie, and holds its files, as long as others run.
  if (state == 'X' || (state == 'Z' && threads <= 1)) return out;
  if (at != std::string::npos) std::from_chars(text.data() + at + 1, text.data() + text.size(), out.name.start_time);
  return out;
}

env::Fd open_pidfd(const ProcessName& name) {
  if (name.pid <= 0 || !name.start_time) return {};
  env::Fd fd(static_cast<int>(::syscall(SYS_pidfd_open, name.pid, 0)));
  // Compared after opening: the descriptor now holds that very process, or the names differ.
  return process_name(name.pid) == name ? std::move(fd) : env::Fd();
}

// In the child, between fork and exec: only system calls.

/// `outcome` goes to whoever started us, in place of what the agent would say.
[[noreturn]] void give_up(int ready, std::string_view outcome) {
  (void)!::write(ready, outcome.data(), outcome.size());
  ::_exit(1);
}

/// It must not run anywhere else than it was told.
void enter(const AgentPlace& place, int ready) {
  if (place.cpu_group && ::write(place.cpu_group.get(), "0", 1) != 1)
    give_up(ready, "failed 1 26 the agent cannot enter its cgroup\t\n");
  if (place.network && ::setns(place.network.get(), CLONE_NEWNET) != 0)
    give_up(ready, "failed 1 26 the agent cannot enter its network namespace\t\n");
}
static_assert(static_cast<unsigned>(Errc::io_error) == 26);

[[noreturn]] void become_agent(std::vector<char*>& argv, int log, int ready, int gate, const AgentPlace& place) {
  char go = 0;
  if (::read(gate, &go, 1) != 1) ::_exit(1);  // Whoever started us has gone, and nobody knows of us.
  enter(place, ready);
  ::setsid();
  const int null = ::open("/dev/null", O_RDWR);
  if (null < 0) give_up(ready, "failed 1 26 the agent cannot open /dev/null\t\n");
  ::dup2(null, 0);
  ::dup2(log, 1);
  ::dup2(log, 2);
  if (ready != kReadyFd) ::dup2(ready, kReadyFd);
  ::fcntl(kReadyFd, F_SETFD, 0);
  ::syscall(SYS_close_range, kReadyFd + 1, ~0U, 0);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int s : {SIGINT, SIGTERM, SIGPIPE, SIGHUP}) ::signal(s, SIG_DFL);
  ::execv("/proc/self/exe", argv.data());
  ::_exit(127);
}

}  // namespace

ProcessName process_name(pid_t pid) { return read_stat(pid).name; }

std::vector<ProcessName> descendants_of(pid_t ancestor) {
  std::vector<ProcessStat> all;
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/proc", error), end; !error && entry != end; entry.increment(error)) {
    pid_t pid = 0;
    const auto file = entry->path().filename().string();
    std::from_chars(file.data(), file.data() + file.size(), pid);
    if (auto stat = read_stat(pid); stat.name.start_time != 0) all.push_back(stat);
  }
  std::vector<ProcessName> out;
  const auto add_children_of = [&](pid_t parent) {
    for (const auto& p : all) {
      if (p.parent == parent) out.push_back(p.name);
    }
  };
  add_children_of(ancestor);
  for (std::size_t i = 0; i < out.size(); ++i) add_children_of(out[i].pid);
  return out;
}

bool is_running(const ProcessName& name) { return name.start_time != 0 && process_name(name.pid) == name; }

bool send_signal(const ProcessName& name, int signal) {
  const auto fd = open_pidfd(name);
  return fd && ::syscall(SYS_pidfd_send_signal, fd.get(), signal, nullptr, 0) == 0;
}

bool wait_for_end(const ProcessName& name, Duration limit) {
  const auto fd = open_pidfd(name);
  if (!fd) return true;
  pollfd p{fd.get(), POLLIN, 0};
  const bool ended = ::poll(&p, 1, static_cast<int>(limit.millis())) > 0;
  if (ended) ::waitpid(name.pid, nullptr, WNOHANG);  // It may be our own child; otherwise this does nothing.
  return ended;
}

Result<BackgroundAgent> BackgroundAgent::start(std::vector<std::string> args, const std::string& log_file,
                                               const AgentPlace& place, const Note& note) {
  env::Fd log(::open(log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!log) return driver::fail_errno(errno, "cannot write the log " + log_file);
  int ends[2], gate[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return driver::fail_errno(errno, "cannot make a pipe");
  BackgroundAgent out;
  out.pipe_ = env::Fd(ends[0]);
  env::Fd write_end(ends[1]);
  if (::pipe2(gate, O_CLOEXEC) != 0) return driver::fail_errno(errno, "cannot make a pipe");
  env::Fd gate_out(gate[0]), gate_in(gate[1]);
  out.log_file_ = log_file;

  args.insert(args.begin(), {"holo", "agent"});
  args.insert(args.end(), {"--ready-fd", std::to_string(kReadyFd)});
  std::vector<char*> argv;
  for (auto& a : args) argv.push_back(a.data());
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid < 0) return driver::fail_errno(errno, "cannot start the agent");
  if (pid == 0) {
    gate_in.reset();
    become_agent(argv, log.get(), write_end.get(), gate_out.get(), place);
  }
  out.name_ = process_name(pid);
  if (note) HOLO_TRY(note(out.name_));
  (void)!::write(gate_in.get(), "g", 1);  // Should the child have been killed meanwhile, wait() tells.
  return out;
}

Outcome<void> BackgroundAgent::wait(AgentStage stage, Duration limit) {
  const auto deadline = Clock::now() + std::chrono::nanoseconds(limit.ns);
  while (!(stage == AgentStage::answering ? answering_ : alive_)) {
    if (const auto end = pending_.find('\n'); end != std::string::npos) {
      const auto line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      HOLO_TRY(take_line(line));
      continue;
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd p{pipe_.get(), POLLIN, 0};
    const int ready = left <= 0 ? 0 : ::poll(&p, 1, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      return fail(Errc::deadline_exceeded,
                  str("the agent (pid ", name_.pid, ") did not come up in ", limit.millis() / 1000, " s"),
                  "its log is " + log_file_);
    }
    char buffer[4096];
    const auto n = ::read(pipe_.get(), buffer, sizeof buffer);
    if (n > 0) {
      pending_.append(buffer, static_cast<std::size_t>(n));
    } else if (n == 0) {
      return fail(Errc::unavailable, "the agent ended while it was starting", "its log is " + log_file_);
    }
  }
  return {};
}

// "answering ADDRESS", "alive", or "failed EXIT CODE MESSAGE<tab>HINT".
Outcome<void> BackgroundAgent::take_line(std::string_view line) {
  if (line.starts_with("answering ")) {
    address_ = line.substr(10);
    answering_ = true;
  } else if (line == "alive") {
    alive_ = true;
  } else if (line.starts_with("failed ")) {
    int exit_code = kFailed, code = static_cast<int>(Errc::internal);
    const auto* end = line.data() + line.size();
    auto [p, e] = std::from_chars(line.data() + 7, end, exit_code);
    if (p < end) p = std::from_chars(p + 1, end, code).ptr;
    const auto text = line.substr(std::min(line.size(), static_cast<std::size_t>(p - line.data()) + 1));
    const auto tab = text.find('\t');
    Error error{.code = static_cast<Errc>(code), .message = std::string(text.substr(0, tab))};
    if (tab != std::string_view::npos) error.hint = text.substr(tab + 1);
    return std::unexpected(Failure(std::move(error), exit_code));
  }
  return {};
}

void BackgroundAgent::abandon() {
  send_signal(name_, SIGTERM);
  if (!wait_for_end(name_, seconds(3))) {
    send_signal(name_, SIGKILL);
    wait_for_end(name_, seconds(3));
  }
}

void ReadyPipe::answering(const std::string& address) { line("answering " + address); }

void ReadyPipe::alive() {
  line("alive");
  fd_.reset();
}

void ReadyPipe::failed(const Failure& f) {
  line(str("failed ", f.exit_code, ' ', static_cast<unsigned>(f.error.code), ' ', f.error.message, "\t", f.error.hint));
  fd_.reset();
}

void ReadyPipe::line(const std::string& text) {
  if (!fd_) return;
  std::string whole = text;
  for (auto& c : whole) {
    if (c == '\n') c = ' ';
  }
  whole += '\n';
  // Whoever started us may be gone by now; then nobody wants to know (SIGPIPE is ignored in the agent).
  if (::write(fd_.get(), whole.data(), whole.size()) < 0) fd_.reset();
}

}  // namespace holo::cmd
