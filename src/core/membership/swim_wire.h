// SWIM's messages as bytes. Bytes from peers are checked here.
#pragma once

#include <string>

#include "base/bytes.h"
#include "base/result.h"
#include "core/membership/swim.h"

namespace holo::membership {

/// At most kMaxMessageBytes.
std::string encode(const Message& message);

/// Error: `malformed` (does not decode, too long, unknown kind or claim, more updates than its kind may carry, a
/// nameless node, an accusation without accuser).
Result<Message> decode_swim_message(ByteSpan bytes);

}  // namespace holo::membership
