// A node's side of trust while it runs: its identity, the cluster's keys, pins and revocations; what the command line
// changes about them, and the session configuration that follows, for connections made from then on.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/hyperbus/session.h"
#include "core/hyperbus/trust.h"
#include "env/entropy.h"
#include "env/kv_store.h"
#include "env/loop.h"
#include "node/bus.h"
#include "node/control.h"
#include "node/local_api.h"

namespace holo::node {

/// Where a node keeps what it must not forget. Each call replaces what was kept, whole or not at all, and wipes it as
/// far as the disk allows. Blocks for a write. Thread: loop. Errors: `io_error`, `permission_denied`.
class TrustStore {
 public:
  virtual ~TrustStore() = default;
  virtual Status save_pins(const std::string& text) = 0;
  virtual Status save_identity(const crypto::Ed25519Seed& seed, const hyperbus::IdentityChain& chain) = 0;
  /// The first is dialled with.
  virtual Status save_keys(const std::vector<crypto::Secret<32>>& keys) = 0;
  virtual Status save_certificate(const std::string& text) = 0;
};

/// What a node starts with. The session configuration beside it has the identity and the suite.
struct TrustConfig {
  std::shared_ptr<TrustStore> store;     ///< Null: nothing can be changed (nodes inside one process).
  hyperbus::TrustBook book;              ///< With the pins as kept.
  std::vector<crypto::Secret<32>> keys;  ///< The first is dialled with. Empty but in mode psk.
  std::string certificate;               ///< As carried; empty: none.
};

/// Cluster keys of one node at once. Above: over_limit.
inline constexpr std::size_t kMaxClusterKeys = 4;

/// Thread: loop. Made before the bus; start() once the services are built. Lives until they have stopped.
class TrustService {
 public:
  struct Ports {
    env::Loop* loop = nullptr;
    env::Entropy* entropy = nullptr;
    env::KvStore* facts = nullptr;  ///< Keeps revocations, so that they hold before the log is heard.
  };
  /// `cluster`: as remembered; what was revoked in another one is forgotten.
  TrustService(Ports ports, TrustConfig config, std::shared_ptr<const hyperbus::SessionConfig> base, ClusterId cluster);
  ~TrustService();
  TrustService(const TrustService&) = delete;
  TrustService& operator=(const TrustService&) = delete;

  /// For the bus: the base with this node's identity, keys, certificate and trust policy.
  [[nodiscard]] std::shared_ptr<const hyperbus::SessionConfig> session() const;
  /// Follows the cluster's state and the bus, and answers TRUST_*, IDENTITY_* and KEY_*.
  void start(Bus& bus, ControlService& control, LocalApi& api);

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace holo::node
