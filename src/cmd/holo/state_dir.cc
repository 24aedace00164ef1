#include "cmd/holo/state_dir.h"

#include <charconv>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "crypto/base64.h"
#include "driver/posix/os_entropy.h"

namespace holo::cmd {
namespace {

using nlohmann::json;
constexpr std::size_t kMaxFileBytes = 1 << 20;
constexpr std::size_t kMaxPinsBytes = 4 << 20;

std::unexpected<Error> corrupt(const std::string& path) {
  return fail(Errc::corrupt, str(path, " is damaged or only half written"),
              "restore it, or start over with another --state-dir");
}

/// nullopt: no such file.
Result<std::optional<json>> read_json(const std::string& path) {
  auto text = driver::read_text_file(path, kMaxFileBytes);
  if (!text && text.error().code == Errc::not_found) return std::optional<json>{};
  if (!text) return std::unexpected(text.error());
  auto parsed = json::parse(*text, nullptr, false);
  if (!parsed.is_object()) return corrupt(path);
  return std::optional<json>(std::move(parsed));
}

std::string text_of(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

bool parse_hex(std::string_view text, std::uint64_t& out) {
  const auto* end = text.data() + text.size();
  const auto [p, e] = std::from_chars(text.data(), end, out, 16);
  return text.size() == 16 && e == std::errc{} && p == end;
}

Status write_secret(const std::string& path, const json& object) {
  std::string text = object.dump(2) + "\n";
  auto written = driver::replace_secret_file(path, as_bytes(text));
  wipe(std::as_writable_bytes(std::span(text)));
  return written;
}

}  // namespace

Result<StateDir> StateDir::open(const std::string& path) {
  if (auto made = driver::make_private_directory(path); !made) {
    made.error().message = str("cannot use the state directory ", path, ": ", made.error().message);
    return std::unexpected(made.error());
  }
  HOLO_ASSIGN(lock, driver::LockFile::acquire(path + "/lock"));
  return StateDir(path, std::move(lock));
}

// ---- Identity

Result<hyperbus::Identity> StateDir::identity() {
  const auto file = path_ + "/identity.json";
  HOLO_ASSIGN(found, read_json(file));
  if (!found) {
    driver::OsEntropy entropy;
    const auto seed = crypto::random_secret<crypto::kEd25519SeedBytes>(entropy);
    auto identity = hyperbus::Identity::from_seed(seed);
    HOLO_TRY(write_identity(path_, seed, identity.chain()));
    return identity;
  }
  auto bytes = crypto::base64_decode(text_of(*found, "seed"));
  if (!bytes || bytes->size() != crypto::kEd25519SeedBytes) return corrupt(file);
  const crypto::Ed25519Seed seed{std::span<const std::byte, crypto::kEd25519SeedBytes>(*bytes)};
  wipe(*bytes);
  auto identity = hyperbus::Identity::from_seed(seed);
  if (const auto chain_text = text_of(*found, "chain"); !chain_text.empty()) {
    const auto encoded = crypto::base64_decode(chain_text);
    if (!encoded) return corrupt(file);
    auto chain = hyperbus::decode_chain(*encoded);
    if (!chain) return corrupt(file);
    auto rotated = hyperbus::Identity::from_chain(seed, std::move(*chain));
    if (!rotated) return corrupt(file);
    identity = std::move(*rotated);
  }
  if (text_of(*found, "node") != to_hex(identity.node().value)) return corrupt(file);
  return identity;
}

Status write_identity(const std::string& state_dir, const crypto::Ed25519Seed& seed,
                      const hyperbus::IdentityChain& chain) {
  json object = {{"version", 1},
                 {"node", to_hex(hyperbus::node_id_of(chain.first).value)},
                 {"seed", crypto::base64_encode(seed.span())}};
  if (!chain.links.empty()) {
    Bytes encoded;
    encode_chain(chain, encoded);
    object["chain"] = crypto::base64_encode(encoded);
  }
  return write_secret(state_dir + "/identity.json", object);
}

// ---- The cluster

Result<std::optional<ClusterMembership>> read_membership(const std::string& state_dir) {
  const auto file = state_dir + "/cluster.json";
  HOLO_ASSIGN(found, read_json(file));
  if (!found) return std::optional<ClusterMembership>{};
  ClusterMembership out;
  if (!parse_hex(text_of(*found, "id"), out.id.value)) return corrupt(file);
  if (found->contains("trust")) {
    const auto mode = hyperbus::parse_trust_mode(text_of(*found, "trust"));
    if (!mode) return corrupt(file);
    out.trust = *mode;
  }
  std::vector<std::string> texts;
  if (found->contains("key")) texts.push_back(text_of(*found, "key"));
  for (const auto& more : found->value("more_keys", json::array())) {
    texts.push_back(more.is_string() ? more.get<std::string>() : std::string());
  }
  for (const std::string& text : texts) {
    auto key = parse_key(text);
    if (!key) return corrupt(file);
    out.keys.push_back(*key);
  }
  out.certificate = text_of(*found, "certificate");
  const bool certified = hyperbus::parse_certificate(out.certificate).has_value();
  if ((out.trust == hyperbus::TrustMode::psk) == out.keys.empty()) return corrupt(file);
  if ((out.trust == hyperbus::TrustMode::roots) != certified) return corrupt(file);
  out.name = text_of(*found, "name");
  out.pending = text_of(*found, "pending");
  return std::optional(std::move(out));
}

Status write_membership(const std::string& state_dir, const ClusterMembership& m) {
  json object = {{"version", 1},
                 {"id", to_hex(m.id.value)},
                 {"name", m.name},
                 {"trust", hyperbus::trust_mode_name(m.trust)},
                 {"pending", m.pending}};
  if (!m.keys.empty()) object["key"] = key_text(m.keys.front());
  for (std::size_t i = 1; i < m.keys.size(); ++i) object["more_keys"].push_back(key_text(m.keys[i]));
  if (!m.certificate.empty()) object["certificate"] = m.certificate;
  return write_secret(state_dir + "/cluster.json", object);
}

Result<std::optional<ClusterMembership>> StateDir::membership() const { return read_membership(path_); }

Status StateDir::set_membership(const ClusterMembership& m) { return write_membership(path_, m); }

// ---- The root key

Result<crypto::Ed25519KeyPair> read_root_key(const std::string& file) {
  HOLO_ASSIGN(found, read_json(file));
  if (!found) return fail(Errc::not_found, str("there is no root key ", file), "give the file with --root-key");
  auto bytes = crypto::base64_decode(text_of(*found, "seed"));
  if (!bytes || bytes->size() != crypto::kEd25519SeedBytes) return corrupt(file);
  const crypto::Ed25519Seed seed{std::span<const std::byte, crypto::kEd25519SeedBytes>(*bytes)};
  wipe(*bytes);
  auto pair = crypto::Ed25519KeyPair::from_seed(seed);
  if (text_of(*found, "root") != hyperbus::public_key_text(pair.public_key())) return corrupt(file);
  return pair;
}

Result<crypto::Ed25519KeyPair> StateDir::root_key() {
  if (driver::file_exists(root_key_file())) return read_root_key(root_key_file());
  driver::OsEntropy entropy;
  const auto seed = crypto::random_secret<crypto::kEd25519SeedBytes>(entropy);
  auto pair = crypto::Ed25519KeyPair::from_seed(seed);
  HOLO_TRY(write_secret(root_key_file(), {{"version", 1},
                                          {"root", hyperbus::public_key_text(pair.public_key())},
                                          {"seed", crypto::base64_encode(seed.span())}}));
  return pair;
}

std::string sign_identity(const crypto::Ed25519KeyPair& root, const hyperbus::IdentityChain& chain, Duration lifetime) {
  using std::chrono::milliseconds, std::chrono::system_clock;
  const WallTime now{std::chrono::duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count()};
  const WallTime expires{lifetime.ns == 0 ? 0 : now.ms + lifetime.millis()};
  const NodeId node = hyperbus::node_id_of(chain.first);
  return hyperbus::certificate_text(
      {.root = root.public_key(),
       .node = node,
       .first = chain.first,
       .certificate = hyperbus::issue_certificate(root, node, chain.first, now, expires)});
}

// ---- Pins

Status write_pins(const std::string& state_dir, const std::string& text) {
  return driver::write_file_atomically(state_dir + "/trust.pins", as_bytes(text));
}

Status read_pins(const std::string& state_dir, hyperbus::TrustBook& book) {
  const auto file = state_dir + "/trust.pins";
  auto text = driver::read_text_file(file, kMaxPinsBytes);
  if (!text && text.error().code == Errc::not_found) return {};
  if (!text) return std::unexpected(text.error());
  if (auto loaded = book.load_pins(*text); !loaded) {
    return fail(Errc::corrupt, str("the pins in ", file, " cannot be believed: ", loaded.error().message),
                "mend or remove that line; without the file every key is believed anew");
  }
  return {};
}

// ---- All of it

Status StateDir::forget_cluster() {
  HOLO_TRY(driver::remove_file(path_ + "/cluster.json"));
  HOLO_TRY(driver::remove_file(restore_file()));
  for (const auto& directory : {log_directory(), pages_directory()}) {
    std::error_code error;
    std::filesystem::remove_all(directory, error);
    if (error) return fail(Errc::io_error, str("cannot remove ", directory, ": ", error.message()));
  }
  return {};
}

std::string key_text(const ClusterKey& key) { return crypto::base64_encode(key.span()); }

Result<ClusterKey> parse_key(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.remove_suffix(1);
  const auto bytes = crypto::base64_decode(text);
  if (!bytes || bytes->size() != ClusterKey::kBytes) {
    return fail(Errc::malformed, "the cluster key is not whole: it is base64 of 32 bytes, 44 characters",
                "copy it again from holo init's line");
  }
  return ClusterKey(std::span<const std::byte, ClusterKey::kBytes>(*bytes));
}

Result<std::uint64_t> parse_key_id(std::string_view text) {
  std::uint64_t id = 0;
  if (parse_hex(text, id)) return id;
  return fail(Errc::malformed, str("\"", text, "\" is no key's id: 16 hexadecimal digits"), "holo key list shows them");
}

}  // namespace holo::cmd
