// Errors as they travel inside messages: to other nodes, to local processes, and in the log.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "base/result.h"
#include "wire/local.pb.h"

namespace holo::wire {

inline void put_error(const Error& error, WireError& out) {
  out.set_code(static_cast<std::uint32_t>(error.code));
  out.set_message(error.message);
  out.set_hint(error.hint);
  out.set_node(error.node);
  out.set_retryable(error.retryable);
  if (error.retry_after) {
    out.set_retry_after_ms(
        static_cast<std::uint32_t>(std::clamp<std::int64_t>(error.retry_after->count(), 0, UINT32_MAX)));
  }
}

/// A code of a later release counts as internal.
inline Error error_of(const WireError& in) {
  const bool known = in.code() >= 1 && in.code() <= static_cast<std::uint32_t>(Errc::internal);
  Error out{.code = known ? static_cast<Errc>(in.code()) : Errc::internal,
            .message = in.message(),
            .hint = in.hint(),
            .node = in.node(),
            .retryable = in.retryable()};
  if (in.has_retry_after_ms()) out.retry_after = std::chrono::milliseconds(in.retry_after_ms());
  return out;
}

}  // namespace holo::wire
