// One node of the log among peers that a test plays: what libraft 0.15 gets wrong, or dies of, and the driver mends.
#include <gtest/gtest.h>

#include <map>

#include "driver/posix/asio_loop.h"
#include "driver/raft/raft_io.h"
#include "driver/raft/raft_members.h"
#include "env/entropy_testing.h"
#include "env/hub_testing.h"
#include "env/memory_store_testing.h"
#include "wire/message_types.h"

namespace holo::driver {
namespace {

using env::testing::Hub;
using env::testing::MemoryStore;

constexpr std::uint64_t kSelf = 1;

class Counter final : public env::StateMachine {
 public:
  void apply(LogIndex index, WallTime, ByteSpan command) override {
    last = index;
    text += std::string(as_text(command)) + "\n";
  }
  Bytes snapshot() const override { return Bytes(as_bytes(text).begin(), as_bytes(text).end()); }
  Status restore(LogIndex index, ByteSpan snapshot) override {
    text = std::string(as_text(snapshot));
    last = index;
    return {};
  }
  LogIndex last;
  std::string text;
};

struct Entry {
  std::uint64_t term = 0;
  std::uint16_t type = RAFT_COMMAND;
  Bytes data;
};

Entry command(std::uint64_t term, const std::string& text = "x") {
  Entry e{.term = term, .type = RAFT_COMMAND, .data = Bytes(24)};  // An envelope of nobody's.
  e.data.insert(e.data.end(), as_bytes(text).begin(), as_bytes(text).end());
  return e;
}

Entry change(std::uint64_t term, const std::vector<std::uint64_t>& voters) {
  raft_configuration conf;
  raft_configuration_init(&conf);
  for (const std::uint64_t id : voters) {
    EXPECT_EQ(raft_configuration_add(&conf, id, raft_address(NodeId{id}).c_str(), RAFT_VOTER), 0);
  }
  raft_buffer buf{};
  EXPECT_EQ(raft_configuration_encode(&conf, &buf), 0);
  const auto* bytes = static_cast<const std::byte*>(buf.base);
  Entry e{.term = term, .type = RAFT_CHANGE, .data = Bytes(bytes, bytes + buf.len)};
  raft_free(buf.base);
  raft_configuration_close(&conf);
  return e;
}

class RaftPeerTest : public ::testing::Test {
 protected:
  RaftPeerTest() {
    for (const std::uint64_t id : {2, 3}) {
      auto peer = std::make_unique<Hub::Endpoint>(hub_, NodeId{id}, "peer" + std::to_string(id));
      peer->serve(kRaft, [this, id](NodeId, env::Request r) { return heard(this, id, std::move(r)); });
      peers_[id] = std::move(peer);
    }
  }
  void TearDown() override {
    stop();
    loop_.begin_stop();
    EXPECT_TRUE(loop_.run_until([&] { return loop_.running() == 0; }, seconds(10)));
  }

  Status start() {
    endpoint_ = std::make_unique<Hub::Endpoint>(hub_, NodeId{kSelf}, "self");
    machine_ = std::make_unique<Counter>();
    RaftLogOptions options{.self = NodeId{kSelf}, .election_timeout = seconds(60), .heartbeat = seconds(1)};
    options.snapshot_threshold = threshold_;
    options.snapshot_trailing = 2;
    auto log = open_raft_log({.loop = &loop_, .transport = endpoint_.get(), .entropy = &entropy_, .store = store_},
                             *machine_, options);
    if (!log) return std::unexpected(log.error());
    log_ = std::move(*log);
    return {};
  }
  void stop() {
    if (!log_) return;
    endpoint_->retire();
    bool done = false;
    loop_.spawn(close(log_.get(), &done));
    EXPECT_TRUE(loop_.run_until([&] { return done; }, seconds(10)));
    log_.reset();
    old_.push_back(std::move(endpoint_));
  }
  static Task<void> close(env::CommandLog* log, bool* done) {
    co_await log->close();
    *done = true;
  }
  static Task<Result<env::Reply>> heard(RaftPeerTest* me, std::uint64_t peer, env::Request request) {
    const auto header = decode_raft_header(request);
    if (header) me->answers_[peer].push_back(*header);
    ++me->requests_;
    co_return env::Reply{};
  }
  static Task<void> deliver(Hub::Endpoint* from, env::Request request, Instant deadline,
                            std::optional<Result<env::Reply>>* out) {
    env::CallOptions options;
    options.deadline = deadline;
    out->emplace(co_await from->call(NodeId{kSelf}, std::move(request), options));
  }
  Result<env::Reply> send(std::uint64_t from, const raft_message& message) {
    return send(from, encode_raft_message(message));
  }
  Result<env::Reply> send(std::uint64_t from, env::Request request) {
    std::optional<Result<env::Reply>> out;
    loop_.spawn(deliver(peers_.at(from).get(), std::move(request), loop_.now() + seconds(10), &out));
    EXPECT_TRUE(loop_.run_until([&] { return out.has_value(); }, seconds(10)));
    const auto reply = out.value_or(fail(Errc::internal, "no answer"));
    if (wire::RaftMessage answer; reply && !reply->header.empty() && answer.ParseFromString(reply->header))
      answers_[from].push_back(answer);
    return reply;
  }
  /// As the leader of `term`: what follows entry `prev` of `prev_term`.
  Result<env::Reply> append(std::uint64_t leader, std::uint64_t term, std::uint64_t prev, std::uint64_t prev_term,
                            std::uint64_t commit, const std::vector<Entry>& entries) {
    std::vector<raft_entry> raw;
    for (const Entry& e : entries) {
      raw.push_back({.term = e.term,
                     .type = e.type,
                     .buf = {const_cast<std::byte*>(e.data.data()), e.data.size()},
                     .batch = nullptr});
    }
    raft_message m{};
    m.type = RAFT_IO_APPEND_ENTRIES;
    m.append_entries = {.term = term,
                        .prev_log_index = prev,
                        .prev_log_term = prev_term,
                        .leader_commit = commit,
                        .entries = raw.data(),
                        .n_entries = static_cast<unsigned>(raw.size())};
    return send(leader, m);
  }
  /// The index that the node's next success claims.
  std::uint64_t claimed(std::uint64_t leader, std::size_t seen) {
    std::uint64_t last = 0;
    EXPECT_TRUE(loop_.run_until(
        [&] {
          for (std::size_t i = seen; i < answers_[leader].size(); ++i) {
            const wire::RaftMessage& m = answers_[leader][i];
            if (m.type() != RAFT_IO_APPEND_ENTRIES_RESULT || m.rejected() != 0) continue;
            last = m.last_log_index();
            return true;
          }
          return false;
        },
        seconds(10)));
    return last;
  }
  bool applied(std::uint64_t index) {
    return loop_.run_until([&] { return log_->status().applied.value >= index; }, seconds(10));
  }
  std::vector<std::uint64_t> members() {
    std::vector<std::uint64_t> out;
    for (const env::LogMember& m : log_->members()) out.push_back(m.node.value);
    return out;
  }
  /// Node 2 leads in term 1; entry 1 names the members, 2 to `last` are commands, all committed.
  void follow(std::uint64_t last) {
    ASSERT_TRUE(start());
    std::vector<Entry> entries{change(1, {1, 2, 3})};
    while (entries.size() < last) entries.push_back(command(1));
    ASSERT_TRUE(append(2, 1, 0, 0, last, entries));
    ASSERT_TRUE(applied(last));
  }
  bool snapshot_taken() {
    return loop_.run_until(
        [&] {
          auto s = store_->snapshot();
          return s && s->has_value();
        },
        seconds(10));
  }

  static constexpr auto kRaft = static_cast<std::uint16_t>(wire::PeerMessage::raft);
  AsioLoop loop_;
  Hub hub_{loop_};
  env::testing::SeededEntropy entropy_{7};
  std::shared_ptr<MemoryStore> store_ = std::make_shared<MemoryStore>();
  unsigned threshold_ = 1000;
  std::unique_ptr<Hub::Endpoint> endpoint_;
  std::vector<std::unique_ptr<Hub::Endpoint>> old_;
  std::unique_ptr<Counter> machine_;
  std::unique_ptr<env::CommandLog> log_;
  std::map<std::uint64_t, std::unique_ptr<Hub::Endpoint>> peers_;
  std::map<std::uint64_t, std::vector<wire::RaftMessage>> answers_;  ///< In replies, or requests of their own.
  std::size_t requests_ = 0;
};

const std::vector<std::uint64_t> kThree{1, 2, 3};

// libraft looks for the change before in its log, and crashes when a snapshot has taken it away.
TEST_F(RaftPeerTest, AChangeOfMembersIsOverwrittenAfterASnapshot) {
  threshold_ = 10;
  follow(20);
  ASSERT_TRUE(snapshot_taken());
  ASSERT_TRUE(append(2, 1, 20, 1, 20, {change(1, {1, 2, 3, 4})}));
  ASSERT_TRUE(loop_.run_until([&] { return members().size() == 4; }, seconds(10)));
  ASSERT_TRUE(append(3, 2, 20, 1, 20, {command(2, "other")}));
  ASSERT_TRUE(append(3, 2, 21, 2, 21, {command(2, "next")}));
  ASSERT_TRUE(applied(21));
  EXPECT_EQ(members(), kThree);
  EXPECT_TRUE(machine_->text.ends_with("other\n")) << machine_->text;
}

// libraft goes back to the last committed one, whatever else is still in the log.
TEST_F(RaftPeerTest, OnlyTheChangesThatWereOverwrittenAreUndone) {
  follow(5);
  ASSERT_TRUE(append(2, 1, 5, 1, 5, {change(1, {1, 2, 3, 4}), change(1, {1, 2, 3, 4, 5})}));
  ASSERT_TRUE(loop_.run_until([&] { return members().size() == 5; }, seconds(10)));
  ASSERT_TRUE(append(3, 2, 6, 1, 5, {command(2)}));
  EXPECT_TRUE(loop_.run_until([&] { return members().size() == 4; }, seconds(10)));
}

// After a restart libraft takes the newest change for committed, and keeps it when it is overwritten.
TEST_F(RaftPeerTest, AChangeIsOverwrittenAfterARestart) {
  follow(5);
  ASSERT_TRUE(append(2, 1, 5, 1, 5, {change(1, {1, 2, 3, 4})}));
  ASSERT_TRUE(loop_.run_until([&] { return store_->entries() == 6; }, seconds(10)));
  stop();
  ASSERT_TRUE(start());
  EXPECT_EQ(members().size(), 4U) << "what the log says counts, committed or not";
  ASSERT_TRUE(append(3, 2, 5, 1, 6, {command(2)}));
  ASSERT_TRUE(applied(6));
  EXPECT_EQ(members(), kThree);
}

// libraft would put the newest members into a snapshot of what was committed before.
TEST_F(RaftPeerTest, ASnapshotHoldsTheMembersThatWereCommitted) {
  threshold_ = 10;
  follow(5);
  std::vector<Entry> more(6, command(1));
  more.push_back(change(1, {1, 2, 3, 4}));
  ASSERT_TRUE(append(2, 1, 5, 1, 5, more));
  ASSERT_TRUE(append(2, 1, 12, 1, 11, {}));
  ASSERT_TRUE(snapshot_taken());
  const auto s = store_->snapshot();
  EXPECT_EQ((*s)->index, 11U);
  EXPECT_EQ((*s)->configuration_index, 1U);
  EXPECT_EQ((*s)->servers.size(), 3U);
  EXPECT_EQ(members().size(), 4U);
}

// libraft claims everything that is stored, though it may be of a leader before: this one would count it as its own.
TEST_F(RaftPeerTest, NothingIsClaimedThatTheLeaderHasNotSent) {
  follow(5);
  ASSERT_TRUE(append(2, 1, 5, 1, 5, {command(1, "left over"), command(1, "left over")}));
  ASSERT_TRUE(loop_.run_until([&] { return store_->entries() == 7; }, seconds(10)));
  ASSERT_TRUE(append(3, 2, 5, 1, 5, {}));
  EXPECT_EQ(claimed(3, 0), 5U);
  // Nor is anything of it committed because the leader has committed as much.
  const std::size_t second = answers_[3].size();
  ASSERT_TRUE(append(3, 2, 5, 1, 7, {}));
  EXPECT_EQ(claimed(3, second), 5U);
  EXPECT_EQ(log_->status().committed.value, 5U);
  const std::size_t then = answers_[3].size();
  ASSERT_TRUE(append(3, 2, 5, 1, 6, {command(2, "its own")}));
  EXPECT_EQ(claimed(3, then), 6U);
  ASSERT_TRUE(append(3, 2, 6, 2, 6, {}));
  ASSERT_TRUE(applied(6));
  EXPECT_TRUE(machine_->text.ends_with("its own\n"));
}

// A message that was under way for long is about entries that are in a snapshot by now.
TEST_F(RaftPeerTest, EntriesThatWereGivenUpAreNotAppendedAgain) {
  threshold_ = 10;
  follow(20);
  ASSERT_TRUE(snapshot_taken());
  ASSERT_TRUE(loop_.run_until([&] { return store_->entries() < 10; }, seconds(10)));
  const std::uint64_t last = log_->status().last.value;
  EXPECT_FALSE(append(2, 1, 0, 0, 20, {change(1, {1, 2, 3}), command(1)}));
  EXPECT_EQ(log_->status().last.value, last);
}

TEST_F(RaftPeerTest, WhatLibraftAssumesOfPeersIsChecked) {
  follow(5);
  EXPECT_FALSE(append(2, 1, 5, 1, 5, {command(0)})) << "an entry of no term";
  EXPECT_FALSE(append(2, 1, 5, 1, 5, {command(2)})) << "an entry of a term to come";
  Entry cut = change(1, {1, 2, 3});
  for (std::size_t bytes = 0; bytes < cut.data.size(); ++bytes) {
    Entry e{
        .term = 1, .type = RAFT_CHANGE, .data = Bytes(cut.data.begin(), cut.data.begin() + static_cast<long>(bytes))};
    if (decode_raft_change(e.data)) continue;  // What is missing is padding.
    EXPECT_FALSE(append(2, 1, 5, 1, 5, {e})) << bytes;
  }
  EXPECT_FALSE(append(2, 1, 5, 1, 5, {Entry{.term = 1, .type = RAFT_CHANGE, .data = Bytes(9, std::byte{1})}}));
  EXPECT_EQ(log_->status().last.value, 5U);
  ASSERT_TRUE(append(2, 1, 5, 1, 5, {command(1)}));
  EXPECT_TRUE(loop_.run_until([&] { return log_->status().last.value == 6; }, seconds(10)));
}

// A leader of the version before does not look into replies.
TEST_F(RaftPeerTest, TheResultIsInTheReplyForLeadersThatTakeItFromThere) {
  follow(5);
  raft_message m{};
  m.type = RAFT_IO_APPEND_ENTRIES;
  m.append_entries = {
      .term = 1, .prev_log_index = 5, .prev_log_term = 1, .leader_commit = 5, .entries = nullptr, .n_entries = 0};
  ASSERT_TRUE(loop_.run_until([&] { return requests_ == 1; }, seconds(10))) << "what waits for the disk comes later";
  const auto reply = send(2, m);
  ASSERT_TRUE(reply && !reply->header.empty());
  EXPECT_EQ(answers_[2].back().last_log_index(), 5U);

  env::Request older = encode_raft_message(m);
  wire::RaftMessage header;
  ASSERT_TRUE(header.ParseFromString(older.header));
  header.set_answer_in_reply(false);
  older.header = header.SerializeAsString();
  EXPECT_EQ(requests_, 1U);
  const auto empty = send(2, std::move(older));
  ASSERT_TRUE(empty && empty->header.empty());
  EXPECT_TRUE(loop_.run_until([&] { return requests_ == 2; }, seconds(10)));
  EXPECT_EQ(answers_[2].back().last_log_index(), 5U);
}

TEST(RaftMembers, KeepsWhatMayBeNeeded) {
  RaftMembers m;
  EXPECT_EQ(m.at(5), nullptr);
  m.append(1, {{.node = NodeId{1}, .role = RAFT_VOTER}});
  m.append(4, {{.node = NodeId{1}, .role = RAFT_VOTER}, {.node = NodeId{2}, .role = RAFT_STANDBY}});
  m.append(9, {{.node = NodeId{2}, .role = RAFT_VOTER}});
  EXPECT_EQ(m.index_at(3), 1U);
  EXPECT_EQ(m.index_at(8), 4U);
  m.committed(5);
  EXPECT_EQ(m.index_at(3), 0U) << "nobody asks for it any more";
  EXPECT_EQ(m.at(6)->size(), 2U);
  EXPECT_TRUE(m.truncate(7));
  EXPECT_EQ(m.newest_index(), 4U);
  EXPECT_FALSE(m.truncate(7));
  m.restart(20, {{.node = NodeId{3}, .role = RAFT_VOTER}});
  EXPECT_EQ(m.newest().front().node, NodeId{3});
  EXPECT_EQ(m.index_at(19), 0U);
}

}  // namespace
}  // namespace holo::driver
