// libraft's messages from a peer: whatever comes decodes to something whole, or to an error, and nothing is lost or
// freed twice.
#include <algorithm>

#include "driver/raft/raft_message.h"
#include "wire/protobuf_log.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  holo::wire::route_protobuf_log();  // It would write a line for every string that is no text.
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using namespace holo;
  if (size < 2) return 0;
  const ByteSpan data{reinterpret_cast<const std::byte*>(bytes), size};
  const std::size_t header = std::min<std::size_t>(size - 1, static_cast<std::size_t>(data[0]) * 4);
  env::Request request;
  request.header = std::string(as_text(data.subspan(1, header)));
  request.payload.push_back(Buffer::copy(data.subspan(1 + header)));
  const auto said = driver::decode_raft_header(request);
  if (!said) return 0;
  (void)driver::decode_raft_message(NodeId{7}, *said, request);
  (void)driver::decode_snapshot_part(*said, request);
  (void)driver::decode_snapshot(NodeId{7}, *said, 1);
  return 0;
}
