// Another program, run in the place of this command: with its terminal, its signals and its exit status.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "cmd/holo/outcome.h"

namespace holo::cmd {

/// As execvp finds it: a name with a slash is a path, others are looked for in PATH.
std::string find_program(const std::string& name);

/// From SIGTERM to SIGKILL.
inline constexpr auto kGrace = std::chrono::seconds(5);

/// Starts the program with the terminal as it is, waits for it, and returns its exit status as a shell would. When a
/// signal has ended it, or this process had sent it one, all that it started is ended too, with kGrace; what it leaves
/// behind otherwise runs on. It is killed when this process is. One at a time. Errors: those of execv.
Outcome<int> run_child(const std::string& program, const std::vector<std::string>& arguments);

/// Sends it a signal, if it runs. Thread: any; signal handlers too.
void signal_child(int signal);

}  // namespace holo::cmd
