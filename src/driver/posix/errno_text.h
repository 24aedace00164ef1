// What the operating system said, as an Error.
#pragma once

#include <string>

#include "base/result.h"

namespace holo::driver {

/// "Permission denied" for EACCES. Thread: any.
std::string errno_text(int error);

/// `what`: ": " and errno's text, with the code that fits (ENOENT not_found, EACCES permission_denied, ...; else
/// io_error).
std::unexpected<Error> fail_errno(int error, std::string what, std::string hint = {});

}  // namespace holo::driver
