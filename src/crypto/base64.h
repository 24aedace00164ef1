// Base64 (RFC 4648 section 4), strict: one text for each byte string.
#pragma once

#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace holo::crypto {

/// With padding, without line breaks.
std::string base64_encode(ByteSpan bytes);

/// Errors: `malformed` (a character outside the alphabet, a wrong length, missing padding, or bits left over).
Result<Bytes> base64_decode(std::string_view text);

}  // namespace holo::crypto
