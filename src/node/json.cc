#include "node/json.h"

#include <cmath>
#include <cstdio>

namespace holo::node {
namespace {

/// Bytes of the UTF-8 character at the front of `s`, 0 when it is not one.
std::size_t utf8_length(std::string_view s) {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char lead = at(0);
  std::size_t n = lead < 0x80                   ? 1
                  : lead >= 0xc2 && lead < 0xe0 ? 2
                  : lead >= 0xe0 && lead < 0xf0 ? 3
                  : lead >= 0xf0 && lead < 0xf5 ? 4
                                                : 0;
  if (n == 0 || n > s.size()) return 0;
  for (std::size_t i = 1; i < n; ++i) {
    if ((at(i) & 0xc0) != 0x80) return 0;
  }
  // Over-long forms, surrogates, and what lies above the last code point.
  const bool wrong = (lead == 0xe0 && at(1) < 0xa0) || (lead == 0xed && at(1) > 0x9f) ||
                     (lead == 0xf0 && at(1) < 0x90) || (lead == 0xf4 && at(1) > 0x8f);
  return wrong ? 0 : n;
}

}  // namespace

void JsonWriter::value(std::string_view s) {
  std::string quoted = "\"";
  while (!s.empty()) {
    const auto c = static_cast<unsigned char>(s[0]);
    const auto n = utf8_length(s);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += s[0];
    } else if (c < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      quoted += escape;
    } else if (n == 0) {
      quoted += "\xef\xbf\xbd";
    } else {
      quoted += s.substr(0, n);
    }
    s.remove_prefix(n == 0 ? 1 : n);
  }
  raw(quoted + '"');
}

void JsonWriter::value(double v) {
  if (!std::isfinite(v)) return raw("null");
  char number[32];
  std::snprintf(number, sizeof number, "%.6g", v);
  raw(number);
}

}  // namespace holo::node
