// env::Carrier inside one process: streams between loops that run on different threads. holo::local(n) uses it, so that
// a test's cluster opens no port.
#pragma once

#include <memory>
#include <string>

#include "env/carrier.h"
#include "env/loop.h"

namespace holo::driver {

struct InprocRegistry;

/// What the nodes of one process share: who listens where. Thread: any.
class InprocNetwork {
 public:
  InprocNetwork();
  ~InprocNetwork();

 private:
  friend class InprocCarrier;
  std::shared_ptr<InprocRegistry> registry_;
};

struct InprocLoop;

/// One loop's door to the network. Addresses are "inproc:N", whatever was asked for. Thread: the loop's; the loop
/// outlives it, and streams of other loops may go on talking to streams of this one after it is gone (nobody answers).
class InprocCarrier final : public env::Carrier {
 public:
  InprocCarrier(const InprocNetwork& network, env::Loop& loop);
  ~InprocCarrier() override;
  InprocCarrier(const InprocCarrier&) = delete;
  InprocCarrier& operator=(const InprocCarrier&) = delete;

  Task<Result<std::unique_ptr<env::ByteStream>>> dial(std::string address, Instant deadline) override;
  Result<std::unique_ptr<env::Listener>> listen(
      std::string address, std::function<void(std::unique_ptr<env::ByteStream>)> on_accept) override;

 private:
  std::shared_ptr<InprocRegistry> registry_;
  std::shared_ptr<InprocLoop> loop_;
};

}  // namespace holo::driver
