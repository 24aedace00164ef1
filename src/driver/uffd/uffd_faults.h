// Page faults of applications through userfaultfd(2).
#pragma once

#include "driver/posix/asio_loop.h"
#include "env/page_faults.h"

namespace holo::driver {

/// What an agent and its applications may do here, by trying it: a system call or two. Thread: any.
/// `full` needs CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1, or an accessible /dev/userfaultfd.
env::FaultMode probe_fault_mode();

/// A userfaultfd with its handshake done, as an application makes it: missing and minor faults of shared memory,
/// non-blocking, of the best mode there is. Errors: `unsupported`. Thread: any.
Result<env::Fd> open_userfaultfd();

/// Reads fault events on the loop itself: one wake-up between the fault and its answer.
class UffdFaults final : public env::PageFaults {
 public:
  explicit UffdFaults(AsioLoop& loop);
  /// With this mode instead of the machine's own (to test the ways without userfaultfd).
  UffdFaults(AsioLoop& loop, env::FaultMode mode) : loop_(loop), mode_(mode) {}

  env::FaultMode mode() const override { return mode_; }
  Result<std::unique_ptr<env::FaultedView>> attach(env::Fd userfaultfd, std::uint64_t address, std::uint64_t length,
                                                   OnFaults on_faults) override;

 private:
  AsioLoop& loop_;
  env::FaultMode mode_;
};

}  // namespace holo::driver
