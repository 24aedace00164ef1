#include "node/coordinator.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "base/limits.h"
#include "base/log.h"
#include "base/random.h"
#include "base/strings.h"
#include "node/compute_wire.h"

namespace holo::node {
namespace {

constexpr Duration kCommitDeadline = seconds(3);
constexpr Duration kProgressEvery = milliseconds(50);
constexpr Duration kTellPatience = seconds(60);  // A program that does not take a result for so long has lost its job.
constexpr std::size_t kMaxUndelivered = 64 << 20;  // Result bytes waiting for the program; above, reports wait.
constexpr int kEndTries = 25;
constexpr Duration kEndRetry = milliseconds(200);

}  // namespace

struct Coordinator::Program {
  SessionId id;
  LocalSession* session = nullptr;  ///< Null once it has gone.
  pid_t pid = 0;
  wire::Hello hello;
  wire::Program wire;
  bool imported = false;
  std::set<NodeId> told;  ///< Nodes that may have workers of it.
};

struct Coordinator::Job {
  std::uint64_t id = 0;
  ProgramPtr program;
  std::string label;
  wire::TaskBatch batch;  ///< Without tasks and program.
  RegionId region;
  bool results = false;
  std::vector<compute::ChunkRange> chunks;  ///< Empty for a single task.
  std::unique_ptr<compute::Job> core;
  SnapshotPin pin;
  std::map<compute::Attempt, TxnId> txns;
  std::map<TxnId, compute::Attempt> attempts;
  std::map<compute::Attempt, std::vector<RegionWrites>> writes;
  std::map<compute::Attempt, Buffer> payloads;
  struct Outgoing {
    wire::JobEvent event;
    Buffer payload;
  };
  std::deque<Outgoing> outgoing;  ///< Results, in the order of their commits, and the end.
  std::size_t outgoing_bytes = 0;
  bool delivering = false;
  bool over = false;
  Instant last_progress;
  env::Loop::TimerId timer = 0;
};

Coordinator::Coordinator(const ComputeService::Ports& ports, const ComputeConfig& config, BinaryCache& binaries,
                         Orders orders)
    : ports_(ports), config_(config), binaries_(binaries), orders_(std::move(orders)) {}

Coordinator::~Coordinator() = default;

std::string Coordinator::node_name(NodeId node) const {
  const auto* record = ports_.state.node(node);
  return record && !record->name.empty() ? record->name : to_hex(node.value);
}

std::uint32_t Coordinator::nodes_for(const wire::Hello& hello) const {
  const auto live = static_cast<std::uint32_t>(ports_.state.holder_count());
  return hello.nodes() == 0 ? live : std::min(hello.nodes(), live);
}

/// This node first, then the others by id, as many as the program asked for.
std::vector<compute::Executor> Coordinator::executors_of(const Program& program) const {
  auto nodes = ports_.state.live_holders();
  std::ranges::sort(nodes);
  std::ranges::stable_partition(nodes, [this](NodeId n) { return n == ports_.self; });
  if (program.hello.nodes() > 0 && nodes.size() > program.hello.nodes()) nodes.resize(program.hello.nodes());
  std::vector<compute::Executor> out;
  for (const NodeId id : nodes) {
    const auto* record = ports_.state.node(id);
    out.push_back({.node = id, .incarnation = record->incarnation, .slots = std::max(1U, record->cores)});
  }
  return out;
}

void Coordinator::on_program_hello(LocalSession& session) {
  auto program = std::make_shared<Program>();
  program->id = session.id();
  program->session = &session;
  program->pid = session.pid();
  program->hello = session.hello();
  program->wire.set_coordinator(ports_.self.value);
  program->wire.set_session(session.id().value);
  if (!config_.in_process) program->wire.set_binary_hash(session.hello().binary_hash());
  programs_[session.id()] = std::move(program);
}

void Coordinator::on_session_closed(LocalSession& session) {
  auto it = programs_.find(session.id());
  if (it == programs_.end()) return;
  const ProgramPtr program = std::move(it->second);
  programs_.erase(it);
  program->session = nullptr;
  std::vector<JobPtr> own;
  for (auto& [id, job] : jobs_) {
    if (job->program == program) own.push_back(job);
  }
  for (const JobPtr& job : own) {
    feed(job, [&](Instant now, compute::Effects& fx) { job->core->cancel(now, fx); });
  }
  for (const NodeId node : program->told) {
    wire::ProgramEnd end;
    *end.mutable_program() = program->wire;
    ports_.loop.spawn(end_on(node, std::move(end)));
  }
}

/// Until the node has heard it, or is dead: then its workers have died with it.
Task<void> Coordinator::end_on(NodeId node, wire::ProgramEnd end) {
  for (int i = 0; i < kEndTries; ++i) {
    const Status sent = co_await orders_.end(node, end);
    if (sent || !ports_.state.node(node) || !ports_.state.node(node)->alive()) co_return;
    const bool awake = co_await env::sleep_for(ports_.loop, kEndRetry);
    if (!awake) co_return;
  }
  log_warn("compute", "node ", node_name(node), " could not be told that a program has gone");
}

Task<void> Coordinator::cancel_on(NodeId node, wire::TaskCancel cancel) {
  (void)co_await orders_.cancel(node,
                                std::move(cancel));  // If it is lost the tasks run on in vain: they cannot commit.
}

Task<Status> Coordinator::import_binary(ProgramPtr program) {
  program->wire.set_incarnation(ports_.incarnation());
  if (config_.in_process || program->imported) co_return Status{};
  std::string hash = program->hello.binary_hash();
  // Through the process: its file may have been replaced since it was started.
  std::string source = str("/proc/", program->pid, "/exe");
  auto path = co_await binaries_.import(hash, std::move(source));
  if (!path) co_return std::unexpected(path.error());
  program->wire.set_binary_bytes(binaries_.size(hash));
  program->imported = true;
  co_return Status{};
}

Status Coordinator::plan_chunks(Job& job, const wire::JobStart& start, std::vector<NodeId>& homes) {
  if (start.kind() == wire::JobStart::SINGLE) {
    // Spread over the program's nodes, beginning at this one.
    const auto nodes = executors_of(*job.program);
    homes.push_back(nodes.empty() ? ports_.self : nodes[job.id % nodes.size()].node);
    return {};
  }
  const auto* region = ports_.state.region(job.region);
  if (!region) return fail(Errc::not_found, "the region of this job does not exist any more");
  std::vector<compute::BlockHome> blocks;
  std::uint64_t left = region->bytes;
  ports_.state.for_each_block(job.region, [&](control::PageRange pages, NodeId home) {
    const std::uint64_t bytes = std::min(left, pages.count * region->page_bytes);
    blocks.push_back({bytes, home});
    left -= bytes;
  });
  const std::uint64_t elements = start.elements() == 0 ? region->count : std::min(region->count, start.elements());
  job.chunks = compute::split(blocks, elements, region->element_bytes, limits::kMaxTasksPerJob);
  for (const auto& c : job.chunks) homes.push_back(c.home);
  auto* info = job.batch.mutable_region();
  info->set_region(region->id.value);
  info->set_name(region->name);
  info->set_type(region->type);
  info->set_element_bytes(region->element_bytes);
  info->set_count(region->count);
  info->set_bytes(region->bytes);
  info->set_page_bytes(region->page_bytes);
  info->set_replication(region->replication);
  const Version snapshot = ports_.memory.newest(job.region);
  job.pin = ports_.memory.pin(job.region, snapshot);
  job.batch.set_snapshot(snapshot.value);
  return {};
}

Result<Coordinator::JobPtr> Coordinator::make_job(const ProgramPtr& program, const wire::JobStart& start) {
  if (start.captures().size() > limits::kMaxCaptureBytes) {
    return fail(Errc::over_limit, str("captures of more than ", limits::kMaxCaptureBytes, " bytes"));
  }
  auto job = std::make_shared<Job>();
  // The node's share and the counter's do not meet before four billion jobs.
  job->id = (mix64(ports_.self.value ^ ports_.incarnation()) << 32) | (++next_job_ & 0xFFFFFFFF);
  job->program = program;
  job->label = start.label();
  job->region = RegionId{start.region()};
  job->results = start.results();
  job->batch.set_job(job->id);
  job->batch.set_function(start.function());
  job->batch.set_captures(start.captures());
  job->batch.set_writes(start.writes() && start.kind() == wire::JobStart::CHUNKS);
  std::vector<NodeId> homes;
  HOLO_TRY(plan_chunks(*job, start, homes));
  compute::JobOptions options;
  options.writes = job->batch.writes();
  job->core = std::make_unique<compute::Job>(std::move(homes), options);
  return job;
}

Task<Result<LocalReply>> Coordinator::job_start(std::shared_ptr<LocalSession> session, LocalRequest request) {
  wire::JobStart start;
  if (!start.ParseFromString(request.header)) co_return fail(Errc::malformed, "a job that does not decode");
  auto it = programs_.find(session->id());
  if (it == programs_.end()) co_return fail(Errc::refused, "only a program can start jobs");
  if (stopping_) co_return fail(Errc::cancelled, "the agent is stopping");
  const ProgramPtr program = it->second;
  HOLO_CO_TRY(co_await import_binary(program));
  if (!program->session) co_return fail(Errc::cancelled, "the program has gone");
  auto made = make_job(program, start);
  if (!made) co_return std::unexpected(made.error());
  const JobPtr job = *made;
  jobs_[job->id] = job;
  // After the answer, so that the program knows the job before its first event.
  ports_.loop.post([this, job] {
    feed(job, [&](Instant now, compute::Effects& fx) { job->core->start(now, executors_of(*job->program), fx); });
  });
  wire::JobStartReply answer;
  answer.set_job(job->id);
  answer.set_chunks(job->core->chunks());
  LocalReply reply;
  reply.header = answer.SerializeAsString();
  co_return reply;
}

Task<Result<LocalReply>> Coordinator::job_cancel(std::shared_ptr<LocalSession> session, LocalRequest request) {
  wire::JobCancel cancel;
  if (!cancel.ParseFromString(request.header)) co_return fail(Errc::malformed, "a cancel that does not decode");
  auto it = jobs_.find(cancel.job());
  if (it == jobs_.end() || it->second->program->session != session.get()) {
    co_return fail(Errc::not_found, "no such job of this program is running");
  }
  const JobPtr job = it->second;
  feed(job, [&](Instant now, compute::Effects& fx) { job->core->cancel(now, fx); });
  co_return LocalReply{};
}

void Coordinator::feed(const JobPtr& job, const std::function<void(Instant, compute::Effects&)>& event) {
  if (job->over) return;
  compute::Effects fx;
  const Instant now = ports_.loop.now();
  event(now, fx);
  for (const auto& s : fx.send) send(job, s);
  for (const NodeId node : fx.cancel) {
    wire::TaskCancel cancel;
    *cancel.mutable_program() = job->program->wire;
    cancel.set_job(job->id);
    ports_.loop.spawn(cancel_on(node, std::move(cancel)));
  }
  for (const compute::ChunkNo chunk : fx.done) {
    const auto it = job->payloads.lower_bound({chunk, 0});
    if (it == job->payloads.end() || it->first.chunk != chunk) continue;
    if (job->results) {
      Job::Outgoing out;
      out.event.set_job(job->id);
      out.event.set_kind(wire::JobEvent::RESULT);
      out.event.set_chunk(chunk);
      out.payload = std::move(it->second);
      job->outgoing_bytes += out.payload.size();
      job->outgoing.push_back(std::move(out));
    }
    job->payloads.erase(it);
  }
  drop(job, fx.abort);
  if (!fx.commit.empty()) ports_.loop.spawn(commit(job, fx.commit));
  if (!fx.done.empty() && !fx.ended && now - job->last_progress >= kProgressEvery && job->program->session) {
    job->last_progress = now;
    Job::Outgoing out;
    out.event.set_job(job->id);
    out.event.set_kind(wire::JobEvent::PROGRESS);
    out.event.set_chunks_done(job->core->done());
    out.event.set_chunks_total(job->core->chunks());
    job->outgoing.push_back(std::move(out));
  }
  if (fx.ended) finish(job, *fx.ended);
  if (!job->outgoing.empty() && !std::exchange(job->delivering, true)) ports_.loop.spawn(deliver(job));
  arm_timer(job);
}

void Coordinator::arm_timer(const JobPtr& job) {
  ports_.loop.cancel(std::exchange(job->timer, 0));
  if (job->over) return;
  const Instant wake = job->core->next_wake();
  if (wake == kNever) return;
  job->timer = ports_.loop.call_at(wake, [this, job] {
    job->timer = 0;
    feed(job, [&](Instant now, compute::Effects& fx) { job->core->on_time(now, fx); });
  });
}

void Coordinator::send(const JobPtr& job, const compute::Effects::Send& order) {
  wire::TaskBatch batch = job->batch;
  *batch.mutable_program() = job->program->wire;
  batch.set_applied(ports_.state.applied().value);
  for (const compute::Attempt attempt : order.attempts) {
    auto [it, fresh] = job->txns.try_emplace(attempt);
    if (fresh) {
      it->second = ports_.memory.new_txn();
      job->attempts[it->second] = attempt;
    }
    auto* task = batch.add_tasks();
    task->set_chunk(attempt.chunk);
    *task->mutable_txn() = txn_to_wire(it->second);
    if (!job->chunks.empty()) {
      task->set_first(job->chunks[attempt.chunk].first);
      task->set_last(job->chunks[attempt.chunk].last);
    }
  }
  job->program->told.insert(order.node);
  ports_.loop.spawn(send_batch(job, order.node, std::move(batch), order.attempts));
}

Task<void> Coordinator::send_batch(JobPtr job, NodeId node, wire::TaskBatch batch,
                                   std::vector<compute::Attempt> attempts) {
  const Status sent = co_await orders_.run(node, std::move(batch));
  if (sent) co_return;
  const Error& error = sent.error();
  const bool may_pass = error.code == Errc::unavailable || error.code == Errc::deadline_exceeded ||
                        error.code == Errc::overloaded || error.code == Errc::stale_epoch;
  feed(job, [&](Instant now, compute::Effects& fx) {
    if (may_pass) return job->core->on_unsent(now, node, attempts, fx);
    for (const compute::Attempt a : attempts) job->core->on_failed(now, a, error, fx);
  });
}

void Coordinator::drop(const JobPtr& job, const std::vector<compute::Attempt>& attempts) {
  std::vector<TxnId> txns;
  for (const compute::Attempt attempt : attempts) {
    job->writes.erase(attempt);
    job->payloads.erase(attempt);
    const auto it = job->txns.find(attempt);
    if (it == job->txns.end()) continue;
    txns.push_back(it->second);
    job->attempts.erase(it->second);
    job->txns.erase(it);
  }
  if (!txns.empty() && job->batch.writes()) ports_.memory.abort(std::move(txns));
}

Task<void> Coordinator::commit(JobPtr job, std::vector<compute::Attempt> attempts) {
  std::vector<TxnWrites> txns;
  for (const compute::Attempt a : attempts)
    txns.push_back({.txn = job->txns[a], .regions = job->writes[a], .bump_only = {}});
  const Instant deadline = ports_.loop.now() + kCommitDeadline;
  auto result = co_await ports_.memory.commit(std::move(txns), deadline);
  feed(job, [&](Instant now, compute::Effects& fx) {
    if (!result) return job->core->on_commit_unknown(now, result.error(), fx);
    for (std::size_t i = 0; i < attempts.size() && i < result->size(); ++i) {
      const auto& one = (*result)[i];
      if (one) job->writes.erase(attempts[i]);
      job->core->on_committed(now, attempts[i], one ? Status() : Status(std::unexpected(one.error())), fx);
    }
  });
}

Task<Status> Coordinator::on_task_done(NodeId from, wire::TaskDone done, Buffer result) {
  auto it = jobs_.find(done.job());
  if (it == jobs_.end()) co_return Status{};  // Over: what it staged was aborted then.
  const JobPtr job = it->second;
  while (job->outgoing_bytes > kMaxUndelivered && !job->over) {
    const bool awake = co_await env::sleep_for(ports_.loop, milliseconds(5));
    if (!awake) break;
  }
  const auto known = job->attempts.find(txn_from_wire(done.txn()));
  if (known == job->attempts.end()) co_return Status{};
  const compute::Attempt attempt = known->second;
  if (done.error().code() != 0) {
    Error error = error_from_wire(done.error());
    const std::string what = job->chunks.empty() ? job->label : str("task ", attempt.chunk, " of ", job->label);
    error.message = str(what, " on node ", node_name(from), ": ", error.message);
    feed(job, [&](Instant now, compute::Effects& fx) { job->core->on_failed(now, attempt, error, fx); });
    co_return Status{};
  }
  if (!job->core->wanted(attempt)) co_return Status{};  // Told twice.
  auto writes = writes_from_wire(done);
  const bool wrote = !writes.empty();
  if (wrote) job->writes[attempt] = std::move(writes);
  job->payloads[attempt] = std::move(result);
  feed(job, [&](Instant now, compute::Effects& fx) { job->core->on_finished(now, attempt, wrote, fx); });
  co_return Status{};
}

void Coordinator::on_output(NodeId from, const wire::WorkerOutput& output) {
  auto it = programs_.find(SessionId{output.session()});
  if (it == programs_.end() || !it->second->session || !it->second->hello.stream_output()) return;
  const auto say = [&](std::string text, bool is_stderr) {
    wire::JobEvent event;
    event.set_kind(wire::JobEvent::OUTPUT);
    event.set_node(node_name(from));
    event.set_line(std::move(text));
    event.set_is_stderr(is_stderr);
    LocalRequest message;
    message.type = wire::JOB_EVENT;
    message.header = event.SerializeAsString();
    it->second->session->notify(std::move(message));
  };
  if (output.dropped() > 0) say(str("(", output.dropped(), " lines were lost: they came too fast)"), true);
  for (const auto& line : output.lines()) say(line.text(), line.is_stderr());
}

/// Of a job that is done: whether what it wrote is still on live nodes.
Status Coordinator::still_there(const Job& job) const {
  const auto& state = ports_.state;
  std::uint64_t lost = 0;
  NodeId holder;
  state.for_each_block(job.region, [&](control::PageRange pages, NodeId home) {
    const auto* node = state.node(home);
    if (node && node->alive()) return;
    state.for_each_written_since(job.region, Version{job.batch.snapshot()}, pages,
                                 [&](control::PageRange run, Version) {
                                   lost += run.count;
                                   holder = home;
                                 });
  });
  if (lost == 0) return {};
  return fail(Errc::page_lost,
              str(job.label, ": ", lost, " of the pages that it wrote were on node ", node_name(holder),
                  " alone, which has died since"),
              "replication 2 or more keeps pages when a node is killed");
}

void Coordinator::finish(const JobPtr& job, Status status) {
  if (status && job->batch.writes()) status = still_there(*job);
  job->over = true;
  jobs_.erase(job->id);
  job->pin.reset();
  Job::Outgoing out;
  out.event.set_job(job->id);
  out.event.set_chunks_done(job->core->done());
  out.event.set_chunks_total(job->core->chunks());
  if (status) {
    out.event.set_kind(wire::JobEvent::DONE);
    if (job->region) out.event.set_version(ports_.memory.newest(job->region).value);
  } else {
    out.event.set_kind(wire::JobEvent::FAILED);
    *out.event.mutable_error() = error_to_wire(status.error());
  }
  job->outgoing.push_back(std::move(out));
}

/// Events reach the program in order. A result waits for its answer, so that no more than the program takes in is under
/// way.
Task<void> Coordinator::deliver(JobPtr job) {
  while (!job->outgoing.empty()) {
    auto out = std::move(job->outgoing.front());
    job->outgoing.pop_front();
    const std::size_t bytes = out.payload.size();
    co_await tell(job->program, std::move(out.event), std::move(out.payload));
    job->outgoing_bytes -= bytes;
  }
  job->delivering = false;
}

Task<void> Coordinator::tell(ProgramPtr program, wire::JobEvent event, Buffer payload) {
  if (!program->session) co_return;
  LocalRequest message;
  message.type = wire::JOB_EVENT;
  message.header = event.SerializeAsString();
  if (event.kind() != wire::JobEvent::RESULT) {
    program->session->notify(std::move(message));
    co_return;
  }
  if (!payload.empty()) message.payload.push_back(std::move(payload));
  auto taken = co_await program->session->call(std::move(message), ports_.loop.now() + kTellPatience);
  if (!taken && taken.error().code == Errc::deadline_exceeded && program->session) program->session->close();
}

void Coordinator::on_nodes_changed() {
  std::vector<JobPtr> all;
  for (auto& [id, job] : jobs_) all.push_back(job);
  for (const JobPtr& job : all) {
    feed(job,
         [&](Instant now, compute::Effects& fx) { job->core->on_executors(now, executors_of(*job->program), fx); });
  }
}

void Coordinator::on_region_freed(RegionId region) {
  std::vector<JobPtr> own;
  for (auto& [id, job] : jobs_) {
    if (job->region == region) own.push_back(job);
  }
  for (const JobPtr& job : own) {
    Error error = fail(Errc::not_found, str(job->label, ": its region was freed")).error();
    feed(job, [&](Instant now, compute::Effects& fx) { job->core->fail(now, error, fx); });
  }
}

Task<void> Coordinator::stop() {
  stopping_ = true;
  std::vector<JobPtr> all;
  for (auto& [id, job] : jobs_) all.push_back(job);
  for (const JobPtr& job : all) {
    Error error = fail(Errc::cancelled, "the agent is stopping").error();
    feed(job, [&](Instant now, compute::Effects& fx) { job->core->fail(now, error, fx); });
  }
  for (auto& [id, program] : programs_) {
    for (const NodeId node : program->told) {
      if (node == ports_.self) continue;
      wire::ProgramEnd end;
      *end.mutable_program() = program->wire;
      (void)co_await orders_.end(node, std::move(end));
    }
  }
}

}  // namespace holo::node
