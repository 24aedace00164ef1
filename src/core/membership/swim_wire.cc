#include "core/membership/swim_wire.h"

#include "base/assert.h"
#include "wire/membership.pb.h"

namespace holo::membership {

std::string encode(const Message& message) {
  wire::SwimMessage m;
  m.set_kind(static_cast<std::uint32_t>(message.kind));
  m.set_seq(message.seq);
  m.set_start(message.sender.start);
  m.set_round(message.sender.round);
  m.set_target(message.target.value);
  for (const Update& u : message.updates) {
    auto* out = m.add_updates();
    out->set_node(u.node.value);
    out->set_start(u.incarnation.start);
    out->set_round(u.incarnation.round);
    out->set_claim(static_cast<std::uint32_t>(u.claim));
    out->set_by(u.by.value);
  }
  std::string bytes = m.SerializeAsString();
  HOLO_ASSERT(bytes.size() <= kMaxMessageBytes, "the number of updates bounds a message");
  return bytes;
}

Result<Message> decode_swim_message(ByteSpan bytes) {
  const auto malformed = [] { return fail(Errc::malformed, "a membership message that does not decode"); };
  wire::SwimMessage m;
  if (bytes.size() > kMaxMessageBytes || !m.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return malformed();
  if (m.kind() < 1 || m.kind() > static_cast<std::uint32_t>(Kind::sync_reply)) return malformed();
  Message out;
  out.kind = static_cast<Kind>(m.kind());
  out.seq = m.seq();
  out.sender = {.start = m.start(), .round = m.round()};
  out.target = NodeId{m.target()};
  const bool sync = out.kind == Kind::sync || out.kind == Kind::sync_reply;
  if (static_cast<std::size_t>(m.updates_size()) > (sync ? kMaxSyncUpdates : kMaxUpdates + 2)) return malformed();
  if ((out.kind == Kind::ask || out.kind == Kind::nack) && !out.target) return malformed();
  out.updates.reserve(static_cast<std::size_t>(m.updates_size()));
  for (const wire::SwimUpdate& u : m.updates()) {
    if (u.node() == 0 || u.claim() < 1 || u.claim() > static_cast<std::uint32_t>(Claim::dead)) return malformed();
    const auto claim = static_cast<Claim>(u.claim());
    if ((claim == Claim::suspect) != (u.by() != 0)) return malformed();
    out.updates.push_back({.node = NodeId{u.node()},
                           .incarnation = {.start = u.start(), .round = u.round()},
                           .claim = claim,
                           .by = NodeId{u.by()}});
  }
  return out;
}

}  // namespace holo::membership
