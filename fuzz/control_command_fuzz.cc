// The replicated state against arbitrary log entries and snapshots: whatever comes, it answers, and every copy agrees.
#include <algorithm>
#include <cstdlib>

#include "core/control/state.h"
#include "core/control/state_testing.h"
#include "wire/protobuf_log.h"

namespace {

using namespace holo;
using namespace holo::control;

void expect(bool condition) {
  if (!condition) std::abort();
}

/// Pieces of the input, each led by two bytes of length; the rest is the last piece.
std::vector<ByteSpan> pieces(ByteSpan data) {
  std::vector<ByteSpan> out;
  while (data.size() > 2) {
    const auto length = static_cast<std::size_t>(data[0]) | static_cast<std::size_t>(data[1]) << 8;
    data = data.subspan(2);
    const std::size_t n = std::min(length, data.size());
    out.push_back(data.first(n));
    data = data.subspan(n);
  }
  return out;
}

/// A command's body decides too much of itself: small numbers keep the state small and the fuzzer quick.
bool too_large(ByteSpan entry) {
  wire::Command c;
  if (!c.ParseFromArray(entry.data(), static_cast<int>(entry.size()))) return false;
  const auto& region = c.body().create_region().region();
  return region.count() > (1ULL << 32);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  holo::wire::route_protobuf_log();  // It would write a line for every string that is no text.
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const ByteSpan data{reinterpret_cast<const std::byte*>(bytes), size};
  State restored;
  (void)restored.restore(LogIndex{1}, data.first(std::min<std::size_t>(size, 4096)));

  control::testing::Rig rig;
  rig.cluster(3, 64 << 20);
  rig.create("xs", 1 << 20, 2);
  for (const ByteSpan piece : pieces(data)) {
    if (too_large(piece)) continue;
    rig.feed(Bytes(piece.begin(), piece.end()));
  }
  const Bytes snapshot = rig.state.snapshot();
  State copy;
  expect(copy.restore(rig.state.applied(), snapshot).has_value());
  expect(copy.snapshot() == snapshot);
  return 0;
}
