// The settings of an agent as flags, for every command that starts one.
#pragma once

#include <CLI/CLI.hpp>

#include <optional>
#include <string>

#include "cmd/holo/config.h"

namespace holo::cmd {

struct AgentOptions {
  ConfigSources sources;
};

/// Every key of the settings table as a flag, and --config. `name_flag`: what the flag for the node's name is called.
void add_agent_options(CLI::App& app, AgentOptions& options, const std::string& name_flag = "--name");

struct KeptFlags {
  std::string path;
  std::optional<std::string> before;  ///< What the file held; none: there was none.

  /// As it was before.
  void take_back() const;
};

/// Keeps the flags that were given in the state directory's config.toml, so that a later `holo agent` starts the same
/// node. The state directory itself is not written there.
Result<KeptFlags> keep_flags(const LoadedConfig& loaded, const AgentOptions& options);

}  // namespace holo::cmd
