#include "cmd/holo/cpu_score.h"

#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/log.h"
#include "base/strings.h"
#include "driver/posix/files.h"

namespace holo::cmd {
namespace {

constexpr std::uint32_t kMethod = 1;  // Of measure_speed(); another one gives other numbers.
constexpr std::size_t kMaxFile = 4096;

/// "AMD EPYC 7B13, 2 cores".
std::string machine_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string model = "unknown";
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const auto colon = line.find(": ");
    if (colon != std::string::npos) model = line.substr(colon + 2);
    break;
  }
  return str(model, ", ", core_count(), " cores");
}

std::optional<wire::CpuScore> read(const std::string& path, const std::string& machine) {
  const auto text = driver::read_text_file(path, kMaxFile);
  if (!text) return std::nullopt;
  const auto j = nlohmann::json::parse(*text, nullptr, false);
  if (!j.is_object() || !j.contains("method") || j["method"] != kMethod || !j.contains("measured_on") ||
      j["measured_on"] != machine) {
    return std::nullopt;
  }
  const auto number = [&](const char* key) {
    return j.contains(key) && j[key].is_number() ? j[key].get<double>() : std::nan("");
  };
  wire::CpuScore out;
  out.set_speed(number("speed"));
  out.set_spread(number("spread"));
  out.set_rounds(kSpeedRounds);
  out.set_measured_on(machine);
  const double when = number("measured_ms");
  const bool sane = out.speed() > 0.001 && out.speed() < 1000 && out.spread() >= 0 && out.spread() <= 1 && when >= 0;
  if (!sane || when > 9e15) return std::nullopt;
  out.set_measured_ms(static_cast<std::int64_t>(when));
  return out;
}

}  // namespace

wire::CpuScore cpu_score(const std::string& state_dir) { return cpu_score(state_dir, machine_name(), measure_speed); }

wire::CpuScore cpu_score(const std::string& state_dir, const std::string& machine,
                         const std::function<SpeedMeasurement()>& measure) {
  const std::string path = state_dir + "/cpu_score.json";
  if (auto kept = read(path, machine)) return *kept;
  const SpeedMeasurement measured = measure();
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  wire::CpuScore out;
  out.set_speed(measured.best);
  out.set_spread(measured.spread);
  out.set_rounds(kSpeedRounds);
  out.set_measured_on(machine);
  out.set_measured_ms(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
  const nlohmann::json j = {{"method", kMethod},
                            {"speed", out.speed()},
                            {"spread", out.spread()},
                            {"measured_on", machine},
                            {"measured_ms", out.measured_ms()}};
  const std::string text = j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  const auto kept = driver::write_file_atomically(path, as_bytes(text));
  if (!kept) log_warn("agent", "the speed of this machine is measured again at the next start: ", kept.error().message);
  return out;
}

}  // namespace holo::cmd
