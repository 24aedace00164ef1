#include "cmd/holo/background.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <thread>

namespace holo::cmd {
namespace {

pid_t sleeper() {
  const pid_t pid = ::fork();
  if (pid == 0) {
    for (;;) ::pause();
  }
  return pid;
}

TEST(ProcessName, ARecycledPidIsAnotherProcess) {
  const auto self = process_name(::getpid());
  EXPECT_TRUE(is_running(self));
  auto earlier = self;
  earlier.start_time -= 1;
  EXPECT_FALSE(is_running(earlier));
  EXPECT_FALSE(send_signal(earlier, 0)) << "its pid is ours now: it must not be signalled";
  EXPECT_TRUE(wait_for_end(earlier, seconds(5)));
  EXPECT_FALSE(is_running(ProcessName{}));
}

TEST(ProcessName, SignalsAndWaits) {
  const auto name = process_name(sleeper());
  ASSERT_TRUE(is_running(name));
  EXPECT_FALSE(wait_for_end(name, milliseconds(20)));
  EXPECT_TRUE(send_signal(name, SIGKILL));
  EXPECT_TRUE(wait_for_end(name, seconds(10)));
  EXPECT_FALSE(is_running(name));
}

TEST(ProcessName, AZombieIsNotRunning) {
  const pid_t pid = sleeper();
  const auto name = process_name(pid);
  ::kill(pid, SIGKILL);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), 0);
  EXPECT_FALSE(is_running(name));
  ::waitpid(pid, nullptr, 0);
}

TEST(ProcessName, OneWhoseFirstThreadHasEndedRunsAsLongAsAnother) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    std::thread([] { ::pause(); }).detach();
    ::syscall(SYS_exit, 0);  // Of this thread alone.
  }
  const auto name = process_name(pid);
  const std::string first = "/proc/" + std::to_string(pid) + "/stat";
  for (std::string text; text.find(") Z ") == std::string::npos;) {
    std::ifstream file(first);
    ASSERT_TRUE(std::getline(file, text));
  }
  EXPECT_TRUE(is_running(name));
  EXPECT_FALSE(wait_for_end(name, milliseconds(20)));
  EXPECT_TRUE(send_signal(name, SIGKILL));
  EXPECT_TRUE(wait_for_end(name, seconds(10)));
  EXPECT_FALSE(is_running(name));
}

}  // namespace
}  // namespace holo::cmd
