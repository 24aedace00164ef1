// The Noise Protocol Framework, revision 34, with the `hfs` modifier of its KEM extension: handshake state, no I/O.
// Source: noiseprotocol.org/noise.html (rev 34); github.com/noiseprotocol/noise_hfs_spec (tokens e1 and ekem1).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "crypto/aead.h"
#include "crypto/hash.h"
#include "crypto/mlkem.h"
#include "crypto/x25519.h"
#include "env/entropy.h"

namespace holo::hyperbus::noise {

enum class Token : std::uint8_t { e, s, ee, es, se, psk, e1, ekem1 };
enum class Role : std::uint8_t { initiator, responder };

inline constexpr std::size_t kMaxMessageBytes = 65535;  // Noise's own limit; above: malformed
using Psk = crypto::Secret<32>;
using Hash = crypto::Sha256Digest;

/// A whole protocol: its exact name (it enters the transcript), its messages (the initiator writes the even ones), its
/// cipher. The hash is SHA-256, the curve 25519, the KEM ML-KEM-768; no key is known beforehand.
struct Protocol {
  std::string_view name;
  std::span<const std::span<const Token>> messages;
  crypto::AeadAlgorithm cipher = crypto::AeadAlgorithm::chacha20_poly1305;
};

extern const Protocol kXX;         ///< Noise_XX_25519_ChaChaPoly_SHA256
extern const Protocol kXXpsk0;     ///< Noise_XXpsk0_25519_ChaChaPoly_SHA256
extern const Protocol kXXhfs;      ///< Noise_XXhfs_25519+MLKEM768_ChaChaPoly_SHA256
extern const Protocol kXXhfsPsk0;  ///< Noise_XXhfs+psk0_25519+MLKEM768_ChaChaPoly_SHA256

/// One side of one handshake. A resource: used once, useless after its first error. Thread: one at a time.
class HandshakeState {
 public:
  /// `psks`: one for each psk token of the pattern, in order. `protocol` must outlive this.
  HandshakeState(const Protocol& protocol, Role role, ByteSpan prologue, crypto::X25519KeyPair static_keys,
                 std::vector<Psk> psks);

  /// True when the next message is this side's to write. Meaningless once done().
  [[nodiscard]] bool my_turn() const;
  [[nodiscard]] bool done() const { return next_ == protocol_->messages.size(); }

  /// Appends the next message to `out`; ephemeral keys come from `entropy`. Errors: `malformed` (the peer's point was
  /// of low order, or its KEM key is none). Cost: up to four X25519 operations and one of ML-KEM, about 200 us.
  Status write_message(env::Entropy& entropy, ByteSpan payload, Bytes& out);

  /// Reads the next message; returns its payload. Errors: `malformed` (too short, or a bad key), `corrupt` (not
  /// authentic: altered, or made with another key or prologue).
  Result<Bytes> read_message(ByteSpan message);

  /// h: the hash of everything said so far. After done() it names this handshake and no other (channel binding).
  [[nodiscard]] const Hash& hash() const { return h_; }
  /// ck: what traffic keys are derived from once done().
  [[nodiscard]] const crypto::Secret<32>& chaining_key() const { return ck_; }
  /// The peer's static key, once a message has carried it.
  [[nodiscard]] const std::optional<crypto::X25519PublicKey>& remote_static() const { return remote_static_; }

 private:
  void mix_hash(ByteSpan data);
  void mix_key(ByteSpan material);
  void mix_key_and_hash(ByteSpan material);
  void set_key(const crypto::Secret<32>& key);
  [[nodiscard]] std::array<std::byte, 12> next_nonce();
  void encrypt_and_hash(ByteSpan plain, Bytes& out);
  Result<Bytes> decrypt_and_hash(ByteSpan sealed);
  Result<Bytes> take_field(ByteSpan& rest, std::size_t plain_bytes);
  Status mix_dh(Token token);
  Status write_token(Token token, env::Entropy& entropy, Bytes& out);
  Status read_token(Token token, ByteSpan& rest);
  void mix_ephemeral(const crypto::X25519PublicKey& key);

  const Protocol* protocol_;
  Role role_;
  bool uses_psk_ = false;
  std::size_t next_ = 0;  // index of the message to write or read
  std::size_t next_psk_ = 0;
  Hash h_{};
  crypto::Secret<32> ck_;
  std::optional<crypto::Aead> cipher_;  // absent until the first mix_key
  std::uint64_t nonce_ = 0;
  crypto::X25519KeyPair static_;
  std::vector<Psk> psks_;
  std::optional<crypto::X25519KeyPair> ephemeral_;
  std::optional<crypto::X25519PublicKey> remote_ephemeral_;
  std::optional<crypto::X25519PublicKey> remote_static_;
  std::optional<crypto::MlKemKeyPair> kem_;
  Bytes remote_kem_;  // the peer's e1
};

}  // namespace holo::hyperbus::noise
