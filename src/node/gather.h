// Several tasks at once, and their results together.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/task.h"
#include "env/loop.h"

namespace holo::node {

namespace detail {
template <class T>
struct Gathering {
  std::vector<std::optional<T>> results;
  std::size_t left = 0;
  OneShot<bool> done;
};
template <class T>
Task<void> gather_one(Task<T> task, std::shared_ptr<Gathering<T>> state, std::size_t index) {
  state->results[index].emplace(co_await task);
  if (--state->left == 0) state->done.set(true);
}
}  // namespace detail

/// Runs all of `tasks` at once; returns their results in order when the last has ended. Thread: loop.
template <class T>
Task<std::vector<T>> gather(env::Loop& loop, std::vector<Task<T>> tasks) {
  auto state = std::make_shared<detail::Gathering<T>>();
  state->results.resize(tasks.size());
  state->left = tasks.size();
  if (tasks.empty()) state->done.set(true);
  for (std::size_t i = 0; i < tasks.size(); ++i) loop.spawn(detail::gather_one(std::move(tasks[i]), state, i));
  co_await state->done;
  std::vector<T> out;
  out.reserve(state->results.size());
  for (auto& r : state->results) out.push_back(std::move(*r));
  co_return out;
}

}  // namespace holo::node
