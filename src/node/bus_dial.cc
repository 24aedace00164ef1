// How a connection is made: every address of a node, QUIC first, TCP where UDP does not pass (RFC 8305 in spirit).
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/strings.h"
#include "node/bus_impl.h"

namespace holo::node {
namespace {

using hyperbus::Role;

/// Of the reasons why several attempts failed, the one that tells most.
int telling(Errc code) {
  switch (code) {
    case Errc::wrong_key: return 4;
    case Errc::wrong_version: return 3;
    case Errc::permission_denied: return 2;
    default: return 1;
  }
}

bool is_v6(const std::string& address) { return address.starts_with('['); }  // A name counts as IPv4.
bool is_v6(const env::IpEndpoint& endpoint) { return !endpoint.is_v4(); }

/// RFC 8305, section 4: the families take turns, beginning with the one that was first; within one the order stays.
template <class Address>
std::vector<Address> interleaved(std::vector<Address> all) {
  if (all.empty()) return all;
  const bool first = is_v6(all.front());
  const auto rest = std::stable_partition(all.begin(), all.end(), [&](const Address& a) { return is_v6(a) == first; });
  std::vector<Address> out;
  auto mine = all.begin();
  auto other = rest;
  while (mine != rest || other != all.end()) {
    if (mine != rest) out.push_back(std::move(*mine++));
    if (other != all.end()) out.push_back(std::move(*other++));
  }
  return out;
}

}  // namespace

/// Where it answered last, then the others.
std::vector<std::string> Bus::Impl::dial_order(NodeId id) const {
  const auto at = peers_.find(id);
  if (at == peers_.end()) return {};
  std::vector<std::string> out = at->second.addresses;
  const auto good = std::ranges::find(out, at->second.last_good);
  if (good != out.end()) std::rotate(out.begin(), good, good + 1);
  return interleaved(std::move(out));
}

void Bus::Impl::set_addresses(NodeId id, std::vector<std::string> addresses) {
  Peer& peer = peers_[id];
  if (peer.addresses == addresses) return;
  peer.addresses = std::move(addresses);
  peer.backoff = {};
  peer.not_before = {};
}

/// Dials one address over every carrier there is, and waits for the first handshake that ends well.
Task<Result<env::PeerIdentity>> Bus::Impl::open(std::string address, NodeId expected, Instant dial_by,
                                                Instant shake_by) {
  const auto self = shared_from_this();
  const auto race = std::make_shared<Race>();
  race->last = unavailable(str(address, " cannot be reached"));
  const bool udp_failed = expected && peers_[expected].udp_failed;
  const Instant not_before = speaks_quic() && !udp_failed ? loop_.now() + options_.fallback_after : loop_.now();
  race->running = (speaks_quic() ? 1 : 0) + (speaks_tcp() ? 1 : 0);
  if (speaks_quic()) loop_.spawn(race_packets(self, race, address, expected, dial_by));
  if (speaks_tcp()) loop_.spawn(race_stream(self, race, address, expected, dial_by, not_before));
  const std::string what = str("the handshake with ", address);
  auto result = co_await env::await_until<env::PeerIdentity>(loop_, race->winner, shake_by, what);
  race->packets_failed->set(true);
  const Error why = result ? unavailable("another attempt was faster") : result.error();
  for (const LinkPtr& link : std::exchange(race->links, {})) {
    if (!link->established_at.ns) self->close_link(link, why);
  }
  co_return result;
}

/// One attempt less. When it was the last, or when what went wrong would go wrong on every carrier, the race is over.
void Bus::Impl::lost_race(const RacePtr& race, const Error& why) {
  --race->running;
  if (telling(why.code) >= telling(race->last.code)) race->last = why;
  if (race->running == 0 || telling(why.code) > 1) race->winner->set(std::unexpected(race->last));
}

Task<void> Bus::Impl::follow(std::shared_ptr<Impl> self, RacePtr race, LinkPtr link) {
  auto shot = std::make_shared<OneShot<Result<env::PeerIdentity>>>();
  link->waiter = shot;
  self->pump(link);
  auto result = co_await *shot;
  if (result) {
    race->winner->set(std::move(result));
  } else {
    self->lost_race(race, result.error());
  }
}

Task<void> Bus::Impl::race_packets(std::shared_ptr<Impl> self, RacePtr race, std::string address, NodeId expected,
                                   Instant dial_by) {
  auto resolving = self->options_.datagrams->resolve(address, dial_by);
  auto endpoints = co_await resolving;
  Error why = self->closed_ ? cancelled() : unavailable(str(address, " cannot be reached"));
  if (!endpoints) why = endpoints.error();
  if (endpoints) *endpoints = interleaved(std::move(*endpoints));
  const std::size_t count = endpoints && !self->closed_ ? endpoints->size() : 0;
  for (std::size_t i = 0; i < count && !race->winner->is_set() && !self->closed_; ++i) {
    const env::IpEndpoint& remote = (*endpoints)[i];
    auto socket = self->socket_towards(remote);
    if (!socket) {
      why = std::move(socket).error();
      continue;
    }
    const std::size_t known = self->options_.datagrams->known_payload(remote);
    const env::DatagramPath path{.local = (*socket)->socket->local(), .remote = remote};
    const LinkPtr link = self->add_packet_link(Role::initiator,
                                               self->endpoint_->dial(self->options_.session, self->loop_.now(), path,
                                                                     {.node = expected, .known_payload = known}),
                                               *socket, address);
    race->links.push_back(link);
    ++race->running;
    self->loop_.spawn(follow(self, race, link));
    if (i + 1 == count) break;
    const Instant next = self->loop_.now() + self->options_.next_address_after;
    auto sleeping = env::sleep_until(self->loop_, next);
    co_await sleeping;
  }
  if (race->links.empty()) race->packets_failed->set(true);
  self->lost_race(race, why);
}

Task<void> Bus::Impl::race_stream(std::shared_ptr<Impl> self, RacePtr race, std::string address, NodeId expected,
                                  Instant dial_by, Instant not_before) {
  if (not_before > self->loop_.now()) {
    // Until then, or until QUIC has given up, or somebody has won.
    auto waiting = env::await_until<bool>(self->loop_, race->packets_failed, not_before, "QUIC");
    (void)co_await waiting;
  }
  if (race->winner->is_set() || self->closed_) {
    self->lost_race(race, cancelled());
    co_return;
  }
  auto dialling = self->carrier_.dial(address, dial_by);
  auto stream = co_await dialling;
  if (!stream || race->winner->is_set() || self->closed_) {
    self->lost_race(race, stream ? cancelled() : stream.error());
    // Who refuses TCP at once is most likely not there at all; a node that speaks QUIC only still has this long.
    self->loop_.call_at(self->loop_.now() + self->options_.grace_without_tcp,
                        [race] { race->winner->set(std::unexpected(race->last)); });
    co_return;
  }
  const LinkPtr link = self->add_stream_link(Role::initiator, std::move(*stream), expected, address);
  race->links.push_back(link);
  auto following = follow(self, race, link);
  co_await following;
}

Task<Result<env::PeerIdentity>> Bus::Impl::connect(std::string address, Instant deadline) {
  const auto self = shared_from_this();
  if (closed_) co_return std::unexpected(cancelled());
  const NodeId any;
  auto opening = open(std::move(address), any, deadline, deadline);
  co_return co_await opening;
}

/// One round over the addresses of a peer, each begun a little after the one before; ends early when another link to it
/// than `instead_of` serves: the peer may have connected to us meanwhile.
Task<Bus::Impl::RoundPtr> Bus::Impl::dial_round(std::shared_ptr<Impl> self, NodeId id, LinkPtr instead_of) {
  const auto served = [](const Impl* bus, NodeId peer, const Link* old) {
    const auto at = bus->peers_.find(peer);
    return bus->closed_ || at == bus->peers_.end() || (at->second.link && at->second.link.get() != old);
  };
  const std::vector<std::string> addresses = self->dial_order(id);
  const auto round = std::make_shared<Round>();
  round->running = addresses.size();
  round->last = unavailable(str("node ", id, " cannot be reached"));
  for (const std::string& address : addresses) {
    if (served(self.get(), id, instead_of.get())) break;
    self->loop_.spawn(dial_address(self, round, id, address));
    const Instant next = self->loop_.now() + self->options_.next_address_after;
    auto waiting = env::await_until<bool>(self->loop_, round->step, next, "the next address");
    (void)co_await waiting;
    round->step = std::make_shared<OneShot<Result<bool>>>();
  }
  while (round->running > 0 && !served(self.get(), id, instead_of.get())) {
    auto waiting = env::await_until<bool>(self->loop_, round->step, kNever, "an address");
    (void)co_await waiting;
    round->step = std::make_shared<OneShot<Result<bool>>>();
  }
  co_return round;
}

Task<void> Bus::Impl::dial_peer(std::shared_ptr<Impl> self, NodeId id) {
  const LinkPtr none;
  auto dialling = dial_round(self, id, none);
  const RoundPtr round = co_await dialling;
  Peer& peer = self->peers_[id];
  peer.dialling = false;
  if (peer.link) co_return;
  Error last = round->last;
  if (telling(last.code) == 1) last = unavailable(str("node ", id, " cannot be reached: ", last.message));
  const BusOptions& o = self->options_;
  peer.backoff = std::clamp(peer.backoff * 2, o.first_backoff, o.longest_backoff);
  peer.not_before = self->loop_.now() + peer.backoff;
  peer.last_error = last;
  self->fail_waiting(peer, self->closed_ ? cancelled() : last);
}

Task<void> Bus::Impl::dial_address(std::shared_ptr<Impl> self, RoundPtr round, NodeId id, std::string address) {
  const Instant dial_by = self->loop_.now() + self->options_.connect_deadline;
  const Instant shake_by = dial_by + limits::kHandshakeDeadline;
  auto opening = self->open(address, id, dial_by, shake_by);
  auto opened = co_await opening;
  --round->running;
  if (!opened && telling(opened.error().code) >= telling(round->last.code)) round->last = opened.error();
  round->step->set(true);
}

void Bus::Impl::begin_replacing(NodeId id, const LinkPtr& old) {
  Peer& peer = peers_[id];
  if (peer.replacing || peer.dialling || peer.addresses.empty() || loop_.stopping() || closed_) return;
  peer.replacing = true;
  loop_.spawn(replace(shared_from_this(), id, old));
}

/// A client's packets lead its peers to its new address (RFC 9000, section 9); for a server, and over TCP, a new
/// connection does.
void Bus::Impl::own_addresses_changed() {
  std::vector<LinkPtr> served;
  for (const auto& [id, peer] : peers_) {
    const bool led = peer.link && peer.link->over_packets != nullptr && peer.link->role == Role::initiator;
    if (peer.link && !led) served.push_back(peer.link);
  }
  for (const LinkPtr& link : served) begin_replacing(link->peer, link);
}

/// Looks for another way to a peer: over TCP, at another address, or in smaller packets.
/// Whoever waits for an answer on the old link learns at once that there will be none.
Task<void> Bus::Impl::replace(std::shared_ptr<Impl> self, NodeId id, LinkPtr old) {
  if (self->stalled(*old)) log_info("bus", "node ", id, " acknowledges nothing: looking for another way to it");
  auto dialling = dial_round(self, id, old);
  (void)co_await dialling;
  Peer& peer = self->peers_[id];
  peer.replacing = false;
  peer.replace_not_before = self->loop_.now() + self->options_.longest_backoff;
  if (peer.link != old && self->stalled(*old)) {
    self->close_link(old,
                     unavailable(str("nothing passed on the old connection to node ", id, "; there is a new one")));
  }
}

/// A peer that this node had to reach over TCP is tried over QUIC again, as long as TCP serves it.
void Bus::Impl::plan_upgrade(NodeId id) {
  Peer& peer = peers_[id];
  if (peer.upgrade_timer != 0 || closed_ || loop_.stopping()) return;
  peer.upgrade_timer = loop_.call_at(loop_.now() + options_.upgrade_every, [this, id] {
    Peer& p = peers_[id];
    p.upgrade_timer = 0;
    const bool over_tcp = p.link && p.link->over_packets == nullptr && p.link->role == Role::initiator;
    if (over_tcp && !closed_ && !loop_.stopping()) loop_.spawn(upgrade(shared_from_this(), id));
  });
}

Task<void> Bus::Impl::upgrade(std::shared_ptr<Impl> self, NodeId id) {
  const std::vector<std::string> addresses = self->dial_order(id);
  for (const std::string& address : addresses) {
    if (self->closed_) co_return;
    const auto race = std::make_shared<Race>();
    race->running = 1;
    const Instant by = self->loop_.now() + self->options_.connect_deadline;
    self->loop_.spawn(race_packets(self, race, address, id, by));
    const std::string what = str("QUIC at ", address);
    auto result = co_await env::await_until<env::PeerIdentity>(self->loop_, race->winner, by, what);
    for (const LinkPtr& link : std::exchange(race->links, {})) {
      if (!link->established_at.ns) self->close_link(link, unavailable("UDP does not pass"));
    }
    if (result) co_return;
  }
  self->plan_upgrade(id);
}

}  // namespace holo::node
