#include "sim/hyperbus_scenario.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/strings.h"
#include "driver/quic/quic.h"
#include "env/entropy_testing.h"
#include "env/landing_testing.h"
#include "sim/datagrams.h"
#include "sim/packet_host.h"

namespace holo::sim {
namespace {

using env::StreamClass;
using hyperbus::StreamId;
using LinkPtr = PacketHost::LinkPtr;

// The story: links are made, and requests asked, while faults come and go; then the network is well again, and all is
// as it should be.
constexpr Duration kTrouble = seconds(4);
constexpr Duration kRecovery = seconds(3);   // After it, everybody has a new connection to everybody.
constexpr Duration kSettling = seconds(12);  // The longest idle time-out, and the longest deadline.
constexpr Duration kLongestDeadline = seconds(5);
/// Between a deadline and its ReplyArrived; the clock may have been off by so much when its timer was set.
constexpr Duration kLate = milliseconds(50);
/// Connection ids of one session: the client's made-up one, ours in use, and spare ones.
constexpr std::size_t kRoutesPerSession = 8;
constexpr Duration kDriftStep = milliseconds(10);

struct Call {
  std::uint64_t content = 0;  // the seed of its payload
  std::size_t bytes = 0;
  std::string header;
  Instant deadline;  // by its host's clock
  int endings = 0;
};

Bytes content_of(std::uint64_t seed, std::size_t bytes) {
  Random random(seed);
  Bytes out(bytes);
  for (std::size_t at = 0; at < bytes; at += 8) {
    const std::uint64_t word = random.next();
    std::memcpy(out.data() + at, &word, std::min<std::size_t>(8, bytes - at));
  }
  return out;
}

/// One life of a machine: ends with its process.
struct Life {
  SimLoop loop;
  std::unique_ptr<env::Datagrams> datagrams;
  std::unique_ptr<PacketHost> host;
  std::map<std::pair<const PacketHost::Link*, std::uint64_t>, Call> calls;
  std::vector<LinkPtr> seen;               // every link that there was, so that addresses are not used twice
  std::set<std::string> served;            // headers, each unlike any other of the run
  std::map<std::size_t, LinkPtr> dialled;  // to which machine
  explicit Life(World& world) : loop(world) {}
};

struct Machine {
  std::string name, address;
  std::shared_ptr<const hyperbus::SessionConfig> session;
  std::shared_ptr<const env::QuicConfig> quic;
  Duration skew{};
  std::int64_t drift = 0;  // nanoseconds in each millisecond
  std::unique_ptr<Life> life;
};

class Run {
 public:
  Run(std::uint64_t seed, Tally& tally)
      : random_(mix64(seed)), entropy_(mix64(seed ^ 0x5eed)), tally_(tally), network_(world_, mix64(seed + 1)) {
    big_ = random_.chance(1, 50);
    make_machines();
  }
  ~Run() {
    for (Machine& m : machines_) m.life->loop.kill();
  }

  Status play() {
    for (std::size_t i = 0; i < machines_.size(); ++i) start(i);
    const Instant well = world_.now() + kTrouble;
    const std::uint64_t faults = random_.below(6);
    for (std::uint64_t i = 0; i < faults; ++i) world_.at(some_time(kTrouble), [this] { strike(); });
    const std::uint64_t requests = 10 + random_.below(40);
    for (std::uint64_t i = 0; i < requests; ++i) world_.at(some_time(kTrouble), [this] { ask_somebody(); });
    tick(well);
    world_.run_until(well);
    recover();
    world_.run_until(world_.now() + kRecovery);
    if (probes_ != 0) error_ = str(probes_, " machines cannot be reached over a healthy network");
    world_.run_until(world_.now() + kSettling);
    return verdict();
  }

 private:
  [[nodiscard]] Instant some_time(Duration within) {
    return world_.now() + nanoseconds(static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(within.ns))));
  }
  [[nodiscard]] Duration some_time_from(Duration low, Duration high) {
    return low + nanoseconds(static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>((high - low).ns))));
  }

  void make_machines() {
    crypto::Secret<32> secret;
    entropy_.fill(secret.writable());
    const hyperbus::ClusterKey key(secret);
    machines_.resize(2 + random_.below(2));
    const bool few_packets_per_key = random_.chance(1, 3);
    for (std::size_t i = 0; i < machines_.size(); ++i) {
      Machine& m = machines_[i];
      m.name = str("n", i + 1);
      m.address = str("10.0.0.", i + 1);
      crypto::Ed25519Seed identity;
      entropy_.fill(identity.writable());
      auto handshake = std::make_shared<hyperbus::HandshakeConfig>(
          hyperbus::HandshakeConfig{.identity = hyperbus::Identity::from_seed(identity), .keys = {key}});
      handshake->has_aes = random_.chance(3, 4);
      auto config = std::make_shared<hyperbus::SessionConfig>();
      config->handshake = handshake;
      if (few_packets_per_key) config->records_per_key = 30 + random_.below(300);
      if (random_.chance(1, 4)) {
        for (hyperbus::ClassWindow& w : config->windows) w.requests = 1 + static_cast<std::uint32_t>(random_.below(4));
      }
      m.session = config;
      m.quic = quic_config(*config);
      m.skew = some_time_from(seconds(0), seconds(1'000'000));
      if (random_.chance(1, 4)) m.drift = static_cast<std::int64_t>(random_.below(400'000)) - 200'000;
    }
  }

  /// A process begins on machine `i`, and dials those that come before it.
  void start(std::size_t i) {
    Machine& m = machines_[i];
    m.life = std::make_unique<Life>(world_);
    Life& life = *m.life;
    life.loop.set_skew(m.skew);
    life.datagrams = network_.attach(m.name, life.loop, {m.address});
    life.host = std::make_unique<PacketHost>(life.loop, *life.datagrams, *stack_, entropy_,
                                             PacketHost::Options{.session = m.session, .quic = m.quic});
    life.host->on_event = [this, i](const LinkPtr& link, hyperbus::Event event) {
      on_event(i, link, std::move(event));
    };
    for (std::size_t peer = 0; peer < i; ++peer) dial(i, peer);
  }

  [[nodiscard]] env::IpEndpoint endpoint_of(std::size_t machine) const {
    const std::uint16_t port = machines_[machine].life->host->local().port;
    return env::IpEndpoint::v4(10 << 24 | static_cast<std::uint32_t>(machine + 1), port);
  }

  LinkPtr dial(std::size_t from, std::size_t to) {
    Life& life = *machines_[from].life;
    ++tally_["dialled"];
    const NodeId expected = machines_[to].session->handshake->identity.node();
    const LinkPtr link = life.host->dial(endpoint_of(to), expected);
    life.seen.push_back(link);
    life.dialled[to] = link;
    return link;
  }

  // --- requests

  void ask_somebody() {
    const std::size_t from = random_.below(machines_.size());
    const auto& links = machines_[from].life->host->links();
    if (links.empty()) return;
    const LinkPtr link = links[random_.below(links.size())];
    std::size_t bytes = random_.below(3'000);
    if (random_.chance(1, 6)) bytes = random_.below(200'000);
    if (big_ && random_.chance(1, 10)) {
      bytes = limits::kMaxPayloadBytes;
      ++tally_["of 16 MiB"];
    }
    const auto klass = static_cast<StreamClass>(random_.below(hyperbus::kStreamClasses));
    const auto stream = ask(from, link, klass, bytes, some_time_from(milliseconds(1), kLongestDeadline));
    if (!stream || !random_.chance(1, 8)) return;
    Life& life = *machines_[from].life;
    life.loop.call_at(life.loop.now() + some_time_from({}, milliseconds(20)), [&life, link, id = *stream] {
      if (!link->session) return;
      link->session->cancel(id, {.code = Errc::cancelled, .message = "changed my mind"});
      life.host->pump(link);
    });
  }

  std::optional<StreamId> ask(std::size_t from, const LinkPtr& link, StreamClass klass, std::size_t bytes,
                              Duration patience) {
    Life& life = *machines_[from].life;
    const Instant deadline = life.loop.now() + patience;
    Call call{.content = random_.next(), .bytes = bytes, .header = str("request ", ++asked_), .deadline = deadline};
    env::Request request{.type = static_cast<std::uint16_t>(1 + random_.below(100)), .header = call.header};
    if (bytes > 0) request.payload.emplace_back(content_of(call.content, bytes));
    request.landing = env::testing::pieces_for(bytes);
    if (!link->session) return std::nullopt;
    auto stream = link->session->request(life.loop.now(), klass, std::move(request), deadline);
    if (!stream) {
      ++tally_["not accepted"];
      return std::nullopt;
    }
    ++tally_["asked"];
    life.calls.emplace(std::pair(link.get(), stream->value), std::move(call));
    life.host->pump(link);
    return *stream;
  }

  void on_event(std::size_t machine, const LinkPtr& link, hyperbus::Event event) {
    Life& life = *machines_[machine].life;
    if (link->events_after_closed != 0) error_ = "an event after Closed";
    if (std::holds_alternative<hyperbus::Established>(event)) {
      ++tally_["established"];
      link->session->set_placer([](const env::Request&, std::uint64_t size) { return env::testing::pieces_for(size); });
      if (link->role == hyperbus::Role::responder) life.seen.push_back(link);
    } else if (auto* arrived = std::get_if<hyperbus::RequestArrived>(&event)) {
      serve(life, link, std::move(*arrived));
    } else if (auto* reply = std::get_if<hyperbus::ReplyArrived>(&event)) {
      on_reply(life, link, *reply);
    } else if (const auto* closed = std::get_if<hyperbus::Closed>(&event)) {
      on_closed(machine, link, *closed);
    }
  }

  void on_reply(Life& life, const LinkPtr& link, const hyperbus::ReplyArrived& reply) {
    const auto found = life.calls.find({link.get(), reply.stream.value});
    if (found == life.calls.end()) {
      error_ = "an answer to nothing";
      return;
    }
    Call& call = found->second;
    if (++call.endings > 1) error_ = str(call.header, " ended twice");
    if (life.loop.now() > call.deadline + kLate) {
      error_ = str(call.header, " ended ", (life.loop.now() - call.deadline).millis(), " ms after its deadline");
    }
    ++tally_[reply.result ? "answered" : errc_name(reply.result.error().code)];
    if (!reply.result) return;
    if (reply.result->header != call.header) error_ = "an answer with another request's header";
    Bytes payload;
    for (const Buffer& part : reply.result->payload) put(payload, part);
    if (payload != content_of(call.content, call.bytes)) error_ = str("altered bytes in the answer to ", call.header);
  }
  static void put(Bytes& out, const Buffer& part) { out.insert(out.end(), part.span().begin(), part.span().end()); }

  void serve(Life& life, const LinkPtr& link, hyperbus::RequestArrived arrived) {
    if (!life.served.insert(arrived.request.header).second) error_ = arrived.request.header + " was served twice";
    Result<env::Reply> reply = env::Reply{.header = arrived.request.header, .payload = arrived.request.payload};
    if (random_.chance(1, 8)) reply = fail(Errc::refused, "not today");
    auto held = std::make_shared<Result<env::Reply>>(std::move(reply));
    // Some handlers work for longer than anybody waits.
    const Duration work = random_.chance(1, 15) ? some_time_from({}, seconds(8)) : some_time_from({}, milliseconds(5));
    life.loop.call_at(life.loop.now() + work, [&life, link, id = arrived.stream, held] {
      if (!link->session) return;
      link->session->reply(id, std::move(*held));
      life.host->pump(link);
    });
  }

  void on_closed(std::size_t machine, const LinkPtr& link, const hyperbus::Closed& closed) {
    Life& life = *machines_[machine].life;
    for (const auto& [key, call] : life.calls) {
      if (key.first == link.get() && call.endings == 0) error_ = "Closed before every request had ended";
    }
    ++tally_[str("closed: ", errc_name(closed.error.code))];
    if (closed.error.message.find("forgotten") != std::string::npos) ++tally_["stateless resets"];
    if (closed.error.message.find("stalled") != std::string::npos) ++tally_["stalled"];
    if (closed.error.code == Errc::malformed && link->established) error_ = "honest nodes: " + closed.error.message;
    if (closed.error.code == Errc::internal) error_ = "an internal error: " + closed.error.message;
    if (link->role != hyperbus::Role::initiator || well_) return;
    for (const auto& [to, dialled] : life.dialled) {
      if (dialled != link) continue;
      life.loop.call_at(life.loop.now() + some_time_from(milliseconds(50), milliseconds(500)),
                        [this, machine, to = to, link] {
                          const auto& all = machines_[machine].life->dialled;
                          if (const auto at = all.find(to); at != all.end() && at->second == link) dial(machine, to);
                        });
    }
  }

  // --- faults

  void strike() {
    if (well_) return;
    const std::size_t victim = random_.below(machines_.size());
    const std::size_t other = (victim + 1 + random_.below(machines_.size() - 1)) % machines_.size();
    Machine& m = machines_[victim];
    LinkRules& all = network_.defaults();
    LinkRules& link = network_.link(m.name, machines_[other].name);
    switch (random_.below(9)) {
      case 0:
        link.lost_per_thousand = static_cast<std::uint32_t>(random_.below(100));
        link.reordered_per_thousand = static_cast<std::uint32_t>(random_.below(200));
        break;
      case 1:
        network_.forget_links();
        all.lost_per_thousand = 50;
        all.duplicated_per_thousand = static_cast<std::uint32_t>(random_.below(100));
        all.reordered_per_thousand = static_cast<std::uint32_t>(random_.below(100));
        break;
      case 2:
        link.flipped_per_thousand = static_cast<std::uint32_t>(random_.below(200));
        link.truncated_per_thousand = static_cast<std::uint32_t>(random_.below(100));
        link.duplicated_per_thousand = static_cast<std::uint32_t>(random_.below(300));
        break;
      case 3: link.largest = 1'150 + random_.below(400); break;
      case 4:
        network_.partition({m.name});
        world_.at(world_.now() + some_time_from(milliseconds(10), seconds(3)), [this] { network_.heal(); });
        break;
      case 5:
        link.flap_up = milliseconds(500);
        link.flap_down = milliseconds(500);
        break;
      case 6:
        link.bytes_per_second = 1'000'000;
        link.queue_bytes = 8'000 + random_.below(30'000);
        if (link.queue_bytes % 2 == 0) link.mark_bytes = link.queue_bytes / 2;  // Others only drop.
        link.busy_per_thousand = static_cast<std::uint32_t>(random_.below(500));
        break;
      case 7: restart(victim); break;
      case 8:
        network_.rebind(m.name);
        ++tally_["rebound"];
        break;
    }
    ++tally_["faults"];
  }

  void restart(std::size_t victim) {
    ++tally_["restarts"];
    Machine& m = machines_[victim];
    for (const auto& [key, call] : m.life->calls) {
      if (call.endings == 0) ++tally_["died with their process"];
    }
    m.life->loop.kill();
    network_.kill(m.name);
    m.life->host.reset();
    past_.push_back(std::move(m.life));  // What it queued in the world is dropped, but holds on to it.
    start(victim);
  }

  /// Clocks run off, and what must not grow is looked at.
  void tick(Instant until) {
    for (Machine& m : machines_) {
      check_bounds(m);
      if (m.drift == 0 || well_) continue;
      m.skew = m.skew + nanoseconds(m.drift * kDriftStep.millis());
      m.life->loop.set_skew(m.skew);
      m.life->host->wake();
    }
    if (world_.now() < until) world_.at(world_.now() + kDriftStep, [this, until] { tick(until); });
  }

  void check_bounds(const Machine& m) {
    const PacketHost& host = *m.life->host;
    if (host.routes() > kRoutesPerSession * host.links().size()) {
      error_ = str(host.routes(), " connection ids for ", host.links().size(), " sessions");
    }
    if (host.counters().spinning != 0) error_ = "a timer is due again and again, a busy loop";
    if (host.links().size() > 64) error_ = str(host.links().size(), " sessions with two peers");
  }

  // --- the end

  void recover() {
    well_ = true;
    network_.heal();
    network_.forget_links();
    network_.defaults() = LinkRules{};
    for (std::size_t i = 0; i < machines_.size(); ++i) {
      network_.leave_nat(machines_[i].name);
      for (std::size_t peer = 0; peer < machines_.size(); ++peer) {
        if (peer != i) probe(i, peer);
      }
    }
  }

  void probe(std::size_t from, std::size_t to) {
    ++probes_;
    const LinkPtr link = dial(from, to);
    Life& life = *machines_[from].life;
    const auto asked = ask(from, link, StreamClass::control, 100, kRecovery);
    if (!asked) error_ = "a new session takes no request";
    // Answered or refused: either way the other side has spoken.
    wait_for(life, link, asked ? asked->value : 0);
  }
  void wait_for(Life& life, const LinkPtr& link, std::uint64_t id) {
    const auto found = life.calls.find({link.get(), id});
    if (link->established && found != life.calls.end() && found->second.endings == 1) {
      --probes_;
      return;
    }
    if (link->closed) return;
    life.loop.call_at(life.loop.now() + milliseconds(20), [this, &life, link, id] { wait_for(life, link, id); });
  }

  Status verdict() {
    for (Machine& m : machines_) {
      check_bounds(m);
      for (const auto& [key, call] : m.life->calls) {
        if (call.endings != 1) error_ = str(call.header, " of ", m.name, " ended ", call.endings, " times");
      }
      for (const LinkPtr& link : std::vector(m.life->host->links())) {
        if (!link->closed && !link->established) error_ = "a handshake that never ends";
        link->session->close({.code = Errc::cancelled, .message = "the run is over"});
        m.life->host->pump(link);
      }
    }
    world_.run_until(world_.now() + seconds(5));
    for (Machine& m : machines_) {
      if (!m.life->host->links().empty()) error_ = "sessions that are never finished";
      if (m.life->host->routes() != 0) error_ = "connection ids that outlive their sessions";
      for (const LinkPtr& link : m.life->seen) {
        if (!link->closed) error_ = "a session that never said Closed";
      }
    }
    network_.counters().add_to(tally_);
    if (!error_.empty()) return fail(Errc::internal, error_);
    return {};
  }

  Random random_;
  env::testing::SeededEntropy entropy_;
  Tally& tally_;
  World world_;
  DatagramNetwork network_;
  std::unique_ptr<env::QuicStack> stack_ = driver::quic::make_stack();
  std::vector<std::unique_ptr<Life>> past_;
  std::vector<Machine> machines_;
  std::uint64_t asked_ = 0;
  int probes_ = 0;
  bool big_ = false;
  bool well_ = false;
  std::string error_;
};

}  // namespace

Status run_hyperbus(std::uint64_t seed, Tally& tally) {
  Run run(seed, tally);
  return run.play();
}

}  // namespace holo::sim
