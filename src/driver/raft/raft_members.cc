#include "driver/raft/raft_members.h"

#include <algorithm>
#include <cstring>

#include "base/strings.h"

namespace holo::driver {
namespace {

constexpr std::byte kFormat{1};
constexpr std::uint32_t kLastRole = 2;  // RAFT_SPARE of raft.h, which this file does without.
constexpr std::size_t kLeastServerBytes = 8 + 1 + 1;

auto malformed(const char* what) {
  return fail(Errc::malformed, str("a change of members that does not decode: ", what));
}

std::uint64_t take_u64(ByteSpan& rest) {  // Little-endian, as every machine this runs on.
  std::uint64_t v = 0;
  std::memcpy(&v, rest.data(), 8);
  rest = rest.subspan(8);
  return v;
}

}  // namespace

Status check_raft_servers(const RaftServers& servers) {
  if (servers.size() > kMaxRaftServers) return malformed("too many servers");
  std::vector<NodeId> ids;
  for (const env::LogSnapshotServer& s : servers) {
    if (!s.node || s.role > kLastRole) return malformed("a server");
    ids.push_back(s.node);
  }
  std::ranges::sort(ids);
  if (std::ranges::adjacent_find(ids) != ids.end()) return malformed("a server twice");
  return {};
}

Result<RaftServers> decode_raft_change(ByteSpan entry) {
  if (entry.size() < 9 || entry[0] != kFormat) return malformed("its beginning");
  ByteSpan rest = entry.subspan(1);
  const std::uint64_t n = take_u64(rest);
  if (n > kMaxRaftServers || n * kLeastServerBytes > rest.size()) return malformed("too many servers");
  RaftServers out;
  for (std::uint64_t i = 0; i < n; ++i) {
    if (rest.size() < kLeastServerBytes) return malformed("it ends early");
    env::LogSnapshotServer server;
    server.node = NodeId{take_u64(rest)};
    const auto end = std::ranges::find(rest, std::byte{0});  // Of the address, which is the id again.
    const auto length = static_cast<std::size_t>(end - rest.begin());
    if (length + 2 > rest.size()) return malformed("it ends early");
    server.role = static_cast<std::uint32_t>(rest[length + 1]);
    rest = rest.subspan(length + 2);
    out.push_back(server);
  }
  HOLO_TRY(check_raft_servers(out));
  return out;
}

bool RaftMembers::truncate(std::uint64_t index) {
  const auto first = known_.lower_bound(index);
  const bool any = first != known_.end();
  known_.erase(first, known_.end());
  return any;
}

void RaftMembers::restart(std::uint64_t index, RaftServers servers) {
  known_.clear();
  known_.emplace(index, std::move(servers));
}

void RaftMembers::committed(std::uint64_t index) {
  auto after = known_.upper_bound(index);
  if (after == known_.begin()) return;
  known_.erase(known_.begin(), std::prev(after));
}

std::uint64_t RaftMembers::index_at(std::uint64_t index) const {
  const auto after = known_.upper_bound(index);
  return after == known_.begin() ? 0 : std::prev(after)->first;
}

const RaftServers* RaftMembers::at(std::uint64_t index) const {
  const auto after = known_.upper_bound(index);
  return after == known_.begin() ? nullptr : &std::prev(after)->second;
}

}  // namespace holo::driver
