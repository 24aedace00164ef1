// Whole clusters of control services in one process, over the real log and an in-process network.
#include "node/control.h"

#include <gtest/gtest.h>

#include "base/strings.h"
#include "core/control/node_info.h"
#include "driver/posix/asio_loop.h"
#include "driver/raft/raft_log.h"
#include "env/entropy_testing.h"
#include "env/hub_testing.h"
#include "env/memory_store_testing.h"
#include "wire/message_types.h"

namespace holo::node {
namespace {

using env::testing::Hub;
using env::testing::MemoryStore;
using env::testing::SeededEntropy;
using wire::PeerMessage;

constexpr Duration kLimit = seconds(30);
constexpr std::uint64_t kMiB = 1 << 20;

struct Machine {
  std::shared_ptr<MemoryStore> store = std::make_shared<MemoryStore>();
  std::unique_ptr<SeededEntropy> entropy;
  std::unique_ptr<Hub::Endpoint> endpoint;
  std::unique_ptr<ControlService> control;
  Version lowest{100};  ///< What its report says of every region.
};

class FakeSession final : public LocalSession {
 public:
  explicit FakeSession(uid_t uid) : uid_(uid) {}
  SessionId id() const override { return SessionId{1}; }
  uid_t uid() const override { return uid_; }
  pid_t pid() const override { return 1; }
  const wire::Hello& hello() const override { return hello_; }
  Task<Result<LocalReply>> call(LocalRequest, Instant) override { co_return fail(Errc::unavailable, ""); }
  void notify(LocalRequest) override {}
  void close() override {}

 private:
  uid_t uid_;
  wire::Hello hello_;
};

class ControlTest : public ::testing::Test {
 protected:
  void TearDown() override {
    for (auto& [id, m] : machines_) kill(id);
    loop_.begin_stop();
    EXPECT_TRUE(loop_.run_until([&] { return loop_.running() == 0; }, seconds(10)))
        << loop_.running() << " tasks never end";
  }

  template <class T>
  static Task<void> keep(Task<T> task, std::shared_ptr<std::optional<T>> out) {
    out->emplace(co_await task);
  }
  template <class T>
  T run(Task<T> task) {
    auto out = std::make_shared<std::optional<T>>();
    loop_.spawn(keep(std::move(task), out));
    EXPECT_TRUE(loop_.run_until([&] { return out->has_value(); }, kLimit + seconds(5)));
    if (!*out) abort();
    return std::move(**out);
  }
  static Task<Status> stopped(ControlService* c) {
    co_await c->stop();
    co_return Status{};
  }
  Result<env::Reply> ask(Hub::Endpoint& from, std::uint64_t whom, env::Request request) {
    const env::CallOptions options{.deadline = deadline()};
    return run(from.call(NodeId{whom}, std::move(request), options));
  }
  static Task<Result<env::Reply>> counted(std::size_t* count) {
    ++*count;
    co_return env::Reply{};
  }
  bool until(const std::function<bool()>& f) { return loop_.run_until(f, kLimit); }
  [[nodiscard]] Instant deadline() { return loop_.now() + kLimit; }

  static std::string address(std::uint64_t id) { return str("n", id, ":1"); }
  ControlService& make(std::uint64_t id) {
    Machine& m = machines_[id];
    m.entropy = std::make_unique<SeededEntropy>(id * 100 + ++starts_);
    m.endpoint = std::make_unique<Hub::Endpoint>(hub_, NodeId{id}, address(id));
    NodeIdentity self;
    self.id = NodeId{id};
    self.name = str("n", id);
    self.addresses.push_back(address(id));
    self.cores = 2;
    self.memory_bytes = 64 * kMiB;
    self.speed = 1;
    self.version = "test";
    ControlService::Ports ports;
    ports.loop = &loop_;
    ports.transport = m.endpoint.get();
    ports.store = m.store.get();
    ports.entropy = m.entropy.get();
    ports.open_log = [this, id](env::StateMachine& machine, LogOptions options) {
      Machine& mine = machines_[id];
      return driver::open_raft_log(
          {.loop = &loop_, .transport = mine.endpoint.get(), .entropy = mine.entropy.get(), .store = mine.store},
          machine,
          {.self = options.self,
           .bootstrap = options.bootstrap,
           .election_timeout = milliseconds(300),
           .heartbeat = milliseconds(50)});
    };
    m.control = std::make_unique<ControlService>(std::move(ports), std::move(self));
    m.control->set_report_source([this, id] {
      wire::NodeReport r;
      r.set_frames_used_bytes(1000 + id);
      for (const RegionId region : machines_[id].control->state().regions()) {
        auto* v = r.add_lowest();
        v->set_region(region.value);
        v->set_version(machines_[id].lowest.value);
      }
      return r;
    });
    return *m.control;
  }
  ControlService& at(std::uint64_t id) { return *machines_.at(id).control; }
  void cluster(std::uint64_t n) {
    ASSERT_TRUE(run(make(1).init("test", deadline())));
    for (std::uint64_t id = 2; id <= n; ++id) {
      const Status joined = run(make(id).join(address(id - 1), deadline()));
      ASSERT_TRUE(joined) << joined.error().message;
      EXPECT_TRUE(at(id).ready());
    }
  }
  /// As kill -9 would, but for what the process frees.
  void kill(std::uint64_t id) {
    Machine& m = machines_.at(id);
    if (!m.control) return;
    m.endpoint->retire();
    (void)run(stopped(m.control.get()));
    m.control.reset();
    retired_.push_back(std::move(m.endpoint));
  }
  void restart(std::uint64_t id) {
    make(id);
    const Status s = at(id).resume();
    ASSERT_TRUE(s) << s.error().message;
  }
  std::size_t voters(std::uint64_t id) {
    std::size_t n = 0;
    for (const auto& [node, r] : at(id).state().nodes()) n += r.voter ? 1 : 0;
    return n;
  }
  std::uint64_t leader() {
    for (auto& [id, m] : machines_) {
      if (m.control && m.control->is_leader()) return id;
    }
    return 0;
  }
  Result<RegionId> create(std::uint64_t at_node, const std::string& name, std::uint64_t bytes,
                          std::uint32_t replication = 1) {
    wire::CommandBody b;
    auto* c = b.mutable_create_region()->mutable_region();
    c->set_name(name);
    c->set_type("bytes");
    c->set_count(bytes);
    c->set_page_bytes(4096);
    c->set_replication(replication);
    auto r = run(at(at_node).propose(std::move(b), deadline()));
    if (!r) return std::unexpected(r.error());
    return RegionId{r->region()};
  }
  Result<Version> commit(std::uint64_t at_node, RegionId region, std::uint64_t sequence) {
    wire::CommandBody b;
    b.mutable_commit()->set_epoch(at(at_node).state().epoch().value);
    auto* t = b.mutable_commit()->add_txns();
    t->mutable_txn()->set_node(at_node);
    t->mutable_txn()->set_incarnation(at(at_node).incarnation());
    t->mutable_txn()->set_sequence(sequence);
    auto* rp = t->add_regions();
    rp->set_region(region.value);
    rp->add_pages()->set_count(1);
    auto r = run(at(at_node).propose(std::move(b), deadline()));
    if (!r) return std::unexpected(r.error());
    if (r->txns(0).error().code() != 0)
      return fail(static_cast<Errc>(r->txns(0).error().code()), r->txns(0).error().message());
    return Version{r->txns(0).versions(0).version()};
  }

  /// As the memory service would hand over: says of every fill that it is done, until nothing is left to fill.
  static Task<Status> fill(ControlTest* test, std::uint64_t id) {
    for (;;) {
      wire::CommandBody copied, whole;
      test->at(id).state().for_each_move([&](const control::State::ShardView& v) {
        if (!v.filling && !v.unproven) return;
        auto* m = v.filling ? copied.mutable_shards_copied()->add_moves() : whole.mutable_shards_whole()->add_moves();
        m->set_region(v.region.value);
        m->set_shard(v.shard.value);
        m->set_node((v.filling ? v.filling : v.unproven).value);
        m->set_serial(v.serial);
      });
      wire::CommandBody b = copied.shards_copied().moves_size() != 0 ? copied : whole;
      if (b.kind_case() == wire::CommandBody::KIND_NOT_SET) co_return Status{};
      const Instant limit = test->deadline();
      auto r = co_await test->at(id).propose(std::move(b), limit);
      if (!r) co_return std::unexpected(r.error());
    }
  }

  driver::AsioLoop loop_;
  Hub hub_{loop_};
  std::vector<std::unique_ptr<Hub::Endpoint>> retired_;
  std::map<std::uint64_t, Machine> machines_;
  std::uint64_t starts_ = 0;
};

TEST_F(ControlTest, FourNodesBecomeOneClusterWithThreeVoters) {
  cluster(4);
  for (std::uint64_t id = 1; id <= 4; ++id) {
    EXPECT_TRUE(until([&] { return at(id).state().live_count() == 4 && voters(id) == 3; }));
    EXPECT_EQ(at(id).state().cluster_name(), "test");
    EXPECT_EQ(at(id).leader(), NodeId{leader()});
    EXPECT_TRUE(*at(id).has_cluster());
  }
  const auto xs = create(3, "xs", kMiB, 2);
  ASSERT_TRUE(xs) << xs.error().message;
  EXPECT_EQ(*commit(4, *xs, 1), Version{1});
  EXPECT_TRUE(until([&] { return at(2).state().epoch() == at(3).state().epoch(); })) << "each that returns moves it";
  EXPECT_EQ(*commit(2, *xs, 1), Version{2});
  for (std::uint64_t id = 1; id <= 4; ++id) {
    EXPECT_TRUE(run(at(id).wait_version(*xs, Version{2}, deadline())));
    EXPECT_EQ(at(id).state().version_of(*xs, PageNo{0}), Version{2});
  }
  EXPECT_EQ(create(1, "xs", kMiB).error().code, Errc::already_exists);
  EXPECT_FALSE(run(at(1).wait_version(RegionId{99}, Version{1}, deadline())));
  // What the nodes report comes round: frames used, and the lowest snapshot in use.
  machines_[3].lowest = Version{1};
  for (std::uint64_t id = 1; id <= 4; ++id) {
    EXPECT_TRUE(until([&] { return at(id).frames_used(NodeId{2}) == 1002 && at(id).floor(*xs) >= Version{1}; }));
  }
}

TEST_F(ControlTest, NewcomersAreRefusedForAReason) {
  cluster(1);
  EXPECT_EQ(run(at(1).propose({}, deadline())).error().code, Errc::unsupported);
  EXPECT_EQ(run(make(2).join("nowhere:1", deadline())).error().code, Errc::unavailable);
  ASSERT_TRUE(run(make(2).join(address(1), deadline())));
  make(3);
  machines_[3].control.reset();
  EXPECT_FALSE(run(make(3).join(address(3), deadline()))) << "itself";
  EXPECT_EQ(run(make(4).join(address(3), loop_.now() + seconds(1))).error().code, Errc::refused)
      << "node 3 is in no cluster";
}

TEST_F(ControlTest, TheClusterOutlivesItsLeader) {
  cluster(4);
  ASSERT_TRUE(until([&] { return voters(1) == 3; }));
  const auto xs = create(2, "xs", kMiB, 2);
  ASSERT_TRUE(xs);
  const std::uint64_t old = leader();
  const std::uint64_t epoch = at(old).state().epoch().value;
  hub_.isolate(NodeId{old}, true);
  const std::uint64_t other = old == 4 ? 3 : 4;
  EXPECT_EQ(*commit(other, *xs, 1), Version{1}) << "the proposal waits for the next leader";
  // The dead leader is declared dead, the learner votes in its place, and the epoch has moved.
  EXPECT_TRUE(until([&] { return !at(other).state().node(NodeId{old})->alive(); }));
  EXPECT_GT(at(other).state().epoch().value, epoch);
  EXPECT_TRUE(until([&] { return voters(other) == 3 && !at(other).state().node(NodeId{old})->voter; }));
  EXPECT_EQ(commit(other, *xs, 2), Version{2});
  // It was only cut off: it comes back by itself, under a new incarnation, and its old transactions are fenced.
  const std::uint64_t fenced = at(old).incarnation();
  hub_.isolate(NodeId{old}, false);
  EXPECT_TRUE(until([&] { return at(old).ready() && at(old).incarnation() > fenced; }));
  EXPECT_TRUE(until([&] { return at(old).state().region(*xs)->version == Version{2}; }));
  EXPECT_TRUE(until([&] { return at(other).state().live_count() == 4; }));
}

TEST_F(ControlTest, AFullStopAndRestartBringsEverythingBack) {
  cluster(3);
  ASSERT_TRUE(until([&] { return voters(1) == 3; }));
  const auto xs = create(2, "xs", kMiB, 2);
  ASSERT_TRUE(xs);
  ASSERT_TRUE(commit(3, *xs, 7));
  for (std::uint64_t id = 1; id <= 3; ++id) kill(id);
  for (std::uint64_t id = 1; id <= 3; ++id) restart(id);
  for (std::uint64_t id = 1; id <= 3; ++id) {
    EXPECT_TRUE(until([&] { return at(id).ready() && at(id).state().region_by_name("xs") != nullptr; })) << id;
    EXPECT_EQ(at(id).state().region(*xs)->version, Version{1});
  }
  // A heartbeat of the new incarnations, not a stale answer of the old, lets them commit again.
  EXPECT_TRUE(until([&] { return at(2).state().epoch() == at(3).state().epoch(); })) << "each that returns moves it";
  EXPECT_EQ(*commit(2, *xs, 1), Version{2});
}

TEST_F(ControlTest, OneNodeAloneRestarts) {
  cluster(1);
  ASSERT_TRUE(create(1, "xs", kMiB));
  const std::uint64_t before = at(1).incarnation();
  kill(1);
  restart(1);
  EXPECT_TRUE(until([&] { return at(1).ready(); }));
  EXPECT_GT(at(1).incarnation(), before);
  EXPECT_NE(at(1).state().region_by_name("xs"), nullptr);
  EXPECT_EQ(run(at(1).init("again", deadline())).error().code, Errc::refused);
}

TEST_F(ControlTest, AMinorityDoesNotCommit) {
  cluster(3);
  ASSERT_TRUE(until([&] { return voters(1) == 3; }));
  const auto xs = create(1, "xs", kMiB);
  ASSERT_TRUE(xs);
  hub_.isolate(NodeId{1}, true);
  hub_.isolate(NodeId{2}, true);
  wire::CommandBody b;
  b.mutable_free_region()->set_name("xs");
  const auto r = run(at(3).propose(b, loop_.now() + seconds(2)));
  ASSERT_FALSE(r);
  EXPECT_TRUE(r.error().code == Errc::no_quorum || r.error().code == Errc::deadline_exceeded) << r.error().message;
  hub_.isolate(NodeId{1}, false);
  hub_.isolate(NodeId{2}, false);
  EXPECT_TRUE(until([&] { return create(3, "ys", kMiB).has_value(); }));
}

TEST_F(ControlTest, NodesLeaveOneAfterTheOther) {
  cluster(4);
  ASSERT_TRUE(until([&] { return voters(1) == 3; }));
  const std::uint64_t first = leader();
  const Status led = run(at(first).leave(deadline()));
  ASSERT_TRUE(led) << led.error().message;
  EXPECT_FALSE(*at(first).has_cluster());
  kill(first);
  machines_[first].store = std::make_shared<MemoryStore>();
  const std::uint64_t second = first == 4 ? 3 : 4;
  ASSERT_TRUE(until([&] { return leader() != 0 && at(second).state().live_count() == 3; }));
  ASSERT_TRUE(run(at(second).leave(deadline())));
  kill(second);
  ASSERT_TRUE(until([&] { return leader() != 0; }));
  const std::uint64_t third = leader();
  const Status of_two = run(at(third).leave(deadline()));
  ASSERT_TRUE(of_two) << "the leader of two: " << of_two.error().message;
  kill(third);
  std::uint64_t last = 0;
  for (auto& [id, m] : machines_) last = m.control ? id : last;
  ASSERT_NE(last, 0U);
  EXPECT_TRUE(until([&] { return at(last).is_leader() && voters(last) == 1 && at(last).state().live_count() == 1; }));
  ASSERT_TRUE(create(last, "still works", kMiB).error().code == Errc::invalid_argument);
  ASSERT_TRUE(create(last, "works", kMiB));
  EXPECT_EQ(run(at(last).leave(deadline())).error().code, Errc::refused) << "the last node, with a region";
  // Who left may come again.
  const Status again = run(make(first).join(address(last), deadline()));
  EXPECT_TRUE(again) << again.error().message;
}

TEST_F(ControlTest, LeavingWithALastCopyIsRefusedAndUndone) {
  cluster(2);
  const auto xs = create(1, "xs", kMiB);
  ASSERT_TRUE(xs);
  const NodeId home = at(1).state().home(*xs, PageNo{0});
  ASSERT_TRUE(commit(1, *xs, 1));
  const Status s = run(at(home.value).leave(deadline()));
  ASSERT_FALSE(s);
  EXPECT_EQ(s.error().code, Errc::refused) << s.error().message;
  EXPECT_TRUE(until([&] { return !at(1).state().node(home)->draining; }));
  EXPECT_TRUE(at(home.value).ready());
  // With a service that hands its copies over, it may go.
  at(home.value).set_leave_check([this, home](Instant) { return fill(this, home.value); });
  const Status t = run(at(home.value).leave(deadline()));
  EXPECT_TRUE(t) << t.error().message;
}

TEST_F(ControlTest, RegionsOverTheLocalSocket) {
  cluster(2);
  LocalApi api;
  at(2).register_local(api);
  const auto ask = [&](wire::LocalMessage type, const std::string& header, uid_t uid = 1000) {
    LocalRequest r;
    r.type = static_cast<std::uint16_t>(type);
    r.header = header;
    return run((*api.find(r.type))(std::make_shared<FakeSession>(uid), std::move(r)));
  };
  wire::RegionCreate c;
  c.set_name("xs");
  c.set_type("f64");
  c.set_count(1000);
  const auto made = ask(wire::REGION_CREATE, c.SerializeAsString());
  ASSERT_TRUE(made) << made.error().message;
  wire::RegionInfo info;
  ASSERT_TRUE(info.ParseFromString(made->header));
  EXPECT_EQ(info.element_bytes(), 8U);
  EXPECT_EQ(info.owner_uid(), 1000U);
  EXPECT_EQ(info.page_bytes(), 65536U);
  std::uint64_t pages = 0;
  for (const auto& share : info.pages_by_node()) pages += share.pages();
  EXPECT_EQ(pages, 1U);
  // Made on another node a moment ago: seen all the same.
  ASSERT_TRUE(create(1, "ys", kMiB));
  wire::RegionOpen o;
  o.set_name("ys");
  EXPECT_TRUE(ask(wire::REGION_OPEN, o.SerializeAsString()));
  o.set_name("zs");
  EXPECT_EQ(ask(wire::REGION_OPEN, o.SerializeAsString()).error().code, Errc::not_found);
  wire::RegionListReply list;
  ASSERT_TRUE(list.ParseFromString(ask(wire::REGION_LIST, "")->header));
  EXPECT_EQ(list.regions_size(), 2);
  wire::RegionFree f;
  f.set_name("xs");
  EXPECT_EQ(ask(wire::REGION_FREE, f.SerializeAsString(), 1001).error().code, Errc::permission_denied);
  EXPECT_TRUE(ask(wire::REGION_FREE, f.SerializeAsString()));
  EXPECT_EQ(ask(wire::REGION_FREE, f.SerializeAsString()).error().code, Errc::not_found);
  EXPECT_EQ(ask(wire::REGION_OPEN, "\xff\xff").error().code, Errc::malformed);
}

constexpr PeerMessage kMembersOnly[] = {PeerMessage::heartbeat,   PeerMessage::member_query, PeerMessage::raft,
                                        PeerMessage::propose,     PeerMessage::read_index,   PeerMessage::page_fetch,
                                        PeerMessage::page_stage,  PeerMessage::page_backup,  PeerMessage::txn_abort,
                                        PeerMessage::txn_status,  PeerMessage::task_run,     PeerMessage::task_done,
                                        PeerMessage::task_cancel, PeerMessage::binary_fetch, PeerMessage::worker_output,
                                        PeerMessage::program_end, PeerMessage::key_change,   PeerMessage{999}};

/// What another release may add is for members, unless it says otherwise.
TEST(MemberGate, RequestsAreForMembersUnlessTheyAreNamed) {
  for (unsigned type = 0; type < 1000; ++type) {
    const auto message = static_cast<PeerMessage>(type);
    const bool open = message == PeerMessage::join || message == PeerMessage::leave ||
                      message == PeerMessage::member_query || message == PeerMessage::ping;
    EXPECT_EQ(may_ask(message) == wire::Asker::anyone, open) << type;
    const bool of_the_log = message == PeerMessage::raft || message == PeerMessage::confirm_term;
    EXPECT_EQ(may_ask(message) == wire::Asker::log_member, of_the_log) << type;
  }
}

TEST_F(ControlTest, AStrangerIsServedNothingButWhatJoiningTakes) {
  cluster(3);
  const auto xs = create(1, "xs", kMiB);
  ASSERT_TRUE(xs);
  Hub::Endpoint stranger(hub_, NodeId{99}, address(99));
  std::size_t reached = 0;
  for (const std::uint64_t id : {1, 2, 3}) {
    for (const PeerMessage type : kMembersOnly) {
      if (type >= PeerMessage::page_fetch) {
        machines_[id].endpoint->serve(static_cast<std::uint16_t>(type),
                                      [&reached](NodeId, env::Request) { return counted(&reached); });
      }
    }
  }
  wire::Command freeing;  // In the name of a member.
  freeing.set_client(1);
  freeing.set_incarnation(at(1).incarnation() + 1000);
  freeing.set_sequence(1);
  freeing.mutable_body()->mutable_free_region()->set_name("xs");
  for (const std::uint64_t id : {1, 2, 3}) {
    for (const PeerMessage type : kMembersOnly) {
      env::Request request{.type = static_cast<std::uint16_t>(type)};
      if (type == PeerMessage::propose) request.payload = {Buffer::copy(as_bytes(freeing.SerializeAsString()))};
      const auto answer = ask(stranger, id, std::move(request));
      ASSERT_FALSE(answer) << static_cast<int>(type);
      EXPECT_EQ(answer.error().code, Errc::permission_denied) << static_cast<int>(type);
      EXPECT_EQ(answer.error().hint, "holo join");
    }
    EXPECT_EQ(ask(stranger, id, {.type = static_cast<std::uint16_t>(PeerMessage::join), .header = "\xff"}).error().code,
              Errc::malformed)
        << "the handler has seen it";
    EXPECT_EQ(ask(stranger, id, {.type = static_cast<std::uint16_t>(PeerMessage::leave)}).error().code, Errc::refused);
  }
  EXPECT_EQ(reached, 0U);
  EXPECT_NE(at(1).state().region_by_name("xs"), nullptr);
  EXPECT_EQ(at(1).state().nodes().size(), 3U);
  // Members reach the very same handlers.
  EXPECT_TRUE(ask(*machines_[2].endpoint, 1, {.type = static_cast<std::uint16_t>(PeerMessage::page_fetch)}));
  EXPECT_TRUE(ask(*machines_[3].endpoint, 2, {.type = 999}));
  EXPECT_EQ(reached, 2U);
}

/// It has to learn that it is no member any more; of the others it learns nothing.
TEST_F(ControlTest, WhoWasRemovedIsToldOfItselfOnly) {
  cluster(3);
  ASSERT_TRUE(until([&] { return voters(leader()) == 3; }));
  const std::uint64_t lead = leader(), gone = lead == 3 ? 2 : 3, other = 6 - lead - gone;
  const auto query = [&](std::uint64_t from, std::uint64_t about) {
    wire::MemberQuery question;
    question.set_node(about);
    return ask(*machines_[from].endpoint, lead,
               {.type = static_cast<std::uint16_t>(PeerMessage::member_query), .header = question.SerializeAsString()});
  };
  wire::CommandBody body;
  body.mutable_node_leave()->set_node(gone);
  ASSERT_TRUE(run(at(other).propose(std::move(body), deadline())));
  ASSERT_TRUE(until([&] { return at(lead).state().node(NodeId{gone})->state == control::NodeState::left; }));
  const auto told = query(gone, gone);
  wire::MemberQueryReply reply;
  ASSERT_TRUE(told && reply.ParseFromString(told->header));
  EXPECT_FALSE(reply.member());
  EXPECT_EQ(reply.log_index(), at(lead).state().applied().value);
  EXPECT_EQ(reply.addresses_size(), 0);
  EXPECT_EQ(query(gone, other).error().code, Errc::permission_denied);
  EXPECT_TRUE(query(other, gone));
  ASSERT_TRUE(until([&] { return at(gone).removed_for_good(); }));
  EXPECT_EQ(at(gone).removal()->code, Errc::permission_denied);
  kill(gone);
  restart(gone);
  EXPECT_TRUE(at(gone).removed_for_good()) << "it has kept that";
  EXPECT_EQ(run(at(gone).barrier(deadline())).error().code, Errc::permission_denied);
}

/// However often it knocks, the others are hardly asked about it.
TEST_F(ControlTest, StrangersCostTheOthersLittle) {
  cluster(2);
  const std::uint64_t follower = leader() == 1 ? 2 : 1;
  Hub::Endpoint stranger(hub_, NodeId{99}, address(99));
  const auto queries = [&] { return hub_.delivered[static_cast<std::uint16_t>(PeerMessage::member_query)]; };
  const std::uint64_t before = queries();
  const Instant begin = loop_.now();
  std::vector<std::shared_ptr<std::optional<Result<env::Reply>>>> out;
  for (int i = 0; i < 2000; ++i) {
    out.push_back(std::make_shared<std::optional<Result<env::Reply>>>());
    const env::CallOptions options{.deadline = deadline()};
    loop_.spawn(keep(stranger.call(NodeId{follower}, {.type = static_cast<std::uint16_t>(PeerMessage::raft)}, options),
                     out.back()));
  }
  ASSERT_TRUE(until([&] { return std::all_of(out.begin(), out.end(), [](const auto& o) { return o->has_value(); }); }));
  for (const auto& o : out) EXPECT_FALSE(**o);
  const auto windows = static_cast<std::uint64_t>((loop_.now() - begin).millis() / 300);
  EXPECT_LE(queries() - before, windows + 2);
}

TEST_F(ControlTest, WhoLeftIsAStrangerWhoMayOnlyHearThatItLeft) {
  cluster(4);
  ASSERT_TRUE(until([&] { return voters(1) == 3; }));
  ASSERT_TRUE(run(at(4).leave(deadline())));
  ASSERT_TRUE(until([&] { return at(1).state().node(NodeId{4})->state == control::NodeState::left; }));
  const std::uint64_t lead = leader();
  ASSERT_TRUE(until([&] { return lead == leader() && at(lead).log_status().role == env::LogRole::leader; }));
  Hub::Endpoint& gone = *machines_[4].endpoint;
  for (const PeerMessage type : {PeerMessage::propose, PeerMessage::heartbeat, PeerMessage::read_index}) {
    for (const std::uint64_t id : {1, 2, 3}) {
      const auto answer = ask(gone, id, {.type = static_cast<std::uint16_t>(type)});
      ASSERT_FALSE(answer);
      EXPECT_EQ(answer.error().code, Errc::permission_denied);
    }
  }
  EXPECT_EQ(ask(gone, lead, {.type = static_cast<std::uint16_t>(PeerMessage::raft)}).error().code,
            Errc::permission_denied)
      << "the log has let go of it";
  wire::LeaveRequest again;
  again.set_node(4);
  const LogIndex applied = at(lead).state().applied();
  EXPECT_TRUE(
      ask(gone, lead, {.type = static_cast<std::uint16_t>(PeerMessage::leave), .header = again.SerializeAsString()}))
      << "its answer may have been lost";
  EXPECT_EQ(at(lead).state().applied(), applied) << "nothing is written for somebody who is gone";
}

TEST_F(ControlTest, ARevokedNodeIsServedNothing) {
  cluster(4);
  ASSERT_TRUE(until([&] { return voters(1) == 3; }));
  std::uint64_t victim = 0;
  for (std::uint64_t id = 1; id <= 4; ++id) {
    if (!at(1).state().node(NodeId{id})->voter) victim = id;
  }
  const std::uint64_t other = victim == 1 ? 2 : 1;
  wire::CommandBody b;
  b.mutable_node_revoke()->set_node(victim);
  ASSERT_TRUE(run(at(other).propose(std::move(b), deadline())));
  ASSERT_TRUE(until([&] { return leader() != 0; }));
  // The Hub has no handshakes, which would turn it away before.
  for (const PeerMessage type : {PeerMessage::propose, PeerMessage::heartbeat}) {
    EXPECT_EQ(ask(*machines_[victim].endpoint, other, {.type = static_cast<std::uint16_t>(type)}).error().code,
              Errc::permission_denied);
  }
}

TEST_F(ControlTest, ADeadMemberStillIsOneAndReturns) {
  cluster(3);
  ASSERT_TRUE(until([&] { return voters(1) == 3; }));
  const std::uint64_t dead = leader() == 3 ? 2 : 3;
  const std::uint64_t other = dead == 3 ? 2 : 3;
  kill(dead);
  ASSERT_TRUE(until([&] { return !at(1).state().node(NodeId{dead})->alive(); }));
  restart(dead);
  EXPECT_TRUE(until([&] { return at(dead).ready() && at(other).state().live_count() == 3; }));
}

/// As on a link that comes and goes: silence is no twin, however often it happens.
TEST_F(ControlTest, WhoIsDeclaredDeadAgainAndAgainReturnsEachTime) {
  cluster(3);
  ASSERT_TRUE(until([&] { return voters(1) == 3 && leader() != 0; }));
  const std::uint64_t victim = leader() == 3 ? 2 : 3;
  const std::uint64_t other = victim == 3 ? 2 : 3;
  std::size_t fatal = 0;
  at(victim).set_on_fatal([&](const Error&) { ++fatal; });
  const auto known = [&] { return at(other).state().node(NodeId{victim})->incarnation; };
  for (int i = 0; i < 6; ++i) {
    const std::uint64_t before = known();
    wire::CommandBody b;  // Without votes, as of earlier releases: nobody need be silent for seconds here.
    b.mutable_node_dead()->set_node(victim);
    b.mutable_node_dead()->set_incarnation(before);
    ASSERT_TRUE(run(at(other).propose(std::move(b), deadline())));
    ASSERT_TRUE(until([&] { return known() > before && at(victim).ready(); })) << i;
  }
  EXPECT_EQ(fatal, 0U);
}

/// Somebody else announces incarnations that this node never had, while it lives.
TEST_F(ControlTest, WhoIsReplacedByAnotherAgainAndAgainEndsItself) {
  cluster(3);
  ASSERT_TRUE(until([&] { return voters(1) == 3 && leader() != 0; }));
  const std::uint64_t lead = leader();
  const std::uint64_t victim = lead == 3 ? 2 : 3;
  std::optional<Error> fatal;
  at(victim).set_on_fatal([&](Error e) { fatal = std::move(e); });
  const auto replace = [&] {
    const control::NodeRecord& mine = *at(lead).state().node(NodeId{victim});
    wire::Heartbeat beat;
    beat.set_cluster(at(lead).state().cluster().value);
    *beat.mutable_node() = control::info_of(mine);
    const std::uint64_t twin = mine.incarnation + 1'000'000;  // Its clock is ahead by far.
    beat.mutable_node()->set_incarnation(twin);
    ASSERT_TRUE(ask(*machines_[victim].endpoint, lead,
                    {.type = static_cast<std::uint16_t>(PeerMessage::heartbeat), .header = beat.SerializeAsString()}));
    ASSERT_TRUE(until([&] { return at(victim).incarnation() > twin && at(victim).ready(); }));
  };
  for (int i = 0; i < 4; ++i) {
    replace();
    EXPECT_FALSE(fatal) << "after " << i + 1 << ": each counts once";
  }
  replace();
  ASSERT_TRUE(fatal);
  EXPECT_EQ(fatal->code, Errc::already_exists);
}

/// A voter is off while a newcomer joins and comes to lead. What the voter kept does not name it.
TEST_F(ControlTest, AVoterThatWasOffBelievesALeaderWhomMembersKnow) {
  cluster(3);
  ASSERT_TRUE(until([&] { return voters(1) == 3; }));
  kill(3);
  ASSERT_TRUE(until([&] { return leader() != 0 && !at(leader()).state().node(NodeId{3})->alive(); }));
  ASSERT_TRUE(run(make(4).join(address(1), deadline())));
  ASSERT_TRUE(until([&] {
    const std::uint64_t l = leader();
    return l != 0 && at(l).state().node(NodeId{4})->voter && !at(l).state().node(NodeId{3})->voter;
  }));
  // Whoever leads is cut off until it is the newcomer's turn.
  for (int i = 0; i < 40 && leader() != 4; ++i) {
    const std::uint64_t old = leader();
    if (old == 0) {
      (void)until([&] { return leader() != 0; });
      continue;
    }
    hub_.isolate(NodeId{old}, true);
    const auto another = [&] { return (at(4).is_leader() || at(3 - old).is_leader()); };
    ASSERT_TRUE(until(another));
    hub_.isolate(NodeId{old}, false);
    ASSERT_TRUE(until([&] { return !at(old).is_leader(); }));
    ASSERT_TRUE(until([&] {  // Else who leads next is decided: it has what the newcomer has not.
      const std::uint64_t l = leader();
      return l != 0 && at(4).log_status().last == at(l).log_status().last;
    }));
  }
  ASSERT_EQ(leader(), 4U);
  ASSERT_TRUE(until([&] { return at(1).ready() && at(2).ready(); }));
  const auto queries = [&] { return hub_.delivered[static_cast<std::uint16_t>(PeerMessage::member_query)]; };
  const std::uint64_t before = queries();
  restart(3);
  EXPECT_TRUE(until([&] { return at(3).ready() && at(3).state().node(NodeId{4}) != nullptr; }));
  EXPECT_GT(queries(), before) << "it had to ask";
  EXPECT_TRUE(create(3, "xs", kMiB));
}

TEST_F(ControlTest, WhoDoesNotLeadSaysWhereTheLeaderIs) {
  cluster(3);
  ASSERT_TRUE(until([&] { return voters(1) == 3 && leader() != 0; }));
  const std::uint64_t lead = leader();
  const std::uint64_t asked = lead == 1 ? 2 : 1;
  const std::uint64_t asker = 6 - lead - asked;
  wire::Heartbeat beat;
  beat.set_cluster(at(asker).state().cluster().value);
  beat.mutable_node()->set_id(asker);
  const auto answer =
      ask(*machines_[asker].endpoint, asked,
          {.type = static_cast<std::uint16_t>(PeerMessage::heartbeat), .header = beat.SerializeAsString()});
  ASSERT_TRUE(answer) << answer.error().message;
  wire::HeartbeatReply reply;
  ASSERT_TRUE(reply.ParseFromString(answer->header));
  EXPECT_EQ(reply.leader(), lead);
  ASSERT_EQ(reply.leader_addresses_size(), 1);
  EXPECT_EQ(reply.leader_addresses(0), address(lead));
}

/// With the log alone a node knows nobody until it hears a leader, whom it then would not hear.
TEST_F(ControlTest, RestartsInAnyOrderAndJoinsMeanwhile) {
  cluster(3);
  ASSERT_TRUE(until([&] { return voters(1) == 3; }));
  for (const std::uint64_t id : {3, 1, 2}) kill(id);
  restart(2);
  Hub::Endpoint stranger(hub_, NodeId{99}, address(99));
  EXPECT_EQ(ask(stranger, 2, {.type = static_cast<std::uint16_t>(PeerMessage::raft)}).error().code,
            Errc::permission_denied)
      << "also before there is a leader";
  restart(3);
  ASSERT_TRUE(until([&] { return at(2).state().cluster() && leader() != 0; }));
  ASSERT_TRUE(run(make(4).join(address(2), deadline())));
  restart(1);
  for (std::uint64_t id = 1; id <= 4; ++id) {
    EXPECT_TRUE(until([&] { return at(id).ready() && at(id).state().live_count() == 4; })) << id;
  }
}

/// As stores of earlier releases are: without the entry that they are of.
TEST_F(ControlTest, AStoreThatDoesNotSayHowOldItIsIsEnoughToReturn) {
  cluster(3);
  ASSERT_TRUE(until([&] { return voters(1) == 3; }));
  for (std::uint64_t id = 1; id <= 3; ++id) {
    kill(id);
    wire::JoinReply record;
    ASSERT_TRUE(record.ParseFromString(std::string(as_text(**machines_[id].store->get("cluster")))));
    EXPECT_GT(record.log_index(), 0U);
    record.clear_log_index();
    ASSERT_TRUE(machines_[id].store->put("cluster", as_bytes(record.SerializeAsString())));
  }
  for (std::uint64_t id = 1; id <= 3; ++id) restart(id);
  for (std::uint64_t id = 1; id <= 3; ++id) EXPECT_TRUE(until([&] { return at(id).ready(); })) << id;
}

TEST_F(ControlTest, ProposalsAreBoundedAndManyAtOnceAllAct) {
  cluster(3);
  std::vector<std::shared_ptr<std::optional<Result<wire::CommandResult>>>> out;
  for (int i = 0; i < 300; ++i) {
    wire::CommandBody b;
    b.mutable_create_region()->mutable_region()->set_name(str("r", i));
    b.mutable_create_region()->mutable_region()->set_count(1);
    b.mutable_create_region()->mutable_region()->set_page_bytes(4096);
    out.push_back(std::make_shared<std::optional<Result<wire::CommandResult>>>());
    loop_.spawn(keep(at(1 + static_cast<std::uint64_t>(i % 3)).propose(std::move(b), deadline()), out.back()));
  }
  ASSERT_TRUE(until([&] { return std::all_of(out.begin(), out.end(), [](const auto& o) { return o->has_value(); }); }));
  for (const auto& o : out) EXPECT_TRUE(o->value().has_value()) << o->value().error().message;
  EXPECT_TRUE(until([&] { return at(2).state().regions().size() == 300; }));
}

}  // namespace
}  // namespace holo::node
