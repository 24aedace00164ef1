// The worker's side of a task: the loop that a worker process runs instead of the program's main().
#pragma once

#include <cstdint>

#include "env/fd.h"

namespace holo::client {

/// The environment of a worker process: the descriptor of its socket, and the token that its Hello must carry.
inline constexpr const char* kWorkerFdVariable = "HOLO_WORKER_FD";
inline constexpr const char* kWorkerTokenVariable = "HOLO_WORKER_TOKEN";

struct WorkerOptions {
  env::Fd socket;
  std::uint64_t token = 0;
  bool own_process = true;  ///< The process ends at once when the agent is gone, also in the middle of a task.
};

/// Serves tasks until the connection closes. Returns the exit status: 0, or 1 when the agent refused this worker.
/// Thread: tasks run on the calling one.
int run_worker(WorkerOptions options);

/// A worker process's main: reads the environment above. Never returns to the program.
int worker_main(int argc, char** argv, char** envp);

}  // namespace holo::client
