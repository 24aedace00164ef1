#include "core/control/keyspace.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <optional>

#include "base/limits.h"

namespace holo::control {
namespace {

using wire::KvTxn;

KvTxn put(const std::string& key, const std::string& value, bool previous = false) {
  KvTxn t;
  auto* p = t.add_then()->mutable_put();
  p->set_key(key);
  p->set_value(value);
  p->set_previous(previous);
  return t;
}

wire::KvRange one(const std::string& key) {
  wire::KvRange r;
  r.set_key(key);
  return r;
}

wire::KvRange between(const std::string& key, const std::string& end) {
  wire::KvRange r = one(key);
  r.set_end(end);
  return r;
}

const wire::KvRange kAll = between(std::string(1, '\0'), std::string(1, '\0'));

KvTxn erase(const wire::KvRange& range, bool previous = false) {
  KvTxn t;
  *t.add_then()->mutable_delete_()->mutable_range() = range;
  t.mutable_then(0)->mutable_delete_()->set_previous(previous);
  return t;
}

std::uint64_t must(KeySpace& keys, const KvTxn& txn) {
  const auto done = keys.apply(txn);
  EXPECT_TRUE(done) << done.error().message;
  return done ? done->revision() : 0;
}

/// "key=value ..." of a page; "key@created/modified/version" with `numbers`.
std::string text(const wire::KvPage& page) {
  std::string out;
  for (const auto& p : page.pairs()) out += (out.empty() ? "" : " ") + p.key() + "=" + p.value();
  return out;
}

std::string read(const KeySpace& keys, const wire::KvRange& range, std::uint64_t revision = 0) {
  wire::KvGet get;
  *get.mutable_range() = range;
  get.set_revision(revision);
  const auto page = keys.range(get);
  return page ? text(*page) : errc_name(page.error().code);
}

std::string watch(const KeySpace& keys, const wire::KvRange& range, std::uint64_t from) {
  wire::KvWatch w;
  *w.mutable_range() = range;
  w.set_from(from);
  const auto events = keys.events(w);
  if (!events) return errc_name(events.error().code);
  std::string out;
  for (const auto& e : events->events()) {
    out += (out.empty() ? "" : " ") + std::to_string(e.pair().modified()) + (e.deleted() ? "-" : "+") + e.pair().key();
  }
  return out;
}

TEST(KeySpace, WritesCountRevisionsAndVersions) {
  KeySpace keys;
  EXPECT_EQ(must(keys, put("a", "1")), 1u);
  EXPECT_EQ(must(keys, put("b", "2")), 2u);
  EXPECT_EQ(must(keys, put("a", "3")), 3u);
  wire::KvGet get;
  *get.mutable_range() = kAll;
  const auto page = keys.range(get);
  ASSERT_TRUE(page);
  ASSERT_EQ(page->pairs_size(), 2);
  EXPECT_EQ(page->pairs(0).created(), 1u);
  EXPECT_EQ(page->pairs(0).modified(), 3u);
  EXPECT_EQ(page->pairs(0).version(), 2u);
  EXPECT_EQ(page->pairs(1).version(), 1u);
  EXPECT_EQ(page->revision(), 3u);
  EXPECT_EQ(keys.keys(), 2u);
}

TEST(KeySpace, EveryRevisionUntilTheCompactedOneCanBeRead) {
  KeySpace keys;
  must(keys, put("a", "1"));
  must(keys, put("b", "2"));
  must(keys, erase(one("a")));
  must(keys, put("a", "4"));
  EXPECT_EQ(read(keys, kAll, 1), "a=1");
  EXPECT_EQ(read(keys, kAll, 2), "a=1 b=2");
  EXPECT_EQ(read(keys, kAll, 3), "b=2");
  EXPECT_EQ(read(keys, kAll, 4), "a=4 b=2");
  EXPECT_EQ(read(keys, kAll, 5), "invalid_argument");
  ASSERT_TRUE(keys.compact(3));
  EXPECT_EQ(read(keys, kAll, 2), "snapshot_too_old");
  EXPECT_EQ(read(keys, kAll, 3), "b=2");
  EXPECT_EQ(read(keys, kAll), "a=4 b=2");
  EXPECT_EQ(keys.compact(3).error().code, Errc::snapshot_too_old);
  EXPECT_EQ(keys.compact(5).error().code, Errc::invalid_argument);
}

TEST(KeySpace, ADeletedKeyIsNewWhenItComesBack) {
  KeySpace keys;
  must(keys, put("a", "1"));
  must(keys, put("a", "2"));
  must(keys, erase(one("a")));
  must(keys, put("a", "3"));
  wire::KvGet get;
  *get.mutable_range() = one("a");
  const auto page = keys.range(get);
  EXPECT_EQ(page->pairs(0).created(), 4u);
  EXPECT_EQ(page->pairs(0).version(), 1u);
}

TEST(KeySpace, WhatChangesNothingMakesNoRevision) {
  KeySpace keys;
  must(keys, put("a", "1"));
  EXPECT_EQ(must(keys, erase(one("b"))), 1u);
  KvTxn get;
  *get.add_then()->mutable_get()->mutable_range() = kAll;
  const auto done = keys.apply(get);
  EXPECT_EQ(done->revision(), 1u);
  EXPECT_EQ(done->results(0).pairs_size(), 1);
}

TEST(KeySpace, ATransactionIsOneRevisionAndSeesItsOwnWrites) {
  KeySpace keys;
  must(keys, put("a", "0"));
  KvTxn t = put("a", "1", true);
  *t.add_then()->mutable_get()->mutable_range() = kAll;
  *t.add_then()->mutable_put() = put("b", "2").then(0).put();
  const auto done = keys.apply(t);
  ASSERT_TRUE(done);
  EXPECT_EQ(done->revision(), 2u);
  EXPECT_EQ(done->results(0).pairs(0).value(), "0");
  ASSERT_EQ(done->results(1).pairs_size(), 1);
  EXPECT_EQ(done->results(1).pairs(0).value(), "1");
  EXPECT_EQ(watch(keys, kAll, 2), "2+a 2+b");
}

TEST(KeySpace, ComparisonsChooseTheBranch) {
  KeySpace keys;
  must(keys, put("a", "5"));
  const auto branch = [&](const std::string& key, wire::KvCompare::Target target, wire::KvCompare::Relation relation,
                          std::uint64_t number, const std::string& value = {}) {
    KvTxn t;
    auto* c = t.add_compares();
    c->set_key(key);
    c->set_target(target);
    c->set_relation(relation);
    c->set_number(number);
    c->set_value(value);
    return keys.apply(t)->succeeded();
  };
  using C = wire::KvCompare;
  EXPECT_TRUE(branch("a", C::VERSION, C::EQUAL, 1));
  EXPECT_FALSE(branch("a", C::VERSION, C::EQUAL, 0));
  EXPECT_TRUE(branch("none", C::VERSION, C::EQUAL, 0));
  EXPECT_TRUE(branch("a", C::CREATED, C::LESS, 2));
  EXPECT_TRUE(branch("a", C::MODIFIED, C::GREATER, 0));
  EXPECT_TRUE(branch("a", C::VALUE, C::EQUAL, 0, "5"));
  EXPECT_TRUE(branch("a", C::VALUE, C::LESS, 0, "6"));
  EXPECT_FALSE(branch("none", C::VALUE, C::NOT_EQUAL, 0, "5")) << "a key that is not there has no value";
}

TEST(KeySpace, BadTransactionsChangeNothing) {
  KeySpace keys;
  must(keys, put("a", "1"));
  const auto refused = [&](const KvTxn& t) {
    const auto done = keys.apply(t);
    EXPECT_FALSE(done);
    EXPECT_EQ(keys.revision(), 1u);
    return done ? Errc::internal : done.error().code;
  };
  EXPECT_EQ(refused(put("", "x")), Errc::invalid_argument);
  EXPECT_EQ(refused(put(std::string(limits::kMaxKvKeyBytes + 1, 'k'), "x")), Errc::invalid_argument);
  EXPECT_EQ(refused(put("b", std::string(limits::kMaxKvValueBytes + 1, 'v'))), Errc::over_limit);
  KvTxn twice = put("b", "1");
  *twice.add_then() = put("b", "2").then(0);
  EXPECT_EQ(refused(twice), Errc::invalid_argument);
  KvTxn covered = put("b", "1");
  *covered.add_then() = erase(kAll).then(0);
  EXPECT_EQ(refused(covered), Errc::invalid_argument);
  KvTxn both = erase(between("a", "c"));
  *both.add_then() = erase(one("b")).then(0);
  EXPECT_EQ(refused(both), Errc::invalid_argument);
  KvTxn nothing;
  nothing.add_then();
  EXPECT_EQ(refused(nothing), Errc::invalid_argument);
  KvTxn many;
  for (std::size_t i = 0; i <= limits::kMaxKvOps; ++i) *many.add_then() = put("k" + std::to_string(i), "").then(0);
  EXPECT_EQ(refused(many), Errc::over_limit);
  KvTxn old;
  *old.add_then()->mutable_get()->mutable_range() = kAll;
  old.mutable_then(0)->mutable_get()->set_revision(1);
  EXPECT_EQ(refused(old), Errc::invalid_argument);

  EXPECT_EQ(must(keys, put(std::string(limits::kMaxKvKeyBytes, 'k'), std::string(limits::kMaxKvValueBytes, 'v'))), 2u);
}

TEST(KeySpace, DeletionsHaveALimit) {
  KeySpace keys;
  for (std::size_t i = 0; i <= limits::kMaxKvDeletes; ++i) must(keys, put("k" + std::to_string(i), ""));
  const auto refused = keys.apply(erase(kAll));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::over_limit);
  EXPECT_EQ(keys.keys(), limits::kMaxKvDeletes + 1);
  must(keys, erase(one("k0")));
  EXPECT_EQ(keys.apply(erase(kAll))->results(0).deleted(), limits::kMaxKvDeletes);
  EXPECT_EQ(keys.keys(), 0u);
}

TEST(KeySpace, AWatchBelowTheCompactedRevisionIsToldSo) {
  KeySpace keys;
  must(keys, put("a", "1"));
  must(keys, put("a", "2"));
  must(keys, erase(one("a")));
  EXPECT_EQ(watch(keys, kAll, 1), "1+a 2+a 3-a");
  EXPECT_EQ(watch(keys, one("b"), 1), "");
  ASSERT_TRUE(keys.compact(2));
  EXPECT_EQ(watch(keys, kAll, 2), "snapshot_too_old");
  EXPECT_EQ(watch(keys, kAll, 3), "3-a");
  ASSERT_TRUE(keys.compact(3));
  EXPECT_EQ(keys.bytes(), 0u) << "a deletion that nobody can ask about is forgotten";
}

TEST(KeySpace, HistoryIsBounded) {
  KeySpace keys;
  const std::string large(limits::kMaxKvValueBytes, 'v');
  for (int i = 0; i < 1000; ++i) must(keys, put("a", large));
  EXPECT_LE(keys.bytes(), limits::kMaxKvHistoryBytes + 2 * limits::kMaxKvValueBytes);
  EXPECT_GT(keys.compacted(), 0u);
  for (std::size_t i = 0; i < limits::kMaxKvChanges + 500; ++i) must(keys, put("b", ""));
  EXPECT_GE(keys.compacted(), 1000u + 500);
  EXPECT_EQ(read(keys, one("a")).size(), large.size() + 2);
}

TEST(KeySpace, FullRefusesMoreAndLetsDelete) {
  KeySpace keys;
  const std::string large(limits::kMaxKvValueBytes, 'v');
  Errc why{};
  for (int i = 0; i < 5000 && why == Errc{}; ++i) {
    const auto done = keys.apply(put("k" + std::to_string(i), large));
    if (!done) why = done.error().code;
  }
  EXPECT_EQ(why, Errc::over_limit);
  EXPECT_LE(keys.bytes(), limits::kMaxKvBytes + limits::kMaxKvHistoryBytes);
  must(keys, erase(one("k0")));
  must(keys, put("k0", large));
}

TEST(KeySpace, PagesJoinToTheWhole) {
  KeySpace keys;
  std::string whole;
  for (int i = 1000; i < 1020; ++i) {
    must(keys, put(std::to_string(i), std::string(100'000, 'v')));
    whole += std::to_string(i) + " ";
  }
  std::string seen;
  wire::KvGet get;
  *get.mutable_range() = kAll;
  for (int pages = 0; pages < 20; ++pages) {
    const auto page = keys.range(get);
    ASSERT_TRUE(page);
    EXPECT_LE(page->ByteSizeLong(), limits::kMaxHeaderBytes);
    for (const auto& p : page->pairs()) seen += p.key() + " ";
    if (page->next().empty()) break;
    get.mutable_range()->set_key(page->next());
  }
  EXPECT_EQ(seen, whole);
}

/// A store beside a plain list of everything that ever happened.
struct Model {
  KeySpace keys;
  std::vector<std::map<std::string, std::string>> at{{}};  ///< By revision.
  std::vector<std::string> events;                         ///< "revision+key" of every change.
  std::vector<std::uint64_t> revisions;                    ///< Of each event.

  void step(std::uint32_t choice) {
    const std::string a(1, static_cast<char>('a' + choice % 7));
    const std::string b(1, static_cast<char>('a' + (choice >> 4) % 7));
    auto now = at.back();
    const auto changed = [&](const std::string& key, bool deleted) {
      events.push_back(std::to_string(at.size()) + (deleted ? "-" : "+") + key);
      revisions.push_back(at.size());
    };
    switch ((choice >> 8) % 5) {
      case 0:
      case 1:
        must(keys, put(a, b));
        now[a] = b;
        changed(a, false);
        break;
      case 2: {
        must(keys, erase(between(a, b)));
        if (a < b) {
          for (auto it = now.lower_bound(a); it != now.end() && it->first < b; it = now.erase(it))
            changed(it->first, true);
        }
        if (now == at.back()) return;
        break;
      }
      case 3: {
        KvTxn t = put(a, "1");
        if (a != b) *t.add_then() = put(b, "2").then(0);
        must(keys, t);
        now[a] = "1";
        changed(a, false);
        if (a != b) {
          now[b] = "2";
          changed(b, false);
        }
        break;
      }
      default:
        if (choice % 3 == 0 && keys.compacted() < keys.revision()) {
          ASSERT_TRUE(keys.compact(keys.compacted() + 1 + choice % (keys.revision() - keys.compacted())));
        }
        return;
    }
    at.push_back(std::move(now));
  }

  void check(const KeySpace& of) const {
    ASSERT_EQ(of.revision() + 1, at.size());
    for (std::uint64_t r = std::max<std::uint64_t>(of.compacted(), 1); r < at.size(); ++r) {
      std::string whole;
      for (const auto& [k, v] : at[r]) whole += (whole.empty() ? "" : " ") + k + "=" + v;
      ASSERT_EQ(read(of, kAll, r), whole) << "at revision " << r;
    }
    // Each event once, in order, also when each answer carries just one.
    std::string expected, seen;
    for (std::size_t i = 0; i < events.size(); ++i) {
      if (revisions[i] > of.compacted()) expected += events[i] + " ";
    }
    for (const std::string& e : {watch(of, kAll, of.compacted() + 1)}) seen += e.empty() ? "" : e + " ";
    ASSERT_EQ(seen, expected);
    ASSERT_EQ(of.keys(), at.back().size());
  }
};

RC_GTEST_PROP(KeySpace, IsWhatItsHistorySays, (const std::vector<std::uint32_t>& choices)) {
  Model model;
  for (const std::uint32_t c : choices) model.step(c);
  model.check(model.keys);

  wire::SnapshotKv saved;
  model.keys.save(&saved);
  KeySpace restored;
  RC_ASSERT(restored.load(saved).has_value());
  model.check(restored);
  RC_ASSERT(restored.bytes() == model.keys.bytes());
  wire::SnapshotKv again;
  restored.save(&again);
  RC_ASSERT(again.SerializeAsString() == saved.SerializeAsString());
}

RC_GTEST_PROP(KeySpace, ACutIsWhatWasThereWhenItBegan,
              (const std::vector<std::uint32_t>& before, const std::vector<std::uint32_t>& after)) {
  Model model;
  for (const std::uint32_t c : before) model.step(c);
  wire::SnapshotKv saved, got;
  model.keys.save(&saved);
  got.set_revision(model.keys.revision());
  got.set_compacted(model.keys.compacted());
  const auto cut = model.keys.cut();
  for (const std::uint32_t c : after) {
    model.step(c);
    if (c % 3 == 0) RC_ASSERT(cut->next(1, &got).has_value());
  }
  for (;;) {
    const auto more = cut->next(1, &got);
    RC_ASSERT(more.has_value());
    if (!*more) break;
  }
  RC_ASSERT(got.SerializeAsString() == saved.SerializeAsString());
}

TEST(KeySpace, LargeAnswersGoOnInsideARevision) {
  KeySpace keys;
  for (int i = 0; i < 100; ++i) must(keys, put("k" + std::to_string(1000 + i), std::string(90'000, 'v')));
  must(keys, erase(kAll));
  wire::KvWatch w;
  *w.mutable_range() = kAll;
  w.set_from(1);
  std::vector<std::string> seen;
  for (int calls = 0; calls < 100; ++calls) {
    const auto events = keys.events(w);
    ASSERT_TRUE(events);
    EXPECT_LE(events->ByteSizeLong(), limits::kMaxHeaderBytes);
    if (events->events().empty()) break;
    for (const auto& e : events->events()) seen.push_back((e.deleted() ? "-" : "+") + e.pair().key());
    w.set_from(events->from());
    w.set_skip(events->skip());
  }
  ASSERT_EQ(seen.size(), 200u);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(seen[static_cast<std::size_t>(i)], "+k" + std::to_string(1000 + i));
    EXPECT_EQ(seen[static_cast<std::size_t>(100 + i)], "-k" + std::to_string(1000 + i));
  }
}

TEST(KeySpace, ADamagedSnapshotIsRefused) {
  KeySpace keys;
  must(keys, put("a", "1"));
  must(keys, put("b", "1"));
  wire::SnapshotKv good;
  keys.save(&good);
  const auto refuses = [&](auto damage) {
    wire::SnapshotKv bad = good;
    damage(bad);
    KeySpace fresh;
    const Status s = fresh.load(bad);
    return !s && s.error().code == Errc::corrupt;
  };
  EXPECT_TRUE(refuses([](auto& s) { s.set_compacted(9); }));
  EXPECT_TRUE(refuses([](auto& s) { s.mutable_keys()->SwapElements(0, 1); }));
  EXPECT_TRUE(refuses([](auto& s) { s.mutable_keys(0)->clear_records(); }));
  EXPECT_TRUE(refuses([](auto& s) { s.mutable_keys(0)->set_key(""); }));
  EXPECT_TRUE(refuses([](auto& s) { s.mutable_keys(1)->mutable_records(0)->set_revision(7); }));
  EXPECT_TRUE(refuses([](auto& s) { s.mutable_keys(1)->mutable_records(0)->set_revision(0); }));
}

}  // namespace
}  // namespace holo::control
