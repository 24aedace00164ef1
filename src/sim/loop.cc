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
  return world_.at(when, [alive = alive_, f = std::move(f)] {
    if (*alive) f();
  });
}

env::Loop::TimerId SimLoop::call_at(Instant when, std::function<void()> f) {
  const Instant world_time = stopping() ? world_.now() : when - skew_;
  auto id = std::make_shared<TimerId>(0);
  *id = enqueue(world_time, [this, id] {
    auto it = timers_.find(*id);
    if (it == timers_.end()) return;
    auto run = std::move(it->second);
    timers_.erase(it);
    run();
  });
  timers_.emplace(*id, std::move(f));
  return *id;
}

void SimLoop::cancel(TimerId id) {
  timers_.erase(id);
  world_.cancel(id);
}

void SimLoop::offload(std::function<void()> work, std::function<void()> done) {
  work();
  post(std::move(done));
}

void SimLoop::begin_stop() {
  env::Loop::begin_stop();
  auto timers = std::exchange(timers_, {});
  for (auto& [id, f] : timers) {
    world_.cancel(id);
    post(std::move(f));
  }
}

}  // namespace holo::sim
