// Memory that cannot be had: access to it ends the process with a message, never with zeros.
#pragma once

#include <cstddef>
#include <string>

namespace holo::client {

/// From now on an access to [address, address + length), which the caller maps PROT_NONE, prints "holo: MESSAGE" and
/// ends the process by SIGBUS. Thread: any.
void mark_failed(const std::byte* address, std::size_t length, const std::string& message);
/// The range is about to be unmapped, or was replaced.
void forget_failed(const std::byte* address, std::size_t length);

}  // namespace holo::client
