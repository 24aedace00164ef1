// Tells when the addresses of this machine (of the network namespace, that is) have changed.
#pragma once

#include <functional>
#include <memory>

#include "driver/posix/asio_loop.h"

namespace holo::driver {

/// Ends the watch when destroyed. Thread: loop. The loop outlives it.
class AddressWatch {
 public:
  virtual ~AddressWatch() = default;
};

/// Calls `changed` a moment after addresses came or went, once for all that happen together. Nothing is called, and
/// nothing is logged, where the kernel does not let this process know (the watch then does nothing).
std::unique_ptr<AddressWatch> watch_addresses(AsioLoop& loop, std::function<void()> changed);

}  // namespace holo::driver
