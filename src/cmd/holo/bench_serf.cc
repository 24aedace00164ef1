#include "cmd/holo/bench_serf.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <sstream>
#include <thread>

#include "base/strings.h"
#include "env/fd.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr double kLimit = 60;

bool installed() {
  const char* path = ::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (::access((folder + "/serf").c_str(), X_OK) == 0) return true;
  }
  return false;
}

/// A port that is free now; 0: none.
unsigned free_port() {
  const env::Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof a;
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), size) != 0) return 0;
  if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&a), &size) != 0) return 0;
  return ntohs(a.sin_port);
}

double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

}  // namespace

Outcome<std::unique_ptr<SerfCluster>> SerfCluster::start(unsigned nodes) {
  if (!installed()) return std::unique_ptr<SerfCluster>();
  std::unique_ptr<SerfCluster> out(new SerfCluster);
  out->agents_.resize(nodes);
  for (unsigned i = 0; i < nodes; ++i) {
    out->agents_[i].port = free_port();
    out->agents_[i].rpc_port = free_port();
    HOLO_TRY(out->start_agent(i));
  }
  HOLO_TRY(out->wait_for_all());
  return out;
}

SerfCluster::~SerfCluster() {
  for (const Agent& a : agents_) {
    if (a.pid <= 0) continue;
    ::kill(a.pid, SIGKILL);
    ::waitpid(a.pid, nullptr, 0);
  }
}

Status SerfCluster::start_agent(unsigned node) {
  Agent& a = agents_[node];
  const std::string name = str("-node=s", node);
  const std::string bind = str("-bind=127.0.0.1:", a.port);
  const std::string rpc = str("-rpc-addr=127.0.0.1:", a.rpc_port);
  const std::string join = str("-retry-join=127.0.0.1:", agents_[node == 0 ? 1 : 0].port);
  a.pid = ::fork();
  if (a.pid < 0) return fail(Errc::io_error, "cannot start serf");
  if (a.pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    const int null = ::open("/dev/null", O_RDWR);
    for (const int fd : {0, 1, 2}) ::dup2(null, fd);
    ::execlp("serf", "serf", "agent", name.c_str(), bind.c_str(), rpc.c_str(), "-retry-interval=1s", join.c_str(),
             nullptr);
    ::_exit(127);
  }
  return {};
}

/// Members in that state, by what this agent says.
unsigned SerfCluster::count(unsigned node, const char* state) const {
  const std::string command =
      str("serf members -status=", state, " -rpc-addr=127.0.0.1:", agents_[node].rpc_port, " 2>/dev/null");
  FILE* out = ::popen(command.c_str(), "r");
  if (out == nullptr) return 0;
  unsigned lines = 0;
  std::array<char, 512> line{};
  while (::fgets(line.data(), static_cast<int>(line.size()), out) != nullptr) lines += line[0] == '\n' ? 0 : 1;
  ::pclose(out);
  return lines;
}

Outcome<void> SerfCluster::wait_for_all() {
  const auto from = Clock::now();
  for (unsigned i = 0; i < agents_.size();) {
    if (count(i, "alive") == agents_.size()) {
      ++i;
      continue;
    }
    if (since(from) > kLimit)
      return fail(Errc::deadline_exceeded, "serf's agents did not find each other within a minute");
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return {};
}

Outcome<double> SerfCluster::crash(unsigned node) {
  Agent& a = agents_[node];
  const auto from = Clock::now();
  ::kill(a.pid, SIGKILL);
  ::waitpid(std::exchange(a.pid, -1), nullptr, 0);
  for (unsigned i = 0; i < agents_.size();) {
    if (i == node || count(i, "failed") > 0) {
      ++i;
      continue;
    }
    if (since(from) > kLimit) return fail(Errc::deadline_exceeded, "serf did not see a crash within a minute");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  const double took = since(from);
  HOLO_TRY(start_agent(node));
  HOLO_TRY(wait_for_all());
  return took;
}

}  // namespace holo::cmd
