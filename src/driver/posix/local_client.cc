#include "driver/posix/local_client.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/strings.h"
#include "driver/posix/errno_text.h"
#include "driver/posix/files.h"
#include "driver/posix/local_frames.h"

namespace holo::driver {
namespace {

using Clock = std::chrono::steady_clock;
using wire::LocalFrame;
using wire::LocalKind;

/// A frame that has begun must be finished, or nothing can follow it: so much longer than its deadline it may take.
constexpr auto kFrameGrace = std::chrono::seconds(5);
constexpr Duration kReplyTimeout = seconds(30);

Clock::time_point after(Duration d) {
  const auto now = Clock::now();
  const auto most = Clock::time_point::max() - now;
  return now + std::min<Clock::duration>(std::chrono::nanoseconds(d.ns), most - std::chrono::hours(1));
}

/// Milliseconds until `when` for poll(2), rounded up.
int poll_ms(Clock::time_point when) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(when - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 60'000));
}

Error agent_gone() {
  return Error{.code = Errc::unavailable,
               .message = "the agent closed the connection: it stopped or died",
               .hint = "holo status shows whether it runs",
               .retryable = true};
}

Result<env::Fd> connect_socket(const std::string& path, Clock::time_point deadline) {
  HOLO_TRY(check_socket_path(path));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  while (true) {
    env::Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) return fail_errno(errno, "cannot make a socket");
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return fd;
    switch (errno) {
      case EINTR: continue;
      case EAGAIN: break;  // Its backlog is full.
      case ENOENT:
      case ECONNREFUSED:
        return fail(Errc::unavailable, str("no agent answers at ", path), "start one with holo agent, or holo dev up");
      default: return fail_errno(errno, str("cannot reach the agent at ", path));
    }
    if (Clock::now() >= deadline) {
      return fail(Errc::deadline_exceeded,
                  str("the agent at ", path, " accepts no connection: it is overloaded or stopped"));
    }
    ::poll(nullptr, 0,
           std::min(5, poll_ms(deadline)));  // There is nothing to wait on: the kernel has no event for this.
  }
}

}  // namespace

class LocalClient::Impl {
 public:
  Impl(env::Fd socket, Options options)
      : socket_(std::move(socket)),
        options_(std::move(options)),
        receiver_([this](const LocalFrame& f) { return place(f); }) {
    reader_ = std::thread([this] { read(); });
  }

  ~Impl() {
    closing_ = true;
    ::shutdown(socket_.get(), SHUT_RDWR);  // Wakes the reader and every writer.
    reader_.join();
    std::unique_lock lock(mutex_);
    unused_.wait(lock, [this] { return users_ == 0; });
  }

  Result<Reply> call(const Call& call) {
    const Use use(*this);
    return wait_for_answer(call);
  }
  Status send(LocalFrame frame, const Call& call, Duration timeout) {
    const Use use(*this);
    return write_call(frame, call, after(timeout));
  }
  bool connected() const { return !ended_; }
  int socket() const { return socket_.get(); }

 private:
  /// A call on its way through this object, which must not go before it has left.
  class Use {
   public:
    explicit Use(Impl& impl) : impl_(impl) {
      std::lock_guard lock(impl_.mutex_);
      ++impl_.users_;
    }
    ~Use() {
      std::lock_guard lock(impl_.mutex_);
      if (--impl_.users_ == 0) impl_.unused_.notify_all();
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    Impl& impl_;
  };

  struct Waiting {
    std::condition_variable done_or_failed;
    MutableByteSpan into;
    bool receiving = false;  // The reader writes into `into` now.
    bool done = false;
    Result<Reply> result = std::unexpected(Error{});
  };

  Result<Reply> wait_for_answer(const Call& call);
  Status write_call(LocalFrame frame, const Call& call, Clock::time_point deadline);
  void read();
  Status read_some();
  void on_message(LocalMessage message);
  std::optional<MutableByteSpan> place(const LocalFrame& frame);
  void finish(std::uint32_t id, Result<Reply> result);
  void fail_all(const Error& why);
  Status write(LocalOutgoing frame, Clock::time_point deadline);
  Error ended_error();

  const env::Fd socket_;
  const Options options_;
  LocalReceiver receiver_;  // the reader thread's
  Bytes payload_;  // the reader thread's: of the reply that is arriving, unless it goes into the caller's memory
  std::timed_mutex writing_;  // one frame at a time
  std::mutex mutex_;          // guards users_, waiting_, next_id_, why_ and the Waiting objects
  std::condition_variable unused_;
  std::size_t users_ = 0;
  std::unordered_map<std::uint32_t, std::shared_ptr<Waiting>> waiting_;
  std::uint32_t next_id_ = 0;
  std::optional<Error> why_;  // set once the connection has ended
  std::atomic<bool> ended_ = false;
  std::atomic<bool> closing_ = false;
  std::thread reader_;
};

Error LocalClient::Impl::ended_error() {
  std::lock_guard lock(mutex_);
  return why_.value_or(agent_gone());
}

Status LocalClient::Impl::write(LocalOutgoing frame, Clock::time_point deadline) {
  std::unique_lock writing(writing_, deadline);
  if (!writing) return fail(Errc::deadline_exceeded, "the agent does not take requests fast enough");
  while (frame.left() > 0) {
    if (ended_) return std::unexpected(ended_error());
    const int error = frame.send(socket_.get(), MSG_DONTWAIT);
    if (error == 0 || error == EINTR) continue;
    if (error != EAGAIN && error != EWOULDBLOCK) {
      // The reader finds the end too, after what the agent may still have said about the reason.
      ::shutdown(socket_.get(), SHUT_WR);
      return std::unexpected(closing_ ? Error{.code = Errc::cancelled, .message = "this process closed the connection"}
                                      : agent_gone());
    }
    const auto until = frame.begun() ? deadline + kFrameGrace : deadline;
    if (Clock::now() >= until) {
      if (frame.begun()) ::shutdown(socket_.get(), SHUT_RDWR);
      return fail(Errc::deadline_exceeded, "the agent does not take requests fast enough");
    }
    pollfd p{.fd = socket_.get(), .events = POLLOUT, .revents = 0};
    ::poll(&p, 1, poll_ms(until));
  }
  return {};
}

Status LocalClient::Impl::write_call(LocalFrame frame, const Call& call, Clock::time_point deadline) {
  std::size_t payload_bytes = 0;
  for (ByteSpan p : call.payload) payload_bytes += p.size();
  HOLO_TRY(check_local_limits(call.header.size(), payload_bytes, call.fds.size()));
  return write(LocalOutgoing(frame, call.header, call.payload, call.fds), deadline);
}

Result<LocalClient::Reply> LocalClient::Impl::wait_for_answer(const Call& call) {
  const auto deadline = after(call.timeout);
  auto waiting = std::make_shared<Waiting>();
  waiting->into = call.into;
  std::uint32_t id = 0;
  {
    std::lock_guard lock(mutex_);
    if (why_) return std::unexpected(*why_);
    while (id == 0 || waiting_.contains(id)) id = ++next_id_;
    waiting_.emplace(id, waiting);
  }
  const auto sent = write_call(LocalFrame{.type = call.type, .kind = LocalKind::request, .id = id}, call, deadline);

  std::unique_lock lock(mutex_);
  // Also when the agent closed while we wrote: it may have said why, and the reader will know in a moment.
  if (sent || sent.error().code == Errc::unavailable) {
    waiting->done_or_failed.wait_until(lock, deadline, [&] { return waiting->done; });
  }
  if (!waiting->done && waiting->receiving) {
    // The answer is flowing into the caller's memory, which must not be given back while it does.
    if (!waiting->done_or_failed.wait_until(lock, Clock::now() + kFrameGrace, [&] { return waiting->done; })) {
      ::shutdown(socket_.get(), SHUT_RDWR);
      waiting->done_or_failed.wait(lock, [&] { return waiting->done; });
    }
  }
  if (waiting->done) return std::move(waiting->result);
  waiting_.erase(id);
  if (!sent) return std::unexpected(sent.error());
  return fail(Errc::deadline_exceeded,
              str(options_.name.empty() ? "the agent" : options_.name, " gave no answer in ",
                  static_cast<double>(call.timeout.millis()) / 1000, " s"),
              "it is stopped or overloaded: see its log, and restart it if that lasts");
}

std::optional<MutableByteSpan> LocalClient::Impl::place(const LocalFrame& frame) {
  if (frame.kind != LocalKind::reply) return std::nullopt;
  std::lock_guard lock(mutex_);
  auto it = waiting_.find(frame.id);
  if (it != waiting_.end() && it->second->into.size() >= frame.payload_bytes) {
    it->second->receiving = true;
    return it->second->into.first(frame.payload_bytes);
  }
  payload_.resize(frame.payload_bytes);
  return payload_;
}

void LocalClient::Impl::read() {
  Error why = agent_gone();
  while (true) {
    if (auto status = read_some(); !status) {
      why = std::move(status).error();
      break;
    }
  }
  if (closing_) why = Error{.code = Errc::cancelled, .message = "this process closed the connection"};
  ended_ = true;
  ::shutdown(socket_.get(), SHUT_RDWR);  // A writer that waits for room need not wait longer.
  fail_all(why);
  if (!closing_ && options_.on_closed) options_.on_closed(why);
}

Status LocalClient::Impl::read_some() {
  HOLO_ASSIGN(got, receiver_.receive(socket_.get(), 0));  // Blocks until something comes, or until shutdown(2).
  if (got == LocalReceiver::Got::end) return std::unexpected(agent_gone());
  while (true) {
    HOLO_ASSIGN(message, receiver_.next());
    if (!message) return {};
    if (message->frame.kind == LocalKind::error && message->frame.id == 0) {
      return std::unexpected(wire::decode_local_error(message->header));
    }
    on_message(std::move(*message));
  }
}

void LocalClient::Impl::on_message(LocalMessage message) {
  const LocalFrame& frame = message.frame;
  if (frame.kind == LocalKind::error) {
    return finish(frame.id, std::unexpected(wire::decode_local_error(message.header)));
  }
  if (frame.kind == LocalKind::reply) {
    return finish(frame.id, Reply{.header = std::move(message.header),
                                  .payload = std::exchange(payload_, {}),
                                  .payload_bytes = frame.payload_bytes,
                                  .fds = std::move(message.fds)});
  }
  if (!options_.on_request) {
    if (frame.id == 0) return;
    const std::string header = wire::encode_local_error(
        Error{.code = Errc::unsupported, .message = str("this process serves no request ", frame.type)});
    (void)write(LocalOutgoing(LocalFrame{.kind = LocalKind::error, .id = frame.id}, header, std::span<const ByteSpan>(),
                              std::span<const int>()),
                after(kReplyTimeout));
    return;
  }
  env::LocalRequest request{
      .type = frame.type, .header = std::move(message.header), .payload = {}, .fds = std::move(message.fds)};
  if (!message.payload.empty()) request.payload.push_back(std::move(message.payload));
  options_.on_request(frame.id, std::move(request));
}

void LocalClient::Impl::finish(std::uint32_t id, Result<Reply> result) {
  std::lock_guard lock(mutex_);
  auto it = waiting_.find(id);
  if (it == waiting_.end()) return;  // Its caller stopped waiting.
  Waiting& waiting = *it->second;
  if (result && !waiting.into.empty() && result->payload_bytes > waiting.into.size()) {
    result = fail(Errc::over_limit,
                  str("the answer has ", result->payload_bytes, " bytes; there is room for ", waiting.into.size()));
  }
  waiting.result = std::move(result);
  waiting.done = true;
  waiting.done_or_failed.notify_all();
  waiting_.erase(it);
}

void LocalClient::Impl::fail_all(const Error& why) {
  std::lock_guard lock(mutex_);
  why_ = why;
  for (auto& [id, waiting] : waiting_) {
    waiting->result = std::unexpected(why);
    waiting->done = true;
    waiting->done_or_failed.notify_all();
  }
  waiting_.clear();
}

LocalClient::LocalClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LocalClient::~LocalClient() = default;

Result<std::unique_ptr<LocalClient>> LocalClient::connect(const std::string& path, Options options, Duration timeout) {
  HOLO_ASSIGN(socket, connect_socket(path, after(timeout)));
  options.name = options.name.empty() ? str("the agent at ", path) : str(options.name, " (", path, ")");
  return adopt(std::move(socket), std::move(options));
}

Result<std::unique_ptr<LocalClient>> LocalClient::adopt(env::Fd socket, Options options) {
  // The reader blocks in recvmsg(2), one system call per message; writers ask not to.
  const int flags = ::fcntl(socket.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket.get(), F_SETFL, flags & ~O_NONBLOCK) != 0) {
    return fail_errno(errno, "cannot use a local socket");
  }
  return std::unique_ptr<LocalClient>(new LocalClient(std::make_unique<Impl>(std::move(socket), std::move(options))));
}

Result<LocalClient::Reply> LocalClient::call(const Call& call) { return impl_->call(call); }

Status LocalClient::notify(const Call& call) {
  return impl_->send(LocalFrame{.type = call.type, .kind = LocalKind::one_way, .id = 0}, call, call.timeout);
}

Status LocalClient::reply(std::uint32_t id, Result<env::LocalReply> result) {
  if (id == 0) return {};  // Nobody waits for the answer to a one-way message.
  if (!result) {
    const std::string header = wire::encode_local_error(result.error());
    return impl_->send(LocalFrame{.kind = LocalKind::error, .id = id}, Call{.header = header}, kReplyTimeout);
  }
  std::vector<ByteSpan> payload;
  for (const auto& b : result->payload) payload.push_back(b.span());
  std::vector<int> fds;
  for (const auto& fd : result->fds) fds.push_back(fd.get());
  return impl_->send(LocalFrame{.kind = LocalKind::reply, .id = id},
                     Call{.header = result->header, .payload = payload, .fds = fds}, kReplyTimeout);
}

Result<env::Fd> LocalClient::inheritable() const {
  env::Fd copy(::dup(impl_->socket()));
  if (!copy) return fail_errno(errno, "cannot pass on a local socket");
  return copy;
}

bool LocalClient::connected() const { return impl_->connected(); }

}  // namespace holo::driver
