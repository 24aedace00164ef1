#include "cmd/holo/kv_load.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <functional>
#include <optional>

#include "base/random.h"
#include "base/strings.h"
#include "env/fd.h"
#include "wire/kv.pb.h"
#include "wire/local.pb.h"
#include "wire/local_frame.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kFillOps = 100;  // Keys to a transaction.
constexpr unsigned kPipeline =
    30;  // Open loop: unanswered writes of one client, all of them fewer than an agent takes.

std::chrono::nanoseconds in_seconds(double s) { return std::chrono::nanoseconds(static_cast<std::int64_t>(s * 1e9)); }
double ms_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
}

struct Pair {
  std::string key, value;
};

/// What one connection speaks. `out` is appended to; answers are cut from the front of `in`.
class Protocol {
 public:
  virtual ~Protocol() = default;
  virtual void begin(std::string& out) = 0;
  /// Returns the request's number.
  virtual std::uint32_t write(const std::vector<Pair>& pairs, std::string& out) = 0;
  virtual std::uint32_t read(const std::string& key, std::string& out) = 0;
  struct Answer {
    std::uint32_t id = 0;
    std::string error;  ///< Empty: done.
  };
  /// nullopt: nothing whole is there. `out`: what the protocol itself has to say.
  virtual Result<std::optional<Answer>> next(std::string& in, std::string& out) = 0;
};

// ---- The agent's local socket

class HoloProtocol final : public Protocol {
 public:
  void begin(std::string& out) override {
    wire::Hello hello;
    hello.set_role(wire::Hello::CLI);
    hello.set_protocol(wire::kLocalProtocol);
    hello.set_build(HOLO_VERSION);
    hello_ = request(wire::HELLO, hello.SerializeAsString(), out);
  }
  std::uint32_t write(const std::vector<Pair>& pairs, std::string& out) override {
    wire::KvTxn txn;
    for (const Pair& p : pairs) {
      auto* put = txn.add_then()->mutable_put();
      put->set_key(p.key);
      put->set_value(p.value);
    }
    return request(wire::KV_TXN, txn.SerializeAsString(), out);
  }
  std::uint32_t read(const std::string& key, std::string& out) override {
    wire::KvGet get;
    get.mutable_range()->set_key(key);
    return request(wire::KV_GET, get.SerializeAsString(), out);
  }
  Result<std::optional<Answer>> next(std::string& in, std::string&) override {
    while (in.size() >= wire::kLocalFrameBytes) {
      HOLO_ASSIGN(frame, wire::decode_local_frame(as_bytes(std::string_view(in).substr(0, wire::kLocalFrameBytes))));
      const std::size_t whole = wire::kLocalFrameBytes + frame.header_bytes + frame.payload_bytes;
      if (in.size() < whole) return std::nullopt;
      const std::string header = in.substr(wire::kLocalFrameBytes, frame.header_bytes);
      in.erase(0, whole);
      Answer answer{.id = frame.id, .error = {}};
      if (frame.kind == wire::LocalKind::error) {
        answer.error = wire::decode_local_error(header).to_string();
        if (frame.id == 0 || frame.id == hello_) return fail(Errc::unavailable, answer.error);
      } else if (frame.kind != wire::LocalKind::reply || frame.id == hello_) {
        continue;
      }
      return std::optional<Answer>(std::move(answer));
    }
    return std::nullopt;
  }

 private:
  std::uint32_t request(wire::LocalMessage type, const std::string& header, std::string& out) {
    const wire::LocalFrame frame{.type = static_cast<std::uint16_t>(type),
                                 .kind = wire::LocalKind::request,
                                 .id = next_id_++,
                                 .header_bytes = static_cast<std::uint32_t>(header.size())};
    const std::size_t at = out.size();
    out.resize(at + wire::kLocalFrameBytes);
    wire::encode_local_frame(frame, std::as_writable_bytes(std::span(out).subspan(at)));
    out += header;
    return frame.id;
  }
  std::uint32_t next_id_ = 1, hello_ = 0;
};

// ---- etcd: gRPC in HTTP/2 (RFC 9113), with literal headers only (RFC 7541, 6.2.2); of answers' headers only that they
// end the stream is looked at

class EtcdProtocol final : public Protocol {
 public:
  explicit EtcdProtocol(std::string authority) : authority_(std::move(authority)) {}
  void begin(std::string& out) override {
    out += "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    frame(kSettings, 0, 0, {}, out);
    std::string window;
    put_u32(window, 0x7fff0000 - 65535);
    frame(kWindowUpdate, 0, 0, window, out);
  }
  std::uint32_t write(const std::vector<Pair>& pairs, std::string& out) override {
    if (pairs.size() == 1) return call("/etcdserverpb.KV/Put", put_of(pairs.front()), out);
    std::string txn;
    for (const Pair& p : pairs) {
      std::string op;
      field(op, 2, put_of(p));  // RequestOp.request_put
      field(txn, 2, op);        // TxnRequest.success
    }
    return call("/etcdserverpb.KV/Txn", txn, out);
  }
  std::uint32_t read(const std::string& key, std::string& out) override {
    std::string range;
    field(range, 1, key);
    return call("/etcdserverpb.KV/Range", range, out);
  }
  Result<std::optional<Answer>> next(std::string& in, std::string& out) override {
    while (in.size() >= 9) {
      const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(in[i])); };
      const std::size_t length = byte(0) << 16 | byte(1) << 8 | byte(2);
      const std::uint32_t type = byte(3), flags = byte(4);
      const std::uint32_t stream = (byte(5) << 24 | byte(6) << 16 | byte(7) << 8 | byte(8)) & 0x7fffffff;
      if (in.size() < 9 + length) return std::nullopt;
      const std::string body = in.substr(9, length);
      in.erase(0, 9 + length);
      switch (type) {
        case kSettings:
          if ((flags & 1) == 0) frame(kSettings, 1, 0, {}, out);
          break;
        case kPing:
          if ((flags & 1) == 0) frame(kPing, 1, 0, body, out);
          break;
        case kData:
          if (length > 0) got_data_ = stream;
          unacknowledged_ += length;
          if (unacknowledged_ > (1 << 20)) {
            std::string window;
            put_u32(window, static_cast<std::uint32_t>(std::exchange(unacknowledged_, 0)));
            frame(kWindowUpdate, 0, 0, window, out);
          }
          break;
        case kGoAway: return fail(Errc::unavailable, "etcd closes the connection");
        case kReset: return std::optional<Answer>(Answer{.id = stream, .error = "etcd gave up the request"});
        default: break;
      }
      if ((type == kHeaders || type == kData) && (flags & 1) != 0) {
        // An error has trailers only, and no data before them.
        const bool done = got_data_ == stream;
        return std::optional<Answer>(Answer{.id = stream, .error = done ? "" : "etcd answers an error"});
      }
    }
    return std::nullopt;
  }

 private:
  enum : std::uint8_t {
    kData = 0,
    kHeaders = 1,
    kReset = 3,
    kSettings = 4,
    kPing = 6,
    kGoAway = 7,
    kWindowUpdate = 8,
  };
  static void put_u32(std::string& out, std::uint32_t v) {
    for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<char>(v >> shift));
  }
  static void frame(std::uint8_t type, std::uint8_t flags, std::uint32_t stream, std::string_view body,
                    std::string& out) {
    for (int shift = 16; shift >= 0; shift -= 8) out.push_back(static_cast<char>(body.size() >> shift));
    out.push_back(static_cast<char>(type));
    out.push_back(static_cast<char>(flags));
    put_u32(out, stream);
    out += body;
  }
  static void varint(std::string& out, std::uint64_t v) {
    for (; v >= 0x80; v >>= 7) out.push_back(static_cast<char>(v | 0x80));
    out.push_back(static_cast<char>(v));
  }
  static void field(std::string& out, unsigned number, std::string_view bytes) {
    varint(out, number << 3 | 2);
    varint(out, bytes.size());
    out += bytes;
  }
  static std::string put_of(const Pair& p) {
    std::string out;
    field(out, 1, p.key);
    field(out, 2, p.value);
    return out;
  }
  static void header(std::string& block, std::string_view name, std::string_view value) {
    block.push_back(0);
    block.push_back(static_cast<char>(name.size()));
    block += name;
    block.push_back(static_cast<char>(value.size()));
    block += value;
  }
  std::uint32_t call(std::string_view path, const std::string& message, std::string& out) {
    const std::uint32_t stream = std::exchange(next_stream_, next_stream_ + 2);
    std::string block;
    header(block, ":method", "POST");
    header(block, ":scheme", "http");
    header(block, ":path", path);
    header(block, ":authority", authority_);
    header(block, "content-type", "application/grpc");
    header(block, "te", "trailers");
    frame(kHeaders, 4, stream, block, out);  // END_HEADERS
    std::string data(1, '\0');
    put_u32(data, static_cast<std::uint32_t>(message.size()));
    data += message;
    constexpr std::size_t kMaxFrame = 16384;
    for (std::size_t at = 0; at < data.size(); at += kMaxFrame) {
      const auto part = std::string_view(data).substr(at, kMaxFrame);
      frame(kData, at + part.size() == data.size() ? 1 : 0, stream, part, out);  // END_STREAM
    }
    return stream;
  }
  std::string authority_;
  std::uint32_t next_stream_ = 1;
  std::uint32_t got_data_ = 0;
  std::size_t unacknowledged_ = 0;
};

Result<env::Fd> connect_to(KvPeer peer, const std::string& address) {
  const auto refused = [&] {
    return fail(Errc::unavailable, str("cannot connect to ", address, ": ", std::strerror(errno)));
  };
  if (peer == KvPeer::holo) {
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    if (address.size() >= sizeof a.sun_path) return fail(Errc::invalid_argument, "a socket's path is too long");
    std::memcpy(a.sun_path, address.c_str(), address.size() + 1);
    env::Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) return refused();
    return fd;
  }
  const auto colon = address.rfind(':');
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(static_cast<std::uint16_t>(std::stoul(address.substr(colon + 1))));
  ::inet_pton(AF_INET, address.substr(0, colon).c_str(), &a.sin_addr);
  env::Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) return refused();
  const int one = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

struct Client {
  env::Fd fd;
  std::unique_ptr<Protocol> protocol;
  std::string in, out;
  bool wants_write = false;
  std::deque<std::pair<std::uint32_t, Clock::time_point>> waiting;
};

}  // namespace

struct KvLoad::Impl {
  env::Fd poll;
  std::vector<Client> clients;
  Random random{42};
  KvFigures figures;

  Pair pair(std::string key) { return {.key = std::move(key), .value = std::string(kValueBytes, 'v')}; }
  Pair random_pair() { return pair(str("bench/", random.below(kKeys))); }

  Status push(Client& c) {
    std::size_t sent = 0;
    while (sent < c.out.size()) {
      const ssize_t n = ::send(c.fd.get(), c.out.data() + sent, c.out.size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) break;
      if (n < 0) return fail(Errc::unavailable, str("the store closed the connection: ", std::strerror(errno)));
      sent += static_cast<std::size_t>(n);
    }
    c.out.erase(0, sent);
    const bool wants = !c.out.empty();
    if (wants != c.wants_write) {
      c.wants_write = wants;
      epoll_event e{};
      e.events = EPOLLIN | (wants ? static_cast<std::uint32_t>(EPOLLOUT) : 0U);
      e.data.u64 = static_cast<std::uint64_t>(&c - clients.data());
      ::epoll_ctl(poll.get(), EPOLL_CTL_MOD, c.fd.get(), &e);
    }
    return {};
  }

  Status ask(Client& c, const std::vector<Pair>& pairs, Clock::time_point due) {
    c.waiting.emplace_back(c.protocol->write(pairs, c.out), due);
    return push(c);
  }

  /// Calls on_answer(client) for each answer that comes until `until`, or until there is one.
  Status turn(Clock::time_point until, const std::function<Status(Client&)>& on_answer) {
    std::array<epoll_event, 128> events{};
    const auto left = std::chrono::duration_cast<std::chrono::microseconds>(until - Clock::now()).count();
    const timespec wait{.tv_sec = left < 0 ? 0 : left / 1'000'000, .tv_nsec = left < 0 ? 0 : left % 1'000'000 * 1000};
    const int n = ::epoll_pwait2(poll.get(), events.data(), events.size(), &wait, nullptr);
    for (int i = 0; i < n; ++i) {
      Client& c = clients[events[static_cast<std::size_t>(i)].data.u64];
      std::array<char, 65536> bytes;
      const ssize_t got = ::recv(c.fd.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
      if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
        return fail(Errc::unavailable, "the store closed the connection");
      }
      if (got > 0) c.in.append(bytes.data(), static_cast<std::size_t>(got));
      for (;;) {
        HOLO_ASSIGN(answer, c.protocol->next(c.in, c.out));
        if (!answer) break;
        const auto it = std::ranges::find(c.waiting, answer->id, &std::pair<std::uint32_t, Clock::time_point>::first);
        if (it == c.waiting.end()) continue;
        const auto due = it->second;
        c.waiting.erase(it);
        if (answer->error.empty()) {
          ++figures.done;
          figures.latencies_ms.push_back(ms_between(due, Clock::now()));
        } else {
          if (figures.failed++ == 0) figures.first_failure = answer->error;
        }
        HOLO_TRY(on_answer(c));
      }
      HOLO_TRY(push(c));
    }
    return {};
  }

  [[nodiscard]] bool idle() const {
    return std::ranges::all_of(clients, [](const Client& c) { return c.waiting.empty(); });
  }
  /// Until all that was asked is answered.
  Status drain(double limit_s) {
    const auto limit = Clock::now() + in_seconds(limit_s);
    while (!idle() && Clock::now() < limit) HOLO_TRY(turn(limit, [](Client&) { return Status{}; }));
    return idle() ? Status{} : fail(Errc::deadline_exceeded, "the store does not answer");
  }
  KvFigures take(Clock::time_point began, Clock::time_point ended) {
    figures.seconds = ms_between(began, ended) / 1000;
    return std::exchange(figures, {});
  }
};

KvLoad::KvLoad() : impl_(std::make_unique<Impl>()) {}
KvLoad::~KvLoad() = default;

Result<std::unique_ptr<KvLoad>> KvLoad::connect(KvPeer peer, const std::vector<std::string>& addresses,
                                                unsigned clients) {
  auto load = std::make_unique<KvLoad>();
  Impl& impl = *load->impl_;
  impl.poll = env::Fd(::epoll_create1(EPOLL_CLOEXEC));
  impl.clients.resize(clients);
  for (unsigned i = 0; i < clients; ++i) {
    Client& c = impl.clients[i];
    const std::string& address = addresses[i % addresses.size()];
    HOLO_ASSIGN(fd, connect_to(peer, address));
    c.fd = std::move(fd);
    if (peer == KvPeer::holo) {
      c.protocol = std::make_unique<HoloProtocol>();
    } else {
      c.protocol = std::make_unique<EtcdProtocol>(address);
    }
    c.protocol->begin(c.out);
    epoll_event e{};
    e.events = EPOLLIN;
    e.data.u64 = i;
    ::epoll_ctl(impl.poll.get(), EPOLL_CTL_ADD, c.fd.get(), &e);
    HOLO_TRY(impl.push(c));
  }
  return load;
}

Result<KvFigures> KvLoad::closed_loop(double seconds) {
  Impl& impl = *impl_;
  impl.figures = {};
  const auto began = Clock::now();
  const auto end = began + in_seconds(seconds);
  for (Client& c : impl.clients) HOLO_TRY(impl.ask(c, {impl.random_pair()}, began));
  while (Clock::now() < end) {
    HOLO_TRY(impl.turn(end, [&](Client& c) { return impl.ask(c, {impl.random_pair()}, Clock::now()); }));
  }
  auto out = impl.take(began, Clock::now());
  HOLO_TRY(impl.drain(30));
  return out;
}

Result<KvFigures> KvLoad::open_loop(double rate, double seconds) {
  Impl& impl = *impl_;
  impl.figures = {};
  const auto began = Clock::now();
  const auto end = began + in_seconds(seconds);
  const auto due = [&](std::uint64_t n) { return began + in_seconds(static_cast<double>(n) / rate); };
  std::uint64_t asked = 0;
  std::size_t next = 0;
  while (Clock::now() < end) {
    const auto now = Clock::now();
    while (due(asked) <= now) {
      std::size_t looked = 0;
      while (looked < impl.clients.size() && impl.clients[next].waiting.size() >= kPipeline) {
        next = (next + 1) % impl.clients.size();
        ++looked;
      }
      if (looked == impl.clients.size()) break;  // All are full; it stays due.
      HOLO_TRY(impl.ask(impl.clients[next], {impl.random_pair()}, due(asked)));
      next = (next + 1) % impl.clients.size();
      ++asked;
    }
    HOLO_TRY(impl.turn(std::min(end, std::max(due(asked), Clock::now() + std::chrono::microseconds(50))),
                       [](Client&) { return Status{}; }));
  }
  const auto ended = Clock::now();
  // What was due and never asked has waited at least until now.
  for (std::uint64_t n = asked; due(n) < ended && n < asked + kMaxBacklog; ++n) {
    impl.figures.latencies_ms.push_back(ms_between(due(n), ended));
  }
  HOLO_TRY(impl.drain(60));
  return impl.take(began, ended);
}

Result<KvFigures> KvLoad::fill(std::uint64_t keys) {
  Impl& impl = *impl_;
  impl.figures = {};
  const auto began = Clock::now();
  std::uint64_t next = 0;
  const auto ask = [&](Client& c) -> Status {
    if (impl.figures.failed > 0) return fail(Errc::refused, impl.figures.first_failure);
    if (next >= keys) return {};
    std::vector<Pair> pairs;
    for (; pairs.size() < kFillOps && next < keys; ++next) pairs.push_back(impl.pair(str("k", next)));
    return impl.ask(c, pairs, Clock::now());
  };
  for (Client& c : impl.clients) HOLO_TRY(ask(c));
  while (!impl.idle()) {
    if (Clock::now() - began > std::chrono::minutes(10)) return fail(Errc::deadline_exceeded, "the store is too slow");
    HOLO_TRY(impl.turn(Clock::now() + std::chrono::seconds(1), ask));
  }
  return impl.take(began, Clock::now());
}

Status KvLoad::read_once(double timeout_s) {
  Impl& impl = *impl_;
  impl.figures = {};
  Client& c = impl.clients.front();
  c.waiting.emplace_back(c.protocol->read("k0", c.out), Clock::now());
  HOLO_TRY(impl.push(c));
  HOLO_TRY(impl.drain(timeout_s));
  if (impl.figures.failed > 0) return fail(Errc::unavailable, impl.figures.first_failure);
  return {};
}

Status KvLoad::write_once(double timeout_s) {
  Impl& impl = *impl_;
  impl.figures = {};
  HOLO_TRY(impl.ask(impl.clients.front(), {impl.random_pair()}, Clock::now()));
  HOLO_TRY(impl.drain(timeout_s));
  if (impl.figures.failed > 0) return fail(Errc::unavailable, impl.figures.first_failure);
  return {};
}

}  // namespace holo::cmd
