#include "driver/posix/tcp.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "base/random.h"
#include "base/strings.h"
#include "driver/posix/address.h"

namespace holo::driver {
namespace {

constexpr Duration kLimit = seconds(20);
using Stream = std::unique_ptr<env::ByteStream>;

/// One end of a stream, recording what happens to it.
struct End {
  Stream stream;
  Bytes received;
  int writable = 0;
  std::optional<Error> closed;

  void start() {
    stream->start({.on_bytes = [this](ByteSpan b) { received.insert(received.end(), b.begin(), b.end()); },
                   .on_writable = [this] { ++writable; },
                   .on_closed = [this](Error e) { closed = std::move(e); }});
  }
};

Task<void> dial_into(TcpCarrier& carrier, std::string address, Instant deadline, std::optional<Result<Stream>>& out) {
  out = co_await carrier.dial(address, deadline);
}

class Tcp : public testing::Test {
 protected:
  std::unique_ptr<env::Listener> listen(const std::string& address = "127.0.0.1:0") {
    auto l = carrier_.listen(address, [this](Stream s) { accepted_.push_back(std::move(s)); });
    EXPECT_TRUE(l) << l.error().to_string();
    return l ? std::move(*l) : nullptr;
  }
  Result<Stream> dial(const std::string& address, Duration limit = seconds(5)) {
    std::optional<Result<Stream>> out;
    loop_.spawn(dial_into(carrier_, address, loop_.now() + limit, out));
    EXPECT_TRUE(loop_.run_until([&] { return out.has_value(); }, kLimit));
    return std::move(*out);
  }
  /// Two started ends.
  void connect(End& client, End& server) {
    auto listener = listen();
    auto stream = dial(listener->address());
    ASSERT_TRUE(stream) << stream.error().to_string();
    ASSERT_TRUE(loop_.run_until([&] { return accepted_.size() == 1; }, kLimit));
    client.stream = std::move(*stream);
    server.stream = std::move(accepted_.front());
    accepted_.clear();
    client.start();
    server.start();
  }

  AsioLoop loop_;
  TcpCarrier carrier_{loop_};
  std::vector<Stream> accepted_;
};

Bytes noise(std::size_t n) {
  Random random(n);
  Bytes out(n);
  for (auto& b : out) b = static_cast<std::byte>(random.next());
  return out;
}

TEST_F(Tcp, CarriesManyPiecesInOrder) {
  End a;
  End b;
  connect(a, b);
  const Bytes sent = noise(20'000'000);
  const Buffer whole{Bytes(sent)};
  Random random(7);
  std::vector<Buffer> parts;
  for (std::size_t at = 0; at < sent.size();) {
    const std::size_t n = std::min<std::size_t>(random.below(100'000), sent.size() - at);
    parts.push_back(whole.slice(at, n));  // Empty ones too.
    at += n;
  }
  ASSERT_TRUE(loop_.run_until([&] { return a.writable == 1; }, kLimit));
  a.stream->write(std::move(parts));
  EXPECT_GT(a.stream->backlog(), 0U);
  ASSERT_TRUE(loop_.run_until([&] { return b.received.size() == sent.size(); }, kLimit));
  EXPECT_EQ(b.received, sent);
  EXPECT_EQ(a.stream->backlog(), 0U);
  EXPECT_EQ(a.writable, 2) << "once at the start, once when the backlog fell";
}

TEST_F(Tcp, PausedReaderHoldsTheWriter) {
  End a;
  End b;
  connect(a, b);
  b.stream->pause();
  std::size_t written = 0;
  const Buffer chunk(Bytes(64 << 10));
  // What fits into the kernel's buffers goes; after that the backlog stays.
  Instant quiet_since = loop_.now();
  std::size_t backlog = 0;
  ASSERT_TRUE(loop_.run_until(
      [&] {
        while (a.stream->backlog() < env::ByteStream::kHighWater) {
          a.stream->write({chunk});
          written += chunk.size();
          quiet_since = loop_.now();
        }
        if (backlog != a.stream->backlog()) quiet_since = loop_.now();
        backlog = a.stream->backlog();
        return loop_.now() - quiet_since > milliseconds(200);
      },
      kLimit));
  EXPECT_TRUE(b.received.empty());
  b.stream->resume();
  ASSERT_TRUE(loop_.run_until([&] { return b.received.size() == written; }, kLimit));
}

TEST_F(Tcp, CloseDeliversWhatWasWritten) {
  End a;
  End b;
  connect(a, b);
  const Bytes sent = noise(3'000'000);
  b.stream->write({Buffer::copy(as_bytes("unread by the other side"))});
  a.stream->write({Buffer(Bytes(sent))});
  a.stream->close();
  a.stream.reset();
  ASSERT_TRUE(loop_.run_until([&] { return b.closed.has_value(); }, kLimit));
  EXPECT_EQ(b.closed->code, Errc::unavailable);
  EXPECT_EQ(b.received, sent);
  EXPECT_FALSE(a.closed);
}

TEST_F(Tcp, DestroyingInsideACallbackIsFine) {
  End a;
  End b;
  connect(a, b);
  End c;
  Stream victim = std::move(b.stream);
  bool called = false;
  auto listener = listen();
  auto other = dial(listener->address());
  ASSERT_TRUE(other);
  ASSERT_TRUE(loop_.run_until([&] { return accepted_.size() == 1; }, kLimit));
  victim = std::move(accepted_.front());
  victim->start({.on_bytes =
                     [&](ByteSpan) {
                       called = true;
                       victim.reset();
                     },
                 .on_writable = {},
                 .on_closed = [&](Error) { ADD_FAILURE() << "no callback after destruction"; }});
  (*other)->write({Buffer::copy(as_bytes("x"))});
  ASSERT_TRUE(loop_.run_until([&] { return called; }, kLimit));
}

TEST_F(Tcp, DialErrors) {
  EXPECT_EQ(dial("no port").error().code, Errc::invalid_argument);
  std::string gone;
  {
    auto listener = listen();
    gone = listener->address();
  }
  const auto refused = dial(gone);
  EXPECT_EQ(refused.error().code, Errc::unavailable);
  EXPECT_TRUE(refused.error().retryable);
  EXPECT_FALSE(dial("host.invalid:80"));  // `unavailable`, or out of time where the name servers are slow.
  loop_.begin_stop();
  EXPECT_EQ(dial(gone).error().code, Errc::cancelled);
}

TEST_F(Tcp, ListenErrors) {
  auto listener = listen();
  EXPECT_EQ(carrier_.listen(listener->address(), [](Stream) {}).error().code, Errc::already_exists);
  EXPECT_EQ(carrier_.listen("192.0.2.1:0", [](Stream) {}).error().code, Errc::invalid_argument);
  EXPECT_EQ(carrier_.listen("nonsense", [](Stream) {}).error().code, Errc::invalid_argument);
}

TEST_F(Tcp, Ipv6) {
  auto listener = carrier_.listen("[::1]:0", [this](Stream s) { accepted_.push_back(std::move(s)); });
  if (!listener) GTEST_SKIP() << "no IPv6 here: " << listener.error().to_string();
  EXPECT_TRUE((*listener)->address().starts_with("[::1]:"));
  EXPECT_TRUE(dial((*listener)->address()));
}

TEST_F(Tcp, ANameIsTriedOnAllItsAddresses) {
  auto listener = listen();
  const auto port = parse_host_port(listener->address())->port;
  auto stream = dial(str("localhost:", port));  // May have ::1 first, where nobody listens.
  EXPECT_TRUE(stream) << stream.error().to_string();
}

TEST_F(Tcp, WithoutDescriptorsNewcomersAreTurnedAwayAndServiceReturns) {
  auto listener = listen();
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  // The dialling side needs a descriptor of its own: open it first, then take the rest away.
  auto first = dial(listener->address());
  ASSERT_TRUE(first);
  ASSERT_TRUE(loop_.run_until([&] { return accepted_.size() == 1; }, kLimit));

  const int client = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_GE(client, 0);
  rlimit none = before;
  none.rlim_cur = static_cast<rlim_t>(client) + 1;  // No higher number may be opened; the lower ones are filled below.
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  std::vector<env::Fd> filling;
  while (true) {
    env::Fd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!fd) break;
    filling.push_back(std::move(fd));
  }
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(parse_host_port(listener->address())->port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(client, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  EXPECT_TRUE(loop_.run_until([&] { return listener->turned_away() == 1; }, kLimit));
  filling.clear();
  ::close(client);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(dial(listener->address()));
  EXPECT_TRUE(loop_.run_until([&] { return accepted_.size() == 2; }, kLimit));
}

}  // namespace
}  // namespace holo::driver
