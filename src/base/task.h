// Coroutines for one event loop: Task<T>, and OneShot<T> to wait for a value that arrives later.
//
// Thread: everything here belongs to the loop thread that runs it; nothing is locked.
// House rules (they also keep clear of g++ 12's coroutine defects): parameters of coroutines are taken by value;
// arguments of a call inside a co_await expression are named variables or plain values, never braced temporaries; no
// co_await inside a conditional operator, an initialiser list, or the condition of an if or a loop (the frame is then
// laid out 8 bytes off and the program dies when the coroutine starts: name the result in a statement of its own); a
// lambda that is a coroutine captures nothing (pass state as parameters).
#pragma once

#include <coroutine>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/assert.h"

namespace holo {

template <class T>
class Task;

namespace detail {

struct TaskPromiseBase {
  std::coroutine_handle<> continuation = std::noop_coroutine();

  struct FinalAwaiter {
    bool await_ready() noexcept { return false; }
    template <class P>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<P> h) noexcept {
      return h.promise().continuation;
    }
    void await_resume() noexcept {}
  };
  std::suspend_always initial_suspend() noexcept { return {}; }
  FinalAwaiter final_suspend() noexcept { return {}; }
  void unhandled_exception() { std::terminate(); }  // Errors are values; an exception here is our own mistake.
};

template <class T>
struct TaskPromise : TaskPromiseBase {
  std::optional<T> value;
  Task<T> get_return_object();
  template <class U>
    requires std::is_convertible_v<U&&, T>
  void return_value(U&& v) {
    value.emplace(std::forward<U>(v));
  }
  T take() { return std::move(*value); }
};

template <>
struct TaskPromise<void> : TaskPromiseBase {
  Task<void> get_return_object();
  void return_void() {}
  void take() {}
};

}  // namespace detail

/// A lazily started coroutine with one awaiter. Destroying it before it ends destroys the suspended frame.
template <class T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::TaskPromise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  explicit Task(Handle h) : handle_(h) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      if (handle_) handle_.destroy();
      handle_ = std::exchange(other.handle_, {});
    }
    return *this;
  }
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> waiter) noexcept {
    handle_.promise().continuation = waiter;
    return handle_;
  }
  T await_resume() { return handle_.promise().take(); }

 private:
  Handle handle_;
};

namespace detail {
template <class T>
Task<T> TaskPromise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<TaskPromise<T>>::from_promise(*this));
}
inline Task<void> TaskPromise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<TaskPromise<void>>::from_promise(*this));
}

/// Runs a task to its end without an awaiter; the frame frees itself.
struct Detached {
  struct promise_type {
    Detached get_return_object() { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::terminate(); }
  };
};
inline Detached run_detached(Task<void> task, std::function<void()> done) {
  co_await task;
  if (done) done();
}
}  // namespace detail

/// Starts `task` now; it runs to its end on its own. `done` is called after it (may be empty).
/// Use env::Loop::spawn instead where a loop is at hand: it counts what is still running, for shutdown.
inline void start_detached(Task<void> task, std::function<void()> done = {}) {
  detail::run_detached(std::move(task), std::move(done));
}

/// A value that is set once and awaited once. Whoever sets it resumes the waiter before set() returns.
/// Shared between the two sides by shared_ptr; a OneShot that is never set leaves its waiter suspended, so every user
/// also arms a timer or a cancellation that sets it.
template <class T>
class OneShot {
 public:
  OneShot() = default;
  OneShot(const OneShot&) = delete;
  OneShot& operator=(const OneShot&) = delete;

  [[nodiscard]] bool is_set() const { return value_.has_value(); }
  /// The first call wins; later ones return false and change nothing.
  bool set(T value) {
    if (value_) return false;
    value_.emplace(std::move(value));
    if (auto waiter = std::exchange(waiter_, {})) waiter.resume();
    return true;
  }
  /// An awaiter that points here: g++ 12 copies an awaitable that is its own awaiter.
  struct Awaiter {
    OneShot* shot;
    bool await_ready() const noexcept { return shot->value_.has_value(); }
    void await_suspend(std::coroutine_handle<> h) {
      HOLO_ASSERT(!shot->waiter_, "one waiter only");
      shot->waiter_ = h;
    }
    T await_resume() { return std::move(*shot->value_); }
  };
  Awaiter operator co_await() noexcept { return Awaiter{this}; }

 private:
  std::optional<T> value_;
  std::coroutine_handle<> waiter_;
};

}  // namespace holo
