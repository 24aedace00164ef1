// One at a time in the whole cluster.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <holo/error.hpp>
#include <holo/kv.hpp>

namespace holo {

namespace detail {
class HeldLock;
}

struct LockOptions {
  /// How long the lock outlives a holder that cannot be heard (1 s to 24 h). A holder that cannot reach the cluster for
  /// that long has lost it.
  std::chrono::milliseconds ttl = std::chrono::seconds(10);
  /// How long to wait in line; 0: not at all; none: as long as it takes.
  std::optional<std::chrono::milliseconds> wait = std::nullopt;
  std::string owner;  ///< What others are shown; empty: this process and machine.
  /// Called once when the lock is lost while it is held, on a thread of the library, before anybody else can have it
  /// as long as this machine's clock runs as fast as the leader's. It must not call into holo, nor end the lock.
  std::function<void()> on_lost = {};
};

/// A lock that is held; it is given back with the object, or when this process ends however it does. Not copyable.
/// Thread: any, but release() and the end of the object are for one alone.
///
/// No lock can stop a holder that was paused and does not know yet that it lost it: what must not happen twice has to
/// carry token() to whoever can refuse an old one, or held() into a transaction of the key-value store.
class Lock {
 public:
  Lock(Lock&&) noexcept = default;
  Lock& operator=(Lock&&) noexcept = default;
  ~Lock() = default;

  [[nodiscard]] const std::string& name() const;
  /// Larger than that of every holder before.
  [[nodiscard]] std::uint64_t token() const;
  /// Keys put with it go when the lock does.
  [[nodiscard]] std::uint64_t lease() const;
  /// True from the moment at which others may have it. Once true it stays so.
  [[nodiscard]] bool lost() const;
  /// Holds in a transaction as long as this holder has the lock, whatever this process knows.
  [[nodiscard]] KvCondition held() const;
  /// Gives it back now. Errors: `unavailable` (it had been lost, or the agent is gone). The object is empty afterwards:
  /// lost() is true.
  Status release();

 private:
  friend class Cluster;
  explicit Lock(std::shared_ptr<detail::HeldLock> held) : held_(std::move(held)) {}
  std::shared_ptr<detail::HeldLock> held_;
};

}  // namespace holo
