// What is said inside a session once it is encrypted: frames. All numbers are little-endian.
//
//   0  type      1 byte    unknown ones are skipped
//   1  flags     1 byte    unknown ones are ignored
//   2  class     1 byte    of a request, or of a credit; else 0
//   3  reserved  1 byte    0
//   4  length    4 bytes   of the body
//   8  stream    8 bytes   chosen by the side that sends the request; 0 where there is none
//  16  body
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/result.h"

namespace holo::hyperbus {

/// Append only.
enum class FrameType : std::uint8_t {
  request = 1,  ///< RequestHead, then the first content bytes. Content is the header, then the payload.
  reply = 2,    ///< ReplyHead, then the first content bytes; with kFlagError an encoded Error instead of both
  data = 3,     ///< more content bytes
  raw = 4,      ///< u32 n: the next record is n payload bytes and nothing else. Last frame of its record.
  cancel = 5,   ///< the requester no longer waits
  credit = 6,   ///< Credit: new limits of a class
  ping = 7,     ///< u64 token
  pong = 8,     ///< the token of a ping
  close = 9,    ///< u16 error code, then text
};

inline constexpr std::uint8_t kFlagReply = 1;  ///< data and raw: belongs to the reply, not to the request
inline constexpr std::uint8_t kFlagError = 2;  ///< reply: the request failed

inline constexpr std::size_t kFrameHeaderBytes = 16;
inline constexpr std::size_t kMaxRecordPlain = 64 << 10;  ///< plain bytes of a record; above: malformed
inline constexpr std::size_t kMaxErrorText = 4096;        ///< of a message or a hint; longer ones are cut when sent

struct Frame {
  FrameType type{};
  std::uint8_t flags = 0;
  std::uint8_t klass = 0;
  std::uint64_t stream = 0;
  ByteSpan body;
};

/// Takes the first frame off `rest` (not empty). Errors: `malformed`.
Result<Frame> take_frame(ByteSpan& rest);
/// Writes a frame header to `out` (kFrameHeaderBytes).
void write_frame_header(std::byte* out, FrameType type, std::uint8_t flags, std::uint8_t klass, std::size_t length,
                        std::uint64_t stream);

struct RequestHead {
  static constexpr std::size_t kBytes = 24;
  std::uint16_t type = 0;
  std::uint32_t header_bytes = 0;
  std::uint64_t payload_bytes = 0;
  std::uint64_t time_left_us = 0;
};
struct ReplyHead {
  static constexpr std::size_t kBytes = 16;
  std::uint32_t header_bytes = 0;
  std::uint64_t payload_bytes = 0;
};
/// Everything ever allowed in one class, so that a lost or repeated frame could do no harm.
struct Credit {
  static constexpr std::size_t kBytes = 24;
  std::uint64_t requests = 0;
  std::uint64_t request_bytes = 0;
  std::uint64_t reply_bytes = 0;
};

void write_head(std::byte* out, const RequestHead& head);
void write_head(std::byte* out, const ReplyHead& head);
void write_head(std::byte* out, const Credit& credit);
/// Each takes its bytes off the front of `body`. Errors: `malformed` (too short, or over limits::kMaxHeaderBytes or
/// kMaxPayloadBytes).
Result<RequestHead> take_request_head(ByteSpan& body);
Result<ReplyHead> take_reply_head(ByteSpan& body);
Result<Credit> take_credit(ByteSpan& body);

/// An error as it travels: code, node, retryable, message, hint.
void encode_error(const Error& error, Bytes& out);
/// Errors: `malformed`.
Result<Error> decode_error(ByteSpan bytes);

}  // namespace holo::hyperbus
