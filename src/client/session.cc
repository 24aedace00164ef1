#include "client/session.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "base/limits.h"
#include "base/strings.h"
#include "client/region.h"
#include "wire/errors.h"
#include "wire/local_frame.h"

namespace holo::client {
namespace {

std::atomic<bool> g_worker{false};

/// A job as futures hold it: it keeps the connection open.
class JobHandle final : public detail::Job {
 public:
  JobHandle(std::shared_ptr<SessionImpl> session, std::shared_ptr<JobState> state)
      : session_(std::move(session)), state_(std::move(state)) {}
  ~JobHandle() override {
    if (session_) session_->forget(state_->id);
  }
  Status wait(std::optional<std::chrono::steady_clock::time_point> deadline) override {
    std::unique_lock lock(state_->mutex);
    const auto over = [this] { return state_->ended.has_value(); };
    if (!deadline) {
      state_->changed.wait(lock, over);
    } else if (!state_->changed.wait_until(lock, *deadline, over)) {
      return fail(Errc::deadline_exceeded, str(state_->label, " is not done: ", state_->done, " of ", state_->total));
    }
    return *state_->ended;
  }
  bool ready() const override {
    const std::lock_guard lock(state_->mutex);
    return state_->ended.has_value();
  }
  detail::JobProgress progress() const override {
    const std::lock_guard lock(state_->mutex);
    return {state_->done, state_->total};
  }
  void cancel() override {
    if (session_ && !ready()) session_->cancel(state_->id);
  }
  const std::vector<std::vector<std::byte>>& results() const override { return state_->results; }

 private:
  std::shared_ptr<SessionImpl> session_;
  std::shared_ptr<JobState> state_;
};

Error from_wire(const wire::WireError& e) { return wire::error_of(e); }

void print_line(const std::string& line) {
  std::size_t at = 0;
  while (at < line.size()) {
    const ssize_t n = ::write(STDERR_FILENO, line.data() + at, line.size() - at);
    if (n <= 0) return;
    at += static_cast<std::size_t>(n);
  }
}

}  // namespace

void set_worker_process() { g_worker = true; }
bool is_worker_process() { return g_worker; }

RegionFacts to_facts(const wire::RegionInfo& info) {
  RegionFacts out{.name = info.name(),
                  .type = info.type(),
                  .element_bytes = info.element_bytes(),
                  .count = info.count(),
                  .page_bytes = info.page_bytes(),
                  .replication = info.replication(),
                  .version = info.version()};
  for (const auto& s : info.pages_by_node()) out.pages_by_node.push_back({s.node(), s.pages()});
  return out;
}

void JobState::end(Status status) {
  const std::lock_guard lock(mutex);
  if (ended) return;
  ended = std::move(status);
  changed.notify_all();
}

Result<std::shared_ptr<SessionImpl>> SessionImpl::connect(const std::string& socket_path, env::Fd socket,
                                                          SessionOptions options) {
  std::shared_ptr<SessionImpl> session(new SessionImpl(std::move(options)));
  SessionImpl* const self = session.get();  // The client joins its reader before `self` goes.
  driver::LocalClient::Options callbacks;
  callbacks.on_request = [self](std::uint32_t id, env::LocalRequest request) {
    self->on_request(request);
    if (id != 0) (void)self->socket_->reply(id, env::LocalReply{});  // Taken in: the next one may come.
  };
  callbacks.on_closed = [self](const Error& why) { self->on_closed(why); };
  auto client = socket ? driver::LocalClient::adopt(std::move(socket), std::move(callbacks))
                       : driver::LocalClient::connect(socket_path, std::move(callbacks));
  if (!client) return std::unexpected(std::move(client).error());
  session->socket_ = client->get();
  session->agent_ = std::make_unique<Agent>(std::move(*client));
  HOLO_TRY(session->hello());
  return session;
}

SessionImpl::~SessionImpl() = default;

Status SessionImpl::hello() {
  wire::Hello request;
  request.set_role(wire::Hello::PROGRAM);
  request.set_protocol(wire::kLocalProtocol);
  request.set_build(HOLO_VERSION);
  request.set_binary(options_.binary);
  request.set_binary_hash(options_.binary_hash);
  request.set_nodes(options_.nodes);
  request.set_stream_output(options_.show_output);
  HOLO_ASSIGN(reply, agent_->call<wire::HelloReply>(wire::HELLO, request));
  nodes_ = reply.nodes();
  node_name_ = reply.node_name();
  return {};
}

std::shared_ptr<RegionImpl> SessionImpl::share(const wire::RegionInfo& info) {
  const std::lock_guard lock(mutex_);
  auto& known = regions_[info.region()];
  if (auto region = known.lock()) return region;
  auto region = std::make_shared<RegionImpl>(shared_from_this(), info);
  known = region;
  return region;
}

Result<std::shared_ptr<detail::Region>> SessionImpl::create(const RegionSpec& spec) {
  wire::RegionCreate request;
  request.set_name(spec.name);
  request.set_type(spec.type);
  request.set_element_bytes(spec.element_bytes);
  request.set_count(spec.count);
  request.set_page_bytes(spec.options.page_bytes);
  request.set_mode(spec.options.mode == Mode::strict ? "strict" : "phased");
  request.set_replication(spec.options.replication);
  request.set_open_existing(true);
  HOLO_ASSIGN(info, agent_->call<wire::RegionInfo>(wire::REGION_CREATE, request));
  return share(info);
}

Result<std::shared_ptr<detail::Region>> SessionImpl::open(std::string_view name, std::string_view type,
                                                          std::uint32_t element_bytes) {
  wire::RegionOpen request;
  request.set_name(std::string(name));
  HOLO_ASSIGN(info, agent_->call<wire::RegionInfo>(wire::REGION_OPEN, request));
  if (info.type() != type || info.element_bytes() != element_bytes) {
    return fail(Errc::invalid_argument, str("region \"", name, "\" holds ", info.type(), ", not ", type));
  }
  return share(info);
}

Status SessionImpl::free(std::string_view name) {
  wire::RegionFree request;
  request.set_name(std::string(name));
  HOLO_TRY(agent_->call<wire::Empty>(wire::REGION_FREE, request));
  return {};
}

Result<std::vector<RegionFacts>> SessionImpl::regions() {
  HOLO_ASSIGN(reply, agent_->call<wire::RegionListReply>(wire::REGION_LIST, wire::Empty()));
  std::vector<RegionFacts> out;
  for (const auto& info : reply.regions()) out.push_back(to_facts(info));
  return out;
}

std::shared_ptr<JobState> SessionImpl::job(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  auto& state = jobs_[id];
  if (!state) {
    state = std::make_shared<JobState>();
    state->id = id;
  }
  return state;
}

void SessionImpl::forget(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto it = jobs_.find(id);
  if (it == jobs_.end()) return;
  const std::lock_guard job_lock(it->second->mutex);
  it->second->abandoned = true;  // While it runs, its events go on.
  if (it->second->ended) jobs_.erase(it);
}

Result<std::uint64_t> SessionImpl::send_job(const detail::JobRequest& request) {
  if (request.captures.size() > limits::kMaxCaptureBytes) {
    return fail(Errc::over_limit,
                str(request.label, ": captures and arguments take ", request.captures.size(), " bytes; the limit is ",
                    limits::kMaxCaptureBytes),
                "put them into an array or a buffer");
  }
  const auto checked = std::span<const std::byte>(request.captures).first(request.checked_bytes);
  if (!checked.empty()) {
    if (auto clean = check_captures(checked, mapped_ranges()); !clean) {
      clean.error().message = request.label + ": " + clean.error().message;
      return std::unexpected(clean.error());
    }
  }
  HOLO_ASSIGN(function, function_offset(request.function));
  wire::JobStart start;
  start.set_kind(request.region ? wire::JobStart::CHUNKS : wire::JobStart::SINGLE);
  start.set_function(function);
  start.set_captures(std::string(as_text(request.captures)));
  if (request.region) {
    start.set_region(request.region->id());
    start.set_elements(request.region->count());
  }
  start.set_writes(request.writes);
  start.set_results(request.results);
  start.set_label(request.label);
  HOLO_ASSIGN(reply, agent_->call<wire::JobStartReply>(wire::JOB_START, start));
  // Its first events may have come already.
  auto state = job(reply.job());
  const std::lock_guard lock(state->mutex);
  state->label = request.label;
  state->total = reply.chunks();
  if (request.results) state->results.resize(reply.chunks());
  return reply.job();
}

std::shared_ptr<detail::Job> SessionImpl::start(detail::JobRequest request) {
  auto id = send_job(request);
  if (!id) return detail::failed_job(std::move(id).error());
  auto state = job(*id);
  bool closed = false;
  {
    const std::lock_guard lock(mutex_);
    closed = closed_;
  }
  if (closed) state->end(fail(Errc::unavailable, "the agent of this machine is gone"));
  return std::make_shared<JobHandle>(shared_from_this(), std::move(state));
}

void SessionImpl::cancel(std::uint64_t id) {
  wire::JobCancel request;
  request.set_job(id);
  (void)agent_->call<wire::Empty>(wire::JOB_CANCEL, request);  // A job that has ended is not there to be cancelled.
}

Status SessionImpl::add_view(View& view) {
  const std::lock_guard lock(mutex_);
  if (closed_) return fail(Errc::unavailable, "the agent of this machine is gone");
  views_[view.id()] = &view;
  return {};
}

void SessionImpl::remove_view(View& view) {
  const std::lock_guard lock(mutex_);
  views_.erase(view.id());
}

void SessionImpl::on_request(const env::LocalRequest& request) {
  if (request.type == wire::JOB_EVENT) {
    wire::JobEvent event;
    if (event.ParseFromString(request.header)) on_job_event(event, request.payload);
  } else if (request.type == wire::VIEW_FAILED) {
    wire::ViewFailed failed;
    if (!failed.ParseFromString(request.header)) return;
    const std::lock_guard lock(mutex_);
    if (auto it = views_.find(failed.view()); it != views_.end())
      it->second->fail(failed.page(), from_wire(failed.error()));
  }
}

void SessionImpl::show(const wire::JobEvent& event, const std::string& label) {
  if (event.kind() == wire::JobEvent::OUTPUT) {
    if (!options_.show_output) return;
    print_line(str(progress_shown_ ? "\r\033[K" : "", "[", event.node(), "] ", event.line(), "\n"));
    progress_shown_ = false;
  } else if (options_.show_progress && event.kind() == wire::JobEvent::PROGRESS) {
    print_line(str("\r\033[K", label, ": ", event.chunks_done(), " of ", event.chunks_total()));
    progress_shown_ = true;
  } else if (progress_shown_ && (event.kind() == wire::JobEvent::DONE || event.kind() == wire::JobEvent::FAILED)) {
    print_line("\r\033[K");
    progress_shown_ = false;
  }
}

void SessionImpl::on_job_event(const wire::JobEvent& event, const std::vector<Buffer>& payload) {
  if (event.kind() == wire::JobEvent::OUTPUT) return show(event, {});
  auto state = job(event.job());
  std::string label;
  {
    const std::lock_guard lock(state->mutex);
    label = state->label;
    if (event.kind() == wire::JobEvent::RESULT) {
      if (event.chunk() >= limits::kMaxTasksPerJob) return;
      if (event.chunk() >= state->results.size()) state->results.resize(event.chunk() + 1);
      auto& result = state->results[event.chunk()];
      result.clear();
      for (const Buffer& b : payload) result.insert(result.end(), b.span().begin(), b.span().end());
    } else {
      state->done = std::max(state->done, event.chunks_done());
      if (event.chunks_total() > 0) state->total = event.chunks_total();
    }
  }
  show(event, label);
  if (event.kind() != wire::JobEvent::DONE && event.kind() != wire::JobEvent::FAILED) return;
  state->end(event.kind() == wire::JobEvent::DONE ? Status() : std::unexpected(from_wire(event.error())));
  const std::lock_guard lock(mutex_);
  if (state->abandoned) jobs_.erase(event.job());
}

void SessionImpl::on_closed(const Error& why) {
  std::vector<std::shared_ptr<JobState>> jobs;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    for (auto& [id, view] : views_) view->fail_all(why);
    for (auto& [id, state] : jobs_) jobs.push_back(state);
  }
  for (auto& state : jobs) state->end(std::unexpected(why));
}

}  // namespace holo::client

namespace holo::detail {

std::shared_ptr<Job> failed_job(Error error) {
  auto state = std::make_shared<client::JobState>();
  state->end(std::unexpected(std::move(error)));
  return std::make_shared<client::JobHandle>(nullptr, std::move(state));
}

}  // namespace holo::detail
