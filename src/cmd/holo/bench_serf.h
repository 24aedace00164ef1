// Serf, where it is installed: five of its agents on loopback ports, as what detection of a crash is measured against.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "cmd/holo/outcome.h"

namespace holo::cmd {

/// Ends what it started.
class SerfCluster {
 public:
  /// Null: `serf` is not in PATH. Failures: it is there and does not do what it should.
  static Outcome<std::unique_ptr<SerfCluster>> start(unsigned nodes);
  ~SerfCluster();
  SerfCluster(const SerfCluster&) = delete;
  SerfCluster& operator=(const SerfCluster&) = delete;
  /// Kills one and starts it again; seconds from the kill until all others list it as failed.
  Outcome<double> crash(unsigned node);

 private:
  struct Agent {
    int pid = -1;
    unsigned port = 0, rpc_port = 0;
  };
  SerfCluster() = default;
  Status start_agent(unsigned node);
  [[nodiscard]] unsigned count(unsigned node, const char* state) const;
  Outcome<void> wait_for_all();
  std::vector<Agent> agents_;
};

}  // namespace holo::cmd
