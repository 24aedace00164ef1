// Between the messages of compute and the types of the node.
#pragma once

#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "node/memory.h"
#include "wire/compute.pb.h"
#include "wire/errors.h"

namespace holo::node {

inline wire::WireError error_to_wire(const Error& e) {
  wire::WireError out;
  wire::put_error(e, out);
  return out;
}
inline Error error_from_wire(const wire::WireError& e) { return wire::error_of(e); }

inline wire::Txn txn_to_wire(const TxnId& t) {
  wire::Txn out;
  out.set_node(t.node.value);
  out.set_incarnation(t.incarnation);
  out.set_sequence(t.sequence);
  return out;
}
inline TxnId txn_from_wire(const wire::Txn& t) { return {NodeId{t.node()}, t.incarnation(), t.sequence()}; }

inline void writes_to_wire(const std::vector<RegionWrites>& writes, wire::TaskDone& out) {
  for (const RegionWrites& w : writes) {
    auto* region = out.add_writes();
    region->set_region(w.region.value);
    for (const StagedSpan& s : w.pages) {
      auto* pages = region->add_pages();
      pages->set_first(s.pages.first.value);
      pages->set_count(s.pages.count);
      for (const NodeId holder : s.holders) pages->add_holders(holder.value);
    }
  }
}
inline std::vector<RegionWrites> writes_from_wire(const wire::TaskDone& done) {
  std::vector<RegionWrites> out;
  for (const auto& region : done.writes()) {
    RegionWrites w{.region = RegionId{region.region()}, .pages = {}};
    for (const auto& pages : region.pages()) {
      StagedSpan span{.pages = {PageNo{pages.first()}, pages.count()}, .holders = {}};
      for (const auto holder : pages.holders()) span.holders.push_back(NodeId{holder});
      w.pages.push_back(std::move(span));
    }
    if (!w.pages.empty()) out.push_back(std::move(w));
  }
  return out;
}

}  // namespace holo::node
