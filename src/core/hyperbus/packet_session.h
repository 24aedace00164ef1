// A session over datagrams: QUIC, with our handshake in place of TLS. The QUIC engine is behind env/quic.h.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "core/hyperbus/bulk_window.h"
#include "core/hyperbus/session.h"
#include "env/quic.h"

namespace holo::hyperbus {

class PacketSession final : public Session, private env::QuicHandshake, private env::QuicApplication {
 public:
  /// Where datagrams find their session: by the connection ids that it answers to.
  class Routes {
   public:
    virtual ~Routes() = default;
    virtual void add(ByteSpan connection_id, PacketSession& session) = 0;
    virtual void remove(ByteSpan connection_id) = 0;
    /// The session is about to go.
    virtual void forget(PacketSession& session) = 0;
  };
  /// What all sessions of an endpoint share; all of it outlives them.
  struct Endpoint {
    env::QuicStack* stack = nullptr;
    std::shared_ptr<const env::QuicConfig> quic;
    env::Entropy* entropy = nullptr;
    Routes* routes = nullptr;
  };

  /// As an initiator. `expected`: the only node that may answer (0: any).
  static std::unique_ptr<PacketSession> dial(const Endpoint& endpoint, std::shared_ptr<const SessionConfig> config,
                                             Instant now, const env::DatagramPath& path, NodeId expected);
  /// As a responder to a first Initial; feed the datagram to receive() next. Errors: `malformed`.
  static Result<std::unique_ptr<PacketSession>> accept(const Endpoint& endpoint,
                                                       std::shared_ptr<const SessionConfig> config, Instant now,
                                                       const env::DatagramPath& path,
                                                       const env::QuicPacketHeader& first, ByteSpan retried_from);
  ~PacketSession() override;

  void receive(Instant now, const env::Datagram& datagram);
  /// Writes datagrams that may be sent now to `out` (at least QuicConnection::kMinBurst); call until it gives nothing.
  std::optional<env::QuicConnection::Burst> send(Instant now, MutableByteSpan out);
  using Session::over;
  /// The peer has said something that only a node of ours can have said.
  [[nodiscard]] bool heard() const { return heard_; }

  [[nodiscard]] bool finished() const override;
  [[nodiscard]] Instant next_timer() override;
  void on_timer(Instant now) override;
  void close(Error error) override;
  [[nodiscard]] LinkFigures figures() const override;
  void ping(Instant now) override;
  [[nodiscard]] env::DatagramPath path() const { return connection_->stats().path; }
  /// See env::QuicConnection.
  [[nodiscard]] Instant unacknowledged_since() const { return connection_->unacknowledged_since(); }

 private:
  PacketSession(Role role, const Endpoint& endpoint, std::shared_ptr<const SessionConfig> config, NodeId expected);
  using Step = env::QuicHandshake::Step;
  using HandshakeAlert = env::QuicHandshake::Failure;

  // Streams
  Result<StreamNumber> open_stream(bool bidirectional) override;
  void abandon_stream(StreamNumber stream) override;
  std::uint64_t room_for_bulk(std::uint64_t under_way) override;
  void on_bulk_arrived(std::uint64_t bytes) override { bulk_.on_arrived(bytes); }
  // env::QuicHandshake
  std::expected<Bytes, HandshakeAlert> start(ByteSpan parameters) override;
  std::expected<Step, HandshakeAlert> on_message(ByteSpan message, const ExchangeParameters& exchange) override;
  // env::QuicApplication
  void on_established() override;
  Status on_stream_data(env::QuicStreamId stream, ByteSpan bytes, bool fin) override;
  void on_stream_acknowledged(env::QuicStreamId stream, std::uint64_t bytes) override;
  void on_stream_abandoned(env::QuicStreamId stream, std::uint64_t code) override;
  void on_stream_closed(env::QuicStreamId stream) override;
  void on_streams_available() override;
  bool next_write(env::QuicWrite& out) override;
  void on_written(env::QuicStreamId stream, std::size_t bytes, bool fin) override;
  void on_blocked(env::QuicStreamId stream) override;
  void on_unblocked(env::QuicStreamId stream) override;
  void on_connection_id(ByteSpan id) override;
  void on_connection_id_retired(ByteSpan id) override;
  void on_end(const env::QuicEnd& end) override;

  [[nodiscard]] HandshakeAlert alert(HandshakeFailure failure);
  void closed_by_peer(const env::QuicEnd& end);

  Routes* routes_;
  std::optional<Handshake> handshake_;
  std::optional<HandshakeFailure> failure_;
  std::vector<Bytes> ids_;
  Instant now_;  // of the call that is under way
  bool heard_ = false;
  BulkWindow bulk_;
  std::unique_ptr<env::QuicConnection> connection_;  // last: it looks at what stands above
};

}  // namespace holo::hyperbus
