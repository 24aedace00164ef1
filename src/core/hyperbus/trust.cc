#include "core/hyperbus/trust.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>

#include "base/strings.h"

namespace holo::hyperbus {
namespace {

constexpr std::string_view kHeader =
    "# Keys of other nodes: id, key, when it was seen first, where. Written by holo; holo trust list shows it.\n";
constexpr std::size_t kMaxPinAddress = 300;

TrustDecision refuse(RefusalKind kind, std::string message, std::string hint) {
  return std::unexpected(
      TrustRefusal{.kind = kind,
                   .error = {.code = Errc::permission_denied, .message = std::move(message), .hint = std::move(hint)}});
}

template <class T>
bool parse_number(std::string_view text, T& out, int base = 10) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out, base);
  return error == std::errc{} && end == text.data() + text.size();
}

/// What could break a line or a terminal is left out.
std::string printable(std::string_view address) {
  std::string out;
  for (const char c : address.substr(0, kMaxPinAddress)) {
    if (c > 0x20 && c < 0x7f) out += c;
  }
  return out;
}

Result<Pin> parse_pin(std::string_view line) {
  std::array<std::string_view, 4> fields;
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const std::size_t space = line.find(' ');
    if ((space == std::string_view::npos) != (i == 3)) return fail(Errc::corrupt, "not four words");
    fields[i] = line.substr(0, space);
    line.remove_prefix(std::min(line.size(), space == std::string_view::npos ? line.size() : space + 1));
  }
  Pin pin;
  pin.confirmed = true;
  if (fields[0].size() != 16 || !parse_number(fields[0], pin.node.value, 16) || !pin.node) {
    return fail(Errc::corrupt, "no node id");
  }
  HOLO_ASSIGN(key, parse_public_key(fields[1]));
  pin.key = key;
  HOLO_ASSIGN(since, parse_utc(fields[2]));
  pin.since = since;
  if (fields[3] != "-") pin.address = fields[3];
  if (fields[3].empty() || printable(pin.address) != pin.address) return fail(Errc::corrupt, "no address");
  return pin;
}

}  // namespace

std::string_view suite_name(Suite suite) {
  switch (suite) {
    case Suite::hybrid_psk: return "hybrid with a cluster key";
    case Suite::hybrid: return "hybrid without a cluster key";
    case Suite::classical_psk: return "classical-only with a cluster key";
    case Suite::classical: return "classical-only without a cluster key";
  }
  return "unknown";
}

std::string_view trust_mode_name(TrustMode mode) {
  switch (mode) {
    case TrustMode::psk: return "psk";
    case TrustMode::tofu: return "tofu";
    case TrustMode::roots: return "roots";
  }
  return "unknown";
}

Result<TrustMode> parse_trust_mode(std::string_view name) {
  for (const TrustMode mode : {TrustMode::psk, TrustMode::tofu, TrustMode::roots}) {
    if (name == trust_mode_name(mode)) return mode;
  }
  return fail(Errc::invalid_argument, str("there is no trust mode \"", name, "\""), "psk, tofu or roots");
}

Suite suite_of(TrustMode mode, KeyExchange exchange) {
  const bool classical = exchange == KeyExchange::classical_only;
  if (mode == TrustMode::psk) return classical ? Suite::classical_psk : Suite::hybrid_psk;
  return classical ? Suite::classical : Suite::hybrid;
}

// ---- Deciding

TrustDecision TrustBook::judge(const PresentedIdentity& who, WallTime now) {
  if (revoked_.contains(who.node)) {
    return refuse(RefusalKind::revoked, str("node ", who.node, " was revoked"), "holo trust list shows who was");
  }
  if (mode_ == TrustMode::roots) {
    if (!root_) {
      return refuse(RefusalKind::unknown_identity, "this node knows no root key", "holo identity install CERTIFICATE");
    }
    if (!who.certificate) {
      return refuse(RefusalKind::unknown_identity, str("node ", who.node, " shows no certificate of this cluster"),
                    "holo identity request there, holo identity sign where the root key is");
    }
    if (auto good = verify_certificate(*who.certificate, *root_, who.node, who.chain.first, now); !good) {
      return std::unexpected(TrustRefusal{.kind = RefusalKind::unknown_identity, .error = std::move(good).error()});
    }
  }
  return judge_pin(who, now);
}

TrustDecision TrustBook::judge_pin(const PresentedIdentity& who, WallTime now) {
  const auto known = pins_.find(who.node);
  if (known == pins_.end()) {
    if (mode_ != TrustMode::tofu && who.chain.links.empty()) return {};
    if (confirmed_ >= kMaxPins) {
      return refuse(RefusalKind::unknown_identity,
                    str("node ", who.node, " is not pinned, and there are ", kMaxPins, " pins already"),
                    "holo trust forget those that are gone");
    }
    if (pins_.size() - confirmed_ >= kMaxUnconfirmedPins) forget_oldest_stranger();
    pins_.emplace(who.node, Pin{.node = who.node, .key = who.chain.current(), .since = now, .address = {}});
    return {};
  }
  Pin& pin = known->second;
  const auto position = who.chain.position_of(pin.key);
  if (!position) {
    return refuse(RefusalKind::changed_key,
                  str("node ", who.node, " shows another key than the one pinned at ", utc_text(pin.since),
                      ", and no signatures that lead from that one to it"),
                  "someone else pretends to be it, or shows a key it has given up; if neither, holo trust forget it");
  }
  if (*position == who.chain.links.size()) return {};
  pin.key = who.chain.current();
  changed_ = changed_ || pin.confirmed;
  return {};
}

void TrustBook::forget_oldest_stranger() {
  auto oldest = pins_.end();
  for (auto it = pins_.begin(); it != pins_.end(); ++it) {
    if (it->second.confirmed) continue;
    if (oldest == pins_.end() || it->second.since < oldest->second.since) oldest = it;
  }
  if (oldest != pins_.end()) pins_.erase(oldest);
}

bool TrustBook::confirm(NodeId node, std::string_view address) {
  const auto it = pins_.find(node);
  if (it == pins_.end() || it->second.confirmed || confirmed_ >= kMaxPins) return false;
  it->second.confirmed = true;
  it->second.address = printable(address);
  ++confirmed_;
  changed_ = true;
  return true;
}

bool TrustBook::forget(NodeId node) {
  const auto it = pins_.find(node);
  if (it == pins_.end()) return false;
  if (it->second.confirmed) {
    --confirmed_;
    changed_ = true;
  }
  pins_.erase(it);
  return true;
}

// ---- The file

std::string TrustBook::pins_text() const {
  std::string out(kHeader);
  for (const auto& [node, pin] : pins_) {
    if (!pin.confirmed) continue;
    out += str(node, ' ', public_key_text(pin.key), ' ', utc_text(pin.since), ' ',
               pin.address.empty() ? std::string("-") : pin.address, '\n');
  }
  return out;
}

Status TrustBook::load_pins(std::string_view text) {
  std::map<NodeId, Pin> pins;
  if (!text.empty() && text.back() != '\n') return fail(Errc::corrupt, "its last line is cut short");
  for (std::size_t line = 1; !text.empty(); ++line) {
    const std::size_t end = text.find('\n');
    const std::string_view one = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (one.empty() || one.front() == '#') continue;
    auto pin = parse_pin(one);
    if (!pin) return fail(Errc::corrupt, str("line ", line, " is damaged: ", pin.error().message));
    const NodeId node = pin->node;
    if (!pins.emplace(node, std::move(*pin)).second) {
      return fail(Errc::corrupt, str("line ", line, " is damaged: node ", node, " stands there twice"));
    }
    if (pins.size() > kMaxPins) return fail(Errc::corrupt, str("it has more than ", kMaxPins, " lines"));
  }
  pins_ = std::move(pins);
  confirmed_ = pins_.size();
  return {};
}

// ---- Times

std::string utc_text(WallTime t) {
  constexpr std::int64_t kLast = 253'402'300'799'000;  // The year 9999 ends.
  const std::chrono::sys_seconds second{std::chrono::seconds(std::clamp<std::int64_t>(t.ms, 0, kLast) / 1000)};
  const auto day = std::chrono::floor<std::chrono::days>(second);
  const std::chrono::year_month_day date(day);
  const std::chrono::hh_mm_ss time(second - day);
  const auto two = [](auto v) {
    const auto n = static_cast<unsigned>(v);
    return str(n < 10 ? "0" : "", n);
  };
  return str(static_cast<int>(date.year()), '-', two(static_cast<unsigned>(date.month())), '-',
             two(static_cast<unsigned>(date.day())), 'T', two(time.hours().count()), ':', two(time.minutes().count()),
             ':', two(time.seconds().count()), 'Z');
}

Result<WallTime> parse_utc(std::string_view text) {
  int year_n = 0;
  unsigned month_n = 0, day_n = 0, hour = 0, minute = 0, second = 0;
  const bool shaped = text.size() == 20 && text[4] == '-' && text[7] == '-' && text[10] == 'T' && text[13] == ':' &&
                      text[16] == ':' && text[19] == 'Z';
  if (!shaped || !parse_number(text.substr(0, 4), year_n) || !parse_number(text.substr(5, 2), month_n) ||
      !parse_number(text.substr(8, 2), day_n) || !parse_number(text.substr(11, 2), hour) ||
      !parse_number(text.substr(14, 2), minute) || !parse_number(text.substr(17, 2), second)) {
    return fail(Errc::malformed, "not a time");
  }
  const std::chrono::year_month_day date{std::chrono::year(year_n), std::chrono::month(month_n),
                                         std::chrono::day(day_n)};
  if (!date.ok() || year_n < 1970 || hour > 23 || minute > 59 || second > 59) {
    return fail(Errc::malformed, "not a time");
  }
  const std::int64_t days = std::chrono::sys_days(date).time_since_epoch().count();
  return WallTime{((days * 24 + hour) * 60 + minute) * 60'000 + second * 1000};
}

}  // namespace holo::hyperbus
