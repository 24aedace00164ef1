// Where the datagrams of one socket go: to the session they belong to, to a new one, or to nobody. Also what is
// answered without keeping anything: Version Negotiation, Retry, stateless resets. Sans I/O.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "base/limits.h"
#include "core/hyperbus/packet_session.h"
#include "crypto/aead.h"

namespace holo::hyperbus {

struct PacketEndpointConfig {
  std::shared_ptr<const env::QuicConfig> quic;
  /// From so many handshakes of strangers at once on, newcomers must first show that they receive at their address.
  std::size_t retry_from = limits::kMaxHalfOpen / 4;
  Duration token_lifetime = seconds(10);
  /// Stateless resets, so that a flood of unknown packets is not answered by a flood.
  std::uint64_t resets_per_second = 64;
};

/// QUIC's side of `session`. The key of its stateless resets follows from the node's identity, so that a restarted
/// agent can tell its old peers that it has forgotten them. Left to the caller: `datagram_bytes`, `qlog`.
std::shared_ptr<env::QuicConfig> quic_config(const SessionConfig& session);

/// A resource. Thread: one at a time. `stack` and `entropy` outlive it, it outlives its sessions.
class PacketEndpoint final : private PacketSession::Routes {
 public:
  PacketEndpoint(env::QuicStack& stack, env::Entropy& entropy, PacketEndpointConfig config);

  struct Target {
    NodeId node;                    ///< The only one that may answer; 0: any.
    std::size_t known_payload = 0;  ///< See env::Datagrams.
  };
  std::unique_ptr<PacketSession> dial(std::shared_ptr<const SessionConfig> config, Instant now,
                                      const env::DatagramPath& path, Target target);

  struct Arrival {
    PacketSession* session = nullptr;      ///< It took the datagram.
    std::unique_ptr<PacketSession> fresh;  ///< When it is new: the caller's to keep.
    std::size_t answer = 0;                ///< Bytes of one datagram to send back, in `out`.
    bool garbage = false;                  ///< Nothing of ours.
  };
  struct Circumstances {
    std::size_t strangers = 0;      ///< Handshakes of newcomers that are under way.
    std::size_t known_payload = 0;  ///< Towards the sender; see env::Datagrams.
  };
  /// The session that the datagram names, and which has taken it; null: see on_datagram().
  PacketSession* deliver(Instant now, const env::Datagram& datagram);
  /// One for whoever it may be. `out`: at least kMaxAnswer.
  Arrival on_datagram(Instant now, const env::Datagram& datagram, const std::shared_ptr<const SessionConfig>& config,
                      Circumstances circumstances, MutableByteSpan out);
  static constexpr std::size_t kMaxAnswer = 512;

  /// For connections made from now on.
  void set_quic(std::shared_ptr<const env::QuicConfig> quic);

  /// Connection ids that are routed.
  [[nodiscard]] std::size_t routes() const { return sessions_.size(); }

 private:
  using Token = std::array<std::byte, env::QuicStack::kTokenBytes>;

  void add(ByteSpan connection_id, PacketSession& session) override;
  void remove(ByteSpan connection_id) override;
  void forget(PacketSession& session) override;
  /// A stateless reset names no connection that we know: whoever talks to that address may have been meant.
  [[nodiscard]] PacketSession* find(ByteSpan connection_id);
  PacketSession* reset_by(Instant now, const env::Datagram& datagram);
  [[nodiscard]] PacketSession::Endpoint parts(std::size_t known_payload);
  void on_initial(Instant now, const env::Datagram& datagram, const env::QuicPacketHeader& header,
                  const std::shared_ptr<const SessionConfig>& config, Circumstances circumstances, MutableByteSpan out,
                  Arrival& arrival);
  std::size_t write_token(Instant now, const env::Datagram& datagram, ByteSpan original, ByteSpan id, Token& out);
  /// The original destination id, when the token is one of ours for this address and this id, and not too old.
  [[nodiscard]] std::optional<Bytes> open_token(Instant now, const env::Datagram& datagram,
                                                const env::QuicPacketHeader& header) const;
  [[nodiscard]] static Bytes associated(const env::Datagram& datagram, ByteSpan id);

  env::QuicStack* stack_;
  env::Entropy* entropy_;
  PacketEndpointConfig config_;
  std::shared_ptr<const env::QuicConfig> wide_;  // with the payload last known to pass
  crypto::Aead tokens_;                          // XChaCha20-Poly1305: its nonces are large enough to be drawn
  std::unordered_map<std::string, PacketSession*> sessions_;
  std::string last_id_;  // Datagrams come in trains: whom the last one was for.
  PacketSession* last_ = nullptr;
  std::multimap<env::IpEndpoint, PacketSession*> by_remote_;  // as first seen
  Instant resets_since_;
  std::uint64_t resets_ = 0;
};

}  // namespace holo::hyperbus
