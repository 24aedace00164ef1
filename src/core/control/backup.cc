#include "core/control/backup.h"

#include <algorithm>
#include <cstring>

#include "base/strings.h"
#include "core/control/state.h"
#include "crypto/hash.h"

namespace holo::control {
namespace {

constexpr std::string_view kMagic = "HOLOCTRL";
constexpr std::uint32_t kFormat = 1;
constexpr std::size_t kFixed = 16;  // Magic, format, size of the header.

std::uint32_t read_u32(ByteSpan at) {
  std::uint32_t v = 0;
  for (std::size_t i = 0; i < 4; ++i) v |= std::to_integer<std::uint32_t>(at[i]) << (8 * i);
  return v;
}

void write_u32(std::uint32_t v, Bytes& out) {
  for (unsigned i = 0; i < 4; ++i) out.push_back(static_cast<std::byte>(v >> (8 * i)));
}

std::unexpected<Error> corrupt(std::string what) {
  return fail(Errc::corrupt, std::move(what), "restore from another one: holo control snapshot makes them");
}

}  // namespace

wire::BackupHeader describe_backup(const State& state, ByteSpan bytes) {
  wire::BackupHeader h;
  h.set_cluster(state.cluster().value);
  h.set_name(state.cluster_name());
  h.set_log_index(state.applied().value);
  h.set_epoch(state.epoch().value);
  h.set_bytes(bytes.size());
  const crypto::Blake3Digest digest = crypto::blake3(bytes);
  h.set_digest(digest.data(), digest.size());
  h.set_keys(state.keys().keys());
  h.set_revision(state.keys().revision());
  h.set_regions(state.regions().size());
  h.set_nodes(state.nodes().size());
  return h;
}

Bytes encode_backup_header(const wire::BackupHeader& header) {
  const std::string text = header.SerializeAsString();
  HOLO_ASSERT(text.size() <= kMaxBackupHeader, "the head of a backup is small");
  Bytes out;
  const ByteSpan magic = as_bytes(kMagic);
  out.insert(out.end(), magic.begin(), magic.end());
  write_u32(kFormat, out);
  write_u32(static_cast<std::uint32_t>(text.size()), out);
  const ByteSpan body = as_bytes(text);
  out.insert(out.end(), body.begin(), body.end());
  const crypto::Blake3Digest digest = crypto::blake3(out);
  out.insert(out.end(), digest.begin(), digest.end());
  return out;
}

Result<Backup> decode_backup(ByteSpan file) {
  if (file.size() < kFixed || as_text(file.first(kMagic.size())) != kMagic) {
    return corrupt("it is no snapshot of a control state");
  }
  const std::uint32_t format = read_u32(file.subspan(8));
  if (format != kFormat) {
    return fail(Errc::unsupported, str("it has format ", format, ", this version knows ", kFormat),
                "use the version of holo that wrote it, or a later one");
  }
  const std::uint32_t header_bytes = read_u32(file.subspan(12));
  if (header_bytes > kMaxBackupHeader) return corrupt("its head was altered");
  const std::size_t head = kFixed + header_bytes;
  if (file.size() < head + crypto::kBlake3Bytes) return corrupt("it was cut short");
  const crypto::Blake3Digest head_digest = crypto::blake3(file.first(head));
  if (!std::equal(head_digest.begin(), head_digest.end(), file.begin() + static_cast<std::ptrdiff_t>(head))) {
    return corrupt("its head was altered");
  }
  Backup out;
  if (!out.header.ParseFromArray(file.data() + kFixed, static_cast<int>(header_bytes)) ||
      out.header.bytes() > kMaxBackupState || out.header.digest().size() != crypto::kBlake3Bytes) {
    return corrupt("its head does not decode");
  }
  out.state = file.subspan(head + crypto::kBlake3Bytes);
  if (out.state.size() < out.header.bytes()) {
    return corrupt(str("it was cut short: ", out.state.size(), " of ", out.header.bytes(), " bytes are there"));
  }
  if (out.state.size() > out.header.bytes()) return corrupt("something was appended to it");
  const crypto::Blake3Digest digest = crypto::blake3(out.state);
  if (!std::ranges::equal(digest, as_bytes(out.header.digest()))) return corrupt("it was altered");
  return out;
}

}  // namespace holo::control
