#include "cmd/holo/dev_net.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "base/strings.h"
#include "driver/posix/net_namespace.h"
#include "driver/posix/rtnetlink.h"

namespace holo::cmd {
namespace {

using driver::Ipv4Range;
using driver::NetNamespace;
using driver::RouteNetlink;

constexpr const char* kMain = "main";        // The bridge where all are, unless they were cut off.
constexpr const char* kMachine = "machine";  // The switch's end of the machine's cable.
constexpr const char* kNodeLink = "eth0";
constexpr std::uint32_t kMachineNumber = 254;
constexpr std::array kPrivate = {Ipv4Range{.address = 10U << 24, .bits = 8},
                                 Ipv4Range{.address = 100U << 24 | 64 << 16, .bits = 10}};

// A link of 1 Gbit/s must not hide behind large bursts: segments below a burst, 20 KiB of it, and no long queue.
constexpr std::uint32_t kSegmentBytes = 16384;
constexpr std::uint32_t kLeastBurst = 20 << 10;
constexpr double kBurstSeconds = 160e-6;  // Of faster links, whose timers are no finer.
constexpr Duration kQueue = milliseconds(50);

std::string port_of(unsigned node) { return str("node", node); }
std::string part_of(std::size_t group) { return str("part", group + 1); }

std::uint32_t hash(const std::string& text) {  // FNV-1a: only has to be the same every time.
  std::uint32_t h = 2166136261;
  for (const unsigned char c : text) h = (h ^ c) * 16777619;
  return h;
}

driver::LinkShape shape_of(const DevNet& net) {
  const auto bytes = net.rate_bits / 8;
  const auto burst = static_cast<std::uint32_t>(static_cast<double>(bytes) * kBurstSeconds);
  return {.bytes_per_second = bytes, .burst_bytes = std::max(kLeastBurst, burst), .latency = kQueue};
}

Status add_bridge(RouteNetlink& at_switch, const std::string& name) {
  HOLO_TRY(at_switch.add_bridge(name));
  return at_switch.set_up(name);
}

/// The switch and the machine's cable to it. Holds the machine's lock, until the range shows among its routes.
Status make_switch(DevNet& net) {
  HOLO_ASSIGN(lock, driver::lock_net_namespaces());
  HOLO_ASSIGN(at_machine, RouteNetlink::open());
  HOLO_ASSIGN(used, at_machine.routes());
  if (net.range.address == 0) {
    HOLO_ASSIGN(chosen, choose_range(net.key, used));
    net.range = chosen;
  } else if (std::ranges::any_of(used, [&](const Ipv4Range& u) { return u.overlaps(net.range); })) {
    return fail(Errc::refused,
                str("this cluster's addresses, ", driver::ipv4_text(net.range), ", are in use on this machine now"),
                "free them, or holo dev down, which forgets the cluster");
  }
  HOLO_ASSIGN(inside, NetNamespace::create(net.switch_namespace()));
  HOLO_ASSIGN(at_switch, RouteNetlink::open_in(inside));
  HOLO_TRY(at_machine.add_veth(net.machine_link(), inside, kMachine));
  HOLO_TRY(add_bridge(at_switch, kMain));
  HOLO_TRY(at_switch.plug(kMachine, kMain));
  HOLO_TRY(at_switch.set_up(kMachine));
  HOLO_TRY(at_machine.add_address(net.machine_link(),
                                  {.address = net.range.address + kMachineNumber, .bits = net.range.bits}));
  return at_machine.set_up(net.machine_link());
}

Status make_node(const DevNet& net, RouteNetlink& at_switch, unsigned node) {
  HOLO_ASSIGN(inside, NetNamespace::create(net.namespace_of(node)));
  HOLO_ASSIGN(at_node, RouteNetlink::open_in(inside));
  HOLO_TRY(at_switch.add_veth(port_of(node), inside, kNodeLink));
  HOLO_TRY(at_switch.limit_segments(port_of(node), kSegmentBytes));
  HOLO_TRY(at_node.limit_segments(kNodeLink, kSegmentBytes));
  HOLO_TRY(at_switch.shape(port_of(node), shape_of(net)));
  HOLO_TRY(at_node.shape(kNodeLink, shape_of(net)));
  HOLO_TRY(at_switch.plug(port_of(node), kMain));
  HOLO_TRY(at_switch.set_up(port_of(node)));
  HOLO_TRY(at_node.set_up("lo"));
  HOLO_TRY(at_node.add_address(kNodeLink, {.address = net.range.address + node, .bits = net.range.bits}));
  return at_node.set_up(kNodeLink);
}

Status make_all(DevNet& net) {
  HOLO_TRY(make_switch(net));
  HOLO_ASSIGN(inside, NetNamespace::open(net.switch_namespace()));
  HOLO_ASSIGN(at_switch, RouteNetlink::open_in(inside));
  for (unsigned node = 1; node <= net.nodes; ++node) HOLO_TRY(make_node(net, at_switch, node));
  return {};
}

}  // namespace

std::string dev_key(const std::string& name, const std::string& folder) {
  char digits[9];
  std::snprintf(digits, sizeof digits, "%08x", hash(folder));
  return str("holo-", name, '-', digits);
}

Result<Ipv4Range> choose_range(const std::string& key, const std::vector<Ipv4Range>& used) {
  for (const auto& block : kPrivate) {
    const std::uint32_t count = 1U << (24 - block.bits);
    for (std::uint32_t i = 0, start = hash(key); i < count; ++i) {
      const Ipv4Range candidate{.address = block.address | (start + i) % count << 8, .bits = 24};
      if (std::ranges::none_of(used, [&](const Ipv4Range& u) { return u.overlaps(candidate); })) return candidate;
    }
  }
  return fail(Errc::over_limit, "every private address range (10.0.0.0/8, 100.64.0.0/10) is routed on this machine",
              "take a route away, or leave --net away");
}

Status make_dev_net(DevNet& net) {
  HOLO_TRY(remove_dev_net(net));
  auto made = make_all(net);
  if (!made) (void)remove_dev_net(net);
  return made;
}

Status remove_dev_net(const DevNet& net) {
  // Cables first, because namespaces only let go of theirs some time after they have ended.
  if (auto inside = NetNamespace::open(net.switch_namespace())) {
    HOLO_ASSIGN(at_switch, RouteNetlink::open_in(*inside));
    for (unsigned node = 1; node <= net.nodes; ++node) HOLO_TRY(at_switch.remove_link(port_of(node)));
  }
  HOLO_ASSIGN(at_machine, RouteNetlink::open());
  if (at_machine.index_of(net.machine_link())) HOLO_TRY(at_machine.remove_link(net.machine_link()));
  for (const auto& name : NetNamespace::names(net.key + "-")) HOLO_TRY(NetNamespace::remove(name));
  return {};
}

Status partition_dev_net(const DevNet& net, const std::vector<std::vector<unsigned>>& groups) {
  HOLO_ASSIGN(inside, NetNamespace::open(net.switch_namespace()));
  HOLO_ASSIGN(at_switch, RouteNetlink::open_in(inside));
  std::vector<std::string> bridge(net.nodes + 1, kMain);
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (!at_switch.index_of(part_of(g))) HOLO_TRY(add_bridge(at_switch, part_of(g)));
    for (const auto node : groups[g]) bridge.at(node) = part_of(g);
  }
  for (unsigned node = 1; node <= net.nodes; ++node) HOLO_TRY(at_switch.plug(port_of(node), bridge[node]));
  for (std::size_t g = groups.size(); g < net.nodes; ++g) HOLO_TRY(at_switch.remove_link(part_of(g)));
  return {};
}

Status set_udp(const DevNet& net, unsigned node, Udp udp) {
  HOLO_ASSIGN(inside, NetNamespace::open(net.namespace_of(node)));
  HOLO_ASSIGN(at_node, RouteNetlink::open_in(inside));
  return udp == Udp::blocked ? at_node.drop_udp_from(kNodeLink) : at_node.accept_udp_from(kNodeLink);
}

}  // namespace holo::cmd
