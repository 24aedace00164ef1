#include "cmd/holo/etcd_peer.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/strings.h"
#include "cmd/holo/child.h"
#include "env/fd.h"

namespace holo::cmd {
namespace {

constexpr std::size_t kMembers = 3;
constexpr auto kLeaderLimit = std::chrono::seconds(30);

Result<std::string> free_address() {
  const env::Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof a;
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&a), size) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&a), &size) != 0) {
    return fail(Errc::io_error, "no free port");
  }
  return str("127.0.0.1:", ntohs(a.sin_port));
}

/// One request of its JSON gateway; empty when there is no answer.
std::string ask(const std::string& address, const std::string& path) {
  const auto colon = address.rfind(':');
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(static_cast<std::uint16_t>(std::stoul(address.substr(colon + 1))));
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const env::Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval limit{.tv_sec = 1, .tv_usec = 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) return {};
  const std::string request = str("POST ", path, " HTTP/1.0\r\nHost: ", address, "\r\nContent-Length: 2\r\n\r\n{}");
  if (::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0) return {};
  std::string answer;
  char bytes[4096];
  for (ssize_t n = 0; (n = ::recv(fd.get(), bytes, sizeof bytes, 0)) > 0;) {
    answer.append(bytes, static_cast<std::size_t>(n));
  }
  const auto body = answer.find("\r\n\r\n");
  return body == std::string::npos ? std::string() : answer.substr(body + 4);
}

}  // namespace

bool EtcdPeer::installed() { return ::access(find_program("etcd").c_str(), X_OK) == 0; }

Result<std::unique_ptr<EtcdPeer>> EtcdPeer::start() {
  std::unique_ptr<EtcdPeer> peer(new EtcdPeer);
  std::string folder = (std::filesystem::temp_directory_path() / "holo-bench-etcd-XXXXXX").string();
  if (::mkdtemp(folder.data()) == nullptr) return fail(Errc::io_error, "cannot make a folder for etcd");
  peer->folder_ = folder;
  for (std::size_t i = 0; i < kMembers; ++i) {
    HOLO_ASSIGN(address, free_address());
    HOLO_ASSIGN(peer_address, free_address());
    peer->addresses_.push_back(address);
    peer->peers_.push_back(peer_address);
    peer->pids_.push_back(-1);
  }
  for (std::size_t i = 0; i < kMembers; ++i) HOLO_TRY(peer->restart(i));
  HOLO_TRY(peer->leader());
  return peer;
}

EtcdPeer::~EtcdPeer() {
  for (std::size_t i = 0; i < pids_.size(); ++i) kill(i);
  std::error_code ignored;
  if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
}

void EtcdPeer::kill(std::size_t member) {
  pid_t& pid = pids_[member];
  if (pid <= 0) return;
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  pid = -1;
}

Status EtcdPeer::restart(std::size_t member) {
  std::string all;
  for (std::size_t i = 0; i < kMembers; ++i) all += str(i ? "," : "", "m", i, "=http://", peers_[i]);
  const std::string client = "http://" + addresses_[member], between = "http://" + peers_[member];
  std::vector<std::string> args{find_program("etcd"),
                                "--name",
                                str("m", member),
                                "--data-dir",
                                str(folder_, "/m", member),
                                "--listen-client-urls",
                                client,
                                "--advertise-client-urls",
                                client,
                                "--listen-peer-urls",
                                between,
                                "--initial-advertise-peer-urls",
                                between,
                                "--initial-cluster",
                                all,
                                "--quota-backend-bytes",
                                "8000000000",
                                "--log-level",
                                "error"};
  std::vector<char*> argv;
  for (std::string& a : args) argv.push_back(a.data());
  argv.push_back(nullptr);
  const std::string log = str(folder_, "/m", member, ".log");
  const pid_t pid = ::fork();
  if (pid < 0) return fail(Errc::io_error, "cannot start etcd");
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    const int fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    ::dup2(fd, 1);
    ::dup2(fd, 2);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  pids_[member] = pid;
  return {};
}

Result<std::size_t> EtcdPeer::leader() {
  const auto limit = std::chrono::steady_clock::now() + kLeaderLimit;
  while (std::chrono::steady_clock::now() < limit) {
    for (std::size_t i = 0; i < kMembers; ++i) {
      if (pids_[i] <= 0) continue;
      const auto status = nlohmann::json::parse(ask(addresses_[i], "/v3/maintenance/status"), nullptr, false);
      if (!status.is_object() || !status.contains("leader") || !status.contains("header")) continue;
      if (status["leader"] == status["header"].value("member_id", std::string())) return i;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return fail(Errc::unavailable, "etcd has found no leader", "its logs: " + folder_);
}

}  // namespace holo::cmd
