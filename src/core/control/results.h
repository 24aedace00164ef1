// Errors inside the messages of the log.
#pragma once

#include "base/result.h"
#include "wire/control.pb.h"
#include "wire/errors.h"

namespace holo::control {

inline void set_error(wire::WireError* out, const Error& e) { wire::put_error(e, *out); }

inline wire::CommandResult refusal(const Error& e) {
  wire::CommandResult r;
  set_error(r.mutable_error(), e);
  return r;
}
inline wire::CommandResult refusal(Errc code, std::string message, std::string hint = {}) {
  return refusal(Error{.code = code, .message = std::move(message), .hint = std::move(hint)});
}

/// Of a command that gives nothing but success or failure.
inline wire::CommandResult done(const Status& status) {
  return status ? wire::CommandResult() : refusal(status.error());
}

inline bool is_error(const wire::WireError& e) { return e.code() != 0; }

/// The error as a value; success when the code is 0.
inline Status status_of(const wire::WireError& e) {
  if (e.code() == 0) return {};
  return std::unexpected(wire::error_of(e));
}

}  // namespace holo::control
