// holo kv: keys and values that the whole cluster agrees on.
#include <chrono>
#include <iostream>

#include "base/limits.h"
#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/kv_text.h"
#include "cmd/holo/table.h"
#include "cmd/holo/units.h"
#include "core/control/keyspace.h"
#include "core/control/leases.h"
#include "driver/posix/files.h"

namespace holo::cmd {
namespace {

constexpr Duration kCall = seconds(30);
constexpr std::size_t kMaxTxnText = 16 << 20;  // As JSON, where each byte may take several.
constexpr std::uint64_t kMaxPrevious = limits::kMaxKvHistoryBytes / 2;
constexpr std::uint32_t kWatchMs = 30'000;  // Of one request; the next goes on where it ended.

struct KvOptions {
  TargetOptions target;
  std::string key, end, value, file;
  bool prefix = false, stale = false, keys_only = false, json = false, absent = false, previous = false, raw = false;
  std::uint64_t revision = 0, from = 0, count = 0, limit = 0, if_revision = 0, lease = 0;
  std::string fence;
  double timeout = 0;
};

Outcome<wire::KvRange> range_of(const KvOptions& o) {
  if (o.prefix && !o.end.empty()) return usage("a prefix has no end", "holo kv range a z, or holo kv range --prefix a");
  if (o.prefix) return prefix_range(o.key);
  wire::KvRange range;
  range.set_key(o.key);
  range.set_end(o.end);
  return range;
}

/// "-" is standard input.
Result<std::string> read_all(const std::string& file, std::size_t max_bytes) {
  if (file != "-") return driver::read_text_file(file, max_bytes);
  std::string bytes(max_bytes + 1, '\0');
  std::cin.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(static_cast<std::size_t>(std::cin.gcount()));
  if (bytes.size() > max_bytes)
    return fail(Errc::over_limit, str("standard input is longer than ", max_bytes, " bytes"));
  return bytes;
}

void print(const nlohmann::json& object) { std::cout << object.dump(2) << "\n"; }

/// A comparison that makes the change depend on how the key stands now.
void add_condition(const KvOptions& o, wire::KvTxn& txn) {
  if (!o.absent && o.if_revision == 0) return;
  auto* compare = txn.add_compares();
  compare->set_key(o.key);
  compare->set_target(o.absent ? wire::KvCompare::VERSION : wire::KvCompare::MODIFIED);
  compare->set_number(o.absent ? 0 : o.if_revision);
  *txn.add_otherwise()->mutable_get()->mutable_range()->mutable_key() = o.key;
}

/// Only while the lock has that token: a holder that was paused too long changes nothing.
Outcome<void> add_fence(const KvOptions& o, wire::KvTxn& txn) {
  if (o.fence.empty()) return {};
  const auto colon = o.fence.rfind(':');
  const auto token = parse_count(colon == std::string::npos ? std::string() : o.fence.substr(colon + 1));
  if (!token || *token == 0) {
    return usage(str("--fence ", o.fence, " is not LOCK:TOKEN"), "--fence $HOLO_LOCK:$HOLO_LOCK_TOKEN under holo lock");
  }
  auto* compare = txn.add_compares();
  compare->set_key(control::lock_key(o.fence.substr(0, colon)));
  compare->set_target(wire::KvCompare::MODIFIED);
  compare->set_number(*token);
  if (txn.otherwise().empty()) *txn.add_otherwise()->mutable_get()->mutable_range()->mutable_key() = o.key;
  *txn.add_otherwise()->mutable_get()->mutable_range()->mutable_key() = compare->key();
  return {};
}

Failure condition_failed(const KvOptions& o, const wire::KvTxnResult& result) {
  if (!o.fence.empty()) {
    const auto& lock = result.results(1).pairs();
    const auto now = lock.empty() ? 0 : lock[0].modified();
    if (!o.fence.ends_with(":" + std::to_string(now))) {
      return Error{.code = Errc::refused,
                   .message = str("the token of ", o.fence, " is not valid any more"),
                   .hint = now == 0 ? "nobody has the lock" : str("the lock has token ", now)};
    }
  }
  const bool there = result.results_size() > 0 && result.results(0).pairs_size() > 0;
  if (!there) return Error{.code = Errc::not_found, .message = str("there is no key ", o.key)};
  const auto now = result.results(0).pairs(0).modified();
  if (o.absent)
    return Error{.code = Errc::already_exists, .message = str("key ", o.key, " is there, since revision ", now)};
  return Error{.code = Errc::refused,
               .message = str("key ", o.key, " is at revision ", now, ", not at ", o.if_revision)};
}

Outcome<int> put(const KvOptions& o) {
  if (o.absent && o.if_revision != 0) return usage("--if-absent and --if-revision exclude each other");
  if (!o.file.empty() && !o.value.empty()) return usage("a value and --file exclude each other");
  wire::KvTxn txn;
  add_condition(o, txn);
  auto* p = txn.add_then()->mutable_put();
  p->set_key(o.key);
  p->set_value(o.value);
  p->set_previous(o.previous);
  p->set_lease(o.lease);
  HOLO_TRY(add_fence(o, txn));
  if (!o.file.empty()) {
    auto bytes = read_all(o.file, limits::kMaxKvValueBytes);
    if (!bytes && bytes.error().code == Errc::over_limit) {
      bytes.error().hint = "a value has no more; keep the bytes in a region, or in several keys";
    }
    if (!bytes) return std::unexpected(bytes.error());
    p->set_value(*std::move(bytes));
  }
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(result, link.call_for<wire::KvTxnResult>(wire::KV_TXN, txn, kCall));
  if (!result.succeeded()) return std::unexpected(condition_failed(o, result));
  if (o.json) {
    print(kv_json(result));
    return kDone;
  }
  for (const auto& pair : result.results(0).pairs()) std::cout << pair.value() << "\n";
  if (!o.previous) std::cout << "revision " << result.revision() << "\n";
  return kDone;
}

Outcome<int> get(const KvOptions& o) {
  if (o.raw && o.json) return usage("--raw and --json exclude each other");
  wire::KvGet ask;
  ask.mutable_range()->set_key(o.key);
  ask.set_revision(o.revision);
  ask.set_stale(o.stale);
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(page, link.call_for<wire::KvPage>(wire::KV_GET, ask, kCall));
  if (page.pairs().empty()) {
    return fail(Errc::not_found,
                str("there is no key ", o.key, o.revision == 0 ? "" : str(" at revision ", o.revision)),
                "holo kv range lists them");
  }
  if (o.json) {
    print(kv_json(page.pairs(0)));
  } else {
    std::cout << page.pairs(0).value() << (o.raw ? "" : "\n");
  }
  return kDone;
}

/// Calls f(page) for all of what `ask` asks for, of one revision, or as long as f gives true.
template <class F>
Result<void> for_each_page(AgentLink& link, wire::KvGet ask, F f) {
  for (;;) {
    HOLO_ASSIGN(page, link.call_for<wire::KvPage>(wire::KV_GET, ask, kCall));
    if (!f(page) || page.next().empty()) return {};
    ask.mutable_range()->set_key(page.next());
    ask.set_revision(page.revision());
  }
}

bool deletable(const wire::KvPair& pair) { return !pair.key().starts_with(control::kReservedKeys); }

/// Refuses to delete what could not be shown: the history must still have it afterwards, whatever others write.
Outcome<void> check_previous(AgentLink& link, const wire::KvRange& range) {
  std::uint64_t bytes = 0;
  wire::KvGet ask;
  *ask.mutable_range() = range;
  HOLO_TRY(for_each_page(link, ask, [&](const wire::KvPage& page) {
    for (const auto& pair : page.pairs()) bytes += deletable(pair) ? pair.key().size() + pair.value().size() : 0;
    return bytes <= kMaxPrevious;
  }));
  if (bytes <= kMaxPrevious) return {};
  return fail(Errc::over_limit,
              str("--previous shows at most ", format_size(kMaxPrevious), " of what is deleted, and there is more"),
              "delete parts of the range, one after the other, or without --previous");
}

/// An answer holds only some of them: all are those of the revision before.
Outcome<void> take_previous(AgentLink& link, const wire::KvRange& range, wire::KvTxnResult& result) {
  wire::KvGet ask;
  *ask.mutable_range() = range;
  ask.set_revision(result.revision() - 1);
  auto* out = result.mutable_results(0);
  out->clear_pairs();
  HOLO_TRY(for_each_page(link, ask, [&](wire::KvPage& page) {
    for (auto& pair : *page.mutable_pairs()) {
      if (deletable(pair)) *out->add_pairs() = std::move(pair);
    }
    return true;
  }));
  out->set_more(false);
  return {};
}

Outcome<int> erase(const KvOptions& o) {
  HOLO_ASSIGN(range, range_of(o));
  wire::KvTxn txn;
  add_condition(o, txn);
  auto* d = txn.add_then()->mutable_delete_();
  *d->mutable_range() = range;
  d->set_previous(o.previous);
  HOLO_TRY(add_fence(o, txn));
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  if (o.previous && !range.end().empty()) HOLO_TRY(check_previous(link, range));
  HOLO_ASSIGN(result, link.call_for<wire::KvTxnResult>(wire::KV_TXN, txn, kCall));
  if (!result.succeeded()) return std::unexpected(condition_failed(o, result));
  if (result.results(0).more()) HOLO_TRY(take_previous(link, range, result));
  if (o.json) {
    print(kv_json(result));
    return kDone;
  }
  for (const auto& pair : result.results(0).pairs()) std::cout << kv_line(pair) << "\n";
  if (!o.previous) std::cout << result.results(0).deleted() << "\n";
  return kDone;
}

Outcome<int> list(const KvOptions& o) {
  HOLO_ASSIGN(range, range_of(o));
  wire::KvGet ask;
  *ask.mutable_range() = std::move(range);
  // With no bounds at all: everything.
  if (o.key.empty()) ask.mutable_range()->set_key(std::string(1, '\0'));
  if (o.key.empty() || o.end.empty()) {
    if (!o.prefix) ask.mutable_range()->set_end(std::string(1, '\0'));
  }
  ask.set_revision(o.revision);
  ask.set_limit(static_cast<std::uint32_t>(std::min<std::uint64_t>(o.limit, 1u << 20)));
  ask.set_keys_only(o.keys_only);
  ask.set_stale(o.stale);
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  nlohmann::json all = nlohmann::json::array();
  std::uint64_t seen = 0;
  HOLO_TRY(for_each_page(link, ask, [&](const wire::KvPage& page) {
    for (const auto& pair : page.pairs()) {
      if (o.limit != 0 && seen == o.limit) return false;
      ++seen;
      if (o.json) {
        all.push_back(kv_json(pair));
        if (o.keys_only) all.back().erase("value");
      } else {
        std::cout << (o.keys_only ? kv_printable(pair.key()) : kv_line(pair)) << "\n";
      }
    }
    return o.limit == 0 || seen < o.limit;
  }));
  if (o.json) print(all);
  return kDone;
}

Outcome<int> watch(const KvOptions& o) {
  HOLO_ASSIGN(range, range_of(o));
  wire::KvWatch ask;
  *ask.mutable_range() = std::move(range);
  ask.set_from(o.from);
  using Clock = std::chrono::steady_clock;
  const auto until =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(o.timeout));
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  for (std::uint64_t seen = 0;;) {
    ask.set_wait_ms(kWatchMs);
    if (o.timeout > 0) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
      if (left <= 0) break;
      ask.set_wait_ms(static_cast<std::uint32_t>(std::min<std::int64_t>(left, kWatchMs)));
    }
    HOLO_ASSIGN(events, link.call_for<wire::KvEvents>(wire::KV_WATCH, ask, milliseconds(kWatchMs) + kCall));
    for (const auto& event : events.events()) {
      if (o.json) {
        std::cout << kv_json(event).dump() << "\n";
      } else {
        std::cout << event.pair().modified() << (event.deleted() ? " delete " : " put ")
                  << (event.deleted() ? kv_printable(event.pair().key()) : kv_line(event.pair())) << "\n";
      }
      std::cout.flush();
      if (!std::cout) return kDone;  // Nobody reads any more.
      if (++seen == o.count) return kDone;
    }
    ask.set_from(events.from());
    ask.set_skip(events.skip());
  }
  if (o.count == 0) return kDone;
  return fail(Errc::deadline_exceeded, str("fewer than ", o.count, " events in ", o.timeout, " s"));
}

Outcome<int> txn(const KvOptions& o) {
  HOLO_ASSIGN(text, read_all(o.file, kMaxTxnText));
  auto parsed = parse_kv_txn(text);
  if (!parsed) return usage(parsed.error());
  HOLO_TRY(control::KeySpace::check(*parsed));  // The connection would refuse it, too, and speak of itself.
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(result, link.call_for<wire::KvTxnResult>(wire::KV_TXN, *parsed, kCall));
  print(kv_json(result));
  return kDone;
}

Outcome<int> compact(const KvOptions& o) {
  wire::KvCompact ask;
  ask.set_revision(o.revision);
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_TRY(link.call(wire::KV_COMPACT, ask, kCall));
  return kDone;
}

Outcome<int> state(const KvOptions& o) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(s, link.call_for<wire::KvState>(wire::KV_STATE, wire::Empty(), kCall));
  if (o.json) {
    print({{"revision", s.revision()}, {"compacted", s.compacted()}, {"keys", s.keys()}, {"bytes", s.bytes()}});
  } else {
    std::cout << s.keys() << " keys, " << format_size(s.bytes()) << ", revision " << s.revision()
              << ", compacted up to " << s.compacted() << "\n";
  }
  return kDone;
}

}  // namespace

void add_kv_commands(CommandLine& line) {
  auto& group = line.add(line.root(), "kv", "Keys and values that the whole cluster agrees on",
                         "holo kv put color green && holo kv get color", {});
  group.require_subcommand(1);
  const auto add = [&](const char* name, const char* help, const char* example, Outcome<int> (*run)(const KvOptions&),
                       auto options) {
    auto o = std::make_shared<KvOptions>();
    auto& app = line.add(group, name, help, example, [o, run] { return run(*o); });
    options(app, *o);
    add_target_options(app, o->target);
  };
  const auto key = [](CLI::App& app, KvOptions& o) {
    app.add_option("KEY", o.key, str("At most ", limits::kMaxKvKeyBytes, " bytes"))->required();
  };
  const auto json = [](CLI::App& app, KvOptions& o, const char* help) { app.add_flag("--json", o.json, help); };
  const auto prefix = [](CLI::App& app, KvOptions& o) {
    app.add_flag("--prefix", o.prefix, "Every key that begins so");
  };
  const auto revision = [](CLI::App& app, KvOptions& o) {
    app.add_option("--revision", o.revision, "As it was at that revision (default: now)");
  };
  const auto stale = [](CLI::App& app, KvOptions& o) {
    app.add_flag("--stale", o.stale, "What this node knows, without asking the others: perhaps not the newest");
  };
  const auto condition = [](CLI::App& app, KvOptions& o) {
    app.add_option("--if-revision", o.if_revision, "Only if the key was last written at that revision")
        ->check(above_zero());
  };
  const auto previous = [](CLI::App& app, KvOptions& o) {
    app.add_flag("--previous", o.previous,
                 str("Print what was there before; at most ", format_size(kMaxPrevious), " of a range"));
  };

  const auto fence = [](CLI::App& app, KvOptions& o) {
    app.add_option("--fence", o.fence, "LOCK:TOKEN: only while that is the lock's token");
  };

  add("put", "Write a key", "holo kv put color green; holo kv put logo --file logo.png", put,
      [&](CLI::App& app, KvOptions& o) {
        key(app, o);
        app.add_option("VALUE", o.value, "Its value (default: empty)");
        app.add_option(
            "--file", o.file,
            str("The value is the file's bytes, at most ", limits::kMaxKvValueBytes, "; - for standard input"));
        app.add_option("--lease", o.lease, "The key goes when that lease ends (holo lease grant)")->check(above_zero());
        app.add_flag("--if-absent", o.absent, "Only if there is no such key");
        condition(app, o);
        fence(app, o);
        previous(app, o);
        json(app, o, "One JSON object");
      });
  add("get", "The value of a key, as of now", "holo kv get color; holo kv get logo --raw > logo.png", get,
      [&](CLI::App& app, KvOptions& o) {
        key(app, o);
        app.add_flag("--raw", o.raw, "The value's bytes and nothing else, as holo kv put --file took them");
        revision(app, o);
        stale(app, o);
        json(app, o, "One JSON object, with the key's revisions");
      });
  add("del", "Delete a key, or a range of them", "holo kv del --prefix jobs/", erase, [&](CLI::App& app, KvOptions& o) {
    key(app, o);
    app.add_option("END", o.end, "Delete from KEY on, up to this key but without it");
    prefix(app, o);
    condition(app, o);
    fence(app, o);
    previous(app, o);
    json(app, o, "One JSON object");
  });
  add("range", "Keys and their values, in order, all of one revision", "holo kv range a m --limit 10", list,
      [&](CLI::App& app, KvOptions& o) {
        app.add_option("KEY", o.key, "From this key on (default: the first)");
        app.add_option("END", o.end, "Up to this key, without it (default: the last)");
        prefix(app, o);
        app.add_option("--limit", o.limit, "At most so many")->check(above_zero());
        app.add_flag("--keys-only", o.keys_only, "Without the values");
        revision(app, o);
        stale(app, o);
        json(app, o, "A JSON array");
      });
  add("watch", "Changes as they happen, each once and in order", "holo kv watch --prefix jobs/ --from 1", watch,
      [&](CLI::App& app, KvOptions& o) {
        key(app, o);
        app.add_option("END", o.end, "From KEY on, up to this key but without it");
        prefix(app, o);
        app.add_option("--from", o.from, "From that revision on (default: what comes now)");
        app.add_option("-c,--count", o.count, "End after so many");
        app.add_option("--timeout", o.timeout, "End after so many seconds; 1 when --count was not reached")
            ->check(above_zero());
        json(app, o, "One JSON object for each line");
      });
  add("txn", "Compare, then change: all or nothing, at one revision",
      R"(echo '{"compare": [{"key": "n", "value": "1"}], "then": [{"put": "n", "value": "2"}], "else": [{"get": "n"}]}' | holo kv txn)",
      txn, [&](CLI::App& app, KvOptions& o) {
        o.file = "-";
        app.add_option("FILE", o.file, "The transaction as JSON; - for standard input")->capture_default_str();
        json(app, o, "The result is JSON in any case");
      });
  add("compact", "Forget what was overwritten at or before a revision", "holo kv compact 1000", compact,
      [&](CLI::App& app, KvOptions& o) {
        app.add_option("REVISION", o.revision, "As holo kv state tells")->required();
      });
  add("state", "How many keys, how large, which revision", "holo kv state", state,
      [&](CLI::App& app, KvOptions& o) { json(app, o, "One JSON object"); });
}

}  // namespace holo::cmd
