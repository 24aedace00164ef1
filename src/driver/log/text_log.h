// The log of a process, one record a line: to standard error or a file of bounded size, as text or as JSON.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/log.h"
#include "base/result.h"

namespace holo::driver {

enum class LogFormat : std::uint8_t {
  text,  ///< 2026-11-21T03:20:26.123Z info  bus: connected to node ...
  json,  ///< {"time":"...","level":"info","area":"bus","text":"connected to node ..."}
};

struct TextLogOptions {
  std::string file;  ///< Appended to; empty: standard error.
  LogLevel level = LogLevel::info;
  LogFormat format = LogFormat::text;
  std::size_t max_file_bytes = 16 << 20;  ///< Then agent.log becomes agent.1.log, and so on.
  std::size_t old_files = 3;              ///< Kept beside it; the oldest goes.
};

/// Directs all log records of this process there, from any thread. Every record is one line, whatever its text holds,
/// and is flushed at once. A disk that fills later loses records, and never the process. Errors: `io_error` (the file
/// cannot be opened). Thread: before others start.
Status install_text_log(const TextLogOptions& options);

/// "debug", "info", "warn", "error". Error: `invalid_argument`.
Result<LogLevel> parse_log_level(std::string_view name);
const char* log_level_name(LogLevel level);

/// One record as it is written, without its newline. `time` is the text of a time.
std::string format_log_record(LogFormat format, std::string_view time, LogLevel level, std::string_view area,
                              std::string_view text);

}  // namespace holo::driver
