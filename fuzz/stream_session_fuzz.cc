// Sessions over TCP as a whole: two ends on virtual time, and between them whoever the input says: it delivers in any
// portions, alters, swallows and invents bytes and whole records (which are believed where cryptography is stubbed),
// and has both ends ask, answer, cancel, ping and close. Each request ends at most once and none outlives its session,
// a session says once that it is closed, and memory stays bounded.
#include <array>
#include <map>
#include <memory>
#include <vector>

#include "base/limits.h"
#include "core/hyperbus/record.h"
#include "core/hyperbus/stream_session.h"
#include "env/landing_testing.h"
#include "fuzzing.h"
#ifdef HOLO_FUZZ_STUB
#include "stub/stub.h"
#endif

namespace {

using namespace holo;
using namespace holo::hyperbus;
using fuzz::expect;
using fuzz::Input;

constexpr std::size_t kMaxInFlight = 512 << 10;  // bytes in one direction; an end is asked for no more above it

crypto::Secret<32> secret(std::uint8_t byte) {
  crypto::Secret<32> out;
  std::ranges::fill(out.writable(), std::byte{byte});
  return out;
}

std::shared_ptr<const SessionConfig> make_config(std::uint8_t node, bool psk, bool often) {
  SessionConfig config;
  config.windows[0].requests = 2;
  config.windows[1].requests = 3;
  config.windows[2].requests = 2;
  for (ClassWindow& window : config.windows)
    window.request_bytes = window.reply_bytes = limits::kMaxHeaderBytes + limits::kMaxPayloadBytes;
  if (often) config.records_per_key = 3;
  Identity identity = Identity::from_seed(secret(static_cast<std::uint8_t>(1 + node)));
  if (node == 1) identity = *identity.rotated(secret(9));
  config.handshake = std::make_shared<const HandshakeConfig>(
      HandshakeConfig{.identity = identity,
                      .keys = {ClusterKey(secret(7))},
                      .suite = suite_of(psk ? TrustMode::psk : TrustMode::tofu, KeyExchange::hybrid),
                      .has_aes = psk});
  return std::make_shared<const SessionConfig>(std::move(config));
}

struct End {
  fuzz::SeededEntropy entropy;
  StreamSession session;
  Bytes inbound;
  std::map<std::uint64_t, bool> open;
  std::vector<StreamId> owed;
  bool closed = false;

  End(Role role, std::shared_ptr<const SessionConfig> config, Instant now)
      : entropy(role == Role::initiator ? 1 : 2), session(role, std::move(config), entropy, now) {
    session.set_placer([](const env::Request&, std::uint64_t bytes) { return env::testing::pieces_for(bytes); });
  }
};

class World {
 public:
  World(const std::shared_ptr<const SessionConfig>& a, const std::shared_ptr<const SessionConfig>& b, Input in,
        bool established)
      : in_(in),
        ends_{std::make_unique<End>(Role::initiator, a, now_), std::make_unique<End>(Role::responder, b, now_)} {
    if (established) run(4);
  }

  void play() {
    for (int ops = 0; !in_.empty() && ops < 64; ++ops) {
      step();
      events();
    }
    for (const auto& end : ends_) end->session.on_timer(now_ + seconds(100));
    for (const auto& end : ends_) end->session.on_timer(now_ + seconds(200));
    events();
    for (const auto& end : ends_) expect(end->closed && end->open.empty());
  }

 private:
  void step() {
    const std::size_t op = in_.number();
    const std::size_t to = op >> 7;
    End& end = *ends_[to];
    switch (op % 13) {
      case 0: deliver(to, SIZE_MAX); break;
      case 1: deliver(to, in_.number()); break;
      case 2: {
        const std::size_t at = in_.large();
        const auto flip = static_cast<std::byte>(in_.number());
        collect(to);
        if (!end.inbound.empty()) end.inbound[at % end.inbound.size()] ^= flip;
        deliver(to, SIZE_MAX);
        break;
      }
      case 3: {
        const std::size_t at = in_.large(), count = in_.number();
        collect(to);
        if (end.inbound.empty()) break;
        const auto begin = end.inbound.begin() + static_cast<std::ptrdiff_t>(at % end.inbound.size());
        end.inbound.erase(
            begin, begin + std::min<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(count), end.inbound.end() - begin));
        break;
      }
      case 4: end.session.feed(now_, in_.bytes(in_.number())); break;
      case 5:
      case 6: forge(end); break;
      case 7: run(1 + in_.number() % 4); break;
      case 8: {
        now_ = now_ + microseconds(std::int64_t{1} << in_.number() % 25);
        for (const auto& one : ends_) {
          if (one->session.next_timer() <= now_) one->session.on_timer(now_);
        }
        break;
      }
      case 9: {
        const std::size_t how = in_.number();
        env::Request request{.type = 1, .header = std::string(how >> 2, 'h'), .payload = {}};
        request.payload.emplace_back(Bytes(in_.number() * 256));
        request.landing = env::testing::pieces_for(how * 256);
        const auto stream = end.session.request(now_, static_cast<StreamClass>(how % 3), std::move(request),
                                                now_ + milliseconds(static_cast<std::int64_t>(in_.number() * 40)));
        if (stream) expect(end.open.emplace(stream->value, true).second);
        break;
      }
      case 10:
        if (!end.owed.empty()) {
          const std::size_t how = in_.number();
          env::Reply reply{.header = std::string(how, 'r'), .payload = {}};
          reply.payload.emplace_back(Bytes(how * 256));
          if (how < 192) {
            end.session.reply(end.owed.back(), std::move(reply));
          } else {
            end.session.reply(end.owed.back(), fail(Errc::not_found, std::string(how, 'e')));
          }
          end.owed.pop_back();
        }
        break;
      case 11:
        if (!end.open.empty()) end.session.cancel(StreamId(end.open.begin()->first), {.code = Errc::cancelled});
        break;
      case 12: {
        const std::size_t how = in_.number();
        if (how < 64) {
          end.session.close({.code = Errc::unavailable, .message = std::string(how, 'x')});
        } else if (how < 96) {
          end.session.broken(now_, {.code = Errc::unavailable});
        } else {
          end.session.ping(now_);
        }
        break;
      }
      default: break;
    }
  }

  /// A record with frames of its own, or a handshake message, or raw bytes; nobody has sealed it.
  void forge(End& end) {
    const std::size_t how = in_.number();
    Bytes plain;
    const std::size_t frames = 1 + how % 4;
    for (std::size_t i = 0; i < frames && how < 192; ++i) {
      const std::size_t type = in_.number(), stream = in_.number();
      const ByteSpan body = in_.bytes(in_.number());
      std::array<std::byte, kFrameHeaderBytes> head;
      write_frame_header(head.data(), static_cast<FrameType>(type % 8), static_cast<std::uint8_t>(type >> 7),
                         body.size(), stream);
      plain.insert(plain.end(), head.begin(), head.end());
      plain.insert(plain.end(), body.begin(), body.end());
    }
    if (how >= 192) {
      const ByteSpan raw = in_.bytes(in_.number());
      plain.assign(raw.begin(), raw.end());
    }
    const auto kind = how < 192 ? RecordKind::frames : static_cast<RecordKind>(how % 6);
    Bytes record(kRecordOverhead + plain.size());
    write_record_header(record.data(), kind, plain.size() + crypto::kAeadTagBytes);
    std::ranges::copy(plain, record.begin() + kRecordHeaderBytes);
    end.session.feed(now_, record);
  }

  void collect(std::size_t to) {
    End& end = *ends_[to];
    if (end.inbound.size() >= kMaxInFlight) return;
    std::vector<Buffer> out;
    ends_[1 - to]->session.output(now_, 64 << 10, out);
    for (const Buffer& part : out) end.inbound.insert(end.inbound.end(), part.span().begin(), part.span().end());
  }

  void deliver(std::size_t to, std::size_t bytes) {
    collect(to);
    End& end = *ends_[to];
    bytes = std::min(bytes, end.inbound.size());
    end.session.feed(now_, ByteSpan(end.inbound).first(bytes));
    end.inbound.erase(end.inbound.begin(), end.inbound.begin() + static_cast<std::ptrdiff_t>(bytes));
  }

  void run(std::size_t rounds) {
    for (; rounds != 0; --rounds) {
      deliver(1, SIZE_MAX);
      deliver(0, SIZE_MAX);
      events();
    }
  }

  void events() {
    for (const auto& end : ends_) {
      while (auto event = end->session.next_event()) {
        expect(!end->closed);
        if (auto* arrived = std::get_if<RequestArrived>(&*event)) end->owed.push_back(arrived->stream);
        if (auto* reply = std::get_if<ReplyArrived>(&*event)) expect(end->open.erase(reply->stream.value) == 1);
        if (std::holds_alternative<Closed>(*event)) {
          expect(end->open.empty());
          end->closed = true;
        }
      }
    }
  }

  Input in_;
  Instant now_{1'000'000'000};
  std::array<std::unique_ptr<End>, 2> ends_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static const auto configs = [] {
    std::array<std::array<std::shared_ptr<const SessionConfig>, 4>, 2> out;
    for (std::uint8_t node = 0; node < 2; ++node) {
      for (std::uint8_t kind = 0; kind < 4; ++kind)
        out[node][kind] = make_config(node, (kind & 1) == 0, (kind & 2) != 0);
    }
    return out;
  }();
  Input in(bytes, size);
  if (in.empty()) return 0;
  const std::size_t mode = in.number();
#ifdef HOLO_FUZZ_STUB
  crypto::stub::keys_matter = (mode & 8) != 0;
#endif
  World(configs[0][mode & 3], configs[1][mode & 3], in, (mode & 4) != 0).play();
  return 0;
}
