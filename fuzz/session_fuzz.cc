// A session's streams and requests against a peer that holds the keys: any frames, mixed with any use of ours. And a
// whole session against bytes from someone who does not.
#include <cstdlib>
#include <map>

#include "core/hyperbus/record_streams.h"
#include "core/hyperbus/stream_session.h"
#include "env/entropy_testing.h"
#include "env/landing_testing.h"
#include "fuzzing.h"

namespace {

using namespace holo;
using namespace holo::hyperbus;
using env::testing::SeededEntropy;
using fuzz::expect;
using fuzz::Input;

/// A carrier whose peer says whatever the fuzzer wants.
struct Carrier final : private Streams {
  std::deque<Event> events;
  Exchange exchange;
  RecordStreams records;

  explicit Carrier(const SessionConfig& config)
      : exchange(config.windows, *this, events), records(Role::initiator, config.streams(), exchange) {
    exchange.set_placer([](const env::Request&, std::uint64_t bytes) { return env::testing::pieces_for(bytes); });
    exchange.on_established();
  }

 private:
  Result<StreamNumber> open_stream(bool bidirectional) override { return records.open(bidirectional); }
  void abandon_stream(StreamNumber stream) override { records.abandon(stream); }
};

void multiplexer(Input in) {
  SessionConfig config;
  config.windows[0].requests = 2;
  config.windows[1].requests = 5;
  Carrier carrier(config);
  Exchange& exchange = carrier.exchange;
  RecordStreams& records = carrier.records;
  Instant now{1};
  std::map<std::uint64_t, int> open;  // ours
  std::vector<StreamId> owed;         // the peer's
  bool over = false;
  const auto take_events = [&] {
    for (Event& event : carrier.events) {
      if (const auto* arrived = std::get_if<RequestArrived>(&event)) owed.push_back(arrived->stream);
      if (const auto* reply = std::get_if<ReplyArrived>(&event)) expect(open.erase(reply->stream.value) == 1);
    }
    carrier.events.clear();
  };
  const auto check = [&](const Status& status) {
    if (status) return;
    over = true;
    records.close(&status.error());
    exchange.close(status.error());
  };
  while (!in.empty() && !over) {
    const std::size_t op = in.number();
    switch (op % 8) {
      case 0:
      case 1:
      case 2:  // a record from the peer: of the kind that is due, as the session sees to it
        if (const std::size_t raw = records.raw_expected(); raw != 0) {
          const MutableByteSpan target = records.raw_target();
          expect(target.empty() || target.size() == raw);
          std::ranges::fill(target, std::byte{1});
          check(records.on_raw(target.empty() ? ByteSpan(Bytes(raw)) : ByteSpan()));
        } else {
          check(records.on_frames(now, in.bytes(in.number() * 2)));
        }
        break;
      case 3: {
        env::Request request{.type = 1, .header = std::string(in.number(), 'h'), .payload = {}};
        request.payload.emplace_back(Bytes(in.number() * 100));
        request.landing = env::testing::pieces_for(op);
        const auto call = exchange.request(now, static_cast<StreamClass>(op / 8 % 3), std::move(request),
                                           now + milliseconds(static_cast<std::int64_t>(1 + in.number())));
        if (call) open[call->value] = 1;
        break;
      }
      case 4:
        if (!owed.empty()) {
          const StreamId stream = owed.back();
          owed.pop_back();
          if (op >= 128) {
            exchange.reply(stream, fail(Errc::not_found, std::string(in.number() * 40, 'e')));
          } else {
            env::Reply reply{.header = std::string(in.number(), 'r'), .payload = {}};
            reply.payload.emplace_back(Bytes(in.number() * 200));
            exchange.reply(stream, std::move(reply));
          }
        }
        break;
      case 5:
        if (!open.empty()) exchange.cancel(StreamId(open.begin()->first), {.code = Errc::cancelled});
        break;
      case 6: {
        Bytes record(RecordStreams::kMinRecordRoom);
        ByteSpan raw;
        const std::size_t n = records.write(now, record, 70'000, raw);
        records.raw_sealed();
        // What we say always decodes.
        for (ByteSpan rest = ByteSpan(record).first(n); !rest.empty();) expect(take_frame(rest).has_value());
        break;
      }
      case 7:
        now = now + milliseconds(static_cast<std::int64_t>(in.number()));
        exchange.on_time(now);
        break;
    }
    take_events();
  }
  records.close(nullptr);
  exchange.close({.code = Errc::unavailable});
  take_events();
  expect(open.empty());
  expect(records.output_estimate() < 64 << 10);
  for (const auto klass : {StreamClass::control, StreamClass::data, StreamClass::bulk}) {
    expect(exchange.status(klass).in_flight == 0 && exchange.status(klass).queued == 0);
  }
}

void stranger(Input in, Role role) {
  static const auto config = [] {
    SeededEntropy entropy(1);
    auto made = std::make_shared<SessionConfig>();
    made->handshake = std::make_shared<const HandshakeConfig>(
        HandshakeConfig{.identity = Identity::from_seed(crypto::random_secret<32>(entropy)),
                        .keys = {ClusterKey(crypto::random_secret<32>(entropy))}});
    return std::shared_ptr<const SessionConfig>(made);
  }();
  SeededEntropy entropy(2);
  StreamSession session(role, config, entropy, Instant{1});
  while (!in.empty()) session.feed(Instant{2}, in.bytes(1 + in.number()));
  session.on_timer(Instant{1} + seconds(100));
  int closed = 0;
  while (const auto event = session.next_event()) {
    expect(!std::holds_alternative<Established>(*event) && !std::holds_alternative<RequestArrived>(*event));
    closed += std::holds_alternative<Closed>(*event) ? 1 : 0;
  }
  expect(closed == 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  if (size == 0) return 0;
  const Input rest(ByteSpan(reinterpret_cast<const std::byte*>(bytes + 1), size - 1));
  switch (bytes[0] % 16) {
    case 0: stranger(rest, Role::responder); break;
    case 1: stranger(rest, Role::initiator); break;
    default: multiplexer(rest); break;
  }
  return 0;
}
