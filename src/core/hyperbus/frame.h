// What is said inside the records of a session over TCP: streams, cut into frames. All numbers are little-endian.
//
//   0  type      1 byte    unknown ones are skipped
//   1  flags     1 byte    unknown ones are ignored
//   2  reserved  2 bytes   0
//   4  length    4 bytes   of the body
//   8  stream    8 bytes   numbered as in QUIC (RFC 9000, section 2.1); 0 where there is none
//  16  body
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/result.h"

namespace holo::hyperbus {

/// Append only.
enum class FrameType : std::uint8_t {
  stream = 1,  ///< the stream's next bytes
  raw = 2,     ///< u32 n: the next record is the stream's next n bytes and nothing else. Last frame of its record.
  reset = 3,   ///< this side sends no more on the stream, and wants no more of it
  ping = 4,    ///< u64 token
  pong = 5,    ///< the token of a ping
  close = 6,   ///< u16 error code, then text
};

inline constexpr std::uint8_t kFlagFin = 1;  ///< stream and raw: the stream ends after these bytes

inline constexpr std::size_t kFrameHeaderBytes = 16;
inline constexpr std::size_t kMaxRecordPlain = 64 << 10;  ///< plain bytes of a record; above: malformed

struct Frame {
  FrameType type{};
  std::uint8_t flags = 0;
  std::uint64_t stream = 0;
  ByteSpan body;
};

/// Takes the first frame off `rest` (not empty). Errors: `malformed`.
Result<Frame> take_frame(ByteSpan& rest);
/// Writes a frame header to `out` (kFrameHeaderBytes).
void write_frame_header(std::byte* out, FrameType type, std::uint8_t flags, std::size_t length, std::uint64_t stream);

}  // namespace holo::hyperbus
