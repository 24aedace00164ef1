// How a command ends: 0 done, 1 refused or failed, 2 wrong usage; with one line on standard error unless it is 0.
#pragma once

#include <expected>
#include <string>
#include <utility>

#include "base/result.h"

namespace holo::cmd {

inline constexpr int kDone = 0;
inline constexpr int kFailed = 1;
inline constexpr int kUsage = 2;

struct Failure {
  Error error;
  int exit_code = kFailed;
  Failure(Error e, int code = kFailed) : error(std::move(e)), exit_code(code) {}  // NOLINT: HOLO_TRY converts errors.
};

/// The value is the exit status.
template <class T = int>
using Outcome = std::expected<T, Failure>;

/// The command line itself is wrong.
[[nodiscard]] inline std::unexpected<Failure> usage(std::string message, std::string hint = {}) {
  return std::unexpected(
      Failure(Error{.code = Errc::invalid_argument, .message = std::move(message), .hint = std::move(hint)}, kUsage));
}
[[nodiscard]] inline std::unexpected<Failure> usage(Error error) {
  return std::unexpected(Failure(std::move(error), kUsage));
}

/// Prints "holo: message (hint)" as one line on standard error and returns the exit status.
int report(const Failure& failure);

}  // namespace holo::cmd
