// Addresses as people write them and as the kernel wants them; for TCP and UDP.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/task.h"
#include "driver/posix/asio_loop.h"

namespace holo::driver {

struct HostPort {
  std::string host;  ///< Without brackets.
  std::uint16_t port = 0;
};
/// "host:port" or "[v6]:port". Error: `invalid_argument`. Thread: any.
Result<HostPort> parse_host_port(const std::string& address);

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = sizeof(sockaddr_storage);
  sockaddr* raw() { return reinterpret_cast<sockaddr*>(&storage); }
  [[nodiscard]] const sockaddr* raw() const { return reinterpret_cast<const sockaddr*>(&storage); }
};
/// "1.2.3.4:80", "[::1]:80". Thread: any.
std::string to_text(const SocketAddress& address);

enum class SocketKind : int { stream = SOCK_STREAM, datagram = SOCK_DGRAM };

/// All addresses of `where`, in the order of RFC 6724. Errors: `unavailable` (unknown name), `deadline_exceeded`.
/// Cost: none for a numeric address; else a helper thread asks the resolver. Thread: loop.
Task<Result<std::vector<SocketAddress>>> resolve_until(AsioLoop& loop, HostPort where, SocketKind kind,
                                                       Instant deadline);
/// Where a listener at `address` binds. Blocks when that is a name. Error: `invalid_argument`. Thread: any.
Result<SocketAddress> resolve_to_bind(const std::string& address, SocketKind kind);
/// What a failed socket(), bind() or listen() for `address` means: `already_exists`, `invalid_argument`,
/// `permission_denied`, else `io_error`.
std::unexpected<Error> fail_bind(int error, const std::string& address);

}  // namespace holo::driver
