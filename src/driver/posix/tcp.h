// env::Carrier over TCP.
#pragma once

#include <memory>
#include <string>

#include "driver/posix/asio_loop.h"
#include "env/carrier.h"

namespace holo::driver {

struct TcpShared;

/// Thread: loop. The loop outlives it, its streams and its listeners.
class TcpCarrier final : public env::Carrier {
 public:
  explicit TcpCarrier(AsioLoop& loop);
  ~TcpCarrier() override;

  Task<Result<std::unique_ptr<env::ByteStream>>> dial(std::string address, Instant deadline) override;
  Result<std::unique_ptr<env::Listener>> listen(
      std::string address, std::function<void(std::unique_ptr<env::ByteStream>)> on_accept) override;

 private:
  AsioLoop& loop_;
  std::shared_ptr<TcpShared> shared_;
};

}  // namespace holo::driver
