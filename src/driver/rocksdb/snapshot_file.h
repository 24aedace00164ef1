// A snapshot's data as a file: records of a length, a checksum and bytes, after a line that says what it is.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "env/fd.h"
#include "env/log_store.h"

namespace holo::driver {

/// Removes its file when it goes, unless keep() was called. Thread: any, one at a time.
class SnapshotFileWriter final : public env::SnapshotWriter {
 public:
  /// Makes `directory`/`name`. Errors: `io_error`.
  static Result<std::unique_ptr<SnapshotFileWriter>> create(const std::string& directory, const std::string& name);
  ~SnapshotFileWriter() override;
  SnapshotFileWriter(const SnapshotFileWriter&) = delete;
  SnapshotFileWriter& operator=(const SnapshotFileWriter&) = delete;

  /// Blocks now and then for what was written to reach the disk, so that no sync has much to do.
  Status add(ByteSpan bytes) override;
  std::uint64_t bytes() const override { return bytes_; }
  /// All of it, and the file's name, are on the disk. Errors: `io_error`.
  Status sync();
  void keep() { kept_ = true; }
  [[nodiscard]] const std::string& name() const { return name_; }

 private:
  SnapshotFileWriter(std::string directory, std::string name, env::Fd fd)
      : directory_(std::move(directory)), name_(std::move(name)), fd_(std::move(fd)) {}
  Status write(ByteSpan bytes);
  [[nodiscard]] Error failed(const char* what) const;
  const std::string directory_, name_;
  env::Fd fd_;
  std::uint64_t bytes_ = 0, records_ = 0, at_ = 0, unsynced_ = 0;
  bool kept_ = false;
};

/// `bytes`: of data, as SnapshotFileWriter::bytes() was. Errors: `corrupt` (it is missing, or not such a file),
/// `io_error`.
Result<std::unique_ptr<env::SnapshotReader>> open_snapshot_file(const std::string& path, env::LogSnapshot what,
                                                                std::uint64_t bytes);

}  // namespace holo::driver
