// Joins the socket port to the table of handlers: every connection says Hello first, then its requests go to the
// services.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "env/local_server.h"
#include "node/local_api.h"
#include "wire/local.pb.h"

namespace holo::node {

/// Thread: loop. `server` and `api` outlive it; services fill `api` before open().
class LocalGate {
 public:
  /// `describe` fills the parts of a HelloReply that the node knows; the gate adds session and protocol.
  LocalGate(env::LocalServer& server, LocalApi& api, std::function<wire::HelloReply(const LocalSession&)> describe);
  ~LocalGate();
  LocalGate(const LocalGate&) = delete;
  LocalGate& operator=(const LocalGate&) = delete;

  /// Connects everything registered in the table. Then the server may listen.
  void open();
  /// Processes that have said Hello and are connected.
  [[nodiscard]] std::size_t sessions() const;

 private:
  class Session;
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

}  // namespace holo::node
