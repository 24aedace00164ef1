// The key-value service, as this node's processes use it: transactions go through the log, reads are linearizable
// unless asked for otherwise, watches are answered from this node's copy of the history.
#pragma once

#include <memory>

#include "env/loop.h"
#include "node/control.h"
#include "node/local_api.h"

namespace holo::node {

/// A watch is pulled: each call names where it goes on, waits for the first event, and gets as many as an answer
/// carries. So a slow watcher costs nothing but the history that is kept for everybody, and no event comes twice or is
/// missed; who falls behind the compacted revision is told so. Thread: loop.
class KvService {
 public:
  /// Serves KV_TXN, KV_GET, KV_WATCH, KV_COMPACT and KV_STATE. Both outlive the service. Before the log opens.
  KvService(env::Loop& loop, ControlService& control, LocalApi& api);
  /// Watches that wait end with `cancelled`.
  ~KvService();
  KvService(const KvService&) = delete;
  KvService& operator=(const KvService&) = delete;

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;  ///< What waits keeps it.
};

}  // namespace holo::node
