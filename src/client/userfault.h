// The application's side of userfaultfd: makes the descriptor, registers ranges, wakes sleepers. The agent serves the
// faults.
#pragma once

#include <cstddef>
#include <optional>

#include "base/result.h"
#include "env/fd.h"

namespace holo::client {

/// A descriptor that has done its handshake. Nullopt where the kernel gives none, or where HOLO_NO_UFFD=1 asks to do
/// without. Thread: any.
std::optional<env::Fd> make_userfault();

/// Faults of [address, address + length) go to `fd` from now on. Errors: `io_error`, `out_of_memory`.
Status register_range(int fd, std::byte* address, std::size_t length);
/// Lets every thread that sleeps in a fault of the range try again.
void wake_range(int fd, std::byte* address, std::size_t length);

}  // namespace holo::client
