// A copy of the whole control state as a file: who made it, of what, as of which entry, and a checksum over all of it.
//
//   "HOLOCTRL" | format u32 LE | header bytes u32 LE | wire::BackupHeader | BLAKE3 of all before | the state
#pragma once

#include "base/bytes.h"
#include "base/result.h"
#include "wire/admin.pb.h"

namespace holo::control {

class State;

inline constexpr std::size_t kMaxBackupHeader = 4096;
inline constexpr std::uint64_t kMaxBackupState = INT32_MAX;  ///< What a ControlSnapshot may have.

/// What the head of a file says of `state`, whose bytes (State::snapshot()) are `bytes`. Cost: a hash of them.
wire::BackupHeader describe_backup(const State& state, ByteSpan bytes);
/// Everything before the state.
Bytes encode_backup_header(const wire::BackupHeader& header);

struct Backup {
  wire::BackupHeader header;
  ByteSpan state;  ///< Inside the bytes that were decoded.
};
/// Checks everything down to the last byte. Errors: `corrupt`, saying what is wrong: no such file, cut short, altered;
/// `unsupported`: written by a later version.
Result<Backup> decode_backup(ByteSpan file);

}  // namespace holo::control
