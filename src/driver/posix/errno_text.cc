#include "driver/posix/errno_text.h"

#include <cerrno>
#include <cstring>

#include "base/strings.h"

namespace holo::driver {

std::string errno_text(int error) {
  char buffer[256];
  return ::strerror_r(error, buffer, sizeof buffer);  // The GNU variant returns the text.
}

std::unexpected<Error> fail_errno(int error, std::string what, std::string hint) {
  Errc code = Errc::io_error;
  switch (error) {
    case ENOENT:
    case ENOTDIR: code = Errc::not_found; break;
    case EACCES:
    case EPERM: code = Errc::permission_denied; break;
    case EEXIST: code = Errc::already_exists; break;
    case ENOEXEC: code = Errc::unsupported; break;
    default: break;
  }
  if (hint.empty() && (error == ENOSPC || error == EDQUOT)) hint = "free some space on that file system";
  if (hint.empty() && (error == EMFILE || error == ENFILE)) hint = "raise the limit on open files (ulimit -n)";
  return fail(code, str(what, ": ", errno_text(error)), std::move(hint));
}

}  // namespace holo::driver
