// The bare loop under QUIC: what UDP over loopback carries, and what a round trip takes, without a protocol.
//   build/release/bin/bench/udp
// Each side has a thread of its own and blocks when it has nothing to do. With `taskset -c 0` in front both sides share
// a core. The sender keeps a window of bytes under way, which the receiver acknowledges batch by batch, so nothing is
// dropped.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "driver/posix/asio_loop.h"
#include "driver/posix/udp.h"

namespace {

using namespace holo;
using Clock = std::chrono::steady_clock;
using env::Datagram;
using env::DatagramPath;
using env::Ecn;

constexpr std::size_t kWindow = 1 << 20;
constexpr std::uint64_t kTotal = 4ULL << 30;
constexpr std::size_t kPage = 64 << 10;

double micros(Clock::duration d) { return std::chrono::duration<double, std::micro>(d).count(); }

struct Side {
  explicit Side(driver::UdpOptions options) : udp(loop, options), socket(udp.bind("127.0.0.1:0").value()) {}
  driver::AsioLoop loop;
  driver::UdpDatagrams udp;
  std::unique_ptr<env::DatagramSocket> socket;
};

/// Bytes that fill datagrams of `segment` bytes, as many as one burst takes.
Bytes burst_of(std::size_t segment) { return Bytes(env::DatagramSocket::kMaxBurst / segment * segment); }

/// Answers every batch with the number of bytes received so far.
void acknowledge(Side& side, std::uint64_t& received) {
  side.socket->start({.on_datagrams =
                          [&](std::span<const Datagram> batch) {
                            for (const Datagram& d : batch) received += d.bytes.size();
                            const DatagramPath path = batch.front().path;
                            (void)side.socket->send(path, Ecn::not_ect, sizeof received,
                                                    std::as_bytes(std::span(&received, 1)));
                          },
                      .on_writable = {}});
}

void throughput(std::size_t segment, driver::UdpOptions options, const char* name) {
  Side a(options);
  Side b(options);
  std::uint64_t received = 0;
  acknowledge(b, received);
  const Bytes burst = burst_of(segment);
  const DatagramPath path{.local = {}, .remote = b.socket->local()};
  const std::uint64_t total = options.gso ? kTotal : kTotal / 4;
  std::uint64_t sent = 0;
  std::uint64_t acknowledged = 0;
  const auto go_on = [&] {
    while (sent < total && sent - acknowledged + burst.size() <= kWindow) {
      if (!a.socket->send(path, Ecn::ect0, segment, burst)) return;
      sent += burst.size();
    }
  };
  a.socket->start({.on_datagrams =
                       [&](std::span<const Datagram> batch) {
                         std::memcpy(&acknowledged, batch.back().bytes.data(), sizeof acknowledged);
                         go_on();
                       },
                   .on_writable = go_on});
  std::thread thread([&] { b.loop.run(); });
  const auto begin = Clock::now();
  go_on();
  const bool all = a.loop.run_until([&] { return acknowledged >= total; }, seconds(60));
  const double took = micros(Clock::now() - begin);
  b.loop.stop();
  thread.join();
  std::printf("throughput %5zu bytes, %-14s: %6.2f GB/s%s\n", segment, name,
              static_cast<double>(acknowledged) / took / 1e3, all ? "" : " (stalled)");
}

/// A page there and back.
void round_trip(std::size_t segment) {
  Side a({});
  Side b({});
  const Bytes page(kPage);
  const auto collect = [&](Side& side, std::size_t& have, auto whole) {
    side.socket->start({.on_datagrams =
                            [&have, whole](std::span<const Datagram> batch) {
                              for (const Datagram& d : batch) have += d.bytes.size();
                              if (have < kPage) return;
                              have = 0;
                              whole(batch.back().path);
                            },
                        .on_writable = {}});
  };
  std::size_t have_a = 0;
  std::size_t have_b = 0;
  std::vector<double> took;
  Clock::time_point begin;
  const auto send = [segment, &page](Side& side, const DatagramPath& path) {
    (void)side.socket->send(path, Ecn::ect0, segment, page);
  };
  collect(b, have_b, [&](const DatagramPath& path) { send(b, path); });
  collect(a, have_a, [&](const DatagramPath& path) {
    took.push_back(micros(Clock::now() - begin));
    begin = Clock::now();
    send(a, path);
  });
  std::thread thread([&] { b.loop.run(); });
  begin = Clock::now();
  send(a, {.local = {}, .remote = b.socket->local()});
  a.loop.run_until([&] { return took.size() >= 10'000; }, seconds(20));
  b.loop.stop();
  thread.join();
  if (took.empty()) return;
  std::sort(took.begin(), took.end());
  std::printf("round trip of 64 KiB in %5zu bytes: p50 %6.1f us, p99 %6.1f us\n", segment, took[took.size() / 2],
              took[took.size() * 99 / 100]);
}

}  // namespace

int main() {
  for (const std::size_t segment : {std::size_t{1444}, std::size_t{8952}}) {
    throughput(segment, {}, "GSO and GRO");
    throughput(segment, {.gso = true, .gro = false}, "GSO alone");
    throughput(segment, {.gso = false, .gro = false}, "neither");
    round_trip(segment);
  }
}
