// Leases and locks, as this node's processes use them (core/control/leases.h has the rules).
#pragma once

#include <memory>

#include "env/loop.h"
#include "node/control.h"
#include "node/local_api.h"

namespace holo::node {

/// Thread: loop.
class LeaseService {
 public:
  /// Serves LEASE_* and LOCK_*. All of them outlive the service. Before the local socket opens.
  LeaseService(env::Loop& loop, ControlService& control, LocalApi& api);
  ~LeaseService();
  LeaseService(const LeaseService&) = delete;
  LeaseService& operator=(const LeaseService&) = delete;

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;  ///< What waits keeps it.
};

}  // namespace holo::node
