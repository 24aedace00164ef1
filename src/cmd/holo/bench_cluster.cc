// The cluster that a bench starts for itself, in the layout that was asked for, and takes away again.
#include <signal.h>
#include <unistd.h>

#include "base/strings.h"
#include "cmd/holo/bench.h"
#include "cmd/holo/machine.h"
#include "cmd/holo/units.h"

namespace holo::cmd {
namespace {

constexpr double kNetCpus = 0.5;
constexpr std::uint64_t kNetRate = 1'000'000'000;

sigset_t end_signals() {
  sigset_t out;
  sigemptyset(&out);
  for (const int s : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&out, s);
  return out;
}

}  // namespace

OwnCluster::OwnCluster() : name_(str("bench-", ::getpid())) {
  const auto signals = end_signals();
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // All threads from here on inherit it; one waits for them.
  watch_ = std::thread([this] { await_signal(); });
}

OwnCluster::~OwnCluster() {
  over_ = true;
  ::pthread_kill(watch_.native_handle(), SIGTERM);
  watch_.join();
  down();
  const auto signals = end_signals();
  ::pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
}

void OwnCluster::await_signal() {
  const auto signals = end_signals();
  int signal = 0;
  ::sigwait(&signals, &signal);
  if (over_) return;
  down();
  ::_exit(128 + signal);
}

Outcome<void> OwnCluster::up(const DevOptions& options) {
  const std::scoped_lock lock(busy_);  // A signal meanwhile waits: what is half up is hard to take down.
  options_ = options;
  HOLO_ASSIGN(cluster, DevCluster::up(name_, options));
  cluster_.emplace(std::move(cluster));
  return {};
}

void OwnCluster::down() {
  const std::scoped_lock lock(busy_);
  if (cluster_) (void)cluster_->down({.keep_state = false});
  cluster_.reset();
}

Outcome<std::unique_ptr<OwnCluster>> OwnCluster::start(const BenchOptions& o, std::uint64_t memory_bytes) {
  DevOptions options{.nodes = o.nodes, .memory_bytes = memory_bytes};
  if (o.layout == "net") {
    options.cpus = kNetCpus;
    options.net_rate = kNetRate;
    if (o.nodes * kNetCpus > core_count()) {
      return fail(Errc::refused,
                  str(o.nodes, " nodes of half a core need more than this machine's ", core_count(), " cores"),
                  "choose fewer with -n");
    }
  }
  return start(options);
}

Outcome<std::unique_ptr<OwnCluster>> OwnCluster::start(const DevOptions& options) {
  auto own = std::make_unique<OwnCluster>();
  HOLO_TRY(own->up(options));
  return own;
}

Outcome<std::chrono::steady_clock::time_point> OwnCluster::kill(unsigned number) {
  const std::scoped_lock lock(busy_);
  const auto now = std::chrono::steady_clock::now();
  HOLO_TRY(cluster_->kill(number));
  return now;
}

Outcome<void> OwnCluster::restart(unsigned number) {
  const std::scoped_lock lock(busy_);
  return cluster_->restart(number);
}

Outcome<void> OwnCluster::stop() {
  const std::scoped_lock lock(busy_);
  return cluster_->down({.keep_state = true});
}

Outcome<void> OwnCluster::start_again() {
  {
    const std::scoped_lock lock(busy_);
    cluster_.reset();  // It holds the folder's lock.
  }
  return up(options_);
}

std::string OwnCluster::layout() const {
  const auto* net = dev().net();
  return net ? str("net: 0.5 core and ", format_rate(net->rate_bits), " each") : "loopback";
}

}  // namespace holo::cmd
