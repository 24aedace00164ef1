#include "node/page_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <system_error>

#include "base/strings.h"
#include "crypto/hash.h"
#include "wire/memory.pb.h"

namespace holo::node {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "HOLOPAG1";
constexpr std::uint32_t kFormat = 1;
constexpr std::size_t kNonce = 24;
constexpr std::uint64_t kMaxIndexBytes = 1ULL << 31;
constexpr std::size_t kWriteBuffer = 1 << 20;

// The end of a file: magic, index offset, index length, nonce of the index.
constexpr std::size_t kFooter = 8 + 8 + 8 + kNonce;

std::unexpected<Error> os_error(const std::string& what, int err = errno) {
  const Errc code = err == EACCES || err == EPERM ? Errc::permission_denied : Errc::io_error;
  return fail(code, str(what, ": ", std::error_code(err, std::generic_category()).message()));
}

void put64(std::string& out, std::uint64_t v) {
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(v >> (8 * i)));
}
std::uint64_t get64(ByteSpan b, std::size_t at) {
  std::uint64_t v = 0;
  for (std::size_t i = 0; i < 8; ++i) v |= static_cast<std::uint64_t>(b[at + i]) << (8 * i);
  return v;
}

std::string page_label(const PageName& n) {
  std::string out = "page";
  put64(out, n.region.value);
  put64(out, n.page.value);
  put64(out, n.version.value);
  return out;
}

Status write_all(int fd, ByteSpan bytes, const std::string& file) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return os_error(str("cannot write ", file), n == 0 ? ENOSPC : errno);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Status read_at(int fd, std::uint64_t offset, MutableByteSpan out, const std::string& file) {
  while (!out.empty()) {
    const ssize_t n = ::pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return os_error(str("cannot read ", file));
    if (n == 0) return fail(Errc::corrupt, str(file, " ends too early"));
    out = out.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return {};
}

Result<crypto::AeadKey> read_or_make_key(const std::string& path, env::Entropy& entropy) {
  crypto::AeadKey key;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    const Status ok = read_at(fd, 0, key.writable(), path);
    ::close(fd);
    if (!ok) return std::unexpected(ok.error());
    return key;
  }
  if (errno != ENOENT) return os_error(str("cannot read ", path));
  key = crypto::random_secret<crypto::kAeadKeyBytes>(entropy);
  const std::string fresh = path + ".new";
  const int out = ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (out < 0) return os_error(str("cannot write ", fresh));
  Status ok = write_all(out, key.span(), fresh);
  if (ok && ::fdatasync(out) != 0) ok = os_error(str("cannot write ", fresh));
  ::close(out);
  if (ok && ::rename(fresh.c_str(), path.c_str()) != 0) ok = os_error(str("cannot write ", path));
  if (!ok) return std::unexpected(ok.error());
  return key;
}

std::shared_ptr<const int> share_fd(int fd) {
  return {new int(fd), [](const int* p) {
            ::close(*p);
            delete p;
          }};
}

}  // namespace

PageFiles::PageFiles(std::string directory, Owner owner, env::Entropy& entropy, const crypto::AeadKey& key)
    : directory_(std::move(directory)),
      owner_(owner),
      entropy_(entropy),
      aead_(crypto::AeadAlgorithm::xchacha20_poly1305, key) {}

Result<std::unique_ptr<PageFiles>> PageFiles::open(const std::string& directory, Owner owner, env::Entropy& entropy,
                                                   std::vector<std::string>& damaged) {
  HOLO_ASSIGN(key, read_or_make_key(directory + "/pages.key", entropy));
  std::unique_ptr<PageFiles> files(new PageFiles(directory, owner, entropy, key));
  std::error_code ec;
  std::optional<std::uint64_t> stamp;
  std::uint32_t expected = 0, found = 0;
  for (const auto& entry : fs::directory_iterator(directory + "/pages", ec)) {
    std::uint64_t file_stamp = 0;
    std::uint32_t file_count = 0;
    if (auto ok = files->read_index(entry.path().string(), file_stamp, file_count); !ok) {
      damaged.push_back(ok.error().message);
      continue;
    }
    if (stamp && *stamp != file_stamp) {
      // Two stops mixed: exact versions still name the bytes, so nothing wrong can come of it.
      damaged.push_back(str(entry.path().string(), " is of another stop than its neighbours"));
    }
    stamp = file_stamp;
    expected = file_count;
    ++found;
  }
  if (found < expected)
    damaged.push_back(str(directory, "/pages: ", expected - found, " of ", expected, " files cannot be used"));
  return files;
}

Status PageFiles::read_index(const std::string& path, std::uint64_t& stamp, std::uint32_t& files) {
  const int raw = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (raw < 0) return os_error(str("cannot read ", path));
  auto fd = share_fd(raw);
  struct stat st{};
  if (::fstat(raw, &st) != 0) return os_error(str("cannot read ", path));
  const auto size = static_cast<std::uint64_t>(st.st_size);
  if (size < kFooter) return fail(Errc::corrupt, str(path, " is too short"));
  Bytes footer(kFooter);
  HOLO_TRY(read_at(raw, size - kFooter, footer, path));
  const std::uint64_t offset = get64(footer, 8), length = get64(footer, 16);
  if (as_text(ByteSpan(footer).first(8)) != kMagic || length > kMaxIndexBytes || length < crypto::kAeadTagBytes ||
      offset > size - kFooter || length != size - kFooter - offset) {
    return fail(Errc::corrupt, str(path, " has no valid end"));
  }
  Bytes sealed(length);
  HOLO_TRY(read_at(raw, offset, sealed, path));
  Bytes plain(length - crypto::kAeadTagBytes);
  if (!aead_.open(ByteSpan(footer).subspan(24, kNonce), as_bytes("index"), sealed, plain)) {
    return fail(Errc::corrupt, str(path, ": its index fails its checksum"));
  }
  wire::PageFileIndex index;
  if (!index.ParseFromArray(plain.data(), static_cast<int>(plain.size())) || index.format() != kFormat) {
    return fail(Errc::corrupt, str(path, ": its index does not decode"));
  }
  if (index.cluster() != owner_.cluster.value || index.node() != owner_.node.value) {
    return fail(Errc::corrupt, str(path, " belongs to another node or cluster"));
  }
  stamp = index.stamp();
  files = index.files();
  for (const auto& p : index.pages()) {
    if (p.offset() > offset || p.length() > offset - p.offset() || p.nonce().size() != kNonce) {
      return fail(Errc::corrupt, str(path, ": its index names bytes outside the file"));
    }
    entries_[{RegionId{p.region()}, PageNo{p.page()}, Version{p.version()}}] =
        Place{.fd = fd, .file = path, .offset = p.offset(), .length = p.length(), .nonce = p.nonce()};
  }
  return {};
}

Result<Buffer> PageFiles::load(const PageName& name) const {
  auto it = entries_.find(name);
  if (it == entries_.end()) return fail(Errc::not_found, "no such page in the files of the last stop");
  const Place& place = it->second;
  if (place.length < crypto::kAeadTagBytes) return fail(Errc::corrupt, str(place.file, ": a page is too short"));
  Bytes sealed(place.length);
  HOLO_TRY(read_at(*place.fd, place.offset, sealed, place.file));
  Bytes plain(place.length - crypto::kAeadTagBytes);
  if (!aead_.open(as_bytes(place.nonce), as_bytes(page_label(name)), sealed, plain)) {
    return fail(Errc::corrupt,
                str(place.file, ": page ", name.page, " of region ", name.region, " fails its checksum"));
  }
  return Buffer(std::move(plain));
}

struct PageFiles::FileWriter final : PageFiles::Writer {
  struct File {
    std::string path;
    int fd = -1;
    std::uint64_t written = 0;  // into `pending` as well
    Bytes pending;
    wire::PageFileIndex index;
  };

  explicit FileWriter(PageFiles& owner) : files(owner) {}
  ~FileWriter() override {
    for (File& f : out) {
      if (f.fd >= 0) ::close(f.fd);
    }
    if (!committed) {
      std::error_code ec;
      fs::remove_all(files.directory_ + "/pages.new", ec);
    }
  }
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  Status flush(File& f) {
    HOLO_TRY(write_all(f.fd, f.pending, f.path));
    f.pending.clear();
    return {};
  }
  std::string nonce() {
    std::string out_nonce(kNonce, '\0');
    const std::lock_guard hold(entropy_mutex);
    files.entropy_.fill(std::as_writable_bytes(std::span(out_nonce)));
    return out_nonce;
  }
  Status seal(File& f, const std::string& with, const std::string& label, ByteSpan bytes) {
    const std::size_t at = f.pending.size();
    f.pending.resize(at + bytes.size() + crypto::kAeadTagBytes);
    files.aead_.seal(as_bytes(with), as_bytes(label), bytes, MutableByteSpan(f.pending).subspan(at));
    f.written += bytes.size() + crypto::kAeadTagBytes;
    if (f.pending.size() >= kWriteBuffer) return flush(f);
    return {};
  }

  Status add(std::size_t index, const PageName& name, ByteSpan bytes) override {
    File& f = out[index];
    const std::string with = nonce();
    auto* entry = f.index.add_pages();
    entry->set_region(name.region.value);
    entry->set_page(name.page.value);
    entry->set_version(name.version.value);
    entry->set_offset(f.written);
    entry->set_length(static_cast<std::uint32_t>(bytes.size() + crypto::kAeadTagBytes));
    entry->set_nonce(with);
    return seal(f, with, page_label(name), bytes);
  }
  Status finish(std::size_t index) override {
    File& f = out[index];
    const std::string with = nonce();
    const std::uint64_t offset = f.written;
    const std::string plain = f.index.SerializeAsString();
    HOLO_TRY(seal(f, with, "index", as_bytes(plain)));
    std::string footer(kMagic);
    put64(footer, offset);
    put64(footer, f.written - offset);
    footer += with;
    const ByteSpan tail = as_bytes(footer);
    f.pending.insert(f.pending.end(), tail.begin(), tail.end());
    HOLO_TRY(flush(f));
    if (::close(std::exchange(f.fd, -1)) != 0) return os_error(str("cannot write ", f.path));
    return {};
  }
  Status commit() override {
    const std::string pages = files.directory_ + "/pages", fresh = pages + ".new", old = pages + ".old";
    std::error_code ec;
    fs::remove_all(old, ec);
    fs::rename(pages, old, ec);  // There may be none.
    fs::rename(fresh, pages, ec);
    if (ec) return fail(Errc::io_error, str("cannot keep ", pages, ": ", ec.message()));
    committed = true;
    fs::remove_all(old, ec);
    return {};
  }

  PageFiles& files;
  std::vector<File> out;
  std::mutex entropy_mutex;
  bool committed = false;
};

Result<std::unique_ptr<PageFiles::Writer>> PageFiles::write(std::size_t count) {
  auto writer = std::make_unique<FileWriter>(*this);
  const std::string fresh = directory_ + "/pages.new";
  std::error_code ec;
  fs::remove_all(fresh, ec);
  fs::create_directory(fresh, ec);
  if (ec) return fail(Errc::io_error, str("cannot make ", fresh, ": ", ec.message()));
  fs::permissions(fresh, fs::perms::owner_all, ec);
  const std::uint64_t stamp = entropy_.u64();
  writer->out.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    auto& f = writer->out[i];
    f.path = str(fresh, "/", i, ".hpg");
    f.fd = ::open(f.path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (f.fd < 0) return os_error(str("cannot make ", f.path));
    f.index.set_format(kFormat);
    f.index.set_cluster(owner_.cluster.value);
    f.index.set_node(owner_.node.value);
    f.index.set_stamp(stamp);
    f.index.set_files(static_cast<std::uint32_t>(count));
  }
  return std::unique_ptr<Writer>(std::move(writer));
}

}  // namespace holo::node
