// A network inside one process, for tests: every node's env::Transport, with links that can be cut.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <utility>

#include "base/strings.h"
#include "env/loop.h"
#include "env/transport.h"

namespace holo::env::testing {

class Hub {
 public:
  explicit Hub(Loop& loop) : loop_(loop) {}

  class Endpoint final : public Transport {
   public:
    Endpoint(Hub& hub, NodeId id, std::string address) : hub_(hub), id_(id) {
      hub.endpoints_[id] = this;
      hub.addresses_[address] = id;
    }
    ~Endpoint() override { retire(); }
    /// Nobody hears it from now on, though it may still be called.
    void retire() {
      if (const auto it = hub_.endpoints_.find(id_); it != hub_.endpoints_.end() && it->second == this)
        hub_.endpoints_.erase(it);
    }
    Task<Result<Reply>> call(NodeId peer, Request request, CallOptions options) override {
      return deliver(&hub_, this, peer, std::move(request), options.deadline);
    }
    void serve(std::uint16_t type, Handler handler) override { handlers_[type] = std::move(handler); }
    void set_gate(std::shared_ptr<MemberGate> gate) override { gate_ = std::move(gate); }
    void set_addresses(NodeId peer, std::vector<std::string> addresses) override { known[peer] = std::move(addresses); }
    Task<Result<PeerIdentity>> connect(std::string address, Instant) override {
      const auto it = hub_.addresses_.find(address);
      if (it == hub_.addresses_.end() || !hub_.connected(id_, it->second))
        co_return fail(Errc::unavailable, "nobody at " + address);
      co_return PeerIdentity{it->second, address};
    }
    void disconnect(NodeId) override {}
    RefusedCounters refused() const override { return {}; }

    std::map<NodeId, std::vector<std::string>> known;

   private:
    friend class Hub;
    Hub& hub_;
    NodeId id_;
    std::map<std::uint16_t, Handler> handlers_;
    std::shared_ptr<MemberGate> gate_;
  };

  /// Cuts or mends everything between `node` and the others.
  void isolate(NodeId node, bool cut) {
    if (cut) {
      isolated_.insert(node);
    } else {
      isolated_.erase(node);
    }
  }
  [[nodiscard]] bool connected(NodeId a, NodeId b) const {
    return endpoints_.contains(a) && endpoints_.contains(b) &&
           (a == b || (!isolated_.contains(a) && !isolated_.contains(b)));
  }
  /// Requests delivered so far, by type.
  std::map<std::uint16_t, std::uint64_t> delivered;

 private:
  static Task<void> run(Transport::Handler handler, std::shared_ptr<MemberGate> gate, NodeId from, Request request,
                        std::shared_ptr<OneShot<Result<Reply>>> shot) {
    if (gate && !gate->admits(from, request.type)) {
      Status admitted = co_await gate->inquire(from, request.type);
      if (!admitted) {
        shot->set(std::unexpected(std::move(admitted).error()));
        co_return;
      }
    }
    auto reply = co_await handler(from, std::move(request));
    shot->set(std::move(reply));
  }
  static Buffer join(const std::vector<Buffer>& parts) {
    Bytes all;
    for (const Buffer& p : parts) all.insert(all.end(), p.span().begin(), p.span().end());
    return Buffer(std::move(all));
  }
  static Task<Result<Reply>> deliver(Hub* hub, Endpoint* sender, NodeId to, Request request, Instant deadline) {
    const NodeId from = sender->id_;
    co_await sleep_for(hub->loop_, microseconds(50));
    const auto current = hub->endpoints_.find(from);
    if (current == hub->endpoints_.end() || current->second != sender)
      co_return fail(Errc::unavailable, "this node is off");
    if (!hub->connected(from, to)) co_return fail(Errc::unavailable, str("node ", to, " cannot be reached"));
    Endpoint* peer = hub->endpoints_[to];
    const auto it = peer->handlers_.find(request.type);
    if (it == peer->handlers_.end()) co_return fail(Errc::unsupported, "no such request");
    ++hub->delivered[request.type];
    if (!request.payload.empty()) {
      Buffer whole = join(request.payload);
      request.payload.clear();
      request.payload.push_back(std::move(whole));
    }
    const auto landing = std::move(request.landing);
    auto shot = std::make_shared<OneShot<Result<Reply>>>();
    hub->loop_.spawn(run(it->second, from == to ? nullptr : peer->gate_, from, std::move(request), shot));
    auto reply = co_await await_until(hub->loop_, shot, deadline, std::string("a peer"));
    if (!hub->connected(from, to)) co_return fail(Errc::unavailable, str("the connection to node ", to, " broke"));
    if (landing && reply) {
      if (reply->payload.size() > 1) reply->payload = {join(reply->payload)};
      land(landing, reply->header, reply->payload);
    }
    co_return reply;
  }

  Loop& loop_;
  std::map<NodeId, Endpoint*> endpoints_;
  std::map<std::string, NodeId> addresses_;
  std::set<NodeId> isolated_;
};

}  // namespace holo::env::testing
