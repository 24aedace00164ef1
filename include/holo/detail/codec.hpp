// How results and arguments travel: trivially copyable values as they are; strings, vectors and pairs by length.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <holo/error.hpp>

namespace holo::detail {

template <class T>
inline constexpr bool kPlain =
    std::is_trivially_copyable_v<T> && !std::is_pointer_v<T> && !std::is_member_pointer_v<T> && !std::is_reference_v<T>;

template <class T>
struct IsSendable : std::bool_constant<kPlain<T>> {};
template <>
struct IsSendable<std::string> : std::true_type {};
template <class T>
struct IsSendable<std::vector<T>> : IsSendable<T> {};
template <class A, class B>
struct IsSendable<std::pair<A, B>> : std::bool_constant<IsSendable<A>::value && IsSendable<B>::value> {};

/// What map() and submit() can return, and submit() can take: trivially copyable values without pointers, std::string,
/// and vectors and pairs of those.
template <class T>
concept Sendable = IsSendable<T>::value;

inline void append_raw(std::vector<std::byte>& out, const void* data, std::size_t size) {
  if (size == 0) return;
  const std::size_t at = out.size();
  out.resize(at + size);
  std::memcpy(out.data() + at, data, size);
}

template <class T>
void encode(std::vector<std::byte>& out, const T& value) {
  append_raw(out, &value, sizeof(T));
}
inline void encode(std::vector<std::byte>& out, const std::string& value) {
  encode(out, static_cast<std::uint64_t>(value.size()));
  append_raw(out, value.data(), value.size());
}
template <class A, class B>
void encode(std::vector<std::byte>& out, const std::pair<A, B>& value);
template <class T>
void encode(std::vector<std::byte>& out, const std::vector<T>& value) {
  encode(out, static_cast<std::uint64_t>(value.size()));
  if constexpr (kPlain<T> && !std::is_same_v<T, bool>) {
    append_raw(out, value.data(), value.size() * sizeof(T));
  } else if constexpr (std::is_same_v<T, bool>) {
    for (bool b : value) encode(out, static_cast<std::uint8_t>(b));
  } else {
    for (const T& v : value) encode(out, v);
  }
}
template <class A, class B>
void encode(std::vector<std::byte>& out, const std::pair<A, B>& value) {
  encode(out, value.first);
  encode(out, value.second);
}

/// Reads values back, in order. A read beyond the end fails once and for all.
class Decoder {
 public:
  explicit Decoder(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <class T>
    requires kPlain<T>
  bool get(T& out) {
    if (rest_.size() < sizeof(T)) return false;
    std::memcpy(&out, rest_.data(), sizeof(T));
    rest_ = rest_.subspan(sizeof(T));
    return true;
  }
  bool get(std::string& out) {
    std::uint64_t size = 0;
    if (!get(size) || size > rest_.size()) return false;
    out.assign(reinterpret_cast<const char*>(rest_.data()), size);
    rest_ = rest_.subspan(size);
    return true;
  }
  template <class T>
  bool get(std::vector<T>& out) {
    std::uint64_t size = 0;
    if (!get(size) || size > rest_.size()) return false;  // Every element takes a byte at least.
    out.clear();
    if constexpr (std::is_same_v<T, bool>) {
      for (std::uint64_t i = 0; i < size; ++i) {
        std::uint8_t b = 0;
        if (!get(b)) return false;
        out.push_back(b != 0);
      }
    } else if constexpr (kPlain<T>) {
      if (size > rest_.size() / sizeof(T)) return false;
      out.resize(size);
      if (size) std::memcpy(out.data(), rest_.data(), size * sizeof(T));
      rest_ = rest_.subspan(size * sizeof(T));
    } else {
      out.reserve(size < 4096 ? size : 4096);
      for (std::uint64_t i = 0; i < size; ++i) {
        T v{};
        if (!get(v)) return false;
        out.push_back(std::move(v));
      }
    }
    return true;
  }
  template <class A, class B>
    requires(!kPlain<std::pair<A, B>>)
  bool get(std::pair<A, B>& out) {
    return get(out.first) && get(out.second);
  }
  [[nodiscard]] bool done() const { return rest_.empty(); }
  [[nodiscard]] std::span<const std::byte> rest() const { return rest_; }

 private:
  std::span<const std::byte> rest_;
};

/// One whole value. Error: `malformed`.
template <class T>
Result<T> decode(std::span<const std::byte> bytes) {
  T value{};
  Decoder in(bytes);
  if (!in.get(value) || !in.done()) return fail(Errc::malformed, "a task's result does not decode");
  return value;
}

}  // namespace holo::detail
