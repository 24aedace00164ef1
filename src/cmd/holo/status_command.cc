// holo status
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <set>
#include <thread>

#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/placement_commands.h"
#include "cmd/holo/table.h"
#include "cmd/holo/units.h"
#include "wire/placement.pb.h"

namespace holo::cmd {
namespace {

struct StatusOptions {
  TargetOptions target;
  bool json = false, watch = false, links = false, shards = false;
  double interval = 1.0;
};

std::string number(const nlohmann::json& object, const char* key) { return str(object[key].get<std::uint64_t>()); }

std::string nodes_table(const nlohmann::json& status) {
  Table table({"NODE", "STATE", "HEARD", "ROLE", "ADDRESS", "CORES", "MEMORY", "USED", "SPEED", "HEALTH", "ID"});
  const std::string leader = status["cluster"]["leader"];
  for (const auto& n : status["nodes"]) {
    std::string role = n["voter"] ? "voter" : "learner";
    if (n.value("witness", false)) role = "witness";
    if (n["id"] == leader) role = "leader";
    if (n["state"] == "left") role = "-";
    std::string state = n["state"];
    if (n.value("draining", false) && state == "alive") state = "draining";
    // What the asked node itself sees, while the cluster has not decided. Whom it has not heard yet is no newcomer for
    // that: it may be one itself.
    if (n["state"] == "alive" && n.value("seen", state) == "suspect") state = "suspect";
    const std::int64_t ms = n.value("last_heard_ms", std::int64_t{-1});
    const std::string heard = ms < 0 || n["state"] == "left" ? "-" : ms < 1000 ? "now" : str(ms / 1000, " s ago");
    char speed[16];
    std::snprintf(speed, sizeof speed, "%.2f", n["speed"].get<double>());
    table.row({n["name"], state, heard, role, n["address"], std::to_string(n["cores"].get<int>()),
               format_size(n["memory_bytes"]), format_size(n["frames_used_bytes"]), speed,
               n.contains("health") && state != "left" ? number(n, "health") : "-", n["id"]});
  }
  return table.text();
}

std::string micros(const nlohmann::json& us) { return str(static_cast<std::int64_t>(us.get<double>()), " us"); }

std::string handshakes_line(const nlohmann::json& h) {
  std::string out = str("handshakes: ", number(h["dialled"], "done"), " dialled, ", number(h["accepted"], "done"),
                        " accepted, half of them in ", micros(h["duration"]["p50_us"]));
  for (const auto& [cause, n] : h["dialled"]["failed"].items()) {
    const auto all = n.get<std::uint64_t>() + h["accepted"]["failed"][cause].get<std::uint64_t>();
    if (all > 0) out += str("; ", all, ' ', cause);
  }
  return out + '\n';
}

/// Since the start of the agent, over every connection that there was.
std::string peers_table(const nlohmann::json& status) {
  Table table({"SINCE THE START", "LINKS", "IN", "OUT", "LOST", "CLASS", "ANSWERS", "FAILED", "P50", "P99", "MAX"});
  for (const auto& p : status["this_node"]["peers"]) {
    for (const char* klass : {"control", "data", "bulk"}) {
      const auto& c = p["classes"][klass];
      const auto& t = c["round_trip"];
      std::string failed;
      for (const auto& [why, n] : c["failed"].items()) {
        failed += str(failed.empty() ? "" : ", ", n.get<std::uint64_t>(), ' ', why);
      }
      if (failed.empty() && t["count"] == 0) continue;
      table.row({p["peer"], number(p, "connections"), format_size(p["bytes_in"]), format_size(p["bytes_out"]),
                 number(c, "packets_lost"), klass, number(t, "count"), failed.empty() ? "0" : failed,
                 micros(t["p50_us"]), micros(t["p99_us"]), micros(t["max_us"])});
    }
  }
  return table.text();
}

std::string links_table(const nlohmann::json& status) {
  const auto& links = status["this_node"]["links"];
  Table table({"PEER", "ADDRESS", "CARRIER", "CIPHER", "MTU", "ECN", "ROUND TRIP", "LEAST", "IN", "OUT", "SENT", "LOST",
               "KEYS"});
  for (const auto& l : links) {
    const auto mtu = l["path_mtu"].get<std::uint64_t>();
    table.row({l["peer"], l["address"], l["carrier"], l["cipher"], mtu == 0 ? "-" : str(mtu), l["ecn"] ? "yes" : "-",
               micros(l["round_trip_us"]), micros(l["min_round_trip_us"]), format_size(l["bytes_in"]),
               format_size(l["bytes_out"]), number(l, "packets_out"), number(l, "packets_lost"),
               number(l, "key_updates")});
  }
  Table classes({"PEER", "CLASS", "UNDER WAY", "QUEUED", "SERVING", "CREDIT", "BYTES", "WAITED", "OVERLOADED",
                 "ANSWERS", "P50", "P99", "MAX"});
  for (const auto& l : links) {
    for (const char* klass : {"control", "data", "bulk"}) {
      const auto& c = l["classes"][klass];
      const auto& t = c["round_trip"];
      classes.row({l["peer"], klass, number(c, "in_flight"), number(c, "queued"), number(c, "serving"),
                   number(c, "request_credit"), format_size(c["byte_credit"]), number(c, "credit_waits"),
                   str(c["overloaded"].get<std::uint64_t>() + c["turned_away"].get<std::uint64_t>()),
                   number(t, "count"), micros(t["p50_us"]), micros(t["p99_us"]), micros(t["max_us"])});
    }
  }
  return table.text() + classes.text() + peers_table(status) + handshakes_line(status["this_node"]["handshakes"]);
}

/// Where UDP does not pass, or is not wanted; empty when there is no such link.
std::string tcp_line(const nlohmann::json& status) {
  std::set<std::string> peers;
  for (const auto& l : status["this_node"]["links"]) {
    if (l["carrier"] == "tcp" && !l["closing"]) peers.insert(l["peer"].get<std::string>());
  }
  std::string out;
  for (const std::string& peer : peers) out += str(out.empty() ? "linked over TCP, not QUIC: " : ", ", peer);
  return out.empty() ? out : out + '\n';
}

std::string render(const nlohmann::json& status, const StatusOptions& options) {
  const auto& c = status["cluster"];
  std::string out = str("cluster ", c["name"].get<std::string>(), " (", c["id"].get<std::string>(), "), epoch ",
                        c["epoch"].get<std::uint64_t>(), ", ");
  const std::string leader = c["leader_name"];
  const bool removed = status["this_node"].value("removed", false);
  if (removed) {
    out += "not a member\n";
  } else {
    out += leader.empty() ? "no leader: what is committed can be read, nothing can be changed\n"
                          : "leader " + leader + "\n";
  }
  if (!removed && !c.value("primary", true))
    out += str("primary: no (", c.value("primary_reason", std::string()), ")\n");
  if (removed) {
    out += "this node was removed from the cluster: holo leave here, then holo join makes it a member anew\n";
  }
  out += nodes_table(status);
  for (const auto& n : status["nodes"]) {
    std::string why;
    for (const auto& reason : n.value("health_reasons", nlohmann::json::array())) {
      why += str(why.empty() ? "" : "; ", reason.get<std::string>());
    }
    if (!why.empty() && n["state"] == "alive") out += str(n["name"].get<std::string>(), ": ", why, "\n");
  }
  const auto& regions = status["regions"];
  std::uint64_t bytes = 0;
  for (const auto& r : regions) bytes += r["bytes"].get<std::uint64_t>();
  out += str(regions.size(), regions.size() == 1 ? " region, " : " regions, ", format_size(bytes),
             " (holo regions lists them)\n");
  const auto& refused = c["refused"];
  constexpr std::array kRefusals = {
      std::pair("wrong_key", "with a wrong key"),      std::pair("wrong_version", "of another version or trust mode"),
      std::pair("garbage", "with garbage or silence"), std::pair("unknown_identity", "that nobody vouches for"),
      std::pair("changed_key", "with a changed key"),  std::pair("revoked", "that were revoked")};
  std::string counted;
  for (const auto& [name, words] : kRefusals) {
    const std::uint64_t n = refused.value(name, std::uint64_t{0});
    if (n > 0) counted += str(counted.empty() ? "refused here: " : ", ", n, ' ', words);
  }
  if (!counted.empty()) out += counted + '\n';
  out += tcp_line(status);
  if (options.links) out += links_table(status);
  if (options.shards) out += shards_table(status["shards"]);
  return out;
}

Outcome<int> show_status(const StatusOptions& options) {
  const bool terminal = ::isatty(STDOUT_FILENO) != 0;
  HOLO_ASSIGN(link, AgentLink::connect(options.target));
  for (;;) {
    HOLO_ASSIGN(status, link.json(wire::STATUS));
    if (options.shards) {
      HOLO_ASSIGN(shards, link.json(wire::SHARDS, wire::ShardsRequest(), seconds(30)));
      status["shards"] = std::move(shards);
    }
    if (options.json) {
      std::cout << status.dump(options.watch ? -1 : 2) << "\n";
    } else {
      if (options.watch && terminal) std::cout << "\x1b[H\x1b[2J";
      std::cout << render(status, options);
    }
    std::cout.flush();
    if (!options.watch || !std::cout) return kDone;
    std::this_thread::sleep_for(std::chrono::duration<double>(options.interval));
  }
}

}  // namespace

void add_status_command(CommandLine& line) {
  auto options = std::make_shared<StatusOptions>();
  auto& app = line.add(line.root(), "status", "The cluster's nodes, leader and health", "holo status --watch",
                       [options] { return show_status(*options); });
  add_target_options(app, options->target);
  app.add_flag("--json", options->json, "One JSON object (with --watch: one a line)");
  app.add_flag("--watch", options->watch, "Again every --interval seconds, until interrupted");
  app.add_option("--interval", options->interval, "Seconds between two looks")->check(CLI::Range(0.1, 3600.0));
  app.add_flag("--links", options->links, "Also this node's connections");
  app.add_flag("--shards", options->shards, "Also who holds the shards, and what is on its way");
}

}  // namespace holo::cmd
