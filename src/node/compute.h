// Jobs on a node. As coordinator: splits a program's job into tasks, sends them to the nodes that hold the pages,
// commits what they staged, and reports to the program. As executor: fetches the program's binary, keeps its worker
// processes, runs tasks in them. Everything here runs on the loop thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/task.h"
#include "base/time.h"
#include "core/control/state.h"
#include "env/entropy.h"
#include "env/fd.h"
#include "env/loop.h"
#include "env/processes.h"
#include "env/transport.h"
#include "node/local_api.h"
#include "node/memory.h"

namespace holo::node {

/// Exit status of a worker that ended because a page could not be had; its task was answered with the reason before.
inline constexpr int kWorkerExitPageFailed = 97;

struct ComputeConfig {
  unsigned workers = 0;   ///< Worker processes per program on this node; 0: one per core of the node.
  std::string state_dir;  ///< Shipped executables are kept in state_dir/binaries (mode 0700).
  std::uint64_t binary_cache_bytes = 2ULL << 30;  ///< Least recently used ones are removed above it.
  std::vector<std::string> worker_env;  ///< "NAME=value": what workers see besides the library's own HOLO_WORKER_*.
  bool in_process = false;  ///< holo::local: `processes` starts threads of this process; nothing is shipped.
  Duration worker_start_deadline = seconds(10);  ///< From the start of a worker to its Hello; then the task fails.
  Duration cancel_grace = milliseconds(200);     ///< From a cancel to SIGKILL for the worker of a running task.
};

struct ComputeStatus {
  std::uint64_t programs = 0;  ///< With at least one worker here.
  std::uint64_t workers = 0;
  std::uint64_t jobs = 0;  ///< Coordinated here, running.
  std::uint64_t tasks_queued = 0;
  std::uint64_t tasks_running = 0;
  std::uint64_t tasks_done = 0;  ///< Since start, here.
  std::uint64_t tasks_failed = 0;
};

class ComputeService {
 public:
  struct Ports {
    env::Loop& loop;
    env::Transport& transport;
    env::Processes& processes;
    env::Entropy& entropy;
    const control::State& state;
    MemoryService& memory;
    NodeId self;
    /// This node's incarnation; asked after it has joined.
    std::function<std::uint64_t()> incarnation;
    /// Registers an observer of `state` (ControlService::add_observer).
    std::function<void(control::StateObserver*)> observe;
    /// Makes a connected pair of sockets, adopts one end as a local session (LocalServer::adopt), returns the other for
    /// the worker.
    std::function<Result<env::Fd>()> worker_socket;
  };
  /// Registers its peer handlers and observers. `ports` outlive it.
  static std::unique_ptr<ComputeService> make(Ports ports, ComputeConfig config);
  virtual ~ComputeService() = default;

  /// Registers JOB_START, JOB_CANCEL, TASK_STATUS, and what happens when programs and workers connect and close. The
  /// Hello of a worker with an unknown token is refused. HelloReply.nodes of a program: nodes_for().
  virtual void serve_local(LocalApi& api) = 0;
  /// How many nodes the work of a program will use now: min(asked, live); asked 0: all.
  [[nodiscard]] virtual std::uint32_t nodes_for(const wire::Hello& hello) const = 0;

  /// Fails all jobs with `cancelled` and kills all workers. Returns when they are gone. Afterwards nothing is started.
  virtual Task<void> stop() = 0;
  [[nodiscard]] virtual ComputeStatus status() const = 0;
};

}  // namespace holo::node
