#include "node/bus.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/strings.h"
#include "node/bus_impl.h"

namespace holo::node {
namespace {

/// The transport delivers a payload as one buffer; a call to oneself keeps to that.
std::vector<Buffer> gathered(std::vector<Buffer> parts) {
  std::erase_if(parts, [](const Buffer& b) { return b.empty(); });
  if (parts.size() <= 1) return parts;
  Bytes all;
  for (const auto& b : parts) all.insert(all.end(), b.span().begin(), b.span().end());
  return {Buffer(std::move(all))};
}

template <class Message>
Status check_limits(const Message& message) {
  std::size_t bytes = 0;
  for (const auto& b : message.payload) bytes += b.size();
  if (message.header.size() <= limits::kMaxHeaderBytes && bytes <= limits::kMaxPayloadBytes) return {};
  return fail(Errc::invalid_argument,
              str("a message of ", message.header.size(), " + ", bytes, " bytes; the limits are ",
                  limits::kMaxHeaderBytes, " + ", limits::kMaxPayloadBytes));
}

}  // namespace

// --- Calls
// -------------------------------------------------------------------------------------------------------------

Task<Result<env::Reply>> Bus::Impl::call(NodeId peer, env::Request request, env::CallOptions options) {
  const auto self = shared_from_this();
  if (closed_) co_return std::unexpected(cancelled());
  if (peer == self_) {
    auto own = call_self(std::move(request), options.deadline);
    co_return co_await own;
  }
  auto shot = std::make_shared<OneShot<Result<env::Reply>>>();
  begin_call(peer, std::move(request), options, shot);
  co_return co_await *shot;
}

void Bus::Impl::begin_call(NodeId id, env::Request request, env::CallOptions options, const ReplyShot& shot) {
  Peer& peer = peers_[id];
  if (peer.link) return send_on(peer.link, std::move(request), options, shot);
  const auto refuse = [&](Error error) {
    count_failure(peer, options.klass, error);
    shot->set(std::unexpected(std::move(error)));
  };
  const Instant now = loop_.now();
  if (auto fits = check_limits(request); !fits) return refuse(std::move(fits).error());
  if (now >= options.deadline) {
    return refuse({.code = Errc::deadline_exceeded, .message = str("no time was left to ask node ", id)});
  }
  if (!peer.dialling) {
    if (peer.addresses.empty()) return refuse(unavailable(str("no address of node ", id, " is known")));
    if (now < peer.not_before) return refuse(peer.last_error);
  }
  if (peer.waiting.size() >= limits::kMaxCallsPerPeer) {
    return refuse(overloaded(str("too many calls wait for a connection to node ", id)));
  }
  const std::uint64_t waiting = next_id_++;
  const auto timer = loop_.call_at(options.deadline, [this, weak = weak_from_this(), id, waiting] {
    if (const auto self = weak.lock()) time_out(id, waiting);
  });
  peer.waiting.push_back(
      {.id = waiting, .request = std::move(request), .options = options, .shot = shot, .timer = timer});
  if (peer.dialling) return;
  peer.dialling = true;
  loop_.spawn(dial_peer(shared_from_this(), id));
}

void Bus::Impl::send_on(const LinkPtr& link, env::Request request, env::CallOptions options, const ReplyShot& shot) {
  auto stream = link->session->request(loop_.now(), options.klass, std::move(request), options.deadline);
  if (!stream) {
    count_failure(peers_[link->peer], options.klass, stream.error());
    shot->set(std::unexpected(std::move(stream).error()));
    return;
  }
  ++link->streams;
  link->calls.emplace(*stream, UnderWay{.shot = shot, .klass = options.klass, .asked = loop_.now()});
  watch(link);
  pump(link);
}

void Bus::Impl::send_waiting(Peer& peer) {
  const LinkPtr link = peer.link;
  for (auto& w : std::exchange(peer.waiting, {})) {
    loop_.cancel(w.timer);
    send_on(link, std::move(w.request), w.options, w.shot);
  }
}

void Bus::Impl::fail_waiting(Peer& peer, const Error& why) {
  for (auto& w : std::exchange(peer.waiting, {})) {
    loop_.cancel(w.timer);
    count_failure(peer, w.options.klass, why);
    w.shot->set(std::unexpected(why));
  }
}

void Bus::Impl::time_out(NodeId id, std::uint64_t waiting) {
  Peer& peer = peers_[id];
  auto& queue = peer.waiting;
  const auto it = std::find_if(queue.begin(), queue.end(), [&](const Waiting& w) { return w.id == waiting; });
  if (it == queue.end()) return;
  const ReplyShot shot = it->shot;
  const env::StreamClass klass = it->options.klass;
  queue.erase(it);
  const Errc code = loop_.stopping() ? Errc::cancelled : Errc::deadline_exceeded;
  const auto late = fail(code, str("no connection to node ", id, " in time"));
  count_failure(peer, klass, late.error());
  shot->set(late);
}

Task<Result<env::Reply>> Bus::Impl::call_self(env::Request request, Instant deadline) {
  const auto self = shared_from_this();
  HOLO_CO_TRY(check_limits(request));
  const auto handler = handlers_.find(request.type);
  if (handler == handlers_.end()) {
    co_return fail(Errc::unsupported, str("this node does not know request ", request.type));
  }
  if (serving_ >= options_.max_serving)
    co_return std::unexpected(overloaded("this node serves too many requests at once"));
  const std::string what = str("own request ", request.type);
  request.payload = gathered(std::move(request.payload));
  auto shot = std::make_shared<OneShot<Result<env::Reply>>>();
  const std::uint64_t id = next_id_++;
  own_calls_.emplace(id, shot);
  ++serving_;
  loop_.spawn(run_own(self, handler->second, std::move(request), shot));
  auto result = co_await env::await_until<env::Reply>(loop_, shot, deadline, what);
  self->own_calls_.erase(id);
  co_return result;
}

Task<void> Bus::Impl::run_own(std::shared_ptr<Impl> self, std::shared_ptr<Handler> handler, env::Request request,
                              ReplyShot shot) {
  auto task = (*handler)(self->self_, std::move(request));
  auto result = co_await task;
  --self->serving_;
  if (result) {
    if (auto fits = check_limits(*result); !fits) {
      fits.error().code = Errc::over_limit;
      result = std::unexpected(std::move(fits).error());
    } else {
      result->payload = gathered(std::move(result->payload));
    }
  }
  shot->set(std::move(result));
}

// --- Ends
// --------------------------------------------------------------------------------------------------------------

void Bus::Impl::disconnect(NodeId id) {
  const Error why = unavailable(str("the connection to node ", id, " was closed"));
  std::vector<LinkPtr> ending;
  for (const auto& [link_id, link] : links_) {
    if (link->peer == id) ending.push_back(link);
  }
  for (const auto& link : ending) close_link(link, why);
  if (const auto peer = peers_.find(id); peer != peers_.end()) fail_waiting(peer->second, why);
}

void Bus::Impl::close() {
  if (closed_) return;
  closed_ = true;
  const auto self = shared_from_this();
  listeners_.clear();
  handlers_.clear();
  placers_.clear();
  gate_.reset();
  for (auto& [id, peer] : peers_) loop_.cancel(std::exchange(peer.upgrade_timer, 0));
  std::vector<LinkPtr> ending;
  for (const auto& [id, link] : links_) ending.push_back(link);
  for (const auto& link : ending) close_link(link, cancelled());
  sockets_.clear();
  for (auto& [id, peer] : peers_) fail_waiting(peer, cancelled());
  for (auto& [id, shot] : std::exchange(own_calls_, {})) shot->set(std::unexpected(cancelled()));
}

bool Bus::Impl::connected(NodeId peer) const {
  const auto it = peers_.find(peer);
  return peer == self_ || (it != peers_.end() && it->second.link);
}

LinkStatus Bus::Impl::status_of(const Link& link) const {
  LinkStatus s{
      .peer = link.peer,
      .closing = link.retiring,
      .address = link.over_packets != nullptr ? env::to_string(link.over_packets->path().remote) : link.address,
      .dialled = link.role == hyperbus::Role::initiator,
      .carrier = link.over_packets != nullptr ? "quic" : "tcp",
      .cipher = crypto::aead_name(link.aead),
      .version = link.version,
      .figures = link.session->figures(),
      .classes = {},
      .round_trips = {}};
  const auto peer = peers_.find(link.peer);
  for (std::size_t c = 0; c < s.classes.size(); ++c) {
    s.classes[c] = link.session->class_status(static_cast<env::StreamClass>(c));
    if (peer != peers_.end() && peer->second.round_trips[c]) s.round_trips[c] = peer->second.round_trips[c]->summary();
  }
  return s;
}

std::optional<LinkStatus> Bus::Impl::link(NodeId id) const {
  const auto peer = peers_.find(id);
  if (peer == peers_.end() || !peer->second.link) return std::nullopt;
  return status_of(*peer->second.link);
}

std::vector<PeerStatus> Bus::Impl::peers() const {
  std::vector<PeerStatus> out;
  for (const auto& [id, peer] : peers_) {
    PeerStatus s = peer.past;
    s.peer = id;
    s.connected = static_cast<bool>(peer.link);
    bool used = s.connections > 0;
    std::array<obs::Histogram, hyperbus::kStreamClasses> waits;
    for (const auto& [link_id, link] : links_) {
      if (link->peer != id) continue;
      add_figures(s, *link);
      for (std::size_t c = 0; c < waits.size(); ++c) {
        add_credit_waits(waits[c], *link, static_cast<env::StreamClass>(c));
      }
    }
    for (std::size_t c = 0; c < waits.size(); ++c) {
      if (peer.credit_waits[c]) waits[c].add(*peer.credit_waits[c]);
      s.classes[c].credit_wait = waits[c].summary();
      if (peer.round_trips[c]) s.classes[c].round_trip = peer.round_trips[c]->summary();
      used = used || !s.classes[c].failed.empty();
    }
    if (used || s.connections > 0) out.push_back(std::move(s));
  }
  std::ranges::sort(out, {}, &PeerStatus::peer);
  return out;
}

HandshakeFigures Bus::Impl::handshakes() const {
  HandshakeFigures out = handshakes_;
  out.duration = handshake_durations_.summary();
  return out;
}

std::vector<LinkStatus> Bus::Impl::links() const {
  std::vector<LinkStatus> out;
  for (const auto& [id, link] : links_) {
    if (link->peer) out.push_back(status_of(*link));
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.peer < b.peer; });
  return out;
}

// --- The public face
// -----------------------------------------------------------------------------------------------------

Bus::Bus(env::Loop& loop, env::Carrier& carrier, env::Entropy& entropy, BusOptions options)
    : impl_(std::make_shared<Impl>(loop, carrier, entropy, std::move(options))) {}
Bus::~Bus() {
  impl_->on_peer_lost = nullptr;
  impl_->on_peer_connected = nullptr;
  impl_->close();
}

NodeId Bus::self() const { return impl_->self(); }
Result<std::string> Bus::listen(std::string address) { return impl_->listen(address); }
Task<Result<env::Reply>> Bus::call(NodeId peer, env::Request request, env::CallOptions options) {
  return impl_->call(peer, std::move(request), options);
}
void Bus::serve(std::uint16_t type, Handler handler) { impl_->serve(type, std::move(handler)); }
void Bus::set_placer(std::uint16_t type, Placer placer) { impl_->set_placer(type, std::move(placer)); }
void Bus::set_gate(std::shared_ptr<env::MemberGate> gate) { impl_->set_gate(std::move(gate)); }
void Bus::set_addresses(NodeId peer, std::vector<std::string> addresses) {
  impl_->set_addresses(peer, std::move(addresses));
}
Task<Result<env::PeerIdentity>> Bus::connect(std::string address, Instant deadline) {
  return impl_->connect(std::move(address), deadline);
}
void Bus::disconnect(NodeId peer) { impl_->disconnect(peer); }
env::RefusedCounters Bus::refused() const { return impl_->refused(); }
void Bus::on_peer_lost(std::function<void(NodeId, const Error&)> f) { impl_->on_peer_lost = std::move(f); }
void Bus::on_peer_connected(std::function<void(NodeId)> f) { impl_->on_peer_connected = std::move(f); }
bool Bus::connected(NodeId peer) const { return impl_->connected(peer); }
std::vector<LinkStatus> Bus::links() const { return impl_->links(); }
std::optional<LinkStatus> Bus::link(NodeId peer) const { return impl_->link(peer); }
std::vector<PeerStatus> Bus::peers() const { return impl_->peers(); }
HandshakeFigures Bus::handshakes() const { return impl_->handshakes(); }
std::size_t Bus::half_open() const { return impl_->half_open(); }
void Bus::set_session_config(std::shared_ptr<const hyperbus::SessionConfig> session) {
  impl_->set_session_config(std::move(session));
}
bool Bus::speaks_quic() const { return impl_->speaks_quic(); }
void Bus::set_qlog(env::QlogFactory qlog) { impl_->set_qlog(std::move(qlog)); }
void Bus::own_addresses_changed() { impl_->own_addresses_changed(); }
void Bus::close() { impl_->close(); }

}  // namespace holo::node
