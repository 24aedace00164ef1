// HOLO_ASSERT guards our own mistakes and stays on in release builds. What the world can cause is a Result.
#pragma once

namespace holo {
[[noreturn]] void assert_failed(const char* condition, const char* file, int line, const char* why) noexcept;
}  // namespace holo

#define HOLO_ASSERT(cond, ...)                                          \
  do {                                                                  \
    if (!(cond)) [[unlikely]]                                           \
      ::holo::assert_failed(#cond, __FILE__, __LINE__, "" __VA_ARGS__); \
  } while (false)
