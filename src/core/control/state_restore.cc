// A new cluster that begins from what another one has kept (core/control/backup.h).
#include <algorithm>

#include "base/strings.h"
#include "core/control/backup.h"
#include "core/control/results.h"
#include "core/control/state.h"
#include "crypto/hash.h"

namespace holo::control {

wire::CommandResult State::restore_part(const wire::RestorePart& c) {
  if (nodes_.size() != 1 || !regions_.empty() || keys_.revision() != 0 || leases_.used()) {
    return refusal(Errc::refused, "a state is restored into a new cluster only", "holo init --restore FILE");
  }
  if (c.offset() != restoring_.size() || c.bytes().size() > kMaxBackupState - restoring_.size()) {
    return refusal(Errc::invalid_argument, "a part of a state that does not follow the one before");
  }
  restoring_ += c.bytes();
  if (c.digest().empty()) return {};
  const std::string whole = std::exchange(restoring_, {});
  if (!std::ranges::equal(crypto::blake3(as_bytes(whole)), as_bytes(c.digest()))) {
    return refusal(Errc::corrupt, "the state that was to be restored was altered on its way");
  }
  if (const Status ok = begin_from(as_bytes(whole)); !ok) return refusal(ok.error());
  return {};
}

Status State::begin_from(ByteSpan snapshot) {
  const ClusterId cluster = cluster_;
  const std::string name = name_;
  const WallTime now = now_;
  const NodeRecord self = nodes_.begin()->second;
  const Epoch epoch = epoch_;
  Session session = std::move(sessions_[self.id]);
  const std::vector<StateObserver*> observers = std::exchange(observers_, {});  // They see the end of it only.
  const Status replaced = replace(applied_, snapshot);
  if (replaced) {
    cluster_ = cluster;
    name_ = name;
    now_ = std::max(now_, now);
    epoch_ = std::max(epoch_, epoch);
    // The nodes of that time are not members of this cluster: all that they alone had is given up, and whoever reads it
    // is told so.
    for (auto& [id, n] : nodes_) {
      if (n.state != NodeState::left) remove_member(n);
    }
    nodes_.clear();
    sessions_.clear();
    nodes_[self.id] = self;
    nodes_[self.id].reserved_bytes = 0;
    revoked_.erase(self.id);
    restoring_.clear();
    keys_.go_on_apart();
    leases_.extend(now_);  // Who keeps them has to find this cluster first.
    nodes_changed(self.id);
  }
  sessions_[self.id] = std::move(session);
  observers_ = observers;
  if (replaced) tell_restored();
  return replaced;
}

}  // namespace holo::control
