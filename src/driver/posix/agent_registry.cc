#include "driver/posix/agent_registry.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>
#include <tuple>

#include "base/strings.h"
#include "driver/posix/files.h"
#include "env/fd.h"

namespace holo::driver {
namespace {

constexpr std::size_t kMaxRecordBytes = 16 << 10;
constexpr const char* kSystemRuntimeDirectory = "/run/holo";

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

/// Where this process puts sockets and records; empty when only the state directory is left.
std::string runtime_directory() {
  // systemd names the directory it made for a service. Its agents publish there whatever the user's own directories
  // are.
  if (auto given = environment("RUNTIME_DIRECTORY"); !given.empty()) return given.substr(0, given.find(':'));
  return default_runtime_directory();
}

std::vector<std::string> record_directories() {
  std::vector<std::string> out;
  if (auto runtime = runtime_directory(); !runtime.empty()) out.push_back(runtime + "/agents");
  if (auto state = default_state_directory()) out.push_back(*state + "/agents");
  out.push_back(str(kSystemRuntimeDirectory, "/agents"));
  return out;
}

struct Field {
  const char* name;
  std::string AgentRecord::* member;
};
constexpr Field kFields[] = {
    {"socket", &AgentRecord::socket},         {"state_dir", &AgentRecord::state_dir},
    {"cluster_id", &AgentRecord::cluster_id}, {"cluster_name", &AgentRecord::cluster_name},
    {"node_id", &AgentRecord::node_id},       {"node_name", &AgentRecord::node_name},
};

Result<AgentRecord> parse_record(std::string_view text) {
  AgentRecord record;
  while (!text.empty()) {
    const auto end = text.find('\n');
    const auto line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
    const auto space = line.find(' ');
    if (space == std::string_view::npos) continue;
    const auto key = line.substr(0, space), value = line.substr(space + 1);
    if (key == "pid") std::from_chars(value.data(), value.data() + value.size(), record.pid);
    for (const auto& field : kFields) {
      if (key == field.name) record.*field.member = value;
    }
  }
  if (record.socket.empty() || record.node_id.empty()) return fail(Errc::malformed, "not an agent's record");
  return record;
}

std::string canonical(const std::string& path) {
  std::error_code ignored;
  auto full = std::filesystem::weakly_canonical(path, ignored).string();
  while (full.size() > 1 && full.back() == '/') full.pop_back();
  return full.empty() ? path : full;
}

std::string describe(const AgentRecord& r) { return r.cluster_name.empty() ? r.cluster_id : r.cluster_name; }

}  // namespace

Status publish_agent(const AgentRecord& record) {
  std::string text = str("pid ", record.pid, "\n");
  for (const auto& field : kFields) {
    const auto& value = record.*field.member;
    if (value.find('\n') != std::string::npos) return fail(Errc::invalid_argument, str("a line break in ", field.name));
    text += str(field.name, " ", value, "\n");
  }
  const auto directory = record_directories().front();
  HOLO_TRY(make_private_directory(directory));
  return write_file_atomically(directory + "/" + record.node_id, as_bytes(text));
}

Status withdraw_agent(const AgentRecord& record) {
  return remove_file(record_directories().front() + "/" + record.node_id);
}

std::vector<AgentRecord> published_agents() {
  std::vector<AgentRecord> out;
  for (const auto& directory : record_directories()) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
      auto text = read_text_file(entry.path().string(), kMaxRecordBytes);
      if (!text) continue;
      auto record = parse_record(*text);
      if (record && std::ranges::find(out, *record) == out.end()) out.push_back(std::move(*record));
    }
  }
  std::ranges::sort(
      out, {}, [](const AgentRecord& r) { return std::tie(r.cluster_name, r.cluster_id, r.node_name, r.node_id); });
  return out;
}

bool agent_answers(const std::string& socket) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.empty() || socket.size() >= sizeof(address.sun_path)) return false;
  std::memcpy(address.sun_path, socket.data(), socket.size());
  env::Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return false;
  // EAGAIN: its backlog is full, so somebody listens.
  return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 || errno == EAGAIN;
}

AgentChoice AgentChoice::from_environment() {
  return {environment("HOLO_SOCKET"), environment("HOLO_STATE_DIR"), environment("HOLO_CLUSTER"),
          environment("HOLO_NODE")};
}

Result<AgentRecord> choose_agent(const AgentChoice& choice) {
  if (!choice.socket.empty()) {
    AgentRecord record;
    record.socket = choice.socket;
    return record;
  }
  auto live = published_agents();
  std::erase_if(live, [](const AgentRecord& r) { return !agent_answers(r.socket); });
  if (!choice.state_dir.empty()) {
    const auto wanted = canonical(choice.state_dir);
    std::erase_if(live, [&](const AgentRecord& r) { return canonical(r.state_dir) != wanted; });
    if (!live.empty()) return live.front();
    return fail(Errc::not_found, str("no agent runs on state directory ", choice.state_dir),
                str("start it: holo agent --state-dir ", choice.state_dir));
  }
  if (!choice.cluster.empty()) {
    std::erase_if(
        live, [&](const AgentRecord& r) { return r.cluster_name != choice.cluster && r.cluster_id != choice.cluster; });
    if (live.empty()) {
      return fail(Errc::not_found, str("no agent of a cluster \"", choice.cluster, "\" runs on this machine"),
                  "without --cluster, the error names those that do");
    }
  }
  if (live.empty()) {
    return fail(Errc::not_found, "no holo agent runs on this machine",
                "start one: holo init, holo join, or holo dev up for a cluster on this machine");
  }
  std::set<std::string> clusters, names;
  for (const auto& r : live) {
    clusters.insert(r.cluster_id);
    names.insert(describe(r));
  }
  if (clusters.size() > 1) {
    // Two clusters of one name can only be told apart by their ids.
    const auto& shown = names.size() == clusters.size() ? names : clusters;
    std::string list;
    for (const auto& name : shown) list += (list.empty() ? "" : ", ") + name;
    return fail(Errc::invalid_argument, str("agents of several clusters run on this machine: ", list),
                "choose one with --cluster or HOLO_CLUSTER");
  }
  if (!choice.node.empty()) {
    std::erase_if(live, [&](const AgentRecord& r) { return r.node_name != choice.node && r.node_id != choice.node; });
    if (live.empty())
      return fail(Errc::not_found, str("no agent of a node \"", choice.node, "\" runs on this machine"));
  }
  return live.front();
}

std::string agent_socket_path(const std::string& state_dir, const std::string& node_id) {
  const auto runtime = runtime_directory();
  return runtime.empty() ? state_dir + "/agent.sock" : str(runtime, "/agent-", node_id, ".sock");
}

}  // namespace holo::driver
