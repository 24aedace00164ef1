// From ngtcp2's C callbacks into a Connection.
#include "driver/quic/callbacks.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

#include "driver/quic/connection.h"

namespace holo::driver::quic {
namespace {

constexpr std::string_view kResetTokenField = "\"stateless_reset_token\":";

/// Whoever has one can end the connection, and a log is made to be passed on.
std::string without_reset_tokens(std::string record) {
  for (std::size_t at = 0; (at = record.find(kResetTokenField, at)) != std::string::npos;) {
    at += kResetTokenField.size();
    constexpr std::string_view kNested = "{\"data\":";
    if (std::string_view(record).substr(at).starts_with(kNested)) at += kNested.size();
    for (std::size_t i = at + 1; i < record.size() && record[i] != '"'; ++i) record[i] = '0';
  }
  return record;
}

}  // namespace

struct Callbacks {
  static Connection& self(void* user_data) { return *static_cast<Connection*>(user_data); }
  static env::QuicApplication& application(void* user_data) { return *self(user_data).parts_.application; }
  static ByteSpan span(const std::uint8_t* data, std::size_t size) { return std::as_bytes(std::span(data, size)); }
  static void fill(env::Entropy& entropy, std::uint8_t* out, std::size_t size) {
    entropy.fill(std::as_writable_bytes(std::span(out, size)));
  }

  static int client_initial(ngtcp2_conn*, void* user_data) {
    // This one callback may only fail fatally; settle() finds out why.
    return self(user_data).begin_handshake() == 0 ? 0 : NGTCP2_ERR_CALLBACK_FAILURE;
  }
  static int recv_client_initial(ngtcp2_conn*, const ngtcp2_cid* destination, void* user_data) {
    return self(user_data).install_initial_keys(bytes_of(*destination)) == 0 ? 0 : NGTCP2_ERR_CALLBACK_FAILURE;
  }
  static int recv_retry(ngtcp2_conn*, const ngtcp2_pkt_hd* header, void* user_data) {
    return self(user_data).install_initial_keys(bytes_of(header->scid)) == 0 ? 0 : NGTCP2_ERR_CALLBACK_FAILURE;
  }
  static int recv_crypto_data(ngtcp2_conn*, ngtcp2_encryption_level level, std::uint64_t, const std::uint8_t* data,
                              std::size_t size, void* user_data) {
    return self(user_data).on_crypto(level, span(data, size));
  }
  static int handshake_completed(ngtcp2_conn* conn, void* user_data) {
    Connection& connection = self(user_data);
    ngtcp2_conn_set_keep_alive_timeout(conn, static_cast<ngtcp2_duration>(connection.parts_.config->keep_alive.ns));
    if (connection.server_) connection.confirm();
    return 0;
  }
  /// Clients only: the server has accepted our last message.
  static int handshake_confirmed(ngtcp2_conn*, void* user_data) {
    self(user_data).confirm();
    return 0;
  }
  static int version_negotiation(ngtcp2_conn*, std::uint32_t, const ngtcp2_cid*, void*) {
    return NGTCP2_ERR_CALLBACK_FAILURE;  // There is one version.
  }

  static int recv_stream_data(ngtcp2_conn*, std::uint32_t flags, std::int64_t stream, std::uint64_t,
                              const std::uint8_t* data, std::size_t size, void* user_data, void* unheard) {
    if (unheard != nullptr) self(user_data).on_heard_of(stream);
    self(user_data).on_stream_data(stream, span(data, size), (flags & NGTCP2_STREAM_DATA_FLAG_FIN) != 0);
    return 0;
  }
  static int acked_stream_data_offset(ngtcp2_conn*, std::int64_t stream, std::uint64_t, std::uint64_t size,
                                      void* user_data, void* unheard) {
    if (unheard != nullptr) self(user_data).on_heard_of(stream);
    self(user_data).on_stream_acknowledged(stream, size);  // For each packet of ours: no call, mostly.
    return 0;
  }
  static int stream_close(ngtcp2_conn*, std::uint32_t, std::int64_t stream, std::uint64_t, void* user_data, void*) {
    self(user_data).on_stream_closed(stream);
    return 0;
  }
  static int stream_reset(ngtcp2_conn*, std::int64_t stream, std::uint64_t, std::uint64_t code, void* user_data,
                          void* unheard) {
    if (unheard != nullptr) self(user_data).on_heard_of(stream);
    self(user_data).on_stream_given_up(stream, code);
    return 0;
  }
  /// The peer does not want what we send on this stream; ngtcp2 answers with RESET_STREAM.
  static int recv_stop_sending(ngtcp2_conn*, std::int64_t stream, std::uint64_t code, void* user_data, void* unheard) {
    if (unheard != nullptr) self(user_data).on_heard_of(stream);
    self(user_data).on_stream_given_up(stream, code);
    return 0;
  }
  static int extend_max_stream_data(ngtcp2_conn*, std::int64_t stream, std::uint64_t, void* user_data, void*) {
    self(user_data).on_unblocked(stream);
    return 0;
  }
  static int extend_max_streams(ngtcp2_conn*, std::uint64_t, void* user_data) {
    Connection& connection = self(user_data);
    if (connection.streams_wanted_ && !connection.ending()) {
      connection.streams_wanted_ = false;
      connection.parts_.application->on_streams_available();
    }
    return 0;
  }

  static void rand(std::uint8_t* out, std::size_t size, const ngtcp2_rand_ctx* context) {
    fill(*static_cast<env::Entropy*>(context->native_handle), out, size);
  }
  static int get_path_challenge_data(ngtcp2_conn*, std::uint8_t* out, void* user_data) {
    fill(*self(user_data).parts_.entropy, out, NGTCP2_PATH_CHALLENGE_DATALEN);
    return 0;
  }
  static int get_new_connection_id(ngtcp2_conn*, ngtcp2_cid* id, std::uint8_t* token, std::size_t size,
                                   void* user_data) {
    Connection& connection = self(user_data);
    id->datalen = size;
    fill(*connection.parts_.entropy, id->data, size);
    const ResetToken reset = reset_token(*connection.parts_.config, bytes_of(*id));
    std::memcpy(token, reset.data(), reset.size());
    if (!connection.ending()) connection.parts_.application->on_connection_id(bytes_of(*id));
    return 0;
  }
  static int remove_connection_id(ngtcp2_conn*, const ngtcp2_cid* id, void* user_data) {
    if (!self(user_data).ending()) application(user_data).on_connection_id_retired(bytes_of(*id));
    return 0;
  }
  static int recv_stateless_reset(ngtcp2_conn*, const ngtcp2_pkt_stateless_reset*, void* user_data) {
    self(user_data).reset_received_ = true;
    return 0;
  }

  static int update_key(ngtcp2_conn*, std::uint8_t*, std::uint8_t*, ngtcp2_crypto_aead_ctx* receive,
                        std::uint8_t* receive_iv, ngtcp2_crypto_aead_ctx* send, std::uint8_t* send_iv,
                        const std::uint8_t*, const std::uint8_t*, std::size_t, void* user_data) {
    std::memcpy(receive_iv, kBareIv, kBareIvBytes);
    std::memcpy(send_iv, kBareIv, kBareIvBytes);
    self(user_data).update_keys(*receive, *send);
    return 0;
  }
  static void delete_crypto_aead_ctx(ngtcp2_conn*, ngtcp2_crypto_aead_ctx* key, void*) { delete_packet_key(*key); }
  static void delete_crypto_cipher_ctx(ngtcp2_conn*, ngtcp2_crypto_cipher_ctx* key, void*) { delete_header_key(*key); }

  static void write_qlog(void* user_data, std::uint32_t, const void* data, std::size_t size) {
    if (size == 0) return;
    const std::string_view record(static_cast<const char*>(data), size);
    if (!record.contains(kResetTokenField)) return self(user_data).qlog_(as_bytes(record));
    self(user_data).qlog_(as_bytes(without_reset_tokens(std::string(record))));
  }
};

const ngtcp2_callbacks& callbacks() {
  static const ngtcp2_callbacks table = [] {
    ngtcp2_callbacks out{};
    out.client_initial = Callbacks::client_initial;
    out.recv_client_initial = Callbacks::recv_client_initial;
    out.recv_crypto_data = Callbacks::recv_crypto_data;
    out.handshake_completed = Callbacks::handshake_completed;
    out.handshake_confirmed = Callbacks::handshake_confirmed;
    out.version_negotiation = Callbacks::version_negotiation;
    out.encrypt = seal_packet;
    out.decrypt = open_packet;
    out.hp_mask = header_mask;
    out.recv_stream_data = Callbacks::recv_stream_data;
    out.acked_stream_data_offset = Callbacks::acked_stream_data_offset;
    out.stream_close = Callbacks::stream_close;
    out.stream_reset = Callbacks::stream_reset;
    out.recv_stop_sending = Callbacks::recv_stop_sending;
    out.extend_max_stream_data = Callbacks::extend_max_stream_data;
    out.extend_max_local_streams_bidi = Callbacks::extend_max_streams;
    out.extend_max_local_streams_uni = Callbacks::extend_max_streams;
    out.recv_retry = Callbacks::recv_retry;
    out.recv_stateless_reset = Callbacks::recv_stateless_reset;
    out.rand = Callbacks::rand;
    out.get_new_connection_id = Callbacks::get_new_connection_id;
    out.remove_connection_id = Callbacks::remove_connection_id;
    out.update_key = Callbacks::update_key;
    out.delete_crypto_aead_ctx = Callbacks::delete_crypto_aead_ctx;
    out.delete_crypto_cipher_ctx = Callbacks::delete_crypto_cipher_ctx;
    out.get_path_challenge_data = Callbacks::get_path_challenge_data;
    return out;
  }();
  return table;
}

ngtcp2_qlog_write qlog_writer() { return Callbacks::write_qlog; }

}  // namespace holo::driver::quic
