// Frames and errors from a local process: whatever comes, one answer; what decodes, encodes to the same bytes.
#include <array>
#include <cstdlib>
#include <cstring>

#include "base/assert.h"
#include "wire/local_frame.h"
#include "wire/protobuf_log.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  holo::wire::route_protobuf_log();  // It would write a line for every string that is no text.
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const holo::ByteSpan bytes = std::as_bytes(std::span(data, size));
  (void)holo::wire::decode_local_frame(bytes);
  if (size >= holo::wire::kLocalFrameBytes) {
    const auto head = bytes.first(holo::wire::kLocalFrameBytes);
    if (const auto frame = holo::wire::decode_local_frame(head)) {
      std::array<std::byte, holo::wire::kLocalFrameBytes> again;
      holo::wire::encode_local_frame(*frame, again);
      HOLO_ASSERT(std::memcmp(again.data(), head.data(), again.size()) == 0);
    }
  }
  if (size > 32 << 10) return 0;  // Longer texts are cut when they are sent.
  const holo::Error error = holo::wire::decode_local_error(holo::as_text(bytes));
  HOLO_ASSERT(holo::wire::decode_local_error(holo::wire::encode_local_error(error)) == error);
  return 0;
}
