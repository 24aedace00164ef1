#include "node/executor.h"

#include <algorithm>
#include <utility>

#include "base/limits.h"
#include "base/log.h"
#include "base/strings.h"
#include "node/compute_wire.h"

namespace holo::node {
namespace {

constexpr Duration kSealDeadline = seconds(8);
constexpr Duration kExitPatience = seconds(2);  // From a worker's broken connection to the news of its end.
constexpr Duration kApplyPoll = milliseconds(1);
constexpr Duration kReportRetry = milliseconds(200);
constexpr Duration kFlushPatience = milliseconds(500);
constexpr std::size_t kMaxOutputBytes = 1 << 20;  // Lines waiting to be sent; above, they are dropped and counted.
constexpr std::size_t kMaxAffinity = 1 << 16;     // Remembered (region, chunk) -> worker; above, all is forgotten.
constexpr std::size_t kMaxEnded = 1024;           // Programs remembered as gone; above, the oldest are forgotten.
constexpr std::size_t kMaxQueued = 1 << 17;       // Tasks of one program here; above: overloaded.

}  // namespace

struct Executor::JobInfo {
  std::uint64_t id = 0;
  std::uint64_t function = 0;
  std::string captures;
  wire::RegionInfo region;
  std::uint64_t snapshot = 0;
  bool writes = false;
  LogIndex applied;  ///< The region and its snapshot are known here once this is applied.
};

struct Executor::Item {
  std::shared_ptr<const JobInfo> job;
  wire::TaskSpec spec;
};

struct Executor::Worker {
  std::uint64_t number = 0;
  std::uint64_t token = 0;
  std::unique_ptr<env::Process> process;
  LocalSession* session = nullptr;  ///< After its Hello, until its connection closes.
  bool busy = false;
  std::uint64_t job = 0;  ///< Of the running task.
  bool ended = false;
  bool killed = false;  ///< By a cancel: its end is no failure.
  env::ExitStatus status;
  std::string last_error_line;
  std::shared_ptr<OneShot<bool>> exit_seen;
  env::Loop::TimerId start_timer = 0;
};

struct Executor::Program {
  ProgramKey key;
  wire::Program wire;
  std::string path;  ///< Of the executable; empty until it is here.
  bool preparing = false;
  bool waiting = false;  ///< For the log to be applied as far as the next task needs.
  bool gone = false;
  std::deque<Item> queue;
  std::set<TxnId> known;  ///< Queued, running, or being reported.
  std::vector<WorkerPtr> workers;
  std::uint64_t next_worker = 0;
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::uint64_t> affinity;  ///< (region, chunk) -> worker number
  std::deque<wire::WorkerOutput::Line> lines;
  std::size_t line_bytes = 0;
  std::uint64_t lines_dropped = 0;
  bool sending_lines = false;
};

Executor::Executor(const ComputeService::Ports& ports, const ComputeConfig& config, BinaryCache& binaries,
                   Reports reports)
    : ports_(ports), config_(config), binaries_(binaries), reports_(std::move(reports)) {}

Executor::~Executor() = default;

bool Executor::alive(const ProgramKey& key) const { return ports_.state.alive(key.coordinator, key.incarnation); }

unsigned Executor::worker_limit() const {
  if (config_.workers > 0) return config_.workers;
  const auto* self = ports_.state.node(ports_.self);
  return std::max(1U, self ? self->cores : 1U);
}

Status Executor::accept(const wire::TaskBatch& batch) {
  if (stopping_) return fail(Errc::cancelled, "the agent is stopping");
  const ProgramKey key = ProgramKey::of(batch.program());
  if (!alive(key)) {
    auto error = fail(Errc::stale_epoch, "the coordinator of this job is not alive as this node knows it");
    error.error().retryable = true;
    return error;
  }
  if (std::ranges::find(ended_, key) != ended_.end()) return fail(Errc::cancelled, "the program has gone");
  auto& program = programs_[key];
  if (!program) {
    program = std::make_shared<Program>();
    program->key = key;
    program->wire = batch.program();
  }
  if (program->queue.size() + static_cast<std::size_t>(batch.tasks_size()) > kMaxQueued) {
    return fail(Errc::overloaded, "too many tasks are waiting on this node");
  }
  auto job = std::make_shared<JobInfo>();
  job->id = batch.job();
  job->function = batch.function();
  job->captures = batch.captures();
  job->region = batch.region();
  job->snapshot = batch.snapshot();
  job->writes = batch.writes();
  job->applied = LogIndex{batch.applied()};
  for (const auto& spec : batch.tasks()) {
    if (!program->known.insert(txn_from_wire(spec.txn())).second) continue;
    program->queue.push_back({job, spec});
  }
  pump(program);
  return {};
}

/// The task in the queue that suits the worker best: one whose pages it has mapped before, else one that no other has.
std::size_t Executor::choose(const Program& program, const Worker& worker) const {
  constexpr std::size_t kLook = 64;
  std::size_t fresh = program.queue.size();
  for (std::size_t i = 0; i < std::min(kLook, program.queue.size()); ++i) {
    const Item& item = program.queue[i];
    const auto it = program.affinity.find({item.job->region.region(), item.spec.chunk()});
    if (it == program.affinity.end()) {
      fresh = std::min(fresh, i);
    } else if (it->second == worker.number) {
      return i;
    }
  }
  return fresh < program.queue.size() ? fresh : 0;
}

void Executor::pump(const ProgramPtr& program) {
  if (program->gone || program->queue.empty()) return;
  if (program->path.empty() && !config_.in_process) {
    if (!std::exchange(program->preparing, true)) ports_.loop.spawn(prepare(program));
    return;
  }
  if (ports_.state.applied() < program->queue.front().job->applied) return pump_later(program);
  std::size_t starting = 0;
  for (const WorkerPtr& worker : program->workers) {
    if (program->queue.empty()) return;
    if (worker->ended) continue;
    if (!worker->session) {
      ++starting;
      continue;
    }
    if (worker->busy) continue;
    const auto at = program->queue.begin() + static_cast<std::ptrdiff_t>(choose(*program, *worker));
    Item item = std::move(*at);
    program->queue.erase(at);
    worker->busy = true;
    worker->job = item.job->id;
    if (program->affinity.size() >= kMaxAffinity) program->affinity.clear();
    program->affinity[{item.job->region.region(), item.spec.chunk()}] = worker->number;
    ports_.loop.spawn(run(program, worker, std::move(item)));
  }
  while (starting < program->queue.size() && program->workers.size() < worker_limit() && !program->gone) {
    start_worker(program);
    ++starting;
  }
}

/// This node's copy of the control state is behind its coordinator's.
void Executor::pump_later(const ProgramPtr& program) {
  if (std::exchange(program->waiting, true)) return;
  ports_.loop.call_at(ports_.loop.now() + kApplyPoll, [this, program] {
    program->waiting = false;
    if (!ports_.loop.stopping()) pump(program);
  });
}

Task<Result<Bytes>> Executor::fetch_part(ProgramPtr program, std::uint64_t offset) {
  std::string hash = program->wire.binary_hash();
  co_return co_await reports_.binary(program->key.coordinator, std::move(hash), offset);
}

Task<void> Executor::prepare(ProgramPtr program) {
  std::string hash = program->wire.binary_hash();
  BinaryCache::Fetch fetch = [this, program](std::uint64_t offset) { return fetch_part(program, offset); };
  auto path = co_await binaries_.obtain(std::move(hash), program->wire.binary_bytes(), std::move(fetch));
  program->preparing = false;
  if (program->gone) co_return;
  if (!path) {
    fail_queue(program, path.error());
    co_return;
  }
  program->path = *path;
  pump(program);
}

void Executor::start_worker(const ProgramPtr& program) {
  auto socket = ports_.worker_socket();
  if (!socket) return fail_queue(program, socket.error());
  auto worker = std::make_shared<Worker>();
  worker->number = ++program->next_worker;
  worker->token = ports_.entropy.u64();
  worker->exit_seen = std::make_shared<OneShot<bool>>();
  constexpr int kSocketNumber = 3;

  env::ProcessSpec spec;
  spec.program = program->path;
  spec.args = {"holo-worker"};
  spec.env = config_.worker_env;
  spec.env.push_back(str("HOLO_WORKER_FD=", kSocketNumber));
  spec.env.push_back(str("HOLO_WORKER_TOKEN=", worker->token));
  spec.fds.push_back({kSocketNumber, std::move(*socket)});
  // The process belongs to the worker, so its callbacks must not own the worker back.
  const std::weak_ptr<Worker> weak = worker;
  env::ProcessEvents events;
  events.on_line = [this, program, weak](env::OutputStream stream, std::string_view line) {
    if (auto w = weak.lock(); w && stream == env::OutputStream::err) w->last_error_line = line;
    add_line(program, stream, line);
  };
  events.on_exit = [this, program, weak](env::ExitStatus status) {
    if (auto w = weak.lock()) on_exit(program, w, status);
  };
  program->workers.push_back(worker);
  tokens_[worker->token] = {program, worker};
  auto process = ports_.processes.spawn(std::move(spec), std::move(events));
  if (!process) {
    tokens_.erase(worker->token);
    std::erase(program->workers, worker);
    return fail_queue(program, process.error());
  }
  worker->process = std::move(*process);
  worker->start_timer = ports_.loop.call_at(ports_.loop.now() + config_.worker_start_deadline, [this, program, weak] {
    auto w = weak.lock();
    if (!w || w->session || w->ended) return;
    w->start_timer = 0;
    remove_worker(program, w);
    fail_queue(program, fail(Errc::task_failed, "a worker did not start in time",
                             "a static initialiser of the program may not return")
                            .error());
  });
}

Status Executor::on_worker_hello(LocalSession& session) {
  auto it = tokens_.find(session.hello().worker_token());
  if (it == tokens_.end()) return fail(Errc::refused, "this agent has not started this worker");
  auto [program, worker] = std::move(it->second);
  tokens_.erase(it);
  ports_.loop.cancel(std::exchange(worker->start_timer, 0));
  worker->session = &session;
  sessions_[session.id()] = {program, worker};
  ports_.loop.post([this, program = program] { pump(program); });  // After the answer to its Hello.
  return {};
}

void Executor::on_session_closed(LocalSession& session) {
  auto it = sessions_.find(session.id());
  if (it == sessions_.end()) return;
  auto [program, worker] = std::move(it->second);
  sessions_.erase(it);
  worker->session = nullptr;
  if (worker->process && !worker->ended)
    worker->process->stop(config_.cancel_grace);  // A worker without a socket is none.
}

void Executor::on_exit(const ProgramPtr& program, const WorkerPtr& worker, env::ExitStatus status) {
  worker->ended = true;
  worker->status = status;
  worker->exit_seen->set(true);
  const bool started = worker->session != nullptr || !tokens_.contains(worker->token);
  remove_worker(program, worker);
  if (program->gone) return;
  if (!started && !worker->killed) {
    std::string why = str("a worker could not start: ", status.to_string());
    if (!worker->last_error_line.empty()) why += str(": ", worker->last_error_line);
    fail_queue(program, fail(Errc::task_failed, std::move(why)).error());
    return;
  }
  ports_.loop.post([this, program] { pump(program); });
}

void Executor::remove_worker(const ProgramPtr& program, const WorkerPtr& worker) {
  tokens_.erase(worker->token);
  if (worker->session) {
    sessions_.erase(worker->session->id());
    std::exchange(worker->session, nullptr)->close();
  }
  ports_.loop.cancel(std::exchange(worker->start_timer, 0));
  std::erase(program->workers, worker);
  if (!worker->process) return;
  // Not inside the process's own callback.
  auto dying = std::make_shared<std::unique_ptr<env::Process>>(std::move(worker->process));
  ports_.loop.post([dying] { dying->reset(); });
}

void Executor::fail_queue(const ProgramPtr& program, const Error& error) {
  auto queue = std::exchange(program->queue, {});
  for (Item& item : queue) ports_.loop.spawn(finish(program, std::move(item), std::unexpected(error)));
}

Task<Result<LocalReply>> Executor::call_worker(WorkerPtr worker, wire::TaskRun task) {
  if (!worker->session) co_return fail(Errc::unavailable, "the worker is gone");
  LocalRequest request;
  request.type = wire::TASK_RUN;
  request.header = task.SerializeAsString();
  co_return co_await worker->session->call(std::move(request), kNever);  // A task may take as long as it takes.
}

/// The connection to a worker broke under its task: what became of the process?
Task<Error> Executor::why_lost(WorkerPtr worker, Error error) {
  auto seen = worker->exit_seen;
  const auto timer = ports_.loop.call_at(ports_.loop.now() + kExitPatience, [seen] { seen->set(false); });
  const bool exited = co_await *seen;
  ports_.loop.cancel(timer);
  if (!exited || worker->status.code == kWorkerExitPageFailed) co_return error;
  std::string what = str("its worker ended in the middle of it: ", worker->status.to_string());
  if (!worker->last_error_line.empty()) what += str(": ", worker->last_error_line);
  co_return fail(Errc::task_failed, std::move(what)).error();
}

/// Lets the loop do what it has queued.
Task<void> Executor::hop() {
  auto done = std::make_shared<OneShot<bool>>();
  ports_.loop.post([done] { done->set(true); });
  co_await *done;
}

Task<void> Executor::run(ProgramPtr program, WorkerPtr worker, Item item) {
  wire::TaskRun task;
  task.set_job(item.job->id);
  task.set_task(item.spec.chunk());
  task.set_function(item.job->function);
  task.set_captures(item.job->captures);
  *task.mutable_region() = item.job->region;
  task.set_snapshot(item.job->snapshot);
  task.set_writes(item.job->writes);
  *task.mutable_txn() = item.spec.txn();
  task.set_first(item.spec.first());
  task.set_last(item.spec.last());
  task.set_chunk(item.spec.chunk());

  auto result = co_await call_worker(worker, std::move(task));
  if (worker->process) worker->process->read_output();  // A task's lines come before the news of its end.
  worker->busy = false;
  worker->job = 0;
  if (program->gone || worker->killed) {
    program->known.erase(txn_from_wire(item.spec.txn()));
    co_return;
  }
  if (!result && (result.error().code == Errc::unavailable || result.error().code == Errc::cancelled)) {
    co_await hop();  // The end of the connection is told after its calls have failed.
    if (!worker->session) {
      Error error = co_await why_lost(worker, result.error());
      result = std::unexpected(std::move(error));
    }
  }
  pump(program);
  co_await finish(program, std::move(item), std::move(result));
}

Task<void> Executor::finish(ProgramPtr program, Item item, Result<LocalReply> result) {
  const TxnId txn = txn_from_wire(item.spec.txn());
  wire::TaskDone done;
  done.set_session(program->key.session);
  done.set_job(item.job->id);
  done.set_chunk(item.spec.chunk());
  *done.mutable_txn() = item.spec.txn();
  Buffer payload;
  if (result && item.job->writes) {
    auto sealed = co_await ports_.memory.seal(txn, ports_.loop.now() + kSealDeadline);
    if (sealed) {
      writes_to_wire(*sealed, done);
    } else {
      result = std::unexpected(sealed.error());
    }
  }
  if (result) {
    ++tasks_done_;
    if (!result->payload.empty()) payload = result->payload.front();
  } else {
    ++tasks_failed_;
    Error error = result.error();
    if (error.node == 0) error.node = ports_.self.value;
    *done.mutable_error() = error_to_wire(error);
  }
  // What the task has printed is on its way before the news of its end.
  const Instant patience = ports_.loop.now() + kFlushPatience;
  while ((program->sending_lines || !program->lines.empty()) && !program->gone && ports_.loop.now() < patience) {
    const bool awake = co_await env::sleep_for(ports_.loop, milliseconds(1));
    if (!awake) break;
  }
  co_await report(program, std::move(done), std::move(payload));
  program->known.erase(txn);
}

Task<void> Executor::report(ProgramPtr program, wire::TaskDone done, Buffer result) {
  while (!program->gone && !stopping_) {
    const NodeId coordinator = program->key.coordinator;
    auto sent = co_await reports_.done(coordinator, done, result);
    if (sent) co_return;
    const Errc code = sent.error().code;
    if (code != Errc::unavailable && code != Errc::deadline_exceeded && code != Errc::overloaded) {
      log_warn("compute", "a coordinator refused a report: ", sent.error().message);
      co_return;
    }
    if (!alive(program->key)) co_return end_program(program->key);
    const bool awake = co_await env::sleep_for(ports_.loop, kReportRetry);
    if (!awake) co_return;
  }
}

void Executor::add_line(const ProgramPtr& program, env::OutputStream stream, std::string_view line) {
  if (program->gone) return;
  if (program->line_bytes + line.size() > kMaxOutputBytes) {
    ++program->lines_dropped;
    return;
  }
  wire::WorkerOutput::Line entry;
  entry.set_text(std::string(line));
  entry.set_is_stderr(stream == env::OutputStream::err);
  program->lines.push_back(std::move(entry));
  program->line_bytes += line.size();
  if (!std::exchange(program->sending_lines, true)) ports_.loop.spawn(send_output(program));
}

Task<void> Executor::send_output(ProgramPtr program) {
  while (!program->gone && !stopping_ && !program->lines.empty()) {
    wire::WorkerOutput output;
    output.set_session(program->key.session);
    output.set_dropped(std::exchange(program->lines_dropped, 0));
    for (auto& line : program->lines) *output.add_lines() = std::move(line);
    program->lines.clear();
    program->line_bytes = 0;
    const NodeId coordinator = program->key.coordinator;
    const Status sent = co_await reports_.output(coordinator, std::move(output));
    if (!sent) ++program->lines_dropped;
  }
  program->sending_lines = false;
}

void Executor::cancel(const ProgramKey& key, std::uint64_t job) {
  auto it = programs_.find(key);
  if (it == programs_.end()) return;
  const ProgramPtr program = it->second;
  std::erase_if(program->queue, [&](const Item& item) {
    if (item.job->id != job) return false;
    program->known.erase(txn_from_wire(item.spec.txn()));
    return true;
  });
  for (const WorkerPtr& worker : program->workers) {
    if (!worker->busy || worker->job != job || !worker->process) continue;
    worker->killed = true;
    worker->process->stop(config_.cancel_grace);
  }
}

void Executor::end_program(const ProgramKey& key) {
  if (std::ranges::find(ended_, key) == ended_.end()) ended_.push_back(key);  // A batch of its may still be on its way.
  if (ended_.size() > kMaxEnded) ended_.pop_front();
  auto it = programs_.find(key);
  if (it == programs_.end()) return;
  const ProgramPtr program = it->second;
  programs_.erase(it);
  program->gone = true;
  program->queue.clear();
  program->lines.clear();
  while (!program->workers.empty()) remove_worker(program, WorkerPtr(program->workers.back()));
}

void Executor::check_coordinators() {
  std::vector<ProgramKey> gone;
  for (const auto& [key, program] : programs_) {
    if (!alive(key)) gone.push_back(key);
  }
  for (const ProgramKey& key : gone) end_program(key);
}

Task<void> Executor::stop() {
  stopping_ = true;
  while (!programs_.empty()) {
    const ProgramKey key = programs_.begin()->first;
    end_program(key);
  }
  // Destroyed processes are killed; the hop lets that happen before the caller goes on.
  co_await hop();
}

void Executor::count(ComputeStatus& out) const {
  out.tasks_done = tasks_done_;
  out.tasks_failed = tasks_failed_;
  for (const auto& [key, program] : programs_) {
    if (!program->workers.empty()) ++out.programs;
    out.workers += program->workers.size();
    out.tasks_queued += program->queue.size();
    out.tasks_running += static_cast<std::uint64_t>(std::ranges::count_if(program->workers, &Worker::busy));
  }
}

}  // namespace holo::node
