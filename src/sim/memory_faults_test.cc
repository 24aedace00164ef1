// Page faults on several nodes against a model: whatever a process is given of a page is what its snapshot shows.
#include <gtest/gtest.h>
#include <unistd.h>

#include <set>

#include "base/random.h"
#include "sim/memory_testing.h"

namespace holo::sim {
namespace {

constexpr std::uint64_t kPages = 48;

struct Faulting {
  std::uint64_t page_bytes;
  MemoryCluster c;
  RegionId region;
  Random rnd;
  std::vector<std::string> model{std::string(kPages, '\0')};  // by version: the letter that fills each page
  std::uint64_t given = 0;

  struct Mapped {
    std::uint64_t n = 0, snapshot = 0, id = 0;
    std::shared_ptr<TestSession> session;
    std::shared_ptr<FakeMapping> mapping;
    std::set<std::uint64_t> waits;  // pages that somebody has touched
  };
  std::vector<std::shared_ptr<Mapped>> views;

  Faulting(std::uint64_t seed, std::uint32_t replication, std::uint64_t bytes = 4096)
      : page_bytes(bytes),
        c(4, seed, {.limit_bytes = kPages * bytes}),
        region(c.create(kPages, replication, bytes, 8)),
        rnd(seed) {}

  void write(std::uint64_t n) {
    const std::uint64_t first = rnd.below(kPages);
    write(n, first, 1 + rnd.below(std::min<std::uint64_t>(kPages - first, 20)));
  }
  void write(std::uint64_t n, std::uint64_t first, std::uint64_t count) {
    write(n, first, count, static_cast<char>('a' + model.size() % 26));
  }
  void write(std::uint64_t n, std::uint64_t first, std::uint64_t count, char letter) {
    auto session = c.session();
    std::string next = model.back();
    wire::Stage stage;
    stage.set_region(region.value);
    stage.set_base(model.size() - 1);
    stage.set_offset(first * page_bytes);
    const auto staged =
        c.call(n, session, wire::STAGE, stage, Bytes(count * page_bytes, static_cast<std::byte>(letter)));
    if (!staged && page_bytes > 4096) return c.close(n, *session);  // Full of versions that views stand on.
    ASSERT_TRUE(staged) << staged.error().message;
    wire::StageReply txn;
    ASSERT_TRUE(txn.ParseFromString(staged->header));
    wire::Commit commit;
    *commit.mutable_txn() = txn.txn();
    commit.add_regions(region.value);
    ASSERT_TRUE(c.call(n, session, wire::COMMIT, commit));
    model.push_back(next.replace(first, count, count, letter));
  }

  void open(std::uint64_t n) {
    auto m = std::make_shared<Mapped>();
    m->n = n;
    m->session = c.session();
    wire::ViewOpen ask;
    ask.set_region(region.value);
    ask.set_snapshot(model.size() - 1);
    ask.set_length(kPages * page_bytes);
    std::vector<env::Fd> fds;
    fds.emplace_back(::dup(STDERR_FILENO));
    const auto opened = c.call(n, m->session, wire::VIEW_OPEN, ask, {}, std::move(fds));
    ASSERT_TRUE(opened) << opened.error().message;
    wire::ViewOpenReply reply;
    ASSERT_TRUE(reply.ParseFromString(opened->header));
    m->id = reply.view();
    m->snapshot = model.size() - 1;
    m->mapping = c.members[n - 1]->faults.last;
    m->mapping->frames = &c.members[n - 1]->frames.of(region);
    m->mapping->on_given = [this, weak = std::weak_ptr<Mapped>(m)](std::uint64_t offset, ByteSpan bytes) {
      const auto view = weak.lock();
      for (std::uint64_t at = 0; view && at < bytes.size(); at += page_bytes) {
        const std::uint64_t page = (offset + at) / page_bytes;
        const std::string expected(page_bytes, model[view->snapshot][page]);
        EXPECT_EQ(as_text(bytes.subspan(at, page_bytes)) == expected, true)
            << "page " << page << " on node " << view->n;
        view->waits.erase(page);
        ++given;
      }
    };
    views.push_back(std::move(m));
  }

  /// Several threads of several programs at once, neighbours often.
  void touch() {
    for (std::uint64_t i = 1 + rnd.below(4); i > 0 && !views.empty(); --i) {
      Mapped& view = *views[rnd.below(views.size())];
      const std::uint64_t first = rnd.below(kPages);
      for (std::uint64_t page = first; page < std::min(kPages, first + 1 + rnd.below(rnd.chance(1, 3) ? 20 : 4));
           ++page) {
        view.waits.insert(page);
        view.mapping->fault({{.offset = page * page_bytes}});
        if (rnd.chance(1, 2)) c.settle(microseconds(static_cast<std::int64_t>(rnd.below(400))));
      }
    }
  }
  /// All of a range at once, as before a system call that reads it.
  void populate() {
    if (views.empty()) return;
    const std::uint64_t first = rnd.below(kPages), count = 1 + rnd.below(kPages - first);
    populate(*views[rnd.below(views.size())], first, count);
  }
  void populate(Mapped& view, std::uint64_t first, std::uint64_t count) {
    wire::ViewPopulate ask;
    ask.set_view(view.id);
    ask.mutable_pages()->set_first(first);
    ask.mutable_pages()->set_count(count);
    const auto done = c.call(view.n, view.session, wire::VIEW_POPULATE, ask);
    EXPECT_TRUE(done) << done.error().message;
  }
  /// Programs on all nodes, `rounds` times.
  void read_everywhere(int rounds) {
    for (std::uint64_t n = 1; n <= 4; ++n) open(n);
    for (int i = 0; i < rounds; ++i) {
      touch();
      wait();
    }
  }
  void wait() {
    const bool done = c.world.run_while_not(
        [&] { return std::ranges::all_of(views, [](const auto& v) { return v->waits.empty(); }); },
        c.world.now() + seconds(30));
    ASSERT_TRUE(done) << "somebody waits for ever";
    for (const auto& v : views) EXPECT_TRUE(v->session->notices.empty());
  }
  void close(std::size_t which) {
    c.close(views[which]->n, *views[which]->session);
    views.erase(views.begin() + static_cast<std::ptrdiff_t>(which));
  }
  node::MemoryCounters sum() {
    node::MemoryCounters out;
    for (const auto& m : c.members) {
      const auto one = m->memory->status().counters;
      out.pages_fetched += one.pages_fetched;
      out.pages_landed += one.pages_landed;
      out.corrupt_refused += one.corrupt_refused;
      out.evicted += one.evicted;
    }
    return out;
  }
};

TEST(MemoryFaults, APageGoesFromTheWireIntoItsSlot) {
  Faulting f(1, 1);
  for (int i = 0; i < 6; ++i) f.write(1);
  const auto before = f.sum();
  f.read_everywhere(30);
  const auto sum = f.sum();
  EXPECT_GT(sum.pages_fetched, before.pages_fetched + 10);
  EXPECT_EQ(sum.pages_landed - before.pages_landed, sum.pages_fetched - before.pages_fetched);
  EXPECT_EQ(sum.evicted, 0U);
}

TEST(MemoryFaults, PagesLandAlsoWhereOthersOfTheAnswerAreZeros) {
  Faulting f(3, 1);
  f.write(1, 0, kPages);
  for (std::uint64_t page = 3; page < kPages; page += 8) f.write(1, page, 1, '\0');  // One in each block.
  const auto before = f.sum();
  for (std::uint64_t n = 1; n <= 4; ++n) {
    f.open(n);
    f.populate(*f.views.back(), 0, kPages);  // A block in each request.
  }
  const auto sum = f.sum();
  const std::uint64_t fetched = sum.pages_fetched - before.pages_fetched,
                      landed = sum.pages_landed - before.pages_landed;
  EXPECT_GT(fetched, 40U);
  EXPECT_LT(landed, fetched);
  EXPECT_GT(landed, fetched * 3 / 4);
}

TEST(MemoryFaults, WrongBytesThatLandedAreNeverSeen) {
  Faulting f(2, 2);
  for (int i = 0; i < 6; ++i) f.write(1);
  f.c.network.faults().flip_per_thousand = 300;
  f.read_everywhere(40);
  const auto sum = f.sum();
  EXPECT_GT(sum.corrupt_refused, 0U);
  EXPECT_GT(sum.pages_landed, 0U);
}

/// Little memory, commits under readers at older snapshots, lost and altered messages, programs that end while they
/// wait.
class RandomFaults : public ::testing::TestWithParam<int> {};
TEST_P(RandomFaults, AgreeWithTheModel) {
  const auto seed = static_cast<std::uint64_t>(GetParam());
  SCOPED_TRACE(seed);
  // A node's working memory beside what is its own is 4 MiB at least: a third of what the large pages take.
  Faulting f(seed, 2, seed % 2 == 0 ? 256 << 10 : 4096);
  f.c.network.faults().flip_per_thousand = static_cast<std::uint32_t>(f.rnd.below(50));
  f.c.network.faults().loss_per_thousand = static_cast<std::uint32_t>(f.rnd.below(20));
  f.c.network.faults().break_after = milliseconds(20);
  for (int step = 0; step < 30 && !::testing::Test::HasFailure(); ++step) {
    switch (f.rnd.below(5)) {
      case 0: {
        const auto bad = std::exchange(f.c.network.faults(), {});
        f.write(1 + f.rnd.below(4));
        f.c.network.faults() = bad;
        break;
      }
      case 1:
        if (f.views.size() < 6) f.open(1 + f.rnd.below(4));
        break;
      case 2:
        if (f.rnd.chance(1, 3)) {
          f.wait();
          f.populate();
          break;
        }
        [[fallthrough]];
      default: f.touch();
    }
    if (f.rnd.chance(1, 2)) f.wait();
    if (!f.views.empty() && f.rnd.chance(1, 6)) f.close(f.rnd.below(f.views.size()));
  }
  if (!::testing::Test::HasFailure()) f.wait();
  // Nothing of what was on its way is left taken: once every page has a newer version, nobody has an older one.
  while (!f.views.empty()) f.close(0);
  f.c.network.faults() = {};
  for (std::uint64_t first = 0; first < kPages && !::testing::Test::HasFailure(); first += 8) {
    f.c.settle(seconds(12));
    const std::size_t before = f.model.size();
    f.write(1, first, 8);
    ASSERT_EQ(f.model.size(), before + 1);
  }
  f.c.settle(seconds(2));
  for (const auto& m : f.c.members) EXPECT_EQ(m->memory->status().cached_bytes, 0U) << "node " << m->id.value;
}
INSTANTIATE_TEST_SUITE_P(Seeds, RandomFaults, ::testing::Range(1, 101));

}  // namespace
}  // namespace holo::sim
