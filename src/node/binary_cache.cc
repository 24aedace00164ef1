#include "node/binary_cache.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/limits.h"
#include "base/strings.h"
#include "crypto/hash.h"
#include "env/fd.h"
#include "wire/elf_note.h"
#include "wire/local_frame.h"

namespace holo::node {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kCopyBytes = 1 << 20;
constexpr std::string_view kPartSuffix = ".part";

std::unexpected<Error> io_failure(const std::string& what, int error) {
  const Errc code = error == ENOENT ? Errc::not_found : error == EACCES ? Errc::permission_denied : Errc::io_error;
  return fail(code, str(what, ": ", std::generic_category().message(error)));
}

std::string hex(std::string_view bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  for (const char c : bytes) {
    out += kDigits[static_cast<unsigned char>(c) >> 4];
    out += kDigits[static_cast<unsigned char>(c) & 15];
  }
  return out;
}

Result<Bytes> read_at(int fd, std::uint64_t offset, std::uint64_t length) {
  Bytes out(length);
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return io_failure("cannot read an executable", errno);
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  out.resize(done);
  return out;
}

Status write_all(int fd, ByteSpan bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return io_failure("cannot store an executable", errno);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

/// A whole file, mapped for reading while the object lives.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path) {
    const env::Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info{};
    if (!fd || ::fstat(fd.get(), &info) != 0) return io_failure("cannot read " + path, errno);
    const auto size = static_cast<std::size_t>(info.st_size);
    void* p = size == 0 ? nullptr : ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (p == MAP_FAILED) return io_failure("cannot read " + path, errno);
    return MappedFile(ByteSpan(static_cast<const std::byte*>(p), size));
  }
  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile() {
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }
  [[nodiscard]] ByteSpan bytes() const { return bytes_; }

 private:
  explicit MappedFile(ByteSpan bytes) : bytes_(bytes) {}
  ByteSpan bytes_;
};

/// Hashes and checks the file at `part`, then gives it its name.
Status accept(const std::string& part, const std::string& name, const std::string& hash) {
  HOLO_ASSIGN(file, MappedFile::open(part));
  crypto::Blake3 digest;
  digest.update(file.bytes());
  const auto found = digest.digest();
  if (hash != as_text(found)) {
    return fail(Errc::wrong_build, "the executable is not the build that the program runs", "start the program again");
  }
  auto note = wire::find_holo_note(file.bytes());
  if (!note) {
    note.error().message = "the executable cannot be a worker: " + note.error().message;
    return std::unexpected(note.error());
  }
  if (note->local_protocol != wire::kLocalProtocol) {
    return fail(Errc::wrong_build,
                str("the executable cannot be a worker: its libholo (", note->version, ") speaks local protocol ",
                    note->local_protocol, ", this agent ", wire::kLocalProtocol),
                "link the program with the libholo of this agent's version");
  }
  if (::chmod(part.c_str(), 0700) != 0 || ::rename(part.c_str(), name.c_str()) != 0) {
    return io_failure("cannot store an executable", errno);
  }
  return {};
}

/// Removes the least recently used files until the rest fits; `keep` stays.
void trim(const std::string& directory, std::uint64_t max_bytes, const std::string& keep) {
  struct File {
    fs::file_time_type used;
    std::uint64_t bytes;
    fs::path path;
  };
  std::vector<File> files;
  std::uint64_t total = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    if (!entry.is_regular_file(error) || entry.path().string().ends_with(kPartSuffix)) continue;
    files.push_back({entry.last_write_time(error), entry.file_size(error), entry.path()});
    total += files.back().bytes;
  }
  std::ranges::sort(files, {}, &File::used);
  for (const File& f : files) {
    if (total <= max_bytes) return;
    if (f.path == keep) continue;
    if (fs::remove(f.path, error)) total -= f.bytes;  // A running worker keeps its file open.
  }
}

}  // namespace

BinaryCache::BinaryCache(env::Loop& loop, std::string directory, std::uint64_t max_bytes)
    : loop_(loop), directory_(std::move(directory)), max_bytes_(max_bytes) {}

std::string BinaryCache::path(const std::string& hash) const { return directory_ + "/" + hex(hash); }

bool BinaryCache::has(const std::string& hash) const {
  std::error_code error;
  return hash.size() == crypto::kBlake3Bytes && fs::is_regular_file(path(hash), error);
}

std::uint64_t BinaryCache::size(const std::string& hash) const {
  std::error_code error;
  const auto bytes = has(hash) ? fs::file_size(path(hash), error) : 0;
  return error ? 0 : bytes;
}

Status BinaryCache::prepare() {
  if (prepared_) return {};
  std::error_code error;
  fs::create_directories(directory_, error);
  if (error) return io_failure("cannot make " + directory_, error.value());
  fs::permissions(directory_, fs::perms::owner_all, error);
  for (const auto& entry : fs::directory_iterator(directory_, error)) {
    std::error_code ignored;
    if (entry.path().string().ends_with(kPartSuffix)) fs::remove(entry.path(), ignored);  // Of an earlier run.
  }
  prepared_ = true;
  return {};
}

std::string BinaryCache::new_part() { return str(directory_, "/", ++parts_, kPartSuffix); }

Task<Result<std::string>> BinaryCache::import(std::string hash, std::string source) {
  if (hash.size() != crypto::kBlake3Bytes)
    co_return fail(Errc::malformed, "a program without the hash of its executable");
  if (has(hash)) co_return path(hash);
  HOLO_CO_TRY(prepare());
  const std::string part = new_part();
  const std::string name = path(hash);
  std::function<Status()> copy = [=, directory = directory_, limit = max_bytes_]() -> Status {
    const env::Fd from(::open(source.c_str(), O_RDONLY | O_CLOEXEC));
    if (!from) return io_failure("cannot read the program's executable", errno);
    const env::Fd to(::open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!to) return io_failure("cannot store an executable", errno);
    for (std::uint64_t at = 0;;) {
      HOLO_ASSIGN(block, read_at(from.get(), at, kCopyBytes));
      if (block.empty()) break;
      at += block.size();
      if (at > limits::kMaxBinaryBytes) return fail(Errc::over_limit, "the executable is larger than 512 MiB");
      HOLO_TRY(write_all(to.get(), block));
    }
    HOLO_TRY(accept(part, name, hash));
    trim(directory, limit, name);
    return {};
  };
  const Status copied = co_await env::offload(loop_, copy);
  if (!copied) {
    ::unlink(part.c_str());
    co_return std::unexpected(copied.error());
  }
  co_return name;
}

Task<Result<std::string>> BinaryCache::obtain(std::string hash, std::uint64_t bytes, Fetch fetch) {
  if (hash.size() != crypto::kBlake3Bytes)
    co_return fail(Errc::malformed, "a program without the hash of its executable");
  if (has(hash)) {
    std::error_code error;
    fs::last_write_time(path(hash), fs::file_time_type::clock::now(), error);  // Used: it stays longer.
    co_return path(hash);
  }
  if (bytes > limits::kMaxBinaryBytes) co_return fail(Errc::over_limit, "the executable is larger than 512 MiB");
  if (auto it = fetching_.find(hash); it != fetching_.end()) {
    auto shot = std::make_shared<OneShot<Result<std::string>>>();
    it->second.waiters.push_back(shot);
    co_return co_await *shot;
  }
  fetching_[hash];
  auto result = co_await fetch_now(hash, bytes, std::move(fetch));
  auto waiting = std::move(fetching_[hash].waiters);
  fetching_.erase(hash);
  for (auto& shot : waiting) shot->set(result);
  co_return result;
}

Task<Result<std::string>> BinaryCache::fetch_now(std::string hash, std::uint64_t bytes, Fetch fetch) {
  HOLO_CO_TRY(prepare());
  const std::string part = new_part();
  const std::string name = path(hash);
  Status stored;
  for (std::uint64_t at = 0; stored && at < bytes;) {
    auto block = co_await fetch(at);
    if (!block || block->empty()) {
      stored = block ? Status(fail(Errc::corrupt, "an executable came shorter than announced"))
                     : Status(std::unexpected(block.error()));
      break;
    }
    at += block->size();
    auto shared = std::make_shared<Bytes>(std::move(*block));
    std::function<Status()> append = [=]() -> Status {
      const env::Fd to(::open(part.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
      if (!to) return io_failure("cannot store an executable", errno);
      return write_all(to.get(), *shared);
    };
    stored = co_await env::offload(loop_, append);
  }
  if (stored) {
    std::function<Status()> finish = [=, directory = directory_, limit = max_bytes_]() -> Status {
      HOLO_TRY(accept(part, name, hash));
      trim(directory, limit, name);
      return {};
    };
    stored = co_await env::offload(loop_, finish);
  }
  if (!stored) {
    ::unlink(part.c_str());
    co_return std::unexpected(stored.error());
  }
  co_return name;
}

Task<Result<Bytes>> BinaryCache::read(std::string hash, std::uint64_t offset, std::uint64_t length) {
  if (!has(hash)) co_return fail(Errc::not_found, "no executable with this hash is kept here");
  const std::string name = path(hash);
  std::function<Result<Bytes>()> work = [=]() -> Result<Bytes> {
    const env::Fd from(::open(name.c_str(), O_RDONLY | O_CLOEXEC));
    if (!from) return io_failure("cannot read an executable", errno);
    return read_at(from.get(), offset, length);
  };
  co_return co_await env::offload(loop_, work);
}

}  // namespace holo::node
