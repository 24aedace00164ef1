#include "cmd/holo/agent.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>

#include "base/log.h"
#include "base/strings.h"
#include "cmd/holo/cpu_score.h"
#include "cmd/holo/machine.h"
#include "cmd/holo/units.h"
#include "driver/etcd/etcd_log.h"
#include "driver/hwloc/topology.h"
#include "driver/log/text_log.h"
#include "driver/posix/address_watch.h"
#include "driver/posix/agent_registry.h"
#include "driver/posix/asio_loop.h"
#include "driver/posix/cpu_group.h"
#include "driver/posix/local_socket.h"
#include "driver/posix/machine_reading.h"
#include "driver/posix/os_entropy.h"
#include "driver/posix/process.h"
#include "driver/posix/tcp.h"
#include "driver/posix/udp.h"
#include "driver/quic/qlog_files.h"
#include "driver/quic/quic.h"
#include "driver/raft/raft_log.h"
#include "driver/rocksdb/store.h"
#include "driver/uffd/memfd_frames.h"
#include "driver/uffd/uffd_faults.h"
#include "node/node.h"

namespace holo::cmd {
namespace {

constexpr Duration kBeginLimit = seconds(15);
constexpr Duration kRestoreLimit = seconds(280);
constexpr std::size_t kMaxBackupFile = std::size_t{INT32_MAX} + 8192;
constexpr Duration kStopLimit = milliseconds(1800);  // SIGTERM ends an agent within 2 s, whatever hangs; but pages that
constexpr Duration kKeepCheck = milliseconds(50);    // are being written are not thrown away for that.
constexpr Duration kDrainLimit = milliseconds(200);

LogLevel log_level(const std::string& name) {
  return name == "debug"  ? LogLevel::debug
         : name == "info" ? LogLevel::info
         : name == "warn" ? LogLevel::warn
                          : LogLevel::error;
}

env::FaultMode fault_mode(const std::string& setting) {
  if (setting == "off") return env::FaultMode::none;
  const auto mode = driver::probe_fault_mode();
  return setting == "user" && mode == env::FaultMode::full ? env::FaultMode::user_mode_only : mode;
}

/// What of the agent's environment its workers see.
std::vector<std::string> worker_environment() {
  std::vector<std::string> out;
  for (char** at = ::environ; at && *at; ++at) {
    const std::string_view entry = *at;
    const std::string_view name = entry.substr(0, entry.find('='));
    constexpr std::array kKept = {"PATH", "HOME", "USER",   "LOGNAME",        "SHELL",
                                  "LANG", "TZ",   "TMPDIR", "LD_LIBRARY_PATH"};
    const bool sanitizer = name.ends_with("SAN_OPTIONS");
    if (sanitizer || name.starts_with("LC_") || std::ranges::find(kKept, name) != kKept.end()) out.emplace_back(entry);
  }
  return out;
}

/// Where others reach an agent that listens on every address of the machine.
std::vector<std::string> advertise(const AgentConfig& config) {
  if (!config.advertise.empty()) return config.advertise;
  const auto listen = split_address(config.listen);
  if (!listen || (listen->host != "0.0.0.0" && listen->host != "::")) return {};
  std::vector<std::string> out = own_addresses(listen->host == "::");
  for (std::string& address : out) address += ":0";  // The port that will be bound.
  return out;
}

/// About what a wake-up costs on a machine that has a core to spare for looking.
Duration poll_for(const AgentConfig& config) {
  constexpr Duration kWakeUp = microseconds(50);
  if (config.poll) return *config.poll;
  return core_count() > 1 && !driver::has_cpu_quota() ? kWakeUp : Duration{};
}

node::CarrierUse carrier_use(std::string_view name) {
  if (name == "quic") return node::CarrierUse::quic;
  return name == "tcp" ? node::CarrierUse::tcp : node::CarrierUse::automatic;
}

/// Pages, sockets and workers take descriptors; the usual soft limit of 1024 is for programs that use select(2).
void raise_file_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

/// Keys are in this process's memory: no crash and no debugger of the same user shall copy it. Workers are their
/// programs' own and dump as those do.
void keep_memory_private() { ::prctl(PR_SET_DUMPABLE, 0); }

/// Two stores, because one outlives the other: this node's facts (its incarnation) stay when it leaves a cluster and
/// its log goes, or it could not return under a higher incarnation.
struct Stores {
  std::unique_ptr<driver::RocksStore> facts;
  std::shared_ptr<driver::RocksStore> log;
};

/// Writes what changes about trust into the state directory that the agent holds. `membership` is the agent's.
class FileTrustStore final : public node::TrustStore {
 public:
  FileTrustStore(std::string state_dir, ClusterMembership& membership)
      : state_dir_(std::move(state_dir)), membership_(membership) {}
  Status save_pins(const std::string& text) override { return write_pins(state_dir_, text); }
  Status save_identity(const crypto::Ed25519Seed& seed, const hyperbus::IdentityChain& chain) override {
    return write_identity(state_dir_, seed, chain);
  }
  Status save_keys(const std::vector<crypto::Secret<32>>& keys) override {
    ClusterMembership next = membership_;
    next.keys = keys;
    return save(std::move(next));
  }
  Status save_certificate(const std::string& text) override {
    ClusterMembership next = membership_;
    next.certificate = text;
    return save(std::move(next));
  }

 private:
  Status save(ClusterMembership next) {
    HOLO_TRY(write_membership(state_dir_, next));
    membership_ = std::move(next);
    return {};
  }
  std::string state_dir_;
  ClusterMembership& membership_;
};

class Agent {
 public:
  Agent(const LoadedConfig& loaded, AgentHooks hooks, StateDir state, hyperbus::Identity identity,
        ClusterMembership membership, hyperbus::TrustBook book, Stores stores)
      : config_(loaded.config),
        hooks_(std::move(hooks)),
        state_(std::move(state)),
        membership_(std::move(membership)),
        book_(std::move(book)),
        loop_(driver::AsioLoop::Options{.poll_for = poll_for(config_)}),
        facts_(std::move(stores.facts)),
        log_(std::move(stores.log)),
        carrier_(loop_),
        datagrams_(loop_),
        processes_(loop_),
        local_(loop_),
        faults_(loop_, fault_mode(config_.userfaultfd)),
        node_(std::make_unique<node::Node>(ports(), node_config(loaded, std::move(identity)))) {}

  Outcome<int> run() {
    driver::SignalWatch signals(loop_, {SIGTERM, SIGINT}, [this](int) { end(); });
    loop_.post([this] { loop_.spawn(live(this)); });
    loop_.run();
    // What is left of it counts as crashed. One that never got so far may have found another agent in its place.
    if (published_) (void)driver::withdraw_agent(record_);
    node_.reset();
    log_.reset();  // Before its directory may go.
    if (left_cluster_) HOLO_TRY(state_.forget_cluster());
    if (failure_) {
      if (!membership_.pending.empty()) (void)state_.forget_cluster();
      hooks_.ready.failed(*failure_);
      return std::unexpected(*failure_);
    }
    return kDone;
  }

 private:
  node::NodePorts ports() {
    return {.loop = loop_,
            .carrier = carrier_,
            .datagrams = &datagrams_,
            .quic = quic_.get(),
            .qlog = config_.qlog.empty() ? env::QlogFactory() : driver::quic::make_qlog_files(config_.qlog),
            .open_qlog = [](const std::string& folder) -> Result<env::QlogFactory> {
              HOLO_TRY(driver::make_private_directory(folder));
              return driver::quic::make_qlog_files(folder);
            },
            .entropy = entropy_,
            .store = *facts_,
            .frames = frames_,
            .faults = faults_,
            .processes = processes_,
            .local = local_,
            .open_log = [this](env::Transport& transport, env::StateMachine& machine,
                               node::LogOptions options) -> Result<std::unique_ptr<env::CommandLog>> {
              if (config_.control_store == "etcd") {
                return driver::open_etcd_log({.loop = &loop_, .entropy = &entropy_}, machine,
                                             {.self = options.self,
                                              .bootstrap = options.bootstrap,
                                              .joining = options.joining,
                                              .endpoints = {.urls = config_.control_endpoints,
                                                            .ca_file = config_.control_ca,
                                                            .certificate_file = config_.control_certificate,
                                                            .key_file = config_.control_key},
                                              .prefix = config_.control_prefix});
              }
              driver::RaftLogPorts ports{.loop = &loop_, .transport = &transport, .entropy = &entropy_, .store = log_};
              return driver::open_raft_log(ports, machine, {.self = options.self, .bootstrap = options.bootstrap});
            },
            .socket_pair = []() -> Result<std::pair<env::Fd, env::Fd>> {
              HOLO_ASSIGN(pair, driver::make_socket_pair());
              return std::pair(std::move(pair.first), std::move(pair.second));
            }};
  }

  node::NodeConfig node_config(const LoadedConfig& loaded, hyperbus::Identity identity) {
    auto handshake =
        std::make_shared<hyperbus::HandshakeConfig>(hyperbus::HandshakeConfig{.identity = std::move(identity)});
    for (const auto& key : membership_.keys) handshake->keys.emplace_back(key);
    handshake->suite = hyperbus::suite_of(membership_.trust, config_.key_exchange);
    auto session = std::make_shared<hyperbus::SessionConfig>();
    session->handshake = std::move(handshake);
    node::NodeConfig out;
    out.name = config_.name;
    out.listen = config_.listen;
    out.advertise = advertise(config_);
    out.cores = core_count();
    const wire::CpuScore score = cpu_score(config_.state_dir);
    out.speed = score.speed();
    out.inventory = [score]() -> Result<wire::Inventory> {
      HOLO_ASSIGN(inventory, driver::read_inventory());
      *inventory.mutable_score() = score;
      return inventory;
    };
    out.reading = [facts = facts_.get(), log = log_] {
      env::MachineReading reading = driver::read_machine();
      reading.disk_failing = facts->failing() || log->failing();
      return reading;
    };
    out.place = config_.place;
    out.witness = config_.witness;
    if (config_.control_store == "etcd") out.control_store = str("etcd, under holo/", config_.control_prefix, "/");
    out.version = HOLO_VERSION;
    record_.node_id = to_hex(session->handshake->identity.node().value);
    out.socket_path = driver::agent_socket_path(config_.state_dir, record_.node_id);
    out.settings_json = config_json(loaded);
    out.session = std::move(session);
    out.carrier = carrier_use(config_.carrier);
    out.mtu = config_.mtu;
    out.qlog = config_.qlog;
    out.trust = {.store = std::make_shared<FileTrustStore>(config_.state_dir, membership_),
                 .book = std::move(book_),
                 .keys = membership_.keys,
                 .certificate = membership_.certificate};
    out.memory.limit_bytes = config_.memory_bytes;
    out.memory.move_rate = config_.move_rate;
    out.memory.state_dir = config_.state_dir;
    out.compute.workers = config_.workers;
    out.compute.state_dir = config_.state_dir;
    out.compute.worker_env = worker_environment();
    out.cluster = membership_.id;
    out.cluster_name = membership_.name;
    record_.socket = out.socket_path;
    return out;
  }

  static Task<void> live(Agent* self) {
    auto begun = co_await self->begin();
    if (!begun) {
      self->failure_ = Failure(begun.error());
      self->end();
      co_return;
    }
    if (self->ending_) co_return;
    self->follow_addresses();
    const auto alive = co_await self->node_->wait_alive(kNever);
    if (alive) self->alive();
  }

  /// Until local processes are answered.
  Task<Status> begin() {
    node_->on_end([this](bool left) {
      left_cluster_ = left;
      end();
    });
    HOLO_CO_TRY(node_->open());
    node_->on_fatal([this](Error error) {
      log_error("agent", error.to_string());
      if (!failure_) failure_ = Failure(std::move(error));
      end();
    });
    HOLO_CO_ASSIGN(member, node_->has_cluster());
    if (hooks_.forget_if_removed) co_return co_await forget(member);
    const Instant deadline = loop_.now() + kBeginLimit;
    if (member) {
      HOLO_CO_TRY(co_await node_->begin_resume());
    } else if (membership_.pending.starts_with("join ")) {
      HOLO_CO_TRY(co_await node_->begin_join(membership_.pending.substr(5), deadline));
    } else {
      std::shared_ptr<const Bytes> from;
      if (membership_.pending == "restore") {
        HOLO_CO_ASSIGN(file, driver::read_file(state_.restore_file(), kMaxBackupFile));
        from = std::make_shared<const Bytes>(std::move(file));
      }
      const Instant limit = from ? loop_.now() + kRestoreLimit : deadline;
      HOLO_CO_TRY(co_await node_->begin_init(membership_.name, limit, std::move(from)));
      HOLO_CO_TRY(driver::remove_file(state_.restore_file()));
    }
    const auto& state = node_->control().state();
    if (!membership_.pending.empty()) {
      membership_.id = state.cluster();
      membership_.name = state.cluster_name();
      membership_.pending.clear();
      HOLO_CO_TRY(state_.set_membership(membership_));
    }
    record_.state_dir = config_.state_dir;
    record_.cluster_id = to_hex(membership_.id.value);
    record_.cluster_name = membership_.name;
    record_.node_name = config_.name;
    record_.pid = ::getpid();
    HOLO_CO_TRY(driver::publish_agent(record_));
    published_ = true;
    log_info("agent", "node ", config_.name, " (", record_.node_id, ") of cluster ", membership_.name, " listens on ",
             node_->listen_address());
    hooks_.ready.answering(node_->listen_address());
    co_return Status{};
  }

  Task<Status> forget(bool member) {
    bool removed = false;
    if (member) {
      HOLO_CO_ASSIGN(answer, co_await node_->forget_if_removed());
      removed = answer;
    }
    if (!removed) co_return fail(Errc::refused, "this node was not removed from its cluster, as far as is known");
    left_cluster_ = true;
    hooks_.ready.answering(node_->listen_address());
    end();
    co_return Status{};
  }

  /// Others learn it when this machine's addresses change. An agent that listens at one of them cannot follow.
  void follow_addresses() {
    advertised_ = advertise(config_);
    addresses_ = driver::watch_addresses(loop_, [this] {
      std::vector<std::string> now = advertise(config_);
      if (ending_ || now == advertised_) return;
      advertised_ = std::move(now);
      node_->addresses_changed(advertised_);
    });
  }

  void alive() {
    log_info("agent", "alive in the cluster, epoch ", node_->control().state().epoch());
    hooks_.ready.alive();
    const auto* self = node_->control().state().node(node_->control().self());
    if (hooks_.on_alive && self && !self->addresses.empty()) hooks_.on_alive(self->addresses.front());
  }

  void end() {
    if (std::exchange(ending_, true)) return;
    log_info("agent", "stopping");
    loop_.call_at(loop_.now() + kStopLimit, [this] { stop_unless_keeping(); });
    loop_.spawn(wind_down(this));
  }

  void stop_unless_keeping() {
    if (!node_->keeping_pages()) return loop_.stop();
    loop_.call_at(loop_.now() + kKeepCheck, [this] { stop_unless_keeping(); });
  }

  static Task<void> wind_down(Agent* self) {
    const auto kept = co_await self->node_->stop();
    if (!kept) log_warn("agent", "pages were not kept: ", kept.error().message);
    self->loop_.begin_stop();
    const Instant limit = self->loop_.now() + kDrainLimit;
    self->loop_.post([self, limit] { self->drain(limit); });
  }

  /// Tasks that were told to end get a moment to do so.
  void drain(Instant limit) {
    if (loop_.running() == 0 || loop_.now() >= limit) return loop_.stop();
    loop_.post([this, limit] { drain(limit); });
  }

  AgentConfig config_;
  AgentHooks hooks_;
  StateDir state_;
  ClusterMembership membership_;
  hyperbus::TrustBook book_;  ///< Until the node has it.
  driver::AgentRecord record_;
  std::optional<Failure> failure_;
  bool ending_ = false, left_cluster_ = false, published_ = false;

  driver::AsioLoop loop_;
  driver::OsEntropy entropy_;
  std::unique_ptr<driver::RocksStore> facts_;
  std::shared_ptr<driver::RocksStore> log_;
  driver::TcpCarrier carrier_;
  driver::UdpDatagrams datagrams_;
  std::unique_ptr<env::QuicStack> quic_ = driver::quic::make_stack();
  driver::PosixProcesses processes_;
  driver::LocalSocketServer local_;
  driver::MemfdFrameStore frames_;
  driver::UffdFaults faults_;
  std::unique_ptr<node::Node> node_;
  std::vector<std::string> advertised_;
  std::unique_ptr<driver::AddressWatch> addresses_;
};

Outcome<int> start(const LoadedConfig& loaded, AgentHooks& hooks) {
  HOLO_ASSIGN(state, StateDir::open(loaded.config.state_dir));
  HOLO_ASSIGN(membership, state.membership());
  if (!membership) {
    return fail(Errc::refused, str("the state directory ", state.path(), " belongs to no cluster"),
                "holo init makes one, holo join enters one");
  }
  if (membership->trust != loaded.config.trust) {
    return fail(Errc::refused,
                str("the cluster of ", state.path(), " has trust mode ", hyperbus::trust_mode_name(membership->trust),
                    ", and trust is set to ", hyperbus::trust_mode_name(loaded.config.trust)),
                "a cluster keeps the mode it was made with: remove that setting");
  }
  HOLO_ASSIGN(identity, state.identity());
  std::optional<crypto::Ed25519PublicKey> root;
  if (const auto carried = hyperbus::parse_certificate(membership->certificate)) root = carried->root;
  hyperbus::TrustBook book(membership->trust, root);
  HOLO_TRY(read_pins(state.path(), book));
  const auto socket = driver::agent_socket_path(state.path(), to_hex(identity.node().value));
  HOLO_TRY(driver::check_socket_path(socket));
  HOLO_TRY(driver::make_private_directory(std::filesystem::path(socket).parent_path().string()));
  if (!loaded.config.qlog.empty()) HOLO_TRY(driver::make_private_directory(loaded.config.qlog));
  Stores stores;
  using driver::RocksStore;
  const auto existing = membership->pending.empty() ? RocksStore::Existing::required : RocksStore::Existing::allowed;
  HOLO_ASSIGN(facts, RocksStore::open(state.facts_directory(), existing));
  stores.facts = std::move(facts);
  HOLO_ASSIGN(log, RocksStore::open(state.log_directory(), existing));
  stores.log = std::move(log);
  Agent agent(loaded, std::move(hooks), std::move(state), std::move(identity), std::move(*membership), std::move(book),
              std::move(stores));
  return agent.run();
}

}  // namespace

Outcome<int> run_agent(const LoadedConfig& loaded, AgentHooks hooks) {
  HOLO_TRY(driver::install_text_log({.file = loaded.config.log_file, .level = log_level(loaded.config.log_level)}));
  ::signal(SIGPIPE, SIG_IGN);
  raise_file_limit();
  keep_memory_private();
  auto outcome = start(loaded, hooks);
  if (!outcome) hooks.ready.failed(outcome.error());  // Silent when the agent has said it itself.
  return outcome;
}

}  // namespace holo::cmd
