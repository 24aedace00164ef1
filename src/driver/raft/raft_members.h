// Which configurations (who is a member, who votes) the log holds: the last committed one and those after it. libraft
// keeps only the newest, and looks for an earlier one in its log, where a snapshot may have taken it away.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "env/log_store.h"

namespace holo::driver {

using RaftServers = std::vector<env::LogSnapshotServer>;

constexpr std::size_t kMaxRaftServers = 4096;

/// An entry of type RAFT_CHANGE, as libraft writes it; libraft itself reads it without looking where it ends. Error:
/// `malformed`, also for one with a member twice.
Result<RaftServers> decode_raft_change(ByteSpan entry);

/// The same rules for servers that came in another form. Error: `malformed`.
Status check_raft_servers(const RaftServers& servers);

/// A value. Indexes are those of entries.
class RaftMembers {
 public:
  /// An entry of the log changes the members; later than all known ones.
  void append(std::uint64_t index, RaftServers servers) { known_.insert_or_assign(index, std::move(servers)); }
  /// The log ends before `index` now. True when that takes a change away.
  bool truncate(std::uint64_t index);
  /// The log begins anew, after a snapshot that holds this one.
  void restart(std::uint64_t index, RaftServers servers);
  /// Everything up to `index` is committed: what was in force before the newest of those is not needed any more.
  void committed(std::uint64_t index);

  [[nodiscard]] bool empty() const { return known_.empty(); }
  /// 0: none.
  [[nodiscard]] std::uint64_t newest_index() const { return known_.empty() ? 0 : known_.rbegin()->first; }
  /// Of what the log says in the end, committed or not. Not when it is empty.
  [[nodiscard]] const RaftServers& newest() const { return known_.rbegin()->second; }
  /// The newest that is not beyond `index`; 0: none.
  [[nodiscard]] std::uint64_t index_at(std::uint64_t index) const;
  /// Null: none.
  [[nodiscard]] const RaftServers* at(std::uint64_t index) const;

 private:
  std::map<std::uint64_t, RaftServers> known_;
};

}  // namespace holo::driver
