#include "wire/local_frame.h"

#include <algorithm>

#include "base/assert.h"
#include "base/utf8.h"
#include "wire/errors.h"
#include "wire/local.pb.h"

namespace holo::wire {
namespace {

constexpr std::uint16_t kKindMask = 0x0003;
constexpr std::uint16_t kFdsMask = 0x00F0;
constexpr int kFdsShift = 4;
constexpr std::size_t kMaxErrorText = 64 << 10;

template <class Int>
void put(MutableByteSpan out, std::size_t at, Int v) {
  for (std::size_t i = 0; i < sizeof(Int); ++i) out[at + i] = static_cast<std::byte>((v >> (8 * i)) & 0xFF);
}
template <class Int>
Int get(ByteSpan in, std::size_t at) {
  std::uint64_t v = 0;
  for (std::size_t i = 0; i < sizeof(Int); ++i) v |= std::to_integer<std::uint64_t>(in[at + i]) << (8 * i);
  return static_cast<Int>(v);
}

/// Protobuf strings are UTF-8; a message with a file name or a user's exception text in it need not be.
std::string sendable_text(std::string_view text) { return to_utf8(text.substr(0, kMaxErrorText)); }

}  // namespace

void encode_local_frame(const LocalFrame& frame, MutableByteSpan out) {
  HOLO_ASSERT(out.size() == kLocalFrameBytes);
  HOLO_ASSERT(frame.fds <= kMaxLocalFrameFds);
  put<std::uint16_t>(out, 0, frame.type);
  put<std::uint16_t>(out, 2, static_cast<std::uint16_t>(static_cast<unsigned>(frame.kind) | (frame.fds << kFdsShift)));
  put<std::uint32_t>(out, 4, frame.id);
  put<std::uint32_t>(out, 8, frame.header_bytes);
  put<std::uint32_t>(out, 12, frame.payload_bytes);
}

Result<LocalFrame> decode_local_frame(ByteSpan bytes) {
  if (bytes.size() != kLocalFrameBytes) return fail(Errc::malformed, "a local frame header of another length");
  const auto flags = get<std::uint16_t>(bytes, 2);
  if ((flags & ~(kKindMask | kFdsMask)) != 0) return fail(Errc::malformed, "a local frame with unknown flags");
  const LocalFrame frame{
      .type = get<std::uint16_t>(bytes, 0),
      .kind = static_cast<LocalKind>(flags & kKindMask),
      .fds = static_cast<std::uint8_t>((flags & kFdsMask) >> kFdsShift),
      .id = get<std::uint32_t>(bytes, 4),
      .header_bytes = get<std::uint32_t>(bytes, 8),
      .payload_bytes = get<std::uint32_t>(bytes, 12),
  };
  if (frame.fds > kMaxLocalFrameFds) return fail(Errc::malformed, "a local frame with too many descriptors");
  if (frame.header_bytes > limits::kMaxHeaderBytes)
    return fail(Errc::malformed, "a local frame with too long a header");
  if (frame.payload_bytes > limits::kMaxPayloadBytes)
    return fail(Errc::malformed, "a local frame with too long a payload");
  const bool answer = frame.kind == LocalKind::reply || frame.kind == LocalKind::error;
  if (answer && frame.type != 0) return fail(Errc::malformed, "a local answer with a type");
  if (frame.kind != LocalKind::error && (frame.kind == LocalKind::one_way) != (frame.id == 0)) {
    return fail(Errc::malformed, "a local frame whose id does not fit its kind");
  }
  if (frame.kind == LocalKind::error && (frame.payload_bytes != 0 || frame.fds != 0)) {
    return fail(Errc::malformed, "a local error frame with more than an error");
  }
  return frame;
}

std::string encode_local_error(const Error& error) {
  WireError out;
  put_error(error, out);
  out.set_message(sendable_text(error.message));
  out.set_hint(sendable_text(error.hint));
  return out.SerializeAsString();
}

Error decode_local_error(std::string_view header) {
  WireError in;
  if (!in.ParseFromArray(header.data(), static_cast<int>(header.size()))) {
    return Error{.code = Errc::internal, .message = "the other side sent an error that does not decode"};
  }
  return error_of(in);
}

}  // namespace holo::wire
