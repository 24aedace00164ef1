#include "sim/linearizability.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "base/random.h"
#include "base/strings.h"

namespace holo::sim {
namespace {

Verdict::Kind judge(const std::string& text) {
  const auto history = parse_history(text);
  EXPECT_TRUE(history) << (history ? "" : history.error().message);
  return check_linearizable(*history).kind;
}
constexpr auto kGood = Verdict::Kind::linearizable;
constexpr auto kBad = Verdict::Kind::violated;

TEST(Linearizability, NothingAndOneAfterTheOther) {
  EXPECT_EQ(judge(""), kGood);
  EXPECT_EQ(judge("1 2 1 put k a\n3 4 1 get k a\n5 6 1 put k b\n7 8 2 get k b\n"), kGood);
  EXPECT_EQ(judge("1 2 1 get k nil\n"), kGood);
  EXPECT_EQ(judge("1 2 1 get k a\n"), kBad) << "read from nowhere";
}

TEST(Linearizability, AStaleReadIsFound) {
  EXPECT_EQ(judge("1 2 1 put k a\n3 4 1 put k b\n5 6 2 get k a\n"), kBad);
  EXPECT_EQ(judge("1 2 1 put k a\n3 6 1 put k b\n4 5 2 get k a\n"), kGood) << "while the second write is under way";
}

TEST(Linearizability, NoReadGoesBack) {
  // Two readers during one write: once the new value was seen, the old one is gone (Herlihy & Wing, figure 1).
  EXPECT_EQ(judge("1 2 1 put k a\n3 20 1 put k b\n4 5 2 get k b\n6 7 3 get k a\n"), kBad);
  EXPECT_EQ(judge("1 2 1 put k a\n3 20 1 put k b\n4 5 2 get k a\n6 7 3 get k b\n"), kGood);
  EXPECT_EQ(judge("1 2 1 put k a\n3 20 1 put k b\n4 7 2 get k b\n6 8 3 get k a\n"), kGood) << "the reads overlap";
}

TEST(Linearizability, ALostUpdateIsFound) {
  EXPECT_EQ(judge("1 2 1 put k a\n3 6 1 cas k a b ok\n4 7 2 cas k a c ok\n"), kBad) << "both cannot have won";
  EXPECT_EQ(judge("1 2 1 put k a\n3 6 1 cas k a b ok\n4 7 2 cas k a c no\n"), kGood);
  EXPECT_EQ(judge("1 2 1 put k a\n3 6 1 cas k a b ok\n4 7 2 cas k b c ok\n8 9 1 get k c\n"), kGood);
  EXPECT_EQ(judge("1 2 1 put k a\n3 4 1 cas k a b no\n5 6 1 get k a\n"), kBad) << "refused for no reason";
}

TEST(Linearizability, DeletionsCount) {
  EXPECT_EQ(judge("1 2 1 put k a\n3 4 1 del k ok\n5 6 2 get k nil\n7 8 2 del k no\n"), kGood);
  EXPECT_EQ(judge("1 2 1 put k a\n3 4 1 del k ok\n5 6 2 get k a\n"), kBad);
  EXPECT_EQ(judge("1 2 1 put k a\n3 6 1 del k ok\n4 7 2 del k ok\n"), kBad) << "deleted twice";
}

TEST(Linearizability, WithoutAnAnswerItMayHaveHappenedOrNot) {
  EXPECT_EQ(judge("1 2 1 put k a\n3 - 1 put k b\n5 6 2 get k a\n"), kGood) << "never";
  EXPECT_EQ(judge("1 2 1 put k a\n3 - 1 put k b\n5 6 2 get k b\n"), kGood) << "done";
  EXPECT_EQ(judge("1 2 1 put k a\n3 - 1 put k b\n5 6 2 get k a\n7 8 2 get k b\n"), kGood) << "late";
  EXPECT_EQ(judge("1 2 1 put k a\n3 - 1 put k b\n5 6 2 get k b\n7 8 2 get k a\n"), kBad) << "not undone";
  EXPECT_EQ(judge("1 2 1 get k b\n3 - 1 put k b\n"), kBad) << "not before it was asked for";
  EXPECT_EQ(judge("1 2 1 put k a\n3 - 1 cas k a b -\n4 5 2 cas k a c ok\n6 7 2 get k b\n"), kBad);
  EXPECT_EQ(judge("1 2 1 put k a\n3 - 1 cas k a b -\n4 - 2 del k -\n6 7 2 get k nil\n"), kGood);
}

TEST(Linearizability, AnUnansweredWriteThatNobodySawMayExplainARefusal) {
  EXPECT_EQ(judge("1 2 1 put k a\n3 - 2 cas k a b -\n4 5 3 get k a\n6 7 3 cas k a c no\n8 - 1 put k d\n"), kGood);
  EXPECT_EQ(judge("1 - 2 put k b\n4 5 3 del k ok\n"), kGood);
  EXPECT_EQ(judge("1 - 2 put k b\n4 5 3 del k ok\n6 7 3 del k ok\n"), kBad) << "one write, deleted twice";
  EXPECT_EQ(judge("1 - 2 put k b\n2 - 4 put k c\n4 5 3 del k ok\n6 7 3 del k ok\n"), kGood);
}

TEST(Linearizability, AWriteThatChangesNothingNowMayLater) {
  EXPECT_EQ(judge("1 2 1 put k a\n3 10 2 put k b\n4 10 3 put k b\n5 6 1 del k ok\n11 12 1 del k ok\n"), kGood);
}

TEST(Linearizability, KeysAreIndependent) {
  EXPECT_EQ(judge("1 2 1 put x a\n3 4 2 put y b\n5 6 1 get x a\n5 6 2 get y b\n"), kGood);
  const auto history = parse_history("1 2 1 put x a\n3 4 2 put y b\n5 6 1 get x a\n5 6 2 get y a\n");
  const Verdict v = check_linearizable(*history);
  EXPECT_EQ(v.kind, kBad);
  EXPECT_EQ(v.key, "y");
  EXPECT_NE(v.what.find("get y a"), std::string::npos) << v.what;
}

TEST(Linearizability, ALockHasOneHolder) {
  EXPECT_EQ(judge("1 2 1 acquire l 5\n3 4 1 release l 5 ok\n5 6 2 acquire l 9\n"), kGood);
  EXPECT_EQ(judge("1 2 1 acquire l 5\n5 6 2 acquire l 9\n7 8 1 release l 5 ok\n"), kBad) << "handed over while held";
  EXPECT_EQ(judge("1 2 1 acquire l 5\n5 6 2 acquire l 9\n"), kGood) << "its lease ended";
  EXPECT_EQ(judge("1 2 1 acquire l 5\n5 6 2 acquire l 9\n7 8 1 release l 5 no\n"), kGood);
  EXPECT_EQ(judge("1 2 1 acquire l 5\n3 4 1 release l 5 ok\n5 6 2 acquire l 5\n"), kBad) << "a token used again";
  EXPECT_EQ(judge("1 2 1 acquire l 9\n3 4 1 release l 9 ok\n5 6 2 acquire l 5\n"), kBad) << "a token that falls";
  EXPECT_EQ(judge("1 2 1 acquire l 5\n3 - 1 release l 5 -\n5 6 2 acquire l 9\n"), kGood);
}

TEST(Linearizability, TooHardIsSaid) {
  std::string text;
  for (int i = 0; i < 40; ++i) text += str("1 100 ", i, " put k v", i, "\n");
  text += "101 102 99 get k never\n";
  const auto history = parse_history(text);
  EXPECT_EQ(check_linearizable(*history, 10'000).kind, Verdict::Kind::undecided);
}

TEST(Linearizability, LinesThatAreNone) {
  for (const char* line : {"x", "1 2 3 put k", "1 2 3 jump k a", "2 1 3 put k a", "1 2 3 cas k a b",
                           "1 2 3 cas k a b -", "1 2 3 acquire k many", "a 2 3 put k v", "1 2 3 get k a b"}) {
    EXPECT_FALSE(parse_history(line)) << line;
  }
  const char* text = "1 2 7 cas k nil b ok";
  EXPECT_EQ(format_operation((*parse_history(str("# note\n\n", text, "\n")))[0]), text);
}

// Histories made by a single copy are always accepted; the same with one answer altered mostly are not, and never
// when the altered value was written by nobody.
RC_GTEST_PROP(Linearizability, WhatASingleCopyAnsweredIsAccepted, (std::uint64_t seed)) {
  Random random(seed);
  std::vector<Operation> history;
  std::map<std::string, std::string> copy;
  std::int64_t now = 0;
  for (int i = 0; i < 60; ++i) {
    Operation op;
    op.key = str("k", random.below(2));
    std::string& value = copy.try_emplace(op.key, "nil").first->second;
    now += 10;
    op.begin = now - static_cast<std::int64_t>(random.below(35));
    op.end = now + static_cast<std::int64_t>(random.below(35));
    op.kind = static_cast<Operation::Kind>(random.below(4));
    const std::string fresh = str("v", i);
    switch (op.kind) {
      case Operation::Kind::get: op.value = value; break;
      case Operation::Kind::put: op.value = value = fresh; break;
      case Operation::Kind::cas:
        op.expected = random.chance(1, 2) ? value : "v0";
        op.value = fresh;
        op.done = op.expected == value;
        if (op.done) value = fresh;
        break;
      default: op.done = value != "nil"; value = "nil";
    }
    if (op.kind != Operation::Kind::get && random.chance(1, 6)) op.end = Operation::kNeverEnded;
    history.push_back(op);
  }
  RC_ASSERT(check_linearizable(history).kind == kGood);
  const auto read = std::ranges::find_if(history, [](const Operation& o) { return o.kind == Operation::Kind::get; });
  if (read == history.end()) return;
  read->value = "written-by-nobody";
  RC_ASSERT(check_linearizable(history).kind == kBad);
}

TEST(Linearizability, RevisionsAreAProofWhereTheyFit) {
  const auto op = [](std::int64_t begin, std::int64_t end, Operation::Kind kind, const char* value,
                     std::uint64_t revision) {
    Operation o;
    o.begin = begin;
    o.end = end;
    o.kind = kind;
    o.key = "k";
    o.value = value;
    o.revision = revision;
    return o;
  };
  using Kind = Operation::Kind;
  const std::vector<Operation> good{op(1, 9, Kind::put, "a", 5), op(2, 8, Kind::put, "b", 4),
                                    op(10, 11, Kind::get, "a", 5), op(3, Operation::kNeverEnded, Kind::put, "c", 6),
                                    op(12, 13, Kind::get, "c", 7)};
  EXPECT_TRUE(explained_by_revisions(good));
  auto bad = good;
  bad[3].revision = 0;  // It never happened, and yet it was read.
  EXPECT_FALSE(explained_by_revisions(bad));
  bad = good;
  bad[2].value = "b";
  EXPECT_FALSE(explained_by_revisions(bad)) << "an old value";
  bad = good;
  bad[0] = op(1, 2, Kind::put, "a", 5);
  bad[1] = op(3, 4, Kind::put, "b", 4);
  EXPECT_FALSE(explained_by_revisions(bad)) << "its revision says that it was before what had ended by then";
}

}  // namespace
}  // namespace holo::sim
