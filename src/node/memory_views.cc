// Views of applications: opening, faults, populating, write windows.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "node/memory_impl.h"
#include "wire/errors.h"

namespace holo::node {
namespace {

LocalReply reply_of(const google::protobuf::MessageLite& message) {
  return LocalReply{.header = message.SerializeAsString(), .payload = {}, .fds = {}};
}

memory::ViewBits free_bit(memory::ViewBits used) {
  for (unsigned i = 0; i + 1 < memory::kMaxViewBits; ++i) {
    const memory::ViewBits bit = 1ULL << i;
    if ((used & bit) == 0) return bit;
  }
  return 1ULL << (memory::kMaxViewBits - 1);  // shared by all that come after
}

}  // namespace

bool process_lives(pid_t pid) { return pid > 0 && pid != ::getpid() && (::kill(pid, 0) == 0 || errno == EPERM); }

void MemoryImpl::serve_local(LocalApi& api) {
  auto serve = [&](wire::LocalMessage type,
                   Handled (MemoryImpl::*handler)(std::shared_ptr<LocalSession>, LocalRequest)) {
    api.serve(type, [this, handler](std::shared_ptr<LocalSession> session, LocalRequest request) {
      return (this->*handler)(std::move(session), std::move(request));
    });
  };
  serve(wire::VIEW_OPEN, &MemoryImpl::view_open);
  serve(wire::VIEW_REFRESH, &MemoryImpl::view_refresh);
  serve(wire::VIEW_CLOSE, &MemoryImpl::view_close);
  serve(wire::VIEW_POPULATE, &MemoryImpl::view_populate);
  serve(wire::WINDOW_OPEN, &MemoryImpl::window_open);
  serve(wire::WINDOW_CLOSE, &MemoryImpl::window_close);
  serve(wire::READ, &MemoryImpl::local_read);
  serve(wire::STAGE, &MemoryImpl::local_stage);
  serve(wire::COMMIT, &MemoryImpl::local_commit);
  serve(wire::ABORT, &MemoryImpl::local_abort);
  api.on_closed([this](LocalSession& session) { session_closed(session); });
}

// ---- opening and closing

MemoryImpl::Handled MemoryImpl::view_open(std::shared_ptr<LocalSession> session, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode<wire::ViewOpen>(request.header));
  HOLO_CO_ASSIGN(r, find_region(RegionId{ask.region()}));
  const std::uint64_t size = r->shape.pages() * r->page_bytes();
  if (session_views_[session->id()].size() >= limits::kMaxViewsPerSession) {
    co_return fail(Errc::over_limit, str("more than ", limits::kMaxViewsPerSession, " mapped regions in one program"));
  }
  const Instant deadline = loop_.now() + config_.fetch_deadline;
  const Version wanted{ask.snapshot()};
  HOLO_CO_TRY(co_await wait_region(r, wanted, deadline));
  if (r->freed) co_return fail(Errc::not_found, str("region \"", r->shape.name, "\" was freed"));
  const Version snapshot = ask.has_snapshot() ? wanted : r->pages->history().newest();
  if (snapshot < r->pages->history().floor()) {
    co_return fail(Errc::snapshot_too_old,
                   str("version ", snapshot, " of region \"", r->shape.name, "\" is no longer kept"), "map the newest");
  }
  HOLO_CO_TRY(r->frames->open());

  auto view = std::make_shared<View>();
  view->id = ViewId{next_view_++};
  view->region = r;
  view->session = session;
  view->session_id = session->id();
  view->snapshot = snapshot;
  view->bit = free_bit(r->bits_used);
  if (!request.fds.empty() && faults_.mode() != env::FaultMode::none) {
    if (ask.address() % r->page_bytes() != 0 || ask.length() != size) {
      co_return fail(Errc::invalid_argument,
                     str("region \"", r->shape.name, "\" maps as ", size, " bytes at a multiple of its page size"));
    }
    auto attached = faults_.attach(std::move(request.fds.front()), ask.address(), ask.length(),
                                   [this, weak = std::weak_ptr<View>(view)](std::vector<env::PageFault> faults) {
                                     if (auto v = weak.lock()) on_faults(v, faults);
                                   });
    if (!attached) co_return std::unexpected(std::move(attached).error());
    view->faulted = std::move(*attached);
  }
  r->bits_used |= view->bit;
  r->views[view->id] = view;
  views_[view->id] = view;
  session_views_[session->id()].insert(view->id);

  wire::ViewOpenReply reply;
  reply.set_view(view->id.value);
  reply.set_snapshot(snapshot.value);
  LocalReply out = reply_of(reply);
  if (view->faulted && r->frames->fd() >= 0) {  // Without faults the process reads into memory of its own.
    env::Fd shared(::dup(r->frames->fd()));
    if (!shared) co_return fail(Errc::over_limit, "the agent has no file descriptor left");
    out.fds.push_back(std::move(shared));
  }
  co_return out;
}

Result<ViewPtr> MemoryImpl::find_view(const LocalSession& session, std::uint64_t id) const {
  if (stopped_) return fail(Errc::unavailable, "the agent is stopping");
  auto it = views_.find(ViewId{id});
  if (it == views_.end() || it->second->session_id != session.id())
    return fail(Errc::not_found, str("this program has no view ", id));
  return it->second;
}

void MemoryImpl::close_view(const ViewPtr& view) {
  if (std::exchange(view->closed, true)) return;
  Region& r = *view->region;
  for (PageNo page : view->windows) r.pages->close_window(page);
  view->windows.clear();
  view->faulted.reset();
  r.views.erase(view->id);
  views_.erase(view->id);
  if (auto it = session_views_.find(view->session_id); it != session_views_.end()) it->second.erase(view->id);
  // The last bit is shared: it stays until the region goes, which costs a needless punch now and then.
  if (view->bit != 1ULL << (memory::kMaxViewBits - 1)) {
    r.pages->forget_view(view->bit);
    r.bits_used &= ~view->bit;
  }
}

void MemoryImpl::session_closed(LocalSession& session) {
  auto it = session_views_.find(session.id());
  if (it != session_views_.end()) {
    const std::set<ViewId> ids = std::move(it->second);
    session_views_.erase(it);
    for (ViewId id : ids) {
      auto found = views_.find(id);
      if (found == views_.end()) continue;
      const ViewPtr view = found->second;
      if (!view->windows.empty()) {
        // It died with a window open: whatever it wrote there must not become a version.
        for (auto& [txn, local] : txns_) {
          if (local.windowed.contains(view->region->id()) && view->region->pages->has_open_window(txn))
            local.broken = true;
        }
        if (process_lives(session.pid())) {
          stray_windows_.push_back({session.pid(), view->region, {view->windows.begin(), view->windows.end()}});
          view->windows.clear();
        }
      }
      close_view(view);
    }
  }
  std::vector<TxnId> own;
  for (auto& [txn, local] : txns_) {
    if (local.owner == session.id()) own.push_back(txn);
  }
  if (!own.empty()) abort(std::move(own));
}

MemoryImpl::Handled MemoryImpl::view_close(std::shared_ptr<LocalSession> session, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode<wire::ViewClose>(request.header));
  HOLO_CO_ASSIGN(view, find_view(*session, ask.view()));
  close_view(view);
  co_return reply_of(wire::Empty{});
}

MemoryImpl::Handled MemoryImpl::view_refresh(std::shared_ptr<LocalSession> session, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode<wire::ViewRefresh>(request.header));
  HOLO_CO_ASSIGN(view, find_view(*session, ask.view()));
  const RegionPtr r = view->region;
  const Version wanted{ask.snapshot()};
  HOLO_CO_TRY(co_await wait_region(r, wanted, loop_.now() + config_.fetch_deadline));
  if (view->closed) co_return fail(Errc::not_found, str("region \"", r->shape.name, "\" was freed"));
  const auto& history = r->pages->history();
  const Version snapshot = ask.has_snapshot() ? wanted : history.newest();
  if (snapshot < history.floor()) {
    co_return fail(Errc::snapshot_too_old,
                   str("version ", snapshot, " of region \"", r->shape.name, "\" is no longer kept"),
                   "refresh to the newest");
  }
  wire::ViewRefreshReply reply;
  reply.set_snapshot(snapshot.value);
  std::vector<PageSpan> changed = history.changed(view->snapshot, snapshot);
  if (std::min(view->snapshot, snapshot) < history.floor())
    changed = {{PageNo{0}, r->shape.pages()}};  // The log skipped ahead.
  for (const PageSpan& span : changed) {
    auto* out = reply.add_changed();
    out->set_first(span.first.value);
    out->set_count(span.count);
    view->given.forget(span);
  }
  view->snapshot = snapshot;
  co_return reply_of(reply);
}

/// `page` UINT64_MAX: the whole view.
void MemoryImpl::fail_view(const ViewPtr& view, std::uint64_t page, const Error& error) {
  if (!view->region->freed) {  // By its owner's wish: workers often have it mapped still.
    ++counters_.fetch_failures;
    log_warn("memory", "a mapped page cannot be given: ", error.message);
  }
  auto session = view->session.lock();
  if (!session) return;
  wire::ViewFailed message;
  message.set_view(view->id.value);
  message.set_page(page);
  wire::put_error(error, *message.mutable_error());
  session->notify({.type = wire::VIEW_FAILED, .header = message.SerializeAsString(), .payload = {}, .fds = {}});
}

// ---- faults

/// What is here goes into the process at once, run by run; what is not is returned. `Given::skip`: not what it has been
/// given before, as asking the kernel page by page takes as long as the first time.
Result<std::vector<PageAt>> MemoryImpl::give_local(View& view, PageNo first, std::uint64_t count, Given given) {
  Region& r = *view.region;
  const std::uint64_t page_bytes = r.page_bytes();
  using Where = memory::Resolution::Where;
  std::vector<PageAt> wants;
  std::uint64_t run_first = 0, run_count = 0;
  Where run = Where::fetch;
  auto flush = [&]() -> Status {
    const std::uint64_t n = std::exchange(run_count, 0);
    if (n == 0) return {};
    if (run == Where::slot) {
      counters_.pages_installed += n;
      return view.faulted->install(run_first * page_bytes, n * page_bytes);
    }
    return view.faulted->zero(run_first * page_bytes, n * page_bytes);
  };
  for (std::uint64_t i = 0; i < count; ++i) {
    const PageNo page{first.value + i};
    const bool skip = given == Given::skip && (view.given.is_copied(page) ||
                                               (view.given.is_shared(page) && r.pages->is_mapped(page, view.bit)));
    if (skip || view.windows.contains(page)) {
      HOLO_TRY(flush());
      continue;
    }
    HOLO_ASSIGN(found, r.pages->resolve(page, view.snapshot));
    if (found.where != run || found.where == Where::bytes || found.where == Where::fetch) HOLO_TRY(flush());
    switch (found.where) {
      case Where::slot:
      case Where::zero:
        if (found.where == Where::slot) {
          r.pages->mark_mapped(page, view.bit);
          view.given.shared(page);
        } else {
          view.given.copied(page);
        }
        if (run_count == 0) run_first = page.value;
        run = found.where;
        ++run_count;
        break;
      case Where::bytes:
        ++counters_.pages_copied;
        view.given.copied(page);
        HOLO_TRY(view.faulted->copy(page.value * page_bytes, found.bytes.span()));
        break;
      case Where::fetch: wants.push_back({page, found.version}); break;
    }
  }
  HOLO_TRY(flush());
  return wants;
}

Result<bool> MemoryImpl::give_fetched(View& view, PageAt at, const Buffer& bytes) {
  Region& r = *view.region;
  HOLO_ASSIGN(found, r.pages->resolve(at.page, view.snapshot));
  if (found.version != at.version || view.windows.contains(at.page))
    return true;  // The view has moved on: it faults again.
  if (found.where == memory::Resolution::Where::slot) {
    r.pages->mark_mapped(at.page, view.bit);
    view.given.shared(at.page);
    ++counters_.pages_installed;
    HOLO_TRY(view.faulted->install(at.page.value * r.page_bytes(), r.page_bytes()));
    return true;
  }
  const Buffer& from = found.bytes.empty() ? bytes : found.bytes;
  if (from.empty()) return false;  // Evicted since it came.
  ++counters_.pages_copied;
  view.given.copied(at.page);
  HOLO_TRY(view.faulted->copy(at.page.value * r.page_bytes(), from.span()));
  return true;
}

Result<std::vector<PageAt>> MemoryImpl::give_all(View& view, const std::vector<PageAt>& wants,
                                                 const std::vector<Buffer>& bytes) {
  std::vector<PageAt> left;
  for (std::size_t i = 0; i < wants.size(); ++i) {
    auto given = give_fetched(view, wants[i], bytes[i]);
    if (!given && i == 0) return std::unexpected(std::move(given).error());
    if (given && !*given) left.push_back(wants[i]);
  }
  return left;
}

void MemoryImpl::on_faults(const ViewPtr& view, const std::vector<env::PageFault>& faults) {
  const RegionPtr r = view->region;
  const std::uint64_t most = std::max<std::uint64_t>(1, kReadAheadBytes / r->page_bytes());
  std::uint64_t last = UINT64_MAX;
  for (const env::PageFault& fault : faults) {
    if (view->closed || stopped_) return;
    ++counters_.faults;
    const std::uint64_t page = fault.offset / r->page_bytes();
    if (page == last || page >= r->shape.pages()) continue;
    last = page;
    // A scan asks for what follows what it was given: twice as much each time.
    const bool follows = page == view->next_page;
    view->ahead = follows ? std::min(view->ahead * 2, most) : 1;
    const std::uint64_t count = std::min(view->ahead, r->shape.pages() - page);
    view->next_page = page + count;
    auto wants = give_local(*view, PageNo{page}, count, Given::again);
    if (!wants) {
      fail_view(view, page, wants.error());
    } else if (!wants->empty()) {
      loop_.spawn(serve_fault(view, PageNo{page}, count));
    }
    // In a steady scan the next stretch is on its way while the program works on this one.
    if (follows && view->ahead == most && view->next_page < r->shape.pages()) {
      loop_.spawn(prefetch(view, view->next_page, std::min(most, r->shape.pages() - view->next_page)));
    }
  }
}

Task<void> MemoryImpl::prefetch(ViewPtr view, std::uint64_t first, std::uint64_t count) {
  const RegionPtr r = view->region;
  std::vector<PageAt> wants;
  for (std::uint64_t p = first; p < first + count; ++p) {
    auto found = r->pages->resolve(PageNo{p}, view->snapshot);
    if (found && found->where == memory::Resolution::Where::fetch) wants.push_back({PageNo{p}, found->version});
  }
  if (wants.empty()) co_return;
  // A failure shows when the page is needed.
  (void)co_await fetch(r, wants, true, env::StreamClass::bulk, loop_.now() + config_.fetch_deadline);
}

Task<void> MemoryImpl::serve_fault(ViewPtr view, PageNo page, std::uint64_t ahead) {
  const RegionPtr r = view->region;
  const Instant deadline = loop_.now() + config_.fetch_deadline;
  while (!view->closed) {
    auto wants = give_local(*view, page, ahead, Given::again);
    if (!wants) {
      fail_view(view, page.value, wants.error());
      co_return;
    }
    if (wants->empty()) co_return;
    const Version snapshot = view->snapshot;
    const bool needed = wants->front().page == page;
    while (!wants->empty() && view->snapshot == snapshot) {
      auto bytes = co_await fetch(r, *wants, true, env::StreamClass::data, deadline);
      if (view->closed) co_return;
      if (!bytes && ahead > 1) {  // What was only read ahead may fail in peace.
        ahead = 1;
        break;
      }
      if (!bytes) {
        if (needed && view->snapshot == snapshot) fail_view(view, page.value, bytes.error());
        co_return;
      }
      wants = give_all(*view, *wants, *bytes);
      if (!wants) {
        fail_view(view, page.value, wants.error());
        co_return;
      }
    }
    if (wants->empty() && view->snapshot == snapshot) co_return;
  }
}

MemoryImpl::Handled MemoryImpl::view_populate(std::shared_ptr<LocalSession> session, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode<wire::ViewPopulate>(request.header));
  HOLO_CO_ASSIGN(view, find_view(*session, ask.view()));
  const RegionPtr r = view->region;
  if (!view->faulted) co_return fail(Errc::unsupported, "this view has no userfaultfd: READ gives its bytes");
  const std::uint64_t first = ask.pages().first(), count = ask.pages().count();
  if (first > r->shape.pages() || count > r->shape.pages() - first) {
    co_return fail(Errc::invalid_argument, str("pages ", first, " to ", first + count, " of region \"", r->shape.name,
                                               "\", which has ", r->shape.pages()));
  }
  const std::uint64_t step = std::max<std::uint64_t>(1, kPopulateBytes / r->page_bytes());
  for (std::uint64_t at = first; at < first + count; at += step) {
    const std::uint64_t n = std::min(step, first + count - at);
    auto wants = give_local(*view, PageNo{at}, n, Given::skip);
    if (!wants) co_return std::unexpected(std::move(wants).error());
    while (!wants->empty()) {
      auto bytes = co_await fetch(r, *wants, true, env::StreamClass::bulk, loop_.now() + config_.fetch_deadline);
      if (!bytes) co_return std::unexpected(std::move(bytes).error());
      if (view->closed) co_return fail(Errc::not_found, "the view was closed meanwhile");
      std::vector<PageAt> left;
      for (std::size_t i = 0; i < wants->size(); ++i) {
        HOLO_CO_ASSIGN(given, give_fetched(*view, (*wants)[i], (*bytes)[i]));
        if (!given) left.push_back((*wants)[i]);
      }
      wants = std::move(left);
    }
  }
  co_return reply_of(wire::Empty{});
}

// ---- windows

MemoryImpl::Handled MemoryImpl::window_open(std::shared_ptr<LocalSession> session, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode<wire::WindowOpen>(request.header));
  HOLO_CO_ASSIGN(view, find_view(*session, ask.view()));
  const RegionPtr r = view->region;
  const TxnId txn = from_wire(ask.txn());
  HOLO_CO_TRY(check_open(txn));
  const std::uint64_t first = ask.pages().first(), count = ask.pages().count();
  if (first > r->shape.pages() || count > r->shape.pages() - first) {
    co_return fail(Errc::invalid_argument, str("pages ", first, " to ", first + count, " of region \"", r->shape.name,
                                               "\", which has ", r->shape.pages()));
  }
  std::vector<PageNo> opened;
  for (std::uint64_t p = first; p < first + count;) {
    const std::uint64_t end = std::min(block_end(*r, p), first + count);
    const ShardCopies holders = copies(*r, PageNo{p});
    const bool home = !holders.in_sync.empty() && holders.in_sync.front() == control_.self();
    const bool moving = holders.filling && holders.in_sync.size() <= r->shape.replication;
    for (; home && !moving && p < end; ++p) {
      const PageNo page{p};
      if (r->pages->window_needs_twin(page) && !make_room(r->page_bytes())) continue;
      auto open = r->pages->open_window(page, txn, view->snapshot, view->bit);
      if (!open) {
        log_warn("memory", "no window: ", open.error().message);
        continue;
      }
      if (!*open) continue;
      opened.push_back(page);
      view->windows.insert(page);
      view->given.forget({page, 1});
    }
    p = end;
  }
  if (!opened.empty()) {
    LocalTxn& local = txns_[txn];
    local.windowed.insert(r->id());
    local.pins.try_emplace(r->id(), pin_region(r, view->snapshot));
    staged_since_.try_emplace(txn, loop_.now());
  }
  wire::WindowOpenReply reply;
  for (const PageSpan& span : memory::to_spans(std::move(opened))) {
    auto* out = reply.add_in_place();
    out->set_first(span.first.value);
    out->set_count(span.count);
  }
  co_return reply_of(reply);
}

MemoryImpl::Handled MemoryImpl::window_close(std::shared_ptr<LocalSession> session, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode<wire::WindowClose>(request.header));
  HOLO_CO_ASSIGN(view, find_view(*session, ask.view()));
  const std::uint64_t first = ask.pages().first(), last = first + ask.pages().count();
  auto& windows = view->windows;
  for (auto it = windows.lower_bound(PageNo{first}); it != windows.end() && it->value < last;) {
    view->region->pages->close_window(*it);
    it = windows.erase(it);
  }
  co_return reply_of(wire::Empty{});
}

}  // namespace holo::node
