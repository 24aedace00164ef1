#include "driver/posix/udp.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <optional>

#include "base/random.h"
#include "base/strings.h"
#include "driver/posix/address.h"
#include "driver/posix/net_namespace.h"
#include "driver/posix/rtnetlink.h"
#include "driver/posix/tcp.h"

namespace holo::driver {
namespace {

using env::DatagramPath;
using env::Ecn;
using env::IpEndpoint;
using Socket = std::unique_ptr<env::DatagramSocket>;

constexpr Duration kLimit = seconds(20);

/// A socket, recording what happens to it.
struct End {
  struct Arrival {
    DatagramPath path;
    Ecn ecn;
    Bytes bytes;
  };
  Socket socket;
  std::vector<Arrival> arrived;
  std::size_t largest_batch = 0;
  int writable = 0;

  void start() {
    socket->start({.on_datagrams =
                       [this](std::span<const env::Datagram> batch) {
                         largest_batch = std::max(largest_batch, batch.size());
                         for (const auto& d : batch) {
                           arrived.push_back({d.path, d.ecn, Bytes(d.bytes.begin(), d.bytes.end())});
                         }
                       },
                   .on_writable = [this] { ++writable; }});
  }
  DatagramPath to(const End& other) const { return {.local = {}, .remote = other.socket->local()}; }
};

Bytes noise(std::size_t n) {
  Random random(n);
  Bytes out(n);
  for (auto& b : out) b = static_cast<std::byte>(random.next());
  return out;
}

Task<void> resolve_into(UdpDatagrams& udp, std::string address, Instant deadline,
                        std::optional<Result<std::vector<IpEndpoint>>>& out) {
  out = co_await udp.resolve(address, deadline);
}

bool has_ipv6() {
  AsioLoop loop;
  UdpDatagrams udp(loop);
  return udp.bind("[::1]:0").has_value();
}

struct Setting {
  const char* name;
  const char* address;
  UdpOptions options;
};

class UdpOn : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    if (GetParam().address[0] == '[' && !has_ipv6()) GTEST_SKIP() << "no IPv6 here";
    a_.socket = bind();
    b_.socket = bind();
    ASSERT_TRUE(a_.socket && b_.socket);
    a_.start();
    b_.start();
  }
  Socket bind() {
    auto s = udp_.bind(GetParam().address);
    EXPECT_TRUE(s) << s.error().to_string();
    return s ? std::move(*s) : nullptr;
  }
  /// Sends `bytes` from a to b and checks what arrives.
  void burst(std::size_t segment, const Bytes& bytes, Ecn ecn = Ecn::not_ect) {
    b_.arrived.clear();
    ASSERT_TRUE(a_.socket->send(a_.to(b_), ecn, segment, bytes));
    const std::size_t count = (bytes.size() + segment - 1) / segment;
    ASSERT_TRUE(loop_.run_until([&] { return b_.arrived.size() >= count; }, kLimit)) << b_.arrived.size();
    ASSERT_EQ(b_.arrived.size(), count);
    for (std::size_t i = 0; i < count; ++i) {
      const auto expected = ByteSpan(bytes).subspan(i * segment).first(std::min(segment, bytes.size() - i * segment));
      ASSERT_TRUE(std::ranges::equal(b_.arrived[i].bytes, expected)) << "datagram " << i;
      EXPECT_EQ(b_.arrived[i].ecn, ecn);
      EXPECT_EQ(b_.arrived[i].path.remote, a_.socket->local());
      EXPECT_EQ(b_.arrived[i].path.local, b_.socket->local());
    }
  }

  AsioLoop loop_;
  UdpDatagrams udp_{loop_, GetParam().options};
  End a_, b_;
};

TEST_P(UdpOn, ABurstArrivesAsDatagramsInOrder) {
  burst(1444, noise(44 * 1444 - 100));
  EXPECT_LE(b_.largest_batch, env::DatagramSocket::kMaxBatch);
  EXPECT_EQ(udp_.counters().send_errors, 0U);
}

TEST_P(UdpOn, BurstsOfAnySize) {
  burst(1, noise(1));
  burst(1200, noise(1200));
  burst(1200, noise(1201));
  burst(1200, noise(64 << 10));      // More than one IP packet holds.
  burst(100, noise(300 * 100 + 1));  // More segments than one GSO message holds.
  burst(40'000, noise(64 << 10));    // No two of them fit one message.
  burst(65'000, noise(65'000));
  burst(8952, noise(7 * 8952));
  EXPECT_LE(b_.largest_batch, env::DatagramSocket::kMaxBatch);
}

TEST_P(UdpOn, LoopbackSaysHowMuchPassesAndItDoes) {
  const std::size_t payload = udp_.known_payload(b_.socket->local());
  ASSERT_GE(payload, 1200U);
  burst(payload, noise(payload));
  EXPECT_EQ(udp_.known_payload(IpEndpoint{}), 0U);
}

TEST_P(UdpOn, EcnIsCarried) {
  for (const Ecn ecn : {Ecn::ect0, Ecn::ect1, Ecn::ce, Ecn::not_ect}) burst(1000, noise(5500), ecn);
}

TEST_P(UdpOn, WhatCannotBeSentIsLost) {
  EXPECT_TRUE(a_.socket->send(a_.to(b_), Ecn::not_ect, 64 << 10, Bytes(64 << 10))) << "larger than an IP packet";
  EXPECT_EQ(udp_.counters().send_errors, 1U);
  IpEndpoint other = b_.socket->local();
  other.ip = {0x20, 0x01, 0x0d, 0xb8, 1};  // Documentation: nowhere; and no way there from an IPv4 socket.
  EXPECT_TRUE(a_.socket->send({.local = {}, .remote = other}, Ecn::not_ect, 1000, Bytes(44'000)));
  burst(1000, noise(44'000));
  EXPECT_EQ(udp_.counters().gso_refusals, 0U);
}

INSTANTIATE_TEST_SUITE_P(, UdpOn,
                         testing::Values(Setting{"V4", "127.0.0.1:0", {}}, Setting{"V6", "[::1]:0", {}},
                                         Setting{"V4WithoutGso", "127.0.0.1:0", {.gso = false}},
                                         Setting{"V6WithoutGso", "[::1]:0", {.gso = false}},
                                         Setting{"V4WithoutGro", "127.0.0.1:0", {.gro = false}},
                                         Setting{"V6WithoutGro", "[::1]:0", {.gro = false}},
                                         Setting{"V4WithNeither", "127.0.0.1:0", {.gso = false, .gro = false}}),
                         [](const auto& setting) { return setting.param.name; });

class Udp : public testing::Test {
 protected:
  Socket bind(const std::string& address = "127.0.0.1:0") {
    auto s = udp_.bind(address);
    EXPECT_TRUE(s) << s.error().to_string();
    return s ? std::move(*s) : nullptr;
  }
  Result<std::vector<IpEndpoint>> resolve(const std::string& address, Duration limit = seconds(5)) {
    std::optional<Result<std::vector<IpEndpoint>>> out;
    loop_.spawn(resolve_into(udp_, address, loop_.now() + limit, out));
    EXPECT_TRUE(loop_.run_until([&] { return out.has_value(); }, kLimit));
    return std::move(*out);
  }
  IpEndpoint endpoint(const std::string& address) { return resolve(address).value().front(); }

  AsioLoop loop_;
  UdpDatagrams udp_{loop_};
};

/// The descriptor of the socket bound to `port`.
int descriptor_of(std::uint16_t port) {
  for (int fd = 3; fd < 1024; ++fd) {
    sockaddr_in name{};
    socklen_t length = sizeof name;
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) == 0 && name.sin_family == AF_INET &&
        ntohs(name.sin_port) == port) {
      return fd;
    }
  }
  return -1;
}

TEST_F(Udp, WhenTheKernelRefusesGsoTheSocketGoesOnWithoutIt) {
  End a{.socket = bind()};
  End b{.socket = bind()};
  b.start();
  // The kernel cuts no datagrams that have no checksum.
  const int on = 1;
  ASSERT_EQ(::setsockopt(descriptor_of(a.socket->local().port), SOL_SOCKET, SO_NO_CHECK, &on, sizeof on), 0);
  const Bytes bytes = noise(43 * 1000 + 500);
  for (int round = 1; round <= 3; ++round) {
    ASSERT_TRUE(a.socket->send(a.to(b), Ecn::ect0, 1000, bytes));
    ASSERT_TRUE(loop_.run_until([&] { return b.arrived.size() == 44U * static_cast<unsigned>(round); }, kLimit));
    EXPECT_EQ(b.arrived.back().bytes.size(), 500U);
    EXPECT_EQ(udp_.counters().gso_refusals, 1U) << "it is asked once";
  }
  EXPECT_EQ(udp_.counters().send_errors, 0U);
}

TEST_F(Udp, AWildcardSocketKnowsWhichAddressWasMeantAndAnswersFromThere) {
  End server{.socket = bind("0.0.0.0:0")};
  End client{.socket = bind("127.0.0.1:0")};
  server.start();
  client.start();
  const IpEndpoint asked = endpoint(str("127.0.0.9:", server.socket->local().port));
  ASSERT_TRUE(client.socket->send({.local = {}, .remote = asked}, Ecn::not_ect, 1000, noise(3500)));
  ASSERT_TRUE(loop_.run_until([&] { return server.arrived.size() == 4; }, kLimit));
  EXPECT_EQ(server.arrived[0].path.local, asked);
  ASSERT_TRUE(server.socket->send(server.arrived[0].path, Ecn::ect0, 1000, noise(2500)));
  ASSERT_TRUE(loop_.run_until([&] { return client.arrived.size() == 3; }, kLimit));
  EXPECT_EQ(client.arrived[0].path.remote, asked);
  EXPECT_EQ(client.arrived[0].ecn, Ecn::ect0);
}

TEST_F(Udp, OneSocketServesIpv6AndIpv4) {
  if (!has_ipv6()) GTEST_SKIP() << "no IPv6 here";
  End server{.socket = bind("[::]:0")};
  server.start();
  const auto port = server.socket->local().port;
  for (const char* host : {"127.0.0.9", "[::1]"}) {
    End client{.socket = bind(host[0] == '[' ? "[::1]:0" : "127.0.0.1:0")};
    client.start();
    server.arrived.clear();
    const IpEndpoint asked = endpoint(str(host, ":", port));
    ASSERT_TRUE(client.socket->send({.local = {}, .remote = asked}, Ecn::ect1, 1000, noise(3500)));
    ASSERT_TRUE(loop_.run_until([&] { return server.arrived.size() == 4; }, kLimit));
    EXPECT_EQ(to_string(server.arrived[3].path.local), to_string(asked));
    EXPECT_EQ(to_string(server.arrived[3].path.remote), to_string(client.socket->local()));
    EXPECT_EQ(server.arrived[3].ecn, Ecn::ect1);
    ASSERT_TRUE(server.socket->send(server.arrived[0].path, Ecn::ce, 1000, noise(2500)));
    ASSERT_TRUE(loop_.run_until([&] { return client.arrived.size() == 3; }, kLimit));
    EXPECT_EQ(to_string(client.arrived[0].path.remote), to_string(asked));
    EXPECT_EQ(client.arrived[0].ecn, Ecn::ce);
  }
}

TEST_F(Udp, AnAddressThatIsNotOursLosesTheDatagramsAndNothingElse) {
  End a{.socket = bind("0.0.0.0:0")};
  End b{.socket = bind()};
  b.start();
  DatagramPath path = a.to(b);
  path.local = endpoint("192.0.2.1:1");
  EXPECT_TRUE(a.socket->send(path, Ecn::not_ect, 1000, noise(5000)));
  EXPECT_GT(udp_.counters().send_errors, 0U);
  ASSERT_TRUE(a.socket->send(a.to(b), Ecn::not_ect, 1000, noise(5000)));
  ASSERT_TRUE(loop_.run_until([&] { return b.arrived.size() == 5; }, kLimit));
  EXPECT_EQ(udp_.counters().gso_refusals, 0U);
}

TEST_F(Udp, ASocketMayDieInItsOwnCallback) {
  End a{.socket = bind()};
  Socket victim = bind();
  int calls = 0;
  victim->start({.on_datagrams =
                     [&](std::span<const env::Datagram>) {
                       ++calls;
                       victim.reset();
                     },
                 .on_writable = {}});
  const DatagramPath path{.local = {}, .remote = victim->local()};
  // More than one batch, and more than one read.
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(a.socket->send(path, Ecn::not_ect, 500, noise(60 * 500)));
  ASSERT_TRUE(loop_.run_until([&] { return !victim; }, kLimit));
  bool later = false;
  loop_.call_at(loop_.now() + milliseconds(5), [&] { later = true; });
  ASSERT_TRUE(loop_.run_until([&] { return later; }, kLimit));
  EXPECT_EQ(calls, 1);
}

TEST_F(Udp, TheWholeDriverMayDieInACallback) {
  auto udp = std::make_unique<UdpDatagrams>(loop_);
  auto a = udp->bind("127.0.0.1:0");
  auto b = udp->bind("127.0.0.1:0");
  ASSERT_TRUE(a && b);
  (*b)->start({.on_datagrams =
                   [&](std::span<const env::Datagram> batch) {
                     b->reset();
                     udp.reset();
                     EXPECT_EQ(batch[0].bytes.size(), 100U);
                   },
               .on_writable = {}});
  ASSERT_TRUE((*a)->send({.local = {}, .remote = (*b)->local()}, Ecn::not_ect, 100, noise(1000)));
  ASSERT_TRUE(loop_.run_until([&] { return !udp; }, kLimit));
}

TEST_F(Udp, AFullReceiverIsCountedAndTimersGetTheirTurn) {
  End a{.socket = bind()};
  End b{.socket = bind()};
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(a.socket->send(a.to(b), Ecn::not_ect, 1000, Bytes(60'000)));
  const std::uint64_t dropped = b.socket->dropped();
  EXPECT_GT(dropped, 0U);
  EXPECT_EQ(b.socket->dropped(), dropped);
  EXPECT_EQ(a.socket->dropped(), 0U);
  std::size_t seen = 0;
  std::optional<std::size_t> at_timer;
  b.socket->start(
      {.on_datagrams = [&](std::span<const env::Datagram> batch) { seen += batch.size(); }, .on_writable = {}});
  loop_.call_at(loop_.now(), [&] { at_timer = seen; });
  Instant quiet = loop_.now();
  std::size_t before = 0;
  ASSERT_TRUE(loop_.run_until(
      [&] {
        if (seen != before) quiet = loop_.now();
        before = seen;
        return seen > 0 && loop_.now() - quiet > milliseconds(50);
      },
      kLimit));
  ASSERT_TRUE(at_timer);
  EXPECT_LT(*at_timer, seen);
}

/// A network of its own, whose loopback is slow and queues for long.
class UdpOnASlowLink : public testing::TestWithParam<UdpOptions> {
 protected:
  void SetUp() override {
    auto made = NetNamespace::create(name_);
    if (!made) GTEST_SKIP() << "no network namespaces here: " << made.error().message;
    where_.emplace(std::move(*made));
    auto links = RouteNetlink::open_in(*where_).value();
    ASSERT_TRUE(links.set_up("lo"));
    ASSERT_TRUE(links.shape("lo", {.bytes_per_second = 10'000'000, .burst_bytes = 200'000, .latency = seconds(20)}));
    ASSERT_TRUE(where_->run_inside([this]() -> Status {
      HOLO_ASSIGN(a, udp_.bind("127.0.0.1:0"));
      HOLO_ASSIGN(b, udp_.bind("127.0.0.1:0"));
      a_.socket = std::move(a);
      b_.socket = std::move(b);
      return {};
    }));
    a_.start();
    b_.start();
  }
  void TearDown() override {
    if (where_) {
      EXPECT_TRUE(NetNamespace::remove(name_));
    }
  }

  const std::string name_ = str("holo-test-udp-", ::getpid());
  std::optional<NetNamespace> where_;
  AsioLoop loop_;
  UdpDatagrams udp_{loop_, GetParam()};
  End a_, b_;
};

TEST_P(UdpOnASlowLink, AFullSocketSaysSoAndLosesNothing) {
  constexpr std::size_t kSegment = 1000;
  constexpr std::uint32_t kPerBurst = 60;
  std::uint32_t next = 0;
  Bytes burst(kPerBurst * kSegment);
  const auto send_until_full = [&] {
    for (int i = 0; i < 1000; ++i) {
      for (std::uint32_t k = 0; k < kPerBurst; ++k) {
        const std::uint32_t number = next + k;
        std::memcpy(&burst[k * kSegment], &number, sizeof number);
      }
      if (!a_.socket->send(a_.to(b_), Ecn::ect0, kSegment, burst)) return true;
      next += kPerBurst;
    }
    return false;
  };
  for (int round = 1; round <= 2; ++round) {
    EXPECT_EQ(a_.socket->room(a_.to(b_).remote), env::DatagramSocket::kMaxBurst - (GetParam().gso ? 29 : 0));
    ASSERT_TRUE(send_until_full());
    EXPECT_EQ(a_.socket->room(a_.to(b_).remote), 0U);
    EXPECT_FALSE(a_.socket->send(a_.to(b_), Ecn::ect0, kSegment, burst));
    EXPECT_EQ(a_.writable, round - 1);
    ASSERT_TRUE(loop_.run_until([&] { return a_.writable == round; }, kLimit));
  }
  EXPECT_TRUE(loop_.run_until([&] { return b_.arrived.size() == next; }, kLimit));
  ASSERT_EQ(b_.arrived.size(), next) << b_.socket->dropped() << " dropped by the receiver";
  for (std::uint32_t i = 0; i < next; ++i) {
    std::uint32_t number = 0;
    std::memcpy(&number, b_.arrived[i].bytes.data(), sizeof number);
    ASSERT_EQ(number, i);
    ASSERT_EQ(b_.arrived[i].ecn, Ecn::ect0) << "the rest of a burst goes as its beginning";
  }
  EXPECT_EQ(udp_.counters().send_errors, 0U);
}

INSTANTIATE_TEST_SUITE_P(, UdpOnASlowLink, testing::Values(UdpOptions{}, UdpOptions{.gso = false}),
                         [](const auto& setting) { return setting.param.gso ? "Gso" : "NoGso"; });

/// Two networks with an Ethernet cable (MTU 1,500) between them, and IPv6 link-local addresses at its ends.
class UdpOnACable : public Udp {
 protected:
  void SetUp() override {
    auto red = NetNamespace::create(prefix_ + "red");
    if (!red) GTEST_SKIP() << "no network namespaces here: " << red.error().message;
    red_.emplace(std::move(*red));
    blue_.emplace(NetNamespace::create(prefix_ + "blue").value());
    auto at_red = RouteNetlink::open_in(*red_).value();
    auto at_blue = RouteNetlink::open_in(*blue_).value();
    ASSERT_TRUE(at_red.add_veth("cable", *blue_, "plug"));
    connect(*red_, at_red, "cable");
    connect(*blue_, at_blue, "plug");
    // The kernel gives the addresses once it has noticed that both ends are up.
    ASSERT_TRUE(loop_.run_until(
        [&] {
          red_address_ = link_local(*red_, "cable");
          blue_address_ = link_local(*blue_, "plug");
          return !has_ipv6() || (!red_address_.empty() && !blue_address_.empty());
        },
        kLimit));
    if (red_address_.empty() || blue_address_.empty()) GTEST_SKIP() << "no IPv6 here";
    blue_index_ = static_cast<std::uint32_t>(at_blue.index_of("plug").value());
    red_index_ = static_cast<std::uint32_t>(at_red.index_of("cable").value());
  }
  void TearDown() override {
    for (const auto& name : NetNamespace::names(prefix_)) EXPECT_TRUE(NetNamespace::remove(name));
  }
  static void connect(const NetNamespace& where, RouteNetlink& links, const std::string& link) {
    ASSERT_TRUE(where.run_inside([&]() -> Status {
      std::ofstream(str("/proc/sys/net/ipv6/conf/", link, "/accept_dad")) << 0;  // Addresses are usable at once.
      return {};
    }));
    ASSERT_TRUE(links.set_up(link));
  }
  /// "fe80:0:...", or nothing yet.
  static std::string link_local(const NetNamespace& where, const std::string& link) {
    std::string found;
    EXPECT_TRUE(where.run_inside([&]() -> Status {
      std::ifstream addresses("/proc/thread-self/net/if_inet6");
      for (std::string line; std::getline(addresses, line);) {
        if (!line.starts_with("fe80") || !line.ends_with(link)) continue;
        for (std::size_t i = 0; i < 32; i += 4) found += str(i == 0 ? "" : ":", line.substr(i, 4));
      }
      return {};
    }));
    return found;
  }
  Socket bind_in(const NetNamespace& where, const std::string& address) {
    Socket out;
    EXPECT_TRUE(where.run_inside([&]() -> Status {
      out = bind(address);
      return {};
    }));
    return out;
  }

  const std::string prefix_ = str("holo-test-udp-", ::getpid(), "-");
  std::optional<NetNamespace> red_, blue_;
  std::string red_address_, blue_address_;
  std::uint32_t red_index_ = 0, blue_index_ = 0;
};

TEST_F(UdpOnACable, LinkLocalAddressesHaveAScope) {
  End red{.socket = bind_in(*red_, str("[", red_address_, "%cable]:0"))};
  End blue{.socket = bind_in(*blue_, "[::]:0")};
  ASSERT_TRUE(red.socket && blue.socket);
  red.start();
  blue.start();
  EXPECT_EQ(red.socket->local().scope, red_index_);
  IpEndpoint to;
  ASSERT_TRUE(red_->run_inside([&]() -> Status {
    std::optional<Result<std::vector<IpEndpoint>>> found;
    const std::string address = str("[", blue_address_, "%cable]:", blue.socket->local().port);
    loop_.spawn(resolve_into(udp_, address, kNever, found));  // Numbers need no helper thread.
    if (!found || !*found) return fail(Errc::not_found, address);
    to = (*found)->front();
    return {};
  }));
  EXPECT_EQ(to.scope, red_index_);
  ASSERT_TRUE(red.socket->send({.local = {}, .remote = to}, Ecn::ect0, 1000, noise(3500)));
  ASSERT_TRUE(loop_.run_until([&] { return blue.arrived.size() == 4; }, kLimit));
  const DatagramPath path = blue.arrived[0].path;
  EXPECT_EQ(path.remote.ip, red.socket->local().ip);
  EXPECT_EQ(path.remote.scope, blue_index_);
  EXPECT_EQ(path.local.ip, to.ip);
  EXPECT_EQ(path.local.scope, blue_index_);
  ASSERT_TRUE(blue.socket->send(path, Ecn::ect1, 1000, noise(3500)));
  ASSERT_TRUE(loop_.run_until([&] { return red.arrived.size() == 4; }, kLimit));
  EXPECT_EQ(red.arrived[0].path.remote, to);
  EXPECT_EQ(red.arrived[0].path.local, red.socket->local());
}

TEST_F(UdpOnACable, ABurstIsNoLargerThanTheLinkTakesInOnePiece) {
  IpEndpoint to;
  const auto limit = [&] {
    std::size_t out = 0;
    EXPECT_TRUE(red_->run_inside([&]() -> Status {
      out = burst_limit(to);
      return {};
    }));
    return out;
  };
  auto at_red = RouteNetlink::open_in(*red_).value();
  ASSERT_TRUE(at_red.add_address("cable", {.address = 10U << 24 | 1, .bits = 24}));
  to = IpEndpoint::v4(10U << 24 | 2, 1);
  EXPECT_GT(limit(), 60'000U);
  ASSERT_TRUE(at_red.limit_segments("cable", 16'384));
  EXPECT_LT(limit(), 16'384U);
  EXPECT_GT(limit(), 16'000U);
  to = IpEndpoint::v4(10U << 24 | 1, 1);  // The machine itself.
  EXPECT_GT(limit(), 60'000U);
  to = IpEndpoint::v4(11U << 24, 1);  // No way there: nothing is known.
  EXPECT_GT(limit(), 60'000U);
}

TEST_F(UdpOnACable, WhatIsAboveTheMtuIsLostAndNeverFragmented) {
  constexpr std::size_t kLargest = 1500 - 40 - 8;
  End red{.socket = bind_in(*red_, str("[", red_address_, "%cable]:0"))};
  End blue{.socket = bind_in(*blue_, str("[", blue_address_, "%plug]:0"))};
  ASSERT_TRUE(red.socket && blue.socket);
  blue.start();
  DatagramPath path = red.to(blue);
  path.remote.scope = red_index_;
  ASSERT_TRUE(red.socket->send(path, Ecn::ect0, kLargest + 1, noise(kLargest + 1)));
  ASSERT_TRUE(red.socket->send(path, Ecn::ect0, kLargest + 1, noise(20 * (kLargest + 1))));
  EXPECT_GE(udp_.counters().send_errors, 2U);
  ASSERT_TRUE(red.socket->send(path, Ecn::ect0, kLargest, noise(44 * kLargest)));
  ASSERT_TRUE(loop_.run_until([&] { return blue.arrived.size() >= 44; }, kLimit));
  EXPECT_EQ(blue.arrived.size(), 44U);
  EXPECT_EQ(blue.arrived[0].bytes.size(), kLargest);
  EXPECT_EQ(udp_.counters().gso_refusals, 0U);
}

TEST_F(Udp, BindErrors) {
  auto socket = bind();
  EXPECT_NE(socket->local().port, 0);
  EXPECT_EQ(udp_.bind(to_string(socket->local())).error().code, Errc::already_exists);
  EXPECT_EQ(udp_.bind("192.0.2.1:0").error().code, Errc::invalid_argument);
  EXPECT_EQ(udp_.bind("nonsense").error().code, Errc::invalid_argument);
  EXPECT_EQ(udp_.bind("127.0.0.1:65536").error().code, Errc::invalid_argument);
}

TEST_F(Udp, SharesThePortOfATcpListener) {
  TcpCarrier tcp(loop_);
  for (int attempt = 0; attempt < 20; ++attempt) {  // Another program may have that UDP port, by chance.
    auto listener = tcp.listen("127.0.0.1:0", [](std::unique_ptr<env::ByteStream>) {});
    ASSERT_TRUE(listener);
    auto socket = udp_.bind((*listener)->address());
    if (!socket && socket.error().code == Errc::already_exists) continue;
    ASSERT_TRUE(socket) << socket.error().to_string();
    EXPECT_EQ(to_string((*socket)->local()), (*listener)->address());
    return;
  }
  FAIL() << "no port was free for both";
}

TEST_F(Udp, Resolves) {
  EXPECT_EQ(to_string(endpoint("127.0.0.1:80")), "127.0.0.1:80");
  EXPECT_EQ(to_string(endpoint("[2001:db8::1]:443")), "[2001:db8::1]:443");
  const auto local = resolve("localhost:7");
  ASSERT_TRUE(local) << local.error().to_string();
  for (const auto& e : *local) {
    EXPECT_TRUE(to_string(e) == "127.0.0.1:7" || to_string(e) == "[::1]:7") << to_string(e);
  }
  EXPECT_EQ(resolve("no port").error().code, Errc::invalid_argument);
  EXPECT_FALSE(resolve("host.invalid:80"));  // `unavailable`, or out of time where the name servers are slow.
  loop_.begin_stop();
  EXPECT_EQ(resolve("host.invalid:80").error().code, Errc::cancelled);
}

}  // namespace
}  // namespace holo::driver
