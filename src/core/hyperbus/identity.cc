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

Identity Identity::from_seed(const crypto::Ed25519Seed& seed) {
  Identity identity(crypto::Ed25519KeyPair::from_seed(seed));
  identity.node_ = node_id_of(identity.public_key());
  identity.noise_static_ = crypto::x25519_key_pair(crypto::blake3_derive(kStaticKeyContext, seed.span()));
  identity.static_signature_ = identity.sign(signed_bytes(identity.noise_static_.public_key));
  return identity;
}

NodeId node_id_of(const crypto::Ed25519PublicKey& key) {
  const auto digest = crypto::blake3(key);
  std::uint64_t id = 0;
  for (std::size_t i = 0; i < 8; ++i) id = id << 8 | std::to_integer<std::uint64_t>(digest[i]);
  return NodeId(id);
}

Status verify_identity(NodeId node, const crypto::Ed25519PublicKey& key, const crypto::X25519PublicKey& noise_static,
                       const crypto::Ed25519Signature& signature) {
  if (node_id_of(key) != node) {
    return fail(Errc::permission_denied, str("the key shown for node ", node, " is not that node's"));
  }
  if (!crypto::ed25519_verify(key, signed_bytes(noise_static), signature)) {
    return fail(Errc::permission_denied, str("node ", node, " did not sign the key it speaks with"));
  }
  return {};
}

ClusterKey::ClusterKey(const crypto::Secret<kBytes>& secret) : psk_(crypto::blake3_derive(kPskContext, secret.span())) {
  id_ = load<std::uint64_t>(crypto::blake3_derive(kKeyIdContext, secret.span()).span().data());
}

}  // namespace holo::hyperbus
