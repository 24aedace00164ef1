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

/// Appends the STOP_SENDING frames of a packet's payload to `out`, in order. What is malformed, or of no kind of RFC
/// 9000's, ends the search: ngtcp2 ends the connection for it. Cost: a step for each frame, one for each byte of
/// padding; nothing is looked at but lengths.
void find_stop_sending(ByteSpan payload, std::vector<StopSending>& out);

}  // namespace holo::driver::quic
