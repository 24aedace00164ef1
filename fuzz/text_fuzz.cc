// What people and their environment write: addresses, sizes, rates, keys, names. One answer each, and what has a text
// of its own reads back as it was.
#include "cmd/holo/config.h"
#include "cmd/holo/state_dir.h"
#include "cmd/holo/units.h"
#include "driver/log/text_log.h"
#include "driver/posix/address.h"
#include "fuzzing.h"

namespace {

using namespace holo;
using fuzz::expect;

void host_port(std::string_view text) {
  const auto parsed = driver::parse_host_port(std::string(text));
  if (parsed) expect(!parsed->host.empty());
}
void address(std::string_view text) {
  (void)cmd::split_address(text);
  if (const auto full = cmd::with_port(text, 8443)) expect(cmd::with_port(*full, 1) == *full);
}
void size(std::string_view text) {
  if (const auto bytes = cmd::parse_size(text)) (void)cmd::format_size(*bytes);
}
void rate(std::string_view text) {
  if (const auto bits = cmd::parse_rate(text)) (void)cmd::format_rate(*bits);
}
void count(std::string_view text) { (void)cmd::parse_count(text); }
void key(std::string_view text) {
  if (const auto secret = cmd::parse_key(text)) expect(cmd::parse_key(cmd::key_text(*secret)) == *secret);
}
void key_id(std::string_view text) { (void)cmd::parse_key_id(text); }
void level(std::string_view text) {
  if (const auto parsed = driver::parse_log_level(text)) expect(driver::log_level_name(*parsed) == text);
}
void name(std::string_view text) {
  if (cmd::check_name("name", text)) expect(!text.empty() && text.size() <= cmd::kMaxNodeName);
}
/// Whatever is logged stays one line.
void log_record(std::string_view text) {
  const std::string line =
      driver::format_log_record(driver::LogFormat::json, "2026-11-21T03:20:26.123Z", LogLevel::info, "bus", text);
  expect(std::ranges::count(line, '\n') <= 1);
}

using Reader = void (*)(std::string_view);
constexpr Reader kReaders[] = {host_port, address, size, rate, count, key, key_id, level, name, log_record};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  if (size == 0) return 0;
  kReaders[bytes[0] % std::size(kReaders)](as_text(std::as_bytes(std::span(bytes + 1, size - 1))));
  return 0;
}
