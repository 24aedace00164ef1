// Text from outside that must become UTF-8: protobuf strings and JSON take nothing else.
#pragma once

#include <string>
#include <string_view>

namespace holo {

/// `text` with a question mark for each byte that is not part of well-formed UTF-8.
std::string to_utf8(std::string_view text);

}  // namespace holo
