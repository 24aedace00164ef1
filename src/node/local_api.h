// What an agent offers to the processes of its own machine: sessions, and a table of handlers by message type.
// The services of the node (memory, compute, control) register their handlers here; the socket itself is a driver.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/task.h"
#include "base/time.h"
#include "env/local_server.h"
#include "wire/local.pb.h"

namespace holo::node {

/// Requests and replies are those of the socket port; descriptors in them are owned (dup what you keep).
using LocalRequest = env::LocalRequest;
using LocalReply = env::LocalReply;

/// One connected process, after its Hello. Lives until the socket closes. Thread: loop.
class LocalSession {
 public:
  virtual ~LocalSession() = default;
  virtual SessionId id() const = 0;
  virtual uid_t uid() const = 0;
  virtual pid_t pid() const = 0;
  virtual const wire::Hello& hello() const = 0;
  /// Asks the process (a worker) and waits. Errors: `unavailable` when it is gone, `deadline_exceeded`, or its own
  /// answer.
  virtual Task<Result<LocalReply>> call(LocalRequest request, Instant deadline) = 0;
  /// One-way. Dropped when the process is gone. A process that does not read is disconnected once its queue is full.
  virtual void notify(LocalRequest message) = 0;
  /// Ends the connection.
  virtual void close() = 0;
};

class LocalApi {
 public:
  using Handler = std::function<Task<Result<LocalReply>>(std::shared_ptr<LocalSession> session, LocalRequest request)>;

  /// Registers the handler of one wire::LocalMessage. One handler per type. Before the socket opens.
  void serve(wire::LocalMessage type, Handler handler) {
    handlers_[static_cast<std::uint16_t>(type)] = std::move(handler);
  }
  /// Called when a session's socket has closed, in the order registered: release what it held.
  void on_closed(std::function<void(LocalSession&)> f) { closed_.push_back(std::move(f)); }
  /// Called after a session's Hello was accepted; may refuse it.
  void on_hello(std::function<Status(LocalSession&)> f) { hello_.push_back(std::move(f)); }

  const Handler* find(std::uint16_t type) const {
    auto it = handlers_.find(type);
    return it == handlers_.end() ? nullptr : &it->second;
  }
  const std::vector<std::function<void(LocalSession&)>>& closed_observers() const { return closed_; }
  const std::vector<std::function<Status(LocalSession&)>>& hello_observers() const { return hello_; }

 private:
  std::map<std::uint16_t, Handler> handlers_;
  std::vector<std::function<void(LocalSession&)>> closed_;
  std::vector<std::function<Status(LocalSession&)>> hello_;
};

}  // namespace holo::node
