// An agent's settings: a flag wins over the environment, that over the TOML file, that over the default; and each value
// knows where it came from.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/time.h"
#include "cmd/holo/outcome.h"
#include "core/control/node_info.h"
#include "core/hyperbus/trust.h"

namespace holo::cmd {

inline constexpr std::uint16_t kDefaultPort = 8443;
inline constexpr std::size_t kMaxConfigBytes = 1 << 20;

/// The settings, checked.
struct AgentConfig {
  std::string state_dir;               ///< Absolute.
  std::string listen;                  ///< "address:port"; port 0 picks a free one.
  std::vector<std::string> advertise;  ///< "host:port" that others dial, best first; none: derived from `listen`.
  std::string name;                    ///< The node's name, at most kMaxNodeName of [A-Za-z0-9._-].
  std::uint64_t memory_bytes = 0;
  std::uint64_t move_rate = 0;  ///< Bytes a second; 0: no limit.
  unsigned workers = 0;         ///< Worker processes per program.
  std::string userfaultfd;      ///< "auto", "user" or "off".
  std::string carrier;          ///< "auto", "quic" or "tcp".
  std::size_t mtu = 0;          ///< UDP payload that passes on every path; 0: discovered.
  /// How long the event loop looks for more before it sleeps, where more mostly comes soon; none: as the machine
  /// allows.
  std::optional<Duration> poll;
  hyperbus::TrustMode trust = hyperbus::TrustMode::psk;
  hyperbus::KeyExchange key_exchange = hyperbus::KeyExchange::hybrid;
  control::NodePlace place;  ///< Checked; the host is never empty.
  bool witness = false;
  std::string control_store;                   ///< "raft" or "etcd".
  std::vector<std::string> control_endpoints;  ///< Of etcd.
  std::string control_prefix, control_ca, control_certificate, control_key;
  std::string log_level;  ///< "debug", "info", "warn" or "error".
  std::string log_file;   ///< Empty: standard error.
  std::string qlog;       ///< Absolute; empty: none.
};

inline constexpr std::size_t kMaxNodeName = 63;
inline constexpr std::size_t kMaxAdvertised = 8;
inline constexpr std::uint64_t kMinMemoryBytes = 16 << 20;

struct Setting {
  std::string key, value;
  enum class Origin : std::uint8_t { default_value, file, environment, flag } origin = Origin::default_value;
  std::string where;  ///< "--memory", "HOLO_MEMORY", the file's path, or "default".
};

/// One row per key: how it is called everywhere, and what it is for.
struct SettingInfo {
  const char* key;
  const char* flag;
  const char* variable;
  const char* help;
  /// How the flag is given: with one value; several times, joined by commas; or without a value, for "true".
  enum class Shape : std::uint8_t { value, list, present } shape = Shape::value;
};
const std::vector<SettingInfo>& setting_table();

/// What the command line gave: key -> text. `config_file` is --config.
struct ConfigSources {
  std::map<std::string, std::string> flags;
  std::string config_file;
};

struct LoadedConfig {
  AgentConfig config;
  std::vector<Setting> settings;  ///< In the table's order.
  std::string file;               ///< The file that was read; empty when there was none.
};

/// Reads and checks all of it. The file is --config, else HOLO_CONFIG, else config.toml in the state directory (if
/// there is one), else config.toml in $XDG_CONFIG_HOME/holo or, for a service, /etc/holo. Failures: a value that does
/// not parse (usage when it is a flag's), an unreadable or half-written file, an unknown key, contradictions.
Outcome<LoadedConfig> load_config(const ConfigSources& sources);

/// "holo config show": one JSON object, {"file":..., "settings":[{"key","value","origin","where"}]}.
std::string config_json(const LoadedConfig& loaded);

/// Writes `values` as a TOML file (replacing it). Keys must be in the table. Errors: those of write_file_atomically.
Status write_config_file(const std::string& path, const std::map<std::string, std::string>& values);

/// `invalid_argument` unless 1..kMaxNodeName characters of [A-Za-z0-9._-] that begin with a letter or digit.
Status check_name(std::string_view what, std::string_view name);

}  // namespace holo::cmd
