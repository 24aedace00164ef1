#include "base/log.h"

#include <atomic>
#include <cstdio>

namespace holo {
namespace {

LogSink& sink() {
  static LogSink s;
  return s;
}
std::atomic<LogLevel> g_level{LogLevel::warn};

}  // namespace

void set_log_sink(LogSink new_sink, LogLevel level) {
  sink() = std::move(new_sink);
  g_level = level;
}

bool log_enabled(LogLevel level) noexcept { return level >= g_level.load(std::memory_order_relaxed); }

void log_text(LogLevel level, std::string_view area, std::string_view text) {
  if (sink()) return sink()(level, area, text);
  std::fprintf(stderr, "holo: %.*s: %.*s\n", static_cast<int>(area.size()), area.data(), static_cast<int>(text.size()),
               text.data());
}

}  // namespace holo
