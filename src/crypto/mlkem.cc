#include "crypto/mlkem.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/experimental/kem_deterministic_api.h>
#include <openssl/nid.h>

#include "base/assert.h"
#include "crypto/awslc.h"

namespace holo::crypto {
namespace {

using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;
using Context = std::unique_ptr<EVP_PKEY_CTX, Deleter<EVP_PKEY_CTX_free>>;

}  // namespace

struct MlKemKeyPair::Impl {
  Key key;
};

MlKemKeyPair::MlKemKeyPair(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MlKemKeyPair::MlKemKeyPair(MlKemKeyPair&&) noexcept = default;
MlKemKeyPair& MlKemKeyPair::operator=(MlKemKeyPair&&) noexcept = default;
MlKemKeyPair::~MlKemKeyPair() = default;

MlKemKeyPair MlKemKeyPair::from_seed(const Secret<kMlKemKeySeedBytes>& seed) {
  Context context(EVP_PKEY_CTX_new_id(EVP_PKEY_KEM, nullptr));
  HOLO_ASSERT(context && EVP_PKEY_CTX_kem_set_params(context.get(), NID_MLKEM768) == 1);
  HOLO_ASSERT(EVP_PKEY_keygen_init(context.get()) == 1);
  EVP_PKEY* made = nullptr;
  std::size_t seed_bytes = kMlKemKeySeedBytes;
  HOLO_ASSERT(EVP_PKEY_keygen_deterministic(context.get(), &made, raw(seed.span()), &seed_bytes) == 1);
  return MlKemKeyPair(std::make_unique<Impl>(Key(made)));
}

std::array<std::byte, kMlKemPublicBytes> MlKemKeyPair::public_key() const {
  std::array<std::byte, kMlKemPublicBytes> out{};
  std::size_t bytes = out.size();
  HOLO_ASSERT(EVP_PKEY_get_raw_public_key(impl_->key.get(), raw(MutableByteSpan(out)), &bytes) == 1);
  HOLO_ASSERT(bytes == out.size());
  return out;
}

Result<MlKemShared> MlKemKeyPair::decapsulate(ByteSpan ciphertext) const {
  MlKemShared shared;
  std::size_t bytes = kMlKemSharedBytes;
  const Context context(EVP_PKEY_CTX_new(impl_->key.get(), nullptr));
  HOLO_ASSERT(context);
  if (ciphertext.size() != kMlKemCiphertextBytes ||
      EVP_PKEY_decapsulate(context.get(), raw(shared.writable()), &bytes, raw(ciphertext), ciphertext.size()) != 1) {
    ERR_clear_error();
    return fail(Errc::malformed, "an ML-KEM-768 ciphertext of the wrong size");
  }
  return shared;
}

Result<MlKemEncapsulated> mlkem_encapsulate(ByteSpan public_key, const Secret<kMlKemEncapsSeedBytes>& seed) {
  const auto bad = [] {
    ERR_clear_error();
    return fail(Errc::malformed, "not an ML-KEM-768 public key");
  };
  const Key key(EVP_PKEY_kem_new_raw_public_key(NID_MLKEM768, raw(public_key), public_key.size()));
  if (!key) return bad();
  const Context context(EVP_PKEY_CTX_new(key.get(), nullptr));
  HOLO_ASSERT(context);
  MlKemEncapsulated out;
  std::size_t ciphertext_bytes = out.ciphertext.size();
  std::size_t shared_bytes = kMlKemSharedBytes;
  std::size_t seed_bytes = kMlKemEncapsSeedBytes;
  if (EVP_PKEY_encapsulate_deterministic(context.get(), raw(MutableByteSpan(out.ciphertext)), &ciphertext_bytes,
                                         raw(out.shared.writable()), &shared_bytes, raw(seed.span()),
                                         &seed_bytes) != 1) {
    return bad();
  }
  return out;
}

}  // namespace holo::crypto
