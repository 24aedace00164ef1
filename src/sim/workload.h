// What processes do with a simulated cluster: they read and write keys, hold locks, keep leases, watch, and make and
// free regions, and write down what they were told.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "sim/cluster.h"
#include "sim/linearizability.h"
#include "sim/referee.h"

namespace holo::sim {

struct WorkloadSettings {
  std::uint64_t seed = 1;
  unsigned writers = 5, lockers = 3, watchers = 2, builders = 1;
  unsigned keys = 6, locks = 2;
  Duration think = milliseconds(60);  ///< On average between two requests of one process.
};

/// Thread: the world's. Its processes run until stop(), and a little longer.
class Workload {
 public:
  Workload(World& world, Cluster& cluster, Referee& referee, WorkloadSettings settings);
  ~Workload();
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  void start();
  void stop() { stopping_ = true; }
  [[nodiscard]] bool ended() const { return loop_.running() == 0; }
  /// Each machine that is up writes a key, then reads all of them: what was acknowledged must be there. `done` counts
  /// machines that did.
  void look_at_the_end(std::size_t& done);
  /// Judges the history. Breaks it to the referee.
  void judge();

  [[nodiscard]] std::uint64_t acknowledged() const { return acknowledged_; }
  [[nodiscard]] std::uint64_t unknown() const { return unknown_; }
  [[nodiscard]] std::uint64_t fenced() const { return fenced_; }
  [[nodiscard]] std::uint64_t watched() const { return watched_; }
  [[nodiscard]] const std::vector<Operation>& history() const { return history_; }

  /// The side of a split that the machine is on; set while the whole network is split in two, so that both sides of it
  /// cannot be answered. 0: no split.
  void split_began(std::map<NodeId, int> sides);
  void split_ended() { sides_.clear(); }
  std::function<void(const std::string&)> trace;

 private:
  struct Client {
    std::uint64_t id = 0;
    NodeId home;
    std::shared_ptr<SimSession> session;
    Random random{0};
  };
  using ClientPtr = std::shared_ptr<Client>;
  struct Answer {
    Result<std::string> reply = fail(Errc::internal, "");
    bool unknown = false;  ///< It may have been done.
    std::int64_t begin = 0, end = 0;
  };

  static Task<void> writer(Workload* w, ClientPtr c);
  static Task<void> locker(Workload* w, ClientPtr c);
  static Task<void> hold(Workload* w, ClientPtr c, std::uint64_t lease, std::string lock, std::uint64_t token);
  static Task<void> watcher(Workload* w, ClientPtr c);
  static Task<void> builder(Workload* w, ClientPtr c);
  static Task<void> filler(Workload* w);
  static Task<void> echo(Workload* w);
  static Task<void> last_look(Workload* w, NodeId node, std::size_t* done);
  static Task<Answer> ask(Workload* w, ClientPtr c, std::uint16_t type, std::string header);
  static Task<void> pause(Workload* w, ClientPtr c, Duration about);
  static Task<void> write(Workload* w, ClientPtr c, Operation op);
  static Task<void> read(Workload* w, ClientPtr c, std::vector<std::string> keys);
  ClientPtr make_client();
  NodeId choose(Random& random);
  [[nodiscard]] std::vector<Operation> with_revisions(const std::string& key) const;
  void record(Operation op, const Answer& a);
  std::int64_t tick() { return ++clock_; }
  void say(const std::string& text) {
    if (trace) trace(text);
  }

  World& world_;
  Cluster& cluster_;
  Referee& referee_;
  WorkloadSettings settings_;
  Random random_;
  SimLoop loop_;
  bool stopping_ = false;
  std::int64_t clock_ = 0;
  std::uint64_t next_client_ = 1;
  std::uint64_t next_value_ = 1;
  std::vector<Operation> history_;
  std::uint64_t acknowledged_ = 0, unknown_ = 0, fenced_ = 0, watched_ = 0;
  std::map<NodeId, int> sides_;
  std::int64_t split_since_ = 0;
  int answered_side_ = 0;
};

}  // namespace holo::sim
