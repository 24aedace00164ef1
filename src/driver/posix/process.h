// env::Processes on Linux: fork, pipes, pidfd.
#pragma once

#include "driver/posix/asio_loop.h"
#include "env/processes.h"

namespace holo::driver {

/// Thread: loop; the child dies with the thread that started it (PR_SET_PDEATHSIG), so that must be the loop thread.
/// The loop outlives it and its processes.
class PosixProcesses final : public env::Processes {
 public:
  explicit PosixProcesses(AsioLoop& loop) : loop_(loop) {}
  Result<std::unique_ptr<env::Process>> spawn(env::ProcessSpec spec, env::ProcessEvents events) override;

 private:
  AsioLoop& loop_;
};

}  // namespace holo::driver
