#include "core/hyperbus/handshake.h"

#include <algorithm>

#include "base/assert.h"
#include "base/strings.h"
#include "crypto/hash.h"

namespace holo::hyperbus {
namespace {

constexpr std::string_view kInitiatorHandshake = "holo hyperbus v1: handshake of the initiator";
constexpr std::string_view kResponderHandshake = "holo hyperbus v1: handshake of the responder";
constexpr std::string_view kInitiatorTraffic = "holo hyperbus v1: traffic of the initiator";
constexpr std::string_view kResponderTraffic = "holo hyperbus v1: traffic of the responder";

const noise::Protocol& protocol_of(Suite suite) {
  switch (suite) {
    case Suite::hybrid_psk: return noise::kXXhfsPsk0;
    case Suite::hybrid: return noise::kXXhfs;
    case Suite::classical_psk: return noise::kXXpsk0;
    case Suite::classical: return noise::kXX;
  }
  HOLO_ASSERT(false, "a suite from the configuration");
}

bool has_psk(Suite suite) { return suite == Suite::hybrid_psk || suite == Suite::classical_psk; }

std::vector<noise::Psk> psks_for(Suite suite, const ClusterKey* key) {
  if (!has_psk(suite)) return {};
  return {key->psk()};
}

void add_identity(const HandshakeConfig& config, Payload& payload) {
  const Identity& identity = config.identity;
  payload.node = identity.node();
  payload.key = identity.public_key();
  payload.signature = identity.static_signature();
  if (!identity.chain().links.empty()) payload.chain = identity.chain();
  payload.certificate = config.certificate;
}

Result<Bytes> exchanged(const Handshake::ExchangeParameters& exchange, ByteSpan peer) {
  if (exchange) return exchange(peer);
  if (!peer.empty()) return fail(Errc::malformed, "a handshake that was made for another carrier");
  return Bytes();
}

std::string version_range(const HandshakeConfig& config) {
  return config.oldest_version == config.newest_version ? str(config.newest_version)
                                                        : str(config.oldest_version, " to ", config.newest_version);
}

}  // namespace

Handshake::Handshake(Role role, std::shared_ptr<const HandshakeConfig> config, env::Entropy& entropy, NodeId expected)
    : role_(role), config_(std::move(config)), entropy_(&entropy), expected_(expected) {
  HOLO_ASSERT(!has_psk(config_->suite) || !config_->keys.empty(), "a psk suite needs a cluster key");
  HOLO_ASSERT(config_->oldest_version <= config_->newest_version &&
              std::size_t{config_->newest_version} - config_->oldest_version < kMaxListed);
}

std::unexpected<HandshakeFailure> Handshake::refuse(RefusalKind kind, Error error) const {
  HandshakeFailure failure{.error = std::move(error), .kind = kind, .refusal = {}};
  // Who does not speak our protocol at all gets no answer.
  if (kind != RefusalKind::garbage && kind != RefusalKind::none) {
    encode_refusal({.kind = kind,
                    .protocol = kHandshakeProtocol,
                    .newest_version = config_->newest_version,
                    .oldest_version = config_->oldest_version,
                    .suite = config_->suite},
                   failure.refusal);
  }
  return std::unexpected(std::move(failure));
}

/// `error` is what Noise or a decoder said about a message of the peer.
std::unexpected<HandshakeFailure> Handshake::refuse_message(Error error, std::string_view what) const {
  if (error.code == Errc::corrupt) {
    return refuse(
        RefusalKind::wrong_key,
        Error{.code = Errc::wrong_key,
              .message = str(what, " does not authenticate: another cluster key, or bytes altered on the way"),
              .hint = "check that both nodes were given the same cluster key"});
  }
  if (error.code == Errc::malformed) return refuse(RefusalKind::garbage, std::move(error));
  if (error.code == Errc::wrong_version) return refuse(RefusalKind::wrong_version, std::move(error));
  if (error.code == Errc::refused) return refuse(RefusalKind::none, std::move(error));
  return refuse(RefusalKind::wrong_key, std::move(error));
}

Handshake::Outcome<Bytes> Handshake::start(ByteSpan parameters) {
  HOLO_ASSERT(role_ == Role::initiator && !noise_);
  const bool psk = has_psk(config_->suite);
  Bytes out;
  encode_preamble({.suite = config_->suite, .key_id = config_->keys.empty() ? 0 : config_->keys.front().id()}, out);
  noise_.emplace(protocol_of(config_->suite), role_, out, config_->identity.noise_static(),
                 psks_for(config_->suite, psk ? &config_->keys.front() : nullptr));
  Payload payload;
  for (int v = config_->newest_version; v >= config_->oldest_version; --v) {
    payload.versions.push_back(static_cast<std::uint16_t>(v));
  }
  payload.features = config_->features;
  if (config_->has_aes) payload.aeads.push_back(crypto::AeadAlgorithm::aes_256_gcm);
  payload.aeads.push_back(crypto::AeadAlgorithm::xchacha20_poly1305);
  payload.transport_parameters.assign(parameters.begin(), parameters.end());
  Bytes encoded;
  encode_payload(payload, encoded);
  const Status written = noise_->write_message(*entropy_, encoded, out);
  HOLO_ASSERT(written.has_value(), "the first message depends on no peer");
  return out;
}

Handshake::Outcome<Bytes> Handshake::on_message(ByteSpan message, const ExchangeParameters& exchange) {
  HOLO_ASSERT(!done());
  if (message.size() > kMaxHandshakeMessageBytes) {
    return refuse(RefusalKind::garbage, {.code = Errc::malformed, .message = "a handshake message is too long"});
  }
  ++received_;
  if (role_ == Role::initiator) return on_second(message, exchange);
  return received_ == 1 ? on_first(message, exchange) : on_third(message);
}

Handshake::Outcome<Bytes> Handshake::on_first(ByteSpan message, const ExchangeParameters& exchange) {
  const ByteSpan head = message.first(std::min(message.size(), kPreambleBytes));
  const auto preamble = decode_preamble(head);
  if (!preamble) return refuse_message(preamble.error(), "the first message");
  if (preamble->protocol != kHandshakeProtocol) {
    return refuse(RefusalKind::wrong_version, {.code = Errc::wrong_version,
                                               .message = str("a peer speaks handshake protocol ", preamble->protocol,
                                                              ", this node speaks ", kHandshakeProtocol),
                                               .hint = "run neighbouring releases of holo on all nodes"});
  }
  if (preamble->suite != config_->suite) {
    return refuse(RefusalKind::wrong_version,
                  {.code = Errc::wrong_version,
                   .message = str("a peer's handshake is ", suite_name(preamble->suite), ", this node's is ",
                                  suite_name(config_->suite)),
                   .hint = "give both nodes the same trust mode, and the same classical_only"});
  }
  const auto key = std::ranges::find(config_->keys, preamble->key_id, &ClusterKey::id);
  if (has_psk(config_->suite) && key == config_->keys.end()) {
    return refuse(RefusalKind::wrong_key, {.code = Errc::wrong_key,
                                           .message = "a peer holds another cluster key",
                                           .hint = "join with the line that `holo init` printed for this cluster"});
  }
  noise_.emplace(protocol_of(config_->suite), role_, head, config_->identity.noise_static(),
                 psks_for(config_->suite, key == config_->keys.end() ? nullptr : &*key));
  const auto bytes = noise_->read_message(message.subspan(kPreambleBytes));
  if (!bytes) return refuse_message(bytes.error(), "the first message");
  const auto offered = decode_payload(*bytes);
  if (!offered) return refuse_message(offered.error(), "the first message");
  if (const Status chosen = choose(*offered); !chosen) return refuse_message(chosen.error(), "the first message");
  auto parameters = exchanged(exchange, offered->transport_parameters);
  if (!parameters) return refuse_message(parameters.error(), "the first message");

  Payload payload;
  payload.versions = {agreed_.version};
  payload.features = config_->features;
  payload.aeads = {agreed_.aead};
  payload.transport_parameters = std::move(*parameters);
  add_identity(*config_, payload);
  Bytes encoded;
  encode_payload(payload, encoded);
  Bytes out;
  if (const Status written = noise_->write_message(*entropy_, encoded, out); !written) {
    return refuse_message(written.error(), "the first message");
  }
  reach_level();
  return out;
}

/// The responder's choice from what message 1 offers.
Status Handshake::choose(const Payload& offered) {
  bool found = false;
  for (const std::uint16_t version : offered.versions) {
    if (version < config_->oldest_version || version > config_->newest_version) continue;
    agreed_.version = found ? std::max(agreed_.version, version) : version;
    found = true;
  }
  if (!found) {
    return fail(Errc::wrong_version,
                str("a peer speaks no version that this node does (", version_range(*config_), ")"),
                "run neighbouring releases of holo on all nodes");
  }
  const auto offers = [&offered](crypto::AeadAlgorithm aead) {
    return std::ranges::find(offered.aeads, aead) != offered.aeads.end();
  };
  if (config_->has_aes && offers(crypto::AeadAlgorithm::aes_256_gcm)) {
    agreed_.aead = crypto::AeadAlgorithm::aes_256_gcm;
  } else if (offers(crypto::AeadAlgorithm::xchacha20_poly1305)) {
    agreed_.aead = crypto::AeadAlgorithm::xchacha20_poly1305;
  } else {
    return fail(Errc::wrong_version, "a peer offers no cipher that this node has");
  }
  agreed_.features = offered.features & config_->features;
  return {};
}

Handshake::Outcome<Bytes> Handshake::on_second(ByteSpan message, const ExchangeParameters& exchange) {
  HOLO_ASSERT(noise_, "start() comes first");
  const auto bytes = noise_->read_message(message);
  if (!bytes) return refuse_message(bytes.error(), "the second message");
  const auto payload = decode_payload(*bytes);
  if (!payload) return refuse_message(payload.error(), "the second message");
  if (const Status accepted = accept_choice(*payload); !accepted) {
    return refuse_message(accepted.error(), "the second message");
  }
  if (auto accepted = accept_identity(*payload); !accepted) {
    return refuse(accepted.error().kind, std::move(accepted.error().error));
  }
  if (expected_ && agreed_.peer != expected_) {
    return refuse(RefusalKind::none,
                  {.code = Errc::unavailable,
                   .message = str("node ", agreed_.peer, " answers where node ", expected_, " was expected"),
                   .retryable = true});
  }
  if (const auto taken = exchanged(exchange, payload->transport_parameters); !taken) {
    return refuse_message(taken.error(), "the second message");
  }
  reach_level();
  Payload ours;
  add_identity(*config_, ours);
  Bytes encoded;
  encode_payload(ours, encoded);
  Bytes out;
  if (const Status written = noise_->write_message(*entropy_, encoded, out); !written) {
    return refuse_message(written.error(), "the second message");
  }
  finish();
  return out;
}

/// The initiator checks that the responder chose from what was offered.
Status Handshake::accept_choice(const Payload& chosen) {
  if (chosen.versions.size() != 1 || chosen.aeads.size() != 1) {
    return fail(Errc::malformed, "a handshake answer without one version and one cipher");
  }
  agreed_.version = chosen.versions.front();
  agreed_.aead = chosen.aeads.front();
  if (agreed_.version < config_->oldest_version || agreed_.version > config_->newest_version) {
    return fail(Errc::wrong_version, "a peer chose a version that was not offered");
  }
  if (agreed_.aead == crypto::AeadAlgorithm::aes_256_gcm && !config_->has_aes) {
    return fail(Errc::malformed, "a peer chose a cipher that was not offered");
  }
  agreed_.features = chosen.features & config_->features;
  return {};
}

Handshake::Outcome<Bytes> Handshake::on_third(ByteSpan message) {
  HOLO_ASSERT(noise_);
  const auto bytes = noise_->read_message(message);
  if (!bytes) return refuse_message(bytes.error(), "the third message");
  const auto payload = decode_payload(*bytes);
  if (!payload) return refuse_message(payload.error(), "the third message");
  if (auto accepted = accept_identity(*payload); !accepted) {
    return refuse(accepted.error().kind, std::move(accepted.error().error));
  }
  finish();
  return Bytes{};
}

TrustDecision Handshake::accept_identity(const Payload& payload) {
  const auto no = [](RefusalKind kind, Error error) {
    return std::unexpected(TrustRefusal{.kind = kind, .error = std::move(error)});
  };
  if (!payload.node || !payload.key || !payload.signature) {
    return no(RefusalKind::garbage, {.code = Errc::malformed, .message = "a handshake without an identity"});
  }
  const IdentityChain chain = payload.chain.value_or(IdentityChain{.first = *payload.key, .links = {}});
  if (chain.current() != *payload.key) {
    return no(RefusalKind::garbage,
              {.code = Errc::malformed, .message = "a handshake whose key does not end its chain"});
  }
  auto proved = verify_identity(*payload.node, chain, *noise_->remote_static(), *payload.signature);
  if (!proved) return no(RefusalKind::wrong_key, std::move(proved).error());
  if (*payload.node == config_->identity.node()) {
    return no(RefusalKind::none, {.code = Errc::refused,
                                  .message = "the peer has this node's own identity",
                                  .hint = "a node dialled itself, or two nodes run on copies of one state directory"});
  }
  if (config_->trust) {
    auto decided = config_->trust->decide({.node = *payload.node, .chain = chain, .certificate = payload.certificate});
    if (!decided) return decided;
  }
  agreed_.peer = *payload.node;
  agreed_.peer_key = *payload.key;
  return {};
}

Error refusal_error(const Refusal& refusal, const HandshakeConfig& ours) {
  switch (refusal.kind) {
    case RefusalKind::wrong_key:
      return {.code = Errc::wrong_key,
              .message = "the other node refused this node's key",
              .hint = "give this node the key of the cluster it shall join, as `holo init` printed it"};
    case RefusalKind::wrong_version:
      if (refusal.suite != Suite{} && refusal.suite != ours.suite) {
        return {.code = Errc::wrong_version,
                .message = str("the other node's handshake is ", suite_name(refusal.suite), ", this node's is ",
                               suite_name(ours.suite)),
                .hint = "give both nodes the same trust mode, and the same classical_only"};
      }
      return {.code = Errc::wrong_version,
              .message = str("the other node speaks protocol ", refusal.protocol, ", versions ", refusal.oldest_version,
                             " to ", refusal.newest_version, "; this node speaks protocol ", kHandshakeProtocol,
                             ", versions ", ours.oldest_version, " to ", ours.newest_version),
              .hint = "run neighbouring releases of holo, and one trust mode, on all nodes"};
    case RefusalKind::unknown_identity:
      return {.code = Errc::permission_denied,
              .message = "the other node does not know this node: nobody it trusts vouches for it",
              .hint = "in trust mode roots: holo identity request here, holo identity sign where the root key is"};
    case RefusalKind::changed_key:
      return {.code = Errc::permission_denied,
              .message = "the other node has pinned another key for this node, and none that leads to this one",
              .hint = "if this node is the right one: holo trust forget it there"};
    case RefusalKind::revoked:
      return {.code = Errc::permission_denied,
              .message = "this node was revoked in the cluster",
              .hint = "join as a new node with another --state-dir, if you may"};
    case RefusalKind::none:
    case RefusalKind::garbage: break;
  }
  return {.code = Errc::malformed, .message = "the other node refused the handshake"};
}

TrafficSecret Handshake::derive(std::string_view label) const {
  TrafficSecret secret;
  const Status derived =
      crypto::hkdf_sha256(noise_->chaining_key().span(), noise_->hash(), as_bytes(label), secret.writable());
  HOLO_ASSERT(derived.has_value());
  return secret;
}

void Handshake::reach_level() {
  const bool initiator = role_ == Role::initiator;
  level_.emplace();
  level_->send = derive(initiator ? kInitiatorHandshake : kResponderHandshake);
  level_->receive = derive(initiator ? kResponderHandshake : kInitiatorHandshake);
}

void Handshake::finish() {
  const bool initiator = role_ == Role::initiator;
  agreed_.send_secret = derive(initiator ? kInitiatorTraffic : kResponderTraffic);
  agreed_.receive_secret = derive(initiator ? kResponderTraffic : kInitiatorTraffic);
  agreed_.handshake_hash = noise_->hash();
  result_ = std::move(agreed_);
  noise_.reset();  // Ephemeral keys go now: what was said stays secret even if this node is taken later.
}

}  // namespace holo::hyperbus
