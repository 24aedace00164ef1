// A process's blocking, thread-safe connection to its agent: the other end of env::LocalServer. libholo and the command
// line stand on it.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/bytes.h"
#include "base/result.h"
#include "base/time.h"
#include "env/fd.h"
#include "env/local_server.h"

namespace holo::driver {

/// Thread: every member function from any thread, concurrently. Callbacks run on the client's reader thread and must
/// not call() (they would wait for themselves); they may reply() and notify(), and hand work to other threads.
class LocalClient {
 public:
  /// A request of the agent (type, header, payload, fds); answer it once with reply(id, ...). id 0: one-way.
  using RequestHandler = std::function<void(std::uint32_t id, env::LocalRequest request)>;

  struct Options {
    RequestHandler on_request = {};             ///< Empty: requests of the agent are answered `unsupported`.
    std::string name = {};                      ///< How messages name the agent; empty: by its socket, if it has one.
    std::function<void(Error)> on_closed = {};  ///< The agent went away (its death included). Once; not after close().
  };

  /// Connects to the agent that listens at `path`. Errors: `unavailable` (nobody listens, with a hint),
  /// `invalid_argument` (path too long), `permission_denied`, `deadline_exceeded`, `io_error`.
  static Result<std::unique_ptr<LocalClient>> connect(const std::string& path, Options options,
                                                      Duration timeout = seconds(5));
  /// Over a connected stream socket (a socketpair, or one inherited from the agent).
  static Result<std::unique_ptr<LocalClient>> adopt(env::Fd socket, Options options);
  /// Closes the connection and joins the reader thread; calls under way fail with `cancelled`, and are waited for.
  /// Not from a callback.
  ~LocalClient();
  LocalClient(const LocalClient&) = delete;
  LocalClient& operator=(const LocalClient&) = delete;

  struct Call {
    std::uint16_t type = 0;
    std::string_view header;
    std::span<const ByteSpan> payload = {};  ///< Gathered; not copied when large.
    std::span<const int> fds = {};           ///< Duplicated by the kernel; the caller keeps its own.
    Duration timeout = seconds(30);
    /// Where the reply's payload goes, without another copy. When it is longer, the call fails with `over_limit`.
    /// Untouched after call() has returned. Empty: the payload comes in Reply::payload.
    MutableByteSpan into = {};
  };
  struct Reply {
    std::string header;
    Bytes payload;                  ///< Empty when Call::into was given.
    std::size_t payload_bytes = 0;  ///< Size of the payload, wherever it went.
    std::vector<env::Fd> fds;
  };

  /// Sends a request and waits for its answer. Errors: `unavailable` (the agent is gone), `deadline_exceeded`,
  /// `invalid_argument` (limits), `cancelled` (the client is being destroyed), or what the agent answered.
  Result<Reply> call(const Call& call);
  /// Sends without waiting for an answer. Blocks while the socket is full, at most `timeout`.
  Status notify(const Call& call);
  /// Answers request `id` of the agent.
  Status reply(std::uint32_t id, Result<env::LocalReply> result);

  /// A descriptor that processes started by this one inherit: without a word of ours, the agent sees the end of the
  /// connection when the last of them has gone. Closing the client ends it for all.
  [[nodiscard]] Result<env::Fd> inheritable() const;

  [[nodiscard]] bool connected() const;

 private:
  class Impl;
  explicit LocalClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holo::driver
