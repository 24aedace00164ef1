// holo ping: round trips to another node, over the link that all its requests take.
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <vector>

#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/units.h"
#include "node/ping.h"

namespace holo::cmd {
namespace {

constexpr std::size_t kMostSamples = 1 << 16;  // Of longer runs the last so many.
constexpr Duration kAgentSlack = seconds(5);   // For the agent itself, beyond what the other node may take.

struct PingOptions {
  TargetOptions target;
  std::string node;
  std::string size = "56";
  std::uint64_t count = 0;  // 0: until interrupted
  double interval = 1.0, timeout = 2.0;
  bool json = false;
};

/// While it lives, SIGINT and SIGTERM are asked for instead of ending the process.
class Interrupts {
 public:
  Interrupts() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  }
  ~Interrupts() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  /// True when one comes within `seconds`, or has come before.
  [[nodiscard]] bool within(double seconds) const {
    const double whole = std::floor(seconds);
    const timespec limit{.tv_sec = static_cast<time_t>(whole), .tv_nsec = static_cast<long>((seconds - whole) * 1e9)};
    return ::sigtimedwait(&signals_, nullptr, &limit) > 0;
  }

 private:
  sigset_t signals_{}, before_{};
};

/// What came back.
struct Tally {
  std::uint64_t sent = 0, received = 0;
  double sum_us = 0, min_us = 0, max_us = 0;
  std::vector<double> samples;
  nlohmann::json last;  // the agent's last answer

  void add(double us) {
    min_us = received == 0 ? us : std::min(min_us, us);
    max_us = std::max(max_us, us);
    sum_us += us;
    if (samples.size() < kMostSamples) {
      samples.push_back(us);
    } else {
      samples[received % kMostSamples] = us;
    }
    ++received;
  }
  [[nodiscard]] double mean_us() const { return received == 0 ? 0 : sum_us / static_cast<double>(received); }
  [[nodiscard]] double quantile_us(double q) const {
    if (samples.empty()) return 0;
    std::vector<double> sorted = samples;
    std::ranges::sort(sorted);
    return sorted[static_cast<std::size_t>(std::ceil(q * static_cast<double>(sorted.size()))) - 1];
  }
  [[nodiscard]] double loss_percent() const {
    return sent == 0 ? 0 : 100.0 * static_cast<double>(sent - received) / static_cast<double>(sent);
  }
};

std::string ms(double us) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f", us / 1000.0);
  return text;
}

std::string text_of(const nlohmann::json& object, const char* key) { return object.value(key, std::string()); }

void print_answer(const Tally& tally) {
  const auto& a = tally.last;
  if (!a["answered"]) {
    std::cout << "no answer from " << text_of(a, "node") << ": seq=" << tally.sent << ": " << text_of(a, "error")
              << "\n";
  } else {
    std::cout << a["bytes"].get<std::uint64_t>() << " bytes from " << text_of(a, "node") << " ("
              << text_of(a, "address") << "): seq=" << tally.sent << " time=" << ms(a["round_trip_us"]) << " ms\n";
  }
  std::cout.flush();
}

void print_statistics(const Tally& tally) {
  const auto& a = tally.last;
  char loss[32];
  std::snprintf(loss, sizeof loss, "%.3g", tally.loss_percent());
  std::cout << "--- " << text_of(a, "node") << " (" << text_of(a, "id") << ") ---\n"
            << tally.sent << " sent, " << tally.received << " received, " << loss << "% loss\n";
  if (tally.received > 0) {
    std::cout << "round trip min/avg/p50/p99/max = " << ms(tally.min_us) << "/" << ms(tally.mean_us()) << "/"
              << ms(tally.quantile_us(0.5)) << "/" << ms(tally.quantile_us(0.99)) << "/" << ms(tally.max_us) << " ms\n";
  }
  if (const auto carrier = text_of(a, "carrier"); !carrier.empty()) {
    const auto mtu = a["path_mtu"].get<std::uint64_t>();
    std::cout << "link " << text_of(a, "address") << ", " << carrier << ", " << text_of(a, "cipher") << ", path MTU "
              << (mtu == 0 ? "unknown" : str(mtu)) << "\n";
  }
}

void print_object(const Tally& tally) {
  nlohmann::json out = tally.last;
  for (const char* of_one : {"answered", "round_trip_us", "error"}) out.erase(of_one);
  out["sent"] = tally.sent;
  out["received"] = tally.received;
  out["loss_percent"] = tally.loss_percent();
  out["round_trip"] = {{"min_us", tally.min_us},
                       {"avg_us", tally.mean_us()},
                       {"p50_us", tally.quantile_us(0.5)},
                       {"p99_us", tally.quantile_us(0.99)},
                       {"max_us", tally.max_us}};
  std::cout << out.dump(2) << "\n";
}

Outcome<int> ping(const PingOptions& o) {
  auto bytes = parse_size(o.size);
  if (!bytes) return usage(bytes.error());
  if (*bytes > node::kMaxPingBytes) {
    return usage(str("--size: ", o.size, " is more than ", format_size(node::kMaxPingBytes)));
  }
  const Interrupts interrupts;  // Before the connection, whose thread inherits what is blocked.
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  wire::PingRequest request;
  request.set_node(o.node);
  request.set_bytes(static_cast<std::uint32_t>(*bytes));
  request.set_timeout_ms(static_cast<std::uint32_t>(o.timeout * 1000));
  const Duration limit = milliseconds(request.timeout_ms()) + kAgentSlack;

  Tally tally;
  while (o.count == 0 || tally.sent < o.count) {
    if (tally.sent > 0 && interrupts.within(o.interval)) break;
    auto answer = link.json(wire::PING, request, limit);
    if (!answer && tally.sent == 0) return std::unexpected(answer.error());
    ++tally.sent;
    if (answer) {
      tally.last = std::move(*answer);
    } else {  // It has left, or was declared dead, or the agent here has gone.
      tally.last["answered"] = false;
      tally.last["error"] = answer.error().to_string();
    }
    if (tally.last["answered"]) tally.add(tally.last["round_trip_us"]);
    if (!o.json) print_answer(tally);
    if (!std::cout || (!answer && answer.error().code == Errc::cancelled)) break;
    if (interrupts.within(0)) break;
  }
  o.json ? print_object(tally) : print_statistics(tally);
  if (tally.received > 0) return kDone;
  return fail(Errc::unavailable, str("nothing came back from node ", o.node),
              "holo status tells which nodes are alive");
}

}  // namespace

void add_ping_command(CommandLine& line) {
  auto o = std::make_shared<PingOptions>();
  auto& app = line.add(line.root(), "ping", "Round trips to another node, and what its link is made of",
                       "holo ping node2 -c 10 -i 0.2", [o] { return ping(*o); });
  app.add_option("NODE", o->node, "The other node's name or id")->required();
  app.add_option("-c,--count", o->count, "Stop after so many (default: until interrupted)")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40));
  app.add_option("-i,--interval", o->interval, "Seconds between two")->check(CLI::Range(0.0, 3600.0));
  app.add_option("-W,--timeout", o->timeout, "Seconds to wait for an answer")->check(CLI::Range(0.001, 60.0));
  app.add_option("--size", o->size, "Bytes in each direction, up to 64KiB");
  app.add_flag("--json", o->json, "One JSON object at the end instead of lines");
  add_target_options(app, o->target);
}

}  // namespace holo::cmd
