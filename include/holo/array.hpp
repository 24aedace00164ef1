// Shared arrays: memory that spans the cluster, read and written with ordinary pointers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <holo/detail/runtime.hpp>
#include <holo/error.hpp>
#include <holo/types.hpp>

namespace holo {

/// `size()` elements of T under a name, on all nodes. A handle: copies stand for the same array, and for the same view
/// of it in this process. Thread: any; sync() and refresh() must not run while other threads use mapped memory of the
/// array.
///
/// The array is read at a snapshot: the version it had when it was opened, or at the last sync() or refresh(). What
/// this process writes is its own until sync().
template <class T>
class SharedArray {
  static_assert(Element<T>, "holo: an array element must be trivially copyable and hold no pointer");

 public:
  using value_type = T;

  explicit SharedArray(std::shared_ptr<detail::Region> region) : region_(std::move(region)) {}

  [[nodiscard]] std::uint64_t size() const { return region_->count(); }
  [[nodiscard]] std::uint64_t size_bytes() const { return region_->count() * sizeof(T); }
  [[nodiscard]] const std::string& name() const { return region_->name(); }
  /// The snapshot this process reads. Moves with sync() and refresh().
  [[nodiscard]] std::uint64_t version() const { return region_->version(); }
  /// Placement and version of now. Errors: `not_found` (it was freed), `unavailable`.
  [[nodiscard]] Result<RegionFacts> facts() const { return region_->facts(); }

  /// Commits what this process has written since the last sync(), all of it or nothing, and moves to the newest
  /// version. With nothing written it is a refresh that also bumps the version. Spans stay valid. Errors:
  /// `write_conflict` (another process changed the same bytes: this process's changes are dropped, it stands on the
  /// newest version), `under_replicated`, `out_of_memory`, `unavailable` (the agent is gone).
  Status sync() { return region_->sync(); }
  /// Moves to the newest version. Error: `refused` when there are uncommitted writes; and those of sync().
  Status refresh() { return region_->refresh(); }

  /// The array in this process's memory: pages arrive when they are touched. When one cannot be had, or the agent dies,
  /// the process is ended by SIGBUS with a message; use read() where an error value is wanted. Spans stay valid while a
  /// handle lives. Without userfaultfd the whole array is read now. Errors: `out_of_memory` (address space),
  /// `unavailable`, `page_lost`.
  Result<std::span<const T>> map_read() {
    auto base = region_->map(false);
    if (!base) return std::unexpected(std::move(base).error());
    return std::span<const T>(reinterpret_cast<const T*>(*base), static_cast<std::size_t>(size()));
  }
  /// The same memory, to write as well.
  Result<std::span<T>> map_write() {
    auto base = region_->map(true);
    if (!base) return std::unexpected(std::move(base).error());
    return std::span<T>(reinterpret_cast<T*>(*base), static_cast<std::size_t>(size()));
  }

  /// Fills `out` with the elements from `offset` on: the snapshot, with this process's own writes.
  /// Errors: `invalid_argument` (beyond the end), `page_lost`, `snapshot_too_old` (refresh() helps), `unavailable`.
  Status read(std::uint64_t offset, std::span<T> out) const {
    return checked(offset, out.size(), [&] { return region_->read(offset * sizeof(T), std::as_writable_bytes(out)); });
  }
  /// Writes `elements` from `offset` on; visible to others after sync(). Errors: as read(), `out_of_memory`,
  /// `write_conflict`.
  Status write(std::uint64_t offset, std::span<const T> elements) {
    return checked(offset, elements.size(),
                   [&] { return region_->write(offset * sizeof(T), std::as_bytes(elements)); });
  }

  /// The untyped region, for this library.
  [[nodiscard]] const std::shared_ptr<detail::Region>& region() const { return region_; }

 private:
  template <class F>
  Status checked(std::uint64_t offset, std::uint64_t count, F call) const {
    if (offset > size() || count > size() - offset) {
      return fail(Errc::invalid_argument, "elements " + std::to_string(offset) + " + " + std::to_string(count) +
                                              " are beyond the end of \"" + name() + "\" (" + std::to_string(size()) +
                                              ")");
    }
    return call();
  }

  std::shared_ptr<detail::Region> region_;
};

}  // namespace holo
