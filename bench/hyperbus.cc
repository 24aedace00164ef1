// Hyperbus without a network: two sessions in one thread, each byte sealed by one and opened by the other.
//   build/release/bin/bench/hyperbus
// Says how much of a core the session itself costs: the ceiling for any carrier.
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "core/hyperbus/stream_session.h"
#include "env/entropy_testing.h"

namespace {

using namespace holo;
using namespace holo::hyperbus;
using env::testing::SeededEntropy;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::shared_ptr<const SessionConfig> config_of(SeededEntropy& entropy, const ClusterKey& key, bool aes) {
  auto config = std::make_shared<SessionConfig>();
  config->handshake = std::make_shared<const HandshakeConfig>(HandshakeConfig{
      .identity = Identity::from_seed(crypto::random_secret<32>(entropy)), .keys = {key}, .has_aes = aes});
  return config;
}

struct Pair {
  Instant now{1};
  SeededEntropy entropy{1};
  ClusterKey key{crypto::random_secret<32>(entropy)};
  StreamSession dialler, listener;

  explicit Pair(bool aes)
      : dialler(Role::initiator, config_of(entropy, key, aes), entropy, now),
        listener(Role::responder, config_of(entropy, key, aes), entropy, now) {}

  /// Carries everything in portions such as a socket gives; counts replies and answers requests with `answer`.
  std::size_t carry(const Buffer& answer) {
    std::size_t replies = 0;
    std::vector<Buffer> out;
    for (bool any = true; any;) {
      any = false;
      for (StreamSession* from : {&dialler, &listener}) {
        StreamSession& to = from == &dialler ? listener : dialler;
        out.clear();
        from->output(now, 512 << 10, out);
        any |= !out.empty();
        for (const Buffer& buffer : out) {
          for (ByteSpan rest = buffer.span(); !rest.empty();) {
            const std::size_t n = std::min<std::size_t>(rest.size(), 256 << 10);
            to.feed(now, rest.first(n));
            rest = rest.subspan(n);
          }
        }
        while (auto event = to.next_event()) {
          if (auto* request = std::get_if<RequestArrived>(&*event)) {
            env::Reply reply;
            if (!answer.empty()) reply.payload.push_back(answer);
            to.reply(request->stream, std::move(reply));
          }
          if (std::holds_alternative<ReplyArrived>(*event)) ++replies;
        }
      }
    }
    return replies;
  }
};

void throughput(bool aes, std::size_t payload, std::size_t in_flight) {
  Pair pair(aes);
  pair.carry({});
  const Buffer answer(Bytes(payload, std::byte{42}));
  const double begin = seconds_now();
  std::size_t replies = 0;
  while (seconds_now() - begin < 1.0) {
    for (std::size_t i = 0; i < in_flight; ++i) {
      env::Request request{.type = 1, .header = std::string(40, 'h'), .payload = {}};
      if (!pair.dialler.request(pair.now, StreamClass::data, std::move(request), pair.now + seconds(10))) return;
    }
    replies += pair.carry(answer);
  }
  const double each = (seconds_now() - begin) / static_cast<double>(replies);
  std::printf("%-18s %8zu bytes, %2zu in flight: %8.2f us each, %6.2f GB/s (seal + open on one core)\n",
              aes ? "AES-256-GCM" : "XChaCha20-Poly1305", payload, in_flight, each * 1e6,
              static_cast<double>(payload) / each / 1e9);
}

void handshakes() {
  const double begin = seconds_now();
  std::size_t n = 0;
  for (; seconds_now() - begin < 1.0; ++n) {
    Pair pair(true);
    pair.carry({});
  }
  std::printf("handshake, both sides and their identities: %.0f us\n",
              (seconds_now() - begin) / static_cast<double>(n) * 1e6);
}

}  // namespace

int main() {
  handshakes();
  for (const bool aes : {true, false}) {
    throughput(aes, 0, 1);
    throughput(aes, 65'536, 1);
    throughput(aes, 65'536, 16);
    throughput(aes, 1 << 20, 8);
    throughput(aes, 16 << 20, 2);
  }
}
