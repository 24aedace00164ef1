// env::LocalServer over a Unix stream socket.
#pragma once

#include <memory>

#include "base/limits.h"
#include "driver/posix/asio_loop.h"
#include "env/local_server.h"

namespace holo::driver {

struct LocalSocketOptions {
  std::size_t max_connections = limits::kMaxLocalSessions;  ///< Above: the newcomer is answered `over_limit`.
  std::size_t max_requests = 256;     ///< Of one process, being served or waiting; above: `overloaded`.
  std::size_t max_calls = 4096;       ///< To one process, unanswered; above: `overloaded`.
  std::size_t pause_bytes = 8 << 20;  ///< Queued for one process; above, its requests wait before they are served.
  std::size_t max_queued_bytes = 64 << 20;  ///< Queued for one process; above, call() and notify() are `overloaded`.
  /// Queued for all processes together; above, whoever has read nothing for longest loses its connection, with a last
  /// message that says why.
  std::size_t max_total_bytes = 256 << 20;
};

/// Thread: loop. The loop outlives it. A handler that still runs when its connection has closed runs on; its answer is
/// dropped. Destroying the server closes it.
class LocalSocketServer final : public env::LocalServer {
 public:
  explicit LocalSocketServer(AsioLoop& loop, LocalSocketOptions options = {});
  ~LocalSocketServer() override;

  void serve(std::uint16_t type, Handler handler) override;
  void on_connected(std::function<void(std::shared_ptr<env::LocalConnection>)> f) override;
  void on_closed(std::function<void(std::shared_ptr<env::LocalConnection>)> f) override;
  Status listen(std::string path) override;
  Result<std::shared_ptr<env::LocalConnection>> adopt(env::Fd socket) override;
  void close() override;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

/// A connected pair of stream sockets, close-on-exec. Error: `io_error`.
struct SocketPair {
  env::Fd first;
  env::Fd second;
};
Result<SocketPair> make_socket_pair();

}  // namespace holo::driver
