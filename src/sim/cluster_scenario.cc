#include "sim/cluster_scenario.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/strings.h"
#include "sim/cluster.h"
#include "sim/workload.h"

namespace holo::sim {
namespace {

constexpr std::uint64_t kDefaultSeconds = 30;
constexpr Duration kFormed = seconds(40);  // For the cluster to form, with nothing wrong.
constexpr Duration kHealed = seconds(20);  // Everything is as it should be again so long after the last fault ended.
constexpr Duration kDissolved = seconds(60);

/// The run's story: printed when asked for, and always counted into a digest, so that two runs can be compared.
class Story {
 public:
  Story(World& world, bool print) : world_(world), print_(print) {}
  void line(const std::string& text) {
    digest_ = mix64(digest_ ^ hash_of(as_bytes(text)) ^ static_cast<std::uint64_t>(world_.now().ns));
    if (print_) std::printf("%12.6f  %s\n", static_cast<double>(world_.now().ns) * 1e-9, text.c_str());
  }
  [[nodiscard]] std::uint64_t digest() const { return digest_; }

 private:
  World& world_;
  bool print_;
  std::uint64_t digest_ = 0;
};

enum class Fault : std::uint8_t {
  crash,
  crash_all,
  stop,
  pause,
  split,
  one_way,
  partial,
  isolate,
  slow_node,
  loss,
  resets,
  slow_disk,
  full_disk,
  bad_disk,
  wall_jump,
  drift,
  join,
  leave,
  count
};
constexpr const char* kFaultNames[] = {"crashes",      "blackouts",  "stops",      "pauses", "splits", "one_way_cuts",
                                       "partial_cuts", "isolations", "slow_nodes", "losses", "resets", "slow_disks",
                                       "full_disks",   "bad_disks",  "wall_jumps", "drifts", "joins",  "leaves"};
static_assert(std::size(kFaultNames) == static_cast<std::size_t>(Fault::count));

class Run {
 public:
  Run(std::uint64_t seed, Tally& tally, const RunOptions& options)
      : tally_(tally),
        options_(options),
        random_(mix64(seed) ^ 0xC1),
        story_(world_, options.trace),
        cluster_(world_, referee_, settings(seed)),
        workload_(world_, cluster_, referee_, work(seed)) {
    const auto tell = [this](const std::string& text) { story_.line(text); };
    referee_.trace = cluster_.trace = workload_.trace = tell;
    // Each run knows only some faults: all at once would hide what a few alone bring about.
    for (std::size_t i = 0; i < static_cast<std::size_t>(Fault::count); ++i) {
      if (random_.chance(1, 2)) enabled_.push_back(static_cast<Fault>(i));
    }
    if (enabled_.empty()) enabled_.push_back(Fault::crash);
    gap_ = milliseconds(static_cast<std::int64_t>(300 + random_.below(2500)));
  }

  Status play() {
    const Status s = act();
    const Instant limit = world_.now() + kDissolved;
    workload_.stop();
    for (auto& [id, m] : cluster_.machines()) {
      if (m.agent) cluster_.crash(id);
    }
    world_.run_until(world_.now() + seconds(1));
    if (s && !world_.run_while_not([this] { return cluster_.lingering() == 0 && workload_.ended(); }, limit)) {
      return fail(Errc::internal, str("after the end agents still wait for something:", cluster_.who_lingers(),
                                      workload_.ended() ? "" : " and clients"));
    }
    tally_["simulated_seconds"] += static_cast<std::uint64_t>(world_.now().ns / 1'000'000'000);
    tally_["events"] += world_.events();
    tally_["messages"] += cluster_.mesh().messages();
    tally_["entries"] += referee_.entries();
    tally_["states_compared"] += referee_.compared();
    tally_["deaths"] += referee_.deaths();
    tally_["removals"] += referee_.removals();
    tally_["copies_on_two_hosts"] += referee_.spread();
    tally_["lock_grants"] += referee_.lock_grants();
    tally_["fenced_writes"] += workload_.fenced();
    tally_["acknowledged"] += workload_.acknowledged();
    tally_["unknown"] += workload_.unknown();
    tally_["watched"] += workload_.watched();
    tally_["writes_lost_in_crashes"] += cluster_.lost_writes;
    tally_["digest"] ^= story_.digest();
    return s;
  }

 private:
  static ClusterSettings settings(std::uint64_t seed) {
    Random random(mix64(seed) ^ 0xA5);
    ClusterSettings s;
    s.seed = seed;
    s.snapshot_threshold = static_cast<unsigned>(32 << random.below(6));
    s.snapshot_trailing = static_cast<unsigned>(4 << random.below(6));
    s.hosts = random.chance(1, 3) ? 0 : 2 + random.below(3);
    return s;
  }
  static WorkloadSettings work(std::uint64_t seed) {
    WorkloadSettings s;
    s.seed = seed;
    return s;
  }

  Status verdict() const {
    if (referee_.violation()) return fail(Errc::internal, *referee_.violation());
    return {};
  }
  bool run_for(Duration d) {
    const Instant until = world_.now() + d;
    while (!referee_.violation() && world_.now() < until)
      world_.run_until(std::min(until, world_.now() + milliseconds(50)));
    return !referee_.violation();
  }
  Status until_healthy(Duration limit, const char* what) {
    const Instant deadline = world_.now() + limit;
    std::string why;
    while (!cluster_.healthy(why)) {
      HOLO_TRY(verdict());
      if (world_.now() >= deadline) return fail(Errc::internal, str(what, " within ", limit.millis(), " ms: ", why));
      run_for(milliseconds(50));
      (void)cluster_.lingering();
    }
    return verdict();
  }

  Status act() {
    const std::uint64_t nodes = options_.nodes != 0 ? options_.nodes : 3 + random_.below(5);
    for (std::uint64_t i = 0; i < nodes; ++i) {
      Machine& m = cluster_.add_machine();
      cluster_.start(m.id);
      if (i == 0) run_for(milliseconds(1500));
    }
    HOLO_TRY(until_healthy(kFormed, "the cluster did not form"));
    workload_.start();
    story_.line(str("the cluster of ", nodes, " has formed; faults begin"));
    const std::uint64_t length = options_.seconds != 0 ? options_.seconds : kDefaultSeconds;
    faults_end_ = world_.now() + seconds(static_cast<std::int64_t>(length));
    next_fault();
    while (world_.now() < faults_end_) {
      if (!run_for(milliseconds(500))) return verdict();
      (void)cluster_.lingering();
    }
    return heal();
  }

  Status heal() {
    story_.line("all faults end");
    workload_.stop();
    mend_network();
    for (auto& [id, m] : cluster_.machines()) {
      m.disk->faults() = {};
      m.drift = 0;
      if (m.agent && m.agent->loop.paused()) m.agent->loop.resume();
      if (m.agent) m.agent->loop.set_drift(0);
      cluster_.start(id);
    }
    const Instant began = world_.now();
    HOLO_TRY(until_healthy(kHealed, "not healed"));
    tally_["slowest_heal_ms"] =
        std::max(tally_["slowest_heal_ms"], static_cast<std::uint64_t>((world_.now() - began).millis()));
    if (!world_.run_while_not([this] { return workload_.ended() || referee_.violation().has_value(); },
                              world_.now() + seconds(30))) {
      return fail(Errc::internal, "requests of clients do not end");
    }
    HOLO_TRY(verdict());
    std::size_t looked = 0;
    const std::size_t up = cluster_.up().size();
    workload_.look_at_the_end(looked);
    world_.run_while_not([&] { return workload_.ended(); }, world_.now() + seconds(15));
    if (looked != up)
      return fail(Errc::internal, str("only ", looked, " of ", up, " nodes serve their clients in the end"));
    HOLO_TRY(until_healthy(seconds(5), "not healed for good"));
    for (auto& [id, m] : cluster_.machines()) {
      if (m.agent && !m.left) referee_.compare(id, m.agent->control->state());
    }
    workload_.judge();
    referee_.finish();
    return verdict();
  }

  // ---- Faults

  Machine& any() {
    auto it = cluster_.machines().begin();
    std::advance(it, static_cast<std::ptrdiff_t>(random_.below(cluster_.machines().size())));
    return it->second;
  }
  Duration some(std::int64_t least_ms, std::int64_t most_ms) {
    return milliseconds(least_ms +
                        static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(most_ms - least_ms + 1))));
  }
  void later(Duration d, std::function<void()> f) { world_.at(world_.now() + d, std::move(f)); }
  void mend_network() {
    cluster_.mesh().heal();
    cluster_.mesh().faults() = {};
    workload_.split_ended();
  }

  void next_fault() {
    later(some(gap_.millis() / 3, gap_.millis() * 5 / 3), [this] {
      if (world_.now() >= faults_end_) return;
      const Fault f = enabled_[random_.below(enabled_.size())];
      if (strike(f)) ++tally_[kFaultNames[static_cast<std::size_t>(f)]];
      next_fault();
    });
  }

  /// False when there was nothing to strike.
  bool strike(Fault f) {
    Machine& m = any();
    const NodeId id = m.id;
    switch (f) {
      case Fault::crash:
        if (!m.agent) return false;
        cluster_.crash(id);
        maybe_move(m);
        later(some(0, 8000), [this, id] { cluster_.start(id); });
        return true;
      case Fault::crash_all:
        if (!random_.chance(1, 3)) return false;
        story_.line("the power fails everywhere");
        for (auto& [other, machine] : cluster_.machines()) {
          cluster_.crash(other);
          later(some(0, 4000), [this, other = other] { cluster_.start(other); });
        }
        return true;
      case Fault::stop:
        if (!m.agent || !m.booted) return false;
        cluster_.stop(id);
        later(some(3500, 8000), [this, id] { cluster_.start(id); });
        return true;
      case Fault::pause: {
        if (!m.agent || m.agent->loop.paused()) return false;
        const Duration d = random_.chance(1, 5) ? some(5000, 15000) : some(50, 4000);
        story_.line(str(m.name, " stands still for ", d.millis(), " ms"));
        m.agent->loop.pause();
        const std::uint64_t start = m.starts;
        later(d, [this, id, start] {
          Machine& again = cluster_.at(id);
          if (again.agent && again.starts == start && again.agent->loop.paused()) again.agent->loop.resume();
        });
        return true;
      }
      case Fault::split: return split();
      case Fault::one_way:
      case Fault::partial: {
        const NodeId other = any().id;
        if (other == id) return false;
        story_.line(str("nothing comes from ", id, " to ", other, f == Fault::partial ? ", nor back" : ""));
        cluster_.mesh().cut(id, other);
        if (f == Fault::partial) cluster_.mesh().cut(other, id);
        mend_later();
        return true;
      }
      case Fault::isolate:
        story_.line(str(m.name, " is isolated"));
        for (auto& [other, machine] : cluster_.machines()) cluster_.mesh().cut_both(id, other);
        mend_later();
        return true;
      case Fault::slow_node:
        cluster_.mesh().slow(id, some(20, 400));
        mend_later();
        return true;
      case Fault::loss:
        cluster_.mesh().faults().loss_per_thousand = static_cast<std::uint32_t>(10 + random_.below(300));
        mend_later();
        return true;
      case Fault::resets:
        cluster_.mesh().faults().reset_per_million = static_cast<std::uint32_t>(1000 + random_.below(30000));
        mend_later();
        return true;
      case Fault::slow_disk:
        m.disk->faults().max_sync = some(20, 1200);
        mend_disk_later(id);
        return true;
      case Fault::full_disk:
        m.disk->faults().full = true;
        story_.line(str("the disk of ", m.name, " is full"));
        mend_disk_later(id);
        return true;
      case Fault::bad_disk:  // Found when it is read: at the next start.
        (random_.chance(1, 2) ? m.disk->faults().corrupt : m.disk->faults().unreadable) = true;
        story_.line(str("the disk of ", m.name, " cannot be read"));
        if (m.agent && random_.chance(1, 2)) {
          cluster_.crash(id);
          later(some(0, 3000), [this, id] { cluster_.start(id); });
        }
        mend_disk_later(id);
        return true;
      case Fault::wall_jump:
        m.wall_offset = some(-60'000, 60'000);
        if (random_.chance(1, 10)) m.wall_offset = m.wall_offset * 1000;
        if (m.agent) m.agent->loop.set_wall_offset(m.wall_offset);
        return true;
      case Fault::drift:
        m.drift = static_cast<std::int64_t>(random_.below(20'001)) - 10'000;
        if (m.agent) m.agent->loop.set_drift(m.drift);
        return true;
      case Fault::join: {
        if (cluster_.machines().size() >= 9) return false;
        const NodeId fresh = cluster_.add_machine().id;
        cluster_.start(fresh);
        return true;
      }
      case Fault::leave: {
        std::size_t members = 0;
        for (auto& [other, machine] : cluster_.machines()) members += machine.left ? 0 : 1;
        if (members <= 3 || !m.agent || !m.booted || m.left) return false;
        cluster_.leave(id, [](const Status&) {});
        return true;
      }
      case Fault::count: break;
    }
    return false;
  }

  bool split() {
    std::vector<NodeId> side;
    std::map<NodeId, int> sides;
    for (auto& [id, m] : cluster_.machines()) {
      const bool there = random_.chance(1, 2);
      sides[id] = there ? 1 : 2;
      if (there) side.push_back(id);
    }
    if (side.empty() || side.size() == cluster_.machines().size()) return false;
    mend_network();
    std::string text;
    for (const NodeId a : side) {
      text += str(" ", cluster_.at(a).name);
      for (auto& [b, m] : cluster_.machines()) {
        if (sides[b] == 2) cluster_.mesh().cut_both(a, b);
      }
    }
    story_.line("the network splits:" + text);
    // Answers that were on their way may still come; the clients' clock begins after them.
    const std::uint64_t number = ++splits_;
    later(cluster_.mesh().faults().max_delay * 4, [this, sides = std::move(sides), number] {
      if (splits_ == number) workload_.split_began(sides);
    });
    mend_later();
    return true;
  }

  void mend_later() {
    later(random_.chance(1, 5) ? some(5000, 12000) : some(100, 5000), [this] {
      ++splits_;
      story_.line("the network is whole");
      mend_network();
    });
  }
  void mend_disk_later(NodeId id) {
    later(some(200, 5000), [this, id] {
      cluster_.at(id).disk->faults() = {};
      if (cluster_.at(id).agent) cluster_.at(id).agent->disk->faults() = {};
    });
  }
  /// A machine may come back with another address, as long as enough others know where the rest is.
  void maybe_move(Machine& m) {
    std::size_t off = 0;
    for (auto& [id, other] : cluster_.machines()) off += !other.left && (!other.agent || !other.booted) ? 1 : 0;
    if (off > 1 || !random_.chance(1, 6)) return;
    m.address = str(m.name, ":", 2 + m.starts);
    ++tally_["moves"];
    story_.line(str(m.name, " will be at ", m.address));
  }

  Tally& tally_;
  RunOptions options_;
  Random random_;
  World world_;
  Story story_;
  Referee referee_;
  Cluster cluster_;
  Workload workload_;
  std::vector<Fault> enabled_;
  Duration gap_;
  Instant faults_end_;
  std::uint64_t splits_ = 0;
};

}  // namespace

Status run_cluster_with(std::uint64_t seed, Tally& tally, const RunOptions& options) {
  // What the agents log is not for people here; with --trace it is.
  set_log_sink(
      [print = options.trace](LogLevel, std::string_view area, std::string_view text) {
        if (print)
          std::printf("              log %.*s: %.*s\n", static_cast<int>(area.size()), area.data(),
                      static_cast<int>(text.size()), text.data());
      },
      options.trace ? LogLevel::info : LogLevel::error);
  Run run(seed, tally, options);
  return run.play();
}

Status run_cluster(std::uint64_t seed, Tally& tally) { return run_cluster_with(seed, tally, {}); }

}  // namespace holo::sim
