// holo doctor: what this machine offers, and what the absence of each thing costs.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timex.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/config.h"
#include "cmd/holo/machine.h"
#include "cmd/holo/table.h"
#include "cmd/holo/units.h"
#include "driver/posix/files.h"
#include "driver/uffd/uffd_faults.h"
#include "env/fd.h"

namespace holo::cmd {
namespace {

enum class Health : std::uint8_t { good, limited, missing };

struct Finding {
  std::string name;
  Health health = Health::good;
  std::string found;
  std::string cost;  ///< What it costs that it is not better; empty when good.
};

bool can_open(const char* path, int flags) { return static_cast<bool>(env::Fd(::open(path, flags | O_CLOEXEC))); }

Finding userfaultfd() {
  switch (driver::probe_fault_mode()) {
    case env::FaultMode::full: return {"userfaultfd", Health::good, "full", ""};
    case env::FaultMode::user_mode_only:
      return {"userfaultfd", Health::limited, "faults of user code only",
              "system calls on mapped memory need the range populated first (the library does it for its own calls); "
              "sysctl vm.unprivileged_userfaultfd=1 or access to /dev/userfaultfd gives the rest"};
    case env::FaultMode::none: break;
  }
  return {"userfaultfd", Health::missing, "none",
          "a view is read whole when it is mapped, and compared with its base at sync()"};
}

Finding kvm() {
  if (can_open("/dev/kvm", O_RDWR)) return {"KVM", Health::good, "/dev/kvm opens", ""};
  return {"KVM", Health::missing, str("/dev/kvm: ", std::strerror(errno)),
          "no virtual machines over the cluster's memory (nothing uses them yet)"};
}

Finding cgroups() {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const bool v2 = fs::exists("/sys/fs/cgroup/cgroup.controllers", ignored);
  const bool v1 = fs::exists("/sys/fs/cgroup/cpu", ignored);
  const char* cost = "workers cannot be given a share of the cores or a bound of their own memory";
  if (!v1 && !v2) return {"cgroups", Health::missing, "none mounted", cost};
  const char* place = v2 ? "/sys/fs/cgroup/cgroup.procs" : "/sys/fs/cgroup/cpu/cgroup.procs";
  if (::access(place, W_OK) != 0)
    return {"cgroups", Health::limited, v2 ? "v2, not writable here" : "v1, not writable here", cost};
  return {"cgroups", Health::good, v2 ? "v2, writable" : "v1, writable", ""};
}

Finding gpu() {
  namespace fs = std::filesystem;
  std::error_code ignored;
  int count = 0;
  for (int i = 0; i < 64; ++i) count += fs::exists(str("/dev/nvidia", i), ignored);
  for (const auto& entry : fs::directory_iterator("/dev/dri", ignored))
    count += entry.path().filename().string().starts_with("renderD");
  if (count > 0) return {"GPU", Health::good, str(count, count == 1 ? " device" : " devices"), ""};
  return {"GPU", Health::missing, "none", "tasks run on the CPU (nothing uses a GPU yet)"};
}

Finding clock() {
  timex t{};
  const int state = ::adjtimex(&t);
  if (state >= 0 && state != TIME_ERROR && !(t.status & STA_UNSYNC)) return {"clock", Health::good, "synchronised", ""};
  return {"clock", Health::limited, "not synchronised by the kernel's account",
          "times in logs of different machines do not line up; nothing else depends on it"};
}

Finding port() {
  env::Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(kDefaultPort);
  if (fd && ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0) {
    return {"port", Health::good, str("TCP ", kDefaultPort, " is free"), ""};
  }
  return {"port", Health::limited, str("TCP ", kDefaultPort, ": ", std::strerror(errno)),
          "an agent of this machine has it, or a new one needs --listen with another port"};
}

Finding memory() {
  const auto all = memory_bytes(), available = available_memory_bytes();
  const auto found = str(format_size(available), " of ", format_size(all), " available");
  if (available >= (1ULL << 30)) return {"memory", Health::good, found, ""};
  return {"memory", Health::limited, found,
          "an agent offers half of the installed memory by default: give --memory less"};
}

Finding shared_memory() {
  // Frames are memfds, which the kernel counts as tmpfs pages: a container's limit shows in its cgroup.
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::ifstream file(path);
    std::uint64_t limit = 0;
    if (!(file >> limit) || limit > memory_bytes()) continue;
    return {"memory limit", Health::limited, format_size(limit),
            "pages above it get this process killed: keep --memory below it"};
  }
  return {"memory limit", Health::good, "none on this group of processes", ""};
}

Finding files() {
  rlimit r{};
  ::getrlimit(RLIMIT_NOFILE, &r);
  const auto found = str(r.rlim_cur, " (may be raised to ", r.rlim_max, ")");
  if (r.rlim_max >= 16384) return {"open files", Health::good, found, ""};
  return {"open files", Health::limited, found,
          "fewer programs and connections at once; ulimit -n, or LimitNOFILE= of the service"};
}

Finding disk() {
  const auto directory = driver::default_state_directory();
  if (!directory) return {"state directory", Health::missing, directory.error().message, "agents need --state-dir"};
  std::filesystem::path place = *directory;
  std::error_code ignored;
  while (!std::filesystem::exists(place, ignored) && place.has_relative_path()) place = place.parent_path();
  const auto space = driver::disk_space(place.string());
  const auto found = str(*directory, ", ", space ? format_size(space->free_bytes) + " free" : space.error().message);
  if (::access(place.c_str(), W_OK) != 0)
    return {"state directory", Health::missing, str(*directory, ": ", std::strerror(errno)), "agents need --state-dir"};
  if (space && space->free_bytes >= (1ULL << 30)) return {"state directory", Health::good, found, ""};
  return {"state directory", Health::limited, found,
          "when it is full nothing more can be committed, and pages are not kept over a restart"};
}

Finding runtime_directory() {
  const auto directory = driver::default_runtime_directory();
  if (!directory.empty()) return {"runtime directory", Health::good, directory, ""};
  return {"runtime directory", Health::limited, "XDG_RUNTIME_DIR is not set",
          "sockets lie in the state directory, whose path must then be short"};
}

std::vector<Finding> examine() {
  return {userfaultfd(), kvm(),  cgroups(),          gpu(), clock(), port(), memory(), shared_memory(),
          files(),       disk(), runtime_directory()};
}

Outcome<int> doctor(bool json) {
  static constexpr std::array kNames = {"good", "limited", "missing"};
  const auto findings = examine();
  if (json) {
    nlohmann::json list = nlohmann::json::array();
    for (const auto& f : findings) {
      list.push_back({{"name", f.name},
                      {"health", kNames[static_cast<std::size_t>(f.health)]},
                      {"found", f.found},
                      {"cost", f.cost}});
    }
    std::cout << nlohmann::json({{"checks", list}}).dump(2) << "\n";
    return kDone;
  }
  Table table({"WHAT", "", "FOUND"});
  for (const auto& f : findings) table.row({f.name, kNames[static_cast<std::size_t>(f.health)], f.found});
  std::cout << table.text();
  for (const auto& f : findings) {
    if (!f.cost.empty()) std::cout << "\n" << f.name << ": " << f.cost << "\n";
  }
  return kDone;
}

}  // namespace

void add_doctor_command(CommandLine& line) {
  auto json = std::make_shared<bool>(false);
  auto& app = line.add(line.root(), "doctor", "What this machine offers, and what the absence of each thing costs",
                       "holo doctor", [json] { return doctor(*json); });
  app.add_flag("--json", *json, "One JSON object");
}

}  // namespace holo::cmd
