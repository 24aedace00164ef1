#include "driver/etcd/entry.h"

#include <cstdio>

#include "base/ids.h"
#include "base/strings.h"

namespace holo::driver::etcd {
namespace {

constexpr std::byte kInline{1}, kChunked{2};

void put(std::uint64_t v, unsigned bytes, Bytes& out) {
  for (unsigned i = 0; i < bytes; ++i) out.push_back(static_cast<std::byte>(v >> (8 * i)));
}

struct Reader {
  ByteSpan rest;
  bool ok = true;
  std::uint64_t get(unsigned bytes) {
    if (rest.size() < bytes) {
      ok = false;
      return 0;
    }
    std::uint64_t v = 0;
    for (unsigned i = 0; i < bytes; ++i) v |= std::to_integer<std::uint64_t>(rest[i]) << (8 * i);
    rest = rest.subspan(bytes);
    return v;
  }
};

/// In the order of numbers, also as text.
std::string digits(std::uint64_t v) {
  char out[24];
  std::snprintf(out, sizeof out, "%020llu", static_cast<unsigned long long>(v));
  return out;
}

}  // namespace

Bytes encode_entry(const Entry& entry) {
  Bytes out;
  out.push_back(entry.chunks == 0 ? kInline : kChunked);
  put(static_cast<std::uint64_t>(entry.wall_ms), 8, out);
  if (entry.chunks != 0) {
    put(entry.chunk_at, 8, out);
    put(entry.chunk_id, 8, out);
    put(entry.chunks, 4, out);
    return out;
  }
  for (const Bytes& c : entry.commands) {
    put(c.size(), 4, out);
    out.insert(out.end(), c.begin(), c.end());
  }
  return out;
}

Result<Entry> decode_entry(ByteSpan bytes) {
  const auto corrupt = [] { return fail(Errc::corrupt, "an entry of the log in etcd does not decode"); };
  if (bytes.empty()) return corrupt();
  const std::byte kind = bytes[0];
  Reader in{.rest = bytes.subspan(1)};
  Entry out;
  out.wall_ms = static_cast<std::int64_t>(in.get(8));
  if (!in.ok || out.wall_ms < 0) return corrupt();
  if (kind == kChunked) {
    out.chunk_at = in.get(8);
    out.chunk_id = in.get(8);
    out.chunks = static_cast<std::uint32_t>(in.get(4));
    if (!in.ok || !in.rest.empty() || out.chunks == 0 || out.chunks > 64) return corrupt();
    return out;
  }
  if (kind != kInline) return corrupt();
  while (!in.rest.empty()) {
    const std::uint64_t size = in.get(4);
    if (!in.ok || size > in.rest.size()) return corrupt();
    out.commands.emplace_back(in.rest.begin(), in.rest.begin() + static_cast<std::ptrdiff_t>(size));
    in.rest = in.rest.subspan(size);
  }
  return out;
}

std::string Keys::member(std::uint64_t node) const { return members() + to_hex(node); }
std::string Keys::entry(std::uint64_t index) const { return entries() + digits(index); }
std::string Keys::chunk(std::uint64_t index, std::uint64_t id, std::uint32_t part) const {
  return chunks() + digits(index) + "/" + to_hex(id) + "/" + digits(part);
}
std::string Keys::snapshot_part(std::uint64_t index, std::uint64_t id, std::uint32_t part) const {
  return snapshots() + digits(index) + "/" + to_hex(id) + "/" + digits(part);
}
std::string Keys::after(std::string prefix) {
  prefix.back() = static_cast<char>(prefix.back() + 1);  // Prefixes here end with "/".
  return prefix;
}

}  // namespace holo::driver::etcd
