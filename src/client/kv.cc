// The key-value store, as programs see it.
#include <holo/kv.hpp>

#include <algorithm>

#include "client/session.h"
#include "core/control/keyspace.h"
#include "wire/kv.pb.h"

namespace holo {
namespace client {
namespace {

constexpr Duration kSlack = seconds(15);  // For the answer, beyond what the request itself may wait.

wire::KvRange to_wire(const KeyRange& range) {
  wire::KvRange out;
  out.set_key(range.key);
  out.set_end(range.end);
  return out;
}

KvPair from_wire(wire::KvPair&& p) {
  return {.key = std::move(*p.mutable_key()),
          .value = std::move(*p.mutable_value()),
          .created = p.created(),
          .modified = p.modified(),
          .version = p.version(),
          .lease = p.lease()};
}

wire::KvCompare to_wire(const KvCondition& c) {
  wire::KvCompare out;
  out.set_key(c.key);
  switch (c.target) {
    case KvCondition::Target::version: out.set_target(wire::KvCompare::VERSION); break;
    case KvCondition::Target::created: out.set_target(wire::KvCompare::CREATED); break;
    case KvCondition::Target::modified: out.set_target(wire::KvCompare::MODIFIED); break;
    case KvCondition::Target::value: out.set_target(wire::KvCompare::VALUE); break;
  }
  switch (c.relation) {
    case KvCondition::Relation::equal: out.set_relation(wire::KvCompare::EQUAL); break;
    case KvCondition::Relation::not_equal: out.set_relation(wire::KvCompare::NOT_EQUAL); break;
    case KvCondition::Relation::less: out.set_relation(wire::KvCompare::LESS); break;
    case KvCondition::Relation::greater: out.set_relation(wire::KvCompare::GREATER); break;
  }
  out.set_number(c.number);
  out.set_value(c.value);
  return out;
}

wire::KvOp to_wire(const KvOperation& o) {
  wire::KvOp out;
  switch (o.kind) {
    case KvOperation::Kind::put:
      out.mutable_put()->set_key(o.range.key);
      out.mutable_put()->set_value(o.value);
      out.mutable_put()->set_lease(o.lease);
      break;
    case KvOperation::Kind::erase: *out.mutable_delete_()->mutable_range() = to_wire(o.range); break;
    case KvOperation::Kind::get: *out.mutable_get()->mutable_range() = to_wire(o.range); break;
  }
  return out;
}

}  // namespace

Result<KvResult> SessionImpl::kv_txn(const KvTransaction& transaction) {
  wire::KvTxn ask;
  for (const KvCondition& c : transaction.when) *ask.add_compares() = to_wire(c);
  for (const KvOperation& o : transaction.then) *ask.add_then() = to_wire(o);
  for (const KvOperation& o : transaction.otherwise) *ask.add_otherwise() = to_wire(o);
  HOLO_TRY(control::KeySpace::check(ask));  // The connection would refuse what is too large, too, and speak of itself.
  HOLO_ASSIGN(answer, agent_->call<wire::KvTxnResult>(wire::KV_TXN, ask));
  KvResult out{.succeeded = answer.succeeded(), .revision = answer.revision(), .results = {}};
  for (wire::KvOpResult& r : *answer.mutable_results()) {
    KvOpResult& one = out.results.emplace_back();
    for (wire::KvPair& p : *r.mutable_pairs()) one.pairs.push_back(from_wire(std::move(p)));
    one.deleted = r.deleted();
    one.more = r.more();
  }
  return out;
}

Result<detail::KvPageOf> SessionImpl::kv_page(const KeyRange& range, const KvReadOptions& options) {
  wire::KvGet ask;
  *ask.mutable_range() = to_wire(range);
  ask.set_revision(options.revision);
  ask.set_limit(options.limit);
  ask.set_keys_only(options.keys_only);
  ask.set_stale(options.stale);
  HOLO_ASSIGN(answer, agent_->call<wire::KvPage>(wire::KV_GET, ask));
  detail::KvPageOf out{.pairs = {}, .revision = answer.revision(), .next = answer.next()};
  for (wire::KvPair& p : *answer.mutable_pairs()) out.pairs.push_back(from_wire(std::move(p)));
  return out;
}

Result<detail::KvEventsOf> SessionImpl::kv_events(const KeyRange& range, std::uint64_t from, std::uint32_t skip,
                                                  std::chrono::milliseconds wait) {
  constexpr std::int64_t kLongest = 60'000;  // The agent answers by then; the caller asks again.
  const std::int64_t ms = std::clamp<std::int64_t>(wait.count(), 0, kLongest);
  wire::KvWatch ask;
  *ask.mutable_range() = to_wire(range);
  ask.set_from(from);
  ask.set_skip(skip);
  ask.set_wait_ms(static_cast<std::uint32_t>(ms));
  HOLO_ASSIGN(answer, agent_->call<wire::KvEvents>(wire::KV_WATCH, ask, {.timeout = milliseconds(ms) + kSlack}));
  detail::KvEventsOf out{.events = {}, .from = answer.from(), .skip = answer.skip()};
  for (wire::KvEvent& e : *answer.mutable_events()) {
    out.events.push_back({.deleted = e.deleted(), .pair = from_wire(std::move(*e.mutable_pair()))});
  }
  return out;
}

}  // namespace client

KeyRange KeyRange::prefix(std::string_view prefix) {
  std::string end(prefix);
  while (!end.empty() && static_cast<unsigned char>(end.back()) == 0xff) end.pop_back();
  if (end.empty()) return {std::string(prefix), std::string(1, '\0')};  // To the last key that there is.
  end.back() = static_cast<char>(static_cast<unsigned char>(end.back()) + 1);
  return {std::string(prefix), std::move(end)};
}

Result<std::uint64_t> KeyValue::put(std::string_view key, std::string_view value, std::uint64_t lease) {
  auto done = txn({.when = {}, .then = {KvOperation::put(key, value, lease)}, .otherwise = {}});
  if (!done) return std::unexpected(std::move(done).error());
  return done->revision;
}

Result<std::optional<KvPair>> KeyValue::get(std::string_view key, KvReadOptions options) {
  auto page = session_->kv_page(KeyRange::one(key), options);
  if (!page) return std::unexpected(std::move(page).error());
  if (page->pairs.empty()) return std::optional<KvPair>();
  return std::optional<KvPair>(std::move(page->pairs.front()));
}

Result<std::uint64_t> KeyValue::erase(const KeyRange& range) {
  auto done = txn({.when = {}, .then = {KvOperation::erase(range)}, .otherwise = {}});
  if (!done) return std::unexpected(std::move(done).error());
  return done->results.empty() ? 0 : done->results.front().deleted;
}

Result<std::vector<KvPair>> KeyValue::range(const KeyRange& range, KvReadOptions options) {
  std::vector<KvPair> out;
  KeyRange rest = range;
  const std::uint32_t wanted = options.limit;
  for (;;) {
    if (wanted != 0) options.limit = wanted - static_cast<std::uint32_t>(out.size());
    auto page = session_->kv_page(rest, options);
    if (!page) return std::unexpected(std::move(page).error());
    std::ranges::move(page->pairs, std::back_inserter(out));
    if (page->next.empty() || (wanted != 0 && out.size() >= wanted)) return out;
    rest.key = std::move(page->next);
    options.revision = page->revision;  // The rest as of the same one.
  }
}

Result<KvResult> KeyValue::txn(const KvTransaction& transaction) { return session_->kv_txn(transaction); }

Result<std::vector<KvEvent>> KvWatch::next(std::chrono::milliseconds wait) {
  auto seen = session_->kv_events(range_, from_, skip_, wait);
  if (!seen) return std::unexpected(std::move(seen).error());
  from_ = seen->from;
  skip_ = seen->skip;
  return std::move(seen->events);
}

}  // namespace holo
