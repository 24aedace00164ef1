#include "core/hyperbus/identity_chain.h"

#include <algorithm>

#include "base/assert.h"
#include "base/strings.h"
#include "core/hyperbus/wire_bytes.h"
#include "crypto/base64.h"
#include "crypto/hash.h"

namespace holo::hyperbus {
namespace {

constexpr std::string_view kLinkLabel = "holo hyperbus v1: next key of node";
constexpr std::string_view kCertificateLabel = "holo hyperbus v1: root's certificate of node";
constexpr std::string_view kRequestLabel = "holo hyperbus v1: node asks for a certificate";
constexpr std::size_t kLinkBytes = crypto::kEd25519PublicBytes + crypto::kEd25519SignatureBytes;
constexpr std::uint8_t kTextVersion = 1;

template <std::size_t N>
std::array<std::byte, N> read_array(Reader& reader) {
  std::array<std::byte, N> out{};
  const ByteSpan bytes = reader.bytes(N);
  if (bytes.size() == N) std::ranges::copy(bytes, out.begin());
  return out;
}

WallTime read_time(Reader& reader) { return WallTime{static_cast<std::int64_t>(reader.number<std::uint64_t>())}; }
void put(Bytes& out, WallTime t) { hyperbus::put(out, static_cast<std::uint64_t>(t.ms)); }

std::string_view trimmed(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; };
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  return text;
}

}  // namespace

std::optional<std::size_t> IdentityChain::position_of(const crypto::Ed25519PublicKey& key) const {
  for (std::size_t i = 0; i <= links.size(); ++i) {
    if (at(i) == key) return i;
  }
  return std::nullopt;
}

NodeId node_id_of(const crypto::Ed25519PublicKey& key) {
  const auto digest = crypto::blake3(key);
  std::uint64_t id = 0;
  for (std::size_t i = 0; i < 8; ++i) id = id << 8 | std::to_integer<std::uint64_t>(digest[i]);
  return NodeId(id);
}

// ---- The chain

Bytes chain_statement(NodeId node, std::size_t position, const crypto::Ed25519PublicKey& key) {
  Bytes out;
  put(out, as_bytes(kLinkLabel));
  put(out, node.value);
  put(out, static_cast<std::uint32_t>(position));
  put(out, ByteSpan(key));
  return out;
}

Status verify_chain(NodeId node, const IdentityChain& chain) {
  if (node_id_of(chain.first) != node) {
    return fail(Errc::permission_denied, str("the key shown for node ", node, " is not that node's"));
  }
  if (chain.links.size() > kMaxChainLinks) {
    return fail(Errc::over_limit, str("node ", node, " shows more than ", kMaxChainLinks, " keys after its first"));
  }
  for (std::size_t i = 1; i <= chain.links.size(); ++i) {
    const ChainLink& link = chain.links[i - 1];
    // A key that comes back would make an old chain look like the end of a new one.
    if (chain.position_of(link.key) != i) {
      return fail(Errc::permission_denied, str("node ", node, " shows one key twice in its chain"));
    }
    if (!crypto::ed25519_verify(chain.at(i - 1), chain_statement(node, i, link.key), link.signature)) {
      return fail(Errc::permission_denied, str("key ", i, " of node ", node, " is not signed by the key before it"));
    }
  }
  return {};
}

void encode_chain(const IdentityChain& chain, Bytes& out) {
  HOLO_ASSERT(chain.links.size() <= kMaxChainLinks);
  put(out, ByteSpan(chain.first));
  for (const ChainLink& link : chain.links) {
    put(out, ByteSpan(link.key));
    put(out, ByteSpan(link.signature));
  }
}

Result<IdentityChain> decode_chain(ByteSpan bytes) {
  const std::size_t first = crypto::kEd25519PublicBytes;
  if (bytes.size() < first || (bytes.size() - first) % kLinkBytes != 0 ||
      (bytes.size() - first) / kLinkBytes > kMaxChainLinks) {
    return fail(Errc::malformed, "a chain of keys of the wrong size");
  }
  Reader reader(bytes);
  IdentityChain chain;
  chain.first = read_array<crypto::kEd25519PublicBytes>(reader);
  while (!reader.rest().empty()) {
    ChainLink& link = chain.links.emplace_back();
    link.key = read_array<crypto::kEd25519PublicBytes>(reader);
    link.signature = read_array<crypto::kEd25519SignatureBytes>(reader);
  }
  return chain;
}

// ---- Certificates

Bytes certificate_statement(NodeId node, const crypto::Ed25519PublicKey& first, WallTime issued, WallTime expires) {
  Bytes out;
  put(out, as_bytes(kCertificateLabel));
  put(out, node.value);
  put(out, ByteSpan(first));
  put(out, issued);
  put(out, expires);
  return out;
}

Certificate issue_certificate(const crypto::Ed25519KeyPair& root, NodeId node, const crypto::Ed25519PublicKey& first,
                              WallTime issued, WallTime expires) {
  return {.issued = issued,
          .expires = expires,
          .signature = root.sign(certificate_statement(node, first, issued, expires))};
}

Status verify_certificate(const Certificate& c, const crypto::Ed25519PublicKey& root, NodeId node,
                          const crypto::Ed25519PublicKey& first, WallTime now) {
  if (!crypto::ed25519_verify(root, certificate_statement(node, first, c.issued, c.expires), c.signature)) {
    return fail(Errc::permission_denied, str("the certificate shown by node ", node, " is not this cluster's for it"),
                "holo identity sign on the machine with the cluster's root key makes one");
  }
  if (c.expires.ms != 0 && now >= c.expires) {
    return fail(Errc::permission_denied, str("the certificate of node ", node, " has expired"),
                "holo identity sign makes a new one, holo identity install brings it to the node");
  }
  return {};
}

void encode_certificate(const Certificate& c, Bytes& out) {
  put(out, c.issued);
  put(out, c.expires);
  put(out, ByteSpan(c.signature));
}

Result<Certificate> decode_certificate(ByteSpan bytes) {
  if (bytes.size() != kCertificateBytes) return fail(Errc::malformed, "a certificate of the wrong size");
  Reader reader(bytes);
  Certificate c;
  c.issued = read_time(reader);
  c.expires = read_time(reader);
  c.signature = read_array<crypto::kEd25519SignatureBytes>(reader);
  return c;
}

std::string certificate_text(const CarriedCertificate& carried) {
  Bytes out;
  put(out, kTextVersion);
  put(out, ByteSpan(carried.root));
  put(out, carried.node.value);
  put(out, ByteSpan(carried.first));
  encode_certificate(carried.certificate, out);
  return crypto::base64_encode(out);
}

Result<CarriedCertificate> parse_certificate(std::string_view text) {
  const auto bytes = crypto::base64_decode(trimmed(text));
  const std::size_t head = 1 + 32 + 8 + 32;
  if (!bytes || bytes->size() != head + kCertificateBytes || (*bytes)[0] != std::byte{kTextVersion}) {
    return fail(Errc::malformed, "that is not a whole certificate", "copy it again from holo identity sign");
  }
  Reader reader(*bytes);
  reader.number<std::uint8_t>();
  CarriedCertificate out;
  out.root = read_array<crypto::kEd25519PublicBytes>(reader);
  out.node = NodeId(reader.number<std::uint64_t>());
  out.first = read_array<crypto::kEd25519PublicBytes>(reader);
  HOLO_ASSIGN(certificate, decode_certificate(reader.rest()));
  out.certificate = certificate;
  if (node_id_of(out.first) != out.node) return fail(Errc::permission_denied, "the certificate does not fit its node");
  HOLO_TRY(verify_certificate(out.certificate, out.root, out.node, out.first, WallTime{INT64_MIN}));
  return out;
}

// ---- Requests

Bytes request_statement(const IdentityChain& chain) {
  Bytes out;
  put(out, as_bytes(kRequestLabel));
  encode_chain(chain, out);
  return out;
}

std::string request_text(const IdentityChain& chain, const crypto::Ed25519Signature& signature) {
  Bytes out;
  put(out, kTextVersion);
  put(out, ByteSpan(signature));
  encode_chain(chain, out);
  return crypto::base64_encode(out);
}

Result<IdentityChain> parse_request(std::string_view text) {
  const auto bytes = crypto::base64_decode(trimmed(text));
  const std::size_t head = 1 + crypto::kEd25519SignatureBytes;
  if (!bytes || bytes->size() < head || (*bytes)[0] != std::byte{kTextVersion}) {
    return fail(Errc::malformed, "that is not a whole request", "copy it again from holo identity request");
  }
  auto chain = decode_chain(ByteSpan(*bytes).subspan(head));
  if (!chain) return fail(Errc::malformed, "that is not a whole request", "copy it again from holo identity request");
  HOLO_TRY(verify_chain(node_id_of(chain->first), *chain));
  const ByteSpan signature = ByteSpan(*bytes).subspan(1, crypto::kEd25519SignatureBytes);
  if (!crypto::ed25519_verify(chain->current(), request_statement(*chain), signature)) {
    return fail(Errc::permission_denied, "the request is not signed by the key that it names");
  }
  return *chain;
}

std::string public_key_text(const crypto::Ed25519PublicKey& key) { return crypto::base64_encode(key); }

Result<crypto::Ed25519PublicKey> parse_public_key(std::string_view text) {
  const auto bytes = crypto::base64_decode(trimmed(text));
  if (!bytes || bytes->size() != crypto::kEd25519PublicBytes) {
    return fail(Errc::malformed, "a public key is base64 of 32 bytes, 44 characters");
  }
  crypto::Ed25519PublicKey key;
  std::ranges::copy(*bytes, key.begin());
  return key;
}

}  // namespace holo::hyperbus
