// The frame around the commands: parsing, help with an example for each, suggestions, exit codes.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <string>

#include "cmd/holo/outcome.h"

namespace holo::cmd {

/// Stands for "--" among the arguments of `holo run` and `holo lock`.
inline constexpr const char* kDashDash = "\001--";

/// Of an option's value; CLI11's own says the limits of a double.
CLI::Validator above_zero();

/// What follows its own arguments belongs to a program, which the command's callback finds in remaining(); `usage`
/// names it in --help.
void starts_program(CLI::App& app, const std::string& usage);

class CommandLine {
 public:
  CommandLine();

  using Run = std::function<Outcome<int>()>;
  /// A command, or a group of commands when `run` is empty. `example` is shown at the end of its --help.
  CLI::App& add(CLI::App& parent, const std::string& name, const std::string& help, const std::string& example,
                Run run);
  [[nodiscard]] CLI::App& root() { return root_; }

  /// Parses, runs the command that was named, and returns the exit status; what went wrong is on standard error.
  int run(int argc, char** argv);

 private:
  /// The first word that should name a command and does not: usage with a suggestion.
  Outcome<void> check_commands(int argc, char** argv);
  [[nodiscard]] Failure explain(const CLI::ParseError& error);

  CLI::App root_;
  Run selected_;
};

// One function per group of commands; each adds its commands to the frame.
void add_agent_commands(CommandLine& line);          // agent, version
void add_cluster_commands(CommandLine& line);        // init, join, leave
void add_status_command(CommandLine& line);          // status
void add_placement_commands(CommandLine& line);      // drain, undrain, remove, weight, explain
void add_ping_command(CommandLine& line);            // ping
void add_qlog_commands(CommandLine& line);           // qlog ...
void add_region_commands(CommandLine& line);         // alloc, regions, free
void add_kv_commands(CommandLine& line);             // kv ...
void add_lock_commands(CommandLine& line);           // lock, locks, lease ...
void add_control_commands(CommandLine& line);        // control ...
void add_control_repair_command(CommandLine& line);  // control repair; after the others of control
void add_run_command(CommandLine& line);             // run
void add_dev_commands(CommandLine& line);            // dev ...
void add_bench_commands(CommandLine& line);          // bench ...
void add_doctor_command(CommandLine& line);          // doctor
void add_config_commands(CommandLine& line);         // config ...
void add_trust_commands(CommandLine& line);          // trust ..., identity ..., key ...
void add_inventory_command(CommandLine& line);       // inventory
/// holo control restore: beside holo init, of which it is a form.
void add_restore_command(CommandLine& line, CLI::App& group);

}  // namespace holo::cmd
