// Paths as the ports write them, and as ngtcp2 does.
#pragma once

#include <netinet/in.h>
#include <ngtcp2/ngtcp2.h>

#include "env/datagrams.h"

namespace holo::driver::quic {

/// Both ends as sockaddr_in6. ngtcp2 sees one and the same local address all the time: a node that answers from another
/// of its addresses than before is not a migration that needs validation, and a wildcard socket does not know its own.
struct SocketPath {
  sockaddr_in6 local{}, remote{};

  SocketPath() = default;
  SocketPath(const env::IpEndpoint& local_end, const env::IpEndpoint& remote_end);
  /// Points into this object.
  [[nodiscard]] ngtcp2_path path();
};

sockaddr_in6 to_socket_address(const env::IpEndpoint& endpoint);
env::IpEndpoint to_endpoint(const sockaddr_in6& address);
bool same_address(const sockaddr_in6& a, const sockaddr_in6& b);

}  // namespace holo::driver::quic
