// Entries of the log as values of etcd: what they carry, and back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace holo::driver::etcd {

/// etcd takes requests of 1.5 MiB by default; a value travels in base64 only between us and its gateway.
inline constexpr std::size_t kMaxValue = 512 << 10;

/// One entry. A command that does not fit a value lies in `chunks` values under Keys::chunk(chunk_at, chunk_id, i),
/// written before.
struct Entry {
  std::int64_t wall_ms = 0;     ///< The log's time, as far as its author knew it.
  std::vector<Bytes> commands;  ///< Empty when it is in chunks.
  std::uint64_t chunk_at = 0;   ///< An index at or below this entry's.
  std::uint64_t chunk_id = 0;
  std::uint32_t chunks = 0;
};

Bytes encode_entry(const Entry& entry);
/// Errors: `corrupt`.
Result<Entry> decode_entry(ByteSpan bytes);
/// Bytes that a command takes in an entry.
inline std::size_t entry_bytes(std::size_t command) { return command + 4; }

/// Where things lie, under one prefix.
class Keys {
 public:
  explicit Keys(const std::string& prefix) : root_("holo/" + prefix + "/") {}
  [[nodiscard]] std::string meta() const { return root_ + "meta/"; }
  [[nodiscard]] std::string head() const { return root_ + "meta/head"; }
  [[nodiscard]] std::string leader() const { return root_ + "meta/leader"; }
  [[nodiscard]] std::string snapshot() const { return root_ + "meta/snapshot"; }
  [[nodiscard]] std::string members() const { return root_ + "meta/member/"; }
  [[nodiscard]] std::string member(std::uint64_t node) const;
  [[nodiscard]] std::string entries() const { return root_ + "log/"; }
  [[nodiscard]] std::string entry(std::uint64_t index) const;
  [[nodiscard]] std::string chunks() const { return root_ + "chunk/"; }
  [[nodiscard]] std::string chunk(std::uint64_t index, std::uint64_t id, std::uint32_t part) const;
  [[nodiscard]] std::string snapshots() const { return root_ + "snap/"; }
  [[nodiscard]] std::string snapshot_part(std::uint64_t index, std::uint64_t id, std::uint32_t part) const;
  /// The end of the range of all keys that begin with `prefix`.
  static std::string after(std::string prefix);

 private:
  std::string root_;
};

}  // namespace holo::driver::etcd
