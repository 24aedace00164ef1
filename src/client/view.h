// One region mapped into this process: the whole of it as private memory over the agent's frames, faults served by the
// agent. Where there is no userfaultfd, anonymous memory that is read in full before use and compared when changes are
// wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "client/agent.h"
#include "client/userfault.h"
#include "env/fd.h"
#include "wire/local.pb.h"

namespace holo::client {

struct PageRun {
  std::uint64_t first = 0, count = 0;
  [[nodiscard]] std::uint64_t end() const { return first + count; }
};

/// Thread: one owner at a time, except fail(), fail_all() and abandon(), which come from the connection's reader
/// thread.
class View {
 public:
  struct Shape {
    std::uint64_t region = 0;
    std::string name;
    std::uint64_t bytes = 0;
    std::uint64_t page_bytes = 0;
    [[nodiscard]] std::uint64_t pages() const { return (bytes + page_bytes - 1) / page_bytes; }
  };

  /// Maps the region at `snapshot` (none: the newest). Errors: `out_of_memory` (address space), `not_found`,
  /// `snapshot_too_old`, `over_limit`, `unavailable`, `io_error`.
  static Result<std::unique_ptr<View>> open(Agent& agent, Shape shape, std::optional<std::uint64_t> snapshot);
  ~View();
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  [[nodiscard]] std::byte* data() const { return base_; }
  [[nodiscard]] std::uint64_t id() const { return id_; }
  [[nodiscard]] std::uint64_t snapshot() const { return snapshot_; }
  [[nodiscard]] const Shape& shape() const { return shape_; }
  /// The agent serves faults; otherwise only what ensure() has loaded may be touched.
  [[nodiscard]] bool faulted() const { return static_cast<bool>(memfd_); }

  /// Makes bytes [offset, offset + length) present. Errors: `page_lost`, `unavailable`, ...
  Status ensure(std::uint64_t offset, std::uint64_t length);
  /// Moves to `snapshot` (none: the newest). What differs between the two snapshots is dropped, this process's own
  /// changes there included. Errors: `snapshot_too_old`, `unavailable`.
  Status move_to(std::optional<std::uint64_t> snapshot);

  /// Copies bytes out of the mapping, or into it as this process's own change. Unlike a load or a store, this gives an
  /// error value when the memory cannot be had. Cost: one system call and the copy.
  Status copy_out(std::uint64_t offset, MutableByteSpan out);
  Status copy_in(std::uint64_t offset, ByteSpan bytes);

  /// Pages among `run` that this process has changed, ascending; a page that only looks changed may be among them.
  Result<std::vector<std::uint64_t>> changed(PageRun run);
  /// Stages these pages under `txn` (named by the agent when it has no node yet), against the snapshot.
  Status stage(wire::Txn& txn, const std::vector<std::uint64_t>& pages);
  /// Forgets this process's changes of these pages.
  void drop(const std::vector<std::uint64_t>& pages);

  /// Maps what it can of `run` in place, shared and writable, for a task that owns these pages: writes need no copy and
  /// are staged under `txn` when the windows close. Returns what is in place, ascending. Errors: `out_of_memory`,
  /// `unavailable`, ...
  Result<std::vector<PageRun>> open_windows(const wire::Txn& txn, PageRun run);
  /// Ends all windows; the pages are private mappings of the snapshot again.
  Status close_windows();

  /// The page cannot be had: whoever touches it ends the process with this message. UINT64_MAX: the whole view.
  void fail(std::uint64_t page, const Error& error);
  /// The agent is gone: the same for the whole view.
  void fail_all(const Error& error);
  /// For a task whose outcome nobody will see any more, in a process that must live on: the memory becomes the
  /// process's own, of zeros, and sleepers go on.
  void abandon();

 private:
  View(Agent& agent, Shape shape) : agent_(agent), shape_(std::move(shape)) {}
  [[nodiscard]] std::uint64_t length() const { return shape_.pages() * shape_.page_bytes; }
  Status reserve();
  Status attach(std::optional<std::uint64_t> snapshot);
  Status map_private(PageRun run);
  void forget(PageRun run);
  Status load(PageRun run);
  Result<bool> differs(std::uint64_t page);
  [[nodiscard]] bool failed();
  void cover(std::uint64_t offset, std::uint64_t bytes, const std::string& message);

  Agent& agent_;
  Shape shape_;
  std::byte* base_ = nullptr;
  std::uint64_t id_ = 0;
  std::uint64_t snapshot_ = 0;
  std::optional<env::Fd> userfault_;
  env::Fd memfd_;
  std::vector<bool> loaded_;  ///< Without userfaultfd: pages that hold the snapshot's bytes, or changes of it.
  std::vector<PageRun> windows_;
  std::mutex mapping_;  ///< Held while the mapping changes. Never while waiting for the agent.
  bool failed_ = false;
};

}  // namespace holo::client
