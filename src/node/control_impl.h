// What ControlService keeps; shared by its parts: control.cc (life, proposals, waiting), control_membership.cc
// (heartbeats, joining, leaving, voters), control_local.cc (regions for local processes).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/membership/detector.h"
#include "core/membership/voters.h"
#include "node/control.h"

namespace holo::node {

struct ControlService::Impl final : env::StateMachine, control::StateObserver {
  Impl(ControlService& service, Ports ports_in) : self(service), ports(std::move(ports_in)) {}

  // ---- control.cc
  void apply(LogIndex index, WallTime when, ByteSpan command) override;
  Bytes snapshot() const override { return self.state_.snapshot(); }
  Status restore(LogIndex index, ByteSpan snapshot) override;
  Status bump_incarnation();
  Status open_log(bool bootstrap);
  Status remember_cluster(bool member);
  Task<Status> wait_until(std::function<bool()> ready, Instant deadline, std::string what);
  void wake_waiters();
  [[nodiscard]] wire::NodeInfo info() const;

  // ---- control_membership.cc
  void serve_peers();
  void start_loops();
  void learn_addresses(NodeId node);
  void on_commit(RegionId, Version, TxnId, std::span<const control::PageRange>) override {}
  void on_region_created(RegionId) override {}
  void on_region_freed(RegionId region) override { floors.erase(region); }
  void on_nodes_changed(Epoch epoch, NodeId node) override;
  void on_placement_changed(RegionId) override {}
  void on_restored() override;
  Task<void> beat();
  Task<void> watch();
  Task<void> beat_once();
  Result<wire::HeartbeatReply> on_heartbeat(NodeId from, wire::Heartbeat beat);
  void admit(wire::NodeInfo node);
  void raise_floors();
  void take_reply(const wire::HeartbeatReply& reply);
  std::optional<membership::VoterChange> next_change(bool& hand_over) const;
  void declare_dead();
  Task<void> mend_voters();
  Task<void> propose_quietly(wire::CommandBody body, std::string what);
  Task<Result<env::Reply>> on_join(NodeId from, env::Request request);
  Task<Result<wire::JoinReply>> admit_newcomer(wire::JoinRequest request, Instant deadline);
  Task<Result<wire::JoinReply>> ask_to_join(std::string seed, Instant deadline);

  // ---- control_local.cc
  Task<Result<LocalReply>> create_region(std::shared_ptr<LocalSession> session, LocalRequest request);
  Task<Result<LocalReply>> open_region(LocalRequest request);
  Task<Result<LocalReply>> list_regions();
  Task<Result<LocalReply>> free_region(std::shared_ptr<LocalSession> session, LocalRequest request);

  ControlService& self;
  Ports ports;
  std::unique_ptr<env::CommandLog> log;
  bool stopping = false;
  bool loops_started = false;

  std::uint64_t next_sequence = 1;
  std::set<std::uint64_t> outstanding;

  struct Waiter {
    std::function<bool()> ready;
    std::shared_ptr<OneShot<Result<bool>>> shot;
  };
  std::vector<Waiter> waiters;

  membership::FailureDetector detector{membership::DetectorConfig{}};
  membership::HeartbeatPlan plan{membership::HeartbeatConfig{}, self.identity_.id};
  std::set<NodeId> proposing;  ///< Nodes about which a NodeAlive or NodeDead is under way.
  bool mending = false;
  bool admitting = false;                      ///< A newcomer is being added: one at a time.
  std::map<NodeId, wire::NodeReport> reports;  ///< Leader: the newest of each node under this leadership.
  std::map<RegionId, Version> floors;
  std::map<NodeId, std::uint64_t> usage;
};

}  // namespace holo::node
