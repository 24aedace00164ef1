// Both ends of the local socket: the agent's on the loop, the program's on threads.
#include "driver/posix/local_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <future>
#include <thread>

#include "base/random.h"
#include "base/strings.h"
#include "driver/posix/local_client.h"
#include "driver/posix/local_frames.h"

namespace holo::driver {
namespace {

using env::LocalConnection;
using env::LocalReply;
using env::LocalRequest;
using Connection = std::shared_ptr<LocalConnection>;

enum : std::uint16_t { kEcho = 1, kFail, kSilent, kFds, kSum, kBig, kNote, kCallBack };

Bytes noise(std::size_t n) {
  Random random(n);
  Bytes out(n);
  for (auto& b : out) b = static_cast<std::byte>(random.next());
  return out;
}

Task<Result<LocalReply>> echo(Connection, LocalRequest request) {
  co_return LocalReply{.header = request.header, .payload = request.payload, .fds = std::move(request.fds)};
}
Task<Result<LocalReply>> refuse(Connection, LocalRequest) {
  co_return std::unexpected(Error{
      .code = Errc::page_lost, .message = "page 7 is gone\xff", .hint = "restore it", .node = 42, .retryable = true});
}
Task<Result<LocalReply>> wait_for_ever(env::Loop& loop, Connection, LocalRequest) {
  (void)co_await env::sleep_for(loop, seconds(1000));
  co_return fail(Errc::cancelled, "stopping");
}

/// An agent's socket on a loop of its own thread.
class Agent {
 public:
  explicit Agent(LocalSocketOptions options = {}) : server_(std::make_unique<LocalSocketServer>(loop_, options)) {
    std::string name = testing::TempDir() + "holo-local-XXXXXX";
    directory_ = ::mkdtemp(name.data());
    server_->serve(kEcho, echo);
    server_->serve(kFail, refuse);
    server_->serve(kSilent, [this](Connection c, LocalRequest r) { return wait_for_ever(loop_, c, std::move(r)); });
    server_->serve(kNote, [this](Connection c, LocalRequest r) {
      ++notes;
      return echo(c, std::move(r));
    });
    server_->serve(kBig, [](Connection c, LocalRequest r) {
      r.payload = {Buffer(noise(std::stoul(r.header)))};
      return echo(c, std::move(r));
    });
    server_->on_connected([this](Connection c) { connections.push_back(c); });
    server_->on_closed([this](Connection c) {
      EXPECT_TRUE(c->closed());
      std::erase(connections, c);
      ++closed;
    });
    auto status = server_->listen(path());
    EXPECT_TRUE(status) << status.error().to_string();
    thread_ = std::thread([this] { loop_.run(); });
  }
  ~Agent() {
    on_loop([this] {
      server_.reset();
      loop_.begin_stop();
      return 0;
    });
    until([this] { return loop_.running() == 0; });
    loop_.stop();
    thread_.join();
    connections.clear();
    std::filesystem::remove_all(directory_);
  }
  std::string path() const { return directory_ + "/agent.sock"; }

  /// Runs `f` on the loop and returns what it returned.
  template <class F>
  std::invoke_result_t<F> on_loop(F f) {
    std::promise<std::invoke_result_t<F>> result;
    auto future = result.get_future();
    loop_.post([&] { result.set_value(f()); });
    return future.get();
  }
  bool until(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!on_loop(condition)) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }
  std::unique_ptr<LocalClient> client(LocalClient::Options options = {}) {
    auto c = LocalClient::connect(path(), std::move(options));
    EXPECT_TRUE(c) << c.error().to_string();
    return c ? std::move(*c) : nullptr;
  }

  AsioLoop loop_;
  std::unique_ptr<LocalSocketServer> server_;
  std::vector<Connection> connections;  // loop
  int closed = 0;                       // loop
  int notes = 0;                        // loop
  std::string directory_;
  std::thread thread_;
};

TEST(LocalSocket, CallAndAnswer) {
  Agent agent;
  auto client = agent.client();
  const Bytes a = noise(100'000);
  const Bytes b = noise(7);
  const std::vector<ByteSpan> payload{a, {}, b};
  auto reply = client->call({.type = kEcho, .header = "hello", .payload = payload});
  ASSERT_TRUE(reply) << reply.error().to_string();
  EXPECT_EQ(reply->header, "hello");
  EXPECT_EQ(reply->payload_bytes, a.size() + b.size());
  Bytes both = a;
  both.insert(both.end(), b.begin(), b.end());
  EXPECT_EQ(reply->payload, both);
  auto empty = client->call({.type = kEcho});
  ASSERT_TRUE(empty);
  EXPECT_TRUE(empty->header.empty());
  EXPECT_TRUE(empty->payload.empty());
}

TEST(LocalSocket, ErrorsTravelWhole) {
  Agent agent;
  auto client = agent.client();
  const auto reply = client->call({.type = kFail});
  ASSERT_FALSE(reply);
  EXPECT_EQ(
      reply.error(),
      (Error{
          .code = Errc::page_lost, .message = "page 7 is gone?", .hint = "restore it", .node = 42, .retryable = true}));
  EXPECT_EQ(client->call({.type = 999}).error().code, Errc::unsupported);
  EXPECT_EQ(client->call({.type = kSilent, .timeout = milliseconds(20)}).error().code, Errc::deadline_exceeded);
  EXPECT_TRUE(client->call({.type = kEcho})) << "the connection goes on";
}

TEST(LocalSocket, LargestPayloadStraightIntoTheCallersMemory) {
  Agent agent;
  auto client = agent.client();
  const Bytes sent = noise(limits::kMaxPayloadBytes);
  const std::vector<ByteSpan> payload{sent};
  Bytes into(limits::kMaxPayloadBytes + 5);
  auto reply = client->call({.type = kEcho, .payload = payload, .into = into});
  ASSERT_TRUE(reply) << reply.error().to_string();
  EXPECT_EQ(reply->payload_bytes, sent.size());
  EXPECT_TRUE(reply->payload.empty());
  EXPECT_TRUE(std::equal(sent.begin(), sent.end(), into.begin()));
  Bytes small(10);
  EXPECT_EQ(client->call({.type = kEcho, .payload = payload, .into = small}).error().code, Errc::over_limit);
  EXPECT_EQ(small, Bytes(10));
}

TEST(LocalSocket, LimitsAreToldBeforeAnythingIsSent) {
  Agent agent;
  auto client = agent.client();
  const Bytes big(limits::kMaxPayloadBytes + 1);
  const std::vector<ByteSpan> payload{big};
  EXPECT_EQ(client->call({.type = kEcho, .payload = payload}).error().code, Errc::invalid_argument);
  const std::string header(limits::kMaxHeaderBytes + 1, 'x');
  EXPECT_EQ(client->call({.type = kEcho, .header = header}).error().code, Errc::invalid_argument);
  const std::vector<int> fds(env::kMaxLocalFds + 1, 0);
  EXPECT_EQ(client->call({.type = kEcho, .fds = fds}).error().code, Errc::invalid_argument);
  EXPECT_EQ(client->call({.type = kBig, .header = std::to_string(limits::kMaxPayloadBytes + 1)}).error().code,
            Errc::over_limit);
  EXPECT_TRUE(client->call({.type = kEcho, .header = std::string(limits::kMaxHeaderBytes, 'x')}));
}

TEST(LocalSocket, DescriptorsBothWays) {
  Agent agent;
  auto client = agent.client();
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  const env::Fd read_end(fds[0]);
  const env::Fd write_end(fds[1]);
  const std::vector<int> sent(env::kMaxLocalFds, write_end.get());
  const Bytes filler = noise(300'000);
  const std::vector<ByteSpan> payload{filler};
  // Several at once, so that descriptors and bytes of different frames meet in the sockets.
  std::vector<std::thread> threads;
  std::atomic<int> written = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 25; ++i) {
        const std::span<const int> some(sent.data(), static_cast<std::size_t>(i) % (sent.size() + 1));
        auto reply = client->call({.type = kEcho, .payload = payload, .fds = some});
        ASSERT_TRUE(reply) << reply.error().to_string();
        ASSERT_EQ(reply->fds.size(), some.size());
        for (const auto& fd : reply->fds) {
          ASSERT_EQ(::write(fd.get(), "x", 1), 1);
          ASSERT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
          ++written;
        }
      }
    });
  }
  for (auto& t : threads) t.join();
  std::string all(1000, '\0');
  EXPECT_EQ(::read(read_end.get(), all.data(), all.size()), written.load());
}

TEST(LocalSocket, ManyThreadsManyCalls) {
  Agent agent;
  auto client = agent.client();
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const std::string header = str(t, "/", i);
        const auto reply = client->call({.type = kEcho, .header = header});
        ASSERT_TRUE(reply) << reply.error().to_string();
        ASSERT_EQ(reply->header, header);
      }
    });
  }
  for (auto& t : threads) t.join();
}

Task<Result<LocalReply>> ask_back(Connection connection, LocalRequest request, Instant deadline) {
  LocalRequest inner{.type = kSum, .header = request.header, .payload = std::move(request.payload), .fds = {}};
  co_return co_await connection->call(std::move(inner), deadline);
}

TEST(LocalSocket, TheAgentAsksTheProcess) {
  Agent agent;
  agent.server_->serve(kCallBack, [&](Connection c, LocalRequest r) {
    return ask_back(c, std::move(r), agent.loop_.now() + seconds(10));
  });
  LocalClient* answering = nullptr;
  std::promise<std::uint16_t> one_way;
  auto client = agent.client({.on_request = [&](std::uint32_t id, LocalRequest r) {
    if (id == 0) return one_way.set_value(r.type);
    if (r.header == "fail") return (void)answering->reply(id, fail(Errc::task_failed, "it threw"));
    (void)answering->reply(id, LocalReply{.header = r.header + "!", .payload = std::move(r.payload), .fds = {}});
  }});
  answering = client.get();
  const Bytes sent = noise(2'000'000);
  const std::vector<ByteSpan> payload{sent};
  const auto reply = client->call({.type = kCallBack, .header = "yes", .payload = payload});
  ASSERT_TRUE(reply) << reply.error().to_string();
  EXPECT_EQ(reply->header, "yes!");
  EXPECT_EQ(reply->payload, sent);
  EXPECT_EQ(client->call({.type = kCallBack, .header = "fail"}).error().code, Errc::task_failed);
  EXPECT_TRUE(agent.on_loop([&] { return agent.connections.at(0)->notify({.type = 77}); }));
  EXPECT_EQ(one_way.get_future().get(), 77);
  EXPECT_TRUE(client->notify({.type = kNote}));
  EXPECT_TRUE(agent.until([&] { return agent.notes == 1; }));

  auto deaf = agent.client();  // Without on_request.
  EXPECT_EQ(deaf->call({.type = kCallBack}).error().code, Errc::unsupported);
}

TEST(LocalSocket, TheAgentsEndFailsWaitingCalls) {
  auto agent = std::make_unique<Agent>();
  std::promise<Error> closed;
  auto client = agent->client({.on_request = {}, .on_closed = [&](Error e) { closed.set_value(e); }});
  auto waiting = std::async(std::launch::async, [&] { return client->call({.type = kSilent}); });
  ASSERT_TRUE(agent->until([&] { return agent->loop_.running() == 1; }));
  agent.reset();
  EXPECT_EQ(waiting.get().error().code, Errc::unavailable);
  EXPECT_EQ(closed.get_future().get().code, Errc::unavailable);
  EXPECT_FALSE(client->connected());
  EXPECT_EQ(client->call({.type = kEcho}).error().code, Errc::unavailable);
}

TEST(LocalSocket, TheProcessesEndIsSeenAndItsCallsFail) {
  Agent agent;
  auto client = agent.client({.on_request = [](std::uint32_t, LocalRequest) {}});  // Never answers.
  ASSERT_TRUE(agent.until([&] { return agent.connections.size() == 1; }));
  std::optional<Result<LocalReply>> result;
  const auto asking = [](Connection c, Instant deadline, std::optional<Result<LocalReply>>* out) -> Task<void> {
    LocalRequest request{.type = kSum};
    *out = co_await c->call(std::move(request), deadline);
  };
  agent.on_loop([&] {
    agent.loop_.spawn(asking(agent.connections[0], agent.loop_.now() + seconds(100), &result));
    return 0;
  });
  client.reset();
  ASSERT_TRUE(agent.until([&] { return agent.closed == 1; }));
  EXPECT_TRUE(agent.on_loop([&] { return result && result->error().code == Errc::unavailable; }));
  EXPECT_TRUE(agent.on_loop([&] { return agent.connections.empty(); }));
}

TEST(LocalSocket, DestroyingTheClientCancelsItsCalls) {
  Agent agent;
  auto client =
      agent.client({.on_request = {}, .on_closed = [](Error) { ADD_FAILURE() << "not after our own close"; }});
  LocalClient* raw = client.get();
  auto waiting = std::async(std::launch::async, [&] { return raw->call({.type = kSilent}); });
  ASSERT_TRUE(agent.until([&] { return agent.loop_.running() == 1; }));
  client.reset();
  EXPECT_EQ(waiting.get().error().code, Errc::cancelled);
}

TEST(LocalSocket, TooManySessionsAreAnswered) {
  Agent agent({.max_connections = 2});
  auto a = agent.client();
  auto b = agent.client();
  ASSERT_TRUE(a->call({.type = kEcho}) && b->call({.type = kEcho}));
  auto c = agent.client();
  EXPECT_EQ(c->call({.type = kEcho}).error().code, Errc::over_limit);
  a.reset();
  ASSERT_TRUE(agent.until([&] { return agent.closed == 1; }));
  auto d = agent.client();
  EXPECT_TRUE(d->call({.type = kEcho}));
}

TEST(LocalSocket, TooManyRequestsAreOverloaded) {
  Agent agent({.max_requests = 2});
  auto client = agent.client();
  auto first = std::async(std::launch::async, [&] { return client->call({.type = kSilent, .timeout = seconds(10)}); });
  auto second = std::async(std::launch::async, [&] { return client->call({.type = kSilent, .timeout = seconds(10)}); });
  ASSERT_TRUE(agent.until([&] { return agent.loop_.running() == 2; }));
  const auto third = client->call({.type = kEcho});
  EXPECT_EQ(third.error().code, Errc::overloaded);
  EXPECT_TRUE(third.error().retryable);
  agent.on_loop([&] {
    agent.connections[0]->close();
    return 0;
  });
  EXPECT_FALSE(first.get());
  EXPECT_FALSE(second.get());
}

TEST(LocalSocket, AProcessThatDoesNotReadIsBounded) {
  Agent agent({.pause_bytes = 1 << 20, .max_queued_bytes = 4 << 20});
  auto pair = make_socket_pair();
  ASSERT_TRUE(pair);
  auto connection = agent.on_loop([&] { return agent.server_->adopt(std::move(pair->first)).value(); });
  const Buffer megabyte(Bytes(1 << 20));
  int taken = 0;
  const auto status = agent.on_loop([&] {
    while (true) {
      auto s = connection->notify({.type = kNote, .header = {}, .payload = {megabyte}, .fds = {}});
      if (!s || ++taken > 100) return s;
    }
  });
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, Errc::overloaded);
  EXPECT_LE(taken, 6);
}

/// What a client without manners would do.
class RawClient {
 public:
  explicit RawClient(const std::string& path) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  void send(ByteSpan bytes) { (void)!::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  /// The error the agent closes with.
  Error last_words() {
    LocalReceiver receiver;
    Error error;
    while (true) {
      auto got = receiver.receive(fd_.get(), 0);
      if (!got || *got == LocalReceiver::Got::end) return error;
      while (true) {
        auto m = receiver.next();
        if (!m || !*m) break;
        if ((*m)->frame.kind == wire::LocalKind::error) error = wire::decode_local_error((*m)->header);
      }
    }
  }
  env::Fd fd_;
};

TEST(LocalSocket, ManyThatDoNotReadAreBoundedTogetherAndToldAndOthersAreServed) {
  constexpr std::size_t kAnswer = 300'000;  // More than the kernel takes.
  Agent agent({.max_total_bytes = 4 << 20});
  auto reader = agent.client();
  std::vector<std::unique_ptr<RawClient>> silent;
  const auto ask = [](RawClient& who) {
    const std::string header = std::to_string(kAnswer);
    Bytes bytes(wire::kLocalFrameBytes);
    wire::encode_local_frame({.type = kBig, .id = 1, .header_bytes = static_cast<std::uint32_t>(header.size())}, bytes);
    const ByteSpan text = as_bytes(header);
    bytes.insert(bytes.end(), text.begin(), text.end());
    who.send(bytes);
  };
  for (int i = 0; i < 100; ++i) {
    silent.push_back(std::make_unique<RawClient>(agent.path()));
    ask(*silent.back());
    const auto answer = reader->call({.type = kBig, .header = std::to_string(kAnswer)});
    ASSERT_TRUE(answer) << answer.error().to_string();
    ASSERT_EQ(answer->payload.size(), kAnswer);
  }
  ASSERT_TRUE(agent.until([&] { return agent.connections.size() < 60; })) << "those that read nothing for longest go";
  EXPECT_GE(agent.connections.size(), 10U) << "and no more than has to";
  EXPECT_TRUE(reader->call({.type = kEcho, .header = "still here"}));
  // Whoever was ended finds that out: what it gets ends, in the middle or with the reason.
  Bytes bytes(1 << 20);
  ssize_t n = 0;
  while ((n = ::recv(silent.front()->fd_.get(), bytes.data(), bytes.size(), 0)) > 0) {
  }
  EXPECT_EQ(n, 0);
}

TEST(LocalSocket, RequestsOfAProcessThatDoesNotReadWait) {
  Agent agent({.pause_bytes = 100'000});
  int begun = 0;  // loop
  agent.server_->serve(kSum, [&](Connection c, LocalRequest r) {
    ++begun;
    r.payload = {Buffer(Bytes(1 << 20))};
    return echo(c, std::move(r));
  });
  RawClient client(agent.path());
  std::array<std::byte, wire::kLocalFrameBytes> frame;
  for (std::uint32_t i = 1; i <= 20; ++i) {
    wire::encode_local_frame({.type = kSum, .id = i}, frame);
    client.send(frame);
  }
  wire::encode_local_frame({.type = kNote, .kind = wire::LocalKind::reply, .id = 7}, frame);
  frame[0] = std::byte{0};  // An answer to nothing: read, although requests wait, and ignored.
  client.send(frame);
  ASSERT_TRUE(agent.until([&] { return begun > 0; }));
  EXPECT_LT(agent.on_loop([&] { return begun; }), 5);
  // Once it reads, all are answered, in order.
  LocalReceiver receiver;
  std::uint32_t answered = 0;
  while (answered < 20) {
    ASSERT_EQ(receiver.receive(client.fd_.get(), 0).value(), LocalReceiver::Got::bytes);
    for (auto m = receiver.next(); m.value(); m = receiver.next()) EXPECT_EQ((*m)->frame.id, ++answered);
  }
  EXPECT_EQ(agent.on_loop([&] { return begun; }), 20);
}

TEST(LocalSocket, GarbageClosesThatConnectionOnly) {
  Agent agent;
  auto good = agent.client();
  RawClient bad(agent.path());
  bad.send(noise(10'000));
  EXPECT_EQ(bad.last_words().code, Errc::malformed);
  RawClient promises(agent.path());  // Announces descriptors that do not come.
  std::array<std::byte, wire::kLocalFrameBytes> frame;
  wire::encode_local_frame({.type = kEcho, .fds = 3, .id = 1}, frame);
  promises.send(frame);
  EXPECT_EQ(promises.last_words().code, Errc::malformed);
  EXPECT_TRUE(good->call({.type = kEcho}));
}

TEST(LocalSocket, DescriptorsNobodyAnnouncedDoNotPileUp) {
  Agent agent;
  RawClient bad(agent.path());
  const std::vector<int> fds(8, bad.fd_.get());
  std::array<std::byte, wire::kLocalFrameBytes> frame;
  wire::encode_local_frame({.type = kEcho, .kind = wire::LocalKind::one_way}, frame);
  for (int i = 0; i < 3; ++i) {
    // A frame that says "no descriptors", sent with eight.
    char control[CMSG_SPACE(8 * sizeof(int))] = {};
    iovec part{frame.data(), frame.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(8 * sizeof(int));
    std::memcpy(CMSG_DATA(c), fds.data(), 8 * sizeof(int));
    (void)::sendmsg(bad.fd_.get(), &message, MSG_NOSIGNAL);
  }
  EXPECT_EQ(bad.last_words().code, Errc::malformed);
}

TEST(LocalSocket, PathsAndStaleFiles) {
  AsioLoop loop;
  Agent agent;
  struct stat st{};
  ASSERT_EQ(::stat(agent.path().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600U);

  LocalSocketServer second(loop);
  EXPECT_EQ(second.listen(agent.path()).error().code, Errc::refused) << "somebody listens there";
  EXPECT_EQ(second.listen("/tmp/" + std::string(200, 'x')).error().code, Errc::invalid_argument);
  EXPECT_EQ(second.listen(agent.directory_ + "/no/where").error().code, Errc::not_found);
  const std::string file = agent.directory_ + "/file";
  ASSERT_GE(env::Fd(::open(file.c_str(), O_CREAT | O_WRONLY, 0600)).get(), 0);
  EXPECT_EQ(second.listen(file).error().code, Errc::refused) << "not a socket";

  const std::string stale = agent.directory_ + "/stale";
  {
    const env::Fd dead(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, stale.data(), stale.size());
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  EXPECT_EQ(LocalClient::connect(stale, {}).error().code, Errc::unavailable);
  EXPECT_TRUE(second.listen(stale));
  second.close();
  EXPECT_NE(::access(stale.c_str(), F_OK), 0) << "removed at close";
  EXPECT_EQ(LocalClient::connect(agent.directory_ + "/nothing", {}).error().code, Errc::unavailable);
  EXPECT_EQ(LocalClient::connect("/tmp/" + std::string(200, 'x'), {}).error().code, Errc::invalid_argument);
}

TEST(LocalSocket, OtherUsersAreRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  // The other way round: an agent of an ordinary user would refuse us were we not root. So the test's process steps
  // down for connecting: root's agent must refuse uid 65534.
  Agent agent;
  ASSERT_EQ(::chmod(agent.path().c_str(), 0666), 0);
  ASSERT_EQ(::chmod(agent.directory_.c_str(), 0755), 0);
  std::optional<Error> said;
  std::thread other([&] {
    // Only this thread changes its uid (the raw system call, unlike glibc's wrapper, does not tell the others).
    ASSERT_EQ(::syscall(SYS_setresuid, 65534, 65534, -1), 0);
    RawClient client(agent.path());
    said = client.last_words();
  });
  other.join();
  ASSERT_TRUE(said);
  EXPECT_EQ(said->code, Errc::permission_denied);
}

TEST(LocalSocket, ClientAndAgentOverASocketPair) {
  Agent agent;
  auto pair = make_socket_pair();
  ASSERT_TRUE(pair);
  agent.on_loop([&] { return agent.server_->adopt(std::move(pair->first)).value(); });
  auto client = LocalClient::adopt(std::move(pair->second), {});
  ASSERT_TRUE(client);
  EXPECT_EQ((*client)->call({.type = kEcho, .header = "x"})->header, "x");
}

}  // namespace
}  // namespace holo::driver
