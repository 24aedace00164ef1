// `holo ping`: one round trip over the bus, from this node's loop to another's and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "env/loop.h"
#include "node/bus.h"
#include "node/control.h"
#include "node/json.h"
#include "node/local_api.h"

namespace holo::node {

inline constexpr std::size_t kMaxPingBytes = 64 << 10;  ///< above: invalid_argument

/// Answers the pings of other nodes: the payload comes back as it is.
void serve_ping(Bus& bus);

/// Answers PING (wire::PingRequest) with AdminJson {node, id, address, carrier, cipher, path_mtu, bytes, answered,
/// round_trip_us or error}. A node that does not answer is such an answer. Without a connection there is one round trip
/// that is not measured first. Errors, when no ping could be sent: `not_found`, `invalid_argument` (this node itself,
/// too many bytes), `unavailable` (dead or left). All pointers outlive the task. Thread: loop.
Task<Result<LocalReply>> ask_ping(env::Loop* loop, Bus* bus, const ControlService* control, LocalRequest request);

/// Another node of the cluster, by name or id; of several the living. Errors: `not_found`, `invalid_argument` (this
/// node itself), `unavailable` (dead or left).
Result<NodeId> find_other_node(const ControlService& control, const std::string& text);

/// Writes node, id, address, carrier, cipher and path_mtu of the link to `peer`; empty where there is none.
void write_link(JsonWriter& w, const Bus& bus, NodeId peer, const std::string& name);

/// The size of IP packets that the link's path was found to carry; 0 where the carrier does not know (TCP).
std::uint64_t path_mtu(const LinkStatus& link);

}  // namespace holo::node
