#include "sim/workload.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/strings.h"
#include "core/control/leases.h"
#include "wire/control.pb.h"
#include "wire/kv.pb.h"
#include "wire/local.pb.h"

namespace holo::sim {
namespace {

constexpr Duration kAnswerLimit = seconds(12);
const std::string kNil = "nil";

/// An error after which nothing of the request can ever take effect.
bool surely_not_done(Errc code) {
  switch (code) {
    case Errc::refused:
    case Errc::invalid_argument:
    case Errc::not_found:
    case Errc::already_exists:
    case Errc::permission_denied:
    case Errc::over_limit:
    case Errc::malformed: return true;
    default: return false;
  }
}

wire::KvCompare compare_value(const std::string& key, const std::string& value) {
  wire::KvCompare c;
  c.set_key(key);
  if (value == kNil) {
    c.set_target(wire::KvCompare::VERSION);
    return c;
  }
  c.set_target(wire::KvCompare::VALUE);
  c.set_value(value);
  return c;
}

}  // namespace

Workload::Workload(World& world, Cluster& cluster, Referee& referee, WorkloadSettings settings)
    : world_(world),
      cluster_(cluster),
      referee_(referee),
      settings_(settings),
      random_(mix64(settings.seed + 2)),
      loop_(world) {}

Workload::~Workload() {
  loop_.begin_stop();
  world_.run_while_not([this] { return loop_.running() == 0; }, world_.now() + seconds(120));
}

Workload::ClientPtr Workload::make_client() {
  auto c = std::make_shared<Client>();
  c->id = next_client_++;
  c->session = std::make_shared<SimSession>(c->id);
  c->random = Random(mix64(settings_.seed * 1000 + c->id));
  return c;
}

void Workload::start() {
  for (unsigned i = 0; i < settings_.writers; ++i) loop_.spawn(writer(this, make_client()));
  for (unsigned i = 0; i < settings_.lockers; ++i) loop_.spawn(locker(this, make_client()));
  for (unsigned i = 0; i < settings_.watchers; ++i) loop_.spawn(watcher(this, make_client()));
  for (unsigned i = 0; i < settings_.builders; ++i) loop_.spawn(builder(this, make_client()));
  loop_.spawn(filler(this));
  loop_.spawn(echo(this));
}

void Workload::split_began(std::map<NodeId, int> sides) {
  sides_ = std::move(sides);
  split_since_ = tick();
  answered_side_ = 0;
}

NodeId Workload::choose(Random& random) {
  const auto up = cluster_.up();
  return up.empty() ? NodeId{} : up[random.below(up.size())];
}

Task<void> Workload::pause(Workload* w, ClientPtr c, Duration about) {
  const auto ns = c->random.below(static_cast<std::uint64_t>(about.ns) * 2) + 1;
  co_await sleep_for(w->loop_, nanoseconds(static_cast<std::int64_t>(ns)));
}

/// One request to the client's agent; with an error it turns to another one.
Task<Workload::Answer> Workload::ask(Workload* w, ClientPtr c, std::uint16_t type, std::string header) {
  Answer a;
  if (!c->home || c->random.chance(1, 40)) c->home = w->choose(c->random);
  a.begin = w->tick();
  if (!c->home) {
    a.reply = fail(Errc::refused, "no agent is up");
    a.end = w->tick();
    co_await sleep_for(w->loop_, milliseconds(50));
    co_return a;
  }
  const NodeId home = c->home;
  auto shot = w->cluster_.ask(home, type, std::move(header), c->session);
  const Instant deadline = w->loop_.now() + kAnswerLimit;
  std::string what = "the agent";
  a.reply = co_await env::await_until<std::string>(w->loop_, shot, deadline, std::move(what));
  a.end = w->tick();
  a.unknown = !a.reply && !surely_not_done(a.reply.error().code);
  if (!a.reply) {
    if (w->trace) w->say(str("client ", c->id, ": ", a.reply.error().to_string()));
    c->home = {};
    ++w->unknown_;
  } else {
    ++w->acknowledged_;
    const auto side = w->sides_.find(home);
    if (side != w->sides_.end() && a.begin > w->split_since_ && type != wire::KV_WATCH) {
      if (w->answered_side_ != 0 && w->answered_side_ != side->second) {
        w->referee_.broken("both sides of a split network go on");
      }
      w->answered_side_ = side->second;
    }
  }
  co_return a;
}

void Workload::record(Operation op, const Answer& a) {
  op.begin = a.begin;
  op.end = a.unknown ? Operation::kNeverEnded : a.end;
  if (trace) say(format_operation(op));
  history_.push_back(std::move(op));
}

// ---- Keys

Task<void> Workload::write(Workload* w, ClientPtr c, Operation op) {
  wire::KvTxn txn;
  if (op.kind == Operation::Kind::cas) *txn.add_compares() = compare_value(op.key, op.expected);
  if (op.kind == Operation::Kind::del) {
    txn.add_then()->mutable_delete_()->mutable_range()->set_key(op.key);
  } else {
    auto* put = txn.add_then()->mutable_put();
    put->set_key(op.key);
    put->set_value(op.value);
  }
  op.client = c->id;
  const auto type = static_cast<std::uint16_t>(wire::KV_TXN);
  const Answer a = co_await ask(w, c, type, txn.SerializeAsString());
  if (!a.reply && !a.unknown) co_return;
  wire::KvTxnResult result;
  if (a.reply) {
    if (!result.ParseFromString(*a.reply)) co_return w->referee_.broken("an answer that does not decode");
    if (op.kind == Operation::Kind::cas) op.done = result.succeeded();
    if (op.kind == Operation::Kind::del) op.done = result.results(0).deleted() == 1;
    const bool changed = op.kind == Operation::Kind::put || op.done;
    op.revision = result.revision();
    w->referee_.on_answer({.begin = a.begin, .end = a.end, .revision = result.revision(), .write = changed});
  }
  w->record(std::move(op), a);
}

Task<void> Workload::read(Workload* w, ClientPtr c, std::vector<std::string> keys) {
  wire::KvGet get;
  get.mutable_range()->set_key(keys.front());
  if (keys.size() > 1) get.mutable_range()->set_end(keys.back() + '\0');
  const auto type = static_cast<std::uint16_t>(wire::KV_GET);
  const Answer a = co_await ask(w, c, type, get.SerializeAsString());
  if (!a.reply) co_return;
  wire::KvPage page;
  if (!page.ParseFromString(*a.reply)) co_return w->referee_.broken("an answer that does not decode");
  w->referee_.on_answer({.begin = a.begin, .end = a.end, .revision = page.revision(), .write = false});
  for (const std::string& key : keys) {
    Operation op;
    op.client = c->id;
    op.kind = Operation::Kind::get;
    op.key = key;
    op.value = kNil;
    op.revision = page.revision();
    for (const wire::KvPair& pair : page.pairs()) {
      if (pair.key() == key) op.value = pair.value();
    }
    w->record(std::move(op), a);
  }
}

Task<void> Workload::writer(Workload* w, ClientPtr c) {
  std::map<std::string, std::string> known;  // What this client believes is there.
  while (!w->stopping_) {
    Operation op;
    op.key = str("k", c->random.below(w->settings_.keys));
    const std::uint64_t what = c->random.below(10);
    if (what < 4) {
      std::vector<std::string> keys;
      keys.push_back(op.key);
      const std::size_t seen = w->history_.size();
      co_await read(w, c, std::move(keys));
      for (std::size_t i = seen; i < w->history_.size(); ++i) {
        if (w->history_[i].client == c->id) known[op.key] = w->history_[i].value;
      }
    } else {
      op.value = str("v", w->next_value_++);
      if (what < 6) {
        op.kind = Operation::Kind::put;
      } else if (what < 9) {
        op.kind = Operation::Kind::cas;
        op.expected = known.try_emplace(op.key, kNil).first->second;
      } else {
        op.kind = Operation::Kind::del;
        op.value.clear();
      }
      const std::string key = op.key;
      known[key] = op.value.empty() ? kNil : op.value;
      co_await write(w, c, std::move(op));
      // What may have been written is not what the next comparison is about.
      if (w->history_.empty() || w->history_.back().client != c->id || w->history_.back().end == Operation::kNeverEnded)
        known.erase(key);
    }
    co_await pause(w, c, w->settings_.think);
  }
}

// ---- Leases and locks

Task<void> Workload::locker(Workload* w, ClientPtr c) {
  while (!w->stopping_) {
    co_await pause(w, c, w->settings_.think * 3);
    wire::LeaseGrant grant;
    grant.set_ttl_ms(1000 + c->random.below(3000));
    grant.set_owner(str("client", c->id));
    const auto grant_type = static_cast<std::uint16_t>(wire::LEASE_GRANT);
    const Answer granted = co_await ask(w, c, grant_type, grant.SerializeAsString());
    wire::LeaseInfo lease;
    if (!granted.reply || !lease.ParseFromString(*granted.reply)) continue;

    wire::LockAcquire acquire;
    acquire.set_name(str("lock", c->random.below(w->settings_.locks)));
    acquire.set_lease(lease.lease());
    acquire.set_queue(c->random.chance(2, 3));
    acquire.set_wait_ms(static_cast<std::uint32_t>(c->random.below(3000)));
    const std::string name = acquire.name();
    const auto acquire_type = static_cast<std::uint16_t>(wire::LOCK_ACQUIRE);
    const Answer acquired = co_await ask(w, c, acquire_type, acquire.SerializeAsString());
    wire::LockPlace place;
    if (!acquired.reply || !place.ParseFromString(*acquired.reply) || place.token() == 0) continue;
    Operation op;
    op.client = c->id;
    op.kind = Operation::Kind::acquire;
    op.key = name;
    op.token = place.token();
    w->record(std::move(op), acquired);
    const std::uint64_t token = place.token();
    co_await hold(w, c, lease.lease(), name, token);
  }
}

/// Writes under the protection of the lock, keeps the lease or forgets to, and gives the lock back, or does not.
Task<void> Workload::hold(Workload* w, ClientPtr c, std::uint64_t lease, std::string lock, std::uint64_t token) {
  const std::uint64_t rounds = c->random.below(5);
  for (std::uint64_t i = 0; i < rounds && !w->stopping_; ++i) {
    co_await pause(w, c, milliseconds(300));
    if (c->random.chance(1, 2)) {
      wire::LeaseKeep keep;
      keep.set_lease(lease);
      const auto type = static_cast<std::uint16_t>(wire::LEASE_KEEP);
      const Answer kept = co_await ask(w, c, type, keep.SerializeAsString());
      if (!kept.reply && !kept.unknown) co_return;
    }
    wire::KvTxn txn;
    auto* compare = txn.add_compares();
    compare->set_key(control::lock_key(lock));
    compare->set_target(wire::KvCompare::MODIFIED);
    compare->set_number(token);
    auto* put = txn.add_then()->mutable_put();
    put->set_key("fenced/" + lock);
    put->set_value(str(token));
    const auto type = static_cast<std::uint16_t>(wire::KV_TXN);
    const Answer written = co_await ask(w, c, type, txn.SerializeAsString());
    wire::KvTxnResult result;
    if (written.reply && result.ParseFromString(*written.reply) && result.succeeded()) ++w->fenced_;
  }
  if (c->random.chance(1, 4)) co_return;
  wire::LockRelease release;
  release.set_name(lock);
  release.set_lease(lease);
  const auto type = static_cast<std::uint16_t>(wire::LOCK_RELEASE);
  const Answer released = co_await ask(w, c, type, release.SerializeAsString());
  Operation op;
  op.client = c->id;
  op.kind = Operation::Kind::release;
  op.key = lock;
  op.token = token;
  op.done = released.reply.has_value();
  w->record(std::move(op), released);
}

// ---- Watches

Task<void> Workload::watcher(Workload* w, ClientPtr c) {
  wire::KvWatch watch;
  watch.mutable_range()->set_key(std::string(1, '\x01'));
  watch.mutable_range()->set_end(std::string(1, '\0'));
  watch.set_from(1);
  watch.set_wait_ms(1500);
  std::uint64_t cursor = 0;
  while (!w->stopping_) {
    const auto type = static_cast<std::uint16_t>(wire::KV_WATCH);
    const Answer a = co_await ask(w, c, type, watch.SerializeAsString());
    wire::KvEvents events;
    if (!a.reply) {
      if (a.reply.error().code == Errc::snapshot_too_old) co_return;
      co_await pause(w, c, milliseconds(200));
      continue;
    }
    if (!events.ParseFromString(*a.reply)) co_return w->referee_.broken("an answer that does not decode");
    std::vector<KvChange> seen;
    for (const wire::KvEvent& e : events.events()) {
      seen.push_back(
          {.revision = e.pair().modified(), .key = e.pair().key(), .value = e.pair().value(), .deleted = e.deleted()});
    }
    w->watched_ += seen.size();
    w->referee_.on_watched(c->home, cursor, seen);
    watch.set_from(events.from());
    watch.set_skip(events.skip());
    if (c->random.chance(1, 10)) co_await pause(w, c, milliseconds(800));  // A slow one.
  }
}

// ---- Regions

Task<void> Workload::builder(Workload* w, ClientPtr c) {
  std::uint64_t number = 0;
  while (!w->stopping_) {
    co_await pause(w, c, seconds(1));
    wire::RegionCreate create;
    create.set_name(str("r", c->id, "-", number));
    create.set_type("bytes");
    create.set_count((1 + c->random.below(64)) << 16);
    create.set_page_bytes(4096);
    create.set_replication(static_cast<std::uint32_t>(1 + c->random.below(2)));
    const auto type = static_cast<std::uint16_t>(wire::REGION_CREATE);
    (void)co_await ask(w, c, type, create.SerializeAsString());
    if (++number < 4) continue;
    wire::RegionFree free;
    free.set_name(str("r", c->id, "-", number - 4));
    const auto free_type = static_cast<std::uint16_t>(wire::REGION_FREE);
    (void)co_await ask(w, c, free_type, free.SerializeAsString());
  }
}

/// What the memory service would do: says of each copy that was asked for that it is there.
Task<void> Workload::filler(Workload* w) {
  while (!w->stopping_) {
    co_await sleep_for(w->loop_, milliseconds(500));
    for (const NodeId id : w->cluster_.up()) {
      Machine& m = w->cluster_.at(id);
      node::ControlService* control = m.agent->control.get();
      if (!control->ready() || m.agent->loop.paused()) continue;
      wire::CommandBody copied, whole;
      control->state().for_each_move([&](const control::State::ShardView& v) {
        const bool home = !v.in_sync.empty() && *v.in_sync.begin() == id;
        const auto tell = [&](wire::ShardMove* move, NodeId node) {
          move->set_region(v.region.value);
          move->set_shard(v.shard.value);
          move->set_node(node.value);
          move->set_serial(v.serial);
        };
        if (v.filling && home) tell(copied.mutable_shards_copied()->add_moves(), v.filling);
        if (v.unproven == id) tell(whole.mutable_shards_whole()->add_moves(), id);
      });
      struct Fill {
        static Task<void> run(node::ControlService* c, wire::CommandBody b, Instant deadline) {
          (void)co_await c->propose(std::move(b), deadline);
        }
      };
      SimLoop* loop = &m.agent->loop;
      for (wire::CommandBody* body : {&copied, &whole}) {
        if (body->kind_case() == wire::CommandBody::KIND_NOT_SET) continue;
        auto held = std::make_shared<wire::CommandBody>(std::move(*body));
        loop->post([loop, control, held] {
          const Instant deadline = loop->now() + seconds(2);
          loop->spawn(Fill::run(control, std::move(*held), deadline));
        });
      }
    }
  }
}

/// News of the dead that comes once more, as when a leader proposes what the one before it had proposed: that a dead
/// node is dead, and that it lives, under the incarnation that died. Neither may have an effect.
Task<void> Workload::echo(Workload* w) {
  struct Tell {
    static Task<void> run(node::ControlService* c, wire::CommandBody b, Instant deadline) {
      (void)co_await c->propose(std::move(b), deadline);
    }
  };
  Random random(mix64(w->settings_.seed + 3));
  while (!w->stopping_) {
    co_await sleep_for(w->loop_, milliseconds(static_cast<std::int64_t>(200 + random.below(1500))));
    const NodeId teller = w->choose(random);
    for (const auto& [id, n] : w->referee_.shadow().nodes()) {
      if (!teller || n.state != control::NodeState::dead || !random.chance(1, 2)) continue;
      auto body = std::make_shared<wire::CommandBody>();
      if (random.chance(1, 2)) {
        body->mutable_node_dead()->set_node(id.value);
        body->mutable_node_dead()->set_incarnation(n.incarnation);
      } else {
        wire::NodeInfo* info = body->mutable_node_alive()->mutable_node();
        info->set_id(id.value);
        info->set_name(n.name);
        for (const std::string& address : n.addresses) info->add_addresses(address);
        info->set_incarnation(n.incarnation);
      }
      Machine& m = w->cluster_.at(teller);
      if (!m.agent || m.agent->loop.paused()) break;
      SimLoop* loop = &m.agent->loop;
      node::ControlService* control = m.agent->control.get();
      loop->post([loop, control, body] {
        const Instant deadline = loop->now() + seconds(2);
        loop->spawn(Tell::run(control, std::move(*body), deadline));
      });
    }
  }
}

// ---- The end

Task<void> Workload::last_look(Workload* w, NodeId node, std::size_t* done) {
  const ClientPtr c = w->make_client();
  c->home = node;
  Operation op;
  op.kind = Operation::Kind::put;
  op.key = str("k", w->settings_.keys - 1);
  op.value = str("v", w->next_value_++);
  const std::uint64_t before = w->acknowledged_;
  co_await write(w, c, std::move(op));
  c->home = node;
  std::vector<std::string> keys;
  for (unsigned i = 0; i < w->settings_.keys; ++i) keys.push_back(str("k", i));
  co_await read(w, c, std::move(keys));
  if (w->acknowledged_ == before + 2 || w->acknowledged_ > before) ++*done;
}

void Workload::look_at_the_end(std::size_t& done) {
  for (const NodeId id : cluster_.up()) loop_.spawn(last_look(this, id, &done));
}

/// In which order the store itself had the operations on `key`; also of those whose clients never heard.
std::vector<Operation> Workload::with_revisions(const std::string& key) const {
  std::vector<Operation> out;
  std::set<std::uint64_t> deleted;
  std::map<std::string, std::uint64_t> put;
  for (const KvChange& c : referee_.all_changes()) {
    if (c.key != key) continue;
    if (c.deleted) {
      deleted.insert(c.revision);
    } else {
      put[c.value] = c.revision;
    }
  }
  for (const Operation& op : history_) {
    if (op.key != key) continue;
    out.push_back(op);
    if (op.kind == Operation::Kind::del) deleted.erase(op.revision);
  }
  std::ranges::stable_sort(out, {}, &Operation::begin);  // What was asked first was deleted first: that always fits.
  for (Operation& op : out) {
    if (op.end != Operation::kNeverEnded) continue;
    if (op.kind == Operation::Kind::del && !deleted.empty()) {
      op.revision = *deleted.begin();
      deleted.erase(deleted.begin());
    } else if (const auto it = put.find(op.value); op.kind != Operation::Kind::del && it != put.end()) {
      op.revision = it->second;
    }
  }
  return out;
}

void Workload::judge() {
  std::vector<Operation> left = history_;
  for (;;) {
    const Verdict v = check_linearizable(left);
    if (v.kind == Verdict::Kind::linearizable) return;
    if (v.kind == Verdict::Kind::violated) return referee_.broken(str("not linearizable: key ", v.key, ", ", v.what));
    if (!explained_by_revisions(with_revisions(v.key))) {
      return referee_.broken(str("key ", v.key, " could not be judged: ", v.what));
    }
    std::erase_if(left, [&](const Operation& op) { return op.key == v.key; });
  }
}

}  // namespace holo::sim
