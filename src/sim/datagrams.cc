#include "sim/datagrams.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <deque>
#include <optional>
#include <string_view>

#include "base/strings.h"

namespace holo::sim {

using env::Datagram;
using env::DatagramPath;
using env::DatagramSocket;
using env::Ecn;
using env::IpEndpoint;

namespace {

constexpr std::size_t kHeaders = 28;  // of IPv4 and UDP
constexpr Duration kBusy = milliseconds(1);
constexpr std::uint16_t kFirstFreePort = 32768;

template <class Int>
std::optional<Int> number(std::string_view text) {
  Int value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

using Ip = std::array<std::uint8_t, 16>;

std::optional<Ip> parse_ip(std::string_view text) {
  if (text == "[::]") return Ip{};
  Ip ip{};
  ip[10] = ip[11] = 0xff;
  for (std::size_t i = 12; i < ip.size(); ++i) {
    const auto dot = i + 1 < ip.size() ? text.find('.') : text.size();
    if (dot == std::string_view::npos) return std::nullopt;
    const auto part = number<std::uint8_t>(text.substr(0, dot));
    if (!part) return std::nullopt;
    ip[i] = *part;
    text.remove_prefix(std::min(dot + 1, text.size()));
  }
  return ip;
}

Ip known_ip(const std::string& text) {
  const auto ip = parse_ip(text);
  HOLO_ASSERT(ip.has_value(), "an IPv4 address is wanted");
  return *ip;
}

struct HostPort {
  std::string host;
  std::uint16_t port = 0;
};
Result<HostPort> split(const std::string& address) {
  const auto colon = address.rfind(':');
  const auto port =
      colon == std::string::npos ? std::nullopt : number<std::uint16_t>(std::string_view(address).substr(colon + 1));
  if (!port || colon == 0) return fail(Errc::invalid_argument, str("\"", address, "\" is no address"));
  return HostPort{.host = address.substr(0, colon), .port = *port};
}

}  // namespace

struct DatagramNetwork::Host {
  std::string name;
  SimLoop& loop;
  std::vector<Ip> addresses;
  bool alive = true;
  bool behind_nat = false;
  std::uint16_t next_port = kFirstFreePort;
  std::map<IpEndpoint, Socket*> sockets = {};  // by what they are bound to

  [[nodiscard]] bool has(const Ip& ip) const { return std::ranges::count(addresses, ip) != 0; }
  [[nodiscard]] Socket* socket_at(const IpEndpoint& to) const {
    for (const auto& [bound, socket] : sockets) {
      if (bound.port == to.port && (bound.ip == to.ip || bound.is_unspecified())) return socket;
    }
    return nullptr;
  }
};

/// What DatagramSocket is a handle of: it lives on while it calls back.
class DatagramNetwork::Socket : public std::enable_shared_from_this<Socket> {
 public:
  Socket(DatagramNetwork& network, std::shared_ptr<Host> host, const IpEndpoint& bound)
      : network_(network), host_(std::move(host)), bound_(bound) {
    host_->sockets.emplace(bound_, this);
  }

  void close() {
    host_->sockets.erase(bound_);
    handlers_.reset();
    arrived_.clear();
  }
  void start(DatagramSocket::Handlers handlers) {
    HOLO_ASSERT(!handlers_, "started twice");
    handlers_ = std::make_shared<const DatagramSocket::Handlers>(std::move(handlers));
    deliver_soon();
  }

  bool send(const DatagramPath& path, Ecn ecn, std::size_t segment, ByteSpan bytes) {
    HOLO_ASSERT(segment > 0 && bytes.size() <= DatagramSocket::kMaxBurst);
    if (busy_) return false;
    if (network_.refuses(*host_, path.remote)) {
      busy_ = true;
      host_->loop.call_at(host_->loop.now() + kBusy, [self = shared_from_this()] {
        self->busy_ = false;
        if (const auto handlers = self->handlers_; handlers && handlers->on_writable) handlers->on_writable();
      });
      return false;
    }
    IpEndpoint source = bound_.is_unspecified() ? path.local : bound_;
    if (source.is_unspecified() && !host_->addresses.empty()) source.ip = host_->addresses.front();
    source.port = bound_.port;
    while (!bytes.empty()) {
      const ByteSpan one = bytes.first(std::min(segment, bytes.size()));
      bytes = bytes.subspan(one.size());
      network_.transmit(host_, source, path.remote, ecn, one);
    }
    return true;
  }

  /// False when there is no room.
  bool take(const DatagramPath& path, Ecn ecn, Bytes bytes) {
    if (waiting_bytes_ + bytes.size() > kReceiveBuffer) {
      ++dropped_;
      return false;
    }
    waiting_bytes_ += bytes.size();
    arrived_.push_back({path, ecn, std::move(bytes)});
    deliver_soon();
    return true;
  }

  [[nodiscard]] const IpEndpoint& bound() const { return bound_; }
  [[nodiscard]] std::uint64_t dropped() const { return dropped_; }

 private:
  struct Arrival {
    DatagramPath path;
    Ecn ecn;
    Bytes bytes;
  };

  void deliver_soon() {
    if (!handlers_ || arrived_.empty() || delivering_) return;
    delivering_ = true;  // What else arrives at this instant goes along.
    host_->loop.post([self = shared_from_this()] { self->deliver(); });
  }
  void deliver() {
    delivering_ = false;
    if (!handlers_) return;
    std::vector<Arrival> taken;
    std::vector<Datagram> batch;
    while (!arrived_.empty() && taken.size() < DatagramSocket::kMaxBatch) {
      waiting_bytes_ -= arrived_.front().bytes.size();
      taken.push_back(std::move(arrived_.front()));
      arrived_.pop_front();
    }
    for (const Arrival& a : taken) batch.push_back({.path = a.path, .ecn = a.ecn, .bytes = a.bytes});
    deliver_soon();
    const auto handlers = handlers_;
    handlers->on_datagrams(batch);
  }

  DatagramNetwork& network_;
  const std::shared_ptr<Host> host_;
  const IpEndpoint bound_;
  std::shared_ptr<const DatagramSocket::Handlers> handlers_;
  std::deque<Arrival> arrived_;
  std::size_t waiting_bytes_ = 0;
  std::uint64_t dropped_ = 0;
  bool busy_ = false;
  bool delivering_ = false;
};

namespace {

class SimSocket final : public DatagramSocket {
 public:
  explicit SimSocket(std::shared_ptr<DatagramNetwork::Socket> socket) : socket_(std::move(socket)) {}
  ~SimSocket() override { socket_->close(); }
  void start(Handlers handlers) override { socket_->start(std::move(handlers)); }
  bool send(const DatagramPath& path, Ecn ecn, std::size_t segment, ByteSpan bytes) override {
    return socket_->send(path, ecn, segment, bytes);
  }
  IpEndpoint local() const override { return socket_->bound(); }
  std::uint64_t dropped() const override { return socket_->dropped(); }

 private:
  const std::shared_ptr<DatagramNetwork::Socket> socket_;
};

}  // namespace

class SimDatagrams final : public env::Datagrams {
 public:
  SimDatagrams(DatagramNetwork& network, std::shared_ptr<DatagramNetwork::Host> host)
      : network_(network), host_(std::move(host)) {}

  Result<std::unique_ptr<DatagramSocket>> bind(const std::string& address) override {
    HOLO_ASSIGN(where, split(address));
    const auto ip = parse_ip(where.host);
    IpEndpoint bound{.ip = ip.value_or(Ip{}), .port = where.port, .scope = 0};
    if (!ip || (!bound.is_unspecified() && !host_->has(*ip))) {
      return fail(Errc::invalid_argument, str("cannot listen on ", address, ": ", host_->name, " has no such address"));
    }
    while (bound.port == 0 || (where.port == 0 && taken(bound))) {
      bound.port = host_->next_port;
      host_->next_port = host_->next_port == UINT16_MAX ? kFirstFreePort : host_->next_port + 1;
    }
    if (taken(bound)) return fail(Errc::already_exists, str("cannot listen on ", address, ": the port is in use"));
    return std::make_unique<SimSocket>(std::make_shared<DatagramNetwork::Socket>(network_, host_, bound));
  }

  Task<Result<std::vector<IpEndpoint>>> resolve(std::string address, Instant deadline) override {
    DatagramNetwork& network = network_;
    const auto host = host_;
    auto where = split(address);
    if (!where) co_return std::unexpected(where.error());
    const std::uint16_t port = where->port;
    std::vector<IpEndpoint> out;
    if (const auto ip = parse_ip(where->host)) {
      out.push_back({.ip = *ip, .port = port, .scope = 0});
      co_return out;
    }
    const Instant answer = host->loop.now() + network.between(network.defaults_.min_delay, network.defaults_.max_delay);
    const bool on = co_await env::sleep_until(host->loop, std::min(answer, deadline));
    if (!on) co_return fail(Errc::cancelled, str("this node stops; ", address, " was not found"));
    if (deadline < answer) co_return fail(Errc::deadline_exceeded, str("no answer in time: looking up ", address));
    const auto found = network.find(where->host);
    if (!found) co_return fail(Errc::unavailable, str("cannot find the host ", where->host));
    for (const Ip& ip : found->addresses) out.push_back({.ip = ip, .port = port, .scope = 0});
    co_return out;
  }

 private:
  bool taken(const IpEndpoint& wanted) const {
    return std::ranges::any_of(host_->sockets, [&](const auto& entry) {
      const IpEndpoint& other = entry.first;
      return other.port == wanted.port && (other.ip == wanted.ip || other.is_unspecified() || wanted.is_unspecified());
    });
  }

  DatagramNetwork& network_;
  const std::shared_ptr<DatagramNetwork::Host> host_;
};

void DatagramCounters::add_to(Tally& tally) const {
  const std::pair<const char*, std::uint64_t> all[] = {{"sent", sent},
                                                       {"delivered", delivered},
                                                       {"lost", lost},
                                                       {"duplicated", duplicated},
                                                       {"reordered", reordered},
                                                       {"flipped", flipped},
                                                       {"truncated", truncated},
                                                       {"marked", marked},
                                                       {"too large", too_large},
                                                       {"queue full", queue_full},
                                                       {"cut", cut},
                                                       {"flapped", flapped},
                                                       {"unreachable", unreachable},
                                                       {"overflowed", overflowed},
                                                       {"busy", busy},
                                                       {"rebound", rebound}};
  for (const auto& [name, count] : all) tally[str("datagrams ", name)] += count;
}

DatagramNetwork::DatagramNetwork(World& world, std::uint64_t seed) : world_(world), random_(seed) {}
DatagramNetwork::~DatagramNetwork() = default;

std::unique_ptr<env::Datagrams> DatagramNetwork::attach(const std::string& host, SimLoop& loop,
                                                        std::vector<std::string> addresses) {
  kill(host);
  auto made = std::make_shared<Host>(Host{.name = host, .loop = loop, .addresses = {}});
  hosts_[host] = made;
  for (const auto& a : addresses) add_address(host, a);
  return std::make_unique<SimDatagrams>(*this, std::move(made));
}

void DatagramNetwork::kill(const std::string& host) {
  const auto it = hosts_.find(host);
  if (it == hosts_.end()) return;
  it->second->alive = false;
  std::erase_if(owners_, [&](const auto& entry) { return entry.second == it->second; });
  hosts_.erase(it);
}

std::shared_ptr<DatagramNetwork::Host> DatagramNetwork::find(const std::string& host) const {
  const auto it = hosts_.find(host);
  return it == hosts_.end() ? nullptr : it->second;
}

LinkRules& DatagramNetwork::link(const std::string& from, const std::string& to) {
  return rules_.try_emplace({from, to}, defaults_).first->second;
}

const LinkRules& DatagramNetwork::rules(const Host& from, const Host* to) const {
  if (to == nullptr) return defaults_;
  if (from.name == to->name) return own_;
  const auto it = rules_.find({from.name, to->name});
  return it == rules_.end() ? defaults_ : it->second;
}

void DatagramNetwork::block(const std::string& address) { blocked_.insert(known_ip(address)); }
void DatagramNetwork::unblock(const std::string& address) { blocked_.erase(known_ip(address)); }

void DatagramNetwork::add_address(const std::string& host, const std::string& address) {
  const Ip ip = known_ip(address);
  const auto at = find(host);
  HOLO_ASSERT(at && !owners_.contains(ip), "the host exists, and the address is free");
  at->addresses.push_back(ip);
  owners_[ip] = at;
}

void DatagramNetwork::remove_address(const std::string& host, const std::string& address) {
  const Ip ip = known_ip(address);
  const auto at = find(host);
  HOLO_ASSERT(at && at->has(ip), "the host has that address");
  std::erase(at->addresses, ip);
  owners_.erase(ip);
}

Duration DatagramNetwork::between(Duration low, Duration high) {
  HOLO_ASSERT(low <= high);
  return low + nanoseconds(static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>((high - low).ns) + 1)));
}

// --- NAT -----------------------------------------------------------------------------------------------------------

void DatagramNetwork::rebind(const std::string& host) {
  const auto at = find(host);
  HOLO_ASSERT(at != nullptr, "the host exists");
  at->behind_nat = true;
  ++counters_.rebound;
  std::erase_if(inside_of_, [&](const auto& entry) { return at->has(entry.second.ip); });
  // outside_of_ stays, as what the next mapping of that socket must differ from.
}

void DatagramNetwork::leave_nat(const std::string& host) {
  const auto at = find(host);
  HOLO_ASSERT(at != nullptr, "the host exists");
  at->behind_nat = false;
  std::erase_if(inside_of_, [&](const auto& entry) { return at->has(entry.second.ip); });
  std::erase_if(outside_of_, [&](const auto& entry) { return at->has(entry.first.ip); });
}

IpEndpoint DatagramNetwork::translated(const std::shared_ptr<Host>& host, const IpEndpoint& source) {
  if (!host->behind_nat) return source;
  const auto before = outside_of_.find(source);
  if (before != outside_of_.end() && inside_of_.contains(before->second)) return before->second;
  IpEndpoint outside = before == outside_of_.end() ? source : before->second;
  ++mappings_;
  if (random_.chance(3, 4)) outside.ip = known_ip(str("100.64.", mappings_ / 256 % 256, ".", mappings_ % 256));
  do {
    outside.port = static_cast<std::uint16_t>(1024 + random_.below(UINT16_MAX - 1024));
  } while (inside_of_.contains(outside) || (before != outside_of_.end() && outside == before->second) ||
           outside == source);
  outside_of_[source] = outside;
  inside_of_[outside] = source;
  return outside;
}

std::pair<std::shared_ptr<DatagramNetwork::Host>, IpEndpoint> DatagramNetwork::destination(const IpEndpoint& to) const {
  const auto mapping = inside_of_.find(to);
  const IpEndpoint inside = mapping == inside_of_.end() ? to : mapping->second;
  const auto owner = owners_.find(inside.ip);
  if (owner == owners_.end()) return {nullptr, inside};
  if (owner->second->behind_nat && mapping == inside_of_.end()) return {nullptr, inside};
  return {owner->second, inside};
}

// --- the way of a datagram -----------------------------------------------------------------------------------------

bool DatagramNetwork::refuses(const Host& from, const IpEndpoint& to) {
  if (!chance(rules(from, destination(to).first.get()).busy_per_thousand)) return false;
  ++counters_.busy;
  return true;
}

void DatagramNetwork::transmit(const std::shared_ptr<Host>& from, const IpEndpoint& source, const IpEndpoint& to,
                               Ecn ecn, ByteSpan bytes) {
  if (!from->alive) return;
  ++counters_.sent;
  const auto target = destination(to).first;
  if (!target || !from->has(source.ip)) {
    ++counters_.unreachable;
    return;
  }
  Flight flight{.from = source, .to = to, .ecn = ecn, .bytes = Bytes(bytes.begin(), bytes.end())};
  const LinkRules& rules_here = rules(*from, target.get());
  if (stopped(*from, *target, flight, rules_here)) return;
  if (from != target) flight.from = translated(from, source);
  LinkState& state = states_[{from->name, target->name}];
  Instant departure;
  if (!queue(state, rules_here, flight, departure)) return;
  if (chance(rules_here.lost_per_thousand)) {
    ++counters_.lost;
    return;
  }
  if (chance(rules_here.duplicated_per_thousand)) {
    ++counters_.duplicated;
    fly(state, rules_here, departure, flight);
  }
  damage(rules_here, flight);
  fly(state, rules_here, departure, std::move(flight));
}

bool DatagramNetwork::stopped(const Host& from, const Host& to, const Flight& flight, const LinkRules& link_rules) {
  if (from.name == to.name) return false;
  if (link_rules.cut || side_.contains(from.name) != side_.contains(to.name) || blocked_.contains(flight.from.ip) ||
      blocked_.contains(flight.to.ip)) {
    ++counters_.cut;
    return true;
  }
  if (link_rules.flap_down.ns > 0 &&
      world_.now().ns % (link_rules.flap_up + link_rules.flap_down).ns >= link_rules.flap_up.ns) {
    ++counters_.flapped;
    return true;
  }
  if (flight.bytes.size() > link_rules.largest) {
    ++counters_.too_large;
    return true;
  }
  return false;
}

bool DatagramNetwork::queue(LinkState& state, const LinkRules& link_rules, Flight& flight, Instant& departure) {
  departure = world_.now();
  if (link_rules.bytes_per_second == 0) return true;
  const auto bytes_in = [&](Duration d) {
    return static_cast<std::size_t>(d.seconds() * static_cast<double>(link_rules.bytes_per_second));
  };
  const Duration wait = std::max(state.free_at - departure, Duration{});
  const std::size_t waiting = bytes_in(wait);
  const std::size_t size = flight.bytes.size() + kHeaders;
  if (waiting + size > link_rules.queue_bytes) {
    ++counters_.queue_full;
    return false;
  }
  if (link_rules.mark_bytes != 0 && waiting > link_rules.mark_bytes && flight.ecn != Ecn::not_ect) {
    flight.ecn = Ecn::ce;
    ++counters_.marked;
  }
  const auto takes = static_cast<double>(size) * 1e9 / static_cast<double>(link_rules.bytes_per_second);
  state.free_at = departure + wait + nanoseconds(static_cast<std::int64_t>(takes));
  departure = state.free_at;
  return true;
}

void DatagramNetwork::damage(const LinkRules& link_rules, Flight& flight) {
  if (flight.bytes.empty()) return;
  if (chance(link_rules.flipped_per_thousand)) {
    ++counters_.flipped;
    for (std::uint64_t left = 1 + random_.below(8); left > 0; --left) {
      const std::uint64_t bit = random_.below(flight.bytes.size() * 8);
      flight.bytes[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    }
  }
  if (chance(link_rules.truncated_per_thousand)) {
    ++counters_.truncated;
    flight.bytes.resize(random_.below(flight.bytes.size()));
  }
}

void DatagramNetwork::fly(LinkState& state, const LinkRules& link_rules, Instant departure, Flight flight) {
  Instant arrival = departure + between(link_rules.min_delay, link_rules.max_delay);
  if (chance(link_rules.reordered_per_thousand)) {
    ++counters_.reordered;
    arrival = std::max(arrival, state.last_arrival) + between(nanoseconds(1), link_rules.reorder_delay);
  } else {
    arrival = state.last_arrival = std::max(arrival, state.last_arrival);
  }
  auto carried = std::make_shared<Flight>(std::move(flight));  // std::function copies
  world_.at(arrival, [this, carried] { arrive(std::move(*carried)); });
}

void DatagramNetwork::arrive(Flight flight) {
  const auto [host, inside] = destination(flight.to);
  Socket* socket = host ? host->socket_at(inside) : nullptr;
  if (socket == nullptr) {
    ++counters_.unreachable;
    return;
  }
  ++(socket->take({.local = inside, .remote = flight.from}, flight.ecn, std::move(flight.bytes))
         ? counters_.delivered
         : counters_.overflowed);
}

}  // namespace holo::sim
