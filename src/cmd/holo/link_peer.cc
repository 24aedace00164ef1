// Orders and figures between `holo bench link` and its peers.
#include "cmd/holo/link_peer.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>

#include "base/strings.h"
#include "driver/posix/errno_text.h"

namespace holo::cmd {
namespace {

constexpr int kAnswerWithin = 120'000;  // ms

Status run_on(int core) {
  if (core < 0) return {};
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(core), &set);
  if (::sched_setaffinity(0, sizeof set, &set) == 0) return {};
  return fail(Errc::refused, str("cannot run on core ", core, ": ", driver::errno_text(errno)));
}

/// 64 hexadecimal digits.
std::optional<LinkKey> parse_key(const std::string& hex) {
  LinkKey key;
  if (hex.size() != 2 * LinkKey::kBytes) return std::nullopt;
  for (std::size_t i = 0; i < LinkKey::kBytes; ++i) {
    unsigned byte = 0;
    const char* at = hex.data() + 2 * i;
    if (std::from_chars(at, at + 2, byte, 16).ptr != at + 2) return std::nullopt;
    key.writable()[i] = static_cast<std::byte>(byte);
  }
  return key;
}

std::string figures(const std::vector<double>& values) {
  std::ostringstream out;
  out.precision(9);
  out << "ok";
  for (const double v : values) out << ' ' << v;
  return out.str();
}

Outcome<std::vector<double>> obey(LinkClient& client, const std::string& what, unsigned count) {
  if (what == "round_trips") return client.round_trips(count);
  if (what == "handshakes") return client.handshakes(count);
  if (what == "heartbeats_idle") return client.heartbeats(count, LinkClient::Beside::nothing);
  if (what == "heartbeats_bulk") return client.heartbeats(count, LinkClient::Beside::bulk);
  if (what == "faulted_reads") return client.faulted_reads(count);
  if (what == "faulted_upgrades") return client.faulted_upgrades(count);
  if (what == "throughput") {
    HOLO_ASSIGN(rate, client.throughput(count));
    return std::vector{rate};
  }
  if (what == "keep_idle") {
    HOLO_TRY(client.keep_idle(count));
    return std::vector<double>{};
  }
  if (what == "rest") {
    HOLO_TRY(client.rest(count));
    return std::vector<double>{};
  }
  return usage(str("\"", what, "\" is nothing that can be measured"));
}

Outcome<int> serve_orders(LinkClient& client) {
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream words(text);
    std::string what;
    unsigned count = 0;
    words >> what >> count;
    const auto result = obey(client, what, count);
    std::cout << (result ? figures(*result) : "failed " + result.error().error.message) << std::endl;
  }
  return kDone;
}

}  // namespace

void announce_link_server(const std::string& address) { std::cout << address << std::endl; }

Outcome<int> run_link_peer(const LinkPeerOptions& o) {
  std::string hex;
  std::getline(std::cin, hex);
  const auto key = parse_key(hex);
  if (!key) return usage("a link peer reads its key from standard input");
  HOLO_TRY(run_on(o.core));
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {  // Idle connections have a socket each at the client.
    files.rlim_cur = files.rlim_max;
    (void)::setrlimit(RLIMIT_NOFILE, &files);
  }
  const bool bare = o.engine == "bare";
  if (!o.listen.empty()) return bare ? serve_bare_link(o, *key) : serve_holo_link(o, *key);
  HOLO_ASSIGN(client, bare ? make_bare_client(o, *key) : make_holo_client(o, *key));
  return serve_orders(*client);
}

// --- the parent's side

Outcome<std::unique_ptr<LinkPeer>> LinkPeer::start(const LinkPeerOptions& o, const std::string& key,
                                                   const AgentPlace& place) {
  std::vector<std::string> args = {"holo",     "bench",  "link-peer", "--engine", o.engine,   "--mtu",
                                   str(o.mtu), "--core", str(o.core), "--page",   str(o.page)};
  if (!o.listen.empty()) args.insert(args.end(), {"--listen", o.listen});
  if (!o.server.empty()) args.insert(args.end(), {"--server", o.server});
  if (o.poll) args.emplace_back("--poll");
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);

  int in[2], out[2];
  if (::pipe2(in, O_CLOEXEC) != 0) return fail(Errc::io_error, "cannot make a pipe");
  const env::Fd child_in(in[0]);
  std::unique_ptr<LinkPeer> peer(new LinkPeer);
  peer->input_ = env::Fd(in[1]);
  if (::pipe2(out, O_CLOEXEC) != 0) return fail(Errc::io_error, "cannot make a pipe");
  peer->output_ = env::Fd(out[0]);
  const env::Fd child_out(out[1]);
  peer->pid_ = ::fork();
  if (peer->pid_ < 0) return fail(Errc::io_error, "cannot start a link peer");
  if (peer->pid_ == 0) {
    if (place.cpu_group && ::write(place.cpu_group.get(), "0", 1) != 1) ::_exit(126);
    if (place.network && ::setns(place.network.get(), CLONE_NEWNET) != 0) ::_exit(126);
    ::dup2(child_in.get(), STDIN_FILENO);
    ::dup2(child_out.get(), STDOUT_FILENO);
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::execv("/proc/self/exe", argv.data());
    ::_exit(127);
  }
  const std::string first = key + "\n";
  if (::write(peer->input_.get(), first.data(), first.size()) != static_cast<ssize_t>(first.size())) {
    return fail(Errc::io_error, "a link peer does not take its key");
  }
  if (!o.listen.empty()) {
    HOLO_ASSIGN(address, peer->line());
    peer->address_ = std::move(address);
  }
  return peer;
}

LinkPeer::~LinkPeer() {
  input_.reset();
  output_.reset();
  if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
}

Outcome<std::string> LinkPeer::line() {
  std::size_t end = 0;
  while ((end = pending_.find('\n')) == std::string::npos) {
    pollfd wait{.fd = output_.get(), .events = POLLIN, .revents = 0};
    char text[65536];
    if (::poll(&wait, 1, kAnswerWithin) <= 0) return fail(Errc::deadline_exceeded, "a link peer does not answer");
    const auto n = ::read(output_.get(), text, sizeof text);
    if (n <= 0) return fail(Errc::unavailable, "a link peer has ended");
    pending_.append(text, static_cast<std::size_t>(n));
  }
  std::string out = pending_.substr(0, end);
  pending_.erase(0, end + 1);
  return out;
}

Outcome<std::vector<double>> LinkPeer::order(const std::string& text) {
  const std::string whole = text + "\n";
  if (::write(input_.get(), whole.data(), whole.size()) != static_cast<ssize_t>(whole.size())) {
    return fail(Errc::unavailable, "a link peer has ended");
  }
  HOLO_ASSIGN(answer, line());
  std::istringstream words(answer);
  std::string word;
  words >> word;
  if (word != "ok") return fail(Errc::unavailable, str(text, ": ", answer));
  std::vector<double> out;
  for (double v = 0; words >> v;) out.push_back(v);
  return out;
}

std::uint64_t LinkPeer::resident() const {
  std::ifstream file(str("/proc/", pid_, "/statm"));
  std::uint64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

Duration LinkPeer::used() const {
  std::ifstream file(str("/proc/", pid_, "/schedstat"));
  std::int64_t ns = 0;
  file >> ns;
  return nanoseconds(ns);
}

}  // namespace holo::cmd
