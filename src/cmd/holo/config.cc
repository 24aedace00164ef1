#include "cmd/holo/config.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include <toml++/toml.h>

#include "base/limits.h"
#include "base/strings.h"
#include "cmd/holo/machine.h"
#include "cmd/holo/state_dir.h"
#include "cmd/holo/units.h"
#include "driver/etcd/client.h"
#include "driver/posix/files.h"

namespace holo::cmd {
namespace {

using Origin = Setting::Origin;
constexpr std::uint64_t kMaxPollMicros = 1000;
// IP packets: from what QUIC needs at least, to what UDP can carry; less the headers of IPv6 and UDP.
constexpr std::uint64_t kMinMtu = 1280, kMaxMtu = 65'535, kUdpHeaders = 48;

std::string host_name() {
  char text[256] = {};
  if (::gethostname(text, sizeof text - 1) != 0) return "node";
  std::string name(text);
  name = name.substr(0, name.find('.'));
  return check_name("name", name) ? name : "node";
}

std::string default_value(std::string_view key) {
  if (key == "state_dir") return driver::default_state_directory().value_or("");
  if (key == "listen") return str("0.0.0.0:", kDefaultPort);
  if (key == "name") return host_name();
  if (key == "memory") return str(memory_bytes() / 2 / limits::kMaxPageBytes * limits::kMaxPageBytes);
  if (key == "move_rate") return "0";
  if (key == "workers") return str(core_count());
  if (key == "userfaultfd") return "auto";
  if (key == "carrier") return "auto";
  if (key == "mtu") return "0";
  if (key == "poll") return "auto";
  if (key == "host_label") return machine_label();
  if (key == "witness") return "false";
  if (key == "control_store") return "raft";
  if (key == "control_prefix") return "holo";
  if (key == "trust") return std::string(hyperbus::trust_mode_name(hyperbus::TrustMode::psk));
  if (key == "classical_only") return "false";
  if (key == "log_level") return "info";
  return "";
}

Status one_of(const Setting& s, std::initializer_list<const char*> allowed) {
  std::string list;
  for (const auto* a : allowed) {
    if (s.value == a) return {};
    list += str(list.empty() ? "" : ", ", a);
  }
  return fail(Errc::invalid_argument, str(s.where, ": ", s.key, " cannot be \"", s.value, "\""), "one of " + list);
}

/// Puts the setting's place in front of what is wrong with it.
template <class T>
Result<T> at(const Setting& s, Result<T> result) {
  if (!result) result.error().message = str(s.where, ": ", s.key, ": ", result.error().message);
  return result;
}

Status advertise(const Setting& s, AgentConfig& c) {
  c.advertise.clear();
  std::string_view rest = s.value;
  while (!rest.empty()) {
    const std::size_t comma = rest.find(',');
    const auto one = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    HOLO_ASSIGN(full, at(s, with_port(one, kDefaultPort)));
    const auto host = split_address(full)->host;
    if (host == "0.0.0.0" || host == "::") {
      return fail(Errc::invalid_argument, str(s.where, ": advertise: nobody can dial ", host),
                  "give this machine's own address");
    }
    if (comma != std::string_view::npos && rest.empty()) {
      return fail(Errc::invalid_argument, str(s.where, ": advertise: \"", s.value, "\" ends with a comma"));
    }
    c.advertise.push_back(std::move(full));
  }
  if (c.advertise.size() <= kMaxAdvertised) return {};
  return fail(Errc::over_limit, str(s.where, ": advertise: more than ", kMaxAdvertised, " addresses"));
}

Status labels(const Setting& s, AgentConfig& c) {
  control::NodePlace place;
  for (std::string_view rest = s.value; !rest.empty();) {
    const std::size_t comma = rest.find(',');
    const auto one = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    const std::size_t equals = one.find('=');
    if (equals == std::string_view::npos) {
      return fail(Errc::invalid_argument, str(s.where, ": labels: \"", one, "\" is not KEY=VALUE"));
    }
    place.labels.push_back({.key = std::string(one.substr(0, equals)), .value = std::string(one.substr(equals + 1))});
  }
  std::ranges::sort(place.labels, {}, &control::NodeLabel::key);
  if (const auto ok = control::check_place(place); !ok)
    return fail(ok.error().code, str(s.where, ": labels: ", ok.error().message), ok.error().hint);
  c.place.labels = std::move(place.labels);
  return {};
}

Status place_text(const Setting& s, std::string_view what, std::string& out) {
  if (!s.value.empty()) {
    if (const auto ok = control::check_label_text(what, s.value); !ok)
      return fail(ok.error().code, str(s.where, ": ", s.key, ": ", ok.error().message), ok.error().hint);
  }
  out = s.value;
  return {};
}

Status apply(const Setting& s, AgentConfig& c) {
  if (s.key == "state_dir") {
    if (s.value.empty())
      return fail(Errc::invalid_argument, "there is no home directory for the state", "give --state-dir");
    std::error_code ignored;
    c.state_dir = std::filesystem::absolute(s.value, ignored).lexically_normal().string();
    while (c.state_dir.size() > 1 && c.state_dir.back() == '/') c.state_dir.pop_back();
  } else if (s.key == "listen") {
    HOLO_TRY(at(s, split_address(s.value)));
    c.listen = s.value;
  } else if (s.key == "advertise") {
    return advertise(s, c);
  } else if (s.key == "name") {
    HOLO_TRY(at(s, check_name("a node's name", s.value)));
    c.name = s.value;
  } else if (s.key == "memory") {
    HOLO_ASSIGN(bytes, at(s, parse_size(s.value)));
    if (bytes < kMinMemoryBytes) {
      return fail(Errc::invalid_argument, str(s.where, ": memory: ", format_size(bytes), " is too little"),
                  str("at least ", format_size(kMinMemoryBytes)));
    }
    if (const auto all = memory_bytes(); all && bytes > all) {
      return fail(Errc::invalid_argument, str(s.where, ": memory: ", format_size(bytes), " is more than the ",
                                              format_size(all), " of this machine"));
    }
    c.memory_bytes = bytes;
  } else if (s.key == "move_rate") {
    HOLO_ASSIGN(bytes, at(s, parse_size(s.value)));
    c.move_rate = bytes;
  } else if (s.key == "workers") {
    HOLO_ASSIGN(count, at(s, parse_count(s.value)));
    if (count < 1 || count > 1024)
      return fail(Errc::invalid_argument, str(s.where, ": workers: ", s.value, " is not between 1 and 1024"));
    c.workers = static_cast<unsigned>(count);
  } else if (s.key == "userfaultfd") {
    HOLO_TRY(one_of(s, {"auto", "user", "off"}));
    c.userfaultfd = s.value;
  } else if (s.key == "carrier") {
    HOLO_TRY(one_of(s, {"auto", "quic", "tcp"}));
    c.carrier = s.value;
  } else if (s.key == "mtu") {
    HOLO_ASSIGN(bytes, at(s, parse_count(s.value)));
    if (bytes != 0 && (bytes < kMinMtu || bytes > kMaxMtu)) {
      return fail(Errc::invalid_argument,
                  str(s.where, ": mtu: ", s.value, " is not between ", kMinMtu, " and ", kMaxMtu),
                  "0 lets the nodes find out");
    }
    c.mtu = bytes == 0 ? 0 : bytes - kUdpHeaders;
  } else if (s.key == "poll") {
    if (s.value == "auto") return {};
    const auto micros = at(s, parse_count(s.value));
    if (!micros || *micros > kMaxPollMicros) {
      return fail(Errc::invalid_argument,
                  str(s.where, ": poll: ", s.value, " is neither \"auto\" nor between 0 and ", kMaxPollMicros));
    }
    c.poll = microseconds(static_cast<std::int64_t>(*micros));
  } else if (s.key == "zone") {
    return place_text(s, "a zone", c.place.zone);
  } else if (s.key == "host_label") {
    return place_text(s, "a host", c.place.host);
  } else if (s.key == "rack") {
    return place_text(s, "a rack", c.place.rack);
  } else if (s.key == "labels") {
    return labels(s, c);
  } else if (s.key == "witness") {
    HOLO_TRY(one_of(s, {"true", "false"}));
    c.witness = s.value == "true";
  } else if (s.key == "control_store") {
    HOLO_TRY(one_of(s, {"raft", "etcd"}));
    c.control_store = s.value;
  } else if (s.key == "control_endpoints") {
    HOLO_ASSIGN(urls, at(s, driver::etcd::parse_endpoints(s.value)));
    c.control_endpoints = std::move(urls);
  } else if (s.key == "control_prefix") {
    HOLO_TRY(at(s, control::check_label_text("a prefix", s.value)));
    c.control_prefix = s.value;
  } else if (s.key == "control_ca") {
    c.control_ca = s.value;
  } else if (s.key == "control_certificate") {
    c.control_certificate = s.value;
  } else if (s.key == "control_key") {
    c.control_key = s.value;
  } else if (s.key == "trust") {
    HOLO_ASSIGN(mode, at(s, hyperbus::parse_trust_mode(s.value)));
    c.trust = mode;
  } else if (s.key == "classical_only") {
    HOLO_TRY(one_of(s, {"true", "false"}));
    c.key_exchange = s.value == "true" ? hyperbus::KeyExchange::classical_only : hyperbus::KeyExchange::hybrid;
  } else if (s.key == "log_level") {
    HOLO_TRY(one_of(s, {"debug", "info", "warn", "error"}));
    c.log_level = s.value;
  } else if (s.key == "log_file") {
    c.log_file = s.value;
  } else if (s.key == "qlog" && !s.value.empty()) {
    std::error_code ignored;
    c.qlog = std::filesystem::absolute(s.value, ignored).lexically_normal().string();
  }
  return {};
}

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

std::string choose_file(const ConfigSources& sources, const std::string& state_dir) {
  if (!sources.config_file.empty()) return sources.config_file;
  if (const char* given = std::getenv("HOLO_CONFIG"); given && *given) return given;
  std::vector<std::string> places = {state_dir + "/config.toml"};
  const char* home = std::getenv("HOME");
  if (const char* xdg = std::getenv("XDG_CONFIG_HOME"); xdg && *xdg) {
    places.push_back(str(xdg, "/holo/config.toml"));
  } else if (home && *home) {
    places.push_back(str(home, "/.config/holo/config.toml"));
  }
  places.emplace_back("/etc/holo/config.toml");
  const auto found = std::ranges::find_if(places, exists);
  return found == places.end() ? std::string() : *found;
}

/// An array is what flags say with commas. Null: no array of texts, or no setting that has several.
std::optional<std::string> joined(const std::string& key, const toml::node& node) {
  const auto* list = node.as_array();
  if (list == nullptr || (key != "advertise" && key != "labels" && key != "control_endpoints")) return std::nullopt;
  std::string out;
  for (const auto& item : *list) {
    const auto* text = item.as_string();
    if (text == nullptr || text->get().contains(',')) return std::nullopt;
    out += out.empty() ? text->get() : str(',', text->get());
  }
  return out;
}

Result<std::map<std::string, std::string>> read_config_file(const std::string& path) {
  const auto hint = "holo config show tells what is in force";
  auto text = driver::read_text_file(path, kMaxConfigBytes);
  if (!text)
    return fail(text.error().code, str("the config file: ", text.error().message), "give another with --config");
  std::optional<toml::table> parsed;
  try {
    parsed = toml::parse(*text, path);
  } catch (const toml::parse_error& e) {
    return fail(Errc::malformed,
                str("the config file ", path, " is broken at line ", e.source().begin.line, ": ", e.description()),
                "mend or remove that line");
  }
  std::map<std::string, std::string> out;
  // control.store = "etcd" is control_store.
  toml::table flat;
  for (const auto& [key_node, node] : *parsed) {
    if (const auto* table = node.as_table()) {
      for (const auto& [inner, value] : *table) flat.insert_or_assign(str(key_node.str(), "_", inner.str()), value);
    } else {
      flat.insert_or_assign(key_node.str(), node);
    }
  }
  for (const auto& [key_node, node] : flat) {
    const std::string key(key_node.str());
    std::vector<std::string> keys;
    for (const auto& info : setting_table()) keys.emplace_back(info.key);
    if (std::ranges::find(keys, key) == keys.end()) {
      const auto meant = nearest(key, keys);
      return fail(Errc::invalid_argument, str("unknown key \"", key, "\" in the config file ", path),
                  meant.empty() ? hint : str("did you mean ", meant, "?"));
    }
    if (const auto* text_value = node.as_string()) {
      out[key] = text_value->get();
    } else if (const auto* number = node.as_integer()) {
      out[key] = std::to_string(number->get());
    } else if (const auto* choice = node.as_boolean()) {
      out[key] = choice->get() ? "true" : "false";
    } else if (auto list = joined(key, node)) {
      out[key] = std::move(*list);
    } else {
      return fail(Errc::invalid_argument,
                  str("key \"", key, "\" in the config file ", path, " must be a text, a whole number or a boolean",
                      " (labels, advertise and control.endpoints: or an array of texts without commas)"));
    }
  }
  return out;
}

}  // namespace

const std::vector<SettingInfo>& setting_table() {
  static const std::vector<SettingInfo> table = {
      {"state_dir", "--state-dir", "HOLO_STATE_DIR", "Where this node keeps its identity and its committed state"},
      {"listen", "--listen", "HOLO_LISTEN", "Address and port for other nodes; port 0 picks a free one"},
      {"advertise", "--advertise", "HOLO_ADVERTISE",
       "Address that other nodes dial, or several with commas between them, best first (default: the one listened on)"},
      {"name", "--name", "HOLO_NAME", "This node's name"},
      {"memory", "--memory", "HOLO_MEMORY", "Most memory for pages on this node, for example 8GiB"},
      {"move_rate", "--move-rate", "HOLO_MOVE_RATE",
       "Most bytes a second that this node copies to others when shards move, for example 100MiB; 0: no limit"},
      {"workers", "--workers", "HOLO_WORKERS", "Worker processes for each program"},
      {"userfaultfd", "--userfaultfd", "HOLO_USERFAULTFD",
       "auto, user (faults of user code only) or off (views are populated whole)"},
      {"carrier", "--carrier", "HOLO_CARRIER",
       "Between nodes: auto (QUIC, and TCP where UDP does not pass), quic or tcp"},
      {"mtu", "--mtu", "HOLO_MTU",
       "Size of IP packets that every path between nodes carries, if known; 0: found out (loopback's is known)"},
      {"poll", "--poll", "HOLO_POLL",
       "Microseconds to look for more before sleeping, where more mostly comes soon; auto: 50, and 0 with a CPU quota"},
      {"zone", "--zone", "HOLO_ZONE", "Where this node stands: copies and voters prefer distinct zones"},
      {"host_label", "--host-label", "HOLO_HOST_LABEL",
       "The machine it runs on, for the same reason (default: one of this machine)"},
      {"rack", "--rack", "HOLO_RACK", "The rack it stands in, for people and programs"},
      {"labels", "--label", "HOLO_LABELS", "KEY=VALUE of your own, at most 16; several times, or with commas between",
       SettingInfo::Shape::list},
      {"witness", "--witness", "HOLO_WITNESS",
       "As it joins: a node that votes, but holds no pages and runs no tasks; decides when two nodes lose each other",
       SettingInfo::Shape::present},
      {"control_store", "--control-store", "HOLO_CONTROL_STORE",
       "Who keeps the log of the control state: raft (the agents themselves) or etcd (one that runs already)"},
      {"control_endpoints", "--control-endpoints", "HOLO_CONTROL_ENDPOINTS",
       "Of that etcd: http://HOST:2379, or several with commas between"},
      {"control_prefix", "--control-prefix", "HOLO_CONTROL_PREFIX",
       "In that etcd everything lies under holo/PREFIX/; one for each cluster"},
      {"control_ca", "--control-ca", "HOLO_CONTROL_CA",
       "File with the certificates to believe of an etcd behind https"},
      {"control_certificate", "--control-certificate", "HOLO_CONTROL_CERTIFICATE",
       "File with the certificate to show to that etcd"},
      {"control_key", "--control-key", "HOLO_CONTROL_KEY", "File with the key of that certificate"},
      {"trust", "--trust", "HOLO_TRUST",
       "Whom to let in: psk (the cluster key), tofu (first key seen) or roots (signed)"},
      {"classical_only", "--classical-only", "HOLO_CLASSICAL_ONLY",
       "true: handshakes without ML-KEM, only with nodes set so as well"},
      {"log_level", "--log-level", "HOLO_LOG_LEVEL", "debug, info, warn or error"},
      {"log_file", "--log-file", "HOLO_LOG_FILE", "Log to this file instead of standard error"},
      {"qlog", "--qlog", "HOLO_QLOG", "A directory for a qlog of each QUIC connection, to look at with qvis"},
  };
  return table;
}

Outcome<LoadedConfig> load_config(const ConfigSources& sources) {
  const auto gather = [&](const SettingInfo& info, const std::map<std::string, std::string>& file,
                          const std::string& path) {
    Setting s{info.key, default_value(info.key), Origin::default_value, "default"};
    if (const auto it = file.find(info.key); it != file.end()) s = {info.key, it->second, Origin::file, path};
    if (const char* v = std::getenv(info.variable); v && *v) s = {info.key, v, Origin::environment, info.variable};
    if (const auto it = sources.flags.find(info.key); it != sources.flags.end())
      s = {info.key, it->second, Origin::flag, info.flag};
    return s;
  };
  const auto checked = [](const Setting& s, AgentConfig& c) -> Outcome<void> {
    if (auto status = apply(s, c); !status) {
      return std::unexpected(Failure(status.error(), s.origin == Origin::flag ? kUsage : kFailed));
    }
    return {};
  };

  LoadedConfig out;
  // The state directory says where the file is, so it is settled without the file first.
  AgentConfig before;
  HOLO_TRY(checked(gather(setting_table().front(), {}, ""), before));
  out.file = choose_file(sources, before.state_dir);
  std::map<std::string, std::string> file;
  if (!out.file.empty()) {
    HOLO_ASSIGN(values, read_config_file(out.file));
    file = std::move(values);
  }
  const auto membership = read_membership(before.state_dir);
  for (const auto& info : setting_table()) {
    auto setting = gather(info, file, out.file);
    if (std::string_view(info.key) == "trust" && setting.origin == Origin::default_value && membership && *membership) {
      // A cluster's mode does not change, so its members need not be told again.
      setting = {info.key, std::string(hyperbus::trust_mode_name((*membership)->trust)), Origin::file,
                 before.state_dir + "/cluster.json"};
    }
    HOLO_TRY(checked(setting, out.config));
    out.settings.push_back(std::move(setting));
  }
  const bool in_state_dir = out.file == before.state_dir + "/config.toml";
  if (in_state_dir && out.config.state_dir != before.state_dir) {
    return std::unexpected(
        Failure(Error{.code = Errc::invalid_argument,
                      .message = str("the config file ", out.file, " lies in one state directory and names another, ",
                                     out.config.state_dir),
                      .hint = "remove its state_dir"}));
  }
  if (out.config.control_store == "etcd" && out.config.control_endpoints.empty()) {
    return std::unexpected(Failure(Error{.code = Errc::invalid_argument,
                                         .message = "control_store is etcd, and control_endpoints is empty",
                                         .hint = "--control-endpoints http://HOST:2379"}));
  }
  const auto place = [&](const char* key) { return std::ranges::find(out.settings, key, &Setting::key)->where; };
  const auto listen = split_address(out.config.listen);
  if (!out.config.advertise.empty() && listen->port == 0) {
    return std::unexpected(Failure(Error{.code = Errc::invalid_argument,
                                         .message = str(place("advertise"), ": advertise names a port, but listen (",
                                                        place("listen"), ") leaves the port open"),
                                         .hint = "give listen a port too"}));
  }
  return out;
}

std::string config_json(const LoadedConfig& loaded) {
  static constexpr const char* kOrigins[] = {"default", "file", "environment", "flag"};
  nlohmann::json settings = nlohmann::json::array();
  for (const auto& s : loaded.settings) {
    settings.push_back(
        {{"key", s.key}, {"value", s.value}, {"origin", kOrigins[static_cast<int>(s.origin)]}, {"where", s.where}});
  }
  const nlohmann::json object = {{"file", loaded.file.empty() ? nlohmann::json() : nlohmann::json(loaded.file)},
                                 {"settings", settings}};
  return object.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

Status write_config_file(const std::string& path, const std::map<std::string, std::string>& values) {
  std::string text = "# Written by holo. Every key is also a flag and an environment variable: holo config show\n";
  for (const auto& [key, value] : values) {
    std::string quoted;
    for (const char c : value) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
        return fail(Errc::invalid_argument, str(key, ": a control character in \"", value, "\""));
      if (c == '"' || c == '\\') quoted += '\\';
      quoted += c;
    }
    text += str(key, " = \"", quoted, "\"\n");
  }
  return driver::write_file_atomically(path, as_bytes(text));
}

Status check_name(std::string_view what, std::string_view name) {
  const auto allowed = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  };
  if (!name.empty() && name.size() <= kMaxNodeName && std::ranges::all_of(name, allowed) &&
      std::isalnum(static_cast<unsigned char>(name[0]))) {
    return {};
  }
  return fail(Errc::invalid_argument, str("\"", name, "\" cannot be ", what),
              str("1 to ", kMaxNodeName, " of A-Z a-z 0-9 . _ -, beginning with a letter or digit"));
}

}  // namespace holo::cmd
