// What goes into a session and what comes out of it, whatever carries it.
#pragma once

#include <cstdint>
#include <variant>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/time.h"
#include "core/hyperbus/handshake.h"
#include "env/transport.h"
#include "obs/histogram.h"

namespace holo::hyperbus {

using env::StreamClass;
inline constexpr std::size_t kStreamClasses = 3;

/// Names a request within a session, for the side that sent it; ids of the two directions are unrelated.
using StreamId = Id<struct StreamTag>;

/// What one class may have under way towards us. A sender beyond it waits; one that does not wait is cut off. The
/// largest message must fit.
struct ClassWindow {
  std::uint32_t requests = 1024;           ///< not yet answered; at least 1
  std::uint64_t request_bytes = 64 << 20;  ///< header and payload bytes of those whose answer has not begun
  std::uint64_t reply_bytes = 64 << 20;    ///< of replies that are arriving
};

/// The handshake is over; requests flow. First event of a session that works.
struct Established {
  NodeId peer;
  crypto::Ed25519PublicKey peer_key{};
  std::uint16_t version = 0;
  std::uint64_t features = 0;
  crypto::AeadAlgorithm aead{};
  noise::Hash handshake_hash{};
};
/// The peer asks. Answer it once with Session::reply(), also when it was cancelled meanwhile.
struct RequestArrived {
  StreamId stream;
  StreamClass klass{};
  env::Request request;  ///< payload: at most one buffer, or those of its Landing
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
  std::uint64_t credit_waits = 0;    ///< requests that found no credit and had to wait
  std::uint64_t overloaded = 0;      ///< requests refused here because too many wait already
  std::uint64_t turned_away = 0;     ///< the peer's requests, answered `overloaded`
  std::uint64_t packets_lost = 0;    ///< with bytes of this class, declared lost and sent again; 0 over TCP
  obs::Summary credit_wait;          ///< how long those waited that were sent then
};

/// What a carrier knows about one link.
struct LinkFigures {
  std::uint64_t bytes_in = 0;  ///< on the wire, without UDP or TCP headers
  std::uint64_t bytes_out = 0;
  Duration round_trip;      ///< smoothed; 0: not measured yet
  Duration min_round_trip;  ///< the least seen; 0: not measured yet
  std::uint64_t packets_lost = 0;
  std::uint64_t packets_sent = 0;      ///< records over TCP
  std::uint64_t packets_received = 0;  ///< 0 over TCP
  std::uint64_t key_updates = 0;
  std::size_t datagram_bytes = 0;      ///< the path MTU found, as UDP payload; 0 over TCP
  bool ecn = false;                    ///< what this side sends is marked ECT(0), and the path lets that pass
  std::uint64_t congestion_marks = 0;  ///< datagrams that came marked "congestion experienced"
  std::size_t memory_bytes = 0;        ///< what the QUIC engine keeps for it; 0 over TCP
};

}  // namespace holo::hyperbus
