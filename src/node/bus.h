// env::Transport: encrypted calls between nodes, as hyperbus sessions: over QUIC, and over TCP where UDP does not pass.
//
// One connection per pair of nodes, dialled on demand by whoever needs it first. When both dial at once, the connection
// dialled by the node with the smaller id stays; the other takes no new requests, ends the ones it has, then closes.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/limits.h"
#include "core/hyperbus/session.h"
#include "env/carrier.h"
#include "env/datagrams.h"
#include "env/entropy.h"
#include "env/loop.h"
#include "env/quic.h"
#include "env/transport.h"
#include "obs/histogram.h"

namespace holo::node {

/// automatic: QUIC, and TCP for a peer that UDP does not reach, until it does.
enum class CarrierUse : std::uint8_t { automatic, quic, tcp };

struct BusOptions {
  std::shared_ptr<const hyperbus::SessionConfig> session;  ///< With the handshake's: identity, keys, trust.
  CarrierUse use = CarrierUse::automatic;
  env::Datagrams* datagrams = nullptr;  ///< Without these two, TCP only. Both outlive the bus.
  env::QuicStack* quic = nullptr;
  env::QlogFactory qlog;                             ///< null: none. For connections over QUIC.
  std::size_t mtu = 0;                               ///< UDP payload known to pass on every path; 0: discovered
  Duration fallback_after = milliseconds(300);       ///< TCP is tried too when QUIC has not answered by then ...
  Duration grace_without_tcp = milliseconds(500);    ///< ... and is given up this long after TCP was refused.
  Duration upgrade_every = seconds(30);              ///< ... and QUIC again this often while TCP serves.
  Duration stalled_after = milliseconds(500);        ///< QUIC without an acknowledgement: another way is looked for.
  Duration next_address_after = milliseconds(250);   ///< Of a name with several addresses (RFC 8305, section 5).
  std::size_t max_half_open = limits::kMaxHalfOpen;  ///< Beyond it the oldest silent newcomer is closed.
  /// Connections of nodes that are no members; beyond it the oldest idle one is closed.
  std::size_t max_strangers = limits::kMaxStrangers;
  /// Bytes of all requests of such nodes; beyond it the one that asks most is closed.
  std::uint64_t max_stranger_bytes = limits::kMaxStrangerBytes;
  std::size_t max_serving = 8192;             ///< Handlers at once, of all peers; above: overloaded
  Duration connect_deadline = seconds(2);     ///< For one address of a peer.
  Duration first_backoff = milliseconds(50);  ///< After a round of all addresses failed; doubles ...
  Duration longest_backoff = seconds(2);      ///< ... up to this. Meanwhile calls fail at once.
};

/// For `holo status --links`: one connection.
struct LinkStatus {
  NodeId peer;
  bool closing = false;  ///< Another connection to this peer has taken over.
  std::string address;
  bool dialled = false;      ///< By this node.
  const char* carrier = "";  ///< "quic" or "tcp"
  const char* cipher = "";
  std::uint16_t version = 0;  ///< Of the protocol: the newest that both speak.
  hyperbus::LinkFigures figures;
  std::array<hyperbus::ClassStatus, hyperbus::kStreamClasses> classes;
  /// Of all answered requests to this peer since the start of this node, over this connection and those before it.
  std::array<obs::Summary, hyperbus::kStreamClasses> round_trips;
};

/// What there was with one peer since the start of this node, over all connections.
struct PeerStatus {
  struct Class {
    std::uint64_t credit_waits = 0, overloaded = 0, turned_away = 0, packets_lost = 0;  ///< See ClassStatus.
    std::map<Errc, std::uint64_t> failed;  ///< Requests to it that ended without an answer, or were never sent.
    obs::Summary round_trip, credit_wait;
  };
  NodeId peer;
  bool connected = false;
  std::uint64_t connections = 0;
  hyperbus::LinkFigures figures;  ///< Its counters only.
  std::array<Class, hyperbus::kStreamClasses> classes;
};

/// Handshakes of this node since its start.
struct HandshakeFigures {
  static constexpr std::size_t kKinds = hyperbus::kRefusalKinds;
  struct Role {
    std::uint64_t done = 0;
    /// By RefusalKind. `none`: given up by either side, or cut off, before anything was refused (a node that does not
    /// answer; the slower of two attempts).
    std::array<std::uint64_t, kKinds> failed{};
  };
  Role dialled, accepted;
  obs::Summary duration;  ///< Of those that succeeded, from the first byte to the keys.
};

/// Thread: loop, all of it. `loop`, `carrier` and `entropy` outlive the bus and every task that the loop still runs for
/// it.
class Bus final : public env::Transport {
 public:
  Bus(env::Loop& loop, env::Carrier& carrier, env::Entropy& entropy, BusOptions options);
  /// As close().
  ~Bus() override;
  Bus(const Bus&) = delete;
  Bus& operator=(const Bus&) = delete;

  /// This node's id, from its identity.
  [[nodiscard]] NodeId self() const;

  /// Accepts peers on "address:port" (port 0: any); returns the bound address. May be called for several addresses.
  /// Errors: those of Carrier::listen.
  Result<std::string> listen(std::string address);

  Task<Result<env::Reply>> call(NodeId peer, env::Request request, env::CallOptions options) override;
  void serve(std::uint16_t type, Handler handler) override;
  void set_placer(std::uint16_t type, Placer placer) override;
  void set_gate(std::shared_ptr<env::MemberGate> gate) override;
  void set_addresses(NodeId peer, std::vector<std::string> addresses) override;
  Task<Result<env::PeerIdentity>> connect(std::string address, Instant deadline) override;
  void disconnect(NodeId peer) override;
  env::RefusedCounters refused() const override;

  /// Called when the last connection to `peer` broke or was closed by it (not after disconnect() or close()).
  void on_peer_lost(std::function<void(NodeId peer, const Error& why)> f);
  /// Called when a first connection to `peer` stands, whoever dialled.
  void on_peer_connected(std::function<void(NodeId peer)> f);
  [[nodiscard]] bool connected(NodeId peer) const;
  [[nodiscard]] std::vector<LinkStatus> links() const;
  /// The connection that new requests to `peer` take.
  [[nodiscard]] std::optional<LinkStatus> link(NodeId peer) const;
  /// Every peer with which there was a connection, or a call.
  [[nodiscard]] std::vector<PeerStatus> peers() const;
  [[nodiscard]] HandshakeFigures handshakes() const;
  /// Inbound connections that have not finished their handshake.
  [[nodiscard]] std::size_t half_open() const;

  /// For connections made from now on (a changed key).
  void set_session_config(std::shared_ptr<const hyperbus::SessionConfig> session);

  [[nodiscard]] bool speaks_quic() const;
  /// For connections made from now on; and every peer that is connected over QUIC is connected anew, without a break.
  void set_qlog(env::QlogFactory qlog);

  /// This machine has other addresses than before: peers that cannot follow by themselves are connected to anew.
  void own_addresses_changed();

  /// Stops listening, tells every peer, ends every pending call with `cancelled`. Idempotent.
  void close();

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace holo::node
