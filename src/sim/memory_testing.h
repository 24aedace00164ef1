// Memory services over a simulated network and a log of their own: what the tests of distributed memory stand on.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/strings.h"
#include "env/entropy_testing.h"
#include "env/heap_frames.h"
#include "node/memory.h"
#include "sim/loop.h"
#include "sim/network.h"

namespace holo::sim {

/// Frames of one node, which its mappings can look at.
class SeenFrames final : public env::FrameStore {
 public:
  Result<std::unique_ptr<env::RegionFrames>> create(RegionId region, std::string name, std::uint64_t bytes) override {
    auto made = store_.create(region, std::move(name), bytes);
    if (made) made_[region] = made->get();
    return made;
  }
  const env::RegionFrames& of(RegionId region) const { return *made_.at(region); }

 private:
  env::HeapFrameStore store_;
  std::map<RegionId, env::RegionFrames*> made_;
};

/// A process's mapping of a region, without a process: it faults where it is told to, and hands on what it is given.
struct FakeMapping {
  env::PageFaults::OnFaults fault;
  const env::RegionFrames* frames = nullptr;
  std::function<void(std::uint64_t offset, ByteSpan)> on_given;
};

/// Attaches mappings to nothing; `last` is the newest.
class FakeFaults final : public env::PageFaults {
 public:
  env::FaultMode mode() const override { return env::FaultMode::full; }
  Result<std::unique_ptr<env::FaultedView>> attach(env::Fd, std::uint64_t, std::uint64_t, OnFaults fault) override {
    last = std::make_shared<FakeMapping>(FakeMapping{.fault = std::move(fault), .on_given = {}});
    return std::make_unique<FakeView>(last);
  }
  std::shared_ptr<FakeMapping> last;

 private:
  struct FakeView final : env::FaultedView {
    explicit FakeView(std::shared_ptr<FakeMapping> m) : mapping(std::move(m)) {}
    Status install(std::uint64_t offset, std::uint64_t length) override {
      mapping->on_given(offset, mapping->frames->mapped(offset, length));
      return {};
    }
    Status copy(std::uint64_t offset, ByteSpan bytes) override {
      mapping->on_given(offset, bytes);
      return {};
    }
    Status zero(std::uint64_t offset, std::uint64_t length) override {
      mapping->on_given(offset, Bytes(length));
      return {};
    }
    void wake(std::uint64_t, std::uint64_t) override {}
    std::shared_ptr<FakeMapping> mapping;
  };
};

/// One node's copy of a small replicated state: regions of a fixed placement, versions, who lives.
class TestControl final : public node::MemoryControl {
 public:
  struct RegionState {
    node::RegionShape shape;
    Version version;
    std::map<std::uint64_t, Version> pages;
    std::vector<node::ShardCopies> shards;
  };
  struct Log;
  TestControl(Log& log, NodeId self) : log_(log), self_(self) {}

  struct Log {
    explicit Log(World& w) : world(w) {}
    World& world;
    std::vector<std::function<void(TestControl&)>> entries;
    std::vector<TestControl*> nodes;
    Duration max_lag = milliseconds(3);
    Random random{5};
    void append(std::function<void(TestControl&)> entry) {
      entries.push_back(std::move(entry));
      for (TestControl* n : nodes) n->catch_up_soon();
    }
  };

  void catch_up_soon() {
    const auto lag =
        nanoseconds(static_cast<std::int64_t>(log_.random.below(static_cast<std::uint64_t>(log_.max_lag.ns) + 1)));
    log_.world.at(log_.world.now() + lag, [this] { catch_up(); });
  }
  void catch_up() {
    if (down) return;
    while (applied_ < log_.entries.size()) {
      const auto entry = log_.entries[applied_++];
      entry(*this);
    }
  }

  void observe(node::MemoryObserver observer) override { observer_ = std::move(observer); }
  NodeId self() const override { return self_; }
  ClusterId cluster() const override { return ClusterId{1}; }
  std::uint64_t incarnation() const override { return own_incarnation; }
  LogIndex applied() const override { return LogIndex{applied_}; }
  Epoch epoch() const override { return Epoch{epoch_}; }
  bool alive(NodeId node) const override { return alive_.contains(node); }
  std::uint64_t incarnation_of(NodeId node) const override {
    auto it = alive_.find(node);
    return it == alive_.end() ? 0 : it->second;
  }
  std::vector<NodeId> live_nodes() const override {
    std::vector<NodeId> out;
    for (auto& [n, i] : alive_) out.push_back(n);
    return out;
  }
  std::string node_name(NodeId node) const override { return str("n", node.value); }
  std::vector<RegionId> regions() const override {
    std::vector<RegionId> out;
    for (auto& [id, r] : regions_) out.push_back(id);
    return out;
  }
  std::optional<node::RegionShape> region(RegionId id) const override {
    auto it = regions_.find(id);
    return it == regions_.end() ? std::nullopt : std::optional(it->second.shape);
  }
  Version newest(RegionId id) const override { return regions_.at(id).version; }
  Version page_version(RegionId id, PageNo page) const override {
    const auto& pages = regions_.at(id).pages;
    auto it = pages.find(page.value);
    return it == pages.end() ? Version{} : it->second;
  }
  void for_each_written(RegionId id, const std::function<void(node::PageSpan, Version)>& f) const override {
    for (auto& [page, version] : regions_.at(id).pages) f({PageNo{page}, 1}, version);
  }
  ShardNo shard_of(RegionId id, PageNo page) const override {
    auto it = regions_.find(id);
    if (it == regions_.end()) return ShardNo{0};
    return ShardNo{static_cast<std::uint16_t>(page.value / it->second.shape.block_pages % it->second.shards.size())};
  }
  node::ShardCopies copies(RegionId id, ShardNo shard) const override {
    auto it = regions_.find(id);
    return it == regions_.end() || shard.value >= it->second.shards.size() ? node::ShardCopies{}
                                                                           : it->second.shards[shard.value];
  }
  bool draining() const override { return drained.contains(self_); }
  Version floor(RegionId id) const override { return floors_ ? (*floors_)(id) : Version{}; }
  std::uint64_t reserved_bytes() const override {
    std::uint64_t sum = 0;
    for (auto& [id, r] : regions_) {
      for (std::uint64_t p = 0; p < r.shape.pages(); ++p) {
        const auto c = copies(id, shard_of(id, PageNo{p}));
        if (c.filling == self_ || std::find(c.in_sync.begin(), c.in_sync.end(), self_) != c.in_sync.end())
          sum += r.shape.page_bytes;
      }
    }
    return sum;
  }

  Task<Result<std::vector<Result<std::vector<node::RegionVersion>>>>> commit(Epoch epoch,
                                                                             std::vector<node::TxnCommit> txns,
                                                                             Instant) override {
    using Answer = Result<std::vector<Result<std::vector<node::RegionVersion>>>>;
    auto shot = std::make_shared<OneShot<Answer>>();
    const NodeId proposer = self_;
    log_.append([epoch, txns, shot, proposer](TestControl& c) {
      auto answer = c.apply_commit(epoch, txns);
      if (c.self_ == proposer) c.log_.world.at(c.log_.world.now(), [shot, answer] { shot->set(answer); });
    });
    auto answer = co_await *shot;
    co_return answer;
  }
  std::vector<std::pair<ShardNo, node::ShardCopies>> moves(RegionId region) const override {
    std::vector<std::pair<ShardNo, node::ShardCopies>> out;
    const auto it = regions_.find(region);
    if (it == regions_.end()) return out;
    for (std::size_t s = 0; s < it->second.shards.size(); ++s) {
      const node::ShardCopies& c = it->second.shards[s];
      if (c.filling || c.unproven) out.emplace_back(ShardNo{static_cast<std::uint16_t>(s)}, c);
    }
    return out;
  }
  Task<Status> shards_copied(std::vector<node::ShardMove> moves, Instant) override {
    auto entry = [moves](TestControl& c) {
      std::set<RegionId> changed;
      for (const node::ShardMove& m : moves) {
        auto& copies = c.regions_.at(m.region).shards[m.shard.value];
        if (copies.filling != m.node || copies.serial != m.serial) continue;
        copies.filling = {};
        copies.unproven = m.node;
        copies.in_sync.push_back(m.node);
        if (c.takes_over(copies)) std::rotate(copies.in_sync.begin(), copies.in_sync.end() - 1, copies.in_sync.end());
        changed.insert(m.region);
      }
      if (changed.empty()) return;
      ++c.epoch_;
      c.tell(changed);
    };
    auto done = append_and_wait(std::move(entry));
    co_return co_await done;
  }
  Task<Status> shards_whole(std::vector<node::ShardMove> moves, Instant) override {
    auto entry = [moves](TestControl& c) {
      std::set<RegionId> changed;
      for (const node::ShardMove& m : moves) {
        auto& copies = c.regions_.at(m.region).shards[m.shard.value];
        if (copies.unproven != m.node || copies.serial != m.serial) continue;
        copies.unproven = {};
        if (c.takes_over(copies)) std::erase(copies.in_sync, c.moving_from_);
        changed.insert(m.region);
      }
      c.tell(changed);
    };
    auto done = append_and_wait(std::move(entry));
    co_return co_await done;
  }

  std::vector<NodeId> cut_off() const override { return {}; }
  Task<Status> path_changed(NodeId, bool, Instant) override { co_return Status{}; }  // They stay in sync here.

  // -- entries
  void create(const RegionState& r) {
    regions_[r.shape.id] = r;
    if (observer_.on_region_created) observer_.on_region_created(r.shape);
  }
  void free_region(RegionId id) {
    regions_.erase(id);
    if (observer_.on_region_freed) observer_.on_region_freed(id);
  }
  void node_alive(NodeId node, std::uint64_t incarnation) {
    alive_[node] = incarnation;
    ++epoch_;
    for (auto& [id, r] : regions_) {
      for (auto& s : r.shards) {  // A new incarnation holds nothing for sure, unless nobody else does.
        if (s.in_sync.size() > 1) std::erase(s.in_sync, node);
        if (s.filling == node) s.filling = {};
        if (s.unproven == node) s.unproven = {};
      }
    }
    assign_fills();
    if (observer_.on_nodes_changed) observer_.on_nodes_changed();
  }
  void node_dead(NodeId node) {
    alive_.erase(node);
    ++epoch_;
    for (auto& [id, r] : regions_) {
      for (auto& s : r.shards) {
        if (s.in_sync.size() > 1) std::erase(s.in_sync, node);
        if (s.filling == node) s.filling = {};
        if (s.unproven == node) s.unproven = {};
      }
    }
    assign_fills();
    if (observer_.on_nodes_changed) observer_.on_nodes_changed();
  }
  void assign_fills() {
    for (auto& [id, r] : regions_) {
      for (auto& s : r.shards) {
        if (s.filling || s.in_sync.size() >= r.shape.replication || !alive(s.in_sync.front())) continue;
        for (auto& [n, inc] : alive_) {
          if (std::find(s.in_sync.begin(), s.in_sync.end(), n) == s.in_sync.end()) {
            s.filling = n;
            s.serial = ++serial_;
            break;
          }
        }
      }
    }
  }
  /// Every shard that `from` holds is to go to `to`, home and all.
  void move(NodeId from, NodeId to) {
    moving_from_ = from;
    for (auto& [id, r] : regions_) {
      for (auto& s : r.shards) {
        const bool has = std::find(s.in_sync.begin(), s.in_sync.end(), from) != s.in_sync.end();
        const bool gets = std::find(s.in_sync.begin(), s.in_sync.end(), to) == s.in_sync.end();
        if (!has || !gets || s.filling || s.unproven) continue;
        s.filling = to;
        s.serial = ++serial_;
      }
    }
    ++epoch_;
    if (observer_.on_nodes_changed) observer_.on_nodes_changed();
  }
  [[nodiscard]] bool holds_anything(NodeId node) const {
    for (auto& [id, r] : regions_) {
      for (auto& s : r.shards) {
        if (std::find(s.in_sync.begin(), s.in_sync.end(), node) != s.in_sync.end()) return true;
      }
    }
    return false;
  }
  /// A node leaves: each of its shards gets another holder first.
  void drain(NodeId node) {
    for (auto& [id, r] : regions_) {
      for (auto& s : r.shards) {
        if (s.in_sync != std::vector<NodeId>{node}) continue;
        for (auto& [n, inc] : alive_) {
          if (n != node) s.filling = n;
        }
        s.serial = ++serial_;
      }
    }
    if (observer_.on_nodes_changed) observer_.on_nodes_changed();
  }

  bool down = false;
  std::set<NodeId> drained;
  std::uint64_t own_incarnation = 1;
  const std::function<Version(RegionId)>* floors_ = nullptr;

 private:
  void tell(const std::set<RegionId>& changed) const {
    for (const RegionId id : changed) {
      if (observer_.on_placement_changed) observer_.on_placement_changed(id);
    }
  }
  /// Whether whoever was just given the shard replaces the one that it was moved from.
  [[nodiscard]] bool takes_over(const node::ShardCopies& c) const {
    return moving_from_ && std::find(c.in_sync.begin(), c.in_sync.end(), moving_from_) != c.in_sync.end();
  }
  Task<Status> append_and_wait(std::function<void(TestControl&)> entry) {
    auto shot = std::make_shared<OneShot<Status>>();
    log_.append([entry = std::move(entry), shot, proposer = self_](TestControl& c) {
      entry(c);
      if (c.self_ == proposer) c.log_.world.at(c.log_.world.now(), [shot] { shot->set(Status{}); });
    });
    auto done = co_await *shot;
    co_return done;
  }

  Result<std::vector<Result<std::vector<node::RegionVersion>>>> apply_commit(Epoch epoch,
                                                                             const std::vector<node::TxnCommit>& txns) {
    if (epoch.value != epoch_) return fail(Errc::stale_epoch, "the epoch has moved");
    std::vector<Result<std::vector<node::RegionVersion>>> out;
    for (const auto& t : txns) {
      if (auto it = decided_.find(t.txn); it != decided_.end()) {
        out.emplace_back(it->second);
        continue;
      }
      if (incarnation_of(t.txn.node) != t.txn.incarnation) {
        out.emplace_back(fail(Errc::cancelled, "its coordinator is dead"));
        continue;
      }
      std::set<RegionId> named;
      bool sound = true;
      for (const auto& region : t.regions)
        sound = sound && regions_.contains(region.region) && named.insert(region.region).second;
      for (RegionId id : t.bump_only) sound = sound && regions_.contains(id) && named.insert(id).second;
      if (!sound) {
        out.emplace_back(fail(Errc::not_found, "a region that does not exist, or stands there twice"));
        continue;
      }
      std::vector<node::RegionVersion> versions;
      auto bump = [&](RegionId id, const std::vector<node::PageSpan>& pages) {
        auto& r = regions_.at(id);
        r.version = Version{r.version.value + 1};
        for (const auto& s : pages) {
          for (std::uint64_t i = 0; i < s.count; ++i) r.pages[s.first.value + i] = r.version;
        }
        versions.push_back({id, r.version});
        if (observer_.on_commit) {
          observer_.on_commit({.index = applied(), .txn = t.txn, .region = id, .version = r.version, .pages = pages});
        }
      };
      for (const auto& region : t.regions) bump(region.region, region.pages);
      for (RegionId id : t.bump_only) bump(id, {});
      decided_[t.txn] = versions;
      out.emplace_back(versions);
    }
    return out;
  }

  Log& log_;
  NodeId self_;
  node::MemoryObserver observer_;
  std::size_t applied_ = 0;
  std::uint64_t epoch_ = 1;
  std::uint64_t serial_ = 0;
  NodeId moving_from_;
  std::map<NodeId, std::uint64_t> alive_;
  std::map<RegionId, RegionState> regions_;
  std::map<TxnId, std::vector<node::RegionVersion>> decided_;
};

/// A program connected to a node.
class TestSession final : public node::LocalSession {
 public:
  explicit TestSession(std::uint64_t id) : id_(id) {}
  SessionId id() const override { return SessionId{id_}; }
  uid_t uid() const override { return 0; }
  pid_t pid() const override { return 0; }
  const wire::Hello& hello() const override { return hello_; }
  Task<Result<node::LocalReply>> call(node::LocalRequest, Instant) override {
    co_return fail(Errc::unavailable, "not a worker");
  }
  void notify(node::LocalRequest message) override { notices.push_back(std::move(message)); }
  void close() override {}
  std::vector<node::LocalRequest> notices;

 private:
  std::uint64_t id_;
  wire::Hello hello_;
};

/// n memory services in one world. Node ids are 1..n.
class MemoryCluster {
 public:
  struct Member {
    NodeId id;
    std::unique_ptr<SimLoop> loop;
    std::unique_ptr<SimTransport> transport;
    std::unique_ptr<TestControl> control;
    SeenFrames frames;
    FakeFaults faults;
    env::testing::SeededEntropy entropy{99};
    node::MemoryConfig config;
    std::unique_ptr<node::MemoryService> memory;
    node::LocalApi api;
    bool down = false;
  };

  explicit MemoryCluster(std::size_t n, std::uint64_t seed = 1, node::MemoryConfig config = {})
      : network(world, seed), log(world) {
    floor_ = [this](RegionId id) {
      Version lowest{UINT64_MAX};
      for (auto& m : members) {
        if (m->down) continue;
        for (const auto& v : m->memory->lowest_snapshots()) {
          if (v.region == id) lowest = std::min(lowest, v.version);
        }
      }
      return lowest;
    };
    for (std::size_t i = 1; i <= n; ++i) {
      auto m = std::make_unique<Member>();
      m->id = NodeId{i};
      m->config = config;
      if (!config.state_dir.empty()) m->config.state_dir += str("/", i);
      m->control = std::make_unique<TestControl>(log, m->id);
      start(*m);
      log.nodes.push_back(m->control.get());
      members.push_back(std::move(m));
    }
    for (std::size_t i = 1; i <= n; ++i) log.append([i](TestControl& c) { c.node_alive(NodeId{i}, 1); });
    settle();
  }
  ~MemoryCluster() {
    for (auto& m : members) m->memory.reset();
  }

  /// Kills the process of node `n`: nothing of it runs any more. The others hear of its death from the log after
  /// `after`.
  void kill(std::uint64_t n, Duration after = milliseconds(500)) {
    Member& m = *members[n - 1];
    m.down = true;
    m.loop->kill();
    m.control->down = true;
    network.kill(m.id);
    world.at(world.now() + after, [this, n] { log.append([n](TestControl& c) { c.node_dead(NodeId{n}); }); });
  }
  /// Starts it again, empty but for its state directory.
  void restart(std::uint64_t n) {
    Member& m = *members[n - 1];
    const std::uint64_t incarnation = m.control->own_incarnation + 1;
    m.memory.reset();
    m.control->observe({});
    graveyard.push_back(std::move(m.loop));
    m.control->down = false;
    m.control->own_incarnation = incarnation;
    m.down = false;
    m.control->catch_up();
    m.transport.reset();
    m.api = {};
    start(m);
    log.append([n, incarnation](TestControl& c) { c.node_alive(NodeId{n}, incarnation); });
    settle();
  }

  RegionId create(std::uint64_t pages, std::uint32_t replication, std::uint64_t page_bytes = 4096,
                  std::uint64_t block_pages = 2) {
    const RegionId id{next_region_++};
    TestControl::RegionState r;
    r.shape = {.id = id,
               .name = str("r", id),
               .bytes = pages * page_bytes,
               .page_bytes = page_bytes,
               .block_pages = block_pages,
               .replication = replication};
    for (std::size_t s = 0; s < 8; ++s) {
      node::ShardCopies c;
      for (std::size_t k = 0; k < replication; ++k) c.in_sync.push_back(members[(s + k) % members.size()]->id);
      r.shards.push_back(c);
    }
    log.append([r](TestControl& c) { c.create(r); });
    settle();
    return id;
  }
  void settle(Duration d = milliseconds(50)) { world.run_until(world.now() + d); }

  /// Runs `task` on the loop of node n to its end.
  template <class T>
  T run(std::uint64_t n, Task<T> task, Duration limit = seconds(60)) {
    auto slot = std::make_shared<std::optional<T>>();
    members[n - 1]->loop->spawn(store(std::move(task), slot));
    const bool done = world.run_while_not([&] { return slot->has_value(); }, world.now() + limit);
    HOLO_ASSERT(done, "a call that does not end");
    return std::move(**slot);
  }
  /// A request of a local program.
  Result<node::LocalReply> call(std::uint64_t n, std::shared_ptr<TestSession> session, wire::LocalMessage type,
                                const google::protobuf::MessageLite& message, Bytes payload = {},
                                std::vector<env::Fd> fds = {}) {
    node::LocalRequest request{.type = static_cast<std::uint16_t>(type),
                               .header = message.SerializeAsString(),
                               .payload = {},
                               .fds = std::move(fds)};
    if (!payload.empty()) request.payload.emplace_back(std::move(payload));
    return run(n, (*members[n - 1]->api.find(type))(session, std::move(request)));
  }
  std::shared_ptr<TestSession> session() { return std::make_shared<TestSession>(next_session_++); }
  void close(std::uint64_t n, TestSession& session) {
    for (const auto& f : members[n - 1]->api.closed_observers()) f(session);
  }
  node::MemoryService& memory(std::uint64_t n) { return *members[n - 1]->memory; }

  World world;
  Network network;
  TestControl::Log log;
  std::vector<std::unique_ptr<SimLoop>> graveyard;
  std::vector<std::unique_ptr<Member>> members;

 private:
  template <class T>
  static Task<void> store(Task<T> task, std::shared_ptr<std::optional<T>> slot) {
    slot->emplace(co_await task);
  }
  void start(Member& m) {
    m.loop = std::make_unique<SimLoop>(world);
    m.transport = network.attach(m.id, *m.loop);
    m.control->floors_ = &floor_;
    m.memory = node::MemoryService::make({.loop = *m.loop,
                                          .transport = *m.transport,
                                          .frames = m.frames,
                                          .faults = m.faults,
                                          .entropy = m.entropy,
                                          .control = *m.control},
                                         m.config);
    m.memory->serve_local(m.api);
    if (!m.config.state_dir.empty()) {
      const Status ok = run_start(m);
      HOLO_ASSERT(ok.has_value());
    }
  }
  Status run_start(Member& m) {
    auto slot = std::make_shared<std::optional<Status>>();
    m.loop->spawn(store(m.memory->start(), slot));
    world.run_while_not([&] { return slot->has_value(); }, world.now() + seconds(5));
    return **slot;
  }

  std::function<Version(RegionId)> floor_;
  std::uint64_t next_region_ = 1;
  std::uint64_t next_session_ = 1;
};

}  // namespace holo::sim
