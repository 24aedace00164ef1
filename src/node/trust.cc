#include "node/trust.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/strings.h"
#include "node/trust_impl.h"

namespace holo::node {
namespace {

using hyperbus::ClusterKey;
using hyperbus::HandshakeConfig;
using hyperbus::Pin;
using hyperbus::TrustMode;

constexpr const char* kRevokedKey = "revoked";

std::vector<ClusterKey> cluster_keys(const std::vector<crypto::Secret<32>>& secrets) {
  std::vector<ClusterKey> out;
  for (const auto& secret : secrets) out.emplace_back(secret);
  return out;
}

}  // namespace

hyperbus::TrustDecision TrustGate::decide(const hyperbus::PresentedIdentity& who) {
  const auto before = book.pins().find(who.node);
  const bool pinned = before != book.pins().end();
  const auto key = pinned ? before->second.key : crypto::Ed25519PublicKey{};
  auto decision = book.judge(who, loop.wall_now());
  if (!decision) return decision;
  if (pinned && key != who.chain.current()) {
    log_info("trust", "node ", who.node, " has changed its key, signed by the one before: now ",
             hyperbus::public_key_text(who.chain.current()));
  }
  if (book.take_changed() && changed) changed();
  return decision;
}

TrustService::Impl::Impl(Ports p, TrustConfig config, std::shared_ptr<const hyperbus::SessionConfig> base,
                         ClusterId cluster)
    : ports(p),
      store(std::move(config.store)),
      gate(std::make_shared<TrustGate>(*p.loop, std::move(config.book))),
      keys(std::move(config.keys)),
      certificate(std::move(config.certificate)),
      session(std::move(base)) {
  load_revoked(cluster);
  HandshakeConfig handshake = *session->handshake;
  if (!keys.empty()) handshake.keys = cluster_keys(keys);
  if (const auto carried = hyperbus::parse_certificate(certificate)) handshake.certificate = carried->certificate;
  handshake.trust = gate;
  use(std::move(handshake));
}

TrustService::TrustService(Ports ports, TrustConfig config, std::shared_ptr<const hyperbus::SessionConfig> base,
                           ClusterId cluster)
    : impl_(std::make_shared<Impl>(ports, std::move(config), std::move(base), cluster)) {
  // What was pinned after the last write comes again with the next connection.
  impl_->gate->changed = [weak = std::weak_ptr(impl_)] {
    if (const auto me = weak.lock()) me->save_pins_soon();
  };
}

TrustService::~TrustService() {
  impl_->stopped = true;
  impl_->gate->changed = nullptr;
}

std::shared_ptr<const hyperbus::SessionConfig> TrustService::session() const { return impl_->session; }

void TrustService::start(Bus& bus, ControlService& control, LocalApi& api) {
  impl_->bus = &bus;
  impl_->control = &control;
  control.add_observer(impl_.get());
  bus.on_peer_connected([weak = std::weak_ptr(impl_)](NodeId node) {
    if (const auto me = weak.lock(); me && !me->stopped) me->on_connected(node);
  });
  impl_->serve_local(api);
  impl_->serve_peers();
}

// ---- Following the cluster

/// The cluster, then the nodes, eight bytes each.
void TrustService::Impl::load_revoked(ClusterId cluster) {
  const auto stored = ports.facts->get(kRevokedKey);
  if (!stored || !*stored || (*stored)->size() % 8 != 0 || (*stored)->empty()) return;
  std::vector<std::uint64_t> words((*stored)->size() / 8);
  std::memcpy(words.data(), (*stored)->data(), (*stored)->size());
  if (ClusterId{words.front()} != cluster) return;
  revoked_in = cluster;
  std::set<NodeId> revoked;
  for (std::size_t i = 1; i < words.size(); ++i) revoked.insert(NodeId{words[i]});
  gate->book.set_revoked(std::move(revoked));
}

Status TrustService::Impl::save_revoked() {
  std::vector<std::uint64_t> words{revoked_in.value};
  for (const NodeId node : gate->book.revoked()) words.push_back(node.value);
  return ports.facts->put(kRevokedKey, std::as_bytes(std::span(words)));
}

bool TrustService::Impl::is_member(NodeId node) const {
  const auto* record = control->state().node(node);
  return record != nullptr && record->state != control::NodeState::left;
}

/// Later, once for all: not in the middle of an apply.
void TrustService::Impl::look_soon() {
  if (std::exchange(look_posted, true)) return;
  ports.loop->post([weak = weak_from_this()] {
    const Self me = weak.lock();
    if (!me) return;
    me->look_posted = false;
    if (!me->stopped) me->look();
  });
}

/// Takes revocations and members from the cluster's state.
void TrustService::Impl::look() {
  const control::State& state = control->state();
  if (!state.cluster()) return;
  // Nothing is ever taken off the list, and a log that is heard again may begin before it.
  std::set<NodeId> revoked;
  if (revoked_in == state.cluster()) revoked = gate->book.revoked();
  std::vector<NodeId> fresh;
  for (const auto& [node, since] : state.revoked()) {
    if (revoked.insert(node).second) fresh.push_back(node);
  }
  const bool moved = std::exchange(revoked_in, state.cluster()) != state.cluster();
  if (moved || !fresh.empty()) {
    gate->book.set_revoked(std::move(revoked));
    if (const Status kept = save_revoked(); !kept) log_error("trust", kept.error().to_string());
  }
  for (const NodeId node : fresh) {
    if (node == control->self()) {
      log_error("trust", "this node was revoked: the cluster goes on without it");
      continue;
    }
    log_warn("trust", "node ", node, " was revoked: its connections are closed");
    bus->disconnect(node);
  }
  for (const auto& [node, record] : state.nodes()) {
    if (record.state == control::NodeState::left) continue;
    confirm(node, record.addresses.empty() ? std::string() : record.addresses.front());
  }
  if (gate->book.take_changed()) save_pins_soon();
}

void TrustService::Impl::on_connected(NodeId node) {
  for (const LinkStatus& link : bus->links()) {
    if (link.peer == node && (link.dialled || is_member(node))) confirm(node, link.address);
  }
  if (gate->book.take_changed()) save_pins_soon();
}

/// From here on the pin is kept.
void TrustService::Impl::confirm(NodeId node, const std::string& address) {
  if (!gate->book.confirm(node, address) || gate->book.mode() != TrustMode::tofu) return;
  log_warn("trust", "pinned node ", node, " at ", address,
           " by the first key seen: ", hyperbus::public_key_text(gate->book.pins().at(node).key),
           "; holo identity show there must say the same");
}

void TrustService::Impl::save_pins_soon() {
  if (!store || std::exchange(save_posted, true)) return;
  ports.loop->post([weak = weak_from_this()] {
    const Self me = weak.lock();
    if (!me) return;
    me->save_posted = false;
    if (const Status kept = me->store->save_pins(me->gate->book.pins_text()); !kept) {
      log_error("trust", "pins are not kept: ", kept.error().to_string());
    }
  });
}

// ---- Changing

void TrustService::Impl::use(HandshakeConfig handshake) {
  auto next = std::make_shared<hyperbus::SessionConfig>(*session);
  next->handshake = std::make_shared<const HandshakeConfig>(std::move(handshake));
  session = std::move(next);
  if (bus) bus->set_session_config(session);
}

Status TrustService::Impl::can_change() const {
  if (store) return {};
  return fail(Errc::unsupported, "this node keeps no identity of its own");
}

Status TrustService::Impl::rotate() {
  HOLO_TRY(can_change());
  const auto seed = crypto::random_secret<crypto::kEd25519SeedBytes>(*ports.entropy);
  HandshakeConfig handshake = *session->handshake;
  HOLO_ASSIGN(next, handshake.identity.rotated(seed));
  HOLO_TRY(store->save_identity(seed, next.chain()));
  handshake.identity = std::move(next);
  log_info("trust", "this node has a new key: ", hyperbus::public_key_text(handshake.identity.public_key()));
  use(std::move(handshake));
  return {};
}

Status TrustService::Impl::install(const std::string& text) {
  HOLO_TRY(can_change());
  HOLO_ASSIGN(carried, hyperbus::parse_certificate(text));
  if (gate->book.mode() != TrustMode::roots) {
    return fail(Errc::refused, str("this cluster's trust mode is ", hyperbus::trust_mode_name(gate->book.mode())),
                "certificates belong to trust mode roots");
  }
  if (gate->book.root() != carried.root) {
    return fail(Errc::permission_denied, "the certificate is of another cluster's root key");
  }
  HandshakeConfig handshake = *session->handshake;
  const auto& chain = handshake.identity.chain();
  if (carried.first != chain.first) {
    return fail(Errc::permission_denied,
                str("the certificate is for node ", carried.node, ", this is node ", handshake.identity.node()));
  }
  HOLO_TRY(hyperbus::verify_certificate(carried.certificate, carried.root, carried.node, chain.first,
                                        ports.loop->wall_now()));
  HOLO_TRY(store->save_certificate(hyperbus::certificate_text(carried)));
  certificate = hyperbus::certificate_text(carried);
  handshake.certificate = carried.certificate;
  use(std::move(handshake));
  return {};
}

std::optional<std::size_t> TrustService::Impl::key_at(std::uint64_t id) const {
  const auto& known = session->handshake->keys;
  const auto at = std::ranges::find(known, id, &ClusterKey::id);
  if (keys.empty() || at == known.end()) return std::nullopt;
  return static_cast<std::size_t>(at - known.begin());
}

Status TrustService::Impl::change_key(const wire::KeyChange& change) {
  HOLO_TRY(can_change());
  if (gate->book.mode() != TrustMode::psk) {
    return fail(Errc::refused, str("this cluster's trust mode is ", hyperbus::trust_mode_name(gate->book.mode())),
                "cluster keys belong to trust mode psk");
  }
  if (change.kind() == wire::KeyChange::ADD) return add_key(change);
  const auto at = key_at(change.key_id());
  if (!at) {
    return fail(Errc::not_found, str("this node holds no key ", to_hex(change.key_id())), "holo key list shows them");
  }
  std::vector<crypto::Secret<32>> next = keys;
  if (change.kind() == wire::KeyChange::USE) {
    if (*at == 0) return {};
    std::rotate(next.begin(), next.begin() + static_cast<std::ptrdiff_t>(*at),
                next.begin() + static_cast<std::ptrdiff_t>(*at) + 1);
  } else if (change.kind() == wire::KeyChange::REMOVE) {
    if (*at == 0) {
      return fail(Errc::refused, str("key ", to_hex(change.key_id()), " is the one in use"),
                  "holo key use another one first, on every node");
    }
    next.erase(next.begin() + static_cast<std::ptrdiff_t>(*at));
  } else {
    return fail(Errc::invalid_argument, "a change of keys that this version does not know");
  }
  return keep_keys(std::move(next));
}

Status TrustService::Impl::add_key(const wire::KeyChange& change) {
  const ByteSpan bytes = as_bytes(change.key());
  if (bytes.size() != ClusterKey::kBytes) return fail(Errc::malformed, "a cluster key of the wrong size");
  const crypto::Secret<32> secret{std::span<const std::byte, ClusterKey::kBytes>(bytes)};
  if (key_at(ClusterKey(secret).id())) return {};
  if (keys.size() >= kMaxClusterKeys) {
    return fail(Errc::over_limit, str("this node holds ", keys.size(), " cluster keys already"), "holo key remove one");
  }
  std::vector<crypto::Secret<32>> next = keys;
  next.push_back(secret);
  return keep_keys(std::move(next));
}

Status TrustService::Impl::keep_keys(std::vector<crypto::Secret<32>> next) {
  HOLO_TRY(store->save_keys(next));
  keys = std::move(next);
  HandshakeConfig handshake = *session->handshake;
  handshake.keys = cluster_keys(keys);
  use(std::move(handshake));
  std::string ids;
  for (const ClusterKey& key : session->handshake->keys) ids += str(ids.empty() ? "" : ", ", to_hex(key.id()));
  log_info("trust", "cluster keys accepted now: ", ids, "; the first is dialled with");
  return {};
}

}  // namespace holo::node
