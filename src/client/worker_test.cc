// The worker loop as the agent sees it, in this very test program: started with a worker's environment, it must run the
// library's loop, never gtest's main().
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include <holo/holo.hpp>

#include "client/executable.h"
#include "client/worker.h"
#include "driver/posix/asio_loop.h"
#include "driver/posix/local_socket.h"
#include "driver/posix/process.h"
#include "wire/local.pb.h"

namespace holo::client {
namespace {

void double_it(detail::TaskContext& t) {
  std::uint64_t v = 0;
  std::memcpy(&v, t.captures.data(), sizeof(v));
  detail::encode(t.result, 2 * v);
}
void throw_it(detail::TaskContext&) { throw std::runtime_error("boom"); }
void throw_int(detail::TaskContext&) { throw 7; }
void leave(detail::TaskContext&) { std::exit(3); }
void crash(detail::TaskContext&) { ::raise(SIGSEGV); }
void print(detail::TaskContext&) { std::puts("from the task"); }
void too_much(detail::TaskContext& t) { t.result.resize(9 << 20); }

constexpr std::uint64_t kToken = 0x1234567890ABCDEF;

/// One worker process and the agent's end of its socket.
class WorkerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto pair = driver::make_socket_pair();
    ASSERT_TRUE(pair);
    server_.serve(wire::HELLO, [this](std::shared_ptr<env::LocalConnection> c, env::LocalRequest request) {
      hello_.ParseFromString(request.header);
      connection_ = std::move(c);
      return welcome();
    });
    server_.on_closed([this](const auto&) { closed_ = true; });
    ASSERT_TRUE(server_.adopt(std::move(pair->first)));
    env::ProcessSpec spec;
    spec.program = executable_path();
    spec.args = {"worker"};
    spec.env = {"HOLO_WORKER_FD=3", "HOLO_WORKER_TOKEN=" + std::to_string(kToken)};
    for (const char* name : {"ASAN_OPTIONS", "TSAN_OPTIONS"}) {
      if (const char* value = std::getenv(name)) spec.env.push_back(std::string(name) + "=" + value);
    }
    spec.fds.push_back({3, std::move(pair->second)});
    env::ProcessEvents events;
    events.on_line = [this](env::OutputStream, std::string_view line) { output_ += std::string(line) + "\n"; };
    events.on_exit = [this](env::ExitStatus s) { exit_ = s; };
    auto process = processes_.spawn(std::move(spec), std::move(events));
    ASSERT_TRUE(process) << process.error().message;
    process_ = std::move(*process);
    ASSERT_TRUE(loop_.run_until([this] { return connection_ != nullptr || exit_; }, seconds(20)));
    ASSERT_TRUE(connection_) << output_;
  }

  static Task<Result<env::LocalReply>> welcome() {
    env::LocalReply reply;
    reply.header = wire::HelloReply().SerializeAsString();
    co_return reply;
  }
  Task<void> ask(wire::TaskRun task) {
    env::LocalRequest request;
    request.type = wire::TASK_RUN;
    request.header = task.SerializeAsString();
    answer_ = co_await connection_->call(std::move(request), kNever);
    answered_ = true;
  }
  Result<Bytes> run(detail::TaskFunction function, std::string captures = {}) {
    wire::TaskRun task;
    task.set_function(function_offset(function).value());
    task.set_captures(std::move(captures));
    answered_ = false;
    loop_.spawn(ask(std::move(task)));
    EXPECT_TRUE(loop_.run_until([this] { return answered_; }, seconds(20)));
    if (!answer_) return std::unexpected(answer_.error());
    Bytes out;
    for (const auto& b : answer_->payload) out.insert(out.end(), b.span().begin(), b.span().end());
    return out;
  }

  driver::AsioLoop loop_;
  driver::PosixProcesses processes_{loop_};
  driver::LocalSocketServer server_{loop_};
  std::unique_ptr<env::Process> process_;
  std::shared_ptr<env::LocalConnection> connection_;
  wire::Hello hello_;
  std::string output_;
  std::optional<env::ExitStatus> exit_;
  bool closed_ = false;
  bool answered_ = false;
  Result<env::LocalReply> answer_;
};

TEST_F(WorkerTest, SaysHelloWithItsTokenInsteadOfRunningMain) {
  EXPECT_EQ(hello_.role(), wire::Hello::WORKER);
  EXPECT_EQ(hello_.worker_token(), kToken);
  EXPECT_EQ(output_.find("Running"), std::string::npos) << "gtest's main() ran in the worker";
}

TEST_F(WorkerTest, RunsFunctionsByOffsetOneAfterTheOther) {
  for (std::uint64_t v = 1; v < 20; ++v) {
    const auto result = run(&double_it, std::string(reinterpret_cast<const char*>(&v), sizeof(v)));
    ASSERT_TRUE(result) << result.error().message;
    EXPECT_EQ(detail::decode<std::uint64_t>(*result).value(), 2 * v);
  }
}

TEST_F(WorkerTest, AnExceptionIsAnErrorAndTheWorkerGoesOn) {
  auto result = run(&throw_it);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::task_failed);
  EXPECT_NE(result.error().message.find("std::runtime_error"), std::string::npos) << result.error().message;
  EXPECT_NE(result.error().message.find("boom"), std::string::npos) << result.error().message;
  result = run(&throw_int);
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().message.find("int"), std::string::npos) << result.error().message;
  EXPECT_TRUE(run(&print));
}

TEST_F(WorkerTest, AResultBeyondTheLimitIsAnError) {
  const auto result = run(&too_much);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::task_failed);
}

TEST_F(WorkerTest, AnOffsetOutsideTheCodeIsRefused) {
  wire::TaskRun task;
  task.set_function(1ULL << 40);
  loop_.spawn(ask(std::move(task)));
  ASSERT_TRUE(loop_.run_until([this] { return answered_; }, seconds(20)));
  ASSERT_FALSE(answer_);
  EXPECT_EQ(answer_.error().code, Errc::invalid_argument);
}

TEST_F(WorkerTest, WhatATaskPrintsArrives) {
  ASSERT_TRUE(run(&print));
  EXPECT_TRUE(loop_.run_until([this] { return output_.find("from the task") != std::string::npos; }, seconds(20)));
}

TEST_F(WorkerTest, AnExitInATaskEndsTheWorkerWithItsStatus) {
  EXPECT_FALSE(run(&leave));
  ASSERT_TRUE(loop_.run_until([this] { return exit_.has_value(); }, seconds(20)));
  EXPECT_EQ(exit_->code, 3);
}

TEST_F(WorkerTest, ACrashShowsItsSignal) {
  EXPECT_FALSE(run(&crash));
  ASSERT_TRUE(loop_.run_until([this] { return exit_.has_value(); }, seconds(20)));
  EXPECT_EQ(exit_->signal, SIGSEGV);
}

TEST_F(WorkerTest, EndsWhenTheAgentIsGone) {
  connection_->close();
  ASSERT_TRUE(loop_.run_until([this] { return exit_.has_value(); }, seconds(20)));
  EXPECT_EQ(exit_->code, 0);
}

}  // namespace
}  // namespace holo::client
