#include "driver/posix/udp.h"

#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <map>
#include <optional>
#include <utility>

#include "base/log.h"
#include "base/strings.h"
#include "driver/posix/address.h"
#include "driver/posix/errno_text.h"
#include "driver/posix/rtnetlink.h"

namespace holo::driver {
namespace {

using env::Datagram;
using env::DatagramPath;
using env::DatagramSocket;
using env::Ecn;
using env::IpEndpoint;

constexpr std::size_t kMessages = 8;              // of one recvmmsg(); more would not stay in the cache
constexpr std::size_t kMessageBytes = 64 << 10;   // the most that GRO joins
constexpr std::size_t kMaxPayload = 65'535 - 28;  // of one message, GSO or not: an IPv4 packet holds no more
constexpr std::size_t kSendMessages = 64;         // of one sendmmsg(), where there is no GSO
constexpr std::size_t kMaxSegments = 64;          // of one GSO message: the least that any kernel with GSO allows
constexpr int kReceiveBuffer = 8 << 20;           // absorbs what arrives while the loop does something else
/// What waits in this machine's own queues (the kernel takes twice of it, and counts its own part too). What is not
/// taken is asked for again, by priority. It must not fill before what bounds bulk does (hyperbus::BulkWindow): the
/// kernel says "writable" once half of it has left, and what is urgent would wait for that.
constexpr std::size_t kSendBuffer = 128 << 10;
constexpr Duration kNoMemoryPause = milliseconds(1);  // The descriptor says "writable" while the kernel has no memory.
constexpr Duration kLogPause = seconds(60);
constexpr Duration kKnownLink = seconds(60);  // Routes change, and links are set anew.
constexpr std::size_t kKnownLinks = 1024;     // Peers; then all are asked about again.
constexpr std::size_t kBurstHeaders = 128;    // of Ethernet, IP and UDP, before the first segment
constexpr std::size_t kControlBytes = 128;    // of one message
static_assert(CMSG_SPACE(sizeof(in6_pktinfo)) + CMSG_SPACE(sizeof(in_pktinfo)) + 2 * CMSG_SPACE(sizeof(int)) <=
              kControlBytes);

union SocketName {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
};

struct Control {
  alignas(cmsghdr) std::array<char, kControlBytes> bytes;
};

/// Some milliseconds late, at a quarter of the price: for what is kept for a minute, and asked for with each burst.
Instant coarse_now() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
  return Instant{t.tv_sec * 1'000'000'000 + t.tv_nsec};
}

bool is_link_local(const IpEndpoint& e) { return e.ip[0] == 0xfe && (e.ip[1] & 0xc0U) == 0x80; }

IpEndpoint to_endpoint(const SocketName& name) {
  if (name.any.sa_family == AF_INET) return IpEndpoint::v4(ntohl(name.v4.sin_addr.s_addr), ntohs(name.v4.sin_port));
  IpEndpoint e{.ip = {}, .port = ntohs(name.v6.sin6_port), .scope = 0};
  std::memcpy(e.ip.data(), &name.v6.sin6_addr, e.ip.size());
  if (is_link_local(e)) e.scope = name.v6.sin6_scope_id;
  return e;
}

template <class T>
T value_of(cmsghdr* c) {
  T value;
  std::memcpy(&value, CMSG_DATA(c), sizeof value);
  return value;
}

bool set_option(int fd, int level, int name, int value) {
  return ::setsockopt(fd, level, name, &value, sizeof value) == 0;
}

/// `forced` needs a privilege; without it the system's limit holds.
void set_buffer(int fd, int forced, int ordinary, int bytes) {
  if (!set_option(fd, SOL_SOCKET, forced, bytes)) (void)set_option(fd, SOL_SOCKET, ordinary, bytes);
}

/// Options that a kernel may lack: then a path is not told, ECN is off, or the MTU is what the kernel believes.
void tune(int fd, bool v6, bool wildcard) {
  set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, kReceiveBuffer);
  set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, static_cast<int>(kSendBuffer));
  // On an IPv6 socket those of IPv4 are for its mapped peers.
  (void)set_option(fd, IPPROTO_IP, IP_RECVTOS, 1);
  (void)set_option(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
  if (wildcard) (void)set_option(fd, IPPROTO_IP, IP_PKTINFO, 1);
  if (!v6) return;
  (void)set_option(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
  (void)set_option(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE);
  if (wildcard) (void)set_option(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
}

bool has_gso(int fd) {
  int value = 0;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &value, &length) == 0;
}

/// Where a burst goes, and how: what all of its messages share.
class Envelope {
 public:
  /// False when a socket of this family and address cannot send there.
  bool address(const DatagramPath& path, bool socket_v6, bool name_source) {
    control_length_ = 0;
    const bool v4 = path.remote.is_v4();
    if (!v4 && !socket_v6) return false;
    if (socket_v6) {
      to_.v6 = {};
      to_.v6.sin6_family = AF_INET6;
      to_.v6.sin6_port = htons(path.remote.port);
      to_.v6.sin6_scope_id = path.remote.scope;
      std::memcpy(&to_.v6.sin6_addr, path.remote.ip.data(), path.remote.ip.size());
      to_length_ = sizeof to_.v6;
    } else {
      to_.v4 = {};
      to_.v4.sin_family = AF_INET;
      to_.v4.sin_port = htons(path.remote.port);
      std::memcpy(&to_.v4.sin_addr, &path.remote.ip[12], sizeof to_.v4.sin_addr);
      to_length_ = sizeof to_.v4;
    }
    if (name_source && path.local.is_v4() == v4 && !path.local.is_unspecified()) add_source(path.local, v4);
    return true;
  }

  /// The same, to be cut into segments. Messages of one kind only are in flight at a time.
  void set_segment(std::optional<std::uint16_t> segment) {
    length_with_segment_ = control_length_;
    if (!segment) return;
    const std::size_t before = control_length_;
    add(IPPROTO_UDP, UDP_SEGMENT, *segment);
    length_with_segment_ = std::exchange(control_length_, before);
  }

  void write(msghdr& message, iovec& part) {
    message = {};
    message.msg_name = &to_;
    message.msg_namelen = to_length_;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = length_with_segment_ == 0 ? nullptr : control_.bytes.data();
    message.msg_controllen = length_with_segment_;
  }

 private:
  void add_source(const IpEndpoint& local, bool v4) {
    if (v4) {
      in_pktinfo info{};
      std::memcpy(&info.ipi_spec_dst, &local.ip[12], sizeof info.ipi_spec_dst);
      add(IPPROTO_IP, IP_PKTINFO, info);
    } else {
      in6_pktinfo info{};
      std::memcpy(&info.ipi6_addr, local.ip.data(), local.ip.size());
      info.ipi6_ifindex = local.scope;
      add(IPPROTO_IPV6, IPV6_PKTINFO, info);
    }
  }
  template <class T>
  void add(int level, int type, const T& value) {
    HOLO_ASSERT(control_length_ + CMSG_SPACE(sizeof value) <= kControlBytes);
    char* at = control_.bytes.data() + control_length_;
    std::memset(at, 0, CMSG_SPACE(sizeof value));
    auto* c = reinterpret_cast<cmsghdr*>(at);
    c->cmsg_level = level;
    c->cmsg_type = type;
    c->cmsg_len = CMSG_LEN(sizeof value);
    std::memcpy(CMSG_DATA(c), &value, sizeof value);
    control_length_ += CMSG_SPACE(sizeof value);
  }

  SocketName to_{};
  socklen_t to_length_ = 0;
  Control control_{};
  std::size_t control_length_ = 0;
  std::size_t length_with_segment_ = 0;
};

}  // namespace

/// What all sockets share: receiving is synchronous, so one set of buffers does, and a silent socket costs none.
struct UdpShared {
  explicit UdpShared(UdpOptions o) : options(o) {}

  struct Link {
    std::size_t burst_limit = kMaxPayload;
    Instant known_until;
  };

  std::size_t burst_limit_of(const IpEndpoint& remote) {
    const Instant now = coarse_now();
    if (remote == last_peer && now < last_link.known_until) return last_link.burst_limit;
    IpEndpoint peer = remote;
    peer.port = 0;
    if (links.size() >= kKnownLinks) links.clear();
    Link& link = links[peer];
    if (now >= link.known_until) link = {.burst_limit = burst_limit(peer), .known_until = now + kKnownLink};
    last_peer = remote;
    last_link = link;
    return link.burst_limit;
  }

  const UdpOptions options;
  UdpCounters counters;
  std::map<IpEndpoint, Link> links;  ///< By address, without the port.
  IpEndpoint last_peer;              ///< With its port: packets come in trains.
  Link last_link;
  std::unique_ptr<std::byte[]> buffers = std::make_unique_for_overwrite<std::byte[]>(kMessages * kMessageBytes);
  std::array<SocketName, kMessages> names{};
  std::array<Control, kMessages> controls{};
  std::array<iovec, kMessages> parts{};
  std::array<mmsghdr, kMessages> messages{};
  std::array<Datagram, DatagramSocket::kMaxBatch> batch{};
};

namespace {

class SocketCore : public std::enable_shared_from_this<SocketCore> {
 public:
  SocketCore(AsioLoop& loop, env::Fd fd, const IpEndpoint& bound, std::shared_ptr<UdpShared> shared, bool v6)
      : loop_(loop),
        shared_(std::move(shared)),
        bound_(bound),
        wildcard_(bound.is_unspecified()),
        v6_(v6),
        gso_(shared_->options.gso && has_gso(fd.get())),
        watch_(std::make_unique<FdWatch>(
            loop, std::move(fd),
            FdWatch::Callbacks{.on_readable = [this] { on_readable(); }, .on_writable = [this] { on_room(); }})) {
    tune(watch_->fd(), v6_, wildcard_);
    if (shared_->options.gro) (void)set_option(watch_->fd(), IPPROTO_UDP, UDP_GRO, 1);
  }

  void start(DatagramSocket::Handlers handlers) {
    HOLO_ASSERT(!handlers_, "started twice");
    handlers_ = std::make_shared<const DatagramSocket::Handlers>(std::move(handlers));
    watch_->want_read(true);
  }

  /// The owner is gone.
  void detach() {
    handlers_.reset();
    watch_.reset();
    loop_.cancel(pause_);
  }

  bool send(const DatagramPath& path, Ecn ecn, std::size_t segment, ByteSpan bytes) {
    HOLO_ASSERT(segment > 0 && bytes.size() <= DatagramSocket::kMaxBurst);
    if (full_) {
      refused_ = true;
      return false;
    }
    if (!envelope_.address(path, v6_, wildcard_)) {
      ++shared_->counters.send_errors;
      return true;
    }
    mark(ecn, path.remote.is_v4());
    if (gso_ && bytes.size() > segment) message_limit_ = shared_->burst_limit_of(path.remote);
    const std::size_t taken = push(segment, bytes);
    if (!full_) return true;
    if (taken == 0) {
      refused_ = true;
      return false;
    }
    // A burst is taken whole or not at all: the rest of this one waits here, and further ones outside.
    held_.assign(bytes.begin() + static_cast<std::ptrdiff_t>(taken), bytes.end());
    held_segment_ = segment;
    return true;
  }

  std::size_t room(const IpEndpoint& remote) {
    if (full_) {
      refused_ = true;
      return 0;
    }
    return gso_ ? std::min(shared_->burst_limit_of(remote), DatagramSocket::kMaxBurst) : DatagramSocket::kMaxBurst;
  }

  const IpEndpoint& local() const { return bound_; }

  std::uint64_t dropped() {
    std::array<std::uint32_t, SK_MEMINFO_VARS> info{};
    socklen_t length = sizeof info;
    if (::getsockopt(watch_->fd(), SOL_SOCKET, SO_MEMINFO, info.data(), &length) == 0 &&
        length > SK_MEMINFO_DROPS * sizeof info[0]) {
      const auto since =
          info[SK_MEMINFO_DROPS] - static_cast<std::uint32_t>(dropped_);  // The kernel counts in 32 bits.
      dropped_ += since;
    }
    return dropped_;
  }

 private:
  // --- receiving ---

  void on_readable() {
    const auto self = shared_from_this();
    prepare();
    // Once: then timers and other sockets get their turn.
    const int n = ::recvmmsg(watch_->fd(), shared_->messages.data(), kMessages, MSG_DONTWAIT, nullptr);
    if (n > 0) deliver(static_cast<std::size_t>(n));  // Else: nothing there, or an error about something sent.
  }

  void prepare() {
    for (std::size_t i = 0; i < kMessages; ++i) {
      msghdr& m = shared_->messages[i].msg_hdr;
      shared_->parts[i] = {shared_->buffers.get() + i * kMessageBytes, kMessageBytes};
      m.msg_name = &shared_->names[i];
      m.msg_namelen = sizeof shared_->names[i];
      m.msg_iov = &shared_->parts[i];
      m.msg_iovlen = 1;
      m.msg_control = shared_->controls[i].bytes.data();
      m.msg_controllen = kControlBytes;
      m.msg_flags = 0;
    }
  }

  void deliver(std::size_t messages) {
    std::size_t filled = 0;
    for (std::size_t i = 0; i < messages; ++i) {
      mmsghdr& m = shared_->messages[i];
      if ((m.msg_hdr.msg_flags & MSG_TRUNC) != 0) continue;
      Datagram d;
      std::size_t segment = kMessageBytes;
      d.path = {.local = bound_, .remote = to_endpoint(shared_->names[i])};
      read_control(m.msg_hdr, d, segment);
      ByteSpan rest(shared_->buffers.get() + i * kMessageBytes, m.msg_len);
      do {
        d.bytes = rest.first(std::min(segment, rest.size()));
        rest = rest.subspan(d.bytes.size());
        shared_->batch[filled++] = d;
        if (filled == shared_->batch.size() && !hand_over(std::exchange(filled, 0))) return;
      } while (!rest.empty());
    }
    if (filled > 0) (void)hand_over(filled);
  }

  /// False when the owner closed the socket meanwhile.
  bool hand_over(std::size_t filled) {
    const auto handlers = handlers_;
    handlers->on_datagrams(std::span<const Datagram>(shared_->batch).first(filled));
    return watch_ != nullptr;
  }

  void read_control(msghdr& message, Datagram& d, std::size_t& segment) const {
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
        if (const int size = value_of<int>(c); size > 0) segment = static_cast<std::size_t>(size);
      } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
        d.ecn = static_cast<Ecn>(value_of<std::uint8_t>(c) & 3U);
      } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
        d.ecn = static_cast<Ecn>(value_of<int>(c) & 3);
      } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
        if (d.path.remote.is_v4())
          d.path.local = IpEndpoint::v4(ntohl(value_of<in_pktinfo>(c).ipi_spec_dst.s_addr), bound_.port);
      } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
        const auto info = value_of<in6_pktinfo>(c);
        std::memcpy(d.path.local.ip.data(), &info.ipi6_addr, d.path.local.ip.size());
        if (is_link_local(d.path.local)) d.path.local.scope = info.ipi6_ifindex;
      }
    }
  }

  // --- sending ---

  /// On the socket: beside how it is to be cut, a message would name it in more than the kernel keeps on its stack.
  /// Connections agree on it mostly. A kernel that refuses it sends without.
  void mark(Ecn ecn, bool v4) {
    if (std::exchange(v4 ? marked_v4_ : marked_v6_, ecn) == ecn) return;
    const int value = static_cast<int>(ecn);
    (void)(v4 ? set_option(watch_->fd(), IPPROTO_IP, IP_TOS, value)
              : set_option(watch_->fd(), IPPROTO_IPV6, IPV6_TCLASS, value));
  }

  /// Sends as envelope_ says. Returns how many bytes are done with; fewer than all when the socket is full_.
  std::size_t push(std::size_t segment, ByteSpan bytes) {
    std::size_t done = 0;
    bool gso = gso_;
    bool gso_suspected = false;
    while (done < bytes.size()) {
      const std::size_t segments = std::min(kMaxSegments, message_limit_ / segment);
      const bool cut = gso && segments > 1 && bytes.size() - done > segment;
      const std::size_t message_bytes = cut ? segments * segment : segment;
      const int sent = send_some(cut, segment, message_bytes, bytes.subspan(done));
      if (sent > 0) {
        done = std::min(bytes.size(), done + static_cast<std::size_t>(sent) * message_bytes);
        if (gso_suspected) refuse_gso();
        gso_suspected = false;
        continue;
      }
      const int error = errno;
      if (error == EINTR) continue;
      if (error == EAGAIN || error == EWOULDBLOCK || error == ENOBUFS || error == ENOMEM) {
        wait_for_room(error);
        return done;
      }
      if (cut && (error == EIO || error == EINVAL || error == ENOPROTOOPT || error == EOPNOTSUPP)) {
        // EINVAL may also mean the address, or a segment above the MTU: a datagram that does pass decides.
        gso = false;
        gso_suspected = true;
        continue;
      }
      gso_suspected = false;
      lose(error);
      done += std::min(message_bytes, bytes.size() - done);
    }
    return done;
  }

  int send_some(bool cut, std::size_t segment, std::size_t message_bytes, ByteSpan bytes) {
    envelope_.set_segment(cut ? std::optional(static_cast<std::uint16_t>(segment)) : std::nullopt);
    std::array<mmsghdr, kSendMessages> messages;
    std::array<iovec, kSendMessages> parts;
    unsigned count = 0;
    for (; count < messages.size() && !bytes.empty(); ++count) {
      const ByteSpan part = bytes.first(std::min(message_bytes, bytes.size()));
      bytes = bytes.subspan(part.size());
      parts[count] = {const_cast<std::byte*>(part.data()), part.size()};
      envelope_.write(messages[count].msg_hdr, parts[count]);
    }
    constexpr int kFlags = MSG_DONTWAIT | MSG_NOSIGNAL;
    if (count == 1)
      return ::sendmsg(watch_->fd(), &messages[0].msg_hdr, kFlags) >= 0 ? 1 : -1;  // The usual: less work.
    return ::sendmmsg(watch_->fd(), messages.data(), count, kFlags);
  }

  void refuse_gso() {
    gso_ = false;
    ++shared_->counters.gso_refusals;
  }

  void wait_for_room(int error) {
    full_ = true;
    if (error == EAGAIN || error == EWOULDBLOCK) {
      watch_->want_write(true);
      return;
    }
    pause_ = loop_.call_at(loop_.now() + kNoMemoryPause, [weak = weak_from_this()] {
      if (const auto self = weak.lock(); self && self->watch_) self->on_room();
    });
  }

  void on_room() {
    const auto self = shared_from_this();
    watch_->want_write(false);
    full_ = false;
    if (!held_.empty()) {
      const std::size_t taken = push(held_segment_, held_);
      held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(taken));
      if (full_) return;
    }
    if (!std::exchange(refused_, false) || !handlers_) return;
    if (const auto handlers = handlers_; handlers->on_writable) handlers->on_writable();
  }

  void lose(int error) {
    ++shared_->counters.send_errors;
    if (error == EMSGSIZE || loop_.now() < next_log_) return;  // EMSGSIZE: that is how a path's MTU is found.
    next_log_ = loop_.now() + kLogPause;
    log_warn("udp", "datagrams from ", to_string(bound_), " cannot be sent: ", errno_text(error), " (",
             shared_->counters.send_errors, " so far)");
  }

  AsioLoop& loop_;
  const std::shared_ptr<UdpShared> shared_;
  const IpEndpoint bound_;
  const bool wildcard_;
  const bool v6_;
  bool gso_;
  std::unique_ptr<FdWatch> watch_;                            // null: closed
  std::shared_ptr<const DatagramSocket::Handlers> handlers_;  // shared: they may destroy the socket that calls them
  Ecn marked_v4_ = Ecn::not_ect, marked_v6_ = Ecn::not_ect;   // what the socket marks its packets with
  Envelope envelope_;                                         // of what is being sent, or held
  Bytes held_;                                                // the rest of a burst that the kernel took in part
  std::size_t held_segment_ = 0;
  bool full_ = false;     // until the kernel has room
  bool refused_ = false;  // send() said no: on_writable is owed
  env::Loop::TimerId pause_ = 0;
  Instant next_log_{};
  std::uint64_t dropped_ = 0;
  std::size_t message_limit_ = kMaxPayload;  // of the burst that is sent now, or held
};

/// What one datagram over "lo" may carry; 0 when the kernel does not say, or says an odd thing.
std::size_t loopback_payload() {
  constexpr std::size_t kHeaders = 48, kLeast = 1280, kMost = 65'535;
  const env::Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strcpy(request.ifr_name, "lo");
  if (!fd || ::ioctl(fd.get(), SIOCGIFMTU, &request) != 0) return 0;
  if (request.ifr_mtu < static_cast<int>(kLeast)) return 0;
  return std::min<std::size_t>(static_cast<std::size_t>(request.ifr_mtu), kMost) - kHeaders;
}

class UdpSocket final : public DatagramSocket {
 public:
  explicit UdpSocket(std::shared_ptr<SocketCore> core) : core_(std::move(core)) {}
  ~UdpSocket() override { core_->detach(); }
  void start(Handlers handlers) override { core_->start(std::move(handlers)); }
  bool send(const DatagramPath& path, Ecn ecn, std::size_t segment, ByteSpan bytes) override {
    return core_->send(path, ecn, segment, bytes);
  }
  std::size_t room(const IpEndpoint& remote) override { return core_->room(remote); }
  IpEndpoint local() const override { return core_->local(); }
  std::uint64_t dropped() const override { return core_->dropped(); }

 private:
  const std::shared_ptr<SocketCore> core_;
};

SocketName to_name(const SocketAddress& address) {
  SocketName name{};
  std::memcpy(&name, &address.storage, std::min<std::size_t>(address.length, sizeof name));
  return name;
}

}  // namespace

std::size_t burst_limit(const IpEndpoint& remote) {
  if (remote.is_loopback()) return kMaxPayload;
  auto kernel = RouteNetlink::open();
  if (!kernel) return kMaxPayload;
  const auto limit = kernel->segment_limit(remote);
  if (!limit) return kMaxPayload;
  return std::clamp<std::size_t>(*limit, 2 * kBurstHeaders, kMaxPayload + kBurstHeaders) - kBurstHeaders;
}

UdpDatagrams::UdpDatagrams(AsioLoop& loop) : UdpDatagrams(loop, UdpOptions{}) {}
UdpDatagrams::UdpDatagrams(AsioLoop& loop, UdpOptions options)
    : loop_(loop), shared_(std::make_shared<UdpShared>(options)), loopback_payload_(loopback_payload()) {}
UdpDatagrams::~UdpDatagrams() = default;

std::size_t UdpDatagrams::known_payload(const IpEndpoint& remote) const {
  return remote.is_loopback() ? loopback_payload_ : 0;
}

UdpCounters UdpDatagrams::counters() const { return shared_->counters; }

Result<std::unique_ptr<DatagramSocket>> UdpDatagrams::bind(const std::string& address) {
  HOLO_ASSIGN(at, resolve_to_bind(address, SocketKind::datagram));
  const bool v6 = at.storage.ss_family == AF_INET6;
  env::Fd fd(::socket(at.storage.ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return fail_bind(errno, address);
  if (v6) (void)set_option(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
  // No SO_REUSEADDR: with UDP it would let two programs share the port, and one of them starve.
  if (::bind(fd.get(), at.raw(), at.length) != 0) return fail_bind(errno, address);
  SocketAddress bound;
  if (::getsockname(fd.get(), bound.raw(), &bound.length) != 0) return fail_bind(errno, address);
  return std::make_unique<UdpSocket>(
      std::make_shared<SocketCore>(loop_, std::move(fd), to_endpoint(to_name(bound)), shared_, v6));
}

Task<Result<std::vector<IpEndpoint>>> UdpDatagrams::resolve(std::string address, Instant deadline) {
  AsioLoop& loop = loop_;  // This object may end meanwhile.
  auto where = parse_host_port(address);
  if (!where) co_return std::unexpected(where.error());
  HostPort host_port = *where;
  auto found = co_await resolve_until(loop, host_port, SocketKind::datagram, deadline);
  if (!found && loop.stopping()) co_return fail(Errc::cancelled, str("this node stops; ", address, " was not found"));
  if (!found) co_return std::unexpected(std::move(found).error());
  std::vector<IpEndpoint> out;
  for (const SocketAddress& a : *found) {
    if (a.storage.ss_family == AF_INET || a.storage.ss_family == AF_INET6) out.push_back(to_endpoint(to_name(a)));
  }
  co_return out;
}

}  // namespace holo::driver
