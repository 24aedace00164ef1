#include "core/hyperbus/frame.h"

#include <algorithm>

#include "base/limits.h"
#include "core/hyperbus/wire_bytes.h"

namespace holo::hyperbus {
namespace {

std::unexpected<Error> bad_frame(const char* why) { return fail(Errc::malformed, std::string("a frame ") + why); }

std::string_view cut(const std::string& text) { return std::string_view(text).substr(0, kMaxErrorText); }

}  // namespace

Result<Frame> take_frame(ByteSpan& rest) {
  Reader reader(rest);
  Frame frame;
  frame.type = static_cast<FrameType>(reader.number<std::uint8_t>());
  frame.flags = reader.number<std::uint8_t>();
  frame.klass = reader.number<std::uint8_t>();
  reader.number<std::uint8_t>();
  const auto length = reader.number<std::uint32_t>();
  frame.stream = reader.number<std::uint64_t>();
  frame.body = reader.bytes(length);
  if (!reader.ok()) return bad_frame("is cut short");
  rest = reader.rest();
  return frame;
}

void write_frame_header(std::byte* out, FrameType type, std::uint8_t flags, std::uint8_t klass, std::size_t length,
                        std::uint64_t stream) {
  out[0] = static_cast<std::byte>(type);
  out[1] = static_cast<std::byte>(flags);
  out[2] = static_cast<std::byte>(klass);
  out[3] = std::byte{0};
  store(out + 4, static_cast<std::uint32_t>(length));
  store(out + 8, stream);
}

void write_head(std::byte* out, const RequestHead& head) {
  store(out, head.type);
  store(out + 2, std::uint16_t{0});
  store(out + 4, head.header_bytes);
  store(out + 8, head.payload_bytes);
  store(out + 16, head.time_left_us);
}

void write_head(std::byte* out, const ReplyHead& head) {
  store(out, head.header_bytes);
  store(out + 4, std::uint32_t{0});
  store(out + 8, head.payload_bytes);
}

void write_head(std::byte* out, const Credit& credit) {
  store(out, credit.requests);
  store(out + 8, credit.request_bytes);
  store(out + 16, credit.reply_bytes);
}

Result<RequestHead> take_request_head(ByteSpan& body) {
  Reader reader(body);
  RequestHead head;
  head.type = reader.number<std::uint16_t>();
  reader.number<std::uint16_t>();
  head.header_bytes = reader.number<std::uint32_t>();
  head.payload_bytes = reader.number<std::uint64_t>();
  head.time_left_us = reader.number<std::uint64_t>();
  if (!reader.ok()) return bad_frame("is cut short");
  if (head.header_bytes > limits::kMaxHeaderBytes || head.payload_bytes > limits::kMaxPayloadBytes) {
    return bad_frame("announces too large a request");
  }
  body = reader.rest();
  return head;
}

Result<ReplyHead> take_reply_head(ByteSpan& body) {
  Reader reader(body);
  ReplyHead head;
  head.header_bytes = reader.number<std::uint32_t>();
  reader.number<std::uint32_t>();
  head.payload_bytes = reader.number<std::uint64_t>();
  if (!reader.ok()) return bad_frame("is cut short");
  if (head.header_bytes > limits::kMaxHeaderBytes || head.payload_bytes > limits::kMaxPayloadBytes) {
    return bad_frame("announces too large a reply");
  }
  body = reader.rest();
  return head;
}

Result<Credit> take_credit(ByteSpan& body) {
  Reader reader(body);
  Credit credit;
  credit.requests = reader.number<std::uint64_t>();
  credit.request_bytes = reader.number<std::uint64_t>();
  credit.reply_bytes = reader.number<std::uint64_t>();
  if (!reader.ok()) return bad_frame("is cut short");
  body = reader.rest();
  return credit;
}

void encode_error(const Error& error, Bytes& out) {
  const std::string_view message = cut(error.message);
  const std::string_view hint = cut(error.hint);
  put(out, static_cast<std::uint16_t>(error.code));
  put(out, static_cast<std::uint8_t>(error.retryable ? 1 : 0));
  put(out, std::uint8_t{0});
  put(out, static_cast<std::uint16_t>(message.size()));
  put(out, static_cast<std::uint16_t>(hint.size()));
  put(out, error.node);
  put(out, as_bytes(message));
  put(out, as_bytes(hint));
}

Result<Error> decode_error(ByteSpan bytes) {
  Reader reader(bytes);
  Error error;
  error.code = static_cast<Errc>(reader.number<std::uint16_t>());
  error.retryable = (reader.number<std::uint8_t>() & 1) != 0;
  reader.number<std::uint8_t>();
  const auto message = reader.number<std::uint16_t>();
  const auto hint = reader.number<std::uint16_t>();
  error.node = reader.number<std::uint64_t>();
  if (message > kMaxErrorText || hint > kMaxErrorText) return bad_frame("carries too long an error");
  error.message = as_text(reader.bytes(message));
  error.hint = as_text(reader.bytes(hint));
  if (!reader.ok()) return bad_frame("is cut short");
  // A code of a later release means nothing here, but its text does.
  if (error.code < Errc::invalid_argument || error.code > Errc::internal) error.code = Errc::internal;
  return error;
}

}  // namespace holo::hyperbus
