#include "driver/quic/qlog_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/log.h"
#include "base/strings.h"
#include "env/fd.h"

namespace holo::driver::quic {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kBuffer = 32 << 10;
constexpr auto kFlushEvery = std::chrono::seconds(1);
constexpr std::size_t kNote = 256;  // Room that is kept for the last record.

std::string hex_of(ByteSpan bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  for (const std::byte b : bytes) {
    out += kDigits[std::to_integer<unsigned>(b) >> 4];
    out += kDigits[std::to_integer<unsigned>(b) & 15];
  }
  return out;
}

/// One connection's file. ngtcp2 hands over whole records.
class QlogFile {
 public:
  QlogFile(env::Fd fd, std::string path, std::uint64_t limit)
      : fd_(std::move(fd)), path_(std::move(path)), limit_(limit) {}
  ~QlogFile() { flush(); }
  QlogFile(const QlogFile&) = delete;
  QlogFile& operator=(const QlogFile&) = delete;

  void write(ByteSpan record) {
    if (!fd_) return;
    if (bytes_ + record.size() + kNote > limit_) {
      note_the_end(as_text(record));
      flush();
      fd_ = {};
      return;
    }
    add(as_text(record));
    if (buffer_.size() >= kBuffer || Clock::now() - flushed_ >= kFlushEvery) flush();
  }

 private:
  void add(std::string_view text) {
    buffer_ += text;
    bytes_ += text.size();
  }

  /// In place of `record`, at its time.
  void note_the_end(std::string_view record) {
    constexpr std::string_view kTime = "\"time\":";
    const auto at = record.find(kTime);
    const auto time = at == std::string_view::npos ? std::string_view("0") : record.substr(at + kTime.size());
    add(str("\x1e{\"time\":", time.substr(0, time.find_first_not_of("0123456789.")),
            ",\"name\":\"loglevel:warning\",\"data\":{\"message\":\"this file is full: ", limit_, " bytes\"}}\n"));
  }

  void flush() {
    flushed_ = Clock::now();
    std::string_view rest = buffer_;
    while (fd_ && !rest.empty()) {
      const ssize_t n = ::write(fd_.get(), rest.data(), rest.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        log_warn("qlog", "cannot write ", path_, ": ", std::generic_category().message(errno));
        fd_ = {};
        break;
      }
      rest.remove_prefix(static_cast<std::size_t>(n));
    }
    buffer_.clear();
  }

  env::Fd fd_;
  std::string path_;
  std::uint64_t limit_;
  std::uint64_t bytes_ = 0;
  std::string buffer_;
  Clock::time_point flushed_ = Clock::now();
};

class QlogFolder {
 public:
  QlogFolder(std::string path, QlogLimits limits) : path_(std::move(path)), limits_(limits) {}

  env::QlogSink start(ByteSpan id, bool server) {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const std::string file = str(path_, '/', std::chrono::duration_cast<std::chrono::milliseconds>(now).count(), '-',
                                 hex_of(id), server ? "-server" : "-client", ".sqlog");
    if (files() >= limits_.files) {
      complain(str(path_, " is full: ", limits_.files, " files; further connections leave none"));
      return {};
    }
    env::Fd fd(::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd) {
      complain(str("cannot make ", file, ": ", std::generic_category().message(errno)));
      return {};
    }
    complained_ = false;
    return
        [log = std::make_shared<QlogFile>(std::move(fd), file, limits_.bytes)](ByteSpan record) { log->write(record); };
  }

 private:
  [[nodiscard]] std::size_t files() const {
    std::error_code ignored;
    const std::filesystem::directory_iterator all(path_, ignored);
    return static_cast<std::size_t>(
        std::count_if(begin(all), end(all), [](const auto& entry) { return entry.path().extension() == ".sqlog"; }));
  }
  void complain(const std::string& what) {
    if (!std::exchange(complained_, true)) log_warn("qlog", what);
  }

  std::string path_;
  QlogLimits limits_;
  bool complained_ = false;
};

}  // namespace

env::QlogFactory make_qlog_files(std::string folder, QlogLimits limits) {
  return [files = std::make_shared<QlogFolder>(std::move(folder), limits)](ByteSpan id, bool server) {
    return files->start(id, server);
  };
}

}  // namespace holo::driver::quic
