// holo control repair: gives up the log of this node, which is damaged, so that it gets it from the others again.
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/config.h"
#include "cmd/holo/state_dir.h"
#include "driver/rocksdb/store.h"

namespace holo::cmd {
namespace {

struct RepairOptions {
  std::string state_dir;
  bool json = false, force = false;
};

Outcome<int> repair(const RepairOptions& o) {
  ConfigSources sources;
  if (!o.state_dir.empty()) sources.flags["state_dir"] = o.state_dir;
  HOLO_ASSIGN(loaded, load_config(sources));
  const std::string& path = loaded.config.state_dir;
  HOLO_ASSIGN(known, read_membership(path));
  if (!known) return fail(Errc::not_found, str(path, " belongs to no cluster"), "name it with --state-dir");
  HOLO_ASSIGN(state, StateDir::open(path));
  if (!o.force) {
    auto store = driver::RocksStore::open(state.log_directory(), driver::RocksStore::Existing::required);
    Status whole = store ? Status{} : Status(std::unexpected(store.error()));
    if (whole) {
      const auto log = (*store)->load();
      if (!log) whole = std::unexpected(log.error());
    }
    if (whole) {
      const auto snapshot = (*store)->open_snapshot();
      if (!snapshot) whole = std::unexpected(snapshot.error());
      while (whole && *snapshot) {
        const auto piece = (*snapshot)->next();
        if (!piece) whole = std::unexpected(piece.error());
        if (piece && piece->empty()) break;
      }
    }
    if (whole) {
      return fail(Errc::refused, str("the log in ", state.log_directory(), " is whole: nothing to repair"),
                  "--force gives it up all the same");
    }
    if (whole.error().code != Errc::corrupt) return std::unexpected(whole.error());
  }
  HOLO_TRY(driver::RocksStore::discard_log(state.log_directory()));
  if (o.json) {
    std::cout << nlohmann::json({{"state_dir", path}, {"discarded", state.log_directory()}}).dump() << "\n";
    return kDone;
  }
  std::cout << "the log in " << state.log_directory() << " is given up; term and vote are kept\n"
            << "start the agent: a majority of the voters without it gives it everything, and then it votes again\n";
  return kDone;
}

}  // namespace

void add_control_repair_command(CommandLine& line) {
  const auto groups = line.root().get_subcommands([](CLI::App* a) { return a->get_name() == "control"; });
  CLI::App* group = groups.empty() ? nullptr : groups.front();
  if (group == nullptr) {
    group = &line.add(line.root(), "control", "The replicated control state", "holo control repair", {});
    group->require_subcommand(1);
  }
  auto o = std::make_shared<RepairOptions>();
  auto& app = line.add(*group, "repair",
                       "Give up this node's damaged log, and have it from the others again; its agent must not run",
                       "holo control repair --state-dir /var/lib/holo", [o] { return repair(*o); });
  app.add_option("--state-dir", o->state_dir, "Of this node");
  app.add_flag("--force", o->force, "Though the log is whole");
  app.add_flag("--json", o->json, "One JSON object");
}

}  // namespace holo::cmd
