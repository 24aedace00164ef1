// holo bench fetch | fault: pages of an array that live on another node, read by calls and touched in mapped memory.
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <holo/holo.hpp>

#include "base/random.h"
#include "base/strings.h"
#include "cmd/holo/link_pair.h"
#include "cmd/holo/units.h"
#include "driver/posix/asio_loop.h"
#include "driver/posix/udp.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
using Array = SharedArray<std::uint64_t>;
constexpr const char* kFaultFloor = "bare ngtcp2 loop behind userfaultfd: fault, request, UFFDIO_COPY";
constexpr const char* kUpgradeFloor = "userfaultfd alone: write-protection fault, lifted";
constexpr unsigned kPages = 4096;         // of each array; about half of them live elsewhere
constexpr std::size_t kSamples = 10'000;  // of a p99
constexpr std::uint64_t kScanPiece = 8 << 20;
constexpr unsigned kQuickly = 16;

double micros_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

/// As nodes choose it by themselves: what loopback carries, else the 1,444 bytes of datagram that they find.
std::uint64_t packet_bytes(const OwnCluster& own) {
  constexpr std::uint64_t kHeaders = 48, kFound = 1444;
  env::IpEndpoint here;
  here.ip = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1};
  driver::AsioLoop loop;
  const std::uint64_t known = own.dev().net() != nullptr ? 0 : driver::UdpDatagrams(loop).known_payload(here);
  return kHeaders + (known != 0 ? known : kFound);
}

/// Two nodes of its own, this program at the first, and the reference between two further processes.
class TwoNodes {
 public:
  static Outcome<std::unique_ptr<TwoNodes>> start(const BenchOptions& o) {
    const auto page = parse_size(o.page);
    if (!page) return usage(page.error());
    std::unique_ptr<TwoNodes> out(new TwoNodes(*page, o.quick ? kPages / kQuickly : kPages));
    BenchOptions two = o;
    two.nodes = 2;
    HOLO_ASSIGN(own, OwnCluster::start(two, std::max<std::uint64_t>(64 << 20, 6 * *page * kPages)));
    out->own_ = std::move(own);
    TargetOptions target;
    target.state_dir = out->own_->dev().nodes().front().state_dir;
    HOLO_ASSIGN(agent, find_agent(target));
    ::setenv("HOLO_SOCKET", agent.socket.c_str(), 1);
    HOLO_ASSIGN(cluster, connect());
    out->cluster_.emplace(std::move(cluster));
    LinkPeerOptions bare;
    bare.engine = "bare";
    bare.mtu = packet_bytes(*out->own_);
    bare.page = *page;
    HOLO_ASSIGN(pair, Pair::start(Ends::beside(out->own_->dev()), bare));
    out->bare_ = std::move(pair);
    return out;
  }

  [[nodiscard]] std::string layout() const { return str(own_->layout(), ", blocking, pages of ", page_, " bytes"); }
  [[nodiscard]] std::uint64_t page() const { return page_; }
  [[nodiscard]] std::uint64_t words() const { return page_ / sizeof(std::uint64_t); }
  LinkPeer& bare() { return *bare_.client; }

  /// A filled array that nothing of is here but what has its home here.
  struct Fresh {
    Array array;
    std::vector<std::uint64_t> far;  ///< Pages that live on the other node, in a random order.
    std::vector<std::pair<std::uint64_t, std::uint64_t>> far_runs;  ///< The same as ranges of elements.
  };
  Outcome<Fresh> fresh_array() {
    const std::string name = str("bench/far-", ::getpid());
    HOLO_ASSIGN(xs, cluster_->array<std::uint64_t>(name, words() * pages_, {.page_bytes = page_}));
    HOLO_TRY(cluster_
                 ->parallel_for(xs,
                                [](Chunk<std::uint64_t> c) {
                                  for (std::uint64_t i = c.first(); i < c.last(); ++i) c[i] = i;
                                })
                 .wait());
    HOLO_TRY(xs.sync());
    // Work is done where pages live, by children of that node's agent.
    HOLO_ASSIGN(chunks, cluster_
                            ->map(xs,
                                  [](Chunk<const std::uint64_t> c) {
                                    return std::vector<std::uint64_t>{c.first(), c.last(),
                                                                      static_cast<std::uint64_t>(::getppid())};
                                  })
                            .get());
    Fresh out{.array = std::move(xs), .far = {}, .far_runs = {}};
    const auto far_agent = static_cast<std::uint64_t>(own_->dev().nodes().back().process.pid);
    for (const auto& c : chunks) {
      if (c.at(2) != far_agent) continue;
      out.far_runs.emplace_back(c[0], c[1]);
      for (std::uint64_t p = c[0] / words(); p < c[1] / words(); ++p) out.far.push_back(p);
    }
    if (out.far.empty()) return fail(Errc::internal, "no page of the array lives on the other node");
    for (std::size_t i = out.far.size(); i > 1; --i) std::swap(out.far[i - 1], out.far[random_.next() % i]);
    return out;
  }
  Status free(Fresh fresh) {
    const std::string name = fresh.array.name();
    {
      const Fresh gone = std::move(fresh);
    }
    return cluster_->free(name);
  }

 private:
  TwoNodes(std::uint64_t page, unsigned pages) : page_(page), pages_(pages) {}
  const std::uint64_t page_;
  const unsigned pages_;
  std::unique_ptr<OwnCluster> own_;
  std::optional<Cluster> cluster_;
  Pair bare_;
  Random random_{1};
};

struct Figure {
  std::vector<double> ours, reference;  ///< Medians of the repetitions.
  std::vector<double> all_ours, all_reference;
  void add(const std::vector<double>& o, const std::vector<double>& r) {
    ours.push_back(median(o));
    reference.push_back(median(r));
    all_ours.insert(all_ours.end(), o.begin(), o.end());
    all_reference.insert(all_reference.end(), r.begin(), r.end());
  }
  [[nodiscard]] BenchResult p50(const char* name, const char* unit, const char* is) const {
    return {.name = name, .unit = unit, .ours = median(ours), .reference = median(reference), .reference_is = is};
  }
  [[nodiscard]] BenchResult p99(const char* name, const char* unit, const char* is) const {
    return {.name = name,
            .unit = unit,
            .ours = percentile(all_ours, 0.99),
            .reference = percentile(all_reference, 0.99),
            .reference_is = is};
  }
};

bool enough(const BenchOptions& o, unsigned done, std::size_t samples) {
  return o.quick ? done >= 1 : done >= std::max(5U, o.repetitions) && samples >= kSamples;
}

Outcome<std::vector<double>> read_far(TwoNodes& nodes, const TwoNodes::Fresh& fresh) {
  std::vector<std::uint64_t> room(nodes.words());
  std::vector<double> out;
  for (const std::uint64_t page : fresh.far) {
    const auto start = Clock::now();
    HOLO_TRY(fresh.array.read(page * nodes.words(), room));
    out.push_back(micros_since(start));
    if (room.front() != page * nodes.words()) return fail(Errc::internal, "a page holds what it should not");
  }
  return out;
}

/// GB/s, in order, in large pieces.
Outcome<double> scan_far(const TwoNodes::Fresh& fresh) {
  std::vector<std::uint64_t> room(kScanPiece / sizeof(std::uint64_t));
  std::uint64_t bytes = 0;
  const auto start = Clock::now();
  for (const auto& [first, last] : fresh.far_runs) {
    for (std::uint64_t at = first; at < last;) {
      const std::uint64_t n = std::min<std::uint64_t>(room.size(), last - at);
      HOLO_TRY(fresh.array.read(at, std::span(room).first(n)));
      bytes += n * sizeof(std::uint64_t);
      at += n;
    }
  }
  return static_cast<double>(bytes) / micros_since(start) / 1e3;
}

enum class Touch : std::uint8_t { read, write };

Outcome<std::vector<double>> touch_far(TwoNodes& nodes, TwoNodes::Fresh& fresh, Touch how) {
  HOLO_ASSIGN(span, fresh.array.map_write());
  std::vector<double> out;
  for (const std::uint64_t page : fresh.far) {
    volatile std::uint64_t* at = span.data() + page * nodes.words() + nodes.words() / 2;
    const auto start = Clock::now();
    if (how == Touch::write) {
      *at = 1;
    } else {
      (void)*at;
    }
    out.push_back(micros_since(start));
  }
  return out;
}

unsigned count_of(const TwoNodes::Fresh& fresh) { return static_cast<unsigned>(fresh.far.size()); }

}  // namespace

Outcome<BenchReport> bench_fetch(const BenchOptions& o) {
  const auto began = Clock::now();
  HOLO_ASSIGN(nodes, TwoNodes::start(o));
  Figure fetch, scan;
  for (unsigned i = 0; !enough(o, i, fetch.all_ours.size()); ++i) {
    HOLO_ASSIGN(one, nodes->fresh_array());
    const unsigned count = count_of(one);
    HOLO_ASSIGN(ours, read_far(*nodes, one));
    HOLO_ASSIGN(theirs, nodes->bare().order(str("round_trips ", count)));
    fetch.add(ours, theirs);
    HOLO_TRY(nodes->free(std::move(one)));
    HOLO_ASSIGN(other, nodes->fresh_array());
    HOLO_ASSIGN(rate, scan_far(other));
    HOLO_ASSIGN(bare_rate, nodes->bare().order(str("throughput ", count_of(other))));
    scan.add({rate}, bare_rate);
    HOLO_TRY(nodes->free(std::move(other)));
  }
  return BenchReport{.bench = "fetch",
                     .layout = nodes->layout(),
                     .nodes = 2,
                     .seconds = micros_since(began) / 1e6,
                     .results = {fetch.p50("fetch_p50", "us", kBareLoop), fetch.p99("fetch_p99", "us", kBareLoop),
                                 scan.p50("scan", "GB/s", kBareLoop)}};
}

Outcome<BenchReport> bench_fault(const BenchOptions& o) {
  const auto began = Clock::now();
  HOLO_ASSIGN(nodes, TwoNodes::start(o));
  Figure read, write, upgrade;
  for (unsigned i = 0; !enough(o, i, read.all_ours.size()); ++i) {
    HOLO_ASSIGN(one, nodes->fresh_array());
    const unsigned count = count_of(one);
    HOLO_ASSIGN(ours, touch_far(*nodes, one, Touch::read));
    HOLO_ASSIGN(theirs, nodes->bare().order(str("faulted_reads ", count)));
    read.add(ours, theirs);
    HOLO_ASSIGN(upgraded, touch_far(*nodes, one, Touch::write));
    HOLO_ASSIGN(bare_upgraded, nodes->bare().order(str("faulted_upgrades ", count)));
    upgrade.add(upgraded, bare_upgraded);
    HOLO_TRY(nodes->free(std::move(one)));
    HOLO_ASSIGN(other, nodes->fresh_array());
    HOLO_ASSIGN(written, touch_far(*nodes, other, Touch::write));
    write.add(written, theirs);
    HOLO_TRY(nodes->free(std::move(other)));
  }
  return BenchReport{
      .bench = "fault",
      .layout = nodes->layout(),
      .nodes = 2,
      .seconds = micros_since(began) / 1e6,
      .results = {read.p50("read_p50", "us", kFaultFloor), read.p99("read_p99", "us", kFaultFloor),
                  write.p50("write_p50", "us", kFaultFloor), upgrade.p50("upgrade_p50", "us", kUpgradeFloor)},
      .notes = {"pingpong_p50 is left out: in phased mode nobody sees a page of another writer before it is synced"}};
}

}  // namespace holo::cmd
