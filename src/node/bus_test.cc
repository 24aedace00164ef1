// The bus over real TCP on the loopback: several nodes on one loop.
#include "node/bus.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "base/random.h"
#include "base/strings.h"
#include "core/hyperbus/test_support.h"
#include "driver/posix/address.h"
#include "driver/posix/asio_loop.h"
#include "driver/posix/os_entropy.h"
#include "driver/posix/tcp.h"
#include "driver/posix/udp.h"
#include "driver/quic/quic.h"
#include "env/fd.h"
#include "env/landing_testing.h"

namespace holo::node {
namespace {

using hyperbus::testing::config_of;
using hyperbus::testing::pattern;
using hyperbus::testing::session_config;

constexpr Duration kLimit = seconds(30);
enum : std::uint16_t { kEcho = 1, kFail, kSilent, kWho };

Task<Result<env::Reply>> echo(NodeId, env::Request request) {
  co_return env::Reply{.header = request.header, .payload = request.payload};
}
Task<Result<env::Reply>> refuse(NodeId, env::Request) {
  co_return std::unexpected(
      Error{.code = Errc::page_lost, .message = "page 7 is gone", .hint = "restore it", .node = 42, .retryable = true});
}
Task<Result<env::Reply>> who(NodeId from, env::Request) {
  co_return env::Reply{.header = to_hex(from.value), .payload = {}};
}
Task<Result<env::Reply>> never(env::Loop& loop) {
  (void)co_await env::sleep_for(loop, seconds(10'000));
  co_return fail(Errc::cancelled, "stopping");
}

/// One node: a bus with the handlers above, listening.
struct TestNode {
  TestNode(env::Loop& loop, env::Carrier& carrier, std::uint8_t seed, std::uint8_t key = 77, BusOptions options = {},
           const std::string& listen = "127.0.0.1:0") {
    options.session = session_config(config_of(seed, key));
    bus = std::make_unique<Bus>(loop, carrier, entropy, std::move(options));
    bus->serve(kEcho, echo);
    bus->serve(kFail, refuse);
    bus->serve(kWho, who);
    bus->serve(kSilent, [&loop](NodeId, env::Request) { return never(loop); });
    bus->on_peer_lost([this](NodeId peer, const Error&) { lost.push_back(peer); });
    auto bound = bus->listen(listen);
    EXPECT_TRUE(bound) << bound.error().to_string();
    address = bound.value_or("");
  }
  NodeId id() const { return bus->self(); }

  driver::OsEntropy entropy;
  std::unique_ptr<Bus> bus;
  std::string address;
  std::vector<NodeId> lost;
};

using Outcome = std::shared_ptr<std::optional<Result<env::Reply>>>;

Task<void> call_into(Bus& bus, NodeId peer, env::Request request, env::CallOptions options, Outcome out) {
  *out = co_await bus.call(peer, std::move(request), options);
}
Task<void> connect_into(Bus& bus, std::string address, Instant deadline,
                        std::optional<Result<env::PeerIdentity>>& out) {
  out = co_await bus.connect(address, deadline);
}

/// Every test runs over both carriers: QUIC with TCP behind it, and TCP alone.
class BusTest : public testing::TestWithParam<CarrierUse> {
 protected:
  ~BusTest() override {
    nodes_.clear();
    loop_.begin_stop();
    EXPECT_TRUE(loop_.run_until([&] { return loop_.running() == 0; }, kLimit)) << "a task never ended";
  }
  TestNode& add(std::uint8_t seed, std::uint8_t key = 77, BusOptions options = {}) {
    options.use = GetParam();
    options.datagrams = &datagrams_;
    options.quic = quic_.get();
    nodes_.push_back(std::make_unique<TestNode>(loop_, carrier_, seed, key, std::move(options)));
    return *nodes_.back();
  }
  static void introduce(TestNode& a, TestNode& b) {
    a.bus->set_addresses(b.id(), {b.address});
    b.bus->set_addresses(a.id(), {a.address});
  }
  Outcome begin(TestNode& from, NodeId to, env::Request request, Duration limit = seconds(20),
                env::StreamClass klass = env::StreamClass::control) {
    auto out = std::make_shared<std::optional<Result<env::Reply>>>();
    const env::CallOptions options{.klass = klass, .deadline = loop_.now() + limit};
    loop_.spawn(call_into(*from.bus, to, std::move(request), options, out));
    return out;
  }
  Result<env::Reply> finish(const Outcome& out) {
    EXPECT_TRUE(loop_.run_until([&] { return out->has_value(); }, kLimit)) << "a call never ended";
    return out->has_value() ? **out : fail(Errc::internal, "never ended");
  }
  Result<env::Reply> call(TestNode& from, NodeId to, env::Request request, Duration limit = seconds(20)) {
    return finish(begin(from, to, std::move(request), limit));
  }
  Result<env::PeerIdentity> connect(TestNode& from, const std::string& address, Duration limit = seconds(20)) {
    std::optional<Result<env::PeerIdentity>> out;
    loop_.spawn(connect_into(*from.bus, address, loop_.now() + limit, out));
    EXPECT_TRUE(loop_.run_until([&] { return out.has_value(); }, kLimit)) << "connect never ended";
    return out ? *out : fail(Errc::internal, "never ended");
  }

  driver::AsioLoop loop_;
  driver::UdpDatagrams datagrams_{loop_};
  std::unique_ptr<env::QuicStack> quic_ = driver::quic::make_stack();
  driver::TcpCarrier carrier_{loop_};
  std::vector<std::unique_ptr<TestNode>> nodes_;
};

TEST_P(BusTest, CallsAnswersAndErrors) {
  auto& a = add(1);
  auto& b = add(2);
  introduce(a, b);
  const auto reply =
      call(a, b.id(),
           {.type = kEcho, .header = "hello", .payload = {Buffer::copy(as_bytes("ab")), Buffer::copy(as_bytes("c"))}});
  ASSERT_TRUE(reply) << reply.error().to_string();
  EXPECT_EQ(reply->header, "hello");
  EXPECT_EQ(as_text(hyperbus::testing::joined(reply->payload)), "abc");
  EXPECT_EQ(call(a, b.id(), {.type = kWho})->header, to_hex(a.id().value));
  EXPECT_EQ(call(b, a.id(), {.type = kWho})->header, to_hex(b.id().value)) << "back over the same connection";
  EXPECT_EQ(a.bus->links().size(), 1U);
  EXPECT_EQ(b.bus->links().size(), 1U);
  EXPECT_TRUE(a.bus->links()[0].dialled);
  EXPECT_FALSE(b.bus->links()[0].dialled);
  EXPECT_GT(b.bus->links()[0].figures.bytes_in, 0U);
  EXPECT_TRUE(a.bus->connected(b.id()) && b.bus->connected(a.id()));

  EXPECT_EQ(
      call(a, b.id(), {.type = kFail}).error(),
      (Error{
          .code = Errc::page_lost, .message = "page 7 is gone", .hint = "restore it", .node = 42, .retryable = true}));
  EXPECT_EQ(call(a, b.id(), {.type = 999}).error().code, Errc::unsupported);
  const Instant start = loop_.now();
  EXPECT_EQ(call(a, b.id(), {.type = kSilent}, milliseconds(50)).error().code, Errc::deadline_exceeded);
  EXPECT_GE(loop_.now(), start + milliseconds(50));
  EXPECT_TRUE(call(a, b.id(), {.type = kEcho})) << "the connection goes on";
}

TEST_P(BusTest, RoundTripsAndHandshakesAreMeasured) {
  auto& a = add(1);
  auto& b = add(2);
  introduce(a, b);
  EXPECT_FALSE(a.bus->link(b.id()));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(call(a, b.id(), {.type = kEcho}));
  ASSERT_FALSE(call(a, b.id(), {.type = kFail}));
  ASSERT_TRUE(finish(begin(a, b.id(), {.type = kEcho}, seconds(20), env::StreamClass::bulk)));
  const auto count = [&](env::StreamClass klass) {
    return a.bus->link(b.id())->round_trips[static_cast<std::size_t>(klass)].count;
  };
  EXPECT_EQ(count(env::StreamClass::control), 3U) << "only what was answered";
  EXPECT_EQ(count(env::StreamClass::bulk), 1U);
  EXPECT_EQ(count(env::StreamClass::data), 0U);
  const auto times = a.bus->link(b.id())->round_trips[0];
  EXPECT_GT(times.min.ns, 0);
  EXPECT_LE(times.p99, times.max);
  EXPECT_EQ(b.bus->link(a.id())->round_trips[0].count, 0U);

  EXPECT_EQ(a.bus->handshakes().dialled.done, 1U);
  EXPECT_EQ(b.bus->handshakes().accepted.done, 1U);
  EXPECT_EQ(a.bus->handshakes().duration.count, 1U);
  EXPECT_GT(b.bus->handshakes().duration.min.ns, 0);

  auto& stranger = add(3, 78);
  ASSERT_FALSE(connect(stranger, b.address));
  const auto wrong_key = static_cast<std::size_t>(hyperbus::RefusalKind::wrong_key);
  EXPECT_GE(b.bus->handshakes().accepted.failed[wrong_key], 1U);
  EXPECT_GE(stranger.bus->handshakes().dialled.failed[wrong_key], 1U);
  EXPECT_EQ(stranger.bus->handshakes().duration.count, 0U);

  // They outlive the connection.
  a.bus->disconnect(b.id());
  ASSERT_TRUE(call(a, b.id(), {.type = kEcho}));
  EXPECT_EQ(count(env::StreamClass::control), 4U);
}

TEST_P(BusTest, CallsToOneselfTakeTheSamePath) {
  auto& a = add(1);
  const auto reply =
      call(a, a.id(),
           {.type = kEcho, .header = "me", .payload = {Buffer::copy(as_bytes("ab")), Buffer::copy(as_bytes("c"))}});
  ASSERT_TRUE(reply);
  ASSERT_EQ(reply->payload.size(), 1U) << "one buffer, as from the network";
  EXPECT_EQ(as_text(reply->payload[0].span()), "abc");
  EXPECT_EQ(call(a, a.id(), {.type = kWho})->header, to_hex(a.id().value));
  EXPECT_EQ(call(a, a.id(), {.type = kFail}).error().code, Errc::page_lost);
  EXPECT_EQ(call(a, a.id(), {.type = 999}).error().code, Errc::unsupported);
  EXPECT_EQ(call(a, a.id(), {.type = kSilent}, milliseconds(20)).error().code, Errc::deadline_exceeded);
  EXPECT_EQ(call(a, a.id(), {.type = kEcho, .header = std::string(limits::kMaxHeaderBytes + 1, 'x')}).error().code,
            Errc::invalid_argument);
  EXPECT_TRUE(a.bus->links().empty());
}

TEST_P(BusTest, LargestPayload) {
  auto& a = add(1);
  auto& b = add(2);
  introduce(a, b);
  const Bytes sent = pattern(limits::kMaxPayloadBytes);
  const auto out = begin(a, b.id(), {.type = kEcho, .header = {}, .payload = {Buffer(Bytes(sent))}}, seconds(25),
                         env::StreamClass::bulk);
  const auto reply = finish(out);
  ASSERT_TRUE(reply) << reply.error().to_string();
  EXPECT_EQ(hyperbus::testing::joined(reply->payload), sent);
  EXPECT_EQ(call(a, b.id(), {.type = kEcho, .header = {}, .payload = {Buffer(Bytes(limits::kMaxPayloadBytes + 1))}})
                .error()
                .code,
            Errc::invalid_argument);
}

TEST_P(BusTest, AnAnswerGoesStraightToItsPlace) {
  auto& a = add(1);
  auto& b = add(2);
  introduce(a, b);
  ASSERT_TRUE(call(a, b.id(), {.type = kEcho}));
  const Bytes sent = pattern(256 << 10);
  Bytes memory(sent.size());
  const auto landing = std::make_shared<env::OnePlace>(memory);
  const auto reply =
      call(a, b.id(), {.type = kEcho, .header = "h", .payload = {Buffer(Bytes(sent))}, .landing = landing});
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->header, "h");
  ASSERT_EQ(reply->payload.size(), 1U);
  EXPECT_EQ(reply->payload[0].span().data(), memory.data());
  EXPECT_EQ(memory, sent);

  Bytes untouched(sent.size());
  const auto shorter = std::make_shared<env::OnePlace>(MutableByteSpan(untouched).first(100));
  const auto longer =
      call(a, b.id(), {.type = kEcho, .header = {}, .payload = {Buffer(Bytes(sent))}, .landing = shorter});
  EXPECT_EQ(hyperbus::testing::joined(longer->payload), sent);
  EXPECT_EQ(untouched, Bytes(sent.size()));

  // However a call ends, its place is nobody's then.
  const auto late = std::make_shared<env::OnePlace>(untouched);
  EXPECT_FALSE(call(a, b.id(), {.type = kSilent, .header = {}, .payload = {}, .landing = late}, milliseconds(20)));
  const auto broken = std::make_shared<env::OnePlace>(untouched);
  const auto out = begin(a, b.id(), {.type = kSilent, .header = {}, .payload = {}, .landing = broken}, seconds(20),
                         env::StreamClass::data);
  a.bus->disconnect(b.id());
  EXPECT_FALSE(finish(out));
  EXPECT_EQ(late.use_count(), 1);
  EXPECT_EQ(broken.use_count(), 1);
  EXPECT_EQ(untouched, Bytes(sent.size()));
}

TEST_P(BusTest, ARequestGoesStraightToThePlacesThatItsTypeHas) {
  auto& a = add(1);
  auto& b = add(2);
  introduce(a, b);
  ASSERT_TRUE(call(a, b.id(), {.type = kWho}));
  int asked = 0;
  std::size_t buffers = 0;
  std::shared_ptr<env::testing::Pieces> places;
  b.bus->set_placer(kEcho, [&](NodeId from, const env::Request& announced, std::uint64_t bytes) {
    ++asked;
    EXPECT_EQ(from, a.id());
    EXPECT_EQ(announced.header, "h");
    places = std::make_shared<env::testing::Pieces>(bytes, 64 << 10);
    return places;
  });
  b.bus->serve(kEcho, [&](NodeId from, env::Request request) {
    buffers = request.payload.size();
    return echo(from, std::move(request));
  });
  const Bytes sent = pattern((256 << 10) + 5);
  const auto reply = call(a, b.id(), {.type = kEcho, .header = "h", .payload = {Buffer(Bytes(sent))}});
  ASSERT_TRUE(reply);
  EXPECT_EQ(hyperbus::testing::joined(reply->payload), sent);
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(buffers, 5U);
  EXPECT_TRUE(call(a, b.id(), {.type = kEcho, .header = "h"})) << "nothing to place";
  EXPECT_EQ(asked, 1);
  const auto unplaced = call(a, b.id(), {.type = kSilent, .payload = {Buffer(Bytes(sent))}}, milliseconds(20));
  EXPECT_FALSE(unplaced);
  EXPECT_EQ(asked, 1) << "another type";
  // Given up in the middle, or answered: nothing holds the places.
  const auto out = begin(a, b.id(), {.type = kEcho, .header = "h", .payload = {Buffer(Bytes(sent))}});
  a.bus->disconnect(b.id());
  EXPECT_FALSE(finish(out));
  EXPECT_TRUE(loop_.run_until([&] { return places->living() == 0; }, seconds(5)));
}

TEST_P(BusTest, ManyCallsAtOnceOverOneConnection) {
  auto& a = add(1);
  auto& b = add(2);
  introduce(a, b);
  const Buffer page(pattern(64 << 10));
  std::vector<Outcome> calls;
  for (int i = 0; i < 400; ++i) {
    const auto klass = static_cast<env::StreamClass>(i % 3);
    calls.push_back(begin(i % 2 ? a : b, i % 2 ? b.id() : a.id(),
                          {.type = kEcho, .header = std::to_string(i), .payload = {page}}, seconds(25), klass));
  }
  for (int i = 0; i < 400; ++i) {
    const auto reply = finish(calls[static_cast<std::size_t>(i)]);
    ASSERT_TRUE(reply) << i << ": " << reply.error().to_string();
    EXPECT_EQ(reply->header, std::to_string(i));
    EXPECT_EQ(reply->payload.at(0).size(), page.size());
  }
}

TEST_P(BusTest, SimultaneousDialsLeaveTheOneOfTheSmallerId) {
  auto& a = add(1);
  auto& b = add(2);
  introduce(a, b);
  std::vector<Outcome> calls;
  for (int i = 0; i < 50; ++i) {
    calls.push_back(begin(a, b.id(), {.type = kWho}));
    calls.push_back(begin(b, a.id(), {.type = kWho}));
  }
  for (std::size_t i = 0; i < calls.size(); ++i) {
    const auto reply = finish(calls[i]);
    ASSERT_TRUE(reply) << reply.error().to_string();
    EXPECT_EQ(reply->header, to_hex((i % 2 == 0 ? a : b).id().value));
  }
  // Traffic goes on while the other connection is taken down; none of it may be lost.
  const Instant until = loop_.now() + seconds(10);
  while ((a.bus->links().size() != 1 || b.bus->links().size() != 1) && loop_.now() < until) {
    ASSERT_TRUE(call(a, b.id(), {.type = kEcho}));
    ASSERT_TRUE(call(b, a.id(), {.type = kEcho}));
  }
  ASSERT_EQ(a.bus->links().size(), 1U);
  ASSERT_EQ(b.bus->links().size(), 1U);
  EXPECT_EQ(a.bus->links()[0].dialled, a.id() < b.id());
  EXPECT_EQ(b.bus->links()[0].dialled, b.id() < a.id());
  EXPECT_TRUE(a.lost.empty() && b.lost.empty());
}

TEST_P(BusTest, ConnectFindsOutWhoIsThere) {
  auto& a = add(1);
  auto& b = add(2);
  const auto found = connect(a, b.address);
  ASSERT_TRUE(found) << found.error().to_string();
  EXPECT_EQ(found->node, b.id());
  EXPECT_TRUE(call(a, b.id(), {.type = kEcho}));
  EXPECT_TRUE(call(b, a.id(), {.type = kEcho})) << "over the connection that stands; b has no address of a";
  EXPECT_EQ(connect(a, a.address).error().code, Errc::refused) << "itself";
  EXPECT_EQ(connect(a, "nonsense").error().code, Errc::invalid_argument);
}

TEST_P(BusTest, WrongKeyIsToldToBothSidesWithinASecond) {
  auto& a = add(1);
  auto& stranger = add(9, 78);
  const Instant start = loop_.now();
  const auto refused = connect(stranger, a.address);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::wrong_key) << refused.error().to_string();
  EXPECT_LT(loop_.now() - start, seconds(1));
  EXPECT_TRUE(loop_.run_until([&] { return a.bus->refused().wrong_key == 1; }, kLimit));
  EXPECT_EQ(a.bus->refused().garbage, 0U);
  EXPECT_TRUE(a.bus->links().empty());
  stranger.bus->set_addresses(a.id(), {a.address});
  EXPECT_EQ(call(stranger, a.id(), {.type = kEcho}).error().code, Errc::wrong_key) << "also for a call";
}

TEST_P(BusTest, AnotherVersionIsToldToBothSides) {
  auto& a = add(1);
  auto config = config_of(5);
  config.newest_version = config.oldest_version = hyperbus::kNewestVersion + 1;
  TestNode next(loop_, carrier_, 5);
  next.bus->set_session_config(session_config(std::move(config)));
  EXPECT_EQ(connect(next, a.address).error().code, Errc::wrong_version);
  EXPECT_TRUE(loop_.run_until([&] { return a.bus->refused().wrong_version == 1; }, kLimit));
  next.bus.reset();
}

/// A node of the next release speaks its version and this one's: with each other node the newest that both speak.
TEST_P(BusTest, ReleasesMeetInAnUpgrade) {
  constexpr std::uint16_t kNext = hyperbus::kNewestVersion + 1;
  auto& now = add(1);
  auto& next = add(2);
  auto& after = add(3);  // This release's version is gone there.
  const auto speaks = [](TestNode& node, std::uint8_t seed, std::uint16_t oldest) {
    auto config = config_of(seed);
    config.oldest_version = oldest;
    config.newest_version = kNext;
    node.bus->set_session_config(session_config(std::move(config)));
  };
  speaks(next, 2, hyperbus::kNewestVersion);
  speaks(after, 3, kNext);
  const auto meet = [&](TestNode& a, TestNode& b) -> int {
    a.bus->set_addresses(b.id(), {b.address});
    const auto answer = call(a, b.id(), {.type = kEcho, .header = "hello"});
    if (!answer) return answer.error().code == Errc::wrong_version ? 0 : -1;
    EXPECT_EQ(answer->header, "hello");
    EXPECT_EQ(a.bus->link(b.id())->version, b.bus->link(a.id())->version);
    return a.bus->link(b.id())->version;
  };
  EXPECT_EQ(meet(now, next), hyperbus::kNewestVersion);
  EXPECT_EQ(meet(next, after), kNext);
  EXPECT_EQ(meet(now, after), 0);
  EXPECT_EQ(meet(after, now), 0);
}

TEST_P(BusTest, AnAddressOfAnotherNodeIsNotTakenForIt) {
  auto& a = add(1);
  auto& b = add(2);
  auto& c = add(3);
  a.bus->set_addresses(b.id(), {c.address});
  EXPECT_FALSE(call(a, b.id(), {.type = kEcho}));
  EXPECT_FALSE(a.bus->connected(b.id()));
}

TEST_P(BusTest, AddressesAreTriedInTurn) {
  auto& a = add(1);
  auto& b = add(2);
  std::string dead;
  {
    auto listener = carrier_.listen("127.0.0.1:0", [](auto) {});
    dead = (*listener)->address();
  }
  a.bus->set_addresses(b.id(), {dead, b.address});
  EXPECT_TRUE(call(a, b.id(), {.type = kEcho}));
}

/// Counts dials.
class CountingCarrier final : public env::Carrier {
 public:
  explicit CountingCarrier(env::Carrier& inner) : inner_(inner) {}
  Task<Result<std::unique_ptr<env::ByteStream>>> dial(std::string address, Instant deadline) override {
    ++dials;
    dialled.push_back(address);
    return inner_.dial(std::move(address), deadline);
  }
  Result<std::unique_ptr<env::Listener>> listen(
      std::string address, std::function<void(std::unique_ptr<env::ByteStream>)> on_accept) override {
    return inner_.listen(std::move(address), std::move(on_accept));
  }
  int dials = 0;
  std::vector<std::string> dialled;

 private:
  env::Carrier& inner_;
};

/// RFC 8305: the address families take turns, each a little after the one before; what answered last comes first.
TEST(BusAddresses, FamiliesTakeTurnsAndTheLastGoodOneComesFirst) {
  driver::AsioLoop loop;
  driver::TcpCarrier tcp(loop);
  CountingCarrier carrier(tcp);
  const auto dead_port = [&](const std::string& host) {
    const auto listener = tcp.listen(host + ":0", [](auto) {});
    return listener ? (*listener)->address() : std::string();
  };
  const std::string v4a = dead_port("127.0.0.1"), v4b = dead_port("127.0.0.2"), v6 = dead_port("[::1]");
  if (v6.empty()) GTEST_SKIP() << "no IPv6 on this machine";
  {
    TestNode a(loop, carrier, 1, 77, {.use = CarrierUse::tcp}), b(loop, tcp, 2, 77, {.use = CarrierUse::tcp});
    const auto ask = [&] {
      auto out = std::make_shared<std::optional<Result<env::Reply>>>();
      loop.spawn(call_into(*a.bus, b.id(), {.type = kEcho}, {.deadline = loop.now() + seconds(5)}, out));
      EXPECT_TRUE(loop.run_until([&] { return out->has_value(); }, kLimit));
      return out->has_value() && out->value().has_value();
    };
    a.bus->set_addresses(b.id(), {v4a, v4b, b.address, v6});
    ASSERT_TRUE(ask());
    EXPECT_EQ(carrier.dialled, (std::vector<std::string>{v4a, v6, v4b, b.address}));
    carrier.dialled.clear();
    a.bus->disconnect(b.id());
    ASSERT_TRUE(loop.run_until([&] { return !b.bus->connected(a.id()) && !a.bus->connected(b.id()); }, kLimit));
    ASSERT_TRUE(ask());
    EXPECT_EQ(carrier.dialled.front(), b.address);
  }
  loop.begin_stop();
  EXPECT_TRUE(loop.run_until([&] { return loop.running() == 0; }, kLimit)) << "a task never ended";
}

TEST_P(BusTest, AnAbsentPeerCostsLittle) {
  CountingCarrier counting(carrier_);
  TestNode a(loop_, counting, 1);
  TestNode b(loop_, counting, 2);
  EXPECT_EQ(call(a, b.id(), {.type = kEcho}).error().code, Errc::unavailable) << "no address";
  const std::string address = b.address;
  const NodeId id = b.id();
  b.bus.reset();
  a.bus->set_addresses(id, {address});
  std::vector<Outcome> calls;
  for (int i = 0; i < 100; ++i) calls.push_back(begin(a, id, {.type = kEcho}));
  for (const auto& c : calls) {
    const auto reply = finish(c);
    EXPECT_EQ(reply.error().code, Errc::unavailable);
    EXPECT_TRUE(reply.error().retryable);
  }
  EXPECT_EQ(counting.dials, 1) << "one dial for all that waited";
  EXPECT_EQ(call(a, id, {.type = kEcho}).error().code, Errc::unavailable);
  EXPECT_EQ(counting.dials, 1) << "none while it backs off";
  // The peer returns, at the same port: it is found without being told.
  driver::OsEntropy entropy;
  Bus again(loop_, carrier_, entropy, {.session = session_config(config_of(2))});
  again.serve(kEcho, echo);
  ASSERT_TRUE(again.listen(address));
  Result<env::Reply> reply = fail(Errc::unavailable, "");
  const Instant until = loop_.now() + seconds(20);
  while (!reply && loop_.now() < until) reply = call(a, id, {.type = kEcho});
  EXPECT_TRUE(reply) << reply.error().to_string();
  a.bus.reset();
}

TEST_P(BusTest, ASilentHostIsGivenUpAtTheDeadline) {
  auto& a = add(1);
  std::vector<std::unique_ptr<env::ByteStream>> held;
  auto listener = carrier_.listen("127.0.0.1:0", [&](auto s) { held.push_back(std::move(s)); });
  ASSERT_TRUE(listener);
  EXPECT_EQ(connect(a, (*listener)->address(), milliseconds(200)).error().code, Errc::deadline_exceeded);
  const NodeId id(12345);
  a.bus->set_addresses(id, {(*listener)->address()});
  EXPECT_EQ(call(a, id, {.type = kEcho}, milliseconds(200)).error().code, Errc::deadline_exceeded);
  held.clear();
}

TEST_P(BusTest, APeerThatClosesFailsItsCallsAndIsReported) {
  auto& a = add(1);
  auto& b = add(2);
  introduce(a, b);
  ASSERT_TRUE(call(a, b.id(), {.type = kEcho}));
  const NodeId id = b.id();
  const auto pending = begin(a, id, {.type = kSilent});
  ASSERT_TRUE(loop_.run_until([&] { return b.bus->links()[0].classes[0].serving == 1; }, kLimit));
  b.bus.reset();
  EXPECT_EQ(finish(pending).error().code, Errc::unavailable);
  ASSERT_TRUE(loop_.run_until([&] { return a.lost.size() == 1; }, kLimit));
  EXPECT_EQ(a.lost[0], id);
  EXPECT_FALSE(a.bus->connected(id));
}

TEST(BusProcess, AKilledPeerFailsItsCallsAtOnce) {
  // The peer is a process of its own, so that it can be killed without a last word. Forked before there are threads.
  int port_pipe[2];
  ASSERT_EQ(::pipe(port_pipe), 0);
  const env::Fd read_end(port_pipe[0]);
  env::Fd write_end(port_pipe[1]);
  const pid_t child = ::fork();
  if (child == 0) {
    driver::AsioLoop loop;
    driver::TcpCarrier carrier(loop);
    TestNode peer(loop, carrier, 2);
    (void)!::write(write_end.get(), peer.address.data(), peer.address.size());
    write_end.reset();
    loop.run();
    ::_exit(0);
  }
  write_end.reset();
  std::string address(64, '\0');
  const ssize_t n = ::read(read_end.get(), address.data(), address.size());
  ASSERT_GT(n, 0);
  address.resize(static_cast<std::size_t>(n));

  driver::AsioLoop loop;
  driver::TcpCarrier carrier(loop);
  TestNode a(loop, carrier, 1);
  std::optional<Result<env::PeerIdentity>> found;
  loop.spawn(connect_into(*a.bus, address, loop.now() + seconds(20), found));
  ASSERT_TRUE(loop.run_until([&] { return found.has_value(); }, kLimit));
  ASSERT_TRUE(*found) << found->error().to_string();
  auto pending = std::make_shared<std::optional<Result<env::Reply>>>();
  auto proof = std::make_shared<std::optional<Result<env::Reply>>>();
  const env::CallOptions options{.klass = env::StreamClass::control, .deadline = loop.now() + seconds(100)};
  loop.spawn(call_into(*a.bus, (*found)->node, {.type = kSilent}, options, pending));
  loop.spawn(call_into(*a.bus, (*found)->node, {.type = kEcho}, options, proof));
  ASSERT_TRUE(loop.run_until([&] { return proof->has_value(); }, kLimit));
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  const Instant killed = loop.now();
  ASSERT_TRUE(loop.run_until([&] { return pending->has_value(); }, kLimit));
  EXPECT_EQ((*pending)->error().code, Errc::unavailable);
  EXPECT_LT(loop.now() - killed, seconds(1));
  EXPECT_EQ(a.lost.size(), 1U);
  ::waitpid(child, nullptr, 0);
  a.bus.reset();
  loop.begin_stop();
  EXPECT_TRUE(loop.run_until([&] { return loop.running() == 0; }, kLimit));
}

TEST_P(BusTest, DisconnectEndsCallsAndReportsNothingHere) {
  auto& a = add(1);
  auto& b = add(2);
  introduce(a, b);
  const auto pending = begin(a, b.id(), {.type = kSilent});
  ASSERT_TRUE(loop_.run_until([&] { return a.bus->connected(b.id()) && b.bus->connected(a.id()); }, kLimit));
  a.bus->disconnect(b.id());
  EXPECT_EQ(finish(pending).error().code, Errc::unavailable);
  EXPECT_TRUE(a.lost.empty());
  EXPECT_TRUE(loop_.run_until([&] { return b.lost.size() == 1; }, kLimit));
  EXPECT_TRUE(call(a, b.id(), {.type = kEcho})) << "dialled anew";
}

TEST_P(BusTest, ShutdownCancelsEverything) {
  auto& a = add(1);
  auto& b = add(2);
  introduce(a, b);
  ASSERT_TRUE(call(a, b.id(), {.type = kEcho}));
  std::vector<std::unique_ptr<env::ByteStream>> held;
  auto silent = carrier_.listen("127.0.0.1:0", [&](auto s) { held.push_back(std::move(s)); });
  a.bus->set_addresses(NodeId(99), {(*silent)->address()});
  const auto remote = begin(a, b.id(), {.type = kSilent});
  const auto own = begin(a, a.id(), {.type = kSilent});
  const auto dialling = begin(a, NodeId(99), {.type = kEcho});
  ASSERT_TRUE(loop_.run_until([&] { return !held.empty(); }, kLimit));
  a.bus->close();
  for (const auto& c : {remote, own, dialling}) EXPECT_EQ(finish(c).error().code, Errc::cancelled);
  EXPECT_EQ(call(a, b.id(), {.type = kEcho}).error().code, Errc::cancelled);
  EXPECT_EQ(connect(a, b.address).error().code, Errc::cancelled);
  EXPECT_TRUE(loop_.run_until([&] { return b.bus->links().empty(); }, kLimit));
}

TEST_P(BusTest, HandlersAreBounded) {
  auto& a = add(1);
  auto& b = add(2, 77, {.session = nullptr, .max_serving = 2});
  introduce(a, b);
  const auto first = begin(a, b.id(), {.type = kSilent});
  const auto second = begin(a, b.id(), {.type = kSilent});
  const auto third = call(a, b.id(), {.type = kEcho});
  EXPECT_EQ(third.error().code, Errc::overloaded);
  EXPECT_TRUE(third.error().retryable);
  EXPECT_EQ(third.error().retry_after, std::chrono::milliseconds(50)) << "over the wire, too";
  EXPECT_EQ(b.bus->link(a.id())->classes[0].turned_away, 1U);
}

env::Fd raw_connection(const std::string& address) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(driver::parse_host_port(address)->port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  env::Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd || ::connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) return {};
  return fd;
}

TEST_P(BusTest, ACrowdOfSilentAndRudeConnectionsKeepsNobodyOut) {
  rlimit files{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
  if (files.rlim_cur < 2000 && files.rlim_max >= 2000) {
    rlimit more = files;
    more.rlim_cur = 2000;
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &more), 0);
  }
  auto& a = add(1, 77, {.session = nullptr, .max_half_open = 64});
  auto& b = add(2);
  b.bus->set_addresses(a.id(), {a.address});
  std::vector<env::Fd> crowd;
  Random random(5);
  for (int i = 0; i < 1000; ++i) {
    env::Fd fd = raw_connection(a.address);
    ASSERT_TRUE(fd) << i;
    if (i % 2 == 0) {
      const Bytes garbage = pattern(1 + random.below(3000), static_cast<std::uint64_t>(i));
      (void)!::send(fd.get(), garbage.data(), garbage.size(), MSG_NOSIGNAL);
    }
    crowd.push_back(std::move(fd));
    if (i % 50 == 0) loop_.run_until([] { return false; }, milliseconds(1));
    EXPECT_LE(a.bus->half_open(), 64U);
  }
  const Instant start = loop_.now();
  EXPECT_TRUE(call(b, a.id(), {.type = kEcho})) << "a node gets in through the crowd";
  EXPECT_LT(loop_.now() - start, seconds(2));
  ASSERT_TRUE(loop_.run_until([&] { return a.bus->refused().garbage >= 900; }, kLimit)) << a.bus->refused().garbage;
  EXPECT_LE(a.bus->half_open(), 64U);
  crowd.clear();
  EXPECT_TRUE(loop_.run_until([&] { return a.bus->half_open() == 0; }, kLimit));
  EXPECT_TRUE(call(b, a.id(), {.type = kEcho}));
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
}

TEST_P(BusTest, ManyNodesTalkToEachOther) {
  for (std::uint8_t i = 1; i <= 6; ++i) add(i);
  for (auto& x : nodes_) {
    for (auto& y : nodes_) {
      if (x != y) x->bus->set_addresses(y->id(), {y->address});
    }
  }
  std::vector<std::pair<Outcome, NodeId>> calls;
  for (int round = 0; round < 20; ++round) {
    for (auto& x : nodes_) {
      for (auto& y : nodes_) calls.emplace_back(begin(*x, y->id(), {.type = kWho}), x->id());
    }
  }
  for (auto& [out, from] : calls) {
    const auto reply = finish(out);
    ASSERT_TRUE(reply) << reply.error().to_string();
    EXPECT_EQ(reply->header, to_hex(from.value));
  }
}

/// UDP that may be switched off, as by a firewall that drops without a word.
class Firewall final : public env::Datagrams {
 public:
  explicit Firewall(env::Datagrams& inner) : inner_(inner) {}
  Result<std::unique_ptr<env::DatagramSocket>> bind(const std::string& address) override {
    auto bound = inner_.bind(address);
    if (!bound) return bound;
    return std::make_unique<Socket>(*this, std::move(*bound));
  }
  Task<Result<std::vector<env::IpEndpoint>>> resolve(std::string address, Instant deadline) override {
    return inner_.resolve(std::move(address), deadline);
  }
  bool closed = false;

 private:
  class Socket final : public env::DatagramSocket {
   public:
    Socket(const Firewall& wall, std::unique_ptr<env::DatagramSocket> inner) : wall_(wall), inner_(std::move(inner)) {}
    void start(Handlers handlers) override { inner_->start(std::move(handlers)); }
    bool send(const env::DatagramPath& path, env::Ecn ecn, std::size_t segment, ByteSpan bytes) override {
      return wall_.closed || inner_->send(path, ecn, segment, bytes);
    }
    env::IpEndpoint local() const override { return inner_->local(); }
    std::uint64_t dropped() const override { return inner_->dropped(); }

   private:
    const Firewall& wall_;
    std::unique_ptr<env::DatagramSocket> inner_;
  };
  env::Datagrams& inner_;
};

TEST(FallbackTest, TcpServesWhereUdpDoesNotPassAndQuicReturns) {
  driver::AsioLoop loop;
  driver::TcpCarrier carrier(loop);
  driver::UdpDatagrams udp(loop);
  const auto quic = driver::quic::make_stack();
  Firewall firewall(udp);
  firewall.closed = true;
  BusOptions options{.datagrams = &firewall,
                     .quic = quic.get(),
                     .fallback_after = milliseconds(50),
                     .upgrade_every = milliseconds(200),
                     .connect_deadline = milliseconds(500)};
  {
    TestNode a(loop, carrier, 1, 77, options), b(loop, carrier, 2, 77, options);
    a.bus->set_addresses(b.id(), {b.address});
    const auto ask = [&] {
      auto out = std::make_shared<std::optional<Result<env::Reply>>>();
      loop.spawn(call_into(*a.bus, b.id(), {.type = kEcho}, {.deadline = loop.now() + seconds(5)}, out));
      EXPECT_TRUE(loop.run_until([&] { return out->has_value(); }, kLimit));
      return out->has_value() && (*out)->has_value();
    };
    const auto carrier_of = [](const TestNode& node) {
      const auto links = node.bus->links();
      return links.empty() ? std::string() : std::string(links.back().carrier);
    };
    ASSERT_TRUE(ask());
    EXPECT_EQ(carrier_of(a), "tcp");
    EXPECT_EQ(carrier_of(b), "tcp");
    firewall.closed = false;
    const auto upgraded = [&] {
      return a.bus->links().size() == 1 && carrier_of(a) == "quic" && carrier_of(b) == "quic";
    };
    EXPECT_TRUE(loop.run_until(upgraded, kLimit)) << "TCP still serves";
    EXPECT_TRUE(ask());
    EXPECT_TRUE(a.lost.empty() && b.lost.empty()) << "to change the carrier is not to lose a peer";
  }
  loop.begin_stop();
  EXPECT_TRUE(loop.run_until([&] { return loop.running() == 0; }, kLimit)) << "a task never ended";
}

/// UDP that stops passing under a connection that stands: nobody waits for the idle time-out of 8 s.
TEST(FallbackTest, AConnectionThatPassesNothingAnyMoreIsReplaced) {
  driver::AsioLoop loop;
  driver::TcpCarrier carrier(loop);
  driver::UdpDatagrams udp(loop);
  const auto quic = driver::quic::make_stack();
  Firewall firewall(udp);
  const BusOptions options{.datagrams = &firewall, .quic = quic.get(), .stalled_after = milliseconds(200)};
  {
    TestNode a(loop, carrier, 1, 77, options), b(loop, carrier, 2, 77, options);
    a.bus->set_addresses(b.id(), {b.address});
    const auto ask = [&](Duration limit) {
      auto out = std::make_shared<std::optional<Result<env::Reply>>>();
      loop.spawn(call_into(*a.bus, b.id(), {.type = kEcho}, {.deadline = loop.now() + limit}, out));
      EXPECT_TRUE(loop.run_until([&] { return out->has_value(); }, kLimit));
      return out->value_or(fail(Errc::internal, "never ended"));
    };
    ASSERT_TRUE(ask(seconds(5)));
    ASSERT_STREQ(a.bus->links().front().carrier, "quic");
    firewall.closed = true;
    const Instant began = loop.now();
    const auto lost = ask(seconds(20));
    ASSERT_FALSE(lost);
    EXPECT_EQ(lost.error().code, Errc::unavailable);
    EXPECT_TRUE(lost.error().retryable);
    EXPECT_LT(loop.now() - began, seconds(5)) << "that is the idle time-out";
    EXPECT_TRUE(ask(seconds(5)));
    EXPECT_STREQ(a.bus->link(b.id())->carrier, "tcp");
    EXPECT_TRUE(a.lost.empty()) << "to change the carrier is not to lose a peer";
  }
  loop.begin_stop();
  EXPECT_TRUE(loop.run_until([&] { return loop.running() == 0; }, kLimit)) << "a task never ended";
}

/// A node that was killed cannot say so; after its restart it says that it has forgotten the connection.
TEST(StatelessReset, ARestartedPeerEndsTheConnectionsThatItForgot) {
  driver::AsioLoop loop;
  driver::TcpCarrier carrier(loop);
  driver::UdpDatagrams udp(loop);
  const auto quic = driver::quic::make_stack();
  Firewall firewall(udp);
  const BusOptions plain{.use = CarrierUse::quic, .datagrams = &udp, .quic = quic.get()};
  const BusOptions walled{.use = CarrierUse::quic, .datagrams = &firewall, .quic = quic.get()};
  {
    TestNode a(loop, carrier, 1, 77, plain);
    auto b = std::make_unique<TestNode>(loop, carrier, 2, 77, walled);
    const std::string address = b->address;
    const NodeId id = b->id();
    a.bus->set_addresses(id, {address});
    const auto ask = [&] {
      auto out = std::make_shared<std::optional<Result<env::Reply>>>();
      loop.spawn(call_into(*a.bus, id, {.type = kEcho}, {.deadline = loop.now() + seconds(7)}, out));
      EXPECT_TRUE(loop.run_until([&] { return out->has_value(); }, kLimit));
      return out->value_or(fail(Errc::internal, "never ended"));
    };
    ASSERT_TRUE(ask());
    firewall.closed = true;  // Its last words do not get out.
    b.reset();
    firewall.closed = false;
    b = std::make_unique<TestNode>(loop, carrier, 2, 77, walled, address);
    const auto first = ask();
    ASSERT_FALSE(first);
    EXPECT_EQ(first.error().code, Errc::unavailable) << "it should not take the idle time-out to find out";
    EXPECT_TRUE(ask());
    EXPECT_EQ(a.lost, std::vector<NodeId>{id});
  }
  loop.begin_stop();
  EXPECT_TRUE(loop.run_until([&] { return loop.running() == 0; }, kLimit)) << "a task never ended";
}

/// Lets `member` do everything and others nothing but `open`; `late` is admitted once it was asked about.
struct TestGate final : env::MemberGate {
  TestGate(env::Loop& l, NodeId m) : loop(l), member(m) {}
  bool is_member(NodeId node) const override { return node == member; }
  bool admits(NodeId from, std::uint16_t type) const override { return from == member || type == open; }
  Task<Status> inquire(NodeId from, std::uint16_t) override {
    ++inquiries;
    return answer(loop, from == late);
  }
  static Task<Status> answer(env::Loop& loop, bool yes) {
    (void)co_await env::sleep_for(loop, milliseconds(20));
    if (yes) co_return Status{};
    co_return fail(Errc::permission_denied, "not a member", "holo join");
  }
  env::Loop& loop;
  NodeId member, late;
  std::uint16_t open = kEcho;
  int inquiries = 0;
};

TEST_P(BusTest, TheGateDecidesWhoIsServed) {
  auto& member = add(1);
  auto& stranger = add(2);
  auto& late = add(3);
  auto& target = add(4);
  const auto gate = std::make_shared<TestGate>(loop_, member.id());
  gate->late = late.id();
  target.bus->set_gate(gate);
  int reached = 0;
  target.bus->serve(kWho, [&reached](NodeId from, env::Request request) {
    ++reached;
    return who(from, std::move(request));
  });
  int placed = 0;
  target.bus->set_placer(kWho, [&](NodeId from, const env::Request&, std::uint64_t) {
    EXPECT_EQ(from, member.id()) << "no places for who may not ask";
    ++placed;
    return nullptr;
  });
  for (TestNode* node : {&member, &stranger, &late}) introduce(*node, target);
  EXPECT_TRUE(call(member, target.id(), {.type = kEcho}));
  EXPECT_TRUE(call(member, target.id(), {.type = kWho, .payload = {Buffer(Bytes(10))}}));
  EXPECT_EQ(placed, 1);
  reached = 0;
  EXPECT_EQ(call(member, target.id(), {.type = kWho})->header, to_hex(member.id().value));
  EXPECT_EQ(gate->inquiries, 0) << "a member costs a lookup";
  const auto refused = call(stranger, target.id(), {.type = kWho, .payload = {Buffer(Bytes(100'000))}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::permission_denied);
  EXPECT_EQ(refused.error().hint, "holo join");
  EXPECT_EQ(reached, 1);
  EXPECT_EQ(call(late, target.id(), {.type = kWho})->header, to_hex(late.id().value)) << "found out meanwhile";
  EXPECT_EQ(gate->inquiries, 2);
  EXPECT_EQ(call(stranger, target.id(), {.type = kEcho, .header = "x"})->header, "x") << "the connection is as good";
  EXPECT_EQ(call(stranger, target.id(), {.type = 99}).error().code, Errc::unsupported);
  gate->member = stranger.id();
  EXPECT_TRUE(call(stranger, target.id(), {.type = kWho})) << "asked at each request";
  EXPECT_FALSE(call(member, target.id(), {.type = kWho}));
  EXPECT_TRUE(call(target, target.id(), {.type = kWho})) << "its own";
}

TEST_P(BusTest, StrangersHaveOneBoundForTheBytesOfTheirRequests) {
  auto& member = add(1);
  auto& modest = add(2);
  auto& greedy = add(3);
  auto& target = add(4, 77, {.max_stranger_bytes = 1 << 20});
  const auto gate = std::make_shared<TestGate>(loop_, member.id());
  gate->open = kSilent;
  target.bus->set_gate(gate);
  const auto ask = [&](TestNode& from, int times) {
    std::vector<Outcome> out;
    for (int i = 0; i < times; ++i) {
      out.push_back(begin(from, target.id(), {.type = kSilent, .payload = {Buffer(Bytes(200'000))}}, seconds(20),
                          env::StreamClass::bulk));
    }
    return out;
  };
  for (TestNode* node : {&member, &modest, &greedy}) introduce(*node, target);
  const std::vector<Outcome> many = ask(member, 20);
  const Outcome one = ask(modest, 1).front();
  ASSERT_TRUE(call(member, target.id(), {.type = kEcho}));
  EXPECT_EQ(call(modest, target.id(), {.type = kEcho}).error().code, Errc::permission_denied);
  for (const Outcome& refused : ask(greedy, 6)) {
    const auto result = finish(refused);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, Errc::unavailable) << "the connection was closed: " << result.error().to_string();
  }
  EXPECT_FALSE(one->has_value()) << "who asks least stays";
  EXPECT_FALSE(many.back()->has_value()) << "a member is not counted";
}

TEST_P(BusTest, ACrowdOfStrangersHoldsFewConnections) {
  auto& member = add(1);
  auto& target = add(2, 77, {.max_strangers = 4});
  target.bus->set_gate(std::make_shared<TestGate>(loop_, member.id()));
  introduce(member, target);
  ASSERT_TRUE(call(member, target.id(), {.type = kWho}));
  std::vector<TestNode*> crowd;
  for (std::uint8_t i = 0; i < 12; ++i) {
    crowd.push_back(&add(static_cast<std::uint8_t>(10 + i)));
    crowd.back()->bus->set_addresses(target.id(), {target.address});
    EXPECT_TRUE(call(*crowd.back(), target.id(), {.type = kEcho})) << "the newest is served";
    EXPECT_LE(target.bus->links().size(), 1U + 4U);
  }
  EXPECT_EQ(target.bus->links().size(), 1U + 4U);
  EXPECT_TRUE(target.bus->connected(member.id()));
  EXPECT_TRUE(loop_.run_until([&] { return crowd.front()->lost.size() == 1; }, seconds(5))) << "it was told";
  EXPECT_FALSE(target.bus->connected(crowd.front()->id()));
  EXPECT_TRUE(call(*crowd.front(), target.id(), {.type = kEcho})) << "and may come again";
}

INSTANTIATE_TEST_SUITE_P(Carriers, BusTest, testing::Values(CarrierUse::automatic, CarrierUse::tcp),
                         [](const auto& p) { return p.param == CarrierUse::tcp ? "Tcp" : "Quic"; });

}  // namespace
}  // namespace holo::node
