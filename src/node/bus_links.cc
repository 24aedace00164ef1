// Connections: their bytes, their timers, their events, their end.
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/strings.h"
#include "node/bus_impl.h"

namespace holo::node {
namespace {

using hyperbus::RefusalKind;
using hyperbus::Role;
using hyperbus::StreamId;
using hyperbus::StreamSession;

constexpr std::size_t kOutputStep = 128 << 10;  // Encrypted at once; what is urgent can overtake the rest.
constexpr std::size_t kLastWords = 256 << 10;   // A session that is over has little left to say.
constexpr Duration kSimultaneous = seconds(2);  // Two dials this close together are one meeting, not a reconnection.
constexpr Duration kRetireCheck = seconds(1);
constexpr Duration kFullSocketCheck = milliseconds(1);
constexpr Duration kWatchEvery = milliseconds(250);  // Of a link on which this node waits for an answer.
constexpr Duration kWatchSlack = milliseconds(100);
constexpr Duration kMuchLater = milliseconds(20);
constexpr Duration kSettled = milliseconds(2);
constexpr int kRoundTripsWithoutWord = 8;   // On long paths; see BusOptions::stalled_after.
constexpr Duration kLogEvery = seconds(5);  // Refusals of one kind; the counters have them all.

}  // namespace

void Bus::Impl::accept(std::unique_ptr<env::ByteStream> stream) {
  if (closed_) return;
  make_room_for_newcomer();
  std::string address = stream->peer_address();
  half_open_.push_back(add_stream_link(Role::responder, std::move(stream), NodeId(), std::move(address)));
}

/// The oldest that has said nothing goes first: a node that means it speaks within a round trip.
void Bus::Impl::make_room_for_newcomer() {
  if (half_open_.size() < options_.max_half_open) return;
  auto silent = std::find_if(half_open_.begin(), half_open_.end(), [](const LinkPtr& l) { return !l->heard; });
  const LinkPtr victim = silent == half_open_.end() ? half_open_.front() : *silent;
  const Error why = overloaded("too many connections that have not finished their handshake");
  count_refusal(RefusalKind::garbage, victim->role, victim->address, why);
  end_link(victim, why);
}

/// Whoever holds a key makes as many identities as it likes, and each costs a handshake only.
void Bus::Impl::make_room_for_stranger(const LinkPtr& fresh) {
  if (!is_stranger(*fresh)) return;
  LinkPtr victim;
  std::size_t strangers = 0;
  for (const auto& [id, link] : links_) {
    if (link == fresh || !is_stranger(*link)) continue;
    ++strangers;
    // One that waits for an answer may be joining.
    const auto rank = [](const LinkPtr& l) { return std::pair(l->serving > 0, l->id); };
    if (!victim || rank(link) < rank(victim)) victim = link;
  }
  if (strangers >= options_.max_strangers) {
    close_link(victim, overloaded("too many connections of nodes that are not members of this cluster"));
  }
}

bool Bus::Impl::is_stranger(const Link& link) const {
  return gate_ && link.peer && link.role == Role::responder && !gate_->is_member(link.peer);
}

/// Before a request is whole nobody can say whether it will be served; its bytes wait here until then.
void Bus::Impl::bound_requests_of_strangers(const LinkPtr& link) {
  const std::uint64_t most = options_.max_stranger_bytes;
  if (link->session->request_bytes() <= most / limits::kMaxStrangers || !is_stranger(*link)) return;
  std::uint64_t sum = 0;
  std::pair<std::uint64_t, LinkPtr> largest;
  for (const auto& [id, other] : links_) {
    if (!is_stranger(*other)) continue;
    const std::uint64_t bytes = other->session->request_bytes();
    sum += bytes;
    if (!largest.second || bytes > largest.first) largest = {bytes, other};
  }
  if (sum > most) close_link(largest.second, overloaded("too many bytes asked of by nodes that are not members"));
}

/// What was kept about a node that nobody here ever named.
void Bus::Impl::forget_peer(NodeId id) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return;
  const Peer& peer = it->second;
  const bool needed = peer.link || peer.dialling || !peer.waiting.empty() || !peer.addresses.empty();
  if (!needed && peer.upgrade_timer == 0) peers_.erase(it);
}

Bus::Impl::LinkPtr Bus::Impl::add_link(Role role, std::string address) {
  auto link = std::make_shared<Link>();
  link->id = next_id_++;
  link->role = role;
  link->address = std::move(address);
  link->started = loop_.now();
  links_.emplace(link->id, link);
  return link;
}

Bus::Impl::LinkPtr Bus::Impl::add_stream_link(Role role, std::unique_ptr<env::ByteStream> stream, NodeId expected,
                                              std::string address) {
  const LinkPtr link = add_link(role, std::move(address));
  auto session = std::make_unique<StreamSession>(role, options_.session, entropy_, link->started, expected);
  link->over_stream = session.get();
  link->session = std::move(session);
  link->stream = std::move(stream);
  const std::weak_ptr<Link> weak = link;
  link->stream->start({.on_bytes =
                           [this, weak](ByteSpan bytes) {
                             const LinkPtr l = weak.lock();
                             if (!l || l->over) return;
                             l->heard = true;
                             l->over_stream->feed(loop_.now(), bytes);
                             pump(l);
                           },
                       .on_writable =
                           [this, weak] {
                             if (const LinkPtr l = weak.lock()) pump(l);
                           },
                       .on_closed =
                           [this, weak](Error why) {
                             const LinkPtr l = weak.lock();
                             if (!l || l->over) return;
                             l->over_stream->broken(loop_.now(), std::move(why));
                             pump(l);
                           }});
  rearm(link);
  return link;
}

/// Performs what the session wants: its events, then its bytes, then its timer. What events resume may call back into
/// the bus and the same session; the outermost pump then finds their work.
void Bus::Impl::pump(const LinkPtr& link) {
  if (link->pumping || link->over) return;
  const auto self = shared_from_this();
  // The caller's reference may be to something that an event destroys.
  const LinkPtr l = link;  // NOLINT(performance-unnecessary-copy-initialization)
  l->pumping = true;
  bound_requests_of_strangers(l);
  bool again = true;
  while (again && !l->over) {
    while (auto event = l->session->next_event()) {
      std::visit([&](auto& e) { on_event(l, std::move(e)); }, *event);
      if (l->over) break;
    }
    again = !l->over && (l->over_packets != nullptr ? flush_packets(l) : write_output(l));
  }
  l->pumping = false;
  if (!l->over) rearm(l);
}

/// False when there was nothing to write, or no room.
bool Bus::Impl::write_output(const LinkPtr& link) {
  if (!link->over_stream->wants_output() || link->stream->backlog() >= env::ByteStream::kHighWater) return false;
  const std::size_t room = env::ByteStream::kHighWater - link->stream->backlog();
  std::vector<Buffer> out;
  link->over_stream->output(loop_.now(), std::min(room, kOutputStep), out);
  if (out.empty()) return false;
  link->stream->write(std::move(out));
  return true;
}

void Bus::Impl::rearm(const LinkPtr& link) {
  Instant next = link->session->next_timer();
  // What is due cannot be done while the socket is full: a timer in the past would only spin until it is not.
  if (link->waits_for_socket) next = std::max(next, loop_.now() + kFullSocketCheck);
  if (link->timer != 0 && link->timer_at <= next) {
    // It fires early, looks, and sets itself again. On a link at rest that is a wake-up for nothing.
    const bool at_rest = next - link->timer_at > kMuchLater && loop_.now() - link->timer_set > kSettled;
    if (!at_rest) return;
  }
  loop_.cancel(link->timer);
  link->timer = 0;
  link->timer_set = loop_.now();
  if (next == kNever) return;
  link->timer_at = next;
  link->timer = loop_.call_at(next, [this, weak = std::weak_ptr<Link>(link)] {
    if (const LinkPtr l = weak.lock()) on_timer(l);
  });
}

void Bus::Impl::on_timer(const LinkPtr& link) {
  link->timer = 0;
  if (link->over) return;
  const Instant now = loop_.now();
  if (now >= link->session->next_timer()) {
    link->session->on_timer(now);
    pump(link);
  } else if (!loop_.stopping()) {  // A stopping loop fires timers before their time: setting it again would spin.
    rearm(link);
  }
}

/// Tells the peer, and ends every call of the link with `why`.
void Bus::Impl::close_link(const LinkPtr& link, const Error& why) {
  if (link->over) return;
  link->ended_here = true;
  link->session->close(why);
  pump(link);
}

/// Takes the link out of everything. Its calls have ended, unless it never got through the handshake.
void Bus::Impl::end_link(const LinkPtr& link, const Error& why) {
  if (link->over) return;
  link->over = true;
  links_.erase(link->id);
  keep_figures(*link);
  if (!link->peer) {
    auto& role = link->role == Role::initiator ? handshakes_.dialled : handshakes_.accepted;
    ++role.failed[static_cast<std::size_t>(link->refusal)];
  }
  drop_half_open(link);
  loop_.cancel(link->timer);
  loop_.cancel(link->retire_timer);
  loop_.cancel(link->watch_timer);
  if (link->over_packets != nullptr) {
    by_session_.erase(link->over_packets);
    while (flush_packets(link)) {
    }
  } else {
    std::vector<Buffer> out;
    link->over_stream->output(loop_.now(), kLastWords, out);
    if (!out.empty()) {
      link->stream->write(std::move(out));
      link->stream->close();
    }
    link->stream.reset();
  }

  for (auto& [stream, call] : std::exchange(link->calls, {})) {
    count_failure(peers_[link->peer], call.klass, why);
    call.shot->set(std::unexpected(why));
  }
  if (link->waiter) link->waiter->set(std::unexpected(why));
  const auto peer = peers_.find(link->peer);
  if (!link->peer || peer == peers_.end() || peer->second.link != link) return;
  peer->second.link = nullptr;
  for (const auto& [id, other] : links_) {
    if (other->peer == link->peer && !other->over) {  // One that was retiring can serve again.
      peer->second.link = other;
      other->retiring = false;
      return;
    }
  }
  log_info("bus", "lost the connection to node ", link->peer, ": ", why.message);
  if (!link->ended_here && !closed_ && on_peer_lost) on_peer_lost(link->peer, why);
  if (!closed_) forget_peer(link->peer);
}

/// Of two connections to the same node, whether the one that has just been established replaces the other.
bool Bus::Impl::supersedes(const Link& fresh, const Link& old) const {
  if (stalled(old)) return true;
  const bool together = fresh.started <= old.established_at + kSimultaneous;
  if (fresh.over_packets != nullptr && old.over_packets == nullptr) return true;
  if (fresh.over_packets == nullptr && old.over_packets != nullptr && together) return false;
  // Begun when the old one had long been up: the peer (or its process) has given the old one up.
  if (!together) return true;
  if (dialler(fresh) == dialler(old)) return true;
  return dialler(fresh) < dialler(old);
}

/// TCP was tried because QUIC passed nothing, and now it does again.
bool Bus::Impl::needless(const Link& fresh, const Link& old) const {
  const auto peer = peers_.find(old.peer);
  return peer != peers_.end() && peer->second.replacing && fresh.role == Role::initiator &&
         fresh.over_packets == nullptr && old.over_packets != nullptr && old.role == Role::initiator && !stalled(old);
}

bool Bus::Impl::stalled(const Link& link) const {
  if (link.over || link.over_packets == nullptr) return false;
  const Instant since = link.over_packets->unacknowledged_since();
  return since != kNever && loop_.now() >= since + options_.stalled_after &&
         loop_.now() >= since + link.session->figures().round_trip * kRoundTripsWithoutWord;
}

/// While there are requests on the link, looks now and then whether anything passes. Failures of paths are found so
/// before the idle time-out, and before a node that can be reached otherwise is taken for dead.
void Bus::Impl::watch(const LinkPtr& link) {
  if (link->over_packets == nullptr || link->watch_timer != 0 || closed_ || loop_.stopping()) return;
  const Instant next = loop_.now() + kWatchEvery;
  link->watch_timer = loop_.call_between(next, next + kWatchSlack, [this, weak = std::weak_ptr<Link>(link)] {
    if (const LinkPtr l = weak.lock()) on_watch(l);
  });
}

void Bus::Impl::on_watch(const LinkPtr& link) {
  link->watch_timer = 0;
  const auto at = peers_.find(link->peer);
  if (link->over || link->calls.empty() || at == peers_.end() || at->second.link != link) return;
  if (loop_.now() >= at->second.replace_not_before && stalled(*link)) begin_replacing(link->peer, link);
  watch(link);
}

/// New requests go elsewhere; this link ends once it has had nothing under way for a while. Not at once: the peer may
/// have sent a request on it before it learned of the other.
void Bus::Impl::retire(const LinkPtr& link) {
  link->retiring = true;
  link->streams_at_check = link->streams;
  link->retire_timer = loop_.call_at(loop_.now() + kRetireCheck, [this, weak = std::weak_ptr<Link>(link)] {
    if (const LinkPtr l = weak.lock()) check_retired(l);
  });
}

void Bus::Impl::check_retired(const LinkPtr& link) {
  if (link->over || !link->retiring) return;
  const bool idle = link->calls.empty() && link->serving == 0 && link->streams == link->streams_at_check;
  if (!idle && !loop_.stopping()) return retire(link);
  close_link(link, unavailable("another connection between these nodes has taken over"));
}

// --- Events
// ------------------------------------------------------------------------------------------------------------

void Bus::Impl::on_event(const LinkPtr& link, hyperbus::Established event) {
  link->peer = event.peer;
  link->established_at = loop_.now();
  link->aead = event.aead;
  link->version = event.version;
  ++(link->role == Role::initiator ? handshakes_.dialled : handshakes_.accepted).done;
  handshake_durations_.record(link->established_at - link->started);
  drop_half_open(link);
  if (event.peer == self_) {
    return close_link(link, Error{.code = Errc::refused, .message = str(link->address, " is this node itself")});
  }
  make_room_for_stranger(link);
  link->session->set_placer([this, from = event.peer](const env::Request& announced, std::uint64_t bytes) {
    const auto placer = placers_.find(announced.type);
    const bool served = placer != placers_.end() && (!gate_ || gate_->admits(from, announced.type));
    return served ? placer->second(from, announced, bytes) : nullptr;
  });
  Peer& peer = peers_[event.peer];
  const bool first = !peer.link;
  if (first) {
    peer.link = link;
  } else if (needless(*link, *peer.link)) {
    return close_link(link, unavailable("the other connection passes bytes again"));
  } else if (supersedes(*link, *peer.link)) {
    retire(std::exchange(peer.link, link));
  } else {
    retire(link);
  }
  peer.backoff = {};
  peer.not_before = {};
  if (link->role == Role::initiator) peer.last_good = link->address;
  if (link->role == Role::initiator && peer.addresses.empty()) peer.addresses = {link->address};
  log_info("bus", first ? "connected to node " : "another connection to node ", event.peer, " at ", link->address,
           link->over_packets != nullptr ? " (quic)" : " (tcp)");
  send_waiting(peer);
  peer.udp_failed = speaks_quic() && link->over_packets == nullptr && link->role == Role::initiator;
  if (peer.udp_failed && peer.link == link) plan_upgrade(event.peer);
  if (first && on_peer_connected) on_peer_connected(event.peer);
  if (link->waiter) link->waiter->set(env::PeerIdentity{.node = event.peer, .address = link->address});
}

void Bus::Impl::on_event(const LinkPtr& link, hyperbus::RequestArrived event) {
  ++link->streams;
  const auto handler = handlers_.find(event.request.type);
  if (handler == handlers_.end()) {
    link->session->reply(event.stream,
                         fail(Errc::unsupported, str("this node does not know request ", event.request.type)));
    return;
  }
  if (serving_ >= options_.max_serving) {
    link->session->note_turned_away(event.klass);
    link->session->reply(event.stream, std::unexpected(overloaded("this node serves too many requests at once")));
    return;
  }
  ++serving_;
  ++link->serving;
  loop_.spawn(run_handler(shared_from_this(), link, event.stream, handler->second, std::move(event.request)));
}

Task<void> Bus::Impl::run_handler(std::shared_ptr<Impl> self, LinkPtr link, StreamId stream,
                                  std::shared_ptr<Handler> handler, env::Request request) {
  Status admitted;
  if (const auto gate = self->gate_; gate && !gate->admits(link->peer, request.type)) {
    auto inquiry = gate->inquire(link->peer, request.type);
    admitted = co_await inquiry;
  }
  Result<env::Reply> result = env::Reply{};
  if (admitted) {
    auto task = (*handler)(link->peer, std::move(request));
    result = co_await task;
  } else {
    result = std::unexpected(std::move(admitted).error());
  }
  --self->serving_;
  --link->serving;
  if (link->over) co_return;
  link->session->reply(stream, std::move(result));
  self->pump(link);
}

void Bus::Impl::on_event(const LinkPtr& link, hyperbus::ReplyArrived event) {
  const auto it = link->calls.find(event.stream);
  HOLO_ASSERT(it != link->calls.end(), "an answer to a request nobody made");
  const UnderWay call = it->second;
  link->calls.erase(it);
  if (event.result) {
    count_round_trip(*link, call);
  } else {
    count_failure(peers_[link->peer], call.klass, event.result.error());
  }
  call.shot->set(std::move(event.result));
}

void Bus::Impl::count_round_trip(const Link& link, const UnderWay& call) {
  auto& histogram = peers_[link.peer].round_trips[static_cast<std::size_t>(call.klass)];
  if (!histogram) histogram = std::make_unique<obs::Histogram>();
  histogram->record(loop_.now() - call.asked);
}

void Bus::Impl::count_failure(Peer& peer, env::StreamClass klass, const Error& why) {
  ++peer.past.classes[static_cast<std::size_t>(klass)].failed[why.code];
}

void Bus::Impl::add_figures(PeerStatus& sum, const Link& link) {
  const hyperbus::LinkFigures f = link.session->figures();
  ++sum.connections;
  sum.figures.bytes_in += f.bytes_in;
  sum.figures.bytes_out += f.bytes_out;
  sum.figures.packets_sent += f.packets_sent;
  sum.figures.packets_received += f.packets_received;
  sum.figures.packets_lost += f.packets_lost;
  sum.figures.key_updates += f.key_updates;
  sum.figures.congestion_marks += f.congestion_marks;
  for (std::size_t c = 0; c < sum.classes.size(); ++c) {
    const hyperbus::ClassStatus of = link.session->class_status(static_cast<env::StreamClass>(c));
    sum.classes[c].credit_waits += of.credit_waits;
    sum.classes[c].overloaded += of.overloaded;
    sum.classes[c].turned_away += of.turned_away;
    sum.classes[c].packets_lost += of.packets_lost;
  }
}

void Bus::Impl::add_credit_waits(obs::Histogram& sum, const Link& link, env::StreamClass klass) {
  if (const obs::Histogram* waits = link.session->credit_wait(klass)) sum.add(*waits);
}

/// What a connection has counted does not go with it.
void Bus::Impl::keep_figures(const Link& link) {
  if (!link.peer) return;
  Peer& peer = peers_[link.peer];
  add_figures(peer.past, link);
  for (std::size_t c = 0; c < peer.credit_waits.size(); ++c) {
    const auto klass = static_cast<env::StreamClass>(c);
    if (link.session->credit_wait(klass) == nullptr) continue;
    if (!peer.credit_waits[c]) peer.credit_waits[c] = std::make_unique<obs::Histogram>();
    add_credit_waits(*peer.credit_waits[c], link, klass);
  }
}

void Bus::Impl::on_event(const LinkPtr& link, hyperbus::Closed event) {
  link->refusal = event.kind;
  if (event.kind != RefusalKind::none) count_refusal(event.kind, link->role, link->address, event.error);
  end_link(link, event.error);
}

void Bus::Impl::count_refusal(RefusalKind kind, Role role, const std::string& address, const Error& why) {
  switch (kind) {
    case RefusalKind::none: return;
    case RefusalKind::wrong_key: ++refused_.wrong_key; break;
    case RefusalKind::wrong_version: ++refused_.wrong_version; break;
    case RefusalKind::garbage: ++refused_.garbage; break;
    case RefusalKind::unknown_identity: ++refused_.unknown_identity; break;
    case RefusalKind::changed_key: ++refused_.changed_key; break;
    case RefusalKind::revoked: ++refused_.revoked; break;
  }
  Quiet& quiet = quiet_[static_cast<std::size_t>(kind)];
  const Instant now = loop_.now();
  if (now < quiet.until) {
    ++quiet.unsaid;
    return;
  }
  const std::string more = quiet.unsaid ? str(" (and ", quiet.unsaid, " more like it)") : std::string();
  const char* what = role == Role::responder ? "refused " : "no handshake with ";
  log_warn("bus", what, address, ": ", why.message, more);
  quiet = {.until = now + kLogEvery, .unsaid = 0};
}

}  // namespace holo::node
