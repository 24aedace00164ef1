// Whole clusters of the shipped control plane in the simulated world: machines with disks, clocks and agents that
// start, stop, crash and stand still. Each agent is node/control, node/kv and node/leases on driver/raft.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "env/entropy_testing.h"
#include "node/control.h"
#include "node/kv.h"
#include "node/leases.h"
#include "node/local_api.h"
#include "sim/disk.h"
#include "sim/loop.h"
#include "sim/mesh.h"
#include "sim/referee.h"

namespace holo::sim {

/// A process on a simulated machine.
class SimSession final : public node::LocalSession {
 public:
  explicit SimSession(std::uint64_t id) : id_(id) {}
  SessionId id() const override { return SessionId{id_}; }
  uid_t uid() const override { return 0; }
  pid_t pid() const override { return static_cast<pid_t>(id_); }
  const wire::Hello& hello() const override { return hello_; }
  Task<Result<node::LocalReply>> call(node::LocalRequest, Instant) override {
    co_return fail(Errc::unavailable, "this process serves nothing");
  }
  void notify(node::LocalRequest) override {}
  void close() override {}

 private:
  std::uint64_t id_;
  wire::Hello hello_;
};

/// One life of an agent. After a crash it is cut off from everything and comes to its end behind the scenes.
struct Agent {
  explicit Agent(World& world) : loop(world) {}
  SimLoop loop;
  std::shared_ptr<SimDisk> disk;
  std::unique_ptr<env::testing::SeededEntropy> entropy;
  std::unique_ptr<MeshPort> port;
  std::unique_ptr<env::StateMachine> watched;  ///< Between the log and the control service, for the referee.
  env::CommandLog* log = nullptr;              ///< Owned by the control service.
  node::LocalApi api;
  std::unique_ptr<node::ControlService> control;
  std::unique_ptr<node::KvService> kv;
  std::unique_ptr<node::LeaseService> leases;
  /// Requests of processes that wait for an answer.
  std::map<std::uint64_t, std::shared_ptr<OneShot<Result<std::string>>>> asked;
  std::uint64_t next_ask = 1;
  bool in_use = true;
  Instant ended;
};

struct Machine {
  NodeId id;
  std::string name, address;
  std::shared_ptr<SimDisk> disk;
  Duration wall_offset{};
  std::int64_t drift = 0;
  std::unique_ptr<Agent> agent;  ///< Null while it is off.
  bool booted = false;           ///< Its agent is in the cluster, or resumes.
  bool left = false;             ///< For good.
  bool leaving = false;          ///< It was asked to.
  bool moved = false;            ///< Its last start was at a new address.
  std::uint64_t starts = 0;
};

struct ClusterSettings {
  std::uint64_t seed = 1;
  unsigned snapshot_threshold = 256;
  unsigned snapshot_trailing = 64;
  std::uint64_t hosts = 0;  ///< Over which the machines are spread; 0: nobody says where they are.
};

/// Thread: the world's.
class Cluster {
 public:
  Cluster(World& world, Referee& referee, ClusterSettings settings);
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  Machine& add_machine();
  [[nodiscard]] std::map<NodeId, Machine>& machines() { return machines_; }
  Machine& at(NodeId id) { return machines_.at(id); }

  /// Starts the agent: it resumes where its disk says so; else it makes the cluster (`founder`) or joins at another
  /// machine's address. A start that fails is tried again, until the machine is turned off.
  void start(NodeId id);
  /// kill -9, and the power goes: unsynced writes are lost as chance will have it.
  void crash(NodeId id);
  /// Asks the agent to stop as `holo stop` does, and turns it off once it has, or after 3 s.
  void stop(NodeId id);
  /// Asks it to leave for good; the machine is off and wiped when that has worked.
  void leave(NodeId id, std::function<void(Status)> done);

  /// A request of a local process. Errors besides the agent's own: `unavailable` when there is no agent, or it ended
  /// meanwhile. The outcome is unknown unless `refused_before` was set.
  std::shared_ptr<OneShot<Result<std::string>>> ask(NodeId id, std::uint16_t type, std::string header,
                                                    std::shared_ptr<SimSession> session);

  /// Every machine that has not left is up and part of the cluster, with one leader that all know, the voters that its
  /// size asks for, and all entries applied. What is missing is said in `why`.
  [[nodiscard]] bool healthy(std::string& why);
  /// Agents of the past that have not come to their end.
  [[nodiscard]] std::size_t lingering();
  [[nodiscard]] std::string who_lingers() const;
  [[nodiscard]] std::vector<NodeId> up() const;

  Mesh& mesh() { return mesh_; }
  Random& random() { return random_; }
  /// A line of the run's story.
  std::function<void(const std::string&)> trace;
  std::uint64_t lost_writes = 0;

 private:
  friend class WatchedMachine;
  void boot(Machine& m);
  static Task<void> boot_task(Cluster* cluster, Machine* m, Agent* agent);
  static Task<void> stop_task(Cluster* cluster, Machine* m, Agent* agent, bool cleanly);
  static Task<void> leave_task(Cluster* cluster, Machine* m, Agent* agent, std::function<void(Status)> done);
  static Task<void> serve_task(Agent* agent, const node::LocalApi::Handler* handler,
                               std::shared_ptr<SimSession> session, node::LocalRequest request, std::uint64_t id);
  void retire(Machine& m);
  void retry(Machine& m, const Error& e);
  void say(const std::string& text) {
    if (trace) trace(text);
  }
  [[nodiscard]] std::string seed_address(NodeId but);

  World& world_;
  Referee& referee_;
  ClusterSettings settings_;
  Random random_;
  Mesh mesh_;
  bool founded_ = false;
  std::map<NodeId, Machine> machines_;
  std::vector<std::unique_ptr<Agent>> past_;
};

}  // namespace holo::sim
