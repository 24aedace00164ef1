// Whom a node lets in: the trust modes, the pins, and the decision about an identity that has proved itself. A function
// of (book, identity, now); files, clocks and the cluster's state are its owner's.
#pragma once

#include <cstdint>
#include <expected>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "base/ids.h"
#include "base/result.h"
#include "base/time.h"
#include "core/hyperbus/identity_chain.h"

namespace holo::hyperbus {

/// Which Noise protocol is spoken; named in the preamble. Append only.
enum class Suite : std::uint8_t {
  hybrid_psk = 1,     ///< Noise_XXhfs+psk0_25519+MLKEM768_ChaChaPoly_SHA256
  hybrid = 2,         ///< Noise_XXhfs_25519+MLKEM768_ChaChaPoly_SHA256 (trust modes tofu and roots)
  classical_psk = 3,  ///< Noise_XXpsk0_25519_ChaChaPoly_SHA256, only where both sides are configured so
  classical = 4,      ///< Noise_XX_25519_ChaChaPoly_SHA256, likewise
};
/// For people: "hybrid with a cluster key", ...; "unknown" for other numbers.
std::string_view suite_name(Suite suite);

enum class TrustMode : std::uint8_t {
  psk,    ///< whoever holds the cluster key
  tofu,   ///< whoever shows the key that was seen first for its node id
  roots,  ///< whoever the cluster's root key has signed
};
std::string_view trust_mode_name(TrustMode mode);
/// Error: `invalid_argument`.
Result<TrustMode> parse_trust_mode(std::string_view name);

enum class KeyExchange : std::uint8_t { hybrid, classical_only };
Suite suite_of(TrustMode mode, KeyExchange exchange);

/// Why a peer was refused, as `holo status` counts it. The numbers travel in refusals: append only.
enum class RefusalKind : std::uint8_t {
  none = 0,
  wrong_key = 1,         ///< another cluster key, or an identity that does not prove itself
  wrong_version = 2,     ///< no protocol, version, cipher or suite in common
  garbage = 3,           ///< bytes that are not the protocol, or silence
  unknown_identity = 4,  ///< nobody vouches for it: no certificate, another root's, an expired one
  changed_key = 5,       ///< not the key that was pinned, nor one that follows from it
  revoked = 6,           ///< the cluster has revoked it
};
inline constexpr std::size_t kRefusalKinds = 7;

/// An identity whose chain and signatures were found right.
struct PresentedIdentity {
  NodeId node;
  const IdentityChain& chain;
  const std::optional<Certificate>& certificate;
};

struct TrustRefusal {
  RefusalKind kind = RefusalKind::unknown_identity;
  Error error;
};
using TrustDecision = std::expected<void, TrustRefusal>;

/// A key that this node has seen, and holds its owner to.
struct Pin {
  NodeId node;
  crypto::Ed25519PublicKey key{};  ///< the newest seen
  WallTime since;
  std::string address;     ///< where it was seen; empty: not known
  bool confirmed = false;  ///< dialled by us, or a member: worth a line in the file
  friend bool operator==(const Pin&, const Pin&) = default;
};

/// Lines of the file: above, identities that are not pinned yet are refused.
inline constexpr std::size_t kMaxPins = 4096;
/// Strangers whose first key is remembered in memory only; above, the oldest is forgotten.
inline constexpr std::size_t kMaxUnconfirmedPins = 1024;

/// A value. In mode tofu every identity is pinned. In every mode a node that has rotated is: its older keys are worth
/// nothing to whoever gets hold of them, wherever the rotation was seen.
class TrustBook {
 public:
  /// `root`: the cluster's root key; mode roots refuses everybody without one.
  explicit TrustBook(TrustMode mode = TrustMode::psk, std::optional<crypto::Ed25519PublicKey> root = {})
      : mode_(mode), root_(root) {}

  /// Decides, and pins the key (tofu, or rotated). Cost: one signature in mode roots, else a lookup.
  TrustDecision judge(const PresentedIdentity& who, WallTime now);

  [[nodiscard]] TrustMode mode() const { return mode_; }
  [[nodiscard]] const std::optional<crypto::Ed25519PublicKey>& root() const { return root_; }
  [[nodiscard]] const std::map<NodeId, Pin>& pins() const { return pins_; }
  /// Notes where a pinned node was seen, and that it is worth keeping. True: the file has to be written.
  bool confirm(NodeId node, std::string_view address);
  /// The next key it shows is its first again. False: there was no pin.
  bool forget(NodeId node);

  [[nodiscard]] const std::set<NodeId>& revoked() const { return revoked_; }
  void set_revoked(std::set<NodeId> revoked) { revoked_ = std::move(revoked); }

  /// True once after confirmed pins have changed by judge(), confirm() or forget().
  bool take_changed() { return std::exchange(changed_, false); }
  /// The file: one line for each confirmed pin, ascending by node.
  [[nodiscard]] std::string pins_text() const;
  /// Replaces all pins. Errors: `corrupt`, with the number of the first bad line; nothing is changed then.
  Status load_pins(std::string_view text);

 private:
  TrustDecision judge_pin(const PresentedIdentity& who, WallTime now);
  void forget_oldest_stranger();

  TrustMode mode_;
  std::optional<crypto::Ed25519PublicKey> root_;
  std::map<NodeId, Pin> pins_;
  std::size_t confirmed_ = 0;
  std::set<NodeId> revoked_;
  bool changed_ = false;
};

/// 2026-11-21T08:51:41Z, whole seconds; and back (Error: `malformed`).
std::string utc_text(WallTime t);
Result<WallTime> parse_utc(std::string_view text);

}  // namespace holo::hyperbus
