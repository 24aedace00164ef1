// A lock as its holder keeps it: of a program (holo::Lock) or of a command (holo lock).
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include <holo/detail/runtime.hpp>
#include <holo/lock.hpp>

#include "base/result.h"
#include "driver/posix/local_client.h"

namespace holo::client {

/// "process 7 on host": who the holder is, unless it says so itself.
std::string default_owner();

/// Waits in line for the lock, with a lease of its own that a thread of the object keeps. Errors: those of the agent;
/// `deadline_exceeded` (not to be had within options.wait).
Result<std::shared_ptr<detail::HeldLock>> hold_lock(std::shared_ptr<driver::LocalClient> socket, std::string_view name,
                                                    LockOptions options);

}  // namespace holo::client
