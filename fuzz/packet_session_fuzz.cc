// Sessions over QUIC as a whole: two nodes on virtual time, and between them whoever the input says: it delivers,
// loses, repeats, delays, alters, cuts and invents datagrams, seals packets of its own (Initial ones as anybody can;
// any at all where cryptography is stubbed), lets time pass, and has the nodes ask, answer, cancel, close, dial and
// restart. Whatever happens: each request ends at most once and none outlives its session, a session says once that it
// is closed, nobody hangs, and memory stays bounded.
#include <array>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "core/hyperbus/packet_endpoint.h"
#include "crypto/packet_protection.h"
#include "driver/quic/quic.h"
#include "env/landing_testing.h"
#include "fuzzing.h"
#ifdef HOLO_FUZZ_STUB
#include "stub/stub.h"
#endif
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#include <sanitizer/allocator_interface.h>
#define HOLO_ALLOCATED() __sanitizer_get_current_allocated_bytes()
#endif
#endif
#ifndef HOLO_ALLOCATED
#define HOLO_ALLOCATED() std::size_t{0}
#endif

namespace {

using namespace holo;
using namespace holo::hyperbus;
using fuzz::expect;
using fuzz::Input;

constexpr std::size_t kMaxLinks = 8;      // of a node; above, it accepts nobody and dials nobody
constexpr std::size_t kMaxInFlight = 64;  // datagrams in one direction; above, the oldest is lost
constexpr std::uint64_t kWindow = limits::kMaxHeaderBytes + limits::kMaxPayloadBytes;  // bytes of a class: the least
/// Of memory that a session may hold: what it granted in three classes, twice, and small change.
constexpr std::size_t kMaxSessionBytes = 3 * 2 * 2 * kWindow + (4 << 20);

crypto::Secret<32> secret(std::uint8_t byte) {
  crypto::Secret<32> out;
  std::ranges::fill(out.writable(), std::byte{byte});
  return out;
}

/// Mode tofu, afresh for each run.
class Policy final : public TrustPolicy {
 public:
  TrustDecision decide(const PresentedIdentity& who) override { return book_.judge(who, WallTime{}); }
  void reset() { book_ = TrustBook(TrustMode::tofu); }

 private:
  TrustBook book_{TrustMode::tofu};
};

struct Configs {
  std::shared_ptr<Policy> policy = std::make_shared<Policy>();
  std::array<std::array<std::shared_ptr<const SessionConfig>, 4>, 2> session;  // by node, by suite
  std::array<std::array<std::shared_ptr<const env::QuicConfig>, 4>, 2> quic;   // by node, by variant
  std::unique_ptr<env::QuicStack> stack = driver::quic::make_stack();

  Configs() {
    for (std::uint8_t node = 0; node < 2; ++node) {
      Identity identity = Identity::from_seed(secret(static_cast<std::uint8_t>(1 + node)));
      if (node == 1) identity = *identity.rotated(secret(9));  // One of them has a chain to show.
      for (std::uint8_t suite = 0; suite < 4; ++suite) {
        const bool psk = suite % 2 == 0;
        auto config = std::make_shared<SessionConfig>();
        config->windows = {ClassWindow{.requests = 2, .request_bytes = kWindow, .reply_bytes = kWindow},
                           ClassWindow{.requests = 3, .request_bytes = kWindow, .reply_bytes = kWindow},
                           ClassWindow{.requests = 2, .request_bytes = kWindow, .reply_bytes = kWindow}};
        config->handshake = std::make_shared<const HandshakeConfig>(
            HandshakeConfig{.identity = identity,
                            .keys = {ClusterKey(secret(7))},
                            .suite = suite_of(psk ? TrustMode::psk : TrustMode::tofu,
                                              suite < 2 ? KeyExchange::hybrid : KeyExchange::classical_only),
                            .has_aes = suite != 2,
                            .trust = psk ? nullptr : policy});
        session[node][suite] = config;
      }
      for (std::uint8_t variant = 0; variant < 4; ++variant) {
        env::QuicConfig config;
        config.stream_window = kWindow + (64 << 10);
        config.connection_window = 7 * kWindow;
        config.bidirectional_streams = 14;
        config.packets_per_key = variant % 2 == 0 ? 1ULL << 23 : 24;
        config.datagram_bytes = variant < 2 ? 0 : 9000;
        config.reset_key = secret(static_cast<std::uint8_t>(20 + node));
        quic[node][variant] = std::make_shared<const env::QuicConfig>(config);
      }
    }
  }
};

/// A session and what its owner knows about it.
struct Link {
  std::unique_ptr<PacketSession> session;
  std::map<std::uint64_t, bool> open;  // our requests
  std::vector<StreamId> owed;          // the peer's
  bool dialled = false;
  bool closed = false;
};

struct Node {
  env::IpEndpoint address;
  fuzz::SeededEntropy entropy;
  std::shared_ptr<const SessionConfig> config;
  PacketEndpointConfig endpoint_config;
  std::unique_ptr<PacketEndpoint> endpoint;
  std::deque<Link> links;
  std::deque<Bytes> inbound;         // under way to it
  Bytes id, peer_id;                 // of the last datagram that went to it: the ids that name it, and its peer
  std::uint32_t next_packet = 1000;  // of those that are invented
};

class World {
 public:
  World(Configs& configs, Input in) : configs_(configs), in_(in) {
    const std::size_t mode = in_.number();
#ifdef HOLO_FUZZ_STUB
    crypto::stub::keys_matter = (mode & 4) != 0;
#endif
    configs_.policy->reset();
    const std::size_t suite = mode >> 3 & 3, variant = mode >> 5 & 3;
    for (std::uint8_t i = 0; i < 2; ++i) {
      nodes_[i].reset(
          new Node{.address = env::IpEndpoint::v4(0x0a000001U + i, static_cast<std::uint16_t>(1000 + i)),
                   .entropy = fuzz::SeededEntropy(i + 1U),
                   .config = configs_.session[i][(mode & 128) != 0 && i == 1 ? 0 : suite],
                   .endpoint_config = {.quic = configs_.quic[i][variant],
                                       .retry_from = (mode & 2) != 0 ? 0U : std::size_t{limits::kMaxHalfOpen}},
                   .endpoint = {},
                   .links = {},
                   .inbound = {},
                   .id = {},
                   .peer_id = {}});
      restart(i);
    }
    dial(0);
    if ((mode & 1) != 0) run(12);
  }

  void play(std::size_t allocated_before) {
    for (int ops = 0; !in_.empty() && ops < 48; ++ops) {
      step();
      pump();
    }
    finish(allocated_before);
  }

 private:
  // --- what the input does

  void step() {
    const std::size_t op = in_.number();
    const std::size_t to = op >> 7;
    Node& node = *nodes_[to];
    switch (op % 20) {
      case 0:
      case 1: deliver(to, 0, false); break;
      case 2: deliver(to, in_.number(), false); break;  // out of order
      case 3: deliver(to, in_.number(), true); break;   // repeated
      case 4:
        if (!node.inbound.empty()) node.inbound.pop_front();
        break;
      case 5:
      case 6:
        if (!node.inbound.empty()) alter(node.inbound.front());
        deliver(to, 0, false);
        break;
      case 7:
        if (!node.inbound.empty()) node.inbound.front().resize(in_.large() % (node.inbound.front().size() + 1));
        deliver(to, 0, false);
        break;
      case 8: inject(to, in_.bytes(in_.number())); break;
      case 9:
      case 10:
      case 11: forge(to); break;
      case 12: run(1 + in_.number() % 8); break;
      case 13: pass(microseconds(std::int64_t{1} << in_.number() % 25)); break;
      case 14: ask(to); break;
      case 15: answer(to); break;
      case 16:
        for (Link& link : node.links) {
          if (link.open.empty()) continue;
          link.session->cancel(StreamId(link.open.begin()->first), {.code = Errc::cancelled});
          break;
        }
        break;
      case 17:
        if (!node.links.empty()) close(node.links.front(), in_.number());
        break;
      case 18: {
        const std::size_t what = in_.number();
        if (what < 16) {
          restart(to);
        } else if (what < 64) {
          dial(to);
        } else {
          node.address.port = static_cast<std::uint16_t>(1000 + what);  // It has moved.
        }
        break;
      }
      case 19: ecn_ = static_cast<env::Ecn>(in_.number() % 4); break;
      default: break;
    }
  }

  void alter(Bytes& datagram) {
    const std::size_t at = in_.large();
    if (!datagram.empty()) datagram[at % datagram.size()] ^= static_cast<std::byte>(in_.number());
  }

  void close(Link& link, std::size_t how) {
    if (how < 128) {
      link.session->close({.code = Errc::unavailable, .message = std::string(how, 'x')});
    } else {
      link.session->ping(now_);
    }
  }

  void ask(std::size_t of) {
    const std::size_t how = in_.number();
    env::Request request{.type = 1, .header = std::string(how >> 2, 'h'), .payload = {}};
    const std::size_t bytes = in_.number() * 256;
    if (bytes != 0) request.payload.emplace_back(Bytes(bytes));
    request.landing = env::testing::pieces_for(how * 256);
    const Instant deadline = now_ + milliseconds(static_cast<std::int64_t>(in_.number() * 40));
    if (nodes_[of]->links.empty()) return;
    Link& link = nodes_[of]->links.back();
    const auto stream = link.session->request(now_, static_cast<StreamClass>(how % 3), std::move(request), deadline);
    if (stream) expect(link.open.emplace(stream->value, true).second);
  }

  void answer(std::size_t of) {
    const std::size_t how = in_.number();
    for (Link& link : nodes_[of]->links) {
      if (link.owed.empty()) continue;
      const StreamId stream = link.owed.back();
      link.owed.pop_back();
      if (how >= 192) {
        link.session->reply(stream, fail(Errc::not_found, std::string(how, 'e')));
      } else {
        env::Reply reply{.header = std::string(how, 'r'), .payload = {}};
        reply.payload.emplace_back(Bytes(how * 256));
        link.session->reply(stream, std::move(reply));
      }
      return;
    }
  }

  void dial(std::size_t of) {
    Node& node = *nodes_[of];
    if (node.links.size() >= kMaxLinks) return;
    const env::DatagramPath path{.local = node.address, .remote = nodes_[1 - of]->address};
    add(node, node.endpoint->dial(node.config, now_, path, {}), true);
    dialler_ = of;
    initial_id_.clear();
  }

  static void add(Node& node, std::unique_ptr<PacketSession> session, bool dialled) {
    session->set_placer([](const env::Request&, std::uint64_t bytes) { return env::testing::pieces_for(bytes); });
    node.links.push_back({.session = std::move(session), .dialled = dialled});
  }

  void restart(std::size_t which) {
    Node& node = *nodes_[which];
    node.links.clear();
    node.endpoint = std::make_unique<PacketEndpoint>(*configs_.stack, node.entropy, node.endpoint_config);
  }

  // --- packets of its own

  void varint(Bytes& out, std::uint64_t v) {
    const unsigned size = v < 0x40 ? 0 : v < 0x4000 ? 1 : v < 0x40000000 ? 2 : 3;
    for (int i = (1 << size) - 1; i >= 0; --i) out.push_back(static_cast<std::byte>(v >> (8 * i)));
    out[out.size() - (std::size_t{1} << size)] |= static_cast<std::byte>(size << 6);
  }
  /// Mostly small; now and then at the limits.
  std::uint64_t some() {
    const std::size_t n = in_.number();
    if (n < 200) return n;
    if (n < 240) return in_.large();
    if (n < 250) return std::uint64_t{1} << in_.number() % 62;
    return (1ULL << 62) - 1 - in_.number();
  }
  void put(Bytes& out, ByteSpan bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); }
  void put_some(Bytes& out, int count) {
    for (int i = 0; i < count; ++i) varint(out, some());
  }

  /// What a peer of ours could say on a stream, nearly.
  void content(Bytes& out) {
    const std::size_t kind = in_.number();
    switch (kind % 4) {
      case 0: break;
      case 1: {
        std::array<std::byte, RequestHead::kBytes> head;
        write_head(head.data(), RequestHead{.type = 1,
                                            .klass = static_cast<std::uint8_t>(kind >> 6),
                                            .header_bytes = static_cast<std::uint32_t>(some()),
                                            .payload_bytes = some(),
                                            .time_left_us = some()});
        put(out, head);
        break;
      }
      case 2: {
        std::array<std::byte, ReplyHead::kBytes> head;
        write_head(head.data(), ReplyHead{.error = kind >= 128,
                                          .header_bytes = static_cast<std::uint32_t>(some()),
                                          .payload_bytes = some()});
        put(out, head);
        if (kind >= 64) encode_error({.code = Errc::not_found, .message = "forged"}, out);
        break;
      }
      case 3:
        out.push_back(std::byte{kControlStream});
        encode_grant(static_cast<std::uint8_t>(kind >> 6), {some(), some(), some()}, out);
        break;
      default: break;
    }
    put(out, in_.bytes(in_.number() % 32));
  }

  void frame(Bytes& out) {
    const std::size_t kind = in_.number();
    switch (kind % 20) {
      case 0: out.push_back(std::byte{0x01}); break;  // PING
      case 1:                                         // ACK
        varint(out, 0x02 + (kind >= 128));
        put_some(out, 2);
        {
          const std::size_t ranges = in_.number() % 4;
          varint(out, ranges);
          put_some(out, static_cast<int>(1 + 2 * ranges + (kind >= 128 ? 3 : 0)));
        }
        break;
      case 2:
        varint(out, 0x04);
        put_some(out, 3);
        break;  // RESET_STREAM
      case 3:
        varint(out, 0x05);
        put_some(out, 2);
        break;   // STOP_SENDING
      case 4: {  // CRYPTO
        Bytes data;
        const std::uint64_t offset = some();
        const std::size_t length = in_.number();
        if (kind >= 128) {
          data = {static_cast<std::byte>(length), std::byte{0}};
        }
        put(data, in_.bytes(length));
        varint(out, 0x06);
        varint(out, offset);
        varint(out, data.size());
        put(out, data);
        break;
      }
      case 5:
        varint(out, 0x07);
        varint(out, 4);
        put(out, Bytes(4));
        break;  // NEW_TOKEN
      case 6:
      case 7:
      case 8:
      case 9: {  // STREAM
        const std::size_t flags = kind >> 5;
        const std::uint64_t stream = some(), offset = (flags & 4) != 0 ? some() : 0;
        Bytes data;
        content(data);
        varint(out, 0x0a | flags);
        varint(out, stream);
        if ((flags & 4) != 0) varint(out, offset);
        varint(out, data.size());
        put(out, data);
        break;
      }
      case 10:
        varint(out, 0x10);
        put_some(out, 1);
        break;  // MAX_DATA
      case 11:
        varint(out, 0x11);
        put_some(out, 2);
        break;  // MAX_STREAM_DATA
      case 12:
        varint(out, 0x12 + (kind >= 128));
        put_some(out, 1);
        break;  // MAX_STREAMS
      case 13:
        varint(out, 0x14);
        put_some(out, 1);
        break;  // DATA_BLOCKED
      case 14:
        varint(out, 0x15 + (kind >= 128));
        put_some(out, kind >= 128 ? 1 : 2);
        break;
      case 15: {  // NEW_CONNECTION_ID
        const std::uint64_t sequence = some(), retire = some();
        varint(out, 0x18);
        varint(out, sequence);
        varint(out, retire);
        Bytes id(1 + in_.number() % 20, static_cast<std::byte>(sequence));
        out.push_back(static_cast<std::byte>(id.size()));
        put(out, id);
        put(out, Bytes(16, static_cast<std::byte>(sequence)));
        break;
      }
      case 16:
        varint(out, 0x19);
        put_some(out, 1);
        break;  // RETIRE_CONNECTION_ID
      case 17:
        varint(out, 0x1a + (kind >= 128));
        put(out, Bytes(8, std::byte{5}));
        break;    // PATH_...
      case 18: {  // CONNECTION_CLOSE
        varint(out, 0x1c + (kind >= 128));
        put_some(out, kind >= 128 ? 1 : 2);
        const ByteSpan reason = in_.bytes(in_.number() % 16);
        varint(out, reason.size());
        put(out, reason);
        break;
      }
      case 19:
        if (kind >= 128) {
          out.push_back(std::byte{0x1e});  // HANDSHAKE_DONE
        } else {
          put(out, in_.bytes(in_.number() % 64));
        }
        break;
      default: break;
    }
  }

  void forge(std::size_t to) {
    Node& node = *nodes_[to];
    const std::size_t how = in_.number();
    std::size_t level = how % 8;  // 0: Initial, 1: 0-RTT, 2: Handshake, others: 1-RTT
    // Nobody has 1-RTT keys before he has the dialler's last message; ngtcp2 asserts what follows from that.
    if (std::ranges::any_of(node.links, [](const Link& l) { return l.dialled && !l.session->heard(); })) level %= 3;
    Bytes frames;
    const std::size_t count = 1 + (how >> 3) % 4;
    for (std::size_t i = 0; i < count; ++i) frame(frames);
    if (level == 0 && frames.size() < 1150) frames.resize(1150);
    Bytes packet;
    if (level < 3) {
      packet.push_back(static_cast<std::byte>(0xc3 | level << 4));
      put(packet, Bytes{std::byte{0}, std::byte{0}, std::byte{0}, std::byte{1}});
      packet.push_back(static_cast<std::byte>(node.id.size()));
      put(packet, node.id);
      packet.push_back(static_cast<std::byte>(node.peer_id.size()));
      put(packet, node.peer_id);
      if (level == 0) packet.push_back(std::byte{0});
      const std::size_t length = 4 + frames.size() + crypto::kAeadTagBytes;
      packet.push_back(static_cast<std::byte>(0x40 | length >> 8));
      packet.push_back(static_cast<std::byte>(length));
    } else {
      packet.push_back(static_cast<std::byte>(0x43 | (level == 7 ? 4 : 0)));  // The next key phase, now and then.
      put(packet, node.id);
    }
    const std::size_t number_at = packet.size();
    const std::uint32_t number = node.next_packet++;
    for (int i = 3; i >= 0; --i) packet.push_back(static_cast<std::byte>(number >> (8 * i)));
    const Bytes header = packet;
    // Anybody can seal an Initial packet. Others are only accepted where cryptography is stubbed.
    const crypto::InitialSecrets initial =
        crypto::initial_secrets(std::as_bytes(std::span(driver::quic::kInitialSalt)), initial_id_);
    const auto& key = to == dialler_ ? initial.server : initial.client;
    constexpr auto kCipher = crypto::AeadAlgorithm::aes_128_gcm;
    packet.resize(header.size() + frames.size() + crypto::kAeadTagBytes);
    crypto::PacketKey(kCipher, key).seal(number, header, frames, MutableByteSpan(packet).subspan(header.size()));
    const auto mask = crypto::HeaderKey(kCipher, key)
                          .mask(ByteSpan(packet).subspan(number_at + 4).first<crypto::HeaderKey::kSampleBytes>());
    packet[0] ^= mask[0] & (level < 3 ? std::byte{0x0f} : std::byte{0x1f});
    for (std::size_t i = 0; i < 4; ++i) packet[number_at + i] ^= mask[1 + i];
    inject(to, packet);
  }

  // --- the network and the clock

  void inject(std::size_t to, ByteSpan bytes) {
    if (bytes.empty()) return;
    Node& node = *nodes_[to];
    const env::Datagram datagram{
        .path = {.local = node.address, .remote = nodes_[1 - to]->address}, .ecn = ecn_, .bytes = bytes};
    std::array<std::byte, PacketEndpoint::kMaxAnswer> answer;
    std::size_t strangers = 0;
    for (const Link& link : node.links) strangers += link.session->established() ? 0 : 1;
    auto arrival = node.endpoint->on_datagram(now_, datagram, node.config, {.strangers = strangers}, answer);
    expect(arrival.answer <= 3 * bytes.size());
    if (arrival.answer != 0) send(to, ByteSpan(answer).first(arrival.answer));
    if (arrival.fresh && node.links.size() < kMaxLinks) add(node, std::move(arrival.fresh), false);
  }

  void deliver(std::size_t to, std::size_t which, bool keep) {
    Node& node = *nodes_[to];
    if (node.inbound.empty()) return;
    which %= node.inbound.size();
    const Bytes datagram = keep ? node.inbound[which] : std::move(node.inbound[which]);
    if (!keep) node.inbound.erase(node.inbound.begin() + static_cast<std::ptrdiff_t>(which));
    inject(to, datagram);
  }

  void send(std::size_t from, ByteSpan datagram) {
    Node& to = *nodes_[1 - from];
    const env::QuicPacketHeader header = configs_.stack->classify(datagram);
    to.id.assign(header.destination.begin(), header.destination.end());
    if (!header.source.empty()) to.peer_id.assign(header.source.begin(), header.source.end());
    const bool initial = header.kind == env::QuicPacketHeader::Kind::initial;
    if (initial && from == dialler_ && (initial_id_.empty() || !header.token.empty())) initial_id_ = to.id;
    if (to.inbound.size() >= kMaxInFlight) to.inbound.pop_front();
    to.inbound.emplace_back(datagram.begin(), datagram.end());
  }

  /// Everything is delivered, so many times over.
  void run(std::size_t rounds) {
    for (; rounds != 0; --rounds) {
      pump();
      if (nodes_[0]->inbound.empty() && nodes_[1]->inbound.empty()) return;
      for (std::size_t to = 0; to < 2; ++to) {
        for (std::size_t n = nodes_[to]->inbound.size(); n != 0; --n) deliver(to, 0, false);
      }
      pass(microseconds(50));
    }
  }

  void pass(Duration time) {
    now_ = now_ + time;
    for (const auto& node : nodes_) {
      for (Link& link : node->links) {
        if (link.session->next_timer() <= now_) link.session->on_timer(now_);
      }
    }
    pump();
  }

  // --- what the owner of sessions does after every call

  void events(Link& link) {
    while (auto event = link.session->next_event()) {
      expect(!link.closed);
      if (auto* arrived = std::get_if<RequestArrived>(&*event)) link.owed.push_back(arrived->stream);
      if (auto* reply = std::get_if<ReplyArrived>(&*event)) expect(link.open.erase(reply->stream.value) == 1);
      if (std::holds_alternative<Closed>(*event)) {
        expect(link.open.empty());
        link.closed = true;
      }
    }
  }

  void pump() {
    static std::array<std::byte, 64 << 10> burst_bytes;
    for (std::size_t i = 0; i < 2; ++i) {
      Node& node = *nodes_[i];
      for (auto link = node.links.begin(); link != node.links.end();) {
        events(*link);
        for (int bursts = 0; auto burst = link->session->send(now_, burst_bytes); ++bursts) {
          expect(bursts < 1000);
          for (ByteSpan rest = ByteSpan(burst_bytes).first(burst->bytes); !rest.empty();) {
            const ByteSpan datagram = rest.first(std::min(rest.size(), burst->segment));
            rest = rest.subspan(datagram.size());
            send(i, datagram);
          }
        }
        events(*link);
        if (link->session->finished()) {
          expect(link->closed);
          link = node.links.erase(link);
        } else {
          ++link;
        }
      }
    }
  }

  /// Nothing arrives any more: whoever waits gives up in time.
  void finish(std::size_t allocated_before) {
    const std::size_t links = nodes_[0]->links.size() + nodes_[1]->links.size();
    expect(HOLO_ALLOCATED() < allocated_before + (links + 1) * kMaxSessionBytes);
    expect(nodes_[0]->endpoint->routes() + nodes_[1]->endpoint->routes() <= 2 * kMaxLinks * 8);
    for (int i = 0; i < 4; ++i) pass(seconds(4));
    // Silence counts from three probe time-outs on at the earliest, and acknowledgements may have come very late.
    for (int i = 0; i < 4; ++i) pass(seconds(600));
    for (const auto& node : nodes_) {
      expect(node->links.empty());
      expect(node->endpoint->routes() == 0);
    }
  }

  Configs& configs_;
  Input in_;
  Instant now_{1'000'000'000};
  env::Ecn ecn_ = env::Ecn::not_ect;
  std::array<std::unique_ptr<Node>, 2> nodes_;
  std::size_t dialler_ = 0;
  Bytes initial_id_;  // what the keys of the last dialler's Initial packets come from
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static Configs configs;
  if (size == 0) return 0;
  const std::size_t before = HOLO_ALLOCATED();
  World(configs, Input(bytes, size)).play(before);
  return 0;
}
