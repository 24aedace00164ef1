// The memory service of a node: page frames, views of applications, transactions, fetching, replication, restart.
// Everything here runs on the loop thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/task.h"
#include "base/time.h"
#include "env/entropy.h"
#include "env/frames.h"
#include "env/loop.h"
#include "env/page_faults.h"
#include "env/transport.h"
#include "node/local_api.h"
#include "node/memory_control.h"

namespace holo::node {

struct MemoryConfig {
  std::uint64_t limit_bytes = 1ULL << 30;  ///< Page frames of every kind: slots, further versions, staged pages.
  std::string state_dir;                   ///< A clean stop leaves its pages under it; empty: they are not kept.
  Duration fetch_deadline = seconds(8);    ///< A fault that no node could answer by then fails its view.
  Duration stage_deadline = seconds(8);
  std::uint64_t move_rate = 0;  ///< Bytes a second that this node copies to others when shards move; 0: no limit.
};

/// Pages staged under a transaction, and who holds the staged bytes.
struct StagedSpan {
  PageSpan pages;
  std::vector<NodeId> holders;  ///< The home first.
};
struct RegionWrites {
  RegionId region;
  std::vector<StagedSpan> pages;
};
/// What one transaction writes. `bump_only`: regions that get a new version without a page.
struct TxnWrites {
  TxnId txn;
  std::vector<RegionWrites> regions;
  std::vector<RegionId> bump_only;
};

/// Keeps every version that a reader at `snapshot` needs, on all nodes, while it lives. Move only.
class SnapshotPin {
 public:
  SnapshotPin() = default;
  explicit SnapshotPin(std::function<void()> release) : release_(std::move(release)) {}
  SnapshotPin(SnapshotPin&& other) noexcept : release_(std::exchange(other.release_, {})) {}
  SnapshotPin& operator=(SnapshotPin&& other) noexcept {
    if (this != &other) {
      reset();
      release_ = std::exchange(other.release_, {});
    }
    return *this;
  }
  ~SnapshotPin() { reset(); }
  void reset() {
    if (auto release = std::exchange(release_, {})) release();
  }

 private:
  std::function<void()> release_;
};

struct MemoryCounters {
  std::uint64_t faults = 0;           ///< Page faults served.
  std::uint64_t pages_installed = 0;  ///< Slots mapped into a process, by faults and in bulk.
  std::uint64_t pages_copied = 0;     ///< Private copies given.
  std::uint64_t pages_fetched = 0;    ///< From other nodes.
  std::uint64_t bytes_fetched = 0;
  std::uint64_t pages_landed = 0;  ///< Of other nodes, fetched or sent, that went straight from the wire into a slot.
  std::uint64_t slots_copied = 0;  ///< Pages that went into a slot from a buffer, wherever they came from.
  std::uint64_t pages_served = 0;  ///< To other nodes.
  std::uint64_t pages_staged = 0;
  std::uint64_t pages_merged = 0;  ///< Staged pages that had to be merged with another writer's.
  std::uint64_t conflicts = 0;
  std::uint64_t corrupt_refused = 0;  ///< Page bytes that failed their checksum and were thrown away.
  std::uint64_t evicted = 0;
  std::uint64_t out_of_memory = 0;
  std::uint64_t fetch_failures = 0;
  std::uint64_t pages_moved = 0;   ///< Copied to nodes that take over shards, or copies of them.
  std::uint64_t shards_moved = 0;  ///< Shards of regions that were copied whole.
};

struct MemoryStatus {
  std::uint64_t limit_bytes = 0;
  std::uint64_t frames_used_bytes = 0;  ///< Everything below, together.
  std::uint64_t owned_bytes = 0;        ///< Home and backup pages.
  std::uint64_t cached_bytes = 0;       ///< Clean copies of pages that live elsewhere.
  std::uint64_t overflow_bytes = 0;     ///< Further versions, twins and staged pages of owned ones.
  std::uint64_t views = 0;
  MemoryCounters counters;
};

class MemoryService {
 public:
  struct Ports {
    env::Loop& loop;
    env::Transport& transport;
    env::FrameStore& frames;
    env::PageFaults& faults;
    env::Entropy& entropy;
    MemoryControl& control;
  };
  /// Registers its peer handlers with the transport and its observers with the control state. Cost: none.
  static std::unique_ptr<MemoryService> make(Ports ports, MemoryConfig config);
  virtual ~MemoryService() = default;

  /// Registers VIEW_*, WINDOW_*, READ, STAGE, COMMIT, ABORT, and what happens when a session ends.
  virtual void serve_local(LocalApi& api) = 0;

  /// Opens what a clean stop left behind. Damaged files are named in the log, and their pages are then absent here.
  virtual Task<Status> start() = 0;
  /// Ends views and transactions, and settles which committed pages are to be kept. After it the service answers
  /// nothing, and needs neither the other nodes nor the log.
  virtual Task<void> stop() = 0;
  /// After stop(): writes those pages to the state directory and marks the set complete. Cost: about a second for each
  /// GiB, on helper threads. Error: `io_error` (no set is left then).
  virtual Task<Status> keep_pages() = 0;

  // -- for compute

  /// A transaction coordinated by this node.
  virtual TxnId new_txn() = 0;

  /// Ends the writing of `txn` on this node: its closed windows become staged pages, everything it staged from here is
  /// returned, and every in-sync node of those pages holds them. The caller commits or aborts it. A txn that wrote
  /// nothing gives an empty list. Errors: `refused` (a window is still open), `under_replicated`, `deadline_exceeded`,
  /// `out_of_memory`, `write_conflict`; after an error the txn can only be aborted.
  virtual Task<Result<std::vector<RegionWrites>>> seal(TxnId txn, Instant deadline) = 0;

  /// Commits many transactions of this node with one log entry. The outer error means that nothing is known to be
  /// committed; the inner results are per transaction, in order. An inner `stale_epoch` is retryable: pages of it were
  /// staged on nodes that have since died; the txn is aborted, run its task again under a new one. Errors: `no_quorum`,
  /// `deadline_exceeded`, `unavailable`, `under_replicated`.
  virtual Task<Result<std::vector<Result<std::vector<RegionVersion>>>>> commit(std::vector<TxnWrites> txns,
                                                                               Instant deadline) = 0;

  /// Drops what these transactions staged, here and on every live node. Unknown ones are ignored.
  virtual void abort(std::vector<TxnId> txns) = 0;

  virtual SnapshotPin pin(RegionId region, Version snapshot) = 0;

  /// The newest version of the region applied here.
  virtual Version newest(RegionId region) = 0;
  /// Returns once `version` is applied here. Errors: `deadline_exceeded`, `not_found` (the region was freed).
  virtual Task<Status> wait_applied(RegionId region, Version version, Instant deadline) = 0;

  /// Reads [offset, offset + length) at `snapshot`; at most limits::kMaxPayloadBytes. Errors: as Read of the local
  /// protocol.
  virtual Task<Result<Bytes>> read(RegionId region, Version snapshot, std::uint64_t offset, std::uint64_t length,
                                   Instant deadline) = 0;

  // -- for control and status

  /// The lowest snapshot of each region that this node may still read: open views, pins, reads, and what it has
  /// applied.
  virtual std::vector<RegionVersion> lowest_snapshots() const = 0;
  virtual MemoryStatus status() const = 0;

  /// Whether this node may leave: no committed page has its only in-sync copy here. Otherwise `refused`, naming a
  /// region.
  virtual Status may_leave() const = 0;
  /// Gives the shards that are being filled from here their copies, until may_leave() or the deadline. The caller has
  /// marked this node as draining in the control state, which names the nodes to fill. Errors: `refused`,
  /// `deadline_exceeded`.
  virtual Task<Status> hand_over(Instant deadline) = 0;
};

}  // namespace holo::node
