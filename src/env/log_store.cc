#include "env/log_store.h"

#include <algorithm>

namespace holo::env {
namespace {

constexpr std::size_t kPieceBytes = 256 << 10;

struct WholeWriter final : SnapshotWriter {
  Status add(ByteSpan more) override {
    data.insert(data.end(), more.begin(), more.end());
    return {};
  }
  std::uint64_t bytes() const override { return data.size(); }
  Bytes data;
};

class WholeReader final : public SnapshotReader {
 public:
  explicit WholeReader(LogSnapshot snapshot) : data_(std::move(snapshot.data)), what_(std::move(snapshot)) {
    what_.data.clear();
  }
  const LogSnapshot& what() const override { return what_; }
  std::uint64_t bytes() const override { return data_.size(); }
  Result<Bytes> next() override {
    const ByteSpan piece = ByteSpan(data_).subspan(at_).first(std::min(kPieceBytes, data_.size() - at_));
    at_ += piece.size();
    return Bytes(piece.begin(), piece.end());
  }

 private:
  Bytes data_;
  LogSnapshot what_;
  std::size_t at_ = 0;
};

}  // namespace

Result<std::unique_ptr<SnapshotWriter>> LogStore::new_snapshot() { return std::make_unique<WholeWriter>(); }

Status LogStore::keep_snapshot(const LogSnapshot& snapshot, SnapshotWriter& data, std::uint64_t keep_after) {
  LogSnapshot whole = snapshot;
  whole.data = static_cast<WholeWriter&>(data).data;
  return put_snapshot(whole, keep_after);
}

Result<std::unique_ptr<SnapshotReader>> LogStore::open_snapshot() {
  HOLO_ASSIGN(whole, snapshot());
  if (!whole) return nullptr;
  return std::make_unique<WholeReader>(std::move(*whole));
}

}  // namespace holo::env
