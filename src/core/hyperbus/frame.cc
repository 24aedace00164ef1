#include "core/hyperbus/frame.h"

#include "core/hyperbus/wire_bytes.h"

namespace holo::hyperbus {

Result<Frame> take_frame(ByteSpan& rest) {
  Reader reader(rest);
  Frame frame;
  frame.type = static_cast<FrameType>(reader.number<std::uint8_t>());
  frame.flags = reader.number<std::uint8_t>();
  reader.number<std::uint16_t>();
  const auto length = reader.number<std::uint32_t>();
  frame.stream = reader.number<std::uint64_t>();
  frame.body = reader.bytes(length);
  if (!reader.ok()) return fail(Errc::malformed, "a frame is cut short");
  rest = reader.rest();
  return frame;
}

void write_frame_header(std::byte* out, FrameType type, std::uint8_t flags, std::size_t length, std::uint64_t stream) {
  out[0] = static_cast<std::byte>(type);
  out[1] = static_cast<std::byte>(flags);
  store(out + 2, std::uint16_t{0});
  store(out + 4, static_cast<std::uint32_t>(length));
  store(out + 8, stream);
}

}  // namespace holo::hyperbus
