// A session: one authenticated, encrypted connection between two nodes over an ordered byte stream. Sans I/O: bytes and
// time go in; bytes, events and the time of the next timer come out. TCP and the simulator drive the same code.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"
#include "base/time.h"
#include "core/hyperbus/handshake.h"
#include "env/entropy.h"
#include "env/transport.h"

namespace holo::hyperbus {

using env::StreamClass;
inline constexpr std::size_t kStreamClasses = 3;

/// Names a request within a session, for the side that sent it; ids of the two directions are unrelated.
using StreamId = Id<struct StreamTag>;

/// What one class may have under way towards us. A sender beyond it waits; one that does not wait is cut off.
struct ClassWindow {
  std::uint32_t requests = 1024;           ///< arrived and not yet answered; at least 1
  std::uint64_t request_bytes = 64 << 20;  ///< header and payload bytes of those; at least 32 MiB
  std::uint64_t reply_bytes = 64 << 20;    ///< of replies that are arriving; at least 32 MiB
};

struct SessionConfig {
  std::shared_ptr<const HandshakeConfig> handshake;
  std::array<ClassWindow, kStreamClasses> windows = {
      ClassWindow{.requests = 1024, .request_bytes = 32 << 20, .reply_bytes = 32 << 20},
      ClassWindow{.requests = 1024, .request_bytes = 64 << 20, .reply_bytes = 64 << 20},
      ClassWindow{.requests = 64, .request_bytes = 64 << 20, .reply_bytes = 64 << 20}};
  Duration handshake_deadline =
      limits::kHandshakeDeadline;              ///< then closed, counted as garbage when the peer was silent
  Duration keep_alive = seconds(2);            ///< silence after which a ping is sent
  Duration idle_timeout = seconds(8);          ///< silence after which the peer counts as gone
  std::uint64_t records_per_key = 1ULL << 23;  ///< then the key moves on; part of the protocol, tests lower it
};

/// The handshake is over; requests flow. First event of a session that works.
struct Established {
  NodeId peer;
  crypto::Ed25519PublicKey peer_key{};
  std::uint16_t version = 0;
  std::uint64_t features = 0;
  crypto::AeadAlgorithm aead{};
  Bytes peer_transport_parameters;
  noise::Hash handshake_hash{};
};
/// The peer asks. Answer it once with Session::reply(), also when it was cancelled meanwhile.
struct RequestArrived {
  StreamId stream;
  StreamClass klass{};
  env::Request request;  ///< payload: at most one buffer
  Duration time_left;    ///< of the caller's deadline, as it was when the request left
};
/// One of our requests ended: answered, failed by the peer, cancelled, timed out, or lost with the connection. Exactly
/// one for each stream that request() returned.
struct ReplyArrived {
  StreamId stream;
  Result<env::Reply> result;
};
/// The peer no longer waits for this answer. reply() is still owed (its content is dropped).
struct RequestCancelled {
  StreamId stream;
};
/// The session is over. Last event, exactly one, after the ReplyArrived of every open request.
struct Closed {
  Error error;
  RefusalKind kind = RefusalKind::none;  ///< what to count, if the handshake failed
};
using Event = std::variant<Established, RequestArrived, ReplyArrived, RequestCancelled, Closed>;

/// For `holo status --links`: one class of one direction.
struct ClassStatus {
  std::uint64_t queued = 0;          ///< requests waiting for credit or their turn
  std::uint64_t in_flight = 0;       ///< our requests not yet answered, queued ones included
  std::uint64_t serving = 0;         ///< the peer's requests not yet answered
  std::uint64_t request_credit = 0;  ///< requests we may still start
  std::uint64_t byte_credit = 0;     ///< request bytes we may still send
};

/// A resource; not movable. Thread: one at a time, the loop's. How to drive it:
///   - bytes from the carrier: feed(); the carrier's end: broken();
///   - after any call below: next_event() until empty, then output() while the carrier has room, then rearm
///   next_timer();
///   - when finished() and nothing is left to write: close the carrier.
class Session {
 public:
  /// `expected`: for an initiator, the only node that may answer (0: any). `entropy` must outlive the session.
  Session(Role role, std::shared_ptr<const SessionConfig> config, env::Entropy& entropy, Instant now,
          NodeId expected = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Takes what the carrier received, in any portions. The span is not kept. Bytes after the end are ignored.
  void feed(Instant now, ByteSpan bytes);
  /// The carrier broke or was closed by the other side. Nothing more will be written.
  void broken(Instant now, Error error);

  /// Appends encrypted bytes for the carrier to `out`, in order: `max_bytes`, plus at most 72 KiB. What is asked for
  /// late is prioritised late, so ask only for what the carrier takes soon. The buffers stay valid while they are held,
  /// also after the session is gone; release them on the session's thread. Makes no events.
  void output(Instant now, std::size_t max_bytes, std::vector<Buffer>& out);
  /// True when output() would give something.
  [[nodiscard]] bool wants_output() const;
  /// The session is over, and the peer was told as far as it can be: once output() is drained, close the carrier.
  [[nodiscard]] bool finished() const;

  /// When on_timer() is next due; kNever when not. Cost: constant.
  [[nodiscard]] Instant next_timer() const;
  void on_timer(Instant now);

  [[nodiscard]] std::optional<Event> next_event();

  /// Sends a request; may be called before Established (it then waits). Its end is one ReplyArrived, at `deadline` at
  /// the latest. Errors, when nothing was sent and no event follows: `invalid_argument` (over limits::kMaxHeaderBytes
  /// or kMaxPayloadBytes), `overloaded` (limits::kMaxCallsPerPeer of its class, or kMaxQueuedBytes, are waiting),
  /// `deadline_exceeded` (already past), `unavailable` (the session is over).
  Result<StreamId> request(Instant now, StreamClass klass, env::Request request, Instant deadline);
  /// Ends one of our requests with ReplyArrived{`error`} and tells the peer. Unknown or ended streams are ignored.
  void cancel(StreamId stream, Error error);
  /// Answers a request of the peer, once. Content over the limits goes out as the error `over_limit`. Ignored when the
  /// session is over.
  void reply(StreamId stream, Result<env::Reply> result);

  /// Ends the session: open requests end with `error`, the peer is told its code and message. Idempotent.
  void close(Error error);

  [[nodiscard]] bool established() const;
  [[nodiscard]] NodeId peer() const;  ///< 0 before the handshake proved it
  [[nodiscard]] std::uint64_t bytes_in() const;
  [[nodiscard]] std::uint64_t bytes_out() const;
  /// Time from the last ping to its answer; 0 before the first.
  [[nodiscard]] Duration round_trip() const;
  /// Sends a ping now; round_trip() changes when it is answered.
  void ping(Instant now);
  [[nodiscard]] ClassStatus class_status(StreamClass klass) const;

  /// Request bytes that may wait in one class for credit; above: overloaded.
  static constexpr std::uint64_t kMaxQueuedBytes = 256 << 20;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holo::hyperbus
