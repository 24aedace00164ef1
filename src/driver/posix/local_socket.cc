#include "driver/posix/local_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <deque>
#include <numeric>
#include <optional>
#include <unordered_map>

#include "base/log.h"
#include "base/strings.h"
#include "driver/posix/errno_text.h"
#include "driver/posix/files.h"
#include "driver/posix/local_frames.h"

namespace holo::driver {
namespace {

using wire::LocalFrame;
using wire::LocalKind;

constexpr int kReceivesPerEvent = 8;
constexpr int kAcceptsPerEvent = 16;
constexpr Duration kFlush = seconds(1);       // What a closing connection gets for its last words.
constexpr std::size_t kShortRest = 64 << 10;  // Of a message half-way, kept for a process that does not read.
constexpr Duration kAcceptPause = milliseconds(100);

Error gone() {
  return Error{.code = Errc::unavailable, .message = "the process closed its connection", .retryable = true};
}

sockaddr_un socket_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());  // check_socket_path() was asked; the rest is zero.
  return address;
}

/// Makes room for a new socket at `path`, unless somebody listens there or something else lies there.
Status remove_stale_socket(const std::string& path) {
  struct stat st{};
  if (::lstat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) return {};
    return fail_errno(errno, str("cannot look at ", path));
  }
  if (!S_ISSOCK(st.st_mode)) return fail(Errc::refused, str("cannot listen on ", path, ": it is not a socket"));
  const env::Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return fail_errno(errno, "cannot make a socket");
  const sockaddr_un address = socket_address(path);
  const bool answered = ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  if (answered || errno == EAGAIN) {
    return fail(Errc::refused, str("another agent listens on ", path), "stop it first, or use another --state-dir");
  }
  if (errno != ECONNREFUSED) return fail_errno(errno, str("cannot tell whether anyone listens on ", path));
  return remove_file(path);
}

}  // namespace

class LocalSocketServer::Impl : public std::enable_shared_from_this<Impl> {
 public:
  class Connection;

  Impl(AsioLoop& loop, LocalSocketOptions options) : loop_(loop), options_(options) {}

  void serve(std::uint16_t type, Handler handler) { handlers_[type] = std::make_shared<Handler>(std::move(handler)); }
  Status listen(std::string path);
  Result<std::shared_ptr<Connection>> adopt(env::Fd socket);
  void close();

  std::shared_ptr<Handler> handler(std::uint16_t type) const {
    auto it = handlers_.find(type);
    return it == handlers_.end() ? nullptr : it->second;
  }
  void forget(const std::shared_ptr<Connection>& connection);
  /// Ends those that do not read, until what is queued for all is within its bound.
  void shed();

  std::function<void(std::shared_ptr<env::LocalConnection>)> on_connected;
  std::function<void(std::shared_ptr<env::LocalConnection>)> on_closed;

 private:
  friend class Connection;
  void accept_some();
  void admit(env::Fd socket);
  static void refuse(env::Fd socket, const Error& why);

  AsioLoop& loop_;
  const LocalSocketOptions options_;
  std::unordered_map<std::uint16_t, std::shared_ptr<Handler>> handlers_;
  std::unordered_map<std::uint64_t, std::shared_ptr<Connection>> connections_;
  std::uint64_t next_id_ = 1;
  std::size_t total_bytes_ = 0;  ///< Queued for all connections.
  std::unique_ptr<FdWatch> listener_;
  std::string path_;
  env::Loop::TimerId accept_pause_ = 0;
  bool closed_ = false;
};

class LocalSocketServer::Impl::Connection final : public env::LocalConnection,
                                                  public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<Impl> server, env::Fd socket, SessionId id, env::LocalPeer peer)
      : server_(server), loop_(server->loop_), options_(server->options_), id_(id), peer_(peer) {
    watch_ = std::make_unique<FdWatch>(
        server->loop_, std::move(socket),
        FdWatch::Callbacks{.on_readable = [this] { on_readable(); }, .on_writable = [this] { on_writable(); }});
    watch_->want_read(true);
  }
  ~Connection() override { count(0); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  SessionId id() const override { return id_; }
  env::LocalPeer peer() const override { return peer_; }
  bool closed() const override { return closed_; }

  Task<Result<env::LocalReply>> call(env::LocalRequest request, Instant deadline) override {
    const auto self = shared_from_this();
    if (auto ready = may_send(request); !ready) co_return std::unexpected(std::move(ready).error());
    if (calls_.size() >= options_.max_calls) co_return overloaded();
    do {
      ++next_call_;
    } while (next_call_ == 0 || calls_.contains(next_call_));
    const std::uint32_t id = next_call_;
    auto shot = std::make_shared<OneShot<Result<env::LocalReply>>>();
    calls_.emplace(id, shot);
    send(LocalFrame{.type = request.type, .kind = LocalKind::request, .id = id}, request.header,
         std::move(request.payload), std::move(request.fds));
    const std::string what = str("local request ", request.type);
    auto result = co_await env::await_until<env::LocalReply>(loop_, shot, deadline, what);
    self->calls_.erase(id);
    co_return result;
  }

  Status notify(env::LocalRequest request) override {
    HOLO_TRY(may_send(request));
    send(LocalFrame{.type = request.type, .kind = LocalKind::one_way, .id = 0}, request.header,
         std::move(request.payload), std::move(request.fds));
    return {};
  }

  void close() override { end(gone()); }

  /// Ends the connection: `why` is what outstanding calls get.
  void end(Error why) {
    if (closed_) return;
    const auto self = shared_from_this();
    closed_ = true;
    waiting_.clear();
    for (auto& [id, shot] : std::exchange(calls_, {})) shot->set(std::unexpected(why));
    if (watch_ && !outgoing_.empty()) {
      watch_->want_read(false);
      flush_timer_ = loop_.call_at(loop_.now() + kFlush, [self] { self->watch_.reset(); });
    } else {
      watch_.reset();
    }
    if (auto server = server_.lock()) server->forget(self);
  }

  /// Since when it has taken nothing of what is queued for it; nullopt: nothing is.
  [[nodiscard]] std::optional<Instant> stalled() const {
    return outgoing_.empty() || drowned_ ? std::nullopt : std::optional(progress_);
  }
  /// It reads too slowly for what it asks for: what is queued goes now, and the connection once nothing runs in it.
  void drown() {
    log_warn("local", "process ", peer_.pid, " does not read: ", queued_bytes_, " bytes waited for it since ",
             (loop_.now() - progress_).millis(), " ms; its connection is closed");
    const Error why{.code = Errc::overloaded,
                    .message = str(queued_bytes_, " bytes waited here for this process to read them"),
                    .hint = "read faster, or ask for less",
                    .retryable = true};
    drowned_ = true;
    // A message of which it has a part can only be followed by another once the rest is there; a long rest is not kept.
    const bool halfway = outgoing_.front().begun();
    const bool cut = halfway && outgoing_.front().left() > kShortRest;
    while (outgoing_.size() > (halfway && !cut ? 1U : 0U)) outgoing_.pop_back();
    if (!cut) {
      const std::string header = wire::encode_local_error(why);
      outgoing_.emplace_back(LocalFrame{.kind = LocalKind::error}, header, std::vector<Buffer>(),
                             std::vector<env::Fd>());
    }
    count(std::accumulate(outgoing_.begin(), outgoing_.end(), std::size_t{0},
                          [](std::size_t sum, const LocalOutgoing& o) { return sum + o.left(); }));
    loop_.post([weak = weak_from_this(), why] {
      if (auto self = weak.lock()) self->end(why);
    });
  }

 private:
  /// `bytes` are queued now.
  void count(std::size_t bytes) {
    if (const auto server = server_.lock()) server->total_bytes_ = server->total_bytes_ - queued_bytes_ + bytes;
    queued_bytes_ = bytes;
  }

  static std::unexpected<Error> overloaded() {
    return std::unexpected(
        Error{.code = Errc::overloaded, .message = "too much is waiting for this local process", .retryable = true});
  }

  Status may_send(const env::LocalRequest& request) const {
    if (closed_) return std::unexpected(gone());
    HOLO_TRY(check_local_limits(request.header.size(), total_bytes(request.payload), request.fds.size()));
    if (queued_bytes_ > options_.max_queued_bytes) return overloaded();
    return {};
  }

  void send(LocalFrame frame, std::string_view header, std::vector<Buffer> payload, std::vector<env::Fd> fds) {
    if (!watch_ || drowned_) return;
    const bool idle = outgoing_.empty();
    if (idle) progress_ = loop_.now();
    outgoing_.emplace_back(frame, header, std::move(payload), std::move(fds));
    count(queued_bytes_ + outgoing_.back().left());
    if (idle) flush();
    if (const auto server = server_.lock()) server->shed();
  }
  void send_error(std::uint32_t id, const Error& error) {
    const std::string header = wire::encode_local_error(error);
    send(LocalFrame{.type = 0, .kind = LocalKind::error, .id = id}, header, {}, {});
  }

  void flush() {
    while (watch_ && !outgoing_.empty()) {
      LocalOutgoing& first = outgoing_.front();
      const std::size_t before = first.left();
      const int error = first.send(watch_->fd(), MSG_DONTWAIT);
      if (error == EINTR) continue;
      if (error == EAGAIN || error == EWOULDBLOCK) {
        watch_->want_write(true);
        return;
      }
      if (error != 0) return break_later();
      count(queued_bytes_ - (before - first.left()));
      progress_ = loop_.now();
      if (first.left() == 0) outgoing_.pop_front();
    }
    if (watch_) watch_->want_write(false);
  }

  void on_writable() {
    const auto self = shared_from_this();
    flush();
    if (closed_ && outgoing_.empty()) {
      loop_.cancel(flush_timer_);
      watch_.reset();
    }
    serve_waiting();
  }

  /// Callers of call() and notify() do not expect on_closed from inside them.
  void break_later() {
    outgoing_.clear();
    count(0);
    watch_->want_write(false);
    loop_.post([weak = weak_from_this()] {
      if (auto self = weak.lock()) self->end(gone());
    });
  }

  void on_readable() {
    const auto self = shared_from_this();
    for (int i = 0; i < kReceivesPerEvent && !closed_; ++i) {
      auto got = receiver_.receive(watch_->fd(), MSG_DONTWAIT);
      if (!got) return protocol_error(got.error());
      if (*got == LocalReceiver::Got::nothing_yet) return;
      if (*got == LocalReceiver::Got::end) return end(gone());
      while (!closed_) {
        auto message = receiver_.next();
        if (!message) return protocol_error(message.error());
        if (!*message) break;
        on_message(std::move(**message));
      }
    }
  }

  void protocol_error(const Error& error) {
    if (error.code == Errc::malformed) {
      log_warn("local", "closing the connection of process ", peer_.pid, ": ", error.message);
      send_error(0, error);
    }
    end(gone());
  }

  void on_message(LocalMessage message) {
    const std::uint32_t id = message.frame.id;
    switch (message.frame.kind) {
      case LocalKind::reply: {
        env::LocalReply reply{.header = std::move(message.header), .payload = {}, .fds = std::move(message.fds)};
        if (!message.payload.empty()) reply.payload.push_back(std::move(message.payload));
        return answer(id, std::move(reply));
      }
      case LocalKind::error: return answer(id, std::unexpected(wire::decode_local_error(message.header)));
      case LocalKind::request:
      case LocalKind::one_way: return on_request(std::move(message));
    }
  }

  void answer(std::uint32_t id, Result<env::LocalReply> result) {
    auto it = calls_.find(id);
    if (it == calls_.end()) return;  // Its caller stopped waiting.
    const auto shot = it->second;
    calls_.erase(it);
    shot->set(std::move(result));
  }

  void on_request(LocalMessage message) {
    if (serving_ + waiting_.size() >= options_.max_requests) {
      const Error error{
          .code = Errc::overloaded, .message = "too many requests at once on one connection", .retryable = true};
      if (message.frame.id != 0) return send_error(message.frame.id, error);
      log_warn("local", "dropped message ", message.frame.type, " of process ", peer_.pid, ": ", error.message);
      return;
    }
    // A process that asks faster than it reads waits here: its answers must not pile up. What it answers us is still
    // read.
    waiting_.push_back(std::move(message));
    serve_waiting();
  }

  void serve_waiting() {
    while (!closed_ && !waiting_.empty() && queued_bytes_ <= options_.pause_bytes) {
      LocalMessage message = std::move(waiting_.front());
      waiting_.pop_front();
      const auto server = server_.lock();
      if (!server) return;
      const auto handler = server->handler(message.frame.type);
      if (!handler) {
        if (message.frame.id != 0) {
          send_error(message.frame.id,
                     Error{.code = Errc::unsupported,
                           .message = str("this agent does not know local request ", message.frame.type)});
        }
        continue;
      }
      ++serving_;
      env::LocalRequest request{.type = message.frame.type,
                                .header = std::move(message.header),
                                .payload = {},
                                .fds = std::move(message.fds)};
      if (!message.payload.empty()) request.payload.push_back(std::move(message.payload));
      loop_.spawn(run(shared_from_this(), handler, message.frame.id, std::move(request)));
    }
  }

  static Task<void> run(std::shared_ptr<Connection> self, std::shared_ptr<Handler> handler, std::uint32_t id,
                        env::LocalRequest request) {
    const std::shared_ptr<env::LocalConnection> connection = self;
    auto task = (*handler)(connection, std::move(request));
    auto result = co_await task;
    --self->serving_;
    if (self->closed_ || id == 0) co_return;
    if (result) {
      auto fits = check_local_limits(result->header.size(), total_bytes(result->payload), result->fds.size());
      if (!fits) {
        fits.error().code = Errc::over_limit;
        result = std::unexpected(std::move(fits).error());
      }
    }
    if (!result) {
      self->send_error(id, result.error());
    } else {
      self->send(LocalFrame{.type = 0, .kind = LocalKind::reply, .id = id}, result->header, std::move(result->payload),
                 std::move(result->fds));
    }
  }

  const std::weak_ptr<Impl> server_;
  AsioLoop& loop_;
  const LocalSocketOptions options_;
  const SessionId id_;
  const env::LocalPeer peer_;
  std::unique_ptr<FdWatch> watch_;  // null: closed and flushed
  LocalReceiver receiver_;
  std::deque<LocalOutgoing> outgoing_;
  std::size_t queued_bytes_ = 0;
  Instant progress_;      ///< When it last took something, or something was queued for it that had nothing.
  bool drowned_ = false;  ///< It did not read; nothing more is queued for it.
  std::deque<LocalMessage> waiting_;
  std::size_t serving_ = 0;
  std::unordered_map<std::uint32_t, std::shared_ptr<OneShot<Result<env::LocalReply>>>> calls_;
  std::uint32_t next_call_ = 0;
  env::Loop::TimerId flush_timer_ = 0;
  bool closed_ = false;
};

void LocalSocketServer::Impl::shed() {
  while (total_bytes_ > options_.max_total_bytes) {
    std::shared_ptr<Connection> slowest;
    for (const auto& [id, c] : connections_) {
      if (c->stalled() && (!slowest || *c->stalled() < *slowest->stalled())) slowest = c;
    }
    if (!slowest) return;
    slowest->drown();
  }
}

Status LocalSocketServer::Impl::listen(std::string path) {
  HOLO_TRY(check_socket_path(path));
  HOLO_TRY(remove_stale_socket(path));
  env::Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return fail_errno(errno, "cannot make a socket");
  if (::fchmod(socket.get(), 0600) != 0)
    return fail_errno(errno, str("cannot set the mode of ", path));  // Before it can be seen.
  const sockaddr_un address = socket_address(path);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(socket.get(), SOMAXCONN) != 0) {
    return fail_errno(errno, str("cannot listen on ", path));
  }
  path_ = std::move(path);
  listener_ = std::make_unique<FdWatch>(
      loop_, std::move(socket), FdWatch::Callbacks{.on_readable = [this] { accept_some(); }, .on_writable = {}});
  listener_->want_read(true);
  return {};
}

void LocalSocketServer::Impl::accept_some() {
  const auto self = shared_from_this();
  for (int i = 0; i < kAcceptsPerEvent && listener_; ++i) {
    env::Fd socket(::accept4(listener_->fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket) {
      admit(std::move(socket));
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM) return;
    // No descriptor is left. The newcomer waits in the backlog until one is free; without the pause this loop would
    // spin.
    listener_->want_read(false);
    accept_pause_ = loop_.call_at(loop_.now() + kAcceptPause, [weak = weak_from_this()] {
      if (auto impl = weak.lock(); impl && impl->listener_) impl->listener_->want_read(true);
    });
    return;
  }
}

void LocalSocketServer::Impl::refuse(env::Fd socket, const Error& why) {
  const std::string header = wire::encode_local_error(why);
  LocalOutgoing frame(LocalFrame{.kind = LocalKind::error}, header, std::span<const ByteSpan>(),
                      std::span<const int>());
  (void)frame.send(socket.get(),
                   MSG_DONTWAIT);  // A fresh socket takes it whole; if not, the process sees the end only.
}

void LocalSocketServer::Impl::admit(env::Fd socket) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return;
  if (credentials.uid != ::geteuid() && credentials.uid != 0) {
    log_warn("local", "refused process ", credentials.pid, " of uid ", credentials.uid);
    return refuse(std::move(socket),
                  Error{.code = Errc::permission_denied,
                        .message = str("this agent serves uid ", ::geteuid(), " and root, not uid ", credentials.uid)});
  }
  if (connections_.size() >= options_.max_connections) {
    return refuse(std::move(socket), Error{.code = Errc::over_limit,
                                           .message = str("this agent serves ", options_.max_connections,
                                                          " local processes and takes no more"),
                                           .retryable = true});
  }
  (void)adopt(std::move(socket));
}

Result<std::shared_ptr<LocalSocketServer::Impl::Connection>> LocalSocketServer::Impl::adopt(env::Fd socket) {
  if (closed_) return fail(Errc::cancelled, "the local server is closed");
  const int flags = ::fcntl(socket.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return fail_errno(errno, "cannot use a local socket");
  }
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) {
    return fail_errno(errno, "cannot tell whose local socket this is");
  }
  const SessionId id(next_id_++);
  auto connection = std::make_shared<Connection>(
      shared_from_this(), std::move(socket), id,
      env::LocalPeer{.uid = credentials.uid, .gid = credentials.gid, .pid = credentials.pid});
  connections_.emplace(id.value, connection);
  if (on_connected) on_connected(connection);
  return connection;
}

void LocalSocketServer::Impl::forget(const std::shared_ptr<Connection>& connection) {
  if (connections_.erase(connection->id().value) != 0 && on_closed) on_closed(connection);
}

void LocalSocketServer::Impl::close() {
  if (closed_) return;
  closed_ = true;
  loop_.cancel(accept_pause_);
  if (listener_) {
    listener_.reset();
    (void)remove_file(path_);
  }
  const Error why{.code = Errc::cancelled, .message = "this agent is stopping"};
  while (!connections_.empty()) {
    const auto connection = connections_.begin()->second;  // end() takes it out of the map.
    connection->end(why);
  }
}

LocalSocketServer::LocalSocketServer(AsioLoop& loop, LocalSocketOptions options)
    : impl_(std::make_shared<Impl>(loop, options)) {}
LocalSocketServer::~LocalSocketServer() { close(); }
void LocalSocketServer::serve(std::uint16_t type, Handler handler) { impl_->serve(type, std::move(handler)); }
void LocalSocketServer::on_connected(std::function<void(std::shared_ptr<env::LocalConnection>)> f) {
  impl_->on_connected = std::move(f);
}
void LocalSocketServer::on_closed(std::function<void(std::shared_ptr<env::LocalConnection>)> f) {
  impl_->on_closed = std::move(f);
}
Status LocalSocketServer::listen(std::string path) { return impl_->listen(std::move(path)); }
Result<std::shared_ptr<env::LocalConnection>> LocalSocketServer::adopt(env::Fd socket) {
  HOLO_ASSIGN(connection, impl_->adopt(std::move(socket)));
  return connection;
}
void LocalSocketServer::close() { impl_->close(); }

Result<SocketPair> make_socket_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
    return fail_errno(errno, "cannot make a socket pair");
  return SocketPair{.first = env::Fd(fds[0]), .second = env::Fd(fds[1])};
}

}  // namespace holo::driver
