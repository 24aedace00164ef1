// holo bench link: one connection between two processes, beside a bare ngtcp2 loop between two others.
#include <algorithm>
#include <chrono>

#include "base/strings.h"
#include "cmd/holo/bench.h"
#include "cmd/holo/link_pair.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kIdleLink = "the idle link";
constexpr const char* kNoPeer = "none";
constexpr std::uint64_t kPacket = 1500, kJumboPacket = 9000;
constexpr unsigned kSamples = 10'000;  // of a p99
constexpr unsigned kPages = 16'384;    // 1 GiB of 64 KiB
constexpr unsigned kProcesses = 3;     // pairs of them for each repetition
constexpr unsigned kNetPages = 1'024;  // 64 MiB: half a second of 1 Gbit/s
constexpr unsigned kHandshakes = 100;
constexpr unsigned kIdle = 1'000;                    // connections
constexpr unsigned kSettle = 3'000, kRest = 15'000;  // ms
constexpr unsigned kQuickly = 100;                   // times fewer of everything

struct Both {
  Pair ours, bare;
  static Outcome<Both> start(const Ends& ends, LinkPeerOptions o) {
    Both out;
    HOLO_ASSIGN(ours, Pair::start(ends, o));
    o.engine = "bare";
    HOLO_ASSIGN(bare, Pair::start(ends, o));
    out.ours = std::move(ours);
    out.bare = std::move(bare);
    return out;
  }
};

/// One figure in the making: its value in each repetition, on both sides.
struct Series {
  std::vector<double> ours, reference;
  [[nodiscard]] BenchResult result(std::string name, std::string unit, std::string reference_is) const {
    return {.name = std::move(name),
            .unit = std::move(unit),
            .ours = median(ours),
            .reference = median(reference),
            .reference_is = std::move(reference_is)};
  }
};

class LinkBench {
 public:
  LinkBench(const BenchOptions& o, const Ends& ends) : o_(o), ends_(ends) {}

  Outcome<std::vector<BenchResult>> run() {
    HOLO_TRY(at_packet_size());
    HOLO_TRY(polling());
    HOLO_TRY(throughput(packet(), throughput_));
    const bool wide = !ends_.shaped();  // The cables of the net layout carry packets of 1,500 bytes.
    if (wide) HOLO_TRY(throughput(kJumboPacket, jumbo_));
    HOLO_TRY(memory());
    std::vector<BenchResult> results{p50_.result("rtt_64k_p50", "us", kBareLoop),
                                     p99_.result("rtt_64k_p99", "us", kBareLoop),
                                     polling_.result("rtt_64k_polling_p50", "us", kBareLoop),
                                     throughput_.result("throughput", "GB/s", kBareLoop),
                                     handshake_.result("handshake_p50", "ms", kBareLoop),
                                     {.name = "heartbeat_p99_under_bulk",
                                      .unit = "us",
                                      .ours = percentile(beside_bulk_, 0.99),
                                      .reference = percentile(alone_, 0.99),
                                      .reference_is = kIdleLink},
                                     memory_.result("conn_memory", "KiB", kBareLoop),
                                     tcp_memory_.result("conn_memory_tcp", "KiB", kNoPeer),
                                     idle_.result("conn_idle_cpu", "%", kNoPeer)};
    if (wide) results.insert(results.begin() + 4, jumbo_.result("throughput_jumbo", "GB/s", kBareLoop));
    return results;
  }

 private:
  [[nodiscard]] unsigned repetitions() const { return o_.quick ? 1 : std::max(5U, o_.repetitions); }
  [[nodiscard]] unsigned scaled(unsigned n) const { return std::max(1U, o_.quick ? n / kQuickly : n); }
  [[nodiscard]] LinkPeerOptions options(std::uint64_t mtu) const {
    LinkPeerOptions out;
    out.mtu = mtu;
    out.poll = o_.poll;
    return out;
  }
  [[nodiscard]] std::uint64_t packet() const { return o_.mtu != 0 ? o_.mtu : kPacket; }
  [[nodiscard]] unsigned pages() const { return scaled(ends_.shaped() ? kNetPages : kPages); }

  Outcome<void> at_packet_size() {
    HOLO_ASSIGN(both, Both::start(ends_, options(packet())));
    for (unsigned i = 0; i < repetitions(); ++i) {
      HOLO_ASSIGN(ours, both.ours.client->order(str("round_trips ", scaled(kSamples))));
      HOLO_ASSIGN(theirs, both.bare.client->order(str("round_trips ", scaled(kSamples))));
      p50_.ours.push_back(percentile(ours, 0.5));
      p50_.reference.push_back(percentile(theirs, 0.5));
      p99_.ours.push_back(percentile(ours, 0.99));
      p99_.reference.push_back(percentile(theirs, 0.99));
      HOLO_TRY(alternate(both, str("handshakes ", scaled(kHandshakes)), handshake_));
      // Of all repetitions together there are enough for a p99.
      const unsigned beats = scaled(kSamples / std::min(5U, repetitions()) + 1);
      HOLO_ASSIGN(bulk, both.ours.client->order(str("heartbeats_bulk ", beats)));
      HOLO_ASSIGN(idle, both.ours.client->order(str("heartbeats_idle ", beats)));
      beside_bulk_.insert(beside_bulk_.end(), bulk.begin(), bulk.end());
      alone_.insert(alone_.end(), idle.begin(), idle.end());
    }
    return {};
  }

  Outcome<void> polling() {
    LinkPeerOptions o = options(packet());
    o.poll = true;
    HOLO_ASSIGN(both, Both::start(ends_, o));
    for (unsigned i = 0; i < repetitions(); ++i) {
      HOLO_TRY(alternate(both, str("round_trips ", scaled(kSamples / 4)), polling_));
    }
    return {};
  }

  /// In new processes each time: where their memory happens to lie makes some per cent of it.
  Outcome<void> throughput(std::uint64_t mtu, Series& series) {
    for (unsigned i = 0; i < (o_.quick ? 1 : kProcesses * repetitions()); ++i) {
      HOLO_ASSIGN(both, Both::start(ends_, options(mtu)));
      HOLO_TRY(alternate(both, str("throughput ", pages()), series));
    }
    return {};
  }

  /// What a server grows by for each connection of a thousand, and how much of a core all of them take.
  Outcome<void> memory() {
    const unsigned count = scaled(kIdle);
    for (unsigned i = 0; i < (o_.quick ? 1U : 2U); ++i) {
      for (const char* engine : {"holo", "bare", "tcp"}) {
        LinkPeerOptions o = options(packet());
        o.engine = engine;
        HOLO_ASSIGN(pair, Pair::start(ends_, o));
        HOLO_TRY(pair.client->order("handshakes 2"));
        const std::uint64_t before = pair.server->resident();
        HOLO_TRY(pair.client->order(str("keep_idle ", count)));
        const double each = static_cast<double>(pair.server->resident() - before) / 1024 / count;
        if (o.engine == "bare") memory_.reference.push_back(each);
        if (o.engine == "tcp") tcp_memory_.ours.push_back(each);
        if (o.engine != "holo") continue;
        memory_.ours.push_back(each);
        HOLO_TRY(pair.client->order(str("rest ", scaled(kSettle))));
        const Duration used = pair.server->used();
        HOLO_TRY(pair.client->order(str("rest ", scaled(kRest))));
        idle_.ours.push_back(static_cast<double>((pair.server->used() - used).ns) / scaled(kRest) / 1e4);
      }
    }
    return {};
  }

  Outcome<void> alternate(Both& both, const std::string& order, Series& series) {
    HOLO_ASSIGN(ours, both.ours.client->order(order));
    HOLO_ASSIGN(theirs, both.bare.client->order(order));
    series.ours.push_back(median(ours));
    series.reference.push_back(median(theirs));
    return {};
  }

  const BenchOptions& o_;
  const Ends& ends_;
  Series p50_, p99_, polling_, throughput_, jumbo_, handshake_, memory_, tcp_memory_, idle_;
  std::vector<double> beside_bulk_, alone_;
};

}  // namespace

Outcome<BenchReport> bench_link(const BenchOptions& o) {
  if (o.joined) return bench_link_of_agents(o);
  const auto began = Clock::now();
  std::unique_ptr<OwnCluster> own;
  if (o.layout == "net") {  // Its agents have nothing to do; the peers live beside them, in the same namespaces.
    BenchOptions two = o;
    two.nodes = 2;
    HOLO_ASSIGN(started, OwnCluster::start(two, 64 << 20));
    own = std::move(started);
  }
  const Ends ends = own ? Ends::beside(own->dev()) : Ends::on_two_cores();
  LinkBench bench(o, ends);
  HOLO_ASSIGN(results, bench.run());
  std::vector<std::string> notes;
  if (own) notes.emplace_back("throughput_jumbo is left out: the cables of this layout carry packets of 1,500 bytes");
  return BenchReport{.bench = "link",
                     .layout = str(own             ? own->layout()
                                   : ends.pinned() ? "loopback, cross-core"
                                                   : "loopback, one core",
                                   o.poll ? ", polling" : ", blocking"),
                     .nodes = 2,
                     .seconds = std::chrono::duration<double>(Clock::now() - began).count(),
                     .results = std::move(results),
                     .notes = std::move(notes)};
}

}  // namespace holo::cmd
