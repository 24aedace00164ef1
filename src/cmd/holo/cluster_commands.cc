// holo init, holo join, holo leave
#include <algorithm>
#include <cstdlib>
#include <iostream>

#include "base/strings.h"
#include "cmd/holo/agent.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/agent_options.h"
#include "cmd/holo/agent_start.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/placement_commands.h"
#include "cmd/holo/units.h"
#include "core/control/backup.h"
#include "core/control/state.h"
#include "driver/posix/files.h"
#include "driver/posix/os_entropy.h"
#include "wire/placement.pb.h"

namespace holo::cmd {
namespace {

constexpr Duration kStartLimit = seconds(30);
constexpr Duration kRestoreLimit = seconds(300);
constexpr Duration kLeaveLimit = seconds(70);
constexpr Duration kAskLimit = seconds(30);
constexpr std::size_t kMaxKeyFile = 4096;

struct StartOptions {
  AgentOptions agent;
  std::string cluster_name = "holo", address, key, key_file, certificate, certificate_file;
  std::string restore;
  bool foreground = false, json = false, named = false, rename = false;
};

/// What the caller gave of the key. Every way that does not end in a whole key is wrong usage.
Outcome<ClusterKey> read_key(const StartOptions& o) {
  if (!o.key.empty() && !o.key_file.empty()) return usage("--key and --key-file are both given", "give one of them");
  std::string text = o.key;
  if (o.key_file == "-") {
    if (!std::getline(std::cin, text)) return usage("no key on standard input");
  } else if (!o.key_file.empty()) {
    auto read = driver::read_text_file(o.key_file, kMaxKeyFile);
    if (!read) return usage(str("the key file: ", read.error().message));
    text = *read;
  } else if (text.empty()) {
    const char* variable = std::getenv("HOLO_KEY");
    if (!variable || !*variable)
      return usage("a cluster key is needed", "--key K, --key-file F or HOLO_KEY; holo init printed it");
    text = variable;
  }
  auto key = parse_key(text);
  if (!key) return usage(key.error());
  return *key;
}

/// What the root key signed for this node.
Outcome<std::string> read_certificate(const StartOptions& o) {
  if (o.certificate.empty() == o.certificate_file.empty()) {
    return usage("trust mode roots needs --certificate or --certificate-file",
                 "holo identity request here, holo identity sign where the root key is");
  }
  std::string text = o.certificate;
  if (o.certificate_file == "-") {
    if (!std::getline(std::cin, text)) return usage("no certificate on standard input");
  } else if (!o.certificate_file.empty()) {
    auto read = driver::read_text_file(o.certificate_file, kMaxKeyFile);
    if (!read) return usage(read.error().message);
    text = *read;
  }
  auto carried = hyperbus::parse_certificate(text);
  if (!carried) return usage(carried.error());
  return hyperbus::certificate_text(*carried);
}

/// The line for the next machine.
std::string join_line(const std::string& address, const ClusterMembership& m) {
  std::string line = str("holo join ", address);
  switch (m.trust) {
    case hyperbus::TrustMode::psk: return str(line, " --key ", key_text(m.keys.front()));
    case hyperbus::TrustMode::tofu: return line + " --trust tofu";
    case hyperbus::TrustMode::roots: return line + " --trust roots --certificate CERTIFICATE";
  }
  return line;
}

void print_join(const StartOptions& o, const std::string& state_dir, const std::string& address,
                const ClusterMembership& m) {
  const bool roots = m.trust == hyperbus::TrustMode::roots;
  const std::string root_key = state_dir + "/root.key";
  if (o.json) {
    nlohmann::json object = {{"cluster", o.cluster_name},
                             {"address", address},
                             {"trust", hyperbus::trust_mode_name(m.trust)},
                             {"join", join_line(address, m)}};
    if (!m.keys.empty()) object["key"] = key_text(m.keys.front());
    if (roots) object["root_key_file"] = root_key;
    std::cout << object.dump() << std::endl;
    return;
  }
  std::cout << join_line(address, m) << std::endl;
  if (roots) {
    std::cout << "# CERTIFICATE: holo identity request on the new machine, holo identity sign REQUEST here\n"
              << "# The root key signs who may join; keep it safe, agents do not need it: " << root_key << std::endl;
  }
}

/// Where nobody vouches for keys, people have to compare them.
void show_pins(const nlohmann::json& trust) {
  for (const auto& pin : trust["pins"]) {
    std::cerr << "holo: pinned node " << pin["node"].get<std::string>() << " at " << pin["address"].get<std::string>()
              << " by the first key it showed: " << pin["key"].get<std::string>()
              << " (holo identity show there must say the same)\n";
  }
}

Outcome<void> start_in_background(const LoadedConfig& loaded, const AgentOptions& agent, Duration limit = kStartLimit) {
  HOLO_ASSIGN(kept, keep_flags(loaded, agent));
  std::vector<std::string> args;
  if (!agent.sources.config_file.empty()) args = {"--config", agent.sources.config_file};
  HOLO_ASSIGN(background, start_agent(loaded.config, args));
  auto alive = background.wait(AgentStage::alive, limit);
  if (!alive) {
    background.abandon();
    // The next try is not to go by flags that it was not given.
    if (forget_failed_start(loaded.config.state_dir)) kept.take_back();
  }
  return alive;
}

/// What a file made by holo control snapshot holds, checked to the last byte.
Outcome<Bytes> read_backup(StartOptions& o) {
  auto file = driver::read_file(o.restore, std::size_t{control::kMaxBackupState} + 2 * control::kMaxBackupHeader);
  HOLO_TRY(file);
  const auto backup = control::decode_backup(*file);
  if (!backup) return fail(backup.error().code, str(o.restore, ": ", backup.error().message), backup.error().hint);
  const std::string& was = backup->header.name();
  if (o.named && o.cluster_name != was && !o.rename) {
    return fail(
        Errc::refused,
        str(o.restore, " is of cluster ", was, " (", to_hex(backup->header.cluster()), "), not of ", o.cluster_name),
        "give that one's file, or --rename if this is what you want");
  }
  if (!o.named) o.cluster_name = was;
  return std::move(*file);
}

/// What is not in the file: the pages. Whoever reads one that was written is told that it is lost.
void tell_restored(ByteSpan file, bool json) {
  const auto backup = control::decode_backup(file);
  control::State state;
  if (!backup || !state.restore(LogIndex{backup->header.log_index()}, backup->state)) return;
  std::string lost;
  for (const RegionId id : state.regions()) {
    std::uint64_t pages = 0;
    state.for_each_written(id, [&](control::PageRange p, Version) { pages += p.count; });
    if (pages > 0) lost += str(lost.empty() ? "" : ", ", state.region(id)->name, " (", pages, " pages)");
  }
  if (json) return;
  std::cerr << "holo: restored cluster " << state.cluster_name() << " as of entry " << backup->header.log_index()
            << ": " << state.keys().keys() << " keys, " << state.regions().size() << " regions\n";
  if (!lost.empty()) std::cerr << "holo: pages are not part of a snapshot; lost in: " << lost << "\n";
}

Outcome<int> init(StartOptions& o) {
  Bytes from;
  if (!o.restore.empty()) {
    HOLO_ASSIGN(file, read_backup(o));
    from = std::move(file);
  }
  if (auto named = check_name("a cluster's name", o.cluster_name); !named) return usage(named.error());
  HOLO_ASSIGN(loaded, load_config(o.agent.sources));
  driver::OsEntropy entropy;
  ClusterMembership wanted{.id = {},
                           .name = o.cluster_name,
                           .trust = loaded.config.trust,
                           .certificate = {},
                           .pending = from.empty() ? "init" : "restore"};
  if (wanted.trust == hyperbus::TrustMode::psk) wanted.keys.push_back(crypto::random_secret<32>(entropy));
  HOLO_TRY(prepare_start(loaded.config.state_dir, wanted));
  if (!from.empty()) {
    HOLO_TRY(driver::write_file_atomically(loaded.config.state_dir + "/restore.snapshot", from));
  }
  const auto show = [&](const std::string& address) { print_join(o, loaded.config.state_dir, address, wanted); };
  if (o.foreground) {
    HOLO_TRY(keep_flags(loaded, o.agent));
    HOLO_ASSIGN(again, load_config(o.agent.sources));  // With what prepare() wrote.
    return run_agent(again, {.ready = ReadyPipe(), .on_alive = show});
  }
  HOLO_TRY(start_in_background(loaded, o.agent, from.empty() ? kStartLimit : kRestoreLimit));
  if (!from.empty()) tell_restored(from, o.json);
  HOLO_ASSIGN(address, advertised_address(loaded.config.state_dir));
  show(address);
  return kDone;
}

Outcome<int> join(StartOptions& o) {
  const auto address = with_port(o.address, kDefaultPort);
  if (!address) return usage(address.error());
  HOLO_ASSIGN(loaded, load_config(o.agent.sources));
  ClusterMembership wanted{
      .id = {}, .name = {}, .trust = loaded.config.trust, .certificate = {}, .pending = "join " + *address};
  const bool other_key = wanted.trust != hyperbus::TrustMode::psk && !(o.key.empty() && o.key_file.empty());
  const bool other_certificate =
      wanted.trust != hyperbus::TrustMode::roots && !(o.certificate.empty() && o.certificate_file.empty());
  if (other_key || other_certificate) {
    return usage(str(other_key ? "a cluster key" : "a certificate", " is of no use in trust mode ",
                     hyperbus::trust_mode_name(wanted.trust)),
                 other_key ? "leave --key out" : "add --trust roots");
  }
  if (wanted.trust == hyperbus::TrustMode::psk) {
    HOLO_ASSIGN(key, read_key(o));
    wanted.keys.push_back(key);
  } else if (wanted.trust == hyperbus::TrustMode::roots) {
    HOLO_ASSIGN(certificate, read_certificate(o));
    wanted.certificate = std::move(certificate);
  }
  HOLO_TRY(forget_if_removed(loaded.config, o.agent.sources.config_file, wanted));
  HOLO_TRY(prepare_start(loaded.config.state_dir, wanted));
  if (o.foreground) {
    HOLO_TRY(keep_flags(loaded, o.agent));
    HOLO_ASSIGN(again, load_config(o.agent.sources));
    return run_agent(again, {.ready = ReadyPipe(), .on_alive = {}});
  }
  HOLO_TRY(start_in_background(loaded, o.agent));
  HOLO_ASSIGN(link, AgentLink::connect(TargetOptions{.cluster = {}, .state_dir = loaded.config.state_dir, .node = {}}));
  if (wanted.trust == hyperbus::TrustMode::tofu) {
    HOLO_ASSIGN(trust, link.json(wire::TRUST_LIST));
    show_pins(trust);
  }
  if (o.json) {
    HOLO_ASSIGN(status, link.json(wire::STATUS));
    std::cout << nlohmann::json({{"cluster", status["cluster"]["name"]},
                                 {"cluster_id", status["cluster"]["id"]},
                                 {"node", status["this_node"]["id"]}})
                     .dump()
              << "\n";
  }
  return kDone;
}

struct LeaveOptions {
  TargetOptions target;
  double timeout = 600;
  bool json = false;
};

/// The id of the node whose directory this is, if it was removed and could be forgotten; else empty.
Outcome<std::string> forget_removed(const std::string& state_dir) {
  AgentConfig config;
  config.state_dir = state_dir;
  HOLO_ASSIGN(removed, forget_if_removed(config, {}));
  if (!removed) return std::string();
  HOLO_ASSIGN(state, StateDir::open(state_dir));
  HOLO_ASSIGN(identity, state.identity());
  return to_hex(identity.node().value);
}

/// Everything is moved off first, with all the time that takes; leaving itself is then a matter of moments.
Outcome<int> leave(const LeaveOptions& o) {
  auto connected = AgentLink::connect(o.target);
  if (!connected && connected.error().code == Errc::not_found && !o.target.state_dir.empty()) {
    HOLO_ASSIGN(node, forget_removed(o.target.state_dir));
    if (node.empty()) return std::unexpected(connected.error());
    if (o.json) std::cout << nlohmann::json({{"node", node}, {"left", true}}).dump() << "\n";
    return kDone;
  }
  if (!connected) return std::unexpected(connected.error());
  AgentLink& link = *connected;
  const auto process = process_name(link.agent().pid);
  HOLO_ASSIGN(status, link.json(wire::STATUS));
  const auto& here = status["this_node"]["id"];
  const bool others = std::ranges::any_of(status["nodes"], [&](const nlohmann::json& n) {
    return n["id"] != here && n["state"] == "alive" && !n["draining"];
  });
  if (others && !status["this_node"].value("removed", false)) {
    wire::DrainRequest drain;
    drain.set_on(true);
    drain.set_force(true);  // Fewer copies than asked for: the others make up for it as soon as they can.
    HOLO_TRY(link.json(wire::NODE_DRAIN, drain, kAskLimit));
    if (auto moved = wait_for_moves(link, here, Moves::away, o.timeout); !moved) {
      drain.set_on(false);
      (void)link.json(wire::NODE_DRAIN, drain, kAskLimit);
      return std::unexpected(moved.error());
    }
  }
  HOLO_TRY(link.call(wire::LEAVE, wire::Empty(), kLeaveLimit));
  wait_for_end(process, seconds(5));
  if (o.json) std::cout << nlohmann::json({{"node", here}, {"left", true}}).dump() << "\n";
  return kDone;
}

void add_start_options(CLI::App& app, StartOptions& o, const char* name_flag);

void add_init_options(CLI::App& app, StartOptions& o) {
  app.add_option_function<std::string>(
      "--name",
      [&o](const std::string& name) {
        o.cluster_name = name;
        o.named = true;
      },
      "The cluster's name (default: holo, or the restored one's)");
  app.add_flag("--rename", o.rename, "With a file to restore: give its cluster another name");
  add_start_options(app, o, "--node-name");
}

void add_start_options(CLI::App& app, StartOptions& o, const char* name_flag) {
  add_agent_options(app, o.agent, name_flag);
  app.add_flag("--foreground", o.foreground, "Stay in the foreground instead of starting the agent in the background");
  app.add_flag("--json", o.json, "One JSON object");
}

}  // namespace

void add_cluster_commands(CommandLine& line) {
  auto i = std::make_shared<StartOptions>();
  auto& init_app =
      line.add(line.root(), "init", "A new cluster on this machine; prints the line to paste on the next one",
               "holo init --name lab", [i] { return init(*i); });
  add_init_options(init_app, *i);
  init_app.add_option("--restore", i->restore, "Begin from what holo control snapshot wrote into this file");

  auto j = std::make_shared<StartOptions>();
  auto& join_app = line.add(line.root(), "join", "Enter a cluster; returns once this node is alive in it",
                            "holo join 10.0.0.5:8443 --key K", [j] { return join(*j); });
  join_app.add_option("address", j->address, "HOST or HOST:PORT of any member")->required();
  join_app.add_option("--key", j->key, "The cluster's key (also HOLO_KEY)");
  join_app.add_option("--key-file", j->key_file, "Read the key from this file, - is standard input");
  join_app.add_option("--certificate", j->certificate, "With --trust roots: what holo identity sign printed for it");
  join_app.add_option("--certificate-file", j->certificate_file, "Read it from this file, - is standard input");
  add_start_options(join_app, *j, "--name,--node-name");

  auto l = std::make_shared<LeaveOptions>();
  auto& leave_app =
      line.add(line.root(), "leave", "Leave the cluster for good, after handing over what only this node holds",
               "holo leave", [l] { return leave(*l); });
  add_target_options(leave_app, l->target);
  leave_app.add_option("--timeout", l->timeout, "Seconds to wait until everything has moved to other nodes")
      ->check(CLI::Range(0.1, 1e7))
      ->capture_default_str();
  leave_app.add_flag("--json", l->json, "One JSON object");
}

void add_restore_command(CommandLine& line, CLI::App& group) {
  auto o = std::make_shared<StartOptions>();
  auto& app =
      line.add(group, "restore", "A new cluster on this machine that goes on from a file made by holo control snapshot",
               "holo control restore lab.holo --state-dir /var/lib/holo-new", [o] { return init(*o); });
  app.add_option("FILE", o->restore, "It is checked to the last byte before anything is made")->required();
  add_init_options(app, *o);
}

}  // namespace holo::cmd
