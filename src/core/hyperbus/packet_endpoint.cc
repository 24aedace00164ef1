#include "core/hyperbus/packet_endpoint.h"

#include <algorithm>

#include "core/hyperbus/wire_bytes.h"
#include "crypto/hash.h"

namespace holo::hyperbus {
namespace {

/// RFC 9000, section 14.1: a first Initial comes in a datagram of at least this size.
constexpr std::size_t kMinInitialDatagram = 1200;
constexpr std::size_t kTimeBytes = 8;
constexpr auto kTokenCipher = crypto::AeadAlgorithm::xchacha20_poly1305;
constexpr std::size_t kMaxConnectionId = 20;
constexpr std::string_view kResetLabel = "holo hyperbus v1: stateless resets";
static_assert(crypto::kMaxAeadNonceBytes + kTimeBytes + kMaxConnectionId + crypto::kAeadTagBytes <=
              env::QuicStack::kTokenBytes);

std::string key_of(ByteSpan id) { return std::string(as_text(id)); }

}  // namespace

std::shared_ptr<env::QuicConfig> quic_config(const SessionConfig& session) {
  constexpr std::uint64_t kMessage = limits::kMaxHeaderBytes + limits::kMaxPayloadBytes;
  auto out = std::make_shared<env::QuicConfig>();
  out->handshake_timeout = session.handshake_deadline;
  out->idle_timeout = session.idle_timeout;
  out->keep_alive = session.keep_alive;
  // Credits bound what may be under way; QUIC's own windows only must not be in the way.
  out->stream_window = kMessage + (64 << 10);
  for (const ClassWindow& w : session.windows) out->connection_window += w.request_bytes + w.reply_bytes;
  out->connection_window += kMessage;
  out->bidirectional_streams = 2 * session.streams();
  out->packets_per_key = session.records_per_key;
  out->reset_key = crypto::blake3_derive(kResetLabel, session.handshake->identity.sign(as_bytes(kResetLabel)));
  return out;
}

PacketEndpoint::PacketEndpoint(env::QuicStack& stack, env::Entropy& entropy, PacketEndpointConfig config)
    : stack_(&stack),
      entropy_(&entropy),
      config_(std::move(config)),
      tokens_(kTokenCipher, random_secret<crypto::kAeadKeyBytes>(entropy)) {}

void PacketEndpoint::set_quic(std::shared_ptr<const env::QuicConfig> quic) {
  config_.quic = std::move(quic);
  wide_ = nullptr;
}

PacketSession::Endpoint PacketEndpoint::parts(std::size_t known_payload) {
  std::shared_ptr<const env::QuicConfig> quic = config_.quic;
  if (known_payload != 0 && quic->datagram_bytes == 0) {
    if (!wide_ || wide_->datagram_bytes != known_payload) {
      auto wide = std::make_shared<env::QuicConfig>(*quic);
      wide->datagram_bytes = known_payload;
      wide_ = std::move(wide);
    }
    quic = wide_;
  }
  return {.stack = stack_, .quic = std::move(quic), .entropy = entropy_, .routes = this};
}

void PacketEndpoint::add(ByteSpan id, PacketSession& session) {
  last_ = nullptr;
  sessions_[key_of(id)] = &session;
}
void PacketEndpoint::remove(ByteSpan id) {
  last_ = nullptr;
  sessions_.erase(key_of(id));
}
PacketSession* PacketEndpoint::find(ByteSpan id) {
  if (last_ != nullptr && last_id_ == as_text(id)) return last_;
  const auto found = sessions_.find(key_of(id));
  if (found == sessions_.end()) return nullptr;
  last_id_ = found->first;
  return last_ = found->second;
}
void PacketEndpoint::forget(PacketSession& session) {
  std::erase_if(by_remote_, [&session](const auto& entry) { return entry.second == &session; });
}

std::unique_ptr<PacketSession> PacketEndpoint::dial(std::shared_ptr<const SessionConfig> config, Instant now,
                                                    const env::DatagramPath& path, Target target) {
  auto session = PacketSession::dial(parts(target.known_payload), std::move(config), now, path, target.node);
  by_remote_.emplace(path.remote, session.get());
  return session;
}

PacketSession* PacketEndpoint::deliver(Instant now, const env::Datagram& datagram) {
  const env::QuicPacketHeader header = stack_->classify(datagram.bytes);
  if (header.kind == env::QuicPacketHeader::Kind::malformed) return nullptr;
  PacketSession* session = find(header.destination);
  if (session != nullptr) session->receive(now, datagram);
  return session;
}

PacketEndpoint::Arrival PacketEndpoint::on_datagram(Instant now, const env::Datagram& datagram,
                                                    const std::shared_ptr<const SessionConfig>& config,
                                                    Circumstances circumstances, MutableByteSpan out) {
  using Kind = env::QuicPacketHeader::Kind;
  Arrival arrival{.session = deliver(now, datagram)};
  if (arrival.session != nullptr) return arrival;
  const env::QuicPacketHeader header = stack_->classify(datagram.bytes);
  switch (header.kind) {
    case Kind::malformed: arrival.garbage = true; break;
    case Kind::unknown_version:
      arrival.garbage = true;
      if (datagram.bytes.size() >= kMinInitialDatagram) {
        arrival.answer = stack_->write_version_negotiation(header, *entropy_, out);
      }
      break;
    case Kind::initial: on_initial(now, datagram, header, config, circumstances, out, arrival); break;
    case Kind::other_long: break;  // The rest of a handshake that is over.
    case Kind::one_rtt:
      arrival.session = reset_by(now, datagram);
      if (arrival.session != nullptr) break;
      if (now - resets_since_ >= seconds(1)) {
        resets_since_ = now;
        resets_ = 0;
      }
      if (resets_ >= config_.resets_per_second) break;
      arrival.answer = stack_->write_stateless_reset(*config_.quic, header, datagram.bytes.size(), *entropy_, out);
      if (arrival.answer > 0) ++resets_;
      break;
  }
  return arrival;
}

PacketSession* PacketEndpoint::reset_by(Instant now, const env::Datagram& datagram) {
  const auto [begin, end] = by_remote_.equal_range(datagram.path.remote);
  for (auto it = begin; it != end; ++it) {
    PacketSession& session = *it->second;
    if (session.over()) continue;
    session.receive(now, datagram);
    if (session.over()) return &session;
  }
  return nullptr;
}

void PacketEndpoint::on_initial(Instant now, const env::Datagram& datagram, const env::QuicPacketHeader& header,
                                const std::shared_ptr<const SessionConfig>& config, Circumstances circumstances,
                                MutableByteSpan out, Arrival& arrival) {
  if (datagram.bytes.size() < kMinInitialDatagram) {
    arrival.garbage = true;
    return;
  }
  const auto original = header.token.empty() ? std::nullopt : open_token(now, datagram, header);
  if (!original && circumstances.strangers >= config_.retry_from) {
    std::array<std::byte, env::QuicStack::kConnectionIdBytes> id;
    entropy_->fill(id);
    Token token;
    const std::size_t bytes = write_token(now, datagram, header.destination, id, token);
    arrival.answer = stack_->write_retry(header, id, ByteSpan(token).first(bytes), out);
    return;
  }
  auto made = PacketSession::accept(parts(circumstances.known_payload), config, now, datagram.path, header,
                                    original ? *original : ByteSpan());
  if (!made) {
    arrival.garbage = true;
    return;
  }
  arrival.fresh = std::move(*made);
  by_remote_.emplace(datagram.path.remote, arrival.fresh.get());
  arrival.session = arrival.fresh.get();
  arrival.session->receive(now, datagram);
}

// --- tokens of Retry packets: a nonce, then the sealed (time, original destination id), bound to the address and to
// the connection id that the client must use with them

Bytes PacketEndpoint::associated(const env::Datagram& datagram, ByteSpan id) {
  Bytes out;
  put(out, std::as_bytes(std::span(datagram.path.remote.ip)));
  put(out, datagram.path.remote.port);
  put(out, id);
  return out;
}

std::size_t PacketEndpoint::write_token(Instant now, const env::Datagram& datagram, ByteSpan original, ByteSpan id,
                                        Token& out) {
  const std::size_t nonce = crypto::aead_nonce_bytes(kTokenCipher);
  Bytes plain;
  put(plain, static_cast<std::uint64_t>(now.ns));
  put(plain, original);
  const MutableByteSpan all(out);
  entropy_->fill(all.first(nonce));
  tokens_.seal(all.first(nonce), associated(datagram, id), plain,
               all.subspan(nonce, plain.size() + crypto::kAeadTagBytes));
  return nonce + plain.size() + crypto::kAeadTagBytes;
}

std::optional<Bytes> PacketEndpoint::open_token(Instant now, const env::Datagram& datagram,
                                                const env::QuicPacketHeader& header) const {
  const std::size_t nonce = crypto::aead_nonce_bytes(kTokenCipher);
  if (header.token.size() < nonce + kTimeBytes + crypto::kAeadTagBytes ||
      header.token.size() > env::QuicStack::kTokenBytes) {
    return std::nullopt;
  }
  const ByteSpan sealed = header.token.subspan(nonce);
  Bytes plain(sealed.size() - crypto::kAeadTagBytes);
  if (!tokens_.open(header.token.first(nonce), associated(datagram, header.destination), sealed, plain)) {
    return std::nullopt;
  }
  const Instant issued{static_cast<std::int64_t>(load<std::uint64_t>(plain.data()))};
  if (issued > now || issued < now - config_.token_lifetime) return std::nullopt;
  return Bytes(plain.begin() + kTimeBytes, plain.end());
}

}  // namespace holo::hyperbus
