// The port to QUIC (RFC 9000): connections without sockets and clocks. Datagrams and time go in; datagrams, stream
// events and timers come out. driver/quic implements it over ngtcp2; core/hyperbus gives it a handshake (in place of
// TLS) and something to say.
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/bytes.h"
#include "base/result.h"
#include "base/secret.h"
#include "base/time.h"
#include "env/datagrams.h"
#include "env/entropy.h"

namespace holo::env {

/// Numbered as in crypto::AeadAlgorithm.
enum class QuicCipher : std::uint8_t { aes_256_gcm = 1, xchacha20_poly1305 = 3 };

/// Traffic secrets of one encryption level; packet keys are derived from them as in RFC 9001, section 5.
struct QuicSecrets {
  QuicCipher cipher{};
  Secret<32> send, receive;
};

/// The key exchange that a connection carries in CRYPTO frames, as messages of at most 64 KiB - 1 bytes, each with its
/// length in front (2 bytes, little-endian). The owner keeps it alive until the connection is gone.
class QuicHandshake {
 public:
  struct Failure {
    std::uint8_t alert = 0;  ///< Goes to the peer as CRYPTO_ERROR 0x100 + alert, in clear before there are keys.
    std::string reason;      ///< Likewise, as the reason phrase; at most 256 bytes.
  };
  struct Step {
    Bytes message;                            ///< The answer; empty: none.
    std::optional<QuicSecrets> handshake;     ///< When set: installed before `message` is sent at that level ...
    bool message_at_handshake_level = false;  ///< ... if this says so; else it goes out at the Initial level.
    std::optional<QuicSecrets> application;   ///< 1-RTT keys of both directions. The handshake is complete.
  };
  /// Hands the peer's transport parameters (RFC 9000, section 18) to the connection, and for a server returns its own,
  /// encoded; for a client, nothing. Errors: `malformed`.
  using ExchangeParameters = std::function<Result<Bytes>(ByteSpan peer)>;

  virtual ~QuicHandshake() = default;
  /// A client's first message. `parameters`: its encoded transport parameters.
  virtual std::expected<Bytes, Failure> start(ByteSpan parameters) = 0;
  virtual std::expected<Step, Failure> on_message(ByteSpan message, const ExchangeParameters& exchange) = 0;
};

/// RFC 9000, section 2.1.
using QuicStreamId = std::int64_t;
constexpr bool is_bidirectional(QuicStreamId id) { return (id & 2) == 0; }
constexpr bool is_client_initiated(QuicStreamId id) { return (id & 1) == 0; }

/// Consecutive bytes of a stream that want to be sent. They stay where they are until acknowledged, or
/// on_stream_closed(), or on_end(): the connection keeps no copy, and may look at those of an abandoned stream too.
struct QuicWrite {
  QuicStreamId stream = -1;
  std::array<ByteSpan, 4> parts;
  std::size_t count = 0;
  bool fin = false;             ///< The stream ends after these.
  std::size_t most = SIZE_MAX;  ///< Packets that hold so much of it are enough before the next question.
};

/// Why a connection ended.
struct QuicEnd {
  enum class Cause : std::uint8_t {
    closed_here,       ///< close()
    closed_by_peer,    ///< with `code` (application's when `application`) and `reason`
    handshake_failed,  ///< here, for a reason that the QuicHandshake knows
    protocol,          ///< the peer broke QUIC; `code` is RFC 9000's
    idle,              ///< silent for the idle time-out, or the handshake took too long
    reset,             ///< by a stateless reset: the peer has forgotten us
    refused_version,   ///< the peer answered with a Version Negotiation packet
    internal,
  };
  Cause cause = Cause::internal;
  bool application = false;
  std::uint64_t code = 0;
  std::string reason;
};

/// What runs above a connection. All calls come from within the connection's receive(), send() and on_timer(); it may
/// call back into the connection, except for receive(), send() and on_timer(), and must not destroy it.
class QuicApplication {
 public:
  virtual ~QuicApplication() = default;
  /// Both sides are known to have the 1-RTT keys (at a client: the server has said so): streams may be opened.
  virtual void on_established() = 0;
  /// In order. An error closes the connection with `code` kQuicProtocolViolation of the application.
  virtual Status on_stream_data(QuicStreamId stream, ByteSpan bytes, bool fin) = 0;
  /// `bytes` more of what was sent on this stream have arrived and need not be kept any longer.
  virtual void on_stream_acknowledged(QuicStreamId stream, std::uint64_t bytes) = 0;
  /// The peer gave it up: it sends no more (RESET_STREAM), or does not want what we send (STOP_SENDING; noticed with
  /// the next write to the stream, `code` is then 0). The connection has abandoned our direction too; only
  /// on_stream_closed() is still to come.
  virtual void on_stream_abandoned(QuicStreamId stream, std::uint64_t code) = 0;
  /// Nothing will be sent or received on it any more; what was kept for it may go.
  virtual void on_stream_closed(QuicStreamId stream) = 0;
  /// The peer allows more streams than before (open() had returned `overloaded`).
  virtual void on_streams_available() = 0;
  /// What to send next, most urgent first; false when nothing. Called for as many packets as it fills, at least once in
  /// each burst. The write is answered by on_written(), on_blocked(), or both in this order; or by neither when nothing
  /// of it was taken (the same is then asked again).
  virtual bool next_write(QuicWrite& out) = 0;
  /// `bytes` of the last next_write() were taken, and its fin too if `fin`. Once for each.
  virtual void on_written(QuicStreamId stream, std::size_t bytes, bool fin) = 0;
  /// Flow control holds this stream back until on_unblocked(); ask for others.
  virtual void on_blocked(QuicStreamId stream) = 0;
  virtual void on_unblocked(QuicStreamId stream) = 0;
  /// A connection id by which the peer may address this connection from now on, and one that it has given up.
  virtual void on_connection_id(ByteSpan id) = 0;
  virtual void on_connection_id_retired(ByteSpan id) = 0;
  /// Once, last.
  virtual void on_end(const QuicEnd& end) = 0;
};

struct QuicConnectionStats {
  Duration latest_rtt, min_rtt, smoothed_rtt, rtt_variance;
  std::uint64_t congestion_window = 0;  ///< bytes
  std::uint64_t bytes_in_flight = 0;
  std::uint64_t bytes_sent = 0, bytes_received = 0;  ///< of UDP payload
  std::uint64_t packets_sent = 0, packets_received = 0;
  std::uint64_t packets_lost = 0;  ///< with bytes of streams, as declared by loss detection, so retransmitted
  std::uint64_t key_updates = 0;
  std::size_t datagram_bytes = 0;      ///< the path MTU found so far, as UDP payload
  bool ecn = false;                    ///< the last datagram was sent as ECT(0): nothing has shown yet that this fails
  std::uint64_t congestion_marks = 0;  ///< datagrams that came with CE
  std::size_t memory_bytes = 0;        ///< what the engine keeps for it
  DatagramPath path;
};

/// One connection. A resource. Thread: one at a time.
class QuicConnection {
 public:
  /// What send() wrote: datagrams of `segment` bytes each, the last may be shorter.
  struct Burst {
    DatagramPath path;
    Ecn ecn = Ecn::not_ect;
    std::size_t segment = 0;
    std::size_t bytes = 0;
  };

  virtual ~QuicConnection() = default;
  /// Takes one datagram (it may hold several packets). Errors inside end the connection. One with a short header and an
  /// id that nobody knows may be a stateless reset: give it to the connections with that remote address.
  virtual void receive(Instant now, const DatagramPath& path, Ecn ecn, ByteSpan datagram) = 0;
  /// Writes what may be sent now, as far as congestion control, pacing and `out` (at least kMinBurst) allow; nothing
  /// when there is nothing to send or it must wait for next_timer(). Call until it gives nothing.
  virtual std::optional<Burst> send(Instant now, MutableByteSpan out) = 0;
  static constexpr std::size_t kMinBurst = 16 << 10;
  [[nodiscard]] virtual Instant next_timer() const = 0;
  virtual void on_timer(Instant now) = 0;

  /// A unidirectional stream is for the life of the connection: 8 for each side, and the receiver is never told that
  /// one has closed. Errors: `overloaded` (the peer's limit; on_streams_available() will follow), `unavailable` (not
  /// established, or over).
  virtual Result<QuicStreamId> open(bool bidirectional) = 0;
  /// Stops sending and receiving on a stream, and tells the peer (RESET_STREAM, STOP_SENDING). Only on_stream_closed()
  /// is still to come; what was written stays in place until then. Unknown streams are ignored.
  virtual void abandon(QuicStreamId stream, std::uint64_t code) = 0;
  /// Ends the connection; send() then gives CONNECTION_CLOSE. `reason`: at most 256 bytes are sent. Idempotent.
  virtual void close(Instant now, std::uint64_t code, std::string reason) = 0;
  /// Sends an acknowledged PING with the next packet.
  virtual void ping() = 0;

  /// Over, and nothing more to send: the object may go, its ids may be forgotten.
  [[nodiscard]] virtual bool finished() const = 0;
  /// When the first bytes of streams were sent since the last were acknowledged; kNever when all of them were. Streams
  /// that are given up meanwhile change nothing about it. Cost: constant.
  [[nodiscard]] virtual Instant unacknowledged_since() const = 0;
  /// Packets with bytes of the stream that were declared lost; until on_stream_closed() has returned.
  [[nodiscard]] virtual std::uint64_t stream_losses(QuicStreamId stream) const = 0;
  [[nodiscard]] virtual QuicConnectionStats stats() const = 0;
};

inline constexpr std::uint64_t kQuicProtocolViolation = 1;  // application's code of our own

/// Gives each connection a place for its qlog (draft-ietf-quic-qlog-main-schema, 0.3, as JSON-SEQ), called with whole
/// records, or nothing when it shall have none. Both ends of a connection name the same id.
using QlogSink = std::function<void(ByteSpan record)>;
using QlogFactory = std::function<QlogSink(ByteSpan original_destination_id, bool server)>;

/// What one endpoint's connections have in common. Unchanged while they live.
struct QuicConfig {
  Duration handshake_timeout = seconds(5);
  Duration idle_timeout = seconds(8);
  Duration keep_alive = seconds(2);
  std::uint64_t stream_window = 0;          ///< bytes; the largest message must fit
  std::uint64_t connection_window = 0;      ///< bytes
  std::uint64_t bidirectional_streams = 0;  ///< the peer may have open at once
  std::size_t datagram_bytes = 0;           ///< UDP payload known to pass (configured `mtu`); 0: discover from 1,200 up
  std::uint64_t packets_per_key = 1ULL << 23;  ///< then the client moves them on (RFC 9001, section 6)
  Secret<32> reset_key;                        ///< stateless reset tokens are derived from it; kept over restarts
  QlogFactory qlog;                            ///< null: none
};

/// The start of a datagram, as much as RFC 8999 and Initial packets show without keys.
struct QuicPacketHeader {
  enum class Kind : std::uint8_t { malformed, initial, other_long, one_rtt, unknown_version };
  Kind kind = Kind::malformed;
  std::uint32_t version = 0;
  ByteSpan destination, source;  ///< connection ids
  ByteSpan token;                ///< of an Initial
};

/// Makes connections, and the packets that are sent without one. Handshake, application and entropy outlive what is
/// made with them. Thread: one at a time.
class QuicStack {
 public:
  /// Connection ids that we choose have this size.
  static constexpr std::size_t kConnectionIdBytes = 8;
  static constexpr std::size_t kTokenBytes = 128;  // at most

  virtual ~QuicStack() = default;
  virtual std::unique_ptr<QuicConnection> connect(std::shared_ptr<const QuicConfig> config, Instant now,
                                                  const DatagramPath& path, QuicHandshake& handshake,
                                                  QuicApplication& application, Entropy& entropy) = 0;
  /// For a first Initial (classified as such, in a datagram of at least 1,200 bytes, its token verified if it has one);
  /// feed the datagram to receive() next, which may end the connection at once when it is not authentic.
  /// `retried_from`: the original destination id out of the token, empty when there was no Retry. Errors: `malformed`.
  virtual Result<std::unique_ptr<QuicConnection>> accept(std::shared_ptr<const QuicConfig> config, Instant now,
                                                         const DatagramPath& path, const QuicPacketHeader& first,
                                                         ByteSpan retried_from, QuicHandshake& handshake,
                                                         QuicApplication& application, Entropy& entropy) = 0;

  [[nodiscard]] virtual QuicPacketHeader classify(ByteSpan datagram) const = 0;
  /// Each writes one packet to `out` and returns its size, 0 when it cannot. They answer `header`, and never exceed
  /// the datagram that they answer by more than RFC 9000 allows (the caller checks its size).
  virtual std::size_t write_version_negotiation(const QuicPacketHeader& header, Entropy& entropy,
                                                MutableByteSpan out) const = 0;
  virtual std::size_t write_retry(const QuicPacketHeader& header, ByteSpan new_source_id, ByteSpan token,
                                  MutableByteSpan out) const = 0;
  virtual std::size_t write_stateless_reset(const QuicConfig& config, const QuicPacketHeader& header,
                                            std::size_t datagram_bytes, Entropy& entropy,
                                            MutableByteSpan out) const = 0;
};

}  // namespace holo::env
