#include "sim/packet_host.h"

#include <algorithm>
#include <utility>

#include "base/assert.h"

namespace holo::sim {
namespace {

/// Bursts of one connection before others get their turn.
constexpr int kBurstsInARow = 4;
/// While the socket is full nothing that is due can be sent.
constexpr Duration kFullSocketCheck = milliseconds(1);
/// Timers that fire without the clock moving, above: a busy loop. 16 MiB in one instant take some hundred bursts.
constexpr std::uint64_t kMaxTimersInARow = 1000;

}  // namespace

using hyperbus::PacketEndpoint;
using hyperbus::Role;

PacketHost::PacketHost(env::Loop& loop, env::Datagrams& datagrams, env::QuicStack& stack, env::Entropy& entropy,
                       Options options)
    : loop_(loop),
      options_(std::move(options)),
      burst_(env::DatagramSocket::kMaxBurst),
      endpoint_(stack, entropy, hyperbus::PacketEndpointConfig{.quic = options_.quic}) {
  auto bound = datagrams.bind(options_.address);
  HOLO_ASSERT(bound.has_value(), "a simulated host has its ports for itself");
  socket_ = std::move(*bound);
  socket_->start({.on_datagrams =
                      [this](std::span<const env::Datagram> all) {
                        for (const env::Datagram& one : all) receive(one);
                      },
                  .on_writable = [this] { on_writable(); }});
}

PacketHost::~PacketHost() {
  for (const LinkPtr& link : links_) {
    loop_.cancel(link->timer);
    link->session.reset();  // Somebody may hold the link; the session needs the endpoint.
  }
}

PacketHost::LinkPtr PacketHost::add(Role role, std::unique_ptr<hyperbus::PacketSession> session,
                                    const env::IpEndpoint& remote) {
  auto link = std::make_shared<Link>();
  link->role = role;
  link->session = std::move(session);
  link->remote = remote;
  by_session_.emplace(link->session.get(), link);
  links_.push_back(link);
  counters_.most_links = std::max(counters_.most_links, links_.size());
  return link;
}

PacketHost::LinkPtr PacketHost::dial(const env::IpEndpoint& remote, NodeId expected) {
  const env::DatagramPath path{.local = socket_->local(), .remote = remote};
  const LinkPtr link =
      add(Role::initiator, endpoint_.dial(options_.session, loop_.now(), path, {.node = expected}), remote);
  pump(link);
  return link;
}

Result<hyperbus::StreamId> PacketHost::request(const LinkPtr& link, env::StreamClass klass, env::Request request,
                                               Instant deadline) {
  if (!link->session) return fail(Errc::unavailable, "the session is gone");
  auto out = link->session->request(loop_.now(), klass, std::move(request), deadline);
  pump(link);
  return out;
}

void PacketHost::receive(const env::Datagram& datagram) {
  std::array<std::byte, PacketEndpoint::kMaxAnswer> answer;
  PacketEndpoint::Arrival arrival =
      endpoint_.on_datagram(loop_.now(), datagram, options_.session, {.strangers = half_open_.size()}, answer);
  counters_.most_routes = std::max(counters_.most_routes, endpoint_.routes());
  if (arrival.garbage) ++counters_.garbage;
  if (arrival.answer > 0) {
    ++counters_.answers;
    const env::QuicConnection::Burst one{.path = datagram.path, .segment = arrival.answer, .bytes = arrival.answer};
    (void)send(one, ByteSpan(answer).first(arrival.answer));
  }
  if (arrival.fresh) {
    ++counters_.accepted;
    if (half_open_.size() >= options_.max_half_open) {
      // The oldest that has said nothing: a node that means it speaks within a round trip.
      const auto silent = std::ranges::find_if(half_open_, [](const LinkPtr& l) { return !l->session->heard(); });
      const LinkPtr victim = silent == half_open_.end() ? half_open_.front() : *silent;
      ++counters_.crowded_out;
      victim->session->close({.code = Errc::overloaded, .message = "too many handshakes", .retryable = true});
      pump(victim);
    }
    half_open_.push_back(add(Role::responder, std::move(arrival.fresh), datagram.path.remote));
    counters_.most_half_open = std::max(counters_.most_half_open, half_open_.size());
  }
  if (arrival.session == nullptr) return;
  if (const auto found = by_session_.find(arrival.session); found != by_session_.end()) {
    const LinkPtr link = found->second;
    pump(link);
  }
}

void PacketHost::drain_events(const LinkPtr& link) {
  while (link->session) {
    auto event = link->session->next_event();
    if (!event) break;
    if (link->closed) ++link->events_after_closed;
    if (const auto* established = std::get_if<hyperbus::Established>(&*event)) {
      link->established = *established;
      std::erase(half_open_, link);
    } else if (const auto* closed = std::get_if<hyperbus::Closed>(&*event)) {
      link->closed = *closed;
      std::erase(half_open_, link);
    }
    if (on_event) on_event(link, std::move(*event));
  }
}

bool PacketHost::send(const env::QuicConnection::Burst& burst, ByteSpan bytes) {
  if (on_send) {
    // One by one, so that a test can lose or alter any of them.
    for (ByteSpan rest = bytes; !rest.empty();) {
      const ByteSpan one = rest.first(std::min(rest.size(), burst.segment));
      rest = rest.subspan(one.size());
      Bytes copy(one.begin(), one.end());
      if (on_send(burst.path, copy)) (void)socket_->send(burst.path, burst.ecn, copy.size(), copy);
    }
    return true;
  }
  return socket_->send(burst.path, burst.ecn, burst.segment, bytes);
}

/// True when there may be more to send.
bool PacketHost::flush(const LinkPtr& link) {
  for (int i = 0; i < kBurstsInARow; ++i) {
    if (unsent_) {
      if (!std::exchange(link->waits_for_socket, true)) waiting_.push_back(link);
      return false;
    }
    const auto burst = link->session->send(loop_.now(), burst_);
    if (!burst) return false;
    const ByteSpan bytes = ByteSpan(burst_).first(burst->bytes);
    if (!send(*burst, bytes)) unsent_ = Unsent{.burst = *burst, .bytes = Bytes(bytes.begin(), bytes.end())};
  }
  return true;
}

void PacketHost::on_writable() {
  if (const auto unsent = std::exchange(unsent_, std::nullopt)) {
    if (!send(unsent->burst, unsent->bytes)) {
      unsent_ = unsent;
      return;
    }
  }
  for (const LinkPtr& link : std::exchange(waiting_, {})) {
    link->waits_for_socket = false;
    pump(link);
  }
}

void PacketHost::pump(const LinkPtr& link) {
  if (!link->session) return;
  drain_events(link);
  const bool more = link->session && flush(link);
  drain_events(link);
  if (!link->session) return;
  loop_.cancel(link->timer);
  if (link->session->finished()) return forget(link);
  Instant next = more ? loop_.now() : link->session->next_timer();
  if (next == kNever) return;
  if (link->waits_for_socket) next = std::max(next, loop_.now() + kFullSocketCheck);
  if (link->timers_in_a_row > kMaxTimersInARow) {
    ++counters_.spinning;
    link->timers_in_a_row = 0;
    next = loop_.now() + milliseconds(1);
  }
  link->timer = loop_.call_at(std::max(next, loop_.now()), [this, link] {
    if (!link->session) return;
    link->timers_in_a_row = link->last_timer == loop_.now() ? link->timers_in_a_row + 1 : 0;
    link->last_timer = loop_.now();
    if (link->session->next_timer() <= loop_.now()) link->session->on_timer(loop_.now());
    pump(link);
  });
}

void PacketHost::wake() {
  for (const LinkPtr& link : std::vector(links_)) {
    if (!link->session) continue;
    if (link->session->next_timer() <= loop_.now()) link->session->on_timer(loop_.now());
    pump(link);
  }
}

void PacketHost::forget(const LinkPtr& link) {
  std::erase(half_open_, link);
  std::erase(links_, link);
  by_session_.erase(link->session.get());
  gone_.push_back(std::move(link->session));
  loop_.post([this] { gone_.clear(); });
}

}  // namespace holo::sim
