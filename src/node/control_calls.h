// How the parts of ControlService ask other nodes.
#pragma once

#include <string>

#include "base/result.h"
#include "base/time.h"
#include "env/transport.h"
#include "wire/message_types.h"

namespace holo::node {

inline env::Request request_of(wire::PeerMessage type, const std::string& header) {
  env::Request r;
  r.type = static_cast<std::uint16_t>(type);
  r.header = header;
  return r;
}

inline env::CallOptions control_call(Instant deadline) {
  env::CallOptions o;
  o.klass = env::StreamClass::control;
  o.deadline = deadline;
  return o;
}

inline auto malformed() { return fail(Errc::malformed, "a request that does not decode"); }

}  // namespace holo::node
