#include "driver/hwloc/topology.h"

#include <dirent.h>
#include <hwloc.h>
#include <sched.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <vector>

#include "base/strings.h"

namespace holo::driver {
namespace {

struct Destroy {
  void operator()(hwloc_topology* t) const { hwloc_topology_destroy(t); }
};
using Topology = std::unique_ptr<hwloc_topology, Destroy>;

constexpr std::uint64_t kSector = 512;  // Of /sys/block/*/size, whatever the disk's own are.

Result<Topology> load() {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return fail(Errc::unsupported, "hwloc cannot begin");
  Topology topology(raw);
  hwloc_topology_set_io_types_filter(raw, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
  if (hwloc_topology_load(raw) != 0) return fail(Errc::unsupported, "hwloc cannot read this machine");
  return topology;
}

std::uint32_t count(hwloc_topology_t t, hwloc_obj_type_t type) {
  return static_cast<std::uint32_t>(std::max(0, hwloc_get_nbobjs_by_type(t, type)));
}

std::string info_of(hwloc_obj_t object, const char* name) {
  const char* text = hwloc_obj_get_info_by_name(object, name);
  return text == nullptr ? std::string() : text;
}

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

std::uint64_t read_number(const std::string& path) {
  const std::string line = read_line(path);
  const long long n = std::strtoll(line.c_str(), nullptr, 10);  // "-1" is how drivers say that they do not know.
  return n > 0 ? static_cast<std::uint64_t>(n) : 0;
}

/// Names in a directory of /sys, in order; bounded.
std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(directory.c_str()), &::closedir);
  if (!dir) return out;
  for (const dirent* e = ::readdir(dir.get()); e != nullptr; e = ::readdir(dir.get())) {
    if (e->d_name[0] != '.') out.emplace_back(e->d_name);
  }
  std::ranges::sort(out);
  return out;
}

std::string system_name() {
  utsname name{};
  if (::uname(&name) != 0) return {};
  return str(name.sysname, ' ', name.release, ' ', name.machine);
}

std::string cpu_model(hwloc_topology_t t) {
  for (hwloc_obj_t object : {hwloc_get_obj_by_type(t, HWLOC_OBJ_PACKAGE, 0), hwloc_get_root_obj(t)}) {
    if (object == nullptr) continue;
    for (const char* key : {"CPUModel", "CPUVendor"}) {
      if (std::string model = info_of(object, key); !model.empty()) return model;
    }
  }
  return "unknown";
}

void read_numa(hwloc_topology_t t, wire::Inventory& out) {
  for (hwloc_obj_t n = nullptr; (n = hwloc_get_next_obj_by_type(t, HWLOC_OBJ_NUMANODE, n)) != nullptr;) {
    if (out.numa_size() == kMaxListed) return;
    auto* numa = out.add_numa();
    numa->set_index(n->os_index);
    numa->set_memory_bytes(n->attr->numanode.local_memory);
    numa->set_threads(static_cast<std::uint32_t>(std::max(0, hwloc_bitmap_weight(n->cpuset))));
  }
}

void read_caches(hwloc_topology_t t, wire::Inventory& out) {
  constexpr hwloc_obj_type_t kKinds[] = {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L1ICACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L3CACHE,
                                         HWLOC_OBJ_L4CACHE};
  for (const hwloc_obj_type_t kind : kKinds) {
    hwloc_obj_t first = hwloc_get_obj_by_type(t, kind, 0);
    if (first == nullptr) continue;
    const auto& c = first->attr->cache;
    auto* cache = out.add_caches();
    cache->set_level(c.depth);
    cache->set_kind(c.type == HWLOC_OBJ_CACHE_UNIFIED ? "unified"
                    : c.type == HWLOC_OBJ_CACHE_DATA  ? "data"
                                                      : "instruction");
    cache->set_bytes(c.size);
    cache->set_count(count(t, kind));
    cache->set_line_bytes(c.linesize);
  }
}

/// Display controllers and accelerators on the PCI bus, whatever drives them.
void read_gpus(hwloc_topology_t t, wire::Inventory& out) {
  for (hwloc_obj_t o = nullptr; (o = hwloc_get_next_pcidev(t, o)) != nullptr;) {
    const auto& pci = o->attr->pcidev;
    const unsigned base = pci.class_id >> 8;
    constexpr unsigned kDisplay = 0x03, kAccelerator = 0x12;
    if ((base != kDisplay && base != kAccelerator) || out.gpus_size() == kMaxListed) continue;
    auto* gpu = out.add_gpus();
    gpu->set_name(info_of(o, "PCIDevice"));
    gpu->set_vendor(info_of(o, "PCIVendor"));
    char bus[32];
    std::snprintf(bus, sizeof bus, "%04x:%02x:%02x.%x", pci.domain, pci.bus, pci.dev, pci.func);
    gpu->set_bus(bus);
    if (gpu->name().empty()) {
      char id[16];
      std::snprintf(id, sizeof id, "%04x:%04x", pci.vendor_id, pci.device_id);
      gpu->set_name(id);
    }
    for (hwloc_obj_t child = o->io_first_child; child != nullptr; child = child->next_sibling) {
      // In KiB, from the drivers' own libraries, where hwloc has their plugins.
      for (const char* key : {"CUDAGlobalMemorySize", "OpenCLGlobalMemorySize", "NVMLTotalMemory"}) {
        const std::uint64_t kib = std::strtoull(info_of(child, key).c_str(), nullptr, 10);
        if (kib > 0) gpu->set_memory_bytes(kib << 10);
      }
    }
  }
}

void read_disks(wire::Inventory& out) {
  for (const std::string& name : names_in("/sys/block")) {
    const std::string at = "/sys/block/" + name;
    const bool made_up = name.starts_with("loop") || name.starts_with("ram") || name.starts_with("zram");
    const std::uint64_t bytes = read_number(at + "/size") * kSector;
    if (made_up || bytes == 0 || out.disks_size() == kMaxListed) continue;
    auto* disk = out.add_disks();
    disk->set_name(name);
    disk->set_model(read_line(at + "/device/model"));
    disk->set_bytes(bytes);
    disk->set_rotational(read_number(at + "/queue/rotational") != 0);
  }
}

void read_links(wire::Inventory& out) {
  constexpr std::uint64_t kMbit = 1'000'000;
  for (const std::string& name : names_in("/sys/class/net")) {
    const std::string at = "/sys/class/net/" + name;
    if (name == "lo" || out.links_size() == kMaxListed) continue;
    if (read_line(at + "/mtu").empty()) continue;  // Not a link (bonding_masters), or gone meanwhile.
    auto* link = out.add_links();
    link->set_name(name);
    link->set_bits_per_second(read_number(at + "/speed") * kMbit);
    link->set_mtu(static_cast<std::uint32_t>(read_number(at + "/mtu")));
    const std::string state = read_line(at + "/operstate");
    link->set_up(state == "up" || state == "unknown");
  }
}

std::uint32_t usable_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<std::uint32_t>(CPU_COUNT(&set)) : 0;
}

}  // namespace

Result<wire::Inventory> read_inventory() {
  HOLO_ASSIGN(topology, load());
  hwloc_topology_t t = topology.get();
  wire::Inventory out;
  out.set_system(system_name());
  out.set_cpu_model(cpu_model(t));
  out.set_packages(count(t, HWLOC_OBJ_PACKAGE));
  out.set_cores(count(t, HWLOC_OBJ_CORE));
  out.set_threads(count(t, HWLOC_OBJ_PU));
  out.set_usable_threads(usable_threads());
  struct sysinfo info{};
  if (::sysinfo(&info) == 0) out.set_memory_bytes(std::uint64_t{info.totalram} * info.mem_unit);
  read_numa(t, out);
  read_caches(t, out);
  read_gpus(t, out);
  read_disks(out);
  read_links(out);
  return out;
}

}  // namespace holo::driver
