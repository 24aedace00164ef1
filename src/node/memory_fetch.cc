// Pages from elsewhere: kept files, other nodes. Every byte is checked before it enters a frame or reaches a reader.
#include <algorithm>

#include "base/log.h"
#include "core/memory/merge.h"
#include "node/gather.h"
#include "node/memory_impl.h"

namespace holo::node {
namespace {

constexpr int kAbsentRounds =
    4;  // all holders say "not here": asked so often, while one may be repairing, then page_lost

/// `error` says why the last try failed.
Error give_up(const Region& r, PageNo page, Error error) {
  if (error.code == Errc::page_lost || error.code == Errc::not_found || error.code == Errc::cancelled) return error;
  Error out{.code = error.code == Errc::corrupt ? Errc::corrupt : Errc::unavailable,
            .message = str("page ", page, " of region \"", r.shape.name, "\" cannot be read now: ", error.message),
            .hint = "the node may come back; try again",
            .node = error.node,
            .retryable = true};
  return out;
}

/// However the fetch ends: nobody else may hold the landing open.
struct LandingEnd {
  PageLanding* landing;
  ~LandingEnd() {
    if (landing != nullptr) landing->give_back();
  }
};

}  // namespace

void MemoryImpl::settle(Region& r, PageAt at, Result<Buffer> result) {
  auto it = r.fetching.find(at);
  if (it == r.fetching.end()) return;
  auto waiters = std::move(it->second);
  r.fetching.erase(it);
  for (const PageWaiter& w : waiters) w.shot->set(result);
}

bool MemoryImpl::room_for(Region& r, const std::vector<PageAt>& pages) {
  const auto others = std::ranges::count_if(pages, [&](const PageAt& at) { return !owned(r, at.page); });
  return others == 0 || make_room(static_cast<std::uint64_t>(others) * r.page_bytes());
}

/// Puts verified bytes into the frames where they have a place. False: the caller uses them directly.
bool MemoryImpl::keep_page(Region& r, PageAt at, const Buffer& bytes) {
  if (r.freed) return false;
  const bool landed = r.pages->landed(at.page, bytes.span());
  if (!landed && !owned(r, at.page) && !make_room(r.page_bytes())) return false;
  auto kept = r.pages->put(at.page, at.version, bytes);
  if (!kept) {
    log_warn("memory", "a page is not kept: ", kept.error().message);
    return false;
  }
  return *kept;
}

/// null: there is no room to keep them.
std::shared_ptr<PageLanding> MemoryImpl::landing_for(const RegionPtr& r, const std::vector<PageAt>& wants) {
  if (!room_for(*r, wants)) return nullptr;
  std::vector<PageLanding::Part> parts;
  parts.reserve(wants.size());
  for (const PageAt& at : wants) parts.push_back({.page = at.page, .bytes = r->page_bytes(), .version = at.version});
  auto landing = std::make_shared<FetchLanding>(r, std::move(parts));
  landing->take_slots();
  return landing;
}

/// Pages from the files of the last clean stop; an empty buffer for each that is not there, or damaged.
Task<std::vector<Buffer>> MemoryImpl::load_kept(RegionPtr r, std::vector<PageAt> wants) {
  std::vector<Buffer> out(wants.size());
  std::vector<PageName> names;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; kept_ && i < wants.size(); ++i) {
    const PageName name{r->id(), wants[i].page, wants[i].version};
    if (!kept_->has(name)) continue;
    names.push_back(name);
    places.push_back(i);
  }
  if (names.empty()) co_return out;
  std::function<std::vector<Result<Buffer>>()> work = [files = kept_, names] {
    std::vector<Result<Buffer>> loaded;
    for (const PageName& name : names) loaded.push_back(files->load(name));
    return loaded;
  };
  auto loaded = co_await env::offload(loop_, std::move(work));
  for (std::size_t i = 0; i < loaded.size(); ++i) {
    if (!loaded[i]) {
      ++counters_.corrupt_refused;
      log_error("memory", loaded[i].error().message, "; it is not used");
    } else if (loaded[i]->size() == r->page_bytes()) {
      out[places[i]] = std::move(*loaded[i]);
    }
  }
  co_return out;
}

Task<Result<std::vector<Buffer>>> MemoryImpl::fetch(RegionPtr r, std::vector<PageAt> wants, bool keep,
                                                    env::StreamClass klass, Instant deadline) {
  std::vector<std::shared_ptr<OneShot<Result<Buffer>>>> shots;
  shots.reserve(wants.size());
  std::map<std::uint64_t, std::vector<PageAt>> groups;  // by block: one list of holders
  for (const PageAt& at : wants) {
    auto shot = std::make_shared<OneShot<Result<Buffer>>>();
    shots.push_back(shot);
    if (const ByteSpan here = r->pages->content(at.page, at.version); !here.empty()) {
      shot->set(Buffer::copy(here));
      continue;
    }
    auto& waiters = r->fetching[at];
    if (waiters.empty()) groups[at.page.value / r->shape.block_pages].push_back(at);
    waiters.push_back({.shot = shot, .bytes = !keep});
  }
  const std::size_t most = std::max<std::size_t>(1, kFetchRequestBytes / r->page_bytes());
  for (auto& [block, pages] : groups) {
    for (std::size_t i = 0; i < pages.size(); i += most) {
      std::vector<PageAt> part(pages.begin() + static_cast<std::ptrdiff_t>(i),
                               pages.begin() + static_cast<std::ptrdiff_t>(std::min(i + most, pages.size())));
      loop_.spawn(fetch_group(r, std::move(part), keep, klass, deadline));
    }
  }
  std::vector<Buffer> out;
  out.reserve(shots.size());
  for (const auto& shot : shots) {
    // The group that fetches it settles by its own deadline; one that another caller began may end later than ours.
    auto bytes = co_await env::await_until(loop_, shot, deadline + milliseconds(100),
                                           str("pages of region \"", r->shape.name, "\""));
    if (!bytes) co_return std::unexpected(std::move(bytes).error());
    out.push_back(std::move(*bytes));
  }
  co_return out;
}

/// Fetches pages of one block: from the kept files, then from each in-sync node in turn, until the deadline.
Task<void> MemoryImpl::fetch_group(RegionPtr r, std::vector<PageAt> wants, bool keep, env::StreamClass klass,
                                   Instant deadline) {
  auto pending = std::make_shared<std::vector<PageAt>>();
  auto kept = co_await load_kept(r, wants);
  for (std::size_t i = 0; i < wants.size(); ++i) {
    if (kept[i].empty()) {
      pending->push_back(wants[i]);
      continue;
    }
    if (keep || owned(*r, wants[i].page)) keep_page(*r, wants[i], kept[i]);
    settle(*r, wants[i], std::move(kept[i]));
  }
  Error last{.code = Errc::unavailable, .message = "no node holds it"};
  Duration pause = milliseconds(5);
  int absent_rounds = 0;
  while (!pending->empty() && !r->freed) {
    const ShardCopies holders = copies(*r, pending->front().page);
    std::size_t asked = 0, absent = 0;
    std::string dead;
    for (NodeId node : holders.in_sync) {
      if (pending->empty()) break;
      if (node == control_.self()) {
        ++asked;
        ++absent;  // If it were here, nobody would ask.
        continue;
      }
      if (!control_.alive(node)) {
        dead += (dead.empty() ? "" : ", ") + control_.node_name(node);
        continue;
      }
      ++asked;
      const Instant until = std::min(deadline, loop_.now() + kPeerDeadline);
      const std::size_t before = pending->size();
      auto done = co_await fetch_from(r, node, pending, keep, klass, until);
      if (!done) {
        last = done.error();
        last.node = node.value;
      } else if (pending->size() == before) {
        ++absent;
      } else {
        absent_rounds = 0;
      }
    }
    if (pending->empty()) break;
    const std::string what = str("page ", pending->front().page, " of region \"", r->shape.name, "\" (version ",
                                 pending->front().version, ")");
    if (asked == 0) {
      last = Error{.code = Errc::page_lost,
                   .message = str(what, " is only on node ", dead.empty() ? "(none)" : dead, ", which is down"),
                   .hint = "it can be read again when that node comes back with its state directory",
                   .node = holders.in_sync.empty() ? 0 : holders.in_sync.front().value,
                   .retryable = true};
      break;
    }
    if (absent == asked && ++absent_rounds >= kAbsentRounds) {
      std::string names;
      for (NodeId node : holders.in_sync) names += (names.empty() ? "" : " and ") + control_.node_name(node);
      last = Error{.code = Errc::page_lost,
                   .message = str(what, " is lost: there is nothing of it on ", names, ", where it belongs now"),
                   .hint = "replication 2 or more keeps pages when a node is killed",
                   .node = holders.in_sync.front().value};
      break;
    }
    if (loop_.now() + pause >= deadline) break;
    const bool more = co_await env::sleep_for(loop_, pause);
    if (!more) {
      last = Error{.code = Errc::cancelled, .message = "the agent is stopping"};
      break;
    }
    pause = std::min(pause * 2, milliseconds(200));
  }
  if (!pending->empty()) ++counters_.fetch_failures;
  for (const PageAt& at : *pending) settle(*r, at, std::unexpected(give_up(*r, at.page, last)));
}

/// Asks `node` for what is pending and takes out what came. Corrupt pages stay pending: another node is asked for them.
Task<Status> MemoryImpl::fetch_from(RegionPtr r, NodeId node, std::shared_ptr<std::vector<PageAt>> pending, bool keep,
                                    env::StreamClass klass, Instant deadline) {
  wire::PageFetch ask;
  ask.set_region(r->id().value);
  for (const PageAt& at : *pending) {
    auto* p = ask.add_pages();
    p->set_page(at.page.value);
    p->set_version(at.version.value);
  }
  env::Request request{.type = static_cast<std::uint16_t>(wire::PeerMessage::page_fetch),
                       .header = ask.SerializeAsString(),
                       .payload = {}};
  keep = keep || owned(*r, pending->front().page);  // They are of one block.
  const auto landing = keep ? landing_for(r, *pending) : nullptr;
  const LandingEnd end{landing.get()};
  if (landing) {
    request.landing = landing;
    loop_.post([landing] { landing->prepare(); });  // Once the question is on its way.
  }
  env::CallOptions options{.klass = klass, .deadline = deadline};
  HOLO_CO_ASSIGN(reply, co_await transport_.call(node, std::move(request), options));
  HOLO_CO_ASSIGN(given, decode<wire::PageFetchReply>(reply.header));
  if (given.pages_size() != static_cast<int>(pending->size()))
    co_return fail(Errc::malformed, "an answer for other pages");
  const auto with_bytes = static_cast<std::uint64_t>(
      std::ranges::count(given.pages(), wire::PageGiven::BYTES, [](const auto& page) { return page.state(); }));
  if (landing && landing->used() && with_bytes * r->page_bytes() != landing->size())
    co_return fail(Errc::malformed, "an answer with too many bytes");
  if (landing && !landing->used()) landing->give_back();
  PagesIn pages(reply.payload);
  std::vector<PageAt> left;
  Status status{};
  for (int i = 0; i < given.pages_size(); ++i) {
    const wire::PageGiven& page = given.pages(i);
    const PageAt want = (*pending)[static_cast<std::size_t>(i)];
    if (page.state() != wire::PageGiven::BYTES && page.state() != wire::PageGiven::ZERO) {
      left.push_back(want);
      continue;
    }
    Buffer bytes = page.state() == wire::PageGiven::BYTES ? pages.next(r->page_bytes())
                                                          : Buffer(memory::zero_bytes(r->page_bytes()), nullptr);
    if (bytes.empty()) co_return fail(Errc::malformed, "an answer with too few bytes");
    if (digest_of(bytes.span()) != page.checksum()) {
      ++counters_.corrupt_refused;
      log_warn("memory", "page ", want.page, " of region \"", r->shape.name, "\" from node ", control_.node_name(node),
               " fails its checksum; asking again");
      status = fail(Errc::corrupt, str("node ", control_.node_name(node), " sends bytes that fail their checksum"));
      left.push_back(want);
      continue;
    }
    ++counters_.pages_fetched;
    counters_.bytes_fetched += bytes.size();
    const bool landed = r->pages->landed(want.page, bytes.span());
    const bool kept = keep && keep_page(*r, want, bytes);
    if (landed) {  // A buffer is made only for who needs one.
      const auto it = r->fetching.find(want);
      const bool wanted = it != r->fetching.end() && std::ranges::any_of(it->second, &PageWaiter::bytes);
      bytes = wanted || !kept ? Buffer::copy(bytes.span()) : Buffer{};
    }
    settle(*r, want, std::move(bytes));
  }
  *pending = std::move(left);
  co_return status;
}

Task<Result<env::Reply>> MemoryImpl::serve_fetch(NodeId, env::Request request) {
  HOLO_CO_ASSIGN(ask, decode<wire::PageFetch>(request.header));
  HOLO_CO_ASSIGN(r, co_await region_for_peer(RegionId{ask.region()}));
  if (static_cast<std::uint64_t>(ask.pages_size()) * r->page_bytes() > limits::kMaxPayloadBytes) {
    co_return fail(Errc::invalid_argument, "more pages than one answer may hold");
  }
  Version highest;
  for (const auto& p : ask.pages()) highest = std::max(highest, Version{p.version()});
  // The reader may be ahead of us in the log by a moment.
  HOLO_CO_TRY(co_await wait_region(r, highest, loop_.now() + kPeerDeadline));
  const TxnId txn = ask.has_txn() ? from_wire(ask.txn()) : TxnId{};
  wire::PageFetchReply reply;
  std::vector<Buffer> payload;
  for (const auto& p : ask.pages()) {
    const PageAt at{PageNo{p.page()}, Version{p.version()}};
    auto* given = reply.add_pages();
    given->set_page(p.page());
    if (at.page.value >= r->shape.pages()) {
      given->set_state(wire::PageGiven::ABSENT);
      continue;
    }
    Buffer bytes;
    if (ask.has_txn()) {
      if (const ByteSpan staged = r->pages->staged(txn, at.page); !staged.empty()) {
        bytes = Buffer::copy(staged);
        given->set_staged(true);
      }
    }
    if (bytes.empty()) {
      if (const ByteSpan here = r->pages->content(at.page, at.version); !here.empty()) bytes = Buffer::copy(here);
    }
    if (bytes.empty()) {
      std::vector<PageAt> one{at};
      auto kept = co_await load_kept(r, std::move(one));
      bytes = std::move(kept.front());
      if (!bytes.empty() && owned(*r, at.page)) keep_page(*r, at, bytes);
    }
    if (bytes.empty()) {
      given->set_state(wire::PageGiven::ABSENT);
      continue;
    }
    given->set_checksum(digest_of(bytes.span()));
    ++counters_.pages_served;
    if (memory::same_bytes(bytes.span(), memory::zero_bytes(bytes.size()))) {
      given->set_state(wire::PageGiven::ZERO);
    } else {
      given->set_state(wire::PageGiven::BYTES);
      payload.push_back(std::move(bytes));
    }
  }
  co_return env::Reply{.header = reply.SerializeAsString(), .payload = std::move(payload)};
}

/// Brings here what stage() of a write at `base` needs. Afterwards, until the next suspension, nothing is missing.
Task<Status> MemoryImpl::ensure_for_stage(RegionPtr r, PageNo page, Version base, Instant deadline) {
  for (;;) {
    auto missing = r->pages->missing_for_stage(page, base);
    if (!missing) co_return std::unexpected(std::move(missing).error());
    if (missing->empty()) co_return Status{};
    std::vector<PageAt> wants;
    for (Version v : *missing) wants.push_back({page, v});
    auto bytes = co_await fetch(r, wants, true, env::StreamClass::data, deadline);
    if (!bytes) co_return std::unexpected(std::move(bytes).error());
    auto still = r->pages->missing_for_stage(page, base);
    if (still && !still->empty() && loop_.now() >= deadline) {
      co_return fail(Errc::out_of_memory,
                     str("no room for the base of page ", page, " of region \"", r->shape.name, "\""));
    }
    if (still && !still->empty()) {
      const bool more = co_await env::sleep_for(loop_, milliseconds(20));
      if (!more) co_return fail(Errc::cancelled, "the agent is stopping");
    }
  }
}

// ---- bulk reads

Task<Result<Buffer>> MemoryImpl::read_staged(RegionPtr r, PageAt at, TxnId txn, Instant deadline) {
  Error last{.code = Errc::unavailable, .message = "not asked"};
  for (;;) {
    const ShardCopies holders = copies(*r, at.page);
    const NodeId home = holders.in_sync.empty() ? NodeId{} : holders.in_sync.front();
    if (home == control_.self()) {
      if (const ByteSpan staged = r->pages->staged(txn, at.page); !staged.empty()) co_return Buffer::copy(staged);
      break;  // It changed nothing: the base stands.
    }
    wire::PageFetch ask;
    ask.set_region(r->id().value);
    to_wire(txn, ask.mutable_txn());
    auto* p = ask.add_pages();
    p->set_page(at.page.value);
    p->set_version(at.version.value);
    env::Request request{.type = static_cast<std::uint16_t>(wire::PeerMessage::page_fetch),
                         .header = ask.SerializeAsString(),
                         .payload = {}};
    env::CallOptions options{.klass = env::StreamClass::data,
                             .deadline = std::min(deadline, loop_.now() + kPeerDeadline)};
    auto reply = co_await transport_.call(home, std::move(request), options);
    if (reply) {
      wire::PageFetchReply given;
      if (given.ParseFromString(reply->header) && given.pages_size() == 1) {
        const auto& page = given.pages(0);
        if (!page.staged()) break;
        const Buffer bytes = page.state() == wire::PageGiven::ZERO
                                 ? Buffer(memory::zero_bytes(r->page_bytes()), nullptr)
                             : reply->payload.empty() ? Buffer{}
                                                      : reply->payload.front();
        if (bytes.size() == r->page_bytes() && digest_of(bytes.span()) == page.checksum()) co_return bytes;
        ++counters_.corrupt_refused;
      }
    } else {
      last = reply.error();
    }
    if (loop_.now() >= deadline) co_return std::unexpected(give_up(*r, at.page, last));
    const bool more = co_await env::sleep_for(loop_, milliseconds(20));
    if (!more) co_return fail(Errc::cancelled, "the agent is stopping");
  }
  if (at.version == Version{}) co_return Buffer(memory::zero_bytes(r->page_bytes()), nullptr);
  std::vector<PageAt> wants{at};
  auto bytes = co_await fetch(r, wants, false, env::StreamClass::data, deadline);
  if (!bytes) co_return std::unexpected(std::move(bytes).error());
  co_return std::move(bytes->front());
}

/// Whole pages at a snapshot, in order.
Task<Result<std::vector<Buffer>>> MemoryImpl::read_pages(RegionPtr r, Version snapshot, PageNo first,
                                                         std::uint64_t count, TxnId txn, Instant deadline) {
  std::vector<Buffer> out(count);
  std::vector<PageAt> wants;
  std::vector<std::size_t> places;
  const auto staged_here = txns_.find(txn);
  for (std::uint64_t i = 0; i < count; ++i) {
    const PageNo page{first.value + i};
    auto version = r->pages->history().version_at(page, snapshot);
    if (!version) co_return std::unexpected(std::move(version).error());
    bool staged = false;
    if (staged_here != txns_.end()) {
      const auto& regions = staged_here->second.staged;
      const auto pages = regions.find(r->id());
      staged = pages != regions.end() && pages->second.contains(page);
    }
    const bool never_written = *version == Version{};
    const ByteSpan here = r->pages->content(page, *version);
    if (!staged && never_written) {
      out[i] = Buffer(memory::zero_bytes(r->page_bytes()), nullptr);
    } else if (!staged && !here.empty()) {
      out[i] = Buffer::copy(here);
    } else {
      places.push_back(i);
      wants.push_back({page, *version});
    }
  }
  if (staged_here != txns_.end()) {
    for (std::size_t i = 0; i < wants.size(); ++i) {
      const PageAt at = wants[i];
      auto bytes = co_await read_staged(r, at, txn, deadline);
      if (!bytes) co_return std::unexpected(std::move(bytes).error());
      out[places[i]] = std::move(*bytes);
    }
    co_return out;
  }
  auto fetched = co_await fetch(r, wants, false, env::StreamClass::bulk, deadline);
  if (!fetched) co_return std::unexpected(std::move(fetched).error());
  for (std::size_t i = 0; i < wants.size(); ++i) out[places[i]] = std::move((*fetched)[i]);
  co_return out;
}

Task<Result<Bytes>> MemoryImpl::read(RegionId region, Version snapshot, std::uint64_t offset, std::uint64_t length,
                                     Instant deadline) {
  HOLO_CO_ASSIGN(r, find_region(region));
  const std::uint64_t size = r->shape.bytes;
  if (offset > size || length > size - offset || length > limits::kMaxPayloadBytes) {
    co_return fail(Errc::invalid_argument,
                   str("bytes ", offset, " to ", offset + length, " of region \"", r->shape.name, "\", which has ",
                       size, " (at most ", limits::kMaxPayloadBytes, " at once)"));
  }
  const SnapshotPin pinned = pin_region(r, snapshot);
  if (length == 0) co_return Bytes{};
  const std::uint64_t first = offset / r->page_bytes(), last = (offset + length - 1) / r->page_bytes();
  auto pages = co_await read_pages(r, snapshot, PageNo{first}, last - first + 1, TxnId{}, deadline);
  if (!pages) co_return std::unexpected(std::move(pages).error());
  Bytes out;
  out.reserve(length);
  for (std::uint64_t p = first; p <= last; ++p) {
    const ByteSpan page = (*pages)[p - first].span();
    const std::uint64_t from = p == first ? offset - first * r->page_bytes() : 0;
    const std::uint64_t to = p == last ? offset + length - last * r->page_bytes() : r->page_bytes();
    out.insert(out.end(), page.begin() + static_cast<std::ptrdiff_t>(from),
               page.begin() + static_cast<std::ptrdiff_t>(to));
  }
  co_return out;
}

}  // namespace holo::node
