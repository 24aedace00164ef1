// A virtual clock and one thread for a whole simulated cluster. Nothing here depends on real time, so a seed replays
// exactly.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <utility>

#include "env/loop.h"

namespace holo::sim {

/// Events in order of (time, order of insertion). Time moves only when nothing is left to do at the present instant.
class World {
 public:
  [[nodiscard]] Instant now() const { return now_; }
  std::uint64_t at(Instant when, std::function<void()> f);
  void cancel(std::uint64_t id);
  /// Runs the next event; false when there is none.
  bool step();
  /// Runs until `until`, or until nothing is left. Returns the number of events run.
  std::uint64_t run_until(Instant until);
  /// Runs until `done()` is true or the virtual `deadline` has passed; returns done().
  bool run_while_not(const std::function<bool()>& done, Instant deadline);
  [[nodiscard]] std::uint64_t events() const { return events_; }

 private:
  Instant now_{1'000'000'000};
  std::uint64_t next_id_ = 1;
  std::uint64_t events_ = 0;
  std::map<std::pair<std::int64_t, std::uint64_t>, std::function<void()>> queue_;
  std::map<std::uint64_t, std::int64_t> times_;
};

/// One node's event loop in the simulated world. A loop that has been killed runs nothing any more, as after kill -9.
class SimLoop final : public env::Loop {
 public:
  explicit SimLoop(World& world) : world_(world) {}

  Instant now() const override { return world_.now() + skew_; }
  WallTime wall_now() const override { return {1'700'000'000'000 + now().ns / 1'000'000}; }
  void post(std::function<void()> f) override { enqueue(world_.now(), std::move(f)); }
  TimerId call_at(Instant when, std::function<void()> f) override;
  void cancel(TimerId id) override;
  void offload(std::function<void()> work, std::function<void()> done) override;
  void begin_stop() override;

  /// From now on nothing of this loop runs: what was queued is dropped.
  void kill() { *alive_ = false; }
  /// This node's clock runs ahead of the others' by `skew` from now on (may be negative).
  void set_skew(Duration skew) { skew_ = skew; }

 private:
  std::uint64_t enqueue(Instant when, std::function<void()> f);

  World& world_;
  Duration skew_{};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::map<TimerId, std::function<void()>> timers_;
};

}  // namespace holo::sim
