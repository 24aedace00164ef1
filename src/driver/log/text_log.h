// The log of a process as lines of text: time, level, area, text.
#pragma once

#include <string>

#include "base/log.h"
#include "base/result.h"

namespace holo::driver {

struct TextLogOptions {
  std::string file;  ///< Appended to; empty: standard error.
  LogLevel level = LogLevel::info;
};

/// Sends every record of this process there. Control characters in records are replaced: one record is one line.
/// Thread: once, before threads start. Errors: `io_error`, `permission_denied` (the file).
Status install_text_log(const TextLogOptions& options);

}  // namespace holo::driver
