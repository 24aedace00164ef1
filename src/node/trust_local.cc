// What the command line asks about trust, and what other nodes ask on its behalf.
#include <algorithm>
#include <charconv>

#include "base/log.h"
#include "base/strings.h"
#include "crypto/base64.h"
#include "node/json.h"
#include "node/local_calls.h"
#include "node/trust_impl.h"
#include "wire/message_types.h"

namespace holo::node {
namespace {

using hyperbus::public_key_text;
using hyperbus::utc_text;
using Impl = TrustService::Impl;

constexpr Duration kRevokeLimit = seconds(15);
constexpr Duration kKeyLimit = seconds(5);

Result<std::string> done(Status status) {
  if (!status) return std::unexpected(std::move(status).error());
  return std::string("{}");
}

/// The copy of a key that a message brought.
void forget_key(wire::KeyChange& change) {
  std::string& key = *change.mutable_key();
  wipe(std::as_writable_bytes(std::span(key)));
  key.clear();
}

using Answer = std::function<Task<Result<std::string>>(Impl::Self, wire::TrustRequest)>;

Task<Result<LocalReply>> answer(Impl::Self me, Answer how, LocalRequest request) {
  wire::TrustRequest ask;
  const bool decoded = ask.ParseFromString(request.header);
  wipe(std::as_writable_bytes(std::span(request.header)));
  if (!decoded) co_return fail(Errc::malformed, "a request that does not decode");
  if (!me || me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
  auto task = how(me, std::move(ask));
  HOLO_CO_ASSIGN(json, co_await task);
  co_return json_reply(std::move(json));
}

Task<Result<std::string>> at_once(Result<std::string> json) { co_return json; }

}  // namespace

void TrustService::Impl::serve_local(LocalApi& api) {
  const auto serve = [&](wire::LocalMessage type, Answer how) {
    api.serve(type,
              [weak = weak_from_this(), how = std::move(how)](std::shared_ptr<LocalSession>, LocalRequest request)
                  -> Task<Result<LocalReply>> { return answer(weak.lock(), how, std::move(request)); });
  };
  serve(wire::TRUST_LIST, [](Self me, wire::TrustRequest) { return at_once(me->list_json()); });
  serve(wire::IDENTITY_SHOW, [](Self me, wire::TrustRequest) { return at_once(me->identity_json()); });
  serve(wire::KEY_LIST, [](Self me, wire::TrustRequest) { return at_once(me->keys_json()); });
  serve(wire::TRUST_FORGET, [](Self me, wire::TrustRequest r) {
    const auto node = me->resolve(r.node());
    if (!node) return at_once(std::unexpected(node.error()));
    if (!me->gate->book.forget(*node)) {
      return at_once(fail(Errc::not_found, str("node ", r.node(), " is not pinned here"), "holo trust list"));
    }
    log_warn("trust", "the pin of node ", *node, " is forgotten: the next key it shows is believed");
    if (me->gate->book.take_changed()) me->save_pins_soon();
    return at_once(std::string("{}"));
  });
  serve(wire::IDENTITY_ROTATE, [](Self me, wire::TrustRequest) {
    auto rotated = me->rotate();
    return at_once(rotated ? Result<std::string>(me->identity_json()) : std::unexpected(rotated.error()));
  });
  serve(wire::IDENTITY_INSTALL,
        [](Self me, wire::TrustRequest r) { return at_once(done(me->install(r.certificate()))); });
  serve(wire::IDENTITY_REVOKE, [](Self me, wire::TrustRequest r) {
    const auto node = me->resolve(r.node());
    if (!node) return at_once(std::unexpected(node.error()));
    return revoke(me, *node);
  });
  serve(wire::KEY_CHANGE, [](Self me, wire::TrustRequest r) { return change_keys(me, std::move(r)); });
}

// ---- Looking

std::string TrustService::Impl::name_of(NodeId node) const {
  const auto* record = control->state().node(node);
  return record ? record->name : std::string();
}

Result<NodeId> TrustService::Impl::resolve(const std::string& text) const {
  for (const auto& [id, record] : control->state().nodes()) {
    if (record.name == text && record.state != control::NodeState::left) return id;
  }
  NodeId id;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id.value, 16);
  if (text.size() == 16 && error == std::errc{} && end == text.data() + text.size() && id) return id;
  for (const auto& [left, record] : control->state().nodes()) {
    if (record.name == text) return left;
  }
  return fail(Errc::not_found, str("there is no node ", text), "its name, or its id in 16 hexadecimal digits");
}

std::string TrustService::Impl::list_json() const {
  JsonWriter w;
  const hyperbus::TrustBook& book = gate->book;
  w.object([&] {
    w.field("trust", hyperbus::trust_mode_name(book.mode()));
    w.field("root", book.root() ? public_key_text(*book.root()) : std::string());
    w.key("pins");
    w.array([&] {
      for (const auto& [node, pin] : book.pins()) {
        w.object([&] {
          w.field("node", to_hex(node.value));
          w.field("name", name_of(node));
          w.field("key", public_key_text(pin.key));
          w.field("since", utc_text(pin.since));
          w.field("address", pin.address);
          w.field("kept", pin.confirmed);
        });
      }
    });
    w.key("revoked");
    w.array([&] {
      for (const NodeId node : book.revoked()) {
        const auto since = control->state().revoked().find(node);
        w.object([&] {
          w.field("node", to_hex(node.value));
          w.field("name", name_of(node));
          w.field("since", since == control->state().revoked().end() ? std::string() : utc_text(since->second));
        });
      }
    });
  });
  return w.text();
}

std::string TrustService::Impl::identity_json() const {
  const hyperbus::HandshakeConfig& handshake = *session->handshake;
  const hyperbus::Identity& identity = handshake.identity;
  const auto& chain = identity.chain();
  JsonWriter w;
  w.object([&] {
    w.field("node", to_hex(identity.node().value));
    w.field("name", name_of(identity.node()));
    w.field("key", public_key_text(identity.public_key()));
    w.field("noise_static", crypto::base64_encode(identity.noise_static().public_key));
    w.field("trust", hyperbus::trust_mode_name(gate->book.mode()));
    w.field("handshake", hyperbus::suite_name(handshake.suite));
    w.field("rotations", chain.links.size());
    w.key("chain");
    w.array([&] {
      for (std::size_t i = 0; i <= chain.links.size(); ++i) w.value(public_key_text(chain.at(i)));
    });
    w.key("certificate");
    w.object([&] {
      if (!handshake.certificate) return;
      const hyperbus::Certificate& c = *handshake.certificate;
      const bool valid = gate->book.root() && hyperbus::verify_certificate(c, *gate->book.root(), identity.node(),
                                                                           chain.first, ports.loop->wall_now());
      w.field("issued", utc_text(c.issued));
      w.field("expires", c.expires.ms == 0 ? std::string("never") : utc_text(c.expires));
      w.field("valid", valid);
      w.field("text", certificate);
    });
    w.field("request", hyperbus::request_text(chain, identity.sign(hyperbus::request_statement(chain))));
  });
  return w.text();
}

std::string TrustService::Impl::keys_json() const {
  JsonWriter w;
  w.object([&] {
    w.field("trust", hyperbus::trust_mode_name(gate->book.mode()));
    w.key("keys");
    w.array([&] {
      bool first = true;
      for (const hyperbus::ClusterKey& key : session->handshake->keys) {
        w.object([&] {
          w.field("id", to_hex(key.id()));
          w.field("in_use", std::exchange(first, false));
        });
      }
    });
  });
  return w.text();
}

// ---- Doing

Task<Result<std::string>> TrustService::Impl::revoke(Self me, NodeId node) {
  if (node == me->control->self()) {
    co_return fail(Errc::refused, "a node cannot revoke itself", "ask another node's agent, or holo leave");
  }
  wire::CommandBody body;
  body.mutable_node_revoke()->set_node(node.value);
  const Instant deadline = me->ports.loop->now() + kRevokeLimit;
  HOLO_CO_TRY(co_await me->control->propose(std::move(body), deadline));
  co_return std::string("{}");
}

/// At this node, and with `everywhere` at each other live one. Says for each what became of it.
Task<Result<std::string>> TrustService::Impl::change_keys(Self me, wire::TrustRequest request) {
  wire::KeyChange& change = *request.mutable_change();
  const bool everywhere = request.everywhere();
  if (change.kind() == wire::KeyChange::ADD && change.key().size() == hyperbus::ClusterKey::kBytes) {
    const auto bytes = as_bytes(change.key());
    const crypto::Secret<32> secret{std::span<const std::byte, 32>(bytes)};
    change.set_key_id(hyperbus::ClusterKey(secret).id());
  }
  std::vector<std::pair<NodeId, Status>> outcomes;
  Status here = me->change_key(change);
  if (!here && !everywhere) {
    forget_key(change);
    co_return std::unexpected(here.error());
  }
  outcomes.emplace_back(me->control->self(), std::move(here));
  std::vector<NodeId> others;
  for (const NodeId node : me->control->state().live_nodes()) {
    if (everywhere && node != me->control->self()) others.push_back(node);
  }
  for (const NodeId node : others) {
    env::Request ask;
    ask.type = static_cast<std::uint16_t>(wire::PeerMessage::key_change);
    ask.header = change.SerializeAsString();
    env::CallOptions options;
    options.deadline = me->ports.loop->now() + kKeyLimit;
    auto reply = co_await me->bus->call(node, std::move(ask), options);
    if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
    outcomes.emplace_back(node, reply ? Status{} : Status(std::unexpected(reply.error())));
  }
  forget_key(change);
  JsonWriter w;
  w.object([&] {
    w.field("key", to_hex(change.key_id()));
    w.key("nodes");
    w.array([&] {
      for (auto& [node, outcome] : outcomes) {
        // Removing what is not there is as good as done where all are asked.
        const bool gone =
            !outcome && change.kind() == wire::KeyChange::REMOVE && outcome.error().code == Errc::not_found;
        w.object([&] {
          w.field("node", to_hex(node.value));
          w.field("name", me->name_of(node));
          w.field("done", outcome.has_value() || gone);
          w.field("error", outcome || gone ? std::string() : outcome.error().message);
        });
      }
    });
  });
  co_return w.text();
}

void TrustService::Impl::serve_peers() {
  bus->serve(static_cast<std::uint16_t>(wire::PeerMessage::key_change),
             [weak = weak_from_this()](NodeId from, env::Request request) -> Task<Result<env::Reply>> {
               return on_key_change(weak.lock(), from, std::move(request));
             });
}

Task<Result<env::Reply>> TrustService::Impl::on_key_change(Self me, NodeId from, env::Request request) {
  wire::KeyChange change;
  const bool decoded = change.ParseFromString(request.header);
  wipe(std::as_writable_bytes(std::span(request.header)));
  if (!decoded) co_return fail(Errc::malformed, "a request that does not decode");
  if (!me || me->stopped) co_return fail(Errc::unavailable, "the agent is stopping");
  const auto* sender = me->control->state().node(from);
  if (sender == nullptr || !sender->alive()) {
    co_return fail(Errc::permission_denied, str("node ", from, " is not a live member of this cluster"));
  }
  log_info("trust", "node ", sender->name, " asks for a change of the cluster's keys");
  const Status changed = me->change_key(change);
  forget_key(change);
  if (!changed) co_return std::unexpected(changed.error());
  co_return env::Reply{};
}

}  // namespace holo::node
