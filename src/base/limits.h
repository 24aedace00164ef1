// Every limit of the system, named. Each comment says what happens when it is reached.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/time.h"

namespace holo::limits {

// Memory
inline constexpr std::uint64_t kMinPageBytes = 4 << 10;  // below: invalid_argument
inline constexpr std::uint64_t kMaxPageBytes = 2 << 20;  // above: invalid_argument
inline constexpr std::uint64_t kDefaultPageBytes = 64 << 10;
inline constexpr std::uint32_t kShards = 4096;
inline constexpr std::size_t kMovesPerNode = 64;     // shards that are on their way from, and to, one node; more wait
inline constexpr std::size_t kCutPathsPerNode = 64;  // nodes that one says it cannot reach; above: over_limit
inline constexpr std::uint32_t kMaxReplication = 3;  // above: invalid_argument
inline constexpr std::uint64_t kMaxRegionBytes = 1ULL << 46;  // above: over_limit
inline constexpr std::size_t kMaxRegions = 4096;              // above: over_limit
inline constexpr std::size_t kMaxRegionName = 128;            // above, or outside [A-Za-z0-9._/-]: invalid_argument
inline constexpr std::size_t kMaxViewsPerSession = 256;       // above: over_limit

// Wire
inline constexpr std::size_t kMaxHeaderBytes = 1 << 20;    // above: malformed, the connection is closed
inline constexpr std::size_t kMaxPayloadBytes = 16 << 20;  // above: malformed, the connection is closed
inline constexpr std::size_t kMaxLocalSessions = 1024;     // above: the new local connection is answered over_limit
inline constexpr std::size_t kMaxHalfOpen = 256;           // inbound handshakes at once; above: closed at once, counted
inline constexpr std::size_t kMaxStrangers = 64;           // connections of no members; above: the oldest is closed
inline constexpr std::uint64_t kMaxStrangerBytes = 64 << 20;  // of all their requests; above: who asks most is closed
inline constexpr Duration kHandshakeDeadline = seconds(5);    // then closed, counted
inline constexpr std::size_t kMaxCallsPerPeer = 4096;         // above: overloaded

// Control
inline constexpr std::size_t kMaxNodes = 1024;               // above: over_limit
inline constexpr std::size_t kMaxInventoryBytes = 16 << 10;  // of a node, signed; above: over_limit
inline constexpr std::size_t kMaxCommandBytes = 8 << 20;     // above: over_limit
inline constexpr std::size_t kMaxPendingCommands = 4096;     // above: overloaded

// The key-value service
inline constexpr std::size_t kMaxKvKeyBytes = 1024;         // above, or none: invalid_argument
inline constexpr std::size_t kMaxKvValueBytes = 512 << 10;  // above: over_limit
inline constexpr std::size_t kMaxKvTxnBytes =
    900'000;                                   // a transaction, or an answer's keys and values; above: over_limit
inline constexpr std::size_t kMaxKvOps = 128;  // of each kind in a transaction; above: over_limit
inline constexpr std::size_t kMaxKvDeletes = 10'000;      // keys that one deletion takes; above: over_limit
inline constexpr std::uint64_t kMaxKvBytes = 1ULL << 30;  // of all keys and values; above: over_limit, deleting goes on
inline constexpr std::uint64_t kMaxKvHistoryBytes =
    64 << 20;  // of what is no longer the newest; above: the oldest is compacted
inline constexpr std::size_t kMaxKvChanges = 100'000;  // that a watch can go back; above: the oldest are compacted
inline constexpr std::size_t kMaxKvWatches = 4096;     // that wait at one agent; above: overloaded
inline constexpr std::int64_t kMinLeaseMs = 1000;      // below: invalid_argument
inline constexpr std::int64_t kMaxLeaseMs = 24 * 3600 * 1000;  // above: invalid_argument
inline constexpr std::size_t kMaxLeases = 65536;               // above: over_limit
inline constexpr std::size_t kMaxLeaseOwner = 256;             // bytes of text; above: invalid_argument
inline constexpr std::size_t kMaxLocks = 65536;                // that are held; above: over_limit
inline constexpr std::size_t kMaxLockQueue = 4096;             // of one lock; above: overloaded

// Compute
inline constexpr std::size_t kMaxCaptureBytes = 4096;        // above: compile-time error
inline constexpr std::size_t kMaxTaskResultBytes = 8 << 20;  // above: task_failed
inline constexpr std::size_t kMaxTasksPerJob = 1 << 16;      // chunks grow so that it is never exceeded
inline constexpr std::size_t kMaxBinaryBytes = 512 << 20;    // above: over_limit

}  // namespace holo::limits
