// A real process maps a region of a real memory service: memfd, userfaultfd, write windows, all as on a running agent.
// The log and the network are stand-ins; everything between the kernel and the service is real.
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "driver/posix/asio_loop.h"
#include "driver/uffd/memfd_frames.h"
#include "driver/uffd/uffd_faults.h"
#include "sim/memory_testing.h"

namespace holo {
namespace {

constexpr std::uint64_t kPage = 65536;
constexpr std::uint64_t kPages = 32;
constexpr std::uint64_t kBytes = kPage * kPages;

/// Calls the handler on the other side at once.
class DirectTransport final : public env::Transport {
 public:
  Task<Result<env::Reply>> call(NodeId peer, env::Request request, env::CallOptions) override {
    auto it = peers.find(peer);
    if (it == peers.end()) co_return fail(Errc::unavailable, "no such node");
    Bytes all;
    for (const Buffer& b : request.payload) all.insert(all.end(), b.span().begin(), b.span().end());
    request.payload.clear();
    if (!all.empty()) request.payload.emplace_back(std::move(all));
    auto reply = co_await it->second->handlers[request.type](self, std::move(request));
    if (reply) {
      Bytes out;
      for (const Buffer& b : reply->payload) out.insert(out.end(), b.span().begin(), b.span().end());
      reply->payload.clear();
      if (!out.empty()) reply->payload.emplace_back(std::move(out));
    }
    co_return reply;
  }
  void serve(std::uint16_t type, Handler handler) override { handlers[type] = std::move(handler); }
  void set_gate(std::shared_ptr<env::MemberGate>) override {}
  void set_addresses(NodeId, std::vector<std::string>) override {}
  Task<Result<env::PeerIdentity>> connect(std::string, Instant) override { co_return fail(Errc::unsupported, "no"); }
  void disconnect(NodeId) override {}
  env::RefusedCounters refused() const override { return {}; }

  NodeId self;
  std::map<NodeId, DirectTransport*> peers;
  std::map<std::uint16_t, Handler> handlers;
};

void send_fd(int socket, int fd, std::uint64_t value) {
  iovec iov{&value, sizeof value};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr m{};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  cmsghdr* c = CMSG_FIRSTHDR(&m);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  if (::sendmsg(socket, &m, 0) < 0) std::abort();
}
int receive_fd(int socket, std::uint64_t& value) {
  iovec iov{&value, sizeof value};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr m{};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  if (::recvmsg(socket, &m, MSG_CMSG_CLOEXEC) <= 0) return -1;
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
  return fd;
}
char byte_of(std::uint64_t page, std::uint64_t at) { return static_cast<char>(1 + (page * 31 + at / 512) % 251); }

void register_range(int uffd, char* at, std::uint64_t length) {
  uffdio_register r{};
  r.range = {.start = reinterpret_cast<std::uint64_t>(at), .len = length};
  r.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
  if (::ioctl(uffd, UFFDIO_REGISTER, &r) != 0) std::abort();
}

/// The child's side: maps what the parent sends.
struct Mapping {
  explicit Mapping(int socket) {
    auto fd = driver::open_userfaultfd();
    if (!fd) std::abort();
    uffd = fd->release();
    void* whole = ::mmap(nullptr, kBytes + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    base = reinterpret_cast<char*>((reinterpret_cast<std::uint64_t>(whole) + kPage - 1) / kPage * kPage);
    send_fd(socket, uffd, reinterpret_cast<std::uint64_t>(base));
    std::uint64_t ignored = 0;
    memfd = receive_fd(socket, ignored);
    map_private(0, kPages);
  }
  void map_private(std::uint64_t page, std::uint64_t count) const {
    if (::mmap(base + page * kPage, count * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED,
               memfd, static_cast<off_t>(page * kPage)) == MAP_FAILED)
      std::abort();
    register_range(uffd, base + page * kPage, count * kPage);
  }
  void map_window(std::uint64_t page, std::uint64_t count) const {
    if (::mmap(base + page * kPage, count * kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memfd,
               static_cast<off_t>(page * kPage)) == MAP_FAILED)
      std::abort();
    if (::madvise(base + page * kPage, count * kPage, MADV_POPULATE_WRITE) != 0) std::abort();
  }
  int uffd = -1, memfd = -1;
  char* base = nullptr;
};

class MappedMemory : public ::testing::Test {
 protected:
  struct Node {
    NodeId id;
    DirectTransport transport;
    std::unique_ptr<sim::TestControl> control;
    std::unique_ptr<node::MemoryService> memory;
    node::LocalApi api;
  };

  void SetUp() override {
    if (faults_.mode() == env::FaultMode::none) GTEST_SKIP() << "this machine gives no userfaultfd";
    for (std::uint64_t i = 1; i <= 2; ++i) {
      auto n = std::make_unique<Node>();
      n->id = NodeId{i};
      n->transport.self = n->id;
      n->control = std::make_unique<sim::TestControl>(log_, n->id);
      log_.nodes.push_back(n->control.get());
      nodes_.push_back(std::move(n));
    }
    for (auto& n : nodes_) {
      for (auto& o : nodes_) n->transport.peers[o->id] = &o->transport;
      node::MemoryConfig config;
      config.limit_bytes = limit_;
      config.fetch_deadline = milliseconds(500);
      n->memory = node::MemoryService::make({.loop = loop_,
                                             .transport = n->transport,
                                             .frames = frames_,
                                             .faults = faults_,
                                             .entropy = entropy_,
                                             .control = *n->control},
                                            config);
      n->memory->serve_local(n->api);
    }
    sim::TestControl::RegionState r;
    r.shape = {.id = region_, .name = "xs", .bytes = kBytes, .page_bytes = kPage, .block_pages = 4, .replication = 1};
    for (std::uint64_t s = 0; s < 2; ++s) r.shards.push_back({.in_sync = {NodeId{s + 1}}, .filling = {}});
    for (std::uint64_t i = 1; i <= 2; ++i) log_.append([i](sim::TestControl& c) { c.node_alive(NodeId{i}, 1); });
    log_.append([r](sim::TestControl& c) { c.create(r); });
    pump();
  }
  void TearDown() override {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
    loop_.begin_stop();
    run_until([&] {
      loop_.post([] {});
      return loop_.running() == 0;
    });
    for (auto& n : nodes_) n->memory.reset();
  }
  void pump() { world_.run_until(world_.now() + milliseconds(10)); }
  bool run_until(const std::function<bool()>& done) {
    return loop_.run_until(
        [&] {
          pump();
          return done();
        },
        seconds(20));
  }
  template <class T>
  T run(Task<T> task) {
    auto slot = std::make_shared<std::optional<T>>();
    loop_.spawn(store(std::move(task), slot));
    HOLO_ASSERT(run_until([&] {
                  loop_.post([] {});
                  return slot->has_value();
                }),
                "a call that does not end");
    return std::move(**slot);
  }
  template <class T>
  static Task<void> store(Task<T> task, std::shared_ptr<std::optional<T>> slot) {
    slot->emplace(co_await task);
  }
  Result<node::LocalReply> call(wire::LocalMessage type, const google::protobuf::MessageLite& m, Bytes payload = {},
                                env::Fd fd = {}) {
    node::LocalRequest request{
        .type = static_cast<std::uint16_t>(type), .header = m.SerializeAsString(), .payload = {}, .fds = {}};
    if (!payload.empty()) request.payload.emplace_back(std::move(payload));
    if (fd) request.fds.push_back(std::move(fd));
    return run((*nodes_[0]->api.find(type))(session_, std::move(request)));
  }
  void write(std::uint64_t base, std::uint64_t first, std::uint64_t count,
             std::function<char(std::uint64_t, std::uint64_t)> f) {
    wire::Stage stage;
    stage.set_region(region_.value);
    stage.set_base(base);
    Bytes bytes;
    for (std::uint64_t p = first; p < first + count; ++p) {
      stage.add_pages(p);
      for (std::uint64_t i = 0; i < kPage; ++i) bytes.push_back(static_cast<std::byte>(f(p, i)));
    }
    auto staged = call(wire::STAGE, stage, std::move(bytes));
    ASSERT_TRUE(staged) << staged.error().message;
    wire::StageReply reply;
    ASSERT_TRUE(reply.ParseFromString(staged->header));
    wire::Commit commit;
    *commit.mutable_txn() = reply.txn();
    ASSERT_TRUE(call(wire::COMMIT, commit));
  }
  /// Forks a process that maps the region on node 1 and runs `body` there; its exit status is what `body` returns.
  void start(const std::function<int(Mapping&, int socket)>& body) {
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    child_ = ::fork();
    if (child_ == 0) {
      ::close(pair[0]);
      Mapping m(pair[1]);
      ::_exit(body(m, pair[1]));
    }
    ::close(pair[1]);
    socket_ = env::Fd(pair[0]);
    std::uint64_t address = 0;
    env::Fd uffd(receive_fd(pair[0], address));
    wire::ViewOpen open;
    open.set_region(region_.value);
    open.set_address(address);
    open.set_length(kBytes);
    auto opened = call(wire::VIEW_OPEN, open, {}, std::move(uffd));
    ASSERT_TRUE(opened) << opened.error().message;
    wire::ViewOpenReply reply;
    ASSERT_TRUE(reply.ParseFromString(opened->header));
    view_ = reply.view();
    send_fd(pair[0], opened->fds[0].get(), 0);
  }
  /// Serves until the child has ended.
  int finish() {
    int status = -1;
    EXPECT_TRUE(run_until([&] {
      loop_.post([] {});
      return ::waitpid(child_, &status, WNOHANG) == child_;
    })) << "the process hangs";
    child_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
  }
  /// Waits until the child says something.
  void await_word() {
    ASSERT_TRUE(run_until([&] {
      loop_.post([] {});
      char c = 0;
      return ::recv(socket_.get(), &c, 1, MSG_DONTWAIT) == 1;
    }));
  }
  void say() { ASSERT_EQ(::send(socket_.get(), "x", 1, 0), 1); }
  static void child_say(int socket) {
    if (::send(socket, "x", 1, 0) != 1) std::abort();
  }
  static void child_wait(int socket) {
    char c = 0;
    if (::recv(socket, &c, 1, 0) != 1) std::abort();
  }

  driver::AsioLoop loop_;
  driver::MemfdFrameStore frames_;
  driver::UffdFaults faults_{loop_};
  env::testing::SeededEntropy entropy_{99};
  sim::World world_;
  sim::TestControl::Log log_{world_};
  std::vector<std::unique_ptr<Node>> nodes_;
  std::shared_ptr<sim::TestSession> session_ = std::make_shared<sim::TestSession>(1);
  RegionId region_{1};
  std::uint64_t limit_ = 64 << 20;
  pid_t child_ = -1;
  env::Fd socket_;
  std::uint64_t view_ = 0;
};

TEST_F(MappedMemory, AProcessReadsPagesOfBothNodesAndItsWritesStayItsOwn) {
  write(0, 2, kPages - 2, byte_of);
  start([](Mapping& m, int) {
    volatile char* at = m.base;
    for (std::uint64_t i = 0; i < 2 * kPage; i += 4096) {
      if (at[i] != 0) return 1;
    }
    for (std::uint64_t p = kPages - 1; p >= 2; --p) {
      for (std::uint64_t i = 0; i < kPage; i += 512) {
        if (at[p * kPage + i] != byte_of(p, i)) return 2;
      }
    }
    at[5 * kPage] = 'w';
    at[0] = 'w';
    return at[5 * kPage + 512] == byte_of(5, 512) ? 0 : 3;
  });
  EXPECT_EQ(finish(), 0);
  wire::Read read;
  read.set_region(region_.value);
  read.set_offset(5 * kPage);
  read.set_length(1);
  EXPECT_EQ(static_cast<char>(call(wire::READ, read)->payload[0].span()[0]), byte_of(5, 0));
}

TEST_F(MappedMemory, AViewKeepsItsSnapshotWhileOthersCommit) {
  write(0, 0, kPages, byte_of);
  start([](Mapping& m, int socket) {
    volatile char* at = m.base;
    if (at[0] != byte_of(0, 0) || at[9 * kPage] != byte_of(9, 0)) return 1;
    child_say(socket);
    child_wait(socket);  // Version 2 is committed meanwhile.
    for (std::uint64_t p = 0; p < kPages; ++p) {
      if (at[p * kPage + 777] != byte_of(p, 777)) return 2;
    }
    child_say(socket);
    child_wait(socket);  // The view is at version 2 now: what changed is dropped here.
    if (::madvise(m.base, kBytes, MADV_DONTNEED) != 0) return 3;
    for (std::uint64_t p = 0; p < kPages; ++p) {
      if (at[p * kPage + 777] != 'B') return 4;
    }
    return 0;
  });
  await_word();
  write(1, 0, kPages, [](std::uint64_t, std::uint64_t) { return 'B'; });
  say();
  await_word();
  wire::ViewRefresh refresh;
  refresh.set_view(view_);
  auto refreshed = call(wire::VIEW_REFRESH, refresh);
  ASSERT_TRUE(refreshed);
  wire::ViewRefreshReply reply;
  ASSERT_TRUE(reply.ParseFromString(refreshed->header));
  EXPECT_EQ(reply.snapshot(), 2u);
  ASSERT_EQ(reply.changed_size(), 1);
  EXPECT_EQ(reply.changed(0).count(), kPages);
  say();
  EXPECT_EQ(finish(), 0);
}

TEST_F(MappedMemory, PopulateGivesEverythingWithoutAFault) {
  write(0, 0, kPages, byte_of);
  start([](Mapping& m, int socket) {
    child_say(socket);
    child_wait(socket);
    for (std::uint64_t p = 0; p < kPages; ++p) {
      if (static_cast<volatile char*>(m.base)[p * kPage + 4096] != byte_of(p, 4096)) return 1;
    }
    return 0;
  });
  await_word();
  wire::ViewPopulate populate;
  populate.set_view(view_);
  populate.mutable_pages()->set_count(kPages);
  ASSERT_TRUE(call(wire::VIEW_POPULATE, populate));
  say();
  EXPECT_EQ(finish(), 0);
  EXPECT_EQ(nodes_[0]->memory->status().counters.faults, 0u);
}

TEST_F(MappedMemory, AWindowIsWrittenInPlaceAndSeenByNobodyBeforeTheCommit) {
  start([](Mapping& m, int socket) {
    child_say(socket);
    child_wait(socket);
    m.map_window(0, 4);  // block 0: homed on this node
    for (std::uint64_t i = 0; i < 4 * kPage; ++i) m.base[i] = byte_of(i / kPage, i % kPage);
    m.map_private(0, 4);
    child_say(socket);
    child_wait(socket);
    // Before the refresh this view stands on version 0.
    return static_cast<volatile char*>(m.base)[kPage] == 0 ? 0 : 1;
  });
  await_word();
  const TxnId txn = nodes_[0]->memory->new_txn();
  wire::WindowOpen open;
  open.set_view(view_);
  open.mutable_txn()->set_node(txn.node.value);
  open.mutable_txn()->set_incarnation(txn.incarnation);
  open.mutable_txn()->set_sequence(txn.sequence);
  open.mutable_pages()->set_count(8);
  auto opened = call(wire::WINDOW_OPEN, open);
  ASSERT_TRUE(opened);
  wire::WindowOpenReply in_place;
  ASSERT_TRUE(in_place.ParseFromString(opened->header));
  ASSERT_EQ(in_place.in_place_size(), 1);
  ASSERT_EQ(in_place.in_place(0).count(), 4u);
  say();
  await_word();
  wire::WindowClose close;
  close.set_view(view_);
  close.mutable_pages()->set_count(8);
  ASSERT_TRUE(call(wire::WINDOW_CLOSE, close));
  auto sealed = run(nodes_[0]->memory->seal(txn, loop_.now() + seconds(5)));
  ASSERT_TRUE(sealed) << sealed.error().message;
  EXPECT_EQ(run(nodes_[0]->memory->read(region_, Version{0}, 0, 4, loop_.now() + seconds(5))).value(), Bytes(4));
  std::vector<node::TxnWrites> writes{{.txn = txn, .regions = *sealed, .bump_only = {}}};
  auto committed = run(nodes_[0]->memory->commit(std::move(writes), loop_.now() + seconds(5)));
  ASSERT_TRUE(committed && (*committed)[0]);
  const Bytes got = run(nodes_[1]->memory->read(region_, Version{1}, 0, 4 * kPage, loop_.now() + seconds(5))).value();
  for (std::uint64_t i = 0; i < got.size(); i += 1021)
    ASSERT_EQ(static_cast<char>(got[i]), byte_of(i / kPage, i % kPage)) << i;
  say();
  EXPECT_EQ(finish(), 0);
}

TEST_F(MappedMemory, APageThatCannotBeHadFailsLoudlyNotAsZeros) {
  write(0, 0, kPages, byte_of);
  start([](Mapping& m, int) { return static_cast<volatile char*>(m.base)[4 * kPage] == 0 ? 1 : 2; });
  for (auto& n : nodes_) n->transport.peers.erase(NodeId{2});
  ASSERT_TRUE(run_until([&] {
    loop_.post([] {});
    return !session_->notices.empty();
  }));
  EXPECT_EQ(session_->notices[0].type, wire::VIEW_FAILED);
  wire::ViewFailed failed;
  ASSERT_TRUE(failed.ParseFromString(session_->notices[0].header));
  EXPECT_EQ(failed.page(), 4u);
  EXPECT_NE(failed.error().message().find("page 4"), std::string::npos);
  EXPECT_EQ(::waitpid(child_, nullptr, WNOHANG), 0) << "it sleeps until its library wakes it with a signal";
}

class SmallMappedMemory : public MappedMemory {
 protected:
  void SetUp() override {
    limit_ = 1 << 20;  // With the working minimum of 4 MiB, far below what is scanned of the other node over and over.
    MappedMemory::SetUp();
  }
};

TEST_F(SmallMappedMemory, ARegionIsScannedAgainAndAgainInLittleRoom) {
  write(0, 0, kPages, byte_of);
  for (int pass = 0; pass < 3; ++pass) {
    start([](Mapping& m, int) {
      for (std::uint64_t p = 0; p < kPages; ++p) {
        for (std::uint64_t i = 0; i < kPage; i += 4096) {
          if (static_cast<volatile char*>(m.base)[p * kPage + i] != byte_of(p, i)) return 1;
        }
      }
      return 0;
    });
    ASSERT_EQ(finish(), 0);
  }
  const auto s = nodes_[0]->memory->status();
  EXPECT_LE(s.cached_bytes, 4u << 20);
  EXPECT_LT(s.counters.faults, 3 * kPages) << "what follows is read ahead";
}

}  // namespace
}  // namespace holo
