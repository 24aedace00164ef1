// holo::local(n): n real nodes in this process, each on a loop thread of its own, over loopback TCP and temporary
// directories; workers are threads that run the worker loop. An object of its own in the archive: only programs that
// call it link the node.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include <holo/detail/runtime.hpp>

#include "base/strings.h"
#include "client/session.h"
#include "client/worker.h"
#include "crypto/secret.h"
#include "driver/inproc/inproc.h"
#include "driver/posix/asio_loop.h"
#include "driver/posix/errno_text.h"
#include "driver/posix/local_socket.h"
#include "driver/posix/os_entropy.h"
#include "driver/raft/raft_log.h"
#include "driver/rocksdb/store.h"
#include "driver/uffd/memfd_frames.h"
#include "driver/uffd/uffd_faults.h"
#include "node/node.h"

namespace holo::client {
namespace {

constexpr unsigned kMaxLocalNodes = 16;
constexpr std::uint64_t kDefaultMemory = 256ULL << 20;
constexpr Duration kFormDeadline = seconds(20);
constexpr Duration kStopDeadline = seconds(5);
constexpr auto kThreadPatience = std::chrono::seconds(2);  // For tasks that still run when the cluster ends.

// ---- Workers as threads.

/// What worker threads may outlive.
struct ThreadsShared {
  std::mutex mutex;
  std::condition_variable ended;
  env::Loop* loop = nullptr;  ///< Null once it is going away.
  std::size_t running = 0;
};

class ThreadProcess final : public env::Process {
 public:
  ThreadProcess(env::Fd socket, std::shared_ptr<std::atomic<bool>> done)
      : socket_(std::move(socket)), done_(std::move(done)) {}
  ~ThreadProcess() override { hang_up(); }
  pid_t pid() const override { return ::getpid(); }
  bool running() const override { return !*done_; }
  void read_output() override {}  // Its threads print to the terminal themselves.
  /// A thread cannot be killed: it ends after its task, whose outcome nobody will hear.
  void stop(Duration) override { hang_up(); }

 private:
  void hang_up() { ::shutdown(socket_.get(), SHUT_RDWR); }
  env::Fd socket_;
  std::shared_ptr<std::atomic<bool>> done_;
};

class ThreadProcesses final : public env::Processes {
 public:
  explicit ThreadProcesses(env::Loop& loop) : shared_(std::make_shared<ThreadsShared>()) { shared_->loop = &loop; }
  ~ThreadProcesses() override {
    std::unique_lock lock(shared_->mutex);
    shared_->loop = nullptr;
    shared_->ended.wait_for(lock, kThreadPatience, [this] { return shared_->running == 0; });
  }

  Result<std::unique_ptr<env::Process>> spawn(env::ProcessSpec spec, env::ProcessEvents events) override {
    if (spec.fds.size() != 1) return fail(Errc::invalid_argument, "a worker thread needs its socket");
    const std::string prefix = str(kWorkerTokenVariable, "=");
    std::uint64_t token = 0;
    for (const std::string& e : spec.env) {
      if (e.starts_with(prefix)) token = std::strtoull(e.c_str() + prefix.size(), nullptr, 10);
    }
    env::Fd keep(::dup(spec.fds.front().fd.get()));
    if (!keep) return driver::fail_errno(errno, "cannot start a worker");
    auto done = std::make_shared<std::atomic<bool>>(false);
    auto process = std::make_unique<ThreadProcess>(std::move(keep), done);
    {
      const std::lock_guard lock(shared_->mutex);
      ++shared_->running;
    }
    auto socket = std::make_shared<env::Fd>(std::move(spec.fds.front().fd));
    auto on_exit = std::make_shared<std::function<void(env::ExitStatus)>>(std::move(events.on_exit));
    std::thread([shared = shared_, token, socket, on_exit, done] {
      const int status = run_worker({.socket = std::move(*socket), .token = token, .own_process = false});
      *done = true;
      const std::lock_guard lock(shared->mutex);
      --shared->running;
      if (shared->loop) shared->loop->post([on_exit, status] { (*on_exit)({.code = status, .signal = 0}); });
      shared->ended.notify_all();
    }).detach();
    return process;
  }

 private:
  std::shared_ptr<ThreadsShared> shared_;
};

// ---- Nodes.

/// One node on its own thread. Built and destroyed by the thread that owns the cluster.
class LocalNode {
 public:
  struct Options {
    std::string name;
    std::string state_dir;
    std::uint64_t memory_bytes = 0;
    unsigned workers = 1;
    crypto::Secret<hyperbus::ClusterKey::kBytes> key;
  };

  static Result<std::unique_ptr<LocalNode>> make(Options options, const driver::InprocNetwork& network) {
    std::error_code error;
    std::filesystem::create_directories(options.state_dir, error);
    if (error) return fail(Errc::io_error, str("cannot make ", options.state_dir, ": ", error.message()));
    HOLO_ASSIGN(store, driver::RocksStore::open(options.state_dir + "/log"));
    std::unique_ptr<LocalNode> node(new LocalNode(std::move(options), std::move(store), network));
    HOLO_TRY(node->on_loop([n = node.get()] { return n->node_->open(); }));
    return node;
  }
  ~LocalNode() {
    // The services end by themselves; a loop that stands still does not keep the program from going on.
    (void)run(stop_node(node_.get()), kStopDeadline);
    loop_.post([this] {
      loop_.begin_stop();
      drain(loop_.now() + kStopDeadline);
    });
    thread_.join();
  }

  /// Runs a task of the node on its loop and waits for it.
  Status run(Task<Status> task, Duration patience) {
    auto promise = std::make_shared<std::promise<Status>>();
    auto result = promise->get_future();
    auto shared = std::make_shared<Task<Status>>(std::move(task));
    loop_.post([this, shared, promise] { loop_.spawn(finish(std::move(*shared), promise)); });
    if (result.wait_for(std::chrono::nanoseconds(patience.ns)) != std::future_status::ready) {
      return fail(Errc::deadline_exceeded, str("node ", name_, " did not answer in time"));
    }
    return result.get();
  }
  Status form(const std::string& seed) {
    const Instant deadline = loop_.now() + kFormDeadline;
    if (seed.empty()) {
      HOLO_TRY(run(node_->begin_init("local", deadline), kFormDeadline));
    } else {
      HOLO_TRY(run(node_->begin_join(seed, deadline), kFormDeadline));
    }
    return run(node_->wait_alive(deadline), kFormDeadline);
  }
  [[nodiscard]] const std::string& address() const { return node_->listen_address(); }

  /// A socket on which this node answers.
  Result<env::Fd> connect() {
    HOLO_ASSIGN(pair, driver::make_socket_pair());
    auto end = std::make_shared<env::Fd>(std::move(pair.first));
    const Status adopted = on_loop([this, end]() -> Status {
      auto connection = local_.adopt(std::move(*end));
      if (!connection) return std::unexpected(connection.error());
      return {};
    });
    HOLO_TRY(adopted);
    return std::move(pair.second);
  }

 private:
  LocalNode(Options options, std::unique_ptr<driver::RocksStore> store, const driver::InprocNetwork& network)
      : name_(options.name),
        store_(std::move(store)),
        carrier_(network, loop_),
        processes_(loop_),
        local_(loop_),
        faults_(loop_) {
    node_ = std::make_unique<node::Node>(ports(), config(std::move(options)));
    thread_ = std::thread([this] { loop_.run(); });
  }

  /// The loop ends when the last task has: they hold parts of the node.
  void drain(Instant limit) {
    if (loop_.running() == 0 || loop_.now() >= limit) return loop_.stop();
    loop_.post([this, limit] { drain(limit); });
  }

  static Task<void> finish(Task<Status> task, std::shared_ptr<std::promise<Status>> promise) {
    const Status status = co_await task;
    promise->set_value(status);
  }
  static Task<Status> stop_node(node::Node* node) { co_return co_await node->stop(); }

  Status on_loop(std::function<Status()> f) {
    auto promise = std::make_shared<std::promise<Status>>();
    loop_.post([f = std::move(f), promise] { promise->set_value(f()); });
    return promise->get_future().get();
  }

  node::NodePorts ports() {
    return {.loop = loop_,
            .carrier = carrier_,
            .entropy = entropy_,
            .store = *store_,
            .frames = frames_,
            .faults = faults_,
            .processes = processes_,
            .local = local_,
            .open_log =
                [this](env::Transport& transport, env::StateMachine& machine, node::LogOptions options) {
                  driver::RaftLogPorts ports{
                      .loop = &loop_, .transport = &transport, .entropy = &entropy_, .store = store_};
                  return driver::open_raft_log(ports, machine, {.self = options.self, .bootstrap = options.bootstrap});
                },
            .socket_pair = []() -> Result<std::pair<env::Fd, env::Fd>> {
              HOLO_ASSIGN(pair, driver::make_socket_pair());
              return std::pair(std::move(pair.first), std::move(pair.second));
            }};
  }

  node::NodeConfig config(Options options) {
    const auto seed = crypto::random_secret<crypto::kEd25519SeedBytes>(entropy_);
    auto handshake = std::make_shared<hyperbus::HandshakeConfig>(hyperbus::HandshakeConfig{
        .identity = hyperbus::Identity::from_seed(seed), .keys = {hyperbus::ClusterKey(options.key)}});
    auto session = std::make_shared<hyperbus::SessionConfig>();
    session->handshake = std::move(handshake);
    node::NodeConfig out;
    out.name = options.name;
    out.cores = options.workers;
    out.version = HOLO_VERSION;
    out.session = std::move(session);
    out.memory.limit_bytes = options.memory_bytes;
    out.compute.workers = options.workers;
    out.compute.state_dir = options.state_dir;
    out.compute.in_process = true;
    return out;
  }

  std::string name_;
  driver::AsioLoop loop_;
  driver::OsEntropy entropy_;
  std::shared_ptr<driver::RocksStore> store_;
  driver::InprocCarrier carrier_;
  ThreadProcesses processes_;
  driver::LocalSocketServer local_;
  driver::MemfdFrameStore frames_;
  driver::UffdFaults faults_;
  std::unique_ptr<node::Node> node_;
  std::thread thread_;
};

/// The directory is removed with the object.
class TemporaryDirectory {
 public:
  static Result<std::unique_ptr<TemporaryDirectory>> make() {
    const char* base = std::getenv("TMPDIR");
    std::string path = str(base && *base ? base : "/tmp", "/holo-local-XXXXXX");
    if (!::mkdtemp(path.data())) return driver::fail_errno(errno, "cannot make a temporary directory");
    return std::unique_ptr<TemporaryDirectory>(new TemporaryDirectory(std::move(path)));
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  explicit TemporaryDirectory(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

struct LocalCluster {
  driver::InprocNetwork network;
  std::unique_ptr<TemporaryDirectory> directory;
  std::vector<std::unique_ptr<LocalNode>> nodes;  ///< The first one was the first of its cluster, and goes last.
  LocalCluster() = default;
  LocalCluster(const LocalCluster&) = delete;
  LocalCluster& operator=(const LocalCluster&) = delete;
  ~LocalCluster() {
    while (!nodes.empty()) nodes.pop_back();
  }
};

Result<std::shared_ptr<LocalCluster>> form(unsigned n, std::uint64_t memory_bytes) {
  auto cluster = std::make_shared<LocalCluster>();
  HOLO_ASSIGN(directory, TemporaryDirectory::make());
  cluster->directory = std::move(directory);
  driver::OsEntropy entropy;
  const auto key = crypto::random_secret<hyperbus::ClusterKey::kBytes>(entropy);
  for (unsigned i = 1; i <= n; ++i) {
    LocalNode::Options options{.name = str("n", i),
                               .state_dir = str(cluster->directory->path(), "/n", i),
                               .memory_bytes = memory_bytes == 0 ? kDefaultMemory : memory_bytes,
                               .workers = std::max(1U, std::thread::hardware_concurrency() / n),
                               .key = key};
    HOLO_ASSIGN(node, LocalNode::make(std::move(options), cluster->network));
    const std::string seed = cluster->nodes.empty() ? std::string() : cluster->nodes.front()->address();
    cluster->nodes.push_back(std::move(node));
    HOLO_TRY(cluster->nodes.back()->form(seed));
  }
  return cluster;
}

}  // namespace
}  // namespace holo::client

namespace holo::detail {

Result<std::shared_ptr<Session>> local(unsigned nodes, std::uint64_t memory_bytes) {
  using namespace holo::client;
  if (nodes < 1 || nodes > kMaxLocalNodes) {
    return fail(Errc::invalid_argument, str("holo::local takes 1 to ", kMaxLocalNodes, " nodes, not ", nodes));
  }
  HOLO_ASSIGN(cluster, form(nodes, memory_bytes));
  HOLO_ASSIGN(socket, cluster->nodes.front()->connect());
  SessionOptions options;
  options.keep = std::move(cluster);
  HOLO_ASSIGN(session, SessionImpl::connect({}, std::move(socket), std::move(options)));
  return session;
}

}  // namespace holo::detail
