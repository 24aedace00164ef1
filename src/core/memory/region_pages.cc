#include "core/memory/region_pages.h"

#include <algorithm>

#include "base/strings.h"
#include "core/memory/merge.h"

namespace holo::memory {

/// Takes an entry's share out of the usage while it changes, and puts the new one back.
class RegionPages::Recount {
 public:
  Recount(RegionPages& pages, const Entry& e) : pages_(pages), entry_(e) { pages_.usage_ -= pages_.usage_of(entry_); }
  ~Recount() { pages_.usage_ += pages_.usage_of(entry_); }
  Recount(const Recount&) = delete;
  Recount& operator=(const Recount&) = delete;

 private:
  RegionPages& pages_;
  const Entry& entry_;
};

RegionPages::RegionPages(Shape shape, env::RegionFrames& frames, std::function<bool(PageNo)> owned)
    : shape_(shape), frames_(&frames), owned_(std::move(owned)) {}

RegionPages::Entry& RegionPages::entry(PageNo page) {
  HOLO_ASSERT(page.value < shape_.pages, "page outside its region");
  auto [it, fresh] = entries_.try_emplace(page.value);
  if (fresh) it->second.owned = owned_(page);
  return it->second;
}

const RegionPages::Entry* RegionPages::find(PageNo page) const {
  auto it = entries_.find(page.value);
  return it == entries_.end() ? nullptr : &it->second;
}
RegionPages::Entry* RegionPages::find(PageNo page) {
  auto it = entries_.find(page.value);
  return it == entries_.end() ? nullptr : &it->second;
}

void RegionPages::erase_if_empty(PageNo page) {
  auto it = entries_.find(page.value);
  if (it == entries_.end()) return;
  const Entry& e = it->second;
  if (e.slot == SlotState::empty && e.overflow.empty() && e.staged.empty() && !e.in_clock) entries_.erase(it);
}

Usage RegionPages::usage_of(const Entry& e) const {
  const std::uint64_t copies = (e.slot != SlotState::empty ? 1 : 0) + e.overflow.size() + e.staged.size();
  Usage u;
  if (!e.owned) {
    u.cached = copies * shape_.page_bytes;
  } else if (copies > 0) {
    u.owned = shape_.page_bytes;
    u.extra = (copies - 1) * shape_.page_bytes;
  }
  return u;
}

// ---- slots

Status RegionPages::clear_slot(PageNo page, Entry& e) {
  if (e.slot == SlotState::empty) return {};
  HOLO_TRY(frames_->punch(offset_of(page), shape_.page_bytes));
  e.slot = SlotState::empty;
  e.mapped = 0;
  e.txn = {};
  e.orphan = false;
  --slots_filled_;
  return {};
}

Status RegionPages::fill_slot(PageNo page, Entry& e, Version version, ByteSpan bytes) {
  // Whoever has the old bytes mapped must fault again, or a reader at an old snapshot would see the new bytes.
  if (e.mapped != 0) HOLO_TRY(clear_slot(page, e));
  if (auto written = frames_->write(offset_of(page), bytes); !written) {
    Status cleared = frames_->punch(offset_of(page), shape_.page_bytes);  // Half-written bytes must never be served.
    if (e.slot != SlotState::empty && cleared) {
      e.slot = SlotState::empty;
      --slots_filled_;
    }
    return written;
  }
  if (e.slot == SlotState::empty) ++slots_filled_;
  ++slot_fills_.copied;
  e.slot = SlotState::version;
  e.version = version;
  e.txn = {};
  e.orphan = false;
  e.referenced = true;  // What was read ahead is to live until it is needed: as long as the rest.
  to_clock(page, e);
  return {};
}

/// Whether the slot's place may be given to `by`, as far as its state goes.
bool RegionPages::slot_replaceable(const Entry& e, Version by) {
  return e.slot == SlotState::empty || (e.slot == SlotState::version && e.version < by);
}

/// Moves the overflow copy of `version` into the slot; what was there goes to overflow while somebody may read it.
Status RegionPages::promote(PageNo page, Entry& e, Version version) {
  auto at = std::find_if(e.overflow.begin(), e.overflow.end(), [&](const Overflow& o) { return o.version == version; });
  HOLO_ASSERT(at != e.overflow.end());
  const Buffer bytes = at->bytes;
  if (e.slot == SlotState::version && e.owned && !history_.dead(page, e.version)) {
    e.overflow.push_back({e.version, Buffer::copy(slot_bytes(page))});
  }
  HOLO_TRY(fill_slot(page, e, version, bytes.span()));
  std::erase_if(e.overflow, [&](const Overflow& o) { return o.version == version; });
  return {};
}

void RegionPages::to_clock(PageNo page, Entry& e) {
  if (e.owned || e.in_clock) return;
  e.in_clock = true;
  clock_.push_back(page);
}

// ---- reading

Result<Resolution> RegionPages::resolve(PageNo page, Version snapshot) {
  HOLO_ASSIGN(version, history_.version_at(page, snapshot));
  if (version == Version{0}) return Resolution{};
  Entry* e = find(page);
  if (e == nullptr) return Resolution{.where = Resolution::Where::fetch, .version = version, .bytes = {}};
  e->referenced = true;
  if (e->slot == SlotState::version && e->version == version) {
    return Resolution{.where = Resolution::Where::slot, .version = version, .bytes = {}};
  }
  auto at =
      std::find_if(e->overflow.begin(), e->overflow.end(), [&](const Overflow& o) { return o.version == version; });
  if (at == e->overflow.end()) return Resolution{.where = Resolution::Where::fetch, .version = version, .bytes = {}};
  if (version != history_.newest(page) || !slot_replaceable(*e, version)) {
    return Resolution{.where = Resolution::Where::bytes, .version = version, .bytes = at->bytes};
  }
  // The newest version is what most readers want, now and next: it deserves the place that all can share.
  const Recount recount(*this, *e);
  HOLO_TRY(promote(page, *e, version));
  return Resolution{.where = Resolution::Where::slot, .version = version, .bytes = {}};
}

void RegionPages::mark_mapped(PageNo page, ViewBits view) {
  Entry* e = find(page);
  HOLO_ASSERT(e != nullptr && e->slot == SlotState::version);
  e->mapped |= view;
}

bool RegionPages::is_mapped(PageNo page, ViewBits view) const {
  const Entry* e = find(page);
  return e != nullptr && e->slot == SlotState::version && (e->mapped & view) != 0;
}

void RegionPages::forget_view(ViewBits view) {
  for (auto& [page, e] : entries_) e.mapped &= ~view;
}

ByteSpan RegionPages::content(PageNo page, Version version) const {
  if (version == Version{0}) return zero_bytes(shape_.page_bytes);
  const Entry* e = find(page);
  if (e == nullptr) return {};
  if (e->slot == SlotState::version && e->version == version) return slot_bytes(page);
  for (const Overflow& o : e->overflow) {
    if (o.version == version) return o.bytes.span();
  }
  return {};
}

bool RegionPages::has(PageNo page, Version version) const { return !content(page, version).empty(); }

ByteSpan RegionPages::staged(const TxnId& txn, PageNo page) const {
  const Entry* e = find(page);
  if (e == nullptr) return {};
  if ((e->slot == SlotState::window_closed || e->slot == SlotState::sealed) && e->txn == txn) return slot_bytes(page);
  for (const Staged& s : e->staged) {
    if (s.txn == txn) return s.bytes.span();
  }
  return {};
}

Result<bool> RegionPages::put(PageNo page, Version version, const Buffer& bytes) {
  HOLO_ASSERT(bytes.size() == shape_.page_bytes);
  if (has(page, version)) return true;
  if (history_.dead(page, version)) return false;  // Nobody may read it any more.
  Entry& e = entry(page);
  const Recount recount(*this, e);
  if (landed(page, bytes.span())) {
    take_landed(e, SlotState::version, version, {});
    e.referenced = true;
    to_clock(page, e);
    return true;
  }
  const bool needed = e.slot == SlotState::version && e.owned && !history_.dead(page, e.version);
  if (slot_replaceable(e, version) && !needed) {
    HOLO_TRY(fill_slot(page, e, version, bytes.span()));
    return true;
  }
  if (!e.owned) return false;
  e.overflow.push_back({version, bytes.is_part() ? Buffer::copy(bytes.span()) : bytes});
  return true;
}

// ---- landings

std::uint64_t RegionPages::begin_landing(PageNo page, Version version) {
  Entry& e = entry(page);
  const bool replaces = !e.owned && e.slot == SlotState::version && e.version < version;
  if (e.slot != SlotState::empty && !replaces) return 0;
  const Recount recount(*this, e);
  if (e.mapped != 0 && !clear_slot(page, e)) return 0;
  if (e.slot == SlotState::empty) ++slots_filled_;
  e.slot = SlotState::landing;
  return e.landing = ++last_landing_;
}

Result<MutableByteSpan> RegionPages::landing_place(PageNo first, std::uint64_t count) {
  return frames_->prepare(offset_of(first), count * shape_.page_bytes);
}

void RegionPages::end_landing(PageNo page, std::uint64_t number) {
  Entry* e = find(page);
  if (e == nullptr || e->slot != SlotState::landing || e->landing != number) return;
  {
    const Recount recount(*this, *e);
    (void)clear_slot(page, *e);
  }
  erase_if_empty(page);
}

bool RegionPages::landed(PageNo page, ByteSpan bytes) const {
  const Entry* e = find(page);
  return e != nullptr && e->slot == SlotState::landing && bytes.data() == slot_bytes(page).data();
}

void RegionPages::take_landed(Entry& e, SlotState state, Version version, const TxnId& txn) {
  e.slot = state;
  e.version = version;
  e.txn = txn;
  ++slot_fills_.landed;
}

// ---- windows

Result<bool> RegionPages::open_window(PageNo page, const TxnId& txn, Version base, ViewBits own) {
  auto version = history_.version_at(page, base);
  if (!version || *version != history_.newest(page))
    return false;  // Somebody committed since: merge, on the private path.
  if (!has(page, *version) || !owned_(page)) return false;
  Entry& e = entry(page);
  const bool free = e.slot == SlotState::empty || (e.slot == SlotState::version && *version != Version{0});
  if (!e.owned || !e.staged.empty() || !free) {
    erase_if_empty(page);
    return false;
  }
  const Recount recount(*this, e);
  if (*version == Version{0}) {
    ++slots_filled_;
  } else if (e.slot == SlotState::version && e.version == *version) {
    Buffer twin = Buffer::copy(slot_bytes(page));
    if ((e.mapped & ~own) != 0) {
      // Other readers of this version must not see the writes: they fault again, and get the twin.
      HOLO_TRY(clear_slot(page, e));
      HOLO_TRY(fill_slot(page, e, *version, twin.span()));
    }
    e.overflow.push_back({*version, std::move(twin)});
  } else {
    auto at =
        std::find_if(e.overflow.begin(), e.overflow.end(), [&](const Overflow& o) { return o.version == *version; });
    HOLO_ASSERT(at != e.overflow.end());
    Buffer twin = at->bytes;
    HOLO_TRY(promote(page, e, *version));
    e.overflow.push_back({*version, std::move(twin)});
  }
  e.slot = SlotState::window_open;
  e.version = *version;
  e.txn = txn;
  e.mapped = 0;
  e.orphan = false;
  txn_pages_[txn].push_back(page);
  return true;
}

void RegionPages::close_window(PageNo page) {
  Entry* e = find(page);
  if (e == nullptr || e->slot != SlotState::window_open) return;
  if (!e->orphan) {
    e->slot = SlotState::window_closed;
    return;
  }
  {
    const Recount recount(*this, *e);
    (void)clear_slot(page, *e);
  }
  erase_if_empty(page);
}

bool RegionPages::window_open(PageNo page) const {
  const Entry* e = find(page);
  return e != nullptr && e->slot == SlotState::window_open;
}

std::vector<PageNo> RegionPages::closed_windows(const TxnId& txn) const {
  std::vector<PageNo> out;
  auto it = txn_pages_.find(txn);
  if (it == txn_pages_.end()) return out;
  for (PageNo page : it->second) {
    const Entry* e = find(page);
    if (e != nullptr && e->slot == SlotState::window_closed && e->txn == txn) out.push_back(page);
  }
  return out;
}

bool RegionPages::has_open_window(const TxnId& txn) const {
  auto it = txn_pages_.find(txn);
  if (it == txn_pages_.end()) return false;
  return std::any_of(it->second.begin(), it->second.end(), [&](PageNo page) {
    const Entry* e = find(page);
    return e != nullptr && e->slot == SlotState::window_open && e->txn == txn;
  });
}

ByteSpan RegionPages::window_bytes(PageNo page) const {
  const Entry* e = find(page);
  if (e == nullptr || (e->slot != SlotState::window_closed && e->slot != SlotState::sealed)) return {};
  return slot_bytes(page);
}

Status RegionPages::seal_window(PageNo page) {
  Entry* e = find(page);
  HOLO_ASSERT(e != nullptr && e->slot == SlotState::window_closed);
  const Version newest = history_.newest(page);
  if (e->version != newest || !e->staged.empty()) {
    const ByteSpan base = content(page, e->version);
    HOLO_ASSERT(!base.empty(), "missing_for_stage() first");
    HOLO_TRY(check_conflicts(page, e->txn, e->version, base, slot_bytes(page), newest));
  }
  e->slot = SlotState::sealed;
  return {};
}

// ---- staging

Result<std::vector<Version>> RegionPages::missing_for_stage(PageNo page, Version base) const {
  HOLO_ASSIGN(version, history_.version_at(page, base));
  std::vector<Version> need = history_.versions_between(page, version, history_.newest(page));
  need.push_back(version);
  if (const Entry* e = find(page)) {
    for (const Staged& s : e->staged) need.push_back(s.base);
    if (e->slot == SlotState::sealed) need.push_back(e->version);
  }
  std::sort(need.begin(), need.end());
  need.erase(std::unique(need.begin(), need.end()), need.end());
  std::erase_if(need, [&](Version v) { return has(page, v); });
  return need;
}

/// Whether the bytes that differ between `base_bytes` (version `base` of the page) and `bytes` were changed by a
/// version since, or by another staged transaction.
Status RegionPages::check_conflicts(PageNo page, const TxnId& txn, Version base, ByteSpan base_bytes, ByteSpan bytes,
                                    Version up_to) const {
  auto conflict = [&](std::size_t byte, const std::string& with) {
    return fail(Errc::write_conflict,
                str("page ", page, " of region ", shape_.id, ": byte ", byte, " was also changed by ", with),
                "two writers of one byte need an order: let one sync() before the other starts");
  };
  ByteSpan before = base_bytes;
  for (Version v : history_.versions_between(page, base, up_to)) {
    const ByteSpan after = content(page, v);
    HOLO_ASSERT(!after.empty(), "missing_for_stage() first");
    if (auto at = first_conflict(base_bytes, bytes, before, after)) return conflict(*at, str("version ", v));
    before = after;
  }
  const Entry* e = find(page);
  if (e == nullptr) return {};
  for (const Staged& s : e->staged) {
    if (s.txn == txn) continue;
    const ByteSpan other_base = content(page, s.base);
    HOLO_ASSERT(!other_base.empty(), "missing_for_stage() first");
    if (auto at = first_conflict(base_bytes, bytes, other_base, s.bytes.span()))
      return conflict(*at, "an uncommitted writer");
  }
  if (e->slot == SlotState::sealed && e->txn != txn) {
    const ByteSpan other_base = content(page, e->version);
    HOLO_ASSERT(!other_base.empty(), "missing_for_stage() first");
    if (auto at = first_conflict(base_bytes, bytes, other_base, slot_bytes(page)))
      return conflict(*at, "an uncommitted writer");
  }
  return {};
}

Result<bool> RegionPages::stage(const StageWrite& write) {
  const std::uint64_t page_bytes = shape_.page_bytes;
  if (write.page.value >= shape_.pages || write.offset > page_bytes || write.bytes.size() > page_bytes - write.offset) {
    return fail(Errc::invalid_argument, str("a write outside page ", write.page, " of region ", shape_.id));
  }
  HOLO_ASSIGN(base_version, history_.version_at(write.page, write.base));
  const ByteSpan base = content(write.page, base_version);
  HOLO_ASSERT(!base.empty(), "missing_for_stage() first");
  const bool whole = write.bytes.size() == page_bytes;

  Buffer wanted = write.bytes;  // the page as this writer leaves it
  if (!whole) {
    Bytes page(base.begin(), base.end());
    std::copy(write.bytes.span().begin(), write.bytes.span().end(),
              page.begin() + static_cast<std::ptrdiff_t>(write.offset));
    wanted = Buffer(std::move(page));
  }
  Entry& e = entry(write.page);
  if (e.slot == SlotState::sealed && e.txn == write.txn) HOLO_TRY(unseal(write.page, e));
  auto mine = std::find_if(e.staged.begin(), e.staged.end(), [&](const Staged& s) { return s.txn == write.txn; });
  if (mine == e.staged.end() && same_bytes(base, wanted.span())) {
    erase_if_empty(write.page);
    return false;
  }
  const Version newest = history_.newest(write.page);
  if (auto ok = check_conflicts(write.page, write.txn, base_version, base, wanted.span(), newest); !ok) {
    erase_if_empty(write.page);
    return std::unexpected(std::move(ok).error());
  }
  const Recount recount(*this, e);
  if (mine != e.staged.end()) {
    Bytes page(mine->bytes.span().begin(), mine->bytes.span().end());
    if (whole) {
      merge_changes(page, base, wanted.span());
    } else {  // An explicit write counts even where it writes back what was there.
      std::copy(write.bytes.span().begin(), write.bytes.span().end(),
                page.begin() + static_cast<std::ptrdiff_t>(write.offset));
    }
    mine->bytes = Buffer(std::move(page));
    return true;
  }
  if (newest != base_version) {  // Stand on the newest now, so that applying is mostly a move.
    const ByteSpan now = content(write.page, newest);
    Bytes page(now.begin(), now.end());
    merge_changes(page, base, wanted.span());
    wanted = Buffer(std::move(page));
  }
  txn_pages_[write.txn].push_back(write.page);
  if (landed(write.page, wanted.span())) {
    take_landed(e, SlotState::sealed, newest, write.txn);
  } else {
    e.staged.push_back({write.txn, newest, std::move(wanted)});
  }
  return true;
}

/// What a transaction has staged in the slot goes to a buffer, to be added to.
Status RegionPages::unseal(PageNo page, Entry& e) {
  const Recount recount(*this, e);
  Staged staged{e.txn, e.version, Buffer::copy(slot_bytes(page))};
  HOLO_TRY(clear_slot(page, e));
  e.staged.push_back(std::move(staged));
  return {};
}

void RegionPages::stage_copy(const TxnId& txn, PageNo page, Version base, Buffer bytes) {
  HOLO_ASSERT(bytes.size() == shape_.page_bytes);
  Entry& e = entry(page);
  const Recount recount(*this, e);
  std::erase_if(e.staged, [&](const Staged& s) { return s.txn == txn; });
  if (e.slot == SlotState::sealed && e.txn == txn && !clear_slot(page, e)) e.txn = {};  // Nobody's, from now on.
  txn_pages_[txn].push_back(page);
  if (landed(page, bytes.span())) {
    take_landed(e, SlotState::sealed, base, txn);
  } else {
    e.staged.push_back({txn, base, std::move(bytes)});
  }
}

Version RegionPages::staged_base(const TxnId& txn, PageNo page) const {
  const Entry* e = find(page);
  if (e == nullptr) return {};
  if (e->txn == txn && (e->slot == SlotState::window_closed || e->slot == SlotState::sealed)) return e->version;
  for (const Staged& s : e->staged) {
    if (s.txn == txn) return s.base;
  }
  return {};
}

std::vector<PageNo> RegionPages::staged_pages(const TxnId& txn) const {
  std::vector<PageNo> out;
  auto it = txn_pages_.find(txn);
  if (it == txn_pages_.end()) return out;
  for (PageNo page : it->second) {
    if (!staged(txn, page).empty()) out.push_back(page);
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

std::vector<TxnId> RegionPages::staged_txns() const {
  std::vector<TxnId> out;
  out.reserve(txn_pages_.size());
  for (const auto& [txn, pages] : txn_pages_) out.push_back(txn);
  std::sort(out.begin(), out.end());
  return out;
}

// ---- the log

void RegionPages::apply_page(const TxnId& txn, PageNo page, Version version, std::vector<PageNo>& missing) {
  const Version previous = history_.newest(page);
  Entry* e = find(page);
  auto lost = [&] {
    if (owned_(page)) missing.push_back(page);
  };
  if (e == nullptr) return lost();
  const Recount recount(*this, *e);

  // Puts the writer's changes on top of what was committed since it staged. Empty: the bytes to do so are not here.
  auto rebased = [&](Version base, const Buffer& bytes) -> Buffer {
    if (base == previous) return bytes;
    const ByteSpan from = content(page, base);
    const ByteSpan now = content(page, previous);
    if (from.empty() || now.empty()) return {};
    Bytes merged(now.begin(), now.end());
    merge_changes(merged, from, bytes.span());
    return Buffer(std::move(merged));
  };

  if (e->txn == txn && (e->slot == SlotState::window_closed || e->slot == SlotState::sealed)) {
    if (e->version == previous) {
      e->slot = SlotState::version;
      e->version = version;
      e->txn = {};
      to_clock(page, *e);
      return;
    }
    const Buffer merged = rebased(e->version, Buffer::copy(slot_bytes(page)));
    if (merged.empty() || !fill_slot(page, *e, version, merged.span())) {
      (void)clear_slot(page, *e);
      lost();
    }
    return;
  }

  auto mine = std::find_if(e->staged.begin(), e->staged.end(), [&](const Staged& s) { return s.txn == txn; });
  if (mine == e->staged.end()) return lost();
  Buffer bytes = rebased(mine->base, mine->bytes);
  e->staged.erase(mine);
  if (bytes.empty()) return lost();
  if (!e->owned && !owned_(page)) return;  // It has moved away since it was staged; its new holders have it.
  // It stays where it came to lie until a process here maps it, unless that keeps other pages' bytes alive.
  if (e->slot == SlotState::empty && bytes.is_part()) {
    if (!fill_slot(page, *e, version, bytes.span())) lost();
    return;
  }
  e->overflow.push_back({version, std::move(bytes)});
}

std::vector<PageNo> RegionPages::apply(const TxnId& txn, Version version, const std::vector<PageSpan>& pages) {
  std::vector<PageNo> missing;
  for (const PageSpan& span : pages) {
    for (std::uint64_t i = 0; i < span.count; ++i) {
      const PageNo page{span.first.value + i};
      if (page.value < shape_.pages) apply_page(txn, page, version, missing);
    }
  }
  history_.record(version, pages);
  abort(txn);  // What it staged beyond the entry was given up by its coordinator.
  return missing;
}

void RegionPages::abort(const TxnId& txn) {
  auto it = txn_pages_.find(txn);
  if (it == txn_pages_.end()) return;
  const std::vector<PageNo> pages = std::move(it->second);
  txn_pages_.erase(it);
  for (PageNo page : pages) {
    Entry* e = find(page);
    if (e == nullptr) continue;
    {
      const Recount recount(*this, *e);
      std::erase_if(e->staged, [&](const Staged& s) { return s.txn == txn; });
      if (e->txn == txn) {
        // A process may still be writing an open window: the slot stays taken until it has let go.
        if (e->slot == SlotState::window_open) e->orphan = true;
        if (e->slot == SlotState::window_closed || e->slot == SlotState::sealed) (void)clear_slot(page, *e);
      }
    }
    erase_if_empty(page);
  }
}

void RegionPages::prune(PageNo page) {
  Entry* e = find(page);
  if (e == nullptr) return;
  {
    const Recount recount(*this, *e);
    std::erase_if(e->overflow, [&](const Overflow& o) { return history_.dead(page, o.version); });
    if (e->slot == SlotState::version && history_.dead(page, e->version)) (void)clear_slot(page, *e);
  }
  erase_if_empty(page);
}

void RegionPages::resync() {
  std::vector<PageNo> held;
  held.reserve(entries_.size());
  for (const auto& [number, e] : entries_) held.push_back(PageNo{number});
  for (PageNo page : held) prune(page);
}

void RegionPages::raise_floor(Version floor) {
  for (const PageSpan& span : history_.raise_floor(floor)) {
    for (std::uint64_t i = 0; i < span.count; ++i) prune(PageNo{span.first.value + i});
  }
}

// ---- room

std::uint64_t RegionPages::evict(std::uint64_t bytes) {
  std::uint64_t freed = 0;
  // Twice around at most: the first pass may only take the marks off.
  for (std::size_t steps = 2 * clock_.size(); steps > 0 && freed < bytes && !clock_.empty(); --steps) {
    const PageNo page = clock_.front();
    clock_.pop_front();
    Entry* e = find(page);
    if (e == nullptr) continue;
    if (!e->owned && e->referenced) {
      e->referenced = false;
      clock_.push_back(page);
      continue;
    }
    e->in_clock = false;
    if (!e->owned) {
      const std::uint64_t before = usage_.total();
      {
        const Recount recount(*this, *e);
        e->overflow.clear();
        if (e->slot == SlotState::version) (void)clear_slot(page, *e);
      }
      freed += before - usage_.total();
    }
    erase_if_empty(page);
  }
  return freed;
}

void RegionPages::reclassify() {
  for (auto& [number, e] : entries_) {
    const PageNo page{number};
    const bool owned = owned_(page);
    if (owned == e.owned) continue;
    const Recount recount(*this, e);
    e.owned = owned;
    if (!owned && (e.slot == SlotState::version || !e.overflow.empty())) to_clock(page, e);
  }
}

void RegionPages::for_each_committed(const std::function<void(PageNo, Version)>& f) const {
  for (const auto& [number, e] : entries_) {
    const PageNo page{number};
    if (e.slot == SlotState::version) f(page, e.version);
    for (const Overflow& o : e.overflow) {
      if (e.slot != SlotState::version || o.version != e.version) f(page, o.version);
    }
  }
}

}  // namespace holo::memory
