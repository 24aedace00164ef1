#include "sim/runner.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstring>
#include <string_view>

#include "base/strings.h"

namespace holo::sim {
namespace {

Status run_seed(const Scenario& s, std::uint64_t seed, Tally& tally, const RunOptions& options) {
  return s.run_with != nullptr ? s.run_with(seed, tally, options) : s.run(seed, tally);
}

/// A child that runs every `stride`-th seed, and tells what happens in lines: "+SEED" begun, "-SEED" kept its promises,
/// "!SEED WHAT" did not, "=NAME COUNT" of the tally of the seed that just ended.
struct Worker {
  pid_t pid = -1;
  int fd = -1;
  std::uint64_t next = 0;  ///< The seed after the one that was begun last.
  std::uint64_t running = 0;
  bool busy = false;
  std::string text;
  Tally tally;
};

void tell(int fd, const std::string& line) {
  std::string_view rest = line;
  while (!rest.empty()) {
    const ssize_t n = ::write(fd, rest.data(), rest.size());
    if (n <= 0) ::_exit(3);
    rest.remove_prefix(static_cast<std::size_t>(n));
  }
}

[[noreturn]] void work(const Scenario& s, const Batch& batch, std::uint64_t first, int fd) {
  for (std::uint64_t seed = first; seed < batch.first + batch.seeds; seed += batch.jobs) {
    ::alarm(batch.limit_s);
    tell(fd, str("+", seed, "\n"));
    Tally tally;
    const Status verdict = run_seed(s, seed, tally, batch.run);
    std::string lines;
    for (const auto& [name, count] : tally) lines += str("=", name, " ", count, "\n");
    if (verdict) {
      lines += str("-", seed, "\n");
    } else {
      std::string what = verdict.error().to_string();
      std::ranges::replace(what, '\n', ' ');
      lines += str("!", seed, " ", what, "\n");
    }
    tell(fd, lines);
  }
  ::_exit(0);
}

Worker start(const Scenario& s, const Batch& batch, std::uint64_t first, const std::vector<Worker>& others) {
  Worker w;
  w.next = first;
  int ends[2];
  if (::pipe(ends) != 0) return w;
  w.pid = ::fork();
  if (w.pid == 0) {
    ::close(ends[0]);
    for (const Worker& other : others) {
      if (other.fd >= 0) ::close(other.fd);
    }
    work(s, batch, first, ends[1]);
  }
  ::close(ends[1]);
  w.fd = ends[0];
  return w;
}

std::uint64_t number_of(std::string_view text) {
  std::uint64_t out = 0;
  std::from_chars(text.data(), text.data() + text.size(), out);
  return out;
}

void take_line(Worker& w, std::string_view line, const Batch& batch, Report& report) {
  const std::string_view rest = line.substr(1);
  switch (line[0]) {
    case '+':
      w.running = number_of(rest);
      w.next = w.running + batch.jobs;
      w.busy = true;
      w.tally.clear();
      return;
    case '=': {
      const std::size_t blank = rest.find(' ');
      w.tally[std::string(rest.substr(0, blank))] = number_of(rest.substr(blank + 1));
      return;
    }
    case '!':
      report.failures.push_back({w.running, std::string(rest.substr(std::min(rest.find(' ') + 1, rest.size())))});
      [[fallthrough]];
    case '-':
      w.busy = false;
      ++report.ran;
      add_tally(report.tally, w.tally);
      return;
    default: return;
  }
}

/// False when the worker has ended.
bool read_from(Worker& w, const Batch& batch, Report& report) {
  char bytes[65536];
  const ssize_t n = ::read(w.fd, bytes, sizeof bytes);
  if (n <= 0) return false;
  w.text.append(bytes, static_cast<std::size_t>(n));
  std::size_t at = 0;
  for (std::size_t end; (end = w.text.find('\n', at)) != std::string::npos; at = end + 1) {
    take_line(w, std::string_view(w.text).substr(at, end - at), batch, report);
  }
  w.text.erase(0, at);
  return true;
}

std::string ending(int status) {
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) return "it does not end";
  if (WIFSIGNALED(status))
    return str("the process ended with signal ", WTERMSIG(status), ", ", strsignal(WTERMSIG(status)));
  return str("the process ended with ", WEXITSTATUS(status));
}

Report run_here(const Scenario& s, const Batch& batch) {
  Report report;
  for (std::uint64_t seed = batch.first; seed < batch.first + batch.seeds; ++seed) {
    Tally tally;
    const Status verdict = run_seed(s, seed, tally, batch.run);
    ++report.ran;
    add_tally(report.tally, tally);
    if (!verdict) report.failures.push_back({seed, verdict.error().to_string()});
    if (report.failures.size() >= batch.most_failures) break;
  }
  return report;
}

}  // namespace

void add_tally(Tally& to, const Tally& from) {
  for (const auto& [name, count] : from) {
    std::uint64_t& sum = to[name];
    if (name.starts_with("slowest")) {
      sum = std::max(sum, count);
    } else if (name == "digest") {
      sum ^= count;
    } else {
      sum += count;
    }
  }
}

Report run_batch(const Scenario& scenario, const Batch& batch) {
  if (batch.run.trace || batch.jobs < 2 || batch.seeds < 2) return run_here(scenario, batch);
  Report report;
  std::vector<Worker> workers(batch.jobs);
  for (std::uint64_t i = 0; i < batch.jobs; ++i) workers[i] = start(scenario, batch, batch.first + i, workers);
  const auto running = [&] { return std::ranges::any_of(workers, [](const Worker& w) { return w.fd >= 0; }); };
  while (running()) {
    std::vector<pollfd> polls;
    for (const Worker& w : workers) polls.push_back({.fd = w.fd, .events = POLLIN, .revents = 0});
    if (::poll(polls.data(), polls.size(), -1) < 0) continue;
    for (std::size_t i = 0; i < workers.size(); ++i) {
      Worker& w = workers[i];
      if (w.fd < 0 || polls[i].revents == 0 || read_from(w, batch, report)) continue;
      ::close(w.fd);
      w.fd = -1;
      int status = 0;
      ::waitpid(w.pid, &status, 0);
      if (!w.busy) continue;
      ++report.ran;
      report.failures.push_back({w.running, ending(status)});
      if (report.failures.size() < batch.most_failures && w.next < batch.first + batch.seeds) {
        w = start(scenario, batch, w.next, workers);
      }
    }
    if (report.failures.size() < batch.most_failures) continue;
    for (Worker& w : workers) {
      if (w.fd < 0) continue;
      ::kill(w.pid, SIGKILL);
      ::close(w.fd);
      w.fd = -1;
      ::waitpid(w.pid, nullptr, 0);
    }
  }
  std::ranges::sort(report.failures, {}, &SeedFailure::seed);
  return report;
}

}  // namespace holo::sim
