// The network of a dev cluster: every node in a namespace of its own, all of them on one switch, links shaped.
//
//   this machine --- holo-1a2b3c4d            in namespace KEY-switch:  [main] --- this machine
//   namespace KEY-1: eth0 --------------------------------------------- [main] node1
//   namespace KEY-2: eth0 --------------------------------------------- [main] node2 ...
//
// The switch has a namespace too, so that neither the machine's firewall nor its network manager has a say in what
// nodes tell each other, and the machine itself gets one link only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/strings.h"
#include "driver/posix/ipv4.h"

namespace holo::cmd {

/// Values only: the kernel keeps the rest, under names that begin with `key`.
struct DevNet {
  std::string key;              ///< "holo-dev-1a2b3c4d".
  driver::Ipv4Range range;      ///< A /24; address 0 before one was chosen.
  unsigned nodes = 0;           ///< Up to 64.
  std::uint64_t rate_bits = 0;  ///< Bits per second of each node's link, each way.

  [[nodiscard]] std::string namespace_of(unsigned node) const { return str(key, '-', node); }
  [[nodiscard]] std::string switch_namespace() const { return key + "-switch"; }
  /// The machine's end of its cable to the switch.
  [[nodiscard]] std::string machine_link() const { return "holo-" + key.substr(key.size() - 8); }
  [[nodiscard]] std::string address_of(unsigned node) const { return driver::ipv4_text(range.address + node); }
};

/// What everything of a dev cluster is named after: "holo-NAME-" and 8 digits that its folder decides.
std::string dev_key(const std::string& name, const std::string& folder);

/// A /24 of 10.0.0.0/8 or 100.64.0.0/10 that overlaps none of `used`; `key` decides where the search begins, so that a
/// cluster usually gets the same again. Error: `over_limit` (none is free).
Result<driver::Ipv4Range> choose_range(const std::string& key, const std::vector<driver::Ipv4Range>& used);

/// Builds it, after what an earlier attempt left under the same names is gone. Chooses `net.range` unless it has one.
/// Cost: about 20 ms per node. Thread: any. On failure nothing is left.
/// Errors: `permission_denied`, `unsupported`, `refused` (the range that it has is in use), `over_limit`, `io_error`.
Status make_dev_net(DevNet& net);
/// Fine when there is none, or only a part.
Status remove_dev_net(const DevNet& net);

/// Cuts the nodes apart: those of a group, and those that are in none, hear only each other. Replaces earlier cuts; no
/// groups: all hear all again.
Status partition_dev_net(const DevNet& net, const std::vector<std::vector<unsigned>>& groups);

/// UDP that comes to the node disappears, as behind a firewall; or is let through again.
enum class Udp : std::uint8_t { allowed, blocked };
Status set_udp(const DevNet& net, unsigned node, Udp udp);

}  // namespace holo::cmd
