// What a started job will give.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include <holo/detail/runtime.hpp>
#include <holo/error.hpp>

namespace holo {

/// Chunks done (committed, for work that writes) and chunks in all.
using Progress = detail::JobProgress;

/// The outcome of a job that runs on the cluster. Move only. Thread: any, one at a time for get().
/// Letting it go without wait() leaves the job running; jobs end at the latest with the connection of their program.
template <class T>
class [[nodiscard]] Future {
 public:
  using Decode = std::function<Result<T>(detail::Job&)>;
  Future(std::shared_ptr<detail::Job> job, Decode decode) : job_(std::move(job)), decode_(std::move(decode)) {}
  Future(Future&&) noexcept = default;
  Future& operator=(Future&&) noexcept = default;

  /// Blocks until the job has ended. Errors: `task_failed` (user code threw, or its worker ended: message, node and
  /// task are in it), `page_lost`, `write_conflict`, `under_replicated`, `out_of_memory`, `cancelled`, `unavailable`
  /// (the agent is gone), ...
  Status wait() { return job_->wait(std::nullopt); }
  /// The same, but gives up waiting (not the job) after `patience` with `deadline_exceeded`.
  template <class Rep, class Period>
  Status wait_for(std::chrono::duration<Rep, Period> patience) {
    return job_->wait(std::chrono::steady_clock::now() + patience);
  }
  /// wait(), then the value.
  Result<T> get() {
    if (auto ended = wait(); !ended) return std::unexpected(std::move(ended).error());
    return decode_(*job_);
  }
  /// True once wait() would not block.
  [[nodiscard]] bool ready() const { return job_->ready(); }
  [[nodiscard]] Progress progress() const { return job_->progress(); }
  /// Asks the cluster to stop the job: what is not committed yet never will be, running tasks are killed, wait()
  /// returns `cancelled`. No effect on a job that has ended.
  void cancel() { job_->cancel(); }

 private:
  std::shared_ptr<detail::Job> job_;
  Decode decode_;
};

}  // namespace holo
