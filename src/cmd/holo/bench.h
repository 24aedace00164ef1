// One bench: our figure and its reference in the same run, interleaved; medians; one table or one JSON object.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cmd/holo/agent_link.h"
#include "cmd/holo/dev_cluster.h"
#include "cmd/holo/outcome.h"

namespace holo::cmd {

struct BenchOptions {
  TargetOptions target;  ///< --cluster: that cluster; without, one of its own that is stopped again.
  bool joined = false;   ///< On a cluster that is there; target says which, if there are several.
  std::string to;        ///< The far end of link's; empty: some other node.
  unsigned nodes = 4;
  unsigned repetitions = 5;
  std::string count = "1e8";
  std::string page = "65536";
  std::string layout = "loopback";  ///< Or "net": nodes in namespaces, 0.5 core and 1 Gbit/s each.
  double seconds = 60;
  std::uint64_t mtu = 0;  ///< Of IP packets; 0: 1500.
  bool poll = false;      ///< Loops look for more before they sleep.
  bool quick = false;     ///< One repetition, a hundredth of the samples.
  bool json = false;
};

struct BenchResult {
  std::string name, unit;
  double ours = 0, reference = 0;
  std::string reference_is;
};

struct BenchReport {
  std::string bench, layout;
  unsigned nodes = 0;
  double seconds = 0;
  std::vector<BenchResult> results;
  std::vector<std::string> notes;  ///< Under the table.
};

/// A cluster for one bench, stopped with everything of it when the object goes, or when the bench is told to end
/// (SIGINT, SIGTERM, SIGHUP: it exits with 128 + the signal). One at a time.
class OwnCluster {
 public:
  /// As `options.layout` says. Failures: of `net`, whatever of it this machine cannot give; never another layout.
  static Outcome<std::unique_ptr<OwnCluster>> start(const BenchOptions& options, std::uint64_t memory_bytes);
  /// As `options` say, whatever they are.
  static Outcome<std::unique_ptr<OwnCluster>> start(const DevOptions& options);
  OwnCluster();
  ~OwnCluster();
  OwnCluster(const OwnCluster&) = delete;
  OwnCluster& operator=(const OwnCluster&) = delete;
  [[nodiscard]] const DevCluster& dev() const { return *cluster_; }
  [[nodiscard]] DevCluster& dev() { return *cluster_; }
  /// For the report.
  [[nodiscard]] std::string layout() const;

  /// SIGKILL; when it was sent. Failures: as DevCluster::kill.
  Outcome<std::chrono::steady_clock::time_point> kill(unsigned number);
  /// As DevCluster::restart.
  Outcome<void> restart(unsigned number);
  /// Stops all of them, their state kept; and starts them again, until all are members.
  Outcome<void> stop();
  Outcome<void> start_again();

 private:
  void await_signal();
  Outcome<void> up(const DevOptions& options);
  void down();
  const std::string name_;
  std::optional<DevCluster> cluster_;
  DevOptions options_;
  std::mutex busy_;  ///< Held while the cluster goes up or down.
  std::atomic<bool> over_ = false;
  std::thread watch_;
};

void print_report(const BenchReport& report, bool json);
double median(std::vector<double> values);

Outcome<BenchReport> bench_main(const BenchOptions& options);
Outcome<BenchReport> bench_link(const BenchOptions& options);
/// The same between two agents of a cluster that is there, through their own connection.
Outcome<BenchReport> bench_link_of_agents(const BenchOptions& options);
Outcome<BenchReport> bench_control(const BenchOptions& options);
Outcome<BenchReport> bench_fetch(const BenchOptions& options);
Outcome<BenchReport> bench_fault(const BenchOptions& options);
Outcome<BenchReport> bench_detect(const BenchOptions& options);
Outcome<BenchReport> bench_idle(const BenchOptions& options);

/// The references, run in a process of their own: fill and sum in plain memory, one thread per core (prints seconds);
/// an event loop with an agent's timers and nothing else (runs until its standard input ends).
Outcome<int> reference_main(const BenchOptions& options);
Outcome<int> reference_idle();

}  // namespace holo::cmd
