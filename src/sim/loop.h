// A virtual clock and one thread for a whole simulated cluster. Nothing here depends on real time, so a seed replays
// exactly.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

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
  /// What is queued lies in slots that are used again; a cancelled one keeps its place in the heap until that is due.
  struct Slot {
    std::uint64_t number = 0;  ///< Of the event; 0: free, or cancelled.
    std::function<void()> run;
  };
  struct Due {
    std::int64_t when;
    std::uint64_t number;
    std::uint32_t slot;
    friend bool operator<(const Due& a, const Due& b) {  // The heap has the largest first.
      return a.when != b.when ? a.when > b.when : a.number > b.number;
    }
  };
  /// The next event; null: there is none.
  const Due* next();
  void drop_first();

  Instant now_{1'000'000'000};
  std::uint64_t next_number_ = 1;
  std::uint64_t events_ = 0;
  std::vector<Due> heap_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
};

/// One node's event loop in the simulated world. A loop that has been killed runs nothing any more, as after kill -9.
/// It may stand still for a while (SIGSTOP), and its clocks may be wrong.
class SimLoop final : public env::Loop {
 public:
  explicit SimLoop(World& world) : world_(world), anchor_(world.now()) {}
  ~SimLoop() override { kill(); }

  Instant now() const override { return local(world_.now()); }
  WallTime wall_now() const override { return {1'700'000'000'000 + (now() + wall_offset_).ns / 1'000'000}; }
  void post(std::function<void()> f) override { enqueue(world_.now(), std::move(f)); }
  TimerId call_between(Instant earliest, Instant latest, std::function<void()> f) override;
  void cancel(TimerId id) override;
  void offload(std::function<void()> work, std::function<void()> done) override;
  void begin_stop() override;

  /// From now on nothing of this loop runs: what was queued is dropped.
  void kill() { *alive_ = false; }
  /// From now on what is due waits, until resume().
  void pause() { state_->paused = true; }
  void resume();
  [[nodiscard]] bool paused() const { return state_->paused; }
  /// This node's clock runs ahead of the others' by `skew` from now on (may be negative).
  void set_skew(Duration skew) { skew_ = skew; }
  /// This node's clock gains so many microseconds in each second from now on (may be negative).
  void set_drift(std::int64_t parts_per_million);
  /// The wall clock alone is ahead by so much: people and time servers change it at will.
  void set_wall_offset(Duration offset) { wall_offset_ = offset; }
  /// Offloaded work ends when the world has come to what this says (a slow disk); at once without one.
  void set_work_end(std::function<Instant()> f) { work_end_ = std::move(f); }
  /// Called after everything that ran on this loop.
  void set_after_event(std::function<void()> f) { state_->after = std::move(f); }

 private:
  struct State {
    bool paused = false;
    std::deque<std::function<void()>> backlog;
    std::function<void()> after;
  };
  std::uint64_t enqueue(Instant when, std::function<void()> f);
  void arm(const std::shared_ptr<TimerId>& id, Instant when);
  [[nodiscard]] Instant local(Instant world_time) const {
    return world_time + skew_ + gained_ + (world_time - anchor_) / 1'000'000 * drift_;
  }
  [[nodiscard]] Instant world_time_of(Instant when) const;

  World& world_;
  Instant anchor_;
  Duration skew_{}, gained_{}, wall_offset_{};
  std::int64_t drift_ = 0;
  std::function<Instant()> work_end_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::shared_ptr<State> state_ = std::make_shared<State>();
  struct Timer {
    Instant when;
    std::function<void()> f;
    std::uint64_t event = 0;
  };
  std::map<TimerId, Timer> timers_;
  TimerId next_timer_ = 1;
};

}  // namespace holo::sim
