// holo bench idle: the processor time of agents with nothing to do, beside an event loop that only has their timers.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/strings.h"
#include "cmd/holo/background.h"
#include "cmd/holo/bench.h"
#include "driver/posix/asio_loop.h"
#include "env/fd.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr Duration kProbe = milliseconds(200);  // What a node does when nothing happens: internals, "Liveness".
constexpr Duration kHeartbeat = milliseconds(500);
constexpr Duration kLogTick = milliseconds(100);

/// Processor time of a process and of its ended children, in clock ticks.
std::uint64_t ticks_of(pid_t pid) {
  std::ifstream file(str("/proc/", pid, "/stat"));
  std::string text;
  std::getline(file, text, '\0');  // A process may end while it is read: this fails then, an iterator throws.
  auto at = text.rfind(')');
  std::uint64_t sum = 0;
  for (int field = 2; at != std::string::npos && field <= 17; ++field) {
    if (field >= 14) {  // utime, stime, cutime, cstime
      std::uint64_t value = 0;
      std::from_chars(text.data() + at + 1, text.data() + text.size(), value);
      sum += value;
    }
    at = text.find(' ', at + 1);
  }
  return sum;
}

double percent(std::uint64_t ticks, double seconds) {
  return 100.0 * static_cast<double>(ticks) / static_cast<double>(::sysconf(_SC_CLK_TCK)) / seconds;
}

/// The reference as a child; it ends when `input` closes.
struct Child {
  pid_t pid = -1;
  env::Fd input;
  ~Child() {
    input.reset();
    if (pid > 0) ::waitpid(pid, nullptr, 0);
  }
};

Status start_reference(Child& child) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail(Errc::io_error, "cannot make a pipe");
  child.input = env::Fd(ends[1]);
  const env::Fd read_end(ends[0]);
  child.pid = ::fork();
  if (child.pid < 0) return fail(Errc::io_error, "cannot start the reference");
  if (child.pid == 0) {
    ::dup2(read_end.get(), 0);
    ::execl("/proc/self/exe", "holo", "bench", "reference-idle", nullptr);
    ::_exit(127);
  }
  return {};
}

}  // namespace

Outcome<BenchReport> bench_idle(const BenchOptions& o) {
  HOLO_ASSIGN(own, OwnCluster::start(o, 64 << 20));
  const auto& cluster = own->dev();
  Child reference;
  HOLO_TRY(start_reference(reference));
  std::this_thread::sleep_for(std::chrono::seconds(2));  // The start is not part of being idle.

  std::vector<std::uint64_t> before;
  for (const auto& n : cluster.nodes()) before.push_back(ticks_of(n.process.pid));
  const auto reference_before = ticks_of(reference.pid);
  const auto start = Clock::now();
  std::this_thread::sleep_for(std::chrono::duration<double>(o.seconds));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();

  std::uint64_t used = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    const auto& node = cluster.nodes()[i];
    if (!node.running())
      return fail(Errc::unavailable, str("node", node.number, " ended while it was idle"),
                  "its log: " + node.log_file());
    used += ticks_of(node.process.pid) - before[i];
  }
  const double ours = percent(used, seconds) / static_cast<double>(before.size());
  const double theirs = percent(ticks_of(reference.pid) - reference_before, seconds);
  return BenchReport{.bench = "idle",
                     .layout = own->layout(),
                     .nodes = o.nodes,
                     .seconds = seconds,
                     .results = {{.name = "cpu_percent",
                                  .unit = "% of a core",
                                  .ours = ours,
                                  .reference = theirs,
                                  .reference_is = "an empty event loop with the same timers"}}};
}

Outcome<int> reference_idle() {
  driver::AsioLoop loop;
  std::function<void(Duration)> again = [&](Duration period) {
    loop.call_at(loop.now() + period, [&, period] { again(period); });
  };
  loop.post([&] {
    again(kProbe);
    again(kHeartbeat);
    again(kLogTick);
  });
  driver::FdWatch input(loop, env::Fd(::dup(STDIN_FILENO)), {.on_readable = [&] { loop.stop(); }, .on_writable = {}});
  loop.post([&] { input.want_read(true); });
  loop.run();
  return kDone;
}

}  // namespace holo::cmd
