#include "driver/quic/frames.h"

#include <algorithm>

namespace holo::driver::quic {
namespace {

constexpr std::size_t kConnectionIdLimit = 20;
constexpr std::size_t kResetTokenBytes = 16;
constexpr std::size_t kPathDataBytes = 8;

/// Takes numbers and lengths off a payload; after what is not there it is at its end, and not ok().
class Walk {
 public:
  explicit Walk(ByteSpan bytes) : rest_(bytes) {}
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool at_end() const { return rest_.empty(); }

  std::uint8_t byte() {
    if (rest_.empty()) return static_cast<std::uint8_t>(fail());
    const auto out = std::to_integer<std::uint8_t>(rest_.front());
    rest_ = rest_.subspan(1);
    return out;
  }
  /// RFC 9000, section 16.
  std::uint64_t number() {
    if (rest_.empty()) return fail();
    const auto first = std::to_integer<std::uint8_t>(rest_.front());
    const std::size_t bytes = std::size_t{1} << (first >> 6);
    if (rest_.size() < bytes) return fail();
    std::uint64_t out = first & 0x3f;
    for (std::size_t i = 1; i < bytes; ++i) out = out << 8 | std::to_integer<std::uint8_t>(rest_[i]);
    rest_ = rest_.subspan(bytes);
    return out;
  }
  void numbers(std::uint64_t count) {
    while (count-- > 0 && ok_) number();
  }
  void skip(std::uint64_t bytes) {
    if (bytes > rest_.size()) {
      fail();
    } else {
      rest_ = rest_.subspan(bytes);
    }
  }
  void skip_padding() {
    const auto end = std::ranges::find_if(rest_, [](std::byte b) { return b != std::byte{0}; });
    rest_ = rest_.subspan(static_cast<std::size_t>(end - rest_.begin()));
  }

 private:
  std::uint64_t fail() {
    ok_ = false;
    rest_ = {};
    return 0;
  }
  ByteSpan rest_;
  bool ok_ = true;
};

void skip_stream(Walk& walk, std::uint8_t type) {
  walk.numbers((type & 0x04) != 0 ? 2 : 1);              // id, offset
  if ((type & 0x02) == 0) return walk.skip(UINT64_MAX);  // Without a length it is the last.
  walk.skip(walk.number());
}

void skip_ack(Walk& walk, bool with_ecn) {
  walk.numbers(2);  // largest, delay
  const std::uint64_t ranges = walk.number();
  walk.number();
  for (std::uint64_t i = 0; i < ranges && walk.ok(); ++i) walk.numbers(2);
  if (with_ecn) walk.numbers(3);
}

void skip_close(Walk& walk, bool of_transport) {
  walk.numbers(of_transport ? 2 : 1);
  walk.skip(walk.number());
}

/// What follows a type of RFC 9000, section 19.
void skip_body(Walk& walk, std::uint8_t type) {
  switch (type) {
    case 0x00: return walk.skip_padding();
    case 0x01:
    case 0x1e: return;  // PING, HANDSHAKE_DONE
    case 0x02: return skip_ack(walk, false);
    case 0x03: return skip_ack(walk, true);
    case 0x04: return walk.numbers(3);           // RESET_STREAM
    case 0x06: walk.number(); [[fallthrough]];   // CRYPTO
    case 0x07: return walk.skip(walk.number());  // NEW_TOKEN
    case 0x10:
    case 0x12:
    case 0x13:
    case 0x14:
    case 0x16:
    case 0x17:
    case 0x19: return walk.numbers(1);  // MAX_DATA, MAX_STREAMS, DATA_BLOCKED, STREAMS_BLOCKED, RETIRE_...
    case 0x11:
    case 0x15: return walk.numbers(2);  // MAX_STREAM_DATA, STREAM_DATA_BLOCKED
    case 0x1a:
    case 0x1b: return walk.skip(kPathDataBytes);
    case 0x1c: return skip_close(walk, true);
    case 0x1d: return skip_close(walk, false);
    default: return walk.skip(UINT64_MAX);
  }
}

}  // namespace

void find_frames(ByteSpan payload, FoundFrames& out) {
  Walk walk(payload);
  while (!walk.at_end()) {
    const std::uint8_t type = walk.byte();  // All types of RFC 9000 have one byte.
    if (type == 0x05) {
      const std::uint64_t stream = walk.number();
      const std::uint64_t code = walk.number();
      if (walk.ok()) out.stops.push_back({static_cast<env::QuicStreamId>(stream), code});
    } else if (type == 0x18) {  // NEW_CONNECTION_ID
      walk.number();
      out.retires_ids |= walk.number() > 0;
      walk.skip(std::min<std::size_t>(walk.byte(), kConnectionIdLimit) + kResetTokenBytes);
    } else if (type >= 0x08 && type <= 0x0f) {
      skip_stream(walk, type);
    } else {
      skip_body(walk, type);
    }
  }
}

}  // namespace holo::driver::quic
