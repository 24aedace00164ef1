// Two QUIC endpoints on a virtual clock, with a network between them that loses, reorders, repeats and alters datagrams
// by a seed. For tests and measurements of this module.
#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "crypto/packet_protection.h"
#include "driver/quic/quic.h"
#include "env/entropy_testing.h"

namespace holo::driver::quic::testing {

using env::testing::SeededEntropy;

/// Three messages and fixed secrets: what a key exchange looks like from below.
class FakeHandshake final : public env::QuicHandshake {
 public:
  struct Options {
    bool server = false;
    env::QuicCipher cipher = env::QuicCipher::aes_256_gcm;
    std::size_t first_message_bytes = 1500;  ///< at least; so that it takes two packets, as the real one does
    int fail_at = 0;                         ///< the message (1 to 3) that is refused
    bool allows_no_stream = false;           ///< Its parameters say that the peer may open no unidirectional one.
  };
  explicit FakeHandshake(Options options) : options_(options) {}

  std::expected<Bytes, Failure> start(ByteSpan parameters) override {
    Bytes out(parameters.begin(), parameters.end());
    // Ids and lengths below 64 have a byte each (RFC 9000, section 18).
    for (std::size_t at = 0; options_.allows_no_stream && at + 2 < out.size();
         at += 2 + std::to_integer<std::size_t>(out[at + 1])) {
      if (out[at] == std::byte{0x09}) out[at + 2] = std::byte{0};
    }
    out.insert(out.begin(), static_cast<std::byte>(parameters.size()));
    out.resize(std::max(out.size(), options_.first_message_bytes));
    return out;
  }

  std::expected<Step, Failure> on_message(ByteSpan message, const ExchangeParameters& exchange) override {
    const int number = options_.server ? (seen_ == 0 ? 1 : 3) : 2;
    ++seen_;
    if (options_.fail_at == number) return std::unexpected(Failure{.alert = 42, .reason = "not today"});
    Step step;
    if (number != 3) {
      const std::size_t n = std::to_integer<std::size_t>(message[0]);
      if (message.size() < 1 + n) return std::unexpected(Failure{.alert = kDecodeError, .reason = "short"});
      auto own = exchange(message.subspan(1, n));
      if (!own) return std::unexpected(Failure{.alert = 109, .reason = own.error().message});
      step.handshake = secrets(1);
      if (number == 1) step.message = *start(*own);
    }
    if (number == 2) {
      step.message = Bytes(200, std::byte{3});
      step.message_at_handshake_level = true;
    }
    if (number != 1) step.application = secrets(2);
    return step;
  }

 private:
  [[nodiscard]] env::QuicSecrets secrets(std::uint8_t stage) const {
    env::QuicSecrets out{.cipher = options_.cipher};
    auto& of_server = options_.server ? out.send : out.receive;
    auto& of_client = options_.server ? out.receive : out.send;
    std::ranges::fill(of_server.writable(), std::byte{stage});
    std::ranges::fill(of_client.writable(), static_cast<std::byte>(stage + 100));
    return out;
  }

  Options options_;
  int seen_ = 0;
};

/// A 1-RTT packet with whatever frames, sealed as a FakeHandshake's client would (AES-256-GCM, no key update).
inline Bytes forge_from_client(ByteSpan connection_id, std::uint32_t packet_number, ByteSpan frames) {
  crypto::TrafficSecret secret;
  std::ranges::fill(secret.writable(), std::byte{102});
  const crypto::PacketKey key(crypto::AeadAlgorithm::aes_256_gcm, secret);
  const crypto::HeaderKey header_key(crypto::AeadAlgorithm::aes_256_gcm, secret);
  Bytes out{std::byte{0x43}};  // Short header, a packet number of 4 bytes.
  out.insert(out.end(), connection_id.begin(), connection_id.end());
  const std::size_t number_at = out.size();
  for (int i = 3; i >= 0; --i) out.push_back(static_cast<std::byte>(packet_number >> (8 * i)));
  const Bytes header = out;
  out.resize(out.size() + frames.size() + crypto::kAeadTagBytes);
  key.seal(packet_number, header, frames, MutableByteSpan(out).subspan(header.size()));
  const auto mask = header_key.mask(ByteSpan(out).subspan(number_at + 4).first<crypto::HeaderKey::kSampleBytes>());
  out[0] ^= mask[0] & std::byte{0x1f};
  for (std::size_t i = 0; i < 4; ++i) out[number_at + i] ^= mask[1 + i];
  return out;
}

/// The byte that belongs at `offset` of `stream`, so that nothing need be stored to check it.
inline std::byte byte_at(env::QuicStreamId stream, std::uint64_t offset) {
  return static_cast<std::byte>(mix64(static_cast<std::uint64_t>(stream) << 40 ^ offset >> 3) >> (8 * (offset & 7)));
}

/// Sends what it is told to, echoes nothing, and keeps account of everything that it hears.
class App final : public env::QuicApplication {
 public:
  struct Out {
    static constexpr std::size_t kChunk = 3000;
    std::vector<Bytes> chunks;  // Each is freed once all of it is acknowledged, so that no one can look at it any more.
    std::size_t size = 0, written = 0, acknowledged = 0, freed = 0;
    bool fin = false, fin_written = false, blocked = false, dead = false;
  };
  struct In {
    std::uint64_t bytes = 0;
    bool fin = false, wrong = false;
  };

  // What the connection did.
  bool established = false;
  std::optional<env::QuicEnd> end;
  int ends = 0, unblocked = 0, available = 0;
  std::map<env::QuicStreamId, Out> out;
  std::map<env::QuicStreamId, In> in;
  std::map<env::QuicStreamId, std::uint64_t> abandoned;
  std::set<env::QuicStreamId> closed;
  std::set<Bytes> ids;
  std::uint64_t received = 0;
  // What a test wants.
  std::function<Status(env::QuicStreamId, ByteSpan, bool)> on_data;
  std::function<void()> when_established, when_available;
  bool check = true, answer_fin = true;

  /// Sends `bytes` of the stream's pattern on it.
  void send(env::QuicStreamId stream, std::size_t bytes, bool fin = true) {
    Out& o = out[stream];
    for (; bytes != 0; --bytes, ++o.size) {
      if (o.size % Out::kChunk == 0) {
        o.chunks.emplace_back();
        o.chunks.back().reserve(Out::kChunk);
      }
      o.chunks.back().push_back(byte_at(stream, o.size));
    }
    o.fin = fin;
  }
  /// As abandon() wants it: nothing more is offered, but what was is kept.
  void give_up(env::QuicStreamId stream) {
    if (auto it = out.find(stream); it != out.end()) it->second.dead = true;
  }

  void on_established() override {
    established = true;
    if (when_established) when_established();
  }
  Status on_stream_data(env::QuicStreamId stream, ByteSpan bytes, bool fin) override {
    In& i = in[stream];
    for (std::size_t k = 0; check && k < bytes.size(); ++k) i.wrong |= bytes[k] != byte_at(stream, i.bytes + k);
    i.wrong |= i.fin || closed.contains(stream);
    i.bytes += bytes.size();
    i.fin |= fin;
    received += bytes.size();
    // A peer's stream has a direction of ours, too; unless a test says otherwise it ends at once.
    if (answer_fin && env::is_bidirectional(stream) && !out.contains(stream)) send(stream, 0);
    return on_data ? on_data(stream, bytes, fin) : Status{};
  }
  void on_stream_acknowledged(env::QuicStreamId stream, std::uint64_t bytes) override {
    Out& o = out.at(stream);
    o.acknowledged += bytes;
    for (; o.freed < o.acknowledged / Out::kChunk; ++o.freed) Bytes().swap(o.chunks[o.freed]);
  }
  void on_stream_abandoned(env::QuicStreamId stream, std::uint64_t code) override {
    abandoned[stream] = code;
    give_up(stream);
  }
  void on_stream_closed(env::QuicStreamId stream) override {
    closed.insert(stream);
    if (auto it = out.find(stream); it != out.end()) it->second.chunks.clear();
  }
  void on_streams_available() override {
    ++available;
    if (when_available) when_available();
  }
  bool next_write(env::QuicWrite& write) override {
    for (auto& [stream, o] : out) {
      if (o.blocked || o.fin_written || o.dead || closed.contains(stream)) continue;
      if (o.written == o.size && !o.fin) continue;
      write.stream = stream;
      std::size_t at = o.written;
      for (; at < o.size && write.count < write.parts.size(); ++write.count) {
        const ByteSpan part = ByteSpan(o.chunks[at / Out::kChunk]).subspan(at % Out::kChunk);
        write.parts[write.count] = part;
        at += part.size();
      }
      write.fin = o.fin && at == o.size;
      return true;
    }
    return false;
  }
  void on_written(env::QuicStreamId stream, std::size_t bytes, bool fin) override {
    Out& o = out[stream];
    o.written += bytes;
    o.fin_written |= fin;
  }
  void on_blocked(env::QuicStreamId stream) override {
    if (auto it = out.find(stream); it != out.end()) it->second.blocked = true;
  }
  void on_unblocked(env::QuicStreamId stream) override {
    ++unblocked;
    if (auto it = out.find(stream); it != out.end()) it->second.blocked = false;
  }
  void on_connection_id(ByteSpan id) override { ids.emplace(id.begin(), id.end()); }
  void on_connection_id_retired(ByteSpan id) override { ids.erase(Bytes(id.begin(), id.end())); }
  void on_end(const env::QuicEnd& e) override {
    ++ends;
    end = e;
  }
};

inline env::IpEndpoint endpoint(std::uint8_t host, std::uint16_t port) {
  return env::IpEndpoint::v4(10 << 24 | host, port);
}

/// What the network does to datagrams. Chances in a thousand.
struct Faults {
  Duration delay = microseconds(50), jitter{};
  std::uint32_t loss = 0, repeat = 0, flip = 0, truncate = 0;
};

class World {
 public:
  struct Options {
    std::uint64_t seed = 1;
    env::QuicConfig config = default_config();
    FakeHandshake::Options client, server{.server = true};
    bool retry = false;
    Faults faults{};
  };
  struct Side {
    std::string name;
    env::IpEndpoint address;
    FakeHandshake handshake;
    App app;
    std::unique_ptr<env::QuicConnection> connection;
    bool forgotten = false;  // The process was restarted: it answers with stateless resets.
    std::uint64_t resets = 0, retries = 0, negotiations = 0, bursts = 0, datagrams = 0;
    std::uint64_t cut = 0;  // bursts that a shorter datagram ended though there was more to send
    env::Ecn last_ecn = env::Ecn::not_ect;
    std::size_t largest = 0;
  };

  static env::QuicConfig default_config() {
    env::QuicConfig out;
    out.stream_window = 1 << 20;
    out.connection_window = 4 << 20;
    out.bidirectional_streams = 100;
    std::ranges::fill(out.reset_key.writable(), std::byte{9});
    return out;
  }

  explicit World(Options options)
      : random(options.seed),
        entropy(options.seed + 1),
        faults(options.faults),
        retry(options.retry),
        config(std::make_shared<env::QuicConfig>(options.config)),
        client{.name = "client", .address = endpoint(1, 1001), .handshake = FakeHandshake(options.client)},
        server{.name = "server", .address = endpoint(2, 2002), .handshake = FakeHandshake(options.server)} {
    if (config->datagram_bytes != 0) max_datagram = 0;
    client.connection =
        stack->connect(config, now, {.local = {}, .remote = server.address}, client.handshake, client.app, entropy);
  }
  World() : World(Options{}) {}

  /// Runs until `done`, or until `patience` of virtual time has passed; true when done.
  bool run_until(const std::function<bool()>& done, Duration patience = seconds(30)) {
    const Instant deadline = now + patience;
    for (;;) {
      flush(client);
      flush(server);
      if (done()) return true;
      Instant next = deadline;
      if (!wire_.empty()) next = std::min(next, wire_.top().due);
      for (Side* side : {&client, &server}) {
        if (side->connection && side != muted) next = std::min(next, std::max(now, side->connection->next_timer()));
      }
      if (next >= deadline) {
        now = deadline;
        return done();
      }
      // A timer that is due again and again without the clock moving would be a bug; let it show as time passing.
      now = next == now ? now + nanoseconds(1) : next;
      while (!wire_.empty() && wire_.top().due <= now) {
        const InFlight datagram = wire_.top();
        wire_.pop();
        deliver(datagram);
      }
      for (Side* side : {&client, &server}) {
        if (side->connection && side != muted && side->connection->next_timer() <= now) side->connection->on_timer(now);
      }
    }
  }
  bool establish() {
    return run_until([&] { return client.app.established && server.app.established; });
  }
  /// Lets everything that is under way happen.
  void settle(Duration time = milliseconds(200)) {
    run_until([] { return false; }, time);
  }

  void flush(Side& side) {
    if (!side.connection || muted == &side) return;
    bool shorter = false;
    while (auto burst = side.connection->send(now, buffer_)) {
      ++side.bursts;
      side.cut += std::exchange(shorter, burst->bytes % burst->segment != 0) ? 1 : 0;
      side.last_ecn = burst->ecn;
      for (ByteSpan rest = ByteSpan(buffer_).first(burst->bytes); !rest.empty();) {
        const ByteSpan datagram = rest.first(std::min(rest.size(), burst->segment));
        rest = rest.subspan(datagram.size());
        ++side.datagrams;
        side.largest = std::max(side.largest, datagram.size());
        put(side.address, burst->path.remote, burst->ecn, datagram);
      }
    }
  }

  void put(const env::IpEndpoint& from, const env::IpEndpoint& to, env::Ecn ecn, ByteSpan datagram) {
    if (on_wire && !on_wire(from, datagram)) return;
    if (max_datagram != 0 && datagram.size() > max_datagram) return;
    if (random.chance(faults.loss, 1000)) return;
    const int copies = random.chance(faults.repeat, 1000) ? 2 : 1;
    for (int i = 0; i < copies; ++i) {
      InFlight out{.due = now + faults.delay,
                   .order = ++order_,
                   .from = from,
                   .to = to,
                   .ecn = ecn,
                   .bytes = Bytes(datagram.begin(), datagram.end())};
      if (faults.jitter.ns != 0) {
        out.due = out.due +
                  nanoseconds(static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(faults.jitter.ns))));
      }
      if (random.chance(faults.flip, 1000)) {
        out.bytes[random.below(out.bytes.size())] ^= static_cast<std::byte>(1U << random.below(8));
      }
      if (random.chance(faults.truncate, 1000)) out.bytes.resize(random.below(out.bytes.size()));
      if (!out.bytes.empty()) wire_.push(std::move(out));
    }
  }

  Instant now{1'000'000};
  Random random;
  SeededEntropy entropy;
  Faults faults;
  bool retry;
  std::size_t max_datagram = 1472;  // Ethernet's; 0: any
  Side* muted = nullptr;            ///< stands still
  /// Sees each datagram as it is sent; false: it is lost.
  std::function<bool(const env::IpEndpoint& from, ByteSpan)> on_wire;
  std::shared_ptr<env::QuicConfig> config;
  std::unique_ptr<env::QuicStack> stack = make_stack();
  Side client, server;

 private:
  struct InFlight {
    Instant due;
    std::uint64_t order;
    env::IpEndpoint from, to;
    env::Ecn ecn;
    Bytes bytes;
    bool operator<(const InFlight& o) const { return std::pair(o.due, o.order) < std::pair(due, order); }
  };

  void deliver(const InFlight& datagram) {
    Side& side = datagram.to == client.address ? client : server;
    if (datagram.to != side.address) return;  // Nobody lives there any more.
    const env::DatagramPath path{.local = side.address, .remote = datagram.from};
    const env::QuicPacketHeader header = stack->classify(datagram.bytes);
    using Kind = env::QuicPacketHeader::Kind;
    std::array<std::byte, 1500> answer;
    const Bytes destination(header.destination.begin(), header.destination.end());
    if (header.kind == Kind::malformed) return;
    // A stateless reset has no id that says whose it is: it may be for any connection with where it came from.
    const Side& peer = &side == &client ? server : client;
    const bool maybe_reset = header.kind == Kind::one_rtt && datagram.from == peer.address;
    if (side.connection && !side.forgotten && (side.app.ids.contains(destination) || maybe_reset)) {
      return side.connection->receive(now, path, datagram.ecn, datagram.bytes);
    }
    if (header.kind == Kind::unknown_version && &side == &server) {
      if (const auto n = stack->write_version_negotiation(header, entropy, answer); n != 0) {
        ++side.negotiations;
        put(side.address, datagram.from, env::Ecn::not_ect, ByteSpan(answer).first(n));
      }
      return;
    }
    if (header.kind == Kind::one_rtt) {
      if (const auto n = stack->write_stateless_reset(*config, header, datagram.bytes.size(), entropy, answer);
          n != 0) {
        ++side.resets;
        put(side.address, datagram.from, env::Ecn::not_ect, ByteSpan(answer).first(n));
      }
      return;
    }
    if (header.kind != Kind::initial || &side != &server || side.connection || datagram.bytes.size() < 1200) return;
    ByteSpan retried_from;
    if (retry) {
      if (header.token.empty()) {
        Bytes token(header.destination.begin(), header.destination.end());
        std::array<std::byte, env::QuicStack::kConnectionIdBytes> id;
        entropy.fill(id);
        const auto n = stack->write_retry(header, id, token, answer);
        ++side.retries;
        put(side.address, datagram.from, env::Ecn::not_ect, ByteSpan(answer).first(n));
        return;
      }
      retried_from = header.token;
    }
    auto accepted = stack->accept(config, now, path, header, retried_from, side.handshake, side.app, entropy);
    if (!accepted) return;
    side.connection = std::move(*accepted);
    side.connection->receive(now, path, datagram.ecn, datagram.bytes);
  }

  std::priority_queue<InFlight> wire_;
  std::uint64_t order_ = 0;
  Bytes buffer_ = Bytes(64 << 10);
};

}  // namespace holo::driver::quic::testing
