// holo control: the replicated control state: who holds it, how far each member is, a copy of it in a file and back.
#include <algorithm>
#include <iostream>

#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/table.h"
#include "cmd/holo/units.h"
#include "core/control/backup.h"
#include "driver/posix/files.h"
#include "wire/admin.pb.h"

namespace holo::cmd {
namespace {

constexpr Duration kCall = seconds(30);
constexpr Duration kPartCall = seconds(60);

struct ControlOptions {
  TargetOptions target;
  std::string file;
  bool json = false, force = false, stale = false;
};

void print(const nlohmann::json& object) { std::cout << object.dump(2) << "\n"; }
std::string number(const nlohmann::json& n) { return str(n.get<std::uint64_t>()); }

std::string role_of(const nlohmann::json& m, const std::string& leader) {
  if (!m["in_log"].get<bool>()) return "joining";
  if (m["node"] == leader) return "leader";
  if (m["witness"].get<bool>() && m["voter"].get<bool>()) return "witness";
  return m["voter"].get<bool>() ? "voter" : "learner";
}

std::string members_table(const nlohmann::json& status) {
  Table table({"MEMBER", "ROLE", "STATE", "TERM", "APPLIED", "BEHIND", "ID"});
  const std::string leader = status["leader"];
  for (const auto& m : status["members"]) {
    const bool answers = m["answers"];
    table.row({m["name"], role_of(m, leader), answers ? m["state"].get<std::string>() : "no answer",
               answers ? number(m["term"]) : "-", answers ? number(m["applied"]) : "-",
               answers ? number(m["lag"]) : "-", m["node"]});
  }
  return table.text();
}

Outcome<nlohmann::json> ask_status(const ControlOptions& o) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(status, link.json(wire::CONTROL_STATUS, wire::Empty(), kCall));
  std::vector<nlohmann::json> by_name(status["members"].begin(), status["members"].end());
  std::ranges::sort(by_name, {}, [](const nlohmann::json& m) { return m["name"].get<std::string>(); });
  status["members"] = std::move(by_name);
  return status;
}

Outcome<int> status(const ControlOptions& o) {
  HOLO_ASSIGN(status, ask_status(o));
  if (o.json) {
    print(status);
    return kDone;
  }
  const std::string leader = status["leader_name"];
  std::cout << "cluster " << status["name"].get<std::string>() << ", term " << number(status["term"]) << ", "
            << (leader.empty() ? "no leader" : "leader " + leader) << ", epoch " << number(status["epoch"]) << "\n"
            << (status["primary"].get<bool>()
                    ? "this side decides: a majority of the voters follows the leader\n"
                    : "this side decides nothing: no majority of the voters follows one leader here\n")
            << "log: committed " << number(status["committed"]) << ", applied here " << number(status["applied"])
            << ", snapshot at " << number(status["log"]["snapshot"]) << ", "
            << number(status["log"]["entries_since_snapshot"]) << " entries since\n"
            << "keys: " << number(status["keys"]["keys"]) << " at revision " << number(status["keys"]["revision"])
            << ", " << format_size(status["keys"]["bytes"].get<std::uint64_t>()) << "\n"
            << members_table(status);
  return kDone;
}

Outcome<int> members(const ControlOptions& o) {
  HOLO_ASSIGN(status, ask_status(o));
  if (!o.json) {
    std::cout << members_table(status);
    return kDone;
  }
  nlohmann::json out = nlohmann::json::array();
  for (const auto& m : status["members"]) {
    out.push_back({{"node", m["node"]},
                   {"name", m["name"]},
                   {"role", role_of(m, status["leader"])},
                   {"voter", m["voter"]},
                   {"state", m["state"]},
                   {"answers", m["answers"]}});
  }
  print(out);
  return kDone;
}

Outcome<int> snapshot(const ControlOptions& o) {
  if (!o.force && driver::file_exists(o.file)) {
    return fail(Errc::already_exists, str(o.file, " is there already"), "another name, or --force to replace it");
  }
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  wire::ControlSnapshotRead ask;
  ask.set_stale(o.stale);
  HOLO_ASSIGN(head, link.call_for<wire::ControlSnapshotPart>(wire::CONTROL_SNAPSHOT, ask, kCall));
  Bytes file = control::encode_backup_header(head.header());
  const std::size_t whole = file.size() + head.header().bytes();
  file.reserve(whole);
  ask.set_handle(head.handle());
  while (file.size() < whole) {
    ask.set_offset(head.header().bytes() - (whole - file.size()));
    HOLO_ASSIGN(part, link.payload(wire::CONTROL_SNAPSHOT, ask, kPartCall));
    if (part.empty() || part.size() > whole - file.size()) {
      return fail(Errc::malformed, "the agent's answer does not fit what it said before");
    }
    file.insert(file.end(), part.begin(), part.end());
  }
  HOLO_TRY(control::decode_backup(file));  // What is kept is what the agent had.
  HOLO_TRY(driver::write_file_atomically(o.file, file));
  const wire::BackupHeader& h = head.header();
  if (o.json) {
    print({{"file", o.file},
           {"cluster", to_hex(h.cluster())},
           {"name", h.name()},
           {"entry", h.log_index()},
           {"epoch", h.epoch()},
           {"bytes", file.size()},
           {"keys", h.keys()},
           {"revision", h.revision()},
           {"regions", h.regions()},
           {"nodes", h.nodes()}});
  } else {
    std::cout << o.file << ": cluster " << h.name() << " as of entry " << h.log_index() << ", " << h.keys()
              << " keys at revision " << h.revision() << ", " << h.regions() << " regions (not their pages), "
              << format_size(file.size()) << "\n";
  }
  return kDone;
}

}  // namespace

void add_control_commands(CommandLine& line) {
  auto& group = line.add(line.root(), "control", "The replicated control state: its members, copies of it",
                         "holo control status", {});
  group.require_subcommand(1);
  const auto add = [&](const char* name, const char* help, const char* example,
                       Outcome<int> (*run)(const ControlOptions&)) -> std::pair<CLI::App&, ControlOptions&> {
    auto o = std::make_shared<ControlOptions>();
    auto& app = line.add(group, name, help, example, [o, run] { return run(*o); });
    add_target_options(app, o->target);
    app.add_flag("--json", o->json, "As JSON");
    return {app, *o};
  };
  add("status", "Leader, term, log, how far each member is, and whether this side may change anything",
      "holo control status --json", status);
  add("members", "Who votes and who learns", "holo control members", members);
  auto [app, o] = add("snapshot", "The whole control state into a file: nodes, regions (not their pages), keys, leases",
                      "holo control snapshot lab.holo", snapshot);
  app.add_option("FILE", o.file, "It is replaced only with --force")->required();
  app.add_flag("--force", o.force, "Replace FILE");
  app.add_flag("--stale", o.stale, "What this node has, without asking the others (they may be gone)");
  add_restore_command(line, group);
}

}  // namespace holo::cmd
