// Keys and values that the whole cluster agrees on: small, ordered, with a history that can be watched.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <holo/error.hpp>

namespace holo {

namespace detail {
class Session;
}

/// A key as it was at a revision. Keys: 1 to 1024 bytes; values: up to 512 KiB; both any bytes.
struct KvPair {
  std::string key;
  std::string value;
  std::uint64_t created = 0;   ///< The revision that made the key.
  std::uint64_t modified = 0;  ///< The revision that wrote this value.
  std::uint64_t version = 0;   ///< 1 for a new key, one more with each write.
  std::uint64_t lease = 0;     ///< It goes when that lease ends; 0: none.
};

/// Which keys: all from `key` on and below `end`, byte by byte.
struct KeyRange {
  std::string key;
  std::string end;  ///< Empty: the one key.

  static KeyRange one(std::string_view key) { return {std::string(key), {}}; }
  /// Every key that begins with `prefix`; an empty one: every key.
  static KeyRange prefix(std::string_view prefix);
  static KeyRange between(std::string_view first, std::string_view end) {
    return {std::string(first), std::string(end)};
  }
  static KeyRange all() { return prefix(""); }
};

/// Holds or does not at the moment at which a transaction acts.
struct KvCondition {
  enum class Target : std::uint8_t { version, created, modified, value };
  enum class Relation : std::uint8_t { equal, not_equal, less, greater };
  std::string key;
  Target target = Target::version;
  Relation relation = Relation::equal;
  std::uint64_t number = 0;  ///< For all but values.
  std::string value;

  static KvCondition absent(std::string_view key) {
    return {std::string(key), Target::version, Relation::equal, 0, {}};
  }
  static KvCondition exists(std::string_view key) {
    return {std::string(key), Target::version, Relation::greater, 0, {}};
  }
  static KvCondition value_is(std::string_view key, std::string_view value) {
    return {std::string(key), Target::value, Relation::equal, 0, std::string(value)};
  }
  /// Nobody has written the key since `revision`.
  static KvCondition unchanged(std::string_view key, std::uint64_t revision) {
    return {std::string(key), Target::modified, Relation::equal, revision, {}};
  }
};

struct KvOperation {
  enum class Kind : std::uint8_t { put, erase, get };
  Kind kind = Kind::get;
  KeyRange range;
  std::string value;        ///< Of a put.
  std::uint64_t lease = 0;  ///< Of a put: the key goes with it.

  static KvOperation put(std::string_view key, std::string_view value, std::uint64_t lease = 0) {
    return {Kind::put, KeyRange::one(key), std::string(value), lease};
  }
  static KvOperation erase(KeyRange range) { return {Kind::erase, std::move(range), {}, 0}; }
  static KvOperation get(KeyRange range) { return {Kind::get, std::move(range), {}, 0}; }
};

/// When every condition holds, `then`, otherwise `otherwise`: in order, at one revision, all or nothing. At most 128 of
/// each, 900,000 bytes in all.
struct KvTransaction {
  std::vector<KvCondition> when;
  std::vector<KvOperation> then;
  std::vector<KvOperation> otherwise;
};

struct KvOpResult {
  std::vector<KvPair> pairs;  ///< What a get found.
  std::uint64_t deleted = 0;  ///< How many keys a deletion took.
  bool more = false;          ///< The range has more keys than an answer carries.
};
struct KvResult {
  bool succeeded = false;      ///< Every condition held.
  std::uint64_t revision = 0;  ///< Of the store afterwards.
  std::vector<KvOpResult> results;
};

struct KvEvent {
  bool deleted = false;
  KvPair pair;  ///< Of a deleted key: the key, and as `modified` the revision that deleted it.
};

struct KvReadOptions {
  std::uint64_t revision = 0;  ///< As it was then; 0: now.
  std::uint32_t limit = 0;     ///< At most so many; 0: all.
  bool keys_only = false;
  bool stale = false;  ///< What this machine's node has applied, without asking the others: no majority is needed.
};

/// Follows the changes of a range: each comes once and in order, also over the end of a leader. Falling behind costs
/// nobody else anything. A value with a place in it; a copy goes on from the same place. Thread: one at a time.
class KvWatch {
 public:
  /// What has happened since the last call; waits for the first change up to `wait` (nothing by then: no events).
  /// Errors: `snapshot_too_old`, when what comes next is compacted (read the range, and watch from the revision after);
  /// `overloaded`, `unavailable`, `cancelled`: the same call may be made again.
  Result<std::vector<KvEvent>> next(std::chrono::milliseconds wait = std::chrono::seconds(30));
  /// Everything before this revision has been given.
  [[nodiscard]] std::uint64_t revision() const { return from_; }

 private:
  friend class KeyValue;
  KvWatch(std::shared_ptr<detail::Session> session, KeyRange range, std::uint64_t from)
      : session_(std::move(session)), range_(std::move(range)), from_(from) {}
  std::shared_ptr<detail::Session> session_;
  KeyRange range_;
  std::uint64_t from_ = 0;
  std::uint32_t skip_ = 0;
};

/// The cluster's key-value store. A handle; copies are the same store. Thread: any.
///
/// A write returns once a majority of the voters has it on disk: about a round trip and an fdatasync. A read asks the
/// leader whether this node's copy is the newest (a round trip, nothing is written), unless `stale`. Errors of all:
/// `no_quorum`, `deadline_exceeded` (the outcome of a write is then unknown), `unavailable`, `overloaded`.
class KeyValue {
 public:
  explicit KeyValue(std::shared_ptr<detail::Session> session) : session_(std::move(session)) {}

  /// The revision of the write. Errors besides: `invalid_argument` (the key), `over_limit` (the value; the store),
  /// `not_found` (the lease), `permission_denied` (keys under "holo/" are the cluster's own).
  Result<std::uint64_t> put(std::string_view key, std::string_view value, std::uint64_t lease = 0);
  /// nullopt: there is no such key. Errors besides: `snapshot_too_old` (a revision that is compacted).
  Result<std::optional<KvPair>> get(std::string_view key, KvReadOptions options = {});
  /// How many keys were there. At most 10,000 at once: above, `over_limit`, and nothing is deleted.
  Result<std::uint64_t> erase(const KeyRange& range);
  /// All of them as of one revision, in order, in as many requests as it takes.
  Result<std::vector<KvPair>> range(const KeyRange& range, KvReadOptions options = {});
  /// Errors besides: `invalid_argument` (one key changed twice), `over_limit`.
  Result<KvResult> txn(const KvTransaction& transaction);
  /// Changes from revision `from` on; 0: from the next one on.
  [[nodiscard]] KvWatch watch(KeyRange range, std::uint64_t from = 0) const {
    return {session_, std::move(range), from};
  }

 private:
  std::shared_ptr<detail::Session> session_;
};

}  // namespace holo
