#include "node/ping.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "node/json.h"
#include "node/local_calls.h"
#include "wire/message_types.h"

namespace holo::node {
namespace {

constexpr auto kPing = static_cast<std::uint16_t>(wire::PeerMessage::ping);
constexpr std::uint64_t kUdpHeader = 8, kIpv4Header = 20, kIpv6Header = 40;
constexpr std::uint32_t kMaxTimeoutMs = 60'000;

std::size_t size_of(const std::vector<Buffer>& parts) {
  std::size_t sum = 0;
  for (const Buffer& b : parts) sum += b.size();
  return sum;
}

Task<Result<env::Reply>> echo(NodeId, env::Request request) {
  if (size_of(request.payload) > kMaxPingBytes) {
    co_return fail(Errc::invalid_argument, str("a ping of more than ", kMaxPingBytes, " bytes"));
  }
  env::Reply reply;
  reply.payload = std::move(request.payload);
  co_return reply;
}

/// Not all alike, so that an answer that mixes bytes up would be seen.
Bytes pattern(std::size_t bytes) {
  Bytes out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>(i * 131 + (i >> 8));
  return out;
}

Task<Result<env::Reply>> round_trip(Bus* bus, NodeId peer, Bytes bytes, Instant deadline) {
  env::Request request{.type = kPing, .header = {}, .payload = {}};
  if (!bytes.empty()) request.payload.emplace_back(std::move(bytes));
  const env::CallOptions options{.klass = env::StreamClass::control, .deadline = deadline};
  auto call = bus->call(peer, std::move(request), options);
  co_return co_await call;
}

}  // namespace

void serve_ping(Bus& bus) { bus.serve(kPing, echo); }

/// The living first: a name can be used again.
Result<NodeId> find_other_node(const ControlService& control, const std::string& text) {
  const control::State& state = control.state();
  const NodeId self = control.self();
  const auto id = parse_node_id(text);
  NodeId found;
  for (const auto& [node, record] : state.nodes()) {
    if (record.name != text && !(id && node == *id)) continue;
    if (!found || record.state == control::NodeState::alive) found = node;
  }
  if (!found) return fail(Errc::not_found, str("there is no node ", text), "holo status lists them");
  if (found == self) {
    return fail(Errc::invalid_argument, str(text, " is this node itself: there is no link to measure"),
                "holo status lists the others");
  }
  const control::NodeState is = state.node(found)->state;
  if (is == control::NodeState::left) return fail(Errc::unavailable, str("node ", text, " has left the cluster"));
  if (is == control::NodeState::dead) {
    return fail(Errc::unavailable, str("node ", text, " is dead: a majority of the voters could not reach it"),
                "holo status tells when it is back");
  }
  return found;
}

void write_link(JsonWriter& w, const Bus& bus, NodeId peer, const std::string& name) {
  const auto link = bus.link(peer);
  w.field("node", name);
  w.field("id", to_hex(peer.value));
  w.field("address", link ? link->address : std::string());
  w.field("carrier", link ? link->carrier : "");
  w.field("cipher", link ? link->cipher : "");
  w.field("path_mtu", link ? path_mtu(*link) : std::uint64_t{0});
}

std::uint64_t path_mtu(const LinkStatus& link) {
  if (link.figures.datagram_bytes == 0) return 0;
  return link.figures.datagram_bytes + kUdpHeader + (link.address.starts_with('[') ? kIpv6Header : kIpv4Header);
}

Task<Result<LocalReply>> ask_ping(env::Loop* loop, Bus* bus, const ControlService* control, LocalRequest request) {
  wire::PingRequest ask;
  if (!ask.ParseFromString(request.header)) co_return fail(Errc::malformed, "a request that does not decode");
  if (ask.bytes() > kMaxPingBytes) {
    co_return fail(Errc::invalid_argument, str("a ping carries at most ", kMaxPingBytes, " bytes"));
  }
  HOLO_CO_ASSIGN(peer, find_other_node(*control, ask.node()));
  const std::string name = control->state().node(peer)->name;
  const Bytes sent = pattern(ask.bytes());
  const Instant deadline =
      loop->now() + milliseconds(static_cast<std::int64_t>(std::clamp(ask.timeout_ms(), 1u, kMaxTimeoutMs)));

  Status answered;
  if (!bus->connected(peer)) {
    auto first = round_trip(bus, peer, Bytes(), deadline);
    auto connected = co_await first;
    if (!connected) answered = std::unexpected(std::move(connected).error());
  }
  const Instant begin = loop->now();
  Duration took;
  if (answered) {
    auto measured = round_trip(bus, peer, sent, deadline);
    auto reply = co_await measured;
    took = loop->now() - begin;
    if (!reply) {
      answered = std::unexpected(std::move(reply).error());
    } else {
      Bytes back;
      for (const Buffer& b : reply->payload) back.insert(back.end(), b.span().begin(), b.span().end());
      if (back != sent) answered = fail(Errc::corrupt, "the answer is not what was sent");
    }
  }

  JsonWriter w;
  w.object([&] {
    write_link(w, *bus, peer, name);
    w.field("bytes", sent.size());
    w.field("answered", answered.has_value());
    if (answered) {
      w.field("round_trip_us", static_cast<double>(took.ns) / 1000.0);
    } else {
      w.field("error", answered.error().to_string());
    }
  });
  co_return json_reply(w.text());
}

}  // namespace holo::node
