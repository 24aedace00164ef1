// The copies of one region's pages on this node: which versions are here, where, who has them mapped, what is staged;
// and every decision about them. Bytes live in slots (env::RegionFrames) or in overflow buffers.
//
// Invariants (checked in the tests against a sequential model):
// - A slot's bytes change only while no process has it mapped: punch comes first.
// - A committed version's bytes never change, wherever they lie; a reader at a snapshot sees the same bytes each time.
// - A transaction's pages become a version all together (apply) or not at all (abort).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "core/memory/history.h"
#include "core/memory/types.h"
#include "env/frames.h"

namespace holo::memory {

/// Which of a region's views have a slot mapped: one bit each, so at most kMaxViewBits at once. Views without a bit of
/// their own share the last one.
using ViewBits = std::uint64_t;
inline constexpr unsigned kMaxViewBits = 64;

/// How a page at a version is to be given to a reader.
struct Resolution {
  enum class Where : std::uint8_t {
    zero,   ///< Never written at that snapshot: the zero page.
    slot,   ///< The slot holds it.
    bytes,  ///< An overflow buffer holds it.
    fetch,  ///< Not here: fetch `version`, then put() and resolve again.
  };
  Where where = Where::zero;
  Version version;
  Buffer bytes;
};

/// One write to one page, as it arrives at the page's home.
struct StageWrite {
  TxnId txn;
  PageNo page;
  Version base;              ///< The snapshot that the writer stood on.
  std::uint64_t offset = 0;  ///< Within the page; a whole page: 0, with page_bytes of data.
  Buffer bytes;
};

class RegionPages {
 public:
  struct Shape {
    RegionId id;
    std::uint64_t page_bytes = 0;
    std::uint64_t pages = 0;
  };
  /// `owned`: whether this node is to hold a copy of a page (home, backup, or being filled). `frames` outlives this.
  RegionPages(Shape shape, env::RegionFrames& frames, std::function<bool(PageNo)> owned);

  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] PageHistory& history() { return history_; }
  [[nodiscard]] const PageHistory& history() const { return history_; }
  [[nodiscard]] const Usage& usage() const { return usage_; }

  // -- reading

  /// Where a reader at `snapshot` finds `page`. May move the newest version into the slot. Errors: `snapshot_too_old`,
  /// `out_of_memory`, `io_error`.
  Result<Resolution> resolve(PageNo page, Version snapshot);
  /// The views in `view` have the page's slot mapped from now on. Only after resolve() said slot.
  void mark_mapped(PageNo page, ViewBits view);
  /// Whether a view of `view` has had it mapped since the slot was last punched.
  [[nodiscard]] bool is_mapped(PageNo page, ViewBits view) const;
  /// A view is gone: its mappings too.
  void forget_view(ViewBits view);

  /// The bytes of a committed version; empty when it is not here. Version 0 is zeros. Valid until the next change.
  [[nodiscard]] ByteSpan content(PageNo page, Version version) const;
  [[nodiscard]] bool has(PageNo page, Version version) const;
  /// The whole page as `txn` staged it here; empty when it did not.
  [[nodiscard]] ByteSpan staged(const TxnId& txn, PageNo page) const;

  /// Keeps a verified copy of a committed version, if there is a good place: where it landed; the slot when it is free
  /// or holds something older that nobody here needs; an overflow buffer when the page is owned. False: not kept, use
  /// the bytes directly.
  Result<bool> put(PageNo page, Version version, const Buffer& bytes);

  // -- landings: slots that bytes from elsewhere come straight into

  /// Takes the page's slot for bytes that are still to come and to be verified; no reader is given it. It may hold a
  /// copy older than `version` of a page that lives elsewhere, which goes. Once the bytes are there, put(), stage() and
  /// stage_copy() of that page take them where they lie. Returns the landing's number; 0: the slot is not free.
  std::uint64_t begin_landing(PageNo page, Version version);
  /// Where the bytes of `count` pages, all of them landing, are to be written. Errors: as env::RegionFrames::prepare().
  Result<MutableByteSpan> landing_place(PageNo first, std::uint64_t count = 1);
  /// The bytes were not taken, and nobody writes any more. Nothing, when they were.
  void end_landing(PageNo page, std::uint64_t number);
  /// Whether `bytes` lie in the slot of `page`, where they landed.
  [[nodiscard]] bool landed(PageNo page, ByteSpan bytes) const;

  // -- write windows: slots that a process writes in place

  /// Opens the slot for `txn`, which stands on snapshot `base`; the process maps it through the view `own`. False: this
  /// page takes the private path. What the slot held of the newest version is kept as a twin. Errors: `io_error`.
  Result<bool> open_window(PageNo page, const TxnId& txn, Version base, ViewBits own);
  /// Whether opening it would need a twin (one page of extra memory).
  [[nodiscard]] bool window_needs_twin(PageNo page) const { return history_.newest(page) != Version{0}; }
  /// The process has unmapped the slot.
  void close_window(PageNo page);
  [[nodiscard]] bool window_open(PageNo page) const;
  /// Pages of `txn` whose windows are closed and not sealed yet.
  [[nodiscard]] std::vector<PageNo> closed_windows(const TxnId& txn) const;
  [[nodiscard]] bool has_open_window(const TxnId& txn) const;
  /// Checks a closed window like a staged write, and counts it as staged. Errors: `write_conflict`.
  Status seal_window(PageNo page);
  /// The bytes of a closed or sealed window. Valid until apply or abort.
  [[nodiscard]] ByteSpan window_bytes(PageNo page) const;

  // -- staging

  /// The versions whose bytes stage() or seal_window() of a write at `base` needs and that are not here.
  [[nodiscard]] Result<std::vector<Version>> missing_for_stage(PageNo page, Version base) const;

  /// Checks `write` against versions since its base and against other staged writes, then keeps the whole page as it
  /// would be after it. False: it changes nothing, and nothing is kept. The same write twice is as one.
  /// Errors: `write_conflict` (names page and byte), `snapshot_too_old`, `invalid_argument`.
  Result<bool> stage(const StageWrite& write);
  /// A whole page staged at its home, for keeping; `base`: the version its changes are relative to.
  void stage_copy(const TxnId& txn, PageNo page, Version base, Buffer bytes);
  /// The version that staged(txn, page) is relative to.
  [[nodiscard]] Version staged_base(const TxnId& txn, PageNo page) const;
  [[nodiscard]] std::vector<PageNo> staged_pages(const TxnId& txn) const;
  [[nodiscard]] std::vector<TxnId> staged_txns() const;

  // -- the log

  /// A commit entry: what `txn` staged here in `pages` becomes `version`; what else it staged is dropped. Returns owned
  /// pages whose new bytes are not here (to be fetched from another holder). Errors: none; a failing frame store makes
  /// its page one of those returned.
  std::vector<PageNo> apply(const TxnId& txn, Version version, const std::vector<PageSpan>& pages);
  /// Drops what `txn` staged here; its closed windows give their slots back, open ones once they close.
  void abort(const TxnId& txn);
  /// After the history was replaced: drops every committed version that it does not know.
  void resync();
  /// Frees the versions that no snapshot >= `floor` sees. Cost: the pages written by the commits that the floor passed.
  void raise_floor(Version floor);

  // -- room

  /// Drops up to `bytes` of clean copies of pages that live elsewhere, oldest unused first. Returns what was freed.
  std::uint64_t evict(std::uint64_t bytes);
  /// Asks `owned` again for every page here.
  void reclassify();

  /// Every committed version held here, in no order.
  void for_each_committed(const std::function<void(PageNo, Version)>& f) const;
  [[nodiscard]] std::uint64_t slots_filled() const { return slots_filled_; }
  /// How often a slot got the bytes of a page, ever: from the wire, or from a buffer.
  struct SlotFills {
    std::uint64_t landed = 0;
    std::uint64_t copied = 0;
  };
  [[nodiscard]] const SlotFills& slot_fills() const { return slot_fills_; }

 private:
  /// sealed: it holds what a transaction has staged, be it written in place or landed.
  enum class SlotState : std::uint8_t { empty, landing, version, window_open, window_closed, sealed };
  struct Overflow {
    Version version;
    Buffer bytes;
  };
  struct Staged {
    TxnId txn;
    Version base;  // of the page, not of the region
    Buffer bytes;
  };
  struct Entry {
    SlotState slot = SlotState::empty;
    bool owned = false;
    bool referenced = false;
    bool in_clock = false;
    bool orphan = false;  // window whose txn was aborted while the process could still write
    Version version;      // of the slot: what it holds, or the base of what is staged or written there
    TxnId txn;            // of what is staged or written there
    std::uint64_t landing = 0;
    ViewBits mapped = 0;
    std::vector<Overflow> overflow;
    std::vector<Staged> staged;
  };
  class Recount;  // keeps usage_ right around a change of one entry

  Entry& entry(PageNo page);
  const Entry* find(PageNo page) const;
  Entry* find(PageNo page);
  void erase_if_empty(PageNo page);
  [[nodiscard]] Usage usage_of(const Entry& e) const;
  [[nodiscard]] std::uint64_t offset_of(PageNo page) const { return page.value * shape_.page_bytes; }
  [[nodiscard]] ByteSpan slot_bytes(PageNo page) const { return frames_->mapped(offset_of(page), shape_.page_bytes); }

  Status clear_slot(PageNo page, Entry& e);
  Status fill_slot(PageNo page, Entry& e, Version version, ByteSpan bytes);
  Status promote(PageNo page, Entry& e, Version version);
  [[nodiscard]] static bool slot_replaceable(const Entry& e, Version by);
  void take_landed(Entry& e, SlotState state, Version version, const TxnId& txn);
  Status unseal(PageNo page, Entry& e);
  Status check_conflicts(PageNo page, const TxnId& txn, Version base, ByteSpan base_bytes, ByteSpan bytes,
                         Version up_to) const;
  void apply_page(const TxnId& txn, PageNo page, Version version, std::vector<PageNo>& missing);
  void prune(PageNo page);
  void to_clock(PageNo page, Entry& e);

  Shape shape_;
  env::RegionFrames* frames_;
  std::function<bool(PageNo)> owned_;
  PageHistory history_;
  Usage usage_;
  std::uint64_t slots_filled_ = 0;
  SlotFills slot_fills_;
  std::uint64_t last_landing_ = 0;
  std::unordered_map<std::uint64_t, Entry> entries_;
  std::unordered_map<TxnId, std::vector<PageNo>> txn_pages_;  // staged or windowed here; may name a page twice
  std::deque<PageNo> clock_;                                  // pages with a cached copy, next victim first
};

}  // namespace holo::memory
