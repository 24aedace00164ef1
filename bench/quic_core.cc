// QUIC without a network: two connections in one thread, each packet sealed by one and opened by the other.
//   build/release/bin/bench/quic_core
// Says how much of a core the stack itself costs, both sides together: the ceiling for any socket. The handshake is a
// stand-in with fixed secrets.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "driver/quic/quic_testing.h"

namespace {

using namespace holo;
using namespace holo::driver::quic;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Sends from one buffer for ever, or counts what it hears.
class Bulk final : public env::QuicApplication {
 public:
  explicit Bulk(ByteSpan source) : source_(source) {}
  env::QuicStreamId stream = -1;
  std::uint64_t received = 0;
  bool established = false;

  void on_established() override { established = true; }
  Status on_stream_data(env::QuicStreamId, ByteSpan bytes, bool) override {
    received += bytes.size();
    return {};
  }
  void on_stream_acknowledged(env::QuicStreamId, std::uint64_t) override {}
  void on_stream_abandoned(env::QuicStreamId, std::uint64_t) override {}
  void on_stream_closed(env::QuicStreamId) override {}
  void on_streams_available() override {}
  bool next_write(env::QuicWrite& out) override {
    if (stream < 0 || blocked_) return false;
    out.stream = stream;
    out.parts[0] = source_;
    out.count = 1;
    return true;
  }
  void on_written(env::QuicStreamId, std::size_t, bool) override {}
  void on_blocked(env::QuicStreamId) override { blocked_ = true; }
  void on_unblocked(env::QuicStreamId) override { blocked_ = false; }
  void on_connection_id(ByteSpan) override {}
  void on_connection_id_retired(ByteSpan) override {}
  void on_end(const env::QuicEnd& end) override {
    std::fprintf(stderr, "the connection has ended: %s\n", end.reason.c_str());
    std::exit(1);
  }

 private:
  ByteSpan source_;
  bool blocked_ = false;
};

struct Pair {
  const env::DatagramPath to_server{.local = {}, .remote = testing::endpoint(2, 2)};
  const env::DatagramPath to_client{.local = testing::endpoint(2, 2), .remote = testing::endpoint(1, 1)};
  std::unique_ptr<env::QuicStack> stack = make_stack();
  testing::SeededEntropy entropy{1};
  Bytes source = Bytes(1 << 20, std::byte{42});
  Bytes buffer = Bytes(64 << 10);
  Bulk client_app{source}, server_app{source};
  testing::FakeHandshake client_handshake, server_handshake;
  std::unique_ptr<env::QuicConnection> client, server;
  std::shared_ptr<env::QuicConfig> config = std::make_shared<env::QuicConfig>();

  Pair(env::QuicCipher cipher, std::size_t datagram_bytes)
      : client_handshake({.cipher = cipher}), server_handshake({.server = true, .cipher = cipher}) {
    config->stream_window = config->connection_window = 64 << 20;
    config->bidirectional_streams = 10;
    config->datagram_bytes = datagram_bytes;
    client = stack->connect(config, now(), to_server, client_handshake, client_app, entropy);
    while (!client_app.established || !server_app.established) step();
  }

  static Instant now() { return Instant{static_cast<std::int64_t>(seconds_now() * 1e9)}; }

  void step() {
    // As a node does it: a burst out, a batch of datagrams in, and the answer when that has been taken.
    Instant time = now();
    if (client->next_timer() <= time) client->on_timer(time);
    if (auto burst = client->send(time, buffer)) {
      for (ByteSpan rest = ByteSpan(buffer).first(burst->bytes); !rest.empty();) {
        const ByteSpan datagram = rest.first(std::min(rest.size(), burst->segment));
        rest = rest.subspan(datagram.size());
        if (!server) {
          server = std::move(stack
                                 ->accept(config, time, to_client, stack->classify(datagram), {}, server_handshake,
                                          server_app, entropy)
                                 .value());
        }
        server->receive(time, to_client, burst->ecn, datagram);
      }
      time = now();
      answer(time);
    }
    if (server && server->next_timer() <= time) server->on_timer(time);
    if (server) answer(time);
  }
  void answer(Instant time) {
    while (auto burst = server->send(time, buffer_back)) {
      for (ByteSpan rest = ByteSpan(buffer_back).first(burst->bytes); !rest.empty();) {
        const ByteSpan datagram = rest.first(std::min(rest.size(), burst->segment));
        rest = rest.subspan(datagram.size());
        client->receive(time, to_server, burst->ecn, datagram);
      }
    }
  }
  Bytes buffer_back = Bytes(64 << 10);
};

void throughput(const char* name, env::QuicCipher cipher, std::size_t datagram_bytes) {
  Pair pair(cipher, datagram_bytes);
  pair.client_app.stream = pair.client->open(true).value();
  const auto run = [&](double seconds) {
    const double begin = seconds_now();
    const auto before = pair.server_app.received;
    while (seconds_now() - begin < seconds) pair.step();
    return static_cast<double>(pair.server_app.received - before) / (seconds_now() - begin) / 1e9;
  };
  run(0.3);  // Path MTU, windows.
  const double rate = run(1.5);
  const auto sent = pair.client->stats(), answered = pair.server->stats();
  std::printf("%-18s %5zu-byte datagrams: %5.2f GB/s (seal + open on one core); %.0f datagrams per answer, %llu lost\n",
              name, sent.datagram_bytes, rate,
              static_cast<double>(sent.packets_sent) / static_cast<double>(answered.packets_sent),
              static_cast<unsigned long long>(sent.packets_lost));
}

void handshakes() {
  const double begin = seconds_now();
  std::size_t n = 0;
  for (; seconds_now() - begin < 0.5; ++n) Pair pair(env::QuicCipher::aes_256_gcm, 0);
  std::printf("connection made and dropped, both sides, without a key exchange: %.0f us\n",
              (seconds_now() - begin) / static_cast<double>(n) * 1e6);
}

}  // namespace

int main() {
  handshakes();
  for (const std::size_t datagram_bytes : {std::size_t{0}, std::size_t{8952}}) {
    throughput("AES-256-GCM", env::QuicCipher::aes_256_gcm, datagram_bytes);
    throughput("XChaCha20-Poly1305", env::QuicCipher::xchacha20_poly1305, datagram_bytes);
  }
}
