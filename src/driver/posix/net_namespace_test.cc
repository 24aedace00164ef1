#include "driver/posix/net_namespace.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "driver/posix/ipv4.h"
#include "driver/posix/rtnetlink.h"

namespace holo::driver {
namespace {

constexpr std::uint32_t kRed = 10 << 24 | 1, kBlue = 10 << 24 | 2;
constexpr std::uint16_t kPort = 7;

/// Two namespaces with a cable between them: red has 10.0.0.1, blue 10.0.0.2.
class TwoNamespaces : public testing::Test {
 protected:
  void SetUp() override {
    auto red = NetNamespace::create(prefix_ + "red");
    if (!red) GTEST_SKIP() << "no network namespaces here: " << red.error().message;
    red_.emplace(std::move(*red));
    blue_.emplace(NetNamespace::create(prefix_ + "blue").value());
    auto at_red = RouteNetlink::open_in(*red_).value();
    auto at_blue = RouteNetlink::open_in(*blue_).value();
    ASSERT_TRUE(at_red.add_veth("cable", *blue_, "cable"));
    ASSERT_TRUE(at_red.add_address("cable", {.address = kRed, .bits = 24}));
    ASSERT_TRUE(at_blue.add_address("cable", {.address = kBlue, .bits = 24}));
    for (auto* side : {&at_red, &at_blue}) {
      ASSERT_TRUE(side->set_up("lo"));
      ASSERT_TRUE(side->set_up("cable"));
    }
  }
  void TearDown() override {
    if (red_) (void)RouteNetlink::open_in(*red_)->remove_link("cable");
    for (const auto& name : NetNamespace::names(prefix_)) EXPECT_TRUE(NetNamespace::remove(name));
    EXPECT_TRUE(NetNamespace::names(prefix_).empty());
  }

  static env::Fd udp_socket(const NetNamespace& where, std::uint32_t address) {
    env::Fd fd;
    EXPECT_TRUE(where.run_inside([&]() -> Status {
      fd = env::Fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
      const auto own = socket_address(address);
      EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&own), sizeof own), 0);
      return {};
    }));
    return fd;
  }
  static sockaddr_in socket_address(std::uint32_t address) {
    sockaddr_in out{};
    out.sin_family = AF_INET;
    out.sin_port = htons(kPort);
    out.sin_addr.s_addr = htonl(address);
    return out;
  }
  /// Sends `text` from one to the other, and says whether it came within a while.
  static bool arrives(const env::Fd& from, const env::Fd& to, std::uint32_t address, int limit_ms) {
    const auto there = socket_address(address);
    EXPECT_EQ(::sendto(from.get(), "x", 1, 0, reinterpret_cast<const sockaddr*>(&there), sizeof there), 1);
    pollfd p{to.get(), POLLIN, 0};
    if (::poll(&p, 1, limit_ms) <= 0) return false;
    char c = 0;
    return ::recv(to.get(), &c, 1, 0) == 1 && c == 'x';
  }

  const std::string prefix_ = "holo-test-" + std::to_string(::getpid()) + "-";
  std::optional<NetNamespace> red_, blue_;
};

TEST_F(TwoNamespaces, HaveTheirOwnLinksAndAddresses) {
  auto here = RouteNetlink::open().value();
  auto at_red = RouteNetlink::open_in(*red_).value();
  EXPECT_TRUE(at_red.index_of("cable"));
  EXPECT_EQ(here.index_of("cable").error().code, Errc::not_found);
  const auto routes = at_red.routes().value();
  EXPECT_TRUE(std::ranges::count(routes, Ipv4Range{.address = 10 << 24, .bits = 24}));
  EXPECT_TRUE(std::ranges::count(routes, Ipv4Range{.address = kRed, .bits = 32}));
  EXPECT_EQ(NetNamespace::names(prefix_), (std::vector{prefix_ + "blue", prefix_ + "red"}));
  EXPECT_EQ(NetNamespace::create(prefix_ + "red").error().code, Errc::already_exists);
  EXPECT_EQ(NetNamespace::open(prefix_ + "green").error().code, Errc::not_found);
}

TEST_F(TwoNamespaces, UdpCanBeBlockedWithoutAnAnswerAndAgainAllowed) {
  const auto red = udp_socket(*red_, kRed), blue = udp_socket(*blue_, kBlue);
  auto at_blue = RouteNetlink::open_in(*blue_).value();
  EXPECT_TRUE(arrives(red, blue, kBlue, 5000));
  ASSERT_TRUE(at_blue.drop_udp_from("cable"));
  ASSERT_TRUE(at_blue.drop_udp_from("cable"));
  EXPECT_FALSE(arrives(red, blue, kBlue, 100));
  EXPECT_TRUE(arrives(blue, red, kRed, 5000));  // What leaves still leaves.
  ASSERT_TRUE(at_blue.accept_udp_from("cable"));
  ASSERT_TRUE(at_blue.accept_udp_from("cable"));
  EXPECT_TRUE(arrives(red, blue, kBlue, 5000));
}

TEST_F(TwoNamespaces, ABridgePassesOnBetweenWhatIsPluggedIntoIt) {
  constexpr std::uint32_t kGreen = kRed + 2;
  const auto green = NetNamespace::create(prefix_ + "green").value();
  auto at_red = RouteNetlink::open_in(*red_).value();
  auto at_green = RouteNetlink::open_in(green).value();
  ASSERT_TRUE(at_red.add_bridge("middle"));
  ASSERT_TRUE(at_red.set_up("middle"));
  ASSERT_TRUE(at_red.add_veth("cable2", green, "cable"));
  ASSERT_TRUE(at_red.set_up("cable2"));
  ASSERT_TRUE(at_green.add_address("cable", {.address = kGreen, .bits = 24}));
  ASSERT_TRUE(at_green.set_up("cable"));
  ASSERT_TRUE(at_red.plug("cable", "middle"));
  ASSERT_TRUE(at_red.plug("cable2", "middle"));
  const auto from = udp_socket(*blue_, kBlue), to = udp_socket(green, kGreen);
  EXPECT_TRUE(arrives(from, to, kGreen, 5000));
  ASSERT_TRUE(at_red.plug("cable", ""));
  EXPECT_FALSE(arrives(from, to, kGreen, 100));
  ASSERT_TRUE(at_red.plug("cable", "middle"));
  EXPECT_TRUE(arrives(from, to, kGreen, 5000));
  EXPECT_TRUE(at_red.remove_link("cable2"));
}

TEST_F(TwoNamespaces, LinksAreShapedAndRefusalsHaveReasons) {
  auto at_red = RouteNetlink::open_in(*red_).value();
  EXPECT_TRUE(at_red.limit_segments("cable", 16384));
  EXPECT_TRUE(
      at_red.shape("cable", {.bytes_per_second = 125'000'000, .burst_bytes = 20000, .latency = milliseconds(50)}));
  EXPECT_TRUE(
      at_red.shape("cable", {.bytes_per_second = 12'500'000'000, .burst_bytes = 20000, .latency = milliseconds(50)}));
  EXPECT_EQ(at_red.set_up("nothing").error().code, Errc::not_found);
  EXPECT_EQ(at_red.add_bridge("cable").error().code, Errc::already_exists);
  EXPECT_TRUE(at_red.remove_link("nothing"));
}

TEST(Ipv4Range, Overlaps) {
  const Ipv4Range ten{.address = 10 << 24, .bits = 8}, inside{.address = 10 << 24 | 5 << 8, .bits = 24};
  const Ipv4Range beside{.address = 11 << 24, .bits = 8}, all{.address = 0, .bits = 0};
  EXPECT_TRUE(ten.overlaps(inside) && inside.overlaps(ten) && all.overlaps(ten) && ten.overlaps(ten));
  EXPECT_FALSE(ten.overlaps(beside) || inside.overlaps(beside));
  EXPECT_EQ(ipv4_text(inside), "10.0.5.0/24");
}

}  // namespace
}  // namespace holo::driver
