// holo bench link --cluster: the link between two agents that run, beside a bare ngtcp2 loop where they live.
#include <algorithm>
#include <chrono>

#include "base/strings.h"
#include "cmd/holo/bench.h"
#include "cmd/holo/link_pair.h"
#include "node/link_bench.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
using Klass = wire::LinkBenchRequest;
constexpr const char* kIdleLink = "the idle link";
constexpr const char* kNoBareLoop = "none: the nodes are not all on this machine (holo dev up)";
constexpr Duration kLimit = seconds(70);
constexpr unsigned kSamples = 10'000;  // of a p99
constexpr unsigned kPages = 8'192;
constexpr unsigned kSlowPages = 1'024;                // Of a link that takes half a second for them.
constexpr std::uint64_t kHeaders = 28, kMargin = 48;  // of IPv4 and UDP; what datagram_bytes() takes off
constexpr std::uint64_t kPacketOverTcp = 1500;
constexpr unsigned kCopies = 16, kHeartbeatMicros = 1000, kHeartbeatBytes = 64, kWarmUp = 200, kQuickly = 100;

struct Sample {
  std::vector<double> took_us;
  double seconds = 0;
  std::uint64_t path_mtu = 0;
  std::string carrier;
};

class AgentsBench {
 public:
  AgentsBench(const BenchOptions& o, AgentLink link) : o_(o), link_(std::move(link)) {}

  Outcome<BenchReport> run() {
    const auto began = Clock::now();
    HOLO_TRY(choose_far_end());
    HOLO_ASSIGN(first, ask(Klass::DATA, kWarmUp, static_cast<std::uint32_t>(kLinkPage), 1));
    HOLO_TRY(start_bare(first.path_mtu));
    std::vector<double> p50, p99, rate, bare_p50, bare_p99, bare_rate, beside, alone;
    const unsigned pages = scaled(shaped_ ? kSlowPages : kPages);
    for (unsigned i = 0; i < repetitions(); ++i) {
      HOLO_ASSIGN(trips, ask(Klass::DATA, scaled(kSamples), static_cast<std::uint32_t>(kLinkPage), 1));
      p50.push_back(percentile(trips.took_us, 0.5));
      p99.push_back(percentile(trips.took_us, 0.99));
      if (bare_) {
        HOLO_ASSIGN(theirs, bare_->client->order(str("round_trips ", scaled(kSamples))));
        bare_p50.push_back(percentile(theirs, 0.5));
        bare_p99.push_back(percentile(theirs, 0.99));
      }
      HOLO_ASSIGN(flood, ask(Klass::DATA, pages, static_cast<std::uint32_t>(kLinkPage), LinkClient::kPagesInFlight));
      rate.push_back(static_cast<double>(pages) * static_cast<double>(kLinkPage) / flood.seconds / 1e9);
      if (bare_) {
        HOLO_ASSIGN(theirs, bare_->client->order(str("throughput ", pages)));
        bare_rate.push_back(median(theirs));
      }
      const unsigned beats = scaled(kSamples / std::min(5U, repetitions()) + 1);
      HOLO_ASSIGN(bulk, ask(Klass::CONTROL, beats, kHeartbeatBytes, 1, kHeartbeatMicros, kCopies));
      HOLO_ASSIGN(idle, ask(Klass::CONTROL, beats, kHeartbeatBytes, 1, kHeartbeatMicros));
      beside.insert(beside.end(), bulk.took_us.begin(), bulk.took_us.end());
      alone.insert(alone.end(), idle.took_us.begin(), idle.took_us.end());
    }
    const char* bare = bare_ ? kBareLoop : kNoBareLoop;
    const auto result = [&](const char* name, const char* unit, double ours, double reference, const char* is) {
      return BenchResult{.name = name, .unit = unit, .ours = ours, .reference = reference, .reference_is = is};
    };
    return BenchReport{.bench = "link",
                       .layout = str(link_.hello().node_name(), " to ", to_, ", ", first.carrier,
                                     shaped_ ? ", net" : "", ", agents as configured"),
                       .nodes = 2,
                       .seconds = std::chrono::duration<double>(Clock::now() - began).count(),
                       .results = {result("rtt_64k_p50", "us", median(p50), median(bare_p50), bare),
                                   result("rtt_64k_p99", "us", median(p99), median(bare_p99), bare),
                                   result("throughput", "GB/s", median(rate), median(bare_rate), bare),
                                   result("heartbeat_p99_under_bulk", "us", percentile(beside, 0.99),
                                          percentile(alone, 0.99), kIdleLink)},
                       .notes = {}};
  }

 private:
  [[nodiscard]] unsigned repetitions() const { return o_.quick ? 1 : std::max(5U, o_.repetitions); }
  [[nodiscard]] unsigned scaled(unsigned n) const { return std::max(1U, o_.quick ? n / kQuickly : n); }

  Outcome<void> choose_far_end() {
    to_ = o_.to;
    if (!to_.empty()) return {};
    HOLO_ASSIGN(status, link_.json(wire::STATUS));
    for (const auto& node : status["nodes"]) {
      const std::string name = node["name"];
      const bool other = node["state"] == "alive" && name != link_.hello().node_name();
      if (other && (to_.empty() || name < to_)) to_ = name;
    }
    if (!to_.empty()) return {};
    return fail(Errc::refused, "there is no other live node in this cluster", "a link has two ends");
  }

  /// Beside the first two nodes, when all of them are on this machine. Their links are alike.
  Outcome<void> start_bare(std::uint64_t path_mtu) {
    auto dev = DevCluster::open(link_.agent().cluster_name);
    const auto is_ours = [&](const DevNode& n) { return n.state_dir == link_.agent().state_dir; };
    if (!dev || dev->nodes().size() < 2 || std::ranges::none_of(dev->nodes(), is_ours)) return {};
    dev_.emplace(std::move(*dev));
    shaped_ = dev_->net() != nullptr;
    LinkPeerOptions options;
    options.engine = "bare";
    options.mtu = path_mtu != 0 ? path_mtu - kHeaders + kMargin : kPacketOverTcp;
    options.poll = o_.poll;
    HOLO_ASSIGN(pair, Pair::start(Ends::beside(*dev_), options));
    bare_.emplace(std::move(pair));
    return {};
  }

  Outcome<Sample> ask(Klass::Klass klass, unsigned count, std::uint32_t bytes, unsigned in_flight,
                      unsigned pause_us = 0, unsigned copies = 0) {
    wire::LinkBenchRequest request;
    request.set_node(to_);
    request.set_klass(klass);
    request.set_count(count);
    request.set_bytes(bytes);
    request.set_in_flight(in_flight);
    request.set_pause_us(pause_us);
    request.set_copies_beside(copies);
    HOLO_ASSIGN(answer, link_.json(wire::LINK_BENCH, request, kLimit));
    Sample out;
    out.took_us = answer["took_us"].get<std::vector<double>>();
    out.seconds = answer["seconds"];
    out.path_mtu = answer["path_mtu"];
    out.carrier = answer["carrier"];
    return out;
  }

  const BenchOptions& o_;
  AgentLink link_;
  std::string to_;
  bool shaped_ = false;
  std::optional<DevCluster> dev_;
  std::optional<Pair> bare_;  // Last: it lives in the cluster's namespaces.
};

}  // namespace

Outcome<BenchReport> bench_link_of_agents(const BenchOptions& o) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  AgentsBench bench(o, std::move(link));
  return bench.run();
}

}  // namespace holo::cmd
