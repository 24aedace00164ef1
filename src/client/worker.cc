#include "client/worker.h"

#include <cxxabi.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <typeinfo>
#include <vector>

#include <holo/detail/runtime.hpp>

#include "base/limits.h"
#include "base/strings.h"
#include "client/agent.h"
#include "client/executable.h"
#include "client/session.h"
#include "client/view.h"
#include "node/compute.h"
#include "wire/errors.h"
#include "wire/local_frame.h"

namespace holo::client {
namespace {

constexpr std::size_t kWarmViews = 32;  // Regions that a worker keeps mapped between tasks.

std::string demangled(const char* name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  return status == 0 && text ? text.get() : name;
}

/// Inside a catch block: what the user's code threw.
Error user_error() {
  const std::type_info* type = abi::__cxa_current_exception_type();
  const std::string name = type ? demangled(type->name()) : "an unknown exception";
  try {
    throw;
  } catch (const std::exception& e) {
    return holo::fail(Errc::task_failed, str(name, ": ", e.what())).error();
  } catch (...) {
    return holo::fail(Errc::task_failed, str("threw ", name)).error();
  }
}

/// The bytes of a chunk in its region, and the pages they touch.
struct Span {
  std::uint64_t offset = 0, length = 0;
  PageRun touched;
  PageRun whole;  ///< Pages that belong to this chunk alone.
};

Span span_of(const wire::TaskRun& task) {
  const auto& r = task.region();
  const std::uint64_t begin = task.first() * r.element_bytes(), end = task.last() * r.element_bytes();
  const std::uint64_t page = r.page_bytes();
  Span out{.offset = begin, .length = end - begin};
  out.touched = {begin / page, (end + page - 1) / page - begin / page};
  const std::uint64_t first = (begin + page - 1) / page;
  const std::uint64_t last =
      end == r.bytes() ? (end + page - 1) / page : end / page;  // Nothing follows the last element.
  if (last > first) out.whole = {first, last - first};
  return out;
}

class Worker {
 public:
  explicit Worker(WorkerOptions options) : own_process_(options.own_process) {
    driver::LocalClient::Options callbacks;
    callbacks.on_request = [this](std::uint32_t id, env::LocalRequest request) { on_request(id, std::move(request)); };
    callbacks.on_closed = [this](const Error& why) { on_closed(why); };
    auto client = driver::LocalClient::adopt(std::move(options.socket), std::move(callbacks));
    if (client) socket_ = client->get();
    if (client) agent_ = std::make_unique<Agent>(std::move(*client));
    token_ = options.token;
  }
  ~Worker() { views_.clear(); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  int run() {
    if (!agent_) return 1;
    wire::Hello hello;
    hello.set_role(wire::Hello::WORKER);
    hello.set_protocol(wire::kLocalProtocol);
    hello.set_build(HOLO_VERSION);
    hello.set_worker_token(token_);
    if (auto welcome = agent_->call<wire::HelloReply>(wire::HELLO, hello); !welcome) {
      std::fprintf(stderr, "holo: the agent refused this worker: %s\n", welcome.error().to_string().c_str());
      return 1;
    }
    for (;;) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return closed_ || !queue_.empty(); });
      if (closed_) return 0;
      auto [id, request] = std::move(queue_.front());
      queue_.pop_front();
      running_ = id;
      lock.unlock();
      forget_spoiled();  // Views that failed since the last task.
      auto result = serve(request);
      forget_spoiled();
      if (own_process_) {
        std::fflush(stdout);
        std::cout.flush();
      }
      lock.lock();
      const bool answered = running_ == 0;  // By on_request(), because a page could not be had.
      running_ = 0;
      lock.unlock();
      if (!answered) (void)agent_->socket().reply(id, std::move(result));
    }
  }

 private:
  // ---- The reader thread.

  void on_request(std::uint32_t id, env::LocalRequest request) {
    if (request.type == wire::TASK_RUN && id != 0) {
      const std::lock_guard lock(mutex_);
      queue_.emplace_back(id, std::move(request));
      wake_.notify_all();
    } else if (request.type == wire::VIEW_FAILED) {
      wire::ViewFailed failed;
      if (failed.ParseFromString(request.header)) on_view_failed(failed);
    } else if (id != 0) {
      (void)socket_->reply(id, holo::fail(Errc::unsupported, "a worker only runs tasks"));
    }
  }

  /// A task that runs on the view cannot go on: it is answered here, because its own thread may sleep in the fault. A
  /// view that no task uses is just forgotten.
  void on_view_failed(const wire::ViewFailed& failed) {
    Error error = wire::error_of(failed.error());
    const std::lock_guard views_lock(views_mutex_);
    const bool in_use = running_view_ == failed.view();
    for (const auto& [region, view] : views_) {
      if (view->id() != failed.view()) continue;
      if (failed.page() != UINT64_MAX) {
        error.message = str("page ", failed.page(), " of region \"", view->shape().name, "\": ", error.message);
      }
      if (!in_use || !own_process_) view->abandon();
      spoiled_ = true;
    }
    if (!in_use) return;
    std::uint32_t id = 0;
    {
      const std::lock_guard lock(mutex_);
      id = std::exchange(running_, 0);
    }
    if (id != 0) (void)socket_->reply(id, std::unexpected(error));
    if (own_process_) ::_exit(node::kWorkerExitPageFailed);
  }

  /// In a thread of somebody's process: the task goes on to its end, with memory that means nothing and an outcome that
  /// is dropped.
  void spoil() {
    const std::lock_guard lock(views_mutex_);
    spoiled_ = true;
    for (auto& [region, view] : views_) view->abandon();
  }

  void on_closed(const Error&) {
    if (own_process_) ::_exit(0);  // Nobody wants the task's outcome any more.
    spoil();
    const std::lock_guard lock(mutex_);
    closed_ = true;
    wake_.notify_all();
  }

  // ---- The task's thread.

  Result<env::LocalReply> serve(const env::LocalRequest& request) {
    wire::TaskRun task;
    if (!task.ParseFromString(request.header)) return holo::fail(Errc::malformed, "a task that does not decode");
    detail::TaskContext context;
    HOLO_TRY(task.region().region() != 0 ? run_chunk(task, context) : run_function(task, context));
    if (context.result.size() > limits::kMaxTaskResultBytes) {
      return holo::fail(
          Errc::task_failed,
          str("its result takes ", context.result.size(), " bytes; the limit is ", limits::kMaxTaskResultBytes),
          "return less per chunk, or write into an array");
    }
    env::LocalReply reply;
    reply.header = wire::TaskRunReply().SerializeAsString();
    if (!context.result.empty()) reply.payload.emplace_back(std::move(context.result));
    return reply;
  }

  Status run_function(const wire::TaskRun& task, detail::TaskContext& context) {
    HOLO_ASSIGN(function, function_at(task.function()));
    context.captures = as_bytes(task.captures());
    context.chunk = task.chunk();
    try {
      function(context);
    } catch (const detail::TaskError& e) {
      return std::unexpected(e.error);
    } catch (...) {
      return std::unexpected(user_error());
    }
    return {};
  }

  Status run_chunk(const wire::TaskRun& task, detail::TaskContext& context) {
    const auto& region = task.region();
    if (region.element_bytes() == 0 || region.page_bytes() == 0 || task.first() >= task.last() ||
        task.last() > region.count()) {
      return holo::fail(Errc::malformed, "a task with an impossible chunk");
    }
    HOLO_ASSIGN(view, view_at(region, task.snapshot()));
    HOLO_TRY(use(*view));
    const Span span = span_of(task);
    auto done = run_on(*view, span, task, context);
    auto closed = view->close_windows();
    if (done && task.writes() && closed) done = stage_rest(*view, span, task);
    if (!done || !closed) close_view(region.region());  // No other task must see what this one left behind.
    if (!done) return done;
    return closed;
  }

  Status run_on(View& view, const Span& span, const wire::TaskRun& task, detail::TaskContext& context) {
    in_place_.clear();
    if (task.writes()) {
      HOLO_ASSIGN(windows, view.open_windows(task.txn(), span.whole));
      in_place_ = std::move(windows);
    }
    for (const PageRun& run : outside_windows(span.touched)) {
      const std::uint64_t page = view.shape().page_bytes;
      HOLO_TRY(view.ensure(run.first * page, run.count * page));
    }
    context.base = view.data();
    context.count = task.region().count();
    context.first = task.first();
    context.last = task.last();
    context.owner = &view;
    context.whole = [](detail::TaskContext& c) -> const std::byte* {
      auto& v = *static_cast<View*>(c.owner);
      if (!v.faulted()) {
        if (auto all = v.ensure(0, v.shape().bytes); !all) throw detail::TaskError{all.error()};
      }
      return c.base;
    };
    return run_function(task, context);
  }

  /// The parts of `run` that are not mapped in place.
  std::vector<PageRun> outside_windows(PageRun run) const {
    std::vector<PageRun> out;
    std::uint64_t at = run.first;
    for (const PageRun& w : in_place_) {
      if (w.first > at) out.push_back({at, w.first - at});
      at = std::max(at, w.end());
    }
    if (run.end() > at) out.push_back({at, run.end() - at});
    return out;
  }

  Status stage_rest(View& view, const Span& span, const wire::TaskRun& task) {
    wire::Txn txn = task.txn();
    for (const PageRun& run : outside_windows(span.touched)) {
      HOLO_ASSIGN(pages, view.changed(run));
      HOLO_TRY(view.stage(txn, pages));
      view.drop(pages);
    }
    return {};
  }

  Result<View*> view_at(const wire::RegionInfo& region, std::uint64_t snapshot) {
    if (auto it = views_.find(region.region()); it != views_.end()) {
      auto moved = it->second->move_to(snapshot);
      if (moved) return it->second.get();
      close_view(region.region());
      if (moved.error().code == Errc::unavailable) return std::unexpected(moved.error());
    }
    View::Shape shape{
        .region = region.region(), .name = region.name(), .bytes = region.bytes(), .page_bytes = region.page_bytes()};
    HOLO_ASSIGN(view, View::open(*agent_, std::move(shape), snapshot));
    View* const out = view.get();
    std::vector<std::unique_ptr<View>> old;
    const std::lock_guard lock(views_mutex_);
    while (views_.size() >= kWarmViews) {
      old.push_back(std::move(views_.begin()->second));
      views_.erase(views_.begin());
    }
    views_[region.region()] = std::move(view);
    return out;
  }

  /// From now on a failure of the view is a failure of the task.
  Status use(const View& view) {
    const std::lock_guard lock(views_mutex_);
    if (!spoiled_) {
      running_view_ = view.id();
      return {};
    }
    auto failed = holo::fail(Errc::unavailable, "a page of this worker could not be had");
    failed.error().retryable = true;
    return failed;
  }

  void forget_spoiled() {
    std::map<std::uint64_t, std::unique_ptr<View>> old;
    const std::lock_guard lock(views_mutex_);
    running_view_ = 0;
    if (std::exchange(spoiled_, false)) old = std::exchange(views_, {});
  }

  void close_view(std::uint64_t region) {
    std::unique_ptr<View> view;
    const std::lock_guard lock(views_mutex_);
    if (auto it = views_.find(region); it != views_.end()) {
      view = std::move(it->second);
      views_.erase(it);
    }
  }

  bool own_process_;
  std::uint64_t token_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::pair<std::uint32_t, env::LocalRequest>> queue_;
  std::uint32_t running_ = 0;  ///< Request that is being served and not yet answered.
  bool closed_ = false;
  std::mutex views_mutex_;          ///< Changes of `views_`, and its use by the reader thread.
  bool spoiled_ = false;            ///< Some view holds nothing that means anything.
  std::uint64_t running_view_ = 0;  ///< Of the running task.
  std::map<std::uint64_t, std::unique_ptr<View>> views_;
  std::vector<PageRun> in_place_;
  driver::LocalClient* socket_ = nullptr;  // The agent's, for the reader thread.
  std::unique_ptr<Agent> agent_;
};

}  // namespace

int run_worker(WorkerOptions options) { return Worker(std::move(options)).run(); }

int worker_main(int, char**, char**) {
  const char* fd = std::getenv(kWorkerFdVariable);
  const char* token = std::getenv(kWorkerTokenVariable);
  if (!fd || !token) return 1;
  WorkerOptions options;
  options.socket = env::Fd(std::atoi(fd));
  options.token = std::strtoull(token, nullptr, 10);
  ::unsetenv(kWorkerFdVariable);  // What a task starts is not a worker.
  ::unsetenv(kWorkerTokenVariable);
  set_worker_process();
  std::setvbuf(stdout, nullptr, _IOLBF, 4096);
  const int status = run_worker(std::move(options));
  std::fflush(nullptr);
  ::_exit(status);  // The program's main() has not run: its exit handlers are none of ours to run either.
}

}  // namespace holo::client
