// holo::connect: which agent, and with what wishes.
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <string>
#include <string_view>

#include <holo/detail/runtime.hpp>

#include "base/strings.h"
#include "client/session.h"
#include "driver/posix/agent_registry.h"

namespace holo::client {
namespace {

struct Wishes {
  std::string socket;
  std::uint32_t nodes = 0;
};

Result<std::uint32_t> parse_nodes(std::string_view text, std::string_view where) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value == 0) {
    return fail(Errc::invalid_argument, str(where, " must be a number of nodes, not \"", text, "\""));
  }
  return value;
}

/// Takes --holo-socket=PATH and --holo-nodes=N out of the arguments; what is not there comes from the environment.
Result<Wishes> wishes(int* argc, char** argv) {
  Wishes out;
  if (const char* n = std::getenv("HOLO_NODES"); n && *n) {
    HOLO_ASSIGN(nodes, parse_nodes(n, "HOLO_NODES"));
    out.nodes = nodes;
  }
  if (!argc) return out;
  constexpr std::string_view kSocket = "--holo-socket=", kNodes = "--holo-nodes=";
  int kept = 0;
  for (int i = 0; i < *argc; ++i) {
    const std::string_view arg = argv[i];
    if (i > 0 && arg.starts_with(kSocket)) {
      out.socket = arg.substr(kSocket.size());
    } else if (i > 0 && arg.starts_with(kNodes)) {
      HOLO_ASSIGN(nodes, parse_nodes(arg.substr(kNodes.size()), "--holo-nodes"));
      out.nodes = nodes;
    } else {
      argv[kept++] = argv[i];
    }
  }
  argv[kept] = nullptr;
  *argc = kept;
  return out;
}

bool is_set(const char* name, std::string_view value) {
  const char* v = std::getenv(name);
  return v && value == v;
}

}  // namespace
}  // namespace holo::client

namespace holo::detail {

Result<std::shared_ptr<Session>> connect(int* argc, char** argv) {
  using namespace holo::client;
  if (is_worker_process())
    return fail(Errc::unsupported, "connect() was called inside a task", "tasks cannot start work yet");
  HOLO_ASSIGN(wish, wishes(argc, argv));
  auto choice = driver::AgentChoice::from_environment();
  if (!wish.socket.empty()) choice.socket = wish.socket;
  HOLO_ASSIGN(agent, driver::choose_agent(choice));
  HOLO_ASSIGN(hash, executable_hash());
  SessionOptions options{.nodes = wish.nodes,
                         .show_output = !is_set("HOLO_STREAM_OUTPUT", "0"),
                         .show_progress = is_set("HOLO_PROGRESS", "1") && ::isatty(STDERR_FILENO) == 1,
                         .binary = executable_path(),
                         .binary_hash = std::move(hash)};
  return SessionImpl::connect(agent.socket, {}, std::move(options));
}

}  // namespace holo::detail
