// How a node that changes its key stays itself: each new key is signed by the one before it, back to the first, whose
// hash is the node's id. And the certificate by which a cluster's root key vouches for a node, whatever key it has now.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/time.h"
#include "crypto/ed25519.h"

namespace holo::hyperbus {

/// Rotations of one node's key in its life. Above: the rotation is refused (leave, and join as someone new).
inline constexpr std::size_t kMaxChainLinks = 16;

struct ChainLink {
  crypto::Ed25519PublicKey key{};        ///< the new key
  crypto::Ed25519Signature signature{};  ///< of the key before it, over chain_statement()
  friend bool operator==(const ChainLink&, const ChainLink&) = default;
};

/// From the first key to the current one. A value.
struct IdentityChain {
  crypto::Ed25519PublicKey first{};
  std::vector<ChainLink> links;  ///< oldest first

  [[nodiscard]] const crypto::Ed25519PublicKey& current() const { return links.empty() ? first : links.back().key; }
  /// The key at `position`: 0 is the first. At most links.size().
  [[nodiscard]] const crypto::Ed25519PublicKey& at(std::size_t position) const {
    return position == 0 ? first : links[position - 1].key;
  }
  /// Where `key` stands in the chain; nullopt: nowhere.
  [[nodiscard]] std::optional<std::size_t> position_of(const crypto::Ed25519PublicKey& key) const;
  friend bool operator==(const IdentityChain&, const IdentityChain&) = default;
};

/// The first 64 bits of BLAKE3 of the key, big-endian, so that its hexadecimal form is the beginning of the digest's.
NodeId node_id_of(const crypto::Ed25519PublicKey& key);

/// What the key at position - 1 signs to hand over to `key` at `position` (from 1).
Bytes chain_statement(NodeId node, std::size_t position, const crypto::Ed25519PublicKey& key);

/// Checks that the first key names `node`, that no key stands there twice, and each signature. Cost: 60 us a link.
/// Errors: `permission_denied`, saying what does not fit; `over_limit` above kMaxChainLinks.
Status verify_chain(NodeId node, const IdentityChain& chain);

/// First key, then key and signature of each link: 32 + 96 n bytes.
void encode_chain(const IdentityChain& chain, Bytes& out);
/// Errors: `malformed` (another size, more than kMaxChainLinks). No signature is checked.
Result<IdentityChain> decode_chain(ByteSpan bytes);

/// The root's word that a node belongs to the cluster. Names the node's first key, so it outlives rotations.
struct Certificate {
  WallTime issued;
  WallTime expires;  ///< 0: never
  crypto::Ed25519Signature signature{};
  friend bool operator==(const Certificate&, const Certificate&) = default;
};
inline constexpr std::size_t kCertificateBytes = 80;

/// What the root key signs for `node` with this first key.
Bytes certificate_statement(NodeId node, const crypto::Ed25519PublicKey& first, WallTime issued, WallTime expires);
Certificate issue_certificate(const crypto::Ed25519KeyPair& root, NodeId node, const crypto::Ed25519PublicKey& first,
                              WallTime issued, WallTime expires);
/// Errors: `permission_denied`: another root's or another node's, or expired at `now`.
Status verify_certificate(const Certificate& certificate, const crypto::Ed25519PublicKey& root, NodeId node,
                          const crypto::Ed25519PublicKey& first, WallTime now);
void encode_certificate(const Certificate& certificate, Bytes& out);
/// Errors: `malformed`.
Result<Certificate> decode_certificate(ByteSpan bytes);

/// A certificate as people carry it: with the root's public key, the node and its first key, so that the machine it is
/// brought to knows whom it is for and whom to believe from then on. One word of base64.
struct CarriedCertificate {
  crypto::Ed25519PublicKey root{};
  NodeId node;
  crypto::Ed25519PublicKey first{};
  Certificate certificate;
  friend bool operator==(const CarriedCertificate&, const CarriedCertificate&) = default;
};
std::string certificate_text(const CarriedCertificate& carried);
/// Checks the form and the signature, not the time. Errors: `malformed`, `permission_denied`.
Result<CarriedCertificate> parse_certificate(std::string_view text);

/// What a node asks the root to sign: its chain, and its current key's signature over it. One word of base64.
std::string request_text(const IdentityChain& chain, const crypto::Ed25519Signature& signature);
/// What that signature covers.
Bytes request_statement(const IdentityChain& chain);
/// Checks the form, the chain and the signature; gives the chain. Errors: `malformed`, `permission_denied`.
Result<IdentityChain> parse_request(std::string_view text);

/// A public key as base64, and back. Error: `malformed`.
std::string public_key_text(const crypto::Ed25519PublicKey& key);
Result<crypto::Ed25519PublicKey> parse_public_key(std::string_view text);

}  // namespace holo::hyperbus
