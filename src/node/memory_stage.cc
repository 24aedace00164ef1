// Staging: changed pages go to their home, which checks and merges them, and from there to the other in-sync nodes.
#include <algorithm>

#include "base/log.h"
#include "core/memory/merge.h"
#include "node/gather.h"
#include "node/memory_impl.h"

namespace holo::node {
namespace {

bool worth_retrying(const Error& e) {
  return e.code == Errc::stale_epoch || e.code == Errc::unavailable || e.code == Errc::overloaded ||
         e.code == Errc::corrupt;
}

Error staging_error(const Region& r, Error e) {
  if (e.code != Errc::unavailable && e.code != Errc::stale_epoch) return e;
  e.message = str("pages of region \"", r.shape.name, "\" cannot be staged: ", e.message);
  e.retryable = true;
  return e;
}

}  // namespace

/// Whether `txn` may still stage: its coordinator lives under that incarnation, and nobody has decided it.
Status MemoryImpl::check_open(const TxnId& txn) const {
  if (stopped_) return fail(Errc::unavailable, "the agent is stopping");
  if (decided_.contains(txn)) return fail(Errc::cancelled, "the transaction was committed or aborted already");
  if (control_.incarnation_of(txn.node) != txn.incarnation) {
    return fail(Errc::cancelled,
                str("node ", control_.node_name(txn.node), ", which coordinates the transaction, is gone"));
  }
  return {};
}

// ---- from the writer's node

/// Stages parts of one block, wherever its home is now; goes after the home while it moves.
Task<Result<std::vector<StagedSpan>>> MemoryImpl::stage_group(RegionPtr r, TxnId txn, Version base,
                                                              std::vector<PagePart> parts, Instant deadline) {
  Duration pause = milliseconds(5);
  for (;;) {
    if (r->freed) co_return fail(Errc::not_found, str("region \"", r->shape.name, "\" was freed"));
    const ShardCopies holders = copies(*r, parts.front().page);
    Error last{.code = Errc::page_lost,
               .message = str("page ", parts.front().page, " of region \"", r->shape.name, "\" has no home")};
    if (!holders.in_sync.empty()) {
      const NodeId home = holders.in_sync.front();
      if (home == control_.self()) {
        auto staged = co_await stage_at_home(r, txn, base, parts, deadline);
        if (staged) co_return staged;
        last = std::move(staged).error();
      } else {
        auto staged = co_await stage_remote(r, home, txn, base, parts, deadline);
        if (staged) co_return staged;
        last = std::move(staged).error();
        if (last.node == 0) last.node = home.value;
      }
    }
    if (!worth_retrying(last) || loop_.now() + pause >= deadline)
      co_return std::unexpected(staging_error(*r, std::move(last)));
    const bool more = co_await env::sleep_for(loop_, pause);
    if (!more) co_return fail(Errc::cancelled, "the agent is stopping");
    pause = std::min(pause * 2, milliseconds(200));
  }
}

Task<Result<std::vector<StagedSpan>>> MemoryImpl::stage_remote(RegionPtr r, NodeId home, TxnId txn, Version base,
                                                               std::vector<PagePart> parts, Instant deadline) {
  wire::PageStage ask;
  to_wire(txn, ask.mutable_txn());
  ask.set_region(r->id().value);
  ask.set_base(base.value);
  ask.set_epoch(control_.epoch().value);
  std::vector<Buffer> payload;
  for (const PagePart& part : parts) {
    auto* p = ask.add_parts();
    p->set_page(part.page.value);
    p->set_offset(static_cast<std::uint32_t>(part.offset));
    p->set_length(static_cast<std::uint32_t>(part.bytes.size()));
    p->set_checksum(digest_of(part.bytes.span()));
    payload.push_back(part.bytes);
  }
  env::Request request{.type = static_cast<std::uint16_t>(wire::PeerMessage::page_stage),
                       .header = ask.SerializeAsString(),
                       .payload = std::move(payload)};
  env::CallOptions options{.klass = env::StreamClass::bulk, .deadline = deadline};
  HOLO_CO_ASSIGN(reply, co_await transport_.call(home, std::move(request), options));
  HOLO_CO_ASSIGN(answer, decode<wire::PageStageReply>(reply.header));
  std::vector<StagedSpan> out;
  for (const auto& span : answer.staged()) {
    StagedSpan s{.pages = {PageNo{span.first()}, span.count()}, .holders = {}};
    for (std::uint64_t node : span.holders()) s.holders.push_back(NodeId{node});
    out.push_back(std::move(s));
  }
  co_return out;
}

/// Stages parts of any pages through this node and notes what came of it under the transaction.
Task<Status> MemoryImpl::stage_parts(RegionPtr r, TxnId txn, Version base, std::vector<PagePart> parts,
                                     Instant deadline) {
  std::map<std::uint64_t, std::vector<PagePart>> blocks;
  for (PagePart& part : parts) blocks[part.page.value / r->shape.block_pages].push_back(std::move(part));
  const std::size_t most = std::max<std::size_t>(1, kStageRequestBytes / r->page_bytes());
  std::vector<Task<Result<std::vector<StagedSpan>>>> tasks;
  for (auto& [block, group] : blocks) {
    for (std::size_t i = 0; i < group.size(); i += most) {
      std::vector<PagePart> some(
          std::make_move_iterator(group.begin() + static_cast<std::ptrdiff_t>(i)),
          std::make_move_iterator(group.begin() + static_cast<std::ptrdiff_t>(std::min(i + most, group.size()))));
      tasks.push_back(stage_group(r, txn, base, std::move(some), deadline));
    }
  }
  auto results = co_await gather(loop_, std::move(tasks));
  auto local = txns_.find(txn);
  if (local == txns_.end()) co_return fail(Errc::cancelled, "the transaction was aborted meanwhile");
  for (auto& result : results) {
    if (!result) co_return std::unexpected(std::move(result).error());
    for (const StagedSpan& span : *result) {
      for (std::uint64_t i = 0; i < span.pages.count; ++i) {
        local->second.staged[r->id()][PageNo{span.pages.first.value + i}] = span.holders;
      }
    }
  }
  co_return Status{};
}

// ---- at the home

Task<Result<std::vector<StagedSpan>>> MemoryImpl::stage_at_home(RegionPtr r, TxnId txn, Version base,
                                                                std::vector<PagePart> parts, Instant deadline) {
  HOLO_CO_TRY(co_await wait_region(r, base, deadline));
  std::vector<PageNo> kept;
  for (const PagePart& part : parts) {
    // Nothing of this may change between the last check and stage(): it suspends only before.
    HOLO_CO_TRY(co_await ensure_for_stage(r, part.page, base, deadline));
    if (const auto more = room_to_stage(*r, part.page, part.bytes); more && !make_room(*more)) {
      HOLO_CO_TRY(co_await wait_for_room(*more));
      HOLO_CO_TRY(co_await ensure_for_stage(r, part.page, base, deadline));
    }
    HOLO_CO_TRY(check_open(txn));
    const ShardCopies holders = copies(*r, part.page);
    if (r->freed || holders.in_sync.empty() || holders.in_sync.front() != control_.self()) {
      co_return fail(Errc::stale_epoch,
                     str("node ", control_.node_name(control_.self()), " is not the home of page ", part.page));
    }
    auto staged =
        r->pages->stage({.txn = txn, .page = part.page, .base = base, .offset = part.offset, .bytes = part.bytes});
    if (!staged) {
      if (staged.error().code == Errc::write_conflict) ++counters_.conflicts;
      Error e = std::move(staged).error();
      e.node = control_.self().value;
      co_return std::unexpected(std::move(e));
    }
    ++counters_.pages_staged;
    if (!*staged) continue;
    if (r->pages->staged_base(txn, part.page) != r->pages->history().version_at(part.page, base))
      ++counters_.pages_merged;
    staged_since_.try_emplace(txn, loop_.now());
    kept.push_back(part.page);
  }
  parts.clear();  // Gives back what was not taken.
  std::sort(kept.begin(), kept.end());
  kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
  auto spans = co_await replicate(r, txn, std::move(kept), deadline);
  co_return spans;
}

/// Gives staged pages (homed here) to every other in-sync node of their shard; returns once enough of them hold them.
Task<Result<std::vector<StagedSpan>>> MemoryImpl::replicate(RegionPtr r, TxnId txn, std::vector<PageNo> pages,
                                                            Instant deadline) {
  std::vector<StagedSpan> out;
  std::map<std::uint64_t, std::vector<PageNo>> blocks;
  for (PageNo page : pages) blocks[page.value / r->shape.block_pages].push_back(page);
  for (auto& [block, group] : blocks) {
    std::set<NodeId> sent;
    NodeId filled;  // Holds them too, though nothing depends on it yet.
    for (;;) {
      if (r->freed) co_return fail(Errc::not_found, str("region \"", r->shape.name, "\" was freed"));
      const ShardCopies holders = copies(*r, group.front());
      if (holders.in_sync.empty() || holders.in_sync.front() != control_.self())
        co_return fail(Errc::stale_epoch, "the home has moved");
      std::vector<NodeId> targets;
      for (NodeId node : holders.in_sync) {
        if (node != control_.self() && !sent.contains(node)) targets.push_back(node);
      }
      const bool fills = holders.filling && holders.filling != filled;
      if (fills) targets.push_back(holders.filling);
      std::vector<Task<Status>> tasks;
      tasks.reserve(targets.size());
      for (NodeId node : targets)
        tasks.push_back(send_backup(r, node, txn, group, std::min(deadline, loop_.now() + kPeerDeadline)));
      Error last{.code = Errc::unavailable, .message = "no other node holds a copy"};
      auto results = co_await gather(loop_, std::move(tasks));
      for (std::size_t i = 0; i < results.size(); ++i) {
        if (fills && i + 1 == results.size()) {
          // It fetches what it misses when the commit comes: it is not waited for.
          if (results[i]) sent.insert(targets[i]);
          filled = targets[i];
        } else if (results[i]) {
          sent.insert(targets[i]);
        } else {
          last = results[i].error();
          watch_path(targets[i]);
          if (last.node == 0) last.node = targets[i].value;
        }
      }
      if (last.code == Errc::cancelled || last.code == Errc::out_of_memory) co_return std::unexpected(std::move(last));
      const ShardCopies now = copies(*r, group.front());
      const bool home = !now.in_sync.empty() && now.in_sync.front() == control_.self();
      const bool all = std::all_of(now.in_sync.begin(), now.in_sync.end(),
                                   [&](NodeId n) { return n == control_.self() || sent.contains(n); });
      std::size_t required = std::min<std::size_t>(r->shape.replication, control_.live_nodes().size());
      if (r->shape.replication >= 2) required = std::max<std::size_t>(required, 2);
      if (home && all && now.in_sync.size() >= required) {
        std::vector<NodeId> hold = now.in_sync;
        for (const NodeId n : sent) {
          if (std::find(hold.begin(), hold.end(), n) == hold.end()) hold.push_back(n);
        }
        for (const PageSpan& span : memory::to_spans(group)) out.push_back({.pages = span, .holders = hold});
        break;
      }
      if (loop_.now() + milliseconds(20) >= deadline) {
        Error e{.code = Errc::under_replicated,
                .message = str("page ", group.front(), " of region \"", r->shape.name, "\" wants ", required,
                               " copies and can have ", now.in_sync.size(), " now: ", last.message),
                .hint = "start the missing nodes again, or wait until copies are made elsewhere",
                .node = last.node,
                .retryable = true};
        co_return std::unexpected(std::move(e));
      }
      const bool more = co_await env::sleep_for(loop_, milliseconds(20));
      if (!more) co_return fail(Errc::cancelled, "the agent is stopping");
    }
  }
  co_return out;
}

Task<Status> MemoryImpl::send_backup(RegionPtr r, NodeId node, TxnId txn, std::vector<PageNo> pages, Instant deadline) {
  const std::size_t most = std::max<std::size_t>(1, kStageRequestBytes / r->page_bytes());
  for (std::size_t i = 0; i < pages.size(); i += most) {
    wire::PageBackup ask;
    to_wire(txn, ask.mutable_txn());
    ask.set_region(r->id().value);
    ask.set_epoch(control_.epoch().value);
    std::vector<Buffer> payload;
    for (std::size_t k = i; k < std::min(i + most, pages.size()); ++k) {
      const ByteSpan bytes = r->pages->staged(txn, pages[k]);
      if (bytes.empty()) co_return fail(Errc::cancelled, "the transaction was aborted meanwhile");
      auto* p = ask.add_pages();
      p->set_page(pages[k].value);
      p->set_version(r->pages->staged_base(txn, pages[k]).value);
      p->set_checksum(digest_of(bytes));
      payload.push_back(Buffer::copy(bytes));
    }
    env::Request request{.type = static_cast<std::uint16_t>(wire::PeerMessage::page_backup),
                         .header = ask.SerializeAsString(),
                         .payload = std::move(payload)};
    env::CallOptions options{.klass = env::StreamClass::bulk, .deadline = deadline};
    auto reply = co_await transport_.call(node, std::move(request), options);
    if (!reply) co_return std::unexpected(std::move(reply).error());
  }
  co_return Status{};
}

// ---- windows of a finished task

Task<Status> MemoryImpl::seal_windows(RegionPtr r, TxnId txn, Instant deadline) {
  std::vector<PageNo> pages = r->pages->closed_windows(txn);
  std::sort(pages.begin(), pages.end());
  for (PageNo page : pages) {
    const ShardCopies holders = copies(*r, page);
    if (holders.in_sync.empty() || holders.in_sync.front() != control_.self()) {
      co_return fail(Errc::stale_epoch,
                     str("page ", page, " of region \"", r->shape.name, "\" has moved since it was written in place"));
    }
    // What a conflict check compares with has to be here. The window's base is, as its twin.
    const auto local = txns_.find(txn);
    if (local == txns_.end()) co_return fail(Errc::cancelled, "the transaction was aborted meanwhile");
    // Between the page's version and the floor nothing was written, so the floor's snapshot stands for it.
    const Version base = std::max(r->pages->staged_base(txn, page), r->pages->history().floor());
    HOLO_CO_TRY(co_await ensure_for_stage(r, page, base, deadline));
    if (r->pages->staged(txn, page).empty()) co_return fail(Errc::cancelled, "the transaction was aborted meanwhile");
    auto sealed = r->pages->seal_window(page);
    if (!sealed) {
      ++counters_.conflicts;
      co_return std::unexpected(std::move(sealed).error());
    }
    ++counters_.pages_staged;
  }
  std::vector<Task<Result<std::vector<StagedSpan>>>> tasks;
  for (std::size_t i = 0; i < pages.size();) {
    std::size_t end = i + 1;
    while (end < pages.size() && pages[end].value / r->shape.block_pages == pages[i].value / r->shape.block_pages)
      ++end;
    std::vector<PageNo> group(pages.begin() + static_cast<std::ptrdiff_t>(i),
                              pages.begin() + static_cast<std::ptrdiff_t>(end));
    tasks.push_back(replicate(r, txn, std::move(group), deadline));
    i = end;
  }
  auto results = co_await gather(loop_, std::move(tasks));
  const auto local = txns_.find(txn);
  if (local == txns_.end()) co_return fail(Errc::cancelled, "the transaction was aborted meanwhile");
  for (auto& result : results) {
    if (!result) co_return std::unexpected(std::move(result).error());
    for (const StagedSpan& span : *result) {
      for (std::uint64_t k = 0; k < span.pages.count; ++k) {
        local->second.staged[r->id()][PageNo{span.pages.first.value + k}] = span.holders;
      }
    }
  }
  co_return Status{};
}

// ---- requests of other nodes

Task<Result<env::Reply>> MemoryImpl::serve_stage(NodeId from, env::Request request) {
  HOLO_CO_ASSIGN(ask, decode<wire::PageStage>(request.header));
  HOLO_CO_ASSIGN(r, co_await region_for_peer(RegionId{ask.region()}));
  PagesIn pages(request.payload);
  std::vector<PagePart> parts;
  for (const auto& p : ask.parts()) {
    if (p.page() >= r->shape.pages() || p.offset() > r->page_bytes() || p.length() > r->page_bytes() - p.offset()) {
      co_return fail(Errc::malformed, "staged pages outside their region");
    }
    Buffer bytes = pages.next(p.length());
    if (bytes.size() != p.length()) co_return fail(Errc::malformed, "staged pages without their bytes");
    if (digest_of(bytes.span()) != p.checksum()) {
      ++counters_.corrupt_refused;
      log_warn("memory", "a staged page from node ", control_.node_name(from),
               " fails its checksum; it has to send it again");
      co_return fail(Errc::corrupt, str("page ", p.page(), " arrived with a wrong checksum"));
    }
    parts.push_back({PageNo{p.page()}, p.offset(), std::move(bytes)});
  }
  if (parts.empty()) co_return fail(Errc::malformed, "nothing to stage");
  request.payload.clear();
  auto staged = co_await stage_at_home(r, from_wire(ask.txn()), Version{ask.base()}, std::move(parts),
                                       loop_.now() + config_.stage_deadline);
  if (!staged) co_return std::unexpected(std::move(staged).error());
  wire::PageStageReply reply;
  for (const StagedSpan& span : *staged) {
    auto* out = reply.add_staged();
    out->set_first(span.pages.first.value);
    out->set_count(span.pages.count);
    for (NodeId node : span.holders) out->add_holders(node.value);
  }
  co_return env::Reply{.header = reply.SerializeAsString(), .payload = {}};
}

Task<Result<env::Reply>> MemoryImpl::serve_backup(NodeId from, env::Request request) {
  HOLO_CO_ASSIGN(ask, decode<wire::PageBackup>(request.header));
  if (stopped_) co_return fail(Errc::unavailable, "the agent is stopping");
  HOLO_CO_ASSIGN(r, co_await region_for_peer(RegionId{ask.region()}));
  PagesIn pages(request.payload);
  const TxnId txn = from_wire(ask.txn());
  Version highest;
  for (const auto& p : ask.pages()) highest = std::max(highest, Version{p.version()});
  HOLO_CO_TRY(co_await wait_region(r, highest, loop_.now() + kPeerDeadline));
  if (stopped_) co_return fail(Errc::unavailable, "the agent is stopping");
  if (ask.has_txn()) HOLO_CO_TRY(check_open(txn));
  for (const auto& p : ask.pages()) {
    if (ask.has_txn() && ask.epoch() < control_.epoch().value && p.page() < r->shape.pages()) {
      // It was the home when it checked them for conflicts. Whoever is now checks without it.
      const ShardCopies now = copies(*r, PageNo{p.page()});
      if (now.in_sync.empty() || now.in_sync.front() != from) {
        co_return fail(Errc::stale_epoch, str("the home of page ", p.page(), " has moved"));
      }
    }
    if (p.page() >= r->shape.pages()) co_return fail(Errc::malformed, "copied pages outside their region");
    const PageNo page{p.page()};
    Buffer bytes = p.zero() ? Buffer(memory::zero_bytes(r->page_bytes()), nullptr) : pages.next(r->page_bytes());
    if (bytes.empty()) co_return fail(Errc::malformed, "copied pages without their bytes");
    if (digest_of(bytes.span()) != p.checksum()) {
      ++counters_.corrupt_refused;
      log_warn("memory", "a copied page from node ", control_.node_name(from),
               " fails its checksum; it has to send it again");
      co_return fail(Errc::corrupt, str("page ", p.page(), " arrived with a wrong checksum"));
    }
    if (!ask.has_txn()) {
      auto put = r->pages->put(page, Version{p.version()}, bytes);
      if (!put) co_return std::unexpected(std::move(put).error());
      continue;
    }
    if (const auto more = room_to_stage(*r, page, bytes); more && !make_room(*more)) {
      HOLO_CO_TRY(co_await wait_for_room(*more));
      HOLO_CO_TRY(check_open(txn));
    }
    r->pages->stage_copy(txn, page, Version{p.version()}, std::move(bytes));
    staged_since_.try_emplace(txn, loop_.now());
  }
  co_return env::Reply{.header = wire::PageBackupReply{}.SerializeAsString(), .payload = {}};
}

std::optional<std::uint64_t> MemoryImpl::room_to_stage(const Region& r, PageNo page, const Buffer& bytes) {
  if (r.pages->history().newest(page) == Version{}) return std::nullopt;
  return r.pages->landed(page, bytes.span()) ? 0 : r.page_bytes();
}

/// Whoever sends may know of a region, or of a copy that is to be here, a moment before this node does: then its pages
/// take buffers of their own.
std::shared_ptr<env::Landing> MemoryImpl::place_stage(const env::Request& announced, std::uint64_t payload_bytes) {
  const auto ask = decode<wire::PageStage>(announced.header);
  if (!ask) return nullptr;
  const auto it = regions_.find(RegionId{ask->region()});
  const RegionPtr r = it == regions_.end() ? nullptr : it->second;
  std::vector<PageLanding::Part> parts;
  for (const auto& p : ask->parts()) {
    PageLanding::Part part{.page = PageNo{p.page()}, .bytes = p.length(), .version = {}};
    if (part.bytes == 0 || (r && part.page.value >= r->shape.pages())) return nullptr;
    // What was written on an older version, or to a part of the page, is merged, and lies elsewhere then.
    const bool slot = r && part.bytes == r->page_bytes() && owned(*r, part.page) &&
                      Version{ask->base()} >= r->pages->history().newest(part.page);
    if (slot) part.version = Version{};
    parts.push_back(part);
  }
  auto landing = std::make_shared<PageLanding>(r, std::move(parts));
  return landing->size() == payload_bytes ? landing : nullptr;
}

std::shared_ptr<env::Landing> MemoryImpl::place_backup(const env::Request& announced, std::uint64_t payload_bytes) {
  const auto ask = decode<wire::PageBackup>(announced.header);
  if (!ask) return nullptr;
  const auto it = regions_.find(RegionId{ask->region()});
  const RegionPtr r = it == regions_.end() ? nullptr : it->second;
  const auto sent = static_cast<std::uint64_t>(
      std::ranges::count_if(ask->pages(), [](const wire::PageCopied& p) { return !p.zero(); }));
  if (sent == 0 || payload_bytes % sent != 0 || (r && payload_bytes / sent != r->page_bytes())) return nullptr;
  std::vector<PageLanding::Part> parts;
  for (const auto& p : ask->pages()) {
    if (p.zero()) continue;
    if (r && p.page() >= r->shape.pages()) return nullptr;
    // A committed version may take the place of an older copy.
    const Version version = ask->has_txn() ? Version{} : Version{p.version()};
    parts.push_back({.page = PageNo{p.page()}, .bytes = payload_bytes / sent, .version = version});
  }
  return std::make_shared<PageLanding>(r, std::move(parts));
}

Task<Result<env::Reply>> MemoryImpl::serve_abort(NodeId, env::Request request) {
  HOLO_CO_ASSIGN(ask, decode<wire::TxnAbort>(request.header));
  for (const auto& txn : ask.txns()) abort_here(from_wire(txn));
  co_return env::Reply{.header = wire::TxnAbortReply{}.SerializeAsString(), .payload = {}};
}

Task<Result<env::Reply>> MemoryImpl::serve_txn_status(NodeId, env::Request request) {
  HOLO_CO_ASSIGN(ask, decode<wire::TxnStatus>(request.header));
  wire::TxnStatusReply reply;
  reply.set_applied(control_.applied().value);
  for (const auto& t : ask.txns()) {
    const TxnId txn = from_wire(t);
    reply.add_open(open_.contains(txn) || in_doubt_.contains(txn));
  }
  co_return env::Reply{.header = reply.SerializeAsString(), .payload = {}};
}

}  // namespace holo::node
