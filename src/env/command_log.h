// The port under the control state: an ordered, replicated, durable log of commands. libraft over RocksDB implements
// it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/task.h"
#include "base/time.h"

namespace holo::env {

/// The whole state as of one entry, as a stream of bytes that is read while further entries are applied. Thread: loop.
class StateCut {
 public:
  virtual ~StateCut() = default;
  /// What comes next, at most `limit` bytes; none: that was all. Cost: O(limit). Error: `cancelled` (the state was
  /// replaced, or another cut begun, meanwhile).
  virtual Result<Bytes> next(std::size_t limit) = 0;
};

/// The way back: a state put together beside the one that is there. Dropped without finish(): nothing has happened.
/// Thread: loop.
class StateLoad {
 public:
  virtual ~StateLoad() = default;
  /// The stream's bytes in order, in pieces of any size. Error: `corrupt`.
  virtual Status add(ByteSpan bytes) = 0;
  /// Replaces the whole state. Error: `corrupt` (also: the stream ended too early); the state is then as before.
  virtual Status finish(LogIndex index) = 0;
};

/// The deterministic state machine that stands on the log. Thread: the loop's.
class StateMachine {
 public:
  virtual ~StateMachine() = default;
  /// Applies a command of entry `index` (an entry may carry several, applied in one go); `when` is the wall time its
  /// leader stamped, monotone over the log. Must be deterministic.
  virtual void apply(LogIndex index, WallTime when, ByteSpan command) = 0;
  /// The whole state as of the last applied entry.
  virtual Bytes snapshot() const = 0;
  /// Replaces the whole state; no bytes at all: the state before the first entry.
  /// Error: `corrupt` (the log then refuses to start).
  virtual Status restore(LogIndex index, ByteSpan snapshot) = 0;

  /// The same as streams, for states that are too large to be written in one go. Equal states give equal streams. One
  /// cut at a time. Unless they are overridden, they hold the whole snapshot in memory.
  virtual std::unique_ptr<StateCut> cut();
  virtual std::unique_ptr<StateLoad> load();
};

enum class LogRole : std::uint8_t { learner, follower, candidate, leader };

struct LogStatus {
  LogRole role = LogRole::learner;
  NodeId leader;  ///< 0 while unknown
  std::uint64_t term = 0;
  LogIndex applied;
  LogIndex committed;
  LogIndex last;        ///< The newest entry kept here, committed or not.
  LogIndex snapshot;    ///< The last snapshot of this node covers the entries up to it; 0: there is none.
  std::string trouble;  ///< Where another program keeps the log: why that one is of no use now; empty: it is.
};

/// One member as the log's configuration knows it.
struct LogMember {
  NodeId node;
  bool voter = false;
};

class CommandLog {
 public:
  virtual ~CommandLog() = default;

  /// Appends `command` and returns its index once it is committed on a majority and applied on this node. On a node
  /// that does not lead, the command is forwarded to the leader. After an error the outcome is unknown unless the code
  /// is `not_leader` (also: none is known), `overloaded` or `over_limit`: callers make commands idempotent by (client,
  /// sequence) and retry. Errors: `no_quorum`, `not_leader`, `unavailable`, `deadline_exceeded`, `overloaded`,
  /// `over_limit`. Thread: loop.
  virtual Task<Result<LogIndex>> append(Buffer command, Instant deadline) = 0;

  /// Returns once every command committed before this call began is applied here (a linearizable read point). Writes
  /// nothing; costs a round to a majority of the voters, shared by all who ask meanwhile.
  virtual Task<Status> barrier(Instant deadline) = 0;

  virtual LogStatus status() const = 0;
  /// The time that an entry appended now would carry: exact on the leader, what is known elsewhere. Monotone over
  /// entries, whatever becomes of the wall clocks. 0 before the first entry is known.
  virtual WallTime now() const = 0;
  virtual std::vector<LogMember> members() const = 0;

  /// Leader only; one change at a time (`overloaded` while one is under way). Thread: loop.
  virtual Task<Status> add_learner(NodeId node, Instant deadline) = 0;
  virtual Task<Status> set_voter(NodeId node, bool voter, Instant deadline) = 0;
  virtual Task<Status> remove(NodeId node, Instant deadline) = 0;

  /// Hands leadership to the voter `to` (0: any; a log that others elect for may choose), if this node leads and there
  /// is one, so that no election has to be waited for.
  virtual Task<Status> hand_over(NodeId to, Instant deadline) = 0;

  /// Called on the loop thread whenever role, leader or members change.
  virtual void on_change(std::function<void()> f) = 0;

  /// Stops: nothing is sent, stored or applied after it; pending calls end with `cancelled`. Before destruction.
  virtual Task<void> close() = 0;
};

}  // namespace holo::env
