// env::Loop on one thread of Asio. Asio itself stays in the .cc: whoever includes this does not pay for it.
#pragma once

#include <functional>
#include <memory>

#include "env/fd.h"
#include "env/loop.h"

namespace holo::driver {

/// Thread: constructed anywhere; run() makes the calling thread the loop thread.
class AsioLoop : public env::Loop {
 public:
  struct Options {
    unsigned helper_threads = 3;  ///< For offload().
    /// Before it sleeps, the thread looks so long for what may come next, when that has mostly come soon of late (see
    /// adaptive_polling.h). About what one wake-up costs; 0: never.
    Duration poll_for{};
  };
  AsioLoop();
  explicit AsioLoop(Options options);
  /// Waits for helper threads to end what they are running; queued work that has not begun is dropped.
  ~AsioLoop() override;
  AsioLoop(const AsioLoop&) = delete;
  AsioLoop& operator=(const AsioLoop&) = delete;

  /// Runs the loop on this thread until stop().
  void run();
  /// Makes run() return soon. Thread: any.
  void stop();
  /// Runs handlers until `done()` holds or `limit` has passed; true when it holds. For tests and for shutdown.
  bool run_until(const std::function<bool()>& done, Duration limit);

  Instant now() const override;
  WallTime wall_now() const override;
  void post(std::function<void()> f) override;
  TimerId call_between(Instant earliest, Instant latest, std::function<void()> f) override;
  void cancel(TimerId id) override;
  void offload(std::function<void()> work, std::function<void()> done) override;
  void begin_stop() override;

 private:
  friend class FdWatch;
  friend class SignalWatch;
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

/// Tells when a non-blocking descriptor can be read or written (level-triggered). Thread: loop.
/// Destroying it, also inside its own callback, ends the callbacks; the descriptor is closed with it. The loop outlives
/// it.
class FdWatch {
 public:
  struct Callbacks {
    std::function<void()> on_readable;
    std::function<void()> on_writable;
  };
  FdWatch(AsioLoop& loop, env::Fd fd, Callbacks callbacks);
  ~FdWatch();
  FdWatch(const FdWatch&) = delete;
  FdWatch& operator=(const FdWatch&) = delete;

  [[nodiscard]] int fd() const;
  /// Ends the watch and gives the descriptor back, open.
  env::Fd release();
  /// The callback repeats while the descriptor stays ready and is wanted.
  void want_read(bool on);
  void want_write(bool on);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

/// Calls back on the loop thread when one of the given signals arrives. One per process and signal.
class SignalWatch {
 public:
  SignalWatch(AsioLoop& loop, std::initializer_list<int> signals, std::function<void(int)> on_signal);
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace holo::driver
