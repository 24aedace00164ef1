// Membership messages of a peer, and a core that hears them: whatever comes is refused or bounded, and gossip alone
// makes no verdict.
#include "core/membership/swim.h"
#include "core/membership/swim_wire.h"
#include "fuzzing.h"
#include "wire/protobuf_log.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  holo::wire::route_protobuf_log();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using namespace holo;
  using namespace holo::membership;
  const ByteSpan data{reinterpret_cast<const std::byte*>(bytes), size};
  const auto message = decode_swim_message(data);
  if (!message) return 0;
  const std::string again = encode(*message);
  const auto back = decode_swim_message(as_bytes(again));
  fuzz::expect(back && back->updates == message->updates && back->kind == message->kind);

  Random random(1);
  Effects out;
  Swim swim({}, NodeId{1}, 1);
  std::vector<Fact> facts;
  for (std::uint64_t i = 1; i <= 4; ++i) facts.push_back({NodeId{i}, 1, true, false, true});
  Instant now{1'000'000'000};
  swim.set_members(now, facts, random, out);
  for (std::uint64_t from = 1; from <= 5; ++from) swim.on_message(now, NodeId{from}, *message, out);
  for (const auto& s : out.send) fuzz::expect(decode_swim_message(as_bytes(encode(s.message))).has_value());
  fuzz::expect(swim.verdicts().empty());
  now = swim.next_wake();
  swim.tick(now, random, out);
  return 0;
}
