#include "sim/cluster_scenario.h"
#include "sim/hyperbus_scenario.h"
#include "sim/membership_scenario.h"
#include "sim/session_scenario.h"

namespace holo::sim {

std::span<const Scenario> scenarios() {
  static constexpr Scenario kAll[] = {
      {"hyperbus", "hosts over QUIC on a bad network: every request ends once, in time, and nothing is left behind",
       run_hyperbus},
      {"cluster", "whole clusters under every fault: one history for all, nothing acknowledged is lost, all heals",
       run_cluster, run_cluster_with},
      {"membership", "SWIM members under faults: every crash is known in time, no healthy member dies, all ends well",
       run_membership},
      {"session", "two sessions over a bad stream: every request ends once, nothing altered is delivered", run_session},
  };
  return kAll;
}

}  // namespace holo::sim
