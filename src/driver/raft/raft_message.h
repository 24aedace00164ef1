// libraft's messages as requests between nodes, and back. Bytes from peers are checked here.
#pragma once

extern "C" {  // The header does not say so itself.
#include <raft.h>
}

#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "env/transport.h"
#include "wire/raft.pb.h"

namespace holo::driver {

/// The address that libraft knows a server by: its node id in hexadecimal.
std::string raft_address(NodeId node);

/// One message, copied: libraft may free its own at once. Entries beyond kMaxMessageBytes are left out (libraft sends
/// them again when the receiver misses them). Of a snapshot: what goes before each part (see SnapshotPart).
inline constexpr std::size_t kMaxMessageBytes = 6 << 20;
inline constexpr std::uint64_t kMaxSnapshotBytes = 8ULL << 30;  // above: the snapshot is not taken over
env::Request encode_raft_message(const raft_message& message);

/// A part of a snapshot: `base` is what encode_raft_message gave.
env::Request encode_snapshot_part(const wire::RaftMessage& base, std::uint64_t offset, std::uint64_t total,
                                  Buffer part);
wire::RaftMessage snapshot_header(const raft_message& message);

/// Frees with raft_free what is still in `message` when it goes out of scope.
class ReceivedMessage {
 public:
  ReceivedMessage() = default;
  ReceivedMessage(ReceivedMessage&& other) noexcept;
  ReceivedMessage& operator=(ReceivedMessage&&) = delete;
  ~ReceivedMessage();
  /// Hands it to libraft, which owns its entries, configuration and snapshot from then on.
  raft_message* release();
  raft_message message{};

 private:
  bool owned_ = true;
};

/// Error: `malformed`.
Result<wire::RaftMessage> decode_raft_header(const env::Request& request);
/// Any message but a part of a snapshot. Error: `malformed`.
Result<ReceivedMessage> decode_raft_message(NodeId from, const wire::RaftMessage& header, const env::Request& request);
/// The bytes of a part, whose checksum is right. Error: `malformed`.
Result<Buffer> decode_snapshot_part(const wire::RaftMessage& header, const env::Request& request);
/// The message that the parts of a snapshot were; `handle` takes the place of its data.
Result<ReceivedMessage> decode_snapshot(NodeId from, const wire::RaftMessage& header, std::uint64_t handle);

}  // namespace holo::driver
