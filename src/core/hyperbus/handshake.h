// The hyperbus handshake: Noise with our prologue, our payloads, identities, and the keys that come out of it.
// It moves whole messages and knows no carrier: over TCP they are records, over QUIC they are in CRYPTO frames.
//
//   initiator                                           responder
//   1: preamble, Noise(versions, AEADs, ...)       ->
//                                                  <-   2: Noise(version, AEAD, identity)
//   3: Noise(identity)                             ->
#pragma once

#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "core/hyperbus/identity.h"
#include "core/hyperbus/noise.h"
#include "core/hyperbus/trust.h"
#include "crypto/aead.h"
#include "env/entropy.h"

namespace holo::hyperbus {

using noise::Role;

/// The form of the handshake itself. A peer with another number is answered `wrong_version`.
inline constexpr std::uint16_t kHandshakeProtocol = 1;
/// Versions of what is said after it: N, and from the second release on N-1.
inline constexpr std::uint16_t kNewestVersion = 1;
inline constexpr std::uint16_t kOldestVersion = 1;

inline constexpr std::string_view kMagic = "HOLO";
inline constexpr std::size_t kPreambleBytes = 16;
inline constexpr std::size_t kMaxTransportParameters = 1024;    // above: malformed
inline constexpr std::size_t kMaxHandshakeMessageBytes = 4096;  // above: malformed
inline constexpr std::size_t kMaxListed = 8;                    // versions or AEADs offered; above: malformed

/// Decides whether an identity that proved itself may enter.
class TrustPolicy {
 public:
  virtual ~TrustPolicy() = default;
  /// Called within the handshake: it must not block. Thread: the session's.
  virtual TrustDecision decide(const PresentedIdentity& who) = 0;
};

/// What one node brings to all of its handshakes. Unchanged while handshakes use it; replace the whole to change a key.
struct HandshakeConfig {
  Identity identity;
  /// The first is used to dial, each of them is accepted. Not empty in the psk suites.
  std::vector<ClusterKey> keys;
  Suite suite = Suite::hybrid_psk;  ///< Dialled with, and the only one accepted.
  std::uint16_t newest_version = kNewestVersion;
  std::uint16_t oldest_version = kOldestVersion;
  std::uint64_t features = 0;  ///< Bits offered; the session has those that both sides offer.
  bool has_aes = crypto::cpu_has_aes();
  std::shared_ptr<TrustPolicy> trust = {};      ///< Null: whoever holds the cluster key (trust mode psk).
  std::optional<Certificate> certificate = {};  ///< Shown to every peer (trust mode roots).
};

/// One direction's secret; record keys are derived from it.
using TrafficSecret = crypto::Secret<32>;

/// What a finished handshake proved and agreed.
struct HandshakeResult {
  NodeId peer;
  crypto::Ed25519PublicKey peer_key{};
  std::uint16_t version = 0;
  std::uint64_t features = 0;
  crypto::AeadAlgorithm aead = crypto::AeadAlgorithm::xchacha20_poly1305;
  noise::Hash handshake_hash{};  ///< Channel binding: the same on both sides, different in every handshake.
  TrafficSecret send_secret;
  TrafficSecret receive_secret;
};

/// Why a handshake ended, what to count, and what to tell the other side in clear.
struct HandshakeFailure {
  Error error;
  RefusalKind kind = RefusalKind::garbage;
  Bytes refusal;  ///< For the peer, see decode_refusal(). Empty: close without a word.
};

struct Payload;

/// Secrets of both directions while the handshake is not done (QUIC's Handshake level).
struct LevelSecrets {
  TrafficSecret send, receive;
};

/// One side of one handshake. The initiator calls start() and sends what it returns; each message that arrives goes to
/// on_message(), whose answer is sent, until done(). A resource. Thread: one at a time.
class Handshake {
 public:
  template <class T>
  using Outcome = std::expected<T, HandshakeFailure>;

  /// `expected`: the only node that may answer (0: any); for initiators. `entropy` must outlive this.
  Handshake(Role role, std::shared_ptr<const HandshakeConfig> config, env::Entropy& entropy, NodeId expected = {});

  /// What a carrier wants to tell the other side's carrier (QUIC's transport parameters), at most
  /// kMaxTransportParameters, bound to the transcript. Called with what the peer's carrier said; a responder's returns
  /// its own. Errors refuse the peer.
  using ExchangeParameters = std::function<Result<Bytes>(ByteSpan peer)>;

  /// Message 1. Initiators only, once. Cost: about 100 us.
  Outcome<Bytes> start(ByteSpan parameters = {});
  /// Takes one message, whole; returns the answer to send (empty: none). Without `exchange` the peer must not have
  /// said anything: what was made for one carrier means nothing on another. Cost: at most about 400 us.
  Outcome<Bytes> on_message(ByteSpan message, const ExchangeParameters& exchange = {});
  /// After message 2 (read or written), until taken. From the chaining key: whoever has them took part so far, but an
  /// initiator has not proved itself yet.
  std::optional<LevelSecrets> take_level_secrets() { return std::exchange(level_, std::nullopt); }
  [[nodiscard]] bool done() const { return result_.has_value(); }
  /// The cipher agreed on. Once there are level secrets, until take_result().
  [[nodiscard]] crypto::AeadAlgorithm aead() const { return result_ ? result_->aead : agreed_.aead; }
  /// Once, after done().
  HandshakeResult take_result() { return std::move(*result_); }

 private:
  Outcome<Bytes> on_first(ByteSpan message, const ExchangeParameters& exchange);
  Outcome<Bytes> on_second(ByteSpan message, const ExchangeParameters& exchange);
  Outcome<Bytes> on_third(ByteSpan message);
  Status choose(const Payload& offered);
  Status accept_choice(const Payload& chosen);
  TrustDecision accept_identity(const Payload& payload);
  [[nodiscard]] TrafficSecret derive(std::string_view label) const;
  void reach_level();
  void finish();
  [[nodiscard]] std::unexpected<HandshakeFailure> refuse(RefusalKind kind, Error error) const;
  [[nodiscard]] std::unexpected<HandshakeFailure> refuse_message(Error error, std::string_view what) const;

  Role role_;
  std::shared_ptr<const HandshakeConfig> config_;
  env::Entropy* entropy_;
  NodeId expected_;
  std::optional<noise::HandshakeState> noise_;
  HandshakeResult agreed_;
  std::optional<LevelSecrets> level_;
  std::optional<HandshakeResult> result_;
  unsigned received_ = 0;
};

/// The clear text in front of message 1. It is the Noise prologue, so that both sides fail unless they saw the same.
struct Preamble {
  std::uint16_t protocol = kHandshakeProtocol;
  Suite suite = Suite::hybrid_psk;
  std::uint64_t key_id = 0;
  friend bool operator==(const Preamble&, const Preamble&) = default;
};
void encode_preamble(const Preamble& preamble, Bytes& out);
/// Errors: `malformed` (another magic, too short, reserved byte not zero). Protocol number and suite are not judged.
Result<Preamble> decode_preamble(ByteSpan bytes);

/// The encrypted payload of each message: type-length-value fields in ascending order, unknown ones skipped.
struct Payload {
  std::vector<std::uint16_t> versions;       // message 1: offered; message 2: the one chosen
  std::uint64_t features = 0;                // messages 1 and 2
  std::vector<crypto::AeadAlgorithm> aeads;  // message 1: offered; message 2: the one chosen
  Bytes transport_parameters;                // messages 1 and 2
  std::optional<NodeId> node;                // messages 2 and 3, like the two that follow
  std::optional<crypto::Ed25519PublicKey> key;
  std::optional<crypto::Ed25519Signature> signature;
  std::optional<IdentityChain> chain;  // of a node that has rotated: from its first key to `key`
  std::optional<Certificate> certificate;
  friend bool operator==(const Payload&, const Payload&) = default;
};
void encode_payload(const Payload& payload, Bytes& out);
/// Errors: `malformed`.
Result<Payload> decode_payload(ByteSpan bytes);

/// What a side that refuses says in clear before it closes. Nobody vouches for it: it tells people why, and changes
/// nothing else (a connection that sees one is closed, and would fail without it too).
struct Refusal {
  RefusalKind kind = RefusalKind::wrong_key;
  std::uint16_t protocol = kHandshakeProtocol;
  std::uint16_t newest_version = 0;
  std::uint16_t oldest_version = 0;
  Suite suite{};  ///< What the refusing side speaks; 0 from releases that did not say it.
  friend bool operator==(const Refusal&, const Refusal&) = default;
};
void encode_refusal(const Refusal& refusal, Bytes& out);
/// Errors: `malformed`.
Result<Refusal> decode_refusal(ByteSpan bytes);
/// What a refused side with this configuration tells its user.
Error refusal_error(const Refusal& refusal, const HandshakeConfig& ours);

}  // namespace holo::hyperbus
