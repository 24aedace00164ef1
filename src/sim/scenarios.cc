#include "sim/session_scenario.h"

namespace holo::sim {

std::span<const Scenario> scenarios() {
  static constexpr Scenario kAll[] = {
      {"session", "two sessions over a bad stream: every request ends once, nothing altered is delivered", run_session},
  };
  return kAll;
}

}  // namespace holo::sim
