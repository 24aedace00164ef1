#include "core/hyperbus/noise.h"

#include <algorithm>

#include "base/assert.h"

namespace holo::hyperbus::noise {
namespace {

using enum Token;
using TokenList = std::span<const Token>;

constexpr Token kE[] = {e};
constexpr Token kPskE[] = {psk, e};
constexpr Token kEHfs[] = {e, e1};
constexpr Token kPskEHfs[] = {psk, e, e1};
constexpr Token kReply[] = {e, ee, s, es};
constexpr Token kReplyHfs[] = {e, ee, ekem1, s, es};
constexpr Token kLast[] = {s, se};

constexpr TokenList kXXMessages[] = {kE, kReply, kLast};
constexpr TokenList kXXpsk0Messages[] = {kPskE, kReply, kLast};
constexpr TokenList kXXhfsMessages[] = {kEHfs, kReplyHfs, kLast};
constexpr TokenList kXXhfsPsk0Messages[] = {kPskEHfs, kReplyHfs, kLast};

void append(Bytes& out, ByteSpan bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); }

/// Takes `n` bytes off the front of `rest`.
Result<ByteSpan> take(ByteSpan& rest, std::size_t n) {
  if (rest.size() < n) return fail(Errc::malformed, "a handshake message is too short");
  const ByteSpan taken = rest.first(n);
  rest = rest.subspan(n);
  return taken;
}

crypto::X25519PublicKey public_key_from(ByteSpan bytes) {
  crypto::X25519PublicKey key{};
  std::copy_n(bytes.begin(), key.size(), key.begin());
  return key;
}

}  // namespace

const Protocol kXX{"Noise_XX_25519_ChaChaPoly_SHA256", kXXMessages};
const Protocol kXXpsk0{"Noise_XXpsk0_25519_ChaChaPoly_SHA256", kXXpsk0Messages};
const Protocol kXXhfs{"Noise_XXhfs_25519+MLKEM768_ChaChaPoly_SHA256", kXXhfsMessages};
const Protocol kXXhfsPsk0{"Noise_XXhfs+psk0_25519+MLKEM768_ChaChaPoly_SHA256", kXXhfsPsk0Messages};

HandshakeState::HandshakeState(const Protocol& protocol, Role role, ByteSpan prologue,
                               crypto::X25519KeyPair static_keys, std::vector<Psk> psks)
    : protocol_(&protocol), role_(role), static_(std::move(static_keys)), psks_(std::move(psks)) {
  std::size_t needed = 0;
  for (const TokenList message : protocol.messages)
    needed += static_cast<std::size_t>(std::ranges::count(message, psk));
  HOLO_ASSERT(needed == psks_.size(), "one key for each psk token");
  uses_psk_ = needed > 0;
  // Section 5.2: a name that fits is padded with zeros, a longer one is hashed.
  if (protocol.name.size() <= h_.size()) {
    std::ranges::copy(as_bytes(protocol.name), h_.begin());
  } else {
    h_ = crypto::sha256(as_bytes(protocol.name));
  }
  ck_ = crypto::Secret<32>(h_);
  mix_hash(prologue);
}

bool HandshakeState::my_turn() const { return (next_ % 2 == 0) == (role_ == Role::initiator); }

void HandshakeState::mix_hash(ByteSpan data) { h_ = crypto::sha256(h_, data); }

void HandshakeState::set_key(const crypto::Secret<32>& key) {
  cipher_.emplace(protocol_->cipher, key);
  nonce_ = 0;
}

void HandshakeState::mix_key(ByteSpan material) {
  auto made = crypto::noise_hkdf(ck_, material);
  ck_ = made.first;
  set_key(made.second);
}

void HandshakeState::mix_key_and_hash(ByteSpan material) {
  auto made = crypto::noise_hkdf(ck_, material);
  ck_ = made.first;
  mix_hash(made.second.span());
  set_key(made.third);
}

std::array<std::byte, 12> HandshakeState::next_nonce() {
  // Section 12: 32 zero bits, then the counter: little-endian for ChaChaPoly, big-endian for AESGCM.
  std::array<std::byte, 12> nonce{};
  const bool little = protocol_->cipher == crypto::AeadAlgorithm::chacha20_poly1305;
  for (std::size_t i = 0; i < 8; ++i) {
    nonce[little ? 4 + i : 11 - i] = static_cast<std::byte>(nonce_ >> (8 * i));
  }
  ++nonce_;
  return nonce;
}

void HandshakeState::encrypt_and_hash(ByteSpan plain, Bytes& out) {
  const std::size_t begin = out.size();
  append(out, plain);
  if (cipher_) {
    out.resize(out.size() + crypto::kAeadTagBytes);
    const MutableByteSpan place = MutableByteSpan(out).subspan(begin);
    cipher_->seal(next_nonce(), h_, place.first(plain.size()), place);
  }
  mix_hash(ByteSpan(out).subspan(begin));
}

Result<Bytes> HandshakeState::decrypt_and_hash(ByteSpan sealed) {
  if (!cipher_) {
    mix_hash(sealed);
    return Bytes(sealed.begin(), sealed.end());
  }
  if (sealed.size() < crypto::kAeadTagBytes) return fail(Errc::malformed, "a handshake message is too short");
  Bytes plain(sealed.size() - crypto::kAeadTagBytes);
  if (!cipher_->open(next_nonce(), h_, sealed, plain)) {
    return fail(Errc::corrupt, "a handshake message is not authentic");
  }
  mix_hash(sealed);
  return plain;
}

/// Reads a field whose plain text has `plain_bytes`, sealed or not as the state demands.
Result<Bytes> HandshakeState::take_field(ByteSpan& rest, std::size_t plain_bytes) {
  HOLO_ASSIGN(field, take(rest, plain_bytes + (cipher_ ? crypto::kAeadTagBytes : 0)));
  return decrypt_and_hash(field);
}

void HandshakeState::mix_ephemeral(const crypto::X25519PublicKey& key) {
  mix_hash(key);
  if (uses_psk_) mix_key(key);  // Section 9.2: with a psk, ephemeral keys randomise the encryption too.
}

Status HandshakeState::mix_dh(Token token) {
  const bool initiator = role_ == Role::initiator;
  // es and se name the initiator's key first.
  const bool ours_static = (token == es && !initiator) || (token == se && initiator);
  const bool theirs_static = (token == es && initiator) || (token == se && !initiator);
  const auto& theirs = theirs_static ? remote_static_ : remote_ephemeral_;
  HOLO_ASSERT(theirs && (ours_static || ephemeral_), "the pattern sends a key before it uses it");
  HOLO_ASSIGN(shared, crypto::x25519(ours_static ? static_.secret : ephemeral_->secret, *theirs));
  mix_key(shared.span());
  return {};
}

Status HandshakeState::write_token(Token token, env::Entropy& entropy, Bytes& out) {
  switch (token) {
    case e:
      ephemeral_ = crypto::x25519_key_pair(crypto::random_secret<crypto::kX25519Bytes>(entropy));
      append(out, ephemeral_->public_key);
      mix_ephemeral(ephemeral_->public_key);
      return {};
    case s: encrypt_and_hash(static_.public_key, out); return {};
    case e1:
      kem_ = crypto::MlKemKeyPair::from_seed(crypto::random_secret<crypto::kMlKemKeySeedBytes>(entropy));
      encrypt_and_hash(kem_->public_key(), out);
      return {};
    case ekem1: {
      HOLO_ASSIGN(
          made, crypto::mlkem_encapsulate(remote_kem_, crypto::random_secret<crypto::kMlKemEncapsSeedBytes>(entropy)));
      encrypt_and_hash(made.ciphertext, out);
      mix_key(made.shared.span());
      return {};
    }
    case psk: mix_key_and_hash(psks_[next_psk_++].span()); return {};
    case ee:
    case es:
    case se: return mix_dh(token);
  }
  HOLO_ASSERT(false, "no such token");
}

Status HandshakeState::read_token(Token token, ByteSpan& rest) {
  switch (token) {
    case e: {
      HOLO_ASSIGN(key, take(rest, crypto::kX25519Bytes));
      remote_ephemeral_ = public_key_from(key);
      mix_ephemeral(*remote_ephemeral_);
      return {};
    }
    case s: {
      HOLO_ASSIGN(key, take_field(rest, crypto::kX25519Bytes));
      remote_static_ = public_key_from(key);
      return {};
    }
    case e1: {
      HOLO_ASSIGN(key, take_field(rest, crypto::kMlKemPublicBytes));
      remote_kem_ = std::move(key);
      return {};
    }
    case ekem1: {
      HOLO_ASSERT(kem_, "the pattern sends e1 before ekem1");
      HOLO_ASSIGN(ciphertext, take_field(rest, crypto::kMlKemCiphertextBytes));
      HOLO_ASSIGN(shared, kem_->decapsulate(ciphertext));
      mix_key(shared.span());
      return {};
    }
    case psk: mix_key_and_hash(psks_[next_psk_++].span()); return {};
    case ee:
    case es:
    case se: return mix_dh(token);
  }
  HOLO_ASSERT(false, "no such token");
}

Status HandshakeState::write_message(env::Entropy& entropy, ByteSpan payload, Bytes& out) {
  HOLO_ASSERT(!done() && my_turn());
  for (const Token token : protocol_->messages[next_]) HOLO_TRY(write_token(token, entropy, out));
  encrypt_and_hash(payload, out);
  ++next_;
  return {};
}

Result<Bytes> HandshakeState::read_message(ByteSpan message) {
  HOLO_ASSERT(!done() && !my_turn());
  if (message.size() > kMaxMessageBytes) return fail(Errc::malformed, "a handshake message is too long");
  ByteSpan rest = message;
  for (const Token token : protocol_->messages[next_]) HOLO_TRY(read_token(token, rest));
  HOLO_ASSIGN(payload, decrypt_and_hash(rest));
  ++next_;
  return payload;
}

}  // namespace holo::hyperbus::noise
