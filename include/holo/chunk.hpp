// A piece of an array, as a task sees it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <holo/detail/runtime.hpp>
#include <holo/types.hpp>

namespace holo {

/// Elements [first(), last()) of an array, in memory of the node that runs the task. Indices are those of the whole
/// array. Chunk<const T> is read-only, and cheaper: prefer it where nothing is written. Valid while the task runs.
template <class T>
class Chunk {
 public:
  using value_type = std::remove_const_t<T>;
  static_assert(Element<value_type>, "holo: an array element must be trivially copyable and hold no pointer");

  explicit Chunk(detail::TaskContext& task) : task_(&task), base_(reinterpret_cast<T*>(task.base)) {}
  /// A Chunk<T> is also a Chunk<const T>.
  operator Chunk<const T>() const  // NOLINT(google-explicit-constructor)
    requires(!std::is_const_v<T>)
  {
    return Chunk<const T>(*task_);
  }

  [[nodiscard]] std::uint64_t first() const { return task_->first; }
  [[nodiscard]] std::uint64_t last() const { return task_->last; }
  [[nodiscard]] std::uint64_t size() const { return task_->last - task_->first; }
  [[nodiscard]] bool empty() const { return size() == 0; }
  /// The chunk's number: results of map() stand in this order.
  [[nodiscard]] std::uint32_t index() const { return task_->chunk; }

  /// `i`: index in the whole array, first() <= i < last(). Not checked.
  [[nodiscard]] T& operator[](std::uint64_t i) const { return base_[i]; }
  [[nodiscard]] T* begin() const { return base_ + first(); }
  [[nodiscard]] T* end() const { return base_ + last(); }
  [[nodiscard]] std::span<T> span() const { return {begin(), static_cast<std::size_t>(size())}; }

  /// The whole array, to read beyond the chunk's ends: as of the job's start, except this chunk's own elements, which
  /// are as this task has written them. Pages that live elsewhere are fetched when they are touched.
  [[nodiscard]] std::span<const value_type> array() const {
    return {reinterpret_cast<const value_type*>(task_->whole(*task_)), static_cast<std::size_t>(task_->count)};
  }

 private:
  detail::TaskContext* task_;
  T* base_;
};

}  // namespace holo
