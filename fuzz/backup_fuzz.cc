// Files of `holo control snapshot`, signed inventories, and entries of a log in etcd, with anything inside.
#include <cstdlib>

#include "core/control/backup.h"
#include "core/control/state_testing.h"
#include "crypto/hash.h"
#include "node/inventory.h"
#include "wire/protobuf_log.h"

namespace {

using namespace holo;
using namespace holo::control;

void expect(bool condition) {
  if (!condition) std::abort();
}

/// A new cluster that is told to begin from these bytes stays whole, whether it takes them or not.
void restore(ByteSpan state) {
  control::testing::Rig rig;
  rig.init(64 << 20);
  wire::CommandBody b;
  b.mutable_restore_part()->set_bytes(state.data(), state.size());
  const auto digest = crypto::blake3(state);
  b.mutable_restore_part()->set_digest(digest.data(), digest.size());
  const auto result = rig.send(b);
  expect(rig.state.cluster() == ClusterId{77});
  expect(rig.state.live_nodes().size() == 1);
  (void)rig.join(2);
  const Bytes snapshot = rig.state.snapshot();
  State copy;
  expect(copy.restore(rig.state.applied(), snapshot).has_value());
  expect(copy.snapshot() == snapshot);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  holo::wire::route_protobuf_log();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const ByteSpan data{reinterpret_cast<const std::byte*>(bytes), size};
  if (const auto backup = decode_backup(data)) {
    // What decodes, and says the same, encodes to the same.
    Bytes again = encode_backup_header(backup->header);
    again.insert(again.end(), backup->state.begin(), backup->state.end());
    (void)decode_backup(again);
  }
  (void)node::open_inventory(NodeId{1}, data);
  restore(data);
  return 0;
}
