// The handshake's bytes: preamble, payload fields, refusal. Every decoder here is total.
#include <algorithm>

#include "base/assert.h"
#include "core/hyperbus/handshake.h"
#include "core/hyperbus/wire_bytes.h"

namespace holo::hyperbus {
namespace {

/// Numbers of payload fields. Append only.
enum class Field : std::uint8_t {
  versions = 1,
  features = 2,
  aeads = 3,
  transport_parameters = 4,
  node = 5,
  key = 6,
  signature = 7,
  chain = 8,        // of a node that has rotated its key
  certificate = 9,  // trust mode roots
};

// The longest message is the second: ephemeral key, ML-KEM ciphertext, static key, and every field at its longest.
constexpr std::size_t kMostOfPayload = 9 * 3 + 2 * kMaxListed + 8 + kMaxListed + kMaxTransportParameters + 8 + 32 + 64 +
                                       (32 + 96 * kMaxChainLinks) + kCertificateBytes;
static_assert(32 + 1088 + 16 + 48 + kMostOfPayload + 16 <= kMaxHandshakeMessageBytes);

void put_field(Bytes& out, Field field, ByteSpan value) {
  put(out, static_cast<std::uint8_t>(field));
  put(out, static_cast<std::uint16_t>(value.size()));
  put(out, value);
}

std::unexpected<Error> bad_payload(const char* why) {
  return fail(Errc::malformed, std::string("a handshake payload with ") + why);
}

template <std::size_t N>
Status read_array(ByteSpan value, std::optional<std::array<std::byte, N>>& out) {
  if (value.size() != N) return bad_payload("a field of the wrong size");
  out.emplace();
  std::ranges::copy(value, out->begin());
  return {};
}

Status read_field(Field field, ByteSpan value, Payload& out) {
  switch (field) {
    case Field::versions:
      if (value.size() % 2 != 0 || value.size() / 2 > kMaxListed) return bad_payload("a bad list of versions");
      for (std::size_t i = 0; i < value.size(); i += 2) out.versions.push_back(load<std::uint16_t>(value.data() + i));
      return {};
    case Field::features:
      if (value.size() != 8) return bad_payload("a field of the wrong size");
      out.features = load<std::uint64_t>(value.data());
      return {};
    case Field::aeads:
      if (value.size() > kMaxListed) return bad_payload("a bad list of ciphers");
      for (const std::byte b : value) {
        const auto aead = static_cast<crypto::AeadAlgorithm>(b);
        const bool known =
            aead == crypto::AeadAlgorithm::aes_256_gcm || aead == crypto::AeadAlgorithm::xchacha20_poly1305;
        if (known) out.aeads.push_back(aead);  // A later release may offer more.
      }
      return {};
    case Field::transport_parameters:
      if (value.size() > kMaxTransportParameters) return bad_payload("too many transport parameters");
      out.transport_parameters.assign(value.begin(), value.end());
      return {};
    case Field::node:
      if (value.size() != 8) return bad_payload("a field of the wrong size");
      out.node = NodeId(load<std::uint64_t>(value.data()));
      return {};
    case Field::key: return read_array(value, out.key);
    case Field::signature: return read_array(value, out.signature);
    case Field::chain: {
      HOLO_ASSIGN(chain, decode_chain(value));
      out.chain = std::move(chain);
      return {};
    }
    case Field::certificate: {
      HOLO_ASSIGN(certificate, decode_certificate(value));
      out.certificate = certificate;
      return {};
    }
  }
  return {};  // Unknown fields are a later release's.
}

}  // namespace

void encode_preamble(const Preamble& preamble, Bytes& out) {
  put(out, as_bytes(kMagic));
  put(out, preamble.protocol);
  put(out, static_cast<std::uint8_t>(preamble.suite));
  put(out, std::uint8_t{0});
  put(out, preamble.key_id);
}

Result<Preamble> decode_preamble(ByteSpan bytes) {
  Reader reader(bytes);
  const ByteSpan magic = reader.bytes(kMagic.size());
  if (as_text(magic) != kMagic) return fail(Errc::malformed, "not the hyperbus protocol");
  Preamble out;
  out.protocol = reader.number<std::uint16_t>();
  out.suite = static_cast<Suite>(reader.number<std::uint8_t>());
  const auto reserved = reader.number<std::uint8_t>();
  out.key_id = reader.number<std::uint64_t>();
  if (!reader.done()) return fail(Errc::malformed, "a handshake that is cut short");
  // A later protocol may use the reserved byte; it must still be told which one we speak.
  if (out.protocol == kHandshakeProtocol && reserved != 0)
    return fail(Errc::malformed, "a handshake with a bad preamble");
  return out;
}

void encode_payload(const Payload& payload, Bytes& out) {
  HOLO_ASSERT(payload.versions.size() <= kMaxListed && payload.aeads.size() <= kMaxListed);
  HOLO_ASSERT(payload.transport_parameters.size() <= kMaxTransportParameters);
  Bytes value;
  if (!payload.versions.empty()) {
    for (const std::uint16_t version : payload.versions) put(value, version);
    put_field(out, Field::versions, value);
  }
  if (payload.features != 0) {
    value.clear();
    put(value, payload.features);
    put_field(out, Field::features, value);
  }
  if (!payload.aeads.empty()) {
    value.clear();
    for (const auto aead : payload.aeads) put(value, static_cast<std::uint8_t>(aead));
    put_field(out, Field::aeads, value);
  }
  if (!payload.transport_parameters.empty()) {
    put_field(out, Field::transport_parameters, payload.transport_parameters);
  }
  if (payload.node) {
    value.clear();
    put(value, payload.node->value);
    put_field(out, Field::node, value);
  }
  if (payload.key) put_field(out, Field::key, *payload.key);
  if (payload.signature) put_field(out, Field::signature, *payload.signature);
  if (payload.chain) {
    value.clear();
    encode_chain(*payload.chain, value);
    put_field(out, Field::chain, value);
  }
  if (payload.certificate) {
    value.clear();
    encode_certificate(*payload.certificate, value);
    put_field(out, Field::certificate, value);
  }
}

Result<Payload> decode_payload(ByteSpan bytes) {
  Reader reader(bytes);
  Payload out;
  int last = 0;
  while (!reader.rest().empty()) {
    const int type = reader.number<std::uint8_t>();
    const auto length = reader.number<std::uint16_t>();
    const ByteSpan value = reader.bytes(length);
    if (!reader.ok()) return bad_payload("a field that is cut short");
    if (type <= last) return bad_payload("fields out of order");
    last = type;
    HOLO_TRY(read_field(static_cast<Field>(type), value, out));
  }
  return out;
}

void encode_refusal(const Refusal& refusal, Bytes& out) {
  put(out, static_cast<std::uint8_t>(refusal.kind));
  put(out, static_cast<std::uint8_t>(refusal.suite));
  put(out, refusal.protocol);
  put(out, refusal.newest_version);
  put(out, refusal.oldest_version);
}

Result<Refusal> decode_refusal(ByteSpan bytes) {
  Reader reader(bytes);
  Refusal out;
  const auto kind = reader.number<std::uint8_t>();
  out.suite = static_cast<Suite>(reader.number<std::uint8_t>());
  out.protocol = reader.number<std::uint16_t>();
  out.newest_version = reader.number<std::uint16_t>();
  out.oldest_version = reader.number<std::uint16_t>();
  // Later releases may append; an unknown kind is still a refusal.
  if (!reader.ok()) return fail(Errc::malformed, "a refusal that is cut short");
  out.kind = kind >= 1 && kind < kRefusalKinds ? static_cast<RefusalKind>(kind) : RefusalKind::garbage;
  return out;
}

}  // namespace holo::hyperbus
