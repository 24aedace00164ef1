// A cluster of agents on this machine, for development: state directories, ports and processes under one folder.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cmd/holo/background.h"
#include "cmd/holo/outcome.h"
#include "driver/posix/files.h"

namespace holo::cmd {

struct DevNode {
  unsigned number = 0;  ///< From 1.
  std::string state_dir;
  std::string address;  ///< Kept over restarts; empty before the first start.
  ProcessName process;  ///< Of its last start.
  [[nodiscard]] bool running() const { return is_running(process); }
  [[nodiscard]] std::string log_file() const { return state_dir + "/agent.log"; }
};

struct DevOptions {
  unsigned nodes = 4;
  std::uint64_t memory_bytes = 0;  ///< Of each node; 0: half of what is available now, shared out.
  unsigned workers = 0;            ///< Of each node; 0: the cores shared out, at least 1.
};

inline constexpr unsigned kMaxDevNodes = 64;

/// Thread: one; the folder is locked while the object lives, so that two commands do not mix.
class DevCluster {
 public:
  /// The folder of the cluster `name`, under the XDG state directory. Failures: `not_found` when it was never up.
  static Outcome<DevCluster> open(const std::string& name);
  /// Makes and starts it; returns when every node is a live member. A cluster that was put down with its state kept is
  /// started again as it was. On failure nothing is left. Failures: `refused` (it is up), and what the agents say.
  static Outcome<DevCluster> up(const std::string& name, const DevOptions& options);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::vector<DevNode>& nodes() const { return nodes_; }
  /// Failures: `not_found`.
  Outcome<const DevNode*> node(unsigned number) const;

  /// SIGKILL. Failures: `not_found`; `refused` when it does not run.
  Outcome<void> kill(unsigned number);
  /// Stops it when it runs, and starts it again on its port; returns when it answers local commands.
  Outcome<void> restart(unsigned number);
  /// Stops all of them. With `remove`, the folder goes too.
  struct DownOptions {
    bool keep_state = false;
  };
  Outcome<void> down(DownOptions options);

 private:
  DevCluster(std::string name, std::string folder, driver::LockFile lock)
      : name_(std::move(name)), folder_(std::move(folder)), lock_(std::move(lock)) {}
  Outcome<void> load();
  Status save() const;
  Outcome<void> make(const DevOptions& options);
  Outcome<void> start_all();
  Outcome<void> wait_for_members();
  Result<BackgroundAgent> start(DevNode& node);
  /// Waits for it and notes its address, so that the next start has the same port.
  Outcome<void> settle(DevNode& node, BackgroundAgent& agent, AgentStage stage);
  /// Those that have not ended by then are killed.
  void stop_processes(Duration limit);

  std::string name_, folder_;
  driver::LockFile lock_;
  std::vector<DevNode> nodes_;
  std::uint64_t memory_bytes_ = 0;
  unsigned workers_ = 0;
};

}  // namespace holo::cmd
