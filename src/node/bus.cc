#include "node/bus.h"

#include <algorithm>
#include <deque>
#include <unordered_map>
#include <utility>

#include "base/log.h"
#include "base/strings.h"

namespace holo::node {
namespace {

using hyperbus::RefusalKind;
using hyperbus::Role;
using hyperbus::StreamId;
using hyperbus::StreamSession;
using ReplyShot = std::shared_ptr<OneShot<Result<env::Reply>>>;
using IdentityShot = std::shared_ptr<OneShot<Result<env::PeerIdentity>>>;

constexpr std::size_t kOutputStep = 128 << 10;  // Encrypted at once; what is urgent can overtake the rest.
constexpr std::size_t kLastWords = 256 << 10;   // A session that is over has little left to say.
constexpr Duration kSimultaneous = seconds(2);  // Two dials this close together are one meeting, not a reconnection.
constexpr Duration kRetireCheck = seconds(1);
constexpr Duration kLogEvery = seconds(5);  // Refusals of one kind; the counters have them all.

Error unavailable(std::string message) {
  return Error{.code = Errc::unavailable, .message = std::move(message), .retryable = true};
}
Error cancelled() { return Error{.code = Errc::cancelled, .message = "this node is stopping"}; }
Error overloaded(std::string message) {
  return Error{.code = Errc::overloaded, .message = std::move(message), .retryable = true};
}

/// Of the reasons why several addresses failed, the one that tells most.
int telling(Errc code) {
  switch (code) {
    case Errc::wrong_key: return 4;
    case Errc::wrong_version: return 3;
    case Errc::permission_denied: return 2;
    default: return 1;
  }
}

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

class Bus::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(env::Loop& loop, env::Carrier& carrier, env::Entropy& entropy, BusOptions options)
      : loop_(loop),
        carrier_(carrier),
        entropy_(entropy),
        options_(std::move(options)),
        self_(options_.session->handshake->identity.node()) {}

  NodeId self() const { return self_; }
  Result<std::string> listen(std::string address);
  Task<Result<env::Reply>> call(NodeId peer, env::Request request, env::CallOptions options);
  void serve(std::uint16_t type, Handler handler) { handlers_[type] = std::make_shared<Handler>(std::move(handler)); }
  void set_addresses(NodeId peer, std::vector<std::string> addresses);
  Task<Result<env::PeerIdentity>> connect(std::string address, Instant deadline);
  void disconnect(NodeId peer);
  env::RefusedCounters refused() const { return refused_; }
  bool connected(NodeId peer) const;
  std::vector<LinkStatus> links() const;
  std::size_t half_open() const { return half_open_.size(); }
  void set_session_config(std::shared_ptr<const hyperbus::SessionConfig> s) { options_.session = std::move(s); }
  void close();

  std::function<void(NodeId, const Error&)> on_peer_lost;
  std::function<void(NodeId)> on_peer_connected;

 private:
  /// One connection, from its first byte to its last.
  struct Link {
    std::uint64_t id = 0;
    Role role = Role::initiator;
    std::string address;
    std::unique_ptr<env::ByteStream> stream;  // null once over
    std::unique_ptr<StreamSession> session;
    Instant started;
    Instant established_at;
    NodeId peer;          // 0 until established
    IdentityShot waiter;  // who dialled and waits for the handshake
    std::unordered_map<StreamId, ReplyShot> calls;
    std::size_t serving = 0;
    std::uint64_t streams = 0;  // ever, in both directions
    std::uint64_t streams_at_check = 0;
    env::Loop::TimerId timer = 0;
    Instant timer_at = kNever;
    env::Loop::TimerId retire_timer = 0;
    bool heard = false;
    bool pumping = false;
    bool retiring = false;
    bool ended_here = false;  // by disconnect(), close() or retirement: nobody was lost
    bool over = false;
  };
  using LinkPtr = std::shared_ptr<Link>;

  /// A call that waits for a connection.
  struct Waiting {
    std::uint64_t id = 0;
    env::Request request;
    env::CallOptions options;
    ReplyShot shot;
    env::Loop::TimerId timer = 0;
  };
  struct Peer {
    std::vector<std::string> addresses;
    LinkPtr link;  // where new requests go
    std::deque<Waiting> waiting;
    bool dialling = false;
    Duration backoff;
    Instant not_before;
    Error last_error;
  };
  struct Quiet {
    Instant until;
    std::uint64_t unsaid = 0;
  };

  // Links
  LinkPtr add_link(Role role, std::unique_ptr<env::ByteStream> stream, NodeId expected, std::string address);
  void accept(std::unique_ptr<env::ByteStream> stream);
  void make_room_for_newcomer();
  void pump(const LinkPtr& link);
  bool write_output(const LinkPtr& link);
  void rearm(const LinkPtr& link);
  void on_timer(const LinkPtr& link);
  void end_link(const LinkPtr& link, const Error& why);
  void close_link(const LinkPtr& link, const Error& why);
  void retire(const LinkPtr& link);
  void check_retired(const LinkPtr& link);
  NodeId dialler(const Link& link) const { return link.role == Role::initiator ? self_ : link.peer; }
  bool supersedes(const Link& fresh, const Link& old) const;
  void drop_half_open(const LinkPtr& link) { std::erase(half_open_, link); }

  // Events
  void on_event(const LinkPtr& link, hyperbus::Established event);
  void on_event(const LinkPtr& link, hyperbus::RequestArrived event);
  void on_event(const LinkPtr& link, hyperbus::ReplyArrived event);
  void on_event(const LinkPtr&, hyperbus::RequestCancelled) {
  }  // Handlers run to their end; the session drops the answer.
  void on_event(const LinkPtr& link, hyperbus::Closed event);
  void count_refusal(RefusalKind kind, const Link& link, const Error& why);
  static Task<void> run_handler(std::shared_ptr<Impl> self, LinkPtr link, StreamId stream,
                                std::shared_ptr<Handler> handler, env::Request request);

  // Calls
  void begin_call(NodeId id, env::Request request, env::CallOptions options, const ReplyShot& shot);
  void send_on(const LinkPtr& link, env::Request request, env::CallOptions options, const ReplyShot& shot);
  void send_waiting(Peer& peer);
  void fail_waiting(Peer& peer, const Error& why);
  void time_out(NodeId peer, std::uint64_t waiting);
  Task<Result<env::Reply>> call_self(env::Request request, Instant deadline);
  static Task<void> run_own(std::shared_ptr<Impl> self, std::shared_ptr<Handler> handler, env::Request request,
                            ReplyShot shot);

  // Dialling
  Task<Result<env::PeerIdentity>> open(std::string address, NodeId expected, Instant dial_by, Instant shake_by);
  static Task<void> dial_peer(std::shared_ptr<Impl> self, NodeId id);

  env::Loop& loop_;
  env::Carrier& carrier_;
  env::Entropy& entropy_;
  BusOptions options_;
  const NodeId self_;
  std::unordered_map<std::uint16_t, std::shared_ptr<Handler>> handlers_;
  std::unordered_map<NodeId, Peer>
      peers_;  // Entries stay: one for each node that ever proved its identity or was named.
  std::unordered_map<std::uint64_t, LinkPtr> links_;
  std::deque<LinkPtr> half_open_;  // inbound, oldest first
  std::vector<std::unique_ptr<env::Listener>> listeners_;
  std::unordered_map<std::uint64_t, ReplyShot> own_calls_;
  std::size_t serving_ = 0;
  std::uint64_t next_id_ = 1;
  env::RefusedCounters refused_;
  std::array<Quiet, hyperbus::kRefusalKinds> quiet_{};  // by RefusalKind
  bool closed_ = false;
};

// --- Links -----------------------------------------------------------------------------------------------------------

Result<std::string> Bus::Impl::listen(std::string address) {
  auto listener =
      carrier_.listen(std::move(address), [this](std::unique_ptr<env::ByteStream> s) { accept(std::move(s)); });
  if (!listener) return std::unexpected(std::move(listener).error());
  listeners_.push_back(std::move(*listener));
  return listeners_.back()->address();
}

void Bus::Impl::accept(std::unique_ptr<env::ByteStream> stream) {
  if (closed_) return;
  make_room_for_newcomer();
  std::string address = stream->peer_address();
  half_open_.push_back(add_link(Role::responder, std::move(stream), NodeId(), std::move(address)));
}

/// The oldest that has said nothing goes first: a node that means it speaks within a round trip.
void Bus::Impl::make_room_for_newcomer() {
  if (half_open_.size() < options_.max_half_open) return;
  auto silent = std::find_if(half_open_.begin(), half_open_.end(), [](const LinkPtr& l) { return !l->heard; });
  const LinkPtr victim = silent == half_open_.end() ? half_open_.front() : *silent;
  const Error why = overloaded("too many connections that have not finished their handshake");
  count_refusal(RefusalKind::garbage, *victim, why);
  end_link(victim, why);
}

Bus::Impl::LinkPtr Bus::Impl::add_link(Role role, std::unique_ptr<env::ByteStream> stream, NodeId expected,
                                       std::string address) {
  auto link = std::make_shared<Link>();
  link->id = next_id_++;
  link->role = role;
  link->address = std::move(address);
  link->started = loop_.now();
  link->session = std::make_unique<StreamSession>(role, options_.session, entropy_, link->started, expected);
  link->stream = std::move(stream);
  links_.emplace(link->id, link);
  const std::weak_ptr<Link> weak = link;
  link->stream->start({.on_bytes =
                           [this, weak](ByteSpan bytes) {
                             const LinkPtr l = weak.lock();
                             if (!l || l->over) return;
                             l->heard = true;
                             l->session->feed(loop_.now(), bytes);
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
                             l->session->broken(loop_.now(), std::move(why));
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
  bool again = true;
  while (again && !l->over) {
    while (auto event = l->session->next_event()) {
      std::visit([&](auto& e) { on_event(l, std::move(e)); }, *event);
      if (l->over) break;
    }
    again = false;
    if (!l->over && l->session->wants_output() && l->stream->backlog() < env::ByteStream::kHighWater) {
      again = write_output(l);
    }
  }
  l->pumping = false;
  if (!l->over) rearm(l);
}

/// False when there was nothing to write after all.
bool Bus::Impl::write_output(const LinkPtr& link) {
  const std::size_t room = env::ByteStream::kHighWater - link->stream->backlog();
  std::vector<Buffer> out;
  link->session->output(loop_.now(), std::min(room, kOutputStep), out);
  if (out.empty()) return false;
  link->stream->write(std::move(out));
  return true;
}

void Bus::Impl::rearm(const LinkPtr& link) {
  const Instant next = link->session->next_timer();
  if (link->timer != 0 && link->timer_at <= next) return;  // It fires early, looks, and sets itself again.
  loop_.cancel(link->timer);
  link->timer = 0;
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
  drop_half_open(link);
  loop_.cancel(link->timer);
  loop_.cancel(link->retire_timer);
  std::vector<Buffer> out;
  link->session->output(loop_.now(), kLastWords, out);
  if (!out.empty()) {
    link->stream->write(std::move(out));
    link->stream->close();
  }
  link->stream.reset();

  for (auto& [stream, shot] : std::exchange(link->calls, {})) shot->set(std::unexpected(why));
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
}

/// Of two connections to the same node, whether the one that has just been established replaces the other.
bool Bus::Impl::supersedes(const Link& fresh, const Link& old) const {
  // Begun when the old one had long been up: the peer (or its process) has given the old one up.
  if (fresh.started > old.established_at + kSimultaneous) return true;
  if (dialler(fresh) == dialler(old)) return true;
  return dialler(fresh) < dialler(old);
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
  drop_half_open(link);
  if (event.peer == self_) {
    return close_link(link, Error{.code = Errc::refused, .message = str(link->address, " is this node itself")});
  }
  Peer& peer = peers_[event.peer];
  const bool first = !peer.link;
  if (first) {
    peer.link = link;
  } else if (supersedes(*link, *peer.link)) {
    retire(std::exchange(peer.link, link));
  } else {
    retire(link);
  }
  peer.backoff = {};
  peer.not_before = {};
  if (link->role == Role::initiator && peer.addresses.empty()) peer.addresses = {link->address};
  log_info("bus", first ? "connected to node " : "another connection to node ", event.peer, " at ", link->address);
  send_waiting(peer);
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
    link->session->reply(event.stream, std::unexpected(overloaded("this node serves too many requests at once")));
    return;
  }
  ++serving_;
  ++link->serving;
  loop_.spawn(run_handler(shared_from_this(), link, event.stream, handler->second, std::move(event.request)));
}

Task<void> Bus::Impl::run_handler(std::shared_ptr<Impl> self, LinkPtr link, StreamId stream,
                                  std::shared_ptr<Handler> handler, env::Request request) {
  auto task = (*handler)(link->peer, std::move(request));
  auto result = co_await task;
  --self->serving_;
  --link->serving;
  if (link->over) co_return;
  link->session->reply(stream, std::move(result));
  self->pump(link);
}

void Bus::Impl::on_event(const LinkPtr& link, hyperbus::ReplyArrived event) {
  const auto it = link->calls.find(event.stream);
  HOLO_ASSERT(it != link->calls.end(), "an answer to a request nobody made");
  const ReplyShot shot = it->second;
  link->calls.erase(it);
  shot->set(std::move(event.result));
}

void Bus::Impl::on_event(const LinkPtr& link, hyperbus::Closed event) {
  if (event.kind != RefusalKind::none) count_refusal(event.kind, *link, event.error);
  end_link(link, event.error);
}

void Bus::Impl::count_refusal(RefusalKind kind, const Link& link, const Error& why) {
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
  const char* what = link.role == Role::responder ? "refused " : "no handshake with ";
  log_warn("bus", what, link.address, ": ", why.message, more);
  quiet = {.until = now + kLogEvery, .unsaid = 0};
}

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
  const auto refuse = [&](Error error) { shot->set(std::unexpected(std::move(error))); };
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
    shot->set(std::unexpected(std::move(stream).error()));
    return;
  }
  ++link->streams;
  link->calls.emplace(*stream, shot);
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
    w.shot->set(std::unexpected(why));
  }
}

void Bus::Impl::time_out(NodeId id, std::uint64_t waiting) {
  auto& queue = peers_[id].waiting;
  const auto it = std::find_if(queue.begin(), queue.end(), [&](const Waiting& w) { return w.id == waiting; });
  if (it == queue.end()) return;
  const ReplyShot shot = it->shot;
  queue.erase(it);
  const Errc code = loop_.stopping() ? Errc::cancelled : Errc::deadline_exceeded;
  shot->set(fail(code, str("no connection to node ", id, " in time")));
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

// --- Dialling
// ----------------------------------------------------------------------------------------------------------

void Bus::Impl::set_addresses(NodeId id, std::vector<std::string> addresses) {
  Peer& peer = peers_[id];
  if (peer.addresses == addresses) return;
  peer.addresses = std::move(addresses);
  peer.backoff = {};
  peer.not_before = {};
}

/// Dials one address and waits for the end of the handshake.
Task<Result<env::PeerIdentity>> Bus::Impl::open(std::string address, NodeId expected, Instant dial_by,
                                                Instant shake_by) {
  const auto self = shared_from_this();
  auto dialling = carrier_.dial(address, dial_by);
  auto stream = co_await dialling;
  if (!stream) co_return std::unexpected(std::move(stream).error());
  if (closed_) co_return std::unexpected(cancelled());
  const LinkPtr link = add_link(Role::initiator, std::move(*stream), expected, address);
  auto shot = std::make_shared<OneShot<Result<env::PeerIdentity>>>();
  link->waiter = shot;
  pump(link);
  const std::string what = str("the handshake with ", address);
  auto result = co_await env::await_until<env::PeerIdentity>(loop_, shot, shake_by, what);
  if (!result) self->close_link(link, result.error());
  co_return result;
}

Task<Result<env::PeerIdentity>> Bus::Impl::connect(std::string address, Instant deadline) {
  const auto self = shared_from_this();
  if (closed_) co_return std::unexpected(cancelled());
  const NodeId any;
  auto opening = open(std::move(address), any, deadline, deadline);
  co_return co_await opening;
}

/// One round over the addresses of a peer; ends early when the peer connects to us meanwhile.
Task<void> Bus::Impl::dial_peer(std::shared_ptr<Impl> self, NodeId id) {
  const std::vector<std::string> addresses = self->peers_[id].addresses;
  Error last = unavailable(str("node ", id, " cannot be reached"));
  for (const std::string& address : addresses) {
    if (self->closed_ || self->peers_[id].link) break;
    const Instant dial_by = self->loop_.now() + self->options_.connect_deadline;
    const Instant shake_by = dial_by + limits::kHandshakeDeadline;
    auto opening = self->open(address, id, dial_by, shake_by);
    auto opened = co_await opening;
    if (opened) break;
    if (telling(opened.error().code) >= telling(last.code)) last = std::move(opened).error();
  }
  Peer& peer = self->peers_[id];
  peer.dialling = false;
  if (peer.link) co_return;
  if (telling(last.code) == 1) last = unavailable(str("node ", id, " cannot be reached: ", last.message));
  const BusOptions& o = self->options_;
  peer.backoff = std::clamp(peer.backoff * 2, o.first_backoff, o.longest_backoff);
  peer.not_before = self->loop_.now() + peer.backoff;
  peer.last_error = last;
  self->fail_waiting(peer, self->closed_ ? cancelled() : last);
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
  std::vector<LinkPtr> ending;
  for (const auto& [id, link] : links_) ending.push_back(link);
  for (const auto& link : ending) close_link(link, cancelled());
  for (auto& [id, peer] : peers_) fail_waiting(peer, cancelled());
  for (auto& [id, shot] : std::exchange(own_calls_, {})) shot->set(std::unexpected(cancelled()));
}

bool Bus::Impl::connected(NodeId peer) const {
  const auto it = peers_.find(peer);
  return peer == self_ || (it != peers_.end() && it->second.link);
}

std::vector<LinkStatus> Bus::Impl::links() const {
  std::vector<LinkStatus> out;
  for (const auto& [id, link] : links_) {
    if (!link->peer) continue;
    LinkStatus s{.peer = link->peer,
                 .address = link->address,
                 .dialled = link->role == Role::initiator,
                 .figures = link->session->figures(),
                 .classes = {}};
    for (std::size_t c = 0; c < s.classes.size(); ++c) {
      s.classes[c] = link->session->class_status(static_cast<env::StreamClass>(c));
    }
    out.push_back(std::move(s));
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
Result<std::string> Bus::listen(std::string address) { return impl_->listen(std::move(address)); }
Task<Result<env::Reply>> Bus::call(NodeId peer, env::Request request, env::CallOptions options) {
  return impl_->call(peer, std::move(request), options);
}
void Bus::serve(std::uint16_t type, Handler handler) { impl_->serve(type, std::move(handler)); }
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
std::size_t Bus::half_open() const { return impl_->half_open(); }
void Bus::set_session_config(std::shared_ptr<const hyperbus::SessionConfig> session) {
  impl_->set_session_config(std::move(session));
}
void Bus::close() { impl_->close(); }

}  // namespace holo::node
