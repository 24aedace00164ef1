// The port to page faults of application mappings: userfaultfd on Linux.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "env/fd.h"

namespace holo::env {

/// What this machine lets an agent and its applications do.
enum class FaultMode : std::uint8_t {
  full,            ///< System calls that touch an unresolved page wait for it like any load.
  user_mode_only,  ///< They fail with EFAULT instead: ranges are populated before they are handed to read(2) and
                   ///< friends.
  none,            ///< No userfaultfd: views are read whole when they are mapped.
};

struct PageFault {
  std::uint64_t offset = 0;  ///< Within the view, rounded down to 4 KiB.
  bool write = false;
};

/// One application mapping whose faults this agent serves. Destroying it stops that; the application keeps its own
/// descriptor, so sleeping threads stay asleep. Thread: loop.
///
/// The three resolving calls skip 4 KiB pages that are present already, and wake whoever sleeps on the range. A process
/// that is gone is not an error: the end of its session is what cleans up.
class FaultedView {
 public:
  virtual ~FaultedView() = default;
  /// Maps filled slots: shared and read-only; a store makes the process's own copy. Slots of the range that are not
  /// filled are skipped, and fault again. Errors: `io_error`.
  virtual Status install(std::uint64_t offset, std::uint64_t length) = 0;
  /// Gives the process its own copy of `bytes`. Errors: `out_of_memory`, `io_error`.
  virtual Status copy(std::uint64_t offset, ByteSpan bytes) = 0;
  /// Maps the page of zeros. Errors: `io_error`.
  virtual Status zero(std::uint64_t offset, std::uint64_t length) = 0;
  /// Wakes sleepers without resolving anything: they fault again.
  virtual void wake(std::uint64_t offset, std::uint64_t length) = 0;
};

class PageFaults {
 public:
  /// Called on the loop thread; several faults of one view at once where they came together.
  using OnFaults = std::function<void(std::vector<PageFault>)>;

  virtual ~PageFaults() = default;
  [[nodiscard]] virtual FaultMode mode() const = 0;
  /// Serves the faults of [address, address + length) of the process that made `userfaultfd` (its UFFDIO_API handshake
  /// done, features MISSING_SHMEM | MINOR_SHMEM; ranges may be registered later). `address` is a multiple of the
  /// region's page size. Errors: `invalid_argument` (not a userfaultfd), `unsupported`, `io_error`. Thread: loop.
  virtual Result<std::unique_ptr<FaultedView>> attach(Fd userfaultfd, std::uint64_t address, std::uint64_t length,
                                                      OnFaults on_faults) = 0;
};

}  // namespace holo::env
