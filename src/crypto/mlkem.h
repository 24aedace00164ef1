// ML-KEM-768 (FIPS 203) over AWS-LC. All randomness is an argument, so that a simulated run repeats.
#pragma once

#include <memory>
#include <span>

#include "base/bytes.h"
#include "base/result.h"
#include "crypto/secret.h"

namespace holo::crypto {

inline constexpr std::size_t kMlKemPublicBytes = 1184;
inline constexpr std::size_t kMlKemCiphertextBytes = 1088;
inline constexpr std::size_t kMlKemSharedBytes = 32;
inline constexpr std::size_t kMlKemKeySeedBytes = 64;     ///< d and z of FIPS 203
inline constexpr std::size_t kMlKemEncapsSeedBytes = 32;  ///< m of FIPS 203

using MlKemShared = Secret<kMlKemSharedBytes>;

/// A decapsulation key. Movable; wiped by the library when it goes. Thread: one at a time.
class MlKemKeyPair {
 public:
  /// Deterministic in `seed` (d, then z). Cost: about 45 us.
  static MlKemKeyPair from_seed(const Secret<kMlKemKeySeedBytes>& seed);

  MlKemKeyPair(MlKemKeyPair&&) noexcept;
  MlKemKeyPair& operator=(MlKemKeyPair&&) noexcept;
  ~MlKemKeyPair();

  [[nodiscard]] std::array<std::byte, kMlKemPublicBytes> public_key() const;

  /// The shared secret in `ciphertext`. A ciphertext of the right size that was altered gives an unrelated secret
  /// (implicit rejection), never an error. Errors: `malformed` (wrong size). Cost: about 26 us.
  [[nodiscard]] Result<MlKemShared> decapsulate(ByteSpan ciphertext) const;

 private:
  struct Impl;
  explicit MlKemKeyPair(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

struct MlKemEncapsulated {
  std::array<std::byte, kMlKemCiphertextBytes> ciphertext{};
  MlKemShared shared;
};

/// Encapsulates to `public_key`, deterministic in `seed`. Errors: `malformed` (wrong size, or coefficients that are not
/// reduced modulo q, as FIPS 203 section 7.2 demands). Cost: about 21 us.
Result<MlKemEncapsulated> mlkem_encapsulate(ByteSpan public_key, const Secret<kMlKemEncapsSeedBytes>& seed);

}  // namespace holo::crypto
