// The node's part in the cluster: its copy of the replicated state, proposals to the log, heartbeats, joining and
// leaving.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/task.h"
#include "base/time.h"
#include "core/control/state.h"
#include "core/membership/health.h"
#include "env/command_log.h"
#include "env/entropy.h"
#include "env/kv_store.h"
#include "env/loop.h"
#include "env/transport.h"
#include "node/local_api.h"
#include "wire/control.pb.h"
#include "wire/membership.pb.h"

namespace holo::node {

class Membership;

/// What this node says of itself. The incarnation is ControlService's own (kept in the KvStore, higher at each start).
struct NodeIdentity {
  NodeId id;
  std::string name;
  std::vector<std::string> addresses;  ///< Advertised "host:port".
  std::uint32_t cores = 0;
  std::uint64_t memory_bytes = 0;
  double speed = 0;
  std::string version;
  control::NodePlace place;
  bool witness = false;
  std::string control_store;  ///< Where this node looks for the log, for people; empty: raft. Alike on every node.
};

/// Opens the log over `machine`. `bootstrap`: a fresh cluster with this node as its only voter; otherwise the log goes
/// on from what is on disk, or waits empty for a leader.
struct LogOptions {
  NodeId self;
  bool bootstrap = false;
  bool joining = false;  ///< For the first time: a log that another program keeps has to be there already.
};
using LogFactory =
    std::function<Result<std::unique_ptr<env::CommandLog>>(env::StateMachine& machine, LogOptions options)>;

/// Thread: loop. Lives as long as the services that observe it.
class ControlService {
 public:
  struct Ports {
    env::Loop* loop = nullptr;
    env::Transport* transport = nullptr;
    env::KvStore* store = nullptr;
    env::Entropy* entropy = nullptr;
    LogFactory open_log;
  };
  ControlService(Ports ports, NodeIdentity self);
  ~ControlService();
  ControlService(const ControlService&) = delete;
  ControlService& operator=(const ControlService&) = delete;

  // ---- Life. Exactly one of init, join, resume, after every service has registered with it and before it is used.

  /// True when this node's store says that it is a member of a cluster: then resume(), else init() or join().
  Result<bool> has_cluster();
  /// Makes a new cluster with this node in it. Errors: `refused` (this node is in a cluster already), `io_error`.
  /// `from`: what another cluster has kept (control/backup.h, whole and checked); this one goes on from there. Errors
  /// besides: `corrupt`.
  Task<Status> init(std::string cluster_name, Instant deadline, std::shared_ptr<const Bytes> from = nullptr);
  /// Enters the cluster that `seed` ("host:port") belongs to; done once this node has applied its own entry as alive.
  /// Errors: `unavailable`, `wrong_key`, `wrong_version`, `deadline_exceeded`, `no_quorum`, `over_limit`, `refused`.
  Task<Status> join(std::string seed, Instant deadline);
  /// Before resume(): nobody else is this node, or has its name, as far as that can be found out. Takes 1.5 s for an
  /// address of old at which nobody answers. Learns besides whether this node was removed. Errors: `already_exists`.
  Task<Status> look_for_twin();
  /// Instead of resume(): true when this node was removed, as it knows already or another member says now (3 s at
  /// most); its store then belongs to no cluster any more. Errors: those of the store.
  Task<Result<bool>> forget_if_removed();
  /// Called when this node must not go on (another agent speaks in its name).
  void set_on_fatal(std::function<void(Error)> f);
  /// Goes on after a restart. Returns at once; this node is alive again once a leader has heard it (ready()). One that
  /// was removed for good only answers so, and can leave().
  Status resume();
  /// Leaves the cluster for good: drains (see set_leave_check), then NodeLeave. Errors: `refused` with what it still
  /// holds, `deadline_exceeded`, `no_quorum`.
  Task<Status> leave(Instant deadline);
  /// Stops loops and the log; writes nothing more. Before destruction, while the loop still runs.
  Task<void> stop();

  // ---- For other services.

  [[nodiscard]] const control::State& state() const;
  /// Before init, join or resume. The observer lives until stop() has ended.
  void add_observer(control::StateObserver* observer);
  [[nodiscard]] NodeId self() const;
  /// Grows when this node was declared dead although it lives: its transactions are fenced from then on. Read it for
  /// each one.
  [[nodiscard]] std::uint64_t incarnation() const;
  /// The leader as this node knows it; 0 while unknown.
  [[nodiscard]] NodeId leader() const;
  [[nodiscard]] bool is_leader() const;
  /// The others refuse this node: it was removed, and has to join anew.
  [[nodiscard]] bool removed() const;
  /// So a member's copy of the log says, and nothing can change it: known over restarts, until it leaves.
  [[nodiscard]] bool removed_for_good() const;
  /// What to answer to whoever asks anything of a node that was removed; nullopt: it was not.
  [[nodiscard]] std::optional<Error> removal() const;
  /// This node is alive in the state under its own incarnation: it may commit.
  [[nodiscard]] bool ready() const;
  [[nodiscard]] env::LogStatus log_status() const;
  /// The cluster's time, by which leases end: that of the log (CommandLog::now), not of any wall clock.
  [[nodiscard]] WallTime log_now() const;
  [[nodiscard]] std::vector<env::LogMember> log_members() const;

  /// Appends a command and returns its result once applied here. Retries until `deadline`, across leaders, without
  /// acting twice. A command that the state refuses gives that error. Errors besides: `deadline_exceeded` and
  /// `no_quorum` (outcome unknown; at once while not_primary()), `overloaded` (limits::kMaxPendingCommands),
  /// `over_limit` (kMaxCommandBytes), `cancelled` (shutdown). Thread: loop.
  Task<Result<wire::CommandResult>> propose(wire::CommandBody body, Instant deadline);
  /// Until this node has applied `index`. Errors: `deadline_exceeded`, `cancelled`.
  Task<Status> wait_applied(LogIndex index, Instant deadline);
  /// Until `region` is at `version` or higher here. Errors: `not_found` (freed meanwhile), `deadline_exceeded`,
  /// `cancelled`.
  Task<Status> wait_version(RegionId region, Version version, Instant deadline);
  /// Until `done` gives a status, which is then the result. It is asked at once and after each entry that is applied
  /// here. Errors besides: `deadline_exceeded` (with `what` in it), `cancelled`.
  Task<Status> wait_until(std::function<std::optional<Status>()> done, Instant deadline, std::string what);
  /// A linearizable read point: everything committed before the call is applied here. Errors: as CommandLog::barrier.
  Task<Status> barrier(Instant deadline);

  /// The connection to `peer` has closed: it is probed at once.
  void peer_lost(NodeId peer);
  /// Why this node is on a side of a split that decides nothing, or looks as if; nullopt: it is on the primary side as
  /// far as it knows. Once that has lasted longer than an election takes, every change is answered so at once.
  [[nodiscard]] std::optional<Error> apart() const;
  /// Who answers and who does not, as seen from here.
  [[nodiscard]] const Membership& membership() const;

  /// Where others dial this node from now on; its next heartbeats tell them.
  void set_addresses(std::vector<std::string> addresses);

  /// What goes into this node's heartbeats: frames used, and per region the lowest snapshot in use (or the newest
  /// applied).
  void set_report_source(std::function<wire::NodeReport()> source);
  /// No snapshot of `region` below this is in use anywhere: older versions may go. Never falls. 0: nothing may go.
  [[nodiscard]] Version floor(RegionId region) const;
  /// Called after floors have risen.
  void on_floors(std::function<void()> f);
  /// As heard through the leader; 0 when unknown.
  [[nodiscard]] std::uint64_t frames_used(NodeId node) const;
  /// As heard through the leader; null when unknown.
  [[nodiscard]] const membership::Health* health(NodeId node) const;

  /// Asked by leave() after the node is draining; returns once nothing here is a last copy, or `refused` saying what
  /// is. Without one, the state alone decides.
  void set_leave_check(std::function<Task<Status>(Instant deadline)> f);

  /// Registers REGION_CREATE, REGION_OPEN, REGION_LIST and REGION_FREE.
  void register_local(LocalApi& api);
  /// As sent to local processes.
  [[nodiscard]] wire::RegionInfo region_info(RegionId id) const;

  struct Impl;

 private:
  std::shared_ptr<Impl>
      impl_;  ///< What waits for the network keeps it, and then looks whether the service has stopped.
};

}  // namespace holo::node
