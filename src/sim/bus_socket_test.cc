// A node's bus whose socket takes nothing for a while.
#include <gtest/gtest.h>

#include <optional>

#include "base/strings.h"
#include "driver/quic/quic.h"
#include "env/entropy_testing.h"
#include "node/bus.h"
#include "sim/datagrams.h"
#include "sim/loop.h"

namespace holo::sim {
namespace {

struct NoCarrier final : env::Carrier {
  Result<std::unique_ptr<env::Listener>> listen(std::string,
                                                std::function<void(std::unique_ptr<env::ByteStream>)>) override {
    return fail(Errc::unsupported, "there is no TCP here");
  }
  Task<Result<std::unique_ptr<env::ByteStream>>> dial(std::string, Instant) override {
    co_return fail(Errc::unsupported, "there is no TCP here");
  }
};

struct Node {
  SimLoop loop;
  env::testing::SeededEntropy entropy;
  NoCarrier carrier;
  std::unique_ptr<env::Datagrams> datagrams;
  std::unique_ptr<node::Bus> bus;

  Node(World& world, DatagramNetwork& network, env::QuicStack& stack, std::uint8_t who) : loop(world), entropy(who) {
    const auto secret = [](std::uint8_t byte) {
      std::array<std::byte, 32> bytes{};
      bytes.fill(std::byte{byte});
      return crypto::Secret<32>(bytes);
    };
    auto session = std::make_shared<hyperbus::SessionConfig>();
    session->handshake = std::make_shared<const hyperbus::HandshakeConfig>(hyperbus::HandshakeConfig{
        .identity = hyperbus::Identity::from_seed(secret(who)), .keys = {hyperbus::ClusterKey(secret(77))}});
    datagrams = network.attach(str("m", int{who}), loop, {str("10.0.0.", int{who})});
    node::BusOptions options;
    options.session = session;
    options.use = node::CarrierUse::quic;
    options.datagrams = datagrams.get();
    options.quic = &stack;
    bus = std::make_unique<node::Bus>(loop, carrier, entropy, std::move(options));
  }
};

Task<Result<env::Reply>> echo(NodeId, env::Request request) {
  co_return env::Reply{.header = request.header, .payload = request.payload};
}

using Outcome = std::optional<Result<env::Reply>>;
Task<void> call_into(node::Bus& bus, NodeId peer, std::size_t bytes, Instant deadline, Outcome& out) {
  env::Request request{.type = 1, .header = "hello"};
  if (bytes > 0) request.payload.emplace_back(Bytes(bytes));
  const env::CallOptions options{.deadline = deadline};
  out = co_await bus.call(peer, std::move(request), options);
}

TEST(BusSocket, AFullSocketIsWaitedForAndNotSpunOn) {
  World world;
  DatagramNetwork network(world, 1);
  const auto stack = driver::quic::make_stack();
  Node asks(world, network, *stack, 1);
  Node answers(world, network, *stack, 2);
  answers.bus->serve(1, echo);
  ASSERT_TRUE(answers.bus->listen("0.0.0.0:7000"));
  asks.bus->set_addresses(answers.bus->self(), {"10.0.0.2:7000"});

  const auto ask = [&](std::size_t bytes, Outcome& out) {
    asks.loop.spawn(call_into(*asks.bus, answers.bus->self(), bytes, asks.loop.now() + seconds(6), out));
  };
  Outcome first;
  ask(0, first);
  ASSERT_TRUE(world.run_while_not([&] { return first.has_value(); }, world.now() + seconds(3)));
  ASSERT_TRUE(*first) << first->error().to_string();

  // Nothing leaves any more: what was due stays due, and can be done by no timer.
  network.link("m1", "m2").busy_per_thousand = 1000;
  Outcome second;
  ask(100'000, second);
  const Instant full_until = world.now() + seconds(2);
  const std::uint64_t before = world.events();
  constexpr std::uint64_t kMost = 20'000;  // Each of 2,000 milliseconds has a look at the socket, and a timer.
  while (world.now() < full_until && world.events() - before < kMost && world.step()) {
  }
  EXPECT_LT(world.events() - before, kMost) << "after " << (full_until - world.now()).millis() << " ms less than 2 s";
  EXPECT_FALSE(second.has_value());

  network.link("m1", "m2").busy_per_thousand = 0;
  ASSERT_TRUE(world.run_while_not([&] { return second.has_value(); }, world.now() + seconds(6)));
  EXPECT_TRUE(*second) << second->error().to_string();

  asks.loop.begin_stop();
  answers.loop.begin_stop();
  asks.bus.reset();
  answers.bus.reset();
  world.run_until(world.now() + seconds(1));
}

}  // namespace
}  // namespace holo::sim
