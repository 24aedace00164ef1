#include "cmd/holo/agent_options.h"

#include <filesystem>

#include "driver/posix/files.h"

namespace holo::cmd {

void add_agent_options(CLI::App& app, AgentOptions& options, const std::string& name_flag) {
  app.add_option("--config", options.sources.config_file, "TOML file with these settings (also HOLO_CONFIG)");
  for (const auto& info : setting_table()) {
    const std::string key = info.key;
    const std::string flag = key == "name" ? name_flag : info.flag;
    auto& flags = options.sources.flags;
    const std::string help = std::string(info.help) + " (also " + info.variable + ")";
    if (info.shape == SettingInfo::Shape::present) {
      app.add_flag_callback(flag, [&flags, key] { flags[key] = "true"; }, help);
      continue;
    }
    auto* option = app.add_option_function<std::string>(
        flag, [&flags, key](const std::string& value) { flags[key] = value; }, help);
    if (info.shape == SettingInfo::Shape::list) option->join(',');
  }
}

void KeptFlags::take_back() const {
  if (before) {
    (void)driver::write_file_atomically(path, as_bytes(*before));
  } else {
    std::error_code error;
    std::filesystem::remove(path, error);
  }
}

Result<KeptFlags> keep_flags(const LoadedConfig& loaded, const AgentOptions& options) {
  const auto path = loaded.config.state_dir + "/config.toml";
  KeptFlags kept{.path = path, .before = {}};
  if (auto text = driver::read_text_file(path, kMaxConfigBytes)) kept.before = std::move(*text);
  std::map<std::string, std::string> values;
  for (const auto& s : loaded.settings) {
    const bool from_there = s.origin == Setting::Origin::file && loaded.file == path;
    if (s.key != "state_dir" && (from_there || options.sources.flags.contains(s.key))) values[s.key] = s.value;
  }
  // The next start may be in another directory.
  if (const auto given = values.find("qlog"); given != values.end()) given->second = loaded.config.qlog;
  if (!values.empty()) HOLO_TRY(write_config_file(path, values));
  return kept;
}

}  // namespace holo::cmd
