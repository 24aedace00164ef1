#include "node/node.h"

#include "base/log.h"
#include "base/strings.h"
#include "node/json.h"
#include "node/link_bench.h"
#include "node/local_calls.h"
#include "node/ping.h"
#include "node/placement_local.h"
#include "node/status.h"

namespace holo::node {
namespace {

constexpr Duration kLeaveDeadline = seconds(40);
constexpr Duration kReadyPoll = milliseconds(10);

/// What others dial: see NodeConfig::advertise.
std::vector<std::string> advertised(const std::vector<std::string>& configured, const std::string& bound) {
  if (configured.empty()) return {bound};
  std::vector<std::string> out;
  for (const std::string& address : configured) {
    const bool bound_port = address.ends_with(":0");
    out.push_back(bound_port ? address.substr(0, address.size() - 1) + bound.substr(bound.rfind(':') + 1) : address);
  }
  return out;
}

Task<Result<LocalReply>> answer(std::string json) { co_return json_reply(std::move(json)); }

Task<Result<LocalReply>> qlog_reply(Result<std::string> folder) {
  if (!folder) co_return std::unexpected(std::move(folder).error());
  JsonWriter w;
  w.object([&] { w.field("folder", *folder); });
  co_return json_reply(w.text());
}

}  // namespace

Node::Node(NodePorts ports, NodeConfig config) : ports_(std::move(ports)), config_(std::move(config)) {
  trust_ = std::make_unique<TrustService>(
      TrustService::Ports{.loop = &ports_.loop, .entropy = &ports_.entropy, .facts = &ports_.store},
      std::move(config_.trust), config_.session, config_.cluster);
  bus_ = std::make_unique<Bus>(ports_.loop, ports_.carrier, ports_.entropy,
                               BusOptions{.session = trust_->session(),
                                          .use = config_.carrier,
                                          .datagrams = ports_.datagrams,
                                          .quic = ports_.quic,
                                          .qlog = ports_.qlog,
                                          .mtu = config_.mtu});
}

Node::~Node() = default;

Status Node::open() {
  // Listening first: with port 0 the address that others are told is only known then. Nobody is served before the
  // services have registered, because nothing is read before this function returns to the loop.
  HOLO_ASSIGN(bound, bus_->listen(config_.listen));
  listen_address_ = std::move(bound);
  build_services();
  serve_admin();
  gate_ = std::make_unique<LocalGate>(ports_.local, api_, [this](const LocalSession& s) { return describe(s); });
  gate_->open();
  return {};
}

void Node::addresses_changed(const std::vector<std::string>& advertise) {
  std::vector<std::string> addresses = advertised(advertise, listen_address_);
  std::string list;
  for (const std::string& a : addresses) list += str(list.empty() ? "" : ", ", a);
  log_info("node", "this machine's addresses have changed; others are told to dial ", list);
  control_->set_addresses(std::move(addresses));
  bus_->own_addresses_changed();
}

void Node::build_services() {
  NodeIdentity self;
  self.id = bus_->self();
  self.name = config_.name;
  self.addresses = advertised(config_.advertise, listen_address_);
  self.cores = config_.cores;
  self.memory_bytes = config_.memory.limit_bytes;
  self.speed = config_.speed;
  self.version = config_.version;
  self.place = config_.place;
  self.witness = config_.witness;
  self.control_store = config_.control_store;
  ControlService::Ports control_ports;
  control_ports.loop = &ports_.loop;
  control_ports.transport = bus_.get();
  control_ports.store = &ports_.store;
  control_ports.entropy = &ports_.entropy;
  control_ports.open_log = [this](env::StateMachine& machine, LogOptions options) {
    return ports_.open_log(*bus_, machine, options);
  };
  control_ = std::make_unique<ControlService>(std::move(control_ports), std::move(self));
  memory_control_ = make_memory_control(*control_, config_.cluster);

  memory_ = MemoryService::make({.loop = ports_.loop,
                                 .transport = *bus_,
                                 .frames = ports_.frames,
                                 .faults = ports_.faults,
                                 .entropy = ports_.entropy,
                                 .control = *memory_control_},
                                config_.memory);
  compute_ = ComputeService::make({.loop = ports_.loop,
                                   .transport = *bus_,
                                   .processes = ports_.processes,
                                   .entropy = ports_.entropy,
                                   .state = control_->state(),
                                   .memory = *memory_,
                                   .self = bus_->self(),
                                   .incarnation = [this] { return control_->incarnation(); },
                                   .observe = [this](control::StateObserver* o) { control_->add_observer(o); },
                                   .worker_socket = [this]() -> Result<env::Fd> {
                                     HOLO_ASSIGN(pair, ports_.socket_pair());
                                     HOLO_TRY(ports_.local.adopt(std::move(pair.first)));
                                     return std::move(pair.second);
                                   }},
                                  config_.compute);

  control_->set_report_source([this] {
    wire::NodeReport report;
    report.set_frames_used_bytes(memory_->status().frames_used_bytes);
    for (const auto& lowest : memory_->lowest_snapshots()) {
      auto* entry = report.add_lowest();
      entry->set_region(lowest.region.value);
      entry->set_version(lowest.version.value);
    }
    const membership::Health& health = health_->health();
    report.mutable_health()->set_score(health.score);
    for (const std::string& reason : health.reasons) report.mutable_health()->add_reasons(reason);
    return report;
  });
  bus_->on_peer_lost([this](NodeId peer, const Error&) { control_->peer_lost(peer); });
  control_->set_leave_check([this](Instant deadline) { return hand_over(deadline); });
  control_->register_local(api_);
  kv_ = std::make_unique<KvService>(ports_.loop, *control_, api_);
  leases_ = std::make_unique<LeaseService>(ports_.loop, *control_, api_);
  control_admin_ = std::make_unique<ControlAdmin>(ports_.loop, *bus_, *control_, config_.version, api_);
  memory_->serve_local(api_);
  compute_->serve_local(api_);
  trust_->start(*bus_, *control_, api_);
  inventory_ = std::make_unique<InventoryService>(
      InventoryService::Ports{.loop = &ports_.loop,
                              .control = control_.get(),
                              .identity = [this] { return trust_->session()->handshake->identity; },
                              .look = config_.inventory},
      api_);
  health_ = std::make_unique<HealthService>(HealthService::Ports{
      .loop = &ports_.loop, .look = config_.reading, .unanswered = [this] { return unanswered(); }});
}

/// By the second worst of the others: that one of them is away says nothing about this node.
std::uint64_t Node::unanswered() const {
  std::uint64_t worst = 0, second = 0;
  for (const PeerStatus& p : bus_->peers()) {
    const auto& failed = p.classes[static_cast<std::size_t>(env::StreamClass::control)].failed;
    const auto late = failed.find(Errc::deadline_exceeded);
    const std::uint64_t n = late == failed.end() ? 0 : late->second;
    second = std::max(second, std::min(n, worst));
    worst = std::max(n, worst);
  }
  return second;
}

void Node::serve_admin() {
  api_.serve(wire::STATUS, [this](std::shared_ptr<LocalSession>, LocalRequest) { return answer(status_json()); });
  api_.serve(wire::CONFIG_SHOW,
             [this](std::shared_ptr<LocalSession>, LocalRequest) { return answer(config_.settings_json); });
  api_.serve(wire::PING, [this](std::shared_ptr<LocalSession>, LocalRequest request) {
    return ask_ping(&ports_.loop, bus_.get(), control_.get(), std::move(request));
  });
  api_.serve(wire::QLOG, [this](std::shared_ptr<LocalSession>, LocalRequest request) -> Task<Result<LocalReply>> {
    return qlog_reply(change_qlog(request));
  });
  serve_placement(ports_.loop, *control_, api_);
  serve_ping(*bus_);
  api_.serve(wire::LINK_BENCH, [this](std::shared_ptr<LocalSession>, LocalRequest request) {
    return ask_link_bench(&ports_.loop, bus_.get(), control_.get(), std::move(request));
  });
  serve_link_bench(*bus_);
  api_.serve(wire::LEAVE, [this](std::shared_ptr<LocalSession>, LocalRequest) { return leave(); });
  api_.serve(wire::STOP, [this](std::shared_ptr<LocalSession>, LocalRequest) {
    ports_.loop.post([this] {  // After the answer has been queued.
      if (on_end_) on_end_(false);
    });
    return answer("{}");
  });
}

/// The folder to which qlogs go now; empty: none are written.
Result<std::string> Node::change_qlog(const LocalRequest& request) {
  wire::QlogRequest ask;
  if (!ask.ParseFromString(request.header)) return fail(Errc::malformed, "a request that does not decode");
  if (ask.action() == wire::QlogRequest::SHOW) return config_.qlog;
  if (!ports_.open_qlog || !bus_->speaks_quic()) {
    return fail(Errc::unsupported, "this node does not speak QUIC: there is nothing to write a qlog of",
                "its setting carrier is tcp");
  }
  env::QlogFactory qlog;
  if (ask.action() == wire::QlogRequest::START) {
    if (!ask.folder().starts_with('/')) return fail(Errc::invalid_argument, "the folder's path is not absolute");
    HOLO_ASSIGN(opened, ports_.open_qlog(ask.folder()));
    qlog = std::move(opened);
  }
  config_.qlog = ask.folder();
  log_info("node", config_.qlog.empty() ? "qlogs are no longer written" : "qlogs go to ", config_.qlog);
  bus_->set_qlog(std::move(qlog));
  return config_.qlog;
}

wire::HelloReply Node::describe(const LocalSession& session) const {
  wire::HelloReply reply;
  reply.set_node(bus_->self().value);
  reply.set_node_name(config_.name);
  reply.set_cluster(control_->state().cluster().value);
  reply.set_build(config_.version);
  reply.set_nodes(compute_->nodes_for(session.hello()));
  return reply;
}

Task<Status> Node::serve_processes() {
  HOLO_CO_TRY(co_await memory_->start());
  if (!config_.socket_path.empty()) HOLO_CO_TRY(ports_.local.listen(config_.socket_path));
  inventory_->start();
  health_->start();
  co_return Status{};
}

Task<Status> Node::begin_init(std::string cluster_name, Instant deadline, std::shared_ptr<const Bytes> from) {
  HOLO_CO_TRY(co_await control_->init(std::move(cluster_name), deadline, std::move(from)));
  co_return co_await serve_processes();
}

Task<Status> Node::begin_join(std::string seed, Instant deadline) {
  HOLO_CO_TRY(co_await control_->join(std::move(seed), deadline));
  co_return co_await serve_processes();
}

Task<Status> Node::begin_resume() {
  HOLO_CO_TRY(co_await control_->look_for_twin());
  HOLO_CO_TRY(control_->resume());
  co_return co_await serve_processes();
}

Task<Result<bool>> Node::forget_if_removed() { return control_->forget_if_removed(); }

Task<Status> Node::wait_alive(Instant deadline) {
  while (!control_->ready()) {
    if (control_->removed_for_good()) co_return std::unexpected(*control_->removal());
    if (ports_.loop.now() >= deadline) {
      co_return fail(Errc::deadline_exceeded, "no leader has admitted this node in time",
                     "holo status tells which nodes are alive");
    }
    const bool awake = co_await env::sleep_for(ports_.loop, kReadyPoll);
    if (!awake) co_return fail(Errc::cancelled, "the agent is stopping");
  }
  co_return Status{};
}

bool Node::nobody_takes_over() const {
  const auto& state = control_->state();
  bool stuck = false;
  for (const auto region : state.regions()) {
    state.for_each_shard(region, [&](const control::State::ShardView& shard) {
      const bool only_here = shard.in_sync.size() == 1 && shard.in_sync[0] == control_->self();
      stuck = stuck || (only_here && shard.target.empty());
    });
  }
  return stuck;
}

Task<Status> Node::hand_over(Instant deadline) {
  // Waiting would not help: the state names the nodes to fill as soon as this one drains.
  if (nobody_takes_over()) HOLO_CO_TRY(memory_->may_leave());
  co_return co_await memory_->hand_over(deadline);
}

Task<Result<LocalReply>> Node::leave() {
  const Instant deadline = ports_.loop.now() + kLeaveDeadline;
  HOLO_CO_TRY(co_await control_->leave(deadline));
  ports_.loop.post([this] {
    if (on_end_) on_end_(true);
  });
  co_return json_reply("{}");
}

Task<Status> Node::stop() {
  if (std::exchange(stopped_, true)) co_return Status{};
  if (control_) {
    co_await compute_->stop();
    co_await memory_->stop();
    co_await control_->stop();
  }
  ports_.local.close();
  bus_->close();
  if (!control_) co_return Status{};
  // Others can go on without this node by now, however long its pages take.
  keeping_pages_ = true;
  auto kept = co_await memory_->keep_pages();
  keeping_pages_ = false;
  co_return kept;
}

std::string Node::status_json() const {
  return node::status_json({.control = *control_,
                            .cluster = config_.cluster,
                            .cluster_name = config_.cluster_name,
                            .memory = memory_->status(),
                            .compute = compute_->status(),
                            .refused = bus_->refused(),
                            .links = bus_->links(),
                            .peers = bus_->peers(),
                            .handshakes = bus_->handshakes(),
                            .health = health_->health(),
                            .sessions = gate_->sessions(),
                            .now = ports_.loop.now()});
}

}  // namespace holo::node
