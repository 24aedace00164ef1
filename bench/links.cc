// What a call costs: between two nodes over loopback TCP, and from a program to its agent over the Unix socket.
//   build/release/bin/bench/links
// Each side has a thread of its own and blocks when it has nothing to do; so latencies hold cross-core wake-ups, as on
// real nodes. With `taskset -c 0` in front both sides share a core.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "crypto/secret.h"
#include "driver/posix/asio_loop.h"
#include "driver/posix/local_client.h"
#include "driver/posix/local_socket.h"
#include "driver/posix/os_entropy.h"
#include "driver/posix/tcp.h"
#include "node/bus.h"

namespace {

using namespace holo;
using Clock = std::chrono::steady_clock;
constexpr std::uint16_t kFetch = 1;  // header: how many bytes are wanted

double micros(Clock::duration d) { return std::chrono::duration<double, std::micro>(d).count(); }
double percentile(std::vector<double>& v, double p) {
  std::sort(v.begin(), v.end());
  return v[static_cast<std::size_t>(p * static_cast<double>(v.size() - 1))];
}

Buffer bytes_of(const std::string& header) {
  static const Buffer all(Bytes(limits::kMaxPayloadBytes, std::byte{7}));
  return all.slice(0, std::stoul(header));
}
Task<Result<env::Reply>> fetch(NodeId, env::Request request) {
  co_return env::Reply{.header = {}, .payload = {bytes_of(request.header)}};
}
Task<Result<env::LocalReply>> local_fetch(std::shared_ptr<env::LocalConnection>, env::LocalRequest request) {
  co_return env::LocalReply{.header = {}, .payload = {bytes_of(request.header)}, .fds = {}};
}

struct Node {
  Node(const hyperbus::ClusterKey& key, driver::OsEntropy& entropy) {
    auto config = std::make_shared<hyperbus::SessionConfig>();
    config->handshake = std::make_shared<const hyperbus::HandshakeConfig>(hyperbus::HandshakeConfig{
        .identity = hyperbus::Identity::from_seed(crypto::random_secret<32>(entropy)), .keys = {key}});
    bus = std::make_unique<node::Bus>(loop, carrier, entropy, node::BusOptions{.session = config});
    bus->serve(kFetch, fetch);
  }
  driver::AsioLoop loop;
  driver::TcpCarrier carrier{loop};
  std::unique_ptr<node::Bus> bus;
};

Task<void> ask(node::Bus& bus, env::Loop& loop, NodeId peer, std::size_t bytes, int& left, int& running,
               std::vector<double>& took) {
  ++running;
  while (left-- > 0) {
    env::Request request{.type = kFetch, .header = std::to_string(bytes), .payload = {}};
    const env::CallOptions options{.klass = env::StreamClass::data, .deadline = loop.now() + seconds(30)};
    const auto begin = Clock::now();
    auto reply = co_await bus.call(peer, std::move(request), options);
    if (!reply) std::printf("failed: %s\n", reply.error().to_string().c_str());
    took.push_back(micros(Clock::now() - begin));
  }
  --running;
}

void network(Node& a, Node& b, std::size_t bytes, int in_flight, int calls) {
  std::vector<double> took;
  int left = calls;
  int running = 0;
  const auto begin = Clock::now();
  for (int i = 0; i < in_flight; ++i) a.loop.spawn(ask(*a.bus, a.loop, b.bus->self(), bytes, left, running, took));
  a.loop.run_until([&] { return running == 0; }, seconds(100));
  const double all = micros(Clock::now() - begin);
  std::printf("tcp    %9zu bytes, %2d in flight: p50 %8.1f us, p99 %8.1f us, %6.2f GB/s\n", bytes, in_flight,
              percentile(took, 0.5), percentile(took, 0.99), static_cast<double>(bytes) * calls / all / 1e3);
}

void local(driver::LocalClient& client, std::size_t bytes, int calls) {
  Bytes into(bytes);
  const std::string header = std::to_string(bytes);
  std::vector<double> took;
  const auto begin = Clock::now();
  for (int i = 0; i < calls; ++i) {
    const auto start = Clock::now();
    auto reply = client.call({.type = kFetch, .header = header, .into = into});
    if (!reply) std::printf("failed: %s\n", reply.error().to_string().c_str());
    took.push_back(micros(Clock::now() - start));
  }
  const double all = micros(Clock::now() - begin);
  std::printf("local  %9zu bytes,  1 in flight: p50 %8.1f us, p99 %8.1f us, %6.2f GB/s\n", bytes, percentile(took, 0.5),
              percentile(took, 0.99), static_cast<double>(bytes) * calls / all / 1e3);
}

}  // namespace

int main() {
  driver::OsEntropy entropy;
  const hyperbus::ClusterKey key(crypto::random_secret<32>(entropy));
  Node a(key, entropy);
  Node b(key, entropy);
  a.bus->set_addresses(b.bus->self(), {b.bus->listen("127.0.0.1:0").value()});
  driver::LocalSocketServer server(b.loop);
  server.serve(kFetch, local_fetch);
  auto pair = driver::make_socket_pair().value();
  (void)server.adopt(std::move(pair.first));
  auto client = driver::LocalClient::adopt(std::move(pair.second), {}).value();
  std::thread thread([&] { b.loop.run(); });
  network(a, b, 0, 1, 2000);
  network(a, b, 0, 64, 50'000);
  network(a, b, 65'536, 1, 2000);
  network(a, b, 65'536, 16, 20'000);
  network(a, b, 1 << 20, 8, 2000);
  network(a, b, 16 << 20, 2, 100);
  local(*client, 0, 5000);
  local(*client, 65'536, 5000);
  local(*client, 1 << 20, 1000);
  local(*client, 16 << 20, 100);
  std::promise<void> closed;
  b.loop.post([&] {
    server.close();
    b.bus->close();
    closed.set_value();
  });
  closed.get_future().wait();
  b.loop.stop();
  thread.join();
}
