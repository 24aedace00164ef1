// Watches how this node is, and says it as a score that the others see.
#pragma once

#include <functional>
#include <memory>

#include "core/membership/health.h"
#include "env/loop.h"
#include "env/machine.h"

namespace holo::node {

/// Takes a sample every kSampleEvery. Thread: loop.
class HealthService {
 public:
  struct Ports {
    env::Loop* loop = nullptr;
    /// Looks at the machine; blocks, on a helper thread. Null: only the loop and the requests are watched.
    std::function<env::MachineReading()> look;
    /// Control requests to others that have not been answered in time, since the start.
    std::function<std::uint64_t()> unanswered;
  };
  explicit HealthService(Ports ports);
  ~HealthService();
  HealthService(const HealthService&) = delete;
  HealthService& operator=(const HealthService&) = delete;

  void start();
  [[nodiscard]] const membership::Health& health() const;

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;  ///< What waits keeps it.
};

inline constexpr Duration kSampleEvery = seconds(5);

}  // namespace holo::node
