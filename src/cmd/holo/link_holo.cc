// The ends of a link over node::Bus and the drivers that an agent has.
#include <unistd.h>

#include <chrono>
#include <cstring>

#include "base/limits.h"
#include "base/strings.h"
#include "cmd/holo/link_peer.h"
#include "driver/posix/asio_loop.h"
#include "driver/posix/os_entropy.h"
#include "driver/posix/tcp.h"
#include "driver/posix/udp.h"
#include "driver/quic/quic.h"
#include "node/bus.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr Duration kLimit = seconds(60);
constexpr Duration kHeartbeatEvery = milliseconds(1);
constexpr unsigned kWarmUp = 200;
constexpr std::uint16_t kAsk = 1;  // header: how many bytes are wanted
constexpr std::uint64_t kHeartbeatBytes = 64;
constexpr unsigned kBulkInFlight = 16;

double micros_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

Task<Result<env::Reply>> answer(NodeId, env::Request request) {
  static const Buffer all(Bytes(kMaxLinkReply, std::byte{7}));
  std::uint64_t bytes = 0;
  if (request.header.size() == sizeof bytes) std::memcpy(&bytes, request.header.data(), sizeof bytes);
  if (bytes == 0 || bytes > kMaxLinkReply) co_return fail(Errc::invalid_argument, "no such page");
  env::Reply reply;
  reply.payload.push_back(all.slice(0, static_cast<std::size_t>(bytes)));
  co_return reply;
}

/// What buses of one process share.
struct Drivers {
  explicit Drivers(bool poll) : loop(driver::AsioLoop::Options{.poll_for = poll ? kPollFor : Duration{}}) {}
  driver::AsioLoop loop;
  driver::OsEntropy entropy;
  driver::TcpCarrier carrier{loop};
  driver::UdpDatagrams datagrams{loop};
  std::unique_ptr<env::QuicStack> stack = driver::quic::make_stack();

  std::unique_ptr<node::Bus> make_bus(const LinkPeerOptions& o, const LinkKey& key) {
    auto identity = hyperbus::Identity::from_seed(crypto::random_secret<32>(entropy));
    auto session = std::make_shared<hyperbus::SessionConfig>();
    session->handshake = std::make_shared<const hyperbus::HandshakeConfig>(
        hyperbus::HandshakeConfig{.identity = std::move(identity), .keys = {hyperbus::ClusterKey(key)}});
    node::BusOptions options{.session = std::move(session),
                             .use = o.engine == "tcp" ? node::CarrierUse::tcp : node::CarrierUse::quic,
                             .datagrams = &datagrams,
                             .quic = stack.get(),
                             .mtu = datagram_bytes(o.mtu)};
    return std::make_unique<node::Bus>(loop, carrier, entropy, std::move(options));
  }
};

class HoloClient final : public LinkClient {
 public:
  HoloClient(const LinkPeerOptions& options, const LinkKey& key)
      : options_(options), key_(key), room_(kPagesInFlight * options.page) {}

  Outcome<std::vector<double>> round_trips(unsigned count) override {
    HOLO_TRY(dial());
    Work work{.left = kWarmUp};
    HOLO_TRY(run(work, 1, options_.page, env::StreamClass::data));
    work = {.left = count};
    HOLO_TRY(run(work, 1, options_.page, env::StreamClass::data));
    HOLO_TRY(hang_up());
    return std::move(work.took);
  }

  Outcome<double> throughput(unsigned pages) override {
    HOLO_TRY(dial());
    double gigabytes = 0;
    for (const unsigned count : {pages / 8 + 1, pages}) {  // Once to warm up: the congestion window grows.
      Work work{.left = count};
      const auto start = Clock::now();
      HOLO_TRY(run(work, kPagesInFlight, options_.page, env::StreamClass::data));
      gigabytes = static_cast<double>(count) * static_cast<double>(options_.page) / micros_since(start) / 1e3;
    }
    HOLO_TRY(hang_up());
    return gigabytes;
  }

  Outcome<std::vector<double>> handshakes(unsigned count) override {
    HOLO_TRY(dial());
    std::vector<double> out;
    for (unsigned i = 0; i < count; ++i) {  // One node with its socket, again and again, as the bare loop.
      bus_->disconnect(peer_);
      HOLO_ASSIGN(took, meet());
      out.push_back(took / 1e3);
    }
    HOLO_TRY(hang_up());
    return out;
  }

  Outcome<std::vector<double>> heartbeats(unsigned count, Beside beside) override {
    HOLO_TRY(dial());
    Work bulk{.left = beside == Beside::bulk ? ~0U : 0};
    if (bulk.left > 0) {
      for (unsigned i = 0; i < kBulkInFlight; ++i) {
        drivers_.loop.spawn(ask(this, &bulk, kMaxLinkReply, env::StreamClass::bulk, Duration{}, {}));
      }
    }
    Work warm{.left = kWarmUp / 4, .pause = kHeartbeatEvery};
    HOLO_TRY(run(warm, 1, kHeartbeatBytes, env::StreamClass::control));
    Work work{.left = count, .pause = kHeartbeatEvery};
    HOLO_TRY(run(work, 1, kHeartbeatBytes, env::StreamClass::control));
    bulk.left = 0;
    drivers_.loop.run_until([&] { return bulk.running == 0; }, kLimit);
    HOLO_TRY(hang_up());
    return std::move(work.took);
  }

  Outcome<std::vector<double>> faulted_reads(unsigned) override { return no_faults(); }
  Outcome<std::vector<double>> faulted_upgrades(unsigned) override { return no_faults(); }

  Outcome<void> keep_idle(unsigned count) override {
    for (unsigned i = 0; i < count; ++i) {
      HOLO_TRY(dial());
      kept_.push_back(std::move(bus_));
    }
    return rest(300);
  }
  Outcome<void> rest(unsigned ms) override {
    drivers_.loop.run_until([] { return false; }, milliseconds(ms));
    return {};
  }

 private:
  struct Work {
    unsigned left = 0;
    Duration pause{};
    unsigned running = 0;
    std::vector<double> took{};
    std::optional<Error> error{};
  };

  /// `place`: where the answers go, one after the other; empty: into buffers of their own.
  static Task<void> ask(HoloClient* self, Work* work, std::uint64_t bytes, env::StreamClass klass, Duration pause,
                        MutableByteSpan place) {
    ++work->running;
    driver::AsioLoop& loop = self->drivers_.loop;
    while (work->left > 0 && !work->error) {
      --work->left;
      env::Request request;
      request.type = kAsk;
      request.header.assign(reinterpret_cast<const char*>(&bytes), sizeof bytes);
      if (!place.empty()) request.landing = std::make_shared<env::OnePlace>(place);
      const env::CallOptions options{.klass = klass, .deadline = loop.now() + kLimit};
      const auto start = Clock::now();
      auto calling = self->bus_->call(self->peer_, std::move(request), options);
      auto reply = co_await calling;
      if (!reply) {
        work->error = reply.error();
      } else if (klass != env::StreamClass::bulk) {
        work->took.push_back(micros_since(start));
      }
      if (pause.ns > 0) {
        auto sleeping = env::sleep_for(loop, pause);
        co_await sleeping;
      }
    }
    --work->running;
  }

  Outcome<void> run(Work& work, unsigned in_flight, std::uint64_t bytes, env::StreamClass klass) {
    for (unsigned i = 0; i < in_flight; ++i) {
      // As memory asks for pages, which go straight to where they belong.
      const bool page = bytes == options_.page;
      const MutableByteSpan place = page ? MutableByteSpan(room_).subspan(i * bytes, bytes) : MutableByteSpan();
      drivers_.loop.spawn(ask(this, &work, bytes, klass, work.pause, place));
    }
    const bool over = drivers_.loop.run_until([&] { return work.running == 0; }, kLimit);
    if (work.error) return std::unexpected(Failure(*work.error));
    if (!over) return fail(Errc::deadline_exceeded, "the link stands still");
    return {};
  }

  static std::unexpected<Error> no_faults() { return fail(Errc::unsupported, "mapped memory has benches of its own"); }

  struct Dialled {
    bool over = false;
    std::optional<Result<env::PeerIdentity>> result;
  };
  static Task<void> connect(HoloClient* self, Dialled* out) {
    auto connecting = self->bus_->connect(self->options_.server, self->drivers_.loop.now() + seconds(10));
    out->result = co_await connecting;
    out->over = true;
  }
  /// A node of its own, so that nothing of an earlier one is left. Returns microseconds.
  Outcome<double> dial() {
    bus_ = drivers_.make_bus(options_, key_);
    // As agents do, which dial from the socket that they listen on.
    if (options_.engine != "tcp") HOLO_TRY(bus_->listen("0.0.0.0:0"));
    return meet();
  }
  Outcome<double> meet() {
    Dialled dialled;
    const auto start = Clock::now();
    drivers_.loop.spawn(connect(this, &dialled));
    drivers_.loop.run_until([&] { return dialled.over; }, kLimit);
    const double took = micros_since(start);
    if (!dialled.result || !*dialled.result) {
      return dialled.result ? std::unexpected(Failure(dialled.result->error()))
                            : std::unexpected(Failure(Error{.code = Errc::unavailable, .message = "no answer"}));
    }
    peer_ = (*dialled.result)->node;
    return took;
  }
  Outcome<void> hang_up() {
    bus_->close();
    bus_.reset();
    return {};
  }

  const LinkPeerOptions options_;
  const LinkKey key_;
  Drivers drivers_{options_.poll};
  std::unique_ptr<node::Bus> bus_;
  std::vector<std::unique_ptr<node::Bus>> kept_;
  NodeId peer_;
  Bytes room_;
};

}  // namespace

Outcome<std::unique_ptr<LinkClient>> make_holo_client(const LinkPeerOptions& o, const LinkKey& key) {
  return std::make_unique<HoloClient>(o, key);
}

Outcome<int> serve_holo_link(const LinkPeerOptions& o, const LinkKey& key) {
  Drivers drivers(o.poll);
  const auto bus = drivers.make_bus(o, key);
  bus->serve(kAsk, answer);
  HOLO_ASSIGN(address, bus->listen(o.listen));
  driver::FdWatch input(drivers.loop, env::Fd(::dup(STDIN_FILENO)),
                        {.on_readable = [&] { drivers.loop.stop(); }, .on_writable = {}});
  drivers.loop.post([&] { input.want_read(true); });
  announce_link_server(address);
  drivers.loop.run();
  bus->close();
  return kDone;
}

}  // namespace holo::cmd
