// holo bench main: the whole path of quadratic_sum against the same loops in one plain process.
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <holo/holo.hpp>
#include <iostream>
#include <memory>
#include <optional>
#include <thread>

#include "base/limits.h"
#include "base/strings.h"
#include "cmd/holo/bench.h"
#include "cmd/holo/machine.h"
#include "cmd/holo/units.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kReferenceIs = "the same loops in one plain process, one thread per core";

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Sum of i^2 + 3i + 1 for i < n, modulo 2^64.
std::uint64_t expected_sum(std::uint64_t n) {
  __extension__ using Wide = unsigned __int128;
  if (n == 0) return 0;
  const Wide m = n - 1;
  // m (m + 1) (2 m + 1) / 6 would not fit before the division: divide factor by factor.
  Wide a = m, b = m + 1, c = 2 * m + 1;
  (a % 2 == 0 ? a : b) /= 2;
  (a % 3 == 0 ? a : b % 3 == 0 ? b : c) /= 3;
  const auto squares = static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b) * static_cast<std::uint64_t>(c);
  const auto triangle = static_cast<std::uint64_t>(m * (m + 1) / 2);
  return squares + 3 * triangle + n;
}

/// Allocate, fill, sync, reduce; the seconds that took. The array is freed outside of the measured time.
Outcome<double> run_ours(Cluster& cluster, std::uint64_t count, std::uint64_t page_bytes, std::uint32_t replication) {
  const std::string name = str("bench/quadratic_sum-", ::getpid());
  const auto start = Clock::now();
  HOLO_ASSIGN(xs, cluster.array<std::uint64_t>(name, count, {.replication = replication, .page_bytes = page_bytes}));
  HOLO_TRY(cluster
               .parallel_for(xs,
                             [](Chunk<std::uint64_t> c) {
                               for (std::uint64_t i = c.first(); i < c.last(); ++i) c[i] = i * i + 3 * i + 1;
                             })
               .wait());
  HOLO_TRY(xs.sync());
  HOLO_ASSIGN(total, cluster.reduce(xs, std::uint64_t{0}, std::plus<>{}).get());
  const double took = seconds_since(start);
  HOLO_TRY(cluster.free(name));
  if (total != expected_sum(count)) {
    return fail(Errc::internal, str("the sum is ", total, ", it should be ", expected_sum(count)),
                "this is a defect of holo");
  }
  return took;
}

/// The reference in a process of its own: this program again, so that the loops are compiled alike.
Outcome<double> run_reference(std::uint64_t count) {
  const auto command = str("/proc/", ::getpid(), "/exe bench reference-main --count ", count);
  FILE* pipe = ::popen(command.c_str(), "re");
  if (!pipe) return fail(Errc::io_error, "cannot start the reference");
  double took = 0;
  const int read = std::fscanf(pipe, "%lf", &took);
  if (::pclose(pipe) != 0 || read != 1) return fail(Errc::io_error, "the reference did not run to its end");
  return took;
}

}  // namespace

Outcome<BenchReport> bench_main(const BenchOptions& o) {
  const auto began = Clock::now();
  const auto count = parse_count(o.count);
  if (!count || *count == 0) return usage(str("--count: \"", o.count, "\" is not a number of elements"));
  const auto page = parse_size(o.page);
  if (!page) return usage(page.error());

  std::unique_ptr<OwnCluster> own;
  BenchReport report{.bench = "main", .layout = "loopback", .nodes = o.nodes, .seconds = 0, .results = {}};
  if (o.target.cluster.empty()) {
    // Two copies of all pages, over all nodes, and room for what is staged while it is written.
    const auto needed = *count * 8 * 2 * 3 / 2 / o.nodes + (64 << 20);
    HOLO_ASSIGN(started, OwnCluster::start(o, needed / limits::kMaxPageBytes * limits::kMaxPageBytes));
    own = std::move(started);
    report.layout = own->layout();
  }
  TargetOptions target = o.target;
  if (own) target.state_dir = own->dev().nodes().front().state_dir;
  HOLO_ASSIGN(agent, find_agent(target));
  ::setenv("HOLO_SOCKET", agent.socket.c_str(), 1);
  HOLO_ASSIGN(cluster, connect());
  report.nodes = cluster.nodes();

  struct Case {
    const char* name;
    std::uint32_t replication;
    std::vector<double> ours, reference;
  };
  std::vector<Case> cases = {{"quadratic_sum", 1, {}, {}}};
  if (report.nodes >= 2) cases.push_back({"quadratic_sum_r2", 2, {}, {}});
  for (unsigned round = 0; round <= o.repetitions; ++round) {
    for (auto& c : cases) {
      HOLO_ASSIGN(ours, run_ours(cluster, *count, *page, c.replication));
      HOLO_ASSIGN(reference, run_reference(*count));
      if (round == 0) continue;  // To warm up: workers start, memory is touched for the first time.
      c.ours.push_back(ours);
      c.reference.push_back(reference);
    }
  }
  for (const auto& c : cases) {
    report.results.push_back({.name = c.name,
                              .unit = "s",
                              .ours = median(c.ours),
                              .reference = median(c.reference),
                              .reference_is = kReferenceIs});
  }
  report.seconds = seconds_since(began);
  return report;
}

Outcome<int> reference_main(const BenchOptions& o) {
  const auto count = parse_count(o.count);
  if (!count || *count == 0) return usage("--count needs a number of elements");
  const auto threads = core_count();
  const auto start = Clock::now();
  const std::unique_ptr<std::uint64_t[]> xs(new std::uint64_t[*count]);
  const auto parallel = [&](const std::function<void(unsigned, std::uint64_t, std::uint64_t)>& f) {
    std::vector<std::jthread> running;
    for (unsigned t = 0; t < threads; ++t) running.emplace_back(f, t, *count * t / threads, *count * (t + 1) / threads);
  };
  parallel([&](unsigned, std::uint64_t first, std::uint64_t last) {
    for (std::uint64_t i = first; i < last; ++i) xs[i] = i * i + 3 * i + 1;
  });
  std::vector<std::uint64_t> sums(threads);
  parallel([&](unsigned t, std::uint64_t first, std::uint64_t last) {
    std::uint64_t sum = 0;
    for (std::uint64_t i = first; i < last; ++i) sum += xs[i];
    sums[t] = sum;
  });
  std::uint64_t total = 0;
  for (const auto s : sums) total += s;
  const double took = seconds_since(start);
  if (total != expected_sum(*count)) return fail(Errc::internal, "the reference's sum is wrong");
  std::cout << took << "\n";
  return kDone;
}

}  // namespace holo::cmd
