#include "driver/posix/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/strings.h"

namespace holo::driver {
namespace {

using env::ExitStatus;
using env::OutputStream;
using env::ProcessSpec;
constexpr Duration kLimit = seconds(20);

struct Outcome {
  std::vector<std::string> out;
  std::vector<std::string> err;
  std::optional<ExitStatus> exit;
  env::ProcessEvents events() {
    return {
        .on_line = [this](OutputStream s, std::string_view l) { (s == OutputStream::out ? out : err).emplace_back(l); },
        .on_exit = [this](ExitStatus s) { exit = s; }};
  }
};

ProcessSpec shell(const std::string& script) {
  ProcessSpec spec;
  spec.program = "/bin/sh";
  spec.args = {"sh", "-c", script};
  spec.env = {"PATH=/usr/bin:/bin"};
  return spec;
}

class ProcessTest : public testing::Test {
 protected:
  AsioLoop loop_;
  PosixProcesses processes_{loop_};
};

TEST_F(ProcessTest, OutputExitCodeAndEnvironment) {
  Outcome run;
  auto spec = shell("echo out1; echo err1 >&2; printf 'no newline'; pwd; echo \"$GIVEN\"; exit 3");
  spec.env.push_back("GIVEN=a b");
  spec.directory = "/";
  auto p = processes_.spawn(std::move(spec), run.events());
  ASSERT_TRUE(p) << p.error().to_string();
  EXPECT_TRUE((*p)->running());
  ASSERT_TRUE(loop_.run_until([&] { return run.exit.has_value(); }, kLimit));
  EXPECT_EQ(run.out, (std::vector<std::string>{"out1", "no newline/", "a b"}));
  EXPECT_EQ(run.err, std::vector<std::string>{"err1"});
  EXPECT_EQ(run.exit->code, 3);
  EXPECT_EQ(run.exit->signal, 0);
  EXPECT_FALSE((*p)->running());
  EXPECT_EQ(run.exit->to_string(), "exit code 3");
}

TEST_F(ProcessTest, LongLinesComeInParts) {
  Outcome run;
  auto p = processes_.spawn(shell("head -c 10000 /dev/zero | tr '\\0' x; echo; printf last"), run.events());
  ASSERT_TRUE(p);
  ASSERT_TRUE(loop_.run_until([&] { return run.exit.has_value(); }, kLimit));
  ASSERT_EQ(run.out.size(), 4U);
  EXPECT_EQ(run.out[0].size(), env::kMaxLineBytes);
  EXPECT_EQ(run.out[1].size(), env::kMaxLineBytes);
  EXPECT_EQ(run.out[2].size(), 10'000 - 2 * env::kMaxLineBytes);
  EXPECT_EQ(run.out[3], "last");
}

TEST_F(ProcessTest, ASignalIsReported) {
  Outcome run;
  auto p = processes_.spawn(shell("kill -SEGV $$"), run.events());
  ASSERT_TRUE(p);
  ASSERT_TRUE(loop_.run_until([&] { return run.exit.has_value(); }, kLimit));
  EXPECT_EQ(run.exit->signal, SIGSEGV);
  EXPECT_NE(run.exit->to_string().find("Segmentation"), std::string::npos);
}

TEST_F(ProcessTest, SpawnErrors) {
  const auto spawn = [&](const std::string& program) {
    ProcessSpec spec;
    spec.program = program;
    spec.args = {"x"};
    return processes_.spawn(std::move(spec), {});
  };
  EXPECT_EQ(spawn("/no/such/program").error().code, Errc::not_found);
  EXPECT_EQ(spawn("/etc/passwd").error().code, Errc::permission_denied);
  EXPECT_EQ(spawn("").error().code, Errc::invalid_argument);
  auto spec = shell("true");
  spec.directory = "/no/such/directory";
  EXPECT_EQ(processes_.spawn(std::move(spec), {}).error().code, Errc::not_found);
}

TEST_F(ProcessTest, GivenDescriptorsAndNoOthers) {
  int pipe_fds[2];
  ASSERT_EQ(::pipe2(pipe_fds, 0), 0);  // Not close-on-exec: as a careless library would leave them.
  const env::Fd read_end(pipe_fds[0]);
  const env::Fd leaky(pipe_fds[1]);
  Outcome run;
  auto spec = shell("echo through >&7; ls /proc/self/fd");
  spec.fds.push_back({.number = 7, .fd = env::Fd(::dup(leaky.get()))});
  auto p = processes_.spawn(std::move(spec), run.events());
  ASSERT_TRUE(p) << p.error().to_string();
  ASSERT_TRUE(loop_.run_until([&] { return run.exit.has_value(); }, kLimit));
  char text[16] = {};
  ASSERT_EQ(::read(read_end.get(), text, sizeof text), 8);
  EXPECT_STREQ(text, "through\n");
  // ls has its own descriptor for the directory: 3.
  EXPECT_EQ(run.out, (std::vector<std::string>{"0", "1", "2", "3", "7"}));
}

TEST_F(ProcessTest, OutputIsReadOnDemandBeforeTheLoopTurns) {
  int pipe_fds[2];
  ASSERT_EQ(::pipe2(pipe_fds, O_CLOEXEC), 0);
  const env::Fd answer(pipe_fds[0]);
  Outcome run;
  auto spec = shell("echo said; echo complained >&2; printf part; echo done >&7; sleep 100");
  spec.fds.push_back({.number = 7, .fd = env::Fd(pipe_fds[1])});
  auto p = processes_.spawn(std::move(spec), run.events());
  ASSERT_TRUE(p) << p.error().to_string();
  char text[16] = {};
  ASSERT_EQ(::read(answer.get(), text, sizeof text), 5);  // Blocks; the loop does not run.
  EXPECT_TRUE(run.out.empty());
  (*p)->read_output();
  EXPECT_EQ(run.out, std::vector<std::string>{"said"});
  EXPECT_EQ(run.err, std::vector<std::string>{"complained"});
  (*p)->stop(milliseconds(0));
  ASSERT_TRUE(loop_.run_until([&] { return run.exit.has_value(); }, kLimit));
  EXPECT_EQ(run.out, (std::vector<std::string>{"said", "part"}));
  (*p)->read_output();  // After the end: nothing.
  EXPECT_EQ(run.out.size(), 2U);
}

TEST_F(ProcessTest, StopAsksThenKills) {
  Outcome polite;
  auto p1 = processes_.spawn(shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done"),
                             polite.events());
  Outcome stubborn;
  auto p2 = processes_.spawn(shell("trap '' TERM; echo ready; while :; do sleep 0.01; done"), stubborn.events());
  ASSERT_TRUE(p1 && p2);
  ASSERT_TRUE(loop_.run_until([&] { return polite.out.size() == 1 && stubborn.out.size() == 1; }, kLimit));
  (*p1)->stop(seconds(100));
  (*p2)->stop(milliseconds(50));
  ASSERT_TRUE(loop_.run_until([&] { return polite.exit && stubborn.exit; }, kLimit));
  EXPECT_TRUE(polite.exit->ok());
  EXPECT_EQ(polite.out.back(), "bye");
  EXPECT_EQ(stubborn.exit->signal, SIGKILL);
}

bool alive(pid_t pid) {
  // A zombie whose parent has not looked yet is not alive.
  std::ifstream stat(str("/proc/", pid, "/stat"));
  std::string text;
  std::getline(stat, text);
  const auto close = text.rfind(')');
  return close != std::string::npos && text.compare(close + 2, 1, "Z") != 0;
}

TEST_F(ProcessTest, GrandchildrenEndWithTheGroup) {
  Outcome run;
  auto p = processes_.spawn(shell("sleep 1000 & echo $!; exit 0"), run.events());
  ASSERT_TRUE(p);
  ASSERT_TRUE(loop_.run_until([&] { return run.exit.has_value(); }, kLimit));
  ASSERT_EQ(run.out.size(), 1U);
  const pid_t grandchild = std::stoi(run.out[0]);
  EXPECT_TRUE(loop_.run_until([&] { return !alive(grandchild); }, kLimit));
}

TEST_F(ProcessTest, ADescendantThatWritesForEverDoesNotHoldTheLoop) {
  constexpr int kManyInARow = 1000;
  pid_t writer = 0;
  env::Fd pipe;
  int in_a_row = 0, most_in_a_row = 0;  // Lines without a turn of the loop.
  std::optional<ExitStatus> exit;
  const auto another = [&] { EXPECT_EQ(::write(pipe.get(), "x\n", 2), 2); };
  auto p = processes_.spawn(shell("setsid sh -c 'echo $$; exec sleep 1000' & wait"),
                            {.on_line =
                                 [&](OutputStream, std::string_view line) {
                                   if (writer == 0) {
                                     writer = std::stoi(std::string(line));
                                     return;
                                   }
                                   if (in_a_row++ == 0) loop_.post([&] { in_a_row = 0; });
                                   most_in_a_row = std::max(most_in_a_row, in_a_row);
                                   if (in_a_row < kManyInARow) another();  // The pipe is never empty.
                                 },
                             .on_exit = [&](ExitStatus s) { exit = s; }});
  ASSERT_TRUE(p) << p.error().to_string();
  ASSERT_TRUE(loop_.run_until([&] { return writer != 0; }, kLimit));
  pipe = env::Fd(::open(str("/proc/", writer, "/fd/1").c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
  ASSERT_TRUE(pipe);
  another();
  (*p)->stop(seconds(1));
  EXPECT_TRUE(loop_.run_until([&] { return exit.has_value(); }, kLimit));
  EXPECT_GT(most_in_a_row, 0);
  EXPECT_LT(most_in_a_row, kManyInARow);
  EXPECT_EQ(::kill(writer, SIGKILL), 0) << "it left the group, and nobody ended it";
}

TEST_F(ProcessTest, DestroyingEndsItSilently) {
  Outcome run;
  auto p = processes_.spawn(shell("echo ready; sleep 1000"), run.events());
  ASSERT_TRUE(p);
  ASSERT_TRUE(loop_.run_until([&] { return run.out.size() == 1; }, kLimit));
  const pid_t pid = (*p)->pid();
  p->reset();
  EXPECT_FALSE(alive(pid));
  EXPECT_FALSE(run.exit);
}

TEST_F(ProcessTest, DestroyingInsideItsOwnCallbacks) {
  std::unique_ptr<env::Process> p;
  int lines = 0;
  p = std::move(
      *processes_.spawn(shell("echo 1; echo 2; echo 3; sleep 1000"), {.on_line =
                                                                          [&](OutputStream, std::string_view) {
                                                                            ++lines;
                                                                            p.reset();
                                                                          },
                                                                      .on_exit = {}}));
  ASSERT_TRUE(loop_.run_until([&] { return !p; }, kLimit));
  EXPECT_EQ(lines, 1);
  bool ended = false;
  p = std::move(*processes_.spawn(shell("true"), {.on_line = {}, .on_exit = [&](ExitStatus) {
                                                    p.reset();
                                                    ended = true;
                                                  }}));
  ASSERT_TRUE(loop_.run_until([&] { return ended; }, kLimit));
}

}  // namespace
}  // namespace holo::driver
