// libraft's port to disk, network, time and randomness, over ours.
#pragma once

extern "C" {  // The header does not say so itself.
#include <raft.h>
}

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "driver/raft/raft_log.h"
#include "driver/raft/raft_members.h"
#include "driver/raft/raft_message.h"

namespace holo::driver {

/// Takes a snapshot's stream apart: a header of the log's own, then the state.
class SnapshotSink {
 public:
  static constexpr std::size_t kHeaderBytes = 16;  ///< Index and wall time of the last entry in it.

  explicit SnapshotSink(std::unique_ptr<env::StateLoad> load) : load_(std::move(load)) {}
  /// Error: `corrupt`.
  Status add(ByteSpan bytes);
  /// Replaces the state. Error: `corrupt`.
  Status finish();
  /// Of the last entry in it; once it is finished.
  [[nodiscard]] LogIndex index() const { return index_; }
  [[nodiscard]] std::int64_t wall() const { return wall_; }
  static Bytes header(std::uint64_t index, std::int64_t wall);

 private:
  Bytes header_;
  std::unique_ptr<env::StateLoad> load_;
  LogIndex index_;
  std::int64_t wall_ = 0;
};

/// Serves one struct raft. Writes are done in order on a helper thread, appends that wait together as one; a write that
/// fails is tried again until it succeeds, so that libraft never has to doubt what is on the disk. Thread: loop. Held
/// by shared_ptr: what runs on the helper thread, or waits for the network, keeps it.
class RaftIo : public std::enable_shared_from_this<RaftIo> {
 public:
  struct Upward {
    std::function<void()> after_event;
    /// Whether a message makes sense here at all. Error: `malformed`.
    std::function<Status(NodeId from, const raft_message&)> check;
    /// For a state that comes from a leader.
    std::function<std::unique_ptr<env::StateLoad>()> new_load;
  };
  RaftIo(RaftLogPorts ports, RaftLogOptions options, Upward upward);
  RaftIo(const RaftIo&) = delete;
  RaftIo& operator=(const RaftIo&) = delete;

  raft_io* io() { return &io_; }
  /// What raft_start will be given. Call first, and again after a bootstrap.
  Status load();
  [[nodiscard]] bool empty() const { return stored_.term == 0 && !stored_.snapshot && stored_.entries.empty(); }
  /// A message from a peer. Waits for the disk when it is a part of a snapshot. A leader may take the result of an
  /// AppendEntries from the reply: of a heartbeat, that saves a request, its reply and their acknowledgements.
  static Task<Result<env::Reply>> receive(std::shared_ptr<RaftIo> io, NodeId from, env::Request request);

  // libraft's snapshots are handles here; what they stand for is streamed between the state, the disk and the network.

  /// What the next snapshot_put of libraft stands for. `header` goes before the state.
  void offer(Bytes header, std::unique_ptr<env::StateCut> cut);
  /// The state that came from a leader, put together already; null: `handle` stands for the one on the disk.
  std::unique_ptr<SnapshotSink> take_received(std::uint64_t handle);
  /// The one on the disk, put together now. Error: `corrupt`, `io_error`. Blocks.
  Result<std::unique_ptr<SnapshotSink>> read_stored();
  /// Of the newest snapshot here.
  [[nodiscard]] std::uint64_t snapshot_bytes() const { return snapshot_bytes_; }
  /// The last entry in the newest one written since the start; 0: none was.
  [[nodiscard]] std::uint64_t written_index() const { return written_index_; }
  /// Called by the leader once nothing more is on its way: tells each follower known to have entry `commit` that it is
  /// committed, in an AppendEntries without entries. libraft itself leaves that to its next message, up to a heartbeat
  /// later.
  void announce_commit(std::uint64_t term, std::uint64_t commit);
  /// Called after every event: the disk learns, a while later, up to where the log is committed.
  void note_commit();
  /// Commands of the stored log that were known to be committed when it was written, after `applied`; good until the
  /// log is next changed. For once after raft_start.
  struct Committed {
    std::uint64_t index = 0;
    raft_buffer command{};  ///< Nothing: an entry of the log's own.
  };
  std::vector<Committed> take_committed(std::uint64_t applied);
  /// Called after every event: wakes libraft when it next has something to do.
  void set_tick();
  /// Called after every event: gives libraft the configuration that the log says, where it has another.
  void settle_members();
  /// The term of the newest entry appended here, and its first entry of that term. A leader's: its own.
  [[nodiscard]] std::uint64_t own_term() const { return own_term_; }
  [[nodiscard]] std::uint64_t own_term_first() const { return own_term_first_; }
  /// What was on the disk was given up: this node neither votes nor asks for votes until found().
  [[nodiscard]] bool lost() const { return lost_; }
  void found() { lost_ = false; }
  /// Something of the log is on its way to the disk.
  [[nodiscard]] bool writing() const { return !writes_.empty(); }
  /// Set while writes to the disk fail.
  [[nodiscard]] const std::optional<Error>& disk_error() const { return disk_error_; }

 private:
  struct Write {
    enum class Kind : std::uint8_t { append, committed, truncate, snapshot };
    Kind kind = Kind::append;
    std::uint64_t index = 0;              ///< append: of the first entry; committed: last; truncate: first to go.
    const raft_entry* entries = nullptr;  ///< append: libraft keeps them until the callback.
    unsigned n = 0;
    raft_io_append* append = nullptr;
    raft_io_snapshot_put* put = nullptr;
    std::shared_ptr<env::LogSnapshot> snapshot;
    std::shared_ptr<env::SnapshotWriter> data;
    std::uint64_t keep_after = 0;
  };
  /// A snapshot that is coming from a leader.
  struct Incoming {
    NodeId from;
    std::uint64_t index = 0, term = 0, total = 0, at = 0;
    std::uint64_t handle = 0;
    std::shared_ptr<env::SnapshotWriter> data;
    std::unique_ptr<SnapshotSink> sink;
    bool busy = false;
    bool taken = false;  ///< libraft has it.
  };
  struct Get {
    raft_io_snapshot_get* request = nullptr;
  };

  static RaftIo* self(raft_io* io) { return static_cast<RaftIo*>(io->impl); }
  void bind();
  int bootstrap(const raft_configuration* conf);
  int take_stored(raft_term* term, raft_id* vote, raft_snapshot** snapshot, raft_index* start, raft_entry** entries,
                  size_t* n);
  int send(raft_io_send* request, const raft_message* message, raft_io_send_cb cb);
  void sent(std::uint64_t id, NodeId peer, int status);
  void ended(std::uint64_t id, int status);
  void enqueue(Write w);
  void pump();
  void written(std::size_t count, Status status);
  void get(Get g);
  int put(unsigned trailing, raft_io_snapshot_put* request, const raft_snapshot* snapshot, raft_io_snapshot_put_cb cb);
  static Task<void> write_snapshot(std::shared_ptr<RaftIo> io, Write write, Bytes header,
                                   std::shared_ptr<env::StateCut> cut);
  static Task<Status> receive_part(std::shared_ptr<RaftIo> io, NodeId from, wire::RaftMessage header,
                                   env::Request request);
  static Task<void> deliver_snapshot(std::shared_ptr<RaftIo> io, std::uint64_t id, NodeId peer,
                                     wire::RaftMessage header, std::shared_ptr<env::SnapshotReader> reader);
  void close(raft_io_close_cb cb);
  void finish_close();
  Instant next_tick();
  void tick();
  /// Milliseconds in which this loop ran: a node that stood still must not take its own silence for the leader's.
  raft_time time();

  /// The one that is served; libraft has noted it here by the time it calls anything but load().
  raft& served() { return *static_cast<raft*>(io_.data); }
  /// Refuses what libraft would stumble over. Error: `malformed`.
  Status admissible(const raft_message& message);
  raft_index on_majority();
  void hand_up(raft_message message);
  void hand_up_held();
  void settle_claim(raft_append_entries_result& result);
  void note_matched(std::uint64_t index);
  [[nodiscard]] bool own_entry_stored();
  void post(NodeId peer, std::uint64_t id, const raft_message& message);
  void note_sent(const raft_message& message);
  void note_received(NodeId from, const raft_message& message);
  Status take(NodeId from, const wire::RaftMessage& header, const env::Request& request);
  Status take_answer(NodeId from, std::string header);

  static Task<void> deliver(std::shared_ptr<RaftIo> io, std::uint64_t id, NodeId peer, env::Request request);

  RaftLogPorts ports_;
  RaftLogOptions options_;
  Upward upward_;
  raft_io io_{};
  env::StoredLog stored_;
  bool lost_ = false;

  raft_io_tick_cb tick_cb_ = nullptr;
  raft_io_recv_cb recv_cb_ = nullptr;
  env::Loop::TimerId timer_ = 0;
  env::Loop::TimerId retry_ = 0;
  env::Loop::TimerId note_ = 0;
  Instant due_, ticked_;  ///< When `timer_` rings; when the last one did.
  Instant seen_;          ///< `virtual_ns_` is of then.
  std::int64_t virtual_ns_ = 0;

  std::uint64_t next_index_ = 1;  ///< Of the next entry that libraft will append.
  std::uint64_t term_ = 0;
  NodeId vote_;
  std::vector<Committed> committed_;  ///< In the log as it was found.
  std::uint64_t noted_ = 0;           ///< The disk knows, or is being told, that so much is committed.
  std::deque<Write> writes_;
  bool writing_ = false;
  unsigned reading_ = 0;
  std::optional<Error> disk_error_;

  struct Send {
    raft_io_send* request = nullptr;
    raft_io_send_cb cb = nullptr;
  };
  /// Of the message that libraft is being given, when its sender takes the result from the reply.
  struct Answer {
    NodeId to;
    std::string header;  ///< Empty: there is none, or later.
  };
  Answer* answer_ = nullptr;
  std::map<std::uint64_t, Send> sends_;  ///< Of libraft; commit announcements have no entry here.
  std::unordered_map<NodeId, unsigned> in_flight_;
  std::uint64_t next_send_ = 1;

  /// What the followers are known to have, in the term that this node appends in.
  struct Follower {
    std::uint64_t has = 0;   ///< Entries up to here are stored there.
    std::uint64_t told = 0;  ///< It has been sent a commit index of at least this.
    raft_time sent = 0;      ///< When libraft last sent it something.
  };
  std::uint64_t own_term_ = 0;        ///< Of the newest entry appended here.
  std::uint64_t own_term_first_ = 0;  ///< Its first entry of that term.
  std::unordered_map<NodeId, Follower> followers_;

  RaftMembers members_;

  /// Up to where this log is known to be that of the leader of `matched_term_`.
  std::uint64_t matched_term_ = 0, matched_ = 0;
  /// Up to where it will be once the message in libraft's hands is accepted; 0: none is.
  std::uint64_t matching_ = 0;
  bool appended_ = false;  ///< While that message was in its hands.
  /// What followers said before this leader's first entry was on its own disk; in whose name, and in which term.
  std::map<NodeId, raft_append_entries_result> held_;

  Bytes offered_header_;
  std::shared_ptr<env::StateCut> offered_;
  std::shared_ptr<Incoming> incoming_;
  std::map<std::uint64_t, std::shared_ptr<env::SnapshotReader>> readers_;  ///< By handle, until they are sent.
  std::set<NodeId> snapshots_to_;                                          ///< To whom one is being sent.
  std::uint64_t next_handle_ = 1;
  std::uint64_t snapshot_bytes_ = 0, written_index_ = 0;

  bool closing_ = false;
  raft_io_close_cb close_cb_ = nullptr;
};

/// For libraft, to be freed by it; nullptr when the configuration does not hold together.
raft_snapshot* raft_snapshot_of(const env::LogSnapshot& snapshot, std::uint64_t handle);

}  // namespace holo::driver
