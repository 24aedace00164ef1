// holo alloc, holo regions, holo free
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>

#include "base/limits.h"
#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/table.h"
#include "cmd/holo/units.h"

namespace holo::cmd {
namespace {

constexpr Duration kRegionCall = seconds(30);

const std::map<std::string, std::uint32_t>& element_types() {
  static const std::map<std::string, std::uint32_t> types = {{"bytes", 1}, {"u8", 1},  {"i8", 1},  {"u16", 2},
                                                             {"i16", 2},   {"u32", 4}, {"i32", 4}, {"f32", 4},
                                                             {"u64", 8},   {"i64", 8}, {"f64", 8}};
  return types;
}

struct AllocOptions {
  TargetOptions target;
  std::string name, type = "bytes", count, page = "65536", mode = "phased";
  std::uint32_t replication = 1;
  bool json = false;
};

nlohmann::json to_json(const wire::RegionInfo& r) {
  nlohmann::json shares = nlohmann::json::object();
  for (const auto& share : r.pages_by_node()) shares[to_hex(share.node())] = share.pages();
  return {{"id", r.region()},       {"name", r.name()},
          {"type", r.type()},       {"count", r.count()},
          {"bytes", r.bytes()},     {"page_bytes", r.page_bytes()},
          {"mode", r.mode()},       {"replication", r.replication()},
          {"version", r.version()}, {"owner_uid", r.owner_uid()},
          {"pages_by_node", shares}};
}

std::string dump(const nlohmann::json& object) {
  return object.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// How many regions-worth of bytes people want to read about: "1e8 x f64, 762.9 MiB".
std::string shape(const wire::RegionInfo& r) { return str(r.count(), " x ", r.type(), ", ", format_size(r.bytes())); }

Outcome<int> alloc(const AllocOptions& o) {
  const auto type = element_types().find(o.type);
  if (type == element_types().end()) {
    std::string list;
    for (const auto& [name, size] : element_types()) list += (list.empty() ? "" : ", ") + name;
    return usage(str("unknown type \"", o.type, "\""), "one of " + list);
  }
  if (o.mode != "phased" && o.mode != "strict") return usage(str("unknown mode \"", o.mode, "\""), "phased or strict");
  // Bytes are counted as people write sizes.
  const auto count = o.type == "bytes" ? parse_size(o.count) : parse_count(o.count);
  if (!count) return usage(count.error());
  const auto page = parse_size(o.page);
  if (!page) return usage(page.error());

  wire::RegionCreate request;
  request.set_name(o.name);
  request.set_type(o.type);
  request.set_element_bytes(type->second);
  request.set_count(*count);
  request.set_page_bytes(*page);
  request.set_mode(o.mode);
  request.set_replication(o.replication);
  // On the wire 0 stands for the default; typed, it is a mistake.
  if (*page == 0) return fail(Errc::invalid_argument, "a page of 0 bytes", "a power of two from 4096 to 2097152");
  if (o.replication == 0) return fail(Errc::invalid_argument, "a replication of 0", "1 to 3 nodes that hold each page");
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(region, link.call_for<wire::RegionInfo>(wire::REGION_CREATE, request, kRegionCall));
  if (o.json) {
    std::cout << dump(to_json(region)) << "\n";
  } else {
    std::cout << str(region.name(), ": ", shape(region), ", pages of ", format_size(region.page_bytes()), ", ",
                     region.mode(), ", replication ", region.replication(), "\n");
  }
  return kDone;
}

struct RegionsOptions {
  TargetOptions target;
  std::string name;
  bool json = false;
};

std::map<std::string, std::string> node_names(const nlohmann::json& status) {
  std::map<std::string, std::string> out;
  for (const auto& n : status["nodes"]) out[n["id"]] = n["name"];
  return out;
}

Outcome<int> show_regions(const RegionsOptions& o) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  wire::RegionListReply reply;
  if (o.name.empty()) {
    HOLO_ASSIGN(list, link.call_for<wire::RegionListReply>(wire::REGION_LIST, wire::Empty(), kRegionCall));
    reply = std::move(list);
  } else {
    wire::RegionOpen request;
    request.set_name(o.name);
    HOLO_ASSIGN(one, link.call_for<wire::RegionInfo>(wire::REGION_OPEN, request, kRegionCall));
    *reply.add_regions() = std::move(one);
  }
  if (o.json) {
    nlohmann::json list = nlohmann::json::array();
    for (const auto& r : reply.regions()) list.push_back(to_json(r));
    std::cout << dump(o.name.empty() ? list : list.front()) << "\n";
    return kDone;
  }
  if (o.name.empty()) {
    Table table({"NAME", "TYPE", "COUNT", "SIZE", "PAGE", "MODE", "REPLICATION", "VERSION"});
    for (const auto& r : reply.regions()) {
      table.row({r.name(), r.type(), std::to_string(r.count()), format_size(r.bytes()), format_size(r.page_bytes()),
                 r.mode(), std::to_string(r.replication()), std::to_string(r.version())});
    }
    std::cout << table.text();
    return kDone;
  }
  HOLO_ASSIGN(status, link.json(wire::STATUS));
  const auto names = node_names(status);
  const auto& r = reply.regions(0);
  std::cout << str(r.name(), ": ", shape(r), ", ", r.mode(), ", replication ", r.replication(), ", version ",
                   r.version(), ", owner uid ", r.owner_uid(), "\n");
  Table table({"HOME OF ITS PAGES", "PAGES", "BYTES"});
  for (const auto& share : r.pages_by_node()) {
    const auto id = to_hex(share.node());
    const auto name = names.find(id);
    table.row({name == names.end() ? id : name->second, std::to_string(share.pages()),
               format_size(share.pages() * r.page_bytes())});
  }
  std::cout << table.text();
  return kDone;
}

Outcome<int> free_region(const RegionsOptions& o) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  wire::RegionFree request;
  request.set_name(o.name);
  HOLO_TRY(link.call(wire::REGION_FREE, request, kRegionCall));
  return kDone;
}

}  // namespace

void add_region_commands(CommandLine& line) {
  auto a = std::make_shared<AllocOptions>();
  auto& alloc_app = line.add(line.root(), "alloc", "A new region of the cluster's memory",
                             "holo alloc xs --type f64 --count 1e8 --replication 2", [a] { return alloc(*a); });
  add_target_options(alloc_app, a->target);
  alloc_app.add_option("name", a->name, "1 to 128 of A-Z a-z 0-9 . _ / -")->required();
  alloc_app.add_option("--type", a->type, "u8 to u64, i8 to i64, f32, f64, or bytes")->capture_default_str();
  alloc_app.add_option("--count,--bytes", a->count, "Elements (1e8), or a size (4GiB) for bytes")->required();
  alloc_app.add_option("--page", a->page, "Bytes per page: a power of two from 4096 to 2097152")->capture_default_str();
  alloc_app.add_option("--mode", a->mode, "phased: what a program writes shows at its sync()")->capture_default_str();
  alloc_app.add_option("--replication", a->replication, "Nodes that hold each committed page, 1 to 3")
      ->capture_default_str();
  alloc_app.add_flag("--json", a->json, "One JSON object");

  auto r = std::make_shared<RegionsOptions>();
  auto& regions = line.add(line.root(), "regions", "The regions of the cluster", "holo regions show xs",
                           [r] { return show_regions(*r); });
  add_target_options(regions, r->target);
  regions.add_flag("--json", r->json, "A JSON array; one object with show");
  auto& show = line.add(regions, "show", "One region, and where its pages live", "holo regions show xs",
                        [r] { return show_regions(*r); });
  show.add_option("name", r->name, "The region's name")->required();
  show.add_flag("--json", r->json, "One JSON object");
  add_target_options(show, r->target);
  regions.require_subcommand(0, 1);

  auto f = std::make_shared<RegionsOptions>();
  auto& free_app = line.add(line.root(), "free", "End a region on all nodes, for every program", "holo free xs",
                            [f] { return free_region(*f); });
  add_target_options(free_app, f->target);
  free_app.add_option("name", f->name, "The region's name")->required();
}

}  // namespace holo::cmd
