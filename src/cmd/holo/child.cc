#include "cmd/holo/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string_view>
#include <thread>
#include <utility>

#include "base/assert.h"
#include "base/strings.h"
#include "cmd/holo/background.h"
#include "driver/posix/errno_text.h"
#include "env/fd.h"

namespace holo::cmd {
namespace {

constexpr auto kLook = std::chrono::milliseconds(10);  // At those that are to end.

volatile sig_atomic_t g_child = 0;
std::atomic<bool> g_told = false;  // It was sent a signal by us.

/// What the terminal sends (Ctrl-C) reaches the program as well; what only we were sent is passed on.
void pass_on(int signal, siginfo_t* info, void*) {
  if (info->si_code <= 0) signal_child(signal);
}

void pass_on_signals() {
  struct sigaction action{};
  action.sa_sigaction = pass_on;
  action.sa_flags = SA_SIGINFO;
  for (const int s : {SIGINT, SIGQUIT, SIGTERM, SIGHUP}) ::sigaction(s, &action, nullptr);
}

/// Waits for the program. What it has left running is ours once its own parent has ended, and would stay a zombie.
int wait_for(pid_t child) {
  for (int status = 0;;) {
    const pid_t ended = ::waitpid(-1, &status, 0);
    if (ended == child) return status;
    HOLO_ASSERT(ended >= 0 || errno == EINTR);
  }
}

/// True until the last of the processes that are ours to wait for, and so all that those have started, have ended.
bool reap() {
  pid_t ended = 0;
  while ((ended = ::waitpid(-1, nullptr, WNOHANG)) > 0) {
  }
  return ended == 0;
}

std::string pids_of(const std::vector<ProcessName>& processes) {
  std::string out;
  for (const auto& process : processes) out += str(out.empty() ? "" : ", ", process.pid);
  return out;
}

/// Ends what the program has left running, however long that takes: whoever may not be killed is waited for.
void end_descendants() {
  const auto began = std::chrono::steady_clock::now();
  std::vector<ProcessName> asked;
  bool said = false;
  for (; reap(); std::this_thread::sleep_for(kLook)) {
    const auto since = std::chrono::steady_clock::now() - began;
    const auto left = descendants_of(::getpid());
    for (const auto& process : left) {
      if (since >= kGrace) {
        send_signal(process, SIGKILL);
      } else if (std::ranges::find(asked, process) == asked.end()) {
        send_signal(process, SIGTERM);
        asked.push_back(process);
      }
    }
    if (since < 2 * kGrace || left.empty() || std::exchange(said, true)) continue;
    std::cerr << "holo: waiting for what the command has started and cannot be killed: process " << pids_of(left)
              << "\n";
  }
}

}  // namespace

std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return name;
  const char* path = std::getenv("PATH");
  std::string_view rest = path ? path : "/usr/local/bin:/usr/bin:/bin";
  while (!rest.empty()) {
    const auto end = rest.find(':');
    const std::string candidate = str(end == 0 ? "." : rest.substr(0, end), "/", name);
    struct stat info{};
    if (::stat(candidate.c_str(), &info) == 0 && S_ISREG(info.st_mode) && ::access(candidate.c_str(), X_OK) == 0)
      return candidate;
    rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
  }
  return name;
}

Outcome<int> run_child(const std::string& program, const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (const auto& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  int report[2];
  if (::pipe2(report, O_CLOEXEC) != 0)
    return std::unexpected(Failure(driver::fail_errno(errno, "cannot make a pipe").error()));
  env::Fd read_end(report[0]), write_end(report[1]);
  ::signal(SIGCHLD, SIG_DFL);  // Who started us may have had it ignored; then nobody would learn how the program ended.
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // What outlives its parent comes to us, so that none of it is lost sight of.
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) return std::unexpected(Failure(driver::fail_errno(errno, "cannot start " + program).error()));
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // Killed with us: nothing is left behind, whatever ends holo run.
    if (::getppid() == parent) ::execv(program.c_str(), argv.data());
    const int error = errno;
    if (::write(write_end.get(), &error, sizeof error) < 0) ::_exit(126);
    ::_exit(127);
  }
  g_child = child;
  pass_on_signals();
  write_end.reset();
  int error = 0;
  ssize_t got = 0;
  while ((got = ::read(read_end.get(), &error, sizeof error)) < 0 && errno == EINTR) {
  }
  const int status = wait_for(child);
  g_child = 0;
  if (g_told || WIFSIGNALED(status)) end_descendants();
  if (got == sizeof error) return std::unexpected(Failure(driver::fail_errno(error, "cannot run " + program).error()));
  if (WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    if (signal != SIGINT)
      std::cerr << "holo: " << program << " was ended by signal " << signal << " (" << ::strsignal(signal) << ")\n";
    return 128 + signal;
  }
  return WEXITSTATUS(status);
}

void signal_child(int signal) {
  if (g_child <= 0) return;
  g_told = true;
  ::kill(static_cast<pid_t>(g_child), signal);
}

}  // namespace holo::cmd
