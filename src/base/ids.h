// Ids and units are types: two of them cannot be mixed up by accident.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <string>

namespace holo {

/// A strong integer. `Tag` makes each id its own type; `.value` is the number on the wire.
template <class Tag, class Int = std::uint64_t>
struct Id {
  Int value = 0;
  constexpr Id() = default;
  constexpr explicit Id(Int v) : value(v) {}
  friend constexpr auto operator<=>(Id, Id) = default;
  [[nodiscard]] constexpr explicit operator bool() const { return value != 0; }
};

using NodeId =
    Id<struct NodeTag>;  ///< First 64 bits of BLAKE3 of the node's first Ed25519 key; also its Raft id. 0: none.
using ClusterId = Id<struct ClusterTag>;             ///< Random, drawn by `holo init`.
using RegionId = Id<struct RegionTag>;               ///< Dense, never reused within a cluster. 0: none.
using PageNo = Id<struct PageTag>;                   ///< Index of a page within its region.
using ShardNo = Id<struct ShardTag, std::uint16_t>;  ///< 0 .. kShards-1.
using Epoch = Id<struct EpochTag>;                   ///< Moves whenever a node joins, leaves or is declared dead.
using Version = Id<struct VersionTag>;               ///< A region's commit count. 0: as allocated, all zero bytes.
using LogIndex = Id<struct LogIndexTag>;             ///< Position in the replicated command log.
using ViewId = Id<struct ViewTag>;                   ///< One mapping of a region by one process; unique per agent run.
using SessionId = Id<struct SessionTag>;  ///< One connection of a local process to its agent; unique per agent run.
using JobId = Id<struct JobTag>;          ///< Unique in the cluster: node id mixed with a local counter.

/// Names a set of writes that commit together, once. `node` coordinates it; `sequence` grows per incarnation of that
/// node.
struct TxnId {
  NodeId node;
  std::uint64_t incarnation = 0;
  std::uint64_t sequence = 0;
  friend constexpr auto operator<=>(const TxnId&, const TxnId&) = default;
};

/// 16 lower-case hexadecimal digits.
std::string to_hex(std::uint64_t v);

}  // namespace holo

template <class Tag, class Int>
struct std::hash<holo::Id<Tag, Int>> {
  std::size_t operator()(holo::Id<Tag, Int> id) const noexcept { return std::hash<Int>{}(id.value); }
};
template <>
struct std::hash<holo::TxnId> {
  std::size_t operator()(const holo::TxnId& t) const noexcept {
    return (t.node.value * 0x9E3779B97F4A7C15ULL) ^ (t.incarnation * 0xC2B2AE3D27D4EB4FULL) ^ t.sequence;
  }
};
