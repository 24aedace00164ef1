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
/// them again when the receiver misses them); a snapshot is cut into parts of that size.
inline constexpr std::size_t kMaxMessageBytes = 6 << 20;
inline constexpr std::size_t kMaxSnapshotBytes = 512 << 20;  // above: the snapshot is not taken over
std::vector<env::Request> encode_raft_message(const raft_message& message);

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

/// Puts the parts of one snapshot together. One at a time: a new one replaces an unfinished one.
class SnapshotAssembly {
 public:
  /// The whole, once the last part is in; nullopt before. Error: `malformed`.
  Result<std::optional<Bytes>> add(NodeId from, const wire::RaftMessage& header, ByteSpan part);

 private:
  NodeId from_;
  std::uint64_t index_ = 0;
  std::uint64_t total_ = 0;
  Bytes bytes_;
};

/// nullopt: a part of a snapshot that is not whole yet. Error: `malformed`.
Result<std::optional<ReceivedMessage>> decode_raft_message(NodeId from, const env::Request& request,
                                                           SnapshotAssembly& parts);

}  // namespace holo::driver
