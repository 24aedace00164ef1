// What a node says of itself, between the wire and the state: one place for every copy of it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "wire/control.pb.h"

namespace holo::control {

struct NodeRecord;

/// A label of a node, free for its owner to choose: "disk=ssd".
struct NodeLabel {
  std::string key;
  std::string value;
  friend bool operator==(const NodeLabel&, const NodeLabel&) = default;
};

inline constexpr std::size_t kMaxLabels = 16;
inline constexpr std::size_t kMaxLabelText = 63;  ///< Bytes of a zone, host, rack, a label's key or its value.

/// Where a node stands and what its owner says of it. Placement and voters prefer nodes that do not share a host, then
/// a zone; an empty one is unknown and shared with nobody.
struct NodePlace {
  std::string zone;
  std::string host;
  std::string rack;
  std::vector<NodeLabel> labels;  ///< By key, each once.
  friend bool operator==(const NodePlace&, const NodePlace&) = default;
};

/// At most kMaxLabelText of [A-Za-z0-9._/:-], beginning with a letter or digit; `what` names it in the error. Errors:
/// `invalid_argument`.
Status check_label_text(std::string_view what, std::string_view text);
/// Each text as above (a label's value may be empty), labels by key and each once, at most kMaxLabels. Errors:
/// `invalid_argument`.
Status check_place(const NodePlace& place);

NodePlace place_of(const wire::NodeInfo& info);
void set_place(const NodePlace& place, wire::NodeInfo* out);

/// Errors: `invalid_argument`, for facts that no node may have.
Status check_info(const wire::NodeInfo& info);
/// Everything but incarnation, state and what the cluster decides; `witness` is settled when a node joins.
void set_info(NodeRecord& n, const wire::NodeInfo& info);
wire::NodeInfo info_of(const NodeRecord& n);
/// The same of whatever has a node's facts.
template <class Facts>
wire::NodeInfo info_from(const Facts& n, std::uint64_t incarnation) {
  wire::NodeInfo out;
  out.set_id(n.id.value);
  out.set_name(n.name);
  for (const std::string& a : n.addresses) out.add_addresses(a);
  out.set_cores(n.cores);
  out.set_memory_bytes(n.memory_bytes);
  out.set_speed(n.speed);
  out.set_version(n.version);
  out.set_incarnation(incarnation);
  set_place(n.place, &out);
  out.set_witness(n.witness);
  return out;
}
/// What a node says now is what the state knows; the incarnation does not count.
bool same_facts(const NodeRecord& known, const wire::NodeInfo& said);

}  // namespace holo::control
