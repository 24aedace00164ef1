// A session: one authenticated, encrypted connection between two nodes. Sans I/O: what a carrier delivers and time go
// in; events, what the carrier shall send, and the time of the next timer come out. stream_session.h runs over ordered
// bytes (TCP), packet_session.h over datagrams (QUIC); above this line they are the same.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/limits.h"
#include "base/result.h"
#include "base/time.h"
#include "core/hyperbus/events.h"
#include "core/hyperbus/exchange.h"
#include "env/entropy.h"

namespace holo::hyperbus {

struct SessionConfig {
  std::shared_ptr<const HandshakeConfig> handshake;
  std::array<ClassWindow, kStreamClasses> windows = {
      ClassWindow{.requests = 1024, .request_bytes = 32 << 20, .reply_bytes = 32 << 20},
      ClassWindow{.requests = 1024, .request_bytes = 64 << 20, .reply_bytes = 64 << 20},
      ClassWindow{.requests = 64, .request_bytes = 64 << 20, .reply_bytes = 64 << 20}};
  Duration handshake_deadline =
      limits::kHandshakeDeadline;              ///< then closed, counted as garbage when the peer was silent
  Duration keep_alive = seconds(4);            ///< silence after which a ping is sent; half of idle_timeout
  Duration idle_timeout = seconds(8);          ///< silence after which the peer counts as gone
  std::uint64_t records_per_key = 1ULL << 23;  ///< then the key moves on; part of the protocol, tests lower it

  /// Streams that a peer may have open at once.
  [[nodiscard]] std::uint64_t streams() const;
};

/// A resource; not movable. Thread: one at a time, the loop's. After any call: next_event() until empty, then what the
/// kind of session has to send, then rearm next_timer(). When finished(): close the carrier.
class Session : private Streams {
 public:
  ~Session() override;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// The session is over, and the peer was told as far as it can be.
  [[nodiscard]] virtual bool finished() const = 0;
  /// When on_timer() is next due; kNever when not. Cost: constant.
  [[nodiscard]] virtual Instant next_timer() = 0;
  virtual void on_timer(Instant now) = 0;

  [[nodiscard]] std::optional<Event> next_event();

  /// Sends a request; may be called before Established (it then waits). Its end is one ReplyArrived, at `deadline` at
  /// the latest. Errors, when nothing was sent and no event follows: `invalid_argument` (over limits::kMaxHeaderBytes
  /// or kMaxPayloadBytes), `overloaded` (limits::kMaxCallsPerPeer of its class, or Exchange::kMaxQueuedBytes, are
  /// waiting), `deadline_exceeded` (already past), `unavailable` (the session is over).
  Result<StreamId> request(Instant now, StreamClass klass, env::Request request, Instant deadline);
  /// Ends one of our requests with ReplyArrived{`error`} and tells the peer. Unknown or ended ones are ignored.
  void cancel(StreamId call, Error error);
  void set_placer(Exchange::Placer placer) { exchange_.set_placer(std::move(placer)); }
  /// Answers a request of the peer, once. Content over the limits goes out as the error `over_limit`. Ignored when the
  /// session is over.
  void reply(StreamId stream, Result<env::Reply> result);

  /// Ends the session: open requests end with `error`, the peer is told its code and message. Idempotent.
  virtual void close(Error error) = 0;

  [[nodiscard]] bool established() const { return established_; }
  [[nodiscard]] NodeId peer() const { return agreed_.peer; }  ///< 0 before the handshake proved it
  [[nodiscard]] virtual LinkFigures figures() const = 0;
  /// Sends a ping now; figures().round_trip changes when it is answered.
  virtual void ping(Instant now) = 0;
  /// The owner answers a request of this class with `overloaded`: only counts it.
  void note_turned_away(StreamClass klass) { exchange_.note_turned_away(klass); }
  [[nodiscard]] ClassStatus class_status(StreamClass klass) const { return exchange_.status(klass); }
  /// See Exchange.
  [[nodiscard]] std::uint64_t request_bytes() const { return exchange_.request_bytes(); }
  [[nodiscard]] const obs::Histogram* credit_wait(StreamClass klass) const { return exchange_.credit_wait(klass); }

 protected:
  Session(Role role, std::shared_ptr<const SessionConfig> config);

  /// The handshake is done: the event, and the grants.
  void announce();
  /// Ends every request and says Closed; once.
  void conclude(Error error, RefusalKind kind);
  [[nodiscard]] bool over() const { return over_; }
  [[nodiscard]] std::string peer_name() const;

  const Role role_;
  const std::shared_ptr<const SessionConfig> config_;
  std::deque<Event> events_;
  Exchange exchange_;
  HandshakeResult agreed_;

 private:
  bool established_ = false;
  bool over_ = false;
};

}  // namespace holo::hyperbus
