// One struct raft of libraft from start to close: proposals, reads, members, and the state machine under it.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "base/task.h"
#include "driver/raft/raft_io.h"
#include "driver/raft/raft_log.h"

namespace holo::driver {

using IndexShot = std::shared_ptr<OneShot<Result<LogIndex>>>;
using StatusShot = std::shared_ptr<OneShot<Result<bool>>>;

Error not_leader();
Error log_closing();

/// Kept by its callbacks. Thread: loop.
class RaftCore : public std::enable_shared_from_this<RaftCore> {
 public:
  RaftCore(RaftLogPorts ports, env::StateMachine& machine, RaftLogOptions options);

  Status start();
  /// Calls `done` once libraft has let go of everything.
  void close(std::function<void()> done);
  [[nodiscard]] bool closing() const { return closing_; }
  /// libraft has given up (its term or vote could not be written): the owner closes this one and starts another.
  [[nodiscard]] bool broken() { return started_ && raft_state(&raft_) == RAFT_UNAVAILABLE; }

  [[nodiscard]] bool leading() { return started_ && raft_state(&raft_) == RAFT_LEADER; }
  [[nodiscard]] NodeId leader();
  [[nodiscard]] env::LogStatus status();
  [[nodiscard]] std::vector<env::LogMember> members() const;
  [[nodiscard]] int role_of(NodeId node) const;  ///< -1: not a member.
  [[nodiscard]] LogIndex applied() { return LogIndex{started_ ? raft_last_applied(&raft_) : 0}; }
  [[nodiscard]] std::uint64_t term() const { return raft_.current_term; }
  [[nodiscard]] bool lost() const { return io_->lost(); }
  void found() { io_->found(); }
  [[nodiscard]] const std::optional<Error>& disk_error() const { return io_->disk_error(); }
  /// What an entry appended now would carry, had this node to stamp it.
  [[nodiscard]] WallTime now();

  /// Leader only. Resolves once applied here. What is proposed in one turn of the loop, while the disk is busy, or
  /// within a millisecond at most of the last entry, shares an entry.
  IndexShot propose(Buffer command, std::uint64_t& token);
  void forget(std::uint64_t token) { waiting_.erase(token); }
  StatusShot when_applied(LogIndex index);
  StatusShot change(std::function<int(raft*, raft_change*, raft_change_cb)> start, const char* what);
  StatusShot transfer(NodeId to);
  Task<Result<env::Reply>> receive(NodeId from, env::Request r) { return RaftIo::receive(io_, from, std::move(r)); }

  /// A read point: who has applied `index` has everything that was committed when it was asked for, if this node still
  /// leads in `term` after that. `configuration` must not have changed until then.
  struct ReadPoint {
    std::uint64_t term = 0;
    LogIndex index;
    std::uint64_t configuration = 0;
    friend bool operator==(const ReadPoint&, const ReadPoint&) = default;
  };
  /// Error: `not_leader`.
  Result<ReadPoint> read_point();
  [[nodiscard]] bool still_leads(const ReadPoint& point) {
    return leading() && raft_.current_term == point.term && configuration() == point.configuration;
  }

  std::function<void()> on_change;

 private:
  static RaftCore* self(const raft_fsm* fsm) { return static_cast<RaftCore*>(fsm->data); }
  void apply_committed();
  int apply(const raft_buffer* buf);
  void apply_one(LogIndex index, std::uint64_t origin, std::uint64_t token, ByteSpan command);
  Status check(NodeId from, const raft_message& message);
  void note_applied(std::size_t bytes);
  int snapshot(raft_buffer** bufs, unsigned* n);
  int restore(raft_buffer* buf);
  void flush_when_due();
  void note_round(Duration took);
  void flush();
  void after_event();
  void begin_term();
  [[nodiscard]] std::uint64_t configuration() const {
    return raft_.configuration_index + raft_.configuration_uncommitted_index;
  }
  void resolve(IndexShot shot, Result<LogIndex> r);
  void resolve(StatusShot shot, Result<bool> r);
  void resolve_soon();
  void fail_waiting(const Error& e);

  RaftLogPorts ports_;
  env::StateMachine& machine_;
  RaftLogOptions options_;
  std::shared_ptr<RaftIo> io_;
  raft raft_{};
  raft_fsm fsm_{};
  bool initialised_ = false;
  bool started_ = false;
  bool closing_ = false;
  std::function<void()> closed_;
  std::shared_ptr<RaftCore> self_until_closed_;
  std::optional<Error> restore_error_;

  std::uint64_t applied_bytes_ = 0;  ///< Since the last snapshot.
  std::deque<std::size_t> recent_;   ///< Sizes of the newest entries applied.

  const std::uint64_t origin_;
  std::uint64_t next_token_ = 1;

  // The clock that entries are stamped by: it begins with a term, at the wall clock or where the log is, whichever is
  // later, and then runs by the monotonic clock, so that setting the wall clock ends no lease.
  std::int64_t last_wall_ = 0;        ///< Of the newest entry applied.
  std::uint64_t restored_index_ = 0;  ///< Of the last snapshot taken over.
  std::uint64_t clock_term_ = 0;
  std::int64_t clock_wall_ = 0;
  Instant clock_began_;

  struct Pending {
    std::uint64_t token = 0;
    Buffer command;
  };
  std::vector<Pending> pending_;
  std::size_t pending_bytes_ = 0;
  bool flush_posted_ = false, flush_awaited_ = false;
  Instant next_flush_;
  Duration round_{};  // from an entry's begin to its commit, about the median
  std::uint64_t begun_term_ = 0;
  std::uint64_t spoke_term_ = 0;  ///< The newest term in which a leader has spoken to this node.
  std::unordered_map<std::uint64_t, IndexShot> waiting_;
  std::multimap<LogIndex, StatusShot> applied_waiters_;
  std::vector<std::pair<IndexShot, Result<LogIndex>>> resolved_indexes_;
  std::vector<std::pair<StatusShot, Result<bool>>> resolved_;
  bool resolve_posted_ = false;

  int seen_state_ = -1;
  NodeId seen_leader_;
  std::uint64_t seen_configuration_ = 0;
};

}  // namespace holo::driver
