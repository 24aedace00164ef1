#include "driver/posix/machine_reading.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>

#include "base/strings.h"

namespace holo::driver {
namespace {

constexpr int kMaxZones = 64, kMaxTrips = 16;

std::optional<std::int64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::int64_t n = 0;
  if (!(file >> n)) return std::nullopt;
  return n;
}

/// "some avg10=1.25 avg60=...": in percent.
std::optional<double> memory_pressure(const std::string& root) {
  std::ifstream file(root + "/proc/pressure/memory");
  std::string kind, average;
  if (!(file >> kind >> average) || kind != "some" || !average.starts_with("avg10=")) return std::nullopt;
  char* end = nullptr;
  const double percent = std::strtod(average.c_str() + 6, &end);
  if (end == average.c_str() + 6) return std::nullopt;
  return std::clamp(percent / 100, 0.0, 1.0);
}

std::optional<double> memory_available(const std::string& root) {
  std::ifstream file(root + "/proc/meminfo");
  std::string key;
  double kib = 0, total = 0, available = -1;
  while (file >> key >> kib) {
    if (key == "MemTotal:") total = kib;
    if (key == "MemAvailable:") available = kib;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  if (total <= 0 || available < 0) return std::nullopt;
  return available / total;
}

/// In thousandths of a degree; only zones that name a critical point, and a sensible one.
std::optional<double> heat(const std::string& root) {
  std::optional<double> hottest;
  for (int zone = 0; zone < kMaxZones; ++zone) {
    const std::string at = str(root, "/sys/class/thermal/thermal_zone", zone);
    const auto now = read_number(at + "/temp");
    if (!now) break;
    for (int trip = 0; trip < kMaxTrips; ++trip) {
      std::ifstream file(str(at, "/trip_point_", trip, "_type"));
      std::string type;
      if (!(file >> type)) break;
      const auto critical = read_number(str(at, "/trip_point_", trip, "_temp"));
      if (type != "critical" || !critical || *critical < 20'000) continue;
      hottest = std::max(hottest.value_or(0), static_cast<double>(*now) / static_cast<double>(*critical));
    }
  }
  return hottest;
}

}  // namespace

env::MachineReading read_machine(const std::string& root) {
  return {.memory_pressure = memory_pressure(root),
          .memory_available = memory_available(root),
          .heat = heat(root),
          .disk_failing = false};
}

}  // namespace holo::driver
