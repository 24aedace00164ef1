// Frames on an agent's local socket: a fixed header, the protobuf header, the payload. Both sides send requests.
//
//   0  u16 type            of a request or one-way message; 0 in replies and errors
//   2  u16 flags           bits 0-1 kind, bits 4-7 number of descriptors attached to the frame's first byte, others 0
//   4  u32 id              of the request, chosen by its sender, never 0; 0 in one-way frames, and in an error that
//                          concerns the connection (refused uid, too many sessions, malformed frame): it closes then
//   8  u32 header_bytes
//  12  u32 payload_bytes
// All little-endian. Descriptors: SCM_RIGHTS of unix(7), sent with the frame's first byte; the receiver takes them in
// order.
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/limits.h"
#include "base/result.h"

namespace holo::wire {

/// Spoken on the local socket (Hello.protocol); a process of another number is refused with `wrong_version`. Moves when
/// local.proto changes in a way that older processes would misread.
inline constexpr std::uint32_t kLocalProtocol = 1;

inline constexpr std::size_t kLocalFrameBytes = 16;
inline constexpr std::size_t kMaxLocalFrameFds = 8;

enum class LocalKind : std::uint8_t {
  request = 0,  ///< Wants one reply or error with the same id.
  reply = 1,
  error = 2,  ///< The header is a WireError; no payload, no descriptors, type 0.
  one_way = 3,
};

struct LocalFrame {
  std::uint16_t type = 0;
  LocalKind kind = LocalKind::request;
  std::uint8_t fds = 0;
  std::uint32_t id = 0;
  std::uint32_t header_bytes = 0;   ///< At most limits::kMaxHeaderBytes.
  std::uint32_t payload_bytes = 0;  ///< At most limits::kMaxPayloadBytes.
  friend bool operator==(const LocalFrame&, const LocalFrame&) = default;
};

/// Writes kLocalFrameBytes to `out`. The frame is one that decode_local_frame accepts.
void encode_local_frame(const LocalFrame& frame, MutableByteSpan out);
/// `bytes`: exactly kLocalFrameBytes. Errors: `malformed` (another length, unknown flag, a limit exceeded, an id where
/// none belongs or none where one does, an error with payload or descriptors).
Result<LocalFrame> decode_local_frame(ByteSpan bytes);

/// An error as the header of a LocalKind::error frame. Over-long texts are cut.
std::string encode_local_error(const Error& error);
/// Total: what does not decode becomes an `internal` error that says so.
Error decode_local_error(std::string_view header);

}  // namespace holo::wire
