#include "driver/log/text_log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <memory>

#include "base/strings.h"
#include "base/utf8.h"

namespace holo::driver {
namespace {

std::string now_text() {
  const auto now = std::chrono::time_point_cast<std::chrono::milliseconds>(std::chrono::system_clock::now());
  const std::time_t second = std::chrono::system_clock::to_time_t(now);
  std::tm utc{};
  ::gmtime_r(&second, &utc);
  std::array<char, 32> date{};
  std::array<char, 48> out{};
  std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(out.data(), out.size(), "%s.%03dZ", date.data(),
                static_cast<int>(now.time_since_epoch().count() % 1000));
  return out.data();
}

/// Control bytes as escapes: what a peer or a user put into a text cannot begin a record of its own, or steer a
/// terminal. In JSON also quotes and backslashes.
void append_escaped(std::string& out, std::string_view text, LogFormat format) {
  static constexpr char kHex[] = "0123456789abcdef";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == '\n') {
      out += "\\n";
    } else if (byte == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      out += format == LogFormat::json ? "\\u00" : "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else if (format == LogFormat::json && (byte == '"' || byte == '\\')) {
      out += '\\';
      out += c;
    } else {
      out += c;
    }
  }
}

spdlog::sink_ptr make_sink(const TextLogOptions& options) {
  if (options.file.empty()) return std::make_shared<spdlog::sinks::stderr_sink_mt>();
  return std::make_shared<spdlog::sinks::rotating_file_sink_mt>(options.file, options.max_file_bytes,
                                                                options.old_files);
}

}  // namespace

const char* log_level_name(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return "debug";
    case LogLevel::info: return "info";
    case LogLevel::warn: return "warn";
    case LogLevel::error: return "error";
  }
  return "?";
}

Result<LogLevel> parse_log_level(std::string_view name) {
  for (const LogLevel level : {LogLevel::debug, LogLevel::info, LogLevel::warn, LogLevel::error}) {
    if (name == log_level_name(level)) return level;
  }
  return fail(Errc::invalid_argument, str("\"", name, "\" is no log level"), "write debug, info, warn or error");
}

std::string format_log_record(LogFormat format, std::string_view time, LogLevel level, std::string_view area,
                              std::string_view text) {
  std::string out;
  out.reserve(time.size() + area.size() + text.size() + 48);
  const std::string_view name = log_level_name(level);
  if (format == LogFormat::text) {
    out.append(time).append(" ").append(name).append(6 - name.size(), ' ').append(area).append(": ");
    append_escaped(out, text, format);
    return out;
  }
  out.append(R"({"time":")").append(time).append(R"(","level":")").append(name).append(R"(","area":")");
  append_escaped(out, to_utf8(area), format);
  out.append(R"(","text":")");
  append_escaped(out, to_utf8(text), format);
  out.append("\"}");
  return out;
}

Status install_text_log(const TextLogOptions& options) {
  spdlog::sink_ptr sink;
  try {
    sink = make_sink(options);
  } catch (const spdlog::spdlog_ex& e) {
    return fail(Errc::io_error, str("cannot log to ", options.file, ": ", e.what()));
  }
  auto logger = std::make_shared<spdlog::logger>("holo", std::move(sink));
  logger->set_pattern("%v");
  logger->set_level(spdlog::level::trace);  // base/log decides.
  logger->flush_on(spdlog::level::trace);
  logger->set_error_handler([](const std::string&) {});  // A full disk: nothing can be said, and nothing must break.
  const LogFormat format = options.format;
  set_log_sink(
      [logger, format](LogLevel level, std::string_view area, std::string_view text) {
        const std::string record = format_log_record(format, now_text(), level, area, text);
        logger->log(spdlog::level::info, spdlog::string_view_t(record.data(), record.size()));
      },
      options.level);
  return {};
}

}  // namespace holo::driver
