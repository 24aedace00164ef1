#include "driver/posix/rtnetlink.h"

#include <arpa/inet.h>
#include <linux/fib_rules.h>
#include <linux/if_link.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>

#include "base/strings.h"
#include "driver/posix/errno_text.h"

namespace holo::driver {
namespace {

constexpr timeval kAnswerLimit{10, 0};          // The kernel answers at once; this only bounds a kernel that does not.
constexpr std::size_t kAnswerBytes = 64 << 10;  // What the kernel fills at most in one part of a listing.
constexpr unsigned kWidestRoute = 8;            // Wider ones are default routes in disguise (0.0.0.0/1).
constexpr std::uint32_t kUdpPriority = 100, kMovedLocalPriority = 101;  // Before the main table (32766).

/// The attribute of that type among `size` bytes of them.
template <class T>
std::optional<T> value_of(const rtattr* first, std::uint32_t size, std::uint16_t type) {
  for (const auto* a = first; RTA_OK(a, size); a = RTA_NEXT(a, size)) {
    if (a->rta_type != type || RTA_PAYLOAD(a) != sizeof(T)) continue;
    T out;
    std::memcpy(&out, RTA_DATA(a), sizeof out);
    return out;
  }
  return std::nullopt;
}

}  // namespace

/// A request under construction: a header, a fixed part, attributes within attributes.
class RouteNetlink::Message {
 public:
  template <class Fixed>
  Message(std::uint16_t type, std::uint16_t flags, const Fixed& fixed) {
    header().nlmsg_type = type;
    header().nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
    append(&fixed, sizeof fixed);
  }

  void bytes(std::uint16_t type, const void* data, std::size_t size) {
    const rtattr head{.rta_len = static_cast<unsigned short>(RTA_LENGTH(size)), .rta_type = type};
    append(&head, sizeof head);
    append(data, size);
  }
  template <class T>
  void value(std::uint16_t type, const T& v) {
    bytes(type, &v, sizeof v);
  }
  void text(std::uint16_t type, const std::string& s) { bytes(type, s.c_str(), s.size() + 1); }

  /// What `fill` adds becomes the content of one attribute; `fixed` stands before it.
  template <class Fill>
  void nest(std::uint16_t type, std::span<const std::byte> fixed, Fill fill) {
    const auto at = size_;
    const rtattr head{.rta_len = 0, .rta_type = type};
    append(&head, sizeof head);
    if (!fixed.empty()) append(fixed.data(), fixed.size());
    fill();
    const auto length = static_cast<unsigned short>(size_ - at);
    std::memcpy(buffer_.data() + at + offsetof(rtattr, rta_len), &length, sizeof length);
  }
  template <class Fill>
  void nest(std::uint16_t type, Fill fill) {
    nest(type, {}, fill);
  }

  nlmsghdr& header() { return *reinterpret_cast<nlmsghdr*>(buffer_.data()); }
  std::span<const std::byte> finish(std::uint32_t sequence) {
    header().nlmsg_len = static_cast<std::uint32_t>(size_);
    header().nlmsg_seq = sequence;
    return {buffer_.data(), size_};
  }

 private:
  void append(const void* data, std::size_t size) {
    const auto padded = NLMSG_ALIGN(size);
    HOLO_ASSERT(size_ + padded <= buffer_.size());
    if (size) std::memcpy(buffer_.data() + size_, data, size);
    size_ += padded;
  }

  alignas(nlmsghdr) std::array<std::byte, 4096> buffer_{};
  std::size_t size_ = NLMSG_HDRLEN;
};

Result<RouteNetlink> RouteNetlink::open() {
  env::Fd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!fd) return fail_errno(errno, "cannot speak rtnetlink");
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &kAnswerLimit, sizeof kAnswerLimit);
  ::setsockopt(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  ::setsockopt(fd.get(), SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
  return RouteNetlink(std::move(fd));
}

Result<RouteNetlink> RouteNetlink::open_in(const NetNamespace& where) {
  Result<RouteNetlink> out = fail(Errc::internal, "");
  HOLO_TRY(where.run_inside([&]() -> Status {
    out = open();
    return {};
  }));
  return out;
}

Status RouteNetlink::ask(Message& message, const std::string& what) {
  message.header().nlmsg_flags |= NLM_F_ACK;
  const auto request = message.finish(++sequence_);
  if (::send(fd_.get(), request.data(), request.size(), 0) < 0) return fail_errno(errno, what);
  alignas(nlmsghdr) std::array<std::byte, 4096> answer;
  for (;;) {
    const auto n = ::recv(fd_.get(), answer.data(), answer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, what);
    const auto* head = reinterpret_cast<const nlmsghdr*>(answer.data());
    if (!NLMSG_OK(head, static_cast<std::uint32_t>(n)) || head->nlmsg_seq != sequence_) continue;
    if (head->nlmsg_type != NLMSG_ERROR) continue;
    const auto* error = static_cast<const nlmsgerr*>(NLMSG_DATA(head));
    if (error->error == 0) return {};
    if (error->error == -ENODEV) return fail(Errc::not_found, what + ": no such link");
    if (error->error == -EPERM) return fail(Errc::permission_denied, what + ": needs root", "run it with sudo");
    if (error->error == -EOPNOTSUPP) return fail(Errc::unsupported, what + ": this kernel cannot do it");
    return fail_errno(-error->error, what);
  }
}

Result<std::vector<std::byte>> RouteNetlink::answer_to(Message& question, const std::string& what) {
  const auto request = question.finish(++sequence_);
  if (::send(fd_.get(), request.data(), request.size(), 0) < 0) return fail_errno(errno, what);
  std::vector<std::byte> answer(kAnswerBytes);
  for (;;) {
    const auto n = ::recv(fd_.get(), answer.data(), answer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, what);
    const auto* head = reinterpret_cast<const nlmsghdr*>(answer.data());
    if (!NLMSG_OK(head, static_cast<std::uint32_t>(n)) || head->nlmsg_seq != sequence_) continue;
    if (head->nlmsg_type != NLMSG_ERROR) {
      answer.resize(static_cast<std::size_t>(n));
      return answer;
    }
    const int error = -static_cast<const nlmsgerr*>(NLMSG_DATA(head))->error;
    if (error == ENODEV) return fail(Errc::not_found, what);
    return fail_errno(error, what);
  }
}

Result<int> RouteNetlink::index_of(const std::string& link) {
  // Asked through our socket, because if_nametoindex(3) looks in the calling thread's namespace.
  Message message(RTM_GETLINK, 0, ifinfomsg{});
  message.text(IFLA_IFNAME, link);
  HOLO_ASSIGN(answer, answer_to(message, str("cannot find the link ", link)));
  return static_cast<const ifinfomsg*>(NLMSG_DATA(reinterpret_cast<nlmsghdr*>(answer.data())))->ifi_index;
}

Result<std::uint32_t> RouteNetlink::segment_limit(const env::IpEndpoint& remote) {
  const bool v4 = remote.is_v4();
  rtmsg where{};
  where.rtm_family = v4 ? AF_INET : AF_INET6;
  where.rtm_dst_len = v4 ? 32 : 128;
  Message route(RTM_GETROUTE, 0, where);
  route.bytes(RTA_DST, remote.ip.data() + (v4 ? 12 : 0), v4 ? 4 : 16);
  if (remote.scope != 0) route.value(RTA_OIF, remote.scope);
  const auto what = str("cannot find the link to ", to_string(remote));
  HOLO_ASSIGN(found, answer_to(route, what));
  auto* head = reinterpret_cast<nlmsghdr*>(found.data());
  auto size = static_cast<std::uint32_t>(RTM_PAYLOAD(head));
  const auto link = value_of<std::int32_t>(RTM_RTA(NLMSG_DATA(head)), size, RTA_OIF);
  if (!link) return fail(Errc::not_found, what);

  ifinfomsg fixed{};
  fixed.ifi_index = *link;
  Message question(RTM_GETLINK, 0, fixed);
  HOLO_ASSIGN(described, answer_to(question, what));
  head = reinterpret_cast<nlmsghdr*>(described.data());
  size = static_cast<std::uint32_t>(IFLA_PAYLOAD(head));
  const auto limit = value_of<std::uint32_t>(IFLA_RTA(NLMSG_DATA(head)), size, IFLA_GSO_MAX_SIZE);
  if (!limit) return fail(Errc::unsupported, what + ": this kernel does not say what it takes at once");
  return *limit;
}

Status RouteNetlink::add_bridge(const std::string& name) {
  Message message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, ifinfomsg{});
  message.text(IFLA_IFNAME, name);
  message.nest(IFLA_LINKINFO, [&] { message.text(IFLA_INFO_KIND, "bridge"); });
  return ask(message, str("cannot make the bridge ", name));
}

Status RouteNetlink::add_veth(const std::string& name, const NetNamespace& peer_namespace,
                              const std::string& peer_name) {
  Message message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, ifinfomsg{});
  message.text(IFLA_IFNAME, name);
  message.nest(IFLA_LINKINFO, [&] {
    message.text(IFLA_INFO_KIND, "veth");
    message.nest(IFLA_INFO_DATA, [&] {
      const ifinfomsg peer{};
      message.nest(VETH_INFO_PEER, std::as_bytes(std::span(&peer, 1)), [&] {
        message.text(IFLA_IFNAME, peer_name);
        message.value(IFLA_NET_NS_FD, peer_namespace.fd());
      });
    });
  });
  return ask(message, str("cannot make the veth pair ", name));
}

Status RouteNetlink::remove_link(const std::string& name) {
  Message message(RTM_DELLINK, 0, ifinfomsg{});
  message.text(IFLA_IFNAME, name);
  auto done = ask(message, str("cannot remove the link ", name));
  return !done && done.error().code == Errc::not_found ? Status{} : done;
}

Status RouteNetlink::change_link(const std::string& link, const std::string& what,
                                 const std::function<void(Message&)>& fill) {
  HOLO_ASSIGN(index, index_of(link));
  ifinfomsg fixed{};
  fixed.ifi_index = index;
  Message message(RTM_NEWLINK, 0, fixed);
  fill(message);
  return ask(message, str("cannot ", what, " the link ", link));
}

Status RouteNetlink::set_up(const std::string& link) {
  HOLO_ASSIGN(index, index_of(link));
  ifinfomsg fixed{};
  fixed.ifi_index = index;
  fixed.ifi_flags = IFF_UP;
  fixed.ifi_change = IFF_UP;
  Message message(RTM_NEWLINK, 0, fixed);
  return ask(message, str("cannot bring up the link ", link));
}

Status RouteNetlink::add_address(const std::string& link, const Ipv4Range& range) {
  HOLO_ASSIGN(index, index_of(link));
  const ifaddrmsg fixed{.ifa_family = AF_INET,
                        .ifa_prefixlen = static_cast<std::uint8_t>(range.bits),
                        .ifa_flags = 0,
                        .ifa_scope = RT_SCOPE_UNIVERSE,
                        .ifa_index = static_cast<std::uint32_t>(index)};
  Message message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, fixed);
  const auto address = htonl(range.address);
  message.value(IFA_LOCAL, address);
  message.value(IFA_ADDRESS, address);
  return ask(message, str("cannot give ", ipv4_text(range), " to the link ", link));
}

Status RouteNetlink::plug(const std::string& link, const std::string& bridge) {
  int master = 0;
  if (!bridge.empty()) {
    HOLO_ASSIGN(index, index_of(bridge));
    master = index;
  }
  return change_link(link, "plug", [&](Message& m) { m.value(IFLA_MASTER, master); });
}

Status RouteNetlink::limit_segments(const std::string& link, std::uint32_t bytes) {
  return change_link(link, "set gso_max_size of", [&](Message& m) { m.value(IFLA_GSO_MAX_SIZE, bytes); });
}

Status RouteNetlink::shape(const std::string& link, const LinkShape& shape) {
  HOLO_ASSIGN(index, index_of(link));
  tcmsg fixed{};
  fixed.tcm_family = AF_UNSPEC;
  fixed.tcm_ifindex = index;
  fixed.tcm_parent = TC_H_ROOT;
  fixed.tcm_handle = 1U << 16;
  Message message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, fixed);
  message.text(TCA_KIND, "tbf");
  tc_tbf_qopt options{};
  constexpr std::uint64_t kMax32 = ~std::uint32_t{0};
  options.rate.rate = static_cast<std::uint32_t>(std::min(shape.bytes_per_second, kMax32));
  options.rate.linklayer = TC_LINKLAYER_ETHERNET;  // Said, not guessed by the kernel from a table of ours.
  const auto waiting = static_cast<double>(shape.bytes_per_second) * shape.latency.seconds();
  options.limit = static_cast<std::uint32_t>(std::min(waiting, 1e9)) + shape.burst_bytes;
  message.nest(TCA_OPTIONS, [&] {
    message.value(TCA_TBF_PARMS, options);
    message.value(TCA_TBF_BURST, shape.burst_bytes);
    if (shape.bytes_per_second > kMax32) message.value(TCA_TBF_RATE64, shape.bytes_per_second);
  });
  return ask(message, str("cannot shape the link ", link, " with a token bucket (tbf)"));
}

Status RouteNetlink::change_rule(RuleChange change, const Rule& rule) {
  fib_rule_hdr fixed{};
  fixed.family = AF_INET;
  fixed.action = rule.udp_from.empty() ? FR_ACT_TO_TBL : FR_ACT_BLACKHOLE;
  fixed.table = rule.udp_from.empty() ? RT_TABLE_LOCAL : RT_TABLE_UNSPEC;
  const bool add = change == RuleChange::add;
  Message message(add ? RTM_NEWRULE : RTM_DELRULE, add ? NLM_F_CREATE | NLM_F_EXCL : 0, fixed);
  message.value(FRA_PRIORITY, rule.priority);
  if (!rule.udp_from.empty()) {
    message.text(FRA_IIFNAME, rule.udp_from);
    message.value(FRA_IP_PROTO, static_cast<std::uint8_t>(IPPROTO_UDP));
  }
  auto done = ask(message, "cannot change the routing rules");
  const bool was_so = !done && done.error().code == (add ? Errc::already_exists : Errc::not_found);
  return was_so ? Status{} : done;
}

// A routing rule instead of a firewall's: every kernel with policy routing has it, and to drop is all that is asked.
// The rule which delivers to this machine's own addresses comes first of all; it has to move behind ours.
Status RouteNetlink::drop_udp_from(const std::string& link) {
  HOLO_TRY(change_rule(RuleChange::add, {.priority = kMovedLocalPriority, .udp_from = {}}));
  HOLO_TRY(change_rule(RuleChange::add, {.priority = kUdpPriority, .udp_from = link}));
  return change_rule(RuleChange::remove, {.priority = 0, .udp_from = {}});
}

Status RouteNetlink::accept_udp_from(const std::string& link) {
  HOLO_TRY(change_rule(RuleChange::add, {.priority = 0, .udp_from = {}}));
  HOLO_TRY(change_rule(RuleChange::remove, {.priority = kUdpPriority, .udp_from = link}));
  return change_rule(RuleChange::remove, {.priority = kMovedLocalPriority, .udp_from = {}});
}

Result<std::vector<Ipv4Range>> RouteNetlink::routes() {
  rtmsg fixed{};
  fixed.rtm_family = AF_INET;
  Message message(RTM_GETROUTE, NLM_F_DUMP, fixed);
  const auto request = message.finish(++sequence_);
  constexpr const char* kWhat = "cannot list this machine's routes";
  if (::send(fd_.get(), request.data(), request.size(), 0) < 0) return fail_errno(errno, kWhat);
  std::vector<Ipv4Range> out;
  alignas(nlmsghdr) std::array<std::byte, kAnswerBytes> answer;
  for (;;) {
    const auto n = ::recv(fd_.get(), answer.data(), answer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, kWhat);
    auto left = static_cast<std::uint32_t>(n);
    for (auto* head = reinterpret_cast<nlmsghdr*>(answer.data()); NLMSG_OK(head, left); head = NLMSG_NEXT(head, left)) {
      if (head->nlmsg_seq != sequence_) continue;
      if (head->nlmsg_type == NLMSG_DONE) return out;
      if (head->nlmsg_type == NLMSG_ERROR)
        return fail_errno(-static_cast<const nlmsgerr*>(NLMSG_DATA(head))->error, kWhat);
      auto* route = static_cast<rtmsg*>(NLMSG_DATA(head));
      if (route->rtm_family != AF_INET || route->rtm_dst_len < kWidestRoute) continue;
      const auto size = static_cast<std::uint32_t>(RTM_PAYLOAD(head));
      if (const auto address = value_of<std::uint32_t>(RTM_RTA(route), size, RTA_DST))
        out.push_back({.address = ntohl(*address), .bits = route->rtm_dst_len});
    }
  }
}

}  // namespace holo::driver
