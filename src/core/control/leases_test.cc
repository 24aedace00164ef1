#include "core/control/leases.h"

#include <gtest/gtest.h>

#include "base/limits.h"
#include "core/control/state_testing.h"

namespace holo::control {
namespace {

/// Leases and keys beside each other, on a clock that the test moves.
struct Table {
  KeySpace keys;
  Leases leases;
  WallTime now{1'000'000};

  std::uint64_t grant(std::uint64_t ttl_ms = 5000, const std::string& owner = "someone") {
    wire::LeaseGrant c;
    c.set_ttl_ms(ttl_ms);
    c.set_owner(owner);
    const auto lease = leases.grant(c, now);
    EXPECT_TRUE(lease);
    return lease.value_or(0);
  }
  Result<wire::LockPlace> acquire(const std::string& name, std::uint64_t lease, bool queue = true) {
    wire::LockAcquire c;
    c.set_name(name);
    c.set_lease(lease);
    c.set_queue(queue);
    return leases.acquire(c, keys);
  }
  Status release(const std::string& name, std::uint64_t lease) {
    wire::LockRelease c;
    c.set_name(name);
    c.set_lease(lease);
    return leases.release(c, keys);
  }
  void pass(std::int64_t ms) {
    now.ms += ms;
    leases.expire(now, keys);
  }
  std::uint64_t token(const std::string& name) { return keys.modified(lock_key(name)); }
  Status put(const std::string& key, std::uint64_t lease) {
    wire::KvTxn t;
    auto* p = t.add_then()->mutable_put();
    p->set_key(key);
    p->set_lease(lease);
    if (auto done = keys.apply(t); !done) return std::unexpected(done.error());
    if (lease != 0) leases.attach(lease, key);
    return {};
  }
};

TEST(Leases, EndWhenTheyAreNotKept) {
  Table t;
  const auto a = t.grant(5000);
  const auto b = t.grant(5000);
  t.pass(4000);
  ASSERT_TRUE(t.leases.keep(a, t.now));
  EXPECT_EQ(t.leases.info(a, t.now).left_ms(), 5000u);
  EXPECT_EQ(t.leases.info(b, t.now).left_ms(), 1000u);
  t.pass(999);
  EXPECT_TRUE(t.leases.exists(b));
  t.pass(1);
  EXPECT_FALSE(t.leases.exists(b)) << "its time has come";
  EXPECT_TRUE(t.leases.exists(a));
  EXPECT_EQ(t.leases.keep(b, t.now).error().code, Errc::not_found);
  t.pass(5000);
  EXPECT_EQ(t.leases.next_deadline(), Leases::kNoTime);
}

TEST(Leases, ANewLeaderGivesEachItsWholeTime) {
  Table t;
  const auto a = t.grant(5000);
  t.now.ms += 3'600'000;  // The new leader's clock is an hour ahead, and nothing has expired yet.
  t.leases.extend(t.now);
  t.pass(4999);
  EXPECT_TRUE(t.leases.exists(a));
}

TEST(Leases, TakeTheirKeysWithThem) {
  Table t;
  const auto a = t.grant();
  ASSERT_TRUE(t.put("x", a));
  ASSERT_TRUE(t.put("y", a));
  ASSERT_TRUE(t.put("y", 0));  // Written anew: it stays.
  const auto before = t.keys.revision();
  t.pass(5000);
  EXPECT_EQ(t.keys.modified("x"), 0u);
  EXPECT_NE(t.keys.modified("y"), 0u);
  EXPECT_EQ(t.keys.revision(), before + 1) << "one revision for all of them";
}

TEST(Leases, BadOnesAreRefused) {
  Table t;
  const auto refused = [&](std::uint64_t ttl, const std::string& owner) {
    wire::LeaseGrant c;
    c.set_ttl_ms(ttl);
    c.set_owner(owner);
    const auto lease = t.leases.grant(c, t.now);
    return lease ? Errc::internal : lease.error().code;
  };
  EXPECT_EQ(refused(999, ""), Errc::invalid_argument);
  EXPECT_EQ(refused(UINT64_MAX, ""), Errc::invalid_argument);
  EXPECT_EQ(refused(5000, std::string(limits::kMaxLeaseOwner + 1, 'x')), Errc::invalid_argument);
  EXPECT_EQ(refused(5000, "\xff"), Errc::invalid_argument);
  EXPECT_EQ(t.acquire("l", 99).error().code, Errc::not_found);
  EXPECT_EQ(t.acquire("", t.grant()).error().code, Errc::invalid_argument);
  EXPECT_EQ(t.acquire("a b", t.grant()).error().code, Errc::invalid_argument);
}

TEST(Locks, GoInOrderEachWithALargerToken) {
  Table t;
  const auto a = t.grant(5000, "a"), b = t.grant(5000, "b"), c = t.grant(5000, "c");
  const auto first = t.acquire("l", a);
  ASSERT_TRUE(first);
  EXPECT_NE(first->token(), 0u);
  EXPECT_EQ(t.acquire("l", b)->ahead(), 1u);
  EXPECT_EQ(t.acquire("l", c)->ahead(), 2u);
  EXPECT_EQ(t.acquire("l", b)->ahead(), 1u) << "asking again changes nothing";
  EXPECT_EQ(t.acquire("l", t.grant(), false).error().code, Errc::refused);
  EXPECT_EQ(t.leases.locks(t.keys).locks(0).places(1).owner(), "b");

  ASSERT_TRUE(t.release("l", a));
  const auto second = t.leases.place("l", b, t.keys);
  EXPECT_GT(second->token(), first->token());
  EXPECT_EQ(t.token("l"), second->token());
  ASSERT_TRUE(t.leases.end(b, t.keys));
  EXPECT_GT(t.leases.place("l", c, t.keys)->token(), second->token());
  ASSERT_TRUE(t.release("l", c));
  EXPECT_EQ(t.token("l"), 0u) << "nobody has it";
  EXPECT_EQ(t.release("l", c).error().code, Errc::not_found);
}

TEST(Locks, WhoGivesUpWaitingLeavesTheLine) {
  Table t;
  const auto a = t.grant(), b = t.grant(), c = t.grant();
  const auto token = t.acquire("l", a)->token();
  t.acquire("l", b).value();
  t.acquire("l", c).value();
  ASSERT_TRUE(t.release("l", b));
  EXPECT_EQ(t.token("l"), token) << "the holder has not changed";
  EXPECT_EQ(t.leases.place("l", c, t.keys)->ahead(), 1u);
}

TEST(Locks, AStaleTokenDoesNotPassAComparison) {
  Table t;
  const auto a = t.grant(2000), b = t.grant(60000);
  const auto old = t.acquire("l", a)->token();
  t.acquire("l", b).value();
  t.pass(2000);  // a was paused for longer than its lease.
  const auto fenced = [&](std::uint64_t token) {
    wire::KvTxn txn;
    auto* compare = txn.add_compares();
    compare->set_key(lock_key("l"));
    compare->set_target(wire::KvCompare::MODIFIED);
    compare->set_number(token);
    txn.add_then()->mutable_put()->set_key("data");
    return t.keys.apply(txn)->succeeded();
  };
  EXPECT_FALSE(fenced(old));
  EXPECT_TRUE(fenced(t.leases.place("l", b, t.keys)->token()));
}

TEST(Locks, NobodyElseWritesTheirKeys) {
  Table t;
  const auto token = t.acquire("l", t.grant())->token();
  EXPECT_EQ(t.put(lock_key("l"), 0).error().code, Errc::permission_denied);
  wire::KvTxn all;
  auto* range = all.add_then()->mutable_delete_()->mutable_range();
  range->set_key(std::string(1, '\0'));
  range->set_end(std::string(1, '\0'));
  EXPECT_EQ(t.keys.apply(all)->results(0).deleted(), 0u);
  EXPECT_EQ(t.token("l"), token);
}

TEST(Leases, ASnapshotIsTheSameTable) {
  testing::Rig rig;
  rig.cluster(2);
  const auto send = [&](auto fill) {
    wire::CommandBody b;
    fill(b);
    const auto result = rig.send(b);
    EXPECT_EQ(result.error().code(), 0u) << result.error().message();
    return result;
  };
  std::vector<std::uint64_t> leases;
  for (int i = 0; i < 3; ++i) {
    leases.push_back(send([](auto& b) { b.mutable_lease_grant()->set_ttl_ms(5000); }).lease());
    send([&](auto& b) {
      b.mutable_lock_acquire()->set_name("l");
      b.mutable_lock_acquire()->set_lease(leases.back());
      b.mutable_lock_acquire()->set_queue(true);
    });
    send([&](auto& b) {
      auto* p = b.mutable_kv()->add_then()->mutable_put();
      p->set_key("k" + std::to_string(i));
      p->set_lease(leases.back());
    });
  }
  State again;
  const Bytes snapshot = rig.state.snapshot();
  ASSERT_TRUE(again.restore(rig.state.applied(), snapshot));
  EXPECT_EQ(again.snapshot(), snapshot);

  // Both go on alike: the holder's lease ends, and the next one has the lock.
  wire::Command c;
  c.set_client(1);
  c.set_incarnation(1);
  c.set_sequence(1000);
  c.mutable_body()->mutable_lease_end()->set_lease(leases[0]);
  for (State* s : {&rig.state, &again}) s->apply(LogIndex{s->applied().value + 1}, WallTime{5000}, testing::encode(c));
  EXPECT_EQ(again.snapshot(), rig.state.snapshot());
  EXPECT_EQ(again.keys().modified("k0"), 0u);
  EXPECT_NE(again.keys().modified("k1"), 0u);
  EXPECT_NE(again.leases().place("l", leases[1], again.keys())->token(), 0u);
}

}  // namespace
}  // namespace holo::control
