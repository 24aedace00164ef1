// A node's part as coordinator: the driver programs connected to it, and their jobs.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/task.h"
#include "core/compute/job.h"
#include "node/binary_cache.h"
#include "node/compute.h"
#include "node/local_api.h"
#include "wire/compute.pb.h"

namespace holo::node {

/// Thread: loop.
class Coordinator {
 public:
  /// How orders reach an executor; the service sends them to itself or to a peer. Errors: as Transport::call, and the
  /// executor's.
  struct Orders {
    std::function<Task<Status>(NodeId node, wire::TaskBatch batch)> run;
    std::function<Task<Status>(NodeId node, wire::TaskCancel cancel)> cancel;
    std::function<Task<Status>(NodeId node, wire::ProgramEnd end)> end;
  };
  Coordinator(const ComputeService::Ports& ports, const ComputeConfig& config, BinaryCache& binaries, Orders orders);
  ~Coordinator();
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  void on_program_hello(LocalSession& session);
  void on_session_closed(LocalSession& session);
  Task<Result<LocalReply>> job_start(std::shared_ptr<LocalSession> session, LocalRequest request);
  Task<Result<LocalReply>> job_cancel(std::shared_ptr<LocalSession> session, LocalRequest request);

  /// Returns once the report is taken in; later when the program is slow to read its results.
  Task<Status> on_task_done(NodeId from, wire::TaskDone done, Buffer result);
  void on_output(NodeId from, const wire::WorkerOutput& output);
  void on_nodes_changed();
  void on_region_freed(RegionId region);

  [[nodiscard]] std::uint32_t nodes_for(const wire::Hello& hello) const;
  Task<void> stop();
  [[nodiscard]] std::size_t jobs() const { return jobs_.size(); }

 private:
  struct Program;
  struct Job;
  using ProgramPtr = std::shared_ptr<Program>;
  using JobPtr = std::shared_ptr<Job>;

  [[nodiscard]] std::vector<compute::Executor> executors_of(const Program& program) const;
  Task<Status> import_binary(ProgramPtr program);
  Result<JobPtr> make_job(const ProgramPtr& program, const wire::JobStart& start);
  Status plan_chunks(Job& job, const wire::JobStart& start, std::vector<NodeId>& homes);
  /// Runs one event of the job's state machine and does what it asks for.
  void feed(const JobPtr& job, const std::function<void(Instant, compute::Effects&)>& event);
  void send(const JobPtr& job, const compute::Effects::Send& send);
  Task<void> send_batch(JobPtr job, NodeId node, wire::TaskBatch batch, std::vector<compute::Attempt> attempts);
  Task<void> commit(JobPtr job, std::vector<compute::Attempt> attempts);
  void drop(const JobPtr& job, const std::vector<compute::Attempt>& attempts);
  [[nodiscard]] Status still_there(const Job& job) const;
  void finish(const JobPtr& job, Status status);
  Task<void> tell(ProgramPtr program, wire::JobEvent event, Buffer payload);
  Task<void> deliver(JobPtr job);
  void arm_timer(const JobPtr& job);
  Task<void> cancel_on(NodeId node, wire::TaskCancel cancel);
  Task<void> end_on(NodeId node, wire::ProgramEnd end);
  [[nodiscard]] std::string node_name(NodeId node) const;

  ComputeService::Ports ports_;
  ComputeConfig config_;
  BinaryCache& binaries_;
  Orders orders_;
  std::map<SessionId, ProgramPtr> programs_;
  std::map<std::uint64_t, JobPtr> jobs_;
  std::uint64_t next_job_ = 0;
  bool stopping_ = false;
};

}  // namespace holo::node
