#include "core/hyperbus/message.h"

#include <algorithm>
#include <chrono>

#include "base/limits.h"
#include "core/hyperbus/wire_bytes.h"

namespace holo::hyperbus {
namespace {

constexpr std::size_t kMaxEncodedError = 16 + 2 * kMaxErrorText;
constexpr std::uint8_t kRetryable = 1, kRetryAfter = 2;
constexpr std::size_t kRetryAfterBytes = 4;  // Of the room for texts, so that who does not know it can take the rest.

std::unexpected<Error> bad(const char* why) { return fail(Errc::malformed, std::string("a message ") + why); }

std::string_view cut(const std::string& text, std::size_t most = kMaxErrorText) {
  return std::string_view(text).substr(0, most);
}

bool over_limits(std::uint32_t header_bytes, std::uint64_t payload_bytes) {
  return header_bytes > limits::kMaxHeaderBytes || payload_bytes > limits::kMaxPayloadBytes;
}

}  // namespace

void write_head(std::byte* out, const RequestHead& head) {
  store(out, head.type);
  store(out + 2, head.klass);
  store(out + 3, std::uint8_t{0});
  store(out + 4, head.header_bytes);
  store(out + 8, head.payload_bytes);
  store(out + 16, head.time_left_us);
}

void write_head(std::byte* out, const ReplyHead& head) {
  store(out, static_cast<std::uint32_t>(head.error ? 1 : 0));
  store(out + 4, head.header_bytes);
  store(out + 8, head.payload_bytes);
}

Result<RequestHead> read_request_head(ByteSpan bytes) {
  Reader reader(bytes);
  RequestHead head;
  head.type = reader.number<std::uint16_t>();
  head.klass = reader.number<std::uint8_t>();
  reader.number<std::uint8_t>();
  head.header_bytes = reader.number<std::uint32_t>();
  head.payload_bytes = reader.number<std::uint64_t>();
  head.time_left_us = reader.number<std::uint64_t>();
  if (!reader.ok()) return bad("is cut short");
  if (over_limits(head.header_bytes, head.payload_bytes)) return bad("announces too large a request");
  return head;
}

Result<ReplyHead> read_reply_head(ByteSpan bytes) {
  Reader reader(bytes);
  ReplyHead head;
  const auto status = reader.number<std::uint8_t>();
  reader.bytes(3);
  head.header_bytes = reader.number<std::uint32_t>();
  head.payload_bytes = reader.number<std::uint64_t>();
  if (!reader.ok()) return bad("is cut short");
  if (status > 1) return bad("has a status of no known kind");
  head.error = status == 1;
  if (over_limits(head.header_bytes, head.payload_bytes)) return bad("announces too large a reply");
  if (head.error && (head.header_bytes > kMaxEncodedError || head.payload_bytes > 0)) return bad("is no error");
  return head;
}

void encode_grant(std::uint8_t klass, const Grant& grant, Bytes& out) {
  put(out, static_cast<std::uint8_t>(ControlType::grant));
  put(out, klass);
  put(out, static_cast<std::uint16_t>(Grant::kBytes));
  put(out, grant.requests);
  put(out, grant.request_bytes);
  put(out, grant.reply_bytes);
}

Result<Grant> decode_grant(ByteSpan body) {
  Reader reader(body);
  Grant grant;
  grant.requests = reader.number<std::uint64_t>();
  grant.request_bytes = reader.number<std::uint64_t>();
  grant.reply_bytes = reader.number<std::uint64_t>();
  if (!reader.ok()) return bad("is cut short");
  return grant;
}

void encode_error(const Error& error, Bytes& out) {
  const std::string_view message = cut(error.message);
  const std::string_view hint = cut(error.hint, kMaxErrorText - (error.retry_after ? kRetryAfterBytes : 0));
  put(out, static_cast<std::uint16_t>(error.code));
  put(out, static_cast<std::uint8_t>((error.retryable ? kRetryable : 0) | (error.retry_after ? kRetryAfter : 0)));
  put(out, std::uint8_t{0});
  put(out, static_cast<std::uint16_t>(message.size()));
  put(out, static_cast<std::uint16_t>(hint.size()));
  put(out, error.node);
  put(out, as_bytes(message));
  put(out, as_bytes(hint));
  if (error.retry_after) {
    put(out, static_cast<std::uint32_t>(std::clamp<std::int64_t>(error.retry_after->count(), 0, UINT32_MAX)));
  }
}

Result<Error> decode_error(ByteSpan bytes) {
  Reader reader(bytes);
  Error error;
  error.code = static_cast<Errc>(reader.number<std::uint16_t>());
  const auto flags = reader.number<std::uint8_t>();
  error.retryable = (flags & kRetryable) != 0;
  reader.number<std::uint8_t>();
  const auto message = reader.number<std::uint16_t>();
  const auto hint = reader.number<std::uint16_t>();
  error.node = reader.number<std::uint64_t>();
  if (message > kMaxErrorText || hint > kMaxErrorText) return bad("carries too long an error");
  error.message = as_text(reader.bytes(message));
  error.hint = as_text(reader.bytes(hint));
  if ((flags & kRetryAfter) != 0) error.retry_after = std::chrono::milliseconds(reader.number<std::uint32_t>());
  if (!reader.ok()) return bad("is cut short");
  // A code of a later release means nothing here, but its text does.
  if (error.code < Errc::invalid_argument || error.code > Errc::internal) error.code = Errc::internal;
  return error;
}

}  // namespace holo::hyperbus
