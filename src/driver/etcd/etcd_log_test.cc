// The log in a real etcd, started for each test program; without one on the machine the tests are skipped.
#include "driver/etcd/etcd_log.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/strings.h"
#include "driver/etcd/entry.h"
#include "driver/posix/asio_loop.h"
#include "env/entropy_testing.h"

extern char** environ;

namespace holo::driver {
namespace {

std::string free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof a;
  EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&a), size), 0);
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size), 0);
  ::close(fd);
  return std::to_string(ntohs(a.sin_port));
}

/// One etcd with a directory of its own.
class Etcd {
 public:
  static bool installed() { return std::filesystem::exists("/usr/bin/etcd"); }
  Etcd() {
    char name[] = "/tmp/holo-etcd-XXXXXX";
    dir_ = ::mkdtemp(name);
    url = "http://127.0.0.1:" + free_port();
    peer_ = "http://127.0.0.1:" + free_port();
    start();
  }
  ~Etcd() {
    stop();
    std::filesystem::remove_all(dir_);
  }
  void start() {
    const std::vector<std::string> words = {"/usr/bin/etcd",
                                            "--data-dir",
                                            dir_,
                                            "--listen-client-urls",
                                            url,
                                            "--advertise-client-urls",
                                            url,
                                            "--listen-peer-urls",
                                            peer_,
                                            "--initial-advertise-peer-urls",
                                            peer_,
                                            "--initial-cluster",
                                            "default=" + peer_,
                                            "--logger",
                                            "zap",
                                            "--log-outputs",
                                            dir_ + "/log"};
    std::vector<char*> argv;
    for (const std::string& w : words) argv.push_back(const_cast<char*>(w.c_str()));
    argv.push_back(nullptr);
    ASSERT_EQ(::posix_spawn(&pid_, argv[0], nullptr, nullptr, argv.data(), environ), 0);
    etcd::Client client({.urls = {url}, .ca_file = {}, .certificate_file = {}, .key_file = {}});
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!client.call("/v3/kv/range", {{"key", etcd::encode("x")}}, seconds(1))) {
      ASSERT_LT(std::chrono::steady_clock::now(), until) << "etcd does not answer";
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  void stop() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  std::string url;

 private:
  std::string dir_, peer_;
  pid_t pid_ = 0;
};

class Journal final : public env::StateMachine {
 public:
  void apply(LogIndex index, WallTime when, ByteSpan command) override {
    EXPECT_GE(index, last);
    EXPECT_GE(when, time);
    last = index;
    time = when;
    text += str(as_text(command).size() > 100 ? "long" : std::string(as_text(command)), "@", index.value, "\n");
    bytes += command.size();
  }
  Bytes snapshot() const override {
    const ByteSpan b = as_bytes(text);
    return Bytes(b.begin(), b.end());
  }
  Status restore(LogIndex index, ByteSpan snapshot) override {
    text = std::string(as_text(snapshot));
    last = index;
    ++restores;
    return {};
  }
  LogIndex last;
  WallTime time;
  std::string text;
  std::size_t bytes = 0;
  int restores = 0;
};

struct Server {
  NodeId id;
  std::unique_ptr<env::testing::SeededEntropy> entropy;
  std::unique_ptr<Journal> journal = std::make_unique<Journal>();
  std::unique_ptr<env::CommandLog> log;
};

class EtcdLogTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (Etcd::installed()) etcd_ = std::make_unique<Etcd>();
  }
  static void TearDownTestSuite() { etcd_.reset(); }
  void SetUp() override {
    if (!etcd_) GTEST_SKIP() << "etcd is not installed: apt-get install etcd-server";
    prefix_ = ::testing::UnitTest::GetInstance()->current_test_info()->name();
  }
  void TearDown() override {
    for (auto& s : servers_) stop(*s);
    loop_.begin_stop();
    EXPECT_TRUE(loop_.run_until([&] { return loop_.running() == 0; }, seconds(10)));
    servers_.clear();
  }

  Result<Server*> open(std::uint64_t id, bool bootstrap = false, std::uint64_t snapshot_every = 8192) {
    auto s = std::make_unique<Server>();
    s->id = NodeId{id};
    s->entropy = std::make_unique<env::testing::SeededEntropy>(id);
    HOLO_ASSIGN(
        log, open_etcd_log({.loop = &loop_, .entropy = s->entropy.get()}, *s->journal,
                           {.self = NodeId{id},
                            .bootstrap = bootstrap,
                            .endpoints = {.urls = {etcd_->url}, .ca_file = {}, .certificate_file = {}, .key_file = {}},
                            .prefix = prefix_,
                            .leader_ttl = seconds(2),
                            .snapshot_every = snapshot_every,
                            .trailing = 4}));
    s->log = std::move(log);
    servers_.push_back(std::move(s));
    return servers_.back().get();
  }
  void stop(Server& s) {
    if (!s.log) return;
    run(s.log->close());
    s.log.reset();
  }
  template <class T>
  T run(Task<T> task) {
    std::optional<T> out;
    loop_.spawn(keep(std::move(task), &out));
    EXPECT_TRUE(loop_.run_until([&] { return out.has_value(); }, seconds(30)));
    return std::move(*out);
  }
  void run(Task<void> task) {
    bool done = false;
    loop_.spawn(note(std::move(task), &done));
    EXPECT_TRUE(loop_.run_until([&] { return done; }, seconds(30)));
  }
  template <class T>
  static Task<void> keep(Task<T> task, std::optional<T>* out) {
    out->emplace(co_await task);
  }
  static Task<void> note(Task<void> task, bool* done) {
    co_await task;
    *done = true;
  }
  Result<LogIndex> append(Server& s, const std::string& text, Duration limit = seconds(10)) {
    return run(s.log->append(Buffer::copy(as_bytes(text)), loop_.now() + limit));
  }
  bool wait(const std::function<bool()>& f, Duration limit = seconds(20)) { return loop_.run_until(f, limit); }
  bool leads(const Server& s) { return s.log->status().role == env::LogRole::leader; }
  Server& first(std::uint64_t snapshot_every = 8192) {
    auto s = open(1, true, snapshot_every);
    EXPECT_TRUE(s) << s.error().message;
    EXPECT_TRUE(wait([&] { return leads(**s); }));
    return **s;
  }
  Server& other(Server& leader, std::uint64_t id, bool voter) {
    EXPECT_TRUE(run(leader.log->add_learner(NodeId{id}, loop_.now() + seconds(10))));
    if (voter) {
      EXPECT_TRUE(run(leader.log->set_voter(NodeId{id}, true, loop_.now() + seconds(10))));
    }
    auto s = open(id);
    EXPECT_TRUE(s);
    return **s;
  }

  static inline std::unique_ptr<Etcd> etcd_;
  AsioLoop loop_;
  std::string prefix_;
  std::vector<std::unique_ptr<Server>> servers_;
};

TEST_F(EtcdLogTest, EveryNodeAppliesEveryCommandInOneOrder) {
  Server& a = first();
  Server& b = other(a, 2, true);
  Server& c = other(a, 3, false);
  EXPECT_EQ(a.log->members().size(), 3u);
  std::size_t done = 0;
  const auto add = [&](Server& s, const std::string& text) {
    struct Call {
      static Task<void> run(Server* s, std::string text, Instant deadline, std::size_t* done) {
        const std::string bytes = text;
        Buffer command = Buffer::copy(as_bytes(bytes));
        auto appending = s->log->append(std::move(command), deadline);
        const auto index = co_await appending;
        EXPECT_TRUE(index) << index.error().message;
        if (index) {
          EXPECT_NE(s->journal->text.find(str(text, "@", index->value, "\n")), std::string::npos);
        }
        ++*done;
      }
    };
    loop_.spawn(Call::run(&s, text, loop_.now() + seconds(20), &done));
  };
  for (int i = 0; i < 40; ++i) {
    add(a, str("a", i));
    add(b, str("b", i));
    add(c, str("c", i));
  }
  ASSERT_TRUE(wait([&] { return done == 120; }));
  for (Server* s : {&a, &b, &c}) ASSERT_TRUE(run(s->log->barrier(loop_.now() + seconds(10))));
  EXPECT_EQ(a.journal->text, b.journal->text);
  EXPECT_EQ(a.journal->text, c.journal->text);
  EXPECT_EQ(std::ranges::count(a.journal->text, '\n'), 120);
  EXPECT_EQ(c.log->status().role, env::LogRole::learner);
  EXPECT_EQ(c.log->status().leader, NodeId{1});
}

TEST_F(EtcdLogTest, ABarrierSeesWhatWasWrittenBefore) {
  Server& a = first();
  Server& b = other(a, 2, false);
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(append(a, str("x", i)));
    ASSERT_TRUE(run(b.log->barrier(loop_.now() + seconds(10))));
    EXPECT_NE(b.journal->text.find(str("x", i, "@")), std::string::npos);
  }
}

TEST_F(EtcdLogTest, ARestartFindsEverythingAndTheLateComerASnapshot) {
  Server& a = first(16);
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(append(a, str("x", i)));
  ASSERT_TRUE(wait([&] { return a.log->status().snapshot.value >= 32; }));
  const std::string all = a.journal->text;
  Server& b = other(a, 2, false);
  ASSERT_TRUE(wait([&] { return b.journal->last == a.journal->last; }));
  EXPECT_EQ(b.journal->text, all);
  EXPECT_EQ(b.journal->restores, 1) << "the entries of the beginning are gone";
  stop(a);
  auto again = open(1);
  ASSERT_TRUE(again);
  ASSERT_TRUE(wait([&] { return (*again)->journal->last == b.journal->last; }));
  EXPECT_EQ((*again)->journal->text, all);
  ASSERT_TRUE(wait([&] { return leads(**again); })) << "once the lease of its former life has ended";
  EXPECT_TRUE(append(**again, "more"));
}

TEST_F(EtcdLogTest, LargeCommandsComeWhole) {
  Server& a = first();
  Server& b = other(a, 2, false);
  const std::string large(3 << 20, 'x');
  ASSERT_TRUE(append(a, large));
  ASSERT_TRUE(append(b, large));
  ASSERT_TRUE(run(b.log->barrier(loop_.now() + seconds(10))));
  ASSERT_TRUE(wait([&] { return a.journal->last == b.journal->last; }));
  EXPECT_EQ(a.journal->bytes, 2 * large.size());
  EXPECT_EQ(b.journal->bytes, 2 * large.size());
  EXPECT_EQ(append(a, std::string((8 << 20) + 1, 'x')).error().code, Errc::over_limit);
}

TEST_F(EtcdLogTest, AnotherVoterLeadsWhenTheLeaderIsGoneAndALearnerDoesNot) {
  Server& a = first();
  Server& b = other(a, 2, true);
  Server& c = other(a, 3, false);
  ASSERT_TRUE(wait([&] { return b.log->members().size() == 3 && c.log->members().size() == 3; }));
  const std::uint64_t term = a.log->status().term;
  EXPECT_FALSE(run(b.log->remove(NodeId{3}, loop_.now() + seconds(5)))) << "only the leader changes members";
  stop(a);
  ASSERT_TRUE(wait([&] { return leads(b); }));
  EXPECT_FALSE(leads(c));
  EXPECT_GT(b.log->status().term, term);
  ASSERT_TRUE(wait([&] { return c.log->status().leader == NodeId{2}; }));
  EXPECT_TRUE(append(c, "goes on"));
  ASSERT_TRUE(run(b.log->remove(NodeId{1}, loop_.now() + seconds(5))));
  EXPECT_TRUE(wait([&] { return c.log->members().size() == 2; }));
}

TEST_F(EtcdLogTest, HandingOverTakesNoTimeOut) {
  Server& a = first();
  Server& b = other(a, 2, true);
  ASSERT_TRUE(wait([&] { return b.log->members().size() == 2; }));
  const Instant began = loop_.now();
  ASSERT_TRUE(run(a.log->hand_over({}, began + seconds(5))));
  ASSERT_TRUE(wait([&] { return leads(b); }));
  EXPECT_LT(loop_.now() - began, milliseconds(1900)) << "the lease lasts longer";
  EXPECT_FALSE(leads(a));
}

TEST_F(EtcdLogTest, TimeComesFromTheLeaderGoesOnWhileNobodyWritesAndNeverGoesBack) {
  Server& a = first();
  Server& b = other(a, 2, false);
  ASSERT_TRUE(append(a, "1"));
  const WallTime then = a.journal->time;
  EXPECT_GT(then.ms, 0);
  ASSERT_TRUE(wait([&] { return a.log->now().ms >= then.ms + 1500; }));
  ASSERT_TRUE(append(b, "2"));
  EXPECT_GT(b.journal->time.ms, then.ms + 1000) << "a lease of a second that begins here is not over already";
  EXPECT_LE(b.journal->time, a.log->now()) << "who does not lead moves no time";
  ASSERT_TRUE(append(a, "3"));
  EXPECT_GE(a.journal->time, then);
  EXPECT_LE(b.log->now(), a.log->now());
}

TEST_F(EtcdLogTest, ALogThatIsThereIsNotBegunAgain) {
  first();
  const auto again = open(9, true);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, Errc::refused);
}

TEST_F(EtcdLogTest, WithoutEtcdNothingIsDecidedAndWithItAgainEverythingGoesOn) {
  Server& a = first();
  ASSERT_TRUE(append(a, "before"));
  etcd_->stop();
  const auto refused = append(a, "meanwhile", seconds(1));
  ASSERT_FALSE(refused);
  EXPECT_TRUE(refused.error().code == Errc::no_quorum || refused.error().code == Errc::deadline_exceeded);
  EXPECT_FALSE(run(a.log->barrier(loop_.now() + seconds(1))));
  EXPECT_TRUE(wait([&] { return !leads(a); })) << "nobody can know that it still leads";
  etcd_->start();
  ASSERT_TRUE(wait([&] { return leads(a); }));
  EXPECT_TRUE(append(a, "after"));
  EXPECT_NE(a.journal->text.find("after@"), std::string::npos);
}

TEST_F(EtcdLogTest, TheEndWaitsForNoAnswer) {
  Server& a = first();
  Server& b = other(a, 2, true);
  Server& c = other(a, 3, true);
  ASSERT_TRUE(append(a, "one"));
  const Instant began = loop_.now();
  for (Server* s : {&b, &c, &a}) stop(*s);
  loop_.begin_stop();
  ASSERT_TRUE(wait([&] { return loop_.running() == 0; }));
  EXPECT_LT((loop_.now() - began).millis(), 500) << "watches are open and say nothing: they are woken, not waited for";
}

TEST_F(EtcdLogTest, NoEndpointAndNobodyThere) {
  Journal journal;
  env::testing::SeededEntropy entropy(1);
  EXPECT_FALSE(open_etcd_log({.loop = &loop_, .entropy = &entropy}, journal, {.self = NodeId{1}}));
  const auto nobody = open_etcd_log(
      {.loop = &loop_, .entropy = &entropy}, journal,
      {.self = NodeId{1},
       .bootstrap = true,
       .endpoints = {
           .urls = {"http://127.0.0.1:" + free_port()}, .ca_file = {}, .certificate_file = {}, .key_file = {}}});
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().code, Errc::unavailable);
}

TEST(EtcdEntries, RoundTripAndNonsense) {
  etcd::Entry e;
  e.wall_ms = 77;
  e.commands = {Bytes(3, std::byte{1}), Bytes(), Bytes(100, std::byte{2})};
  const auto back = etcd::decode_entry(etcd::encode_entry(e));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->commands, e.commands);
  EXPECT_EQ(back->wall_ms, 77);
  const Bytes whole = etcd::encode_entry(e);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    const auto cut = etcd::decode_entry(ByteSpan(whole).first(i));
    if (cut) {
      EXPECT_LT(cut->commands.size(), 3u);
    }
  }
  etcd::Entry chunked;
  chunked.chunk_at = 5;
  chunked.chunk_id = 6;
  chunked.chunks = 7;
  const auto same = etcd::decode_entry(etcd::encode_entry(chunked));
  ASSERT_TRUE(same);
  EXPECT_EQ(same->chunks, 7u);
  EXPECT_EQ(same->chunk_at, 5u);
  EXPECT_FALSE(etcd::decode_entry({}));
  EXPECT_FALSE(etcd::decode_entry(Bytes(1, std::byte{9})));
  const etcd::Keys keys("p");
  EXPECT_LT(keys.entry(9), keys.entry(10));
  EXPECT_EQ(etcd::Keys::after(keys.entries()), "holo/p/log0");
}

TEST(EtcdEndpoints, Parse) {
  EXPECT_EQ(etcd::parse_endpoints("http://a:1,https://b:2/")->size(), 2u);
  EXPECT_EQ(etcd::parse_endpoints("http://a:1/")->front(), "http://a:1");
  for (const char* wrong : {"a:1", "ftp://a", "http://", "http://a b", "http://a,,http://b"}) {
    EXPECT_FALSE(etcd::parse_endpoints(wrong)) << wrong;
  }
}

}  // namespace
}  // namespace holo::driver
