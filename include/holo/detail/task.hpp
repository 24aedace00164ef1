// From a user's callable to a function that a worker can run, and the bytes that travel with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <new>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <holo/chunk.hpp>
#include <holo/detail/codec.hpp>
#include <holo/detail/runtime.hpp>

namespace holo::detail {

#define HOLO_CHECK_CALLABLE(F)                                                                                       \
  static_assert(                                                                                                     \
      !std::is_pointer_v<F>,                                                                                         \
      "holo: pass a lambda or a function object, not a function pointer: [](auto... x) { return f(x...); }");        \
  static_assert(std::is_trivially_copyable_v<F>,                                                                     \
                "holo: a task may capture only trivially copyable values, by value (no strings, vectors, handles)"); \
  static_assert(sizeof(F) <= ::holo::detail::kMaxCaptureBytes,                                                       \
                "holo: a task may capture at most 4096 bytes; put more into a SharedArray or DistBuffer")

inline Error task_bytes_error() {
  return fail(Errc::malformed, "a task's captures or arguments do not decode").error();
}

/// The bytes of a callable as they travel: none for one that captures nothing.
template <class F>
std::vector<std::byte> capture_bytes(F& f) {
  std::vector<std::byte> out;
  if constexpr (!std::is_empty_v<F>) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
    __builtin_clear_padding(&f);  // Padding holds whatever was there before, old addresses included.
#endif
#endif
    append_raw(out, &f, sizeof(F));
  }
  return out;
}

/// A callable again, on the other side. Its type need not be default-constructible.
template <class F>
class Carried {
 public:
  explicit Carried(std::span<const std::byte> bytes) {
    if constexpr (!std::is_empty_v<F>) {
      if (bytes.size() < sizeof(F)) throw TaskError{task_bytes_error()};
      std::memcpy(static_cast<void*>(storage_), bytes.data(), sizeof(F));
    }
  }
  F& get() { return *std::launder(reinterpret_cast<F*>(storage_)); }
  static constexpr std::size_t size() { return std::is_empty_v<F> ? 0 : sizeof(F); }

 private:
  alignas(F) std::byte storage_[sizeof(F)] = {};
};

/// The one parameter of a callable whose operator() is not a template; void otherwise.
template <class M>
struct OneParameter {
  using type = void;
};
template <class C, class R, class A>
struct OneParameter<R (C::*)(A)> {
  using type = std::remove_cvref_t<A>;
};
template <class C, class R, class A>
struct OneParameter<R (C::*)(A) const> : OneParameter<R (C::*)(A)> {};
template <class C, class R, class A>
struct OneParameter<R (C::*)(A) noexcept> : OneParameter<R (C::*)(A)> {};
template <class C, class R, class A>
struct OneParameter<R (C::*)(A) const noexcept> : OneParameter<R (C::*)(A)> {};

template <class F>
struct ChunkParameter {
  using type = void;
};
template <class F>
  requires requires { &F::operator(); }
struct ChunkParameter<F> : OneParameter<decltype(&F::operator())> {};

/// Which chunk F wants: the one its operator() names, or Default where that is a template.
template <class F, class T, class Default>
struct ChunkFor {
  using named = typename ChunkParameter<F>::type;
  using type = std::conditional_t<std::is_void_v<named>, Default, named>;
  static_assert(std::is_same_v<type, Chunk<T>> || std::is_same_v<type, Chunk<const T>>,
                "holo: the function must take a holo::Chunk<T> or holo::Chunk<const T> of the array's element type");
  static constexpr bool writes = std::is_same_v<type, Chunk<T>>;
};

template <class F, class C>
void run_chunk(TaskContext& task) {
  Carried<F> f(task.captures);
  using R = std::invoke_result_t<F&, C>;
  if constexpr (std::is_void_v<R>) {
    f.get()(C(task));
  } else {
    encode(task.result, f.get()(C(task)));
  }
}

template <class Op, class T, class R>
void run_fold(TaskContext& task) {
  Carried<Op> op(task.captures);
  const Chunk<const T> chunk(task);
  const T* it = chunk.begin();
  const T* const end = chunk.end();
  if (it == end) return;  // No result: nothing to add.
  R sum = static_cast<R>(*it);
  for (++it; it != end; ++it) sum = op.get()(std::move(sum), *it);
  encode(task.result, sum);
}

template <class F, class... Args>
void run_single(TaskContext& task) {
  Carried<F> f(task.captures);
  std::tuple<Args...> args;
  Decoder in(task.captures.subspan(Carried<F>::size()));
  const bool ok = std::apply([&](auto&... a) { return (in.get(a) && ...); }, args);
  if (!ok || !in.done()) throw TaskError{task_bytes_error()};
  using R = std::invoke_result_t<F&, Args...>;
  if constexpr (std::is_void_v<R>) {
    std::apply(f.get(), std::move(args));
  } else {
    encode(task.result, std::apply(f.get(), std::move(args)));
  }
}

}  // namespace holo::detail
