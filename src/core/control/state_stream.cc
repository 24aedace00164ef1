// The state as a stream: records of a length (u32, little-endian) and a ControlSnapshot. The first has everything but
// the keys, those that follow have keys, in order, and the last says that it is.
#include <algorithm>

#include "base/strings.h"
#include "core/control/state.h"

namespace holo::control {
namespace {

constexpr std::size_t kRecordBytes = 64 << 10;  // Of keys and values in one record, about.
constexpr std::size_t kLengthBytes = 4;

Status bad(const char* what) {
  return fail(Errc::corrupt, str("the snapshot of the control state is corrupt: ", what));
}

}  // namespace

class StreamCut final : public env::StateCut {
 public:
  explicit StreamCut(State& state) : keys_(state.keys_.cut()) { put(state.describe(State::Keys::none)); }

  Result<Bytes> next(std::size_t limit) override {
    if (at_ == ready_.size() && !ended_) {
      ready_.clear();
      at_ = 0;
      while (ready_.size() < limit && !ended_) {
        wire::ControlSnapshot record;
        HOLO_ASSIGN(more, keys_->next(kRecordBytes, record.mutable_kv()));
        if (!more) {
          record.Clear();
          record.set_end(true);
          ended_ = true;
        }
        put(record);
      }
    }
    const ByteSpan piece = as_bytes(ready_).subspan(at_).first(std::min(limit, ready_.size() - at_));
    at_ += piece.size();
    return Bytes(piece.begin(), piece.end());
  }

 private:
  void put(const wire::ControlSnapshot& record) {
    const std::size_t size = record.ByteSizeLong();
    HOLO_ASSERT(size <= UINT32_MAX / 2, "a snapshot's record of more than 2 GiB");
    for (std::size_t i = 0; i < kLengthBytes; ++i) ready_.push_back(static_cast<char>(size >> (8 * i)));
    HOLO_ASSERT(record.AppendToString(&ready_), "a record that is not whole");
  }

  std::unique_ptr<KeySpace::Cut> keys_;
  std::string ready_;
  std::size_t at_ = 0;
  bool ended_ = false;
};

class StreamLoad final : public env::StateLoad {
 public:
  explicit StreamLoad(State& state) : state_(state) {}

  Status add(ByteSpan bytes) override {
    pending_.append(as_text(bytes));
    std::size_t at = 0;
    for (;;) {
      if (pending_.size() - at < kLengthBytes) break;
      std::size_t size = 0;
      for (std::size_t i = 0; i < kLengthBytes; ++i) {
        size |= static_cast<std::size_t>(static_cast<unsigned char>(pending_[at + i])) << (8 * i);
      }
      if (size > INT32_MAX) return bad("a record that is too large");
      if (pending_.size() - at - kLengthBytes < size) break;
      HOLO_TRY(take(std::string_view(pending_).substr(at + kLengthBytes, size)));
      at += kLengthBytes + size;
    }
    pending_.erase(0, at);
    return {};
  }

  Status finish(LogIndex index) override {
    if (!ended_ || !pending_.empty()) return bad("it was cut short");
    keys_.end_load();
    HOLO_TRY(state_.replace(index, head_, std::move(keys_)));
    state_.tell_restored();
    return {};
  }

 private:
  Status take(std::string_view record) {
    if (ended_) return bad("something after its end");
    wire::ControlSnapshot& in = begun_ ? piece_ : head_;
    if (!in.ParseFromArray(record.data(), static_cast<int>(record.size()))) return bad("it does not decode");
    if (!std::exchange(begun_, true)) {
      if (in.kv().keys_size() != 0 || in.end()) return bad("its beginning");
      return keys_.begin_load(in.kv());
    }
    ended_ = in.end();
    return keys_.load_keys(in.kv());
  }

  State& state_;
  std::string pending_;
  wire::ControlSnapshot head_, piece_;
  KeySpace keys_;
  bool begun_ = false, ended_ = false;
};

std::unique_ptr<env::StateCut> State::cut() { return std::make_unique<StreamCut>(*this); }
std::unique_ptr<env::StateLoad> State::load() { return std::make_unique<StreamLoad>(*this); }

}  // namespace holo::control
