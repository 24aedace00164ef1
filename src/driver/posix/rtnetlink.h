// Links, addresses, routes and queues of one network namespace, straight from the kernel (rtnetlink(7)): no program of
// iproute2 is needed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "driver/posix/ipv4.h"
#include "driver/posix/net_namespace.h"
#include "env/datagrams.h"
#include "env/fd.h"

namespace holo::driver {

/// A token bucket (tc-tbf(8)): at most `bytes_per_second` over time, `burst_bytes` at once, and what would wait longer
/// than `latency` is dropped.
struct LinkShape {
  std::uint64_t bytes_per_second = 0;
  std::uint32_t burst_bytes = 0;  ///< At least one packet of the link.
  Duration latency;
};

/// A socket to the kernel that belongs to the namespace in which it was opened, from wherever it is used.
/// Thread: one at a time. Cost: a system call, and up to tens of milliseconds where a device comes or goes.
/// Errors of all: `permission_denied` (changes need CAP_NET_ADMIN), `not_found` (no such link), `already_exists`,
/// `io_error`.
class RouteNetlink {
 public:
  /// Of the calling thread's namespace.
  static Result<RouteNetlink> open();
  static Result<RouteNetlink> open_in(const NetNamespace& where);

  Result<int> index_of(const std::string& link);
  Status add_bridge(const std::string& name);
  /// A cable: one end here, the other in `peer_namespace`.
  Status add_veth(const std::string& name, const NetNamespace& peer_namespace, const std::string& peer_name);
  /// Fine when there is none. The other end of a cable goes with it.
  Status remove_link(const std::string& name);
  Status set_up(const std::string& link);
  /// `range.bits` is the size of the network that is reached directly.
  Status add_address(const std::string& link, const Ipv4Range& range);
  /// Plugs `link` into `bridge`; empty: into none.
  Status plug(const std::string& link, const std::string& bridge);
  /// The largest piece the link takes at once; larger ones are cut in software before.
  Status limit_segments(const std::string& link, std::uint32_t bytes);
  /// That of the link by which packets to `remote` leave, headers of all layers included. Needs no privilege.
  Result<std::uint32_t> segment_limit(const env::IpEndpoint& remote);
  /// Replaces what leaves through `link` by a token bucket.
  Status shape(const std::string& link, const LinkShape& shape);
  /// From now on UDP packets that arrive at `link` disappear without an answer, as behind a firewall; and back.
  /// Both are fine when it is so already. For namespaces of our own: they reorder its routing rules.
  Status drop_udp_from(const std::string& link);
  Status accept_udp_from(const std::string& link);
  /// Destinations of all IPv4 routes, of every table (so the machine's own addresses too); not the default route.
  Result<std::vector<Ipv4Range>> routes();

 private:
  explicit RouteNetlink(env::Fd fd) : fd_(std::move(fd)) {}
  /// Sends a request and waits for the kernel's word; `what` names it in errors.
  class Message;
  Status ask(Message& message, const std::string& what);
  /// The same for questions: the kernel's one answer, with its header.
  Result<std::vector<std::byte>> answer_to(Message& question, const std::string& what);
  Status change_link(const std::string& link, const std::string& what, const std::function<void(Message&)>& fill);
  /// Drops UDP that came through `udp_from`; without one: delivers to the namespace's own addresses.
  struct Rule {
    std::uint32_t priority = 0;
    std::string udp_from;
  };
  enum class RuleChange : std::uint8_t { add, remove };
  Status change_rule(RuleChange change, const Rule& rule);

  env::Fd fd_;
  std::uint32_t sequence_ = 0;
};

}  // namespace holo::driver
