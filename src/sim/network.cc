#include "sim/network.h"

#include <algorithm>
#include <charconv>

#include "base/strings.h"

namespace holo::sim {
namespace {

/// What a receiver sees of gathered buffers: one contiguous buffer, with perhaps a bit flipped on the way.
std::vector<Buffer> on_the_wire(const std::vector<Buffer>& payload, Network& network) {
  Bytes all;
  for (const Buffer& b : payload) all.insert(all.end(), b.span().begin(), b.span().end());
  if (all.empty()) return {};
  if (network.random().chance(network.faults().flip_per_thousand, 1000)) {
    const std::uint64_t bit = network.random().below(all.size() * 8);
    all[bit / 8] ^= std::byte{static_cast<unsigned char>(1U << (bit % 8))};
  }
  std::vector<Buffer> out;
  out.emplace_back(std::move(all));
  return out;
}

}  // namespace

std::unique_ptr<SimTransport> Network::attach(NodeId node, SimLoop& loop) {
  auto transport = std::make_unique<SimTransport>(*this, node, loop);
  nodes_[node] = transport.get();
  return transport;
}

SimTransport::~SimTransport() {
  if (network_.find(self_) == this) network_.kill(self_);
}

/// A payload that has places to go to comes in two parts: much can happen in between.
void SimTransport::arrive(NodeId from, env::Request request, Answer answer) {
  const auto placer = placers_.find(request.type);
  std::shared_ptr<env::Landing> landing;
  if (placer != placers_.end() && from != self_ && request.payload.size() == 1) {
    const env::Request announced{.type = request.type, .header = request.header, .payload = {}};
    landing = placer->second(from, announced, request.payload[0].size());
    HOLO_ASSERT(!landing || landing->size() == request.payload[0].size());
  }
  if (!landing) return loop_.spawn(deliver(from, std::move(request), std::move(answer)));
  auto wire = std::make_shared<env::Request>(std::move(request));
  const Buffer all = std::exchange(wire->payload, {})[0];
  auto put = [wire, landing, all](std::size_t from_byte, std::size_t until) {
    while (from_byte < until) {
      env::Landing::Place place = landing->next();
      std::ranges::copy(all.span().subspan(from_byte, place.bytes.size()), place.bytes.begin());
      from_byte += place.bytes.size();
      wire->payload.emplace_back(place.bytes, std::move(place.owner));
    }
    return from_byte;
  };
  const std::size_t half = put(0, all.size() / 2);
  World& world = network_.world();
  world.at(world.now() + network_.delay(), [network = &network_, me = this, self = self_, from, wire, put, half, all,
                                            answer = std::move(answer)]() mutable {
    if (network->find(self) != me) {
      answer(fail(Errc::unavailable, str("node ", self, " is gone")));
      return;
    }
    put(half, all.size());
    me->loop_.spawn(me->deliver(from, std::move(*wire), std::move(answer)));
  });
}

Task<void> SimTransport::deliver(NodeId from, env::Request request, Answer answer) {
  auto it = handlers_.find(request.type);
  if (it == handlers_.end()) {
    answer(fail(Errc::unsupported, str("no handler for request ", request.type)));
    co_return;
  }
  if (gate_ && from != self_ && !gate_->admits(from, request.type)) {
    const auto gate = gate_;
    Status admitted = co_await gate->inquire(from, request.type);
    if (!admitted) {
      answer(std::unexpected(std::move(admitted).error()));
      co_return;
    }
    it = handlers_.find(request.type);
  }
  Result<env::Reply> reply = co_await it->second(from, std::move(request));
  answer(std::move(reply));
}

Task<Result<env::Reply>> SimTransport::call(NodeId peer, env::Request request, env::CallOptions options) {
  const auto landing = std::move(request.landing);
  auto shot = std::make_shared<OneShot<Result<env::Reply>>>();
  World& world = network_.world();
  const bool own = peer == self_;
  const bool request_lost = !own && network_.lost(self_, peer);
  if (request_lost || network_.find(peer) == nullptr) {
    world.at(world.now() + network_.faults().break_after,
             [shot, peer] { shot->set(fail(Errc::unavailable, str("no connection to node ", peer))); });
  } else {
    auto wire = std::make_shared<env::Request>(std::move(request));
    wire->payload = own ? std::move(wire->payload) : on_the_wire(wire->payload, network_);
    const Duration delay = own ? Duration{} : network_.delay();
    Network* network = &network_;
    const NodeId self = self_;
    world.at(world.now() + delay, [network, shot, self, peer, wire, own] {
      SimTransport* target = network->find(peer);
      if (target == nullptr) {
        shot->set(fail(Errc::unavailable, str("node ", peer, " is gone")));
        return;
      }
      auto answer = [network, shot, self, peer, own](Result<env::Reply> reply) {
        World& w = network->world();
        if (!own && network->lost(peer, self)) {
          w.at(w.now() + network->faults().break_after,
               [shot, peer] { shot->set(fail(Errc::unavailable, str("the connection to node ", peer, " broke"))); });
          return;
        }
        if (reply && !own) reply->payload = on_the_wire(reply->payload, *network);
        auto held = std::make_shared<Result<env::Reply>>(std::move(reply));
        w.at(w.now() + (own ? Duration{} : network->delay()), [shot, held] { shot->set(std::move(*held)); });
      };
      target->arrive(self, std::move(*wire), std::move(answer));
    });
  }
  const Instant deadline = options.deadline;
  std::string what = str("node ", peer);
  // A caller that was killed never resumes: its loop drops the timer, and the answer finds nobody who runs on.
  auto result = co_await env::await_until<env::Reply>(loop_, shot, deadline, std::move(what));
  if (result) env::land(landing, result->header, result->payload);
  co_return result;
}

Task<Result<env::PeerIdentity>> SimTransport::connect(std::string address, Instant) {
  std::uint64_t id = 0;
  std::from_chars(address.data(), address.data() + address.size(), id, 16);
  const NodeId node{id};
  co_await sleep_for(loop_, network_.delay());
  if (network_.find(node) == nullptr || !network_.connected(self_, node)) {
    co_return fail(Errc::unavailable, str("nobody answers at ", address));
  }
  env::PeerIdentity peer{.node = node, .address = address};
  co_return peer;
}

}  // namespace holo::sim
