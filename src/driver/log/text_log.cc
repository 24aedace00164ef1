#include "driver/log/text_log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <algorithm>
#include <memory>

#include "base/strings.h"

namespace holo::driver {
namespace {

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return spdlog::level::debug;
    case LogLevel::info: return spdlog::level::info;
    case LogLevel::warn: return spdlog::level::warn;
    case LogLevel::error: break;
  }
  return spdlog::level::err;
}

}  // namespace

Status install_text_log(const TextLogOptions& options) {
  std::shared_ptr<spdlog::sinks::sink> sink;
  try {
    if (options.file.empty()) {
      sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
    } else {
      sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file, false);
    }
  } catch (const spdlog::spdlog_ex& e) {
    return fail(Errc::io_error, str("cannot write the log: ", e.what()));
  }
  auto logger = std::make_shared<spdlog::logger>("holo", std::move(sink));
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %^%-5!l%$ %v", spdlog::pattern_time_type::utc);
  logger->set_level(spdlog_level(options.level));
  logger->flush_on(spdlog::level::info);  // A crash must not take the last lines with it.
  set_log_sink(
      [logger](LogLevel level, std::string_view area, std::string_view text) {
        std::string line = str(area, ": ", text);
        std::ranges::replace_if(line, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, ' ');
        logger->log(spdlog_level(level), "{}", line);
      },
      options.level);
  return {};
}

}  // namespace holo::driver
