// What people ask about the control state: who holds it and how far each member is, and a copy of all of it.
#pragma once

#include <memory>
#include <string>

#include "env/loop.h"
#include "env/transport.h"
#include "node/control.h"
#include "node/local_api.h"

namespace holo::node {

/// Thread: loop.
class ControlAdmin {
 public:
  /// Serves CONTROL_STATUS and CONTROL_SNAPSHOT to processes, and control_progress to nodes. All of them outlive it.
  /// Before the local socket opens. `version`: of holo, for the head of a snapshot.
  ControlAdmin(env::Loop& loop, env::Transport& transport, ControlService& control, std::string version, LocalApi& api);
  ~ControlAdmin();
  ControlAdmin(const ControlAdmin&) = delete;
  ControlAdmin& operator=(const ControlAdmin&) = delete;

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;  ///< What waits keeps it.
};

}  // namespace holo::node
