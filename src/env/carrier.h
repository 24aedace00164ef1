// The port under the transport: ordered byte streams to other machines. TCP implements it; the simulator has its own.
// Nothing here is encrypted or authenticated: that is core/hyperbus, driven by node/bus.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "base/task.h"
#include "base/time.h"

namespace holo::env {

/// One open stream. Destroying it closes it at once, also from inside its own callbacks. Thread: loop.
class ByteStream {
 public:
  struct Handlers {
    /// Bytes in order; the span is valid during the call only.
    std::function<void(ByteSpan)> on_bytes;
    /// The backlog fell to kLowWater or below after having been above it, or start() was called: there is room to
    /// write.
    std::function<void()> on_writable;
    /// The other side closed, or the stream broke. Once; nothing follows. Not called after close() or destruction.
    std::function<void(Error)> on_closed;
  };
  /// A writer that wants urgent bytes to overtake bulk keeps its own queue and fills the stream only up to kHighWater.
  static constexpr std::size_t kLowWater = 128 << 10;
  static constexpr std::size_t kHighWater = 512 << 10;

  virtual ~ByteStream() = default;
  /// Begins delivery. Once.
  virtual void start(Handlers handlers) = 0;
  /// Queues `parts`, in order, without copying them: they are held until written. Never blocks, never fails; what does
  /// not arrive shows as on_closed. The caller bounds what it queues by backlog().
  virtual void write(std::vector<Buffer> parts) = 0;
  /// Bytes queued and not yet handed to the operating system.
  [[nodiscard]] virtual std::size_t backlog() const = 0;
  /// Stops and resumes on_bytes: what the peer sends then waits in the network, and at last in the peer.
  virtual void pause() = 0;
  virtual void resume() = 0;
  /// Writes what is queued (for at most a second), then closes. No callback follows. The object may be destroyed at
  /// once after this; the flush goes on behind it.
  virtual void close() = 0;
  /// "host:port" of the other side, numeric.
  [[nodiscard]] virtual std::string peer_address() const = 0;
};

/// Accepts streams while it lives.
class Listener {
 public:
  virtual ~Listener() = default;
  /// The bound "address:port", with the real port when 0 was asked for.
  [[nodiscard]] virtual std::string address() const = 0;
  /// Newcomers closed because this process had no descriptor left for them.
  [[nodiscard]] virtual std::uint64_t turned_away() const = 0;
};

class Carrier {
 public:
  virtual ~Carrier() = default;
  /// Opens a stream to "host:port" ("[v6]:port" for IPv6 literals). All addresses of a name are tried in turn.
  /// Errors: `invalid_argument` (not of that form), `unavailable` (refused, no route, unknown name),
  /// `deadline_exceeded`, `cancelled` (the loop is stopping). Thread: loop.
  virtual Task<Result<std::unique_ptr<ByteStream>>> dial(std::string address, Instant deadline) = 0;
  /// Listens on "address:port"; port 0 picks a free one. `on_accept` runs on the loop thread for each newcomer.
  /// Errors: `invalid_argument`, `already_exists` (the port is in use), `permission_denied`, `io_error`. Thread: loop.
  virtual Result<std::unique_ptr<Listener>> listen(std::string address,
                                                   std::function<void(std::unique_ptr<ByteStream>)> on_accept) = 0;
};

}  // namespace holo::env
