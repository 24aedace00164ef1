#include "client/view.h"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/strings.h"
#include "client/dirty.h"
#include "client/failure.h"
#include "driver/posix/errno_text.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace holo::client {
namespace {

constexpr std::uint64_t kStageBytes = 4 << 20;      // Of one STAGE request; at least one page.
constexpr std::uint64_t kPopulateBytes = 16 << 20;  // Of one VIEW_POPULATE request.

std::unexpected<Error> gone() {
  return holo::fail(Errc::unavailable, "the agent of this machine is gone", "its log says why; start it again");
}

/// Gives a shared mapping of [offset, offset + bytes) of `memfd` its frames, so that stores to it do not fault. Frames
/// that do not exist yet are made by writing zeros: the kernel then maps them many at a time, which costs three
/// quarters of what making them one fault at a time does. Returns 0 or an errno.
int populate_shared(int memfd, std::byte* at, std::uint64_t offset, std::uint64_t bytes) {
  static const std::vector<std::byte> zeros(1 << 20);
  const auto from = static_cast<off_t>(offset);
  const off_t data = ::lseek(memfd, from, SEEK_DATA);
  const bool empty = data < 0 ? errno == ENXIO : data >= from + static_cast<off_t>(bytes);
  for (std::uint64_t done = 0; empty && done < bytes;) {
    const ssize_t n = ::pwrite(memfd, zeros.data(), std::min<std::uint64_t>(zeros.size(), bytes - done),
                               static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0 ? ENOSPC : errno;
    done += static_cast<std::uint64_t>(n);
  }
  if (::madvise(at, bytes, empty ? MADV_POPULATE_READ : MADV_POPULATE_WRITE) == 0) return 0;
  return errno == EINVAL ? 0 : errno;  // EINVAL: before Linux 5.14, faults do it.
}

/// Calls f(run) for each stretch of neighbours in an ascending list.
template <class F>
void for_each_run(const std::vector<std::uint64_t>& pages, F f) {
  for (std::size_t i = 0; i < pages.size();) {
    std::size_t n = 1;
    while (i + n < pages.size() && pages[i + n] == pages[i] + n) ++n;
    f(PageRun{pages[i], n});
    i += n;
  }
}

}  // namespace

Result<std::unique_ptr<View>> View::open(Agent& agent, Shape shape, std::optional<std::uint64_t> snapshot) {
  std::unique_ptr<View> view(new View(agent, std::move(shape)));
  HOLO_TRY(view->reserve());
  HOLO_TRY(view->attach(snapshot));
  return view;
}

Status View::reserve() {
  // A fault is answered in whole pages of the region, so the mapping is aligned to them.
  const std::uint64_t all = length() + shape_.page_bytes;
  void* p = ::mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    return holo::fail(Errc::out_of_memory, str("no address space for region \"", shape_.name, "\" (", length(),
                                               " bytes): ", driver::errno_text(errno)));
  }
  auto* const start = static_cast<std::byte*>(p);
  const std::uint64_t skew = reinterpret_cast<std::uintptr_t>(start) % shape_.page_bytes;
  const std::uint64_t before = skew == 0 ? 0 : shape_.page_bytes - skew;
  if (before > 0) ::munmap(start, before);
  base_ = start + before;
  ::munmap(base_ + length(), all - before - length());
  return {};
}

Status View::attach(std::optional<std::uint64_t> snapshot) {
  userfault_ = make_userfault();
  wire::ViewOpen request;
  request.set_region(shape_.region);
  if (snapshot) request.set_snapshot(*snapshot);
  request.set_address(reinterpret_cast<std::uintptr_t>(base_));
  request.set_length(length());
  std::array<int, 1> fds{userfault_ ? userfault_->get() : -1};
  driver::LocalClient::Reply rest;
  const auto given = userfault_ ? std::span<const int>(fds) : std::span<const int>();
  HOLO_ASSIGN(reply, agent_.call<wire::ViewOpenReply>(wire::VIEW_OPEN, request, {.fds = given}, &rest));
  id_ = reply.view();
  snapshot_ = reply.snapshot();

  const std::lock_guard lock(mapping_);
  if (userfault_ && !rest.fds.empty()) {
    memfd_ = std::move(rest.fds.front());
    return map_private({0, shape_.pages()});
  }
  userfault_.reset();
  loaded_.assign(shape_.pages(), false);
  if (::mprotect(base_, length(), PROT_READ | PROT_WRITE) != 0) {
    return driver::fail_errno(errno, str("cannot map region \"", shape_.name, "\""));
  }
  return {};
}

View::~View() {
  if (id_ != 0 && agent_.connected()) {
    wire::ViewClose request;
    request.set_view(id_);
    (void)agent_.call<wire::Empty>(wire::VIEW_CLOSE, request);  // A closed session closes its views as well.
  }
  const std::lock_guard lock(mapping_);
  if (!base_) return;
  forget_failed(base_, length());
  ::munmap(base_, length());
}

/// The run as private, faulted memory. `mapping_` is held.
Status View::map_private(PageRun run) {
  if (failed_) return gone();
  std::byte* const at = base_ + run.first * shape_.page_bytes;
  const std::uint64_t bytes = run.count * shape_.page_bytes;
  void* p = ::mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, memfd_.get(),
                   static_cast<off_t>(run.first * shape_.page_bytes));
  if (p == MAP_FAILED) return driver::fail_errno(errno, str("cannot map region \"", shape_.name, "\""));
  (void)::madvise(at, bytes, MADV_DONTFORK);  // A child would read holes as zeros.
  return register_range(userfault_->get(), at, bytes);
}

Status View::load(PageRun run) {
  std::byte* const at = base_ + run.first * shape_.page_bytes;
  const std::uint64_t offset = run.first * shape_.page_bytes;
  const std::uint64_t bytes = std::min(run.count * shape_.page_bytes, shape_.bytes - offset);
  HOLO_TRY(read_region(agent_, shape_.region, snapshot_, nullptr, offset, MutableByteSpan(at, bytes)));
  std::fill_n(loaded_.begin() + static_cast<std::ptrdiff_t>(run.first), run.count, true);
  return {};
}

Status View::ensure(std::uint64_t offset, std::uint64_t bytes) {
  if (bytes == 0) return {};
  if (failed()) return gone();
  const std::uint64_t end = (offset + bytes + shape_.page_bytes - 1) / shape_.page_bytes;
  std::uint64_t page = offset / shape_.page_bytes;
  if (faulted()) {
    const std::uint64_t step = std::max<std::uint64_t>(1, kPopulateBytes / shape_.page_bytes);
    for (; page < end; page += step) {
      wire::ViewPopulate request;
      request.set_view(id_);
      request.mutable_pages()->set_first(page);
      request.mutable_pages()->set_count(std::min(step, end - page));
      HOLO_TRY(agent_.call<wire::Empty>(wire::VIEW_POPULATE, request));
    }
    return {};
  }
  while (page < end) {
    if (loaded_[page]) {
      ++page;
      continue;
    }
    std::uint64_t n = 1;
    while (page + n < end && !loaded_[page + n]) ++n;
    HOLO_TRY(load({page, n}));
    page += n;
  }
  return {};
}

bool View::failed() {
  const std::lock_guard lock(mapping_);
  return failed_;
}

Status View::copy_out(std::uint64_t offset, MutableByteSpan out) {
  // Through the kernel, because it answers EFAULT where a load would end the process.
  iovec local{out.data(), out.size()};
  iovec remote{base_ + offset, out.size()};
  if (::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0) == static_cast<ssize_t>(out.size())) return {};
  if (failed()) return gone();
  std::memcpy(out.data(), base_ + offset,
              out.size());  // A userfaultfd for user mode only: loads resolve what calls cannot.
  return {};
}

Status View::copy_in(std::uint64_t offset, ByteSpan bytes) {
  iovec local{const_cast<std::byte*>(bytes.data()), bytes.size()};
  iovec remote{base_ + offset, bytes.size()};
  if (::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0) == static_cast<ssize_t>(bytes.size())) return {};
  if (failed()) return gone();
  std::memcpy(base_ + offset, bytes.data(), bytes.size());
  return {};
}

/// The next access sees the snapshot again.
void View::forget(PageRun run) {
  if (!faulted()) {
    std::fill_n(loaded_.begin() + static_cast<std::ptrdiff_t>(run.first), run.count, false);
    return;
  }
  const std::lock_guard lock(mapping_);
  if (failed_) return;
  (void)::madvise(base_ + run.first * shape_.page_bytes, run.count * shape_.page_bytes, MADV_DONTNEED);
}

Status View::move_to(std::optional<std::uint64_t> snapshot) {
  if (snapshot && *snapshot == snapshot_) return {};
  wire::ViewRefresh request;
  request.set_view(id_);
  if (snapshot) request.set_snapshot(*snapshot);
  HOLO_ASSIGN(reply, agent_.call<wire::ViewRefreshReply>(wire::VIEW_REFRESH, request));
  snapshot_ = reply.snapshot();
  for (const auto& r : reply.changed()) {
    if (r.first() >= shape_.pages()) continue;
    forget({r.first(), std::min<std::uint64_t>(r.count(), shape_.pages() - r.first())});
  }
  return {};
}

Result<bool> View::differs(std::uint64_t page) {
  const std::uint64_t offset = page * shape_.page_bytes;
  Bytes base(std::min(shape_.page_bytes, shape_.bytes - offset));
  HOLO_TRY(read_region(agent_, shape_.region, snapshot_, nullptr, offset, base));
  return std::memcmp(base.data(), base_ + offset, base.size()) != 0;
}

Result<std::vector<std::uint64_t>> View::changed(PageRun run) {
  std::vector<std::uint64_t> out;
  if (!faulted()) {
    for (std::uint64_t page = run.first; page < run.end(); ++page) {
      if (!loaded_[page]) continue;
      HOLO_ASSIGN(different, differs(page));
      if (different) out.push_back(page);
    }
    return out;
  }
  HOLO_ASSIGN(found,
              dirty_pages(base_ + run.first * shape_.page_bytes, run.count * shape_.page_bytes, shape_.page_bytes));
  for (const DirtyPage& d : found) {
    const std::uint64_t page = run.first + d.index;
    if (!d.certain) {
      HOLO_ASSIGN(different, differs(page));
      if (!different) continue;
    }
    out.push_back(page);
  }
  return out;
}

Status View::stage(wire::Txn& txn, const std::vector<std::uint64_t>& pages) {
  const std::size_t batch = std::max<std::uint64_t>(1, kStageBytes / shape_.page_bytes);
  Bytes bytes;
  for (std::size_t at = 0; at < pages.size(); at += batch) {
    const std::span<const std::uint64_t> part(pages.data() + at, std::min(batch, pages.size() - at));
    bytes.resize(part.size() * shape_.page_bytes);
    for (std::size_t i = 0; i < part.size(); ++i) {
      const MutableByteSpan to(bytes.data() + i * shape_.page_bytes, shape_.page_bytes);
      HOLO_TRY(copy_out(part[i] * shape_.page_bytes, to));
    }
    HOLO_TRY(stage_pages(agent_, txn, shape_.region, snapshot_, part, bytes));
  }
  return {};
}

void View::drop(const std::vector<std::uint64_t>& pages) {
  for_each_run(pages, [this](PageRun run) { forget(run); });
}

Result<std::vector<PageRun>> View::open_windows(const wire::Txn& txn, PageRun run) {
  std::vector<PageRun> out;
  if (!faulted() || run.count == 0) return out;
  wire::WindowOpen request;
  request.set_view(id_);
  *request.mutable_txn() = txn;
  request.mutable_pages()->set_first(run.first);
  request.mutable_pages()->set_count(run.count);
  HOLO_ASSIGN(reply, agent_.call<wire::WindowOpenReply>(wire::WINDOW_OPEN, request));

  const std::lock_guard lock(mapping_);
  for (const auto& r : reply.in_place()) {
    if (failed_) return gone();
    if (r.count() == 0 || r.first() < run.first || r.first() + r.count() > run.end()) continue;
    std::byte* const at = base_ + r.first() * shape_.page_bytes;
    const std::uint64_t bytes = r.count() * shape_.page_bytes;
    void* p = ::mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memfd_.get(),
                     static_cast<off_t>(r.first() * shape_.page_bytes));
    if (p == MAP_FAILED) return driver::fail_errno(errno, str("cannot map pages of region \"", shape_.name, "\""));
    windows_.push_back({r.first(), r.count()});  // Before anything can fail: close_windows() must undo it.
    (void)::madvise(at, bytes, MADV_DONTFORK);
    if (const int err = populate_shared(memfd_.get(), at, r.first() * shape_.page_bytes, bytes); err != 0) {
      return holo::fail(Errc::out_of_memory,
                        str("no memory for pages of region \"", shape_.name, "\": ", driver::errno_text(err)));
    }
    out.push_back({r.first(), r.count()});
  }
  return out;
}

Status View::close_windows() {
  if (windows_.empty()) return {};
  std::uint64_t first = UINT64_MAX, end = 0;
  {
    const std::lock_guard lock(mapping_);
    for (const PageRun& w : windows_) {
      HOLO_TRY(map_private(w));
      first = std::min(first, w.first);
      end = std::max(end, w.end());
    }
  }
  windows_.clear();
  wire::WindowClose request;
  request.set_view(id_);
  request.mutable_pages()->set_first(first);
  request.mutable_pages()->set_count(end - first);
  HOLO_TRY(agent_.call<wire::Empty>(wire::WINDOW_CLOSE, request));
  return {};
}

/// PROT_NONE over the bytes, then everybody who sleeps there wakes up into it. `mapping_` is held.
void View::cover(std::uint64_t offset, std::uint64_t bytes, const std::string& message) {
  std::byte* const at = base_ + offset;
  mark_failed(at, bytes, message);
  void* p = ::mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) (void)::mprotect(at, bytes, PROT_NONE);
  if (userfault_) wake_range(userfault_->get(), at, bytes);
}

void View::fail(std::uint64_t page, const Error& error) {
  if (page == UINT64_MAX) return fail_all(error);
  const std::lock_guard lock(mapping_);
  if (failed_ || page >= shape_.pages()) return;
  cover(page * shape_.page_bytes, shape_.page_bytes,
        str("page ", page, " of region \"", shape_.name, "\" cannot be had: ", error.to_string()));
}

void View::fail_all(const Error& error) {
  const std::lock_guard lock(mapping_);
  if (failed_) return;
  failed_ = true;
  cover(0, length(), str("memory of region \"", shape_.name, "\" is lost to this process: ", error.to_string()));
}

void View::abandon() {
  const std::lock_guard lock(mapping_);
  if (failed_) return;
  failed_ = true;
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
  (void)::mmap(base_, length(), PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (userfault_) wake_range(userfault_->get(), base_, length());
}

}  // namespace holo::client
