// The port to processes of this machine (applications, workers, the command line): calls in both directions over a Unix
// socket, with file descriptors attached. The blocking counterpart for applications is driver/posix/local_client.h.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/task.h"
#include "base/time.h"
#include "env/fd.h"

namespace holo::env {

/// `type` selects the handler; `header` is an encoded protobuf message; `payload` raw bytes, gathered on send and
/// delivered as one contiguous buffer (or none). Limits: limits::kMaxHeaderBytes, limits::kMaxPayloadBytes,
/// kMaxLocalFds.
struct LocalRequest {
  std::uint16_t type = 0;
  std::string header;
  std::vector<Buffer> payload;
  std::vector<Fd> fds;
};
struct LocalReply {
  std::string header;
  std::vector<Buffer> payload;
  std::vector<Fd> fds;
};

inline constexpr std::size_t kMaxLocalFds = 8;  // descriptors in one message; above: invalid_argument

/// Who is on the other end, as the kernel says (SO_PEERCRED).
struct LocalPeer {
  uid_t uid = 0;
  gid_t gid = 0;
  pid_t pid = 0;
};

/// One connected process. Held by shared_ptr: after the connection has closed, calls on it fail with `unavailable`.
/// Thread: loop.
class LocalConnection {
 public:
  virtual ~LocalConnection() = default;
  /// Unique per agent run.
  [[nodiscard]] virtual SessionId id() const = 0;
  [[nodiscard]] virtual LocalPeer peer() const = 0;
  [[nodiscard]] virtual bool closed() const = 0;

  /// Sends a request to the process and waits for its answer (run a task, drop a page, ...).
  /// Errors: `unavailable` (the process is gone; the effect is unknown), `deadline_exceeded`, `overloaded` (its queue
  /// is full), `invalid_argument` (limits), or what the process answered.
  virtual Task<Result<LocalReply>> call(LocalRequest request, Instant deadline) = 0;
  /// Sends without waiting for an answer. Errors: `unavailable`, `overloaded`, `invalid_argument`.
  virtual Status notify(LocalRequest request) = 0;
  /// Closes after what is queued has been written; outstanding calls fail with `unavailable` at once.
  virtual void close() = 0;
};

/// The agent's side. Configure (serve, on_connected, on_closed), then listen. Thread: loop.
class LocalServer {
 public:
  /// Serves one request. For a one-way message the reply is dropped. An error travels back as it is.
  using Handler = std::function<Task<Result<LocalReply>>(std::shared_ptr<LocalConnection>, LocalRequest)>;

  virtual ~LocalServer() = default;
  /// Registers the handler of one request type. Unknown types are answered `unsupported`.
  virtual void serve(std::uint16_t type, Handler handler) = 0;
  virtual void on_connected(std::function<void(std::shared_ptr<LocalConnection>)> f) = 0;
  /// Called once for each connection that on_connected announced, after its outstanding calls have failed.
  virtual void on_closed(std::function<void(std::shared_ptr<LocalConnection>)> f) = 0;

  /// Serves processes of this uid and of root at `path` (mode 0600). A stale socket file is replaced only when nobody
  /// listens on it. Errors: `invalid_argument` (path too long for a socket: 107 bytes), `refused` (another agent
  /// listens there), `permission_denied`, `io_error`.
  virtual Status listen(std::string path) = 0;
  /// Serves one already connected stream socket (a worker's, or an in-process client's). Errors: `io_error`.
  virtual Result<std::shared_ptr<LocalConnection>> adopt(Fd socket) = 0;
  /// Stops listening and closes every connection; pending calls fail with `cancelled`.
  virtual void close() = 0;
};

}  // namespace holo::env
