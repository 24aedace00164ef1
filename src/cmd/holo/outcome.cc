#include "cmd/holo/outcome.h"

#include <algorithm>
#include <cstdio>

namespace holo::cmd {

int report(const Failure& failure) {
  std::string line = failure.error.to_string();
  // What came from a file, a peer or a library may hold line breaks and terminal codes: one plain line is promised.
  std::ranges::replace_if(line, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, ' ');
  std::fprintf(stderr, "holo: %s\n", line.c_str());
  return failure.exit_code;
}

}  // namespace holo::cmd
