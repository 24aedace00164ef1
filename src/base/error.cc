#include <holo/error.hpp>

#include <cstdio>
#include <cstdlib>

#include "base/assert.h"

namespace holo {

const char* errc_name(Errc code) noexcept {
  switch (code) {
    case Errc::invalid_argument: return "invalid_argument";
    case Errc::not_found: return "not_found";
    case Errc::already_exists: return "already_exists";
    case Errc::permission_denied: return "permission_denied";
    case Errc::out_of_memory: return "out_of_memory";
    case Errc::over_limit: return "over_limit";
    case Errc::overloaded: return "overloaded";
    case Errc::deadline_exceeded: return "deadline_exceeded";
    case Errc::cancelled: return "cancelled";
    case Errc::unavailable: return "unavailable";
    case Errc::wrong_key: return "wrong_key";
    case Errc::wrong_version: return "wrong_version";
    case Errc::malformed: return "malformed";
    case Errc::corrupt: return "corrupt";
    case Errc::stale_epoch: return "stale_epoch";
    case Errc::not_leader: return "not_leader";
    case Errc::no_quorum: return "no_quorum";
    case Errc::under_replicated: return "under_replicated";
    case Errc::write_conflict: return "write_conflict";
    case Errc::page_lost: return "page_lost";
    case Errc::snapshot_too_old: return "snapshot_too_old";
    case Errc::task_failed: return "task_failed";
    case Errc::wrong_build: return "wrong_build";
    case Errc::refused: return "refused";
    case Errc::unsupported: return "unsupported";
    case Errc::io_error: return "io_error";
    case Errc::internal: return "internal";
  }
  return "unknown";
}

void assert_failed(const char* condition, const char* file, int line, const char* why) noexcept {
  std::fprintf(stderr, "holo: internal error: %s:%d: %s %s\n", file, line, condition, why);
  std::abort();
}

}  // namespace holo
