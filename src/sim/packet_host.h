// A machine that speaks the hyperbus over datagrams and nothing else: a socket, an endpoint, and the sessions on it.
// What a node's bus does with QUIC, without dialling policies; so that what is tested is the sessions.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/limits.h"
#include "core/hyperbus/packet_endpoint.h"
#include "env/datagrams.h"
#include "env/loop.h"

namespace holo::sim {

/// A resource. Thread: the loop's. Its loop must be killed, or run out, before it goes.
class PacketHost {
 public:
  /// A session and what its owner knows about it.
  struct Link {
    hyperbus::Role role{};
    std::unique_ptr<hyperbus::PacketSession> session;
    env::IpEndpoint remote;  ///< when it began
    std::optional<hyperbus::Established> established;
    std::optional<hyperbus::Closed> closed;
    std::uint64_t events_after_closed = 0;
    env::Loop::TimerId timer = 0;
    bool waits_for_socket = false;
    Instant last_timer{};
    std::uint64_t timers_in_a_row = 0;  ///< without the clock moving
  };
  using LinkPtr = std::shared_ptr<Link>;

  struct Options {
    std::shared_ptr<const hyperbus::SessionConfig> session;
    std::shared_ptr<const env::QuicConfig> quic;
    std::size_t max_half_open = limits::kMaxHalfOpen;  ///< above, the oldest that said nothing goes, as in a node
    std::string address = "0.0.0.0:7000";
  };
  struct Counters {
    std::uint64_t garbage = 0;   ///< datagrams that were nothing of ours
    std::uint64_t answers = 0;   ///< datagrams sent without a session: Version Negotiation, Retry, stateless resets
    std::uint64_t accepted = 0;  ///< sessions that a stranger's first datagram made
    std::uint64_t crowded_out = 0;
    std::uint64_t spinning = 0;  ///< a timer was due again and again without the clock moving: a busy loop
    std::size_t most_links = 0, most_half_open = 0, most_routes = 0;
  };

  /// `stack`, `loop` and `entropy` outlive it. `datagrams`: bound once, from within.
  PacketHost(env::Loop& loop, env::Datagrams& datagrams, env::QuicStack& stack, env::Entropy& entropy, Options options);
  ~PacketHost();
  PacketHost(const PacketHost&) = delete;
  PacketHost& operator=(const PacketHost&) = delete;

  LinkPtr dial(const env::IpEndpoint& remote, NodeId expected = {});
  Result<hyperbus::StreamId> request(const LinkPtr& link, env::StreamClass klass, env::Request request,
                                     Instant deadline);
  /// After anything was done to a session directly.
  void pump(const LinkPtr& link);
  /// What a socket does: a datagram has arrived.
  void receive(const env::Datagram& datagram);
  /// As when a machine wakes up: all timers that are due.
  void wake();

  [[nodiscard]] const std::vector<LinkPtr>& links() const { return links_; }
  [[nodiscard]] std::size_t routes() const { return endpoint_.routes(); }
  [[nodiscard]] std::size_t half_open() const { return half_open_.size(); }
  [[nodiscard]] env::IpEndpoint local() const { return socket_->local(); }
  [[nodiscard]] const Counters& counters() const { return counters_; }

  std::function<void(const LinkPtr&, hyperbus::Event)> on_event;
  /// Sees each datagram before it is sent, and may alter it; false: it is not sent.
  std::function<bool(const env::DatagramPath&, Bytes&)> on_send;

 private:
  LinkPtr add(hyperbus::Role role, std::unique_ptr<hyperbus::PacketSession> session, const env::IpEndpoint& remote);
  void drain_events(const LinkPtr& link);
  bool flush(const LinkPtr& link);
  void on_writable();
  bool send(const env::QuicConnection::Burst& burst, ByteSpan bytes);
  void forget(const LinkPtr& link);

  env::Loop& loop_;
  Options options_;
  Bytes burst_;
  std::unique_ptr<env::DatagramSocket> socket_;
  hyperbus::PacketEndpoint endpoint_;
  std::vector<LinkPtr> links_;
  std::map<hyperbus::PacketSession*, LinkPtr> by_session_;
  std::deque<LinkPtr> half_open_;
  std::vector<std::unique_ptr<hyperbus::PacketSession>> gone_;  // until none of their calls is on the stack
  struct Unsent {
    env::QuicConnection::Burst burst;
    Bytes bytes;
  };
  std::optional<Unsent> unsent_;
  std::vector<LinkPtr> waiting_;
  Counters counters_;
};

}  // namespace holo::sim
