#include "core/control/keyspace.h"

#include <algorithm>
#include <set>

#include "base/limits.h"
#include "base/seeded_bugs.h"
#include "base/strings.h"

namespace holo::control {
namespace {

constexpr std::uint64_t kRecordCost = 96;  // Of a record beyond its bytes, in memory.
constexpr std::size_t kPairCost = 40;      // Of a pair or an event beyond its bytes, in an answer.

bool to_the_end(const wire::KvRange& r) { return r.end().size() == 1 && r.end()[0] == '\0'; }

/// Whether some key can lie in both.
bool overlap(const wire::KvRange& a, const wire::KvRange& b) {
  if (a.end().empty()) return in_range(b, a.key());
  if (b.end().empty()) return in_range(a, b.key());
  return (to_the_end(b) || a.key() < b.end()) && (to_the_end(a) || b.key() < a.end());
}

Status check_key(const std::string& key) {
  if (key.empty()) return fail(Errc::invalid_argument, "an empty key");
  if (key.size() <= limits::kMaxKvKeyBytes) return {};
  return fail(Errc::invalid_argument, str("a key of ", key.size(), " bytes"),
              str("at most ", limits::kMaxKvKeyBytes, " bytes"));
}

Status check_range(const wire::KvRange& range) {
  HOLO_TRY(check_key(range.key()));
  if (!to_the_end(range) && range.end().size() > limits::kMaxKvKeyBytes) return check_key(range.end());
  return {};
}

Status check_op(const wire::KvOp& op) {
  switch (op.kind_case()) {
    case wire::KvOp::kPut: {
      HOLO_TRY(check_key(op.put().key()));
      if (op.put().key().starts_with(kReservedKeys)) {
        return fail(Errc::permission_denied, str("keys that begin with ", kReservedKeys, " are the cluster's own"));
      }
      const std::size_t bytes = op.put().value().size();
      if (bytes <= limits::kMaxKvValueBytes) return {};
      return fail(Errc::over_limit, str("a value of ", bytes, " bytes"),
                  str("at most ", limits::kMaxKvValueBytes, "; keep the bytes in a region, or in several keys"));
    }
    case wire::KvOp::kDelete: return check_range(op.delete_().range());
    case wire::KvOp::kGet:
      if (op.get().revision() != 0) {
        return fail(Errc::invalid_argument, "a transaction reads what it finds, at no older revision");
      }
      return check_range(op.get().range());
    case wire::KvOp::KIND_NOT_SET: break;
  }
  return fail(Errc::invalid_argument, "an operation of an unknown kind");
}

/// No key is changed twice: watchers see one change of a key at a revision.
Status check_ops(const google::protobuf::RepeatedPtrField<wire::KvOp>& ops) {
  if (static_cast<std::size_t>(ops.size()) > limits::kMaxKvOps) {
    return fail(Errc::over_limit, str(ops.size(), " operations"), str("at most ", limits::kMaxKvOps));
  }
  std::set<std::string_view> put;
  std::vector<const wire::KvRange*> deleted;
  bool twice = false;
  for (const wire::KvOp& op : ops) {
    HOLO_TRY(check_op(op));
    if (op.has_put()) {
      twice |= !put.insert(op.put().key()).second;
    } else if (op.has_delete_()) {
      const wire::KvRange& range = op.delete_().range();
      for (const wire::KvRange* other : deleted) twice |= overlap(range, *other);
      deleted.push_back(&range);
    }
  }
  for (const wire::KvRange* range : deleted) {
    for (const std::string_view key : put) twice |= in_range(*range, key);
  }
  if (twice) return fail(Errc::invalid_argument, "a transaction that changes one key twice");
  return {};
}

/// By whoever deletes a range.
bool deletable(const auto& entry) {
  return entry.second.newest.version != 0 && !entry.first.starts_with(kReservedKeys);
}

template <class T>
bool related(wire::KvCompare::Relation relation, const T& a, const T& b) {
  switch (relation) {
    case wire::KvCompare::EQUAL: return a == b;
    case wire::KvCompare::NOT_EQUAL: return a != b;
    case wire::KvCompare::LESS: return a < b;
    case wire::KvCompare::GREATER: return a > b;
    default: return false;
  }
}

}  // namespace

bool in_range(const wire::KvRange& range, std::string_view key) {
  if (range.end().empty()) return key == range.key();
  return key >= range.key() && (to_the_end(range) || key < range.end());
}

std::uint64_t KeySpace::size_of(std::string_view key, const Record& record) {
  return kRecordCost + key.size() + record.value.size();
}

// ---- Looking

const KeySpace::Record* KeySpace::live(std::string_view key) const {
  const auto it = keys_.find(key);
  return it == keys_.end() || it->second.newest.version == 0 ? nullptr : &it->second.newest;
}

const KeySpace::Record* KeySpace::at(const Chain& chain, std::uint64_t revision) {
  const Record* found = nullptr;
  if (chain.newest.revision <= revision) {
    found = &chain.newest;
  } else if (chain.older) {
    const auto after = std::ranges::upper_bound(*chain.older, revision, {}, &Record::revision);
    if (after != chain.older->begin()) found = &*std::prev(after);
  }
  return found == nullptr || found->version == 0 ? nullptr : found;
}

const KeySpace::Record& KeySpace::made_by(const Change& change) {
  const Chain& chain = change.key->second;
  if (chain.newest.revision == change.revision) return chain.newest;
  return *std::ranges::lower_bound(*chain.older, change.revision, {}, &Record::revision);
}

std::pair<KeySpace::Keys::iterator, KeySpace::Keys::iterator> KeySpace::span(const wire::KvRange& range) {
  const auto first = keys_.lower_bound(range.key());
  if (range.end().empty()) {
    return {first, first != keys_.end() && first->first == range.key() ? std::next(first) : first};
  }
  if (to_the_end(range)) return {first, keys_.end()};
  return {first, range.end() <= range.key() ? first : keys_.lower_bound(range.end())};
}

std::pair<KeySpace::Keys::const_iterator, KeySpace::Keys::const_iterator> KeySpace::span(
    const wire::KvRange& range) const {
  return const_cast<KeySpace*>(this)->span(range);  // NOLINT: one body for both.
}

Result<wire::KvPage> KeySpace::range(const wire::KvGet& get) const {
  HOLO_TRY(check_range(get.range()));
  const std::uint64_t revision = get.revision() == 0 ? revision_ : get.revision();
  if (revision > revision_) {
    return fail(Errc::invalid_argument, str("revision ", revision, " has not been: the newest is ", revision_));
  }
  if (revision < compacted_) {
    return fail(Errc::snapshot_too_old, str("revision ", revision, " was compacted"),
                str("the oldest to be had is ", compacted_));
  }
  wire::KvPage page;
  page.set_revision(revision);
  const std::size_t limit = get.limit() == 0 ? kPageKeys : std::min<std::size_t>(get.limit(), kPageKeys);
  std::size_t bytes = 0, visited = 0;
  const auto [first, last] = span(get.range());
  for (auto it = first; it != last; ++it) {
    const Record* record = at(it->second, revision);
    const std::size_t cost = record == nullptr ? 0 : kPairCost + it->first.size() + record->value.size();
    const auto pairs = static_cast<std::size_t>(page.pairs_size());
    if (++visited > kScanKeys ||
        (record != nullptr && pairs > 0 && (pairs >= limit || bytes + cost > limits::kMaxKvTxnBytes))) {
      page.set_next(it->first);
      break;
    }
    if (record == nullptr) continue;
    bytes += cost;
    auto* pair = page.add_pairs();
    pair->set_key(it->first);
    if (!get.keys_only()) pair->set_value(record->value);
    pair->set_created(record->created);
    pair->set_modified(record->revision);
    pair->set_version(record->version);
    pair->set_lease(record->lease);
  }
  return page;
}

Result<wire::KvEvents> KeySpace::events(const wire::KvWatch& watch) const {
  HOLO_TRY(check_range(watch.range()));
  const std::uint64_t from = watch.from() == 0 ? revision_ + 1 : watch.from();
  if (from <= compacted_) {
    return fail(Errc::snapshot_too_old, str("revision ", from, " was compacted"),
                str("read the keys, and watch from the revision after; the oldest to watch from is ", compacted_ + 1));
  }
  wire::KvEvents out;
  out.set_revision(revision_);
  std::size_t bytes = 0;
  auto change = std::ranges::lower_bound(changes_, from, {}, &Change::revision);
  std::uint64_t at_revision = from;
  std::uint32_t order = 0;
  for (; change != changes_.end(); ++change, ++order) {
    if (change->revision != at_revision) {
      at_revision = change->revision;
      order = 0;
    }
    if (at_revision == from && order < watch.skip()) continue;
    if (!in_range(watch.range(), change->key->first)) continue;
    const Record& record = made_by(*change);
    bytes += kPairCost + change->key->first.size() + record.value.size();
    if (out.events_size() > 0 && (bytes > limits::kMaxKvTxnBytes || out.events_size() >= int{kPageKeys})) {
      out.set_from(at_revision);
      out.set_skip(order);
      return out;
    }
    auto* event = out.add_events();
    event->set_deleted(record.version == 0);
    event->mutable_pair()->set_key(change->key->first);
    event->mutable_pair()->set_modified(record.revision);
    if (record.version == 0) continue;
    event->mutable_pair()->set_value(record.value);
    event->mutable_pair()->set_created(record.created);
    event->mutable_pair()->set_version(record.version);
    event->mutable_pair()->set_lease(record.lease);
  }
  // A watch from a revision that has not been waits for it.
  out.set_from(std::max(from, revision_ + 1));
  out.set_skip(from > revision_ ? watch.skip() : 0);
  return out;
}

// ---- Changing

bool KeySpace::holds(const wire::KvCompare& c) const {
  const Record* r = live(c.key());
  switch (c.target()) {
    case wire::KvCompare::VERSION: return related(c.relation(), r ? r->version : 0, c.number());
    case wire::KvCompare::CREATED: return related(c.relation(), r ? r->created : 0, c.number());
    case wire::KvCompare::MODIFIED: return related(c.relation(), r ? r->revision : 0, c.number());
    case wire::KvCompare::VALUE:
      if (HOLO_SEEDED_BUG(comparison_always_holds)) return r != nullptr;
      return r != nullptr && related(c.relation(), r->value, c.value());
    default: return false;
  }
}

Status KeySpace::check(const wire::KvTxn& txn) {
  if (static_cast<std::size_t>(txn.compares_size()) > limits::kMaxKvOps) {
    return fail(Errc::over_limit, str(txn.compares_size(), " comparisons"), str("at most ", limits::kMaxKvOps));
  }
  if (txn.ByteSizeLong() > limits::kMaxKvTxnBytes) {
    return fail(Errc::over_limit, str("a transaction of ", txn.ByteSizeLong(), " bytes"),
                str("at most ", limits::kMaxKvTxnBytes));
  }
  for (const wire::KvCompare& c : txn.compares()) {
    HOLO_TRY(check_key(c.key()));
    if (!wire::KvCompare::Target_IsValid(c.target()) || !wire::KvCompare::Relation_IsValid(c.relation())) {
      return fail(Errc::invalid_argument, "a comparison of an unknown kind");
    }
  }
  HOLO_TRY(check_ops(txn.then()));
  return check_ops(txn.otherwise());
}

Result<wire::KvTxnResult> KeySpace::apply(const wire::KvTxn& txn) {
  HOLO_TRY(check(txn));
  wire::KvTxnResult result;
  result.set_succeeded(std::ranges::all_of(txn.compares(), [&](const wire::KvCompare& c) { return holds(c); }));
  const auto& ops = result.succeeded() ? txn.then() : txn.otherwise();

  // Everything that can refuse it comes before the first change.
  std::uint64_t added = 0, deletes = 0;
  for (const wire::KvOp& op : ops) {
    if (op.has_put()) {
      added += kRecordCost + op.put().key().size() + op.put().value().size();
    } else if (op.has_delete_()) {
      auto [first, last] = span(op.delete_().range());
      for (; first != last && deletes <= limits::kMaxKvDeletes; ++first) deletes += deletable(*first);
    }
  }
  if (deletes > limits::kMaxKvDeletes) {
    return fail(Errc::over_limit, str("a deletion of more than ", limits::kMaxKvDeletes, " keys at once"),
                "delete parts of the range, one after the other");
  }
  if (added > 0 && live_bytes_ + added > limits::kMaxKvBytes) {
    return fail(Errc::over_limit, str("the key-value store is full: ", live_bytes_, " bytes of ", limits::kMaxKvBytes),
                "delete keys");
  }

  const std::uint64_t revision = revision_ + 1;
  std::uint32_t order = 0;
  std::size_t answered = 0;
  const auto tell = [&](wire::KvOpResult* out, const std::string& key, const Record& r, bool key_only = false) {
    const std::size_t cost = kPairCost + key.size() + (key_only ? 0 : r.value.size());
    if (answered + cost > limits::kMaxKvTxnBytes) {
      out->set_more(true);
      return false;
    }
    answered += cost;
    auto* pair = out->add_pairs();
    pair->set_key(key);
    if (!key_only) pair->set_value(r.value);
    pair->set_created(r.created);
    pair->set_modified(r.revision);
    pair->set_version(r.version);
    pair->set_lease(r.lease);
    return true;
  };
  for (const wire::KvOp& op : ops) {
    wire::KvOpResult* out = result.add_results();
    if (op.has_get()) {
      const auto [first, last] = span(op.get().range());
      const auto limit =
          static_cast<int>(op.get().limit() == 0 ? kPageKeys : std::min<std::size_t>(op.get().limit(), kPageKeys));
      std::size_t visited = 0;
      for (auto it = first; it != last; ++it) {
        const bool there = it->second.newest.version != 0;
        if (++visited > kScanKeys || (there && out->pairs_size() >= limit)) {
          out->set_more(true);
          break;
        }
        if (there && !tell(out, it->first, it->second.newest, op.get().keys_only())) break;
      }
    } else if (op.has_put()) {
      const auto [it, inserted] = keys_.try_emplace(op.put().key());
      const Record& before = it->second.newest;
      const bool there = !inserted && before.version != 0;
      if (there && op.put().previous()) tell(out, it->first, before);
      write(it, {.revision = revision,
                 .created = there ? before.created : revision,
                 .version = there ? before.version + 1 : 1,
                 .order = order++,
                 .lease = op.put().lease(),
                 .value = op.put().value()});
    } else {
      auto [it, last] = span(op.delete_().range());
      for (; it != last; ++it) {
        if (!deletable(*it)) continue;
        if (op.delete_().previous()) tell(out, it->first, it->second.newest);
        write(it, {.revision = revision, .created = 0, .version = 0, .order = order++, .lease = 0, .value = {}});
        out->set_deleted(out->deleted() + 1);
      }
    }
  }
  if (order > 0) revision_ = revision;
  trim();
  result.set_revision(revision_);
  return result;
}

void KeySpace::write(Keys::iterator key, Record record) {
  Chain& chain = key->second;
  preserve(key->first, chain);
  if (chain.newest.revision != 0) {  // Not new in the map.
    const std::uint64_t size = size_of(key->first, chain.newest);
    if (chain.newest.version != 0) {
      live_bytes_ -= size;
      history_bytes_ += size;
      --live_;
    }
    if (!chain.older) chain.older = std::make_unique<std::deque<Record>>();
    chain.older->push_back(std::move(chain.newest));
  }
  chain.newest = std::move(record);
  const std::uint64_t size = size_of(key->first, chain.newest);
  if (chain.newest.version != 0) {
    live_bytes_ += size;
    ++live_;
  } else {
    history_bytes_ += size;
  }
  changes_.push_back({chain.newest.revision, key});
}

std::uint64_t KeySpace::modified(std::string_view key) const {
  const Record* r = live(key);
  return r == nullptr ? 0 : r->revision;
}

void KeySpace::put_reserved(const std::string& key, const std::string& value, std::uint64_t lease) {
  const std::uint64_t revision = ++revision_;
  const auto it = keys_.try_emplace(key).first;
  const Record& before = it->second.newest;
  write(it, {.revision = revision,
             .created = before.version == 0 ? revision : before.created,
             .version = before.version + 1,
             .order = 0,
             .lease = lease,
             .value = value});
  trim();
}

void KeySpace::erase_reserved(const std::string& key) {
  const auto it = keys_.find(key);
  if (it == keys_.end() || it->second.newest.version == 0) return;
  write(it, {.revision = ++revision_, .created = 0, .version = 0, .order = 0, .lease = 0, .value = {}});
  trim();
}

void KeySpace::end_lease(std::uint64_t lease, const std::set<std::string>& keys) {
  std::uint32_t order = 0;
  for (const std::string& key : keys) {
    const auto it = keys_.find(key);
    if (it == keys_.end() || it->second.newest.version == 0 || it->second.newest.lease != lease) continue;
    write(it, {.revision = revision_ + 1, .created = 0, .version = 0, .order = order++, .lease = 0, .value = {}});
  }
  if (order > 0) ++revision_;
  trim();
}

void KeySpace::forget_until(std::uint64_t revision) {
  while (!changes_.empty() && changes_.front().revision <= revision) {
    const Change change = changes_.front();
    changes_.pop_front();
    Chain& chain = change.key->second;
    preserve(change.key->first, chain);
    while (chain.older && chain.older->front().revision < change.revision) {
      history_bytes_ -= size_of(change.key->first, chain.older->front());
      chain.older->pop_front();
      if (chain.older->empty()) chain.older.reset();
    }
    // A deletion that nobody can ask about any more.
    if (chain.older) {
      if (chain.older->front().version == 0) {
        history_bytes_ -= size_of(change.key->first, chain.older->front());
        chain.older->pop_front();
        if (chain.older->empty()) chain.older.reset();
      }
    } else if (chain.newest.version == 0) {
      history_bytes_ -= size_of(change.key->first, chain.newest);
      keys_.erase(change.key);
    }
  }
  compacted_ = std::max(compacted_, revision);
}

void KeySpace::trim() {
  // The newest revision stays, however large.
  while ((changes_.size() > limits::kMaxKvChanges || history_bytes_ > limits::kMaxKvHistoryBytes) &&
         !changes_.empty() && changes_.front().revision < revision_) {
    forget_until(changes_.front().revision);
  }
}

void KeySpace::go_on_apart() {
  forget_until(revision_);
  revision_ += kApart;
  compacted_ = revision_;
}

Status KeySpace::compact(std::uint64_t revision) {
  if (revision > revision_) {
    return fail(Errc::invalid_argument, str("revision ", revision, " has not been: the newest is ", revision_));
  }
  if (revision <= compacted_) {
    return fail(Errc::snapshot_too_old, str("revision ", revision, " was compacted before"),
                str("compacted up to ", compacted_));
  }
  forget_until(revision);
  return {};
}

}  // namespace holo::control
