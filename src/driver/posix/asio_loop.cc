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

  // Timers: binary heaps with lazy deletion. Those that have time are in both: woken for by `last`, run by `first`.
  // What is due soon wakes through one Asio timer, which is set only before the thread sleeps, and only when it would
  // otherwise ring too late: setting it makes a virtual machine exit; on a busy link, for each packet, that was a fifth
  // of all time. What is not due soon wakes by the time-out of the wait itself.
  struct Entry {
    Instant when;
    TimerId id;
    bool operator>(const Entry& o) const { return when != o.when ? when > o.when : id > o.id; }
  };
  class Heap {
   public:
    [[nodiscard]] bool empty() const { return entries_.empty(); }
    [[nodiscard]] std::size_t size() const { return entries_.size(); }
    [[nodiscard]] const Entry& top() const { return entries_.front(); }
    [[nodiscard]] bool due(Instant now) const { return !empty() && top().when <= now; }
    void push(Entry e) {
      entries_.push_back(e);
      std::push_heap(entries_.begin(), entries_.end(), std::greater<>());
    }
    Entry pop() {
      std::pop_heap(entries_.begin(), entries_.end(), std::greater<>());
      const Entry e = entries_.back();
      entries_.pop_back();
      return e;
    }
    template <class F>
    void erase_if(F&& gone) {
      std::erase_if(entries_, gone);
      std::make_heap(entries_.begin(), entries_.end(), std::greater<>());
    }
    void all_due() {
      for (Entry& e : entries_) e.when = Instant{0};
      std::make_heap(entries_.begin(), entries_.end(), std::greater<>());
    }

   private:
    std::vector<Entry> entries_;
  };
  static constexpr Duration kSoon = milliseconds(3);  // The wait's time-out is rounded up to milliseconds.

  Heap last;   // all
  Heap first;  // those that have time
  std::unordered_map<TimerId, std::function<void()>> timers;
  TimerId next_id = 1;
  Instant alarm_at = kNever;
  bool rang = false;  // What ran last was the alarm.

  AdaptivePolling polling;
  asio::io_context context{1};
  asio::steady_timer alarm;
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  std::unique_ptr<Helpers> helpers;

  void drop_cancelled() {
    const auto gone = [this](const Entry& e) { return !timers.contains(e.id); };
    last.erase_if(gone);
    first.erase_if(gone);
  }
  /// Sleeps until something happens, a timer must run, or `until`. Whether it was something from outside.
  bool sleep(Instant until) {
    while (!last.empty() && !timers.contains(last.top().id)) last.pop();
    if (!last.empty() && last.top().when < std::min(until, alarm_at)) {
      if (last.top().when - now() > kSoon) {
        until = last.top().when;
      } else {
        alarm_at = last.top().when;
        alarm.expires_at(to_time_point(alarm_at));
        alarm.async_wait([this](const asio::error_code& error) {
          rang = true;
          if (!error) alarm_at = kNever;  // Else it was set again for an earlier time.
        });
      }
    }
    const bool any = until == kNever ? context.run_one() > 0 : context.run_one_until(to_time_point(until)) > 0;
    return any && !rang;
  }
  /// Runs what is ready, one after the other, timers in between, and sleeps once nothing is, until `until` at most.
  void turn(Instant until) {
    rang = false;
    if (context.poll_one() > 0) {
      rang ? polling.on_own_event(now()) : polling.on_event(now());
    } else if (!last.due(now())) {
      if (polling.look_again(now())) {
        std::this_thread::yield();
        return;
      }
      polling.on_sleep();
      sleep(until) ? polling.on_event(now()) : polling.on_own_event(now());
    }
    const Instant at = now();
    if (last.due(at) || first.due(at)) {
      fire(at);
      polling.on_own_event(now());
    }
  }
  static Instant now() { return to_instant(Clock::now()); }
  void fire(Instant until) {
    // Timers set by the callbacks wait for the next round, so that a timer set for "now" cannot starve the sockets.
    const TimerId fresh = next_id;
    fire(last, until, fresh);
    fire(first, until, fresh);
  }
  void fire(Heap& heap, Instant until, TimerId fresh) {
    std::vector<Entry> later;
    while (heap.due(until)) {
      const Entry e = heap.pop();
      if (e.id >= fresh) {
        later.push_back(e);
        continue;
      }
      auto it = timers.find(e.id);
      if (it == timers.end()) continue;
      auto f = std::move(it->second);
      timers.erase(it);
      f();
    }
    for (const Entry& e : later) heap.push(e);
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

env::Loop::TimerId AsioLoop::call_between(Instant earliest, Instant latest, std::function<void()> f) {
  const TimerId id = impl_->next_id++;
  impl_->timers.emplace(id, std::move(f));
  impl_->last.push({stopping() ? Instant{0} : latest, id});
  if (earliest < latest) impl_->first.push({earliest, id});
  return id;
}

void AsioLoop::cancel(TimerId id) {
  if (impl_->timers.erase(id) == 0) return;
  const std::size_t entries = impl_->last.size() + impl_->first.size();
  if (entries > 64 && entries > 4 * impl_->timers.size()) impl_->drop_cancelled();
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
  impl_->last.all_due();
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
