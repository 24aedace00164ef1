#include "sim/session_scenario.h"

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "base/strings.h"
#include "core/hyperbus/stream_session.h"
#include "env/entropy_testing.h"
#include "env/landing_testing.h"
#include "sim/loop.h"

namespace holo::sim {
namespace {

using hyperbus::StreamSession;

/// What the stream does to the bytes, drawn once for each run.
struct StreamFaults {
  enum class Kind { none, cut, flip, stall } kind = Kind::none;
  std::uint64_t at_byte = 0;  ///< counted over what side 0 sends
};

struct Call {
  std::string header;
  std::uint64_t digest = 0;
  int endings = 0;
};

std::uint64_t digest_of(ByteSpan bytes) {
  std::uint64_t h = bytes.size();
  for (std::byte b : bytes) h = mix64(h ^ static_cast<std::uint64_t>(b));
  return h;
}

/// One side: a session, the bytes on their way to the other, the calls it made, the answers it owes.
struct Side {
  std::unique_ptr<StreamSession> session;
  std::map<std::uint64_t, Call> calls;
  std::optional<hyperbus::Closed> closed;
  bool established = false;
  std::uint64_t served = 0;
  std::uint64_t timer = 0;
  std::uint64_t sent_bytes = 0;
};

class Run {
 public:
  Run(std::uint64_t seed, Tally& tally) : random_(seed), entropy_(mix64(seed)), tally_(tally) {
    faults_.kind = static_cast<StreamFaults::Kind>(random_.below(4));
    faults_.at_byte = random_.chance(1, 3) ? random_.below(6'000) : random_.below(1'000'000);
    make_sessions();
  }

  Status play() {
    const std::uint64_t requests = 5 + random_.below(40);
    for (int side = 0; side < 2; ++side) pump(side);
    for (std::uint64_t i = 0; i < requests; ++i) {
      const int side = static_cast<int>(random_.below(2));
      world_.at(world_.now() + microseconds(static_cast<std::int64_t>(random_.below(200'000))),
                [this, side] { ask(side); });
    }
    world_.run_until(world_.now() + seconds(30));
    for (int side = 0; side < 2; ++side) {
      sides_[side].session->close(Error{.code = Errc::cancelled, .message = "the run is over"});
      pump(side);
    }
    world_.run_until(world_.now() + seconds(30));
    return verdict();
  }

 private:
  void make_sessions() {
    crypto::Secret<32> secret;
    entropy_.fill(secret.writable());
    const hyperbus::ClusterKey key(secret);
    for (int side = 0; side < 2; ++side) {
      crypto::Ed25519Seed identity_seed;
      entropy_.fill(identity_seed.writable());
      auto handshake = std::make_shared<hyperbus::HandshakeConfig>(
          hyperbus::HandshakeConfig{.identity = hyperbus::Identity::from_seed(identity_seed), .keys = {key}});
      handshake->has_aes = random_.chance(1, 2);
      auto config = std::make_shared<hyperbus::SessionConfig>();
      config->handshake = handshake;
      if (random_.chance(1, 2)) config->records_per_key = 1 + random_.below(20);
      sides_[side].session = std::make_unique<StreamSession>(
          side == 0 ? hyperbus::Role::initiator : hyperbus::Role::responder, config, entropy_, world_.now());
      sides_[side].session->set_placer(
          [](const env::Request&, std::uint64_t bytes) { return env::testing::pieces_for(bytes); });
    }
  }

  void ask(int side) {
    Side& s = sides_[side];
    env::Request request;
    request.type = static_cast<std::uint16_t>(1 + random_.below(100));
    request.header = str("request ", random_.next());
    const std::uint64_t size = random_.chance(1, 4) ? random_.below(400'000) : random_.below(2'000);
    Bytes payload(size);
    entropy_.fill(payload);
    Call call{.header = request.header, .digest = digest_of(payload)};
    if (size > 0) request.payload.emplace_back(std::move(payload));
    request.landing = env::testing::pieces_for(size);
    const auto klass = static_cast<env::StreamClass>(random_.below(3));
    const Instant deadline = world_.now() + milliseconds(static_cast<std::int64_t>(1 + random_.below(5'000)));
    if (auto stream = s.session->request(world_.now(), klass, std::move(request), deadline)) {
      if (random_.chance(1, 10)) {
        const hyperbus::StreamId id = *stream;
        world_.at(world_.now() + microseconds(static_cast<std::int64_t>(random_.below(3'000))), [this, side, id] {
          sides_[side].session->cancel(id, Error{.code = Errc::cancelled, .message = "changed my mind"});
          pump(side);
        });
      }
      s.calls.emplace(stream->value, std::move(call));
      ++tally_["asked"];
    }
    pump(side);
  }

  void on_event(int side, hyperbus::Event event) {
    Side& s = sides_[side];
    if (s.closed) error_ = "an event after Closed";
    if (std::holds_alternative<hyperbus::Established>(event)) {
      s.established = true;
    } else if (auto* arrived = std::get_if<hyperbus::RequestArrived>(&event)) {
      serve(side, std::move(*arrived));
    } else if (auto* reply = std::get_if<hyperbus::ReplyArrived>(&event)) {
      auto it = s.calls.find(reply->stream.value);
      if (it == s.calls.end()) {
        error_ = "an answer to nothing";
        return;
      }
      if (++it->second.endings > 1) error_ = "a request ended twice";
      ++tally_[reply->result ? "answered" : errc_name(reply->result.error().code)];
      if (reply->result) check_echo(it->second, *reply->result);
    } else if (auto* closed = std::get_if<hyperbus::Closed>(&event)) {
      s.closed = std::move(*closed);
      for (const auto& [id, call] : s.calls)
        if (call.endings == 0) error_ = "Closed before every request had ended";
    }
  }

  void serve(int side, hyperbus::RequestArrived arrived) {
    ++sides_[side].served;
    env::Reply reply;
    reply.header = arrived.request.header;
    reply.payload = std::move(arrived.request.payload);
    auto held = std::make_shared<Result<env::Reply>>(std::move(reply));
    if (random_.chance(1, 8)) *held = fail(Errc::refused, "not today");
    const hyperbus::StreamId stream = arrived.stream;
    world_.at(world_.now() + microseconds(static_cast<std::int64_t>(random_.below(20'000))),
              [this, side, stream, held] {
                sides_[side].session->reply(stream, std::move(*held));
                pump(side);
              });
  }

  void check_echo(const Call& call, const env::Reply& reply) {
    if (reply.header != call.header) error_ = "an answer with another request's header";
    Bytes payload;
    for (const Buffer& part : reply.payload) payload.insert(payload.end(), part.span().begin(), part.span().end());
    if (digest_of(payload) != call.digest) error_ = "an answer whose payload was altered";
  }

  /// Drains events and output of one side, and sets its timer again.
  void pump(int side) {
    Side& s = sides_[side];
    while (auto event = s.session->next_event()) on_event(side, std::move(*event));
    while (s.session->wants_output()) {
      std::vector<Buffer> out;
      s.session->output(world_.now(), 64 << 10, out);
      if (out.empty()) break;
      for (const Buffer& b : out) send(side, b);
    }
    while (auto event = s.session->next_event()) on_event(side, std::move(*event));
    if (s.session->finished() && !s.closed) error_ = "finished without Closed";
    if (s.session->finished()) cut(side);
    world_.cancel(s.timer);
    if (const Instant next = s.session->next_timer(); next < kNever) {
      s.timer = world_.at(next, [this, side] {
        sides_[side].session->on_timer(world_.now());
        pump(side);
      });
    }
  }

  /// Puts bytes on the stream in random portions, with the run's fault.
  void send(int side, const Buffer& buffer) {
    Bytes bytes(buffer.span().begin(), buffer.span().end());
    Side& s = sides_[side];
    if (side == 0 && faults_.kind != StreamFaults::Kind::none && !struck_ &&
        s.sent_bytes + bytes.size() > faults_.at_byte) {
      struck_ = true;
      const std::uint64_t offset = faults_.at_byte - std::min(faults_.at_byte, s.sent_bytes);
      if (faults_.kind == StreamFaults::Kind::flip) {
        bytes[offset] ^= std::byte{static_cast<unsigned char>(1U << random_.below(8))};
        ++tally_["flips"];
      } else {
        bytes.resize(offset);
        stopped_ = true;
        ++tally_[faults_.kind == StreamFaults::Kind::cut ? "cuts" : "stalls"];
        if (faults_.kind == StreamFaults::Kind::cut) cut(side);
      }
    }
    s.sent_bytes += buffer.size();
    if (bytes.empty() || (stopped_ && bytes.size() == buffer.size() && side == 0)) return;
    if (cut_) return;
    auto& arrival = arrival_[side];
    std::size_t at = 0;
    while (at < bytes.size()) {
      const std::size_t n =
          std::min<std::size_t>(bytes.size() - at, 1 + random_.below(random_.chance(1, 20) ? 100 : 60'000));
      auto portion = std::make_shared<Bytes>(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                                             bytes.begin() + static_cast<std::ptrdiff_t>(at + n));
      at += n;
      arrival = std::max(arrival, world_.now()) + microseconds(static_cast<std::int64_t>(random_.below(300)));
      world_.at(arrival, [this, side, portion] {
        if (sides_[1 - side].session->finished()) return;
        sides_[1 - side].session->feed(world_.now(), *portion);
        pump(1 - side);
      });
    }
  }

  void cut(int side) {
    if (std::exchange(cut_, true)) return;
    const Instant when = std::max(arrival_[side], world_.now()) + microseconds(100);
    world_.at(when, [this] {
      for (int i = 0; i < 2; ++i) {
        sides_[i].session->broken(world_.now(), Error{.code = Errc::unavailable, .message = "the stream broke"});
        pump(i);
      }
    });
  }

  Status verdict() {
    for (int side = 0; side < 2; ++side) {
      Side& s = sides_[side];
      for (const auto& [id, call] : s.calls)
        if (call.endings != 1) error_ = str("request ", id, " of side ", side, " ended ", call.endings, " times");
      if (!s.closed) error_ = str("side ", side, " never closed");
    }
    if (faults_.kind == StreamFaults::Kind::none && !(sides_[0].established && sides_[1].established))
      error_ = "no connection although nothing was wrong";
    if (!error_.empty()) return fail(Errc::internal, error_);
    return {};
  }

  Random random_;
  env::testing::SeededEntropy entropy_;
  Tally& tally_;
  World world_;
  StreamFaults faults_;
  Side sides_[2];
  Instant arrival_[2];
  bool struck_ = false;
  bool stopped_ = false;
  bool cut_ = false;
  std::string error_;
};

}  // namespace

Status run_session(std::uint64_t seed, Tally& tally) {
  Run run(seed, tally);
  return run.play();
}

}  // namespace holo::sim
