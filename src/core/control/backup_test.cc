#include "core/control/backup.h"

#include <gtest/gtest.h>

#include "core/control/state_testing.h"
#include "crypto/hash.h"

namespace holo::control::testing {
namespace {

wire::CommandBody put(const std::string& key, const std::string& value, std::uint64_t lease = 0) {
  wire::CommandBody b;
  auto* p = b.mutable_kv()->add_then()->mutable_put();
  p->set_key(key);
  p->set_value(value);
  p->set_lease(lease);
  return b;
}

/// Three nodes, a region of two copies with something in it, keys, a lease, a lock.
void fill(Rig& rig) {
  rig.cluster(3);
  wire::CommandBody b = Rig::region_body("xs");
  b.mutable_create_region()->mutable_region()->set_replication(2);
  const std::uint64_t region = rig.send(b).region();
  wire::CommandBody commit;
  commit.mutable_commit()->set_epoch(rig.state.epoch().value);
  auto* txn = commit.mutable_commit()->add_txns();
  txn->mutable_txn()->set_node(1);
  txn->mutable_txn()->set_incarnation(1);
  txn->mutable_txn()->set_sequence(1);
  auto* pages = txn->add_regions();
  pages->set_region(region);
  pages->add_pages()->set_count(1);
  ASSERT_EQ(rig.send(commit).txns(0).error().code(), 0u);
  wire::CommandBody grant;
  grant.mutable_lease_grant()->set_ttl_ms(5000);
  const std::uint64_t lease = rig.send(grant).lease();
  wire::CommandBody lock;
  lock.mutable_lock_acquire()->set_name("l");
  lock.mutable_lock_acquire()->set_lease(lease);
  ASSERT_NE(rig.send(lock).lock().token(), 0u);
  ASSERT_EQ(rig.send(put("a", "1")).error().code(), 0u);
  ASSERT_EQ(rig.send(put("a", "2")).error().code(), 0u);
  ASSERT_EQ(rig.send(put("b", "leased", lease)).error().code(), 0u);
}

Bytes backup_of(const State& state) {
  const Bytes bytes = state.snapshot();
  Bytes file = encode_backup_header(describe_backup(state, bytes));
  file.insert(file.end(), bytes.begin(), bytes.end());
  return file;
}

wire::CommandResult restore(Rig& rig, ByteSpan state, std::size_t part = SIZE_MAX) {
  wire::CommandResult result;
  for (std::size_t at = 0;;) {
    const std::size_t size = std::min(part, state.size() - at);
    wire::CommandBody b;
    b.mutable_restore_part()->set_offset(at);
    b.mutable_restore_part()->set_bytes(state.data() + at, size);
    at += size;
    if (at == state.size()) {
      const auto digest = crypto::blake3(state);
      b.mutable_restore_part()->set_digest(digest.data(), digest.size());
    }
    result = rig.send(b, 9, 4);
    if (at == state.size() || result.error().code() != 0) return result;
  }
}

/// A new cluster whose first node is number 9.
void begin(Rig& rig) {
  wire::CommandBody b;
  b.mutable_cluster_init()->set_cluster(88);
  b.mutable_cluster_init()->set_name("new");
  *b.mutable_cluster_init()->mutable_node() = info(9, 256 * kMiB, 4);
  ASSERT_EQ(rig.send(b, 9, 4).error().code(), 0u);
}

TEST(Backup, RoundTrip) {
  Rig rig;
  fill(rig);
  const Bytes file = backup_of(rig.state);
  const auto backup = decode_backup(file);
  ASSERT_TRUE(backup) << backup.error().message;
  EXPECT_EQ(backup->header.cluster(), 77u);
  EXPECT_EQ(backup->header.name(), "test");
  EXPECT_EQ(backup->header.keys(), 3u);  // With the one that says who has the lock.
  State copy;
  ASSERT_TRUE(copy.restore(LogIndex{backup->header.log_index()}, backup->state));
  EXPECT_EQ(copy.snapshot(), rig.state.snapshot());
}

TEST(Backup, EveryAlteredByteAndEveryCutIsRefused) {
  Rig rig;
  fill(rig);
  const Bytes file = backup_of(rig.state);
  for (std::size_t i = 0; i < file.size(); ++i) {
    Bytes altered = file;
    altered[i] ^= std::byte{0x10};
    EXPECT_FALSE(decode_backup(altered)) << "byte " << i;
    EXPECT_FALSE(decode_backup(ByteSpan(file).first(i))) << "cut at " << i;
  }
  Bytes longer = file;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(decode_backup(longer));
}

TEST(Backup, ANewClusterGoesOnFromIt) {
  Rig old;
  fill(old);
  for (const std::size_t part : {SIZE_MAX, std::size_t{7}}) {
    Rig rig;
    begin(rig);
    ASSERT_EQ(restore(rig, old.state.snapshot(), part).error().code(), 0u);
    const State& s = rig.state;
    EXPECT_EQ(s.cluster(), ClusterId{88});
    EXPECT_EQ(s.cluster_name(), "new");
    EXPECT_EQ(s.live_nodes(), (std::vector<NodeId>{NodeId{9}}));
    EXPECT_EQ(s.nodes().size(), 1u) << "the old ones are not members";
    EXPECT_GT(s.epoch(), old.state.epoch());
    wire::KvGet get;
    get.mutable_range()->set_key("a");
    const auto page = s.keys().range(get);
    ASSERT_TRUE(page);
    EXPECT_EQ(page->pairs(0).value(), "2");
    // Its leases have their whole time, its lock its holder.
    EXPECT_EQ(s.leases().list(s.now()).leases(0).left_ms(), 5000u);
    EXPECT_EQ(s.leases().locks(s.keys()).locks_size(), 1);
    // The region is there; what was written in it is known to be lost, not zero.
    const RegionRecord* xs = s.region_by_name("xs");
    ASSERT_NE(xs, nullptr);
    EXPECT_EQ(s.version_of(xs->id, PageNo{0}), Version{1});
    EXPECT_EQ(s.home(xs->id, PageNo{0}), NodeId{9});
    // Later commands act, a snapshot of it is one.
    ASSERT_EQ(rig.send(put("c", "3"), 9, 4).error().code(), 0u);
    State copy;
    ASSERT_TRUE(copy.restore(s.applied(), s.snapshot()));
    EXPECT_EQ(copy.snapshot(), s.snapshot());
  }
}

/// The old cluster may have gone on after the copy was made: what it told anybody then must mean nothing here.
TEST(Backup, NothingOfTheOldClustersLaterLifeIsValid) {
  Rig old;
  fill(old);
  const Bytes state = old.state.snapshot();
  ASSERT_EQ(old.send(put("a", "later")).error().code(), 0u);
  const std::uint64_t later = old.state.keys().revision();
  Rig rig;
  begin(rig);
  ASSERT_EQ(restore(rig, state).error().code(), 0u);
  wire::KvWatch watch;
  watch.mutable_range()->set_key("a");
  watch.set_from(later);
  EXPECT_EQ(rig.state.keys().events(watch).error().code, Errc::snapshot_too_old);
  const auto written = rig.send(put("a", "new"), 9, 4);
  EXPECT_GT(written.kv().revision(), later + 1000);
}

TEST(Backup, OnlyANewClusterIsRestoredInto) {
  Rig old;
  fill(old);
  const Bytes state = old.state.snapshot();
  EXPECT_EQ(restore(old, state).error().code(), static_cast<std::uint32_t>(Errc::refused));
  Rig used;
  begin(used);
  ASSERT_EQ(used.send(put("k", "v"), 9, 4).error().code(), 0u);
  EXPECT_EQ(restore(used, state).error().code(), static_cast<std::uint32_t>(Errc::refused));
}

TEST(Backup, PartsThatDoNotFitChangeNothing) {
  Rig old;
  fill(old);
  Rig rig;
  begin(rig);
  const Bytes before = rig.state.snapshot();
  wire::CommandBody b;
  b.mutable_restore_part()->set_offset(5);
  EXPECT_NE(rig.send(b, 9, 4).error().code(), 0u);
  Bytes altered = old.state.snapshot();
  wire::CommandBody whole;
  whole.mutable_restore_part()->set_bytes(altered.data(), altered.size());
  whole.mutable_restore_part()->set_digest(std::string(32, 'x'));
  EXPECT_EQ(rig.send(whole, 9, 4).error().code(), static_cast<std::uint32_t>(Errc::corrupt));
  // Bytes that are what was sent, and no state: the cluster stays as it was.
  const Bytes nonsense(100, std::byte{0xff});
  EXPECT_EQ(restore(rig, nonsense).error().code(), static_cast<std::uint32_t>(Errc::corrupt));
  EXPECT_EQ(rig.state.cluster(), ClusterId{88});
  EXPECT_EQ(rig.state.keys().revision(), 0u);
  EXPECT_EQ(restore(rig, old.state.snapshot()).error().code(), 0u);
}

TEST(Backup, NobodyJoinsWhileItIsGoingOn) {
  Rig old;
  fill(old);
  Rig rig;
  begin(rig);
  const Bytes state = old.state.snapshot();
  wire::CommandBody b;
  b.mutable_restore_part()->set_bytes(state.data(), 10);
  ASSERT_EQ(rig.send(b, 9, 4).error().code(), 0u);
  wire::CommandBody join;
  *join.mutable_node_join()->mutable_node() = info(2);
  EXPECT_EQ(rig.send(join, 9, 4).error().code(), static_cast<std::uint32_t>(Errc::unavailable));
  // What is under way is part of the state.
  State copy;
  ASSERT_TRUE(copy.restore(rig.state.applied(), rig.state.snapshot()));
  EXPECT_EQ(copy.snapshot(), rig.state.snapshot());
  // Also of the stream that a node which comes later gets: it ends as the others do.
  Rig late;
  const auto load = late.state.load();
  const auto cut = rig.state.cut();
  for (;;) {
    const auto piece = cut->next(100);
    ASSERT_TRUE(piece);
    if (piece->empty()) break;
    ASSERT_TRUE(load->add(*piece));
  }
  ASSERT_TRUE(load->finish(rig.state.applied()));
  EXPECT_EQ(late.state.snapshot(), rig.state.snapshot());
}

}  // namespace
}  // namespace holo::control::testing
