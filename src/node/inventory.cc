#include "node/inventory.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/strings.h"
#include "node/local_calls.h"

namespace holo::node {
namespace {

constexpr std::string_view kStatement = "holo: inventory of a node";
constexpr Duration kRetry = seconds(2);  // While this node is not a member, or has nobody to tell.
constexpr Duration kTell = seconds(10);

Bytes statement(std::string_view inventory) {
  Bytes out(kStatement.size() + inventory.size());
  std::ranges::copy(as_bytes(inventory), std::ranges::copy(as_bytes(kStatement), out.begin()).out);
  return out;
}

/// Without what changes from one look to the next though the machine is the same.
std::string facts_of(wire::Inventory inventory) {
  inventory.clear_taken_ms();
  return inventory.SerializeAsString();
}

}  // namespace

std::string sign_inventory(const hyperbus::Identity& identity, const wire::Inventory& inventory) {
  wire::SignedInventory out;
  out.set_inventory(inventory.SerializeAsString());
  Bytes chain;
  hyperbus::encode_chain(identity.chain(), chain);
  out.set_chain(chain.data(), chain.size());
  const crypto::Ed25519Signature signature = identity.sign(statement(out.inventory()));
  out.set_signature(signature.data(), signature.size());
  return out.SerializeAsString();
}

Result<wire::Inventory> open_inventory(NodeId node, ByteSpan signed_inventory) {
  const auto malformed = [] { return fail(Errc::malformed, "an inventory that does not decode"); };
  wire::SignedInventory in;
  wire::Inventory out;
  if (signed_inventory.size() > limits::kMaxInventoryBytes ||
      !in.ParseFromArray(signed_inventory.data(), static_cast<int>(signed_inventory.size())) ||
      !out.ParseFromString(in.inventory())) {
    return malformed();
  }
  HOLO_ASSIGN(chain, hyperbus::decode_chain(as_bytes(in.chain())));
  HOLO_TRY(hyperbus::verify_chain(node, chain));
  if (NodeId{out.node()} != node) {
    return fail(Errc::permission_denied, str("an inventory of node ", NodeId{out.node()}, " in the name of ", node));
  }
  if (!crypto::ed25519_verify(chain.current(), statement(in.inventory()), as_bytes(in.signature()))) {
    return fail(Errc::permission_denied, str("an inventory that node ", node, " has not signed"));
  }
  return out;
}

Result<std::int64_t> check_inventory(NodeId node, ByteSpan signed_inventory) {
  HOLO_ASSIGN(inventory, open_inventory(node, signed_inventory));
  return inventory.taken_ms();
}

void write_inventory(JsonWriter& w, const wire::Inventory& i) {
  w.field("taken_ms", i.taken_ms());
  w.field("system", i.system());
  w.field("cpu_model", i.cpu_model());
  w.field("packages", i.packages());
  w.field("cores", i.cores());
  w.field("threads", i.threads());
  w.field("usable_threads", i.usable_threads());
  w.field("memory_bytes", i.memory_bytes());
  w.key("score");
  w.object([&] {
    w.field("speed", i.score().speed());
    w.field("spread", i.score().spread());
    w.field("rounds", i.score().rounds());
    w.field("measured_on", i.score().measured_on());
    w.field("measured_ms", i.score().measured_ms());
  });
  const auto list = [&](const char* name, const auto& all, auto write) {
    w.key(name);
    w.array([&] {
      for (const auto& one : all) {
        w.object([&] { write(one); });
      }
    });
  };
  list("numa", i.numa(), [&](const wire::InventoryNuma& n) {
    w.field("index", n.index());
    w.field("memory_bytes", n.memory_bytes());
    w.field("threads", n.threads());
  });
  list("caches", i.caches(), [&](const wire::InventoryCache& c) {
    w.field("level", c.level());
    w.field("kind", c.kind());
    w.field("bytes", c.bytes());
    w.field("count", c.count());
    w.field("line_bytes", c.line_bytes());
  });
  list("gpus", i.gpus(), [&](const wire::InventoryGpu& g) {
    w.field("name", g.name());
    w.field("vendor", g.vendor());
    w.field("bus", g.bus());
    w.field("memory_bytes", g.memory_bytes());
  });
  list("disks", i.disks(), [&](const wire::InventoryDisk& d) {
    w.field("name", d.name());
    w.field("model", d.model());
    w.field("bytes", d.bytes());
    w.field("rotational", d.rotational());
  });
  list("links", i.links(), [&](const wire::InventoryLink& l) {
    w.field("name", l.name());
    w.field("bits_per_second", l.bits_per_second());
    w.field("mtu", l.mtu());
    w.field("up", l.up());
  });
}

struct InventoryService::Impl {
  using Self = std::shared_ptr<Impl>;
  using Session = std::shared_ptr<LocalSession>;
  explicit Impl(Ports p) : ports(std::move(p)) {}

  Ports ports;
  bool stopped = false;

  static Task<void> keep_true(Self me) {
    for (;;) {
      auto looked = co_await env::offload<Result<wire::Inventory>>(*me->ports.loop, me->ports.look);
      if (me->stopped) co_return;
      Duration pause = kLookAgain;
      if (!looked) {
        log_warn("inventory", "this machine cannot be looked at: ", looked.error().to_string());
      } else {
        auto telling = tell(me, std::move(*looked));
        const bool told = co_await telling;
        if (me->stopped) co_return;
        if (!told) pause = kRetry;
      }
      const bool going_on = co_await env::sleep_for(*me->ports.loop, pause);
      if (!going_on || me->stopped) co_return;
    }
  }

  /// False: it should be tried again soon.
  static Task<bool> tell(Self me, wire::Inventory now) {
    const NodeId self = me->ports.control->self();
    const auto* record = me->ports.control->state().node(self);
    if (record == nullptr || !me->ports.control->ready()) co_return false;
    now.set_node(self.value);
    std::int64_t before = 0;
    if (!record->inventory.empty()) {
      const auto known = open_inventory(self, as_bytes(record->inventory));
      if (known && facts_of(*known) == facts_of(now)) co_return true;
      if (known) before = known->taken_ms();
    }
    now.set_taken_ms(std::max(me->ports.loop->wall_now().ms, before + 1));
    wire::CommandBody body;
    body.mutable_node_inventory()->set_node(self.value);
    body.mutable_node_inventory()->set_inventory(sign_inventory(me->ports.identity(), now));
    const Instant deadline = me->ports.loop->now() + kTell;
    auto proposal = me->ports.control->propose(std::move(body), deadline);
    const auto done = co_await proposal;
    if (!done && !me->stopped) log_debug("inventory", "not told: ", done.error().to_string());
    co_return done.has_value();
  }

  static LocalAnswer answer(Self me, Session, wire::InventoryRequest ask) {
    const control::State& state = me->ports.control->state();
    std::vector<const control::NodeRecord*> chosen;
    for (const auto& [id, n] : state.nodes()) {
      const bool named = n.name == ask.node() || to_hex(id.value) == ask.node();
      if (ask.node().empty() ? n.state != control::NodeState::left : named) chosen.push_back(&n);
    }
    if (chosen.empty() && !ask.node().empty()) {
      co_return fail(Errc::not_found, str("there is no node ", ask.node()), "holo status lists them");
    }
    std::ranges::sort(chosen, {}, [](const auto* n) { return std::pair(n->name, n->id); });
    JsonWriter w;
    w.object([&] {
      w.key("nodes");
      w.array([&] {
        for (const auto* n : chosen) {
          w.object([&] { write_node(w, *n); });
        }
      });
    });
    wire::AdminJson out;
    out.set_json(w.text());
    co_return local_reply(out);
  }

  static void write_node(JsonWriter& w, const control::NodeRecord& n) {
    w.field("id", to_hex(n.id.value));
    w.field("name", n.name);
    w.field("zone", n.place.zone);
    w.field("host", n.place.host);
    w.field("rack", n.place.rack);
    w.key("labels");
    w.object([&] {
      for (const control::NodeLabel& l : n.place.labels) w.field(l.key, l.value);
    });
    const auto inventory = n.inventory.empty() ? Result<wire::Inventory>(fail(Errc::not_found, "not told yet"))
                                               : open_inventory(n.id, as_bytes(n.inventory));
    w.field("known", inventory.has_value());
    if (inventory) write_inventory(w, *inventory);
  }
};

InventoryService::InventoryService(Ports ports, LocalApi& api) : impl_(std::make_shared<Impl>(std::move(ports))) {
  serve_local(api, wire::INVENTORY, impl_, &Impl::answer);
}
InventoryService::~InventoryService() { impl_->stopped = true; }

void InventoryService::start() {
  if (impl_->ports.look) impl_->ports.loop->spawn(Impl::keep_true(impl_));
}

}  // namespace holo::node
