// The two ends of a link that is measured, each a process of its own: this program again, as
// `holo bench link-peer`. A server answers until its standard input ends; a client takes one order per line and answers
// with one line of figures.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/time.h"
#include "cmd/holo/background.h"
#include "cmd/holo/outcome.h"
#include "crypto/secret.h"
#include "env/fd.h"

namespace holo::cmd {

/// What both engines share: how long a loop that polls looks for more before it sleeps. About what waking up costs.
inline constexpr Duration kPollFor = microseconds(70);
inline constexpr std::uint64_t kLinkPage = 64 << 10;
inline constexpr std::uint64_t kMaxLinkReply = 1 << 20;

struct LinkPeerOptions {
  std::string engine = "holo";     ///< Or "tcp" (the same over that carrier), or "bare".
  std::string listen;              ///< "address:port" of a server; empty: a client.
  std::string server;              ///< Where a client dials.
  std::uint64_t mtu = 0;           ///< Of IP packets.
  bool poll = false;               ///< Look for more before sleeping.
  int core = -1;                   ///< To run on; -1: any.
  std::uint64_t page = kLinkPage;  ///< Bytes of an answer.
};
/// IPv6 and UDP headers, so that one figure serves both families.
constexpr std::size_t datagram_bytes(std::uint64_t mtu) { return static_cast<std::size_t>(mtu) - 48; }

/// The asking end. Every call makes a connection of its own, warms it up, and closes it.
class LinkClient {
 public:
  virtual ~LinkClient() = default;
  /// Microseconds of each: a page is asked for and has arrived, one at a time.
  virtual Outcome<std::vector<double>> round_trips(unsigned count) = 0;
  /// GB/s: so many pages, kPagesInFlight asked for at any time.
  virtual Outcome<double> throughput(unsigned pages) = 0;
  static constexpr unsigned kPagesInFlight = 32;
  /// Milliseconds of each: from the first packet until the other side is known to have the keys.
  virtual Outcome<std::vector<double>> handshakes(unsigned count) = 0;
  /// Microseconds of each: 64 bytes there and back, as urgent as can be, one each millisecond, alone or beside a copy
  /// that takes all that the link gives. Failures: `unsupported` (bare).
  enum class Beside : std::uint8_t { nothing, bulk };
  virtual Outcome<std::vector<double>> heartbeats(unsigned count, Beside beside) = 0;
  /// Microseconds of each: memory without a page is touched, the page asked for over the link and put there by
  /// userfaultfd(2) (bare only: what mapped memory cannot be faster than).
  virtual Outcome<std::vector<double>> faulted_reads(unsigned count) = 0;
  /// Microseconds of each: a write-protected page is written to, and the protection lifted (bare only).
  virtual Outcome<std::vector<double>> faulted_upgrades(unsigned count) = 0;
  /// Makes so many connections and keeps them until standard input ends or has the next line.
  virtual Outcome<void> keep_idle(unsigned count) = 0;
  /// For so long does only what the connections want.
  virtual Outcome<void> rest(unsigned milliseconds) = 0;
};

using LinkKey = crypto::Secret<32>;
Outcome<std::unique_ptr<LinkClient>> make_holo_client(const LinkPeerOptions& options, const LinkKey& key);
Outcome<int> serve_holo_link(const LinkPeerOptions& options, const LinkKey& key);
Outcome<std::unique_ptr<LinkClient>> make_bare_client(const LinkPeerOptions& options, const LinkKey& key);
Outcome<int> serve_bare_link(const LinkPeerOptions& options, const LinkKey& key);
/// Tells the parent where this server listens.
void announce_link_server(const std::string& address);

/// `holo bench link-peer`: reads the key, hex, as the first line of standard input.
Outcome<int> run_link_peer(const LinkPeerOptions& options);

/// A peer as its parent sees it; it ends with the object.
class LinkPeer {
 public:
  /// `key`: hex. Failures: `io_error`, and what the peer says.
  static Outcome<std::unique_ptr<LinkPeer>> start(const LinkPeerOptions& options, const std::string& key,
                                                  const AgentPlace& place);
  ~LinkPeer();
  LinkPeer(const LinkPeer&) = delete;
  LinkPeer& operator=(const LinkPeer&) = delete;
  /// Of a server.
  [[nodiscard]] const std::string& address() const { return address_; }
  /// One order to a client, and its figures.
  Outcome<std::vector<double>> order(const std::string& text);
  /// Bytes.
  [[nodiscard]] std::uint64_t resident() const;
  /// Processor time used so far.
  [[nodiscard]] Duration used() const;

 private:
  LinkPeer() = default;
  Outcome<std::string> line();
  pid_t pid_ = -1;
  env::Fd input_, output_;
  std::string pending_, address_;
};

}  // namespace holo::cmd
