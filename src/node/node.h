// One running node: the bus, the control state, memory, compute and the local socket, put together over the ports of
// env/. cmd/holo gives it Linux's drivers, libholo's local(n) runs several in one process.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "env/carrier.h"
#include "env/entropy.h"
#include "env/frames.h"
#include "env/kv_store.h"
#include "env/local_server.h"
#include "env/loop.h"
#include "env/page_faults.h"
#include "env/processes.h"
#include "node/bus.h"
#include "node/compute.h"
#include "node/control.h"
#include "node/control_admin.h"
#include "node/health.h"
#include "node/inventory.h"
#include "node/kv.h"
#include "node/leases.h"
#include "node/local_gate.h"
#include "node/memory.h"
#include "node/memory_control.h"
#include "node/trust.h"

namespace holo::node {

struct NodeConfig {
  std::string name;
  std::string listen;                  ///< "address:port" for other nodes; port 0: any.
  std::vector<std::string> advertise;  ///< What others dial; none: the bound address; port 0: the bound port.
  std::uint32_t cores = 1;
  double speed = 1;
  control::NodePlace place;   ///< Zone, host, rack, labels.
  bool witness = false;       ///< As it joins: votes, holds no pages, runs no tasks.
  std::string control_store;  ///< See NodeIdentity.
  std::string version;        ///< Of holo, for `status`.
  /// Look at the machine; block, on a helper thread. Null: nothing is known of it.
  std::function<Result<wire::Inventory>()> inventory;
  std::function<env::MachineReading()> reading;
  std::string socket_path;           ///< Where local processes connect; empty: they are only adopted.
  std::string settings_json = "{}";  ///< What CONFIG_SHOW answers.
  /// As remembered from the last run; what `status` shows until the log tells (which takes a quorum).
  ClusterId cluster = {};
  std::string cluster_name = {};
  CarrierUse carrier = CarrierUse::automatic;
  std::size_t mtu = 0;                                     ///< See BusOptions.
  std::string qlog;                                        ///< The folder of NodePorts::qlog, for people.
  std::shared_ptr<const hyperbus::SessionConfig> session;  ///< Trust adds keys, certificate and policy to it.
  TrustConfig trust;
  MemoryConfig memory;
  ComputeConfig compute;
};

/// All of them outlive the node, and every task that the loop still runs for it.
struct NodePorts {
  env::Loop& loop;
  env::Carrier& carrier;
  env::Datagrams* datagrams = nullptr;  ///< Null, or the next: nodes speak TCP only.
  env::QuicStack* quic = nullptr;
  env::QlogFactory qlog = {};  ///< null: none, until one is asked for
  /// Makes the folder if need be. Null: qlog cannot be asked for.
  std::function<Result<env::QlogFactory>(const std::string& folder)> open_qlog = {};
  env::Entropy& entropy;
  env::KvStore& store;
  env::FrameStore& frames;
  env::PageFaults& faults;
  env::Processes& processes;
  env::LocalServer& local;
  /// Opens the replicated log; its messages to other nodes go through `transport`, this node's bus.
  std::function<Result<std::unique_ptr<env::CommandLog>>(env::Transport& transport, env::StateMachine&, LogOptions)>
      open_log;
  /// Two connected stream sockets: one for the agent, one for a worker.
  std::function<Result<std::pair<env::Fd, env::Fd>>()> socket_pair;
};

/// A resource. Thread: loop. Its life: open(), one of begin_*(), stop(), destruction once the loop runs nothing of it.
class Node {
 public:
  Node(NodePorts ports, NodeConfig config);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  /// Binds the port for other nodes and builds the services. Errors: `already_exists` (port in use),
  /// `permission_denied`, `invalid_argument`, `io_error`.
  Status open();
  /// The bound "address:port"; after open().
  [[nodiscard]] const std::string& listen_address() const { return listen_address_; }
  /// True when the store says that this node is a member of a cluster: it resumes.
  Result<bool> has_cluster() { return control_->has_cluster(); }

  /// Makes a new cluster. Errors: as ControlService::init; those of LocalServer::listen.
  Task<Status> begin_init(std::string cluster_name, Instant deadline, std::shared_ptr<const Bytes> from = nullptr);
  /// Enters the cluster of `seed`. Errors: as ControlService::join; those of LocalServer::listen.
  Task<Status> begin_join(std::string seed, Instant deadline);
  /// Goes on after a restart; answers local processes when this returns, whether or not others are reachable. Errors:
  /// those of LocalServer::listen, and damage found in the state directory.
  Task<Status> begin_resume();
  /// Instead of begin_...: as ControlService::forget_if_removed().
  Task<Result<bool>> forget_if_removed();
  /// Returns once this node is a live member. Errors: `deadline_exceeded`, `cancelled`, `permission_denied` (it was
  /// removed).
  Task<Status> wait_alive(Instant deadline);

  /// Ends jobs and workers, leaves the log, closes every connection, all within a second or so; then writes the
  /// committed pages, which takes what it takes. Idempotent. Errors: what could not be kept.
  Task<Status> stop();
  /// stop() has come to its last step.
  [[nodiscard]] bool keeping_pages() const { return keeping_pages_; }

  /// Called when a local process asked for the end (STOP), or after this node has left its cluster.
  void on_end(std::function<void(bool left_cluster)> f) { on_end_ = std::move(f); }

  /// Called when this node must not go on, and should end with that error.
  void on_fatal(std::function<void(Error)> f) { control_->set_on_fatal(std::move(f)); }

  /// This machine has other addresses: `advertise` is what others dial from now on, as in the configuration.
  void addresses_changed(const std::vector<std::string>& advertise);

  /// The object of `holo status --json`.
  [[nodiscard]] std::string status_json() const;

  [[nodiscard]] ControlService& control() { return *control_; }
  [[nodiscard]] MemoryService& memory() { return *memory_; }
  [[nodiscard]] Bus& bus() { return *bus_; }

 private:
  void build_services();
  Result<std::string> change_qlog(const LocalRequest& request);
  void serve_admin();
  [[nodiscard]] std::uint64_t unanswered() const;
  [[nodiscard]] wire::HelloReply describe(const LocalSession& session) const;
  /// The local socket opens, and the pages that were kept are read.
  Task<Status> serve_processes();
  Task<Result<LocalReply>> leave();
  Task<Status> hand_over(Instant deadline);
  /// True when a shard has its only copy here and no node to take it.
  [[nodiscard]] bool nobody_takes_over() const;

  NodePorts ports_;
  NodeConfig config_;
  std::string listen_address_;
  std::function<void(bool)> on_end_;
  std::unique_ptr<TrustService> trust_;
  std::unique_ptr<Bus> bus_;
  std::unique_ptr<ControlService> control_;
  std::unique_ptr<MemoryControl> memory_control_;
  std::unique_ptr<MemoryService> memory_;
  std::unique_ptr<ComputeService> compute_;
  LocalApi api_;
  std::unique_ptr<KvService> kv_;
  std::unique_ptr<LeaseService> leases_;
  std::unique_ptr<ControlAdmin> control_admin_;
  std::unique_ptr<InventoryService> inventory_;
  std::unique_ptr<HealthService> health_;
  std::unique_ptr<LocalGate> gate_;
  bool stopped_ = false;
  bool keeping_pages_ = false;
};

}  // namespace holo::node
