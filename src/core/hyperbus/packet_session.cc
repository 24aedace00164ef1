#include "core/hyperbus/packet_session.h"

#include <algorithm>
#include <utility>

#include "base/assert.h"
#include "base/strings.h"

namespace holo::hyperbus {
namespace {

/// Application error codes of our closes: an Errc with this added, so that small ones stay free.
constexpr std::uint64_t kCloseCodes = 0x100;
/// CRYPTO_ERROR (RFC 9001, section 4.8) with the kind of refusal as the alert.
constexpr std::uint64_t kCryptoError = 0x100;
constexpr std::uint64_t kAlerts = 0x100;
constexpr std::uint64_t kAbandoned = 2;

env::QuicSecrets secrets_of(crypto::AeadAlgorithm aead, TrafficSecret send, TrafficSecret receive) {
  return {.cipher = static_cast<env::QuicCipher>(aead), .send = std::move(send), .receive = std::move(receive)};
}

}  // namespace

PacketSession::PacketSession(Role role, const Endpoint& endpoint, std::shared_ptr<const SessionConfig> config,
                             NodeId expected)
    : Session(role, std::move(config)), routes_(endpoint.routes) {
  handshake_.emplace(role, config_->handshake, *endpoint.entropy, expected);
}

PacketSession::~PacketSession() {
  for (const Bytes& id : ids_) routes_->remove(id);
  routes_->forget(*this);
}

std::unique_ptr<PacketSession> PacketSession::dial(const Endpoint& endpoint,
                                                   std::shared_ptr<const SessionConfig> config, Instant now,
                                                   const env::DatagramPath& path, NodeId expected) {
  std::unique_ptr<PacketSession> out(new PacketSession(Role::initiator, endpoint, std::move(config), expected));
  out->now_ = now;
  out->connection_ = endpoint.stack->connect(endpoint.quic, now, path, *out, *out, *endpoint.entropy);
  return out;
}

Result<std::unique_ptr<PacketSession>> PacketSession::accept(const Endpoint& endpoint,
                                                             std::shared_ptr<const SessionConfig> config, Instant now,
                                                             const env::DatagramPath& path,
                                                             const env::QuicPacketHeader& first,
                                                             ByteSpan retried_from) {
  std::unique_ptr<PacketSession> out(new PacketSession(Role::responder, endpoint, std::move(config), NodeId()));
  out->now_ = now;
  HOLO_ASSIGN(connection,
              endpoint.stack->accept(endpoint.quic, now, path, first, retried_from, *out, *out, *endpoint.entropy));
  out->connection_ = std::move(connection);
  return out;
}

// --- in and out

void PacketSession::receive(Instant now, const env::Datagram& datagram) {
  now_ = now;
  connection_->receive(now, datagram.path, datagram.ecn, datagram.bytes);
}

std::optional<env::QuicConnection::Burst> PacketSession::send(Instant now, MutableByteSpan out) {
  now_ = now;
  return connection_->send(now, out);
}

bool PacketSession::finished() const { return over() && connection_->finished(); }

Instant PacketSession::next_timer() {
  const Instant deadline = over() ? kNever : exchange_.next_deadline();
  return std::min(deadline, connection_->next_timer());
}

void PacketSession::on_timer(Instant now) {
  now_ = now;
  if (!over()) exchange_.on_time(now);
  if (connection_->next_timer() <= now) connection_->on_timer(now);
}

void PacketSession::close(Error error) {
  if (over()) return;
  connection_->close(now_, kCloseCodes + static_cast<std::uint64_t>(error.code), error.message);
  conclude(std::move(error), RefusalKind::none);
}

void PacketSession::ping(Instant) { connection_->ping(); }

LinkFigures PacketSession::figures() const {
  const env::QuicConnectionStats stats = connection_->stats();
  return {.bytes_in = stats.bytes_received,
          .bytes_out = stats.bytes_sent,
          .round_trip = stats.smoothed_rtt,
          .min_round_trip = stats.min_rtt,
          .packets_lost = stats.packets_lost,
          .packets_sent = stats.packets_sent,
          .packets_received = stats.packets_received,
          .key_updates = stats.key_updates,
          .datagram_bytes = stats.datagram_bytes,
          .ecn = stats.ecn,
          .congestion_marks = stats.congestion_marks,
          .memory_bytes = stats.memory_bytes};
}

// --- Streams

Result<StreamNumber> PacketSession::open_stream(bool bidirectional) { return connection_->open(bidirectional); }
void PacketSession::abandon_stream(StreamNumber stream) { connection_->abandon(stream, kAbandoned); }

std::uint64_t PacketSession::room_for_bulk(std::uint64_t under_way) {
  if (under_way < bulk_.bytes()) return bulk_.bytes() - under_way;
  bulk_.on_full();
  if (bulk_.due(now_)) {
    const env::QuicConnectionStats stats = connection_->stats();
    bulk_.adapt(now_, stats.smoothed_rtt, stats.min_rtt);
  }
  return bulk_.bytes() - std::min(bulk_.bytes(), under_way);
}

// --- env::QuicHandshake

PacketSession::HandshakeAlert PacketSession::alert(HandshakeFailure failure) {
  HandshakeAlert out{.alert = static_cast<std::uint8_t>(failure.kind), .reason = std::string(as_text(failure.refusal))};
  failure_ = std::move(failure);
  return out;
}

std::expected<Bytes, PacketSession::HandshakeAlert> PacketSession::start(ByteSpan parameters) {
  auto first = handshake_->start(parameters);
  if (!first) return std::unexpected(alert(std::move(first).error()));
  return std::move(*first);
}

std::expected<PacketSession::Step, PacketSession::HandshakeAlert> PacketSession::on_message(
    ByteSpan message, const ExchangeParameters& exchange) {
  if (handshake_->done()) {
    return std::unexpected(alert({.error = {.code = Errc::malformed, .message = "a handshake that goes on for ever"}}));
  }
  auto answer = handshake_->on_message(message, exchange);
  if (!answer) return std::unexpected(alert(std::move(answer).error()));
  heard_ = true;
  Step step;
  step.message = std::move(*answer);
  if (auto level = handshake_->take_level_secrets()) {
    step.handshake = secrets_of(handshake_->aead(), std::move(level->send), std::move(level->receive));
  }
  if (handshake_->done()) {
    agreed_ = handshake_->take_result();
    step.application = secrets_of(agreed_.aead, std::move(agreed_.send_secret), std::move(agreed_.receive_secret));
    step.message_at_handshake_level = role_ == Role::initiator;
  }
  return step;
}

// --- env::QuicApplication

void PacketSession::on_established() {
  if (over()) return;
  handshake_.reset();
  announce();
}

Status PacketSession::on_stream_data(env::QuicStreamId stream, ByteSpan bytes, bool fin) {
  if (over()) return {};
  Status status = exchange_.on_stream_data(stream, bytes, fin);
  if (!status) conclude(status.error(), RefusalKind::none);
  return status;
}
void PacketSession::on_stream_acknowledged(env::QuicStreamId stream, std::uint64_t bytes) {
  exchange_.on_stream_acknowledged(stream, bytes);
}
void PacketSession::on_stream_abandoned(env::QuicStreamId stream, std::uint64_t) {
  exchange_.on_stream_abandoned(stream);
}
void PacketSession::on_stream_closed(env::QuicStreamId stream) {
  if (const std::uint64_t lost = connection_->stream_losses(stream); lost != 0) exchange_.note_lost(stream, lost);
  exchange_.on_stream_closed(stream);
}
void PacketSession::on_streams_available() { exchange_.on_streams_available(); }
bool PacketSession::next_write(env::QuicWrite& out) { return !over() && exchange_.next_write(now_, out); }
void PacketSession::on_written(env::QuicStreamId stream, std::size_t bytes, bool fin) {
  if (!over()) exchange_.on_written(stream, bytes, fin);
}
void PacketSession::on_blocked(env::QuicStreamId stream) { exchange_.on_blocked(stream); }
void PacketSession::on_unblocked(env::QuicStreamId stream) { exchange_.on_unblocked(stream); }

void PacketSession::on_connection_id(ByteSpan id) {
  ids_.emplace_back(id.begin(), id.end());
  routes_->add(id, *this);
}
void PacketSession::on_connection_id_retired(ByteSpan id) {
  std::erase_if(ids_, [id](const Bytes& own) { return std::ranges::equal(own, id); });
  routes_->remove(id);
}

void PacketSession::on_end(const env::QuicEnd& end) {
  using Cause = env::QuicEnd::Cause;
  const bool stranger = role_ == Role::responder && !established();
  const auto unavailable = [this, stranger](std::string message) {
    conclude({.code = stranger ? Errc::malformed : Errc::unavailable, .message = std::move(message), .retryable = true},
             stranger ? RefusalKind::garbage : RefusalKind::none);
  };
  switch (end.cause) {
    case Cause::closed_here: return unavailable("the connection is closed");
    case Cause::handshake_failed:
      if (failure_) return conclude(std::move(failure_->error), failure_->kind);
      return unavailable("the handshake failed");
    case Cause::closed_by_peer: return closed_by_peer(end);
    case Cause::protocol:
      return conclude({.code = Errc::malformed, .message = str(peer_name(), " broke QUIC: ", end.reason)},
                      stranger ? RefusalKind::garbage : RefusalKind::none);
    case Cause::idle:
      if (established()) return unavailable(str(peer_name(), " fell silent"));
      return unavailable(stranger ? "a connection that did not finish its handshake in time"
                                  : "the other node did not finish the handshake in time");
    case Cause::reset: return unavailable(str(peer_name(), " has forgotten the connection: it was restarted"));
    case Cause::refused_version:
      return conclude({.code = Errc::wrong_version,
                       .message = "the other node speaks another version of QUIC",
                       .hint = "run neighbouring releases of holo on all nodes"},
                      RefusalKind::wrong_version);
    case Cause::internal: return unavailable(str("the connection broke: ", end.reason));
  }
}

void PacketSession::closed_by_peer(const env::QuicEnd& end) {
  if (!end.application && end.code >= kCryptoError && end.code < kCryptoError + kAlerts) {
    if (end.code == kCryptoError) {  // RefusalKind::none: its own affair, as when it looked for another node here.
      return conclude({.code = Errc::unavailable, .message = "the other node gave the handshake up", .retryable = true},
                      RefusalKind::none);
    }
    if (const auto refusal = decode_refusal(as_bytes(end.reason))) {
      return conclude(refusal_error(*refusal, *config_->handshake), refusal->kind);
    }
    return conclude({.code = Errc::malformed, .message = "the other node refused the handshake"}, RefusalKind::garbage);
  }
  auto code = Errc::internal;
  if (end.application && end.code > kCloseCodes &&
      end.code <= kCloseCodes + static_cast<std::uint64_t>(Errc::internal)) {
    code = static_cast<Errc>(end.code - kCloseCodes);
  }
  conclude({.code = Errc::unavailable,
            .message = str("the peer closed the connection: ", std::string_view(end.reason).substr(0, kMaxErrorText),
                           " [", errc_name(code), "]"),
            .retryable = true},
           RefusalKind::none);
}

}  // namespace holo::hyperbus
