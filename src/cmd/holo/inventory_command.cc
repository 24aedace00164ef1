// holo inventory: what the machines are.
#include <iostream>

#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/table.h"
#include "cmd/holo/units.h"

namespace holo::cmd {
namespace {

constexpr Duration kCall = seconds(10);

struct InventoryOptions {
  TargetOptions target;
  std::string name;
  bool json = false;
};

std::string text(const nlohmann::json& n, const char* key) { return n[key].get<std::string>(); }
std::string number(const nlohmann::json& n, const char* key) { return str(n[key].get<std::uint64_t>()); }
std::string score(const nlohmann::json& n) {
  char out[64];
  std::snprintf(out, sizeof out, "%.2f (spread %.0f %%)", n["score"]["speed"].get<double>(),
                n["score"]["spread"].get<double>() * 100);
  return out;
}
std::string rate(const nlohmann::json& link) {
  const auto bits = link["bits_per_second"].get<std::uint64_t>();
  return bits == 0 ? "speed not known" : format_rate(bits);
}

void print_one(const nlohmann::json& n) {
  std::cout << text(n, "name") << " (" << text(n, "id") << ")\n";
  for (const char* key : {"zone", "host", "rack"}) {
    if (!text(n, key).empty()) std::cout << "  " << key << ": " << text(n, key) << "\n";
  }
  for (const auto& [key, value] : n["labels"].items()) {
    std::cout << "  label: " << key << "=" << value.get<std::string>() << "\n";
  }
  if (!n["known"].get<bool>()) {
    std::cout << "  it has not told what its machine is\n";
    return;
  }
  std::cout << "  system: " << text(n, "system") << "\n"
            << "  processor: " << text(n, "cpu_model") << ", " << number(n, "packages") << " packages, "
            << number(n, "cores") << " cores, " << number(n, "threads") << " threads (" << number(n, "usable_threads")
            << " usable)\n"
            << "  speed: " << score(n) << ", measured on " << text(n["score"], "measured_on") << "\n"
            << "  memory: " << format_size(n["memory_bytes"].get<std::uint64_t>()) << "\n";
  for (const auto& m : n["numa"]) {
    std::cout << "  numa node " << number(m, "index") << ": " << format_size(m["memory_bytes"].get<std::uint64_t>())
              << ", " << number(m, "threads") << " threads\n";
  }
  for (const auto& c : n["caches"]) {
    std::cout << "  cache: " << number(c, "count") << " x L" << number(c, "level") << " " << text(c, "kind") << ", "
              << format_size(c["bytes"].get<std::uint64_t>()) << "\n";
  }
  for (const auto& g : n["gpus"]) {
    const auto bytes = g["memory_bytes"].get<std::uint64_t>();
    std::cout << "  gpu: " << text(g, "vendor") << " " << text(g, "name") << " at " << text(g, "bus")
              << (bytes == 0 ? std::string() : ", " + format_size(bytes)) << "\n";
  }
  for (const auto& d : n["disks"]) {
    std::cout << "  disk: " << text(d, "name") << ", " << format_size(d["bytes"].get<std::uint64_t>())
              << (d["rotational"].get<bool>() ? ", rotating" : "") << " " << text(d, "model") << "\n";
  }
  for (const auto& l : n["links"]) {
    std::cout << "  link: " << text(l, "name") << ", " << rate(l) << ", mtu " << number(l, "mtu")
              << (l["up"].get<bool>() ? "" : ", down") << "\n";
  }
}

Outcome<int> inventory(const InventoryOptions& o) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  wire::InventoryRequest ask;
  ask.set_node(o.name);
  HOLO_ASSIGN(answer, link.json(wire::INVENTORY, ask, kCall));
  if (o.json) {
    std::cout << answer.dump(2) << "\n";
    return kDone;
  }
  if (!o.name.empty()) {
    for (const auto& n : answer["nodes"]) print_one(n);
    return kDone;
  }
  Table table({"NODE", "PROCESSOR", "CORES", "SPEED", "MEMORY", "GPUS", "DISKS", "ZONE", "HOST", "RACK"});
  for (const auto& n : answer["nodes"]) {
    const bool known = n["known"];
    table.row({text(n, "name"), known ? text(n, "cpu_model") : "not told yet", known ? number(n, "cores") : "-",
               known ? score(n) : "-", known ? format_size(n["memory_bytes"].get<std::uint64_t>()) : "-",
               known ? str(n["gpus"].size()) : "-", known ? str(n["disks"].size()) : "-", text(n, "zone"),
               text(n, "host"), text(n, "rack")});
  }
  std::cout << table.text();
  return kDone;
}

}  // namespace

void add_inventory_command(CommandLine& line) {
  auto o = std::make_shared<InventoryOptions>();
  auto& app = line.add(line.root(), "inventory", "What the machines are, as each node has signed it",
                       "holo inventory node2", [o] { return inventory(*o); });
  app.add_option("NODE", o->name, "Only this one, in full (name or id)");
  app.add_flag("--json", o->json, "One JSON object");
  add_target_options(app, o->target);
}

}  // namespace holo::cmd
