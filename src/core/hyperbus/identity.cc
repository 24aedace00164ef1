#include "core/hyperbus/identity.h"

#include "base/strings.h"
#include "core/hyperbus/wire_bytes.h"
#include "crypto/hash.h"

namespace holo::hyperbus {
namespace {

constexpr std::string_view kStaticKeyContext = "holo hyperbus v1: noise static key from node seed";
constexpr std::string_view kStaticSignatureLabel = "holo hyperbus v1: noise static key of node";
constexpr std::string_view kPskContext = "holo hyperbus v1: noise psk from cluster key";
constexpr std::string_view kKeyIdContext = "holo hyperbus v1: public id of cluster key";

Bytes signed_bytes(const crypto::X25519PublicKey& noise_static) {
  Bytes out;
  put(out, as_bytes(kStaticSignatureLabel));
  put(out, ByteSpan(noise_static));
  return out;
}

}  // namespace

Identity::Identity(const crypto::Ed25519Seed& seed, crypto::Ed25519KeyPair keys) : keys_(std::move(keys)) {
  noise_static_ = crypto::x25519_key_pair(crypto::blake3_derive(kStaticKeyContext, seed.span()));
  static_signature_ = sign(signed_bytes(noise_static_.public_key));
}

Identity Identity::from_seed(const crypto::Ed25519Seed& seed) {
  Identity identity(seed, crypto::Ed25519KeyPair::from_seed(seed));
  identity.chain_.first = identity.public_key();
  identity.node_ = node_id_of(identity.public_key());
  return identity;
}

Result<Identity> Identity::from_chain(const crypto::Ed25519Seed& seed, IdentityChain chain) {
  Identity identity(seed, crypto::Ed25519KeyPair::from_seed(seed));
  if (chain.current() != identity.public_key()) return fail(Errc::corrupt, "the key does not end its own chain");
  identity.node_ = node_id_of(chain.first);
  if (auto good = verify_chain(identity.node_, chain); !good) return fail(Errc::corrupt, good.error().message);
  identity.chain_ = std::move(chain);
  return identity;
}

Result<Identity> Identity::rotated(const crypto::Ed25519Seed& seed) const {
  if (chain_.links.size() >= kMaxChainLinks) {
    return fail(Errc::over_limit,
                str("this node has changed its key ", kMaxChainLinks, " times, which is all there is"),
                "holo leave, then join again with a new --state-dir");
  }
  Identity next(seed, crypto::Ed25519KeyPair::from_seed(seed));
  next.node_ = node_;
  next.chain_ = chain_;
  const auto statement = chain_statement(node_, chain_.links.size() + 1, next.public_key());
  next.chain_.links.push_back({.key = next.public_key(), .signature = sign(statement)});
  return next;
}

Status verify_identity(NodeId node, const IdentityChain& chain, const crypto::X25519PublicKey& noise_static,
                       const crypto::Ed25519Signature& signature) {
  HOLO_TRY(verify_chain(node, chain));
  if (!crypto::ed25519_verify(chain.current(), signed_bytes(noise_static), signature)) {
    return fail(Errc::permission_denied, str("node ", node, " did not sign the key it speaks with"));
  }
  return {};
}

ClusterKey::ClusterKey(const crypto::Secret<kBytes>& secret) : psk_(crypto::blake3_derive(kPskContext, secret.span())) {
  id_ = load<std::uint64_t>(crypto::blake3_derive(kKeyIdContext, secret.span()).span().data());
}

}  // namespace holo::hyperbus
