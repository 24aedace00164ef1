#include "sim/cluster.h"

#include <algorithm>

#include "base/strings.h"
#include "core/membership/voters.h"
#include "driver/raft/raft_log.h"

namespace holo::sim {
namespace {

constexpr Duration kRetryStart = milliseconds(700);
constexpr Duration kLetStop = seconds(3);
constexpr Duration kLife = seconds(12);  // For joining and leaving.

}  // namespace

/// What the log hands to the control service passes here, and on to the referee.
class WatchedMachine final : public env::StateMachine {
 public:
  WatchedMachine(env::StateMachine& inner, Referee& referee, NodeId node, Agent& agent)
      : inner_(inner), referee_(referee), node_(node), agent_(agent) {}
  void apply(LogIndex index, WallTime when, ByteSpan command) override {
    inner_.apply(index, when, command);
    if (agent_.in_use) referee_.on_applied(node_, index, when, command, agent_.control->state());
  }
  Bytes snapshot() const override { return inner_.snapshot(); }
  Status restore(LogIndex index, ByteSpan snapshot) override {
    HOLO_TRY(inner_.restore(index, snapshot));
    if (agent_.in_use) referee_.on_restored(node_, index);
    return {};
  }

 private:
  env::StateMachine& inner_;
  Referee& referee_;
  NodeId node_;
  Agent& agent_;
};

Cluster::Cluster(World& world, Referee& referee, ClusterSettings settings)
    : world_(world),
      referee_(referee),
      settings_(settings),
      random_(mix64(settings.seed)),
      mesh_(world, mix64(settings.seed + 1)) {}

Cluster::~Cluster() {
  for (auto& [id, m] : machines_) {
    if (m.agent) retire(m);
  }
  world_.run_until(world_.now() + seconds(1));
  const Instant limit = world_.now() + seconds(60);
  world_.run_while_not([this] { return lingering() == 0; }, limit);
  for (auto& agent : past_) {
    agent->loop.kill();
    (void)agent.release();  // What waits for ever inside it would touch it; said by lingering() before.
  }
}

Machine& Cluster::add_machine() {
  const NodeId id{0x100 + machines_.size() + 1};
  Machine& m = machines_[id];
  m.id = id;
  m.name = str("n", machines_.size());
  m.address = str(m.name, ":1");
  m.disk = std::make_shared<SimDisk>(world_, mix64(settings_.seed ^ id.value));
  return m;
}

std::vector<NodeId> Cluster::up() const {
  std::vector<NodeId> out;
  for (const auto& [id, m] : machines_) {
    if (m.agent && m.booted && !m.left) out.push_back(id);
  }
  return out;
}

// ---- Life of an agent

std::string Cluster::seed_address(NodeId but) {
  std::vector<std::string> all;
  for (const auto& [id, m] : machines_) {
    if (id != but && m.agent && m.booted && !m.left) all.push_back(m.address);
  }
  return all.empty() ? std::string("nowhere:1") : all[random_.below(all.size())];
}

void Cluster::start(NodeId id) {
  Machine& m = machines_.at(id);
  if (!m.agent && !m.left) boot(m);
}

void Cluster::boot(Machine& m) {
  m.agent = std::make_unique<Agent>(world_);
  m.booted = false;
  ++m.starts;
  Agent& a = *m.agent;
  a.disk = m.disk;
  a.entropy = std::make_unique<env::testing::SeededEntropy>(mix64(settings_.seed ^ (m.id.value << 20) ^ m.starts));
  a.loop.set_wall_offset(m.wall_offset);
  a.loop.set_drift(m.drift);
  a.loop.set_work_end([disk = a.disk.get()] { return disk->synced(); });
  a.port = mesh_.attach(m.id, m.address, a.loop);
  a.disk->on_append = [this, id = m.id](const env::LogEntry& e) { referee_.on_append(id, e); };
  a.disk->on_truncate = [this, id = m.id](std::uint64_t index) { referee_.on_truncate(id, index); };
  referee_.on_start(m.id);

  node::NodeIdentity self;
  self.id = m.id;
  self.name = m.name;
  self.addresses = {m.address};
  self.cores = 2;
  self.memory_bytes = 64 << 20;
  self.speed = 1;
  self.version = "sim";
  if (settings_.hosts > 0) {
    self.place.host = str("host", m.id.value % settings_.hosts);
    self.place.zone = str("zone", m.id.value % settings_.hosts % 2);
  }
  node::ControlService::Ports ports;
  ports.loop = &a.loop;
  ports.transport = a.port.get();
  ports.store = a.disk.get();
  ports.entropy = a.entropy.get();
  ports.open_log = [this, agent = &a](env::StateMachine& machine,
                                      node::LogOptions options) -> Result<std::unique_ptr<env::CommandLog>> {
    agent->watched = std::make_unique<WatchedMachine>(machine, referee_, options.self, *agent);
    driver::RaftLogPorts log_ports;
    log_ports.loop = &agent->loop;
    log_ports.transport = agent->port.get();
    log_ports.entropy = agent->entropy.get();
    log_ports.store = agent->disk;
    driver::RaftLogOptions log_options;
    log_options.self = options.self;
    log_options.bootstrap = options.bootstrap;
    log_options.snapshot_threshold = settings_.snapshot_threshold;
    log_options.snapshot_trailing = settings_.snapshot_trailing;
    HOLO_ASSIGN(log, driver::open_raft_log(std::move(log_ports), *agent->watched, log_options));
    agent->log = log.get();
    log->on_change([this, agent, id = options.self] {
      if (agent->in_use) referee_.on_members(id, agent->log->status(), agent->log->members());
    });
    return log;
  };
  a.control = std::make_unique<node::ControlService>(std::move(ports), std::move(self));
  a.kv = std::make_unique<node::KvService>(a.loop, *a.control, a.api);
  a.leases = std::make_unique<node::LeaseService>(a.loop, *a.control, a.api);
  a.control->register_local(a.api);
  a.loop.set_after_event([this, agent = &a, id = m.id] {
    if (agent->in_use && agent->log != nullptr) referee_.on_status(id, agent->log->status());
  });
  a.loop.spawn(boot_task(this, &m, &a));
}

Task<void> Cluster::boot_task(Cluster* cluster, Machine* m, Agent* agent) {
  Status s;
  const auto member = agent->control->has_cluster();
  const Instant deadline = agent->loop.now() + kLife;
  if (!member) {
    s = std::unexpected(member.error());
  } else if (*member) {
    s = agent->control->resume();
    cluster->say(str(m->name, " resumes", s ? "" : ": " + s.error().message));
    if (s) m->booted = true;
  } else if (!std::exchange(cluster->founded_, true)) {
    s = co_await agent->control->init("sim", deadline);
    cluster->say(str(m->name, " founds the cluster"));
  } else {
    const std::string seed = cluster->seed_address(m->id);
    s = co_await agent->control->join(seed, deadline);
    if (agent->in_use) cluster->say(str(m->name, " joins at ", seed, s ? "" : ": " + s.error().message));
  }
  if (!agent->in_use) co_return;
  if (s) {
    m->booted = true;
  } else {
    cluster->retry(*m, s.error());
  }
}

/// The agent ends with an error, and whoever runs the machine starts it again.
void Cluster::retry(Machine& m, const Error& e) {
  say(str(m.name, " does not start: ", e.message));
  const std::uint64_t starts = m.starts;
  world_.at(world_.now() + kRetryStart, [this, id = m.id, starts] {
    Machine& again = machines_.at(id);
    if (!again.agent || again.starts != starts) return;
    retire(again);
    if (!again.left) boot(again);
  });
}

/// Cuts the agent off and lets it come to its end where nobody sees it.
void Cluster::retire(Machine& m) {
  std::unique_ptr<Agent> a = std::move(m.agent);
  m.booted = m.leaving = false;
  a->in_use = false;
  a->ended = world_.now();
  if (a->loop.paused()) a->loop.resume();
  a->port->retire();
  a->disk->on_append = nullptr;
  a->disk->on_truncate = nullptr;
  std::uint64_t lost = 0;
  m.disk = a->disk->after_crash(lost);
  lost_writes += lost;
  for (auto& [id, shot] : std::exchange(a->asked, {})) {
    world_.at(world_.now(), [shot = shot] { shot->set(fail(Errc::unavailable, "the agent is gone")); });
  }
  a->loop.spawn(stop_task(this, nullptr, a.get(), false));
  past_.push_back(std::move(a));
}

Task<void> Cluster::stop_task(Cluster* cluster, Machine* m, Agent* agent, bool cleanly) {
  if (!cleanly) agent->loop.begin_stop();
  co_await agent->control->stop();
  if (cleanly && agent->in_use) cluster->retire(*m);
}

void Cluster::crash(NodeId id) {
  Machine& m = machines_.at(id);
  if (!m.agent) return;
  const std::uint64_t before = lost_writes;
  retire(m);
  say(str(m.name, " crashes, ", lost_writes - before, " writes are lost"));
}

void Cluster::stop(NodeId id) {
  Machine& m = machines_.at(id);
  if (!m.agent || m.agent->loop.paused()) return;
  say(str(m.name, " is stopped"));
  m.agent->loop.spawn(stop_task(this, &m, m.agent.get(), true));
  const std::uint64_t starts = m.starts;
  world_.at(world_.now() + kLetStop, [this, id, starts] {
    if (machines_.at(id).agent && machines_.at(id).starts == starts) crash(id);
  });
}

Task<void> Cluster::leave_task(Cluster* cluster, Machine* m, Agent* agent, std::function<void(Status)> done) {
  const Instant deadline = agent->loop.now() + kLife;
  Status s = co_await agent->control->leave(deadline);
  if (!agent->in_use) co_return;
  m->leaving = false;
  cluster->say(str(m->name, s ? " has left" : " does not leave: " + s.error().message));
  if (s) {
    m->left = true;
    cluster->retire(*m);
    m->disk->wipe();
  }
  done(s);
}

void Cluster::leave(NodeId id, std::function<void(Status)> done) {
  Machine& m = machines_.at(id);
  if (!m.agent || !m.booted) return;
  m.leaving = true;
  say(str(m.name, " is asked to leave"));
  m.agent->loop.spawn(leave_task(this, &m, m.agent.get(), std::move(done)));
}

std::size_t Cluster::lingering() {
  std::erase_if(past_, [this](const std::unique_ptr<Agent>& a) {
    return a->loop.running() == 0 && world_.now() > a->ended + milliseconds(200);
  });
  return past_.size();
}

std::string Cluster::who_lingers() const {
  std::string out;
  for (const auto& a : past_) out += str(" node ", a->control->self(), ": ", a->loop.running(), " tasks;");
  return out;
}

// ---- Processes

Task<void> Cluster::serve_task(Agent* agent, const node::LocalApi::Handler* handler,
                               std::shared_ptr<SimSession> session, node::LocalRequest request, std::uint64_t id) {
  auto reply = co_await (*handler)(std::move(session), std::move(request));
  const auto it = agent->asked.find(id);
  if (it == agent->asked.end()) co_return;
  const auto shot = it->second;
  agent->asked.erase(it);
  Result<std::string> answer = reply ? Result<std::string>(reply->header) : std::unexpected(reply.error());
  shot->set(std::move(answer));
}

std::shared_ptr<OneShot<Result<std::string>>> Cluster::ask(NodeId id, std::uint16_t type, std::string header,
                                                           std::shared_ptr<SimSession> session) {
  auto shot = std::make_shared<OneShot<Result<std::string>>>();
  Machine& m = machines_.at(id);
  const node::LocalApi::Handler* handler = m.agent && m.booted ? m.agent->api.find(type) : nullptr;
  if (handler == nullptr) {
    world_.at(world_.now() + milliseconds(1), [shot] { shot->set(fail(Errc::refused, "no agent runs here")); });
    return shot;
  }
  Agent* agent = m.agent.get();
  const std::uint64_t number = agent->next_ask++;
  agent->asked[number] = shot;
  agent->loop.post([agent, handler, number, type, header = std::move(header), session = std::move(session)] {
    node::LocalRequest request;
    request.type = type;
    request.header = header;
    agent->loop.spawn(serve_task(agent, handler, session, std::move(request), number));
  });
  return shot;
}

// ---- Health

bool Cluster::healthy(std::string& why) {
  std::size_t members = 0;
  for (const auto& [id, n] : referee_.shadow().nodes()) {
    if (n.state == control::NodeState::left) {
      machines_.at(id).left = true;  // It may have ended before it heard of it.
    } else {
      ++members;
    }
  }
  NodeId leader;
  std::size_t voters = 0;
  for (const auto& [id, n] : referee_.shadow().nodes())
    voters += n.state != control::NodeState::left && n.voter ? 1 : 0;
  if (voters != membership::wanted_voters(members)) {
    why = str(voters, " voters of ", members, " members");
    return false;
  }
  for (auto& [id, m] : machines_) {
    if (m.left) continue;
    if (!m.agent || !m.booted || m.leaving) {
      why = str(m.name, m.leaving ? " is leaving" : " is not up");
      return false;
    }
    const node::ControlService& c = *m.agent->control;
    if (!c.ready()) {
      why = str(m.name, " is not alive in its own state");
      return false;
    }
    if (!c.leader() || (leader && c.leader() != leader)) {
      why = str(m.name, " knows no leader, or another");
      return false;
    }
    leader = c.leader();
    if (c.apart()) {
      why = str(m.name, " takes itself for cut off");
      return false;
    }
    if (c.state().applied() != referee_.shadow().applied()) {
      why = str(m.name, " has applied ", c.state().applied(), " of ", referee_.shadow().applied(), ", and knows ",
                c.log_status().committed, " as committed");
      return false;
    }
  }
  return true;
}

}  // namespace holo::sim
