#include "sim/loop.h"

#include <algorithm>

namespace holo::sim {

std::uint64_t World::at(Instant when, std::function<void()> f) {
  const std::uint64_t id = next_id_++;
  const std::int64_t t = std::max(when, now_).ns;
  queue_.emplace(std::pair(t, id), std::move(f));
  times_.emplace(id, t);
  return id;
}

void World::cancel(std::uint64_t id) {
  auto it = times_.find(id);
  if (it == times_.end()) return;
  queue_.erase({it->second, id});
  times_.erase(it);
}

bool World::step() {
  if (queue_.empty()) return false;
  auto it = queue_.begin();
  now_ = Instant{it->first.first};
  auto f = std::move(it->second);
  times_.erase(it->first.second);
  queue_.erase(it);
  ++events_;
  f();
  return true;
}

std::uint64_t World::run_until(Instant until) {
  const std::uint64_t before = events_;
  while (!queue_.empty() && queue_.begin()->first.first <= until.ns) step();
  now_ = std::max(now_, until);
  return events_ - before;
}

bool World::run_while_not(const std::function<bool()>& done, Instant deadline) {
  while (!done() && !queue_.empty() && queue_.begin()->first.first <= deadline.ns) step();
  return done();
}

std::uint64_t SimLoop::enqueue(Instant when, std::function<void()> f) {
  return world_.at(when, [alive = alive_, state = state_, f = std::move(f)]() mutable {
    if (!*alive) return;
    if (state->paused) {
      state->backlog.push_back(std::move(f));
      return;
    }
    f();
    if (*alive && state->after) state->after();
  });
}

void SimLoop::resume() {
  state_->paused = false;
  for (auto& f : std::exchange(state_->backlog, {})) enqueue(world_.now(), std::move(f));
}

void SimLoop::set_drift(std::int64_t parts_per_million) {
  gained_ = gained_ + (world_.now() - anchor_) / 1'000'000 * drift_;
  anchor_ = world_.now();
  drift_ = parts_per_million;
}

Instant SimLoop::world_time_of(Instant when) const {
  if (when >= kNever) return kNever;
  const Duration ahead = when - local(world_.now());
  return world_.now() + ahead - ahead / 1'000'000 * drift_;
}

/// The clock may change its pace meanwhile: whoever comes too early is sent to wait again.
void SimLoop::arm(const std::shared_ptr<TimerId>& id, Instant when) {
  const Instant at = std::max(world_time_of(when), world_.now() + nanoseconds(now() < when ? 1 : 0));
  timers_.at(*id).event = enqueue(stopping() ? world_.now() : at, [this, id] {
    auto it = timers_.find(*id);
    if (it == timers_.end()) return;
    if (!stopping() && now() < it->second.when) return arm(id, it->second.when);
    auto run = std::move(it->second.f);
    timers_.erase(it);
    run();
  });
}

env::Loop::TimerId SimLoop::call_at(Instant when, std::function<void()> f) {
  const TimerId id = next_timer_++;
  timers_.emplace(id, Timer{.when = when, .f = std::move(f)});
  arm(std::make_shared<TimerId>(id), when);
  return id;
}

void SimLoop::cancel(TimerId id) {
  const auto it = timers_.find(id);
  if (it == timers_.end()) return;
  world_.cancel(it->second.event);
  timers_.erase(it);
}

void SimLoop::offload(std::function<void()> work, std::function<void()> done) {
  work();
  enqueue(work_end_ ? work_end_() : world_.now(), std::move(done));
}

void SimLoop::begin_stop() {
  env::Loop::begin_stop();
  auto timers = std::exchange(timers_, {});
  for (auto& [id, timer] : timers) {
    world_.cancel(timer.event);
    post(std::move(timer.f));
  }
}

}  // namespace holo::sim
