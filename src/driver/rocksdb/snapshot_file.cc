#include "driver/rocksdb/snapshot_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/strings.h"
#include "crypto/hash.h"

namespace holo::driver {
namespace {

constexpr std::string_view kMagic = "holo snapshot 1\n";
constexpr std::size_t kRecordHeader = 12;  // u32 length, u64 checksum over the record's number and its bytes
constexpr std::size_t kMaxRecordBytes = 16 << 20;
constexpr std::uint64_t kSyncEvery = 4 << 20;
constexpr const char* kRepair = "holo control repair fetches all of it from the other nodes again";

std::uint64_t sum_of(std::uint64_t number, ByteSpan bytes) {
  const auto inner = crypto::blake3(bytes);
  std::array<std::byte, 8 + sizeof inner> whole;
  std::memcpy(whole.data(), &number, 8);
  std::memcpy(whole.data() + 8, inner.data(), sizeof inner);
  return crypto::blake3_64(whole);
}

}  // namespace

// ---- Writing

Result<std::unique_ptr<SnapshotFileWriter>> SnapshotFileWriter::create(const std::string& directory,
                                                                       const std::string& name) {
  const std::string path = directory + "/" + name;
  env::Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) return fail(Errc::io_error, str("cannot make ", path, ": ", std::strerror(errno)));
  std::unique_ptr<SnapshotFileWriter> out(new SnapshotFileWriter(directory, name, std::move(fd)));
  HOLO_TRY(out->write(as_bytes(kMagic)));
  return out;
}

SnapshotFileWriter::~SnapshotFileWriter() {
  if (!kept_) ::unlink((directory_ + "/" + name_).c_str());
}

Error SnapshotFileWriter::failed(const char* what) const {
  Error e{.code = Errc::io_error, .message = str(what, " ", directory_, "/", name_, ": ", std::strerror(errno))};
  e.retryable = errno == ENOSPC;
  return e;
}

/// At the end of what was written whole: a write that failed half-way is written over.
Status SnapshotFileWriter::write(ByteSpan bytes) {
  std::uint64_t at = at_;
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return std::unexpected(failed("cannot write to"));
    at += static_cast<std::uint64_t>(n);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  unsynced_ += at - at_;
  at_ = at;
  return {};
}

Status SnapshotFileWriter::add(ByteSpan bytes) {
  while (!bytes.empty()) {
    const ByteSpan part = bytes.first(std::min(bytes.size(), kMaxRecordBytes));
    Bytes record(kRecordHeader);
    const auto length = static_cast<std::uint32_t>(part.size());
    const std::uint64_t sum = sum_of(records_, part);
    std::memcpy(record.data(), &length, 4);
    std::memcpy(record.data() + 4, &sum, 8);
    record.insert(record.end(), part.begin(), part.end());
    HOLO_TRY(write(record));
    ++records_;
    bytes_ += part.size();
    bytes = bytes.subspan(part.size());
  }
  if (unsynced_ < kSyncEvery) return {};
  unsynced_ = 0;
  if (::fdatasync(fd_.get()) != 0) return std::unexpected(failed("cannot sync"));
  return {};
}

Status SnapshotFileWriter::sync() {
  if (::fdatasync(fd_.get()) != 0) return std::unexpected(failed("cannot sync"));
  const env::Fd folder(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder || ::fsync(folder.get()) != 0) return std::unexpected(failed("cannot sync the folder of"));
  return {};
}

// ---- Reading

namespace {

class FileReader final : public env::SnapshotReader {
 public:
  FileReader(std::string path, env::Fd fd, env::LogSnapshot what, std::uint64_t bytes)
      : path_(std::move(path)), fd_(std::move(fd)), what_(std::move(what)), bytes_(bytes) {}
  const env::LogSnapshot& what() const override { return what_; }
  std::uint64_t bytes() const override { return bytes_; }

  Result<Bytes> next() override {
    if (done_ == bytes_) return Bytes{};
    std::array<std::byte, kRecordHeader> header;
    HOLO_TRY(read(header));
    std::uint32_t length = 0;
    std::uint64_t sum = 0;
    std::memcpy(&length, header.data(), 4);
    std::memcpy(&sum, header.data() + 4, 8);
    if (length == 0 || length > kMaxRecordBytes || length > bytes_ - done_)
      return corrupt("a record's length is wrong");
    Bytes out(length);
    HOLO_TRY(read(out));
    if (sum_of(records_, out) != sum) return corrupt("a record's checksum is wrong");
    ++records_;
    done_ += length;
    return out;
  }

  Status check_magic() {
    std::array<std::byte, kMagic.size()> magic;
    HOLO_TRY(read(magic));
    if (as_text(magic) != kMagic) return corrupt("it is not one of ours");
    return {};
  }

 private:
  std::unexpected<Error> corrupt(const char* why) const {
    return fail(Errc::corrupt,
                str("the snapshot of the log up to entry ", what_.index, ", ", path_, ", is corrupt before byte ", at_,
                    ": ", why),
                kRepair);
  }
  Status read(MutableByteSpan into) {
    while (!into.empty()) {
      const ssize_t n = ::pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(at_));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return fail(Errc::io_error, str("cannot read ", path_, ": ", std::strerror(errno)), kRepair);
      if (n == 0) return corrupt("it is too short");
      at_ += static_cast<std::uint64_t>(n);
      into = into.subspan(static_cast<std::size_t>(n));
    }
    return {};
  }

  const std::string path_;
  env::Fd fd_;
  const env::LogSnapshot what_;
  const std::uint64_t bytes_;
  std::uint64_t at_ = 0, done_ = 0, records_ = 0;
};

}  // namespace

Result<std::unique_ptr<env::SnapshotReader>> open_snapshot_file(const std::string& path, env::LogSnapshot what,
                                                                std::uint64_t bytes) {
  env::Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    return fail(errno == ENOENT ? Errc::corrupt : Errc::io_error,
                str("the snapshot of the log up to entry ", what.index, ", ", path,
                    ", cannot be opened: ", std::strerror(errno)),
                kRepair);
  }
  auto reader = std::make_unique<FileReader>(path, std::move(fd), std::move(what), bytes);
  HOLO_TRY(reader->check_magic());
  return reader;
}

}  // namespace holo::driver
