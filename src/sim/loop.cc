#include "sim/loop.h"

#include <algorithm>

#include "base/assert.h"

namespace holo::sim {

namespace {
constexpr unsigned kSlotBits = 24;  // Of an event's id; the rest is its number.
}

std::uint64_t World::at(Instant when, std::function<void()> f) {
  if (free_.empty()) {
    free_.push_back(static_cast<std::uint32_t>(slots_.size()));
    HOLO_ASSERT(slots_.size() < 1U << kSlotBits, "events that never run");
    slots_.emplace_back();
  }
  const std::uint32_t slot = free_.back();
  free_.pop_back();
  const std::uint64_t number = next_number_++;
  slots_[slot].number = number;
  slots_[slot].run = std::move(f);
  heap_.push_back({.when = std::max(when, now_).ns, .number = number, .slot = slot});
  std::push_heap(heap_.begin(), heap_.end());
  return number << kSlotBits | slot;
}

void World::cancel(std::uint64_t id) {
  const std::size_t slot = id & ((1U << kSlotBits) - 1);
  if (slot >= slots_.size() || slots_[slot].number != id >> kSlotBits) return;
  slots_[slot].number = 0;
  const auto dropped = std::exchange(slots_[slot].run, nullptr);  // It may own what cancels others.
}

void World::drop_first() {
  free_.push_back(heap_.front().slot);
  std::pop_heap(heap_.begin(), heap_.end());
  heap_.pop_back();
}

const World::Due* World::next() {
  while (!heap_.empty() && slots_[heap_.front().slot].number != heap_.front().number) drop_first();
  return heap_.empty() ? nullptr : &heap_.front();
}

bool World::step() {
  const Due* due = next();
  if (due == nullptr) return false;
  now_ = Instant{due->when};
  Slot& slot = slots_[due->slot];
  slot.number = 0;
  const auto f = std::exchange(slot.run, nullptr);
  drop_first();
  ++events_;
  f();
  return true;
}

std::uint64_t World::run_until(Instant until) {
  const std::uint64_t before = events_;
  for (const Due* due = next(); due != nullptr && due->when <= until.ns; due = next()) step();
  now_ = std::max(now_, until);
  return events_ - before;
}

bool World::run_while_not(const std::function<bool()>& done, Instant deadline) {
  while (!done()) {
    const Due* due = next();
    if (due == nullptr || due->when > deadline.ns) return done();
    step();
  }
  return true;
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

env::Loop::TimerId SimLoop::call_between(Instant, Instant when, std::function<void()> f) {
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
