// One QUIC connection over ngtcp2: what env::QuicConnection promises.
#pragma once

#include <ngtcp2/ngtcp2.h>

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "driver/quic/addresses.h"

#include "driver/quic/keys.h"
#include "driver/quic/memory.h"
#include "env/quic.h"

namespace holo::driver::quic {

/// RFC 9000, section 10.3: without state, the peer is told with it that its connection is gone.
using ResetToken = std::array<std::byte, NGTCP2_STATELESS_RESET_TOKENLEN>;
ResetToken reset_token(const env::QuicConfig& config, ByteSpan connection_id);

/// Of what is said when a connection ends; the rest is cut off.
inline constexpr std::size_t kMaxReasonBytes = 256;

inline ByteSpan bytes_of(const ngtcp2_cid& id) { return std::as_bytes(std::span(id.data, id.datalen)); }
ngtcp2_cid to_cid(ByteSpan id);

class Connection final : public env::QuicConnection {
 public:
  /// What a connection is made of and talks to. All of it outlives the connection, but for `config`, which it shares.
  struct Parts {
    std::shared_ptr<const env::QuicConfig> config;
    env::QuicHandshake* handshake;
    env::QuicApplication* application;
    env::Entropy* entropy;
  };
  /// The server's view of a client's first Initial.
  struct FirstInitial {
    ngtcp2_cid client, destination;
    std::optional<ngtcp2_cid> retried_from;  ///< With it the address counts as validated.
    ByteSpan token;
  };

  static std::unique_ptr<Connection> connect(Parts parts, Instant now, const env::DatagramPath& path);
  static std::unique_ptr<Connection> accept(Parts parts, Instant now, const env::DatagramPath& path,
                                            const FirstInitial& first);
  ~Connection() override;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void receive(Instant now, const env::DatagramPath& path, env::Ecn ecn, ByteSpan datagram) override;
  std::optional<Burst> send(Instant now, MutableByteSpan out) override;
  [[nodiscard]] Instant next_timer() const override;
  void on_timer(Instant now) override;
  Result<env::QuicStreamId> open(bool bidirectional) override;
  void abandon(env::QuicStreamId stream, std::uint64_t code) override;
  void close(Instant now, std::uint64_t code, std::string reason) override;
  void ping() override { ping_wanted_ = true; }
  [[nodiscard]] bool finished() const override;
  [[nodiscard]] Instant unacknowledged_since() const override;
  [[nodiscard]] std::uint64_t stream_losses(env::QuicStreamId stream) const override;
  [[nodiscard]] env::QuicConnectionStats stats() const override;

 private:
  friend struct Callbacks;  // callbacks.cc: from ngtcp2's C functions into this object

  /// CONNECTION_CLOSE, as it will be sent.
  struct Farewell {
    bool application;
    std::uint64_t code;
    std::string reason;
  };
  /// A datagram that did not fit the burst it was written for.
  struct Stash {
    Bytes bytes;
    env::DatagramPath path;
    env::Ecn ecn = env::Ecn::not_ect;
  };
  /// How ngtcp2 wants a packet sent; departure_ says where.
  struct Written {
    std::size_t bytes = 0;  ///< 0: nothing to send now
    env::Ecn ecn = env::Ecn::not_ect;
  };

  Connection(Parts parts, const env::DatagramPath& path, bool server);
  void fill_settings(Instant now, ngtcp2_settings& settings, ngtcp2_transport_params& params);
  ngtcp2_tstamp clock(Instant now);
  void confirm();
  void announce_ids();

  // The handshake (handshake.cc).
  int begin_handshake();
  int install_initial_keys(ByteSpan connection_id);
  int on_crypto(ngtcp2_encryption_level level, ByteSpan data);
  int on_handshake_message(ByteSpan message);
  int apply(env::QuicHandshake::Step step);
  int install_handshake_keys(const env::QuicSecrets& secrets);
  int install_application_keys(const env::QuicSecrets& secrets);
  int submit(ngtcp2_encryption_level level, ByteSpan message);
  Result<Bytes> exchange_parameters(ByteSpan peer);
  int fail_handshake(std::uint8_t alert, std::string reason);
  void update_keys(ngtcp2_crypto_aead_ctx& receive, ngtcp2_crypto_aead_ctx& send);

  // Streams, as ngtcp2 reports them.
  void on_stream_data(env::QuicStreamId stream, ByteSpan bytes, bool fin);
  void on_stream_closed(env::QuicStreamId stream);
  void on_stream_acknowledged(env::QuicStreamId stream, std::uint64_t bytes) {
    if (stream != acknowledged_.stream) tell_acknowledged();
    acknowledged_.stream = stream;
    acknowledged_.bytes += bytes;
  }
  void tell_acknowledged();
  void on_stream_given_up(env::QuicStreamId stream, std::uint64_t code);
  void on_heard_of(env::QuicStreamId stream);
  /// ngtcp2 has it, and has not closed it.
  [[nodiscard]] bool open_now(env::QuicStreamId stream);
  void on_unblocked(env::QuicStreamId stream);
  /// The application still wants to hear of it.
  [[nodiscard]] bool alive(env::QuicStreamId stream) const {
    return !ending() && (given_up_.empty() || !given_up_.contains(stream));
  }

  // Sending.
  void shut_abandoned();
  void update_keys_when_due(ngtcp2_tstamp ts);
  void end_when_unacknowledged(ngtcp2_tstamp ts);
  void pace(ngtcp2_tstamp ts, std::size_t bytes);
  /// Too much was sent for the path's rate: nothing new for now. Acknowledgements and repairs go all the same.
  [[nodiscard]] bool paced(ngtcp2_tstamp ts) const;
  std::size_t next_train();
  [[nodiscard]] ngtcp2_tstamp next_expiry() const;
  struct Offer;
  void take_offer(Offer& offer);
  void settle_offer(Offer& offer);
  bool write_packet(ngtcp2_tstamp ts, ngtcp2_tstamp ts_without_stream, MutableByteSpan out, Offer& offer,
                    Written& written);
  [[nodiscard]] bool ack_can_wait(ngtcp2_tstamp ts) const;
  std::optional<Burst> send_stash(MutableByteSpan out);
  std::optional<Burst> send_farewell(ngtcp2_tstamp ts, MutableByteSpan out);
  env::DatagramPath path_to(const sockaddr_in6& remote) const;

  // The end.
  void settle(int rv);
  void end(env::QuicEnd::Cause cause, std::string reason, std::uint64_t code = 0);
  void end_with(env::QuicEnd end, std::optional<Farewell> farewell);
  void give_up(std::uint64_t code, const char* reason);
  void tell_end();
  [[nodiscard]] bool ending() const { return end_.has_value(); }

  Parts parts_;
  bool server_;
  env::IpEndpoint local_;  // As the first path said; see SocketPath.
  SocketPath arrival_;     // Of the last datagram, so that it is converted once.
  env::IpEndpoint arrival_remote_;
  SocketPath departure_;  // Of the last packet.
  bool moved_ = false;    // Something came from elsewhere than before. Until then there is one path to send on.
  ConnectionMemory memory_;
  ngtcp2_conn* conn_ = nullptr;
  ngtcp2_transport_params* own_parameters_ = nullptr;  // conn_'s; see own_parameters().
  ngtcp2_tstamp now_ = 1, last_sent_ = 0, last_received_ = 0;
  ngtcp2_tstamp told_ = 1;          // The last that ngtcp2 was given: it takes none before.
  std::uint64_t streams_over_ = 0;  // Of the peer, since it was told of new ones.
  bool ids_announced_ = false;
  ngtcp2_cid own_id_{};
  std::optional<ngtcp2_cid> original_id_;  // of a client's first packets, at the server
  std::size_t max_datagram_ = 0;

  ngtcp2_encryption_level expects_ = NGTCP2_ENCRYPTION_LEVEL_INITIAL;  // of the next handshake message
  Bytes message_;  // What has arrived of it, with its length in front.
  bool parameters_exchanged_ = false;
  bool ready_ = false;        // The server has said that it has Handshake keys.
  bool completed_ = false;    // Both sides' 1-RTT keys are here.
  bool established_ = false;  // ... and the peer's are known to be there: the application has been told.
  crypto::AeadAlgorithm cipher_ = crypto::AeadAlgorithm::aes_256_gcm;
  crypto::TrafficSecret send_secret_, receive_secret_;  // Of the newest generation made.
  std::uint64_t generations_ = 0;
  KeyUse sent_, received_;
  std::optional<env::QuicHandshake::Failure> failure_;

  /// A stream that was abandoned.
  struct Abandoned {
    env::QuicStreamId stream;
    std::uint64_t code;
    bool whole;  // RESET_STREAM too
  };
  std::vector<Abandoned> abandoned_;  // Takes effect between packets.
  /// Streams of ours of which the peer may not know yet: nothing was acknowledged and nothing came back. With the code,
  /// if they were abandoned: RESET_STREAM must wait until it does. See README.md.
  std::unordered_map<env::QuicStreamId, std::optional<std::uint64_t>> unheard_;
  // Streams on which something was sent, and how many bytes of it were not acknowledged.
  std::unordered_map<env::QuicStreamId, std::uint64_t> sending_;
  std::pair<env::QuicStreamId, std::uint64_t*> last_sending_{-1, nullptr};  // One of them: packets come in trains.
  std::uint64_t unacknowledged_ = 0;                                        // of all of them
  /// What the packet that is being read acknowledged of one stream, which ngtcp2 tells packet by packet of ours.
  struct Acknowledged {
    env::QuicStreamId stream = -1;
    std::uint64_t bytes = 0;
  };
  Acknowledged acknowledged_;
  ngtcp2_tstamp unacknowledged_since_ = 0;          // see the port; 0: never
  std::unordered_set<env::QuicStreamId> given_up_;  // By either side; not closed yet.
  bool streams_wanted_ = false;
  bool ping_wanted_ = false;
  std::optional<Stash> stash_;
  bool held_back_ = false;        // What the application wants to send has to wait.
  ngtcp2_tstamp sent_until_ = 0;  // At the path's rate all that was sent is through by then.
  std::size_t train_ = 0;         // Bytes of the next burst at most; 0: at the beginning of a flush.
  std::size_t flushed_ = 0;       // Bytes of this flush, or of the last one.

  std::optional<env::QuicEnd> end_;
  bool end_told_ = false;
  bool reset_received_ = false;
  std::optional<Farewell> farewell_;  // To be written.
  Stash goodbye_;                     // As it was written, to be repeated.
  bool goodbye_wanted_ = false;
  ngtcp2_tstamp lingers_until_ = 0, repeats_from_ = 0;

  std::uint64_t bytes_sent_ = 0, bytes_received_ = 0, packets_sent_ = 0, packets_received_ = 0, packets_lost_ = 0;
  std::uint64_t congestion_marks_ = 0;
  bool ecn_ = false;
  std::function<void(ByteSpan)> qlog_;
};

}  // namespace holo::driver::quic
