// The log call. What happens to a record (text, colour, file, level) is decided by whoever installs the sink.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/strings.h"

namespace holo {

enum class LogLevel : std::uint8_t { debug, info, warn, error };

/// Receives every record at or above the level. Called from any thread. `area` is the module ("hyperbus", "memory",
/// ...).
using LogSink = std::function<void(LogLevel, std::string_view area, std::string_view text)>;

/// Replaces the process-wide sink. Thread: call once, before threads start. Without a sink, warnings and errors go to
/// stderr.
void set_log_sink(LogSink sink, LogLevel level);
bool log_enabled(LogLevel level) noexcept;
void log_text(LogLevel level, std::string_view area, std::string_view text);

/// log(LogLevel::info, "control", "node ", id, " is dead"): builds the text only when the level is on.
template <class... Parts>
void log(LogLevel level, std::string_view area, const Parts&... parts) {
  if (log_enabled(level)) log_text(level, area, str(parts...));
}
template <class... Parts>
void log_debug(std::string_view area, const Parts&... parts) {
  log(LogLevel::debug, area, parts...);
}
template <class... Parts>
void log_info(std::string_view area, const Parts&... parts) {
  log(LogLevel::info, area, parts...);
}
template <class... Parts>
void log_warn(std::string_view area, const Parts&... parts) {
  log(LogLevel::warn, area, parts...);
}
template <class... Parts>
void log_error(std::string_view area, const Parts&... parts) {
  log(LogLevel::error, area, parts...);
}

}  // namespace holo
