// Shared by this module's tests: entropy that repeats, nodes with keys, two sessions back to back.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/random.h"
#include "core/hyperbus/handshake.h"
#include "core/hyperbus/stream_session.h"
#include "env/entropy_testing.h"

namespace holo::hyperbus::testing {

using env::testing::SeededEntropy;

/// The same bytes each time, as test vectors want them.
class FixedEntropy final : public env::Entropy {
 public:
  explicit FixedEntropy(Bytes bytes) : bytes_(std::move(bytes)) {}
  void fill(MutableByteSpan out) override { std::copy_n(bytes_.begin(), out.size(), out.begin()); }

 private:
  Bytes bytes_;
};

inline crypto::Secret<32> secret_of(std::uint8_t byte) {
  std::array<std::byte, 32> bytes{};
  bytes.fill(std::byte{byte});
  return crypto::Secret<32>(bytes);
}
inline Identity identity_of(std::uint8_t byte) { return Identity::from_seed(secret_of(byte)); }

/// Node `who` with cluster key `key`.
inline HandshakeConfig config_of(std::uint8_t who, std::uint8_t key = 77) {
  return {.identity = identity_of(who), .keys = {ClusterKey(secret_of(key))}};
}

inline std::shared_ptr<const SessionConfig> session_config(HandshakeConfig handshake) {
  SessionConfig config;
  config.handshake = std::make_shared<const HandshakeConfig>(std::move(handshake));
  return std::make_shared<const SessionConfig>(std::move(config));
}

inline Bytes pattern(std::size_t n, std::uint64_t seed = 1) {
  Bytes out(n);
  Random random(seed);
  for (std::byte& b : out) b = static_cast<std::byte>(random.next());
  return out;
}

inline Bytes joined(const std::vector<Buffer>& parts) {
  Bytes out;
  for (const Buffer& part : parts) out.insert(out.end(), part.span().begin(), part.span().end());
  return out;
}

/// One end: a session and what became of it.
struct End {
  StreamSession session;
  std::vector<Event> events;

  End(Role role, std::shared_ptr<const SessionConfig> config, env::Entropy& entropy, Instant now, NodeId expected = {})
      : session(role, std::move(config), entropy, now, expected) {}
  void collect() {
    while (auto event = session.next_event()) events.push_back(std::move(*event));
  }
  Bytes output(Instant now, std::size_t max = SIZE_MAX / 2) {
    std::vector<Buffer> parts;
    session.output(now, max, parts);
    return joined(parts);
  }
  template <class T>
  std::vector<T*> all() {
    collect();
    std::vector<T*> out;
    for (Event& event : events) {
      if (T* one = std::get_if<T>(&event)) out.push_back(one);
    }
    return out;
  }
  template <class T>
  T* only() {
    const auto found = all<T>();
    return found.size() == 1 ? found.front() : nullptr;
  }
};

/// Two ends and a wire. `alter` sees every portion on its way.
struct Link {
  Instant now{1'000'000'000};
  SeededEntropy dialler_entropy{11}, listener_entropy{22};
  End dialler, listener;
  std::function<void(bool from_dialler, Bytes&)> alter;
  std::function<std::size_t()> portion;  // how many bytes are delivered at once; unset: all

  Link(std::shared_ptr<const SessionConfig> a, std::shared_ptr<const SessionConfig> b)
      : dialler(Role::initiator, std::move(a), dialler_entropy, now),
        listener(Role::responder, std::move(b), listener_entropy, now) {}
  Link() : Link(session_config(config_of(1)), session_config(config_of(2))) {}

  /// Carries what one side has to say; true if it was anything.
  bool carry(bool from_dialler) {
    End& from = from_dialler ? dialler : listener;
    End& to = from_dialler ? listener : dialler;
    Bytes bytes = from.output(now);
    if (bytes.empty()) return false;
    if (alter) alter(from_dialler, bytes);
    ByteSpan rest = bytes;
    while (!rest.empty()) {
      const std::size_t n = portion ? std::clamp<std::size_t>(portion(), 1, rest.size()) : rest.size();
      to.session.feed(now, rest.first(n));
      rest = rest.subspan(n);
    }
    dialler.collect();
    listener.collect();
    return true;
  }
  /// Until both are silent.
  void settle() {
    for (bool any = true; any;) {
      any = carry(true);
      any |= carry(false);
    }
    dialler.collect();
    listener.collect();
  }
  /// Time passes; timers fire on both sides; what they say is carried.
  void advance(Duration by) {
    now = now + by;
    for (End* end : {&dialler, &listener}) {
      if (end->session.next_timer() <= now) end->session.on_timer(now);
    }
    settle();
  }
};

}  // namespace holo::hyperbus::testing
