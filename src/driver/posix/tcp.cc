#include "driver/posix/tcp.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <deque>

#include "base/log.h"
#include "base/strings.h"
#include "driver/posix/address.h"
#include "driver/posix/errno_text.h"

namespace holo::driver {

struct TcpShared {
  Bytes scratch = Bytes(256 << 10);  // One read buffer for all: delivery is synchronous, so a silent stream costs none.
  std::size_t lingering = 0;
};

namespace {

constexpr int kReadsPerEvent = 4;  // Then other streams get their turn.
constexpr int kAcceptsPerEvent = 64;
constexpr int kUnsentBytes = 256 << 10;  // In the kernel: what is there cannot be overtaken by urgent bytes.
constexpr Duration kLinger = seconds(1);
constexpr std::size_t kMaxLingering = 256;  // Closing streams that wait for their peers; above: closed at once.
constexpr Duration kAcceptPause = milliseconds(100);

void set_option(int fd, int level, int name, int value) {
  // A kernel that lacks one of these is slower or later to notice a dead peer, but works.
  (void)::setsockopt(fd, level, name, &value, sizeof value);
}

void tune(int fd) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  // SO_SNDBUF and SO_RCVBUF are left alone: setting them turns the kernel's own, larger, tuning off.
  set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, kUnsentBytes);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 5);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 2);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 10'000);
}

/// The stream itself. TcpStream owns it; after close() a timer does, until what was queued is written.
class StreamCore : public std::enable_shared_from_this<StreamCore> {
 public:
  StreamCore(AsioLoop& loop, env::Fd fd, std::string peer, std::shared_ptr<TcpShared> shared)
      : loop_(loop),
        peer_(std::move(peer)),
        shared_(std::move(shared)),
        watch_(std::make_unique<FdWatch>(
            loop, std::move(fd),
            FdWatch::Callbacks{.on_readable = [this] { on_readable(); }, .on_writable = [this] { on_writable(); }})) {}

  void start(env::ByteStream::Handlers handlers) {
    handlers_ = std::move(handlers);
    watch_->want_read(!paused_);
    loop_.post([weak = weak_from_this()] {
      auto self = weak.lock();
      if (self && self->watch_ && self->backlog_ <= env::ByteStream::kLowWater) self->tell_writable();
    });
  }

  void write(std::vector<Buffer> parts) {
    if (!watch_ || closing_) return;
    const bool idle = queue_.empty();
    for (auto& p : parts) {
      if (p.empty()) continue;
      backlog_ += p.size();
      queue_.push_back(std::move(p));
    }
    if (idle && !queue_.empty()) flush();
    if (backlog_ > env::ByteStream::kLowWater) above_low_water_ = true;
  }

  std::size_t backlog() const { return backlog_; }
  void set_paused(bool paused) {
    paused_ = paused;
    if (watch_ && handlers_.on_bytes && !closing_) watch_->want_read(!paused);
  }
  const std::string& peer() const { return peer_; }

  /// The owner is gone, or wants no callbacks any more.
  void detach() {
    if (lingering_) --shared_->lingering;
    lingering_ = false;
    handlers_ = {};
    watch_.reset();
    queue_.clear();
  }

  void close() {
    if (!watch_ || closing_) return;
    closing_ = true;
    handlers_ = {};
    if (shared_->lingering >= kMaxLingering) return detach();  // What the kernel took is what the peer gets.
    lingering_ = true;
    ++shared_->lingering;
    linger_ = loop_.call_at(loop_.now() + kLinger, [self = shared_from_this()] { self->detach(); });
    // Reading on keeps the kernel from answering late bytes with a reset, which would take our last words away.
    watch_->want_read(true);
    finish_if_flushed();
  }

 private:
  void flush() {
    while (!queue_.empty()) {
      std::array<iovec, 64> parts;
      std::size_t n = 0;
      for (auto it = queue_.begin(); it != queue_.end() && n < parts.size(); ++it, ++n) {
        const ByteSpan bytes = n == 0 ? it->span().subspan(written_of_first_) : it->span();
        parts[n] = {const_cast<std::byte*>(bytes.data()), bytes.size()};
      }
      msghdr message{};
      message.msg_iov = parts.data();
      message.msg_iovlen = n;
      const ssize_t sent = ::sendmsg(watch_->fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        watch_->want_write(true);
        return;
      }
      if (sent < 0) return fail_later(errno);
      consume(static_cast<std::size_t>(sent));
    }
    watch_->want_write(false);
  }

  void consume(std::size_t sent) {
    backlog_ -= sent;
    while (sent > 0) {
      const std::size_t left = queue_.front().size() - written_of_first_;
      if (sent < left) {
        written_of_first_ += sent;
        return;
      }
      sent -= left;
      written_of_first_ = 0;
      queue_.pop_front();
    }
  }

  void on_writable() {
    const auto self = shared_from_this();
    flush();
    if (closing_) return finish_if_flushed();
    if (watch_ && above_low_water_ && backlog_ <= env::ByteStream::kLowWater) tell_writable();
  }
  void tell_writable() {
    above_low_water_ = false;
    const auto f = handlers_.on_writable;  // A copy: the handler may destroy the stream.
    if (f) f();
  }

  void on_readable() {
    const auto self = shared_from_this();
    for (int i = 0; i < kReadsPerEvent && watch_ && (closing_ || !paused_); ++i) {
      const ssize_t n = ::recv(watch_->fd(), shared_->scratch.data(), shared_->scratch.size(), MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
      if (n < 0) return broken(fail_errno(errno, str("the connection to ", peer_, " broke")).error().message);
      if (n == 0) return broken(str(peer_, " closed the connection"));
      if (closing_) continue;
      const auto f = handlers_.on_bytes;
      f(ByteSpan(shared_->scratch).first(static_cast<std::size_t>(n)));
      if (static_cast<std::size_t>(n) < shared_->scratch.size()) return;
    }
  }

  void fail_later(int error) {
    // write() promised not to call back; and bytes that arrived before the break are still to be read.
    queue_.clear();
    backlog_ = 0;
    watch_->want_write(false);
    loop_.post([weak = weak_from_this(), error] {
      auto self = weak.lock();
      if (!self || !self->watch_) return;
      self->on_readable();
      if (self->watch_) self->broken(str("the connection to ", self->peer_, " broke: ", errno_text(error)));
    });
  }

  void broken(std::string why) {
    const auto self = shared_from_this();
    const auto f = std::move(handlers_.on_closed);
    loop_.cancel(linger_);
    detach();
    if (f) f(Error{.code = Errc::unavailable, .message = std::move(why), .hint = {}, .retryable = true});
  }

  void finish_if_flushed() {
    if (!watch_ || !queue_.empty() || shut_) return;
    shut_ = true;
    ::shutdown(watch_->fd(), SHUT_WR);  // The peer's end of stream, or the linger timer, ends it.
  }

  AsioLoop& loop_;
  const std::string peer_;
  const std::shared_ptr<TcpShared> shared_;
  std::unique_ptr<FdWatch> watch_;  // null: closed
  env::ByteStream::Handlers handlers_;
  std::deque<Buffer> queue_;
  std::size_t written_of_first_ = 0;
  std::size_t backlog_ = 0;
  env::Loop::TimerId linger_ = 0;
  bool above_low_water_ = false;
  bool paused_ = false;
  bool closing_ = false;
  bool shut_ = false;
  bool lingering_ = false;
};

class TcpStream final : public env::ByteStream {
 public:
  explicit TcpStream(std::shared_ptr<StreamCore> core) : core_(std::move(core)) {}
  ~TcpStream() override {
    if (!closed_) core_->detach();
  }
  void start(Handlers handlers) override { core_->start(std::move(handlers)); }
  void write(std::vector<Buffer> parts) override { core_->write(std::move(parts)); }
  std::size_t backlog() const override { return core_->backlog(); }
  void pause() override { core_->set_paused(true); }
  void resume() override { core_->set_paused(false); }
  void close() override {
    closed_ = true;
    core_->close();
  }
  std::string peer_address() const override { return core_->peer(); }

 private:
  std::shared_ptr<StreamCore> core_;
  bool closed_ = false;
};

class ListenerCore : public std::enable_shared_from_this<ListenerCore> {
 public:
  ListenerCore(AsioLoop& loop, env::Fd fd, std::shared_ptr<TcpShared> shared,
               std::function<void(std::unique_ptr<env::ByteStream>)> on_accept)
      : loop_(loop),
        shared_(std::move(shared)),
        on_accept_(std::move(on_accept)),
        watch_(std::make_unique<FdWatch>(
            loop, std::move(fd), FdWatch::Callbacks{.on_readable = [this] { accept_some(); }, .on_writable = {}})) {
    keep_spare();
    watch_->want_read(true);
  }
  void end() {
    watch_.reset();
    loop_.cancel(pause_);
  }
  int fd() const { return watch_->fd(); }
  std::uint64_t turned_away() const { return turned_away_; }

 private:
  void keep_spare() {
    if (!spare_) spare_ = env::Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  }

  void accept_some() {
    const auto self = shared_from_this();
    for (int i = 0; i < kAcceptsPerEvent && watch_; ++i) {
      SocketAddress peer;
      env::Fd fd(::accept4(watch_->fd(), peer.raw(), &peer.length, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!fd) {
        if (errno == EINTR || errno == ECONNABORTED) continue;
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) turn_one_away();
        return;
      }
      tune(fd.get());
      on_accept_(
          std::make_unique<TcpStream>(std::make_shared<StreamCore>(loop_, std::move(fd), to_text(peer), shared_)));
    }
  }

  /// No descriptor is left: spend the spare one on telling the newcomer so. Otherwise it would sit in the backlog and
  /// this loop would spin on a listener that is always ready.
  void turn_one_away() {
    spare_.reset();
    if (env::Fd newcomer(::accept4(watch_->fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)); newcomer) {
      ++turned_away_;
    }
    keep_spare();
    watch_->want_read(false);
    pause_ = loop_.call_at(loop_.now() + (spare_ ? milliseconds(1) : kAcceptPause), [weak = weak_from_this()] {
      auto self = weak.lock();
      if (!self || !self->watch_) return;
      self->keep_spare();
      self->watch_->want_read(true);
    });
  }

  AsioLoop& loop_;
  const std::shared_ptr<TcpShared> shared_;
  const std::function<void(std::unique_ptr<env::ByteStream>)> on_accept_;
  std::unique_ptr<FdWatch> watch_;
  env::Fd spare_;
  env::Loop::TimerId pause_ = 0;
  std::uint64_t turned_away_ = 0;
};

class TcpListener final : public env::Listener {
 public:
  explicit TcpListener(std::shared_ptr<ListenerCore> core) : core_(std::move(core)) {
    SocketAddress bound;
    if (::getsockname(core_->fd(), bound.raw(), &bound.length) == 0) address_ = to_text(bound);
  }
  ~TcpListener() override { core_->end(); }
  std::string address() const override { return address_; }
  std::uint64_t turned_away() const override { return core_->turned_away(); }

 private:
  std::shared_ptr<ListenerCore> core_;
  std::string address_;
};

Task<Result<env::Fd>> connect_until(AsioLoop& loop, SocketAddress to, Instant deadline) {
  env::Fd fd(::socket(to.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) co_return fail_errno(errno, "cannot make a socket");
  tune(fd.get());
  const std::string text = to_text(to);
  if (::connect(fd.get(), to.raw(), to.length) == 0) co_return std::move(fd);
  if (errno != EINPROGRESS) co_return fail(Errc::unavailable, str("cannot reach ", text, ": ", errno_text(errno)));

  auto shot = std::make_shared<OneShot<Result<bool>>>();
  FdWatch watch(loop, std::move(fd), FdWatch::Callbacks{.on_readable = {}, .on_writable = [shot] { shot->set(true); }});
  watch.want_write(true);
  const std::string what = str("connecting to ", text);
  auto ready = co_await env::await_until<bool>(loop, shot, deadline, what);
  if (!ready) co_return std::unexpected(std::move(ready).error());
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(watch.fd(), SOL_SOCKET, SO_ERROR, &error, &length);
  if (error != 0) co_return fail(Errc::unavailable, str("cannot reach ", text, ": ", errno_text(error)));
  co_return watch.release();
}

}  // namespace

TcpCarrier::TcpCarrier(AsioLoop& loop) : loop_(loop), shared_(std::make_shared<TcpShared>()) {}
TcpCarrier::~TcpCarrier() = default;

Task<Result<std::unique_ptr<env::ByteStream>>> TcpCarrier::dial(std::string address, Instant deadline) {
  AsioLoop& loop = loop_;
  const auto shared = shared_;  // This object may end while the dial is under way.
  auto where = parse_host_port(address);
  if (!where) co_return std::unexpected(where.error());
  HostPort host_port = *where;
  auto found = co_await resolve_until(loop, host_port, SocketKind::stream, deadline);
  Error last{.code = Errc::unavailable, .message = str("cannot reach ", address), .hint = {}, .retryable = true};
  if (!found) last = found.error();
  for (std::size_t i = 0; found && i < found->size() && !loop.stopping(); ++i) {
    // Each address gets its share of the time that is left, so that one that swallows packets leaves some to the next.
    const Instant now = loop.now();
    const Instant until =
        deadline == kNever ? kNever : now + (deadline - now) / static_cast<std::int64_t>(found->size() - i);
    const SocketAddress to = (*found)[i];
    auto fd = co_await connect_until(loop, to, until);
    if (fd) {
      co_return std::make_unique<TcpStream>(std::make_shared<StreamCore>(loop, std::move(*fd), to_text(to), shared));
    }
    last = fd.error();
  }
  if (loop.stopping()) co_return fail(Errc::cancelled, str("this node stops; ", address, " was not reached"));
  last.retryable = true;
  co_return std::unexpected(std::move(last));
}

Result<std::unique_ptr<env::Listener>> TcpCarrier::listen(
    std::string address, std::function<void(std::unique_ptr<env::ByteStream>)> on_accept) {
  HOLO_ASSIGN(at, resolve_to_bind(address, SocketKind::stream));
  env::Fd fd(::socket(at.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return fail_bind(errno, address);
  set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (::bind(fd.get(), at.raw(), at.length) != 0 || ::listen(fd.get(), SOMAXCONN) != 0) {
    return fail_bind(errno, address);
  }
  return std::make_unique<TcpListener>(
      std::make_shared<ListenerCore>(loop_, std::move(fd), shared_, std::move(on_accept)));
}

}  // namespace holo::driver
