// A CommandLog that its owner may drop while coroutines of it still run: they keep the log itself, and dropping this
// tells it to end.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "env/command_log.h"

namespace holo::env {

/// `kEnd`: ends the log without waiting; called after close(), too.
template <class Log, void (Log::*kEnd)()>
class HeldCommandLog final : public CommandLog {
 public:
  explicit HeldCommandLog(std::shared_ptr<Log> log) : log_(std::move(log)) {}
  ~HeldCommandLog() override { (log_.get()->*kEnd)(); }
  HeldCommandLog(const HeldCommandLog&) = delete;
  HeldCommandLog& operator=(const HeldCommandLog&) = delete;

  Task<Result<LogIndex>> append(Buffer command, Instant deadline) override {
    return log_->append(std::move(command), deadline);
  }
  Task<Status> barrier(Instant deadline) override { return log_->barrier(deadline); }
  [[nodiscard]] LogStatus status() const override { return log_->status(); }
  [[nodiscard]] WallTime now() const override { return log_->now(); }
  [[nodiscard]] std::vector<LogMember> members() const override { return log_->members(); }
  Task<Status> add_learner(NodeId node, Instant deadline) override { return log_->add_learner(node, deadline); }
  Task<Status> set_voter(NodeId node, bool voter, Instant deadline) override {
    return log_->set_voter(node, voter, deadline);
  }
  Task<Status> remove(NodeId node, Instant deadline) override { return log_->remove(node, deadline); }
  Task<Status> hand_over(NodeId to, Instant deadline) override { return log_->hand_over(to, deadline); }
  void on_change(std::function<void()> f) override { log_->on_change(std::move(f)); }
  Task<void> close() override { return log_->close(); }

 private:
  std::shared_ptr<Log> log_;
};

}  // namespace holo::env
