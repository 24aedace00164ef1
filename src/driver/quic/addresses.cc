#include "driver/quic/addresses.h"

#include <arpa/inet.h>

#include <array>
#include <cstring>

namespace holo::driver::quic {

sockaddr_in6 to_socket_address(const env::IpEndpoint& endpoint) {
  sockaddr_in6 out{};
  out.sin6_family = AF_INET6;
  out.sin6_port = htons(endpoint.port);
  std::memcpy(&out.sin6_addr, endpoint.ip.data(), endpoint.ip.size());
  out.sin6_scope_id = endpoint.scope;
  return out;
}

env::IpEndpoint to_endpoint(const sockaddr_in6& address) {
  env::IpEndpoint out;
  std::memcpy(out.ip.data(), &address.sin6_addr, out.ip.size());
  out.port = ntohs(address.sin6_port);
  out.scope = address.sin6_scope_id;
  return out;
}

bool same_address(const sockaddr_in6& a, const sockaddr_in6& b) {
  std::array<std::uint64_t, 2> x, y;
  std::memcpy(x.data(), &a.sin6_addr, sizeof x);
  std::memcpy(y.data(), &b.sin6_addr, sizeof y);
  return x == y && a.sin6_port == b.sin6_port && a.sin6_scope_id == b.sin6_scope_id;
}

SocketPath::SocketPath(const env::IpEndpoint& local_end, const env::IpEndpoint& remote_end)
    : local(to_socket_address(local_end)), remote(to_socket_address(remote_end)) {}

ngtcp2_path SocketPath::path() {
  ngtcp2_path out{};
  out.local.addr = reinterpret_cast<sockaddr*>(&local);
  out.local.addrlen = sizeof local;
  out.remote.addr = reinterpret_cast<sockaddr*>(&remote);
  out.remote.addrlen = sizeof remote;
  return out;
}

}  // namespace holo::driver::quic
