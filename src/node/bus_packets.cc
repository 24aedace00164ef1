// The sockets of QUIC: datagrams to their connections, and back.
#include <algorithm>
#include <array>

#include "base/log.h"
#include "base/strings.h"
#include "node/bus_impl.h"

namespace holo::node {
namespace {

using hyperbus::PacketEndpoint;
using hyperbus::PacketSession;
using hyperbus::RefusalKind;
using hyperbus::Role;

/// Bursts of one connection before others get their turn.
constexpr int kBurstsInARow = 4;
/// A port that is free for TCP may be taken for UDP: so many are tried.
constexpr int kPortTries = 16;

bool reaches(const env::IpEndpoint& local, const env::IpEndpoint& remote) {
  if (local.is_unspecified()) return !local.is_v4() || remote.is_v4();
  return local.is_v4() == remote.is_v4() && local.is_loopback() == remote.is_loopback();
}

bool asks_for_any_port(std::string_view address) { return address.ends_with(":0"); }

std::shared_ptr<const env::QuicConfig> quic_config(const BusOptions& options) {
  auto out = hyperbus::quic_config(*options.session);
  out->datagram_bytes = options.mtu;
  out->qlog = options.qlog;
  return out;
}

}  // namespace

Bus::Impl::Impl(env::Loop& loop, env::Carrier& carrier, env::Entropy& entropy, BusOptions options)
    : loop_(loop),
      carrier_(carrier),
      entropy_(entropy),
      options_(std::move(options)),
      self_(options_.session->handshake->identity.node()) {
  const bool possible = options_.datagrams != nullptr && options_.quic != nullptr;
  if (!possible || options_.use == CarrierUse::tcp) {
    options_.use = CarrierUse::tcp;
    return;
  }
  endpoint_ = std::make_shared<PacketEndpoint>(*options_.quic, entropy_,
                                               hyperbus::PacketEndpointConfig{.quic = quic_config(options_)});
  burst_.resize(env::DatagramSocket::kMaxBurst);
}

void Bus::Impl::set_qlog(env::QlogFactory qlog) {
  if (!endpoint_) return;
  options_.qlog = std::move(qlog);
  endpoint_->set_quic(quic_config(options_));
  std::vector<LinkPtr> served;
  for (const auto& [id, peer] : peers_) {
    if (peer.link && peer.link->over_packets != nullptr) served.push_back(peer.link);
  }
  for (const LinkPtr& link : served) begin_replacing(link->peer, link);
}

Result<std::string> Bus::Impl::listen(const std::string& address) {
  const auto on_accept = [this](std::unique_ptr<env::ByteStream> s) { accept(std::move(s)); };
  for (int attempt = 1;; ++attempt) {
    std::string bound = address;
    std::unique_ptr<env::Listener> listener;
    if (speaks_tcp()) {
      auto listening = carrier_.listen(address, on_accept);
      if (!listening) return std::unexpected(std::move(listening).error());
      listener = std::move(*listening);
      bound = listener->address();
    }
    if (speaks_quic()) {
      auto socket = bind(bound);
      const bool again = !socket && socket.error().code == Errc::already_exists && asks_for_any_port(address);
      if (again && attempt < kPortTries) continue;
      if (!socket) return std::unexpected(std::move(socket).error());
      if (!speaks_tcp()) bound = env::to_string((*socket)->socket->local());
    }
    if (listener) listeners_.push_back(std::move(listener));
    return bound;
  }
}

Result<Bus::Impl::SocketPtr> Bus::Impl::bind(const std::string& address) {
  auto bound = options_.datagrams->bind(address);
  if (!bound) return std::unexpected(std::move(bound).error());
  auto socket = std::make_shared<Socket>();
  socket->socket = std::move(*bound);
  const std::weak_ptr<Socket> weak = socket;
  socket->socket->start({.on_datagrams =
                             [this, weak](std::span<const env::Datagram> datagrams) {
                               if (const SocketPtr s = weak.lock()) on_datagrams(s, datagrams);
                             },
                         .on_writable =
                             [this, weak] {
                               if (const SocketPtr s = weak.lock()) on_writable(s);
                             }});
  sockets_.push_back(socket);
  return socket;
}

/// A socket from which `remote` can be dialled: one that listens where possible, so that a node has one UDP port.
Result<Bus::Impl::SocketPtr> Bus::Impl::socket_towards(const env::IpEndpoint& remote) {
  for (const SocketPtr& socket : sockets_) {
    if (reaches(socket->socket->local(), remote)) return socket;
  }
  return bind(remote.is_v4() ? "0.0.0.0:0" : "[::]:0");
}

Bus::Impl::LinkPtr Bus::Impl::add_packet_link(Role role, std::unique_ptr<PacketSession> session, SocketPtr socket,
                                              std::string address) {
  const LinkPtr link = add_link(role, std::move(address));
  link->endpoint = endpoint_;
  link->over_packets = session.get();
  link->session = std::move(session);
  link->socket = std::move(socket);
  by_session_.emplace(link->over_packets, link);
  return link;
}

void Bus::Impl::on_datagrams(const SocketPtr& socket, std::span<const env::Datagram> datagrams) {
  if (closed_) return;
  const auto self = shared_from_this();
  const Instant now = loop_.now();
  std::vector<LinkPtr> touched;
  Link* last = nullptr;  // One of them: datagrams come in trains.
  for (const env::Datagram& datagram : datagrams) {
    PacketSession* session = endpoint_->deliver(now, datagram);
    if (session == nullptr) session = on_unaddressed(socket, now, datagram);
    if (session == nullptr) continue;
    if (last == nullptr || last->over_packets != session) {
      const auto found = by_session_.find(session);
      if (found == by_session_.end()) continue;  // It is over; somebody still holds it.
      last = found->second.get();
      if (std::ranges::find(touched, found->second) == touched.end()) touched.push_back(found->second);
    }
    last->heard = last->over_packets->heard();
  }
  for (const LinkPtr& link : touched) pump(link);
}

/// One that names no session of ours: a newcomer's, a reset, or rubbish.
PacketSession* Bus::Impl::on_unaddressed(const SocketPtr& socket, Instant now, const env::Datagram& datagram) {
  std::array<std::byte, PacketEndpoint::kMaxAnswer> answer;
  PacketEndpoint::Arrival arrival = endpoint_->on_datagram(
      now, datagram, options_.session,
      {.strangers = half_open_.size(), .known_payload = options_.datagrams->known_payload(datagram.path.remote)},
      answer);
  if (arrival.garbage) {
    count_refusal(RefusalKind::garbage, Role::responder, env::to_string(datagram.path.remote),
                  {.code = Errc::malformed, .message = "datagrams that are not the hyperbus protocol"});
  }
  if (arrival.answer > 0) {  // If there is no room for it: it is an answer that may be lost.
    (void)socket->socket->send(datagram.path, env::Ecn::not_ect, arrival.answer,
                               ByteSpan(answer).first(arrival.answer));
  }
  if (arrival.fresh) {
    make_room_for_newcomer();
    half_open_.push_back(
        add_packet_link(Role::responder, std::move(arrival.fresh), socket, env::to_string(datagram.path.remote)));
  }
  return arrival.session;
}

void Bus::Impl::on_writable(const SocketPtr& socket) {
  if (const auto unsent = std::exchange(socket->unsent, std::nullopt)) {
    const auto& burst = unsent->burst;
    if (!socket->socket->send(burst.path, burst.ecn, burst.segment, unsent->bytes)) {
      socket->unsent = unsent;
      return;
    }
  }
  for (const auto& weak : std::exchange(socket->waiting, {})) {
    const LinkPtr link = weak.lock();
    if (!link) continue;
    link->waits_for_socket = false;
    pump(link);
  }
}

/// Sends what the connection may send now. True when it may have more and others should have their turn first.
bool Bus::Impl::flush_packets(const LinkPtr& link) {
  Socket& socket = *link->socket;
  for (int i = 0; i < kBurstsInARow; ++i) {
    const std::size_t room = socket.socket->room(link->towards);
    if (socket.unsent || room == 0) {
      if (!std::exchange(link->waits_for_socket, true)) socket.waiting.push_back(link);
      return false;
    }
    const std::size_t most = std::clamp(room, env::QuicConnection::kMinBurst, burst_.size());
    const auto burst = link->over_packets->send(loop_.now(), MutableByteSpan(burst_).first(most));
    if (!burst) return false;
    link->towards = burst->path.remote;
    const ByteSpan bytes = ByteSpan(burst_).first(burst->bytes);
    if (!socket.socket->send(burst->path, burst->ecn, burst->segment, bytes)) {
      socket.unsent = Socket::Unsent{.burst = *burst, .bytes = Bytes(bytes.begin(), bytes.end())};
    }
  }
  return true;
}

}  // namespace holo::node
