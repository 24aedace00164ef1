// Result helpers used everywhere below the public headers.
#pragma once

#include <holo/error.hpp>

#include "base/assert.h"

namespace holo {

/// Returns early with the error of `expr`; otherwise goes on. In coroutines use HOLO_CO_TRY.
#define HOLO_TRY(expr)                                      \
  do {                                                      \
    if (auto holo_try_ = (expr); !holo_try_) [[unlikely]]   \
      return std::unexpected(std::move(holo_try_).error()); \
  } while (false)

/// Declares `var` as the value of `expr`, or returns early with its error.
#define HOLO_ASSIGN(var, expr)                                \
  auto var##_result_ = (expr);                                \
  if (!var##_result_) [[unlikely]]                            \
    return std::unexpected(std::move(var##_result_).error()); \
  auto var = std::move(*var##_result_)

#define HOLO_CO_TRY(expr)                                      \
  do {                                                         \
    if (auto holo_try_ = (expr); !holo_try_) [[unlikely]]      \
      co_return std::unexpected(std::move(holo_try_).error()); \
  } while (false)

#define HOLO_CO_ASSIGN(var, expr)                                \
  auto var##_result_ = (expr);                                   \
  if (!var##_result_) [[unlikely]]                               \
    co_return std::unexpected(std::move(var##_result_).error()); \
  auto var = std::move(*var##_result_)

}  // namespace holo
