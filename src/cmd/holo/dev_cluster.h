// A cluster of agents on this machine, for development: state directories, ports and processes under one folder.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cmd/holo/background.h"
#include "cmd/holo/dev_net.h"
#include "cmd/holo/outcome.h"
#include "core/hyperbus/trust.h"
#include "driver/posix/cpu_group.h"
#include "driver/posix/files.h"

namespace holo::cmd {

struct DevNode {
  unsigned number = 0;  ///< From 1.
  std::string state_dir;
  std::string address;  ///< Kept over restarts; empty before the first start.
  ProcessName process;  ///< Of its last start.
  bool udp_blocked = false;
  unsigned part = 0;  ///< Nodes hear those of the same part; 0: where all are that were not cut off.
  [[nodiscard]] bool running() const { return is_running(process); }
  [[nodiscard]] std::string log_file() const { return state_dir + "/agent.log"; }
};

struct DevOptions {
  unsigned nodes = 4;
  std::uint64_t memory_bytes = 0;  ///< Of each node; 0: half of what is available now, shared out.
  unsigned workers = 0;            ///< Of each node; 0: the cores shared out, at least 1.
  double cpus = 0;                 ///< Cores of each node, its workers included; 0: all.
  std::uint64_t net_rate = 0;      ///< A network of its own; bits per second of each node's link. 0: loopback.
  bool block_udp = false;          ///< With a network of its own only.
  hyperbus::TrustMode trust = hyperbus::TrustMode::psk;
};

inline constexpr unsigned kMaxDevNodes = 64;

/// Thread: one; the folder is locked while the object lives, so that two commands do not mix.
class DevCluster {
 public:
  /// The folder of the cluster `name`, under the XDG state directory. Failures: `not_found` when it was never up.
  static Outcome<DevCluster> open(const std::string& name);
  /// Makes and starts it; returns when every node is a live member. A cluster that was put down with its state kept is
  /// started again as it was; one whose start was interrupted is made anew. On failure nothing is left.
  /// Failures: `refused` (it is up, or was made with another network or share), what namespaces and shares need
  /// (`permission_denied`, `unsupported`), and what the agents say.
  static Outcome<DevCluster> up(const std::string& name, const DevOptions& options);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::vector<DevNode>& nodes() const { return nodes_; }
  /// Null: its nodes are on this machine's loopback.
  [[nodiscard]] const DevNet* net() const { return net_ ? &*net_ : nullptr; }
  /// Cores of each node; 0: all.
  [[nodiscard]] double cpus() const { return cpus_; }
  /// Empty without a share of its own.
  [[nodiscard]] std::string cpu_group(const DevNode& node) const;
  /// Failures: `not_found`.
  Outcome<const DevNode*> node(unsigned number) const;

  /// SIGKILL. Failures: `not_found`; `refused` when it does not run.
  Outcome<void> kill(unsigned number);
  /// Stops it when it runs, and starts it again on its port; returns when it answers local commands.
  Outcome<void> restart(unsigned number);
  /// Cuts the nodes apart, see partition_dev_net(); no groups: heals all cuts. Failures: `refused` (no network of its
  /// own), `not_found`.
  Outcome<void> partition(const std::vector<std::vector<unsigned>>& groups);
  /// Blocks UDP to these nodes, or allows it again; none named: to all. Failures: as above.
  Outcome<void> set_udp(const std::vector<unsigned>& numbers, Udp udp);
  /// Stops all of them, and removes namespaces and control groups. Without `keep_state`, the folder goes too.
  struct DownOptions {
    bool keep_state = false;
  };
  Outcome<void> down(DownOptions options);

 private:
  DevCluster(std::string name, std::string folder, driver::LockFile lock)
      : name_(std::move(name)), folder_(std::move(folder)), lock_(std::move(lock)) {}
  Outcome<void> load();
  Status save() const;
  /// Refuses options that a cluster which exists cannot follow any more.
  Outcome<void> check_same(const DevOptions& options) const;
  Outcome<void> check_net() const;
  Outcome<void> forget();
  [[nodiscard]] std::string first_listen_address(const DevNode& node) const;
  Outcome<void> make(const DevOptions& options);
  /// Namespaces and control groups, before the first agent; and away with them, after the last.
  Status make_places();
  Status remove_places();
  Result<AgentPlace> place_of(const DevNode& node) const;
  Outcome<void> start_all();
  Outcome<void> wait_for_members();
  Result<BackgroundAgent> start(DevNode& node);
  /// Waits for it and notes its address, so that the next start has the same port.
  Outcome<void> settle(DevNode& node, BackgroundAgent& agent, AgentStage stage);
  /// The agents that were started here, and whoever else has its state directory in the folder.
  [[nodiscard]] std::vector<ProcessName> agents() const;
  /// Ends all of these. Those that have not ended by then are killed.
  void stop_processes(Duration limit);

  std::string name_, folder_;
  driver::LockFile lock_;
  std::vector<DevNode> nodes_;
  std::uint64_t memory_bytes_ = 0;
  unsigned workers_ = 0;
  bool complete_ = false;  ///< All nodes were members once; before, the record only serves to clean up.
  std::optional<DevNet> net_;
  double cpus_ = 0;
  driver::CpuGroupParent cpu_parent_;
};

}  // namespace holo::cmd
