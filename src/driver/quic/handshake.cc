// The handshake of a Connection: messages in CRYPTO frames, each behind its length, and the keys that come of them.
#include <algorithm>

#include "driver/quic/connection.h"
#include "driver/quic/quic.h"

namespace holo::driver::quic {
namespace {

constexpr std::size_t kLengthBytes = 2;
constexpr std::size_t kMaxMessage = 0xffff;
constexpr std::size_t kMaxParameterBytes = 1024;

crypto::AeadAlgorithm algorithm_of(env::QuicCipher cipher) { return static_cast<crypto::AeadAlgorithm>(cipher); }

}  // namespace

int Connection::fail_handshake(std::uint8_t alert, std::string reason) {
  if (!failure_) {
    reason.resize(std::min(reason.size(), kMaxReasonBytes));
    failure_ = env::QuicHandshake::Failure{.alert = alert, .reason = std::move(reason)};
  }
  return NGTCP2_ERR_CRYPTO;
}

int Connection::begin_handshake() {
  if (const int rv = install_initial_keys(bytes_of(*ngtcp2_conn_get_dcid(conn_))); rv != 0) return rv;
  std::array<std::uint8_t, kMaxParameterBytes> parameters;
  const ngtcp2_ssize n = ngtcp2_conn_encode_local_transport_params(conn_, parameters.data(), parameters.size());
  if (n < 0) return static_cast<int>(n);
  auto first = parts_.handshake->start(std::as_bytes(std::span(parameters)).first(static_cast<std::size_t>(n)));
  if (!first) return fail_handshake(first.error().alert, std::move(first.error().reason));
  return submit(NGTCP2_ENCRYPTION_LEVEL_INITIAL, *first);
}

int Connection::install_initial_keys(ByteSpan connection_id) {
  const crypto::InitialSecrets secrets = our_initial_secrets(connection_id);
  const auto& send_secret = server_ ? secrets.server : secrets.client;
  const auto& receive_secret = server_ ? secrets.client : secrets.server;
  constexpr auto kAlgorithm = crypto::AeadAlgorithm::aes_128_gcm;
  ngtcp2_crypto_ctx context{};
  context.aead = packet_aead();
  context.max_encryption = context.max_decryption_failure = UINT64_MAX;  // These keys are public.
  ngtcp2_conn_set_initial_crypto_ctx(conn_, &context);
  ngtcp2_crypto_aead_ctx receive = make_packet_key(kAlgorithm, receive_secret);
  ngtcp2_crypto_aead_ctx send = make_packet_key(kAlgorithm, send_secret);
  ngtcp2_crypto_cipher_ctx receive_header = make_header_key(kAlgorithm, receive_secret);
  ngtcp2_crypto_cipher_ctx send_header = make_header_key(kAlgorithm, send_secret);
  const int rv = ngtcp2_conn_install_initial_key(conn_, &receive, kBareIv, &receive_header, &send, kBareIv,
                                                 &send_header, kBareIvBytes);
  if (rv != 0) {
    delete_packet_key(receive);
    delete_packet_key(send);
    delete_header_key(receive_header);
    delete_header_key(send_header);
  }
  return rv;
}

int Connection::submit(ngtcp2_encryption_level level, ByteSpan message) {
  if (message.size() > kMaxMessage) return fail_handshake(kInternalError, "handshake message too long");
  const std::array<std::uint8_t, kLengthBytes> length{static_cast<std::uint8_t>(message.size() & 0xff),
                                                      static_cast<std::uint8_t>(message.size() >> 8)};
  if (const int rv = ngtcp2_conn_submit_crypto_data(conn_, level, length.data(), length.size()); rv != 0) return rv;
  if (message.empty()) return 0;
  return ngtcp2_conn_submit_crypto_data(conn_, level, reinterpret_cast<const std::uint8_t*>(message.data()),
                                        message.size());
}

int Connection::on_crypto(ngtcp2_encryption_level level, ByteSpan data) {
  if (failure_) return NGTCP2_ERR_CRYPTO;
  // Anyone can seal Initial packets: once the handshake has left that level, what still comes there is nobody's word.
  if (level == NGTCP2_ENCRYPTION_LEVEL_INITIAL && expects_ != level) return 0;
  if (level != expects_) return fail_handshake(kUnexpectedMessage, "unexpected handshake message");
  message_.insert(message_.end(), data.begin(), data.end());
  std::size_t taken = 0;
  while (level == expects_) {
    const ByteSpan rest = ByteSpan(message_).subspan(taken);
    if (rest.size() < kLengthBytes) break;
    const std::size_t length = std::to_integer<std::size_t>(rest[0]) | std::to_integer<std::size_t>(rest[1]) << 8;
    if (rest.size() < kLengthBytes + length) break;
    taken += kLengthBytes + length;
    if (completed_ && !server_ && length == 0 && !ready_) {
      ready_ = true;
      continue;
    }
    if (completed_) return fail_handshake(kUnexpectedMessage, "bytes after the last handshake message");
    if (length == 0) return fail_handshake(kDecodeError, "empty handshake message");
    if (const int rv = on_handshake_message(rest.subspan(kLengthBytes, length)); rv != 0) return rv;
  }
  if (level != expects_) taken = message_.size();  // What came at the Initial level behind the last message of it.
  message_.erase(message_.begin(), message_.begin() + static_cast<std::ptrdiff_t>(taken));
  if (message_.empty()) message_.shrink_to_fit();
  return 0;
}

int Connection::on_handshake_message(ByteSpan message) {
  auto step = parts_.handshake->on_message(message, [this](ByteSpan peer) { return exchange_parameters(peer); });
  if (!step) return fail_handshake(step.error().alert, std::move(step.error().reason));
  return apply(std::move(*step));
}

int Connection::apply(env::QuicHandshake::Step step) {
  // ngtcp2 wants the peer's parameters before it protects anything with keys of the handshake.
  if ((step.handshake || step.application) && !parameters_exchanged_) {
    return fail_handshake(kInternalError, "keys before transport parameters");
  }
  if (step.handshake) {
    if (expects_ != NGTCP2_ENCRYPTION_LEVEL_INITIAL) return fail_handshake(kInternalError, "handshake keys twice");
    if (const int rv = install_handshake_keys(*step.handshake); rv != 0) return rv;
    expects_ = NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE;
  }
  if (!step.message.empty()) {
    if (step.message_at_handshake_level && expects_ != NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE) {
      return fail_handshake(kInternalError, "no handshake keys");
    }
    const auto level =
        step.message_at_handshake_level ? NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE : NGTCP2_ENCRYPTION_LEVEL_INITIAL;
    if (const int rv = submit(level, step.message); rv != 0) return rv;
  }
  // An empty message. The packet that carries it shows the client that the server has the Handshake keys; without one,
  // RFC 9001's client does not take the server's address for validated, and ngtcp2 then looks for no larger datagrams.
  if (server_ && step.handshake) {
    if (const int rv = submit(NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE, {}); rv != 0) return rv;
  }
  if (step.application) {
    if (const int rv = install_application_keys(*step.application); rv != 0) return rv;
    completed_ = true;
    ngtcp2_conn_tls_handshake_completed(conn_);
  }
  return 0;
}

int Connection::install_handshake_keys(const env::QuicSecrets& secrets) {
  const auto algorithm = algorithm_of(secrets.cipher);
  ngtcp2_crypto_ctx context{};
  context.aead = packet_aead();
  // RFC 9001, section 6.6: AES-GCM's limits, which are below the others'. The keys are changed long before
  // (update_keys_when_due); where the peer prevents that, the connection ends.
  context.max_encryption = 1ULL << 23;
  context.max_decryption_failure = 1ULL << 36;
  ngtcp2_conn_set_crypto_ctx(conn_, &context);
  for (const bool sending : {false, true}) {
    const auto& secret = sending ? secrets.send : secrets.receive;
    const auto install = sending ? ngtcp2_conn_install_tx_handshake_key : ngtcp2_conn_install_rx_handshake_key;
    ngtcp2_crypto_aead_ctx key = make_packet_key(algorithm, secret);
    ngtcp2_crypto_cipher_ctx header = make_header_key(algorithm, secret);
    if (const int rv = install(conn_, &key, kBareIv, kBareIvBytes, &header); rv != 0) {
      delete_packet_key(key);
      delete_header_key(header);
      return rv;
    }
  }
  return 0;
}

int Connection::install_application_keys(const env::QuicSecrets& secrets) {
  cipher_ = algorithm_of(secrets.cipher);
  send_secret_ = secrets.send;
  receive_secret_ = secrets.receive;
  for (const bool sending : {false, true}) {
    const auto& secret = sending ? send_secret_ : receive_secret_;
    const auto install = sending ? ngtcp2_conn_install_tx_key : ngtcp2_conn_install_rx_key;
    ngtcp2_crypto_aead_ctx key = make_packet_key(cipher_, secret, sending ? &sent_ : &received_, 0);
    ngtcp2_crypto_cipher_ctx header = make_header_key(cipher_, secret);
    if (const int rv = install(conn_, nullptr, 0, &key, kBareIv, kBareIvBytes, &header); rv != 0) {
      delete_packet_key(key);
      delete_header_key(header);
      return rv;
    }
  }
  return 0;
}

Result<Bytes> Connection::exchange_parameters(ByteSpan peer) {
  const auto* data = reinterpret_cast<const std::uint8_t*>(peer.data());
  ngtcp2_transport_params params;
  int rv = ngtcp2_transport_params_decode(&params, data, peer.size());
  // A preferred address is a feature that we do not have, and one through which a server moves a client elsewhere.
  if (rv == 0 && params.preferred_addr_present != 0) rv = NGTCP2_ERR_TRANSPORT_PARAM;
  // Nor is there a session without the stream that each side opens for itself.
  if (rv == 0 && params.initial_max_streams_uni == 0) rv = NGTCP2_ERR_TRANSPORT_PARAM;
  if (rv == 0 && parameters_exchanged_) rv = NGTCP2_ERR_TRANSPORT_PARAM;
  if (rv == 0) rv = ngtcp2_conn_decode_and_set_remote_transport_params(conn_, data, peer.size());
  if (rv != 0) return fail(Errc::malformed, std::string("transport parameters: ") + ngtcp2_strerror(rv));
  parameters_exchanged_ = true;
  if (!server_) return Bytes();
  Bytes own(kMaxParameterBytes);
  // A server's are encoded before ngtcp2 has put its connection id among them.
  ngtcp2_transport_params mine = *ngtcp2_conn_get_local_transport_params(conn_);
  mine.initial_scid_present = 1;
  mine.initial_scid = own_id_;
  const ngtcp2_ssize n = ngtcp2_transport_params_encode(reinterpret_cast<std::uint8_t*>(own.data()), own.size(), &mine);
  if (n < 0) return fail(Errc::internal, "transport parameters do not fit");
  own.resize(static_cast<std::size_t>(n));
  return own;
}

void Connection::update_keys(ngtcp2_crypto_aead_ctx& receive, ngtcp2_crypto_aead_ctx& send) {
  send_secret_ = crypto::next_traffic_secret(send_secret_);
  receive_secret_ = crypto::next_traffic_secret(receive_secret_);
  ++generations_;
  send = make_packet_key(cipher_, send_secret_, &sent_, generations_);
  receive = make_packet_key(cipher_, receive_secret_, &received_, generations_);
}

}  // namespace holo::driver::quic
