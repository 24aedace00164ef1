// The memory service: regions as the log names them, room, floors, life.
#include <algorithm>

#include "base/log.h"
#include "core/memory/merge.h"
#include "crypto/hash.h"
#include "node/memory_impl.h"

namespace holo::node {
namespace {

constexpr Duration kPeerRegionWait = seconds(1);
constexpr Duration kPeerRegionPoll = milliseconds(2);

}  // namespace

std::string digest_of(ByteSpan bytes) {
  const auto digest = crypto::blake3(bytes);
  return std::string(as_text(digest));
}

// ---- frames

Status LazyFrames::open() {
  if (frames_) return {};
  auto made = store_.create(region_, name_, bytes_);
  if (!made) return std::unexpected(std::move(made).error());
  frames_ = std::move(*made);
  return {};
}
Status LazyFrames::write(std::uint64_t offset, ByteSpan bytes) {
  HOLO_TRY(open());
  return frames_->write(offset, bytes);
}
Result<MutableByteSpan> LazyFrames::prepare(std::uint64_t offset, std::size_t length) {
  HOLO_TRY(open());
  return frames_->prepare(offset, length);
}
Status LazyFrames::read(std::uint64_t offset, MutableByteSpan out) const {
  if (frames_) return frames_->read(offset, out);
  std::fill(out.begin(), out.end(), std::byte{0});
  return {};
}
ByteSpan LazyFrames::mapped(std::uint64_t offset, std::size_t length) const {
  return frames_ ? frames_->mapped(offset, length) : ByteSpan{};  // Nothing is anywhere yet.
}
Status LazyFrames::punch(std::uint64_t offset, std::uint64_t length) {
  return frames_ ? frames_->punch(offset, length) : Status{};
}

// ---- construction

std::unique_ptr<MemoryService> MemoryService::make(Ports ports, MemoryConfig config) {
  return std::make_unique<MemoryImpl>(ports, std::move(config));
}

MemoryImpl::MemoryImpl(Ports ports, MemoryConfig config)
    : loop_(ports.loop),
      transport_(ports.transport),
      frames_(ports.frames),
      faults_(ports.faults),
      entropy_(ports.entropy),
      control_(ports.control),
      config_(std::move(config)) {
  auto serve = [&](wire::PeerMessage type, Task<Result<env::Reply>> (MemoryImpl::*handler)(NodeId, env::Request)) {
    transport_.serve(static_cast<std::uint16_t>(type), [this, handler](NodeId from, env::Request request) {
      return (this->*handler)(from, std::move(request));
    });
  };
  serve(wire::PeerMessage::page_fetch, &MemoryImpl::serve_fetch);
  serve(wire::PeerMessage::page_stage, &MemoryImpl::serve_stage);
  serve(wire::PeerMessage::page_backup, &MemoryImpl::serve_backup);
  using Placed = std::shared_ptr<env::Landing> (MemoryImpl::*)(const env::Request&, std::uint64_t);
  auto place = [&](wire::PeerMessage type, Placed placer) {
    transport_.set_placer(static_cast<std::uint16_t>(type),
                          [this, placer](NodeId, const env::Request& announced, std::uint64_t payload_bytes) {
                            return (this->*placer)(announced, payload_bytes);
                          });
  };
  place(wire::PeerMessage::page_stage, &MemoryImpl::place_stage);
  place(wire::PeerMessage::page_backup, &MemoryImpl::place_backup);
  serve(wire::PeerMessage::txn_abort, &MemoryImpl::serve_abort);
  serve(wire::PeerMessage::txn_status, &MemoryImpl::serve_txn_status);
  serve(wire::PeerMessage::staged_query, &MemoryImpl::serve_staged_query);
  control_.observe({
      .on_region_created = [this](const RegionShape& shape) { add_region(shape); },
      .on_region_freed = [this](RegionId id) { remove_region(id); },
      .on_commit = [this](const CommitEvent& event) { apply(event); },
      .on_nodes_changed = [this] { nodes_changed(); },
      .on_placement_changed = [this](RegionId id) { placement_changed(id); },
      .on_restored = [this] { sync_regions(); },
  });
  sync_regions();
  next_sweep_ = loop_.now() + kSweepEvery;
  schedule_tick();
}

MemoryImpl::~MemoryImpl() {
  *alive_ = false;
  std::vector<ViewPtr> open;
  for (auto& [id, view] : views_) open.push_back(view);
  for (const ViewPtr& view : open) close_view(view);  // A region and its views hold each other.
}

Task<Status> MemoryImpl::start() {
  if (config_.state_dir.empty()) co_return Status{};
  struct Opened {
    Result<std::unique_ptr<PageFiles>> files = fail(Errc::internal, "not opened");
    std::vector<std::string> damaged;
  };
  const PageFiles::Owner owner{control_.cluster(), control_.self()};
  std::function<std::shared_ptr<Opened>()> work = [dir = config_.state_dir, owner, &entropy = entropy_] {
    auto out = std::make_shared<Opened>();
    out->files = PageFiles::open(dir, owner, entropy, out->damaged);
    return out;
  };
  auto opened = co_await env::offload(loop_, std::move(work));
  if (!opened->files) co_return std::unexpected(opened->files.error());
  for (const std::string& what : opened->damaged) log_error("memory", what, "; the pages it held are not here");
  kept_ = std::move(*opened->files);
  co_return Status{};
}

Task<void> MemoryImpl::stop() {
  if (stopped_) co_return;
  // Pages staged here may be committed in the log already, by an entry that has not come here yet.
  const Instant patience = loop_.now() + kDecisionPatience;
  while (!staged_since_.empty() && loop_.now() < patience) {
    const bool awake = co_await env::sleep_for(loop_, milliseconds(5));
    if (!awake) break;
  }
  if (stopped_) co_return;
  stopped_ = true;
  for (auto& [id, r] : regions_) r->frozen = true;
  std::vector<ViewPtr> open;
  for (auto& [id, view] : views_) open.push_back(view);
  for (const ViewPtr& view : open) close_view(view);
  if (config_.state_dir.empty()) co_return;
  for (auto& [id, r] : regions_) {
    for (const PageAt& at : committed_pages(r)) {
      if (at.version == r->pages->history().newest(at.page)) to_keep_.push_back({r, at});
    }
  }
}

// ---- regions

void MemoryImpl::add_region(const RegionShape& shape) {
  if (regions_.contains(shape.id)) return;
  auto r = std::make_shared<Region>();
  r->shape = shape;
  r->owned.assign(limits::kShards, -1);
  r->frames = std::make_unique<LazyFrames>(frames_, shape.id, shape.name, shape.pages() * shape.page_bytes);
  Region* raw = r.get();
  r->pages = std::make_unique<memory::RegionPages>(
      memory::RegionPages::Shape{.id = shape.id, .page_bytes = shape.page_bytes, .pages = shape.pages()}, *r->frames,
      [this, raw](PageNo page) { return owned(*raw, page); });
  regions_[shape.id] = std::move(r);
}

void MemoryImpl::remove_region(RegionId id) {
  auto it = regions_.find(id);
  if (it == regions_.end()) return;
  const RegionPtr r = it->second;
  regions_.erase(it);
  r->freed = true;
  count_fills(counters_, *r);
  const Error gone{.code = Errc::not_found,
                   .message = str("region \"", r->shape.name, "\" was freed while it was mapped")};
  std::vector<ViewPtr> open;
  for (auto& [view_id, view] : r->views) open.push_back(view);
  for (const ViewPtr& view : open) {
    fail_view(view, UINT64_MAX, gone);
    close_view(view);
  }
  // Processes that still have it mapped would keep its frames alive. Giving back many gigabytes takes seconds, which
  // this thread does not have.
  loop_.offload([r] { (void)r->frames->punch(0, (r->shape.pages() * r->shape.page_bytes + 4095) / 4096 * 4096); },
                [r] {});
  while (!r->fetching.empty()) settle(*r, r->fetching.begin()->first, std::unexpected(gone));
  for (auto& waiter : std::exchange(version_waiters_[id], {})) waiter->set(true);
  version_waiters_.erase(id);
}

void MemoryImpl::sync_regions() {
  std::vector<RegionId> gone;
  for (auto& [id, r] : regions_) {
    if (!control_.region(id)) gone.push_back(id);
  }
  for (RegionId id : gone) remove_region(id);
  for (RegionId id : control_.regions()) {
    const auto shape = control_.region(id);
    if (!shape) continue;
    add_region(*shape);
    Region& r = *regions_[id];
    auto& history = r.pages->history();
    if (history.newest() == control_.newest(id)) continue;
    history.restart(control_.newest(id));
    control_.for_each_written(id, [&](PageSpan span, Version version) { history.restore(span, version); });
    r.pages->resync();
    for (auto& waiter : std::exchange(version_waiters_[id], {})) waiter->set(true);
  }
  nodes_changed();
}

void MemoryImpl::apply(const CommitEvent& event) {
  auto it = regions_.find(event.region);
  if (it == regions_.end()) return;
  const RegionPtr r = it->second;
  const std::vector<PageNo> missing = r->pages->apply(event.txn, event.version, event.pages);
  r->repairs.insert(missing.begin(), missing.end());
  if (!missing.empty()) start_repair(r);
  staged_since_.erase(event.txn);
  in_doubt_.erase(event.txn);
  txns_.erase(event.txn);
  remember_decided(event.txn);
  if (auto waiting = version_waiters_.find(event.region); waiting != version_waiters_.end()) {
    auto waiters = std::move(waiting->second);
    version_waiters_.erase(waiting);
    // Later, not from inside the log's apply.
    loop_.post([waiters = std::move(waiters)] {
      for (const auto& w : waiters) w->set(true);
    });
  }
}

void MemoryImpl::nodes_changed() {
  for (auto& [id, r] : regions_) {
    std::fill(r->owned.begin(), r->owned.end(), static_cast<std::int8_t>(-1));
    r->pages->reclassify();
  }
  // A dead coordinator never decides: the state machine refuses its commits from now on.
  std::set<TxnId> staged;
  for (const auto& [id, r] : regions_) {
    for (const TxnId& txn : r->pages->staged_txns()) staged.insert(txn);
  }
  for (const auto& [txn, local] : txns_) staged.insert(txn);
  for (const TxnId& txn : staged) {
    const std::uint64_t incarnation = control_.incarnation_of(txn.node);
    if (incarnation != txn.incarnation && !(incarnation == 0 && txn.node == control_.self())) abort_here(txn);
  }
  look_for_left_over();
  refuse_doubts();
  start_all_moves();
}

/// What was proposed under an earlier epoch, and given up, is not going to be committed any more.
void MemoryImpl::refuse_doubts() {
  std::vector<TxnId> refused;
  for (const auto& [txn, doubt] : in_doubt_) {
    if (doubt.given_up && doubt.epoch < control_.epoch()) refused.push_back(txn);
  }
  for (const TxnId& txn : refused) in_doubt_.erase(txn);
  if (!refused.empty()) abort(refused);
}

void MemoryImpl::placement_changed(RegionId id) {
  refuse_doubts();
  const auto it = regions_.find(id);
  if (it == regions_.end()) return;
  std::fill(it->second->owned.begin(), it->second->owned.end(), static_cast<std::int8_t>(-1));
  it->second->pages->reclassify();
  look_for_left_over();
  start_moves(it->second);
}

Result<RegionPtr> MemoryImpl::find_region(RegionId id) const {
  if (stopped_) return fail(Errc::unavailable, "the agent is stopping");
  auto it = regions_.find(id);
  if (it == regions_.end())
    return fail(Errc::not_found, str("there is no region ", id), "it may have been freed; `holo regions` lists them");
  return it->second;
}

Task<Result<RegionPtr>> MemoryImpl::region_for_peer(RegionId id) {
  const Instant deadline = loop_.now() + kPeerRegionWait;
  while (!stopped_ && !regions_.contains(id) && loop_.now() < deadline) {
    const bool awake = co_await env::sleep_for(loop_, kPeerRegionPoll);
    if (!awake) break;
  }
  co_return find_region(id);
}

// ---- placement

ShardCopies MemoryImpl::copies(const Region& r, PageNo page) const {
  return control_.copies(r.id(), control_.shard_of(r.id(), page));
}

bool MemoryImpl::owned(Region& r, PageNo page) const {
  const ShardNo shard = control_.shard_of(r.id(), page);
  std::int8_t& known = r.owned[shard.value];
  if (known < 0) {
    const ShardCopies c = control_.copies(r.id(), shard);
    known = c.filling == control_.self() ||
            std::find(c.in_sync.begin(), c.in_sync.end(), control_.self()) != c.in_sync.end();
  }
  return known != 0;
}

std::uint64_t MemoryImpl::block_end(const Region& r, std::uint64_t page) const {
  return (page / r.shape.block_pages + 1) * r.shape.block_pages;
}

// ---- room

memory::Usage MemoryImpl::usage() const {
  memory::Usage sum;
  for (const auto& [id, r] : regions_) sum += r->pages->usage();
  return sum;
}

void MemoryImpl::count_fills(MemoryCounters& sum, const Region& r) {
  sum.pages_landed += r.pages->slot_fills().landed;
  sum.slots_copied += r.pages->slot_fills().copied;
}

bool MemoryImpl::make_room(std::uint64_t bytes) {
  const memory::Usage used = usage();
  const std::uint64_t promised = std::max(control_.reserved_bytes(), used.owned);
  std::uint64_t beside = config_.limit_bytes > promised ? config_.limit_bytes - promised : 0;
  beside = std::max(beside, std::max(kWorkingMinimum, config_.limit_bytes / 16));
  if (used.extra + used.cached + bytes <= beside) return true;
  const std::uint64_t wanted = used.extra + used.cached + bytes - beside;
  return evict(wanted) >= wanted;
}

std::uint64_t MemoryImpl::evict(std::uint64_t bytes) {
  std::uint64_t freed = 0;
  for (auto& [id, r] : regions_) {
    if (freed >= bytes) break;
    const std::uint64_t here = r->pages->evict(bytes - freed);
    counters_.evicted += here / r->page_bytes();
    freed += here;
  }
  return freed;
}

void MemoryImpl::look_for_left_over() {
  const memory::Usage used = usage();
  if (control_.draining() && used.owned == 0) left_over_ = used.cached;
}

Task<Status> MemoryImpl::wait_for_room(std::uint64_t bytes) {
  const Instant deadline = loop_.now() + kRoomDeadline;
  while (!make_room(bytes)) {
    // What old snapshots hold becomes free when the cluster's floor passes them.
    const bool more = co_await env::sleep_for(loop_, milliseconds(50));
    if (!more || loop_.now() >= deadline) {
      ++counters_.out_of_memory;
      co_return fail(Errc::out_of_memory,
                     str("the memory limit of node ", control_.node_name(control_.self()), " is reached (",
                         config_.limit_bytes >> 20, " MiB)"),
                     "free regions, close programs that hold old versions, or raise --memory");
    }
    tick();
  }
  co_return Status{};
}

// ---- snapshots

Version MemoryImpl::newest(RegionId region) {
  auto it = regions_.find(region);
  return it == regions_.end() ? Version{} : it->second->pages->history().newest();
}

SnapshotPin MemoryImpl::pin_region(const RegionPtr& r, Version snapshot) {
  r->pins.insert(snapshot);
  return SnapshotPin([weak = std::weak_ptr<Region>(r), snapshot] {
    if (auto region = weak.lock()) {
      if (auto it = region->pins.find(snapshot); it != region->pins.end()) region->pins.erase(it);
    }
  });
}

SnapshotPin MemoryImpl::pin(RegionId region, Version snapshot) {
  auto it = regions_.find(region);
  return it == regions_.end() ? SnapshotPin{} : pin_region(it->second, snapshot);
}

Task<Status> MemoryImpl::wait_region(RegionPtr r, Version version, Instant deadline) {
  while (r->pages->history().newest() < version) {
    if (r->freed) co_return fail(Errc::not_found, str("region \"", r->shape.name, "\" was freed"));
    auto shot = std::make_shared<OneShot<Result<bool>>>();
    version_waiters_[r->id()].push_back(shot);
    HOLO_CO_TRY(co_await env::await_until(loop_, shot, deadline,
                                          str("version ", version, " of region \"", r->shape.name, "\"")));
  }
  co_return Status{};
}

Task<Status> MemoryImpl::wait_applied(RegionId region, Version version, Instant deadline) {
  HOLO_CO_ASSIGN(r, find_region(region));
  auto done = co_await wait_region(r, version, deadline);
  co_return done;
}

std::vector<RegionVersion> MemoryImpl::lowest_snapshots() const {
  std::vector<RegionVersion> out;
  out.reserve(regions_.size());
  for (const auto& [id, r] : regions_) {
    Version lowest = r->pages->history().newest();
    for (const auto& [view_id, view] : r->views) lowest = std::min(lowest, view->snapshot);
    if (!r->pins.empty()) lowest = std::min(lowest, *r->pins.begin());
    out.push_back({id, lowest});
  }
  return out;
}

Version MemoryImpl::floor_of(const Region& r) const {
  Version floor = std::min(control_.floor(r.id()), r.pages->history().newest());
  for (const auto& [id, view] : r.views) floor = std::min(floor, view->snapshot);
  if (!r.pins.empty()) floor = std::min(floor, *r.pins.begin());
  return floor;
}

// ---- time

void MemoryImpl::schedule_tick() {
  loop_.call_between(loop_.now() + kTick, loop_.now() + kTick * 2, [this, alive = alive_] {
    if (!*alive || stopped_ || loop_.stopping()) return;
    tick();
    if (loop_.now() >= next_sweep_) {
      next_sweep_ = loop_.now() + kSweepEvery;
      if (!staged_since_.empty()) loop_.spawn(sweep_staged());
      start_all_moves();
      for (auto& [id, r] : regions_) {
        if (!r->repairs.empty()) start_repair(r);
      }
    }
    schedule_tick();
  });
}

void MemoryImpl::tick() {
  std::erase_if(stray_windows_, [](const StrayWindows& s) {
    if (process_lives(s.pid)) return false;
    for (PageNo page : s.pages) s.region->pages->close_window(page);
    return true;
  });
  for (auto& [id, r] : regions_) {
    const Version floor = floor_of(*r);
    if (floor > r->pages->history().floor()) r->pages->raise_floor(floor);
  }
  if (left_over_ > 0) {
    const std::uint64_t freed = evict(std::min(left_over_, kDropAtOnce));
    left_over_ = freed == 0 ? 0 : left_over_ - std::min(left_over_, freed);
  }
}

void MemoryImpl::remember_decided(const TxnId& txn) {
  open_.erase(txn);
  if (!decided_.insert(txn).second) return;
  decided_order_.push_back(txn);
  if (decided_order_.size() <= kDecidedKept) return;
  decided_.erase(decided_order_.front());
  decided_order_.pop_front();
}

/// Staged pages whose coordinator has neither committed nor aborted for long: asks it, lest a lost message keep them
/// for ever.
Task<void> MemoryImpl::sweep_staged() {
  std::map<NodeId, std::vector<TxnId>> by_node;
  for (const auto& [txn, since] : staged_since_) {
    if (loop_.now() - since > kSweepEvery * 2) by_node[txn.node].push_back(txn);
  }
  for (auto& [node, txns] : by_node) {
    if (node == control_.self()) {
      for (const TxnId& txn : txns) {
        if (!open_.contains(txn) && !in_doubt_.contains(txn)) abort_here(txn);
      }
      continue;
    }
    if (!control_.alive(node)) continue;  // Its death drops them.
    wire::TxnStatus ask;
    for (const TxnId& txn : txns) to_wire(txn, ask.add_txns());
    env::Request request{.type = static_cast<std::uint16_t>(wire::PeerMessage::txn_status),
                         .header = ask.SerializeAsString(),
                         .payload = {}};
    env::CallOptions options{.klass = env::StreamClass::control, .deadline = loop_.now() + kPeerDeadline};
    auto reply = co_await transport_.call(node, std::move(request), options);
    if (!reply) continue;
    wire::TxnStatusReply answer;
    if (!answer.ParseFromString(reply->header) || answer.open_size() != static_cast<int>(txns.size())) continue;
    if (control_.applied() < LogIndex{answer.applied()}) continue;  // A commit may be on its way to us.
    for (int i = 0; i < answer.open_size(); ++i) {
      if (!answer.open(i)) abort_here(txns[static_cast<std::size_t>(i)]);
    }
  }
}

MemoryStatus MemoryImpl::status() const {
  const memory::Usage used = usage();
  MemoryStatus s;
  s.limit_bytes = config_.limit_bytes;
  s.frames_used_bytes = used.total();
  s.owned_bytes = used.owned;
  s.cached_bytes = used.cached;
  s.overflow_bytes = used.extra;
  s.views = views_.size();
  s.counters = counters_;
  for (const auto& [id, r] : regions_) count_fills(s.counters, *r);
  return s;
}

}  // namespace holo::node
