// holo bench control: what the replicated log carries, how soon it goes on without its leader, and how soon it is back.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include "base/strings.h"
#include "cmd/holo/bench.h"
#include "cmd/holo/etcd_peer.h"
#include "cmd/holo/kv_load.h"
#include "env/fd.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr unsigned kClients = 128;
constexpr double kOpenRate = 5000;
constexpr std::uint64_t kManyKeys = 1'000'000;
constexpr auto kSettle = std::chrono::seconds(2);  // Until everybody has heard everybody, as in a cluster that runs.
constexpr double kLimit = 60;                      // Seconds; what takes longer is a failure.
constexpr const char* kEtcd = "etcd, three members, its own settings, gRPC; clients at its leader";

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Samples {
  std::vector<double> ours, reference;
};
double percentile(std::vector<double> v, double p) {
  if (v.empty()) return 0;
  std::ranges::sort(v);
  return v[std::min(v.size() - 1, static_cast<std::size_t>(p * static_cast<double>(v.size())))];
}

Result<AgentLink> link_to(const DevNode& node) {
  return AgentLink::connect(TargetOptions{.cluster = {}, .state_dir = node.state_dir, .node = {}});
}

Result<std::string> socket_of(const DevNode& node) {
  HOLO_ASSIGN(link, link_to(node));
  return link.agent().socket;
}

/// The node that leads, asked of any that runs.
Outcome<unsigned> leader_of(const DevCluster& cluster) {
  const auto start = Clock::now();
  while (seconds_since(start) < kLimit) {
    for (const DevNode& n : cluster.nodes()) {
      if (!n.running()) continue;
      auto link = link_to(n);
      if (!link) continue;
      const auto status = link->json(wire::STATUS);
      if (!status) continue;
      const auto name = (*status)["cluster"].value("leader_name", std::string());  // "node3"
      if (name.size() <= 4) continue;
      const auto leader = static_cast<unsigned>(std::stoul(name.substr(4)));
      if (cluster.nodes()[leader - 1].running()) return leader;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return fail(Errc::no_quorum, "the cluster has found no leader");
}

/// Live voters, as a node that runs sees them; `nodes` live ones at least. 0: it does not know.
std::size_t live_voters(const DevCluster& cluster) {
  for (const DevNode& n : cluster.nodes()) {
    if (!n.running()) continue;
    auto link = link_to(n);
    if (!link) continue;
    const auto status = link->json(wire::STATUS);
    if (!status) continue;
    std::size_t voters = 0;
    for (const auto& node : (*status)["nodes"]) {
      const auto name = node.value("name", std::string());
      const auto& really = cluster.nodes()[std::stoul(name.substr(4)) - 1];
      voters += node["state"] == "alive" && node["voter"] == true && really.running();
    }
    return voters;
  }
  return 0;
}

Outcome<void> wait_voters(const DevCluster& cluster, std::size_t wanted) {
  const auto start = Clock::now();
  while (live_voters(cluster) != wanted) {
    if (seconds_since(start) > kLimit) return fail(Errc::deadline_exceeded, str("there are not ", wanted, " voters"));
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return {};
}

/// Milliseconds from now to the first write that is sent from now on and committed.
Outcome<double> until_written(KvPeer peer, const std::vector<std::string>& addresses, Clock::time_point start) {
  while (seconds_since(start) < kLimit) {
    for (const std::string& address : addresses) {
      auto load = KvLoad::connect(peer, {address}, 1);
      if (!load) continue;
      const Status done = (*load)->write_once(kLimit);
      if (done) return seconds_since(start) * 1000;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return fail(Errc::deadline_exceeded, "nothing is committed");
}

Outcome<KvFigures> checked(Result<KvFigures> f) {
  HOLO_TRY(f);
  if (f->failed > 0) return fail(Errc::internal, str(f->failed, " writes failed: ", f->first_failure));
  return std::move(*f);
}

/// Milliseconds that this disk takes to make 4 KiB more of a file in `folder` last: no commit of a write is faster.
Outcome<double> sync_floor(const std::string& folder) {
  constexpr int kTimes = 500;
  constexpr std::size_t kBlock = 4096;
  const std::string path = folder + "/sync-floor";
  const env::Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  const std::string block(kBlock, 'x');
  std::vector<double> took;
  for (int i = 0; fd && i < kTimes; ++i) {
    const auto start = Clock::now();
    const bool written =
        ::write(fd.get(), block.data(), block.size()) == static_cast<ssize_t>(kBlock) && ::fdatasync(fd.get()) == 0;
    if (!written) break;
    took.push_back(seconds_since(start) * 1000);
  }
  const int error = errno;
  ::unlink(path.c_str());
  if (took.size() < kTimes) return fail(Errc::io_error, str("cannot write to ", path, ": ", std::strerror(error)));
  return median(std::move(took));
}

/// A reference may refuse some of what it is asked for under such a load; what it did counts, and the table says so.
Outcome<KvFigures> tolerated(Result<KvFigures> f, std::vector<std::string>& notes) {
  HOLO_TRY(f);
  if (f->failed > 0) notes.push_back(str("etcd refused ", f->failed, " of ", f->failed + f->done, " writes"));
  if (f->done == 0) return fail(Errc::internal, str("etcd takes no writes: ", f->first_failure));
  return std::move(*f);
}

class ControlBench {
 public:
  explicit ControlBench(const BenchOptions& o) : options_(o), repetitions_(o.quick ? 1 : o.repetitions) {}

  Outcome<BenchReport> run() {
    const auto start = Clock::now();
    BenchOptions three = options_;
    three.nodes = 3;
    if (EtcdPeer::installed()) {
      HOLO_ASSIGN(etcd, EtcdPeer::start());
      etcd_ = std::move(etcd);
    } else {
      report_.notes.emplace_back("etcd is not installed (apt-get install etcd-server): there is no reference");
    }
    {
      HOLO_ASSIGN(own, OwnCluster::start(three, 64 << 20));
      report_.layout = own->layout();
      HOLO_TRY(writes(*own));
      HOLO_TRY(failover(*own));
      HOLO_TRY(restart(*own));
    }
    etcd_.reset();
    HOLO_TRY(heal());
    report_.bench = "control";
    report_.nodes = 3;
    report_.seconds = seconds_since(start);
    return std::move(report_);
  }

 private:
  void add(std::string name, std::string unit, double ours, double reference, const char* is = kEtcd) {
    report_.results.push_back(
        {.name = std::move(name), .unit = std::move(unit), .ours = ours, .reference = reference, .reference_is = is});
  }

  Outcome<std::unique_ptr<KvLoad>> ours(OwnCluster& own, unsigned clients) {
    HOLO_ASSIGN(leader, leader_of(own.dev()));
    HOLO_ASSIGN(socket, socket_of(own.dev().nodes()[leader - 1]));
    HOLO_ASSIGN(load, KvLoad::connect(KvPeer::holo, {socket}, clients));
    return load;
  }
  Outcome<std::unique_ptr<KvLoad>> theirs(unsigned clients) {
    HOLO_ASSIGN(leader, etcd_->leader());
    HOLO_ASSIGN(load, KvLoad::connect(KvPeer::etcd, {etcd_->addresses()[leader]}, clients));
    return load;
  }

  Outcome<void> writes(OwnCluster& own) {
    const double seconds = options_.quick ? 0.5 : 3;
    HOLO_ASSIGN(mine, ours(own, kClients));
    std::unique_ptr<KvLoad> peer;
    if (etcd_) {
      HOLO_ASSIGN(connected, theirs(kClients));
      peer = std::move(connected);
    }
    Samples rate, p50;
    const auto once = [&](KvLoad& load, std::vector<double>& rates, std::vector<double>& medians,
                          bool counts) -> Outcome<void> {
      const bool reference = &load == peer.get();
      const auto judge = [&](Result<KvFigures> f) {
        return reference ? tolerated(std::move(f), report_.notes) : checked(std::move(f));
      };
      HOLO_ASSIGN(closed, judge(load.closed_loop(seconds)));
      HOLO_ASSIGN(open, judge(load.open_loop(kOpenRate, seconds)));
      if (!counts) return {};
      rates.push_back(static_cast<double>(closed.done) / closed.seconds);
      medians.push_back(percentile(std::move(open.latencies_ms), 0.5));
      return {};
    };
    for (unsigned i = 0; i < repetitions_ + 1; ++i) {  // The first warms up.
      HOLO_TRY(once(*mine, rate.ours, p50.ours, i > 0));
      if (peer) HOLO_TRY(once(*peer, rate.reference, p50.reference, i > 0));
    }
    add("writes_per_s", "1/s", median(rate.ours), median(rate.reference));
    add("write_p50", "ms", median(p50.ours), median(p50.reference));
    HOLO_ASSIGN(floor, sync_floor(own.dev().nodes().front().state_dir));
    add("fdatasync_p50", "ms", floor, 0,
        "none: one fdatasync of the disk that all agents share, the floor of write_p50");
    return {};
  }

  /// Kill -9 of the leader to the next commit, at one of the other two.
  Outcome<void> failover(OwnCluster& own) {
    Samples ms;
    for (unsigned i = 0; i < repetitions_; ++i) {
      HOLO_TRY(wait_voters(own.dev(), 3));
      HOLO_ASSIGN(leader, leader_of(own.dev()));
      std::vector<std::string> sockets;
      for (const DevNode& n : own.dev().nodes()) {
        if (n.number == leader) continue;
        HOLO_ASSIGN(socket, socket_of(n));
        sockets.push_back(std::move(socket));
      }
      HOLO_ASSIGN(began, own.kill(leader));
      HOLO_ASSIGN(took, until_written(KvPeer::holo, sockets, began));
      ms.ours.push_back(took);
      HOLO_TRY(own.restart(leader));
      if (!etcd_) continue;
      HOLO_ASSIGN(led, etcd_->leader());
      std::vector<std::string> others;
      for (std::size_t m = 0; m < etcd_->addresses().size(); ++m) {
        if (m != led) others.push_back(etcd_->addresses()[m]);
      }
      const auto killed = Clock::now();
      etcd_->kill(led);
      HOLO_ASSIGN(waited, until_written(KvPeer::etcd, others, killed));
      ms.reference.push_back(waited);
      HOLO_TRY(etcd_->restart(led));
    }
    HOLO_TRY(wait_voters(own.dev(), 3));
    add("failover_p50", "ms", median(ms.ours), median(ms.reference));
    add("failover_max", "ms", percentile(ms.ours, 1), percentile(ms.reference, 1));
    return {};
  }

  /// All stopped, all started, to the first linearizable read, with a million keys.
  Outcome<void> restart(OwnCluster& own) {
    const std::uint64_t keys = options_.quick ? kManyKeys / 100 : kManyKeys;
    const unsigned times = options_.quick ? 1 : std::min(repetitions_, 3U);
    Samples s;
    {
      HOLO_ASSIGN(load, ours(own, 16));
      HOLO_TRY(checked(load->fill(keys)));
      if (etcd_) {
        HOLO_ASSIGN(peer, theirs(16));
        HOLO_TRY(checked(peer->fill(keys)));
      }
    }
    for (unsigned i = 0; i < times; ++i) {
      HOLO_ASSIGN(socket, socket_of(own.dev().nodes().front()));
      HOLO_TRY(own.stop());
      double took = 0;
      Clock::time_point began = Clock::now();
      std::thread reader([&] { took = until_read(KvPeer::holo, socket, began); });
      const auto up = own.start_again();
      reader.join();
      HOLO_TRY(up);
      if (took == 0) return fail(Errc::deadline_exceeded, "the cluster does not come back");
      s.ours.push_back(took);
      if (!etcd_) continue;
      for (std::size_t m = 0; m < etcd_->addresses().size(); ++m) etcd_->kill(m);
      began = Clock::now();
      for (std::size_t m = 0; m < etcd_->addresses().size(); ++m) HOLO_TRY(etcd_->restart(m));
      took = until_read(KvPeer::etcd, etcd_->addresses().front(), began);
      if (took == 0) return fail(Errc::deadline_exceeded, "etcd does not come back");
      s.reference.push_back(took);
    }
    add(options_.quick ? "restart_10k" : "restart_1m", "s", median(s.ours), median(s.reference));
    return {};
  }

  /// 0: not within the limit.
  static double until_read(KvPeer peer, const std::string& address, Clock::time_point began) {
    while (seconds_since(began) < kLimit) {
      if (auto load = KvLoad::connect(peer, {address}, 1)) {
        if ((*load)->read_once(kLimit)) return seconds_since(began);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return 0;
  }

  /// Kill -9 of the leader of three voters until there are three live voters again: the fourth node is one then.
  Outcome<void> heal() {
    BenchOptions four = options_;
    four.nodes = 4;
    Samples s;
    for (unsigned i = 0; i < (options_.quick ? 1 : std::min(repetitions_, 3U)); ++i) {
      HOLO_ASSIGN(own, OwnCluster::start(four, 64 << 20));
      HOLO_TRY(wait_voters(own->dev(), 3));
      std::this_thread::sleep_for(kSettle);
      HOLO_ASSIGN(leader, leader_of(own->dev()));
      HOLO_ASSIGN(began, own->kill(leader));
      HOLO_TRY(wait_voters(own->dev(), 3));
      s.ours.push_back(seconds_since(began));
    }
    add("heal", "s", median(s.ours), 0, "none: etcd replaces no member by itself");
    return {};
  }

  const BenchOptions options_;
  const unsigned repetitions_;
  std::unique_ptr<EtcdPeer> etcd_;
  BenchReport report_;
};

}  // namespace

Outcome<BenchReport> bench_control(const BenchOptions& o) { return ControlBench(o).run(); }

}  // namespace holo::cmd
