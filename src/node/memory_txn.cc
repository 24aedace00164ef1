// Transactions: what a program or a task has staged becomes a version with one log entry, or goes.
#include <algorithm>

#include "base/log.h"
#include "core/memory/merge.h"
#include "node/gather.h"
#include "node/memory_impl.h"

namespace holo::node {

TxnId MemoryImpl::new_txn() {
  const TxnId txn{control_.self(), control_.incarnation(), next_txn_++};
  open_.insert(txn);
  return txn;
}

Task<Result<std::vector<RegionWrites>>> MemoryImpl::seal(TxnId txn, Instant deadline) {
  auto it = txns_.find(txn);
  if (it == txns_.end()) co_return std::vector<RegionWrites>{};
  if (it->second.broken) co_return fail(Errc::cancelled, "a process died while it wrote in place");
  std::vector<RegionPtr> windowed;
  for (RegionId id : it->second.windowed) {
    auto r = regions_.find(id);
    if (r == regions_.end()) co_return fail(Errc::not_found, "a region was freed while it was written");
    if (r->second->pages->has_open_window(txn)) co_return fail(Errc::refused, "a write window is still open");
    windowed.push_back(r->second);
  }
  for (const RegionPtr& r : windowed) HOLO_CO_TRY(co_await seal_windows(r, txn, deadline));
  it = txns_.find(txn);
  if (it == txns_.end()) co_return fail(Errc::cancelled, "the transaction was aborted meanwhile");

  std::vector<RegionWrites> out;
  for (const auto& [region, pages] : it->second.staged) {
    RegionWrites writes{.region = region, .pages = {}};
    for (const auto& [page, holders] : pages) {
      auto& spans = writes.pages;
      const bool follows = !spans.empty() && spans.back().pages.first.value + spans.back().pages.count == page.value;
      if (follows && spans.back().holders == holders) {
        ++spans.back().pages.count;
      } else {
        spans.push_back({.pages = {page, 1}, .holders = holders});
      }
    }
    if (!writes.pages.empty()) out.push_back(std::move(writes));
  }
  // A program keeps its transaction until COMMIT has an answer: it may have to stage again. A task's is done here.
  if (it->second.owner == SessionId{}) txns_.erase(it);
  co_return out;
}

/// Whether all who are in sync now hold the staged pages, and are enough. `unheld`: who is not known to.
Status MemoryImpl::check_holders(const TxnWrites& writes, std::vector<Unheld>* unheld) const {
  Status ok{};
  for (std::size_t ri = 0; ri < writes.regions.size(); ++ri) {
    const RegionWrites& region = writes.regions[ri];
    auto it = regions_.find(region.region);
    if (it == regions_.end()) return fail(Errc::not_found, "a region was freed while it was written");
    const Region& r = *it->second;
    for (std::size_t si = 0; si < region.pages.size(); ++si) {
      const StagedSpan& span = region.pages[si];
      for (std::uint64_t p = span.pages.first.value; p < span.pages.first.value + span.pages.count;
           p = block_end(r, p)) {
        const ShardCopies now = copies(r, PageNo{p});
        bool all = true;
        for (NodeId node : now.in_sync) {
          if (control_.alive(node) && std::find(span.holders.begin(), span.holders.end(), node) != span.holders.end())
            continue;
          all = false;
          if (unheld && control_.alive(node)) unheld->push_back({.region = ri, .span = si, .node = node});
        }
        std::size_t required = std::min<std::size_t>(r.shape.replication, control_.live_nodes().size());
        if (r.shape.replication >= 2) required = std::max<std::size_t>(required, 2);
        if (all && now.in_sync.size() >= required) continue;
        Error e{.code = Errc::stale_epoch,
                .message = str("page ", p, " of region \"", r.shape.name,
                               "\" was staged on nodes that have died or handed it over since"),
                .hint = "stage it again",
                .retryable = true};
        ok = std::unexpected(std::move(e));
        if (!unheld) return ok;
      }
    }
  }
  return ok;
}

std::vector<std::string> MemoryImpl::digests_here(RegionId region, const TxnId& txn,
                                                  const std::vector<PageNo>& pages) const {
  std::vector<std::string> out(pages.size());
  const auto it = regions_.find(region);
  if (it == regions_.end()) return out;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (pages[i].value >= it->second->shape.pages()) continue;
    if (const ByteSpan bytes = it->second->pages->staged(txn, pages[i]); !bytes.empty()) out[i] = digest_of(bytes);
  }
  return out;
}

Task<std::vector<std::string>> MemoryImpl::staged_digests(NodeId node, RegionId region, TxnId txn,
                                                          std::vector<PageNo> pages) {
  if (node == control_.self()) co_return digests_here(region, txn, pages);
  wire::StagedQuery ask;
  to_wire(txn, ask.mutable_txn());
  ask.set_region(region.value);
  for (const PageNo page : pages) ask.add_pages(page.value);
  env::Request request{.type = static_cast<std::uint16_t>(wire::PeerMessage::staged_query),
                       .header = ask.SerializeAsString(),
                       .payload = {}};
  env::CallOptions options{.klass = env::StreamClass::data, .deadline = loop_.now() + kPeerDeadline};
  auto reply = co_await transport_.call(node, std::move(request), options);
  std::vector<std::string> out(pages.size());
  wire::StagedQueryReply answer;
  if (!reply || !answer.ParseFromString(reply->header) || answer.digests_size() != static_cast<int>(pages.size())) {
    co_return out;
  }
  for (std::size_t i = 0; i < pages.size(); ++i) out[i] = answer.digests(static_cast<int>(i));
  co_return out;
}

/// Pages were staged before a node came to be in sync: it has them all the same when their home gave it what was staged
/// there. Asks, and compares with a node that is known to hold them.
Task<void> MemoryImpl::learn_holders(TxnId txn, std::shared_ptr<TxnWrites> writes, std::vector<Unheld> unheld) {
  std::set<std::tuple<std::size_t, std::size_t, NodeId>> asked;
  for (const Unheld& u : unheld) {
    if (!asked.insert({u.region, u.span, u.node}).second) continue;
    StagedSpan& span = writes->regions[u.region].pages[u.span];
    const RegionId region = writes->regions[u.region].region;
    NodeId known;
    for (const NodeId n : span.holders) {
      if (control_.alive(n) && n != u.node) known = n;
    }
    if (!known) continue;
    bool all = true;
    constexpr std::uint64_t kMost = 4096;  // Pages in one question.
    for (std::uint64_t at = 0; at < span.pages.count && all; at += kMost) {
      std::vector<PageNo> pages;
      for (std::uint64_t i = at; i < std::min(at + kMost, span.pages.count); ++i) {
        pages.push_back(PageNo{span.pages.first.value + i});
      }
      auto theirs = co_await staged_digests(known, region, txn, pages);
      auto its = co_await staged_digests(u.node, region, txn, pages);
      for (std::size_t i = 0; i < pages.size(); ++i) all = all && !its[i].empty() && its[i] == theirs[i];
    }
    if (all) span.holders.push_back(u.node);
  }
}

Task<Result<env::Reply>> MemoryImpl::serve_staged_query(NodeId, env::Request request) {
  HOLO_CO_ASSIGN(ask, decode<wire::StagedQuery>(request.header));
  std::vector<PageNo> pages;
  for (const std::uint64_t page : ask.pages()) pages.push_back(PageNo{page});
  wire::StagedQueryReply reply;
  for (std::string& d : digests_here(RegionId{ask.region()}, from_wire(ask.txn()), pages)) {
    reply.add_digests(std::move(d));
  }
  co_return env::Reply{.header = reply.SerializeAsString(), .payload = {}};
}

Task<Result<std::vector<Result<std::vector<RegionVersion>>>>> MemoryImpl::commit(std::vector<TxnWrites> txns,
                                                                                 Instant deadline) {
  using Versions = Result<std::vector<RegionVersion>>;
  std::vector<Versions> out(txns.size(), Versions(fail(Errc::internal, "not tried")));
  std::vector<std::size_t> left(txns.size());
  for (std::size_t i = 0; i < txns.size(); ++i) left[i] = i;
  while (!left.empty()) {
    const Epoch epoch = control_.epoch();
    std::vector<TxnCommit> command;
    std::vector<std::size_t> places;
    bool moved = false;
    for (std::size_t i : left) {
      if (command.size() == kTxnsPerCommand) break;
      std::vector<Unheld> unheld;
      auto ok = check_holders(txns[i], &unheld);
      if (!ok && !unheld.empty()) {
        auto writes = std::make_shared<TxnWrites>(std::move(txns[i]));
        co_await learn_holders(writes->txn, writes, std::move(unheld));
        txns[i] = std::move(*writes);
        moved = control_.epoch() != epoch;
        if (moved) break;
        ok = check_holders(txns[i], nullptr);
      }
      if (!ok) {
        out[i] = std::unexpected(std::move(ok).error());
        continue;
      }
      TxnCommit c{.txn = txns[i].txn, .regions = {}, .bump_only = txns[i].bump_only};
      for (const RegionWrites& region : txns[i].regions) {
        TxnCommit::Region pages{.region = region.region, .pages = {}};
        for (const StagedSpan& span : region.pages) pages.pages.push_back(span.pages);
        pages.pages = memory::normalise(std::move(pages.pages));
        c.regions.push_back(std::move(pages));
      }
      command.push_back(std::move(c));
      places.push_back(i);
    }
    if (moved) {  // Everything is looked at again.
      if (loop_.now() >= deadline) co_return fail(Errc::deadline_exceeded, "shards move faster than this commit");
      continue;
    }
    const std::size_t taken =
        left.size() > kTxnsPerCommand && command.size() == kTxnsPerCommand ? places.back() : SIZE_MAX;
    if (!command.empty()) {
      for (std::size_t i : places) in_doubt_.insert_or_assign(txns[i].txn, Doubt{.epoch = epoch, .given_up = false});
      auto result = co_await control_.commit(epoch, command, deadline);
      if (!result && result.error().code == Errc::stale_epoch) {
        // Certainly not committed. The new epoch is applied here, or about to be.
        for (std::size_t i : places) in_doubt_.erase(txns[i].txn);
        if (loop_.now() >= deadline) co_return std::unexpected(std::move(result).error());
        const bool more = co_await env::sleep_for(loop_, milliseconds(5));
        if (!more) co_return fail(Errc::cancelled, "the agent is stopping");
        continue;
      }
      if (!result) {
        // The log may still decide them later, while this epoch lasts: until then what they staged is kept.
        for (std::size_t i : places) {
          auto it = in_doubt_.find(txns[i].txn);
          if (it == in_doubt_.end()) continue;
          it->second.given_up = true;
          if (epoch < control_.epoch()) in_doubt_.erase(it);
        }
        co_return std::unexpected(std::move(result).error());
      }
      for (std::size_t k = 0; k < places.size(); ++k) {
        in_doubt_.erase(txns[places[k]].txn);
        out[places[k]] = std::move((*result)[k]);
      }
    }
    std::erase_if(left, [&](std::size_t i) { return taken == SIZE_MAX || i <= taken; });
  }
  co_return out;
}

void MemoryImpl::abort_here(const TxnId& txn) {
  staged_since_.erase(txn);
  txns_.erase(txn);
  remember_decided(txn);
  for (auto& [id, r] : regions_) r->pages->abort(txn);
}

Task<bool> MemoryImpl::send_abort(NodeId node, std::string header) {
  // Should it get lost for good, the sweep of staged pages finds out.
  for (int attempt = 0; attempt < 3; ++attempt) {
    env::Request request{
        .type = static_cast<std::uint16_t>(wire::PeerMessage::txn_abort), .header = header, .payload = {}};
    env::CallOptions options{.klass = env::StreamClass::control, .deadline = loop_.now() + kPeerDeadline};
    auto reply = co_await transport_.call(node, std::move(request), options);
    if (reply) co_return true;
  }
  co_return false;
}

/// Returns once every live node has dropped what these staged, or cannot be told.
Task<void> MemoryImpl::abort_everywhere(std::vector<TxnId> txns) {
  wire::TxnAbort message;
  for (const TxnId& txn : txns) {
    if (in_doubt_.contains(txn)) continue;  // The log may still commit it.
    if (decided_.contains(txn)) continue;
    abort_here(txn);
    to_wire(txn, message.add_txns());
  }
  if (message.txns_size() == 0 || stopped_) co_return;
  std::vector<Task<bool>> calls;
  for (NodeId node : control_.live_nodes()) {
    if (node != control_.self()) calls.push_back(send_abort(node, message.SerializeAsString()));
  }
  co_await gather(loop_, std::move(calls));
}

void MemoryImpl::abort(std::vector<TxnId> txns) { loop_.spawn(abort_everywhere(std::move(txns))); }

// ---- requests of local processes

MemoryImpl::Handled MemoryImpl::local_read(std::shared_ptr<LocalSession>, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode<wire::Read>(request.header));
  HOLO_CO_ASSIGN(r, find_region(RegionId{ask.region()}));
  const std::uint64_t size = r->shape.pages() * r->page_bytes();  // The last page is read whole by those who map it.
  if (ask.offset() > size || ask.length() > size - ask.offset() || ask.length() > limits::kMaxPayloadBytes) {
    co_return fail(Errc::invalid_argument,
                   str("bytes ", ask.offset(), " to ", ask.offset() + ask.length(), " of region \"", r->shape.name,
                       "\", which has ", r->shape.bytes, " (at most ", limits::kMaxPayloadBytes, " at once)"));
  }
  const Instant deadline = loop_.now() + config_.fetch_deadline;
  HOLO_CO_TRY(co_await wait_region(r, Version{ask.snapshot()}, deadline));
  const Version snapshot = ask.has_snapshot() ? Version{ask.snapshot()} : r->pages->history().newest();
  const SnapshotPin pinned = pin_region(r, snapshot);
  LocalReply out;
  if (ask.length() > 0) {
    const std::uint64_t pb = r->page_bytes();
    const std::uint64_t first = ask.offset() / pb, last = (ask.offset() + ask.length() - 1) / pb;
    const TxnId txn = ask.has_txn() ? from_wire(ask.txn()) : TxnId{};
    auto pages = co_await read_pages(r, snapshot, PageNo{first}, last - first + 1, txn, deadline);
    if (!pages) co_return std::unexpected(std::move(pages).error());
    for (std::uint64_t p = first; p <= last; ++p) {
      const std::uint64_t from = p == first ? ask.offset() - first * pb : 0;
      const std::uint64_t to = p == last ? ask.offset() + ask.length() - last * pb : pb;
      out.payload.push_back((*pages)[p - first].slice(from, to - from));
    }
  }
  wire::ReadReply reply;
  reply.set_snapshot(snapshot.value);
  out.header = reply.SerializeAsString();
  co_return out;
}

MemoryImpl::Handled MemoryImpl::local_stage(std::shared_ptr<LocalSession> session, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode<wire::Stage>(request.header));
  HOLO_CO_ASSIGN(r, find_region(RegionId{ask.region()}));
  const Buffer payload = request.payload.empty() ? Buffer{} : request.payload.front();
  const std::uint64_t pb = r->page_bytes();
  std::vector<PagePart> parts;
  if (ask.pages_size() > 0) {
    if (payload.size() != static_cast<std::uint64_t>(ask.pages_size()) * pb) {
      co_return fail(Errc::malformed, "staged pages and their bytes do not agree");
    }
    std::uint64_t at = 0;
    for (std::uint64_t page : ask.pages()) {
      if (page >= r->shape.pages())
        co_return fail(Errc::invalid_argument, str("region \"", r->shape.name, "\" has no page ", page));
      parts.push_back({PageNo{page}, 0, payload.slice(at, pb)});
      at += pb;
    }
  } else {
    const std::uint64_t size = r->shape.bytes, offset = ask.offset();
    if (offset > size || payload.size() > size - offset) {
      co_return fail(Errc::invalid_argument, str("bytes ", offset, " to ", offset + payload.size(), " of region \"",
                                                 r->shape.name, "\", which has ", size));
    }
    for (std::uint64_t at = 0; at < payload.size();) {
      const std::uint64_t page = (offset + at) / pb, within = (offset + at) % pb;
      const std::uint64_t n = std::min<std::uint64_t>(pb - within, payload.size() - at);
      parts.push_back({PageNo{page}, within, payload.slice(at, n)});
      at += n;
    }
  }
  for (const auto& [id, view] : r->views) {
    if (view->session_id != session->id()) continue;
    for (const PagePart& part : parts) view->given.forget({part.page, 1});  // It drops its own copy next.
  }
  TxnId txn = from_wire(ask.txn());
  if (!ask.has_txn()) {
    txn = new_txn();
    txns_[txn].owner = session->id();
  } else {
    HOLO_CO_TRY(check_open(txn));
    txns_.try_emplace(txn);
  }
  LocalTxn& local = txns_[txn];
  if (local.owner != SessionId{} && local.owner != session->id())
    co_return fail(Errc::permission_denied, "another program's transaction");
  local.pins.try_emplace(r->id(), pin_region(r, Version{ask.base()}));
  auto staged =
      co_await stage_parts(r, txn, Version{ask.base()}, std::move(parts), loop_.now() + config_.stage_deadline);
  if (!staged) {
    if (!ask.has_txn()) {  // Nobody knows its name.
      std::vector<TxnId> one{txn};
      co_await abort_everywhere(std::move(one));
    }
    co_return std::unexpected(std::move(staged).error());
  }
  wire::StageReply reply;
  to_wire(txn, reply.mutable_txn());
  co_return LocalReply{.header = reply.SerializeAsString(), .payload = {}, .fds = {}};
}

MemoryImpl::Handled MemoryImpl::local_commit(std::shared_ptr<LocalSession> session, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode<wire::Commit>(request.header));
  const TxnId txn = ask.has_txn() ? from_wire(ask.txn()) : new_txn();
  const auto local = txns_.find(txn);
  if (ask.has_txn() && (local == txns_.end() || local->second.owner != session->id())) {
    co_return fail(Errc::not_found, "this program has no such transaction");
  }
  const Instant deadline = loop_.now() + config_.stage_deadline;
  TxnWrites writes{.txn = txn, .regions = {}, .bump_only = {}};
  HOLO_CO_ASSIGN(sealed, co_await seal(txn, deadline));
  writes.regions = std::move(sealed);
  for (std::uint64_t id : ask.regions()) {
    const RegionId region{id};
    const bool written = std::any_of(writes.regions.begin(), writes.regions.end(),
                                     [&](const RegionWrites& w) { return w.region == region; });
    if (!written) writes.bump_only.push_back(region);
  }
  std::vector<TxnWrites> one;
  one.push_back(std::move(writes));
  auto results = co_await commit(std::move(one), deadline);
  if (!results) co_return std::unexpected(std::move(results).error());
  auto& result = results->front();
  if (!result) co_return std::unexpected(std::move(result).error());
  txns_.erase(txn);
  open_.erase(txn);
  wire::CommitReply reply;
  for (const RegionVersion& v : *result) {
    auto* out = reply.add_versions();
    out->set_region(v.region.value);
    out->set_version(v.version.value);
  }
  co_return LocalReply{.header = reply.SerializeAsString(), .payload = {}, .fds = {}};
}

MemoryImpl::Handled MemoryImpl::local_abort(std::shared_ptr<LocalSession> session, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode<wire::Abort>(request.header));
  const TxnId txn = from_wire(ask.txn());
  const auto local = txns_.find(txn);
  if (local != txns_.end() && local->second.owner == session->id()) {
    std::vector<TxnId> one{txn};
    co_await abort_everywhere(std::move(one));
  }
  co_return LocalReply{.header = wire::Empty{}.SerializeAsString(), .payload = {}, .fds = {}};
}

}  // namespace holo::node
