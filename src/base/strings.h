// Building messages without a formatting library (those live above the drivers).
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include "base/ids.h"

namespace holo {

inline void append_part(std::string& out, std::string_view s) { out.append(s); }
inline void append_part(std::string& out, char c) { out.push_back(c); }
template <class T>
  requires(std::is_integral_v<T> && !std::is_same_v<T, char>)
void append_part(std::string& out, T v) {
  out += std::to_string(v);
}
/// Up to six digits after the point, and none that says nothing: 5, 0.25.
inline void append_part(std::string& out, double v) {
  std::string text = std::to_string(v);
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.ends_with('.')) text.pop_back();
  }
  out += text;
}
template <class Tag, class Int>
void append_part(std::string& out, Id<Tag, Int> id) {
  out += std::to_string(id.value);
}
inline void append_part(std::string& out, NodeId id) { out += to_hex(id.value); }

/// str("page ", page, " of ", name): the parts, one after the other.
template <class... Parts>
std::string str(const Parts&... parts) {
  std::string out;
  (append_part(out, parts), ...);
  return out;
}

}  // namespace holo
