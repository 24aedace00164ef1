#include "cmd/holo/dev_cluster.h"

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <ranges>
#include <thread>

#include "base/limits.h"
#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/agent_start.h"
#include "cmd/holo/config.h"
#include "cmd/holo/machine.h"
#include "driver/posix/agent_registry.h"
#include "driver/posix/net_namespace.h"
#include "driver/posix/os_entropy.h"

namespace holo::cmd {
namespace {

constexpr Duration kStartLimit = seconds(30);
constexpr Duration kStopLimit = seconds(3);
constexpr Duration kLockLimit = seconds(2);
constexpr Duration kKeepLimit =
    seconds(600);  // Where its pages are to survive: writing them takes a second for each GiB.
constexpr Duration kVotersLimit = seconds(2);
constexpr std::size_t kMaxRecordBytes = 1 << 20;
constexpr const char* kStartAgain = "holo dev down --keep-state, then holo dev up";

Outcome<std::string> folder_of(const std::string& name) {
  if (auto named = check_name("a cluster's name", name); !named) return usage(named.error());
  HOLO_ASSIGN(state, driver::default_state_directory());
  return str(state, "/dev/", name);
}

/// Waits a little: for another short command, or for the half-started child of one that was killed to let go.
Outcome<driver::LockFile> lock_folder(const std::string& folder) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(kLockLimit.ns);
  for (;;) {
    auto lock = driver::LockFile::acquire(folder + "/lock");
    if (lock) return std::move(*lock);
    if (lock.error().code != Errc::refused) return std::unexpected(lock.error());
    if (std::chrono::steady_clock::now() > deadline) {
      return fail(Errc::refused, str("another holo dev command works on ", folder), "wait until it has ended");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

/// Settings of the caller's own agent must not leak into these; memory, workers, userfaultfd and log level may.
void clear_environment(bool memory_given, bool workers_given) {
  for (const char* v :
       {"HOLO_STATE_DIR", "HOLO_LISTEN", "HOLO_ADVERTISE", "HOLO_NAME", "HOLO_LOG_FILE", "HOLO_CONFIG", "HOLO_TRUST"})
    ::unsetenv(v);
  if (memory_given) ::unsetenv("HOLO_MEMORY");
  if (workers_given) ::unsetenv("HOLO_WORKERS");
}

/// Makes the identity of `state_dir` and has it signed.
Result<std::string> certify(const std::string& state_dir, const std::string& root_key_file) {
  HOLO_ASSIGN(root, read_root_key(root_key_file));
  HOLO_ASSIGN(state, StateDir::open(state_dir));
  HOLO_ASSIGN(identity, state.identity());
  return sign_identity(root, identity.chain(), {});
}

unsigned voters_of(std::size_t nodes) { return nodes >= 5 ? 5 : nodes >= 3 ? 3 : nodes >= 2 ? 2 : 1; }

}  // namespace

Outcome<DevCluster> DevCluster::open(const std::string& name) {
  HOLO_ASSIGN(folder, folder_of(name));
  if (!driver::file_exists(folder + "/cluster.json")) {
    return fail(Errc::not_found, str("no cluster \"", name, "\" was started on this machine"),
                "holo dev up starts one");
  }
  HOLO_ASSIGN(lock, lock_folder(folder));
  DevCluster cluster(name, std::move(folder), std::move(lock));
  HOLO_TRY(cluster.load());
  return cluster;
}

Outcome<DevCluster> DevCluster::up(const std::string& name, const DevOptions& options) {
  HOLO_ASSIGN(folder, folder_of(name));
  HOLO_TRY(driver::make_private_directory(folder));
  HOLO_ASSIGN(lock, lock_folder(folder));
  clear_environment(options.memory_bytes != 0, options.workers != 0);
  DevCluster cluster(name, folder, std::move(lock));
  const bool known = driver::file_exists(folder + "/cluster.json");
  if (known) {
    HOLO_TRY(cluster.load());
    if (cluster.complete_ && std::ranges::any_of(cluster.nodes_, &DevNode::running)) {
      return fail(Errc::refused, str("the cluster \"", name, "\" is up already"),
                  str("holo dev status, or holo dev down", name == "dev" ? "" : " --cluster " + name));
    }
    if (cluster.complete_) HOLO_TRY(cluster.check_same(options));
  }
  const bool again = known && cluster.complete_;
  if (known && !again) HOLO_TRY(cluster.forget());
  auto done = again ? cluster.start_all() : cluster.make(options);
  if (done) done = cluster.wait_for_members();
  if (done && !again) {
    cluster.complete_ = true;
    done = cluster.save();
  }
  if (!done) {
    cluster.stop_processes(kStopLimit);
    (void)cluster.remove_places();
    std::error_code ignored;
    if (!again) std::filesystem::remove_all(folder, ignored);
    return std::unexpected(done.error());
  }
  return cluster;
}

/// What was left by a start that was interrupted, all but the lock.
Outcome<void> DevCluster::forget() {
  stop_processes(kStopLimit);
  HOLO_TRY(remove_places());
  std::error_code error;
  for (const auto& node : nodes_) std::filesystem::remove_all(node.state_dir, error);
  HOLO_TRY(driver::remove_file(folder_ + "/cluster.json"));
  nodes_.clear();
  net_.reset();
  return {};
}

Outcome<void> DevCluster::check_same(const DevOptions& o) const {
  const bool net_differs = o.net_rate != 0 && (!net_ || net_->rate_bits != o.net_rate);
  const bool cpus_differ = o.cpus != 0 && o.cpus != cpus_;
  const bool udp_differs = o.block_udp && !std::ranges::all_of(nodes_, &DevNode::udp_blocked);
  if (!net_differs && !cpus_differ && !udp_differs) return {};
  return fail(Errc::refused,
              str("the cluster \"", name_, "\" was made with another ",
                  net_differs   ? "network or rate"
                  : cpus_differ ? "share of the processor"
                                : "way of treating UDP"),
              "holo dev up without these options starts it as it was; holo dev down forgets it");
}

Outcome<void> DevCluster::load() {
  const auto path = folder_ + "/cluster.json";
  HOLO_ASSIGN(text, driver::read_text_file(path, kMaxRecordBytes));
  const auto record = nlohmann::json::parse(text, nullptr, false);
  try {
    for (const auto& n : record.at("nodes")) {
      nodes_.push_back({.number = n.at("number"),
                        .state_dir = n.at("state_dir"),
                        .address = n.at("address"),
                        .process = {.pid = n.at("pid"), .start_time = n.at("start_time")},
                        .udp_blocked = n.value("udp_blocked", false),
                        .part = n.value("part", 0U)});
    }
    complete_ = record.value("complete", true);
    cpus_ = record.value("cpus", 0.0);
    if (cpus_ != 0) {
      cpu_parent_.folder = record.at("cpu_parent");
      cpu_parent_.version =
          record.at("cgroup_version") == 1 ? driver::CpuGroupVersion::v1 : driver::CpuGroupVersion::v2;
    }
    if (record.contains("net")) {
      const auto& net = record["net"];
      net_ = DevNet{.key = net.at("key"),
                    .range = {.address = net.at("address"), .bits = 24},
                    .nodes = static_cast<unsigned>(nodes_.size()),
                    .rate_bits = net.at("rate")};
    }
  } catch (const nlohmann::json::exception&) {
    return fail(Errc::corrupt, str(path, " is damaged"), str("remove ", folder_, " and its agents"));
  }
  return {};
}

Status DevCluster::save() const {
  nlohmann::json nodes = nlohmann::json::array();
  for (const auto& n : nodes_) {
    nodes.push_back({{"number", n.number},
                     {"state_dir", n.state_dir},
                     {"address", n.address},
                     {"pid", n.process.pid},
                     {"start_time", n.process.start_time},
                     {"udp_blocked", n.udp_blocked},
                     {"part", n.part}});
  }
  nlohmann::json record = {{"version", 1}, {"name", name_}, {"complete", complete_}, {"nodes", nodes}};
  if (cpus_ != 0) {
    record["cpus"] = cpus_;
    record["cpu_parent"] = cpu_parent_.folder;
    record["cgroup_version"] = static_cast<int>(cpu_parent_.version);
  }
  if (net_) record["net"] = {{"key", net_->key}, {"address", net_->range.address}, {"rate", net_->rate_bits}};
  return driver::write_file_atomically(folder_ + "/cluster.json", as_bytes(record.dump(2) + "\n"));
}

Outcome<void> DevCluster::make(const DevOptions& options) {
  // Half of what is free now: the agents are not alone on a machine that people develop on.
  const auto share = std::max(available_memory_bytes() / 2 / options.nodes, kMinMemoryBytes);
  memory_bytes_ = options.memory_bytes ? options.memory_bytes : share / limits::kMaxPageBytes * limits::kMaxPageBytes;
  workers_ = options.workers ? options.workers : std::max(1u, core_count() / options.nodes);
  for (unsigned i = 1; i <= options.nodes; ++i) {
    nodes_.push_back({.number = i,
                      .state_dir = str(folder_, "/node", i),
                      .address = {},
                      .process = {},
                      .udp_blocked = options.block_udp});
  }
  cpus_ = options.cpus;
  if (options.net_rate != 0) {
    net_ = DevNet{.key = dev_key(name_, folder_), .range = {}, .nodes = options.nodes, .rate_bits = options.net_rate};
  }
  HOLO_TRY(make_places());
  ClusterMembership wanted{.id = {}, .name = name_, .trust = options.trust, .certificate = {}, .pending = "init"};
  driver::OsEntropy entropy;
  if (options.trust == hyperbus::TrustMode::psk) wanted.keys.push_back(crypto::random_secret<32>(entropy));

  auto& first = nodes_.front();
  HOLO_TRY(prepare_start(first.state_dir, wanted));
  HOLO_ASSIGN(first_agent, start(first));
  HOLO_TRY(settle(first, first_agent, AgentStage::alive));

  std::vector<BackgroundAgent> others;
  wanted.name.clear();
  wanted.pending = "join " + first.address;
  for (auto& node : nodes_ | std::views::drop(1)) {
    if (options.trust == hyperbus::TrustMode::roots) {
      HOLO_ASSIGN(certificate, certify(node.state_dir, first.state_dir + "/root.key"));
      wanted.certificate = std::move(certificate);
    }
    HOLO_TRY(prepare_start(node.state_dir, wanted));
    HOLO_ASSIGN(agent, start(node));
    others.push_back(std::move(agent));
  }
  for (std::size_t i = 0; i < others.size(); ++i) HOLO_TRY(settle(nodes_[i + 1], others[i], AgentStage::alive));
  return {};
}

// The record comes before what it names, so that whatever ends this process, the next command finds what to remove.
Status DevCluster::make_places() {
  if (cpus_ != 0) {
    HOLO_ASSIGN(parent, driver::find_cpu_group_parent());
    cpu_parent_ = parent;
  }
  HOLO_TRY(save());
  if (cpus_ != 0) {
    for (const auto& node : nodes_) {
      const auto group = std::filesystem::path(cpu_group(node)).filename().string();
      HOLO_TRY(driver::make_cpu_group(cpu_parent_, group, cpus_));
    }
  }
  if (!net_) return {};
  HOLO_TRY(make_dev_net(*net_));
  for (auto& node : nodes_) {
    node.part = 0;
    if (node.udp_blocked) HOLO_TRY(cmd::set_udp(*net_, node.number, Udp::blocked));
  }
  return save();
}

Status DevCluster::remove_places() {
  Status done;
  const auto note = [&](Status one) {
    if (done) done = std::move(one);
  };
  if (cpus_ != 0 && !cpu_parent_.folder.empty()) {
    for (const auto& node : nodes_) note(driver::remove_cpu_group(cpu_group(node), kStopLimit));
  }
  if (net_) note(remove_dev_net(*net_));
  return done;
}

std::string DevCluster::cpu_group(const DevNode& node) const {
  return cpus_ == 0 ? std::string() : str(cpu_parent_.folder, '/', dev_key(name_, folder_), "-", node.number);
}

Result<AgentPlace> DevCluster::place_of(const DevNode& node) const {
  AgentPlace place;
  const auto gone = [&](const Error& e) { return fail(Errc::not_found, e.message, kStartAgain); };
  if (net_) {
    auto network = driver::NetNamespace::open(net_->namespace_of(node.number));
    if (!network) return gone(network.error());
    place.network = std::move(*network).take_fd();
  }
  if (cpus_ != 0) {
    auto group = driver::open_cpu_group(cpu_group(node));
    if (!group) return gone(group.error());
    place.cpu_group = std::move(*group);
  }
  return place;
}

Outcome<void> DevCluster::start_all() {
  HOLO_TRY(remove_places());  // Of a machine that went down under it, say.
  HOLO_TRY(make_places());
  std::vector<BackgroundAgent> agents;
  for (auto& node : nodes_) {
    HOLO_ASSIGN(agent, start(node));
    agents.push_back(std::move(agent));
  }
  for (std::size_t i = 0; i < agents.size(); ++i) HOLO_TRY(settle(nodes_[i], agents[i], AgentStage::alive));
  return {};
}

std::string DevCluster::first_listen_address(const DevNode& node) const {
  // A namespace has all ports for itself; on loopback the kernel chooses one that is free.
  return net_ ? str(net_->address_of(node.number), ":", kDefaultPort) : "127.0.0.1:0";
}

Result<BackgroundAgent> DevCluster::start(DevNode& node) {
  if (node.address.empty()) {
    HOLO_TRY(write_config_file(node.state_dir + "/config.toml", {{"listen", first_listen_address(node)},
                                                                 {"name", str("node", node.number)},
                                                                 {"memory", std::to_string(memory_bytes_)},
                                                                 {"workers", std::to_string(workers_)}}));
  }
  AgentConfig config;
  config.state_dir = node.state_dir;
  HOLO_ASSIGN(place, place_of(node));
  return start_agent(config, {}, place, [&](const ProcessName& process) {
    node.process = process;
    return save();  // Before anything can go wrong with it: `down` must find it.
  });
}

Outcome<void> DevCluster::settle(DevNode& node, BackgroundAgent& agent, AgentStage stage) {
  if (auto up = agent.wait(stage, kStartLimit); !up) {
    up.error().error.message = str("node", node.number, ": ", up.error().error.message);
    return up;
  }
  if (node.address.empty()) {
    node.address = agent.listen_address();
    const auto path = node.state_dir + "/config.toml";
    HOLO_TRY(write_config_file(path, {{"listen", node.address},
                                      {"name", str("node", node.number)},
                                      {"memory", std::to_string(memory_bytes_)},
                                      {"workers", std::to_string(workers_)}}));
    HOLO_TRY(save());
  }
  return {};
}

/// The first node sees all of them alive. Its voters are waited for a little, so that a test which kills a node at once
/// finds the cluster as it will stay.
Outcome<void> DevCluster::wait_for_members() {
  HOLO_ASSIGN(link,
              AgentLink::connect(TargetOptions{.cluster = {}, .state_dir = nodes_.front().state_dir, .node = {}}));
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  for (;;) {
    HOLO_ASSIGN(status, link.json(wire::STATUS));
    std::size_t alive = 0, voters = 0;
    for (const auto& n : status["nodes"]) {
      alive += n["state"] == "alive";
      voters += n["voter"] == true;
    }
    const auto waited = Clock::now() - start;
    const bool voters_late = waited > std::chrono::nanoseconds(kVotersLimit.ns);
    if (alive >= nodes_.size() && (voters >= voters_of(nodes_.size()) || voters_late)) return {};
    if (waited > std::chrono::nanoseconds(kStartLimit.ns)) {
      return fail(Errc::deadline_exceeded, str("only ", alive, " of ", nodes_.size(), " nodes are alive"));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

Outcome<const DevNode*> DevCluster::node(unsigned number) const {
  const auto it = std::ranges::find(nodes_, number, &DevNode::number);
  if (it == nodes_.end())
    return fail(Errc::not_found, str("the cluster \"", name_, "\" has no node ", number),
                str("it has 1 to ", nodes_.size()));
  return &*it;
}

Outcome<void> DevCluster::kill(unsigned number) {
  HOLO_ASSIGN(target, node(number));
  if (!send_signal(target->process, SIGKILL))
    return fail(Errc::refused, str("node ", number, " does not run"), "holo dev status");
  wait_for_end(target->process, kStopLimit);
  return {};
}

Outcome<void> DevCluster::restart(unsigned number) {
  HOLO_ASSIGN(found, node(number));
  auto& target = nodes_[static_cast<std::size_t>(found - nodes_.data())];
  clear_environment(true, true);
  if (send_signal(target.process, SIGTERM) && !wait_for_end(target.process, kKeepLimit)) {
    send_signal(target.process, SIGKILL);
    wait_for_end(target.process, kStopLimit);
  }
  HOLO_ASSIGN(agent, start(target));
  return settle(target, agent, AgentStage::answering);
}

std::vector<ProcessName> DevCluster::agents() const {
  std::vector<ProcessName> out;
  for (const auto& n : nodes_) out.push_back(n.process);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, error)) {
    const auto lock = (entry.path() / "lock").string();
    const auto holder = process_name(driver::lock_holder(lock));
    // It holds the lock still: so it is that process, and not a later one of its pid.
    if (holder.start_time != 0 && driver::lock_holder(lock) == holder.pid) out.push_back(holder);
  }
  return out;
}

void DevCluster::stop_processes(Duration limit) {
  const auto processes = agents();
  for (const auto& process : processes) send_signal(process, SIGTERM);
  for (const auto& process : processes) {
    if (wait_for_end(process, limit)) continue;
    send_signal(process, SIGKILL);
    wait_for_end(process, kStopLimit);
  }
  for (const auto& record : driver::published_agents()) {
    if (!record.state_dir.starts_with(folder_ + "/")) continue;
    (void)driver::withdraw_agent(record);  // Those that were killed could not do it themselves.
    (void)driver::remove_file(record.socket);
  }
}

Outcome<void> DevCluster::check_net() const {
  if (net_) return {};
  return fail(Errc::refused, str("the nodes of \"", name_, "\" have no network of their own"),
              "holo dev up --net gives them one");
}

Outcome<void> DevCluster::partition(const std::vector<std::vector<unsigned>>& groups) {
  HOLO_TRY(check_net());
  std::vector<unsigned> parts(nodes_.size() + 1, 0);
  for (std::size_t g = 0; g < groups.size(); ++g) {
    for (const auto number : groups[g]) {
      HOLO_TRY(node(number));
      if (parts[number] != 0) return usage(str("node ", number, " is named twice"));
      parts[number] = static_cast<unsigned>(g) + 1;
    }
  }
  HOLO_TRY(partition_dev_net(*net_, groups));
  for (auto& n : nodes_) n.part = parts[n.number];
  HOLO_TRY(save());
  return {};
}

Outcome<void> DevCluster::set_udp(const std::vector<unsigned>& numbers, Udp udp) {
  HOLO_TRY(check_net());
  for (const auto number : numbers) HOLO_TRY(node(number));
  for (auto& n : nodes_) {
    if (!numbers.empty() && std::ranges::find(numbers, n.number) == numbers.end()) continue;
    HOLO_TRY(cmd::set_udp(*net_, n.number, udp));
    n.udp_blocked = udp == Udp::blocked;
  }
  HOLO_TRY(save());
  return {};
}

Outcome<void> DevCluster::down(DownOptions options) {
  stop_processes(options.keep_state ? kKeepLimit : kStopLimit);
  HOLO_TRY(remove_places());
  if (options.keep_state) return {};
  std::error_code error;
  for (const auto& n : nodes_) std::filesystem::remove_all(n.state_dir, error);
  std::filesystem::remove_all(folder_, error);  // The record last: who interrupts this can repeat it.
  if (error) return fail(Errc::io_error, str("cannot remove ", folder_, ": ", error.message()));
  return {};
}

}  // namespace holo::cmd
