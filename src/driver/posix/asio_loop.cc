#include "driver/posix/asio_loop.h"

#include <algorithm>
#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/signal_set.hpp>
#include <asio/steady_timer.hpp>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "driver/posix/adaptive_polling.h"

namespace holo::driver {
namespace {

using Clock = std::chrono::steady_clock;

Instant to_instant(Clock::time_point t) {
  return {std::chrono::duration_cast<std::chrono::nanoseconds>(t.time_since_epoch()).count()};
}
Clock::time_point to_time_point(Instant t) {
  return Clock::time_point(std::chrono::duration_cast<Clock::duration>(std::chrono::nanoseconds(t.ns)));
}

/// Threads for blocking work.
class Helpers {
 public:
  explicit Helpers(unsigned count) {
    for (unsigned i = 0; i < count; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Helpers() {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    for (auto& t : threads_) t.join();
  }
  void add(std::function<void()> f) {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(f));
    }
    wake_.notify_one();
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return ending_ || !queue_.empty(); });
      if (ending_) return;
      auto f = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      f();
      f = nullptr;  // What it owns is freed before the lock is taken again.
      lock.lock();
    }
  }

  std::mutex mutex_;  // guards queue_ and ending_
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

struct AsioLoop::Impl {
  explicit Impl(const Options& options)
      : polling(options.poll_for),
        alarm(context),
        helpers(std::make_unique<Helpers>(std::max(1U, options.helper_threads))) {}

  // Timers: a binary heap with lazy deletion over one Asio timer, which is set only before the thread sleeps, and only
  // when it would otherwise ring too late. Setting it makes a virtual machine exit: on a busy link, for each packet,
  // that was a fifth of all time.
  struct Entry {
    Instant when;
    TimerId id;
    bool operator>(const Entry& o) const { return when != o.when ? when > o.when : id > o.id; }
  };
  std::vector<Entry> heap;
  std::unordered_map<TimerId, std::function<void()>> timers;
  TimerId next_id = 1;
  Instant alarm_at = kNever;
  bool rang = false;  // What ran last was the alarm.

  AdaptivePolling polling;
  asio::io_context context{1};
  asio::steady_timer alarm;
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  std::unique_ptr<Helpers> helpers;

  void push(Entry e) {
    heap.push_back(e);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  }
  Entry pop() {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    Entry e = heap.back();
    heap.pop_back();
    return e;
  }
  void drop_cancelled() {
    std::erase_if(heap, [this](const Entry& e) { return !timers.contains(e.id); });
    std::make_heap(heap.begin(), heap.end(), std::greater<>());
  }
  void arm() {
    while (!heap.empty() && !timers.contains(heap.front().id)) pop();
    if (heap.empty() || heap.front().when >= alarm_at) return;
    alarm_at = heap.front().when;
    alarm.expires_at(to_time_point(alarm_at));
    alarm.async_wait([this](const asio::error_code& error) {
      rang = true;
      if (!error) alarm_at = kNever;  // Else it was set again for an earlier time.
    });
  }
  /// Runs what is ready, one after the other, timers in between, and sleeps once nothing is, until `until` at most.
  void turn(Instant until) {
    rang = false;
    if (context.poll_one() > 0) {
      rang ? polling.on_own_event(now()) : polling.on_event(now());
    } else if (heap.empty() || heap.front().when > now()) {
      if (polling.look_again(now())) {
        std::this_thread::yield();
        return;
      }
      arm();
      polling.on_sleep();
      const bool any = until == kNever ? context.run_one() > 0 : context.run_one_until(to_time_point(until)) > 0;
      any && !rang ? polling.on_event(now()) : polling.on_own_event(now());
    }
    if (!heap.empty() && heap.front().when <= now()) {
      fire(now());
      polling.on_own_event(now());
    }
  }
  static Instant now() { return to_instant(Clock::now()); }
  void fire(Instant until) {
    // Timers set by the callbacks wait for the next round, so that a timer set for "now" cannot starve the sockets.
    const TimerId last = next_id;
    std::vector<Entry> later;
    while (!heap.empty() && heap.front().when <= until) {
      Entry e = pop();
      if (e.id >= last) {
        later.push_back(e);
        continue;
      }
      auto it = timers.find(e.id);
      if (it == timers.end()) continue;
      auto f = std::move(it->second);
      timers.erase(it);
      f();
    }
    for (const Entry& e : later) push(e);
  }
};

AsioLoop::AsioLoop() : AsioLoop(Options{}) {}
AsioLoop::AsioLoop(Options options) : impl_(std::make_shared<Impl>(options)) {}

AsioLoop::~AsioLoop() {
  impl_->context.stop();
  impl_->helpers.reset();
  // Callbacks may own objects that call back into this loop when they are destroyed.
  while (!impl_->timers.empty()) {
    auto timers = std::move(impl_->timers);
    impl_->timers.clear();
  }
}

void AsioLoop::run() {
  impl_->context.restart();
  while (!impl_->context.stopped()) impl_->turn(kNever);
}
void AsioLoop::stop() { impl_->context.stop(); }

bool AsioLoop::run_until(const std::function<bool()>& done, Duration limit) {
  const Instant until = now() + limit;
  impl_->context.restart();
  while (!done()) {
    const Instant at = now();
    if (at >= until) return false;
    impl_->turn(std::min(until, at + milliseconds(20)));
    if (impl_->context.stopped()) impl_->context.restart();
  }
  return true;
}

Instant AsioLoop::now() const { return Impl::now(); }
WallTime AsioLoop::wall_now() const {
  return {std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
              .count()};
}

void AsioLoop::post(std::function<void()> f) { asio::post(impl_->context, std::move(f)); }

env::Loop::TimerId AsioLoop::call_at(Instant when, std::function<void()> f) {
  const TimerId id = impl_->next_id++;
  impl_->timers.emplace(id, std::move(f));
  impl_->push({stopping() ? Instant{0} : when, id});
  return id;
}

void AsioLoop::cancel(TimerId id) {
  if (impl_->timers.erase(id) == 0) return;
  if (impl_->heap.size() > 64 && impl_->heap.size() > 2 * impl_->timers.size()) impl_->drop_cancelled();
}

void AsioLoop::offload(std::function<void()> work, std::function<void()> done) {
  // `done` (and what it owns, coroutine frames for instance) belongs to the loop thread; the helper only carries it.
  auto carried = std::make_shared<std::function<void()>>(std::move(done));
  impl_->helpers->add([this, work = std::move(work), carried = std::move(carried)]() mutable {
    work();
    work = nullptr;
    post([carried = std::move(carried)] { (*carried)(); });
  });
}

void AsioLoop::begin_stop() {
  if (stopping()) return;
  Loop::begin_stop();
  for (auto& e : impl_->heap) e.when = Instant{0};
  std::make_heap(impl_->heap.begin(), impl_->heap.end(), std::greater<>());
}

// --- FdWatch -------------------------------------------------------------------------------------------------------

struct FdWatch::State : std::enable_shared_from_this<State> {
  State(asio::io_context& context, env::Fd fd, Callbacks c)
      : descriptor(context, fd.release()), callbacks(std::move(c)) {}

  asio::posix::stream_descriptor descriptor;
  Callbacks callbacks;
  struct Side {
    bool wanted = false;
    bool waiting = false;
  };
  Side read, write;
  bool ended = false;

  void wait(asio::posix::stream_descriptor::wait_type type, Side State::* side,
            std::function<void()> Callbacks::* callback) {
    if (ended || !(this->*side).wanted || (this->*side).waiting) return;
    (this->*side).waiting = true;
    descriptor.async_wait(type, [self = shared_from_this(), type, side, callback](const asio::error_code& error) {
      ((*self).*side).waiting = false;
      if (self->ended || error) return;
      if (((*self).*side).wanted && self->callbacks.*callback) (self->callbacks.*callback)();
      self->wait(type, side, callback);
    });
  }
  void wait_read() { wait(asio::posix::stream_descriptor::wait_read, &State::read, &Callbacks::on_readable); }
  void wait_write() { wait(asio::posix::stream_descriptor::wait_write, &State::write, &Callbacks::on_writable); }
};

FdWatch::FdWatch(AsioLoop& loop, env::Fd fd, Callbacks callbacks)
    : state_(std::make_shared<State>(loop.impl_->context, std::move(fd), std::move(callbacks))) {}

FdWatch::~FdWatch() {
  state_->ended = true;
  asio::error_code ignored;
  state_->descriptor.close(ignored);
}

env::Fd FdWatch::release() {
  state_->ended = true;
  return env::Fd(state_->descriptor.is_open() ? state_->descriptor.release() : -1);
}

int FdWatch::fd() const { return state_->descriptor.native_handle(); }

void FdWatch::want_read(bool on) {
  state_->read.wanted = on;
  state_->wait_read();
}
void FdWatch::want_write(bool on) {
  state_->write.wanted = on;
  state_->wait_write();
}

// --- SignalWatch ---------------------------------------------------------------------------------------------------

struct SignalWatch::State : std::enable_shared_from_this<State> {
  State(asio::io_context& context, std::function<void(int)> f) : set(context), on_signal(std::move(f)) {}
  asio::signal_set set;
  std::function<void(int)> on_signal;
  bool ended = false;
  void wait() {
    set.async_wait([self = shared_from_this()](const asio::error_code& error, int signal) {
      if (error || self->ended) return;
      self->on_signal(signal);
      if (!self->ended) self->wait();
    });
  }
};

SignalWatch::SignalWatch(AsioLoop& loop, std::initializer_list<int> signals, std::function<void(int)> on_signal)
    : state_(std::make_shared<State>(loop.impl_->context, std::move(on_signal))) {
  for (int s : signals) state_->set.add(s);
  state_->wait();
}
SignalWatch::~SignalWatch() {
  state_->ended = true;
  asio::error_code ignored;
  state_->set.cancel(ignored);
  state_->set.clear(ignored);
}

}  // namespace holo::driver
