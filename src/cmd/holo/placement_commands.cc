// holo drain, undrain, remove, weight, explain shard; and the wait that holo leave shares with them.
#include "cmd/holo/placement_commands.h"

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <thread>

#include "base/strings.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/table.h"
#include "cmd/holo/units.h"
#include "wire/placement.pb.h"

namespace holo::cmd {
namespace {

constexpr Duration kAsk = seconds(30);
constexpr auto kLook = std::chrono::milliseconds(100);

struct MoveOptions {
  TargetOptions target;
  std::string node;
  double timeout = 600;
  bool force = false, json = false, no_wait = false;
};

struct WeightOptions {
  TargetOptions target;
  std::string node, by;
  double weight = 0;
  bool json = false;
};

struct ExplainOptions {
  TargetOptions target;
  std::uint32_t shard = 0;
  std::string resource = "memory";
  bool json = false;
};

std::uint64_t count(const nlohmann::json& object, const char* key) { return object.value(key, std::uint64_t{0}); }

std::string joined(const nlohmann::json& names) {
  std::string out;
  for (const auto& n : names) out += (out.empty() ? "" : ", ") + n.get<std::string>();
  return out.empty() ? "nobody" : out;
}

Outcome<int> drain(const MoveOptions& o, bool on) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  wire::DrainRequest ask;
  ask.set_node(o.node);
  ask.set_on(on);
  ask.set_force(o.force);
  HOLO_ASSIGN(answer, link.json(wire::NODE_DRAIN, ask, kAsk));
  nlohmann::json moved = {{"moved_shards", 0}};
  if (!o.no_wait) {
    HOLO_ASSIGN(waited, wait_for_moves(link, answer["node"], on ? Moves::away : Moves::all, o.timeout));
    moved = std::move(waited);
  }
  if (o.json) {
    answer.update(moved);
    answer["done"] = !o.no_wait;
    std::cout << answer.dump() << "\n";
  }
  return kDone;
}

Outcome<int> remove(const MoveOptions& o) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  wire::RemoveRequest ask;
  ask.set_node(o.node);
  ask.set_force(o.force);
  HOLO_ASSIGN(answer, link.json(wire::NODE_REMOVE, ask, kAsk));
  if (o.json) {
    std::cout << answer.dump() << "\n";
    return kDone;
  }
  for (const auto& l : answer["lost"]) {
    std::cout << str("lost: ", count(l, "pages"), " pages of region ", l["region"].get<std::string>(), " (",
                     format_size(count(l, "bytes")), ")\n");
  }
  return kDone;
}

Outcome<int> weigh(const WeightOptions& o) {
  if (o.node.empty() && o.by.empty())
    return usage("nothing to change", "holo weight NODE 0.5, or holo weight --by score");
  if (!o.node.empty() && !(o.weight >= 0.001 && o.weight <= 100)) {
    return usage("a weight is between 0.001 and 100", "1 is what its memory gives it; holo drain takes everything off");
  }
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  wire::WeightRequest ask;
  ask.set_node(o.node);
  ask.set_permille(static_cast<std::uint32_t>(std::lround(o.weight * 1000)));
  ask.set_by(o.by);
  HOLO_ASSIGN(answer, link.json(wire::NODE_WEIGHT, ask, kAsk));
  if (o.json) std::cout << answer.dump(2) << "\n";
  return kDone;
}

Outcome<int> explain(const ExplainOptions& o) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  wire::ExplainShardRequest ask;
  ask.set_shard(o.shard);
  ask.set_resource(o.resource);
  HOLO_ASSIGN(answer, link.json(wire::EXPLAIN_SHARD, ask, kAsk));
  if (o.json) {
    std::cout << answer.dump(2) << "\n";
    return kDone;
  }
  std::cout << str("shard ", o.shard, " of class ", o.resource, ": ", joined(answer["order"]), "\n");
  Table nodes({"NODE", "SCORE", "WEIGHT", "ZONE", "HOST", "WHY"});
  const auto text = [](const nlohmann::json& n, const char* key) {
    const std::string value = n.value(key, std::string());
    return value.empty() ? std::string("-") : value;
  };
  for (const auto& n : answer["nodes"]) {
    char score[32] = "-";
    if (n.contains("score")) std::snprintf(score, sizeof score, "%.1f", n["score"].get<double>());
    nodes.row({n["name"], score, n.contains("weight") ? str(count(n, "weight")) : "-", text(n, "zone"), text(n, "host"),
               n["why"]});
  }
  std::cout << nodes.text();
  if (!answer.contains("regions") || answer["regions"].empty()) return kDone;
  Table regions({"REGION", "PAGES", "HELD BY", "PLANNED", "WHY"});
  for (const auto& r : answer["regions"]) {
    regions.row({r["name"], str(count(r, "pages")), joined(r["held_by"]), joined(r["planned"]), r["why"]});
  }
  std::cout << regions.text();
  return kDone;
}

}  // namespace

Outcome<nlohmann::json> wait_for_moves(AgentLink& link, const std::string& node, Moves which, double timeout) {
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  const auto start = std::chrono::steady_clock::now();
  const auto deadline = start + std::chrono::duration<double>(timeout);
  std::uint64_t most = 0;
  bool drawn = false;
  const auto wipe = [&] {
    if (drawn) std::cerr << "\r\x1b[K" << std::flush;
  };
  for (;;) {
    HOLO_ASSIGN(shards, link.json(wire::SHARDS, wire::ShardsRequest(), kAsk));
    std::uint64_t left = count(shards["moves"], "left");
    std::uint64_t nowhere = 0;
    bool found = false;
    for (const auto& n : shards["nodes"]) {
      if (n["id"] != node) continue;
      found = true;
      nowhere = count(n["held"], "nowhere");
      if (which == Moves::away) left = count(n["held"], "home_shards") + count(n["held"], "copy_shards");
    }
    if (!found || left == 0) {
      wipe();
      return nlohmann::json{
          {"moved_shards", most},
          {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()}};
    }
    most = std::max(most, left);
    if (which == Moves::away && nowhere == left) {
      wipe();
      return std::unexpected(Failure(Error{
          .code = Errc::out_of_memory,
          .message = str(nowhere, " shards have nowhere to go: no other node that it can reach has room for them"),
          .hint =
              "free a region, let a node join, or give the agents more --memory; holo undrain takes the drain back"}));
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      wipe();
      return std::unexpected(Failure(
          Error{.code = Errc::deadline_exceeded,
                .message = str(left, " of ", most, " shards are still to be moved after ", timeout, " s"),
                .hint = "moving goes on; holo status --shards tells how far, holo undrain takes a drain back"}));
    }
    if (terminal) {
      std::cerr << "\r\x1b[K" << str("moving: ", most - left, " of ", most, " shards") << std::flush;
      drawn = true;
    }
    std::this_thread::sleep_for(kLook);
  }
}

std::string shards_table(const nlohmann::json& shards) {
  Table table(
      {"NODE", "STATE", "WEIGHT", "SHARE", "HOME", "BACKUP", "HOLDS", "COPIES", "COMING", "GOING", "ZONE", "HOST"});
  for (const auto& n : shards["nodes"]) {
    char share[16];
    std::snprintf(share, sizeof share, "%.1f%%", n["share"].get<double>() * 100);
    char factor[16];
    std::snprintf(factor, sizeof factor, "%g", n["factor"].get<double>());
    std::string state = n["state"];
    if (n["draining"] && state == "alive") state = "draining";
    const auto& h = n["held"];
    const auto text = [&](const char* key) {
      const std::string value = n[key];
      return value.empty() ? std::string("-") : value;
    };
    table.row({n["name"], state, factor, share, str(count(n, "home")), str(count(n, "backup")),
               str(count(h, "home_pages"), " pages"), str(count(h, "copy_pages"), " pages"), str(count(h, "arriving")),
               str(count(h, "leaving")), text("zone"), text("host")});
  }
  std::string cut;
  for (const auto& path : shards["cut_paths"]) {
    cut += str("node ", path["from"].get<std::string>(), " cannot reach node ", path["to"].get<std::string>(),
               ": no copies go that way\n");
  }
  const auto& moves = shards["moves"];
  return str(count(shards, "shards"), " shards of class ", shards["resource"].get<std::string>(), "; ",
             count(moves, "left") == 0
                 ? std::string("nothing moves")
                 : str(count(moves, "left"), " still to move, ", count(moves, "under_way"), " of them now"),
             "\n", cut, table.text());
}

void add_placement_commands(CommandLine& line) {
  const auto waiting = [](CLI::App& app, const std::shared_ptr<MoveOptions>& o) {
    add_target_options(app, o->target);
    app.add_option("--timeout", o->timeout, "Seconds to wait until everything has moved")
        ->check(CLI::Range(0.1, 1e7))
        ->capture_default_str();
    app.add_flag("--no-wait", o->no_wait, "Return at once; holo status --shards tells how far it is");
    app.add_flag("--json", o->json, "One JSON object");
  };
  auto d = std::make_shared<MoveOptions>();
  auto& drain_app =
      line.add(line.root(), "drain", "Move everything off a node, and keep it off; returns when that is done",
               "holo drain n3", [d] { return drain(*d, true); });
  drain_app.add_option("node", d->node, "Its name or id")->required();
  drain_app.add_flag("--force", d->force, "Even if fewer copies are left than regions ask for");
  waiting(drain_app, d);

  auto u = std::make_shared<MoveOptions>();
  auto& undrain_app =
      line.add(line.root(), "undrain", "Let a drained node take pages again; returns when it has its share",
               "holo undrain n3", [u] { return drain(*u, false); });
  undrain_app.add_option("node", u->node, "Its name or id")->required();
  waiting(undrain_app, u);

  auto r = std::make_shared<MoveOptions>();
  auto& remove_app =
      line.add(line.root(), "remove", "Take another node out of the cluster for good, dead or alive; it must join anew",
               "holo remove n3", [r] { return remove(*r); });
  remove_app.add_option("node", r->node, "Its name or id")->required();
  remove_app.add_flag("--force", r->force, "Give up the pages that only it has, and say which those were");
  add_target_options(remove_app, r->target);
  remove_app.add_flag("--json", r->json, "One JSON object");

  auto w = std::make_shared<WeightOptions>();
  auto& weight_app =
      line.add(line.root(), "weight", "How much of the cluster's pages a node gets: 1 is what its memory gives it",
               "holo weight n3 0.5", [w] { return weigh(*w); });
  auto* node = weight_app.add_option("node", w->node, "Its name or id");
  weight_app.add_option("weight", w->weight, "0.001 to 100")->needs(node);
  weight_app.add_option("--by", w->by, "What every node's weight is made of")
      ->check(CLI::IsMember({"memory", "score"}));
  add_target_options(weight_app, w->target);
  weight_app.add_flag("--json", w->json, "One JSON object: as holo status --shards");

  auto e = std::make_shared<ExplainOptions>();
  auto& group = line.add(line.root(), "explain", "Why something is where it is", "holo explain shard 17", {});
  auto& shard_app = line.add(group, "shard", "Who holds a shard, each node's score, and why not the others",
                             "holo explain shard 17 --class cpu", [e] { return explain(*e); });
  shard_app.add_option("shard", e->shard, "0 to 4095")->required()->check(CLI::Range(0, 4095));
  shard_app.add_option("--class", e->resource, "The ring that is asked for")
      ->check(CLI::IsMember({"memory", "cpu", "gpu", "disk"}))
      ->capture_default_str();
  add_target_options(shard_app, e->target);
  shard_app.add_flag("--json", e->json, "One JSON object");
}

}  // namespace holo::cmd
