#include "client/region.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"

namespace holo::client {
namespace {

constexpr std::uint64_t kWriteStep = 4 << 20;
constexpr int kCommitTries = 5;
constexpr Duration kCommitPatience = seconds(30);

bool named(const wire::Txn& txn) { return txn.node() != 0; }

}  // namespace

RegionImpl::~RegionImpl() {
  if (!session_->agent().connected()) {
    if (view_) session_->remove_view(*view_);
    return;
  }
  abort();
  if (view_) session_->remove_view(*view_);
  if (hold_ != 0) {
    wire::ViewClose request;
    request.set_view(hold_);
    (void)session_->agent().call<wire::Empty>(wire::VIEW_CLOSE, request);
  }
}

Result<RegionFacts> RegionImpl::facts() {
  wire::RegionOpen request;
  request.set_name(info_.name());
  HOLO_ASSIGN(info, session_->agent().call<wire::RegionInfo>(wire::REGION_OPEN, request));
  if (info.region() != info_.region()) {
    return fail(Errc::not_found, str("region \"", info_.name(), "\" was freed; another one has its name now"));
  }
  return to_facts(info);
}

std::uint64_t RegionImpl::version() const {
  const std::lock_guard lock(mutex_);
  return view_ ? view_->snapshot() : snapshot_;
}

/// A view without memory: while it is open, the agent keeps the snapshot readable.
Status RegionImpl::hold_snapshot() {
  if (view_ || hold_ != 0) return {};
  wire::ViewOpen request;
  request.set_region(info_.region());
  request.set_snapshot(snapshot_);
  auto reply = session_->agent().call<wire::ViewOpenReply>(wire::VIEW_OPEN, request);
  if (!reply && reply.error().code == Errc::snapshot_too_old) {  // Opened, not used, overtaken: begin with the newest.
    request.clear_snapshot();
    reply = session_->agent().call<wire::ViewOpenReply>(wire::VIEW_OPEN, request);
  }
  HOLO_TRY(reply);
  hold_ = reply->view();
  snapshot_ = reply->snapshot();
  return {};
}

Status RegionImpl::open_view() {
  if (view_) return {};
  View::Shape shape{
      .region = info_.region(), .name = info_.name(), .bytes = info_.bytes(), .page_bytes = info_.page_bytes()};
  // With nothing of its own and nothing read so far, this process begins with the newest version.
  const bool fresh = hold_ == 0 && !named(txn_);
  const auto snapshot = fresh ? std::nullopt : std::optional(snapshot_);
  HOLO_ASSIGN(view, View::open(session_->agent(), std::move(shape), snapshot));
  HOLO_TRY(session_->add_view(*view));
  view_ = std::move(view);
  if (hold_ != 0) {
    wire::ViewClose request;
    request.set_view(std::exchange(hold_, 0));
    HOLO_TRY(session_->agent().call<wire::Empty>(wire::VIEW_CLOSE, request));
  }
  if (!view_->faulted()) HOLO_TRY(view_->ensure(0, info_.bytes()));
  return overlay_staged();
}

/// What was written in bulk before becomes this process's own change of the mapping.
Status RegionImpl::overlay_staged() {
  std::vector<std::byte> bytes;
  for (const Range& r : staged_) {
    for (std::uint64_t at = 0; at < r.length; at += kWriteStep) {
      bytes.resize(std::min(kWriteStep, r.length - at));
      const std::uint64_t offset = r.offset + at;
      HOLO_TRY(read_region(session_->agent(), info_.region(), view_->snapshot(), &txn_, offset, bytes));
      HOLO_TRY(view_->copy_in(offset, bytes));
      mapped_for_writing_ = true;
    }
  }
  staged_.clear();
  return {};
}

Result<std::byte*> RegionImpl::map(bool for_writing) {
  const std::lock_guard lock(mutex_);
  HOLO_TRY(open_view());
  mapped_for_writing_ |= for_writing;
  return view_->data();
}

Status RegionImpl::populate(std::uint64_t offset, std::uint64_t length) {
  const std::lock_guard lock(mutex_);
  HOLO_TRY(open_view());
  return view_->ensure(offset, length);
}

Status RegionImpl::read(std::uint64_t offset, std::span<std::byte> out) {
  const std::lock_guard lock(mutex_);
  if (view_ && mapped_for_writing_) {
    HOLO_TRY(view_->ensure(offset, out.size()));
    return view_->copy_out(offset, out);
  }
  HOLO_TRY(hold_snapshot());
  const std::uint64_t snapshot = view_ ? view_->snapshot() : snapshot_;
  return read_region(session_->agent(), info_.region(), snapshot, &txn_, offset, out);
}

Status RegionImpl::write(std::uint64_t offset, std::span<const std::byte> bytes) {
  const std::lock_guard lock(mutex_);
  if (view_) {
    HOLO_TRY(view_->ensure(offset, bytes.size()));
    mapped_for_writing_ = true;
    return view_->copy_in(offset, bytes);
  }
  HOLO_TRY(hold_snapshot());
  while (!bytes.empty()) {
    const std::uint64_t n = std::min<std::uint64_t>(bytes.size(), kWriteStep - offset % kWriteStep);
    HOLO_TRY(stage_bytes(session_->agent(), txn_, info_.region(), snapshot_, offset, bytes.first(n)));
    if (!staged_.empty() && staged_.back().offset + staged_.back().length == offset) {
      staged_.back().length += n;
    } else {
      staged_.push_back({offset, n});
    }
    bytes = bytes.subspan(n);
    offset += n;
  }
  return {};
}

void RegionImpl::abort() {
  if (named(txn_)) {
    wire::Abort request;
    *request.mutable_txn() = txn_;
    (void)session_->agent().call<wire::Empty>(wire::ABORT, request);
  }
  txn_.Clear();
  staged_.clear();
}

Status RegionImpl::move_to_newest() {
  if (view_) {
    HOLO_TRY(view_->move_to(std::nullopt));
    if (!view_->faulted()) HOLO_TRY(view_->ensure(0, info_.bytes()));
    return {};
  }
  HOLO_TRY(hold_snapshot());
  wire::ViewRefresh request;
  request.set_view(hold_);
  HOLO_ASSIGN(reply, session_->agent().call<wire::ViewRefreshReply>(wire::VIEW_REFRESH, request));
  snapshot_ = reply.snapshot();
  return {};
}

/// Stages the mapping's changes and commits everything under txn_.
Status RegionImpl::commit(const std::vector<std::uint64_t>& pages) {
  Agent& agent = session_->agent();
  for (int tries = 0;; ++tries) {
    if (!pages.empty()) HOLO_TRY(view_->stage(txn_, pages));
    wire::Commit request;
    if (named(txn_)) *request.mutable_txn() = txn_;  // Without one only the version moves.
    request.add_regions(info_.region());
    auto reply = agent.call<wire::CommitReply>(wire::COMMIT, request, {.timeout = kCommitPatience});
    if (reply) return {};
    if (reply.error().code != Errc::stale_epoch || tries + 1 >= kCommitTries) return std::unexpected(reply.error());
    if (!staged_.empty()) {
      return fail(Errc::unavailable,
                  str("nodes that held bytes written to \"", info_.name(), "\" have died before sync()"),
                  "what was written since the last sync() is dropped; write it again");
    }
  }
}

Status RegionImpl::sync() {
  const std::lock_guard lock(mutex_);
  std::vector<std::uint64_t> pages;
  if (view_ && mapped_for_writing_) {
    HOLO_ASSIGN(found, view_->changed({0, view_->shape().pages()}));
    pages = std::move(found);
  }
  auto committed = commit(pages);
  if (!committed) {
    const bool bulk_lost = committed.error().code == Errc::unavailable && !staged_.empty();
    if (committed.error().code != Errc::write_conflict && !bulk_lost)
      return committed;  // Kept: sync() may be called again.
    abort();
  }
  txn_.Clear();
  staged_.clear();
  if (view_) view_->drop(pages);
  auto moved = move_to_newest();
  return committed ? moved : committed;
}

Status RegionImpl::refresh() {
  const std::lock_guard lock(mutex_);
  if (!staged_.empty())
    return fail(Errc::refused, str("\"", info_.name(), "\" has uncommitted writes"), "sync() first");
  if (view_ && mapped_for_writing_) {
    HOLO_ASSIGN(pages, view_->changed({0, view_->shape().pages()}));
    if (!pages.empty()) {
      return fail(Errc::refused, str("\"", info_.name(), "\" has uncommitted writes"), "sync() first");
    }
  }
  return move_to_newest();
}

}  // namespace holo::client
