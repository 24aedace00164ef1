#include "core/compute/job.h"

#include <algorithm>
#include <utility>

#include "base/assert.h"
#include "base/strings.h"

namespace holo::compute {
namespace {

bool can_pass(const Error& e) { return e.retryable || e.code == Errc::stale_epoch || e.code == Errc::overloaded; }

}  // namespace

Job::Job(std::vector<NodeId> homes, JobOptions options) : options_(options) {
  chunks_.resize(homes.size());
  for (std::size_t i = 0; i < homes.size(); ++i) chunks_[i].home = homes[i];
}

bool Job::wanted(Attempt a) const {
  return !ended_ && !outcome_ && a.chunk < chunks_.size() && chunks_[a.chunk].number == a.number &&
         chunks_[a.chunk].stage == Stage::sent;
}

void Job::start(Instant now, const std::vector<Executor>& executors, Effects& out) {
  for (const Executor& e : executors) nodes_[e.node] = {.incarnation = e.incarnation, .slots = std::max(1U, e.slots)};
  for (ChunkNo c = 0; c < chunks_.size(); ++c) enqueue(c);
  if (chunks_.empty()) return end({}, out);
  dispatch(now, out);
}

Job::Node* Job::least_loaded() {
  Node* best = nullptr;
  for (auto& [id, node] : nodes_) {
    auto load = [](const Node& n) { return (n.sent + n.queue.size()) / n.slots; };
    if (!best || load(node) < load(*best)) best = &node;
  }
  return best;
}

void Job::enqueue(ChunkNo c) {
  auto home = nodes_.find(chunks_[c].home);
  Node* node = home != nodes_.end() ? &home->second : least_loaded();
  if (node) {
    node->queue.push_back(c);
  } else {
    homeless_.push_back(c);
  }
}

void Job::leave_node(Chunk& chunk) {
  if (auto it = nodes_.find(chunk.node); it != nodes_.end() && it->second.sent > 0) --it->second.sent;
  chunk.node = {};
}

void Job::on_executors(Instant now, const std::vector<Executor>& executors, Effects& out) {
  if (ended_) return;
  std::map<NodeId, Node> next;
  for (const Executor& e : executors) next[e.node] = {.incarnation = e.incarnation, .slots = std::max(1U, e.slots)};
  std::vector<ChunkNo> again = std::exchange(homeless_, {});
  std::vector<NodeId> gone;
  for (auto& [id, node] : nodes_) {
    auto it = next.find(id);
    if (it != next.end() && it->second.incarnation == node.incarnation) {
      node.slots = it->second.slots;
      it->second = std::move(node);
    } else {
      again.insert(again.end(), node.queue.begin(), node.queue.end());
      gone.push_back(id);
    }
  }
  nodes_ = std::move(next);
  for (ChunkNo c = 0; c < chunks_.size() && !gone.empty(); ++c) {
    Chunk& chunk = chunks_[c];
    if (chunk.stage != Stage::sent || std::ranges::find(gone, chunk.node) == gone.end()) continue;
    lose(c, out);
    again.push_back(c);
  }
  if (outcome_) return;
  for (ChunkNo c : again) enqueue(c);
  dispatch(now, out);
}

/// The attempt that runs will not be heard of again.
void Job::lose(ChunkNo c, Effects& out) {
  Chunk& chunk = chunks_[c];
  out.abort.push_back({c, chunk.number});
  chunk.node = {};
  chunk.stage = Stage::waiting;
}

void Job::on_unsent(Instant now, NodeId node, const std::vector<Attempt>& attempts, Effects&) {
  if (ended_ || outcome_) return;
  resend_.emplace(now + options_.resend_delay, std::pair(node, attempts));
}

void Job::on_finished(Instant now, Attempt attempt, bool wrote, Effects& out) {
  if (!wanted(attempt)) {
    const bool counts = attempt.chunk < chunks_.size() && chunks_[attempt.chunk].number == attempt.number &&
                        chunks_[attempt.chunk].stage != Stage::waiting && !outcome_;
    if (!counts) out.abort.push_back(attempt);  // A repeated report of the attempt that counts changes nothing.
    return;
  }
  Chunk& chunk = chunks_[attempt.chunk];
  leave_node(chunk);
  if (options_.writes && wrote) {
    chunk.stage = Stage::staged;
    staged_.push_back(attempt.chunk);
    commit_more(now, out);
  } else {
    finish_chunk(attempt.chunk, out);
  }
  if (!ended_) dispatch(now, out);
}

void Job::finish_chunk(ChunkNo c, Effects& out) {
  chunks_[c].stage = Stage::done;
  ++done_;
  out.done.push_back(c);
  if (done_ == chunks_.size()) end({}, out);
}

void Job::on_failed(Instant now, Attempt attempt, Error error, Effects& out) {
  if (!wanted(attempt)) return;
  Chunk& chunk = chunks_[attempt.chunk];
  leave_node(chunk);
  out.abort.push_back(attempt);
  chunk.stage = Stage::waiting;
  retry(now, attempt.chunk, error, out);
  if (!ended_ && !outcome_) dispatch(now, out);
}

void Job::retry(Instant now, ChunkNo c, const Error& error, Effects& out) {
  Chunk& chunk = chunks_[c];
  if (chunk.failures++ == 0) chunk.first_failure = now;
  const bool tired = chunk.failures >= options_.max_failures || now - chunk.first_failure >= options_.retry_budget;
  if (!can_pass(error) || tired) return stop(std::unexpected(error), out);
  chunk.not_before = now + options_.retry_delay * (1LL << std::min(chunk.failures - 1, 10U));
  delayed_.emplace(chunk.not_before, c);
}

void Job::commit_more(Instant now, Effects& out) {
  if (!committing_.empty() || staged_.empty() || outcome_) return;
  (void)now;
  while (!staged_.empty() && committing_.size() < options_.max_commit) {
    const ChunkNo c = staged_.front();
    staged_.pop_front();
    chunks_[c].stage = Stage::committing;
    committing_.push_back({c, chunks_[c].number});
  }
  out.commit = committing_;
}

void Job::on_committed(Instant now, Attempt attempt, Status result, Effects& out) {
  auto it = std::ranges::find(committing_, attempt);
  if (ended_ || it == committing_.end()) return;
  committing_.erase(it);
  commit_trouble_.reset();
  if (result) {
    if (outcome_) {
      chunks_[attempt.chunk].stage = Stage::done;
      ++done_;
      out.done.push_back(attempt.chunk);
    } else {
      finish_chunk(attempt.chunk, out);
    }
  } else {
    chunks_[attempt.chunk].stage = Stage::waiting;
    out.abort.push_back(attempt);
    if (!outcome_) retry(now, attempt.chunk, result.error(), out);
  }
  if (ended_) return;
  if (outcome_) {
    if (committing_.empty()) end(*outcome_, out);
    return;
  }
  commit_more(now, out);
  dispatch(now, out);
}

void Job::on_commit_unknown(Instant now, Error error, Effects& out) {
  if (ended_ || committing_.empty()) return;
  if (!commit_trouble_) commit_trouble_ = now;
  if (now - *commit_trouble_ >= options_.retry_budget || error.code == Errc::cancelled) {
    if (!outcome_) stop(std::unexpected(std::move(error)), out);
    committing_.clear();  // Whether they are committed is not known; aborting them would be a guess.
    return end(*outcome_, out);
  }
  commit_retry_ = now + options_.retry_delay;
}

void Job::cancel(Instant now, Effects& out) {
  fail(now, Error{.code = Errc::cancelled, .message = "the job was cancelled", .hint = {}}, out);
}

void Job::fail(Instant, Error error, Effects& out) {
  if (!ended_ && !outcome_) stop(std::unexpected(std::move(error)), out);
}

/// The outcome is decided: nothing more starts, nothing more is handed to commit.
void Job::stop(Status result, Effects& out) {
  if (outcome_ || ended_) return;
  outcome_ = std::move(result);
  for (ChunkNo c = 0; c < chunks_.size(); ++c) {
    Chunk& chunk = chunks_[c];
    if (chunk.stage == Stage::sent || chunk.stage == Stage::staged) {
      if (chunk.stage == Stage::sent && std::ranges::find(out.cancel, chunk.node) == out.cancel.end()) {
        out.cancel.push_back(chunk.node);
      }
      out.abort.push_back({c, chunk.number});
      chunk.stage = Stage::waiting;
    }
  }
  out.send.clear();
  if (!out.commit.empty()) {  // Not handed over yet.
    out.abort.insert(out.abort.end(), committing_.begin(), committing_.end());
    committing_.clear();
    out.commit.clear();
  }
  staged_.clear();
  delayed_.clear();
  resend_.clear();
  homeless_.clear();
  for (auto& [id, node] : nodes_) node.queue.clear();
  if (committing_.empty()) end(*outcome_, out);
}

void Job::end(Status result, Effects& out) {
  if (ended_) return;
  ended_ = true;
  outcome_ = result;
  out.ended = std::move(result);
}

void Job::dispatch(Instant now, Effects& out) {
  if (ended_ || outcome_) return;
  while (!delayed_.empty() && delayed_.begin()->first <= now) {
    const ChunkNo c = delayed_.begin()->second;
    delayed_.erase(delayed_.begin());
    enqueue(c);
  }
  for (auto& [id, node] : nodes_) {
    std::vector<Attempt> batch;
    while (!node.queue.empty() && node.sent < node.slots * options_.sent_ahead) {
      const ChunkNo c = node.queue.front();
      node.queue.pop_front();
      Chunk& chunk = chunks_[c];
      HOLO_ASSERT(chunk.stage == Stage::waiting, "a chunk is sent once at a time");
      chunk.stage = Stage::sent;
      chunk.node = id;
      ++chunk.number;
      ++node.sent;
      batch.push_back({c, chunk.number});
    }
    if (!batch.empty()) out.send.push_back({id, std::move(batch)});
  }
}

void Job::on_time(Instant now, Effects& out) {
  if (ended_) return;
  if (commit_retry_ && *commit_retry_ <= now) {
    commit_retry_.reset();
    out.commit = committing_;
  }
  if (outcome_) return;
  while (!resend_.empty() && resend_.begin()->first <= now) {
    auto [node, attempts] = std::move(resend_.begin()->second);
    resend_.erase(resend_.begin());
    std::erase_if(attempts, [&](Attempt a) { return !wanted(a) || chunks_[a.chunk].node != node; });
    if (!attempts.empty() && nodes_.contains(node)) out.send.push_back({node, std::move(attempts)});
  }
  dispatch(now, out);
}

Instant Job::next_wake() const {
  Instant wake = kNever;
  if (ended_) return wake;
  if (commit_retry_) wake = std::min(wake, *commit_retry_);
  if (!delayed_.empty()) wake = std::min(wake, delayed_.begin()->first);
  if (!resend_.empty()) wake = std::min(wake, resend_.begin()->first);
  return wake;
}

std::vector<ChunkRange> split(const std::vector<BlockHome>& blocks, std::uint64_t elements, std::uint64_t element_bytes,
                              std::size_t max_chunks) {
  std::vector<ChunkRange> out;
  // The smallest number of blocks per chunk that keeps within the limit even where homes alternate.
  const std::size_t join = (blocks.size() + max_chunks - 1) / std::max<std::size_t>(1, max_chunks);
  std::uint64_t at = 0;  // bytes
  std::uint64_t first = 0;
  std::size_t joined = 0;
  NodeId home;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (joined == 0) home = blocks[i].home;
    at += blocks[i].bytes;
    if (++joined < join && i + 1 < blocks.size()) continue;
    joined = 0;
    // An element belongs where it begins: the next chunk's first element is the first that begins at or after `at`.
    const std::uint64_t last = std::min(elements, (at + element_bytes - 1) / element_bytes);
    if (last > first) out.push_back({first, last, home});
    first = std::max(first, last);
  }
  return out;
}

}  // namespace holo::compute
