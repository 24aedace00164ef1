#include "base/utf8.h"

#include <cstddef>

namespace holo {
namespace {

/// Length of the well-formed UTF-8 sequence at `at`, or 0. Overlong forms, surrogates and what is beyond U+10FFFF are
/// none.
std::size_t utf8_sequence(std::string_view s, std::size_t at) {
  const auto byte = [&](std::size_t i) { return i < s.size() ? static_cast<unsigned char>(s[i]) : 0U; };
  const unsigned b0 = byte(at), b1 = byte(at + 1);
  const auto tail = [](unsigned b) { return (b & 0xC0) == 0x80; };
  if (b0 < 0x80) return 1;
  if (b0 >= 0xC2 && b0 <= 0xDF) return tail(b1) ? 2 : 0;
  if (b0 >= 0xE0 && b0 <= 0xEF) {
    const bool fits = tail(b1) && (b0 != 0xE0 || b1 >= 0xA0) && (b0 != 0xED || b1 < 0xA0);
    return fits && tail(byte(at + 2)) ? 3 : 0;
  }
  if (b0 >= 0xF0 && b0 <= 0xF4) {
    const bool fits = tail(b1) && (b0 != 0xF0 || b1 >= 0x90) && (b0 != 0xF4 || b1 < 0x90);
    return fits && tail(byte(at + 2)) && tail(byte(at + 3)) ? 4 : 0;
  }
  return 0;
}

}  // namespace

std::string to_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = utf8_sequence(text, i);
    if (n == 0) {
      out.push_back('?');
      ++i;
    } else {
      out.append(text.substr(i, n));
      i += n;
    }
  }
  return out;
}

}  // namespace holo
