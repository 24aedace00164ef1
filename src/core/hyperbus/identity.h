// Who a node is, and which cluster it belongs to.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "core/hyperbus/identity_chain.h"
#include "crypto/ed25519.h"
#include "crypto/x25519.h"

namespace holo::hyperbus {

/// A node's long-lived keys, all derived from one 32-byte seed (the file that `holo agent` makes on its first start),
/// and the chain that leads from its first key to them.
class Identity {
 public:
  /// A node with its first key. Cost: about 100 us.
  static Identity from_seed(const crypto::Ed25519Seed& seed);
  /// A node that may have rotated: `seed` is of the chain's last key. Errors: `corrupt` (another seed, a chain that
  /// does not verify).
  static Result<Identity> from_chain(const crypto::Ed25519Seed& seed, IdentityChain chain);
  /// The same node with another key. Error: `over_limit` after kMaxChainLinks rotations.
  [[nodiscard]] Result<Identity> rotated(const crypto::Ed25519Seed& seed) const;

  [[nodiscard]] NodeId node() const { return node_; }
  /// The current one.
  [[nodiscard]] const crypto::Ed25519PublicKey& public_key() const { return keys_.public_key(); }
  [[nodiscard]] const IdentityChain& chain() const { return chain_; }
  [[nodiscard]] const crypto::X25519KeyPair& noise_static() const { return noise_static_; }
  /// This identity's signature over (label, noise_static().public_key), made once.
  [[nodiscard]] const crypto::Ed25519Signature& static_signature() const { return static_signature_; }
  [[nodiscard]] crypto::Ed25519Signature sign(ByteSpan message) const { return keys_.sign(message); }

 private:
  Identity(const crypto::Ed25519Seed& seed, crypto::Ed25519KeyPair keys);

  NodeId node_;
  IdentityChain chain_;
  crypto::Ed25519KeyPair keys_;
  crypto::X25519KeyPair noise_static_;
  crypto::Ed25519Signature static_signature_{};
};

/// Checks that the chain leads from the key that names `node` to its current one, and that this one signed
/// `noise_static`. Errors: those of verify_chain, saying what does not fit.
Status verify_identity(NodeId node, const IdentityChain& chain, const crypto::X25519PublicKey& noise_static,
                       const crypto::Ed25519Signature& signature);

/// The pre-shared key of a cluster, and the 8 bytes by which it is named in clear.
class ClusterKey {
 public:
  static constexpr std::size_t kBytes = 32;
  explicit ClusterKey(const crypto::Secret<kBytes>& secret);

  /// What is mixed into the handshake; derived from the secret for this purpose only.
  [[nodiscard]] const crypto::Secret<32>& psk() const { return psk_; }
  /// Tells keys apart, and says nothing else about them (a one-way function of 32 random bytes).
  [[nodiscard]] std::uint64_t id() const { return id_; }

 private:
  crypto::Secret<32> psk_;
  std::uint64_t id_ = 0;
};

}  // namespace holo::hyperbus
