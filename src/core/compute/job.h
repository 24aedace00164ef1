// One job: which chunk runs where, what is retried, what may commit, when it is over. A function of (state, event,
// now).
//
// Each try of a chunk is an attempt; the driver of this core gives every attempt a transaction of its own. Of all
// attempts of a chunk at most one is ever handed to commit, and a chunk counts as done only after that commit: effects
// happen once.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/time.h"

namespace holo::compute {

using ChunkNo = std::uint32_t;

/// One try of one chunk. Numbers grow from 1 within a chunk.
struct Attempt {
  ChunkNo chunk = 0;
  std::uint32_t number = 0;
  friend constexpr auto operator<=>(const Attempt&, const Attempt&) = default;
};

/// A node that may run tasks of the job.
struct Executor {
  NodeId node;
  std::uint64_t incarnation = 0;
  std::uint32_t slots = 1;  ///< Tasks it runs at once; a few more are sent ahead.
};

struct JobOptions {
  bool writes = false;                        ///< Chunks are done only once committed.
  std::uint32_t sent_ahead = 4;               ///< Tasks at a node, per slot.
  std::uint32_t max_failures = 4;             ///< Of one chunk, for reasons that can pass.
  Duration retry_budget = seconds(4);         ///< From a chunk's first such failure; then the job fails.
  Duration retry_delay = milliseconds(100);   ///< Doubles with each failure of the chunk.
  Duration resend_delay = milliseconds(200);  ///< When a batch may not have arrived.
  std::size_t max_commit = 256;               ///< Attempts in one commit.
};

/// What the caller has to do, in any order.
struct Effects {
  struct Send {
    NodeId node;
    std::vector<Attempt> attempts;
  };
  std::vector<Send> send;      ///< Start these there. The same attempt may be sent twice.
  std::vector<Attempt> abort;  ///< Will never commit.
  std::vector<NodeId> cancel;  ///< Drop and kill what is left of the job there.
  std::vector<Attempt>
      commit;                 ///< Commit together, then on_committed for each. Only while no other commit is under way.
  std::vector<ChunkNo> done;  ///< Count now; their results may be given out.
  std::optional<Status> ended;  ///< Once; nothing follows.
};

class Job {
 public:
  /// `homes[c]`: where the pages of chunk c live; 0: anywhere.
  Job(std::vector<NodeId> homes, JobOptions options);

  /// First event, once.
  void start(Instant now, const std::vector<Executor>& executors, Effects& out);

  /// The nodes that may run tasks from now on. What ran on a node that is gone (or restarted) is tried again elsewhere.
  void on_executors(Instant now, const std::vector<Executor>& executors, Effects& out);

  /// A batch may not have arrived at `node`; it is sent again while the node is an executor.
  void on_unsent(Instant now, NodeId node, const std::vector<Attempt>& attempts, Effects& out);

  /// An attempt came to its end, its pages staged (`wrote`: there are some). An attempt that is no longer wanted is
  /// aborted.
  void on_finished(Instant now, Attempt attempt, bool wrote, Effects& out);

  /// An attempt failed. Passing reasons (Error::retryable, stale_epoch, overloaded) are tried again; others end the
  /// job.
  void on_failed(Instant now, Attempt attempt, Error error, Effects& out);

  /// The commit of `attempt` was decided. `stale_epoch`: nodes with its pages died; it is tried again.
  void on_committed(Instant now, Attempt attempt, Status result, Effects& out);
  /// The commit effect as a whole gave no answer: all of it is committed again (which acts once), within the retry
  /// budget.
  void on_commit_unknown(Instant now, Error error, Effects& out);

  void cancel(Instant now, Effects& out);
  /// Ends the job with an error that is none of a task's.
  void fail(Instant now, Error error, Effects& out);

  /// Time has come to next_wake().
  void on_time(Instant now, Effects& out);
  [[nodiscard]] Instant next_wake() const;

  [[nodiscard]] bool ended() const { return ended_; }
  [[nodiscard]] std::size_t chunks() const { return chunks_.size(); }
  [[nodiscard]] std::size_t done() const { return done_; }
  /// True while this attempt is the one that counts.
  [[nodiscard]] bool wanted(Attempt attempt) const;

 private:
  enum class Stage : std::uint8_t { waiting, sent, staged, committing, done };
  struct Chunk {
    NodeId home;
    NodeId node;  ///< Where the current attempt runs.
    std::uint32_t number = 0;
    std::uint32_t failures = 0;
    Stage stage = Stage::waiting;
    Instant first_failure;
    Instant not_before;
  };
  struct Node {
    std::uint64_t incarnation = 0;
    std::uint32_t slots = 1;
    std::uint32_t sent = 0;     ///< Attempts there that have not ended.
    std::deque<ChunkNo> queue;  ///< Waiting, to be sent there.
  };

  void enqueue(ChunkNo c);
  void retry(Instant now, ChunkNo c, const Error& error, Effects& out);
  void lose(ChunkNo c, Effects& out);
  void leave_node(Chunk& chunk);
  void finish_chunk(ChunkNo c, Effects& out);
  void dispatch(Instant now, Effects& out);
  void commit_more(Instant now, Effects& out);
  void end(Status result, Effects& out);
  void stop(Status result, Effects& out);
  Node* least_loaded();

  std::vector<Chunk> chunks_;
  JobOptions options_;
  std::map<NodeId, Node> nodes_;
  std::vector<ChunkNo> homeless_;            ///< Waiting while there is no executor at all.
  std::multimap<Instant, ChunkNo> delayed_;  ///< Waiting for their not_before.
  std::multimap<Instant, std::pair<NodeId, std::vector<Attempt>>> resend_;
  std::deque<ChunkNo> staged_;
  std::vector<Attempt> committing_;
  std::optional<Instant> commit_retry_;
  std::optional<Instant> commit_trouble_;  ///< Since when commits give no answer.
  std::size_t done_ = 0;
  std::optional<Status> outcome_;  ///< Decided; waits for the commit under way.
  bool ended_ = false;
};

/// Splits `elements` elements into chunks along the blocks of a region. `block_bytes[i]`/`homes[i]` describe block i in
/// order; where there are more than `max_chunks`, neighbours join and run at the home of the first.
struct BlockHome {
  std::uint64_t bytes = 0;
  NodeId home;
};
struct ChunkRange {
  std::uint64_t first = 0;  ///< Elements [first, last).
  std::uint64_t last = 0;
  NodeId home;
  friend bool operator==(const ChunkRange&, const ChunkRange&) = default;
};
/// An element belongs to the block that holds its first byte. Every element below `elements` is in exactly one chunk,
/// chunks ascend, and none is empty. `element_bytes` > 0, `max_chunks` > 0.
std::vector<ChunkRange> split(const std::vector<BlockHome>& blocks, std::uint64_t elements, std::uint64_t element_bytes,
                              std::size_t max_chunks);

}  // namespace holo::compute
