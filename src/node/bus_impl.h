// The inside of node/bus: bus.cc has calls and the end, bus_links.cc connections and their events, bus_packets.cc the
// sockets of QUIC, bus_dial.cc how a connection is made. Included by these only.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/hyperbus/packet_endpoint.h"
#include "core/hyperbus/stream_session.h"
#include "node/bus.h"

namespace holo::node {

inline Error unavailable(std::string message) {
  return Error{.code = Errc::unavailable, .message = std::move(message), .retryable = true};
}
inline Error cancelled() { return Error{.code = Errc::cancelled, .message = "this node is stopping"}; }
inline Error overloaded(std::string message) {
  return Error{.code = Errc::overloaded,
               .message = std::move(message),
               .retryable = true,
               .retry_after = std::chrono::milliseconds(50)};
}

using ReplyShot = std::shared_ptr<OneShot<Result<env::Reply>>>;
using IdentityShot = std::shared_ptr<OneShot<Result<env::PeerIdentity>>>;

class Bus::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(env::Loop& loop, env::Carrier& carrier, env::Entropy& entropy, BusOptions options);

  NodeId self() const { return self_; }
  Result<std::string> listen(const std::string& address);
  Task<Result<env::Reply>> call(NodeId peer, env::Request request, env::CallOptions options);
  void serve(std::uint16_t type, Handler handler) { handlers_[type] = std::make_shared<Handler>(std::move(handler)); }
  void set_placer(std::uint16_t type, Placer placer) { placers_[type] = std::move(placer); }
  void set_gate(std::shared_ptr<env::MemberGate> gate) { gate_ = std::move(gate); }
  void set_addresses(NodeId peer, std::vector<std::string> addresses);
  Task<Result<env::PeerIdentity>> connect(std::string address, Instant deadline);
  void disconnect(NodeId peer);
  env::RefusedCounters refused() const { return refused_; }
  [[nodiscard]] bool speaks_quic() const { return endpoint_ != nullptr; }
  void own_addresses_changed();
  void set_qlog(env::QlogFactory qlog);
  bool connected(NodeId peer) const;
  std::vector<LinkStatus> links() const;
  std::optional<LinkStatus> link(NodeId peer) const;
  std::vector<PeerStatus> peers() const;
  HandshakeFigures handshakes() const;
  std::size_t half_open() const { return half_open_.size(); }
  void set_session_config(std::shared_ptr<const hyperbus::SessionConfig> s) { options_.session = std::move(s); }
  void close();

  std::function<void(NodeId, const Error&)> on_peer_lost;
  std::function<void(NodeId)> on_peer_connected;

 private:
  struct Socket;
  struct UnderWay {
    ReplyShot shot;
    env::StreamClass klass{};
    Instant asked;
  };
  /// One connection, from its first byte to its last. Over TCP it has a stream, over QUIC a socket.
  struct Link {
    std::uint64_t id = 0;
    hyperbus::Role role = hyperbus::Role::initiator;
    std::string address;
    std::shared_ptr<hyperbus::PacketEndpoint> endpoint;  // a session over packets looks at it until its end
    std::unique_ptr<hyperbus::Session> session;
    hyperbus::StreamSession* over_stream = nullptr;   // the session, when it is one
    hyperbus::PacketSession* over_packets = nullptr;  // likewise
    std::unique_ptr<env::ByteStream> stream;          // null once over
    std::shared_ptr<Socket> socket;
    Instant started;
    Instant established_at;
    NodeId peer;  // 0 until established
    crypto::AeadAlgorithm aead{};
    std::uint16_t version = 0;
    IdentityShot waiter;  // who dialled and waits for the handshake
    std::unordered_map<hyperbus::StreamId, UnderWay> calls;
    std::size_t serving = 0;
    std::uint64_t streams = 0;  // ever, in both directions
    std::uint64_t streams_at_check = 0;
    env::Loop::TimerId timer = 0;
    Instant timer_at = kNever;
    Instant timer_set;  ///< When it was.
    env::Loop::TimerId retire_timer = 0;
    env::Loop::TimerId watch_timer = 0;
    bool heard = false;
    bool pumping = false;
    bool waits_for_socket = false;
    env::IpEndpoint towards;  // where the last datagrams went
    bool retiring = false;
    bool ended_here = false;  // by disconnect(), close() or retirement: nobody was lost
    hyperbus::RefusalKind refusal = hyperbus::RefusalKind::none;
    bool over = false;
  };
  using LinkPtr = std::shared_ptr<Link>;

  /// A bound UDP socket, and what waits for room in it.
  struct Socket {
    std::unique_ptr<env::DatagramSocket> socket;
    struct Unsent {
      env::QuicConnection::Burst burst;
      Bytes bytes;
    };
    std::optional<Unsent> unsent;
    std::vector<std::weak_ptr<Link>> waiting;
  };
  using SocketPtr = std::shared_ptr<Socket>;

  /// A call that waits for a connection.
  struct Waiting {
    std::uint64_t id = 0;
    env::Request request;
    env::CallOptions options;
    ReplyShot shot;
    env::Loop::TimerId timer = 0;
  };
  struct Peer {
    std::vector<std::string> addresses;
    std::string last_good;  // of them: where it answered last
    LinkPtr link;           // where new requests go
    std::deque<Waiting> waiting;
    bool dialling = false;
    bool replacing = false;  // a link that stands, but does not pass anything
    Instant replace_not_before;
    bool udp_failed = false;  // the last connection had to be made over TCP
    env::Loop::TimerId upgrade_timer = 0;
    Duration backoff;
    Instant not_before;
    Error last_error;
    std::array<std::unique_ptr<obs::Histogram>, hyperbus::kStreamClasses> round_trips;  // null until used
    /// Of connections that are over; the summaries in it are not used.
    PeerStatus past;
    std::array<std::unique_ptr<obs::Histogram>, hyperbus::kStreamClasses> credit_waits;  // likewise
  };
  struct Quiet {
    Instant until;
    std::uint64_t unsaid = 0;
  };
  /// Several attempts to reach one address; the first that gets through its handshake wins.
  struct Race {
    IdentityShot winner = std::make_shared<OneShot<Result<env::PeerIdentity>>>();
    std::shared_ptr<OneShot<Result<bool>>> packets_failed = std::make_shared<OneShot<Result<bool>>>();
    std::vector<LinkPtr> links;
    int running = 0;
    Error last;
  };
  using RacePtr = std::shared_ptr<Race>;
  /// The addresses of a peer, tried side by side.
  struct Round {
    std::size_t running = 0;  // addresses whose race is not over, those not begun included
    std::shared_ptr<OneShot<Result<bool>>> step = std::make_shared<OneShot<Result<bool>>>();  // one more is over
    Error last;
  };
  using RoundPtr = std::shared_ptr<Round>;

  // Connections (bus_links.cc)
  LinkPtr add_link(hyperbus::Role role, std::string address);
  LinkPtr add_stream_link(hyperbus::Role role, std::unique_ptr<env::ByteStream> stream, NodeId expected,
                          std::string address);
  void accept(std::unique_ptr<env::ByteStream> stream);
  void make_room_for_newcomer();
  void make_room_for_stranger(const LinkPtr& fresh);
  [[nodiscard]] bool is_stranger(const Link& link) const;
  void bound_requests_of_strangers(const LinkPtr& link);
  void forget_peer(NodeId id);
  void pump(const LinkPtr& link);
  bool write_output(const LinkPtr& link);
  void rearm(const LinkPtr& link);
  void on_timer(const LinkPtr& link);
  void end_link(const LinkPtr& link, const Error& why);
  void close_link(const LinkPtr& link, const Error& why);
  void retire(const LinkPtr& link);
  void check_retired(const LinkPtr& link);
  NodeId dialler(const Link& link) const { return link.role == hyperbus::Role::initiator ? self_ : link.peer; }
  bool supersedes(const Link& fresh, const Link& old) const;
  [[nodiscard]] bool needless(const Link& fresh, const Link& old) const;
  /// Over QUIC, and what was sent on it is not acknowledged.
  [[nodiscard]] bool stalled(const Link& link) const;
  void watch(const LinkPtr& link);
  void on_watch(const LinkPtr& link);
  void drop_half_open(const LinkPtr& link) { std::erase(half_open_, link); }

  // Events
  void on_event(const LinkPtr& link, hyperbus::Established event);
  void on_event(const LinkPtr& link, hyperbus::RequestArrived event);
  void on_event(const LinkPtr& link, hyperbus::ReplyArrived event);
  void on_event(const LinkPtr&, hyperbus::RequestCancelled) {
  }  // Handlers run to their end; the session drops the answer.
  void on_event(const LinkPtr& link, hyperbus::Closed event);
  void count_round_trip(const Link& link, const UnderWay& call);
  void count_failure(Peer& peer, env::StreamClass klass, const Error& why);
  static void add_figures(PeerStatus& sum, const Link& link);
  static void add_credit_waits(obs::Histogram& sum, const Link& link, env::StreamClass klass);
  void keep_figures(const Link& link);
  LinkStatus status_of(const Link& link) const;
  void count_refusal(hyperbus::RefusalKind kind, hyperbus::Role role, const std::string& address, const Error& why);
  static Task<void> run_handler(std::shared_ptr<Impl> self, LinkPtr link, hyperbus::StreamId stream,
                                std::shared_ptr<Handler> handler, env::Request request);

  // Sockets of QUIC (bus_packets.cc)
  [[nodiscard]] bool speaks_tcp() const { return options_.use != CarrierUse::quic; }
  Result<SocketPtr> bind(const std::string& address);
  Result<SocketPtr> socket_towards(const env::IpEndpoint& remote);
  LinkPtr add_packet_link(hyperbus::Role role, std::unique_ptr<hyperbus::PacketSession> session, SocketPtr socket,
                          std::string address);
  void on_datagrams(const SocketPtr& socket, std::span<const env::Datagram> datagrams);
  hyperbus::PacketSession* on_unaddressed(const SocketPtr& socket, Instant now, const env::Datagram& datagram);
  void on_writable(const SocketPtr& socket);
  bool flush_packets(const LinkPtr& link);

  // Calls (bus.cc)
  void begin_call(NodeId id, env::Request request, env::CallOptions options, const ReplyShot& shot);
  void send_on(const LinkPtr& link, env::Request request, env::CallOptions options, const ReplyShot& shot);
  void send_waiting(Peer& peer);
  void fail_waiting(Peer& peer, const Error& why);
  void time_out(NodeId peer, std::uint64_t waiting);
  Task<Result<env::Reply>> call_self(env::Request request, Instant deadline);
  static Task<void> run_own(std::shared_ptr<Impl> self, std::shared_ptr<Handler> handler, env::Request request,
                            ReplyShot shot);

  // Making connections (bus_dial.cc)
  Task<Result<env::PeerIdentity>> open(std::string address, NodeId expected, Instant dial_by, Instant shake_by);
  static Task<void> race_packets(std::shared_ptr<Impl> self, RacePtr race, std::string address, NodeId expected,
                                 Instant dial_by);
  static Task<void> race_stream(std::shared_ptr<Impl> self, RacePtr race, std::string address, NodeId expected,
                                Instant dial_by, Instant not_before);
  static Task<void> follow(std::shared_ptr<Impl> self, RacePtr race, LinkPtr link);
  void lost_race(const RacePtr& race, const Error& why);
  [[nodiscard]] std::vector<std::string> dial_order(NodeId id) const;
  void begin_replacing(NodeId id, const LinkPtr& old);
  static Task<void> dial_peer(std::shared_ptr<Impl> self, NodeId id);
  static Task<void> replace(std::shared_ptr<Impl> self, NodeId id, LinkPtr old);
  static Task<RoundPtr> dial_round(std::shared_ptr<Impl> self, NodeId id, LinkPtr instead_of);
  static Task<void> dial_address(std::shared_ptr<Impl> self, RoundPtr round, NodeId id, std::string address);
  void plan_upgrade(NodeId id);
  static Task<void> upgrade(std::shared_ptr<Impl> self, NodeId id);

  env::Loop& loop_;
  env::Carrier& carrier_;
  env::Entropy& entropy_;
  BusOptions options_;
  const NodeId self_;
  std::unordered_map<std::uint16_t, std::shared_ptr<Handler>> handlers_;
  std::unordered_map<std::uint16_t, Placer> placers_;
  std::shared_ptr<env::MemberGate> gate_;
  std::unordered_map<NodeId, Peer> peers_;  // Of nodes that are connected, or were named here.
  std::shared_ptr<hyperbus::PacketEndpoint> endpoint_;
  std::unordered_map<std::uint64_t, LinkPtr> links_;
  std::unordered_map<const hyperbus::PacketSession*, LinkPtr> by_session_;
  std::deque<LinkPtr> half_open_;  // inbound, oldest first
  std::vector<std::unique_ptr<env::Listener>> listeners_;
  std::vector<SocketPtr> sockets_;
  Bytes burst_;  // where datagrams are written before they are sent
  std::unordered_map<std::uint64_t, ReplyShot> own_calls_;
  std::size_t serving_ = 0;
  std::uint64_t next_id_ = 1;
  env::RefusedCounters refused_;
  std::array<Quiet, hyperbus::kRefusalKinds> quiet_{};  // by RefusalKind
  HandshakeFigures handshakes_;                         // without the durations
  obs::Histogram handshake_durations_;
  bool closed_ = false;
};

}  // namespace holo::node
