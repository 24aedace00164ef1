#include "cmd/holo/state_dir.h"

#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "crypto/base64.h"
#include "driver/posix/os_entropy.h"

namespace holo::cmd {
namespace {

using nlohmann::json;
constexpr std::size_t kMaxFileBytes = 1 << 20;

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

}  // namespace

Result<StateDir> StateDir::open(const std::string& path) {
  if (auto made = driver::make_private_directory(path); !made) {
    made.error().message = str("cannot use the state directory ", path, ": ", made.error().message);
    return std::unexpected(made.error());
  }
  HOLO_ASSIGN(lock, driver::LockFile::acquire(path + "/lock"));
  return StateDir(path, std::move(lock));
}

Result<hyperbus::Identity> StateDir::identity() {
  const auto file = path_ + "/identity.json";
  HOLO_ASSIGN(found, read_json(file));
  if (!found) {
    driver::OsEntropy entropy;
    const auto seed = crypto::random_secret<crypto::kEd25519SeedBytes>(entropy);
    auto identity = hyperbus::Identity::from_seed(seed);
    const json object = {
        {"version", 1}, {"node", to_hex(identity.node().value)}, {"seed", crypto::base64_encode(seed.span())}};
    HOLO_TRY(driver::write_file_atomically(file, as_bytes(object.dump(2) + "\n")));
    return identity;
  }
  const auto seed = crypto::base64_decode(text_of(*found, "seed"));
  if (!seed || seed->size() != crypto::kEd25519SeedBytes) return corrupt(file);
  auto identity =
      hyperbus::Identity::from_seed(crypto::Ed25519Seed(std::span<const std::byte, crypto::kEd25519SeedBytes>(*seed)));
  if (text_of(*found, "node") != to_hex(identity.node().value)) return corrupt(file);
  return identity;
}

Result<std::optional<ClusterMembership>> read_membership(const std::string& state_dir) {
  const auto file = state_dir + "/cluster.json";
  HOLO_ASSIGN(found, read_json(file));
  if (!found) return std::optional<ClusterMembership>{};
  ClusterMembership out;
  auto key = parse_key(text_of(*found, "key"));
  if (!key || !parse_hex(text_of(*found, "id"), out.id.value)) return corrupt(file);
  out.key = *key;
  out.name = text_of(*found, "name");
  out.pending = text_of(*found, "pending");
  return std::optional(std::move(out));
}

Result<std::optional<ClusterMembership>> StateDir::membership() const { return read_membership(path_); }

Status StateDir::set_membership(const ClusterMembership& m) {
  const json object = {
      {"version", 1}, {"id", to_hex(m.id.value)}, {"name", m.name}, {"key", key_text(m.key)}, {"pending", m.pending}};
  return driver::write_file_atomically(path_ + "/cluster.json", as_bytes(object.dump(2) + "\n"));
}

Status StateDir::forget_cluster() {
  HOLO_TRY(driver::remove_file(path_ + "/cluster.json"));
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

}  // namespace holo::cmd
