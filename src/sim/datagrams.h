// A simulated network of datagrams, with what happens to them: delay, queues that fill, loss, duplication, reordering,
// damage, black holes, partitions, links that flap, addresses that change. All from one seed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "env/datagrams.h"
#include "sim/loop.h"
#include "sim/scenario.h"

namespace holo::sim {

/// What happens to datagrams from one host to another. May change at any time, for those that are sent from then on.
struct LinkRules {
  Duration min_delay = microseconds(50);  ///< Each datagram takes something between these two ...
  Duration max_delay = microseconds(500);
  std::uint64_t bytes_per_second = 0;   ///< ... after it waited for those before it (with 28 bytes of headers); 0: none
  std::size_t queue_bytes = 128 << 10;  ///< may wait; above: dropped
  std::size_t mark_bytes = 0;           ///< Above, datagrams that are ECN-capable get marked CE; 0: never.
  std::size_t largest = 65'507;         ///< Larger ones vanish without a word (a black hole of the path MTU).
  std::uint32_t lost_per_thousand = 0;
  std::uint32_t duplicated_per_thousand = 0;  ///< arrive twice, with delays of their own
  std::uint32_t reordered_per_thousand = 0;   ///< are held back for up to `reorder_delay`; all others keep their order
  Duration reorder_delay = milliseconds(2);
  std::uint32_t flipped_per_thousand = 0;    ///< One to eight bits change.
  std::uint32_t truncated_per_thousand = 0;  ///< The end is missing.
  std::uint32_t busy_per_thousand = 0;       ///< of send(): it returns false, and on_writable follows
  bool cut = false;                          ///< Nothing passes.
  Duration flap_up{}, flap_down{};           ///< Passes for `flap_up`, then not for `flap_down`, and so on; 0: steady
};

/// How often what happened, in datagrams (`busy`: in calls of send()).
struct DatagramCounters {
  std::uint64_t sent = 0, delivered = 0;
  std::uint64_t lost = 0, duplicated = 0, reordered = 0, flipped = 0, truncated = 0, marked = 0;
  std::uint64_t too_large = 0, queue_full = 0, cut = 0, flapped = 0;
  std::uint64_t unreachable = 0;  ///< nobody has that address or port (any more)
  std::uint64_t overflowed = 0;   ///< The receiver's socket was full.
  std::uint64_t busy = 0, rebound = 0;
  /// Adds all of them, each as "datagrams NAME".
  void add_to(Tally& tally) const;
};

/// Thread: that of the world. Outlives what is attached to it; the world's events do not outlive it.
class DatagramNetwork {
 public:
  struct Host;
  class Socket;
  /// Bytes that a socket keeps for an owner who has not called start() yet.
  static constexpr std::size_t kReceiveBuffer = 1 << 20;

  DatagramNetwork(World& world, std::uint64_t seed);
  ~DatagramNetwork();
  DatagramNetwork(const DatagramNetwork&) = delete;
  DatagramNetwork& operator=(const DatagramNetwork&) = delete;

  /// A machine with these IPv4 addresses ("10.0.0.1"), which others resolve by them or by its name. One that has that
  /// name already is killed: this is how a machine restarts.
  std::unique_ptr<env::Datagrams> attach(const std::string& host, SimLoop& loop, std::vector<std::string> addresses);
  /// Its sockets neither send nor receive any more, as after kill -9.
  void kill(const std::string& host);

  /// For every pair of hosts that has no rules of its own.
  LinkRules& defaults() { return defaults_; }
  /// The rules of one direction: at first as the defaults are now. A host's way to itself knows no faults.
  LinkRules& link(const std::string& from, const std::string& to);
  /// Drops the rules of all single links: the defaults apply.
  void forget_links() { rules_.clear(); }
  /// Cuts both directions between every host of `side` and every other. One-way: link(a, b).cut.
  void partition(std::set<std::string> side) { side_ = std::move(side); }
  void heal() { side_.clear(); }
  /// Nothing reaches or leaves this address any more; the host's other addresses go on.
  void block(const std::string& address);
  void unblock(const std::string& address);

  /// The host is behind a NAT that forgets: its sockets keep their addresses, but peers see another port, and mostly
  /// another address too, from the next datagram on; what they send to the one they knew vanishes. So nobody can dial
  /// it at its own address, until leave_nat().
  void rebind(const std::string& host);
  void leave_nat(const std::string& host);
  /// Addresses come and go; sockets bound to all addresses follow.
  void add_address(const std::string& host, const std::string& address);
  void remove_address(const std::string& host, const std::string& address);

  [[nodiscard]] const DatagramCounters& counters() const { return counters_; }

 private:
  friend class SimDatagrams;
  using Ip = std::array<std::uint8_t, 16>;
  using Pair = std::pair<std::string, std::string>;
  struct LinkState {
    Instant free_at{};       // when the last queued datagram has left
    Instant last_arrival{};  // Later ones do not overtake it.
  };
  struct Flight {
    env::IpEndpoint from, to;  // as on the wire
    env::Ecn ecn;
    Bytes bytes;
  };

  const LinkRules& rules(const Host& from, const Host* to) const;
  bool refuses(const Host& from, const env::IpEndpoint& to);
  void transmit(const std::shared_ptr<Host>& from, const env::IpEndpoint& source, const env::IpEndpoint& to,
                env::Ecn ecn, ByteSpan bytes);
  bool stopped(const Host& from, const Host& to, const Flight& flight, const LinkRules& rules);
  bool queue(LinkState& state, const LinkRules& rules, Flight& flight, Instant& departure);
  void damage(const LinkRules& rules, Flight& flight);
  void fly(LinkState& state, const LinkRules& rules, Instant departure, Flight flight);
  void arrive(Flight flight);

  env::IpEndpoint translated(const std::shared_ptr<Host>& host, const env::IpEndpoint& source);
  /// The host that `to` leads to, and its endpoint as that host knows it.
  std::pair<std::shared_ptr<Host>, env::IpEndpoint> destination(const env::IpEndpoint& to) const;
  std::shared_ptr<Host> find(const std::string& host) const;
  bool chance(std::uint32_t per_thousand) { return random_.chance(per_thousand, 1000); }
  Duration between(Duration low, Duration high);

  World& world_;
  Random random_;
  LinkRules defaults_;
  const LinkRules own_;  // of a host's way to itself
  std::map<Pair, LinkRules> rules_;
  std::map<Pair, LinkState> states_;
  std::set<std::string> side_;
  std::set<Ip> blocked_;
  std::map<std::string, std::shared_ptr<Host>> hosts_;
  std::map<Ip, std::shared_ptr<Host>> owners_;                         // of addresses
  std::map<env::IpEndpoint, env::IpEndpoint> outside_of_, inside_of_;  // NAT
  std::uint32_t mappings_ = 0;
  DatagramCounters counters_;
};

}  // namespace holo::sim
