// The ends of a link over bench_bare_quic.h.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

#include "base/strings.h"
#include "cmd/holo/bench_bare_quic.h"
#include "cmd/holo/link_peer.h"
#include "driver/posix/os_entropy.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kLimitMs = 60'000;
constexpr unsigned kWarmUp = 200;

double micros_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

std::shared_ptr<const hyperbus::HandshakeConfig> handshake_of(const LinkKey& key) {
  driver::OsEntropy entropy;
  auto identity = hyperbus::Identity::from_seed(crypto::random_secret<32>(entropy));
  return std::make_shared<const hyperbus::HandshakeConfig>(
      hyperbus::HandshakeConfig{.identity = std::move(identity), .keys = {hyperbus::ClusterKey(key)}});
}

Outcome<std::unique_ptr<bare::Endpoint>> endpoint_of(const LinkPeerOptions& o, const LinkKey& key) {
  const bare::Endpoint::Options options{.listen = o.listen, .datagram_bytes = datagram_bytes(o.mtu), .poll = o.poll};
  return bare::Endpoint::open(options, handshake_of(key));
}

/// Anonymous memory whose pages come from us.
class FaultedMemory {
 public:
  static Outcome<FaultedMemory> make(unsigned pages, std::uint64_t page, std::uint64_t modes) {
    FaultedMemory out;
    out.page_ = page;
    out.bytes_ = pages * page;
    out.fd_ = env::Fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
    uffdio_api api{};
    api.api = UFFD_API;
    if (!out.fd_ || ::ioctl(out.fd_.get(), UFFDIO_API, &api) != 0) {
      return fail(Errc::unsupported, "no userfaultfd here: the reference of mapped memory cannot be measured");
    }
    void* at = ::mmap(nullptr, out.bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return fail(Errc::out_of_memory, "no memory");
    out.base_ = static_cast<std::byte*>(at);
    (void)::madvise(at, out.bytes_, MADV_NOHUGEPAGE);
    uffdio_register area{};
    area.range = {.start = reinterpret_cast<std::uint64_t>(at), .len = out.bytes_};
    area.mode = modes;
    if (::ioctl(out.fd_.get(), UFFDIO_REGISTER, &area) != 0) {
      return fail(Errc::unsupported, "userfaultfd cannot do here what the reference needs");
    }
    return out;
  }
  FaultedMemory(FaultedMemory&& other) noexcept
      : fd_(std::move(other.fd_)),
        base_(std::exchange(other.base_, nullptr)),
        bytes_(other.bytes_),
        page_(other.page_) {}
  FaultedMemory& operator=(FaultedMemory&&) = delete;
  ~FaultedMemory() {
    if (base_ != nullptr) ::munmap(base_, bytes_);
  }

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] volatile std::byte* page(std::uint64_t n) const { return base_ + n * page_; }
  [[nodiscard]] std::uint64_t pages() const { return bytes_ / page_; }
  std::optional<std::uint64_t> next_fault() const {
    uffd_msg message{};
    if (::read(fd_.get(), &message, sizeof message) != sizeof message) return std::nullopt;
    return (message.arg.pagefault.address - reinterpret_cast<std::uint64_t>(base_)) / page_;
  }
  bool put(std::uint64_t page, const std::byte* bytes, std::uint64_t mode = 0) const {
    uffdio_copy copy{};
    copy.dst = reinterpret_cast<std::uint64_t>(base_ + page * page_);
    copy.src = reinterpret_cast<std::uint64_t>(bytes);
    copy.len = page_;
    copy.mode = mode;
    return ::ioctl(fd_.get(), UFFDIO_COPY, &copy) == 0;
  }
  void fill_protected(const std::byte* bytes) const {
    for (std::uint64_t n = 0; n < pages(); ++n) (void)put(n, bytes, UFFDIO_COPY_MODE_WP);
  }
  void allow_writes(std::uint64_t page) const {
    uffdio_writeprotect range{};
    range.range = {.start = reinterpret_cast<std::uint64_t>(base_ + page * page_), .len = page_};
    (void)::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &range);
  }

 private:
  FaultedMemory() = default;
  env::Fd fd_;
  std::byte* base_ = nullptr;
  std::uint64_t bytes_ = 0, page_ = 0;
};

/// A thread that touches page after page and takes the time.
class Toucher {
 public:
  enum class How : std::uint8_t { read, write };
  Toucher(const FaultedMemory& memory, std::uint64_t page, How how)
      : thread_([this, &memory, page, how] {
          for (std::uint64_t n = 0; n < memory.pages(); ++n) {
            const auto start = Clock::now();
            volatile std::byte* at = memory.page(n) + page / 2;
            if (how == How::write)
              *at = std::byte{1};
            else
              (void)*at;
            took_.push_back(micros_since(start));
          }
          over_ = true;
        }) {}
  ~Toucher() { thread_.join(); }
  [[nodiscard]] bool over() const { return over_; }
  [[nodiscard]] std::vector<double> took(unsigned without) const { return {took_.begin() + without, took_.end()}; }

 private:
  std::atomic<bool> over_ = false;
  std::vector<double> took_;
  std::thread thread_;  // Last: it uses the others.
};

class BareClient final : public LinkClient {
 public:
  BareClient(std::unique_ptr<bare::Endpoint> endpoint, sockaddr_in server, std::uint64_t page)
      : endpoint_(std::move(endpoint)), server_(server), page_(page), room_(kPagesInFlight * page) {}

  Outcome<std::vector<double>> round_trips(unsigned count) override {
    HOLO_ASSIGN(connection, dial());
    std::vector<double> out;
    for (unsigned i = 0; i < count + kWarmUp; ++i) {
      bool done = false;
      const auto start = Clock::now();
      connection->request(page_, room_.data(), [&done] { done = true; });
      connection->flush();
      if (!endpoint_->run([&] { return done || connection->failed(); }, kLimitMs) || !done) return broken();
      if (i >= kWarmUp) out.push_back(micros_since(start));
    }
    endpoint_->close(*connection);
    return out;
  }

  Outcome<double> throughput(unsigned pages) override {
    HOLO_ASSIGN(connection, dial());
    double gigabytes = 0;
    for (const unsigned count : {pages / 8 + 1, pages}) {  // Once to warm up: the congestion window grows.
      unsigned asked = 0, got = 0;
      std::function<void(unsigned)> ask = [&](unsigned slot) {
        if (asked == count) return;
        ++asked;
        connection->request(page_, room_.data() + slot * page_, [&, slot] {
          ++got;
          ask(slot);
        });
      };
      const auto start = Clock::now();
      for (unsigned slot = 0; slot < kPagesInFlight; ++slot) ask(slot);
      connection->flush();
      if (!endpoint_->run([&] { return got == count || connection->failed(); }, kLimitMs) || got != count) {
        return broken();
      }
      gigabytes = static_cast<double>(count) * static_cast<double>(page_) / micros_since(start) / 1e3;
    }
    endpoint_->close(*connection);
    return gigabytes;
  }

  Outcome<std::vector<double>> handshakes(unsigned count) override {
    std::vector<double> out;
    for (unsigned i = 0; i < count + 1; ++i) {
      const auto start = Clock::now();
      HOLO_ASSIGN(connection, dial());
      if (i > 0) out.push_back(micros_since(start) / 1e3);
      endpoint_->close(*connection);
    }
    return out;
  }

  Outcome<std::vector<double>> heartbeats(unsigned, Beside) override {
    return fail(Errc::unsupported, "the bare loop has no classes");
  }

  Outcome<std::vector<double>> faulted_reads(unsigned count) override {
    HOLO_ASSIGN(connection, dial());
    HOLO_ASSIGN(memory, FaultedMemory::make(count + kWarmUp, page_, UFFDIO_REGISTER_MODE_MISSING));
    Toucher toucher(memory, page_, Toucher::How::read);
    while (!toucher.over()) {
      // The link is served while nobody waits for a page.
      (void)endpoint_->run([&] { return toucher.over(); }, 100, memory.fd());
      const auto page = memory.next_fault();
      if (!page) continue;
      bool done = false;
      connection->request(page_, room_.data(), [&done] { done = true; });
      connection->flush();
      if (!endpoint_->run([&] { return done || connection->failed(); }, kLimitMs) || !done ||
          !memory.put(*page, room_.data())) {
        ::_exit(kFailed);  // The other thread waits for a page that will never come.
      }
    }
    endpoint_->close(*connection);
    return toucher.took(kWarmUp);
  }

  Outcome<std::vector<double>> faulted_upgrades(unsigned count) override {
    constexpr auto kModes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
    HOLO_ASSIGN(memory, FaultedMemory::make(count + kWarmUp, page_, kModes));
    memory.fill_protected(room_.data());
    Toucher toucher(memory, page_, Toucher::How::write);
    while (!toucher.over()) {
      pollfd wait{.fd = memory.fd(), .events = POLLIN, .revents = 0};
      if (::poll(&wait, 1, 100) <= 0) continue;
      if (const auto page = memory.next_fault()) memory.allow_writes(*page);
    }
    return toucher.took(kWarmUp);
  }

  Outcome<void> keep_idle(unsigned count) override {
    for (unsigned i = 0; i < count; ++i) HOLO_TRY(dial());
    return rest(300);
  }
  Outcome<void> rest(unsigned milliseconds) override {
    (void)endpoint_->run([] { return false; }, static_cast<int>(milliseconds));
    return {};
  }

 private:
  Outcome<bare::Connection*> dial() {
    bare::Connection& connection = endpoint_->dial(server_);
    const auto over = [&] { return connection.established() || connection.failed(); };
    if (!endpoint_->run(over, kLimitMs) || connection.failed()) return broken();
    return &connection;
  }
  static std::unexpected<Error> broken() { return fail(Errc::unavailable, "the bare connection broke"); }

  std::unique_ptr<bare::Endpoint> endpoint_;
  sockaddr_in server_;
  const std::uint64_t page_;
  Bytes room_;
};

}  // namespace

Outcome<std::unique_ptr<LinkClient>> make_bare_client(const LinkPeerOptions& o, const LinkKey& key) {
  HOLO_ASSIGN(server, bare::parse_address(o.server));
  HOLO_ASSIGN(endpoint, endpoint_of(o, key));
  return std::make_unique<BareClient>(std::move(endpoint), server, o.page);
}

Outcome<int> serve_bare_link(const LinkPeerOptions& o, const LinkKey& key) {
  HOLO_ASSIGN(endpoint, endpoint_of(o, key));
  announce_link_server(endpoint->address());
  (void)endpoint->run([] { return false; }, -1, STDIN_FILENO);
  return kDone;
}

}  // namespace holo::cmd
