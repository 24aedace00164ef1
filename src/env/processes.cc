#include "env/processes.h"

#include <string.h>

#include "base/strings.h"

namespace holo::env {

std::string ExitStatus::to_string() const {
  if (signal == 0) return str("exit code ", code);
  const char* name = ::sigdescr_np(signal);  // Unlike strsignal, of any thread.
  return str("signal ", signal, " (", name ? name : "unknown", ")");
}

}  // namespace holo::env
