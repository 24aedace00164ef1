#include "driver/rocksdb/store.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "base/log.h"
#include "base/strings.h"
#include "crypto/hash.h"
#include "driver/rocksdb/snapshot_file.h"

namespace holo::driver {
namespace {

using rocksdb::ColumnFamilyHandle;
using rocksdb::Slice;

constexpr std::size_t kSumBytes = 8;
constexpr const char* kLogFamily = "raft_log";
constexpr const char* kRaftMetaFamily = "raft_meta";
constexpr const char* kMetaFamily = "agent";
const std::string kAfterLastKey(9, '\xff');
constexpr const char* kVoteKey = "vote";
constexpr const char* kCommittedKey = "committed";
constexpr const char* kSnapshotKey = "snapshot file";
constexpr const char* kLostKey = "lost";
constexpr std::string_view kSnapshotPrefix = "holo-snapshot-";
constexpr const char* kJoinAnew =
    "take this node out on another (holo remove NODE), remove its state directory, and join again";
constexpr const char* kRepair =
    "a damaged log comes back from the other nodes: holo control repair; else take this node out, and let it join anew";
// What a node loads into memory at start; a log this long means that snapshots have failed for very long.
constexpr std::uint64_t kMaxLoadedEntries = 1 << 20;

std::string errno_words(const rocksdb::Status& s) {
  if (s.IsNoSpace()) return "no space left on the device";
  return s.ToString();
}

Error to_error(const rocksdb::Status& s, const std::string& directory, const std::string& what) {
  if (s.IsCorruption()) {
    return {.code = Errc::corrupt,
            .message = str("the store in ", directory, " is corrupt: ", what, ": ", s.ToString()),
            .hint = kRepair};
  }
  if (s.IsIOError() && s.ToString().find("LOCK") != std::string::npos) {
    return {.code = Errc::refused, .message = str("another process uses the store in ", directory)};
  }
  Error e{.code = Errc::io_error, .message = str("the store in ", directory, " failed: ", what, ": ", errno_words(s))};
  if (s.IsNoSpace()) e.hint = "free some space there; the agent goes on by itself";
  e.retryable = s.IsNoSpace();
  return e;
}

void put_u64(std::string& out, std::uint64_t v) {
  for (int shift = 0; shift < 64; shift += 8) out.push_back(static_cast<char>(v >> shift));
}
std::uint64_t get_u64(const char* p) {
  std::uint64_t v = 0;
  for (int i = 7; i >= 0; --i) v = v << 8 | static_cast<unsigned char>(p[i]);
  return v;
}

/// Big-endian, so that RocksDB's order is the log's order.
std::string index_key(std::uint64_t index) {
  std::string key;
  for (int shift = 56; shift >= 0; shift -= 8) key.push_back(static_cast<char>(index >> shift));
  return key;
}
std::uint64_t index_of(const Slice& key) {
  std::uint64_t v = 0;
  for (std::size_t i = 0; i < 8 && i < key.size(); ++i) v = v << 8 | static_cast<unsigned char>(key[i]);
  return v;
}

ByteSpan span_of(const Slice& s) { return std::as_bytes(std::span(s.data(), s.size())); }

/// RocksDB's own messages go where ours go. Its default, a file beside the data, ends the process (an assertion in
/// Debian's build) when a full disk has made one line of it fail.
class ForwardingLogger final : public rocksdb::Logger {
 public:
  ForwardingLogger() : Logger(rocksdb::InfoLogLevel::WARN_LEVEL) {}
  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list args) override {
    std::array<char, 512> text{};
    std::vsnprintf(text.data(), text.size(), format, args);
    std::string_view line(text.data());
    while (line.ends_with('\n')) line.remove_suffix(1);
    // "FILE: dropping N bytes; Corruption: ...": the only place where the damaged file is named.
    if (const std::size_t at = line.find(": dropping "); at != std::string_view::npos) {
      const std::string_view file = line.substr(0, at);
      const std::scoped_lock lock(mutex_);
      damaged_ = file.substr(file.rfind(' ') + 1);
    }
    if (line.find("db dir NotFound") != std::string_view::npos) return;  // A fresh directory is no news.
    log_debug("store", line);
  }
  std::string damaged() {
    const std::scoped_lock lock(mutex_);
    return damaged_;
  }

 private:
  std::mutex mutex_;
  std::string damaged_;
};

/// The checksum of a record, bound to its key so that one record cannot stand for another.
std::uint64_t sum_of(const Slice& key, const Slice& body) {
  const auto inner = crypto::blake3(span_of(body));
  std::string whole(key.data(), key.size());
  whole.append(reinterpret_cast<const char*>(inner.data()), inner.size());
  return crypto::blake3_64(as_bytes(whole));
}
std::string sealed(const Slice& key, const std::string& body) {
  std::string out;
  out.reserve(body.size() + kSumBytes);
  put_u64(out, sum_of(key, body));
  return out += body;
}
/// The body of a sealed record; nullopt when its checksum does not fit.
std::optional<Slice> unsealed(const Slice& key, const Slice& value) {
  if (value.size() < kSumBytes) return std::nullopt;
  const Slice body(value.data() + kSumBytes, value.size() - kSumBytes);
  if (get_u64(value.data()) != sum_of(key, body)) return std::nullopt;
  return body;
}

}  // namespace

struct RocksStore::Impl {
  explicit Impl(std::string where) : directory(std::move(where)) {}
  ~Impl() { close(); }

  const std::string directory;
  std::atomic<bool> failing{false};
  std::string why_closed;  // The first failed write's error, as long as writes fail.
  /// Held shared by whoever uses the handles, alone while they are replaced.
  std::shared_mutex mutex;
  std::unique_ptr<rocksdb::DB> db;  ///< Null when reopening has failed.
  ColumnFamilyHandle* log = nullptr;
  ColumnFamilyHandle* raft_meta = nullptr;
  ColumnFamilyHandle* meta = nullptr;
  std::vector<ColumnFamilyHandle*> handles;
  std::atomic<std::uint64_t> next_snapshot{1};  ///< Part of the name of its file.
  /// A write that failed may be there after all: what it appended goes before the next entries come.
  bool doubtful_tail = false;

  void close() {
    if (!db) return;
    for (ColumnFamilyHandle* h : handles) db->DestroyColumnFamilyHandle(h);
    handles.clear();
    db->Close();
    db.reset();
  }

  Status open() {
    rocksdb::DBOptions options;
    options.create_if_missing = true;
    options.create_missing_column_families = true;
    options.paranoid_checks = true;
    options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
    options.max_total_wal_size = 16 << 20;
    options.max_open_files = 64;
    options.max_background_jobs = 2;
    const auto logger = std::make_shared<ForwardingLogger>();
    options.info_log = logger;
    options.stats_dump_period_sec = 0;  // No timers: an idle agent stays idle.
    options.stats_persist_period_sec = 0;
    options.db_write_buffer_size = 16 << 20;

    rocksdb::ColumnFamilyOptions family;
    family.write_buffer_size = 4 << 20;
    family.compression = rocksdb::kNoCompression;
    rocksdb::BlockBasedTableOptions table;
    table.block_cache = rocksdb::NewLRUCache(4 << 20);
    family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));

    const std::vector<rocksdb::ColumnFamilyDescriptor> families{{rocksdb::kDefaultColumnFamilyName, family},
                                                                {kLogFamily, family},
                                                                {kRaftMetaFamily, family},
                                                                {kMetaFamily, family}};
    rocksdb::DB* opened = nullptr;
    const rocksdb::Status s = rocksdb::DB::Open(options, directory, families, &handles, &opened);
    if (s.IsCorruption()) return std::unexpected(where_corrupt(options, families, s, logger->damaged()));
    if (!s.ok()) return std::unexpected(to_error(s, directory, "opening it"));
    db.reset(opened);
    log = handles[1];
    raft_meta = handles[2];
    meta = handles[3];
    return {};
  }

  /// Finds out up to which entry the log can be read, so that the refusal can name the first one that cannot.
  Error where_corrupt(rocksdb::DBOptions options, const std::vector<rocksdb::ColumnFamilyDescriptor>& families,
                      const rocksdb::Status& why, const std::string& file) const {
    Error e = to_error(why, directory, file.empty() ? "opening it" : "file " + file);
    options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
    std::vector<ColumnFamilyHandle*> opened_handles;
    rocksdb::DB* opened = nullptr;
    if (!rocksdb::DB::OpenForReadOnly(options, directory, families, &opened_handles, &opened).ok()) return e;
    const std::unique_ptr<rocksdb::DB> readable(opened);
    {
      const std::unique_ptr<rocksdb::Iterator> it(readable->NewIterator(rocksdb::ReadOptions(), opened_handles[1]));
      it->SeekToLast();
      const std::uint64_t last = it->Valid() ? index_of(it->key()) : 0;
      e.message += str(" (the log can be read up to entry ", last, "; entry ", last + 1, " cannot)");
    }
    for (ColumnFamilyHandle* h : opened_handles) readable->DestroyColumnFamilyHandle(h);
    return e;
  }

  /// Whether a file of some size can be written there now.
  bool has_room() const {
    const std::string probe = directory + "/.room";
    bool ok = false;
    if (std::FILE* f = std::fopen(probe.c_str(), "wb")) {
      const std::vector<char> zeros(256 << 10);
      ok = std::fwrite(zeros.data(), 1, zeros.size(), f) == zeros.size();
      ok = std::fclose(f) == 0 && ok;
    }
    std::remove(probe.c_str());
    return ok;
  }

  /// RocksDB stays read-only after some failed writes. It is opened anew once the disk takes writes again.
  void recover() {
    const std::unique_lock lock(mutex);
    if (db && db->Resume().ok()) return;
    if (!has_room()) return;
    close();
    if (const Status s = open(); !s) log_error("store", s.error().to_string());
  }

  Error closed_error() const {
    return {.code = Errc::io_error,
            .message = str("the store in ", directory, " is closed after a failed write: ", why_closed),
            .retryable = true};
  }

  Status write_once(const std::function<void(rocksdb::WriteBatch&)>& fill, const std::string& what, bool sync) {
    const std::shared_lock lock(mutex);
    if (!db) return std::unexpected(closed_error());
    rocksdb::WriteBatch batch;
    fill(batch);
    rocksdb::WriteOptions options;
    options.sync = sync;
    const rocksdb::Status s = db->Write(options, &batch);
    if (!s.ok()) return std::unexpected(to_error(s, directory, what));
    return {};
  }

  Status write(const std::function<void(rocksdb::WriteBatch&)>& fill, const std::string& what, bool sync = true) {
    if (failing.load()) recover();
    Status s = write_once(fill, what, sync);
    if (s) {
      if (failing.exchange(false)) log_info("store", "writes to ", directory, " succeed again");
    } else if (!failing.exchange(true)) {
      const std::unique_lock lock(mutex);
      why_closed = s.error().message;
      log_error("store", s.error().to_string());
    }
    return s;
  }

  Status sweep_snapshots();

  Result<std::optional<std::string>> read(ColumnFamilyHandle* Impl::* family, const std::string& key) {
    const std::shared_lock lock(mutex);
    if (!db) return std::unexpected(closed_error());
    std::string value;
    const rocksdb::Status s = db->Get(rocksdb::ReadOptions(), this->*family, key, &value);
    if (s.IsNotFound()) return std::nullopt;
    if (!s.ok()) return std::unexpected(to_error(s, directory, str("reading \"", key, "\"")));
    const auto body = unsealed(key, value);
    if (!body) {
      return fail(Errc::corrupt, str("the store in ", directory, " is corrupt: the checksum of \"", key, "\" is wrong"),
                  kRepair);
    }
    return body->ToString();
  }

  Error corrupt_entry(std::uint64_t index, const std::string& why) const {
    return {.code = Errc::corrupt,
            .message = str("entry ", index, " of the log in ", directory, " is corrupt: ", why),
            .hint = kRepair};
  }
};

RocksStore::RocksStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RocksStore::~RocksStore() = default;

Result<std::unique_ptr<RocksStore>> RocksStore::open(std::string directory, Existing existing) {
  // RocksDB would begin an empty one: with another vote than this node has given, without what it has confirmed.
  if (existing == Existing::required && !std::filesystem::exists(directory + "/CURRENT")) {
    return fail(Errc::corrupt, str("the store in ", directory, " is gone: there is no file CURRENT"), kJoinAnew);
  }
  auto impl = std::make_unique<Impl>(std::move(directory));
  HOLO_TRY(impl->open());
  HOLO_TRY(impl->sweep_snapshots());
  return std::unique_ptr<RocksStore>(new RocksStore(std::move(impl)));
}

bool RocksStore::failing() const { return impl_->failing.load(); }

// ---- Facts

Result<std::optional<Bytes>> RocksStore::get(const std::string& key) {
  HOLO_ASSIGN(value, impl_->read(&Impl::meta, key));
  if (!value) return std::nullopt;
  const ByteSpan b = as_bytes(*value);
  return Bytes(b.begin(), b.end());
}

Status RocksStore::put(const std::string& key, ByteSpan value) {
  const std::string record = sealed(key, std::string(as_text(value)));
  return impl_->write([&](rocksdb::WriteBatch& batch) { batch.Put(impl_->meta, key, record); },
                      str("writing \"", key, "\""));
}

// ---- The log

Status RocksStore::set_vote(std::uint64_t term, NodeId vote) {
  std::string body;
  put_u64(body, term);
  put_u64(body, vote.value);
  return impl_->write(
      [&](rocksdb::WriteBatch& batch) { batch.Put(impl_->raft_meta, kVoteKey, sealed(kVoteKey, body)); },
      "writing the vote");
}

Status RocksStore::append(const std::vector<env::LogEntry>& entries) {
  if (entries.empty()) return {};
  std::vector<std::pair<std::string, std::string>> records;
  records.reserve(entries.size());
  for (const env::LogEntry& e : entries) {
    std::string body;
    body.reserve(16 + e.data.size());
    put_u64(body, e.term);
    put_u64(body, e.type);
    body.append(as_text(e.data));
    std::string key = index_key(e.index);
    std::string record = sealed(key, body);
    records.emplace_back(std::move(key), std::move(record));
  }
  const Status s = impl_->write(
      [&](rocksdb::WriteBatch& batch) {
        if (impl_->doubtful_tail) batch.DeleteRange(impl_->log, records.front().first, kAfterLastKey);
        for (const auto& [key, record] : records) batch.Put(impl_->log, key, record);
      },
      "appending to the log");
  impl_->doubtful_tail = !s;
  return s;
}

Status RocksStore::note_committed(std::uint64_t index) {
  std::string body;
  put_u64(body, index);
  return impl_->write(
      [&](rocksdb::WriteBatch& batch) { batch.Put(impl_->raft_meta, kCommittedKey, sealed(kCommittedKey, body)); },
      "noting what is committed", false);
}

Status RocksStore::truncate(std::uint64_t index) {
  return impl_->write(
      [&](rocksdb::WriteBatch& batch) { batch.DeleteRange(impl_->log, index_key(index), kAfterLastKey); },
      "cutting the log");
}

// ---- Snapshots

namespace {

struct SnapshotRecord {
  env::LogSnapshot what;
  std::uint64_t bytes = 0;
  std::string file;
};

std::string encode_record(const SnapshotRecord& r) {
  std::string body;
  put_u64(body, r.what.index);
  put_u64(body, r.what.term);
  put_u64(body, r.what.configuration_index);
  put_u64(body, r.bytes);
  put_u64(body, r.what.servers.size());
  for (const env::LogSnapshotServer& s : r.what.servers) {
    put_u64(body, s.node.value);
    put_u64(body, s.role);
  }
  return body += r.file;
}

std::optional<SnapshotRecord> decode_record(const std::string& body) {
  if (body.size() < 40) return std::nullopt;
  SnapshotRecord out;
  out.what.index = get_u64(body.data());
  out.what.term = get_u64(body.data() + 8);
  out.what.configuration_index = get_u64(body.data() + 16);
  out.bytes = get_u64(body.data() + 24);
  const std::uint64_t servers = get_u64(body.data() + 32);
  if (servers > (body.size() - 40) / 16) return std::nullopt;
  std::size_t at = 40;
  for (std::uint64_t i = 0; i < servers; ++i, at += 16) {
    out.what.servers.push_back(
        {.node = NodeId{get_u64(body.data() + at)}, .role = static_cast<std::uint32_t>(get_u64(body.data() + at + 8))});
  }
  out.file = body.substr(at);
  if (!out.file.starts_with(kSnapshotPrefix) || out.file.find('/') != std::string::npos) return std::nullopt;
  return out;
}

Result<std::optional<SnapshotRecord>> read_record(RocksStore::Impl& impl) {
  HOLO_ASSIGN(stored, impl.read(&RocksStore::Impl::raft_meta, kSnapshotKey));
  if (!stored) return std::nullopt;
  auto record = decode_record(*stored);
  if (record) return record;
  return fail(Errc::corrupt,
              str("the store in ", impl.directory, " is corrupt: what it says of its snapshot does not decode"),
              kRepair);
}

}  // namespace

Result<std::unique_ptr<env::SnapshotWriter>> RocksStore::new_snapshot() {
  HOLO_ASSIGN(writer, SnapshotFileWriter::create(impl_->directory, str(kSnapshotPrefix, impl_->next_snapshot++)));
  return std::unique_ptr<env::SnapshotWriter>(std::move(writer));
}

Status RocksStore::keep_snapshot(const env::LogSnapshot& snapshot, env::SnapshotWriter& data,
                                 std::uint64_t keep_after) {
  auto& file = static_cast<SnapshotFileWriter&>(data);
  HOLO_TRY(file.sync());
  HOLO_ASSIGN(before, read_record(*impl_));
  const SnapshotRecord now{.what = snapshot, .bytes = file.bytes(), .file = file.name()};
  const std::string record = sealed(kSnapshotKey, encode_record(now));
  HOLO_TRY(impl_->write(
      [&](rocksdb::WriteBatch& batch) {
        batch.Put(impl_->raft_meta, kSnapshotKey, record);
        batch.DeleteRange(impl_->log, index_key(0), index_key(keep_after + 1));
      },
      "writing a snapshot"));
  file.keep();
  if (before && before->file != now.file) std::remove((impl_->directory + "/" + before->file).c_str());
  return {};
}

Result<std::unique_ptr<env::SnapshotReader>> RocksStore::open_snapshot() {
  HOLO_ASSIGN(record, read_record(*impl_));
  if (!record) return nullptr;
  return open_snapshot_file(impl_->directory + "/" + record->file, record->what, record->bytes);
}

Status RocksStore::put_snapshot(const env::LogSnapshot& snapshot, std::uint64_t keep_after) {
  HOLO_ASSIGN(writer, new_snapshot());
  HOLO_TRY(writer->add(snapshot.data));
  return keep_snapshot(snapshot, *writer, keep_after);
}

Result<std::optional<env::LogSnapshot>> RocksStore::snapshot() {
  HOLO_ASSIGN(reader, open_snapshot());
  if (!reader) return std::nullopt;
  env::LogSnapshot out = reader->what();
  for (;;) {
    HOLO_ASSIGN(piece, reader->next());
    if (piece.empty()) return out;
    out.data.insert(out.data.end(), piece.begin(), piece.end());
  }
}

/// Removes files that were not finished, or not removed when a newer one had come.
Status RocksStore::Impl::sweep_snapshots() {
  HOLO_ASSIGN(record, read_record(*this));
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kSnapshotPrefix)) continue;
    std::uint64_t number = 0;
    for (const char c : std::string_view(name).substr(kSnapshotPrefix.size())) {
      number = c >= '0' && c <= '9' ? number * 10 + static_cast<std::uint64_t>(c - '0') : number;
    }
    next_snapshot = std::max(next_snapshot.load(), number + 1);
    if (!record || record->file != name) std::filesystem::remove(entry.path(), error);
  }
  return {};
}

Result<env::StoredLog> RocksStore::load() {
  env::StoredLog out;
  HOLO_ASSIGN(vote, impl_->read(&Impl::raft_meta, kVoteKey));
  if (vote) {
    if (vote->size() != 16) return fail(Errc::corrupt, str("the vote in ", impl_->directory, " does not decode"));
    out.term = get_u64(vote->data());
    out.vote = NodeId{get_u64(vote->data() + 8)};
  }
  HOLO_ASSIGN(committed, impl_->read(&Impl::raft_meta, kCommittedKey));
  if (committed) {
    if (committed->size() != 8) {
      return fail(Errc::corrupt, str("what is committed in ", impl_->directory, " does not decode"), kRepair);
    }
    out.committed = get_u64(committed->data());
  }
  HOLO_ASSIGN(lost, impl_->read(&Impl::raft_meta, kLostKey));
  out.lost = lost.has_value();
  HOLO_ASSIGN(record, read_record(*impl_));
  if (record) out.snapshot = record->what;  // Its data is for open_snapshot().

  const std::shared_lock lock(impl_->mutex);
  if (!impl_->db) return std::unexpected(impl_->closed_error());
  rocksdb::ReadOptions options;
  options.verify_checksums = true;
  const std::unique_ptr<rocksdb::Iterator> it(impl_->db->NewIterator(options, impl_->log));
  std::uint64_t expected = 0;
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    const std::uint64_t index = index_of(it->key());
    if (expected != 0 && index != expected) {
      return std::unexpected(impl_->corrupt_entry(expected, str("it is missing, and entry ", index, " is there")));
    }
    const auto body = unsealed(it->key(), it->value());
    if (it->key().size() != 8 || !body || body->size() < 16) {
      return std::unexpected(impl_->corrupt_entry(index, "its checksum is wrong"));
    }
    if (out.entries.size() == kMaxLoadedEntries) {
      return fail(Errc::over_limit,
                  str("the log in ", impl_->directory, " has more than ", kMaxLoadedEntries, " entries"));
    }
    env::OwnedLogEntry e{.index = index,
                         .term = get_u64(body->data()),
                         .type = static_cast<std::uint16_t>(get_u64(body->data() + 8)),
                         .data = {}};
    const ByteSpan data = span_of(Slice(body->data() + 16, body->size() - 16));
    e.data.assign(data.begin(), data.end());
    out.entries.push_back(std::move(e));
    expected = index + 1;
  }
  if (!it->status().ok()) {
    const std::uint64_t at = expected != 0 ? expected : out.snapshot ? out.snapshot->index + 1 : 1;
    return std::unexpected(impl_->corrupt_entry(at, it->status().ToString()));
  }
  if (out.snapshot && !out.entries.empty() && out.entries.front().index > out.snapshot->index + 1) {
    return std::unexpected(impl_->corrupt_entry(out.snapshot->index + 1, "it is missing"));
  }
  if (!out.snapshot && !out.entries.empty() && out.entries.front().index != 1) {
    return std::unexpected(impl_->corrupt_entry(1, "it is missing, and there is no snapshot"));
  }
  return out;
}

// ---- A log that is given up

Status RocksStore::found() {
  return impl_->write([&](rocksdb::WriteBatch& batch) { batch.Delete(impl_->raft_meta, kLostKey); },
                      "noting that the log is whole again");
}

namespace {

/// Term and vote as far as anything can be read: what is damaged beside them does not matter.
Result<std::optional<std::string>> salvage_vote(const std::string& directory) {
  rocksdb::DBOptions options;
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
  options.paranoid_checks = false;
  options.info_log = std::make_shared<ForwardingLogger>();
  const rocksdb::ColumnFamilyOptions family;
  const std::vector<rocksdb::ColumnFamilyDescriptor> families{{rocksdb::kDefaultColumnFamilyName, family},
                                                              {kLogFamily, family},
                                                              {kRaftMetaFamily, family},
                                                              {kMetaFamily, family}};
  std::vector<ColumnFamilyHandle*> handles;
  rocksdb::DB* opened = nullptr;
  const rocksdb::Status s = rocksdb::DB::OpenForReadOnly(options, directory, families, &handles, &opened);
  if (!s.ok()) return std::unexpected(to_error(s, directory, "opening it"));
  const std::unique_ptr<rocksdb::DB> db(opened);
  std::string value;
  const rocksdb::Status got = db->Get(rocksdb::ReadOptions(), handles[2], kVoteKey, &value);
  for (ColumnFamilyHandle* h : handles) db->DestroyColumnFamilyHandle(h);
  if (got.IsNotFound()) return std::nullopt;
  if (!got.ok()) return std::unexpected(to_error(got, directory, "reading its vote"));
  const auto body = unsealed(kVoteKey, value);
  if (!body || body->size() != 16) return fail(Errc::corrupt, str("the vote in ", directory, " does not decode"));
  return body->ToString();
}

}  // namespace

Status RocksStore::discard_log(const std::string& directory) {
  const std::string fresh = directory + ".repaired";
  std::error_code error;
  std::filesystem::remove_all(fresh, error);
  {
    auto vote = salvage_vote(directory);
    if (!vote || !*vote) {
      Error e = vote ? Error{.code = Errc::corrupt, .message = str("the store in ", directory, " has no vote")}
                     : vote.error();
      e.hint = kJoinAnew;
      return std::unexpected(std::move(e));
    }
    HOLO_ASSIGN(store, open(fresh));
    HOLO_TRY(store->impl_->write(
        [&](rocksdb::WriteBatch& batch) {
          batch.Put(store->impl_->raft_meta, kVoteKey, sealed(kVoteKey, **vote));
          batch.Put(store->impl_->raft_meta, kLostKey, sealed(kLostKey, ""));
        },
        "keeping the vote"));
  }
  if (::renameat2(AT_FDCWD, fresh.c_str(), AT_FDCWD, directory.c_str(), RENAME_EXCHANGE) != 0) {
    return fail(Errc::io_error, str("cannot exchange ", directory, " for ", fresh, ": ", std::strerror(errno)));
  }
  std::filesystem::remove_all(fresh, error);
  return {};
}

}  // namespace holo::driver
