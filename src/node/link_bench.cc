#include "node/link_bench.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "node/json.h"
#include "node/ping.h"
#include "wire/message_types.h"

namespace holo::node {
namespace {

constexpr auto kLinkBench = static_cast<std::uint16_t>(wire::PeerMessage::link_bench);
constexpr Duration kLimit = seconds(50);
constexpr std::uint32_t kMaxPauseMicros = 100'000, kMaxCopies = 16;
constexpr std::size_t kAskBytes = 8;

std::string encode_ask(std::uint64_t bytes) {
  std::string out;
  for (std::size_t i = 0; i < kAskBytes; ++i) out.push_back(static_cast<char>(bytes >> (8 * i)));
  return out;
}

Task<Result<env::Reply>> answer(NodeId, env::Request request) {
  static const Buffer all(Bytes(kMaxLinkBenchReply, std::byte{7}));
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < std::min(kAskBytes, request.header.size()); ++i) {
    bytes |= static_cast<std::uint64_t>(static_cast<unsigned char>(request.header[i])) << (8 * i);
  }
  if (request.header.size() != kAskBytes || bytes == 0 || bytes > kMaxLinkBenchReply) {
    co_return fail(Errc::invalid_argument, str("an answer of 1 to ", kMaxLinkBenchReply, " bytes can be had"));
  }
  env::Reply reply;
  reply.payload.push_back(all.slice(0, static_cast<std::size_t>(bytes)));
  co_return reply;
}

/// Round trips of one kind, several at a time.
struct Run {
  env::Loop* loop;
  Bus* bus;
  NodeId peer;
  env::StreamClass klass{};
  std::uint64_t bytes = 0;
  std::uint64_t left = 0;
  Duration pause;
  Instant deadline;
  unsigned running = 0;
  std::vector<double> took_us{};
  std::optional<Error> error{};
  OneShot<bool> over{};
};
using RunPtr = std::shared_ptr<Run>;

Task<void> ask(RunPtr run) {
  Bytes place(run->bytes);  // As memory asks for pages, which go straight to where they belong.
  while (run->left > 0 && !run->error && !run->loop->stopping()) {
    --run->left;
    env::Request request{.type = kLinkBench, .header = encode_ask(run->bytes), .payload = {}};
    const auto landing = std::make_shared<env::OnePlace>(place);
    request.landing = landing;
    const env::CallOptions options{.klass = run->klass, .deadline = run->deadline};
    const Instant start = run->loop->now();
    auto call = run->bus->call(run->peer, std::move(request), options);
    auto reply = co_await call;
    landing->end();
    if (!reply) {
      run->error = std::move(reply).error();
    } else if (run->took_us.size() < kMaxLinkBenchCount) {
      run->took_us.push_back(static_cast<double>((run->loop->now() - start).ns) / 1000.0);
    }
    if (run->pause.ns > 0) {
      auto sleep = env::sleep_for(*run->loop, run->pause);
      (void)co_await sleep;
    }
  }
  if (--run->running == 0) run->over.set(true);
}

void start(const RunPtr& run, unsigned in_flight) {
  run->running = in_flight;  // Before the first, which may end at once.
  for (unsigned i = 0; i < in_flight; ++i) run->loop->spawn(ask(run));
}

env::StreamClass class_of(wire::LinkBenchRequest::Klass klass) {
  switch (klass) {
    case wire::LinkBenchRequest::DATA: return env::StreamClass::data;
    case wire::LinkBenchRequest::BULK: return env::StreamClass::bulk;
    default: return env::StreamClass::control;
  }
}

}  // namespace

void serve_link_bench(Bus& bus) { bus.serve(kLinkBench, answer); }

Task<Result<LocalReply>> ask_link_bench(env::Loop* loop, Bus* bus, const ControlService* control,
                                        LocalRequest request) {
  wire::LinkBenchRequest asked;
  if (!asked.ParseFromString(request.header)) co_return fail(Errc::malformed, "a request that does not decode");
  if (asked.count() < 1 || asked.count() > kMaxLinkBenchCount || asked.bytes() < 1 ||
      asked.bytes() > kMaxLinkBenchReply || asked.in_flight() < 1 || asked.in_flight() > kMaxLinkBenchInFlight ||
      asked.pause_us() > kMaxPauseMicros || asked.copies_beside() > kMaxCopies) {
    co_return fail(Errc::invalid_argument, "more than a node lets itself be measured with");
  }
  HOLO_CO_ASSIGN(peer, find_other_node(*control, asked.node()));
  const std::string name = control->state().node(peer)->name;
  const Instant deadline = loop->now() + kLimit;

  const RunPtr first(
      new Run{.loop = loop, .bus = bus, .peer = peer, .bytes = 1, .left = 1, .pause = {}, .deadline = deadline});
  start(first, 1);
  co_await first->over;
  if (first->error) co_return std::unexpected(*first->error);

  const RunPtr beside(new Run{.loop = loop,
                              .bus = bus,
                              .peer = peer,
                              .klass = env::StreamClass::bulk,
                              .bytes = kMaxLinkBenchReply,
                              .left = UINT64_MAX,
                              .pause = {},
                              .deadline = deadline});
  if (asked.copies_beside() > 0) start(beside, asked.copies_beside());
  const RunPtr run(new Run{.loop = loop,
                           .bus = bus,
                           .peer = peer,
                           .klass = class_of(asked.klass()),
                           .bytes = asked.bytes(),
                           .left = asked.count(),
                           .pause = microseconds(asked.pause_us()),
                           .deadline = deadline});
  const Instant begin = loop->now();
  start(run, asked.in_flight());
  co_await run->over;
  const Duration took = loop->now() - begin;
  beside->left = 0;
  if (asked.copies_beside() > 0) co_await beside->over;
  if (run->error) co_return std::unexpected(*run->error);
  if (beside->error) co_return std::unexpected(*beside->error);

  JsonWriter w;
  w.object([&] {
    write_link(w, *bus, peer, name);
    w.field("seconds", took.seconds());
    w.key("took_us");
    w.array([&] {
      for (const double us : run->took_us) w.value(us);
    });
  });
  wire::AdminJson message;
  message.set_json(w.text());
  LocalReply reply;
  reply.header = message.SerializeAsString();
  co_return reply;
}

}  // namespace holo::node
