// The frames of an opened 1-RTT packet, as far as ngtcp2 does not tell of them.
#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "env/quic.h"

namespace holo::driver::quic {

/// The peer does not want what we send on this stream.
struct StopSending {
  env::QuicStreamId stream = -1;
  std::uint64_t code = 0;
  friend bool operator==(const StopSending&, const StopSending&) = default;
};

/// What was found in the packets opened last.
struct FoundFrames {
  std::vector<StopSending> stops;  ///< In order.
  /// A NEW_CONNECTION_ID demands that ids are retired, which no node does. ngtcp2 0.12 ends the process when such a
  /// frame comes twice.
  bool retires_ids = false;
};

/// Adds what is in a packet's payload to `out`. What is malformed, or of no kind of RFC
/// 9000's, ends the search: ngtcp2 ends the connection for it. Cost: a step for each frame, one for each byte of
/// padding; nothing is looked at but lengths.
void find_frames(ByteSpan payload, FoundFrames& out);

}  // namespace holo::driver::quic
