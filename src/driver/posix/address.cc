#include "driver/posix/address.h"

#include <netdb.h>

#include <cerrno>
#include <charconv>
#include <cstring>

#include "base/strings.h"
#include "driver/posix/errno_text.h"

namespace holo::driver {
namespace {

using Resolved = std::vector<SocketAddress>;

/// All addresses of `where`. Blocks when it is a name and `numeric_only` is not set.
struct ResolveOptions {
  bool numeric_only = false;
  bool passive = false;
};
Result<Resolved> resolve(const HostPort& where, SocketKind kind, ResolveOptions options) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = static_cast<int>(kind);
  hints.ai_flags = AI_NUMERICSERV | (options.numeric_only ? AI_NUMERICHOST : 0) | (options.passive ? AI_PASSIVE : 0);
  addrinfo* found = nullptr;
  const std::string port = std::to_string(where.port);
  if (const int error = ::getaddrinfo(where.host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return fail(Errc::unavailable, str("cannot find the host ", where.host, ": ", ::gai_strerror(error)));
  }
  Resolved out;
  for (addrinfo* a = found; a != nullptr; a = a->ai_next) {
    SocketAddress address;
    std::memcpy(&address.storage, a->ai_addr, a->ai_addrlen);
    address.length = a->ai_addrlen;
    out.push_back(address);
  }
  ::freeaddrinfo(found);
  return out;
}

}  // namespace

std::string to_text(const SocketAddress& a) {
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (::getnameinfo(a.raw(), a.length, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "?";
  }
  return a.storage.ss_family == AF_INET6 ? str("[", host, "]:", port) : str(host, ":", port);
}

Result<HostPort> parse_host_port(const std::string& address) {
  const auto bad = [&](std::string_view why) {
    return fail(Errc::invalid_argument, str("\"", address, "\" is no address: ", why),
                "write HOST:PORT or [IPV6]:PORT");
  };
  const auto colon = address.rfind(':');
  if (colon == std::string::npos) return bad("the port is missing");
  std::string host = address.substr(0, colon);
  if (host.starts_with('[')) {
    if (!host.ends_with(']')) return bad("the bracket is not closed");
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string::npos) {
    return bad("an IPv6 address needs brackets");
  }
  if (host.empty()) return bad("the host is missing");
  if (host.find('\0') != std::string::npos) return bad("it holds a zero byte");
  std::uint16_t port = 0;
  const char* first = address.data() + colon + 1;
  const char* last = address.data() + address.size();
  const auto [end, error] = std::from_chars(first, last, port);
  if (first == last || error != std::errc() || end != last) return bad("the port is not a number up to 65535");
  return HostPort{.host = std::move(host), .port = port};
}

Task<Result<Resolved>> resolve_until(AsioLoop& loop, HostPort where, SocketKind kind, Instant deadline) {
  if (auto numeric = resolve(where, kind, {.numeric_only = true}); numeric) co_return numeric;
  auto shot = std::make_shared<OneShot<Result<Resolved>>>();
  auto found = std::make_shared<Result<Resolved>>();
  loop.offload([where, kind, found] { *found = resolve(where, kind, {}); },
               [shot, found] { shot->set(std::move(*found)); });
  const std::string what = str("looking up ", where.host);
  co_return co_await env::await_until<Resolved>(loop, shot, deadline, what);
}

Result<SocketAddress> resolve_to_bind(const std::string& address, SocketKind kind) {
  HOLO_ASSIGN(where, parse_host_port(address));
  auto found = resolve(where, kind, {.numeric_only = false, .passive = true});
  if (!found || found->empty()) {
    return fail(Errc::invalid_argument, str("cannot listen on ", address, ": no such address on this machine"));
  }
  return found->front();
}

std::unexpected<Error> fail_bind(int error, const std::string& address) {
  if (error == EADDRINUSE) {
    return fail(Errc::already_exists, str("cannot listen on ", address, ": the port is in use"),
                "choose another port with --listen, or stop the program that has it");
  }
  if (error == EADDRNOTAVAIL || error == EAFNOSUPPORT) {
    return fail(Errc::invalid_argument, str("cannot listen on ", address, ": this machine does not have that address"));
  }
  return fail_errno(error, str("cannot listen on ", address));
}

}  // namespace holo::driver
