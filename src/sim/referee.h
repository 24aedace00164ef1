// Watches a simulated cluster from outside and says when a promise is broken: what every step must keep. It has a copy
// of the control state of its own, the shadow, to which each entry is applied once, when the first node applies it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/control/state.h"
#include "env/command_log.h"
#include "env/log_store.h"
#include "sim/linearizability.h"

namespace holo::sim {

/// One change of the key-value store, as every watcher must see it.
struct KvChange {
  std::uint64_t revision = 0;
  std::string key;
  std::string value;
  bool deleted = false;
  friend bool operator==(const KvChange&, const KvChange&) = default;
};

/// An answered request of a client, with the revision of the store that it names.
struct Revisioned {
  std::int64_t begin = 0, end = 0;
  std::uint64_t revision = 0;
  bool write = false;
};

/// Thread: the world's. Cost of an entry: that of applying it, and a snapshot now and then.
class Referee final : public control::StateObserver {
 public:
  Referee();
  Referee(const Referee&) = delete;
  Referee& operator=(const Referee&) = delete;

  // ---- What happens on the nodes.

  void on_append(NodeId node, const env::LogEntry& entry);
  void on_truncate(NodeId node, std::uint64_t index);
  /// After every step of a node.
  void on_status(NodeId node, const env::LogStatus& status);
  /// The leader's view of who votes.
  void on_members(NodeId node, const env::LogStatus& status, const std::vector<env::LogMember>& members);
  void on_applied(NodeId node, LogIndex index, WallTime when, ByteSpan command, const control::State& state);
  void on_restored(NodeId node, LogIndex index);
  /// A life of the node ends; it may have to apply entries again.
  void on_start(NodeId node);

  // ---- What clients are told.

  void on_answer(Revisioned answer) { answers_.push_back(answer); }
  /// A watcher of every key, which has seen `cursor` changes so far, was given these.
  void on_watched(NodeId node, std::uint64_t& cursor, const std::vector<KvChange>& changes);
  /// The number of changes below this revision.
  [[nodiscard]] std::uint64_t changes_before(std::uint64_t revision) const;
  [[nodiscard]] std::uint64_t changes() const { return changes_.size(); }
  /// All changes of keys, in their order.
  [[nodiscard]] const std::vector<KvChange>& all_changes() const { return changes_; }

  /// What is left to check once all is over.
  void finish();
  /// Every node that is up has come to the same end: byte for byte that of the shadow.
  void compare(NodeId node, const control::State& state);

  void broken(std::string what);
  [[nodiscard]] const std::optional<std::string>& violation() const { return violation_; }
  [[nodiscard]] const control::State& shadow() const { return shadow_; }
  [[nodiscard]] std::uint64_t entries() const { return log_.size(); }
  [[nodiscard]] std::uint64_t compared() const { return compared_; }
  [[nodiscard]] std::uint64_t deaths() const { return died_.size(); }
  [[nodiscard]] std::uint64_t lock_grants() const { return grants_; }
  [[nodiscard]] std::uint64_t removals() const { return left_.size(); }
  [[nodiscard]] std::uint64_t spread() const { return spread_; }

  std::function<void(const std::string&)> trace;

 private:
  // ---- control::StateObserver, of the shadow.
  void on_commit(RegionId, Version, TxnId, std::span<const control::PageRange>) override {}
  void on_region_created(RegionId) override { placement_changed_ = true; }
  void on_region_freed(RegionId region) override;
  void on_nodes_changed(Epoch, NodeId) override { nodes_changed_ = placement_changed_ = true; }
  void on_placement_changed(RegionId) override { placement_changed_ = true; }
  void on_restored() override {}

  /// An entry may carry several commands: (index, which of them).
  using Position = std::pair<std::uint64_t, std::uint64_t>;
  struct Applied {
    std::uint64_t hash = 0;
    std::uint64_t after = 0;     ///< Fingerprint of the state afterwards, and of the command's result.
    std::uint64_t snapshot = 0;  ///< Of the whole state; 0: not taken.
  };
  struct NodeSeen {
    control::NodeState state = control::NodeState::alive;
    std::uint64_t incarnation = 0;
  };
  struct LeaseModel {
    std::uint64_t ttl = 0;
    std::int64_t deadline = 0;
  };
  struct LockModel {
    std::uint64_t lease = 0;
    std::uint64_t token = 0;
  };

  void apply_to_shadow(Position at, WallTime when, ByteSpan command, std::uint64_t hash);
  void check_nodes(Epoch before);
  void check_homes();
  void check_hosts();
  void check_leases(const wire::Command& command, const wire::CommandResult& result);
  void check_locks(const wire::Command& command);
  void take_changes();
  static std::uint64_t fingerprint(const control::State& state, ByteSpan command);

  control::State shadow_;
  std::map<Position, Applied> log_;
  Position last_;
  WallTime last_when_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> stored_;  ///< (index, term) -> hash
  std::map<std::uint64_t, NodeId> leaders_;                                  ///< By term.
  std::map<NodeId, Position> applied_;
  std::map<NodeId, LogIndex> committed_;
  std::set<std::pair<NodeId, std::uint64_t>> died_;
  std::set<NodeId> left_;
  std::map<NodeId, NodeSeen> nodes_;
  bool nodes_changed_ = false, placement_changed_ = false;
  Epoch homes_epoch_;
  std::map<std::pair<RegionId, std::uint16_t>, NodeId> homes_;
  std::set<std::array<std::uint64_t, 3>> acted_;  ///< Commands that the shadow has seen: client, incarnation, sequence.
  std::map<std::uint64_t, LeaseModel> leases_;
  std::map<std::string, LockModel> locks_;
  std::map<std::string, std::uint64_t> tokens_;  ///< The highest so far.
  std::uint64_t grants_ = 0;
  std::vector<KvChange> changes_;
  std::uint64_t changes_until_ = 0;
  std::vector<Revisioned> answers_;
  std::pair<std::uint64_t, std::set<NodeId>> voters_;  ///< (term, voters) as a leader last told.
  std::uint64_t compared_ = 0, spread_ = 0;
  std::optional<std::string> violation_;
};

/// Of bytes; the same on every machine.
std::uint64_t hash_of(ByteSpan bytes);

}  // namespace holo::sim
