#include "env/command_log.h"

#include <algorithm>

namespace holo::env {
namespace {

class WholeCut final : public StateCut {
 public:
  explicit WholeCut(Bytes state) : state_(std::move(state)) {}
  Result<Bytes> next(std::size_t limit) override {
    const ByteSpan piece = ByteSpan(state_).subspan(at_).first(std::min(limit, state_.size() - at_));
    at_ += piece.size();
    return Bytes(piece.begin(), piece.end());
  }

 private:
  Bytes state_;
  std::size_t at_ = 0;
};

class WholeLoad final : public StateLoad {
 public:
  explicit WholeLoad(StateMachine& machine) : machine_(machine) {}
  Status add(ByteSpan bytes) override {
    state_.insert(state_.end(), bytes.begin(), bytes.end());
    return {};
  }
  Status finish(LogIndex index) override { return machine_.restore(index, state_); }

 private:
  StateMachine& machine_;
  Bytes state_;
};

}  // namespace

std::unique_ptr<StateCut> StateMachine::cut() { return std::make_unique<WholeCut>(snapshot()); }
std::unique_ptr<StateLoad> StateMachine::load() { return std::make_unique<WholeLoad>(*this); }

}  // namespace holo::env
