// Who answers and who does not: SWIM with Lifeguard. What comes out is this node's own view, and its own verdict on who
// is dead; death itself is decided by the cluster (a majority of the voters, each by its own verdict, as one log
// entry). The members are those of the log (set_members); gossip says only who is suspected, and who denies it.
//
// A core: no clock, no network, no randomness of its own. The caller hands in time and a Random, delivers `Effects` and
// calls tick() at next_wake().
//
// Sources: Das, Gupta, Motivala: SWIM, DSN 2002. Dadgar, Phillips, Currey: Lifeguard, DSN 2018.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/random.h"
#include "base/time.h"

namespace holo::membership {

/// One start of a node (the incarnation of the control state), and how often it has denied its death since.
struct Incarnation {
  std::uint64_t start = 0;
  std::uint32_t round = 0;
  friend auto operator<=>(const Incarnation&, const Incarnation&) = default;
};

enum class Claim : std::uint8_t { alive = 1, suspect = 2, dead = 3 };

/// A piece of gossip. `by`: who could not reach it (suspect only).
struct Update {
  NodeId node;
  Incarnation incarnation;
  Claim claim = Claim::alive;
  NodeId by;
  friend bool operator==(const Update&, const Update&) = default;
};

enum class Kind : std::uint8_t {
  ping = 1,        ///< Answered with ack.
  ack = 2,         ///< To a ping; or to an ask, whose target has answered.
  ask = 3,         ///< Ping `target` for me: answered with ack or nack.
  nack = 4,        ///< The target of an ask has not answered.
  sync = 5,        ///< All that differs from what the log says; answered with the same.
  sync_reply = 6,  ///< To a sync.
};
/// Kinds that wait for an answer with the same `seq`.
constexpr bool is_request(Kind k) { return k == Kind::ping || k == Kind::ask || k == Kind::sync; }

struct Message {
  Kind kind = Kind::ping;
  std::uint32_t seq = 0;  ///< The asker's.
  Incarnation sender;
  NodeId target;  ///< Of an ask and its answers.
  std::vector<Update> updates;
};

inline constexpr std::size_t kMaxUpdates = 6;             ///< In a ping, ask or an answer to one.
inline constexpr std::size_t kMaxSyncUpdates = 192;       ///< In a sync; more: the rest goes with the next one.
inline constexpr std::size_t kMaxMessageBytes = 8 << 10;  ///< Encoded; above: malformed.
inline constexpr std::uint32_t kMaxRoundJump = 1 << 20;   ///< A round so far beyond the known one is nonsense.

struct SwimConfig {
  Duration period = milliseconds(200);  ///< Between probes; times (local health + 1).
  Duration direct = milliseconds(100);  ///< Without an answer for so long, others are asked; times (local health + 1).
  Duration indirect = milliseconds(150);   ///< For them; times (local health + 1). Then the probe has failed.
  unsigned helpers = 3;                    ///< Others asked.
  Duration suspicion = milliseconds(500);  ///< The least; times max(1, log10 of the members).
  unsigned suspicion_spread = 4;           ///< The most, as a multiple of the least.
  unsigned confirmations = 3;              ///< Further accusers that bring it down to the least.
  unsigned max_health = 8;                 ///< The worst local health.
  Duration grace = seconds(3);             ///< For a member that was never heard.
  Duration sync = seconds(30);             ///< Between full exchanges.
  Duration late = milliseconds(50);        ///< A call later than this tells that this node itself stood still.
};

/// What the log says of a member.
struct Fact {
  NodeId node;
  std::uint64_t start = 0;  ///< Incarnation of the control state.
  bool alive = false;       ///< false: dead. Who has left is not a member.
  bool draining = false;
  bool voter = false;
  friend bool operator==(const Fact&, const Fact&) = default;
};

/// A member as this node sees it. `left` is never in this list; it is what a node is that the log no longer names.
enum class Standing : std::uint8_t { joining, alive, suspect, dead, draining, left };
/// "joining", "alive", ...
std::string_view standing_name(Standing s);

struct View {
  NodeId node;
  Incarnation incarnation;
  Standing standing = Standing::left;
  std::optional<Instant> last_heard;  ///< Directly from it.
  bool condemned = false;             ///< This node holds it for dead.
};

/// This node's own probe of `node` failed, and the suspicion has run out.
struct Verdict {
  NodeId node;
  std::uint64_t start = 0;
  friend auto operator<=>(const Verdict&, const Verdict&) = default;
};

struct Effects {
  struct Send {
    NodeId to;
    Message message;
  };
  std::vector<Send> send;
  std::vector<NodeId> changed;    ///< Whose standing here is another than before.
  bool verdicts_changed = false;  ///< See Swim::verdicts().
  bool said_dead = false;         ///< Others say that this start of this node is dead: ask who decides.
  void clear();
};

/// Since the start. All only grow but `health`.
struct SwimCounters {
  std::uint64_t probes = 0, probes_failed = 0;
  std::uint64_t asked = 0;   ///< Others, to probe for this node.
  std::uint64_t helped = 0;  ///< Probes done for others.
  std::uint64_t indirect_answers = 0;
  std::uint64_t suspicions = 0;        ///< Begun here, by an own probe or by gossip.
  std::uint64_t false_suspicions = 0;  ///< Of these: taken back.
  std::uint64_t refutations = 0;       ///< Of suspicions of this node.
  std::uint64_t verdicts = 0, retractions = 0;
  std::uint64_t stalls = 0;        ///< This node stood still.
  std::uint64_t death_claims = 0;  ///< Somebody said that this node is dead.
  std::uint64_t refused = 0;       ///< Gossip that makes no sense: unknown accusers, absurd rounds, others' deaths.
  std::uint64_t unknown = 0;       ///< Gossip about nodes or starts that the log does not name (yet, or any more).
  unsigned health = 0;             ///< Lifeguard's local health: 0 is well.
};

class Swim {
 public:
  Swim(SwimConfig config, NodeId self, std::uint64_t start);

  /// This node has a new incarnation.
  void set_self(Instant now, std::uint64_t start);
  /// The members by the log, this node among them or not, in any order. Cost: O(n log n).
  void set_members(Instant now, std::vector<Fact> facts, Random& random, Effects& out);

  void tick(Instant now, Random& random, Effects& out);
  /// When tick() is due; kNever without other members.
  [[nodiscard]] Instant next_wake() const { return due_; }
  /// From an authenticated member. Cost: O(log n) per update.
  void on_message(Instant now, NodeId from, const Message& message, Effects& out);
  /// A request of this node could not be delivered: whatever it waits for will not come.
  void on_undelivered(Instant now, NodeId to, std::uint32_t seq, Random& random, Effects& out);
  /// The connection to `node` has closed: it is probed at once. No evidence by itself.
  void on_lost(Instant now, NodeId node, Effects& out);

  [[nodiscard]] Incarnation self() const { return self_; }
  /// Members, this node not among them, by id.
  [[nodiscard]] std::vector<View> views(Instant now) const;
  [[nodiscard]] View view(Instant now, NodeId node) const;
  /// Who is dead in this node's eyes but alive by the log, by id. Cost: O(suspects).
  [[nodiscard]] std::vector<Verdict> verdicts() const;
  [[nodiscard]] bool suspects_any() const { return !suspects_.empty(); }
  /// Members heard directly within `within`, this node counted, among the voters of the log.
  struct Voters {
    unsigned all = 0, heard = 0;
  };
  [[nodiscard]] Voters voters(Instant now, Duration within) const;
  [[nodiscard]] const SwimCounters& counters() const { return counters_; }
  [[nodiscard]] const SwimConfig& config() const { return config_; }

 private:
  static constexpr std::size_t kMaxAccusers = 4;
  struct Member {
    Fact fact;
    std::uint32_t round = 0;
    bool heard = false;
    bool suspected = false;
    bool own_failed = false;  ///< This node's own probe, and those of its helpers.
    bool condemned = false;
    std::uint8_t accusers = 0;
    Instant grace;
    Instant last_heard;
    std::uint32_t suspected_round = 0;
    Instant since, expires;
    std::array<NodeId, kMaxAccusers> accuser{};
  };
  struct Probe {
    std::uint32_t seq = 0;
    NodeId target;
    Instant direct, final;
    bool asked = false;
    unsigned nacks_expected = 0, nacks = 0;
    bool in_turn = false;
  };
  struct Relay {
    std::uint32_t seq = 0;  ///< Of the own ping.
    NodeId target, asker;
    std::uint32_t asker_seq = 0;
    Instant until;
  };
  struct Rumour {
    Update update;
    unsigned sent = 0;
  };

  static constexpr std::size_t kMaxProbes = 16;     // At once; above: no further one begins.
  static constexpr std::size_t kMaxRelays = 64;     // At once; above: nack.
  static constexpr std::size_t kMaxRumours = 4096;  // Above: the one that was told most often goes.

  Member* find(NodeId node);
  [[nodiscard]] const Member* find(NodeId node) const;
  [[nodiscard]] Standing standing(Instant now, const Member& m) const;
  [[nodiscard]] bool probeable(const Member& m) const { return m.fact.alive; }
  void resize();
  void stood_still(Instant now);
  void reschedule();

  void send(NodeId to, Message m, Effects& out);
  void add_gossip(Message& m, NodeId to, std::size_t most);
  void spread(Update u);
  void forget_rumours(NodeId node);
  void on_ack(Instant now, NodeId from, const Message& message, Effects& out);
  void heard(Instant now, Member& m, const Incarnation& sender, Effects& out);

  void next_probe(Instant now, Random& random, Effects& out);
  bool begin_probe(Instant now, Member& m, bool in_turn, Effects& out);
  void ask_others(Instant now, Probe& p, Random& random, Effects& out);
  void probe_answered(std::uint32_t seq, NodeId about);
  void probe_failed(Instant now, const Probe& p, Random& random, Effects& out);
  void run_probes(Instant now, Random& random, Effects& out);
  void run_relays(Instant now, Effects& out);
  void run_suspicions(Instant now, Effects& out);
  void worse(unsigned by);

  void take(Instant now, const Update& u, Effects& out);
  void take_about_self(const Update& u, Effects& out);
  void accuse(Instant now, Member& m, NodeId by, Effects& out);
  void tell_at_once(const Member& m, unsigned others, Random& random, Effects& out);
  void absolve(Instant now, Member& m, Effects& out);
  void retract(Instant now, Member& m, Effects& out);
  [[nodiscard]] Duration time_out(unsigned confirmations) const;
  [[nodiscard]] unsigned confirmations_wanted() const;
  void fill_sync(Message& m);

  SwimConfig config_;
  NodeId me_;
  Incarnation self_;
  bool voter_ = false;
  std::vector<Member> members_;  ///< By id, without this node.
  std::size_t alive_ = 0;
  std::vector<NodeId> order_;  ///< In which they are probed.
  std::size_t at_ = 0;
  std::vector<Probe> probes_;
  std::vector<Relay> relays_;
  std::vector<NodeId> suspects_;
  std::vector<Rumour> rumours_;
  std::uint32_t next_seq_ = 1;
  unsigned retransmit_ = 1;
  Duration least_;  ///< Of a suspicion.
  Instant next_probe_{kNever};
  Instant next_sync_{kNever};
  std::size_t sync_at_ = 0;
  Instant due_{kNever};
  SwimCounters counters_;
};

}  // namespace holo::membership
