// What attacks on sessions over datagrams are made of: two machines on a simulated network, somebody between a
// connection and its handshake, and peers that hold the keys and keep to nothing. For tests.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "core/hyperbus/handshake.h"
#include "core/hyperbus/noise.h"
#include "crypto/hash.h"
#include "crypto/packet_protection.h"
#include "driver/quic/quic.h"
#include "env/entropy_testing.h"
#include "sim/datagrams.h"
#include "sim/packet_host.h"

namespace holo::sim::attack {

using env::QuicHandshake;
using hyperbus::RefusalKind;

/// The real stack, with somebody between a connection and its handshake.
class AlteringStack final : public env::QuicStack {
 public:
  /// Sees handshake message `number` (1 to 3) as it arrives.
  std::function<void(int number, Bytes& message)> alter;
  /// Sees what each message led to, keys included.
  std::function<void(const QuicHandshake::Step&)> on_step;
  /// In place of what a side would do itself.
  QuicHandshake *dialler = nullptr, *listener = nullptr;

  std::unique_ptr<env::QuicConnection> connect(std::shared_ptr<const env::QuicConfig> config, Instant now,
                                               const env::DatagramPath& path, QuicHandshake& handshake,
                                               env::QuicApplication& application, env::Entropy& entropy) override {
    return real_->connect(std::move(config), now, path, between(handshake, 2), application, entropy);
  }
  Result<std::unique_ptr<env::QuicConnection>> accept(std::shared_ptr<const env::QuicConfig> config, Instant now,
                                                      const env::DatagramPath& path, const env::QuicPacketHeader& first,
                                                      ByteSpan retried_from, QuicHandshake& handshake,
                                                      env::QuicApplication& application,
                                                      env::Entropy& entropy) override {
    return real_->accept(std::move(config), now, path, first, retried_from, between(handshake, 1), application,
                         entropy);
  }
  [[nodiscard]] env::QuicPacketHeader classify(ByteSpan datagram) const override { return real_->classify(datagram); }
  std::size_t write_version_negotiation(const env::QuicPacketHeader& header, env::Entropy& entropy,
                                        MutableByteSpan out) const override {
    return real_->write_version_negotiation(header, entropy, out);
  }
  std::size_t write_retry(const env::QuicPacketHeader& header, ByteSpan id, ByteSpan token,
                          MutableByteSpan out) const override {
    return real_->write_retry(header, id, token, out);
  }
  std::size_t write_stateless_reset(const env::QuicConfig& config, const env::QuicPacketHeader& header,
                                    std::size_t bytes, env::Entropy& entropy, MutableByteSpan out) const override {
    return real_->write_stateless_reset(config, header, bytes, entropy, out);
  }

 private:
  struct Between final : QuicHandshake {
    AlteringStack* stack;
    QuicHandshake* real;
    int next;
    Between(AlteringStack* s, QuicHandshake* r, int n) : stack(s), real(r), next(n) {}
    std::expected<Bytes, Failure> start(ByteSpan parameters) override { return real->start(parameters); }
    std::expected<Step, Failure> on_message(ByteSpan message, const ExchangeParameters& exchange) override {
      Bytes copy(message.begin(), message.end());
      if (stack->alter) stack->alter(next, copy);
      next += 2;
      auto step = real->on_message(copy, exchange);
      if (step && stack->on_step) stack->on_step(*step);
      return step;
    }
  };
  QuicHandshake& between(QuicHandshake& real, int first) {
    if (QuicHandshake* forged = first == 1 ? listener : dialler) return *forged;
    return *betweens_.emplace_back(std::make_unique<Between>(this, &real, first));
  }
  std::unique_ptr<env::QuicStack> real_ = driver::quic::make_stack();
  std::vector<std::unique_ptr<Between>> betweens_;
};

inline std::shared_ptr<const hyperbus::SessionConfig> session_of(std::uint8_t who, std::uint8_t key = 77,
                                                                 std::uint64_t packets_per_key = 1ULL << 23) {
  const auto secret = [](std::uint8_t byte) {
    std::array<std::byte, 32> bytes{};
    bytes.fill(std::byte{byte});
    return crypto::Secret<32>(bytes);
  };
  auto out = std::make_shared<hyperbus::SessionConfig>();
  out->handshake = std::make_shared<const hyperbus::HandshakeConfig>(hyperbus::HandshakeConfig{
      .identity = hyperbus::Identity::from_seed(secret(who)), .keys = {hyperbus::ClusterKey(secret(key))}});
  out->records_per_key = packets_per_key;
  return out;
}

inline env::IpEndpoint at(std::uint8_t host, std::uint16_t port = 7000) {
  return env::IpEndpoint::v4(10 << 24 | host, port);
}

struct Machine {
  SimLoop loop;
  env::testing::SeededEntropy entropy;
  std::unique_ptr<env::Datagrams> datagrams;
  PacketHost host;
  std::uint64_t served = 0, answered = 0, failed = 0;
  bool wrong = false;

  Machine(World& world, DatagramNetwork& network, env::QuicStack& stack, std::uint8_t who,
          std::shared_ptr<const hyperbus::SessionConfig> session)
      : loop(world),
        entropy(who),
        datagrams(network.attach(str("m", int{who}), loop, {str("10.0.0.", int{who})})),
        host(loop, *datagrams, stack, entropy, {.session = session, .quic = quic_config(*session)}) {
    host.on_event = [this](const PacketHost::LinkPtr& link, hyperbus::Event event) {
      if (auto* arrived = std::get_if<hyperbus::RequestArrived>(&event)) {
        ++served;
        wrong |= arrived->request.header != "hello";
        link->session->reply(arrived->stream, env::Reply{.header = "hello"});
      } else if (auto* reply = std::get_if<hyperbus::ReplyArrived>(&event)) {
        ++(reply->result ? answered : failed);
        wrong |= reply->result && reply->result->header != "hello";
      }
    };
  }
  ~Machine() { loop.kill(); }
};

struct Scene {
  World world;
  DatagramNetwork network{world, 1};
  AlteringStack stack;
  Machine dialler, listener;
  explicit Scene(std::shared_ptr<const hyperbus::SessionConfig> a = session_of(1),
                 std::shared_ptr<const hyperbus::SessionConfig> b = session_of(2))
      : dialler(world, network, stack, 1, std::move(a)), listener(world, network, stack, 2, std::move(b)) {}

  PacketHost::LinkPtr dial() { return dialler.host.dial(at(2)); }
  void ask(const PacketHost::LinkPtr& link, Duration patience = seconds(6)) {
    (void)dialler.host.request(link, env::StreamClass::data, env::Request{.type = 1, .header = "hello"},
                               dialler.loop.now() + patience);
  }
  void run(Duration time) { world.run_until(world.now() + time); }
  bool run_until(const std::function<bool()>& done, Duration patience) {
    return world.run_while_not(done, world.now() + patience);
  }
};

struct Nobody final : env::QuicApplication {
  void on_established() override {}
  Status on_stream_data(env::QuicStreamId, ByteSpan, bool) override { return {}; }
  void on_stream_acknowledged(env::QuicStreamId, std::uint64_t) override {}
  void on_stream_abandoned(env::QuicStreamId, std::uint64_t) override {}
  void on_stream_closed(env::QuicStreamId) override {}
  void on_streams_available() override {}
  bool next_write(env::QuicWrite&) override { return false; }
  void on_written(env::QuicStreamId, std::size_t, bool) override {}
  void on_blocked(env::QuicStreamId) override {}
  void on_unblocked(env::QuicStreamId) override {}
  void on_connection_id(ByteSpan) override {}
  void on_connection_id_retired(ByteSpan) override {}
  void on_end(const env::QuicEnd&) override {}
};

/// What a hyperbus::Handshake needs to be a QuicHandshake; and the keys, for who wants to make packets itself.
class KeyedHandshake final : public QuicHandshake {
 public:
  KeyedHandshake(hyperbus::Role role, std::shared_ptr<const hyperbus::HandshakeConfig> config, env::Entropy& entropy)
      : role_(role), handshake_(role, std::move(config), entropy) {}
  std::expected<Bytes, Failure> start(ByteSpan parameters) override { return checked(handshake_.start(parameters)); }
  std::expected<Step, Failure> on_message(ByteSpan message, const ExchangeParameters& exchange) override {
    auto answer = checked(handshake_.on_message(message, exchange));
    if (!answer) return std::unexpected(answer.error());
    Step step;
    step.message = std::move(*answer);
    const auto secrets = [&](crypto::TrafficSecret send, crypto::TrafficSecret receive) {
      return env::QuicSecrets{
          .cipher = static_cast<env::QuicCipher>(cipher), .send = std::move(send), .receive = std::move(receive)};
    };
    cipher = handshake_.aead();
    if (auto level = handshake_.take_level_secrets()) step.handshake = secrets(level->send, level->receive);
    if (handshake_.done()) {
      auto result = handshake_.take_result();
      cipher = result.aead;
      sends = result.send_secret;
      step.application = secrets(std::move(result.send_secret), std::move(result.receive_secret));
      step.message_at_handshake_level = role_ == hyperbus::Role::initiator;
    }
    return step;
  }

  crypto::AeadAlgorithm cipher{};
  std::optional<crypto::TrafficSecret> sends;

 private:
  static std::expected<Bytes, Failure> checked(hyperbus::Handshake::Outcome<Bytes> outcome) {
    if (outcome) return std::move(*outcome);
    return std::unexpected(Failure{.alert = static_cast<std::uint8_t>(outcome.error().kind), .reason = {}});
  }
  hyperbus::Role role_;
  hyperbus::Handshake handshake_;
};

/// Who holds the cluster's key, speaks the protocol, and shows an identity that is not its own.
class ForgedHandshake final : public QuicHandshake {
 public:
  struct Forgery {
    hyperbus::Suite suite{};
    crypto::X25519KeyPair speaks;  ///< the static key of the handshake
    hyperbus::Payload shows;       ///< what is said of whom it belongs to
    std::vector<hyperbus::ClusterKey> keys;
  };
  ForgedHandshake(hyperbus::Role role, Forgery forgery, env::Entropy& entropy)
      : role_(role), forgery_(std::move(forgery)), entropy_(&entropy) {}

  std::expected<Bytes, Failure> start(ByteSpan parameters) override {
    hyperbus::Preamble preamble{.suite = forgery_.suite};
    if (!forgery_.keys.empty()) preamble.key_id = forgery_.keys.front().id();
    Bytes out;
    hyperbus::encode_preamble(preamble, out);
    begin(out);
    return write(out, {.versions = {hyperbus::kNewestVersion},
                       .aeads = {crypto::AeadAlgorithm::xchacha20_poly1305},
                       .transport_parameters = Bytes(parameters.begin(), parameters.end())});
  }
  std::expected<Step, Failure> on_message(ByteSpan message, const ExchangeParameters& exchange) override {
    if (!noise_) {
      begin(Bytes(message.begin(), message.begin() + hyperbus::kPreambleBytes));
      message = message.subspan(hyperbus::kPreambleBytes);
    }
    const auto read = noise_->read_message(message);
    if (!read) return std::unexpected(Failure{});
    Step step;
    if (noise_->done()) return step;  // It was let in.
    hyperbus::Payload said = forgery_.shows;
    auto ours = exchange(hyperbus::decode_payload(*read).value().transport_parameters);
    if (!ours) return std::unexpected(Failure{});
    if (role_ == hyperbus::Role::responder) {
      said.versions = {hyperbus::kNewestVersion};
      said.aeads = {crypto::AeadAlgorithm::xchacha20_poly1305};
      said.transport_parameters = *ours;
    } else {
      step.handshake = secrets("handshake");
      step.message_at_handshake_level = true;
    }
    auto answer = write({}, said);
    if (!answer) return std::unexpected(answer.error());
    step.message = std::move(*answer);
    (role_ == hyperbus::Role::responder ? step.handshake : step.application) =
        secrets(role_ == hyperbus::Role::responder ? "handshake" : "traffic");
    return step;
  }

 private:
  void begin(ByteSpan preamble) {
    std::vector<hyperbus::noise::Psk> psks;
    for (const auto& key : forgery_.keys) psks.push_back(key.psk());
    noise_.emplace(psks.empty() ? hyperbus::noise::kXXhfs : hyperbus::noise::kXXhfsPsk0, role_, preamble,
                   forgery_.speaks, std::move(psks));
  }
  std::expected<Bytes, Failure> write(Bytes out, const hyperbus::Payload& payload) {
    Bytes encoded;
    hyperbus::encode_payload(payload, encoded);
    if (!noise_->write_message(*entropy_, encoded, out)) return std::unexpected(Failure{});
    return out;
  }
  [[nodiscard]] env::QuicSecrets secrets(const char* what) const {
    env::QuicSecrets out{.cipher = env::QuicCipher::xchacha20_poly1305, .send = {}, .receive = {}};
    for (const bool initiator : {true, false}) {
      auto& secret = initiator == (role_ == hyperbus::Role::initiator) ? out.send : out.receive;
      const std::string label = str("holo hyperbus v1: ", what, " of the ", initiator ? "initiator" : "responder");
      (void)crypto::hkdf_sha256(noise_->chaining_key().span(), noise_->hash(), as_bytes(label), secret.writable());
    }
    return out;
  }

  hyperbus::Role role_;
  Forgery forgery_;
  env::Entropy* entropy_;
  std::optional<hyperbus::noise::HandshakeState> noise_;
};

/// QUIC's numbers of variable length (RFC 9000, section 16).
inline void put_varint(Bytes& out, std::uint64_t v) {
  const int size = v < 1 << 6 ? 1 : v < 1 << 14 ? 2 : v < 1 << 30 ? 4 : 8;
  const std::size_t first = out.size();
  for (int i = size - 1; i >= 0; --i) out.push_back(static_cast<std::byte>(v >> (8 * i)));
  out[first] |= static_cast<std::byte>(size == 1 ? 0x00 : size == 2 ? 0x40 : size == 4 ? 0x80 : 0xc0);
}
inline Bytes numbers(std::initializer_list<std::uint64_t> all) {
  Bytes out;
  for (const std::uint64_t v : all) put_varint(out, v);
  return out;
}
inline Bytes operator+(Bytes a, ByteSpan b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
/// A STREAM frame with offset and length.
inline Bytes stream_frame(std::uint64_t stream, std::uint64_t offset, ByteSpan bytes, bool fin = false) {
  return numbers({fin ? 0x0fU : 0x0eU, stream, offset, bytes.size()}) + bytes;
}

/// An Initial packet: whoever sees the first id of a connection can make them, for both sides (RFC 9001, section 5.2).
inline Bytes forge_initial(ByteSpan first_id, bool from_server, ByteSpan destination, ByteSpan source, Bytes frames,
                           std::uint32_t number = 0) {
  const ByteSpan salt = std::as_bytes(std::span(driver::quic::kInitialSalt));
  const crypto::InitialSecrets secrets = crypto::initial_secrets(salt, first_id);
  const auto& secret = from_server ? secrets.server : secrets.client;
  const crypto::PacketKey key(crypto::AeadAlgorithm::aes_128_gcm, secret);
  const crypto::HeaderKey header_key(crypto::AeadAlgorithm::aes_128_gcm, secret);
  frames.resize(std::max<std::size_t>(frames.size(), 1'150));  // PADDING
  Bytes out{std::byte{0xc3}, {}, {}, {}, std::byte{1}};
  for (const ByteSpan id : {destination, source}) {
    out.push_back(static_cast<std::byte>(id.size()));
    out.insert(out.end(), id.begin(), id.end());
  }
  put_varint(out, 0);  // no token
  put_varint(out, 4 + frames.size() + crypto::kAeadTagBytes);
  const std::size_t number_at = out.size();
  for (int i = 3; i >= 0; --i) out.push_back(static_cast<std::byte>(number >> (8 * i)));
  const Bytes header = out;
  out.resize(out.size() + frames.size() + crypto::kAeadTagBytes);
  key.seal(number, header, frames, MutableByteSpan(out).subspan(header.size()));
  const auto mask = header_key.mask(ByteSpan(out).subspan(number_at + 4).first<crypto::HeaderKey::kSampleBytes>());
  out[0] ^= mask[0] & std::byte{0x0f};
  for (std::size_t i = 0; i < 4; ++i) out[number_at + i] ^= mask[1 + i];
  return out;
}

/// A node as good as any until the handshake is done, at(9). Then it says on its connection what a test wants, or in
/// packets of its own making.
class HostilePeer final : public env::QuicApplication {
 public:
  HostilePeer(World& world, PacketHost& target, std::shared_ptr<const hyperbus::SessionConfig> config,
              std::shared_ptr<const env::QuicConfig> quic = nullptr, std::uint64_t seed = 9)
      : world_(&world),
        target_(&target),
        entropy_(seed),
        handshake_(hyperbus::Role::initiator, config->handshake, entropy_),
        stack_(driver::quic::make_stack()),
        burst_(env::DatagramSocket::kMaxBurst) {
    target.on_send = [this](const env::DatagramPath& path, Bytes& datagram) {
      if (path.remote != at(9)) return true;
      heard_bytes += datagram.size();
      if (!deaf) after(microseconds(50), [this, copy = datagram] { receive(copy); });
      return false;
    };
    connection_ = stack_->connect(quic ? quic : hyperbus::quic_config(*config), world.now(),
                                  {.local = at(9), .remote = target.local()}, handshake_, *this, entropy_);
    pump();
  }
  ~HostilePeer() override {
    *alive_ = false;
    target_->on_send = nullptr;
  }
  HostilePeer(const HostilePeer&) = delete;
  HostilePeer& operator=(const HostilePeer&) = delete;

  /// On a stream, as QUIC's rules allow.
  void say(env::QuicStreamId stream, ByteSpan bytes, bool fin = false) {
    Out& out = outs_[stream];
    out.chunks.emplace_back(bytes.begin(), bytes.end());
    out.fin |= fin;
    pump();
  }
  env::QuicStreamId open(bool bidirectional = true) { return connection_->open(bidirectional).value_or(-1); }
  void abandon(env::QuicStreamId stream) {
    outs_[stream].blocked = true;
    connection_->abandon(stream, 7);
    pump();
  }
  /// The control stream with these grants for all classes.
  void grant(std::uint64_t requests, std::uint64_t request_bytes, std::uint64_t reply_bytes) {
    Bytes out{std::byte{1}};
    for (int klass = 0; klass < 3; ++klass) {
      out.insert(out.end(), {std::byte{1}, static_cast<std::byte>(klass), std::byte{24}, std::byte{0}});
      for (const std::uint64_t v : {requests, request_bytes, reply_bytes}) {
        for (int i = 0; i < 8; ++i) out.push_back(static_cast<std::byte>(v >> (8 * i)));
      }
    }
    say(open(false), out);
  }
  static Bytes request(std::size_t header_bytes, std::uint64_t payload_bytes, std::uint8_t klass = 1,
                       std::uint16_t type = 1) {
    hyperbus::RequestHead head{.type = type,
                               .klass = klass,
                               .header_bytes = static_cast<std::uint32_t>(header_bytes),
                               .payload_bytes = payload_bytes,
                               .time_left_us = 5'000'000};
    Bytes out(hyperbus::RequestHead::kBytes);
    hyperbus::write_head(out.data(), head);
    return out;
  }

  /// In one packet of its own, whatever QUIC's rules say. From then on it hears nothing: what would answer for it does
  /// not know of these packets.
  void forge(ByteSpan frames) {
    deaf = mute = true;
    if (!key_) {
      key_.emplace(handshake_.cipher, *handshake_.sends);
      header_key_.emplace(handshake_.cipher, *handshake_.sends);
    }
    Bytes out{std::byte{0x43}};  // Short header, a packet number of 4 bytes.
    out.insert(out.end(), id_.begin(), id_.end());
    const std::size_t number_at = out.size();
    const std::uint64_t number = next_number_++;
    for (int i = 3; i >= 0; --i) out.push_back(static_cast<std::byte>(number >> (8 * i)));
    const Bytes header = out;
    out.resize(out.size() + std::max<std::size_t>(frames.size(), 4) + crypto::kAeadTagBytes);
    Bytes plain(frames.begin(), frames.end());
    plain.resize(std::max<std::size_t>(frames.size(), 4));  // PADDING
    key_->seal(number, header, plain, MutableByteSpan(out).subspan(header.size()));
    const auto mask = header_key_->mask(ByteSpan(out).subspan(number_at + 4).first<crypto::HeaderKey::kSampleBytes>());
    out[0] ^= mask[0] & std::byte{0x1f};
    for (std::size_t i = 0; i < 4; ++i) out[number_at + i] ^= mask[1 + i];
    said_bytes += out.size();
    target_->receive({.path = {.local = target_->local(), .remote = at(9)}, .bytes = out});
  }

  bool established = false;
  bool deaf = false, mute = false;
  std::optional<env::QuicEnd> end;
  std::map<env::QuicStreamId, Bytes> heard;
  std::uint64_t heard_bytes = 0, said_bytes = 0;

 private:
  struct Out {
    std::deque<Bytes> chunks;  // All of them, as the connection keeps no copy.
    std::size_t chunk = 0, offset = 0;
    bool fin = false, fin_written = false, blocked = false;
  };

  void after(Duration time, std::function<void()> f) {
    world_->at(world_->now() + time, [alive = alive_, f = std::move(f)] {
      if (*alive) f();
    });
  }
  void receive(ByteSpan datagram) {
    if (deaf) return;
    connection_->receive(world_->now(), {.local = at(9), .remote = target_->local()}, env::Ecn::not_ect, datagram);
    pump();
  }
  void pump() {
    while (!mute) {
      const auto burst = connection_->send(world_->now(), burst_);
      if (!burst) break;
      for (std::size_t at_byte = 0; at_byte < burst->bytes; at_byte += burst->segment) {
        const auto all = ByteSpan(burst_).first(burst->bytes).subspan(at_byte);
        const ByteSpan one = all.first(std::min(all.size(), burst->segment));
        if ((one[0] & std::byte{0x80}) == std::byte{0}) id_.assign(one.begin() + 1, one.begin() + 9);
        said_bytes += one.size();
        after(microseconds(50), [this, copy = Bytes(one.begin(), one.end())] {
          target_->receive({.path = {.local = target_->local(), .remote = at(9)}, .bytes = copy});
        });
      }
    }
    const Instant next = connection_->next_timer();
    if (mute || next == kNever) return;
    const std::uint64_t mine = ++timer_;
    after(std::max(next - world_->now(), microseconds(1)), [this, mine] {
      if (mine != timer_) return;
      if (connection_->next_timer() <= world_->now()) connection_->on_timer(world_->now());
      pump();
    });
  }

  // env::QuicApplication
  void on_established() override { established = true; }
  Status on_stream_data(env::QuicStreamId stream, ByteSpan bytes, bool) override {
    Bytes& all = heard[stream];
    all.insert(all.end(), bytes.begin(), bytes.end());
    return {};
  }
  void on_stream_acknowledged(env::QuicStreamId, std::uint64_t) override {}
  void on_stream_abandoned(env::QuicStreamId stream, std::uint64_t) override { outs_[stream].blocked = true; }
  void on_stream_closed(env::QuicStreamId stream) override { outs_[stream].blocked = true; }
  void on_streams_available() override {}
  bool next_write(env::QuicWrite& write) override {
    for (auto& [stream, out] : outs_) {
      const bool more = out.chunk < out.chunks.size();
      if (out.blocked || out.fin_written || (!more && !out.fin)) continue;
      write.stream = stream;
      if (more) write.parts[write.count++] = ByteSpan(out.chunks[out.chunk]).subspan(out.offset);
      write.fin = out.fin && out.chunk + 1 >= out.chunks.size();
      return true;
    }
    return false;
  }
  void on_written(env::QuicStreamId stream, std::size_t bytes, bool fin) override {
    Out& out = outs_[stream];
    out.offset += bytes;
    if (out.chunk < out.chunks.size() && out.offset == out.chunks[out.chunk].size()) {
      ++out.chunk;
      out.offset = 0;
    }
    out.fin_written |= fin;
  }
  void on_blocked(env::QuicStreamId stream) override { outs_[stream].blocked = true; }
  void on_unblocked(env::QuicStreamId stream) override { outs_[stream].blocked = false; }
  void on_connection_id(ByteSpan) override {}
  void on_connection_id_retired(ByteSpan) override {}
  void on_end(const env::QuicEnd& e) override { end = e; }

  World* world_;
  PacketHost* target_;
  env::testing::SeededEntropy entropy_;
  KeyedHandshake handshake_;
  std::unique_ptr<env::QuicStack> stack_;
  std::map<env::QuicStreamId, Out> outs_;
  Bytes burst_, id_;
  std::optional<crypto::PacketKey> key_;
  std::optional<crypto::HeaderKey> header_key_;
  std::uint64_t next_number_ = 1'000'000;
  std::uint64_t timer_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::unique_ptr<env::QuicConnection> connection_;  // last: it looks at what stands above
};

}  // namespace holo::sim::attack
