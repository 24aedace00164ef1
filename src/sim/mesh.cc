#include "sim/mesh.h"

#include <algorithm>

#include "base/strings.h"

namespace holo::sim {
namespace {

Error broken(NodeId peer, const char* why) {
  Error e;
  e.code = Errc::unavailable;
  e.message = str("node ", peer, ": ", why);
  e.retryable = true;
  return e;
}

/// What a receiver sees of gathered buffers.
env::Request as_received(env::Request r) {
  if (r.payload.size() < 2) return r;
  Bytes all;
  for (const Buffer& b : r.payload) all.insert(all.end(), b.span().begin(), b.span().end());
  r.payload.clear();
  r.payload.emplace_back(std::move(all));
  return r;
}

}  // namespace

// ---- The mesh

std::unique_ptr<MeshPort> Mesh::attach(NodeId node, std::string address, SimLoop& loop) {
  return std::make_unique<MeshPort>(*this, node, std::move(address), loop);
}

MeshPort* Mesh::at(const std::string& address) const {
  const auto it = addresses_.find(address);
  return it == addresses_.end() ? nullptr : it->second;
}

MeshPort* Mesh::find(NodeId node) const {
  const auto it = ports_.find(node);
  return it == ports_.end() ? nullptr : it->second;
}

bool Mesh::transmit(NodeId from, NodeId to, std::function<void()> arrive) {
  ++messages_;
  if (cut_.contains({from, to})) return false;
  if (random_.chance(faults_.reset_per_million, 1'000'000)) {
    world_.at(world_.now(), [this, from, to] { reset(from, to); });
    return false;
  }
  const auto span = static_cast<std::uint64_t>((faults_.max_delay - faults_.min_delay).ns) + 1;
  Duration delay = faults_.min_delay + nanoseconds(static_cast<std::int64_t>(random_.below(span)));
  while (random_.chance(faults_.loss_per_thousand, 1000)) {
    delay =
        delay + nanoseconds(static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(faults_.resend.ns))));
  }
  for (const NodeId end : {from, to}) {
    if (const auto it = slow_.find(end); it != slow_.end()) delay = delay + it->second;
  }
  world_.at(world_.now() + delay, std::move(arrive));
  return true;
}

void Mesh::reset(NodeId a, NodeId b) {
  if (MeshPort* p = find(a)) p->fail_calls(b, "the connection broke");
  if (MeshPort* p = find(b)) p->fail_calls(a, "the connection broke");
}

// ---- One end

MeshPort::MeshPort(Mesh& mesh, NodeId self, std::string address, SimLoop& loop)
    : mesh_(mesh), self_(self), address_(std::move(address)), loop_(loop) {
  mesh_.ports_[self_] = this;
  mesh_.addresses_[address_] = this;
}

void MeshPort::retire() {
  if (std::exchange(retired_, true)) return;
  *alive_ = false;
  if (const auto it = mesh_.ports_.find(self_); it != mesh_.ports_.end() && it->second == this) mesh_.ports_.erase(it);
  if (const auto it = mesh_.addresses_.find(address_); it != mesh_.addresses_.end() && it->second == this) {
    mesh_.addresses_.erase(it);
  }
  for (auto& [id, call] : std::exchange(calls_, {})) {
    const Error e = broken(call.peer, "this process ends");
    loop_.post([shot = call.shot, e] { shot->set(std::unexpected(e)); });
  }
  mesh_.world_.at(mesh_.world_.now() + mesh_.faults_.max_delay, [mesh = &mesh_, gone = self_] {
    for (const auto& [node, port] : mesh->ports_) port->fail_calls(gone, "it has ended");
  });
}

void MeshPort::set_addresses(NodeId peer, std::vector<std::string> addresses) { known_[peer] = std::move(addresses); }

/// One connection serves both, whoever dialled: it is enough that one of them knows where the other is.
bool MeshPort::knows(NodeId peer) const {
  const MeshPort* other = mesh_.find(peer);
  if (other == nullptr) return false;
  const auto leads_to = [this](const MeshPort& from, const MeshPort& to) {
    const auto it = from.known_.find(to.self_);
    if (it == from.known_.end()) return false;
    return std::ranges::any_of(it->second, [&](const std::string& a) { return mesh_.at(a) == &to; });
  };
  return leads_to(*this, *other) || leads_to(*other, *this);
}

void MeshPort::end_call(std::uint64_t id, Result<env::Reply> result) {
  const auto it = calls_.find(id);
  if (it == calls_.end()) return;
  const Shot shot = std::move(it->second.shot);
  calls_.erase(it);
  auto held = std::make_shared<Result<env::Reply>>(std::move(result));
  loop_.post([shot, held] { shot->set(std::move(*held)); });
}

void MeshPort::fail_calls(NodeId peer, const char* why) {
  std::vector<std::uint64_t> ids;
  for (const auto& [id, call] : calls_) {
    if (call.peer == peer) ids.push_back(id);
  }
  for (const std::uint64_t id : ids) end_call(id, std::unexpected(broken(peer, why)));
}

void MeshPort::disconnect(NodeId peer) { fail_calls(peer, "disconnected"); }

void MeshPort::give_up_later(std::uint64_t id) {
  mesh_.world_.at(mesh_.world_.now() + mesh_.faults_.notice, [this, alive = alive_, id] {
    if (!*alive) return;
    if (const auto it = calls_.find(id); it != calls_.end()) {
      end_call(id, std::unexpected(broken(it->second.peer, "the connection broke")));
    }
  });
}

Task<void> MeshPort::deliver(MeshPort* me, NodeId from, env::Request request,
                             std::function<void(Result<env::Reply>)> answer) {
  const auto it = me->handlers_.find(request.type);
  if (it == me->handlers_.end()) {
    answer(fail(Errc::unsupported, str("no handler for request ", request.type)));
    co_return;
  }
  const Handler handler = it->second;
  if (me->gate_ && from != me->self_ && !me->gate_->admits(from, request.type)) {
    const auto gate = me->gate_;
    Status admitted = co_await gate->inquire(from, request.type);
    if (!admitted) {
      answer(std::unexpected(std::move(admitted).error()));
      co_return;
    }
  }
  Result<env::Reply> reply = co_await handler(from, std::move(request));
  answer(std::move(reply));
}

Task<Result<env::Reply>> MeshPort::call(NodeId peer, env::Request request, env::CallOptions options) {
  auto shot = std::make_shared<OneShot<Result<env::Reply>>>();
  if (retired_) co_return std::unexpected(broken(peer, "this process ends"));
  const std::uint64_t id = next_call_++;
  calls_[id] = {.peer = peer, .shot = shot};
  World& world = mesh_.world_;
  if (peer != self_ && !knows(peer)) {  // Refused, or an address where nobody is.
    world.at(world.now() + mesh_.faults_.max_delay, [this, alive = alive_, id, peer] {
      if (*alive) end_call(id, std::unexpected(broken(peer, "nobody answers there")));
    });
  } else {
    auto wire = std::make_shared<env::Request>(as_received(std::move(request)));
    Mesh* mesh = &mesh_;
    const NodeId self = self_;
    auto arrive = [mesh, self, peer, id, wire, me = this, alive = alive_] {
      MeshPort* target = mesh->find(peer);
      if (target == nullptr) {
        if (*alive) me->end_call(id, std::unexpected(broken(peer, "it is gone")));
        return;
      }
      auto answer = [mesh, self, peer, id, me, alive](Result<env::Reply> reply) {
        auto held = std::make_shared<Result<env::Reply>>(std::move(reply));
        if (self == peer) {
          if (*alive) me->end_call(id, std::move(*held));
          return;
        }
        const bool sent = mesh->transmit(peer, self, [me, alive, id, held] {
          if (*alive) me->end_call(id, std::move(*held));
        });
        if (!sent && *alive) me->give_up_later(id);
      };
      target->loop_.post([target, there = target->alive_, self, wire, answer = std::move(answer)]() mutable {
        if (*there) target->loop_.spawn(deliver(target, self, std::move(*wire), std::move(answer)));
      });
    };
    if (self_ == peer) {
      arrive();
    } else {
      if (!mesh_.transmit(self_, peer, std::move(arrive))) give_up_later(id);
    }
  }
  const Instant deadline = options.deadline;
  std::string what = str("node ", peer);
  const auto alive = alive_;
  auto result = co_await env::await_until<env::Reply>(loop_, shot, deadline, std::move(what));
  if (*alive) calls_.erase(id);
  co_return result;
}

Task<Result<env::PeerIdentity>> MeshPort::connect(std::string address, Instant deadline) {
  const Duration there_and_back = mesh_.faults_.max_delay * 2;
  co_await sleep_for(loop_, there_and_back);
  const MeshPort* other = mesh_.at(address);
  if (other == nullptr || retired_ || mesh_.cut_between(self_, other->self_)) {
    const Instant notice = std::min(deadline, loop_.now() + mesh_.faults_.notice);
    if (other != nullptr && !retired_) co_await sleep_until(loop_, notice);
    co_return fail(Errc::unavailable, str("nobody answers at ", address));
  }
  env::PeerIdentity peer{.node = other->self_, .address = address};
  co_return peer;
}

}  // namespace holo::sim
