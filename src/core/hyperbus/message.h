// What is said on streams: a request is a head and its content, a reply likewise. All numbers are little-endian.
//
//   request   type u16, class u8, reserved u8, header bytes u32, payload bytes u64, time left in us u64; header;
//   payload reply     status u8 (0: fine, 1: an error), reserved u8 x 3, header bytes u32, payload bytes u64; header;
//   payload
//             (of an error the header is the encoded Error, and there is no payload)
//   control   a stream of each side's own: kind u8 (1), then messages: type u8, class u8, length u16, body
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/result.h"

namespace holo::hyperbus {

inline constexpr std::size_t kMaxErrorText = 4096;  // of a message or a hint; longer ones are cut when sent

struct RequestHead {
  static constexpr std::size_t kBytes = 24;
  std::uint16_t type = 0;
  std::uint8_t klass = 0;
  std::uint32_t header_bytes = 0;
  std::uint64_t payload_bytes = 0;
  std::uint64_t time_left_us = 0;
};
struct ReplyHead {
  static constexpr std::size_t kBytes = 16;
  bool error = false;
  std::uint32_t header_bytes = 0;
  std::uint64_t payload_bytes = 0;
};
void write_head(std::byte* out, const RequestHead& head);
void write_head(std::byte* out, const ReplyHead& head);
/// `bytes`: kBytes of the head. Errors: `malformed` (over limits::kMaxHeaderBytes or kMaxPayloadBytes, an impossible
/// status or error).
Result<RequestHead> read_request_head(ByteSpan bytes);
Result<ReplyHead> read_reply_head(ByteSpan bytes);

inline constexpr std::uint8_t kControlStream = 1;
/// Append only; unknown ones are skipped.
enum class ControlType : std::uint8_t { grant = 1 };
inline constexpr std::size_t kControlHeadBytes = 4;

/// What one class may have under way towards the side that says this. Later ones replace it.
struct Grant {
  static constexpr std::size_t kBytes = 24;
  std::uint64_t requests = 0;       ///< not yet answered
  std::uint64_t request_bytes = 0;  ///< of requests whose answer has not begun
  std::uint64_t reply_bytes = 0;    ///< of replies that have not arrived whole
  friend bool operator==(const Grant&, const Grant&) = default;
};
/// Control head and body.
void encode_grant(std::uint8_t klass, const Grant& grant, Bytes& out);
/// Later releases may append. Errors: `malformed`.
Result<Grant> decode_grant(ByteSpan body);

/// An error as it travels: code, node, retryable, message, hint.
void encode_error(const Error& error, Bytes& out);
/// Errors: `malformed`.
Result<Error> decode_error(ByteSpan bytes);

}  // namespace holo::hyperbus
