// holo run: a program that links holo, on the cluster.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/child.h"
#include "cmd/holo/command_line.h"
#include "driver/posix/errno_text.h"
#include "env/fd.h"
#include "wire/elf_note.h"

namespace holo::cmd {
namespace {

struct RunOptions {
  TargetOptions target;
  unsigned nodes = 0;
  bool quiet = false;
  CLI::App* app = nullptr;
};

/// Everything that would keep it from running on the cluster is said before anything is started.
Status check_program(const std::string& program) {
  struct stat info{};
  if (::stat(program.c_str(), &info) != 0) return driver::fail_errno(errno, "cannot run " + program);
  if (S_ISDIR(info.st_mode)) return fail(Errc::invalid_argument, str("cannot run ", program, ": it is a directory"));
  if (::access(program.c_str(), X_OK) != 0) return driver::fail_errno(errno, "cannot run " + program);
  env::Fd file(::open(program.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return driver::fail_errno(errno, "cannot read " + program, "agents ship it to the other nodes");
  const auto size = static_cast<std::size_t>(info.st_size);
  if (size > limits::kMaxBinaryBytes)
    return fail(Errc::over_limit, str("cannot run ", program, ": it is larger than 512 MiB"), "strip it");
  if (size == 0) return fail(Errc::wrong_build, str("cannot run ", program, ": it is empty"));
  void* bytes = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (bytes == MAP_FAILED) return driver::fail_errno(errno, "cannot read " + program);
  const auto note = wire::find_holo_note(ByteSpan(static_cast<const std::byte*>(bytes), size));
  ::munmap(bytes, size);
  if (!note) return fail(note.error().code, str("cannot run ", program, ": ", note.error().message), note.error().hint);
  return {};
}

std::size_t live_nodes(const nlohmann::json& status) {
  std::size_t alive = 0;
  for (const auto& n : status["nodes"]) alive += n["state"] == "alive" && !n.value("witness", false);
  return alive;
}

Outcome<int> run(const RunOptions& o) {
  auto arguments = o.app->remaining();
  if (!arguments.empty() && arguments.front() == kDashDash) arguments.erase(arguments.begin());
  std::ranges::replace(arguments, std::string(kDashDash), std::string("--"));
  if (arguments.empty()) return usage("a program is needed", "holo run -n 4 ./app args");
  if (arguments.front().starts_with('-'))
    return usage(str("unknown flag ", arguments.front(), " of holo run"), "holo run --help shows an example");
  const auto program = find_program(arguments.front());
  HOLO_TRY(check_program(program));
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(status, link.json(wire::STATUS));
  const auto alive = live_nodes(status);
  if (o.nodes > alive) {
    return fail(Errc::refused, str(o.nodes, " nodes were asked for, ", alive, " are alive"),
                "holo status shows them; -n with fewer, or more nodes");
  }
  ::setenv("HOLO_SOCKET", link.agent().socket.c_str(), 1);
  if (o.nodes) ::setenv("HOLO_NODES", std::to_string(o.nodes).c_str(), 1);
  ::setenv("HOLO_PROGRESS", o.quiet ? "0" : "1", 1);
  return run_child(program, arguments);
}

}  // namespace

void add_run_command(CommandLine& line) {
  auto o = std::make_shared<RunOptions>();
  auto& app = line.add(line.root(), "run", "A program that links holo, on the cluster",
                       "holo run -n 4 ./quadratic_sum 100000000", [o] { return run(*o); });
  o->app = &app;
  add_target_options(app, o->target);
  app.add_option("-n,--nodes", o->nodes, "Use that many nodes (default: all that are alive)")
      ->check(CLI::Range(1u, 1024u));
  app.add_flag("-q,--quiet", o->quiet, "No progress on the terminal");
  starts_program(app, "PROGRAM [ARGUMENTS...]");
}

}  // namespace holo::cmd
