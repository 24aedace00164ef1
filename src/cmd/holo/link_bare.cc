// The ends of a link over bench_bare_quic.h.
#include <poll.h>
#include <unistd.h>

#include <chrono>

#include "base/strings.h"
#include "cmd/holo/bench_bare_quic.h"
#include "cmd/holo/link_peer.h"
#include "driver/posix/os_entropy.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kLimitMs = 60'000;
constexpr unsigned kWarmUp = 200;

double micros_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

std::shared_ptr<const hyperbus::HandshakeConfig> handshake_of(const LinkKey& key) {
  driver::OsEntropy entropy;
  auto identity = hyperbus::Identity::from_seed(crypto::random_secret<32>(entropy));
  return std::make_shared<const hyperbus::HandshakeConfig>(
      hyperbus::HandshakeConfig{.identity = std::move(identity), .keys = {hyperbus::ClusterKey(key)}});
}

Outcome<std::unique_ptr<bare::Endpoint>> endpoint_of(const LinkPeerOptions& o, const LinkKey& key) {
  const bare::Endpoint::Options options{.listen = o.listen, .datagram_bytes = datagram_bytes(o.mtu), .poll = o.poll};
  return bare::Endpoint::open(options, handshake_of(key));
}

class BareClient final : public LinkClient {
 public:
  BareClient(std::unique_ptr<bare::Endpoint> endpoint, sockaddr_in server, std::uint64_t page)
      : endpoint_(std::move(endpoint)), server_(server), page_(page), room_(kPagesInFlight * page) {}

  Outcome<std::vector<double>> round_trips(unsigned count) override {
    HOLO_ASSIGN(connection, dial());
    std::vector<double> out;
    for (unsigned i = 0; i < count + kWarmUp; ++i) {
      bool done = false;
      const auto start = Clock::now();
      connection->request(page_, room_.data(), [&done] { done = true; });
      connection->flush();
      if (!endpoint_->run([&] { return done || connection->failed(); }, kLimitMs) || !done) return broken();
      if (i >= kWarmUp) out.push_back(micros_since(start));
    }
    endpoint_->close(*connection);
    return out;
  }

  Outcome<double> throughput(unsigned pages) override {
    HOLO_ASSIGN(connection, dial());
    double gigabytes = 0;
    for (const unsigned count : {pages / 8 + 1, pages}) {  // Once to warm up: the congestion window grows.
      unsigned asked = 0, got = 0;
      std::function<void(unsigned)> ask = [&](unsigned slot) {
        if (asked == count) return;
        ++asked;
        connection->request(page_, room_.data() + slot * page_, [&, slot] {
          ++got;
          ask(slot);
        });
      };
      const auto start = Clock::now();
      for (unsigned slot = 0; slot < kPagesInFlight; ++slot) ask(slot);
      connection->flush();
      if (!endpoint_->run([&] { return got == count || connection->failed(); }, kLimitMs) || got != count) {
        return broken();
      }
      gigabytes = static_cast<double>(count) * static_cast<double>(page_) / micros_since(start) / 1e3;
    }
    endpoint_->close(*connection);
    return gigabytes;
  }

  Outcome<std::vector<double>> handshakes(unsigned count) override {
    std::vector<double> out;
    for (unsigned i = 0; i < count + 1; ++i) {
      const auto start = Clock::now();
      HOLO_ASSIGN(connection, dial());
      if (i > 0) out.push_back(micros_since(start) / 1e3);
      endpoint_->close(*connection);
    }
    return out;
  }

  Outcome<std::vector<double>> heartbeats(unsigned, Beside) override {
    return fail(Errc::unsupported, "the bare loop has no classes");
  }

  Outcome<void> keep_idle(unsigned count) override {
    for (unsigned i = 0; i < count; ++i) HOLO_TRY(dial());
    (void)endpoint_->run([] { return false; }, 300);
    return {};
  }

 private:
  Outcome<bare::Connection*> dial() {
    bare::Connection& connection = endpoint_->dial(server_);
    const auto over = [&] { return connection.established() || connection.failed(); };
    if (!endpoint_->run(over, kLimitMs) || connection.failed()) return broken();
    return &connection;
  }
  static std::unexpected<Error> broken() { return fail(Errc::unavailable, "the bare connection broke"); }

  std::unique_ptr<bare::Endpoint> endpoint_;
  sockaddr_in server_;
  const std::uint64_t page_;
  Bytes room_;
};

}  // namespace

Outcome<std::unique_ptr<LinkClient>> make_bare_client(const LinkPeerOptions& o, const LinkKey& key) {
  HOLO_ASSIGN(server, bare::parse_address(o.server));
  HOLO_ASSIGN(endpoint, endpoint_of(o, key));
  return std::make_unique<BareClient>(std::move(endpoint), server, o.page);
}

Outcome<int> serve_bare_link(const LinkPeerOptions& o, const LinkKey& key) {
  HOLO_ASSIGN(endpoint, endpoint_of(o, key));
  announce_link_server(endpoint->address());
  (void)endpoint->run([] { return false; }, -1, STDIN_FILENO);
  return kDone;
}

}  // namespace holo::cmd
