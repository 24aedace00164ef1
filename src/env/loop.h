// The port to time and execution: one event loop, one thread. Production runs it on Asio, the simulator on a virtual
// clock.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/result.h"
#include "base/task.h"
#include "base/time.h"

namespace holo::env {

class Loop {
 public:
  using TimerId = std::uint64_t;  // 0: none

  virtual ~Loop() = default;

  /// Monotonic time of this loop. Thread: any.
  virtual Instant now() const = 0;
  virtual WallTime wall_now() const = 0;

  /// Runs `f` on the loop thread, later, in the order posted. Thread: any.
  virtual void post(std::function<void()> f) = 0;
  /// Runs `f` on the loop thread once `when` has come. Thread: loop.
  TimerId call_at(Instant when, std::function<void()> f) { return call_between(when, when, std::move(f)); }
  /// The same for what has time: from `earliest` on whenever the loop is awake anyway, woken for it at `latest` only.
  /// Wake-ups are most of what an idle node costs. The simulator takes `latest`. Thread: loop.
  virtual TimerId call_between(Instant earliest, Instant latest, std::function<void()> f) = 0;
  /// After this the timer does not fire. Unknown or fired ids are ignored. Thread: loop.
  virtual void cancel(TimerId id) = 0;

  /// Runs blocking `work` on a helper thread, then `done` on the loop thread. A handful run at once; the queue is
  /// bounded only by its callers. In the simulator `work` runs inline and `done` is posted. Thread: loop.
  virtual void offload(std::function<void()> work, std::function<void()> done) = 0;

  /// Starts `task` on the loop thread and counts it until it ends. Thread: loop.
  void spawn(Task<void> task) {
    ++*running_;
    start_detached(std::move(task), [r = running_] { --*r; });
  }
  /// Spawned tasks that have not ended; shutdown waits (with a deadline) until this is 0.
  [[nodiscard]] std::uint64_t running() const { return *running_; }

  /// True once shutdown has begun: every sleep returns false, so that waiting tasks can end.
  [[nodiscard]] bool stopping() const { return stopping_; }
  /// Begins shutdown: fires every timer at once, and every later one as soon as it is set. Thread: loop.
  virtual void begin_stop() { stopping_ = true; }

 protected:
  bool stopping_ = false;

 private:
  std::shared_ptr<std::uint64_t> running_ = std::make_shared<std::uint64_t>(0);
};

/// Suspends until `when`, or for up to `slack` longer (see call_between); false when the loop is stopping instead.
/// Cost: one timer.
Task<bool> sleep_until(Loop& loop, Instant when, Duration slack = {});
inline Task<bool> sleep_for(Loop& loop, Duration d, Duration slack = {}) {
  return sleep_until(loop, loop.now() + d, slack);
}

/// Runs `work` (blocking) on a helper thread and returns its result on the loop thread.
template <class T>
Task<T> offload(Loop& loop, std::function<T()> work) {
  struct State {
    std::optional<T> value;
    OneShot<bool> done;
  };
  auto state = std::make_shared<State>();
  loop.offload([state, work = std::move(work)] { state->value.emplace(work()); }, [state] { state->done.set(true); });
  co_await state->done;
  co_return std::move(*state->value);
}

/// Awaits a OneShot<Result<T>> but no longer than `deadline`; then the error is `deadline_exceeded` with `what` in it.
template <class T>
Task<Result<T>> await_until(Loop& loop, std::shared_ptr<OneShot<Result<T>>> shot, Instant deadline, std::string what) {
  Loop::TimerId timer = 0;
  if (!shot->is_set() && deadline < kNever) {
    timer = loop.call_at(deadline,
                         [shot, what] { shot->set(fail(Errc::deadline_exceeded, "no answer in time: " + what)); });
  }
  auto result = co_await *shot;
  if (timer) loop.cancel(timer);
  co_return result;
}

}  // namespace holo::env
