// What each node says of its machine: signed by the node, checked by whoever takes it, kept in the control state.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/hyperbus/identity.h"
#include "env/loop.h"
#include "node/control.h"
#include "node/json.h"
#include "node/local_api.h"
#include "wire/inventory.pb.h"

namespace holo::node {

/// A wire::SignedInventory, as bytes. Cost: a signature.
std::string sign_inventory(const hyperbus::Identity& identity, const wire::Inventory& inventory);
/// Errors: `malformed`; `permission_denied`, for one that `node` has not signed, or that is of another node.
Result<wire::Inventory> open_inventory(NodeId node, ByteSpan signed_inventory);
/// For control::State: when it was taken. Errors: the same.
Result<std::int64_t> check_inventory(NodeId node, ByteSpan signed_inventory);

/// The members of one JSON object.
void write_inventory(JsonWriter& w, const wire::Inventory& inventory);

/// Keeps what the state says of this node true: looks now and then, and when something has changed, signs it and tells
/// the cluster, at most once in kTellAtMost. Answers INVENTORY. Thread: loop.
class InventoryService {
 public:
  struct Ports {
    env::Loop* loop = nullptr;
    ControlService* control = nullptr;
    /// This node's identity, as it is now.
    std::function<hyperbus::Identity()> identity;
    /// Looks at the machine; blocks, on a helper thread. Node and time are filled in here. Null: there is nothing to
    /// tell.
    std::function<Result<wire::Inventory>()> look;
  };
  InventoryService(Ports ports, LocalApi& api);
  ~InventoryService();
  InventoryService(const InventoryService&) = delete;
  InventoryService& operator=(const InventoryService&) = delete;

  /// Once this node has its place in a cluster.
  void start();

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;  ///< What waits keeps it.
};

inline constexpr Duration kLookAgain = seconds(60);
inline constexpr Duration kTellAtMost = seconds(60);

}  // namespace holo::node
