#include "cmd/holo/link_pair.h"

#include <sched.h>

#include <algorithm>
#include <array>

#include "base/strings.h"
#include "driver/posix/cpu_group.h"
#include "driver/posix/net_namespace.h"
#include "driver/posix/os_entropy.h"

namespace holo::cmd {
namespace {

std::string random_key() {
  std::array<std::byte, LinkKey::kBytes> bytes;
  driver::OsEntropy().fill(bytes);
  std::string out;
  for (std::size_t i = 0; i < bytes.size(); i += 8) {
    std::uint64_t v = 0;
    for (std::size_t k = 0; k < 8; ++k) v = v << 8 | std::to_integer<std::uint64_t>(bytes[i + k]);
    out += to_hex(v);
  }
  return out;
}

}  // namespace

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  return values[static_cast<std::size_t>(p * static_cast<double>(values.size() - 1))];
}

Ends Ends::on_two_cores() {
  Ends out;
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return out;
  for (int i = 0; i < CPU_SETSIZE && out.cores_.size() < 2; ++i) {
    if (CPU_ISSET(static_cast<unsigned>(i), &set)) out.cores_.push_back(i);
  }
  if (out.cores_.size() < 2) out.cores_.clear();
  return out;
}

Ends Ends::beside(const DevCluster& cluster) {
  Ends out;
  if (cluster.net() != nullptr) out.dev_ = &cluster;
  return out;
}

std::string Ends::listen() const { return (dev_ ? dev_->net()->address_of(2) : std::string("127.0.0.1")) + ":0"; }

Result<AgentPlace> Ends::place(unsigned end) const {
  AgentPlace out;
  if (!dev_) return out;
  HOLO_ASSIGN(space, driver::NetNamespace::open(dev_->net()->namespace_of(end + 1)));
  out.network = std::move(space).take_fd();
  HOLO_ASSIGN(group, driver::open_cpu_group(dev_->cpu_group(dev_->nodes()[end])));
  out.cpu_group = std::move(group);
  return out;
}

Outcome<Pair> Pair::start(const Ends& ends, LinkPeerOptions o) {
  Pair out;
  const std::string key = random_key();
  o.listen = ends.listen();
  o.core = ends.core(1);
  HOLO_ASSIGN(far, ends.place(1));
  HOLO_ASSIGN(server, LinkPeer::start(o, key, far));
  out.server = std::move(server);
  o.listen.clear();
  o.server = out.server->address();
  o.core = ends.core(0);
  HOLO_ASSIGN(near, ends.place(0));
  HOLO_ASSIGN(client, LinkPeer::start(o, key, near));
  out.client = std::move(client);
  return out;
}

}  // namespace holo::cmd
