#include "driver/posix/cpu_group.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

#include "base/strings.h"
#include "driver/posix/errno_text.h"

namespace holo::driver {
namespace {

constexpr long long kLeastQuota = 1000;  // Microseconds: the kernel refuses less, so below 0.1 core the period grows.
constexpr auto kRetry = std::chrono::milliseconds(5);

std::vector<std::string_view> split(std::string_view text, char by) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    const auto end = std::min(text.find(by), text.size());
    if (end > 0) out.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

bool has_word(std::string_view text, char by, std::string_view word) {
  const auto words = split(text, by);
  return std::ranges::find(words, word) != words.end();
}

/// Files of the kernel cannot be asked for their size.
std::string content(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

Status write_value(const std::string& path, const std::string& value) {
  const env::Fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) return fail_errno(errno, "cannot write " + path);
  if (::write(file.get(), value.data(), value.size()) < 0) {
    if (errno == EINVAL) return fail(Errc::invalid_argument, str("cannot write ", value, " to ", path));
    return fail_errno(errno, "cannot write " + path);
  }
  return {};
}

struct Mount {
  std::string_view root, point, type, options;
};

/// "31 23 0:28 ROOT POINT options [optional fields] - TYPE source SUPER-OPTIONS"
std::optional<Mount> parse_mount(std::string_view line) {
  const auto words = split(line, ' ');
  const auto dash = std::ranges::find(words, "-");
  if (words.size() < 8 || words.end() - dash < 4) return std::nullopt;
  return Mount{.root = words[3], .point = words[4], .type = dash[1], .options = dash[3]};
}

/// "1:cpu,cpuacct:/path" of version 1, "0::/path" of version 2; the path in the hierarchy of
/// `controller`; empty: of version 2.
std::optional<std::string_view> own_path(std::string_view groups, std::string_view controller) {
  for (const auto line : split(groups, '\n')) {
    const auto first = line.find(':');
    const auto second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const auto controllers = line.substr(first + 1, second - first - 1);
    const bool found = controller.empty() ? controllers.empty() : has_word(controllers, ',', controller);
    if (found) return line.substr(second + 1);
  }
  return std::nullopt;
}

/// The folder of `own` where a mount shows the hierarchy from `root` on. A group outside of it (a container that sees
/// another part) is taken for the mount's top.
std::string folder_of(const Mount& mount, std::string_view own) {
  std::string folder(mount.point);
  if (mount.root != "/" && !own.starts_with(mount.root)) return folder;
  const auto below = mount.root == "/" ? own : own.substr(mount.root.size());
  if (below.find("..") != std::string_view::npos) return folder;
  if (below.size() > 1) folder += below.starts_with('/') ? std::string(below) : '/' + std::string(below);
  return folder;
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

/// A child goes in and ends.
bool can_enter(const std::string& folder) {
  const auto group = open_cpu_group(folder);
  if (!group) return false;
  const pid_t child = ::fork();
  if (child == 0) ::_exit(::write(group->get(), "0", 1) == 1 ? 0 : 1);
  int status = 1;
  return child > 0 && ::waitpid(child, &status, 0) == child && status == 0;
}

}  // namespace

Result<CpuHierarchy> cpu_hierarchy(std::string_view mountinfo, std::string_view own_groups) {
  std::optional<CpuHierarchy> unified;
  for (const auto line : split(mountinfo, '\n')) {
    const auto mount = parse_mount(line);
    if (!mount) continue;
    if (mount->type == "cgroup" && has_word(mount->options, ',', "cpu")) {
      const auto own = own_path(own_groups, "cpu");
      return CpuHierarchy{.top = std::string(mount->point),
                          .own = folder_of(*mount, own.value_or("/")),
                          .version = CpuGroupVersion::v1};
    }
    if (mount->type == "cgroup2" && !unified) {
      const auto own = own_path(own_groups, "");
      unified = CpuHierarchy{.top = std::string(mount->point),
                             .own = folder_of(*mount, own.value_or("/")),
                             .version = CpuGroupVersion::v2};
    }
  }
  if (unified) return *unified;
  return fail(Errc::unsupported, "this machine has no cgroups for processor time", "mount them, or leave --cpus away");
}

Status try_cpu_group_parent(const CpuGroupParent& parent) {
  if (parent.version == CpuGroupVersion::v2) {
    // Only the root, which has no type, may have processes beside groups: anywhere else, switching the controller on
    // would make the group a "threaded" one, which takes no processes below it any more.
    const bool root = !exists(parent.folder + "/cgroup.type");
    if (!root && content(parent.folder + "/cgroup.type") != "domain\n") {
      return fail(Errc::unsupported, str("the cgroup ", parent.folder, " cannot have groups of processes"));
    }
    if (!root && !content(parent.folder + "/cgroup.procs").empty()) {
      return fail(Errc::unsupported, str("the cgroup ", parent.folder, " has processes of its own"));
    }
    const auto path = parent.folder + "/cgroup.subtree_control";
    auto enabled = content(path);
    std::erase(enabled, '\n');
    if (!has_word(enabled, ' ', "cpu")) HOLO_TRY(write_value(path, "+cpu"));
  }
  const auto probe = str(parent.folder, "/holo-probe-", ::getpid());
  if (::mkdir(probe.c_str(), 0755) != 0) return fail_errno(errno, "cannot make a cgroup in " + parent.folder);
  const bool quota = exists(probe + (parent.version == CpuGroupVersion::v2 ? "/cpu.max" : "/cpu.cfs_quota_us"));
  const bool good = quota && can_enter(probe);
  if (::rmdir(probe.c_str()) != 0 && good) return fail_errno(errno, "cannot remove the cgroup " + probe);
  if (!good) return fail(Errc::unsupported, "no processor quotas in " + parent.folder);
  return {};
}

Result<CpuGroupParent> find_cpu_group_parent() {
  HOLO_ASSIGN(place, cpu_hierarchy(content("/proc/self/mountinfo"), content("/proc/self/cgroup")));
  std::optional<Error> first;
  for (auto folder = place.own;; folder = folder.substr(0, folder.rfind('/'))) {
    CpuGroupParent parent{.folder = folder, .version = place.version};
    const auto tried = try_cpu_group_parent(parent);
    if (tried) return parent;
    if (!first || tried.error().code == Errc::permission_denied) first = tried.error();
    if (folder.size() <= place.top.size()) break;
  }
  first->hint = str(first->code == Errc::permission_denied ? "run it with sudo" : "run it where cgroups can be made",
                    ", or leave --cpus away");
  return std::unexpected(*first);
}

bool has_cpu_quota() {
  const auto place = cpu_hierarchy(content("/proc/self/mountinfo"), content("/proc/self/cgroup"));
  if (!place) return false;
  const bool v2 = place->version == CpuGroupVersion::v2;
  for (auto folder = place->own;; folder = folder.substr(0, folder.rfind('/'))) {
    const auto quota = content(folder + (v2 ? "/cpu.max" : "/cpu.cfs_quota_us"));  // The root of version 2 has none.
    if (!quota.empty() && !quota.starts_with(v2 ? "max" : "-1")) return true;
    if (folder.size() <= place->top.size()) return false;
  }
}

Result<std::string> make_cpu_group(const CpuGroupParent& parent, const std::string& name, double cpus) {
  auto folder = str(parent.folder, '/', name);
  if (::mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST)
    return fail_errno(errno, "cannot make the cgroup " + folder);
  const auto quota = std::max(std::llround(cpus * static_cast<double>(kCpuPeriod.ns) / 1000), kLeastQuota);
  const auto period = std::llround(static_cast<double>(quota) / cpus);
  if (parent.version == CpuGroupVersion::v2) {
    HOLO_TRY(write_value(folder + "/cpu.max", str(quota, ' ', period)));
  } else {
    HOLO_TRY(write_value(folder + "/cpu.cfs_period_us", str(period)));
    HOLO_TRY(write_value(folder + "/cpu.cfs_quota_us", str(quota)));
  }
  return folder;
}

Result<env::Fd> open_cpu_group(const std::string& folder) {
  const auto path = folder + "/cgroup.procs";
  env::Fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) return fail_errno(errno, "cannot open " + path);
  return file;
}

Status remove_cpu_group(const std::string& folder, Duration limit) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(limit.ns);
  while (::rmdir(folder.c_str()) != 0) {
    if (errno == ENOENT) return {};
    if (errno != EBUSY) return fail_errno(errno, "cannot remove the cgroup " + folder);
    if (std::chrono::steady_clock::now() > deadline) {
      return fail(Errc::deadline_exceeded, str("processes in the cgroup ", folder, " do not end"));
    }
    std::istringstream members(content(folder + "/cgroup.procs"));
    for (pid_t pid = 0; members >> pid;) {
      if (pid > 0) ::kill(pid, SIGKILL);  // It is in our group now; a pid is not given away again that fast.
    }
    std::this_thread::sleep_for(kRetry);
  }
  return {};
}

}  // namespace holo::driver
