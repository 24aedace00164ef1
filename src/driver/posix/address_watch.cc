#include "driver/posix/address_watch.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <array>
#include <optional>
#include <utility>

#include "env/fd.h"

namespace holo::driver {
namespace {

/// One address goes before another comes, and an IPv6 address comes twice: tentative, then for good.
constexpr Duration kSettle = milliseconds(100);

class Watch final : public AddressWatch {
 public:
  Watch(AsioLoop& loop, env::Fd fd, std::function<void()> changed) : loop_(loop), changed_(std::move(changed)) {
    if (!fd) return;
    watch_.emplace(loop, std::move(fd), FdWatch::Callbacks{.on_readable = [this] { drain(); }, .on_writable = {}});
    watch_->want_read(true);
  }
  ~Watch() override { loop_.cancel(timer_); }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  /// What it says does not matter, nor whether some of it was lost: whoever is called looks for himself.
  void drain() {
    std::array<std::byte, 16 << 10> bytes;
    while (::recv(watch_->fd(), bytes.data(), bytes.size(), MSG_DONTWAIT) > 0) {
    }
    if (timer_ != 0) return;
    timer_ = loop_.call_at(loop_.now() + kSettle, [this] {
      timer_ = 0;
      if (!loop_.stopping()) changed_();
    });
  }

  AsioLoop& loop_;
  std::function<void()> changed_;
  std::optional<FdWatch> watch_;
  env::Loop::TimerId timer_ = 0;
};

}  // namespace

std::unique_ptr<AddressWatch> watch_addresses(AsioLoop& loop, std::function<void()> changed) {
  env::Fd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE));
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
  if (fd && ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) fd = env::Fd();
  return std::make_unique<Watch>(loop, std::move(fd), std::move(changed));
}

}  // namespace holo::driver
