#include "core/memory/region_pages.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/random.h"
#include "core/memory/merge.h"
#include "env/heap_frames.h"

namespace holo::memory {
namespace {

constexpr std::uint64_t kPage = 32;
constexpr std::uint64_t kPages = 6;
constexpr ViewBits kViewA = 1;
constexpr ViewBits kViewB = 2;

TxnId txn(std::uint64_t n) { return {NodeId{7}, 1, n}; }
Buffer filled(std::uint8_t v) { return Buffer(Bytes(kPage, std::byte{v})); }
Buffer with(ByteSpan base, std::size_t at, std::uint8_t v) {
  Bytes b(base.begin(), base.end());
  b[at] = std::byte{v};
  return Buffer(std::move(b));
}
std::string text(ByteSpan b) { return std::string(as_text(b)); }

// Frames that remember which slots processes have mapped, and refuse to change one under a reader.
class WatchedFrames final : public env::RegionFrames {
 public:
  int fd() const override { return -1; }
  Status write(std::uint64_t offset, ByteSpan bytes) override {
    EXPECT_EQ(mapped_by[offset / kPage], 0u) << "the bytes of page " << offset / kPage << " change under a reader";
    return heap_.write(offset, bytes);
  }
  Result<MutableByteSpan> prepare(std::uint64_t offset, std::size_t length) override {
    for (std::uint64_t p = offset / kPage; p < (offset + length) / kPage; ++p) EXPECT_EQ(mapped_by[p], 0u);
    return heap_.prepare(offset, length);
  }
  Status read(std::uint64_t offset, MutableByteSpan out) const override { return heap_.read(offset, out); }
  ByteSpan mapped(std::uint64_t offset, std::size_t length) const override { return heap_.mapped(offset, length); }
  Status punch(std::uint64_t offset, std::uint64_t length) override {
    for (std::uint64_t p = offset / kPage; p < (offset + length) / kPage; ++p) mapped_by[p] = 0;
    return heap_.punch(offset, length);
  }
  std::map<std::uint64_t, ViewBits> mapped_by;

 private:
  env::HeapFrames heap_{kPage * kPages};
};

struct Node {
  explicit Node(bool is_owner = true)
      : owner(is_owner), pages({RegionId{1}, kPage, kPages}, frames, [this](PageNo) { return owner; }) {}
  Node(const Node&) = delete;
  bool owner;
  WatchedFrames frames;
  RegionPages pages;

  std::string read(std::uint64_t page, std::uint64_t snapshot) {
    auto r = pages.resolve(PageNo{page}, Version{snapshot});
    if (!r) return "error " + std::string(errc_name(r.error().code));
    switch (r->where) {
      case Resolution::Where::zero: return std::string(kPage, '\0');
      case Resolution::Where::slot: return text(frames.mapped(page * kPage, kPage));
      case Resolution::Where::bytes: return text(r->bytes.span());
      case Resolution::Where::fetch: return "fetch";
    }
    return {};
  }
  void map(std::uint64_t page, ViewBits view) {
    pages.mark_mapped(PageNo{page}, view);
    frames.mapped_by[page] |= view;
  }
  // The process of kViewA maps its window over what it had mapped before.
  bool open_window(std::uint64_t page, std::uint64_t t, std::uint64_t base) {
    const bool opened = pages.open_window(PageNo{page}, txn(t), Version{base}, kViewA).value();
    if (opened) {
      EXPECT_EQ(frames.mapped_by[page] & ~kViewA, 0u) << "a window under a reader";
      frames.mapped_by[page] = 0;
    }
    return opened;
  }
  Result<bool> stage(std::uint64_t t, std::uint64_t page, std::uint64_t base, Buffer bytes) {
    return pages.stage({txn(t), PageNo{page}, Version{base}, 0, std::move(bytes)});
  }
};

TEST(RegionPages, ANeverWrittenPageIsZero) {
  Node n;
  EXPECT_EQ(n.read(0, 0), std::string(kPage, '\0'));
  EXPECT_EQ(n.pages.usage().total(), 0u);
}

TEST(RegionPages, OldSnapshotsKeepTheirBytes) {
  Node n;
  ASSERT_TRUE(n.stage(1, 2, 0, filled('a')).value());
  EXPECT_TRUE(n.pages.apply(txn(1), Version{1}, {{PageNo{2}, 1}}).empty());
  ASSERT_TRUE(n.stage(2, 2, 1, filled('b')).value());
  EXPECT_TRUE(n.pages.apply(txn(2), Version{2}, {{PageNo{2}, 1}}).empty());
  for (int again = 0; again < 3; ++again) {
    EXPECT_EQ(n.read(2, 0), std::string(kPage, '\0'));
    EXPECT_EQ(n.read(2, 1), std::string(kPage, 'a'));
    EXPECT_EQ(n.read(2, 2), std::string(kPage, 'b'));
  }
  EXPECT_EQ(n.pages.usage().owned, kPage);
  EXPECT_EQ(n.pages.usage().extra, kPage);
  n.pages.raise_floor(Version{2});
  EXPECT_EQ(n.read(2, 1), "error snapshot_too_old");
  EXPECT_EQ(n.read(2, 2), std::string(kPage, 'b'));
  EXPECT_EQ(n.pages.usage().extra, 0u);
}

TEST(RegionPages, WritersOfDifferentBytesMerge) {
  Node n;
  ASSERT_TRUE(n.stage(1, 0, 0, with(zero_bytes(kPage), 3, 'x')).value());
  ASSERT_TRUE(n.stage(2, 0, 0, with(zero_bytes(kPage), 9, 'y')).value());
  n.pages.apply(txn(2), Version{1}, {{PageNo{0}, 1}});
  n.pages.apply(txn(1), Version{2}, {{PageNo{0}, 1}});
  const std::string got = n.read(0, 2);
  EXPECT_EQ(got[3], 'x');
  EXPECT_EQ(got[9], 'y');
  EXPECT_EQ(n.read(0, 1)[3], '\0');
}

TEST(RegionPages, TheSecondWriterOfAByteIsRefusedByPageAndByte) {
  Node n;
  ASSERT_TRUE(n.stage(1, 4, 0, with(zero_bytes(kPage), 3, 'x')).value());
  auto refused = n.stage(2, 4, 0, with(zero_bytes(kPage), 3, 'y'));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::write_conflict);
  EXPECT_NE(refused.error().message.find("page 4"), std::string::npos);
  EXPECT_NE(refused.error().message.find("byte 3"), std::string::npos);
  n.pages.apply(txn(1), Version{1}, {{PageNo{4}, 1}});
  EXPECT_EQ(n.stage(3, 4, 0, with(zero_bytes(kPage), 3, 'z')).error().code, Errc::write_conflict);
  EXPECT_TRUE(n.stage(4, 4, 1, with(n.pages.content(PageNo{4}, Version{1}), 3, 'z')).value());
}

TEST(RegionPages, AbortLeavesNothing) {
  Node n;
  ASSERT_TRUE(n.stage(1, 0, 0, filled('a')).value());
  ASSERT_TRUE(n.stage(1, 1, 0, filled('a')).value());
  n.pages.abort(txn(1));
  EXPECT_EQ(n.pages.usage().total(), 0u);
  EXPECT_TRUE(n.stage(2, 0, 0, filled('b')).value());
}

TEST(RegionPages, StagingTheSameTwiceIsAsOnce) {
  Node n;
  ASSERT_TRUE(n.stage(1, 0, 0, filled('a')).value());
  ASSERT_TRUE(n.stage(1, 0, 0, filled('a')).value());
  EXPECT_EQ(n.pages.usage().total(), kPage);
  EXPECT_EQ(n.pages.staged_pages(txn(1)).size(), 1u);
}

TEST(RegionPages, PartsOfAPageAddUp) {
  Node n;
  ASSERT_TRUE(n.pages.stage({txn(1), PageNo{0}, Version{0}, 0, Buffer(Bytes(4, std::byte{'a'}))}).value());
  ASSERT_TRUE(n.pages.stage({txn(1), PageNo{0}, Version{0}, 4, Buffer(Bytes(4, std::byte{'b'}))}).value());
  n.pages.apply(txn(1), Version{1}, {{PageNo{0}, 1}});
  EXPECT_EQ(n.read(0, 1).substr(0, 9), std::string("aaaabbbb\0", 9));
  EXPECT_EQ(n.pages.stage({txn(2), PageNo{0}, Version{1}, kPage - 2, Buffer(Bytes(4))}).error().code,
            Errc::invalid_argument);
}

/// A page that came straight into the slot, filled with `c`; it can be taken as often as one likes.
struct Landed {
  Landed(Node& n, std::uint64_t page, std::uint64_t version, char c) : pages(n.pages), at{page} {
    number = pages.begin_landing(at, Version{version});
    if (number == 0) return;
    const MutableByteSpan place = pages.landing_place(at).value();
    std::ranges::fill(place, static_cast<std::byte>(c));
    bytes = Buffer(place, nullptr);
  }
  void end() const { pages.end_landing(at, number); }
  RegionPages& pages;
  PageNo at;
  std::uint64_t number = 0;  // 0: there was no free slot
  Buffer bytes;
};

TEST(RegionPages, BytesThatLandInASlotAreSeenOnceTheyAreRight) {
  Node n(false);
  ASSERT_TRUE(n.pages.apply(txn(1), Version{1}, {{PageNo{0}, 3}}).empty());
  const Landed zero(n, 0, 1, 'x'), one(n, 1, 1, 'x'), two(n, 2, 1, 'x');
  ASSERT_NE(two.number, 0U);
  EXPECT_EQ(Landed(n, 1, 1, 'y').number, 0U) << "it is taken";
  EXPECT_EQ(n.pages.usage().cached, 3 * kPage);
  EXPECT_EQ(n.read(0, 1), "fetch");
  EXPECT_FALSE(n.pages.has(PageNo{0}, Version{1}));
  EXPECT_EQ(n.pages.evict(kPage), 0U) << "somebody writes there";
  EXPECT_FALSE(n.pages.put(PageNo{0}, Version{1}, filled('y')).value());
  EXPECT_FALSE(n.pages.put(PageNo{0}, Version{1}, one.bytes).value()) << "another page's";

  EXPECT_TRUE(n.pages.put(PageNo{0}, Version{1}, zero.bytes).value());
  zero.end();
  EXPECT_EQ(n.read(0, 1), std::string(kPage, 'x'));
  one.end();
  EXPECT_EQ(n.read(1, 1), "fetch");
  EXPECT_EQ(n.frames.mapped(kPage, 1)[0], std::byte{0}) << "what was wrong is gone";
  n.pages.apply(txn(2), Version{2}, {{PageNo{2}, 1}});
  n.pages.raise_floor(Version{2});
  EXPECT_FALSE(n.pages.put(PageNo{2}, Version{1}, two.bytes).value()) << "nobody may read that version any more";
  two.end();
  EXPECT_EQ(n.pages.usage().cached, kPage);
  EXPECT_EQ(n.pages.slots_filled(), 1U);
  EXPECT_EQ(n.pages.slot_fills().landed, 1U);
  EXPECT_EQ(n.pages.slot_fills().copied, 0U);
  EXPECT_EQ(n.pages.evict(2 * kPage), kPage);
}

TEST(RegionPages, ALandingThatWasTakenIsNotEndedTwice) {
  Node n(false);
  ASSERT_TRUE(n.pages.apply(txn(1), Version{1}, {{PageNo{0}, 1}}).empty());
  const Landed first(n, 0, 1, 'a');
  ASSERT_TRUE(n.pages.put(PageNo{0}, Version{1}, first.bytes).value());
  EXPECT_EQ(n.pages.evict(kPage), kPage);
  const Landed second(n, 0, 1, 'b');
  first.end();
  ASSERT_TRUE(n.pages.put(PageNo{0}, Version{1}, second.bytes).value());
  EXPECT_EQ(n.read(0, 1), std::string(kPage, 'b'));
}

TEST(RegionPages, AnOlderCopyOfAPageThatLivesElsewhereMakesWayForTheNext) {
  for (const bool mapped : {false, true}) {
    Node n(false);
    ASSERT_TRUE(n.pages.apply(txn(1), Version{1}, {{PageNo{0}, 1}}).empty());
    ASSERT_TRUE(n.pages.put(PageNo{0}, Version{1}, filled('a')).value());
    if (mapped) n.map(0, kViewA);
    n.pages.apply(txn(2), Version{2}, {{PageNo{0}, 1}});
    EXPECT_EQ(Landed(n, 0, 1, 'x').number, 0U) << "no newer than what is there";
    const Landed newer(n, 0, 2, 'b');
    ASSERT_NE(newer.number, 0U);
    EXPECT_EQ(n.read(0, 1), "fetch");
    EXPECT_FALSE(n.pages.is_mapped(PageNo{0}, kViewA));
    ASSERT_TRUE(n.pages.put(PageNo{0}, Version{2}, newer.bytes).value());
    EXPECT_EQ(n.read(0, 2), std::string(kPage, 'b'));
    EXPECT_EQ(n.pages.usage().cached, kPage);
    EXPECT_EQ(n.pages.slots_filled(), 1U);
  }
  Node home;
  ASSERT_TRUE(home.stage(1, 0, 0, filled('a')).value());
  home.pages.apply(txn(1), Version{1}, {{PageNo{0}, 1}});
  ASSERT_EQ(home.read(0, 1), std::string(kPage, 'a'));
  home.pages.apply(txn(2), Version{2}, {{PageNo{0}, 1}});
  EXPECT_EQ(Landed(home, 0, 2, 'b').number, 0U) << "what is to be here stays";
}

TEST(RegionPages, ASlotThatIsLandedInIsNoPlaceForAWindowOrACommit) {
  Node n;
  ASSERT_EQ(n.pages.apply(txn(1), Version{1}, {{PageNo{0}, 1}}).size(), 1U);
  const Landed b(n, 0, 1, 'b');
  EXPECT_FALSE(n.open_window(0, 2, 1));
  n.pages.stage_copy(txn(3), PageNo{0}, Version{1}, filled('c'));
  EXPECT_TRUE(n.pages.apply(txn(3), Version{2}, {{PageNo{0}, 1}}).empty());
  EXPECT_EQ(n.read(0, 2), std::string(kPage, 'c'));
  EXPECT_TRUE(n.pages.put(PageNo{0}, Version{1}, b.bytes).value());
  EXPECT_EQ(n.read(0, 1), std::string(kPage, 'b'));
  EXPECT_EQ(n.read(0, 2), std::string(kPage, 'c'));
  n.pages.raise_floor(Version{2});
  EXPECT_EQ(n.pages.usage(), (Usage{.owned = kPage, .extra = 0, .cached = 0}));
}

TEST(RegionPages, WhatIsStagedWhereItLandedIsCommittedWithoutACopy) {
  Node home, backup;
  const Landed here(home, 0, 0, 'a'), there(backup, 0, 0, 'a');
  ASSERT_TRUE(home.stage(1, 0, 0, here.bytes).value());
  backup.pages.stage_copy(txn(1), PageNo{0}, Version{0}, there.bytes);
  for (Node* n : {&home, &backup}) {
    EXPECT_EQ(text(n->pages.staged(txn(1), PageNo{0})), std::string(kPage, 'a'));
    EXPECT_EQ(n->pages.staged_pages(txn(1)), std::vector{PageNo{0}});
    EXPECT_EQ(n->read(0, 0), std::string(kPage, '\0')) << "nobody sees it yet";
    EXPECT_FALSE(n->open_window(0, 2, 0));
    EXPECT_TRUE(n->pages.apply(txn(1), Version{1}, {{PageNo{0}, 1}}).empty());
    EXPECT_EQ(n->read(0, 1), std::string(kPage, 'a'));
    EXPECT_EQ(n->pages.usage(), (Usage{.owned = kPage, .extra = 0, .cached = 0}));
    EXPECT_EQ(n->pages.slot_fills().landed, 1U);
    EXPECT_EQ(n->pages.slot_fills().copied, 0U);
  }
  here.end();
  there.end();
  EXPECT_EQ(home.read(0, 1), std::string(kPage, 'a'));

  // The slot is read now: the next version lies in the buffer that it came in, until somebody maps it.
  home.map(0, kViewA);
  ASSERT_TRUE(home.stage(2, 0, 1, filled('b')).value());
  EXPECT_TRUE(home.pages.apply(txn(2), Version{2}, {{PageNo{0}, 1}}).empty());
  home.pages.forget_view(kViewA);
  home.pages.raise_floor(Version{2});
  EXPECT_EQ(home.pages.slot_fills().copied, 0U);
  EXPECT_EQ(home.read(0, 2), std::string(kPage, 'b'));
  EXPECT_EQ(home.pages.slot_fills().copied, 1U);
}

TEST(RegionPages, WhatIsStagedWhereItLandedMeetsOtherWritersAsElsewhere) {
  Node n;
  const Landed mine(n, 0, 0, 'a');
  ASSERT_TRUE(n.stage(1, 0, 0, mine.bytes).value());
  EXPECT_EQ(n.stage(2, 0, 0, filled('b')).error().code, Errc::write_conflict);
  // The same transaction goes on writing: what was staged counts.
  ASSERT_TRUE(n.pages.stage({txn(1), PageNo{0}, Version{0}, 0, Buffer(Bytes(4, std::byte{'c'}))}).value());
  EXPECT_EQ(text(n.pages.staged(txn(1), PageNo{0})), std::string(4, 'c') + std::string(kPage - 4, 'a'));
  EXPECT_EQ(n.pages.usage().total(), kPage);
  n.pages.abort(txn(1));
  EXPECT_EQ(n.pages.usage().total(), 0U);

  const Landed other(n, 1, 0, 'd');
  ASSERT_TRUE(n.stage(3, 1, 0, other.bytes).value());
  n.pages.abort(txn(3));
  EXPECT_EQ(n.pages.usage().total(), 0U);
  EXPECT_EQ(n.pages.slots_filled(), 0U);
  EXPECT_EQ(n.frames.mapped(kPage, 1)[0], std::byte{0});

  // A home that sends its staged page again has the last word.
  const Landed early(n, 2, 0, 'e');
  n.pages.stage_copy(txn(4), PageNo{2}, Version{0}, early.bytes);
  n.pages.stage_copy(txn(4), PageNo{2}, Version{0}, filled('f'));
  n.pages.apply(txn(4), Version{1}, {{PageNo{2}, 1}});
  EXPECT_EQ(n.read(2, 1), std::string(kPage, 'f'));
  EXPECT_EQ(n.pages.usage(), (Usage{.owned = kPage, .extra = 0, .cached = 0}));
}

TEST(RegionPages, WhatNobodyTookOfALandingIsGone) {
  Node n;
  ASSERT_TRUE(n.stage(1, 0, 0, filled('a')).value());
  n.pages.apply(txn(1), Version{1}, {{PageNo{0}, 1}});
  n.pages.raise_floor(Version{1});
  const Landed same(n, 0, 0, 'a');
  ASSERT_NE(same.number, 0U) << "the page lies in the buffer that it came in";
  EXPECT_FALSE(n.stage(2, 0, 1, same.bytes).value()) << "it changes nothing";
  same.end();
  EXPECT_EQ(n.pages.slots_filled(), 0U);
  EXPECT_EQ(n.read(0, 1), std::string(kPage, 'a'));
}

TEST(RegionPages, AWindowWritesInPlaceAndOthersSeeTheLastVersion) {
  Node n;
  ASSERT_TRUE(n.stage(1, 0, 0, filled('a')).value());
  n.pages.apply(txn(1), Version{1}, {{PageNo{0}, 1}});
  ASSERT_EQ(n.read(0, 1), std::string(kPage, 'a'));
  n.map(0, kViewA | kViewB);

  ASSERT_TRUE(n.open_window(0, 2, 1));
  ASSERT_TRUE(n.frames.write(0, filled('b').span()));
  EXPECT_EQ(n.read(0, 1), std::string(kPage, 'a'));
  EXPECT_TRUE(n.pages.has_open_window(txn(2)));
  n.pages.close_window(PageNo{0});
  ASSERT_TRUE(n.pages.seal_window(PageNo{0}));
  EXPECT_EQ(n.read(0, 1), std::string(kPage, 'a'));
  EXPECT_TRUE(n.pages.apply(txn(2), Version{2}, {{PageNo{0}, 1}}).empty());
  EXPECT_EQ(n.read(0, 1), std::string(kPage, 'a'));
  EXPECT_EQ(n.read(0, 2), std::string(kPage, 'b'));
}

TEST(RegionPages, AnAbortedWindowRollsBack) {
  Node n;
  ASSERT_TRUE(n.stage(1, 0, 0, filled('a')).value());
  n.pages.apply(txn(1), Version{1}, {{PageNo{0}, 1}});
  ASSERT_TRUE(n.open_window(0, 2, 1));
  ASSERT_TRUE(n.open_window(1, 2, 1));
  ASSERT_TRUE(n.frames.write(0, filled('b').span()));
  n.pages.abort(txn(2));
  // The process may write until it lets go: the slot is nobody's until then.
  EXPECT_EQ(n.read(0, 1), std::string(kPage, 'a'));
  EXPECT_FALSE(n.open_window(1, 3, 1));
  n.pages.close_window(PageNo{0});
  n.pages.close_window(PageNo{1});
  EXPECT_EQ(n.read(0, 1), std::string(kPage, 'a'));
  EXPECT_EQ(n.pages.usage(), (Usage{.owned = kPage, .extra = 0, .cached = 0}));
  EXPECT_TRUE(n.open_window(1, 3, 1));
}

TEST(RegionPages, AWindowMergesWithWhatCommittedMeanwhileAndRefusesTheSameByte) {
  Node n;
  ASSERT_TRUE(n.open_window(0, 1, 0));
  ASSERT_TRUE(n.open_window(1, 1, 0));
  ASSERT_TRUE(n.stage(2, 0, 0, with(zero_bytes(kPage), 5, 'p')).value());
  ASSERT_TRUE(n.stage(2, 1, 0, with(zero_bytes(kPage), 6, 'p')).value());
  n.pages.apply(txn(2), Version{1}, {{PageNo{0}, 2}});
  ASSERT_TRUE(n.frames.write(0, with(zero_bytes(kPage), 6, 'w').span()));
  ASSERT_TRUE(n.frames.write(kPage, with(zero_bytes(kPage), 6, 'w').span()));
  n.pages.close_window(PageNo{0});
  n.pages.close_window(PageNo{1});
  EXPECT_TRUE(n.pages.seal_window(PageNo{0}));
  EXPECT_EQ(n.pages.seal_window(PageNo{1}).error().code, Errc::write_conflict);
  EXPECT_TRUE(n.pages.apply(txn(1), Version{2}, {{PageNo{0}, 1}}).empty());
  EXPECT_EQ(n.read(0, 2)[5], 'p');
  EXPECT_EQ(n.read(0, 2)[6], 'w');
  EXPECT_EQ(n.read(1, 2)[6], 'p');
}

TEST(RegionPages, CachedPagesAreDroppedOwnedOnesNot) {
  Node n(false);
  for (std::uint64_t v = 1; v <= 3; ++v) {
    EXPECT_TRUE(n.pages.apply(txn(v), Version{v}, {{PageNo{v}, 1}}).empty());
    EXPECT_EQ(n.read(v, v), "fetch");
    ASSERT_TRUE(n.pages.put(PageNo{v}, Version{v}, filled('c')).value());
    EXPECT_EQ(n.read(v, v), std::string(kPage, 'c'));
  }
  EXPECT_EQ(n.pages.usage().cached, 3 * kPage);
  EXPECT_EQ(n.pages.evict(kPage + 1), 2 * kPage);
  EXPECT_EQ(n.pages.usage().cached, kPage);
  EXPECT_EQ(n.pages.evict(99 * kPage), kPage);
  EXPECT_EQ(n.read(1, 3), "fetch");

  Node owner;
  ASSERT_TRUE(owner.stage(1, 0, 0, filled('a')).value());
  owner.pages.apply(txn(1), Version{1}, {{PageNo{0}, 1}});
  EXPECT_EQ(owner.pages.evict(99 * kPage), 0u);
  owner.owner = false;
  owner.pages.reclassify();
  EXPECT_EQ(owner.pages.evict(99 * kPage), kPage);
}

TEST(RegionPages, AnOwnerWithoutTheStagedBytesSaysWhichPagesItLacks) {
  Node n;
  const auto missing = n.pages.apply(txn(1), Version{1}, {{PageNo{1}, 2}});
  EXPECT_EQ(missing, (std::vector<PageNo>{PageNo{1}, PageNo{2}}));
  EXPECT_EQ(n.read(1, 1), "fetch");
  EXPECT_EQ(n.pages.missing_for_stage(PageNo{1}, Version{1}).value(), std::vector<Version>{Version{1}});
}

TEST(PageHistory, ChangedAndRestart) {
  PageHistory h;
  h.record(Version{1}, {{PageNo{0}, 2}});
  h.record(Version{2}, {{PageNo{2}, 1}});
  h.record(Version{3}, {{PageNo{5}, 1}});
  EXPECT_EQ(h.changed(Version{0}, Version{2}), (std::vector<PageSpan>{{PageNo{0}, 3}}));
  EXPECT_EQ(h.changed(Version{3}, Version{2}), (std::vector<PageSpan>{{PageNo{5}, 1}}));
  h.restart(Version{9});
  h.restore({PageNo{0}, 1}, Version{9});
  h.restore({PageNo{1}, 1}, Version{4});
  EXPECT_EQ(h.version_at(PageNo{1}, Version{5}).value(), Version{4});
  EXPECT_EQ(h.version_at(PageNo{0}, Version{5}).error().code, Errc::snapshot_too_old);
}

TEST(Merge, EdgesOfWords) {
  const Bytes base(300, std::byte{0});
  for (std::size_t at : {0u, 7u, 8u, 255u, 256u, 299u}) {
    Bytes a = base, b = base, target(300, std::byte{9});
    a[at] = std::byte{1};
    b[(at + 1) % 300] = std::byte{1};
    EXPECT_FALSE(first_conflict(base, a, base, b));
    b[at] = std::byte{1};
    EXPECT_EQ(first_conflict(base, a, base, b), at);
    merge_changes(target, base, a);
    EXPECT_EQ(target[at], std::byte{1});
    EXPECT_EQ(target[(at + 1) % 300], std::byte{9});
  }
}

// ---- The model: whole copies of the region per version, and each open transaction as the set of its changes.

struct Model {
  using Image = std::vector<std::uint8_t>;
  std::vector<Image> versions{Image(kPage * kPages, 0)};
  struct Txn {
    std::uint64_t base = 0;
    std::map<std::size_t, std::uint8_t> staged;  // accepted changes
    std::set<std::uint64_t> pages;
  };
  std::map<std::uint64_t, Txn> open;

  // True when `changes` (of txn t, at `base`) touch a byte that someone else changed since.
  bool conflicts(std::uint64_t t, std::uint64_t base, const std::map<std::size_t, std::uint8_t>& changes) const {
    for (const auto& [at, value] : changes) {
      if (versions[base][at] == value) continue;
      for (std::size_t v = base + 1; v < versions.size(); ++v) {
        if (versions[v][at] != versions[v - 1][at]) return true;
      }
      for (const auto& [other, o] : open) {
        if (other != t && o.staged.contains(at)) return true;
      }
    }
    return false;
  }
};

// A home, its backup and a reader go through the same log; what any of them shows at any kept snapshot is the model's
// image.
class History : public ::testing::TestWithParam<int> {};

TEST_P(History, AgreesWithASequentialModel) {
  for (int i = 0; i < 250; ++i) {
    const std::uint64_t seed = static_cast<std::uint64_t>(GetParam()) * 1000 + static_cast<std::uint64_t>(i);
    SCOPED_TRACE(seed);
    Random rnd(seed);
    Model model;
    Node home, backup, reader(false);
    std::uint64_t floor = 0, next = 1;
    struct Arriving {
      Node* node;
      PageNo page;
      Version version;
      Buffer bytes;
      std::uint64_t number;
    };
    std::vector<Arriving> arriving;  // answers that are on their way
    auto finish = [&](std::size_t which) {
      const Arriving a = arriving[which];
      arriving.erase(arriving.begin() + static_cast<long>(which));
      const MutableByteSpan place = a.node->pages.landing_place(a.page).value();
      std::ranges::copy(a.bytes.span(), place.begin());
      if (rnd.chance(3, 4)) {
        const bool kept = a.node->pages.put(a.page, a.version, Buffer(place, nullptr)).value();
        ASSERT_TRUE(!kept || text(a.node->pages.content(a.page, a.version)) == text(a.bytes.span()));
      }
      a.node->pages.end_landing(a.page, a.number);
    };
    // What another node sends comes into the slot, if it is free, or into a buffer.
    auto sent = [&](Node& n, PageNo page, ByteSpan bytes) {
      const std::uint64_t number = rnd.chance(2, 3) ? n.pages.begin_landing(page, Version{}) : 0;
      if (number == 0) return std::pair(Buffer::copy(bytes), number);
      const MutableByteSpan place = n.pages.landing_place(page).value();
      std::ranges::copy(bytes, place.begin());
      return std::pair(Buffer(place, nullptr), number);
    };
    auto send_backup = [&](Node& home_of, Node& n, const TxnId& t, PageNo page, ByteSpan staged) {
      auto [bytes, number] = sent(n, page, staged);
      n.pages.stage_copy(t, page, home_of.pages.staged_base(t, page), std::move(bytes));
      n.pages.end_landing(page, number);
    };
    auto check = [&](Node& n, std::uint64_t page, std::uint64_t snapshot) {
      std::string got = n.read(page, snapshot);
      if (got == "fetch") {
        const Version v = n.pages.history().version_at(PageNo{page}, Version{snapshot}).value();
        ASSERT_NE(&n, &home) << "the home has every version that may be read";
        const Buffer bytes = Buffer::copy(home.pages.content(PageNo{page}, v));
        ASSERT_EQ(bytes.size(), kPage);
        const std::uint64_t number = rnd.chance(1, 2) ? n.pages.begin_landing(PageNo{page}, v) : 0;
        if (number != 0) {
          std::ranges::fill(n.pages.landing_place(PageNo{page}).value(), std::byte{0xEE});
          arriving.push_back({&n, PageNo{page}, v, bytes, number});
        }
        if (!n.pages.put(PageNo{page}, v, bytes).value()) return;
        got = n.read(page, snapshot);
      }
      const auto& image = model.versions[snapshot];
      ASSERT_EQ(got, std::string(image.begin() + static_cast<long>(page * kPage),
                                 image.begin() + static_cast<long>((page + 1) * kPage)))
          << "page " << page << " at " << snapshot;
    };
    for (int step = 0; step < 60 && !HasFatalFailure(); ++step) {
      const std::uint64_t newest = model.versions.size() - 1;
      if (!arriving.empty() && rnd.chance(1, 2)) finish(rnd.below(arriving.size()));
      switch (rnd.below(8)) {
        case 0: {  // begin
          if (model.open.size() < 4) model.open[next++].base = floor + rnd.below(newest - floor + 1);
          break;
        }
        case 1:
        case 2:
        case 3: {  // write some bytes of a page
          if (model.open.empty()) break;
          auto it = std::next(model.open.begin(), static_cast<long>(rnd.below(model.open.size())));
          auto& [t, m] = *it;
          const std::uint64_t page = rnd.below(kPages);
          const auto& base = model.versions[m.base];
          std::map<std::size_t, std::uint8_t> changes;
          Bytes bytes(kPage);
          for (std::size_t k = 0; k < kPage; ++k) {
            const std::size_t at = page * kPage + k;
            auto mine = m.staged.find(at);
            std::uint8_t value = mine == m.staged.end() ? base[at] : mine->second;
            if (rnd.chance(1, 10)) value = static_cast<std::uint8_t>(1 + rnd.below(200));
            bytes[k] = std::byte{value};
            if (value != base[at]) changes[at] = value;
          }
          const bool refused = model.conflicts(t, m.base, changes);
          auto [came, number] = sent(home, PageNo{page}, bytes);
          auto got = home.stage(t, page, m.base, came);
          home.pages.end_landing(PageNo{page}, number);
          ASSERT_EQ(!got, refused) << (got ? "" : got.error().message);
          if (refused) {
            ASSERT_EQ(got.error().code, Errc::write_conflict);
            break;
          }
          if (*got) {
            for (auto [at, v] : changes) m.staged[at] = v;
            m.pages.insert(page);
            send_backup(home, backup, txn(t), PageNo{page}, home.pages.staged(txn(t), PageNo{page}));
          }
          break;
        }
        case 4: {  // commit
          if (model.open.empty()) break;
          auto it = std::next(model.open.begin(), static_cast<long>(rnd.below(model.open.size())));
          Model::Image image = model.versions.back();
          for (auto [at, v] : it->second.staged) image[at] = v;
          model.versions.push_back(image);
          std::vector<PageNo> pages;
          for (std::uint64_t p : it->second.pages) pages.push_back(PageNo{p});
          const auto spans = to_spans(pages);
          const Version version{model.versions.size() - 1};
          ASSERT_TRUE(home.pages.apply(txn(it->first), version, spans).empty());
          // The backup may lack old bases; it says so, and fetches.
          for (PageNo p : backup.pages.apply(txn(it->first), version, spans)) {
            ASSERT_TRUE(backup.pages.put(p, version, Buffer::copy(home.pages.content(p, version))).value());
          }
          reader.pages.apply(txn(it->first), version, spans);
          model.open.erase(it);
          break;
        }
        case 5: {  // abort
          if (model.open.empty() || rnd.chance(1, 2)) break;
          auto it = model.open.begin();
          home.pages.abort(txn(it->first));
          backup.pages.abort(txn(it->first));
          model.open.erase(it);
          break;
        }
        case 6: {  // raise the floor, or drop cached pages
          std::uint64_t limit = newest;
          for (auto& [t, m] : model.open) limit = std::min(limit, m.base);
          if (limit > floor) floor += rnd.below(limit - floor + 1);
          for (Node* n : {&home, &backup, &reader}) n->pages.raise_floor(Version{floor});
          if (rnd.chance(1, 3)) reader.pages.evict(kPage * (1 + rnd.below(3)));
          break;
        }
        default: {  // a window writes one byte in place, commits or aborts
          const std::uint64_t page = rnd.below(kPages), t = next++;
          const std::uint64_t base = floor + rnd.below(newest - floor + 1);
          if (!home.open_window(page, t, base)) break;
          const std::size_t at = page * kPage + rnd.below(kPage);
          const std::uint8_t value = static_cast<std::uint8_t>(201 + rnd.below(50));
          Model::Image& basis = model.versions[base];
          Bytes slot(kPage);
          for (std::size_t k = 0; k < kPage; ++k) slot[k] = std::byte{basis[page * kPage + k]};
          slot[at - page * kPage] = std::byte{value};
          ASSERT_TRUE(home.frames.write(page * kPage, slot));
          check(home, page, newest);
          home.pages.close_window(PageNo{page});
          ASSERT_TRUE(home.pages.seal_window(PageNo{page}));  // Nobody else wrote: opening demanded that.
          if (rnd.chance(1, 3)) {
            home.pages.abort(txn(t));
            break;
          }
          send_backup(home, backup, txn(t), PageNo{page}, home.pages.window_bytes(PageNo{page}));
          Model::Image image = model.versions.back();
          image[at] = value;
          model.versions.push_back(image);
          const Version version{model.versions.size() - 1};
          for (Node* n : {&home, &backup, &reader}) {
            for (PageNo p : n->pages.apply(txn(t), version, {{PageNo{page}, 1}})) {
              ASSERT_EQ(n, &backup);
              ASSERT_TRUE(n->pages.put(p, version, Buffer::copy(home.pages.content(p, version))).value());
            }
          }
          break;
        }
      }
      for (int looks = 0; looks < 3 && !HasFatalFailure(); ++looks) {
        const std::uint64_t snapshot = floor + rnd.below(model.versions.size() - floor);
        const std::uint64_t page = rnd.below(kPages);
        check(home, page, snapshot);
        check(backup, page, snapshot);
        check(reader, page, snapshot);
        if (auto r = home.pages.resolve(PageNo{page}, Version{snapshot}); r && r->where == Resolution::Where::slot) {
          home.map(page, rnd.chance(1, 2) ? kViewA : kViewB);
        }
      }
    }
    while (!arriving.empty() && !HasFatalFailure()) finish(0);
    if (HasFatalFailure()) return;
    for (auto& [t, m] : model.open) {
      home.pages.abort(txn(t));
      backup.pages.abort(txn(t));
    }
    for (Node* n : {&home, &backup}) {
      n->pages.raise_floor(Version{model.versions.size() - 1});
      ASSERT_EQ(n->pages.usage().extra, 0u) << "nothing but one copy of each written page is left";
      ASSERT_EQ(n->pages.usage().owned, n->pages.history().pages_written() * kPage);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Seeds, History, ::testing::Range(0, 16));

}  // namespace
}  // namespace holo::memory
