// The inside of ControlService, shared by its files. Coroutines are static and hold the Impl: the service may go
// before they end; after each wait they look at `stopped`.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/membership/health.h"
#include "core/membership/heartbeat.h"
#include "core/membership/voters.h"
#include "node/control.h"
#include "node/membership.h"
#include "wire/message_types.h"

namespace holo::node {

struct ControlService::Impl final : env::StateMachine, control::StateObserver, std::enable_shared_from_this<Impl> {
  using Self = std::shared_ptr<Impl>;

  Impl(Ports p, NodeIdentity id);

  // ---- env::StateMachine
  void apply(LogIndex index, WallTime when, ByteSpan command) override;
  Bytes snapshot() const override { return state.snapshot(); }
  Status restore(LogIndex index, ByteSpan bytes) override { return state.restore(index, bytes); }
  std::unique_ptr<env::StateCut> cut() override { return state.cut(); }
  std::unique_ptr<env::StateLoad> load() override { return state.load(); }

  // ---- control::StateObserver
  void on_commit(RegionId, Version, TxnId, std::span<const control::PageRange>) override {}
  void on_region_created(RegionId) override {}
  void on_region_freed(RegionId region) override { floors.erase(region); }
  void on_nodes_changed(Epoch epoch, NodeId node) override;
  void on_placement_changed(RegionId) override {}
  void on_restored() override;

  // ---- Life (control.cc)
  Status begin(LogOptions options);
  /// Takes one that this node never had, above `known`, and keeps it.
  Status next_incarnation(std::uint64_t known = 0);
  Status save_cluster(const std::vector<wire::NodeInfo>& nodes);
  [[nodiscard]] wire::NodeInfo info() const;
  [[nodiscard]] Instant now() const { return ports.loop->now(); }
  [[nodiscard]] env::LogStatus log_status() const { return log ? log->status() : env::LogStatus{}; }
  [[nodiscard]] bool leads() const { return log && log->status().role == env::LogRole::leader; }
  void make_membership();
  static Task<Status> init(Self me, std::string name, Instant deadline, std::shared_ptr<const Bytes> from);
  static Task<Status> restore_from(Self me, std::shared_ptr<const Bytes> file, Instant deadline);
  static Task<Status> stop(Self me);

  // ---- One identity, one agent (control_twin.cc)
  static Task<Status> look_for_twin(Self me);
  static Task<std::vector<std::string>> ask_where(Self me, std::string address, LogIndex known);
  static Task<bool> is_own(Self me, std::string address);
  void count_replacement();

  // ---- Who is served (control_gate.cc)
  void guard_peers();
  [[nodiscard]] bool is_member(NodeId node) const;
  [[nodiscard]] bool counts_as_member(NodeId node) const;
  [[nodiscard]] bool admits(NodeId from, wire::PeerMessage type) const;
  [[nodiscard]] bool can_find_out(NodeId about, wire::PeerMessage type) const;
  [[nodiscard]] std::vector<NodeId> whom_to_ask(NodeId about);
  void introduce(const wire::JoinReply& record);
  static Task<Status> inquire(Self me, NodeId from, wire::PeerMessage type);
  static Task<void> ask_around(Self me, NodeId about);
  static Task<Result<env::Reply>> on_member_query(Self me, NodeId from, env::Request request);
  std::vector<std::string> begun_elsewhere(NodeId node, const wire::MemberQuery& query);

  // ---- Proposals and waits (control.cc)
  static Task<Result<wire::CommandResult>> propose(Self me, wire::CommandBody body, Instant deadline);
  static Task<Status> wait(Self me, std::function<std::optional<Status>()> done, Instant deadline, std::string what);
  void wake();

  // ---- Membership (control_membership.cc; leaving: control_leave.cc)
  void serve_peers();
  void log_changed();
  void nodes_changed_soon();
  void nodes_changed();
  void return_anew(std::uint64_t known);
  static Task<Status> join(Self me, std::string seed, Instant deadline);
  /// What a member answered: refused as a stranger by all for a while, this node knows that it was removed.
  void note_standing(const Status& answer);
  /// What a member's copy of the log says of this node, which was a member at entry `known`: kept for good.
  void take_standing(const wire::MemberQueryReply& said, LogIndex known);
  void keep_removal();
  [[nodiscard]] Result<bool> removal_kept() const;
  [[nodiscard]] std::optional<Error> removal() const;
  static Task<void> ask_standing(Self me, NodeId of);
  void ask_somebody();
  static Task<Status> leave(Self me, Instant deadline);
  static Task<Result<bool>> forget_if_removed(Self me);
  static Task<Status> leave_draining(Self me, Instant deadline);
  static Task<Status> give_up_lead(Self me, Instant deadline);
  static Task<Status> ask_to_leave(Self me, Instant deadline);
  static Task<Status> stay_once(Self me);
  static Task<void> stay(Self me);
  static Task<Status> take_vote(Self me, NodeId node, Instant deadline);
  static Task<void> beat_loop(Self me);
  static Task<void> beat(Self me, NodeId to);
  static Task<void> lead_loop(Self me);
  static void tend_leases(const Self& me);
  static Task<void> propose_leases(Self me, std::uint64_t term, bool begun);
  void count_votes();
  static Task<void> declare_dead(Self me, membership::Verdict death, std::vector<NodeId> votes);
  static void beat_now(const Self& me);
  void standing_changed(NodeId node);
  void note_primary();
  [[nodiscard]] std::optional<Error> not_primary() const;
  [[nodiscard]] std::optional<Error> apart() const;
  [[nodiscard]] std::string without_leader() const;
  static Task<void> reconcile(Self me);
  static Task<Result<bool>> reconcile_once(Self me);
  static Task<void> admit(Self me, wire::NodeInfo node, bool alive);
  Result<wire::HeartbeatReply> hear(NodeId from, const wire::Heartbeat& beat);
  void take_usage(NodeId node, std::uint64_t frames_used, const wire::NodeHealth& said);
  /// To a heartbeat that was sent under incarnation `said`.
  void take_reply(std::uint64_t said, const wire::HeartbeatReply& reply);
  void look_for(NodeId leader, const google::protobuf::RepeatedPtrField<std::string>& told);
  [[nodiscard]] wire::Heartbeat make_beat() const;
  void compute_floors();
  void raise_floors(const google::protobuf::RepeatedPtrField<wire::RegionVersion>& raised);
  static Task<Result<env::Reply>> refuse_stopped();
  static Task<Result<env::Reply>> on_heartbeat(Self me, NodeId from, env::Request request);
  static Task<Result<env::Reply>> on_join(Self me, NodeId from, env::Request request);
  static Task<Result<env::Reply>> on_leave(Self me, NodeId from, env::Request request);

  Ports ports;
  NodeIdentity identity;
  std::uint64_t incarnation = 0;
  control::State state;
  std::unique_ptr<env::CommandLog> log;
  bool stopped = false;
  bool leaving = false;
  bool removed = false;                  ///< The others say that it is no member any more.
  bool removed_for_good = false;         ///< Their log says so.
  bool staying = false;                  ///< A drain is being taken back.
  std::optional<Instant> refused_since;  ///< By every member that answered.

  std::function<wire::NodeReport()> report_source;
  std::vector<std::function<void()>> floors_observers;
  std::function<Task<Status>(Instant)> leave_check;
  std::function<void(Error)> on_fatal;
  std::vector<Instant> replaced_at;  ///< Of late: by somebody else under this identity.
  struct Begun {
    NodeId node;
    std::vector<std::string> addresses;
    Instant when;
  };
  std::deque<Begun> begun;  ///< Members that have asked where they are, as they began.

  // Proposals
  std::uint64_t next_sequence = 1;
  std::set<std::uint64_t> outstanding;
  struct Waiter {
    std::function<std::optional<Status>()> done;
    std::shared_ptr<OneShot<Result<bool>>> shot;
  };
  std::vector<Waiter> waiters;
  bool wake_posted = false;

  // Who is served: the state's members, but what this node was told when it was let in, or kept when it ended, as long
  // as the state is behind that.
  std::set<NodeId> introduced;
  LogIndex introduced_until;
  static constexpr LogIndex kJoining{~std::uint64_t{0}};
  std::map<NodeId, LogIndex> vouched;       ///< Members say that these were members at that entry.
  std::map<NodeId, std::size_t> inquiries;  ///< Under way; requests that wait for each.
  std::map<NodeId, Instant> strangers;      ///< Nobody knew them; asked about again after that.
  std::size_t next_to_ask = 0;

  // Membership
  std::shared_ptr<Membership> swim;
  membership::HeartbeatPlan plan;
  struct Votes {
    std::vector<membership::Verdict> verdicts;
    Instant when;
  };
  std::map<NodeId, Votes> votes;  ///< Leader: whom the voters hold for dead, as last heard.
  Instant last_beat;              ///< The last one out of turn.
  std::uint64_t led_in = 0;       ///< The term in which this node last began to lead; 0: it does not lead.
  NodeId leader_before;
  std::optional<Instant> leaderless;  ///< Since when no leader is known, or the one that is has fallen silent.
  unsigned beats_in_flight = 0;
  bool nodes_change_posted = false;
  std::string saved_cluster;                   ///< As last written to the store.
  std::map<NodeId, wire::NodeReport> reports;  ///< Leader: the newest of each live incarnation.
  std::map<NodeId, std::uint64_t> report_incarnations;
  std::map<NodeId, std::uint64_t> usage;        ///< Frames used, as heard.
  std::map<NodeId, membership::Health> health;  ///< As heard.
  std::map<RegionId, Version> floors;
  std::set<NodeId> admitting;           ///< Leader: a proposal about this node is under way.
  std::map<NodeId, bool> alive_before;  ///< As nodes_changed() saw them last.
  bool tending_leases = false;
  std::uint64_t leases_begun = 0;  ///< Leader: the term in which leases have their whole time again.
  bool reconciling = false;
  bool reconcile_again = false;  ///< Something changed since it last looked.
};

}  // namespace holo::node
