// A node's part as executor: worker processes per program, the queue of tasks they take from, and the reports back.
#pragma once

#include <compare>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/task.h"
#include "env/transport.h"
#include "node/binary_cache.h"
#include "node/compute.h"
#include "node/local_api.h"
#include "wire/compute.pb.h"

namespace holo::node {

/// A driver program, from everywhere in the cluster.
struct ProgramKey {
  NodeId coordinator;
  std::uint64_t incarnation = 0;
  std::uint64_t session = 0;
  friend constexpr auto operator<=>(const ProgramKey&, const ProgramKey&) = default;
  static ProgramKey of(const wire::Program& p) { return {NodeId{p.coordinator()}, p.incarnation(), p.session()}; }
};

/// Thread: loop.
class Executor {
 public:
  /// How reports reach a coordinator; the service sends them to itself or to a peer.
  struct Reports {
    /// Errors: as Transport::call.
    std::function<Task<Status>(NodeId coordinator, wire::TaskDone done, Buffer result)> done;
    std::function<Task<Status>(NodeId coordinator, wire::WorkerOutput output)> output;
    std::function<Task<Result<Bytes>>(NodeId coordinator, std::string hash, std::uint64_t offset)> binary;
  };
  Executor(const ComputeService::Ports& ports, const ComputeConfig& config, BinaryCache& binaries, Reports reports);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  /// Queues the batch's tasks; txns known already are left out. Errors: `cancelled` (stopping), `stale_epoch` (its
  /// coordinator is not alive here under that incarnation, retryable), `malformed`.
  Status accept(const wire::TaskBatch& batch);
  void cancel(const ProgramKey& program, std::uint64_t job);
  /// Kills the program's workers and forgets it.
  void end_program(const ProgramKey& program);
  /// Ends the programs of coordinators that are not alive any more.
  void check_coordinators();

  /// A worker's Hello. Errors: `refused` (no such token).
  Status on_worker_hello(LocalSession& session);
  void on_session_closed(LocalSession& session);

  /// Kills everything; accepts nothing more.
  Task<void> stop();
  void count(ComputeStatus& out) const;

 private:
  struct JobInfo;
  struct Item;
  struct Worker;
  struct Program;
  using ProgramPtr = std::shared_ptr<Program>;
  using WorkerPtr = std::shared_ptr<Worker>;

  void pump(const ProgramPtr& program);
  void pump_later(const ProgramPtr& program);
  [[nodiscard]] std::size_t choose(const Program& program, const Worker& worker) const;
  Task<void> prepare(ProgramPtr program);
  Task<Result<Bytes>> fetch_part(ProgramPtr program, std::uint64_t offset);
  void start_worker(const ProgramPtr& program);
  void on_exit(const ProgramPtr& program, const WorkerPtr& worker, env::ExitStatus status);
  void fail_queue(const ProgramPtr& program, const Error& error);
  Task<void> hop();
  Task<void> run(ProgramPtr program, WorkerPtr worker, Item item);
  Task<Result<LocalReply>> call_worker(WorkerPtr worker, wire::TaskRun task);
  Task<Error> why_lost(WorkerPtr worker, Error error);
  Task<void> finish(ProgramPtr program, Item item, Result<LocalReply> result);
  Task<void> report(ProgramPtr program, wire::TaskDone done, Buffer result);
  void add_line(const ProgramPtr& program, env::OutputStream stream, std::string_view line);
  Task<void> send_output(ProgramPtr program);
  void remove_worker(const ProgramPtr& program, const WorkerPtr& worker);
  [[nodiscard]] bool alive(const ProgramKey& key) const;
  [[nodiscard]] unsigned worker_limit() const;

  ComputeService::Ports ports_;
  ComputeConfig config_;
  BinaryCache& binaries_;
  Reports reports_;
  std::map<ProgramKey, ProgramPtr> programs_;
  std::map<std::uint64_t, std::pair<ProgramPtr, WorkerPtr>> tokens_;  ///< Workers that have not said Hello.
  std::map<SessionId, std::pair<ProgramPtr, WorkerPtr>> sessions_;
  std::deque<ProgramKey> ended_;
  std::uint64_t tasks_done_ = 0;
  std::uint64_t tasks_failed_ = 0;
  bool stopping_ = false;
};

}  // namespace holo::node
