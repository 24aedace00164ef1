#include "cmd/holo/machine.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <limits>
#include <memory>
#include <vector>

#include "base/bytes.h"
#include "base/random.h"
#include "base/strings.h"
#include "crypto/hash.h"

namespace holo::cmd {
namespace {

/// Steps of the measured loop that one core of the reference machine does in a second.
constexpr double kReferenceStepsPerSecond = 4.5e8;

}  // namespace

std::uint32_t core_count() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return static_cast<std::uint32_t>(std::max(1, CPU_COUNT(&set)));
}

std::string machine_label() {
  std::ifstream file("/etc/machine-id");
  std::string id;
  if (!(file >> id) || id.size() != 32) {
    char name[256] = {};
    (void)::gethostname(name, sizeof name - 1);
    id = name;
  }
  // As machine-id(5) asks: what is shown is made from it, and tells nothing about it.
  return "m-" + to_hex(crypto::blake3_64(as_bytes("holo: label of the machine: " + id))).substr(0, 12);
}

std::uint64_t memory_bytes() {
  struct sysinfo info{};
  return ::sysinfo(&info) == 0 ? static_cast<std::uint64_t>(info.totalram) * info.mem_unit : 0;
}

std::uint64_t available_memory_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::uint64_t kib = 0;
  while (file >> key >> kib) {
    if (key == "MemAvailable:") return kib << 10;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

std::vector<std::string> own_addresses(bool also_v6) {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return {"127.0.0.1"};
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(list, ::freeifaddrs);
  std::string v4, v6;
  for (const auto* i = list; i; i = i->ifa_next) {
    if (!i->ifa_addr || !(i->ifa_flags & IFF_UP) || (i->ifa_flags & IFF_LOOPBACK)) continue;
    char text[INET6_ADDRSTRLEN];
    if (i->ifa_addr->sa_family == AF_INET && v4.empty()) {
      const auto* a = reinterpret_cast<const sockaddr_in*>(i->ifa_addr);
      if (::inet_ntop(AF_INET, &a->sin_addr, text, sizeof text)) v4 = text;
    } else if (i->ifa_addr->sa_family == AF_INET6 && v6.empty()) {
      const auto* a = reinterpret_cast<const sockaddr_in6*>(i->ifa_addr);
      // A link-local address means nothing without the interface it belongs to.
      if (!IN6_IS_ADDR_LINKLOCAL(&a->sin6_addr) && ::inet_ntop(AF_INET6, &a->sin6_addr, text, sizeof text)) {
        v6 = std::string("[") + text + "]";
      }
    }
  }
  std::vector<std::string> out;
  if (!v4.empty()) out.push_back(std::move(v4));
  if (!v6.empty() && (also_v6 || out.empty())) out.push_back(std::move(v6));
  if (out.empty()) out.emplace_back("127.0.0.1");
  return out;
}

SpeedMeasurement measure_speed() {
  using Clock = std::chrono::steady_clock;
  constexpr std::uint64_t kSteps = 400'000;
  std::vector<double> rounds;
  std::uint64_t sum = 0;
  for (int round = 0; round < kSpeedRounds; ++round) {
    const auto start = Clock::now();
    for (std::uint64_t i = 0; i < kSteps; ++i) sum += mix64(sum ^ i);
    const std::chrono::duration<double> took = Clock::now() - start;
    rounds.push_back(static_cast<double>(kSteps) / std::max(took.count(), 1e-9) / kReferenceStepsPerSecond);
  }
  std::ranges::sort(rounds);
  // The best one: the others were interrupted. The sum is used, or the loop would be optimised away.
  const double best = rounds.back() + (sum == 0 ? 1e-9 : 0);
  return {.best = best, .spread = (best - rounds[rounds.size() / 2]) / best};
}

}  // namespace holo::cmd
