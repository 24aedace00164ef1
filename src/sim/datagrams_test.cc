#include "sim/datagrams.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/strings.h"

namespace holo::sim {
namespace {

using env::DatagramPath;
using env::Ecn;
using env::IpEndpoint;

/// A host with one socket on port 7, recording what arrives.
struct Machine {
  struct Arrival {
    Instant when;
    DatagramPath path;
    Ecn ecn;
    Bytes bytes;
    friend bool operator==(const Arrival&, const Arrival&) = default;
  };
  Machine(World& world, DatagramNetwork& network, const std::string& name, std::vector<std::string> addresses,
          const std::string& bind = "0.0.0.0:7")
      : loop(world), datagrams(network.attach(name, loop, std::move(addresses))) {
    socket = datagrams->bind(bind).value();
    socket->start({.on_datagrams =
                       [this](std::span<const env::Datagram> batch) {
                         largest_batch = std::max(largest_batch, batch.size());
                         for (const auto& d : batch) {
                           arrived.push_back({loop.now(), d.path, d.ecn, Bytes(d.bytes.begin(), d.bytes.end())});
                         }
                       },
                   .on_writable = [this] { ++writable; }});
  }
  SimLoop loop;
  std::unique_ptr<env::Datagrams> datagrams;
  std::unique_ptr<env::DatagramSocket> socket;
  std::vector<Arrival> arrived;
  std::size_t largest_batch = 0;
  int writable = 0;
};

Bytes numbered(std::uint32_t number, std::size_t size = 1000) {
  Bytes out(size);
  std::memcpy(out.data(), &number, sizeof number);
  return out;
}
std::uint32_t number_of(const Bytes& bytes) {
  std::uint32_t number = 0;
  std::memcpy(&number, bytes.data(), std::min(bytes.size(), sizeof number));
  return number;
}

Task<void> resolve_into(env::Datagrams& from, std::string address, Instant deadline,
                        std::optional<Result<std::vector<IpEndpoint>>>& out) {
  out = co_await from.resolve(address, deadline);
}

class Datagrams : public testing::Test {
 protected:
  void run(Duration d = seconds(5)) { world_.run_until(world_.now() + d); }
  Result<std::vector<IpEndpoint>> resolve(const std::string& address, Duration limit = seconds(1)) {
    std::optional<Result<std::vector<IpEndpoint>>> out;
    a_.loop.spawn(resolve_into(*a_.datagrams, address, a_.loop.now() + limit, out));
    run();
    return *out;
  }
  DatagramPath path(const std::string& to) { return {.local = {}, .remote = resolve(to).value().front()}; }
  /// `count` datagrams from a to b, one each `gap`.
  void send_many(std::uint32_t count, Duration gap = microseconds(10), std::size_t size = 1000) {
    for (std::uint32_t i = 0; i < count; ++i) {
      EXPECT_TRUE(a_.socket->send(to_b_, Ecn::ect0, size, numbered(i, size)));
      run(gap);
    }
    run();
  }
  std::vector<std::uint32_t> numbers() const {
    std::vector<std::uint32_t> out;
    for (const auto& a : b_.arrived) out.push_back(number_of(a.bytes));
    return out;
  }
  const DatagramCounters& counters() const { return network_.counters(); }

  World world_;
  DatagramNetwork network_{world_, 1};
  Machine a_{world_, network_, "a", {"10.0.0.1"}};
  Machine b_{world_, network_, "b", {"10.0.0.2", "10.1.0.2"}};
  const DatagramPath to_b_ = path("10.0.0.2:7");
};

TEST_F(Datagrams, WithoutFaultsAllArriveInOrderWithinTheDelay) {
  const Instant start = world_.now();
  const Bytes burst(44 * 1000 - 1);
  ASSERT_TRUE(a_.socket->send(to_b_, Ecn::ect1, 1000, burst));
  run();
  ASSERT_EQ(b_.arrived.size(), 44U);
  EXPECT_EQ(b_.arrived.back().bytes.size(), 999U);
  EXPECT_EQ(b_.arrived[0].ecn, Ecn::ect1);
  EXPECT_EQ(to_string(b_.arrived[0].path.remote), "10.0.0.1:7");
  EXPECT_EQ(to_string(b_.arrived[0].path.local), "10.0.0.2:7");
  EXPECT_GE(b_.arrived.front().when - start, microseconds(50));
  EXPECT_LE(b_.arrived.back().when - start, microseconds(500));
  EXPECT_GT(b_.largest_batch, 1U) << "what arrives at one instant comes together";
  b_.arrived.clear();
  send_many(1000);
  EXPECT_TRUE(std::ranges::is_sorted(numbers()));
  EXPECT_EQ(b_.arrived.size(), 1000U);
  EXPECT_EQ(counters().sent, 1044U);
  EXPECT_EQ(counters().delivered, 1044U);
}

TEST_F(Datagrams, LossDuplicationAndReorderingStrikeAsOftenAsAsked) {
  network_.defaults() = {.lost_per_thousand = 100, .duplicated_per_thousand = 50, .reordered_per_thousand = 50};
  send_many(10'000);
  EXPECT_NEAR(static_cast<double>(counters().lost), 1000, 150);
  EXPECT_NEAR(static_cast<double>(counters().duplicated), 450, 100);
  EXPECT_NEAR(static_cast<double>(counters().reordered), 470, 100);
  EXPECT_EQ(b_.arrived.size(), 10'000 - counters().lost + counters().duplicated);
  EXPECT_FALSE(std::ranges::is_sorted(numbers()));
}

TEST_F(Datagrams, DamageChangesBytesOrTheirNumber) {
  network_.defaults() = {.flipped_per_thousand = 100, .truncated_per_thousand = 100};
  send_many(1000);
  ASSERT_EQ(b_.arrived.size(), 1000U);
  std::uint64_t shorter = 0;
  std::uint64_t altered = 0;
  for (std::uint32_t i = 0; i < 1000; ++i) {
    const Bytes& bytes = b_.arrived[i].bytes;
    if (bytes.size() < 1000) ++shorter;
    const Bytes whole = numbered(i);
    if (!std::equal(bytes.begin(), bytes.end(), whole.begin())) ++altered;
  }
  EXPECT_EQ(shorter, counters().truncated);
  EXPECT_GT(shorter, 50U);
  EXPECT_GT(altered, 50U);
  EXPECT_LE(altered, counters().flipped);
}

TEST_F(Datagrams, ANarrowLinkQueuesMarksAndDrops) {
  network_.link("a", "b") = {.min_delay = {},
                             .max_delay = {},
                             .bytes_per_second = 1'028'000,
                             .queue_bytes = 20 * 1028,
                             .mark_bytes = 10 * 1028};
  const Instant start = world_.now();
  for (std::uint32_t i = 0; i < 30; ++i) EXPECT_TRUE(a_.socket->send(to_b_, Ecn::ect0, 1000, numbered(i)));
  run();
  EXPECT_EQ(b_.arrived.size(), 20U);
  EXPECT_EQ(counters().queue_full, 10U);
  EXPECT_EQ(b_.arrived[0].when - start, milliseconds(1));
  EXPECT_EQ(b_.arrived[19].when - start, milliseconds(20));
  EXPECT_EQ(b_.arrived[5].ecn, Ecn::ect0);
  EXPECT_EQ(b_.arrived[19].ecn, Ecn::ce);
  EXPECT_NEAR(static_cast<double>(counters().marked), 9, 1);
  send_many(50, milliseconds(1));
  EXPECT_EQ(b_.arrived.size(), 70U) << "at the rate of the link nothing is lost";
}

TEST_F(Datagrams, WhatIsAboveTheMtuVanishes) {
  network_.link("a", "b").largest = 1400;
  send_many(3, microseconds(10), 1401);
  send_many(3, microseconds(10), 1400);
  EXPECT_EQ(b_.arrived.size(), 3U);
  EXPECT_EQ(counters().too_large, 3U);
}

TEST_F(Datagrams, PartitionsCutOneWayOrBothAndHeal) {
  const auto both = [&] {
    b_.arrived.clear();
    a_.arrived.clear();
    EXPECT_TRUE(a_.socket->send(to_b_, Ecn::not_ect, 10, numbered(1, 10)));
    EXPECT_TRUE(b_.socket->send(path("10.0.0.1:7"), Ecn::not_ect, 10, numbered(1, 10)));
    run();
    return std::pair(a_.arrived.size(), b_.arrived.size());
  };
  using Arrived = std::pair<std::size_t, std::size_t>;  // at a, at b
  EXPECT_EQ(both(), Arrived(1, 1));
  network_.partition({"b"});
  EXPECT_EQ(both(), Arrived(0, 0));
  network_.heal();
  network_.link("a", "b").cut = true;
  EXPECT_EQ(both(), Arrived(1, 0));
  network_.forget_links();
  EXPECT_EQ(both(), Arrived(1, 1));
  network_.block("10.0.0.2");
  EXPECT_EQ(both(), Arrived(0, 0)) << "b speaks from its first address";
  const DatagramPath other = path("10.1.0.2:7");
  EXPECT_TRUE(a_.socket->send(other, Ecn::not_ect, 10, numbered(1, 10)));
  run();
  EXPECT_EQ(b_.arrived.size(), 1U);
  network_.unblock("10.0.0.2");
  EXPECT_EQ(both(), Arrived(1, 1));
  EXPECT_EQ(counters().cut, 5U);
}

TEST_F(Datagrams, AFlappingLinkPassesAPartOfTheTime) {
  network_.defaults() = {.flap_up = milliseconds(750), .flap_down = milliseconds(250)};
  send_many(400, milliseconds(10));
  EXPECT_EQ(counters().flapped, 100U);
  EXPECT_EQ(b_.arrived.size(), 300U);
}

TEST_F(Datagrams, ABusySocketSaysSoAndThenHasRoom) {
  network_.defaults().busy_per_thousand = 200;
  int refused = 0;
  for (int i = 0; i < 500; ++i) {
    if (!a_.socket->send(to_b_, Ecn::not_ect, 100, Bytes(1000))) {
      ++refused;
      EXPECT_FALSE(a_.socket->send(to_b_, Ecn::not_ect, 100, Bytes(1000)));
    }
    run(milliseconds(2));
    EXPECT_EQ(a_.writable, refused);
  }
  EXPECT_NEAR(refused, 100, 40);
  EXPECT_EQ(counters().busy, static_cast<std::uint64_t>(refused));
  EXPECT_EQ(b_.arrived.size(), 10U * static_cast<unsigned>(500 - refused));
}

TEST_F(Datagrams, ANatThatForgetsChangesTheAddressThatPeersSee) {
  send_many(1);
  const IpEndpoint first = b_.arrived.back().path.remote;
  std::set<IpEndpoint> seen{first};
  bool other_ip = false;
  bool same_ip = false;
  for (int i = 0; i < 20; ++i) {
    const IpEndpoint before = b_.arrived.back().path.remote;
    network_.rebind("a");
    ASSERT_TRUE(b_.socket->send({.local = to_b_.remote, .remote = before}, Ecn::not_ect, 10, Bytes(10)));
    run();
    EXPECT_TRUE(a_.arrived.empty()) << "the old mapping is forgotten";
    send_many(2);
    const IpEndpoint now = b_.arrived.back().path.remote;
    EXPECT_EQ(b_.arrived[b_.arrived.size() - 2].path.remote, now) << "the new one stays";
    EXPECT_TRUE(seen.insert(now).second);
    (now.ip == before.ip ? same_ip : other_ip) = true;
    ASSERT_TRUE(b_.socket->send({.local = to_b_.remote, .remote = now}, Ecn::not_ect, 10, Bytes(10)));
    run();
    ASSERT_EQ(a_.arrived.size(), 1U);
    EXPECT_EQ(a_.arrived[0].path.local, first) << "behind the NAT nothing changed";
    a_.arrived.clear();
  }
  EXPECT_TRUE(same_ip && other_ip);
  EXPECT_EQ(counters().unreachable, 20U);
  network_.leave_nat("a");
  send_many(1);
  EXPECT_EQ(b_.arrived.back().path.remote, first);
}

TEST_F(Datagrams, AddressesComeAndGo) {
  network_.remove_address("a", "10.0.0.1");
  send_many(1);
  EXPECT_TRUE(b_.arrived.empty()) << "no address to send from";
  network_.add_address("a", "10.0.0.9");
  send_many(1);
  ASSERT_EQ(b_.arrived.size(), 1U);
  EXPECT_EQ(to_string(b_.arrived[0].path.remote), "10.0.0.9:7");
  DatagramPath stale = to_b_;
  stale.local = path("10.0.0.1:7").remote;
  EXPECT_TRUE(a_.socket->send(stale, Ecn::not_ect, 10, Bytes(10)));
  run();
  EXPECT_EQ(b_.arrived.size(), 1U);
  EXPECT_EQ(counters().unreachable, 2U);
}

TEST_F(Datagrams, BindsAndResolves) {
  EXPECT_EQ(a_.datagrams->bind("0.0.0.0:7").error().code, Errc::already_exists);
  EXPECT_EQ(a_.datagrams->bind("10.0.0.1:7").error().code, Errc::already_exists);
  EXPECT_EQ(a_.datagrams->bind("10.0.0.2:8").error().code, Errc::invalid_argument);
  for (const char* bad :
       {"", "7", "10.0.0.1", "10.0.0.1:", "10.0.0.1:65536", "10.0.0:7", "10.0.0.256:7", ":7", "b:7"}) {
    EXPECT_EQ(a_.datagrams->bind(bad).error().code, Errc::invalid_argument) << bad;
  }
  auto first = a_.datagrams->bind("[::]:0");
  auto second = a_.datagrams->bind("10.0.0.1:0");
  ASSERT_TRUE(first && second);
  EXPECT_NE((*first)->local().port, (*second)->local().port);
  first->reset();

  EXPECT_EQ(to_string(resolve("10.0.0.77:5").value().front()), "10.0.0.77:5");
  const auto both = resolve("b:7").value();
  ASSERT_EQ(both.size(), 2U);
  EXPECT_EQ(to_string(both[1]), "10.1.0.2:7");
  EXPECT_EQ(resolve("nobody:7").error().code, Errc::unavailable);
  EXPECT_EQ(resolve("b").error().code, Errc::invalid_argument);
  EXPECT_EQ(resolve("b:7", microseconds(1)).error().code, Errc::deadline_exceeded);
  a_.loop.begin_stop();
  EXPECT_EQ(resolve("b:7").error().code, Errc::cancelled);
}

TEST_F(Datagrams, NobodyThereOrDeadMeansSilence) {
  EXPECT_TRUE(a_.socket->send(path("10.0.0.2:8"), Ecn::not_ect, 10, Bytes(10)));
  EXPECT_TRUE(a_.socket->send(path("10.9.9.9:7"), Ecn::not_ect, 10, Bytes(10)));
  EXPECT_TRUE(a_.socket->send(to_b_, Ecn::not_ect, 10, Bytes(10)));
  network_.kill("b");  // While one is under way.
  run();
  EXPECT_TRUE(b_.arrived.empty());
  EXPECT_EQ(counters().unreachable, 3U);
  Machine again(world_, network_, "b", {"10.0.0.2"});
  EXPECT_TRUE(b_.socket->send(path("10.0.0.1:7"), Ecn::not_ect, 10, Bytes(10)));
  send_many(1);
  EXPECT_EQ(again.arrived.size(), 1U);
  EXPECT_TRUE(a_.arrived.empty()) << "what was killed does not speak";
}

TEST_F(Datagrams, ASocketMayDieInItsOwnCallback) {
  int calls = 0;
  auto victim = b_.datagrams->bind("0.0.0.0:8").value();
  victim->start({.on_datagrams =
                     [&](std::span<const env::Datagram> batch) {
                       ++calls;
                       victim.reset();
                       EXPECT_EQ(batch[0].bytes.size(), 10U);
                     },
                 .on_writable = {}});
  const DatagramPath to = path("10.0.0.2:8");
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(a_.socket->send(to, Ecn::not_ect, 10, Bytes(1000)));
  run();
  EXPECT_EQ(calls, 1);
}

TEST_F(Datagrams, BeforeTheStartASocketKeepsWhatItHasRoomFor) {
  auto late = b_.datagrams->bind("0.0.0.0:8").value();
  const DatagramPath to = path("10.0.0.2:8");
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(a_.socket->send(to, Ecn::not_ect, 1024, Bytes(64 << 10)));
  run();
  std::size_t seen = 0;
  late->start({.on_datagrams =
                   [&](std::span<const env::Datagram> batch) {
                     EXPECT_LE(batch.size(), env::DatagramSocket::kMaxBatch);
                     seen += batch.size();
                   },
               .on_writable = {}});
  run();
  EXPECT_EQ(seen, DatagramNetwork::kReceiveBuffer / 1024);
  EXPECT_EQ(late->dropped(), 20U * 64 - seen);
  EXPECT_EQ(counters().overflowed, late->dropped());
}

std::vector<Machine::Arrival> story(std::uint64_t seed, Tally& tally) {
  World world;
  DatagramNetwork network(world, seed);
  network.defaults() = {.bytes_per_second = 10'000'000,
                        .queue_bytes = 10'000,
                        .lost_per_thousand = 50,
                        .duplicated_per_thousand = 50,
                        .reordered_per_thousand = 50,
                        .flipped_per_thousand = 50,
                        .truncated_per_thousand = 50,
                        .busy_per_thousand = 50};
  Machine a(world, network, "a", {"10.0.0.1"});
  Machine b(world, network, "b", {"10.0.0.2"});
  DatagramPath path{.local = {}, .remote = b.socket->local()};
  path.remote.ip = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2};
  for (std::uint32_t i = 0; i < 500; ++i) {
    (void)a.socket->send(path, Ecn::not_ect, 1000, numbered(i));
    if (i % 100 == 50) network.rebind("a");
    world.run_until(world.now() + microseconds(50));
  }
  world.run_until(world.now() + seconds(1));
  network.counters().add_to(tally);
  return b.arrived;
}

TEST(DatagramNetworks, ASeedReplaysExactly) {
  Tally first, second, other;
  const auto arrived = story(3, first);
  EXPECT_GT(arrived.size(), 100U);
  EXPECT_EQ(arrived, story(3, second));
  EXPECT_EQ(first, second);
  EXPECT_NE(arrived, story(4, other));
  EXPECT_EQ(first["datagrams rebound"], 5U);
  for (const char* fault : {"lost", "duplicated", "reordered", "flipped", "truncated", "queue full", "busy"}) {
    EXPECT_GT(first[str("datagrams ", fault)], 0U) << fault;
  }
}

}  // namespace
}  // namespace holo::sim
