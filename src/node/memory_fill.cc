// Copies that are to be elsewhere: moving shards as the plan says, repairing own gaps, handing over before leaving,
// keeping at a stop.
#include <algorithm>

#include "base/log.h"
#include "core/memory/merge.h"
#include "node/gather.h"
#include "node/memory_impl.h"

namespace holo::node {
namespace {

constexpr Duration kMovePause = milliseconds(200);  // After a move that failed; doubles.
constexpr Duration kLongestMovePause = seconds(2);

}  // namespace

// ---- moving

void MemoryImpl::start_all_moves() {
  for (auto& [id, r] : regions_) start_moves(r);
  for (const NodeId target : control_.cut_off()) watch_path(target);
}

void MemoryImpl::start_moves(const RegionPtr& r) {
  if (stopped_ || (r->filling && r->proving)) return;
  bool fill = false, prove = false;
  for (const auto& [shard, c] : control_.moves(r->id())) {
    fill = fill || (c.filling && !c.in_sync.empty() && c.in_sync.front() == control_.self());
    prove = prove || c.unproven == control_.self();
  }
  // Not from inside the log's apply.
  if (fill && !std::exchange(r->filling, true)) {
    loop_.post([this, r, alive = alive_] {
      if (*alive) loop_.spawn(fill_region(r));
    });
  }
  if (prove && !std::exchange(r->proving, true)) {
    loop_.post([this, r, alive = alive_] {
      if (*alive) loop_.spawn(prove_region(r));
    });
  }
}

/// Gives copies to every node that the control state names as filling for a shard homed here, until there is none.
Task<void> MemoryImpl::fill_region(RegionPtr r) {
  Duration pause = kMovePause;
  while (!r->freed && !stopped_) {
    std::map<NodeId, std::vector<ShardMove>> todo;  // by target
    for (const auto& [shard, c] : control_.moves(r->id())) {
      if (!c.filling || c.in_sync.empty() || c.in_sync.front() != control_.self()) continue;
      todo[c.filling].push_back({.region = r->id(), .shard = shard, .node = c.filling, .serial = c.serial});
    }
    if (todo.empty()) break;
    bool failed = false;
    for (auto& [target, moves] : todo) {
      auto done = co_await fill_shards(r, target, moves);
      if (!done) {
        failed = true;
        watch_path(target);
        log_info("memory", "copies of region \"", r->shape.name, "\" for node ", control_.node_name(target), ": ",
                 done.error().message);
      }
    }
    bool awake = true;
    if (failed) awake = co_await env::sleep_for(loop_, pause);
    if (!awake) break;
    pause = failed ? std::min(pause * 2, kLongestMovePause) : kMovePause;
  }
  r->filling = false;
}

void MemoryImpl::watch_path(NodeId target) {
  if (stopped_ || !control_.alive(target) || !watched_paths_.insert(target).second) return;
  loop_.post([this, target, alive = alive_] {  // Not from inside the log's apply.
    if (*alive) loop_.spawn(look_at_path(target));
  });
}

Task<void> MemoryImpl::look_at_path(NodeId target) {
  const Instant since = loop_.now();
  while (!stopped_ && control_.alive(target)) {
    env::Request ping{.type = static_cast<std::uint16_t>(wire::PeerMessage::ping), .header = {}, .payload = {}};
    const env::CallOptions options{.klass = env::StreamClass::control, .deadline = loop_.now() + kLookAtPath};
    auto answer = co_await transport_.call(target, std::move(ping), options);
    const std::vector<NodeId> cut_off = control_.cut_off();
    const bool cut = std::ranges::find(cut_off, target) != cut_off.end();
    if (answer && !cut) break;
    if (answer || (!cut && loop_.now() - since >= kPathPatience)) {
      log_warn("memory", "node ", control_.node_name(target), " is alive and ",
               cut ? "can be reached from here again" : "cannot be reached from here: copies take other ways");
      auto told = co_await control_.path_changed(target, !cut, loop_.now() + seconds(5));
      if (!told) log_info("memory", "this could not be told: ", told.error().message);
    }
    const bool awake = co_await env::sleep_for(loop_, kLookAtPath);
    if (!awake) break;
  }
  watched_paths_.erase(target);
}

/// Takes out what the plan no longer wants from here.
void MemoryImpl::drop_overtaken(const Region& r, std::vector<ShardMove>& moves) const {
  std::erase_if(moves, [&](const ShardMove& m) {
    const ShardCopies c = control_.copies(r.id(), m.shard);
    const bool home = !c.in_sync.empty() && c.in_sync.front() == control_.self();
    return !home || c.filling != m.node || c.serial != m.serial;
  });
}

bool MemoryImpl::windows_open(const Region& r, const std::set<ShardNo>& shards) const {
  for (const auto& [id, view] : r.views) {
    for (const PageNo page : view->windows) {
      if (r.pages->window_open(page) && shards.contains(control_.shard_of(r.id(), page))) return true;
    }
  }
  return false;
}

Task<bool> MemoryImpl::pace(std::uint64_t bytes) {
  if (config_.move_rate == 0) co_return true;
  const Duration takes =
      nanoseconds(static_cast<std::int64_t>(static_cast<unsigned __int128>(bytes) * 1'000'000'000 / config_.move_rate));
  next_move_ = std::max(next_move_, loop_.now()) + takes;
  const bool awake = co_await env::sleep_until(loop_, next_move_);
  co_return awake;
}

Task<Status> MemoryImpl::fill_shards(RegionPtr r, NodeId target, std::vector<ShardMove> moves) {
  std::set<ShardNo> wanted;
  for (const ShardMove& m : moves) wanted.insert(m.shard);
  auto in_shards = [&](PageNo page) { return wanted.contains(control_.shard_of(r->id(), page)); };

  // What is staged has to be there when its commit comes; what is staged from now on goes there by itself.
  for (const TxnId& txn : r->pages->staged_txns()) {
    std::vector<PageNo> staged = r->pages->staged_pages(txn);
    std::erase_if(staged, [&](PageNo page) { return !in_shards(page); });
    if (staged.empty()) continue;
    auto sent = co_await send_backup(r, target, txn, std::move(staged), loop_.now() + kPeerDeadline);
    if (!sent && sent.error().code != Errc::cancelled) co_return sent;
  }
  std::vector<PageAt> pages;
  for (const PageAt& at : committed_pages(r)) {
    if (in_shards(at.page)) pages.push_back(at);
  }
  const std::size_t most = std::max<std::size_t>(1, kMoveRequestBytes / r->page_bytes());
  for (std::size_t i = 0; i < pages.size(); i += most) {
    std::vector<PageAt> some(pages.begin() + static_cast<std::ptrdiff_t>(i),
                             pages.begin() + static_cast<std::ptrdiff_t>(std::min(i + most, pages.size())));
    const bool going_on = co_await pace(some.size() * r->page_bytes());
    if (!going_on) co_return fail(Errc::cancelled, "the agent is stopping");
    counters_.pages_moved += some.size();
    HOLO_CO_TRY(co_await send_fill(r, target, std::move(some)));
    drop_overtaken(*r, moves);
    if (moves.empty()) co_return Status{};
  }
  // A task that writes in place would have to be run again elsewhere. No new windows open here meanwhile.
  const Instant patience = loop_.now() + kWindowPatience;
  while (windows_open(*r, wanted) && loop_.now() < patience) {
    const bool awake = co_await env::sleep_for(loop_, milliseconds(5));
    if (!awake) co_return fail(Errc::cancelled, "the agent is stopping");
  }
  drop_overtaken(*r, moves);
  if (moves.empty()) co_return Status{};
  counters_.shards_moved += moves.size();
  auto told = co_await control_.shards_copied(std::move(moves), loop_.now() + seconds(5));
  co_return told;
}

/// Looks, for every shard that this node has just been given, whether it lacks what was staged before, and says so when
/// it does not.
Task<void> MemoryImpl::prove_region(RegionPtr r) {
  while (!r->freed && !stopped_) {
    std::vector<ShardMove> moves;
    for (const auto& [shard, c] : control_.moves(r->id())) {
      if (c.unproven != control_.self()) continue;
      moves.push_back({.region = r->id(), .shard = shard, .node = c.unproven, .serial = c.serial});
    }
    if (moves.empty()) break;
    const bool proven = co_await prove_shards(r, std::move(moves));
    bool awake = true;
    if (!proven) awake = co_await env::sleep_for(loop_, milliseconds(200));
    if (!awake) break;
  }
  r->proving = false;
}

/// Newest versions of pages in these shards that are not here.
std::vector<PageAt> MemoryImpl::lacking(const RegionPtr& r, const std::set<ShardNo>& shards) const {
  std::vector<PageAt> out;
  control_.for_each_written(r->id(), [&](PageSpan span, Version version) {
    for (std::uint64_t i = 0; i < span.count; ++i) {
      const PageNo page{span.first.value + i};
      if (shards.contains(control_.shard_of(r->id(), page)) && !r->pages->has(page, version)) {
        out.push_back({page, version});
      }
    }
  });
  return out;
}

Task<bool> MemoryImpl::prove_shards(RegionPtr r, std::vector<ShardMove> moves) {
  std::set<ShardNo> shards;
  for (const ShardMove& m : moves) shards.insert(m.shard);
  std::vector<PageAt> wants = lacking(r, shards);
  std::set<PageNo> lost;
  const std::size_t most = std::max<std::size_t>(1, kPopulateBytes / r->page_bytes());
  for (std::size_t i = 0; i < wants.size(); i += most) {
    std::vector<PageAt> some(wants.begin() + static_cast<std::ptrdiff_t>(i),
                             wants.begin() + static_cast<std::ptrdiff_t>(std::min(i + most, wants.size())));
    auto all = co_await fetch(r, some, true, env::StreamClass::bulk, loop_.now() + config_.fetch_deadline);
    if (all) continue;
    for (const PageAt& at : some) {  // Which of them?
      std::vector<PageAt> one{at};
      auto bytes =
          co_await fetch(r, std::move(one), true, env::StreamClass::bulk, loop_.now() + config_.fetch_deadline);
      // What nobody has any more is no reason to stay for those who do not have it either.
      if (!bytes && bytes.error().code == Errc::page_lost && !bytes.error().retryable) lost.insert(at.page);
      if (r->freed || stopped_) co_return false;
    }
  }
  for (const PageAt& at : lacking(r, shards)) {
    if (!lost.contains(at.page)) co_return false;
  }
  std::erase_if(moves, [&](const ShardMove& m) {
    const ShardCopies c = control_.copies(r->id(), m.shard);
    return c.unproven != m.node || c.serial != m.serial;
  });
  if (moves.empty()) co_return true;
  auto told = co_await control_.shards_whole(std::move(moves), loop_.now() + seconds(5));
  co_return told.has_value();
}

Task<Status> MemoryImpl::send_fill(RegionPtr r, NodeId target, std::vector<PageAt> pages) {
  std::vector<std::size_t> absent;
  std::vector<Buffer> bytes(pages.size());
  std::vector<PageAt> kept_names;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (const ByteSpan here = r->pages->content(pages[i].page, pages[i].version); !here.empty()) {
      bytes[i] = Buffer::copy(here);
    } else {
      absent.push_back(i);
      kept_names.push_back(pages[i]);
    }
  }
  auto kept = co_await load_kept(r, std::move(kept_names));
  for (std::size_t k = 0; k < absent.size(); ++k) bytes[absent[k]] = std::move(kept[k]);

  wire::PageBackup ask;
  ask.set_region(r->id().value);
  ask.set_epoch(control_.epoch().value);
  std::vector<Buffer> payload;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (bytes[i].empty()) continue;  // Freed since, or lost: nobody could give it.
    auto* p = ask.add_pages();
    p->set_page(pages[i].page.value);
    p->set_version(pages[i].version.value);
    p->set_checksum(digest_of(bytes[i].span()));
    p->set_zero(memory::same_bytes(bytes[i].span(), memory::zero_bytes(bytes[i].size())));
    if (!p->zero()) payload.push_back(std::move(bytes[i]));
  }
  if (ask.pages_size() == 0) co_return Status{};
  const Instant deadline = loop_.now() + seconds(10);
  for (int attempt = 0;; ++attempt) {
    env::Request request{.type = static_cast<std::uint16_t>(wire::PeerMessage::page_backup),
                         .header = ask.SerializeAsString(),
                         .payload = payload};
    env::CallOptions options{.klass = env::StreamClass::bulk, .deadline = deadline};
    auto reply = co_await transport_.call(target, std::move(request), options);
    if (reply) co_return Status{};
    if (reply.error().code != Errc::corrupt || attempt >= 5) co_return std::unexpected(std::move(reply).error());
  }
}

/// Every committed version that this node holds for others: in frames, and newest ones in the kept files.
std::vector<PageAt> MemoryImpl::committed_pages(const RegionPtr& r) const {
  std::set<PageAt> out;
  r->pages->for_each_committed([&](PageNo page, Version version) {
    if (owned(*r, page)) out.insert({page, version});
  });
  if (kept_ && kept_->size() > 0) {
    control_.for_each_written(r->id(), [&](PageSpan span, Version version) {
      for (std::uint64_t i = 0; i < span.count; ++i) {
        const PageNo page{span.first.value + i};
        if (kept_->has({r->id(), page, version}) && owned(*r, page)) out.insert({page, version});
      }
    });
  }
  return {out.begin(), out.end()};
}

// ---- repair

void MemoryImpl::start_repair(const RegionPtr& r) {
  if (r->repairing || stopped_) return;
  r->repairing = true;
  // Not from inside the log's apply.
  loop_.post([this, r, alive = alive_] {
    if (*alive) loop_.spawn(repair(r));
  });
}

/// Fetches the newest bytes of pages that are to be here and did not come with their commit.
Task<void> MemoryImpl::repair(RegionPtr r) {
  const std::size_t most = std::max<std::size_t>(1, kPopulateBytes / r->page_bytes());
  Duration pause = seconds(1);  // Whoever has them may never come back.
  while (!r->repairs.empty() && !r->freed && !stopped_) {
    std::vector<PageAt> wants;
    while (!r->repairs.empty() && wants.size() < most) {
      const PageNo page = *r->repairs.begin();
      r->repairs.erase(r->repairs.begin());
      const Version version = r->pages->history().newest(page);
      const ShardCopies c = copies(*r, page);
      const bool others =
          std::any_of(c.in_sync.begin(), c.in_sync.end(), [&](NodeId n) { return n != control_.self(); });
      if (others && owned(*r, page) && !r->pages->has(page, version)) wants.push_back({page, version});
    }
    if (wants.empty()) continue;
    auto bytes = co_await fetch(r, wants, true, env::StreamClass::bulk, loop_.now() + config_.fetch_deadline);
    if (bytes) continue;
    log_warn("memory", "copies of region \"", r->shape.name, "\" are missing here: ", bytes.error().message);
    for (const PageAt& at : wants) r->repairs.insert(at.page);
    const bool awake = co_await env::sleep_for(loop_, pause);
    pause = std::min(pause * 2, seconds(10));
    if (!awake) break;
  }
  r->repairing = false;
}

// ---- leaving

Status MemoryImpl::may_leave() const {
  for (const auto& [id, r] : regions_) {
    std::uint64_t pages = 0;
    control_.for_each_written(id, [&](PageSpan span, Version) {
      for (std::uint64_t i = 0; i < span.count; ++i) {
        const ShardCopies c = copies(*r, PageNo{span.first.value + i});
        if (c.in_sync.size() == 1 && c.in_sync.front() == control_.self()) ++pages;
      }
    });
    if (pages > 0) {
      return fail(Errc::refused,
                  str(pages, " pages of region \"", r->shape.name, "\" have their only copy on node ",
                      control_.node_name(control_.self())),
                  "free the region, or add nodes with memory to hand its pages to");
    }
  }
  return {};
}

bool MemoryImpl::stranded() const {
  bool found = false;
  for (const auto& [id, r] : regions_) {
    control_.for_each_written(id, [&](PageSpan span, Version) {
      for (std::uint64_t i = 0; i < span.count && !found; ++i) {
        const ShardCopies c = copies(*r, PageNo{span.first.value + i});
        found = c.in_sync.size() == 1 && c.in_sync.front() == control_.self() && !c.planned;
      }
    });
  }
  return found;
}

Task<Status> MemoryImpl::hand_over(Instant deadline) {
  for (;;) {
    auto free = may_leave();
    if (free) co_return free;
    start_all_moves();
    // The plan has a node for every last copy that any node has room for: what has none now will not get one.
    if (stranded() || loop_.now() >= deadline) co_return free;
    const bool awake = co_await env::sleep_for(loop_, milliseconds(50));
    if (!awake) co_return fail(Errc::cancelled, "the agent is stopping");
  }
}

// ---- keeping pages over a restart

Task<Status> MemoryImpl::keep_pages() {
  auto plan = std::make_shared<std::vector<KeptPage>>(std::exchange(to_keep_, {}));
  if (!kept_) {
    if (plan->empty()) co_return Status{};
    co_return fail(Errc::io_error, "the pages of this node are not kept: their directory was never opened");
  }
  std::uint64_t total = 0;
  for (const KeptPage& p : *plan) total += p.region->page_bytes();
  if (total > kLongStop) log_info("memory", "writing ", total >> 20, " MiB of pages to ", config_.state_dir);
  constexpr std::size_t kFiles = 2;
  HOLO_CO_ASSIGN(writer, kept_->write(kFiles));
  std::shared_ptr<PageFiles::Writer> shared = std::move(writer);
  std::vector<Task<Status>> tasks;
  for (std::size_t file = 0; file < kFiles; ++file) {
    // The loop serves nothing any more and changes no page: helper threads may read the frames.
    std::function<Status()> work = [plan, file, shared, kept = kept_]() -> Status {
      const std::size_t from = plan->size() * file / kFiles, to = plan->size() * (file + 1) / kFiles;
      for (std::size_t i = from; i < to; ++i) {
        const KeptPage& p = (*plan)[i];
        const PageName name{p.region->id(), p.at.page, p.at.version};
        ByteSpan bytes = p.region->pages->content(p.at.page, p.at.version);
        Buffer loaded;
        if (bytes.empty()) {
          auto old = kept->load(name);
          if (!old) {
            log_error("memory", old.error().message, "; it is not kept");
            continue;
          }
          loaded = std::move(*old);
          bytes = loaded.span();
        }
        HOLO_TRY(shared->add(file, name, bytes));
      }
      return shared->finish(file);
    };
    tasks.push_back(env::offload(loop_, std::move(work)));
  }
  auto results = co_await gather(loop_, std::move(tasks));
  for (auto& result : results) {
    if (!result) co_return std::unexpected(std::move(result).error());
  }
  HOLO_CO_TRY(shared->commit());
  co_return Status{};
}

}  // namespace holo::node
