// Numbers of the requests that agents send each other (env::Request::type). Append only; never reuse a number.
#pragma once

#include <cstdint>

namespace holo::wire {

enum class PeerMessage : std::uint16_t {
  // membership and control
  join = 1,           // JoinRequest -> JoinReply
  heartbeat = 2,      // Heartbeat -> HeartbeatReply
  leave = 3,          // LeaveRequest -> LeaveReply
  member_query = 4,   // MemberQuery -> MemberQueryReply: is that node one of us?
  swim = 5,           // SwimMessage -> SwimMessage: probes, and gossip on their backs
  raft = 10,          // one libraft message, payload = entries or snapshot chunk -> empty
  propose = 11,       // ProposeRequest -> ProposeReply: append a command at the leader
  read_index = 12,    // ReadIndexRequest -> ReadIndexReply
  confirm_term = 13,  // ConfirmTerm -> ConfirmTermReply: leader to voters, for reads without a log entry
  log_lost = 14,      // LogLost -> LogLostReply: to the leader, from who has given up its log
  propose_many = 15,  // ProposeManyRequest + commands -> ProposeManyReply
  // memory
  page_fetch = 20,    // PageFetch -> PageFetchReply + page bytes
  page_stage = 21,    // PageStage + page bytes -> PageStageReply  (to the home)
  page_backup = 22,   // PageBackup + page bytes -> PageBackupReply (home to the other in-sync nodes, and fills)
  txn_abort = 23,     // TxnAbort -> TxnAbortReply
  txn_status = 24,    // TxnStatus -> TxnStatusReply: is it still open at its coordinator?
  staged_query = 30,  // StagedQuery -> StagedQueryReply
  // compute
  task_run = 40,       // TaskBatch -> TaskBatchReply (accepted or refused)
  task_done = 41,      // TaskDone -> empty: executor to coordinator
  task_cancel = 42,    // TaskCancel -> empty
  binary_fetch = 43,   // BinaryFetch -> BinaryFetchReply + bytes
  worker_output = 44,  // WorkerOutput -> empty: lines of a worker, to the coordinator
  program_end = 45,    // ProgramEnd -> empty: coordinator to executors
  // trust
  key_change = 60,  // KeyChange -> empty: `holo key ... --all`
  // sight
  ping = 70,              // empty + up to 64 KiB -> the same: `holo ping`
  link_bench = 71,        // how many bytes, u64 little-endian -> that many, up to 1 MiB: `holo bench link --cluster`
  control_progress = 72,  // empty -> ControlProgress: how far is your copy of the log?
};

/// Whom a request is served: a handshake proves who asks, not that it belongs to the cluster.
enum class Asker : std::uint8_t {
  member,      ///< By the replicated membership. One that is dead still is a member; one that left is not.
  log_member,  ///< Who leaves is no member any more, but the log may need its vote until it is taken out.
  anyone,
};

/// Members only, unless a type is named here.
constexpr Asker may_ask(PeerMessage type) {
  switch (type) {
    case PeerMessage::join:          // Who is not a member yet.
    case PeerMessage::leave:         // Who has left, and lost the answer. The handler knows everybody else.
    case PeerMessage::member_query:  // Who was removed, about itself. The handler refuses strangers.
    case PeerMessage::ping: return Asker::anyone;
    case PeerMessage::confirm_term:
    case PeerMessage::raft: return Asker::log_member;
    default: return Asker::member;
  }
}

}  // namespace holo::wire
